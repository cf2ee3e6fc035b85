use alibi_proto::time::Timestamp;

use super::*;

const PERIOD: Duration = Duration::from_secs(1);

/// The instant `secs` after boot; the machine was booted a long time after 1970.
fn at(secs: u64) -> Moment {
    Moment { wall: Timestamp::from_secs(1_000_000 + secs), boot_ns: secs * 1_000_000_000 }
}

/// `PID@START`, `PID@START<PARENT`; with a `Z` behind it, a process that has ended but is still in the table.
fn process(text: &str) -> ProcessRow {
    let (text, ended) = text.strip_suffix('Z').map_or((text, false), |text| (text, true));
    let (text, parent) = text.split_once('<').map_or((text, None), |(text, parent)| (text, Some(parent)));
    let (pid, start) = text.split_once('@').unwrap();
    ProcessRow {
        key: ProcessKey { pid: pid.parse().unwrap(), start: start.parse().unwrap() },
        parent_pid: parent.map(|parent| parent.parse().unwrap()),
        started: Timestamp::from_secs(start.parse().unwrap()),
        ended,
        image: None,
    }
}

/// `LOCAL REMOTE STATE IDENTITY PIDS`; an end without an address is on 10.0.0.1 here and on 192.0.2.1 there.
fn socket(text: &str) -> TcpSocket {
    let words: Vec<&str> = text.split(' ').collect();
    let end = |text: &str, ip: &str| {
        if text.starts_with(':') { format!("{ip}{text}").parse().unwrap() } else { text.parse().unwrap() }
    };
    let state = match words[2] {
        "listen" => TcpState::Listen,
        "syn_sent" => TcpState::SynSent,
        "syn_recv" => TcpState::SynReceived,
        "established" => TcpState::Established,
        "fin_wait" => TcpState::FinWait2,
        "close_wait" => TcpState::CloseWait,
        "time_wait" => TcpState::TimeWait,
        "closed" => TcpState::Closed,
        other => panic!("{other}"),
    };
    TcpSocket {
        local: end(words[0], "10.0.0.1"),
        remote: end(words[1], "192.0.2.1"),
        state,
        identity: words[3].parse().unwrap(),
        pids: words
            .get(4)
            .map_or(Vec::new(), |pids| pids.split(',').map(|pid| pid.parse().unwrap()).collect()),
    }
}

/// One look, in words. Tables that begin with `!` cannot be read.
struct Look {
    secs: u64,
    processes: &'static [&'static str],
    sockets: &'static [&'static str],
    /// What it shows, as [`words`] puts it.
    shows: &'static [&'static str],
}

const fn look(
    secs: u64,
    processes: &'static [&'static str],
    sockets: &'static [&'static str],
    shows: &'static [&'static str],
) -> Look {
    Look { secs, processes, sockets, shows }
}

fn table<T>(rows: &[&str], row: fn(&str) -> T) -> Result<Vec<T>, String> {
    match rows.first().and_then(|first| first.strip_prefix('!')) {
        Some(problem) => Err(problem.to_owned()),
        None => Ok(rows.iter().map(|text| row(text)).collect()),
    }
}

fn check(looks: &[Look]) {
    let mut differ = Differ::new(PERIOD, Some(4));
    for look in looks {
        let snapshot = Snapshot {
            at: at(look.secs),
            processes: table(look.processes, process),
            sockets: table(look.sockets, socket),
        };
        let report = differ.diff(snapshot);
        let shows: Vec<String> =
            report.observations.iter().map(|observation| words(observation, look.secs)).collect();
        assert_eq!(shows, look.shows, "at {}", look.secs);
        assert_eq!(report.seen_until, at(look.secs));
    }
}

