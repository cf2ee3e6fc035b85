use std::path::Path;

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    flow::{Attribution, Direction, FlowState, Protocol},
    host::{FacetCoverage, SourceDescription},
    id::{Epoch, HostBoot, HostId},
    process::{ProcessImage, User},
    question::{Question, Verdict},
    target::Target,
    window::Window,
};

use super::*;
use crate::{
    capture::{
        ConnectionChange, Fact, Observation, ObservedConnection, ObservedProcess, ObservedResolution,
        ProcessKey, SocketKey,
    },
    ledger::PreviousRun,
    pipeline::Limits,
    query,
    ring::{Options, View, fault},
};

const HOST: HostId = HostId::from_bytes([1; 16]);

fn at(secs: u64) -> Moment {
    Moment { wall: Timestamp::from_secs(secs), boot_ns: secs * 1_000_000_000 }
}

struct Recording {
    recorder: Recorder,
    view: View,
    progress: watch::Receiver<Progress>,
}

impl Recording {
    fn begin(directory: &Path) -> Self {
        let options = Options { bytes_max: 16 << 10, segment_bytes: 4 << 10, ..Options::default() };
        let (ring, _) = Ring::open(directory, options, HOST, Epoch(1), labels_of).unwrap();
        let boot = HostBoot::new(HOST, "boot");
        let scope = Scope { source: "test".into(), covers: "all".into(), cannot_see: "nothing".into() };
        let facets = vec![FacetCoverage { facet: Facet::Connections, grade: Grade::Complete, scope }];
        let source = SourceDescription { name: "test".into(), facets, caveat: None };
        let pipeline =
            Pipeline::new(boot, Limits::default(), source, ring.next_seq(), PreviousRun::None, at(0));
        let (sender, progress) = watch::channel(Progress::default());
        let view = ring.view();
        let recorder = Recorder::new(pipeline, ring, None, Acknowledged::default(), sender);
        Self { recorder, view, progress }
    }

    /// The source has seen until `second`, and `facts` in it; the recorder comes to it `lag` seconds later.
    fn take(&mut self, second: u64, lag: u64, facts: Vec<Fact>) {
        let observations = facts.into_iter().map(|fact| Observation { at: at(second), fact }).collect();
        self.recorder.take(Report { observations, seen_until: at(second) }, at(second + lag));
    }

    /// What somebody who is told of the progress finds in the ring about `from..to`.
    fn verdict(&self, from: u64, to: u64) -> Verdict {
        let question = Question {
            target: Target::parse("198.51.100.7", None, None).unwrap(),
            window: Window::new(at(from).wall, at(to).wall).unwrap(),
        };
        let watermark = self.progress.borrow().watermark;
        query::answer(&self.view, &question, HOST, "host".into(), watermark).unwrap().0.verdict
    }
}

fn opened(port: u16, remote: [u8; 4]) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: SocketKey { protocol: Protocol::Tcp, remote: (remote, 443).into(), socket: port.into() },
        local: ([192, 0, 2, 1], port).into(),
        owner: None,
        attribution: Attribution::Unknown,
        direction: Direction::Outbound,
        state: FlowState::Established,
        already_open: false,
        traffic: None,
        interface: None,
        network_namespace: None,
    }))
}

const TARGET: [u8; 4] = [198, 51, 100, 7];
const OTHER: [u8; 4] = [198, 51, 100, 8];

fn over(port: u16, remote: [u8; 4]) -> Fact {
    let Fact::ConnectionOpened(mut connection) = opened(port, remote) else { unreachable!() };
    connection.state = FlowState::Closed;
    Fact::ConnectionOpened(connection)
}

#[test]
fn events_that_were_let_go_are_not_vouched_for_before_their_loss_is_in_the_ring() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    recording.take(1, 0, vec![]);
    recording.recorder.sync();

    // The disk takes no more, but what is there can be overwritten in place, as checkpoints are.
    for second in 2..30 {
        fault::set_room(Some(0));
        recording.take(second, 0, vec![over(1, TARGET), over(2, OTHER)]);
        fault::set_room(None);
        recording.recorder.sync();
    }
    assert_eq!(recording.verdict(5, 20), Verdict::Unknown);
    assert!(recording.recorder.recorded_until < at(5).wall, "the next run must not believe it either");

    recording.take(30, 0, vec![]);
    recording.recorder.sync();
    assert_eq!(recording.verdict(5, 20), Verdict::Unknown);
}

