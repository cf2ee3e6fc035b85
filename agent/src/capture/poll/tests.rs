use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use alibi_proto::{
    flow::{Attribution, Direction, FlowState},
    time::Timestamp,
};

use super::*;
use crate::{
    capture::{Fact, ObservedConnection, ObservedProcess, ProcessKey},
    sys::testing::wine_cannot,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Every system has it.
const WAITS_FOR_ITS_INPUT_TO_END: &str = if cfg!(windows) { "cmd" } else { "sort" };

fn facts(report: Report) -> impl Iterator<Item = Fact> {
    report.observations.into_iter().map(|observation| observation.fact)
}

fn this_process() -> ProcessKey {
    let pid = std::process::id();
    ProcessKey { pid, start: sys::process_start(pid).unwrap() }
}

/// The poll as it runs, on a thread, until the test is over.
fn running(period: Duration) -> (mpsc::Receiver<Report>, impl Drop) {
    struct Running(Option<mpsc::Sender<std::convert::Infallible>>, Option<thread::JoinHandle<()>>);
    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.0.take());
            self.1.take().unwrap().join().unwrap();
        }
    }
    let source = Box::new(Poll::open(period).unwrap());
    let (reports, received) = mpsc::sync_channel(1024);
    let (stop, stopped) = mpsc::channel();
    let running = thread::spawn(move || source.run(Outlet::new(reports, stopped)).unwrap());
    (received, Running(Some(stop), Some(running)))
}

fn wait_for<T>(reports: &mpsc::Receiver<Report>, wanted: impl Fn(&Fact) -> Option<T>) -> T {
    loop {
        let report = reports.recv_timeout(PATIENCE).unwrap();
        if let Some(found) = facts(report).find_map(|fact| wanted(&fact)) {
            return found;
        }
    }
}

#[test]
fn this_process_is_in_the_inventory_with_its_image() {
    let (reports, _running) = running(PERIOD_MIN);
    let inventory = reports.recv_timeout(PATIENCE).unwrap();
    let started: Vec<ObservedProcess> = facts(inventory)
        .filter_map(|fact| if let Fact::ProcessStarted(process) = fact { Some(*process) } else { None })
        .collect();
    let this = started.iter().position(|process| process.process == this_process()).unwrap();
    let parent = started.iter().position(|process| Some(process.process) == started[this].parent);
    assert!(parent.is_none_or(|parent| parent < this), "parents come first");
    let this = &started[this];
    let text = |path: std::path::PathBuf| Some(path.to_string_lossy().into_owned());
    assert!(this.already_running);
    assert_eq!(this.image.path, text(std::env::current_exe().unwrap()));
    assert_eq!(this.image.working_directory, text(std::env::current_dir().unwrap()));
    if !(this.image.arguments.is_empty() && wine_cannot("tell a process's arguments")) {
        assert_eq!(this.image.arguments, std::env::args().collect::<Vec<_>>());
    }
    assert!(this.image.user.is_some() && !this.image.name.is_empty());
}

#[test]
fn the_inventory_has_the_loopback_interface_and_the_next_look_does_not() {
    let (reports, _running) = running(PERIOD_MIN);
    let is_loopback = |fact: &Fact| {
        matches!(fact, Fact::LinkChanged(link)
            if link.present && link.up && link.addresses.contains(&"127.0.0.1/8".to_owned()))
    };
    assert!(facts(reports.recv_timeout(PATIENCE).unwrap()).any(|fact| is_loopback(&fact)));
    assert!(!facts(reports.recv_timeout(PATIENCE).unwrap()).any(|fact| is_loopback(&fact)));
}

