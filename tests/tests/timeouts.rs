//! Connections that outlive the timeouts, at their full length: a silent UDP peer ends, and a long connection is told in
//! slices. Everything waits at once; it takes close to three minutes.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use alibi_lab::{
    capture::{stage::Stage, tail::Tail},
    network::SERVER,
    programs::programs,
    requirements::{Requirement, met},
    system::now,
};
use alibi_proto::{
    event::EventKind,
    flow::{Direction, FlowEndReason, FlowRecord, FlowState, Protocol},
    time::Timestamp,
};

const LAB: &str = env!("CARGO_BIN_EXE_lab");
/// How long the connection lives that is told in slices.
const LONG: Duration = Duration::from_secs(150);
const PIECE: usize = 100_000;
const PACE: Duration = Duration::from_millis(100);
/// A record of a connection in which bytes move is no longer than this, by the pipeline's own limit.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// And a little: a look at what has moved, a turn of the source, a busy machine.
const TOLERANCE: Duration = Duration::from_secs(8);
/// A UDP peer that is silent for longer is done.
const UDP_SILENT: Duration = Duration::from_secs(60);

/// What a UDP socket does: one datagram there and back at each of these seconds.
const TALKS: &[(&str, &[u64], usize)] = &[
    ("silent until long after its end", &[0, 100], 2),
    ("silent for a little longer than is allowed", &[0, 62], 2),
    ("never silent for so long", &[0, 50, 100], 1),
];

/// Waits, unless it is to stop.
fn wait(stop: &Receiver<()>, duration: Duration) {
    assert_eq!(stop.recv_timeout(duration), Err(RecvTimeoutError::Timeout), "nobody says stop");
}

/// The times of the datagrams, as the program that sent them saw it: before each was sent, after each was answered.
fn talk(socket: &UdpSocket, server: SocketAddr, seconds: &[u64], stop: &Receiver<()>) -> Vec<[Timestamp; 2]> {
    let mut passed = 0;
    let mut times = Vec::new();
    for second in seconds {
        wait(stop, Duration::from_secs(second - passed));
        passed = *second;
        let before = now();
        socket.send_to(b"ping", server).unwrap();
        socket.recv_from(&mut [0; 8]).unwrap();
        times.push([before, now()]);
    }
    times
}

fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        if length == 0 {
            return;
        }
        socket.send_to(&buffer[..length], from).unwrap();
    }
}

/// Sends at an even pace; how many bytes in all, and when.
fn send_long(mut stream: TcpStream, stop: &Receiver<()>) -> (u64, [Timestamp; 2]) {
    let began = now();
    let mut sent = 0;
    while now().since(began) < LONG {
        stream.write_all(&[b's'; PIECE]).unwrap();
        sent += PIECE as u64;
        wait(stop, PACE);
    }
    (sent, [began, now()])
}

fn records(tail: &Tail, local: SocketAddr, remote: SocketAddr) -> Vec<FlowRecord> {
    let mut records: Vec<FlowRecord> = tail
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Flow(flow) => Some((**flow).clone()),
            _ => None,
        })
        .filter(|flow| {
            flow.direction == Direction::Outbound
                && flow.remote == remote
                && flow.local.port() == local.port()
                && (local.ip().is_unspecified() || flow.local.ip() == local.ip())
        })
        .collect();
    records.sort_by_key(|record| (record.opened, record.record));
    records
}

/// What a question about `[from, to)` is told of the bytes that were sent.
fn bytes_sent(data: &Path, target: SocketAddr, from: Timestamp, to: Timestamp) -> u64 {
    let (ip, port) = (target.ip().to_string(), target.port().to_string());
    let (from, to) = (from.to_string(), to.to_string());
    let output = Command::new(&programs().agent)
        .args(["query", &ip, "--port", &port, "--protocol", "tcp", "--from", &from, "--to", &to, "--json"])
        .arg("--data")
        .arg(data)
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let flow = &answer["hosts"][0]["processes"][0]["flows"][0];
    assert_eq!(flow["in_window"], "bytes", "{answer:#}");
    flow["bytes_sent"].as_u64().unwrap()
}

