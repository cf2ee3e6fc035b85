//! Answers from a ring alone: by address, by name, with what is known of the processes and of the files that they ran.

use std::net::SocketAddr;

use alibi_proto::{
    coverage::{CoverageChange, Grade},
    executable::Sha256,
    flow::{Attribution, Direction, FlowEndReason, FlowState, Protocol, Traffic},
    id::{ConnectionUid, Epoch},
    name::{NameResolution, NameSource, RemoteName, ServerNameRecord},
    process::{ProcessImage, ProcessRecord, User},
    question::Verdict,
    target::Target,
    time::Moment,
    window::Window,
    wire,
};
use prost::Message as _;

use super::*;
use crate::ring::{Labels, Options, Record, Ring};

const BEGUN: u64 = 10_000;
/// A day and an hour after recording began, so that names are known for as long as a program may keep an address.
const NOON: u64 = 100_000;
const TARGET: [u8; 4] = [198, 51, 100, 7];
const OTHER: [u8; 4] = [198, 51, 100, 8];

const HOST: HostId = HostId::from_bytes([1; 16]);

fn at(second: u64) -> Timestamp {
    Timestamp::from_secs(second)
}

fn uid(number: u8) -> ProcessUid {
    ProcessUid::from_bytes([number; 16])
}

/// A ring with these events in it, each recorded as it happened.
struct Host {
    view: View,
    _ring: Ring,
    _directory: tempfile::TempDir,
}

impl Host {
    fn with(kinds: Vec<EventKind>) -> Self {
        Self::within(Options::default(), kinds)
    }

    fn within(options: Options, kinds: Vec<EventKind>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (mut ring, _) =
            Ring::open(&directory.path().join("ring"), options, HOST, Epoch(7), crate::recorder::labels_of)
                .unwrap();
        for (seq, kind) in (1..).map(Seq).zip(kinds) {
            let mut event = Event { seq, recorded: Moment { wall: at(NOON), boot_ns: 0 }, kind };
            event.recorded.wall = event.speaks_until();
            let (speaks_from, recorded) = (event.speaks_from(), event.recorded.wall);
            // As a newer version may label what is of a newer kind.
            let labels = match event.kind {
                EventKind::Unrecognised => Labels { kinds: 1 << 9, keys: vec![], from: recorded },
                _ => labels::of(&event),
            };
            let bytes = wire::Event::from(event).encode_to_vec();
            ring.append(&[Record { seq, speaks_from, recorded, bytes, labels }]).unwrap();
        }
        Self { view: ring.view(), _ring: ring, _directory: directory }
    }

    fn ask(&self, target: &str, from: u64, to: u64) -> (HostAnswer, Vec<String>) {
        let question = Question {
            target: Target::parse(target, None, None).unwrap(),
            window: Window::new(at(from), at(to)).unwrap(),
        };
        answer(&self.view, &question, HOST, "laptop".into(), Some(at(2 * NOON))).unwrap()
    }

    #[track_caller]
    fn check(&self, target: &str, (from, to): (u64, u64), want: Verdict) -> HostAnswer {
        let (answer, _) = self.ask(target, from, to);
        assert_eq!(answer.verdict, want, "{target} from {from} to {to}: {answer:#?}");
        answer
    }
}

fn complete(facet: Facet) -> EventKind {
    let change = CoverageChange {
        facet,
        grade: Grade::Complete,
        from: at(BEGUN),
        to: None,
        scope: None,
        announced_from: None,
    };
    EventKind::CoverageChanged(change)
}

fn all_complete() -> Vec<EventKind> {
    Facet::ALL.map(complete).to_vec()
}

fn lost(facet: Facet, from: u64, to: u64) -> EventKind {
    EventKind::CoverageChanged(CoverageChange {
        facet,
        grade: Grade::Lost { count: 1, reason: "test".into() },
        from: at(from),
        to: Some(at(to)),
        scope: None,
        announced_from: None,
    })
}

fn flow(number: u8, process: u8, remote: [u8; 4], first: u64, last: u64) -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([number; 16]),
        process: Some(uid(process)),
        attribution: Attribution::InKernel,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: ([192, 0, 2, 1], 1000 + u16::from(number)).into(),
        remote: (remote, 443).into(),
        opened: at(first),
        already_open: false,
        first: at(first),
        last: at(last),
        traffic: Some(Traffic { bytes_sent: 5, ..Traffic::default() }),
        state: FlowState::Closed,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: None,
    }
}

