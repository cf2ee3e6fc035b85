use std::path::Path;

use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    flow::{Attribution, Direction, FlowState, Protocol},
    host::{FacetCoverage, SourceDescription},
    id::{Epoch, HostBoot, HostId},
    question::{Question, Verdict},
    target::Target,
    window::Window,
};

use super::*;
use crate::{
    capture::{ConnectionChange, Fact, Observation, ObservedConnection, SocketKey},
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
        let (ring, _) = Ring::open(directory, options, Epoch(1)).unwrap();
        let boot = HostBoot { host: HOST, boot_id: "boot".into() };
        let scope = Scope { source: "test".into(), covers: "all".into(), cannot_see: "nothing".into() };
        let facets = vec![FacetCoverage { facet: Facet::Connections, grade: Grade::Complete, scope }];
        let source = SourceDescription { name: "test".into(), facets };
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

#[test]
fn a_reader_after_a_hole_hears_of_what_is_open_even_if_the_recorder_was_late() {
    let temporary = tempfile::tempdir().unwrap();
    let mut recording = Recording::begin(&temporary.path().join("ring"));
    recording.take(1, 0, vec![opened(1, TARGET)]);
    // The disk is slow for some seconds, and much happens meanwhile.
    for second in 2..6 {
        let facts = (0..200).map(|port| over(port + 10, OTHER)).collect();
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