/// An observation in words; with its time, if that is not the time of the look.
fn words(observation: &Observation, secs: u64) -> String {
    let seen = observation.at.boot_ns / 1_000_000_000;
    let when = if seen == secs { String::new() } else { format!("at {seen}: ") };
    let mark = |marked: bool, word: &str| if marked { format!(" {word}") } else { String::new() };
    let by = |owner: &Option<ProcessKey>| {
        owner.map_or(String::new(), |key| format!(" by {}@{}", key.pid, key.start))
    };
    let fact = match &observation.fact {
        Fact::ProcessStarted(started) => {
            let ProcessKey { pid, start } = started.process;
            let parent =
                started.parent.map_or(String::new(), |key| format!(" child of {}@{}", key.pid, key.start));
            format!("start {pid}@{start}{parent}{}", mark(started.already_running, "already"))
        }
        Fact::ProcessExited { process, exit_code: None } => format!("exit {}@{}", process.pid, process.start),
        Fact::ConnectionOpened(opened) => {
            assert_eq!((opened.network_namespace, opened.traffic), (Some(4), None));
            format!(
                "{} {} {} {}{}{} ({})",
                opened.direction,
                opened.state.word(),
                opened.local.port(),
                opened.socket.socket,
                mark(opened.already_open, "already"),
                by(&opened.owner),
                opened.attribution
            )
        }
        Fact::ConnectionChanged { socket, change } => {
            let owner = change.owner.map(|(owner, _)| owner);
            let state = change.state.map_or(String::new(), |state| format!(" {}", state.word()));
            format!("change {}{state}{}", socket.socket, by(&owner))
        }
        Fact::ConnectionClosed { socket, state, .. } => format!("{} {}", state.word(), socket.socket),
        Fact::Listening { owner, attribution, protocol: Protocol::Tcp, local } => {
            format!("listen {local}{} ({attribution})", by(owner))
        }
        Fact::Coverage(change) => {
            let secs = |instant: Timestamp| instant.as_nanos() / 1_000_000_000 - 1_000_000;
            let to = change.to.map_or(String::new(), |to| format!(" to {}", secs(to)));
            assert_eq!(change.scope.is_some(), matches!(change.grade, Grade::Sampled { .. }));
            format!("{} {} from {}{to}", change.facet, change.grade, secs(change.from))
        }
        other => panic!("{other:?}"),
    };
    when + &fact
}

#[test]
fn processes_start_and_end() {
    check(&[
        look(10, &["9@5<1", "1@0"], &[], &["start 1@0 already", "start 9@5 child of 1@0 already"]),
        look(11, &["1@0", "9@5<1"], &[], &[]),
        // A family that started in one tick, the child with the lower pid; and a parent's pid used again.
        look(
            12,
            &["1@0", "9@5<1", "7@11<8", "8@11<9", "20@11<21", "21@12<1"],
            &[],
            &[
                "start 8@11 child of 9@5",
                "start 20@11",
                "start 7@11 child of 8@11",
                "start 21@12 child of 1@0",
            ],
        ),
        // A pid used again between two looks.
        look(
            13,
            &["1@0", "9@13<1", "8@11<9"],
            &[],
            &["start 9@13 child of 1@0", "exit 7@11", "exit 9@5", "exit 20@11", "exit 21@12"],
        ),
        look(14, &["1@0"], &[], &["exit 8@11", "exit 9@13"]),
    ]);
}

#[test]
fn a_process_that_nobody_has_taken_note_of_has_ended_once() {
    check(&[
        look(10, &["1@0", "2@1<1Z"], &[], &["start 1@0 already"]),
        look(11, &["1@0", "2@1<1Z", "3@9<1"], &[], &["start 3@9 child of 1@0"]),
        look(12, &["1@0", "3@9<1Z", "4@9<1Z"], &[], &["start 4@9 child of 1@0", "exit 3@9", "exit 4@9"]),
        look(13, &["1@0", "3@9<1Z", "4@9<1Z"], &[], &[]),
        look(14, &["1@0"], &[], &[]),
    ]);
}

#[test]
fn parents_in_a_circle_come_to_an_end() {
    check(&[look(
        10,
        &["2@5<3", "3@5<2", "4@5<4"],
        &[],
        &["start 2@5 child of 3@5 already", "start 3@5 child of 2@5 already", "start 4@5 already"],
    )]);
}