fn named(flow: FlowRecord, name: &str, source: NameSource) -> FlowRecord {
    FlowRecord { remote_name: Some(RemoteName { name: name.into(), source }), ..flow }
}

fn told(flow: FlowRecord) -> EventKind {
    EventKind::Flow(Box::new(flow))
}

fn resolved(second: u64, name: &str, aliases: &[&str], address: [u8; 4]) -> EventKind {
    EventKind::NameResolved(Box::new(NameResolution {
        at: at(second),
        name: name.into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        addresses: vec![address.into()],
        ttl_s: 60,
        server: ([192, 0, 2, 53], 53).into(),
        process: None,
        network_namespace: None,
    }))
}

fn hello(second: u64, name: &str, local: SocketAddr, remote: SocketAddr) -> EventKind {
    EventKind::ServerName(Box::new(ServerNameRecord {
        at: at(second),
        connection: None,
        name: Some(name.into()),
        local,
        remote,
        network_namespace: None,
    }))
}

fn image(path: &str, file: Option<FileIdentity>) -> ProcessImage {
    let user = Some(User { id: "1000".into(), name: Some("jdoe".into()) });
    ProcessImage { path: Some(path.into()), file, user, ..ProcessImage::default() }
}

fn started(process: u8, second: u64, path: &str, file: Option<FileIdentity>) -> EventKind {
    EventKind::ProcessStarted(Box::new(ProcessRecord {
        uid: uid(process),
        pid: process.into(),
        parent: Some(uid(200)),
        parent_pid: Some(200),
        started: at(second),
        already_running: false,
        image: image(path, file),
    }))
}

fn executed(process: u8, second: u64, path: &str, file: Option<FileIdentity>) -> EventKind {
    EventKind::ProcessExecuted(Box::new(ProcessExecution {
        uid: uid(process),
        executed: at(second),
        image: image(path, file),
    }))
}

fn exited(process: u8, second: u64) -> EventKind {
    EventKind::ProcessExited(ProcessExit { uid: uid(process), exited: at(second), exit_code: Some(3) })
}

fn file(inode: u64) -> FileIdentity {
    FileIdentity { device: 1, inode, modified: at(9), size: 4 }
}

fn sha256(byte: u8) -> Sha256 {
    Sha256::from_bytes([byte; 32])
}

fn seen(
    second: u64,
    sighting: ExecutableSighting,
    file: Option<FileIdentity>,
    sha256: Option<Sha256>,
    process: u8,
) -> EventKind {
    EventKind::ExecutableSeen(Box::new(ExecutableRecord {
        at: at(second),
        path: "/opt/tool".into(),
        file,
        sha256,
        first_on_host: true,
        package: None,
        sighting,
        process: Some(uid(process)),
        problem: sha256.is_none().then(|| "it had gone".into()),
        signature: None,
        version: None,
    }))
}

// Names.

/// A host that resolved a name, and talked to what it stands for.
fn resolver() -> Vec<EventKind> {
    let mut kinds = all_complete();
    // It knows no address from before names were recorded.
    kinds.push(started(7, NOON - 60, "/bin/client", None));
    kinds.push(resolved(NOON - 50, "cloud.example.com", &["edge.cdn.example.net"], TARGET));
    kinds.push(told(named(flow(1, 7, TARGET, NOON, NOON + 5), "cloud.example.com", NameSource::Dns)));
    kinds
}

/// The agent was replaced by an older one: what it does not know may have been a connection.
#[test]
fn an_event_of_a_newer_kind_leaves_nothing_clear_until_what_is_open_is_said_anew() {
    let of_the_newer = told(flow(1, 1, OTHER, NOON, NOON));
    let announced = |seq| match complete(Facet::Connections) {
        EventKind::CoverageChanged(change) => {
            EventKind::CoverageChanged(CoverageChange { announced_from: Some(Seq(seq)), ..change })
        }
        other => other,
    };
    let before = || [all_complete(), vec![of_the_newer.clone()]].concat();
    let host = Host::with(before());
    host.check("198.51.100.7", (BEGUN + 1, NOON - 1), Verdict::Clear);
    let host = Host::with([before(), vec![EventKind::Unrecognised, announced(5)]].concat());
    host.check("198.51.100.7", (BEGUN + 1, NOON - 1), Verdict::Unknown);
    host.check("198.51.100.7", (NOON + 1000, NOON + 2000), Verdict::Unknown);
    let host = Host::with([before(), vec![EventKind::Unrecognised, announced(6)]].concat());
    host.check("198.51.100.7", (NOON + 1000, NOON + 2000), Verdict::Clear);
}

