use alibi_proto::time::Timestamp;

use super::{super::diag::Tcp, *};

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

fn at(second: u64) -> Moment {
    let boot_ns = second * 1_000_000_000;
    Moment { wall: Timestamp::from_nanos(boot_ns), boot_ns }
}

fn row(cookie: u64, state: u8, remote: &str, moved: u64) -> Row {
    let traffic = Traffic { bytes_sent: moved, packets_received: moved, ..Traffic::default() };
    Row {
        protocol: Protocol::Tcp,
        state,
        local: format!("192.0.2.1:{}", 40_000 + cookie).parse().unwrap(),
        remote: remote.parse().unwrap(),
        cookie,
        inode: if state == CLOSE { 0 } else { cookie * 10 },
        tcp: Some(Tcp { traffic, round_trip: None, was_established: moved > 0 }),
    }
}

const SERVER: &str = "198.51.100.7:443";

fn text(fact: &Fact) -> String {
    let who = |owner: Option<ProcessKey>| owner.map_or("?".to_owned(), |owner| owner.pid.to_string());
    match fact {
        Fact::ConnectionOpened(opened) => format!(
            "{} {} {} of {} ({}) sent {:?}{}",
            opened.direction,
            opened.socket.remote,
            opened.state.word(),
            who(opened.owner),
            opened.attribution,
            opened.traffic.map(|traffic| traffic.bytes_sent),
            if opened.already_open { " already" } else { "" },
        ),
        Fact::ConnectionChanged { socket, change } => format!(
            "{} changes: {} {:?} {:?}",
            socket.remote,
            change.state.map_or("", FlowState::word),
            change.owner.map(|(owner, how)| (owner.pid, how.word())),
            change.traffic.map(|traffic| traffic.bytes_sent)
        ),
        Fact::ConnectionClosed { socket, state, change } => {
            format!(
                "{} {} {:?}",
                socket.remote,
                state.word(),
                change.traffic.map(|traffic| traffic.bytes_sent)
            )
        }
        Fact::Listening { owner, local, .. } => format!("{local} listens for {}", who(*owner)),
        other => panic!("{other:?}"),
    }
}

struct Test {
    tracker: Tracker,
    holders: HashMap<u64, Vec<ProcessKey>>,
}

impl Test {
    fn new() -> Self {
        Self { tracker: Tracker::new(1), holders: HashMap::new() }
    }

    /// What a look at `rows` tells, with the ends that were heard after it.
    #[track_caller]
    fn check(&mut self, rows: &[Row], ends: &[Row], want: &[&str]) {
        let mut facts = Vec::new();
        let holders = |inode: u64| self.holders.get(&inode).cloned().unwrap_or_default();
        self.tracker.look(rows, &holders, true, at(1), &mut facts);
        ends.iter().for_each(|row| self.tracker.destroyed(row, at(1), &mut facts));
        self.tracker.settle(at(1), &mut facts);
        assert_eq!(facts.iter().map(|fact| text(&fact.fact)).collect::<Vec<_>>(), want);
    }
}

fn process(pid: u32) -> ProcessKey {
    ProcessKey { pid, start: pid.into() }
}

#[test]
fn a_connection_is_told_from_its_first_look_to_its_end() {
    let mut test = Test::new();
    test.holders.insert(10, vec![process(7)]);
    test.check(
        &[row(1, ESTABLISHED, SERVER, 5)],
        &[],
        &["outbound 198.51.100.7:443 established of 7 (socket_table) sent Some(5) already"],
    );
    test.check(&[row(1, ESTABLISHED, SERVER, 5)], &[], &[]);
    test.check(&[row(1, ESTABLISHED, SERVER, 9)], &[], &["198.51.100.7:443 changes:  None Some(9)"]);
    test.check(&[], &[row(1, CLOSE, SERVER, 12)], &["198.51.100.7:443 closed Some(12)"]);
    test.check(&[], &[], &[]);
}

#[test]
fn what_was_received_before_is_not_taken_for_a_fin() {
    let received = |state, bytes_received| {
        let traffic = Traffic { bytes_received, ..Traffic::default() };
        Row {
            tcp: Some(Tcp { traffic, round_trip: None, was_established: true }),
            ..row(1, state, SERVER, 1)
        }
    };
    let mut test = Test::new();
    test.check(
        &[received(ESTABLISHED, 7)],
        &[],
        &["outbound 198.51.100.7:443 established of ? (unknown) sent Some(0) already"],
    );
    let mut facts = Vec::new();
    test.tracker.destroyed(&received(CLOSE, 6), at(2), &mut facts);
    let Fact::ConnectionClosed { change, .. } = &facts[0].fact else { panic!() };
    assert_eq!(change.traffic.unwrap().bytes_received, 7);
}

