//! Names as real programs and servers exchange them: what was looked up, and what was asked for in TLS, finds the
//! connection that was made by it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use alibi_lab::{
    capture::{stage::Stage, tail::Tail},
    network::{Network, SERVER, SERVER_IPV6},
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, Running, now},
};
use alibi_proto::{
    event::EventKind,
    flow::FlowRecord,
    name::{NameResolution, NameSource},
    time::Timestamp,
};
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const PATIENCE: Duration = Duration::from_secs(10);
const TTL_S: u32 = 300;

const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
const THIRD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

// A name server (RFC 1035).

const CNAME: u16 = 5;

/// A name's aliases, in order, and the addresses that the last one has.
struct Zone {
    name: &'static str,
    aliases: &'static [&'static str],
    addresses: Vec<IpAddr>,
}

fn push_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
}

fn push_record(message: &mut Vec<u8>, owner: &str, kind: u16, data: &[u8]) {
    push_name(message, owner);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend(TTL_S.to_be_bytes());
    message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    message.extend(data);
}

/// OPT (RFC 6891), for answers of 4,096 bytes.
const EDNS: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0];

fn kind(address: IpAddr) -> u16 {
    if address.is_ipv4() { 1 } else { 28 }
}

fn question(zone: &Zone, with_edns: bool) -> Vec<u8> {
    let mut message = vec![0xa1, 0x1b, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_edns)];
    push_name(&mut message, zone.name);
    message.extend(kind(zone.addresses[0]).to_be_bytes());
    message.extend([0, 1]);
    if with_edns {
        message.extend(EDNS);
    }
    message
}

fn answer(question: &[u8], zones: &[Zone]) -> Vec<u8> {
    let has = |zone: &&Zone| {
        let mut name = Vec::new();
        push_name(&mut name, zone.name);
        question[12..].starts_with(&name)
    };
    let zone = zones.iter().find(has).expect("only what is known is asked for");
    let question_end = 12 + zone.name.len() + 2 + 4;
    let mut message = question[..question_end].to_vec();
    let with_edns = question[11] == 1;
    let count = u16::try_from(zone.aliases.len() + zone.addresses.len()).unwrap();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&count.to_be_bytes());
    message[11] = u8::from(with_edns);
    let mut owner = zone.name;
    for alias in zone.aliases {
        let mut target = Vec::new();
        push_name(&mut target, alias);
        push_record(&mut message, owner, CNAME, &target);
        owner = alias;
    }
    for address in &zone.addresses {
        match address {
            IpAddr::V4(four) => push_record(&mut message, owner, kind(*address), &four.octets()),
            IpAddr::V6(six) => push_record(&mut message, owner, kind(*address), &six.octets()),
        }
    }
    if with_edns {
        message.extend(EDNS);
    }
    message
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Udp,
    UdpWithEdns,
    Tcp,
}

/// Looks a name up: the server answers one question, from the threads that `serve` and `ask` are.
fn look_up(network: &Network, laptop: usize, server: IpAddr, way: Way, zone: &Zone) {
    let server = SocketAddr::from((server, 53));
    let zones = std::slice::from_ref(zone);
    let asked = question(zone, matches!(way, Way::UdpWithEdns));
    if matches!(way, Way::Tcp) {
        let listener = network.inside_server(|| TcpListener::bind(server).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut question).unwrap();
                let answer = answer(&question, zones);
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                // In pieces, as a network may deliver it.
                answer.chunks(400).for_each(|piece| stream.write_all(piece).unwrap());
            });
            let mut stream = network.inside_laptop(laptop, || TcpStream::connect(server).unwrap());
            stream.write_all(&u16::try_from(asked.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&asked).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        return;
    }
    let socket = network.inside_server(|| UdpSocket::bind(server).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 4096];
            let (length, asker) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&answer(&buffer[..length], zones), asker).unwrap();
        });
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let asker = network.inside_laptop(laptop, || UdpSocket::bind((any, 0)).unwrap());
        asker.set_read_timeout(Some(PATIENCE)).unwrap();
        asker.send_to(&asked, server).unwrap();
        asker.recv_from(&mut [0; 4096]).unwrap();
    });
}