#[test]
fn a_connection_opens_changes_and_ends_when_it_was_last_seen() {
    const P: &[&str] = &["5@1", "6@2"];
    check(&[
        look(
            10,
            P,
            &[":100 :443 established 70 5", ":101 :443 time_wait 0"],
            &[
                "start 5@1 already",
                "start 6@2 already",
                "outbound established 100 70 already by 5@1 (socket_table)",
            ],
        ),
        look(11, P, &[":100 :443 established 70 5", ":101 :443 time_wait 0"], &[]),
        look(
            12,
            P,
            &[":102 :443 syn_sent 71 5", ":103 :443 syn_sent 72 6", ":104 :443 closed 73 6"],
            &[
                "at 11: closed 70",
                "outbound attempted 102 71 by 5@1 (socket_table)",
                "outbound attempted 103 72 by 6@2 (socket_table)",
            ],
        ),
        // One succeeds, one vanishes, which is all that is known of its failure.
        look(13, P, &[":102 :443 established 71 5"], &["at 12: failed 72", "change 71 established"]),
        look(14, P, &[":102 :443 close_wait 71 5"], &[]),
        // Its owner lets go of it, and its trace is not a new connection.
        look(15, P, &[":102 :443 fin_wait 0"], &[]),
        look(16, P, &[":102 :443 time_wait 0"], &["at 15: closed 71"]),
        look(17, P, &[":102 :443 time_wait 0"], &[]),
        look(18, P, &[], &[]),
    ]);
}

#[test]
fn a_short_connection_leaves_a_trace_that_is_told_once() {
    check(&[
        look(10, &[], &["0.0.0.0:80 0.0.0.0:0 listen 60"], &["listen 0.0.0.0:80 (unknown)"]),
        look(
            11,
            &[],
            &["0.0.0.0:80 0.0.0.0:0 listen 60", ":100 :443 time_wait 0", ":80 :5000 time_wait 0"],
            &["inbound closed 80 11000000000 (unknown)", "outbound closed 100 11000000001 (unknown)"],
        ),
        look(12, &[], &["0.0.0.0:80 0.0.0.0:0 listen 60", ":100 :443 time_wait 0"], &[]),
        look(13, &[], &[], &[]),
        // The same two ends, used again: another connection.
        look(14, &[], &[":100 :443 time_wait 0"], &["outbound closed 100 14000000000 (unknown)"]),
    ]);
}

#[test]
fn an_attempt_that_was_over_at_the_next_look_but_left_a_trace_had_succeeded() {
    check(&[
        look(10, &[], &[":100 :443 syn_sent 70"], &["outbound attempted 100 70 already (unknown)"]),
        look(11, &[], &[":100 :443 time_wait 0"], &["at 10: closed 70"]),
    ]);
}

#[test]
fn the_same_ends_with_another_socket_are_another_connection() {
    check(&[
        look(10, &[], &[":100 :443 established 70"], &["outbound established 100 70 already (unknown)"]),
        look(
            11,
            &[],
            &[":100 :443 established 71"],
            &["at 10: closed 70", "outbound established 100 71 (unknown)"],
        ),
        look(
            12,
            &[],
            &[":100 :443 syn_sent 71"],
            &["at 11: closed 71", "outbound attempted 100 71 (unknown)"],
        ),
    ]);
}

#[test]
fn a_connection_not_accepted_yet_gets_its_identity_and_owner_later() {
    const LISTEN: &str = "[::]:80 [::]:0 listen 60 5";
    const P: &[&str] = &["5@1", "6@2"];
    check(&[
        look(
            10,
            P,
            &[LISTEN],
            &["start 5@1 already", "start 6@2 already", "listen [::]:80 by 5@1 (socket_table)"],
        ),
        look(11, P, &[LISTEN, ":80 :5000 syn_recv 0"], &["inbound attempted 80 11000000000 (unknown)"]),
        look(12, P, &[LISTEN, ":80 :5000 established 0"], &["change 11000000000 established"]),
        look(13, P, &[LISTEN, ":80 :5000 established 70 6"], &["change 11000000000 by 6@2"]),
        look(
            14,
            P,
            &[LISTEN, ":80 :5000 established 71 6"],
            &["at 13: closed 11000000000", "inbound established 80 71 by 6@2 (socket_table)"],
        ),
        look(15, P, &[LISTEN], &["at 14: closed 71"]),
    ]);
}