#[test]
fn a_name_and_each_of_its_aliases_finds_the_connection() {
    let host = Host::with(resolver());
    for name in [
        "cloud.example.com",
        "CLOUD.example.com.",
        "*.example.com",
        "edge.cdn.example.net",
        "*.cdn.example.net",
        "*.net",
    ] {
        let (answer, addresses) = host.ask(name, NOON, NOON + 10);
        assert_eq!(answer.verdict, Verdict::Talked, "{name}: {answer:#?}");
        assert_eq!(addresses, ["198.51.100.7"], "{name}");
        let found = &answer.processes[0].connections[0].flow;
        assert_eq!(found.connection, ConnectionUid::from_bytes([1; 16]), "{name}");
        assert_eq!(found.remote_name.as_ref().map(|name| name.name.as_str()), Some("cloud.example.com"));
    }
}

#[test]
fn a_name_that_was_never_asked_for_is_clear_only_with_a_day_of_names() {
    let host = Host::with(resolver());
    host.check("elsewhere.example.org", (NOON, NOON + 10), Verdict::Clear);
    // A day before this window, nothing was recorded yet.
    let answer = host.check("elsewhere.example.org", (BEGUN + 500, BEGUN + 510), Verdict::Unknown);
    assert!(answer.gaps.iter().all(|gap| gap.facet == Facet::Names), "{:#?}", answer.gaps);

    let mut kinds = resolver();
    kinds.push(lost(Facet::Names, NOON - 70_000, NOON - 69_999));
    let answer = Host::with(kinds).check("elsewhere.example.org", (NOON, NOON + 10), Verdict::Unknown);
    assert_eq!((answer.gaps.len(), answer.gaps[0].facet), (1, Facet::Names), "{:#?}", answer.gaps);
}

#[test]
fn a_connection_to_an_address_that_no_answer_gave_leaves_every_name_unknown() {
    let mut kinds = resolver();
    kinds.push(told(flow(2, 7, OTHER, NOON, NOON + 5)));
    let host = Host::with(kinds);
    let answer = host.check("elsewhere.example.org", (NOON, NOON + 10), Verdict::Unknown);
    assert!(format!("{:?}", answer.gaps).contains("no recorded answer gave"), "{:#?}", answer.gaps);
    // Asked by address, all that matters was recorded.
    host.check("203.0.113.9", (NOON, NOON + 10), Verdict::Clear);
}

#[test]
fn an_answer_that_came_after_the_window_names_nothing_in_it() {
    let mut kinds = resolver();
    kinds.push(resolved(NOON + 60, "late.example.org", &[], TARGET));
    let host = Host::with(kinds);
    host.check("late.example.org", (NOON, NOON + 10), Verdict::Clear);
    // Once it has come, whoever talked to the address may have meant the name.
    host.check("late.example.org", (NOON, NOON + 100), Verdict::Talked);
}

#[test]
fn a_hello_names_its_own_connection_and_no_other() {
    let mut kinds = all_complete();
    let (asking, other) = (flow(1, 7, TARGET, NOON, NOON + 5), flow(2, 8, TARGET, NOON, NOON + 5));
    kinds.push(hello(NOON, "hidden.example.org", asking.local, asking.remote));
    for flow in [asking, other] {
        kinds.push(told(named(flow, "front.example.net", NameSource::Sni)));
    }
    let answer = Host::with(kinds).check("hidden.example.org", (NOON, NOON + 10), Verdict::Talked);
    let owners: Vec<_> = answer.processes.iter().map(|process| process.uid).collect();
    assert_eq!(owners, [Some(uid(7))]);
}

#[test]
fn more_addresses_than_are_kept_leave_nobody_clear() {
    let mut kinds = all_complete();
    for number in 0..u16::try_from(NAME_ADDRESSES_MAX).unwrap() + 1 {
        let [high, low] = number.to_be_bytes();
        kinds.push(resolved(NOON - 50, "many.example.org", &[], [10, 9, high, low]));
    }
    let (answer, addresses) = Host::with(kinds).ask("many.example.org", NOON, NOON + 10);
    assert_eq!((answer.verdict, addresses.len()), (Verdict::Unknown, NAME_ADDRESSES_MAX), "{answer:#?}");
}

// Processes.

