//! Hostile and broken peers: each costs a bounded amount, is shown, and takes nobody else's service.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use alibi_lab::system::{Agent, Collector, now};
use alibi_proto::{
    frame::Packer,
    wire::{self, event::Kind},
};
use http::Request;
use serde_json::Value;

#[path = "hostile/agent.rs"]
mod agent;

use agent::{false_agent, framed, head};

/// Does to each connection what `treat` does, until the test ends.
fn listener(treat: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(treat));
    address
}

fn batch(events: Vec<wire::Event>) -> Vec<u8> {
    let watermark_ns = Some(now().as_nanos());
    let first_seq = events.first().map_or(0, |event| event.seq);
    let packed: Vec<Vec<u8>> = events.iter().map(prost::Message::encode_to_vec).collect();
    let payload = Packer::default().pack(&packed.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let frames = vec![wire::Frame { first_seq, count: events.len() as u32, payload }];
    let head = Some(vec![1; 32]);
    framed(&wire::TailResponse { epoch: 7, frames, head, watermark_ns, ..Default::default() })
}

fn event(seq: u64, kind: Kind) -> wire::Event {
    wire::Event { seq, time_ns: now().as_nanos(), boot_time_ns: 1, kind: Some(kind) }
}

fn flow(connection_uid: Vec<u8>, seconds: u64) -> Kind {
    let end = || Some(wire::Endpoint { address: vec![203, 0, 113, 99], port: 443 });
    let last_ns = now().as_nanos();
    Kind::Flow(wire::Flow {
        connection_uid,
        attribution: 2,
        protocol: 1,
        direction: 1,
        local: end(),
        remote: end(),
        first_ns: last_ns - seconds * 1_000_000_000,
        last_ns,
        state: 3,
        end_reason: 3,
        ..wire::Flow::default()
    })
}

/// No program may ever have had more.
const MEMORY_BYTES_MAX: u64 = 200 << 20;

#[test]
fn agents_that_are_none_trouble_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let good = Agent::start(&directory.path().join("agent"), &["--source", "poll"]);
    collector.follow(&good.address);

    let uid = || vec![9; 16];
    let cases: Vec<(String, &str)> = vec![
        (listener(|mut socket| drop(socket.write_all(&[0xa5; 4096]))), "garbage"),
        (listener(drop), "closes at once"),
        (false_agent(1, head(1 << 30)), "a message of 1 GiB"),
        (
            false_agent(2, batch(vec![event(1, flow(uid(), 0)), event(3, flow(uid(), 0))])),
            "jump to seq 3 without a hole",
        ),
        (false_agent(3, batch(vec![event(5, flow(uid(), 0))])), "seq 1 is wanted"),
        (false_agent(4, batch(vec![event(1, flow(uid(), 3600))])), "more than 900 s after first_ns"),
        (false_agent(5, batch(vec![event(1, flow(vec![9; 3], 0))])), "has 3 bytes, not 16"),
        (false_agent(6, [head(3), vec![0xff; 3]].concat()), "not what a message looks like"),
    ];
    // One that accepts and then says nothing is found out by time alone; it only must not disturb.
    let silent = listener(|mut socket| drop(socket.read_to_end(&mut Vec::new())));
    collector.follow(&silent);
    for (address, _) in &cases {
        collector.follow(address);
    }

    let host = |hosts: &Value, address: &str| -> Value {
        let hosts = hosts["hosts"].as_array().unwrap();
        hosts.iter().find(|host| host["address"] == address).unwrap().clone()
    };
    let hosts = collector.json_until(&["hosts"], |hosts| {
        cases.iter().all(|(address, _)| host(hosts, address)["trouble"].is_string())
            && host(hosts, &good.address)["known_until"].is_string()
    });
    for (address, what) in &cases {
        let host = host(&hosts, address);
        let trouble = host["trouble"].as_str().unwrap();
        if what.contains("seq") || what.contains("bytes") || what.contains("900 s") {
            assert!(trouble.contains(what), "{what}: {trouble}");
        }
        assert_eq!(trouble.lines().count(), 1, "{what}: {trouble}");
        assert_eq!((&host["connected"], &host["events"]), (&false.into(), &0.into()), "{what}: {host:#}");
        assert_eq!(host["known_until"], Value::Null, "{what}: nothing of it is believed");
    }

    // The good one is followed as ever, and nothing of the others is in any answer but that they are unknown.
    let from = now();
    let (_, answer) = collector.json(&["who", "203.0.113.99", "--from", &from.to_string()]);
    let hosts = answer["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), cases.len() + 2);
    assert!(hosts.iter().all(|host| host["verdict"] == "unknown"), "{answer:#}");
    let known_until = host(&collector.json(&["hosts"]).1, &good.address)["known_until"].clone();
    assert!(serde_json::from_value::<alibi_proto::time::Timestamp>(known_until).unwrap() >= from);
    let memory_bytes = collector.running.memory_bytes_max();
    assert!(memory_bytes < MEMORY_BYTES_MAX, "{memory_bytes}");
}

/// Sends a request whose only message says that it is 1 GiB long; the status of the answer.
fn claim_a_gigabyte(address: SocketAddr, path: &str) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://{address}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data([head(1 << 30), vec![0; 1000]].concat().into(), false).unwrap();
        let mut response = response.await.unwrap();
        let status = match response.headers().get("grpc-status") {
            Some(status) => status.clone(),
            None => response.body_mut().trailers().await.unwrap()?.get("grpc-status")?.clone(),
        };
        Some(status.to_str().unwrap().to_owned())
    })
}

#[test]
fn clients_that_are_none_trouble_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let agent = Agent::start(&directory.path().join("agent"), &["--source", "poll"]);
    let out_of_range = Some("11".to_owned());
    for (address, path) in [(&agent.address, Some("/alibi.v1.Recorder/Query")), (&collector.address, None)] {
        let address: SocketAddr = address.parse().unwrap();
        for _ in 0..20 {
            let mut socket = TcpStream::connect(address).unwrap();
            // It may hang up at the first byte that makes no sense.
            let _ = socket.write_all(&[0xa5; 64 << 10]);
        }
        let mut half = TcpStream::connect(address).unwrap();
        half.write_all(b"PRI * HTTP/2.0\r\n").unwrap();
        if let Some(path) = path {
            assert_eq!(claim_a_gigabyte(address, path), out_of_range, "{path}");
        }
    }
    collector.follow(&agent.address);
    collector.json_until(&["hosts"], |hosts| hosts["hosts"][0]["known_until"].is_string());
    for program in [&agent.running, &collector.running] {
        let memory_bytes = program.memory_bytes_max();
        assert!(memory_bytes < MEMORY_BYTES_MAX, "{memory_bytes}");
    }
}
