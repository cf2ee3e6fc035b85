//! With the kernel's own sockets, in network namespaces of their own; they need root.

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Instant,
};

use alibi_proto::flow::{Attribution, Direction, FlowState, Protocol, Traffic};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt,
};

use super::*;
use crate::capture::{
    ObservedConnection, SocketKey,
    linux::netlink::testing::{in_fresh_namespace, ip},
};

const PERIOD: Duration = Duration::from_millis(100);

fn take(sensor: &mut Connections) -> Vec<Fact> {
    let mut descriptors = [PollFd::from_borrowed_fd(sensor.descriptor(), PollFlags::IN)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 200_000_000 })).unwrap();
    let mut facts = Vec::new();
    sensor.take(sys::now(), &mut facts).unwrap();
    facts.into_iter().map(|observation| observation.fact).collect()
}

/// Takes until `enough`, and all that came; fails after 20 s.
#[track_caller]
fn until(sensor: &mut Connections, enough: impl Fn(&[Fact]) -> bool) -> Vec<Fact> {
    let began = Instant::now();
    let mut facts = Vec::new();
    while !enough(&facts) {
        assert!(began.elapsed() < Duration::from_secs(20), "{facts:#?} are not enough");
        facts.extend(take(sensor));
    }
    facts
}

/// The connections to `remote` in this network namespace, as they were opened.
fn opened(facts: &[Fact], remote: SocketAddr) -> Vec<&ObservedConnection> {
    let namespace = sys::network_namespace();
    let mut connections = Vec::new();
    for fact in facts {
        if let Fact::ConnectionOpened(opened) = fact
            && opened.socket.remote == remote
            && opened.network_namespace == namespace
        {
            connections.push(&**opened);
        }
    }
    connections
}

fn is_closed(facts: &[Fact], cookie: u64) -> bool {
    facts.iter().any(|fact| matches!(fact, Fact::ConnectionClosed { socket, .. } if socket.socket == cookie))
}

fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    (listener, local)
}

/// Ten bytes there and seven back; the client closes first.
fn exchange(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    client.write_all(&[1; 10]).unwrap();
    served.read_exact(&mut [0; 10]).unwrap();
    served.write_all(&[2; 7]).unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    (client, served)
}

fn bytes(traffic: Traffic) -> (u64, u64) {
    (traffic.bytes_sent, traffic.bytes_received)
}

#[test]
fn a_connection_has_its_owner_its_bytes_and_the_cookie_that_bpf_sees() {
    in_fresh_namespace(|| {
        ip("link set lo up");
        let mut sensor = Connections::open(PERIOD, false).unwrap();
        take(&mut sensor);
        let (listener, remote) = server();
        let (client, served) = exchange(&listener);
        let facts = until(&mut sensor, |facts| !opened(facts, remote).is_empty());
        let own =
            ProcessKey { pid: std::process::id(), start: sys::process_start(std::process::id()).unwrap() };
        let cookie = sockopt::socket_cookie(&client).unwrap();
        let connection = opened(&facts, remote)[0];
        assert_eq!(connection.socket, SocketKey { protocol: Protocol::Tcp, remote, socket: cookie });
        assert_eq!(connection.owner, Some(own));
        // A test beside this one may be between fork and exec, and share it.
        assert_ne!(connection.attribution, Attribution::Unknown);
        assert_eq!((connection.direction, connection.state), (Direction::Outbound, FlowState::Established));
        assert_eq!(connection.local, client.local_addr().unwrap());
        assert_eq!(bytes(connection.traffic.unwrap()), (10, 7));
        let accepted = opened(&facts, client.local_addr().unwrap())[0];
        assert_eq!((accepted.direction, accepted.owner), (Direction::Inbound, Some(own)));
        let is_listening = |fact: &Fact| matches!(fact, Fact::Listening { local, owner, .. } if *local == remote && *owner == Some(own));
        assert!(facts.iter().any(is_listening));

        drop(client);
        drop(served);
        let facts = until(&mut sensor, |facts| is_closed(facts, cookie));
        let closed = facts.iter().find_map(|fact| match fact {
            Fact::ConnectionClosed { socket, state, change } if socket.socket == cookie => {
                Some((state, change))
            }
            _ => None,
        });
        let (state, change) = closed.unwrap();
        assert_eq!(*state, FlowState::Closed);
        assert_eq!(bytes(change.traffic.unwrap()), (10, 7), "a FIN is no byte");
        for _ in 0..3 {
            let facts = take(&mut sensor);
            assert_eq!(
                opened(&facts, remote),
                Vec::<&ObservedConnection>::new(),
                "what lingers is no connection"
            );
        }
    });
}