#[test]
fn a_process_is_told_with_what_it_became_until_the_window_ends() {
    let mut kinds = all_complete();
    kinds.push(started(7, NOON - 30, "/bin/sh", None));
    // One that was found again later, as after a restart, does not hide its start.
    kinds.push(started(7, NOON - 10, "/bin/late", None));
    kinds.push(executed(7, NOON - 20, "/usr/bin/env", None));
    kinds.push(executed(7, NOON - 19, "/usr/bin/tool", None));
    kinds.push(executed(7, NOON + 50, "/usr/bin/after", None));
    kinds.push(executed(9, NOON - 18, "/usr/bin/another", None));
    kinds.push(told(flow(1, 7, TARGET, NOON, NOON + 5)));
    kinds.push(exited(7, NOON + 60));
    let answer = Host::with(kinds).check("198.51.100.7", (NOON, NOON + 10), Verdict::Talked);
    assert_eq!(answer.processes.len(), 1);
    let life = answer.processes[0].life.as_ref().unwrap();
    assert_eq!((life.record.started, life.record.image.path.as_deref()), (at(NOON - 30), Some("/bin/sh")));
    let paths: Vec<_> =
        life.executions.iter().map(|execution| execution.image.path.as_deref().unwrap()).collect();
    assert_eq!((paths, life.executions_left_out), (vec!["/usr/bin/env", "/usr/bin/tool"], 0));
    assert_eq!(life.image().path.as_deref(), Some("/usr/bin/tool"));
    assert_eq!(life.exit.and_then(|exit| exit.exit_code), Some(3));
}

#[test]
fn more_executions_than_are_told_are_counted() {
    let mut kinds = all_complete();
    kinds.push(started(7, 1, "/bin/0", None));
    let count = EXECUTIONS_MAX as u64 + 3;
    kinds.extend((1..=count).map(|number| executed(7, number, &format!("/bin/{number}"), None)));
    kinds.push(told(flow(1, 7, TARGET, NOON, NOON + 5)));
    let answer = Host::with(kinds).check("198.51.100.7", (NOON, NOON + 10), Verdict::Talked);
    let life = answer.processes[0].life.as_ref().unwrap();
    assert_eq!((life.executions.len(), life.executions_left_out), (EXECUTIONS_MAX, 3));
    let path = |number: u64| Some(format!("/bin/{number}"));
    assert_eq!((&life.executions[0].image.path, &life.image().path), (&path(4), &path(count)));
}

#[test]
fn an_owner_that_was_overwritten_or_is_not_known_is_shown_as_such() {
    let mut kinds = all_complete();
    kinds.push(told(flow(1, 7, TARGET, NOON, NOON + 5)));
    kinds.push(told(FlowRecord { process: None, ..flow(2, 7, TARGET, NOON, NOON + 5) }));
    // A process of whom only the end is on record has no life to be shown.
    kinds.push(exited(7, NOON + 60));
    let answer = Host::with(kinds).check("198.51.100.7", (NOON, NOON + 10), Verdict::Talked);
    let mut owners: Vec<_> =
        answer.processes.iter().map(|process| (process.uid, process.life.is_some())).collect();
    owners.sort();
    assert_eq!(owners, [(None, false), (Some(uid(7)), false)]);
}

// Executables.

#[test]
fn the_hash_of_a_file_is_joined_to_each_image_that_ran_it() {
    let (shell, tool, replaced) = (file(1), file(2), FileIdentity { modified: at(10), ..file(2) });
    let mut kinds = all_complete();
    kinds.push(started(7, 1, "/bin/sh", Some(shell)));
    // Its hash may be known only after a while.
    kinds.push(executed(7, 2, "/opt/tool", Some(tool)));
    kinds.push(told(flow(1, 7, TARGET, NOON, NOON + 5)));
    kinds.push(seen(3, ExecutableSighting::Run, Some(shell), Some(sha256(1)), 7));
    kinds.push(seen(4, ExecutableSighting::Run, Some(tool), None, 7));
    kinds.push(seen(5, ExecutableSighting::Run, Some(tool), Some(sha256(2)), 7));
    kinds.push(seen(6, ExecutableSighting::Written, Some(tool), Some(sha256(2)), 66));
    // At the same place, with the same inode, and yet another file.
    kinds.push(seen(7, ExecutableSighting::Run, Some(replaced), Some(sha256(3)), 8));
    kinds.push(seen(8, ExecutableSighting::Run, None, Some(sha256(4)), 8));
    let answer = Host::with(kinds).check("198.51.100.7", (NOON, NOON + 10), Verdict::Talked);
    let mut life = answer.processes[0].life.clone().unwrap();
    assert_eq!(
        life.images_mut().map(|image| image.sha256).collect::<Vec<_>>(),
        [Some(sha256(1)), Some(sha256(2))]
    );
    assert_eq!((life.sha256(), life.writer()), (Some(sha256(2)), Some(uid(66))));
    let sightings: Vec<_> = life.executable.iter().map(|seen| (seen.sighting, seen.sha256)).collect();
    assert_eq!(
        sightings,
        [(ExecutableSighting::Run, Some(sha256(2))), (ExecutableSighting::Written, Some(sha256(2)))]
    );
}

