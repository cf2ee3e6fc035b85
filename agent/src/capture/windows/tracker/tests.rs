//! From recorded payloads to facts: by the same reading, and the same turns, as the live trace.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    super::event::{
        Provider,
        fixtures::{self, Fixture, Value, network},
    },
    *,
};
use crate::capture::poll::ProcessRow;

/// 100 ns since 1601, when the trace's clock says 0 ms.
const TRACE: u64 = 133_000_000_000_000_000;
/// The agent's clock then, in milliseconds since boot.
const BOOT: u64 = 50_000;
const CREATED: u64 = TRACE - 10_000_000;

/// An instant by the agent's clock, in milliseconds after [`BOOT`].
fn at(millis: u64) -> Moment {
    let nanos = (BOOT + millis) * 1_000_000;
    Moment { wall: Timestamp::from_nanos(1_700_000_000_000_000_000 + nanos), boot_ns: nanos }
}

/// The same instant by the trace's clock.
fn file_time(millis: u64) -> u64 {
    TRACE + millis * 10_000
}

fn started(millis: u64, pid: u32, parent: u32) -> Fixture {
    Fixture::new(
        (Provider::Process, 1, 3),
        &[
            ("ProcessID", Value::Number(pid.into())),
            ("CreateTime", Value::Number(CREATED + u64::from(pid))),
            ("ParentProcessID", Value::Number(parent.into())),
            ("ImageName", Value::Text(r"\Device\HarddiskVolume3\WinSCP.exe")),
        ],
    )
    .at(file_time(millis))
}

fn stopped(millis: u64, pid: u32) -> Fixture {
    let values = [
        ("ProcessID", Value::Number(pid.into())),
        ("CreateTime", Value::Number(CREATED + u64::from(pid))),
        ("ExitCode", Value::Number(7)),
    ];
    Fixture::new((Provider::Process, 2, 2), &values).at(file_time(millis))
}

fn key(pid: u32) -> ProcessKey {
    let start = super::super::event::since_1970(CREATED + u64::from(pid));
    ProcessKey { pid, start }
}

fn row(pid: u32) -> ProcessRow {
    let key = key(pid);
    let started = super::super::event::timestamp(key.start);
    ProcessRow { key, parent_pid: Some(4), started, ended: false, image: None }
}

fn begun(processes: &[u32]) -> Tracker {
    let mut tracker = Tracker::default();
    let rows = processes.iter().copied().map(row).collect();
    tracker.begin(Look { at: at(0), processes: rows, sockets: Vec::new() });
    tracker
}

fn batch(fixtures: &[Fixture]) -> Batch {
    let mut batch = Batch::default();
    for fixture in fixtures {
        match Event::decode(&fixture.record()) {
            Ok(event) => batch.events.extend(event),
            Err(unreadable) => *batch.unreadable.entry(unreadable).or_default() += 1,
        }
    }
    batch
}

/// That vouches for everything until `millis`.
fn marker(millis: u64) -> Marker {
    let written = millis + SETTLES_WITHIN_NS / 1_000_000;
    Marker { written: at(written), file_time: file_time(written) }
}

/// A turn after which everything until `millis` has been told.
fn turn(tracker: &mut Tracker, millis: u64, fixtures: &[Fixture]) -> Vec<String> {
    words(&report(tracker, millis, batch(fixtures)))
}

fn report(tracker: &mut Tracker, millis: u64, batch: Batch) -> Report {
    let report = tracker.turn(marker(millis), batch, |_| HashMap::new(), at(millis + 105));
    assert_eq!(report.seen_until, at(millis));
    assert!(
        report.observations.iter().all(|told| told.at.boot_ns <= report.seen_until.boot_ns),
        "nothing is told of the time after {:?}",
        report.seen_until
    );
    report
}