#[test]
fn a_suspend_is_told_in_order_and_leaves_no_gap() {
    let at = |secs: u64| Moment {
        wall: Timestamp::from_secs(1_764_000_000 + secs),
        boot_ns: secs * 1_000_000_000,
    };
    let mut differ = Differ::new(Duration::from_secs(1), None);
    let process = |pid, start| tables::ProcessRow {
        key: ProcessKey { pid, start },
        parent_pid: None,
        started: Timestamp::ZERO,
        ended: false,
        image: None,
    };
    let snapshot = |secs, processes| tables::Snapshot {
        at: at(secs),
        processes: Ok(processes),
        sockets: Ok(Vec::new()),
    };
    differ.diff(snapshot(10, vec![process(5, 1)]));
    let asleep = Observation { at: at(3_609), fact: Fact::Suspended { from: at(11), to: at(3_609) } };
    let report = with_surroundings(vec![asleep.clone()], &mut differ, |differ| {
        differ.diff(snapshot(3_610, vec![process(5, 1), process(6, 2)]))
    });
    assert_eq!(report.seen_until, at(3_610));
    assert_eq!(report.observations[0], asleep);
    assert_eq!(report.observations.len(), 2, "and the new process: {report:?}");
}

#[test]
fn a_real_connection_has_its_real_owner_and_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = listener.local_addr().unwrap();
    let (reports, _running) = running(PERIOD_MIN);
    reports.recv_timeout(PATIENCE).unwrap();

    let near = TcpStream::connect(remote).unwrap();
    let (far, _) = listener.accept().unwrap();
    let local = near.local_addr().unwrap();
    for (mut from, mut to) in [(&near, &far), (&far, &near)] {
        from.write_all(&[1]).and_then(|()| to.read_exact(&mut [0])).unwrap();
    }
    let opened: ObservedConnection = wait_for(&reports, |fact| match fact {
        Fact::ConnectionOpened(connection) if connection.local == local => Some((**connection).clone()),
        _ => None,
    });
    let mut owner = opened.owner.map(|owner| (owner, opened.attribution));
    if owner.is_none() && wine_cannot("tell whose a connection is before a byte was sent") {
        owner = Some(wait_for(&reports, |fact| match fact {
            Fact::ConnectionChanged { socket, change } if *socket == opened.socket => change.owner,
            _ => None,
        }));
    }
    assert_eq!(owner, Some((this_process(), Attribution::SocketTable)));
    assert_eq!((opened.direction, opened.state), (Direction::Outbound, FlowState::Established));
    assert_eq!((opened.socket.remote, opened.already_open), (remote, false));

    drop((near, far));
    let closed = wait_for(&reports, |fact| match fact {
        Fact::ConnectionClosed { socket, state, .. } if *socket == opened.socket => Some(*state),
        _ => None,
    });
    assert_eq!(closed, FlowState::Closed);
}

#[test]
fn a_real_child_starts_and_ends() {
    let (reports, _running) = running(PERIOD_MIN);
    reports.recv_timeout(PATIENCE).unwrap();
    let mut child = std::process::Command::new(WAITS_FOR_ITS_INPUT_TO_END)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started: ObservedProcess = wait_for(&reports, |fact| match fact {
        Fact::ProcessStarted(process) if process.process.pid == child.id() => Some((**process).clone()),
        _ => None,
    });
    assert_eq!((started.parent, started.already_running), (Some(this_process()), false));
    drop(child.stdin.take());
    // Not waited for yet: a process that nobody has taken note of has ended all the same.
    wait_for(&reports, |fact| match fact {
        Fact::ProcessExited { process, .. } if *process == started.process => Some(()),
        _ => None,
    });
    child.wait().unwrap();
}

#[test]
fn the_period_is_bounded_and_told() {
    let described = Poll::open(Duration::ZERO).unwrap().describe();
    let graded: Vec<_> =
        described.facets.into_iter().map(|facet| (facet.facet, facet.grade.to_string())).collect();
    let expected = [
        (Facet::Processes, "sampled(100 ms)"),
        (Facet::Connections, "sampled(100 ms)"),
        (Facet::Names, "none(polling does not see name lookups)"),
    ];
    assert_eq!(graded, expected.map(|(facet, grade)| (facet, grade.to_owned())));
}