#[test]
fn a_shared_socket_has_a_guessed_owner_until_that_one_lets_go() {
    const P: &[&str] = &["5@1", "6@2", "7@3"];
    check(&[
        look(
            10,
            P,
            &[":100 :443 established 70 7,6", ":101 :443 established 71 99"],
            &[
                "start 5@1 already",
                "start 6@2 already",
                "start 7@3 already",
                "outbound established 100 70 already by 6@2 (guessed)",
                "outbound established 101 71 already (unknown)",
            ],
        ),
        look(11, P, &[":100 :443 established 70 5,6,7", ":101 :443 established 71"], &[]),
        look(
            12,
            P,
            &[":100 :443 established 70 7", ":101 :443 established 71 5"],
            &["change 70 by 7@3", "change 71 by 5@1"],
        ),
        // Not to be seen is not another owner.
        look(13, P, &[":100 :443 established 70", ":101 :443 established 71"], &[]),
    ]);
}

#[test]
fn an_owner_that_ended_during_the_look_is_still_the_owner() {
    check(&[
        look(10, &["5@1"], &[], &["start 5@1 already"]),
        look(
            11,
            &[],
            &[":100 :443 established 70 5"],
            &["outbound established 100 70 by 5@1 (socket_table)", "exit 5@1"],
        ),
    ]);
}

#[test]
fn listeners_are_told_once_for_each_owner() {
    const P: &[&str] = &["5@1", "6@2"];
    check(&[
        look(
            10,
            P,
            &[":80 0.0.0.0:0 listen 60"],
            &["start 5@1 already", "start 6@2 already", "listen 10.0.0.1:80 (unknown)"],
        ),
        look(
            11,
            P,
            &[":80 0.0.0.0:0 listen 60 5", ":80 0.0.0.0:0 listen 61 6"],
            &["listen 10.0.0.1:80 by 5@1 (socket_table)", "listen 10.0.0.1:80 by 6@2 (socket_table)"],
        ),
        look(12, P, &[":80 0.0.0.0:0 listen 60"], &[]),
        look(13, P, &[":80 0.0.0.0:0 listen 60 5"], &[]),
        look(14, P, &[], &[]),
        look(15, P, &[":80 0.0.0.0:0 listen 62 5"], &["listen 10.0.0.1:80 by 5@1 (socket_table)"]),
    ]);
}

#[test]
fn a_table_that_cannot_be_read_is_told_from_the_last_look_that_worked() {
    const BROKEN: &[&str] = &["!no memory"];
    check(&[
        look(
            10,
            &["5@1"],
            &[":100 :443 established 70 5"],
            &["start 5@1 already", "outbound established 100 70 already by 5@1 (socket_table)"],
        ),
        look(
            11,
            &["5@1"],
            BROKEN,
            &["connections none(the table of connections cannot be read: no memory) from 10"],
        ),
        look(12, &["5@1"], BROKEN, &[]),
        look(
            13,
            BROKEN,
            &[":101 :443 established 71 5"],
            &[
                "at 10: closed 70",
                "processes none(the table of processes cannot be read: no memory) from 12",
                "connections sampled(1 s) from 13",
                "outbound established 101 71 by 5@1 (socket_table)",
            ],
        ),
        look(
            14,
            &["6@9"],
            &[":101 :443 established 71"],
            &["processes sampled(1 s) from 14", "start 6@9", "exit 5@1"],
        ),
    ]);
}