/// Milliseconds, and what.
fn words(report: &Report) -> Vec<String> {
    let millis = |moment: Moment| moment.boot_ns / 1_000_000 - BOOT;
    let wall = |wall: Timestamp| (wall.as_nanos() - at(0).wall.as_nanos()) / 1_000_000;
    let word = |told: &Observation| {
        let what = match &told.fact {
            Fact::ProcessStarted(process) => {
                let parent = process.parent.map_or(0, |parent| parent.pid);
                format!("start {}<{parent} {}", process.process.pid, process.image.name)
            }
            Fact::ProcessExited { process, exit_code } => format!("exit {} {exit_code:?}", process.pid),
            Fact::ConnectionOpened(told) => {
                let owner = told.owner.map_or(0, |owner| owner.pid);
                format!("open {} {:?} {} of {owner}", told.socket.protocol, told.state, told.socket.remote)
            }
            Fact::ConnectionChanged { .. } => "change".to_owned(),
            Fact::ConnectionClosed { state, .. } => format!("close {state:?}"),
            Fact::NameResolved(name) => {
                format!("name {} {:?} of {}", name.name, name.addresses, name.process.unwrap().pid)
            }
            Fact::Coverage(change) => {
                let to = change.to.map_or("on".to_owned(), |to| wall(to).to_string());
                let count = change.grade.count();
                format!("{} {} {count} {}..{to}", change.facet, change.grade.word(), wall(change.from))
            }
            other => panic!("{other:?}"),
        };
        format!("{} {what}", millis(told.at))
    };
    report.observations.iter().map(word).collect()
}

#[test]
fn the_story_of_a_process_is_told_in_order_with_its_connection_and_its_name() {
    let mut tracker = begun(&[4, 8]);
    let (us, them) = ("10.0.0.1:50000", "192.0.2.7:443");
    let looked_up = Fixture::new(
        (Provider::Dns, 3008, 0),
        &[
            ("QueryName", Value::Text("cloud.example.com")),
            ("QueryType", Value::Number(1)),
            ("QueryStatus", Value::Number(0)),
            ("QueryResults", Value::Text("::ffff:192.0.2.7;")),
        ],
    );
    let ends: [SocketAddr; 2] = ["0.0.0.0:0", them].map(|end| end.parse().unwrap());
    let requested = Fixture::new(
        (Provider::Tcpip, 1002, 0),
        &[("LocalAddress", Value::At(ends[0])), ("RemoteAddress", Value::At(ends[1]))],
    );
    let told = turn(
        &mut tracker,
        200,
        &[
            started(10, 12, 8),
            looked_up.by(12).at(file_time(20)),
            requested.by(12).at(file_time(30)),
            network(fixtures::CONNECTED, 12, 0, us, them).at(file_time(40)),
            network(fixtures::SENT, 12, 100, us, them).at(file_time(50)),
            stopped(60, 12),
            network(fixtures::DISCONNECTED, 12, 0, us, them).at(file_time(70)),
        ],
    );
    assert_eq!(
        told,
        [
            "10 start 12<8 WinSCP.exe",
            "20 name cloud.example.com [192.0.2.7] of 12",
            "30 open tcp Attempted 192.0.2.7:443 of 12",
            "40 change",
            "60 exit 12 Some(7)",
            "70 close Closed",
        ],
        "it had ended, and what it left was its own"
    );
}

#[test]
fn what_was_told_out_of_order_is_put_into_order() {
    let mut tracker = begun(&[4]);
    let told = turn(&mut tracker, 200, &[stopped(100, 4), started(90, 8, 4), started(40, 12, 4)]);
    assert_eq!(told, ["40 start 12<4 WinSCP.exe", "90 start 8<4 WinSCP.exe", "100 exit 4 Some(7)"]);
}

#[test]
fn what_is_younger_than_what_is_vouched_for_waits() {
    let mut tracker = begun(&[4]);
    assert_eq!(turn(&mut tracker, 200, &[started(250, 8, 4)]), Vec::<String>::new());
    // What was put into the buffer after the marker, and happened before it.
    assert_eq!(
        turn(&mut tracker, 400, &[started(240, 12, 4)]),
        ["240 start 12<4 WinSCP.exe", "250 start 8<4 WinSCP.exe"]
    );
}

