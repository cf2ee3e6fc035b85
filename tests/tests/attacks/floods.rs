//! Too much, too slowly, too long, and none of it what it should be: each costs a bounded amount, ends, and takes nobody
//! else's service.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use alibi_lab::system::Agent;
use alibi_proto::{
    id::HostId,
    tls::{self, Identity},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tonic::Code;

use crate::{
    attacker::{ELSEWHERE, Hello, Line, attack, awaited, bearer, dial, ended, enter, head},
    false_agent::{Answer, FalseAgent},
    scene::{Scene, id, known_until},
};

/// What any of this may make the collector take more than it had.
const MEMORY_GROWTH_MAX: u64 = 96 << 20;

const ENROL_HOST: &str = "/alibi.v1.Enrolment/EnrolHost";
const WHO: &str = "/alibi.v1.Analyst/Who";

/// Holds the collector to its bound.
struct Memory(u64);

impl Memory {
    fn of(scene: &Scene) -> Self {
        Self(scene.collector.running.memory_bytes_max())
    }

    fn stays_bounded(&self, scene: &Scene) {
        let after = scene.collector.running.memory_bytes_max();
        assert!(after < self.0 + MEMORY_GROWTH_MAX, "from {} to {after}", self.0);
    }
}

#[test]
fn a_message_of_a_gigabyte_is_refused_before_it_is_there() {
    let scene = Scene::new();
    let analyst = scene.analyst_token("analyst", "jdoe");
    let (host, stolen) = scene.stolen_host("stolen");
    let memory = Memory::of(&scene);
    let claim = || [head(1 << 30), vec![0; 1000]].concat();
    attack(async {
        let at = |protocol| Hello::new(protocol, None);
        let mut enrolment =
            Line::over(enter(ELSEWHERE, scene.address(), &at(tls::ENROL)).await.unwrap()).await;
        let mut analysts = Line::to_analysts(ELSEWHERE, scene.address()).await;
        for (what, status, want) in [
            ("enrolment", enrolment.send(ENROL_HOST, None, claim()).await, Code::OutOfRange),
            ("a stranger", analysts.send(WHO, None, claim()).await, Code::Unauthenticated),
            ("an analyst", analysts.send(WHO, bearer(&analyst.secret), claim()).await, Code::OutOfRange),
            // It is really sent, as far as it is taken.
            (
                "all of it",
                enrolment.send(ENROL_HOST, None, [head(64 << 20), vec![0; 64 << 20]].concat()).await,
                Code::OutOfRange,
            ),
        ] {
            assert_eq!(status.code(), want, "{what}: {status:?}");
        }
        // From an agent, in answer to each thing that it is asked.
        for (method, why) in [("Present", "1073741824"), ("Describe", "1073741824"), ("Tail", "1073741824")] {
            let agent = FalseAgent::new(host).with(method, Answer::Open(claim()));
            let stream =
                enter(ELSEWHERE, scene.address(), &Hello::new(tls::HOME, Some(&stolen))).await.unwrap();
            agent.serve(stream).await;
            tokio::task::block_in_place(|| {
                scene.host_until(host, |host| host["trouble"].as_str().is_some_and(|said| said.contains(why)))
            });
        }
    });
    memory.stays_bounded(&scene);
    scene.others_are_served("messages of a gigabyte came");
}

/// Sends this, one byte after the other, and waits until the other end has had enough.
async fn dribble(what: &'static str, stream: impl AsyncRead + AsyncWrite, bytes: Vec<u8>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let dribbling = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for byte in bytes.into_iter().chain(std::iter::repeat(0)) {
            pace.tick().await;
            if writer.write_all(&[byte]).await.and(writer.flush().await).is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = dribbling => {}
        () = ended(what, &mut reader) => {}
    }
}