#[test]
fn the_first_look_that_works_is_the_inventory() {
    check(&[
        look(
            10,
            &["!x"],
            &["!y"],
            &[
                "processes none(the table of processes cannot be read: x) from 10",
                "connections none(the table of connections cannot be read: y) from 10",
            ],
        ),
        look(
            11,
            &["5@1"],
            &[":100 :443 established 70 5", ":101 :443 time_wait 0"],
            &[
                "processes sampled(1 s) from 11",
                "start 5@1 already",
                "connections sampled(1 s) from 11",
                "outbound established 100 70 already by 5@1 (socket_table)",
            ],
        ),
    ]);
}

#[test]
fn a_late_look_leaves_a_gap() {
    check(&[
        look(10, &[], &[], &[]),
        look(13, &[], &[], &[]),
        look(
            23,
            &[],
            &[],
            &[
                "processes none(no look for 10 s) from 13 to 23",
                "connections none(no look for 10 s) from 13 to 23",
            ],
        ),
        look(24, &[], &[], &[]),
    ]);
}

/// Looks at 10 and, an hour and more later, at `at(last)`, of which it was asleep in any case between the other two.
#[track_caller]
fn check_sleep((asleep, awake): (u64, u64), last: u64, gaps: &[(u64, u64)]) {
    let mut differ = Differ::new(PERIOD, None);
    let snapshot = |at| Snapshot { at, processes: Ok(Vec::new()), sockets: Ok(Vec::new()) };
    differ.diff(snapshot(at(10)));
    differ.slept(at(asleep), at(awake));
    let report = differ.diff(snapshot(at(last)));
    let mut found = Vec::new();
    for observation in report.observations {
        let Fact::Coverage(change) = observation.fact else { panic!("{observation:?}") };
        if change.facet == Facet::Connections {
            found.push((change.from, change.to.unwrap()));
        }
    }
    let gaps: Vec<_> = gaps.iter().map(|(from, to)| (at(*from).wall, at(*to).wall)).collect();
    assert_eq!(found, gaps, "asleep from {asleep} until {awake}, and looked at {last}");
    // It is of this look alone.
    assert_eq!(differ.diff(snapshot(at(last + 10))).observations.len(), 2);
}

#[test]
fn what_the_host_slept_through_is_no_gap() {
    check_sleep((10, 3_610), 3_610, &[]);
    check_sleep((11, 3_610), 3_611, &[]);
    check_sleep((13, 3_613), 3_616, &[]);
    // Awake for long without a look, before or after: both may be it.
    check_sleep((14, 3_610), 3_614, &[(10, 14), (3_610, 3_614)]);
    check_sleep((40, 3_612), 3_613, &[(10, 40)]);
    // That is no stretch between the looks.
    check_sleep((9, 3_610), 3_610, &[(10, 3_610)]);
    check_sleep((11, 3_612), 3_611, &[(10, 3_611)]);
    check_sleep((30, 20), 3_610, &[(10, 3_610)]);
}

#[test]
fn a_clock_set_back_during_a_gap_does_not_turn_it_around() {
    let mut differ = Differ::new(PERIOD, None);
    let snapshot = |at| Snapshot { at, processes: Ok(Vec::new()), sockets: Ok(Vec::new()) };
    differ.diff(snapshot(at(100)));
    let set_back = Moment { wall: at(50).wall, boot_ns: at(200).boot_ns };
    let report = differ.diff(snapshot(set_back));
    assert_eq!(report.observations.len(), 2);
    for observation in report.observations {
        let Fact::Coverage(change) = observation.fact else { panic!() };
        assert_eq!((change.from, change.to), (at(50).wall, Some(at(100).wall)));
    }
}

#[test]
fn only_processes_of_the_last_look_are_known() {
    let mut differ = Differ::new(PERIOD, None);
    let key = |start| ProcessKey { pid: 5, start };
    assert!(!differ.knows(&key(1)));
    differ.diff(Snapshot { at: at(1), processes: table(&["5@1"], process), sockets: Ok(Vec::new()) });
    assert!(differ.knows(&key(1)) && !differ.knows(&key(2)));
    differ.diff(Snapshot { at: at(2), processes: Ok(Vec::new()), sockets: Ok(Vec::new()) });
    assert!(!differ.knows(&key(1)));
}