#[test]
fn what_comes_too_late_makes_its_time_a_gap() {
    let mut tracker = begun(&[4]);
    turn(&mut tracker, 1_000, &[]);
    let them = "192.0.2.7:443";
    let late = network(fixtures::UDP_SENT, 4, 1, "10.0.0.1:5", them).at(file_time(700));
    let told = turn(&mut tracker, 1_200, &[started(600, 8, 4), late]);
    let mut told = told;
    told.sort();
    assert_eq!(
        told,
        [
            "1000 connections lost 1 700..1000",
            "1000 open udp Established 192.0.2.7:443 of 4",
            "1000 processes lost 1 600..1000",
            "1000 start 8<4 WinSCP.exe",
            "1200 change",
        ]
    );
}

#[test]
fn what_happened_before_recording_began_is_in_the_tables() {
    let mut tracker = begun(&[4, 8]);
    let before = started(0, 8, 4).at(file_time(0) - 1_000_000);
    let ended = stopped(0, 4).at(file_time(0) - 500_000);
    assert_eq!(turn(&mut tracker, 200, &[before, ended]), Vec::<String>::new());
    assert!(tracker.runs(key(4)));
}

/// The marker says what the trace's clock means; whatever the wall clock is set to, nothing moves.
#[test]
fn a_wall_clock_that_is_set_moves_nothing() {
    let mut tracker = begun(&[4]);
    let hour = 36_000_000_000;
    let event = started(100, 8, 4).at(file_time(100) + hour);
    let marker = Marker { file_time: marker(200).file_time + hour, ..marker(200) };
    let mut now = at(305);
    now.wall = Timestamp::from_nanos(now.wall.as_nanos() + 3_600_000_000_000);
    let report = tracker.turn(marker, batch(&[event]), |_| HashMap::new(), now);
    assert_eq!(report.observations[0].at.boot_ns, at(100).boot_ns);
    assert_eq!(report.seen_until.boot_ns, at(200).boot_ns);
}

/// A clock that is set forward between an event and its marker makes the event seem old, even older than the recording.
#[test]
fn what_was_told_across_a_step_of_the_clock_is_told_all_the_same() {
    let mut tracker = begun(&[4]);
    turn(&mut tracker, 200, &[]);
    let marker = Marker { file_time: marker(400).file_time + 36_000_000_000, ..marker(400) };
    let report = tracker.turn(marker, batch(&[started(300, 8, 4)]), |_| HashMap::new(), at(505));
    assert!(tracker.runs(key(8)));
    let is_loss = |told: &Observation| matches!(&told.fact, Fact::Coverage(_));
    assert!(report.observations.iter().any(is_loss), "{:?}", report.observations);
}

#[test]
fn what_the_trace_had_no_room_for_is_a_gap_of_everything() {
    for (buffers, count) in [(0, 3), (2, 0)] {
        let mut tracker = begun(&[4]);
        turn(&mut tracker, 200, &[]);
        let lost = Batch { lost: Lost { events: 3, buffers }, ..Batch::default() };
        let told = report(&mut tracker, 400, lost);
        assert!(Tracker::wants_look(&told));
        let each = |from: u64, to: u64, count: u64| {
            ["processes", "connections", "names"]
                .map(|facet| format!("{to} {facet} lost {count} {from}..{to}"))
        };
        assert_eq!(words(&told), each(200, 400, count), "nobody knows how many were in a buffer");
        // It was told at 505 that something had been lost: that may have been after the marker.
        assert_eq!(turn(&mut tracker, 600, &[]), each(400, 600, 0));
        assert_eq!(turn(&mut tracker, 800, &[]), Vec::<String>::new());
    }
}