/// However often the bound is met before the disk takes something again.
#[test]
fn all_events_that_were_let_go_are_in_the_count() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    recording.take(1, 0, vec![]);
    recording.recorder.sync();
    const FLOWS: u64 = 10 * PENDING_EVENTS_MAX as u64;
    for flow in 0..FLOWS {
        fault::set_room(Some(0));
        recording.take(2 + flow, 0, vec![over(flow as u16, OTHER)]);
        fault::set_room(None);
        recording.recorder.sync();
    }
    recording.take(2 + FLOWS, 0, vec![]);
    recording.recorder.sync();

    let (mut kept, mut counts) = (0, Vec::new());
    let mut reader = crate::ring::Reader::new(recording.view.clone(), Seq::FIRST);
    while let crate::ring::Read::Records(_, columns) = reader.next_records().unwrap() {
        for record in columns.records().iter() {
            let event = Event::try_from(wire::Event::decode(record).unwrap()).unwrap();
            match event.kind {
                EventKind::Flow(_) => kept += 1,
                EventKind::CoverageChanged(CoverageChange {
                    facet: Facet::Connections,
                    grade: Grade::Lost { count, .. },
                    ..
                }) => counts.push(count),
                _ => {}
            }
        }
    }
    // Beside the connections, what was said of coverage each time.
    let lost = FLOWS - kept;
    assert_eq!(counts.len(), 1, "{counts:?}");
    assert!((lost..=lost + 10 * 6).contains(&counts[0]), "{counts:?}: {lost} connections");
}

#[test]
fn a_reader_after_a_hole_hears_of_what_is_open_even_if_the_recorder_was_late() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    recording.take(1, 0, vec![opened(1, TARGET)]);
    // The disk is slow for some seconds, and much happens meanwhile.
    for second in 2..6 {
        let facts = (0..2_000).map(|port| over(port + 10, OTHER)).collect();
        recording.take(second, 10, facts);
    }
    for second in 6..100 {
        recording.take(second, 0, vec![]);
    }
    recording.recorder.sync();
    assert!(recording.view.first_seq() > Seq::FIRST, "the first record of it is overwritten");
    assert_eq!(recording.verdict(50, 60), Verdict::Talked);
}

#[test]
fn an_answer_kept_within_its_bound_leaves_out_no_end_of_a_connection_that_it_lists() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    let Fact::ConnectionOpened(connection) = opened(1, TARGET) else { unreachable!() };
    let closed = Fact::ConnectionClosed {
        socket: connection.socket,
        state: FlowState::Closed,
        change: ConnectionChange::default(),
    };
    recording.take(1, 0, vec![opened(1, TARGET)]);
    recording.take(2, 0, vec![]);
    recording.take(3, 0, (0..10).map(|port| over(port + 10, TARGET)).collect());
    recording.take(5, 0, vec![closed]);
    recording.take(100, 0, vec![]);
    recording.recorder.sync();
    assert_eq!(recording.verdict(50, 60), Verdict::Unknown, "all was over long before");
}

/// What the ring says of a name that nobody ever resolved, over the last minute of two days: everything is recorded from
/// second `names_from` on, and each of these processes, which start at these seconds, has a connection in the window to an
/// address that an answer gave for another name.
fn verdict_on_a_name(names_from: u64, owners: &[Option<u64>]) -> Verdict {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    let process = |pid: u64| ProcessKey { pid: pid as u32 + 10, start: pid };
    let started = |(pid, started): (u64, &Option<u64>)| {
        let started = Timestamp::from_secs((*started)?);
        Some(Fact::ProcessStarted(Box::new(ObservedProcess {
            process: process(pid),
            parent: None,
            parent_pid: None,
            started,
            already_running: false,
            image: ProcessImage::default(),
        })))
    };
    let change = CoverageChange {
        facet: Facet::Names,
        grade: Grade::Complete,
        from: at(names_from).wall,
        to: None,
        scope: None,
        announced_from: None,
    };
    let resolved = Fact::NameResolved(Box::new(ObservedResolution {
        name: "other.example.com".into(),
        aliases: vec![],
        addresses: vec![OTHER.into()],
        ttl_s: 60,
        server: "192.0.2.53:53".parse().unwrap(),
        local: "192.0.2.1:4000".parse().unwrap(),
        process: None,
        network_namespace: None,
    }));
    let mut facts = vec![Fact::Coverage(change), resolved];
    facts.extend((0..).zip(owners).filter_map(started));
    recording.take(names_from, 0, facts);
    let talks = |(pid, _): (u64, &Option<u64>)| {
        let Fact::ConnectionOpened(mut connection) = over(pid as u16 + 1, OTHER) else { unreachable!() };
        connection.owner = Some(process(pid));
        Fact::ConnectionOpened(connection)
    };
    let day = 24 * 60 * 60;
    recording.take(2 * day - 30, 0, (0..).zip(owners).map(talks).collect());
    recording.take(2 * day, 0, vec![]);
    recording.recorder.sync();
    let question = Question {
        target: Target::parse("cloud.example.com", None, None).unwrap(),
        window: Window::new(at(2 * day - 60).wall, at(2 * day).wall).unwrap(),
    };
    let watermark = recording.progress.borrow().watermark;
    query::answer(&recording.view, &question, HOST, "host".into(), watermark).unwrap().0.verdict
}