/// A connection there and back, and its near end.
fn visit(network: &Network, laptop: usize, remote: SocketAddr) -> SocketAddr {
    let listener = network.inside_server(|| TcpListener::bind(remote).unwrap());
    let stream = network.inside_laptop(laptop, || TcpStream::connect(remote).unwrap());
    drop(listener.accept().unwrap());
    stream.local_addr().unwrap()
}

// What was recorded.

fn flow(tail: &mut Tail, local: SocketAddr, remote: SocketAddr) -> FlowRecord {
    let find = |tail: &Tail| {
        tail.events.iter().rev().find_map(|event| match &event.kind {
            EventKind::Flow(flow) if flow.local == local && flow.remote == remote => Some((**flow).clone()),
            _ => None,
        })
    };
    tail.until(&format!("a flow from {local} to {remote}"), |tail| find(tail).is_some()).unwrap();
    find(tail).unwrap()
}

fn resolutions(tail: &Tail, name: &str) -> Vec<NameResolution> {
    let all = tail.events.iter().filter_map(|event| match &event.kind {
        EventKind::NameResolved(resolution) if resolution.name == name => Some((**resolution).clone()),
        _ => None,
    });
    all.collect()
}

/// Asked of the agent itself: the exit status, and the answer.
fn query(data: &Path, name: &str, from: Timestamp, to: Timestamp) -> (Option<i32>, Value) {
    let (from, to) = (from.to_string(), to.to_string());
    let mut command = Command::new(&programs().agent);
    command.args(["query", name, "--from", &from, "--to", &to, "--json", "--data"]).arg(data);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let answer = serde_json::from_slice(&stdout);
    (status.code(), answer.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&stderr))))
}

fn found<'a>(answer: &'a Value, local: &SocketAddr) -> Option<&'a Value> {
    let processes = answer["hosts"][0]["processes"].as_array().unwrap();
    let mut flows = processes.iter().flat_map(|process| process["flows"].as_array().unwrap());
    flows.find(|flow| flow["local"] == local.to_string())
}

fn add_addresses(network: &Network) {
    for address in [SECOND, THIRD] {
        let words = ["address", "add", &format!("{address}/32"), "dev", "lo"];
        assert!(network.on_server("ip").args(words).status().unwrap().success());
    }
}