#[test]
fn a_torn_event_is_a_loss_of_what_it_would_have_told() {
    let mut tracker = begun(&[4]);
    let mut torn = [
        started(100, 8, 4),
        network(fixtures::SENT, 4, 1, "10.0.0.1:5", "192.0.2.7:443"),
        Fixture::new((Provider::Dns, 3008, 0), &[]),
    ];
    for fixture in &mut torn {
        fixture.payload.truncate(7);
    }
    let twice = [torn.to_vec(), vec![torn[1].clone()]].concat();
    let mut told = turn(&mut tracker, 200, &twice);
    told.sort();
    assert_eq!(
        told,
        ["200 connections lost 2 0..200", "200 names lost 1 0..200", "200 processes lost 1 0..200"]
    );
    assert_eq!(turn(&mut tracker, 400, &[]).len(), 3, "it may have been just before the marker");
    assert_eq!(turn(&mut tracker, 600, &[]), Vec::<String>::new());
}

#[test]
fn a_version_that_is_not_known_ends_the_recording_of_its_facet_and_says_so_once() {
    let mut tracker = begun(&[4]);
    let strange = started(100, 8, 4).of_version(9);
    let told = turn(&mut tracker, 200, &[strange.clone(), strange.clone()]);
    assert_eq!(told, ["0 processes none 0 0..on"]);
    assert_eq!(turn(&mut tracker, 400, &[strange]), Vec::<String>::new());
}

#[test]
fn the_tables_are_compared_once_all_that_was_told_until_then_has_come() {
    let mut tracker = begun(&[4, 8]);
    turn(&mut tracker, 200, &[]);
    // 12 starts and 8 ends before the tables are read, and both are still under way; 16 was never told.
    let look = Look { at: at(250), processes: vec![row(4), row(12), row(16)], sockets: Vec::new() };
    tracker.look(look);
    assert_eq!(turn(&mut tracker, 240, &[]), Vec::<String>::new(), "some of it may yet come");
    let told = turn(&mut tracker, 500, &[started(245, 12, 4), stopped(248, 8)]);
    assert_eq!(
        told,
        ["245 start 12<4 WinSCP.exe", "248 exit 8 Some(7)", "250 start 16<4 ", "500 processes lost 1 0..500",]
    );
}

/// Random histories of connections against a plain model of them, told in pieces: after each the tracker has told what the
/// model has, and nothing was lost.
#[test]
fn random_histories_end_where_a_plain_model_does() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tracker = begun(&[4]);
        let mut open: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        let mut told: BTreeMap<u64, (SocketAddr, Option<ProcessKey>)> = BTreeMap::new();
        let mut millis = 1;
        for _ in 1..20 {
            let mut events = Vec::new();
            for _ in 0..random.usize(..20) {
                millis += random.u64(1..5);
                let local = SocketAddr::from(([10, 0, 0, 1], 50_000 + random.u16(..5)));
                let text = local.to_string();
                let them = "192.0.2.7:443";
                let event = match (open.get(&local), random.u8(..4)) {
                    (None, 0) => {
                        open.insert(local, 4);
                        network(fixtures::CONNECTED, 4, 0, &text, them)
                    }
                    (Some(pid), 1) => network(fixtures::SENT, *pid, 5, &text, them),
                    (Some(pid), 2) => network(fixtures::RETRANSMITTED, *pid, 5, &text, them),
                    (Some(pid), 3) => {
                        let event = network(fixtures::DISCONNECTED, *pid, 0, &text, them);
                        open.remove(&local);
                        event
                    }
                    _ => continue,
                };
                events.push(event.at(file_time(millis)));
            }
            millis += 1;
            let report = report(&mut tracker, millis, batch(&events));
            for observation in report.observations {
                match observation.fact {
                    Fact::ConnectionOpened(opened) => {
                        told.insert(opened.socket.socket, (opened.local, opened.owner));
                    }
                    Fact::ConnectionClosed { socket, .. } => drop(told.remove(&socket.socket).unwrap()),
                    Fact::ConnectionChanged { socket, .. } => assert!(told.contains_key(&socket.socket)),
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
        }
        let known: BTreeMap<SocketAddr, u32> =
            told.values().map(|(local, owner)| (*local, owner.unwrap().pid)).collect();
        assert_eq!(known, open, "seed {seed}");
    }
}