#[test]
fn a_name_is_ruled_out_only_where_names_are_known_since_a_day_before_the_owners_started() {
    let day = 24 * 60 * 60;
    assert_eq!(verdict_on_a_name(1, &[]), Verdict::Clear);
    assert_eq!(verdict_on_a_name(1, &[Some(day + 1), Some(day + 9)]), Verdict::Clear);
    assert_eq!(verdict_on_a_name(1, &[Some(day + 9), Some(day)]), Verdict::Unknown, "it may have kept it");
    assert_eq!(verdict_on_a_name(1, &[Some(day + 9), None]), Verdict::Unknown, "its start is not on record");
    let many: Vec<_> = (0..5).map(|second| Some(day + 1 + second)).collect();
    assert_eq!(verdict_on_a_name(1, &many[..4]), Verdict::Clear);
    assert_eq!(verdict_on_a_name(1, &many), Verdict::Unknown, "more owners than are looked up");
}

#[test]
fn a_turn_in_which_nothing_happens_is_told_and_not_waited_for() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("ring");
    let mut recording = Recording::begin(&directory);
    for (second, facts) in [(0, vec![over(1, TARGET)]), (1, vec![])] {
        recording.take(second, 0, facts);
        recording.recorder.sync();
    }
    let next_seq = recording.progress.borrow().next_seq;
    fault::remember();
    for second in 2..=31 {
        recording.take(second, 0, vec![]);
        recording.recorder.sync();
        let progress = recording.progress.borrow_and_update();
        assert_eq!((progress.next_seq, progress.watermark), (next_seq, Some(at(second).wall)));
    }
    let waited = fault::remembered().iter().filter(|done| **done == fault::Done::Sync).count();
    assert_eq!(waited, 3, "once in ten seconds");
    drop(recording);
    let (_, recovery) = Ring::open(&directory, Options::default(), HOST, Epoch(1), labels_of).unwrap();
    assert_eq!(recovery.recorded_until, Some(at(31).wall), "after a kill");
}

#[test]
fn users_are_counted_anew_once_something_has_happened() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    let users = |recording: &Recording| {
        let users = &recording.progress.borrow().users;
        users.iter().map(|presence| presence.processes).sum::<u32>()
    };
    let process = ProcessKey { pid: 7, start: 1 };
    let user = User { id: "1000".into(), name: Some("jdoe".into()) };
    let image = ProcessImage { user: Some(user), ..ProcessImage::default() };
    let started = ObservedProcess {
        process,
        parent: None,
        parent_pid: None,
        started: at(1).wall,
        already_running: false,
        image,
    };
    let mut seen = Vec::new();
    let facts = [
        vec![Fact::ProcessStarted(Box::new(started))],
        vec![],
        vec![Fact::ProcessExited { process, exit_code: None }],
        vec![],
    ];
    for (second, facts) in (1..).zip(facts) {
        recording.take(second, 0, facts);
        recording.recorder.sync();
        seen.push(users(&recording));
    }
    assert_eq!(seen, [1, 1, 0, 0]);
}

#[test]
fn what_was_overwritten_is_counted_and_warned_of_once_in_a_while() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    let overwrite = |recording: &mut Recording, second| {
        recording.take(second, 0, (0..6_000).map(|port| over(port + 10, OTHER)).collect());
        recording.recorder.overwritten
    };
    let first = overwrite(&mut recording, 1);
    assert!(first > 0);
    recording.recorder.sync();
    assert_eq!(recording.recorder.overwritten, 0, "warned of");
    let second = overwrite(&mut recording, 2);
    recording.recorder.sync();
    assert_eq!(recording.recorder.overwritten, second, "not again so soon");
    assert!(overwrite(&mut recording, 3) > second, "and still counted");
}