#[test]
fn a_file_without_a_hash_is_told_with_the_reason() {
    let gone = file(1);
    let mut kinds = all_complete();
    kinds.push(started(7, 1, "/tmp/gone", Some(gone)));
    kinds.push(seen(2, ExecutableSighting::Run, Some(gone), None, 7));
    kinds.push(told(flow(1, 7, TARGET, NOON, NOON + 5)));
    let answer = Host::with(kinds).check("198.51.100.7", (NOON, NOON + 10), Verdict::Talked);
    let life = answer.processes[0].life.as_ref().unwrap();
    assert_eq!((life.sha256(), life.executable[0].problem.as_deref()), (None, Some("it had gone")));
}

// Bounds and holes.

#[test]
fn records_beyond_the_bound_are_counted_and_those_in_the_window_are_kept() {
    let mut kinds = all_complete();
    let before = 4;
    for number in 0..before {
        kinds.push(told(flow(number, 7, TARGET, NOON - 300, NOON - 290)));
    }
    let inside = u8::try_from(RECORDS_MAX).unwrap();
    for number in 0..inside {
        kinds.push(told(flow(100 + number, 7, TARGET, NOON, NOON + 5)));
    }
    let host = Host::with(kinds);
    let answer = host.check("198.51.100.7", (NOON, NOON + 10), Verdict::Talked);
    assert_eq!(answer.records_left_out, u64::from(before));
    assert_eq!(answer.processes[0].connections.len(), RECORDS_MAX);
    // One that is left out might have reached into the window, for all that the answer knows.
    let answer = host.check("198.51.100.7", (NOON + 200, NOON + 210), Verdict::Unknown);
    assert_eq!(answer.gaps.len(), 1, "{:#?}", answer.gaps);
}

#[test]
fn what_was_overwritten_is_a_gap_for_connections_and_for_names() {
    let options = Options { bytes_max: 6 << 10, segment_bytes: 1 << 10, ..Options::default() };
    let mut kinds = all_complete();
    kinds.extend((0..200).map(|number| told(flow(1, 7, OTHER, NOON + number, NOON + number))));
    // As an agent does wherever a reader may begin.
    kinds.extend(all_complete());
    let host = Host::within(options, kinds);
    assert!(host.view.first_seq() > Seq(1), "nothing was overwritten");
    let answer = host.check("198.51.100.7", (NOON, NOON + 10), Verdict::Unknown);
    assert!(answer.gaps.iter().any(|gap| gap.facet == Facet::Connections), "{:#?}", answer.gaps);
    let answer = host.check("cloud.example.com", (NOON + 400, NOON + 410), Verdict::Unknown);
    assert!(answer.gaps.iter().any(|gap| gap.facet == Facet::Names), "{:#?}", answer.gaps);
}

/// A ring whose frames are these; each event with the wall clock and the time that it is recorded at. And where they begin in its
/// only segment.
fn frames(groups: Vec<Vec<(EventKind, u64, u64)>>) -> (tempfile::TempDir, Vec<u64>) {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("ring");
    let (mut ring, _) =
        Ring::open(&dir, Options::default(), HOST, Epoch(7), crate::recorder::labels_of).unwrap();
    let mut seqs = (1..).map(Seq);
    let mut begins = Vec::new();
    for group in groups {
        begins.push(std::fs::metadata(segment(&directory)).map_or(88, |metadata| metadata.len()));
        let records = group.into_iter().zip(&mut seqs).map(|((kind, wall, recorded), seq)| {
            let event = Event { seq, recorded: Moment { wall: at(wall), boot_ns: 0 }, kind };
            let (speaks_from, labels) = (event.speaks_from(), labels::of(&event));
            let bytes = wire::Event::from(event).encode_to_vec();
            Record { seq, speaks_from, recorded: at(recorded), labels, bytes }
        });
        ring.append(&records.collect::<Vec<_>>()).unwrap();
    }
    ring.sync(at(2 * NOON), Moment { wall: at(2 * NOON), boot_ns: 0 }).unwrap();
    (directory, begins)
}