#[test]
fn answers_of_every_kind_find_what_was_connected_by_them() {
    if !met("names", &[Requirement::NetworkNamespaces, Requirement::Bpf]) {
        return;
    }
    let mut stage = Stage::new(Path::new(LAB)).unwrap();
    stage.network = stage.network.with_ipv6();
    add_addresses(&stage.network);
    let agent = stage.agent("agent", "ebpf", &[]);
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(directory.path());
    collector.follow(&agent.address);

    let many = (1..=60).map(|number| Ipv4Addr::new(203, 0, 113, 100 + number).into());
    let cases: [(Way, IpAddr, Zone, &[&str]); 4] = [
        (
            Way::Udp,
            SERVER.into(),
            Zone {
                name: "www.shop.example.com",
                aliases: &["shop.cdn.example.net", "edge7.cdn.example.net"],
                addresses: vec![SERVER.into()],
            },
            &["www.shop.example.com", "shop.cdn.example.net", "edge7.cdn.example.net", "*.cdn.example.net"],
        ),
        (
            Way::Udp,
            SERVER_IPV6.into(),
            Zone { name: "six.example.org", aliases: &[], addresses: vec![SERVER_IPV6.into()] },
            &["six.example.org", "SIX.example.org."],
        ),
        (
            Way::Tcp,
            SERVER.into(),
            Zone {
                name: "by-tcp.example.org",
                aliases: &["target.example.info"],
                addresses: std::iter::once(SECOND.into()).chain(many.clone()).collect(),
            },
            &["by-tcp.example.org", "target.example.info", "*.info"],
        ),
        (
            Way::UdpWithEdns,
            SERVER.into(),
            Zone {
                name: "large.example.com",
                aliases: &[],
                addresses: many.chain(std::iter::once(THIRD.into())).collect(),
            },
            &["large.example.com"],
        ),
    ];
    let pid = std::process::id();
    for (way, server, zone, names) in &cases {
        let from = now();
        look_up(&stage.network, 0, *server, *way, zone);
        let is_ours = |address: &&IpAddr| {
            [SERVER.into(), SECOND.into(), THIRD.into(), IpAddr::from(SERVER_IPV6)].contains(*address)
        };
        let remote = SocketAddr::new(*zone.addresses.iter().find(is_ours).unwrap(), 7000);
        let local = visit(&stage.network, 0, remote);
        let flow = flow(&mut tail, local, remote);
        let told = flow.remote_name.clone().unwrap_or_else(|| panic!("{way:?}: {flow:#?}"));
        assert_eq!((told.name.as_str(), told.source), (zone.name, NameSource::Dns), "{way:?}");
        let resolved = resolutions(&tail, zone.name);
        assert_eq!(resolved.len(), 1, "{way:?}: {resolved:#?}");
        let resolved = &resolved[0];
        assert_eq!(
            (&resolved.aliases[..], resolved.ttl_s),
            (&zone.aliases.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()[..], TTL_S),
            "{way:?}"
        );
        assert_eq!(resolved.addresses, zone.addresses, "{way:?}");
        assert_eq!(resolved.server, SocketAddr::new(*server, 53), "{way:?}");
        assert_eq!(resolved.process, flow.process, "{way:?}: who asked is who connected, {pid}");
        assert_eq!(resolved.network_namespace, flow.network_namespace, "{way:?}");

        let to = now();
        tail.until_known(to).unwrap();
        for name in *names {
            let (status, answer) = query(&agent.data, name, from, to);
            let flow = found(&answer, &local).unwrap_or_else(|| panic!("{way:?}, {name}: {answer:#}"));
            assert_eq!(status, Some(0), "{way:?}, {name}");
            assert_eq!((&flow["name"], &flow["name_source"]), (&zone.name.into(), &"dns".into()), "{name}");
            let words = ["who", name, "--from", &from.to_string(), "--to", &to.to_string()];
            let answer = collector.json_until(&words, |answer| found(answer, &local).is_some());
            assert_eq!(answer["hosts"][0]["verdict"], "talked", "{name}");
        }
        let (status, _) = query(&agent.data, "nobody.example.com", from, to);
        assert_eq!(status, Some(3), "names were recorded for less than a day");
    }
    assert!(agent.running.stop().success());
}

#[test]
fn one_name_in_two_network_namespaces_is_two() {
    if !met("names in two network namespaces", &[Requirement::NetworkNamespaces, Requirement::Bpf]) {
        return;
    }
    let network = Network::new(2);
    add_addresses(&network);
    let directory = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", directory.path().join("agent.sock").display());
    let program = Command::new(&programs().agent);
    let agent = Agent::start_with(program, &directory.path().join("agent"), &listen, &["--source", "ebpf"]);
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();

    let name = "split.example.com";
    let addresses = [SERVER, SECOND];
    let from = now();
    for (laptop, address) in addresses.into_iter().enumerate() {
        let zone = Zone { name, aliases: &[], addresses: vec![address.into()] };
        look_up(&network, laptop, SERVER.into(), Way::Udp, &zone);
    }
    let mut locals = Vec::new();
    for laptop in [0, 1] {
        for address in addresses {
            let remote = SocketAddr::from((address, 7000));
            let local = visit(&network, laptop, remote);
            let flow = flow(&mut tail, local, remote);
            let known = flow.remote_name.as_ref().map(|known| known.name.as_str());
            let own = addresses[laptop] == address;
            assert_eq!(known, own.then_some(name), "laptop {laptop} and {address}: {flow:#?}");
            let resolved = resolutions(&tail, name);
            let its: Vec<_> =
                resolved.iter().filter(|one| one.network_namespace == flow.network_namespace).collect();
            assert_eq!(its.len(), 1, "{resolved:#?}");
            assert_eq!(its[0].addresses, [IpAddr::from(addresses[laptop])]);
            locals.push(local);
        }
    }
    // Asked by the name, all that it stands for anywhere is shown: to rule out wrongly is worse.
    tail.until_known(now()).unwrap();
    let (status, answer) = query(&agent.data, name, from, now());
    assert_eq!(status, Some(0));
    assert_eq!(answer["addresses"], serde_json::json!(addresses.map(|address| address.to_string())));
    assert!(locals.iter().all(|local| found(&answer, local).is_some()), "{answer:#}");
    assert!(agent.running.stop().success());
}

