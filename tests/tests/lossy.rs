//! A connection over a line that loses packets: how often they were sent again is recorded as the system counted it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use alibi_lab::{
    capture::{stage::Stage, tail::Tail},
    network::{SERVER, SERVER_IPV6},
    requirements::{Requirement, met},
    traffic::tcp_info,
};
use alibi_proto::{
    event::EventKind,
    flow::{FlowRecord, FlowState, Traffic},
};

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const BYTES: usize = 2 << 20;

/// Of the packets that reach the server, one in five is lost: a filter (BPF) drops it (2) if a random number is not below
/// four fifths of 2^32.
const LOSE: &str = "4,32 0 0 4294963256,53 0 1 3435973837,6 0 0 2,6 0 0 0";

fn tc(stage: &Stage, words: &[&str]) {
    let output = stage.network.on_server("tc").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Reads all that it is to be sent, says so with a byte, and waits for the end.
fn serve(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut vec![0; BYTES]).unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// The records of the connection, once it has ended.
fn records(tail: &mut Tail, local: SocketAddr) -> Vec<FlowRecord> {
    let of = |tail: &Tail| -> Vec<FlowRecord> {
        let flows = tail.events.iter().filter_map(|event| match &event.kind {
            EventKind::Flow(flow) if flow.local == local => Some((**flow).clone()),
            _ => None,
        });
        flows.collect()
    };
    let is_over = |tail: &Tail| of(tail).last().is_some_and(|flow| flow.state == FlowState::Closed);
    tail.until("the end of the connection", is_over).unwrap();
    of(tail)
}

#[test]
fn packets_that_are_sent_again_are_counted_as_the_system_counts_them() {
    if !met("a lossy line", &[Requirement::NetworkNamespaces, Requirement::Bpf]) {
        return;
    }
    let mut stage = Stage::new(Path::new(LAB)).unwrap();
    stage.network = stage.network.with_ipv6();
    let agent = stage.agent("agent", "ebpf", &[]);
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();

    for server in [IpAddr::from(SERVER), IpAddr::from(SERVER_IPV6)] {
        let listener = stage.network.inside_server(|| TcpListener::bind((server, 7000)).unwrap());
        let server = listener.local_addr().unwrap();
        let server_thread = thread::spawn(move || serve(&listener));
        let mut stream = stage.network.inside_laptop(0, || TcpStream::connect(server).unwrap());
        let local = stream.local_addr().unwrap();

        tc(&stage, &["qdisc", "add", "dev", "c1", "ingress"]);
        let protocol = if server.is_ipv4() { "ip" } else { "ipv6" };
        let filter = ["filter", "add", "dev", "c1", "ingress", "protocol", protocol];
        tc(&stage, &[&filter[..], &["bpf", "direct-action", "bytecode", LOSE]].concat());
        stream.write_all(&vec![b'a'; BYTES]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        // What follows is not lost, so that what the system says now remains so.
        tc(&stage, &["qdisc", "delete", "dev", "c1", "ingress"]);
        let info = tcp_info(&stream).unwrap();
        assert!(info.retransmitted > 0, "nothing was lost: {info:?}");
        drop(stream);
        server_thread.join().unwrap();

        let records = records(&mut tail, local);
        let moved = records.iter().filter_map(|record| record.traffic);
        let moved = moved.reduce(|sum, traffic| sum.plus(&traffic)).unwrap();
        let Traffic { bytes_sent, bytes_received, packets_sent, packets_retransmitted, .. } = moved;
        assert_eq!(packets_retransmitted, u64::from(info.retransmitted), "{records:#?}");
        assert_eq!((bytes_sent, bytes_received), (BYTES as u64, 1), "each byte once: {moved:?}");
        assert!(packets_sent > packets_retransmitted, "{moved:?}");
        let round_trip = records.last().unwrap().round_trip.unwrap();
        assert!(!round_trip.is_zero(), "{records:#?}");
        eprintln!("{server}: {info:?} by the system; {moved:?}, round trip {round_trip:?} by the agent");
    }
    assert!(agent.running.stop().success());
}