fn segment(directory: &tempfile::TempDir) -> std::path::PathBuf {
    directory.path().join("ring/0000000000000001.segment")
}

fn flip(directory: &tempfile::TempDir, offset: u64) {
    let mut bytes = std::fs::read(segment(directory)).unwrap();
    bytes[usize::try_from(offset).unwrap()] ^= 4;
    std::fs::write(segment(directory), bytes).unwrap();
}

fn verdict(directory: &tempfile::TempDir, from: u64, to: u64) -> Verdict {
    let view = View::open_read_only(&directory.path().join("ring")).unwrap();
    let target = Target::parse("198.51.100.7", None, None).unwrap();
    let question = Question { target, window: Window::new(at(from), at(to)).unwrap() };
    answer(&view, &question, HOST, "laptop".into(), Some(at(2 * NOON))).unwrap().0.verdict
}

fn announced(seq: u64) -> EventKind {
    let EventKind::CoverageChanged(change) = complete(Facet::Connections) else { unreachable!("it is one") };
    EventKind::CoverageChanged(CoverageChange { announced_from: Some(Seq(seq)), ..change })
}

/// A payload, of a frame whose header is good.
const PAYLOAD: u64 = 84 + 3;
const HEADER: u64 = 10;

/// What is said of the past can be missed long after it.
#[test]
fn a_damaged_frame_is_a_hole_of_all_that_it_spoke_of() {
    let change = |grade: Grade, from, to| {
        let to = Some(at(to));
        let facet = Facet::Connections;
        EventKind::CoverageChanged(CoverageChange {
            facet,
            grade,
            from: at(from),
            to,
            scope: None,
            announced_from: None,
        })
    };
    let twice = || change(Grade::NotRecorded { reason: "the clock was set back".into() }, 20_000, NOON);
    let begins = || all_complete().into_iter().map(|kind| (kind, BEGUN, BEGUN)).collect::<Vec<_>>();
    let other = |number, first| told(flow(number, 7, OTHER, first, first + 1));
    let set_back = || {
        let talked = told(flow(2, 7, TARGET, 20_000, 20_001));
        vec![
            begins(),
            vec![(other(1, NOON - 5), NOON - 3, NOON)],
            vec![(twice(), 20_001, NOON), (talked, 20_002, NOON)],
            vec![(other(3, 20_010), 20_012, NOON)],
            vec![(announced(7), 20_020, NOON)],
        ]
    };
    let late = || {
        vec![
            begins(),
            vec![(other(1, NOON - 5), NOON - 3, NOON - 3)],
            vec![(lost(Facet::Connections, 20_000, NOON), NOON, NOON)],
            vec![(other(3, NOON + 1), NOON + 3, NOON + 3)],
            vec![(announced(6), NOON + 4, NOON + 4)],
        ]
    };
    for (groups, from, whole) in [
        (set_back(), 20_000, Verdict::Talked),
        (set_back(), 30_000, Verdict::Unknown),
        (late(), 20_000, Verdict::Unknown),
    ] {
        for damage in [HEADER, PAYLOAD] {
            let (directory, begins) = frames(groups.clone());
            assert_eq!(verdict(&directory, from, from + 5), whole);
            flip(&directory, begins[2] + damage);
            assert_eq!(verdict(&directory, from, from + 5), Verdict::Unknown, "{from}, at {damage}");
        }
    }
}

/// Who looks for connections misses both frames, and who looks for coverage passes over the second.
#[test]
fn two_holes_that_begin_at_one_event_are_as_wide_as_the_wider() {
    let (directory, begins) = frames(vec![
        all_complete().into_iter().map(|kind| (kind, BEGUN, BEGUN)).collect(),
        vec![(told(flow(1, 7, OTHER, NOON, NOON + 1)), NOON + 2, NOON + 2)],
        vec![
            (told(flow(3, 7, OTHER, NOON + 5, NOON + 6)), NOON + 10, NOON + 10),
            (told(flow(2, 7, TARGET, NOON + 20, NOON + 25)), NOON + 30, NOON + 30),
        ],
        vec![(announced(5), NOON + 40, NOON + 40)],
    ]);
    let ask = || verdict(&directory, NOON + 15, NOON + 28);
    assert_eq!(ask(), Verdict::Talked);
    flip(&directory, begins[2] + PAYLOAD);
    assert_eq!(ask(), Verdict::Unknown);
    flip(&directory, begins[1] + HEADER);
    assert_eq!(ask(), Verdict::Unknown);
}