// TLS.

/// A key and a certificate for the server, made anew.
fn certificate(directory: &Path) -> [String; 2] {
    let [key, certificate] =
        ["key.pem", "certificate.pem"].map(|name| directory.join(name).display().to_string());
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=server", "-days", "2", "-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    [key, certificate]
}

/// So many protocols to choose from that the ClientHello has about this many bytes more.
fn protocols(bytes: usize) -> String {
    (0..bytes / 51).map(|number| format!("{number:050}")).collect::<Vec<_>>().join(",")
}

#[test]
fn a_real_tls_client_tells_the_name_that_it_asks_for() {
    let requirements = [Requirement::NetworkNamespaces, Requirement::Bpf, Requirement::OpenSsl];
    if !met("a TLS client", &requirements) {
        return;
    }
    let mut stage = Stage::new(Path::new(LAB)).unwrap();
    stage.network = stage.network.with_ipv6();
    let directory = tempfile::tempdir().unwrap();
    let [key, certificate] = certificate(directory.path());
    let servers: Vec<(SocketAddr, Running)> = [IpAddr::from(SERVER), IpAddr::from(SERVER_IPV6)]
        .into_iter()
        .map(|server| {
            let address = SocketAddr::new(server, 8443);
            let mut command = stage.network.on_server("openssl");
            command.args(["s_server", "-accept", &address.to_string(), "-key", &key, "-cert", &certificate]);
            let running = Running::start("a TLS server", &mut command);
            running.line_with("ACCEPT", 0);
            (address, running)
        })
        .collect();
    let agent = stage.agent("agent", "ebpf", &[]);
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();

    let mut number = 0;
    for (server, _running) in &servers {
        for (version, more_bytes) in
            [("-tls1_3", 0), ("-tls1_2", 0), ("-tls1_3", 1_700), ("-tls1_3", 6_000), ("-tls1_3", 14_000)]
        {
            number += 1;
            let name = format!("n{number}.cloud.example.com");
            let from = now();
            let mut command = stage.network.on_laptop(0, "laptop", "openssl");
            command.args(["s_client", "-connect", &server.to_string(), "-servername", &name, version]);
            if more_bytes > 0 {
                command.args(["-alpn", &protocols(more_bytes)]);
            }
            let output = command.stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("BEGIN CERTIFICATE"), "{name}: {said} {output:?}");

            let what = format!("{name}, {server} {version}, {more_bytes} bytes more");
            let hello = |tail: &Tail| {
                tail.events.iter().find_map(|event| match &event.kind {
                    EventKind::ServerName(hello) if hello.name.as_deref() == Some(&name) => {
                        Some((**hello).clone())
                    }
                    _ => None,
                })
            };
            tail.until(&what, |tail| hello(tail).is_some()).unwrap();
            let hello = hello(&tail).unwrap();
            let flow = flow(&mut tail, hello.local, *server);
            assert_eq!(hello.connection, Some(flow.connection), "{what}");
            let told = flow.remote_name.unwrap_or_else(|| panic!("{what}: the flow has no name"));
            assert_eq!((told.name, told.source), (name.clone(), NameSource::Sni), "{what}");
            let to = now();
            tail.until_known(to).unwrap();
            let (status, answer) = query(&agent.data, &name, from, to);
            let found = found(&answer, &hello.local).unwrap_or_else(|| panic!("{what}: {answer:#}"));
            assert_eq!((status, &found["name_source"]), (Some(0), &"sni".into()), "{what}");
        }
    }
    assert!(agent.running.stop().success());
}