#[track_caller]
fn tiles(records: &[FlowRecord]) {
    assert_eq!(records[0].first, records[0].opened, "{records:#?}");
    for (number, pair) in records.windows(2).enumerate() {
        assert_eq!(pair[1].first, pair[0].last, "record {number}: {records:#?}");
        assert_eq!(pair[1].record, pair[0].record + 1, "record {number}: {records:#?}");
    }
}

/// Its datagrams make as many flows as they should, each from its first to its last, as closely as records tell.
#[track_caller]
fn check_peer(what: &str, records: &[FlowRecord], times: &[[Timestamp; 2]], flows: usize) {
    let mut lives: Vec<Vec<FlowRecord>> = Vec::new();
    for record in records {
        match lives.last_mut().filter(|life| life[0].opened == record.opened) {
            Some(life) => life.push(record.clone()),
            None => lives.push(vec![record.clone()]),
        }
    }
    assert_eq!(lives.len(), flows, "{what}: {records:#?}");
    let mut datagrams = 0;
    for life in &lives {
        tiles(life);
        let (first, last) = (&life[0], &life[life.len() - 1]);
        let inside = |[before, after]: &&[Timestamp; 2]| *before <= last.last && *after >= first.opened;
        let mine: Vec<_> = times.iter().filter(inside).collect();
        let bytes: u64 = life.iter().filter_map(|record| record.traffic).map(|moved| moved.bytes_sent).sum();
        assert_eq!(bytes, 4 * mine.len() as u64, "{what}: {life:#?} {times:?}");
        assert!(mine[0][0] <= first.opened && first.opened <= mine[0][1], "{what}: {first:#?} {mine:?}");
        let end = mine[mine.len() - 1];
        assert_eq!((last.state, last.end_reason), (FlowState::Closed, FlowEndReason::EndOfFlow), "{what}");
        // A record that was written while it was open, after its last datagram, is not taken back.
        let told_open = if life.len() > 1 { life[life.len() - 2].last } else { Timestamp::ZERO };
        let latest = end[1].max(told_open);
        assert!(end[0] <= last.last && last.last <= latest, "{what}: {life:#?} {mine:?}");
        assert!(latest.since(end[1]) <= ACTIVE_TIMEOUT + TOLERANCE, "{what}: {life:#?} {mine:?}");
        datagrams += mine.len();
    }
    assert_eq!(datagrams, times.len(), "{what}: {records:#?} {times:?}");
}