#[test]
fn connections_between_two_looks_are_known_by_their_ends() {
    in_fresh_namespace(|| {
        ip("link set lo up");
        let mut sensor = Connections::open(Duration::from_secs(3600), true).unwrap();
        take(&mut sensor);
        let (listener, remote) = server();
        for _ in 0..200 {
            exchange(&listener);
        }
        let facts = until(&mut sensor, |facts| opened(facts, remote).len() >= 200);
        let connections = opened(&facts, remote);
        assert_eq!(connections.len(), 200);
        let cookies: HashSet<u64> = connections.iter().map(|connection| connection.socket.socket).collect();
        assert_eq!(cookies.len(), 200);
        for connection in connections {
            assert_eq!(connection.state, FlowState::Closed);
            // A byte less where the socket went before the other end's FIN came.
            let (sent, received) = bytes(connection.traffic.unwrap());
            assert!(sent == 10 && (6..=7).contains(&received), "{connection:?}");
            assert_eq!((connection.owner, connection.attribution), (None, Attribution::Unknown));
        }
    });
}

#[test]
fn what_failed_and_what_is_not_tcp_is_told_as_far_as_it_is_known() {
    in_fresh_namespace(|| {
        ip("link set lo up");
        let mut sensor = Connections::open(Duration::from_secs(3600), true).unwrap();
        take(&mut sensor);
        assert!(TcpStream::connect("127.0.0.1:9").is_err());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:53").unwrap();
        drop(socket);
        drop(TcpListener::bind("127.0.0.1:0").unwrap());
        let (refused, datagrams) = ("127.0.0.1:0".parse().unwrap(), "127.0.0.1:53".parse().unwrap());
        let facts = until(&mut sensor, |facts| {
            !opened(facts, refused).is_empty() && !opened(facts, datagrams).is_empty()
        });
        assert_eq!(opened(&facts, refused)[0].state, FlowState::Failed(0));
        let datagrams = opened(&facts, datagrams);
        assert_eq!(datagrams.len(), 1);
        assert_eq!((datagrams[0].socket.protocol, datagrams[0].state), (Protocol::Udp, FlowState::Closed));
        let here = sys::network_namespace();
        let all = facts.iter().filter(
            |fact| matches!(fact, Fact::ConnectionOpened(opened) if opened.network_namespace == here),
        );
        assert_eq!(all.count(), 2, "a listener is no connection");
    });
}

#[test]
fn ends_that_the_buffer_could_not_hold_are_a_loss() {
    in_fresh_namespace(|| {
        ip("link set lo up");
        let mut sensor = Connections::open_with_room(Duration::from_secs(3600), true, 1).unwrap();
        take(&mut sensor);
        assert_eq!(sensor.watches.keys().copied().collect::<Vec<_>>(), [sys::network_namespace().unwrap()]);
        let (listener, remote) = server();
        let mut witness = Listener::open(Some(SOCK_DIAG), diag::DESTROYED, ROOM_BYTES).unwrap();
        for _ in 0..100 {
            exchange(&listener);
        }
        // A worker of the kernel tells, in its own time: whoever takes meanwhile may keep up with it.
        let began = Instant::now();
        let mut told = 0;
        while told < 100 {
            assert!(began.elapsed() < Duration::from_secs(20), "only {told} ends were told");
            match witness.hear().unwrap() {
                Heard::Datagram(datagram) => told += messages(datagram).count(),
                Heard::Overrun => panic!("there is room for thousands"),
                Heard::Nothing => {
                    let mut descriptors = [PollFd::from_borrowed_fd(witness.as_fd(), PollFlags::IN)];
                    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 200_000_000 })).unwrap();
                }
            }
        }
        let is_loss = |fact: &Fact| {
            matches!(
                fact,
                Fact::Coverage(CoverageChange {
                    facet: Facet::Connections,
                    grade: Grade::Lost { .. },
                    to: Some(_),
                    ..
                })
            )
        };
        let facts = until(&mut sensor, |facts| facts.iter().any(is_loss));
        assert!(opened(&facts, remote).len() < 100);
    });
}

#[test]
fn another_network_namespace_is_watched_and_let_go() {
    let mut inode = None;
    let mut sensor = Connections::open(PERIOD, false).unwrap();
    take(&mut sensor);
    in_fresh_namespace(|| {
        ip("link set lo up");
        inode = sys::network_namespace();
        let (listener, remote) = server();
        let ends = exchange(&listener);
        let facts = until(&mut sensor, |facts| !opened(facts, remote).is_empty());
        assert_eq!(opened(&facts, remote)[0].owner.unwrap().pid, std::process::id());
        assert!(opened(&facts, remote)[0].already_open);
        drop(ends);
    });
    let inode = inode.unwrap();
    let began = Instant::now();
    while sensor.watches.contains_key(&inode) {
        assert!(began.elapsed() < Duration::from_secs(20), "it is still held");
        take(&mut sensor);
    }
    assert!(!namespaces::find(NAMESPACES_MAX).unwrap().paths.contains_key(&inode));
}

#[test]
fn a_shortcoming_is_said_once_and_taken_back() {
    let mut sensor = Connections::open(PERIOD, false).unwrap();
    let mut facts = Vec::new();
    for shortcoming in [None, Some("too many"), Some("too many"), None, None] {
        sensor.note_shortcoming(shortcoming.map(str::to_owned), sys::now(), &mut facts);
    }
    let grades: Vec<_> = facts
        .iter()
        .map(|observation| match &observation.fact {
            Fact::Coverage(change) => change.grade.word(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(grades, ["lost", "sampled"]);
}