/// Sends this at once, then nothing, and waits until the other end has had enough.
async fn stall(what: &'static str, mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: Vec<u8>) {
    let _ = stream.write_all(&bytes).await;
    let _ = stream.flush().await;
    ended(what, &mut stream).await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `:method: POST`, `:scheme: https`, `:path: /`, by their numbers in HPACK's table.
const POST: &[u8] = &[0x83, 0x87, 0x84];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The beginning of every connection.
fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Sends the same again and again, whatever comes back, until the other end has had enough.
async fn flood(
    what: &'static str,
    stream: impl AsyncRead + AsyncWrite,
    once: Vec<u8>,
    again: impl Fn(u32) -> Vec<u8>,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let flooding = async {
        let _ = writer.write_all(&once).await;
        for round in 0.. {
            if writer.write_all(&again(round)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = flooding => {}
        () = ended(what, &mut reader) => {}
    }
}

/// All of it at once, since it ends by time.
#[test]
fn what_is_too_slow_or_too_much_or_makes_no_sense_ends() {
    let scene = Scene::new();
    let hosts = ["one", "two", "three", "silent", "senseless"].map(|name| scene.stolen_host(name));
    let memory = Memory::of(&scene);
    attack(async {
        let meanwhile = async {
            tokio::task::block_in_place(|| scene.others_are_served("it is too slow, too much, or senseless"));
        };
        tokio::join!(
            slow(scene.address(), &hosts),
            senseless(scene.address(), &hosts[4].1),
            floods(scene.address()),
            meanwhile
        );
    });
    scene.log_says(&["a connection is refused", "it took too long over the handshake"]);
    memory.stays_bounded(&scene);
    scene.others_are_served("it was too slow, too much, or senseless");
}

async fn slow(address: SocketAddr, hosts: &[(HostId, Identity)]) {
    let shaken =
        async |protocol, identity| enter(ELSEWHERE, address, &Hello::new(protocol, identity)).await.unwrap();
    let tcp = async || dial(ELSEWHERE, address).await.unwrap();
    let hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut slow = JoinSet::new();
    slow.spawn(stall("who says nothing", tcp().await, vec![]));
    slow.spawn(stall("half a handshake", tcp().await, hello.clone()));
    slow.spawn(dribble("a slow handshake", tcp().await, hello));
    for protocol in [tls::ANALYST, tls::ENROL] {
        slow.spawn(stall("who says no more", shaken(protocol, None).await, vec![]));
        slow.spawn(dribble("a slow preface", shaken(protocol, None).await, PREFACE.to_vec()));
        slow.spawn(stall("who asks nothing", shaken(protocol, None).await, opening()));
        let begun = [opening(), frame(HEADERS, 0, 1, POST)].concat();
        slow.spawn(stall("a head without an end", shaken(protocol, None).await, begun));
        let dribbled = [&opening()[..], &[0, 0x3f, 0xff, HEADERS, 0, 0, 0, 0, 1]].concat();
        slow.spawn(dribble("a slow head", shaken(protocol, None).await, dribbled));
        let body = [opening(), frame(HEADERS, END_HEADERS, 1, POST), frame(DATA, 0, 1, &head(100))].concat();
        slow.spawn(dribble("a slow body", shaken(protocol, None).await, body));
    }
    slow.spawn(stall("a host that says nothing", shaken(tls::HOME, Some(&hosts[3].1)).await, vec![]));
    // Who calls as a host is asked for its lease, then who it is.
    for (method, (host, stolen)) in ["Present", "Admit", "Describe"].into_iter().zip(hosts) {
        let agent = FalseAgent::new(*host).with(method, Answer::Open(vec![]));
        let stream = shaken(tls::HOME, Some(stolen)).await;
        slow.spawn(async move { awaited("the end of a slow host", agent.serve(stream)).await });
    }
    // In the right words, but never to their end.
    let line = Line::over(shaken(tls::ENROL, None).await).await;
    slow.spawn(async move { line.never_ending(ENROL_HOST).await });
    while let Some(done) = slow.join_next().await {
        done.unwrap();
    }
}

async fn senseless(address: SocketAddr, host: &Identity) {
    let mut bad = JoinSet::new();
    for (protocol, identity) in [(tls::HOME, Some(host)), (tls::ENROL, None), (tls::ANALYST, None)] {
        let hello = Hello::new(protocol, identity);
        let shaken = async || enter(ELSEWHERE, address, &hello).await.unwrap();
        bad.spawn(stall("garbage", shaken().await, vec![0xa5; 64 << 10]));
        bad.spawn(stall("HTTP/1.1", shaken().await, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)));
        // Beside the encryption.
        bad.spawn(stall("plain garbage", shaken().await.into_inner().0, vec![0xa5; 64 << 10]));
        if protocol == tls::HOME {
            // The collector is the client there: what comes first are settings.
            continue;
        }
        for (what, frames) in [
            ("a frame that is too large", vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]),
            ("data of no stream", frame(DATA, 0, 0, &[0; 100])),
            ("data of a stream that is not open", frame(DATA, 0, 1, &[0; 100])),
            ("an even stream", frame(HEADERS, END_HEADERS, 2, POST)),
            ("settings that are cut", frame(SETTINGS, 0, 0, &[0; 5])),
            ("a window without an end", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
            ("a window of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
            ("a head that cannot be read", frame(HEADERS, END_HEADERS, 1, &[0xff; 100])),
        ] {
            bad.spawn(stall(what, shaken().await, [opening(), frames].concat()));
        }
    }
    while let Some(done) = bad.join_next().await {
        done.unwrap();
    }
}

async fn floods(address: SocketAddr) {
    let mut floods = JoinSet::new();
    for protocol in [tls::ENROL, tls::ANALYST] {
        let hello = Hello::new(protocol, None);
        let shaken = async || enter(ELSEWHERE, address, &hello).await.unwrap();
        floods.spawn(flood("a flood of resets", shaken().await, opening(), |round| {
            let stream = 2 * round + 1;
            [frame(HEADERS, END_HEADERS, stream, POST), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        }));
        floods.spawn(flood("a flood of requests", shaken().await, opening(), |round| {
            frame(HEADERS, END_HEADERS, 2 * round + 1, POST)
        }));
        floods.spawn(flood("a flood of settings", shaken().await, opening(), |_| frame(SETTINGS, 0, 0, &[])));
        floods.spawn(flood("a flood of pings", shaken().await, opening(), |_| frame(PING, 0, 0, &[7; 8])));
        let begun = [opening(), frame(HEADERS, 0, 1, POST)].concat();
        floods.spawn(flood("a flood of continuations", shaken().await, begun.clone(), |_| {
            frame(CONTINUATION, 0, 1, &[0x83; 1024])
        }));
        floods.spawn(flood("a flood of empty continuations", shaken().await, begun, |_| {
            frame(CONTINUATION, 0, 1, &[])
        }));
        // An entry of HPACK's table that is long, and a head that names it often.
        let name = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'x'; 4000]].concat();
        let bomb = [opening(), frame(HEADERS, END_HEADERS, 1, &[POST, &name].concat())].concat();
        floods.spawn(flood("a head that is small and large", shaken().await, bomb, |round| {
            frame(HEADERS, END_HEADERS, 2 * round + 3, &[POST, &[0xbe; 16_000]].concat())
        }));
        floods.spawn(flood("a flood of what nobody knows", shaken().await, opening(), |_| {
            frame(0x42, 0, 0, &[0; 16_000])
        }));
    }
    while let Some(done) = floods.join_next().await {
        done.unwrap();
    }
}

/// Connections that never get further, from everywhere, as long as the deed takes; how many they were.
async fn half_open(
    to: SocketAddr,
    held_max: usize,
    at_least: usize,
    deed: impl Future<Output = ()>,
) -> usize {
    let mut opened = 0;
    let mut held: VecDeque<TcpStream> = VecDeque::new();
    let mut deed = std::pin::pin!(deed);
    let mut is_done = false;
    while !is_done || opened < at_least {
        let source = Ipv4Addr::new(127, 0, 4, 1 + (opened % 20) as u8);
        // Where the queue before the door is full, it takes a while.
        tokio::select! {
            () = &mut deed, if !is_done && opened >= at_least / 2 => is_done = true,
            stream = dial(source, to) => {
                let mut stream = stream.unwrap();
                if opened % 2 == 0 {
                    // It may have had to go already.
                    let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await;
                }
                held.push_back(stream);
                if held.len() > held_max {
                    held.pop_front();
                }
                opened += 1;
            }
        }
    }
    opened
}

/// The collector may have far fewer connections open than come, and begins with fewer still.
#[test]
fn ten_thousand_that_stand_at_the_door_keep_nobody_out() {
    const MANY: usize = 10_000;
    let scene = Scene::with_files(4_096);
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, Rlimit { ..files }).unwrap();
    let held_max = files.current.map_or(MANY, |files| MANY.min(files.saturating_sub(4_096) as usize));
    let memory = Memory::of(&scene);
    let (data, token) = (scene.path("newcomer"), scene.collector.token(1));
    let opened = attack(async {
        let served = async {
            // Meanwhile others come who mean it, and those who are there are served.
            let serve = || {
                Agent::enrol(&data, &token);
                let newcomer = Agent::start_calling(&data, &["--source", "poll"]);
                let host = scene.host_until(id(&data), |host| host["connected"] == true);
                assert!(known_until(&host) > alibi_proto::time::Timestamp::ZERO || host["host"].is_string());
                scene.others_are_served("with thousands at the door");
                drop(newcomer);
            };
            tokio::task::block_in_place(serve);
        };
        half_open(scene.address(), held_max, MANY, served).await
    });
    assert!(opened >= MANY, "{opened}");
    memory.stays_bounded(&scene);
    let said = scene.collector.running.said();
    assert!(!said.iter().any(|line| line.contains("not accepted")), "there is room for all: {said:#?}");
    // And what is said of each is not said of each.
    assert!(said.len() < 1_000, "{}", said.len());
    scene.others_are_served("after thousands at the door");
}