#[test]
fn long_lives_are_told_in_slices_and_silent_peers_end() {
    if !met("timeouts at their full length", &[Requirement::NetworkNamespaces, Requirement::Bpf]) {
        return;
    }
    let stage = Stage::new(Path::new(LAB)).unwrap();
    let agent = stage.agent("agent", "ebpf", &[]);
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();

    let (udp_server, tcp_server) = stage.network.inside_server(|| {
        (UdpSocket::bind((SERVER, 7001)).unwrap(), TcpListener::bind((SERVER, 7000)).unwrap())
    });
    let (udp_address, tcp_address) = (udp_server.local_addr().unwrap(), tcp_server.local_addr().unwrap());
    let echo_thread = thread::spawn(move || echo(&udp_server));
    let sink = thread::spawn(move || {
        let (mut stream, _) = tcp_server.accept().unwrap();
        let mut buffer = vec![0; 1 << 16];
        while stream.read(&mut buffer).unwrap() > 0 {}
    });

    let (_never, stop) = channel();
    let sockets: Vec<UdpSocket> = stage
        .network
        .inside_laptop(0, || TALKS.iter().map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect());
    let locals: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let talkers: Vec<_> = TALKS
        .iter()
        .zip(sockets)
        .map(|((_, seconds, _), socket)| {
            let (_never_either, stop) = channel();
            thread::spawn(move || {
                let _never_either = _never_either;
                // Open until the end, so that no peer ends because its socket is closed.
                (talk(&socket, udp_address, seconds, &stop), socket)
            })
        })
        .collect();
    let stream = stage.network.inside_laptop(0, || TcpStream::connect(tcp_address).unwrap());
    let local = stream.local_addr().unwrap();
    let sender = thread::spawn(move || send_long(stream, &stop));
    // The stream is read meanwhile, as a collector does.
    while !sender.is_finished() {
        tail.until_known(now()).unwrap();
    }
    let (sent, [began, ended]) = sender.join().unwrap();
    sink.join().unwrap();
    let talked: Vec<_> = talkers.into_iter().map(|talker| talker.join().unwrap()).collect();

    // Of the peers, the last to end was heard at second 100.
    let is_over = |tail: &Tail| {
        locals.iter().zip(TALKS).all(|(local, (_, _, flows))| {
            let ends = records(tail, *local, udp_address);
            ends.iter().filter(|record| record.state == FlowState::Closed).count() == *flows
        })
    };
    let deadline = now().saturating_add(UDP_SILENT + 3 * TOLERANCE);
    while !is_over(&tail) {
        tail.until_known(now()).unwrap();
        assert!(now() < deadline, "a peer has not ended");
    }
    for ((what, _, flows), (local, (times, _))) in TALKS.iter().zip(locals.iter().zip(&talked)) {
        let found = records(&tail, *local, udp_address);
        assert!(found.iter().all(|record| record.protocol == Protocol::Udp));
        check_peer(what, &found, times, *flows);
        eprintln!("{what}: {} records in {flows} flows", found.len());
    }

    let slices = records(&tail, local, tcp_address);
    tiles(&slices);
    let last = &slices[slices.len() - 1];
    assert_eq!((last.state, last.end_reason), (FlowState::Closed, FlowEndReason::EndOfFlow));
    assert!(slices.len() >= 4, "the first second, two whole slices, and the rest: {slices:#?}");
    let bytes = |records: &[FlowRecord]| -> u64 {
        records.iter().filter_map(|record| record.traffic).map(|moved| moved.bytes_sent).sum()
    };
    assert_eq!(bytes(&slices), sent);
    for slice in &slices {
        assert!(slice.last.since(slice.first) <= ACTIVE_TIMEOUT + TOLERANCE, "{slice:#?}");
        assert!(began <= slice.last && slice.first <= ended, "{slice:#?}");
        // At an even pace, each slice has its share.
        let pace = sent as f64 / ended.since(began).as_secs_f64();
        let share = pace * slice.last.since(slice.first).as_secs_f64();
        let moved = bytes(std::slice::from_ref(slice)) as f64;
        assert!((moved - share).abs() <= pace * TOLERANCE.as_secs_f64(), "{moved} of {share}: {slice:#?}");
        eprintln!("slice of {:?}: {moved} bytes", slice.last.since(slice.first));
    }

    // What is said of a window are the bytes of the slices that overlap it: known to within the active timeout.
    let from = slices[1].first.saturating_add(Duration::from_secs(10));
    let window = (from, from.saturating_add(Duration::from_secs(5)));
    assert_eq!(bytes_sent(&agent.data, tcp_address, window.0, window.1), bytes(&slices[1..2]));
    let across = slices[2].first.saturating_sub(Duration::from_secs(1));
    let window = (across, across.saturating_add(Duration::from_secs(2)));
    assert_eq!(bytes_sent(&agent.data, tcp_address, window.0, window.1), bytes(&slices[1..3]));
    assert_eq!(bytes_sent(&agent.data, tcp_address, began, ended), sent);

    stage.network.inside_server(|| UdpSocket::bind((SERVER, 0)).unwrap().send_to(&[], udp_address).unwrap());
    echo_thread.join().unwrap();
    assert!(agent.running.stop().success());
}