#[test]
fn what_ended_at_the_last_instant_that_was_overwritten_is_not_ruled_out() {
    for position in (0..400).step_by(10) {
        let temporary = tempfile::tempdir().unwrap();
        let mut recording = Recording::begin(&temporary.path().join("ring"));
        recording.take(1, 0, vec![]);
        // All at one instant, and more than the ring holds.
        for port in 0..400 {
            let remote = if port == position { TARGET } else { OTHER };
            recording.take(5, 0, vec![over(port, remote)]);
        }
        for second in 6..9 {
            recording.take(second, 0, vec![]);
            recording.recorder.sync();
        }
        assert_ne!(recording.verdict(5, 6), Verdict::Clear, "{position}");
        assert_eq!(recording.verdict(7, 8), Verdict::Clear);
    }
}

#[test]
fn what_was_said_of_coverage_outlives_its_eviction_and_the_program() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("ring");
    let mut recording = Recording::begin(&directory);
    recording.take(1, 0, vec![opened(1, TARGET)]);
    let lost = CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Lost { count: 3, reason: "full".into() },
        from: at(1).wall,
        to: Some(at(2).wall),
        scope: None,
        announced_from: None,
    };
    recording.take(3, 0, vec![Fact::Coverage(lost)]);
    for second in 4..9 {
        recording.take(second, 0, (0..2_000).map(|port| over(port + 10, OTHER)).collect());
        recording.recorder.sync();
    }
    assert!(recording.view.first_seq() > Seq(20), "the loss is overwritten");
    recording.recorder.sync();
    let told = recording.recorder.summary();
    let window = Window::new(at(0).wall, at(9).wall).unwrap();
    let gaps = told.timeline(Facet::Connections).gaps(Facet::Connections, window, Some(at(9).wall));
    assert!(gaps.iter().any(|gap| gap.grade.count() == 3), "{gaps:?}");
    drop(recording);

    let remembered = || {
        let (ring, _) = Ring::open(&directory, Options::default(), HOST, Epoch(1), labels_of).unwrap();
        let mut ledger = Ledger::default();
        remember(&mut ledger, &ring).unwrap();
        ledger.summary()
    };
    assert_eq!(remembered(), told);
    // Without it, only what is in the ring still is known, and what is missing is.
    std::fs::remove_file(directory.join("summary")).unwrap();
    let gaps = remembered().timeline(Facet::Connections).gaps(Facet::Connections, window, Some(at(9).wall));
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap.grade.count() != 3), "{gaps:?}");
}

/// What is let go may be of a later time than it is now.
#[test]
fn what_is_let_go_after_the_clock_was_set_back_is_lost_up_to_where_it_was() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    recording.take(3000, 0, vec![]);
    recording.take(5000, 0, vec![]);
    recording.recorder.sync();
    let take = |recording: &mut Recording, wall: u64, boot: u64, facts: Vec<Fact>| {
        let now = Moment { wall: Timestamp::from_secs(wall), boot_ns: boot * 1_000_000_000 };
        let observations = facts.into_iter().map(|fact| Observation { at: now, fact }).collect();
        recording.recorder.take(Report { observations, seen_until: now }, now);
    };
    fault::set_room(Some(0));
    take(&mut recording, 5010, 5010, vec![over(1, TARGET)]);
    take(&mut recording, 4011, 5011, vec![]);
    for second in 5012..5030 {
        let both = [0, 1000].map(|more| over(second as u16 + more, OTHER));
        take(&mut recording, second - 1000, second, both.to_vec());
    }
    fault::set_room(None);
    for second in 5030..6100 {
        take(&mut recording, second - 1000, second, vec![]);
        recording.recorder.sync();
        if second == 5040 || second == 6099 {
            assert_eq!(recording.verdict(5005, 5011), Verdict::Unknown, "at {second}");
        }
    }
}

/// Whoever asks just then is not told that nothing happened in a time that is only now being shown again.
#[test]
fn nothing_is_known_of_times_that_the_clock_shows_again_until_the_source_has_looked() {
    let moment = |wall: u64, boot: u64| Moment { wall: at(wall).wall, boot_ns: boot * 1_000_000_000 };
    let progress =
        Progress { watermark: Some(at(5000).wall), looked: moment(5000, 100), ..Progress::default() };
    for (now, want) in [((5000, 100), 5000), ((5002, 102), 5000), ((4002, 102), 4000), ((5003, 102), 5000)] {
        assert_eq!(progress.known_until(moment(now.0, now.1)), Some(at(want).wall), "{now:?}");
    }
}