#[test]
fn a_connection_between_two_looks_is_known_by_its_end() {
    let mut test = Test::new();
    test.check(&[row(9, LISTEN, "0.0.0.0:0", 0)], &[], &["192.0.2.1:40009 listens for ?"]);
    let inbound = Row { local: "192.0.2.1:40009".parse().unwrap(), ..row(3, CLOSE, "203.0.113.9:1234", 3) };
    test.check(
        &[row(9, LISTEN, "0.0.0.0:0", 0)],
        &[row(2, CLOSE, SERVER, 12), inbound, row(4, CLOSE, SERVER, 0), row(5, CLOSE, "0.0.0.0:0", 0)],
        &[
            "outbound 198.51.100.7:443 closed of ? (unknown) sent Some(12)",
            "inbound 203.0.113.9:1234 closed of ? (unknown) sent Some(3)",
            "outbound 198.51.100.7:443 failed of ? (unknown) sent Some(0)",
        ],
    );
}

#[test]
fn a_socket_that_was_disconnected_tells_the_address_and_no_port() {
    let mut test = Test::new();
    let gone = |cookie| row(cookie, CLOSE, "198.51.100.7:0", 0);
    test.check(&[], &[gone(1)], &["outbound 198.51.100.7:0 failed of ? (unknown) sent None"]);
    // Known from a look, its port is known too.
    test.check(
        &[row(2, SYN_SENT, SERVER, 0), row(3, ESTABLISHED, SERVER, 4)],
        &[],
        &[
            "outbound 198.51.100.7:443 attempted of ? (unknown) sent Some(0)",
            "outbound 198.51.100.7:443 established of ? (unknown) sent Some(4)",
        ],
    );
    test.check(&[], &[gone(2), gone(3)], &["198.51.100.7:443 failed None", "198.51.100.7:443 closed None"]);
}

#[test]
fn an_attempt_that_was_answered_between_two_looks_has_not_failed() {
    let mut test = Test::new();
    test.check(
        &[row(1, SYN_SENT, SERVER, 0)],
        &[],
        &["outbound 198.51.100.7:443 attempted of ? (unknown) sent Some(0) already"],
    );
    test.check(&[], &[row(1, CLOSE, SERVER, 7)], &["198.51.100.7:443 closed Some(7)"]);
    test.check(
        &[row(2, SYN_SENT, SERVER, 0)],
        &[],
        &["outbound 198.51.100.7:443 attempted of ? (unknown) sent Some(0)"],
    );
    test.check(&[row(2, ESTABLISHED, SERVER, 0)], &[], &["198.51.100.7:443 changes: established None None"]);
}

#[test]
fn an_end_that_was_not_heard_shows_at_the_next_look() {
    let mut test = Test::new();
    test.check(&[], &[], &[]);
    test.check(
        &[row(1, ESTABLISHED, SERVER, 5)],
        &[],
        &["outbound 198.51.100.7:443 established of ? (unknown) sent Some(5)"],
    );
    test.check(&[], &[], &["198.51.100.7:443 closed None"]);
}

#[test]
fn the_same_socket_can_be_another_connection() {
    let mut test = Test::new();
    test.check(&[], &[], &[]);
    test.check(
        &[row(1, SYN_SENT, SERVER, 0)],
        &[],
        &["outbound 198.51.100.7:443 attempted of ? (unknown) sent Some(0)"],
    );
    let other = "203.0.113.9:80";
    test.check(
        &[row(1, ESTABLISHED, other, 2)],
        &[],
        &["198.51.100.7:443 failed None", "outbound 203.0.113.9:80 established of ? (unknown) sent Some(2)"],
    );
    test.check(
        &[],
        &[row(1, CLOSE, SERVER, 3)],
        &["203.0.113.9:80 closed None", "outbound 198.51.100.7:443 closed of ? (unknown) sent Some(3)"],
    );
}

#[test]
fn what_is_only_a_trace_of_a_connection_is_none() {
    let mut test = Test::new();
    let trace = Row { tcp: None, inode: 0, ..row(1, 5, SERVER, 0) };
    test.check(&[trace], &[], &[]);
}

#[test]
fn an_owner_changes_only_when_he_no_longer_holds_the_socket() {
    let mut test = Test::new();
    let open = [row(1, ESTABLISHED, SERVER, 5)];
    test.holders.insert(10, vec![process(7)]);
    test.check(
        &open,
        &[],
        &["outbound 198.51.100.7:443 established of 7 (socket_table) sent Some(5) already"],
    );
    test.holders.insert(10, vec![process(3), process(7)]);
    test.check(&open, &[], &[]);
    test.holders.insert(10, vec![process(8), process(9)]);
    test.check(&open, &[], &["198.51.100.7:443 changes:  Some((8, \"guessed\")) None"]);
    test.holders.remove(&10);
    test.check(&open, &[], &[]);
    // Closed by its owner, and not over yet.
    test.check(&[Row { inode: 0, ..open[0] }], &[], &[]);
}

#[test]
fn when_the_namespace_goes_all_that_was_open_has_ended() {
    let mut test = Test::new();
    test.check(&[], &[], &[]);
    test.check(
        &[row(1, ESTABLISHED, SERVER, 5)],
        &[],
        &["outbound 198.51.100.7:443 established of ? (unknown) sent Some(5)"],
    );
    let mut facts = Vec::new();
    test.tracker.end(at(2), &mut facts);
    assert_eq!(
        facts.iter().map(|fact| text(&fact.fact)).collect::<Vec<_>>(),
        ["198.51.100.7:443 closed None"]
    );
}
