use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc,
    },
};

use crate::{
    capture::{
        Choice, Fact, Options, Outlet,
        linux::{
            names::testing::{answer, question},
            netlink::testing::{in_fresh_namespace, ip},
        },
        open,
    },
    sys,
};

const NUMBER: u16 = 7;

/// A server of its own for each answer: the source may still look at the socket that was closed before.
fn server() -> Ipv4Addr {
    static SERVERS: AtomicU16 = AtomicU16::new(1);
    let [high, low] = SERVERS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// An answer from one address to another, by UDP, with or without a question.
fn by_udp(name: &str, is_asked: bool) {
    let (server, client) =
        (UdpSocket::bind((server(), 53)).unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    if is_asked {
        client.send_to(&question(NUMBER, name), server.local_addr().unwrap()).unwrap();
        server.recv(&mut [0; 512]).unwrap();
    }
    server.send_to(&answer(NUMBER, name), client.local_addr().unwrap()).unwrap();
    client.recv(&mut [0; 512]).unwrap();
}

/// As a container's resolver does: asked at another port than it answers from.
fn translated(name: &str) {
    let address = server();
    let (server, client) = (UdpSocket::bind((address, 53)).unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let asked = UdpSocket::bind((address, 0)).unwrap();
    client.send_to(&question(NUMBER, name), asked.local_addr().unwrap()).unwrap();
    server.send_to(&answer(NUMBER, name), client.local_addr().unwrap()).unwrap();
    client.recv(&mut [0; 512]).unwrap();
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// The same by TCP, the question in one segment with its length.
fn by_tcp(name: &str, is_asked: bool) {
    let listener = TcpListener::bind((server(), 53)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    if is_asked {
        client.write_all(&framed(&question(NUMBER, name))).unwrap();
    }
    let answer = framed(&answer(NUMBER, name));
    server.write_all(&answer).unwrap();
    client.read_exact(&mut vec![0; answer.len()]).unwrap();
}

#[test]
fn only_answers_that_were_asked_for_are_believed() {
    if !sys::is_privileged() {
        assert!(std::env::var("ALIBI_LAB_SKIP").as_deref() != Ok("forbid"), "it needs root");
        return;
    }
    let options = Options {
        period: std::time::Duration::from_secs(1),
        buffer_bytes: None,
        own_network_namespace: false,
    };
    let source = open(&Choice::Ebpf, &options).unwrap();
    let (reports, received) = mpsc::sync_channel(64);
    let (stop, stopped) = mpsc::channel();
    let running = std::thread::spawn(move || source.run(Outlet::new(reports, stopped)));
    let told = move || {
        ip("link set lo up");
        let wanted = ["asked.tcp.example", "asked.udp.example", "translated.udp.example"];
        let (mut names, mut unasked) = (BTreeSet::new(), 0);
        // Other tests may fill the buffer meanwhile; what they have lost for this one is tried again.
        for _ in 0..50 {
            by_udp("forged.udp.example", false);
            by_udp("asked.udp.example", true);
            translated("translated.udp.example");
            by_tcp("forged.tcp.example", false);
            by_tcp("asked.tcp.example", true);
            let done = sys::now();
            loop {
                let report = received.recv().unwrap();
                for observation in report.observations {
                    match observation.fact {
                        Fact::NameResolved(told) => drop(names.insert(told.name)),
                        Fact::Coverage(change) if change.grade.reason().contains("not heard to ask for") => {
                            unasked += change.grade.count();
                        }
                        _ => {}
                    }
                }
                if report.seen_until.boot_ns > done.boot_ns {
                    break;
                }
            }
            if unasked >= 2 && wanted.iter().all(|name| names.contains(*name)) {
                break;
            }
        }
        assert!(wanted.iter().all(|name| names.contains(*name)) && unasked >= 2, "{names:?} {unasked}");
        assert!(!names.iter().any(|name| name.starts_with("forged")), "{names:?}");
        drop(received);
    };
    in_fresh_namespace(told);
    drop(stop);
    running.join().unwrap().unwrap();
}
