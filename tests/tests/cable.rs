//! The cable is pulled and put back while a connection is in use: the stream tells it in the order in which it happened.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{net::SocketAddr, path::Path, process::Command};

use alibi_lab::{
    capture::{stage::Stage, tail::Tail},
    network::SERVER,
    requirements::{Requirement, met},
    system::Running,
};
use alibi_proto::{
    event::{Event, EventKind},
    flow::{FlowRecord, FlowState},
    link::LinkRecord,
};

/// What everything here is expected of.
const SOURCE: &str = "ebpf";
const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// A way to lose the network, and to have it again.
struct Cut {
    what: &'static str,
    on_server: bool,
    pull: &'static [&'static str],
    put_back: &'static [&'static [&'static str]],
    /// How the laptop's interface looks meanwhile.
    is_cut: fn(&LinkRecord) -> bool,
}

const CUTS: &[Cut] = &[
    Cut {
        what: "the other end of the cable is dead",
        on_server: true,
        pull: &["link", "set", "c1", "down"],
        put_back: &[&["link", "set", "c1", "up"]],
        is_cut: |link| link.up && !link.running,
    },
    Cut {
        what: "the interface is set down",
        on_server: false,
        pull: &["link", "set", "eth0", "down"],
        // Its routes have gone with it.
        put_back: &[&["link", "set", "eth0", "up"], &["route", "add", "default", "dev", "eth0"]],
        is_cut: |link| !link.up,
    },
];

fn ip(stage: &Stage, cut: &Cut, words: &[&str]) {
    let mut command: Command = if cut.on_server {
        stage.network.on_server("ip")
    } else {
        stage.network.on_laptop(0, "laptop", "ip")
    };
    let output = command.args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The system's own patience, which the stage has taken: the kernel takes up to a second to see that a cable is back, and a
/// neighbour is asked for again until then.
fn be_patient(stage: &Stage) {
    let script = "
        echo 3 > /proc/sys/net/ipv4/neigh/eth0/mcast_solicit
        echo 1000 > /proc/sys/net/ipv4/neigh/eth0/retrans_time_ms
        echo 6 > /proc/sys/net/ipv4/tcp_syn_retries";
    let output = stage.network.on_laptop(0, "laptop", "sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The position of the first event from `from` on that is as wanted.
fn find(events: &[Event], from: usize, is_wanted: impl Fn(&EventKind) -> bool) -> Option<usize> {
    (from..events.len()).find(|index| is_wanted(&events[*index].kind))
}

fn is_flow<'a>(
    local: SocketAddr,
    is_wanted: impl Fn(&FlowRecord) -> bool + 'a,
) -> impl Fn(&EventKind) -> bool + 'a {
    move |kind| matches!(kind, EventKind::Flow(flow) if flow.local == local && is_wanted(flow))
}

fn is_link<'a>(is_wanted: impl Fn(&LinkRecord) -> bool + 'a) -> impl Fn(&EventKind) -> bool + 'a {
    move |kind| matches!(kind, EventKind::LinkChanged(link) if link.interface == "eth0" && is_wanted(link))
}

/// Waits for an event at or after `from`, and says where it is.
fn await_event(tail: &mut Tail, what: &str, from: usize, is_wanted: impl Fn(&EventKind) -> bool) -> usize {
    tail.until(what, |tail| find(&tail.events, from, &is_wanted).is_some()).unwrap();
    find(&tail.events, from, &is_wanted).unwrap()
}

fn flow(event: &Event) -> &FlowRecord {
    let EventKind::Flow(flow) = &event.kind else { panic!("{event:?}") };
    flow
}

fn connected(client: &Running, from: usize) -> (SocketAddr, usize) {
    let (line, next) = client.line_with("connected ", from);
    (line.strip_prefix("connected ").unwrap().parse().unwrap(), next)
}

#[test]
fn a_pulled_cable_is_told_in_order() {
    if !met("a pulled cable", &[Requirement::NetworkNamespaces, Requirement::Bpf]) {
        return;
    }
    let stage = Stage::new(Path::new(LAB)).unwrap();
    be_patient(&stage);
    let address = format!("{SERVER}:7000");
    let server = Running::start("the server", stage.network.on_server(LAB).args(["server", &address]));
    server.line_with("listening", 0);
    let agent = stage.agent("agent", SOURCE, &[]);
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();
    let mut client = Running::start("the client", stage.lab().args(["line", &address]));
    let (mut local, mut heard) = connected(&client, 0);
    let mut place = await_event(&mut tail, "the connection", 0, is_flow(local, |_| true));

    for cut in CUTS {
        let what = |part: &str| format!("{}: {part}", cut.what);
        let before = flow(&tail.events[place]).clone();
        ip(&stage, cut, cut.pull);
        let failed;
        (failed, heard) = client.line_with("failed ", heard);
        let errno: i32 = failed.strip_prefix("failed ").unwrap().parse().unwrap();
        assert!([110, 113, 101].contains(&errno), "{}: {failed}", cut.what);
        let begin = place;
        place = await_event(&mut tail, &what("the link is down"), place, is_link(cut.is_cut));
        let is_over = |flow: &FlowRecord| matches!(flow.state, FlowState::Closed | FlowState::Failed(_));
        place = await_event(&mut tail, &what("the connection breaks"), place, is_flow(local, is_over));
        let broken = flow(&tail.events[place]);
        assert_eq!(broken.state, FlowState::Failed(errno), "{}", what("as the program saw it"));
        assert_eq!((broken.connection, broken.process), (before.connection, before.process));

        for words in cut.put_back {
            ip(&stage, cut, words);
        }
        let is_whole = |link: &LinkRecord| link.up && link.running;
        place = await_event(&mut tail, &what("the link is up"), place, is_link(is_whole));
        let whole = place;
        client.ask("again");
        (local, heard) = connected(&client, heard);
        place = await_event(&mut tail, &what("the connection is made anew"), place, is_flow(local, |_| true));
        let anew = flow(&tail.events[place]);
        assert_ne!(anew.connection, before.connection, "{}", what("a flow of its own"));
        assert_eq!(anew.process, before.process, "{}", what("of the same process"));
        // In order of time too. (An address may get ready after the connection was opened, and before that is told.)
        let times: Vec<_> = (begin + 1..=place)
            .zip(&tail.events[begin + 1..=place])
            .filter_map(|(at, event)| match &event.kind {
                EventKind::LinkChanged(link) if link.interface == "eth0" => (at <= whole).then_some(link.at),
                EventKind::Flow(flow) if flow.connection == before.connection => Some(flow.last),
                EventKind::Flow(flow) if flow.local == local => Some(flow.opened),
                _ => None,
            })
            .collect();
        assert!(times.is_sorted(), "{}: {times:?}", cut.what);
    }
    assert!(agent.running.stop().success());
}
