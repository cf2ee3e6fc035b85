use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    dns::tests::{a, message, question, record},
    tls::tests::{hello, long_hello, server_name_extension},
    *,
};
use crate::capture::{Fact, ObservedServerName};

fn at(wall_ms: u64, boot_ms: u64) -> Moment {
    let wall = Timestamp::from_nanos(1_764_000_000_000_000_000 + wall_ms * 1_000_000);
    Moment { wall, boot_ns: boot_ms * 1_000_000 }
}

#[test]
fn a_packets_time_is_told_by_both_clocks() {
    const HOUR_MS: u64 = 3_600_000;
    let (earliest, now) = (at(2 * HOUR_MS, 1_000), at(2 * HOUR_MS + 500, 1_500));
    let of = |wall_ms: u64| moment(Some(at(wall_ms, 0).wall), earliest, now);
    assert_eq!(of(2 * HOUR_MS + 200), at(2 * HOUR_MS + 200, 1_200));
    assert_eq!(of(2 * HOUR_MS + 503), at(2 * HOUR_MS + 503, 1_503));
    // The clock was set forward by an hour, or back.
    assert_eq!(of(HOUR_MS + 200), at(2 * HOUR_MS, 1_000));
    assert_eq!(of(3 * HOUR_MS + 200), at(2 * HOUR_MS + 1_500, 2_500));
    assert_eq!(moment(None, earliest, now), now);
}

/// A network namespace with nothing but loopback, kept by a process that ends with it.
struct Elsewhere {
    keeper: Child,
    namespace: u64,
}

impl Elsewhere {
    /// None, and a word on it, where that may not be made.
    fn new(test: &str) -> Option<Self> {
        let tools = Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
        if !(sys::is_privileged() && tools) {
            let why = "root and the `ip` command, for network namespaces";
            assert!(std::env::var("ALIBI_LAB_SKIP").as_deref() != Ok("forbid"), "{test} needs {why}");
            let _ = writeln!(io::stderr(), "SKIPPED {test}: needs {why}");
            return None;
        }
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let link = std::fs::metadata(namespaces::of_process(keeper.id())).unwrap();
        Some(Self { namespace: std::os::unix::fs::MetadataExt::ino(&link), keeper })
    }

    /// Does something in it.
    fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let link = File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            thread.join().unwrap()
        })
    }

    /// Sends `count` DNS answers, each to its own name, from one address to another on loopback; to questions, or to none.
    fn answer(&self, count: usize, is_asked: bool) {
        self.within(|| {
            let (server, client) =
                (UdpSocket::bind("127.0.0.53:53").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
            for index in 0..count {
                let name = format!("host{index}.example.com");
                if is_asked {
                    client.send_to(&question(7, &name), "127.0.0.53:53").unwrap();
                }
                let answer = message(&name, vec![record(&name, 60, a("198.51.100.9"))]);
                server.send_to(&answer, client.local_addr().unwrap()).unwrap();
            }
        });
    }

    /// Connects on loopback, and sends these pieces.
    fn send(&self, port: u16, pieces: &[&[u8]]) {
        self.within(|| {
            let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.set_nodelay(true).unwrap();
            for piece in pieces {
                client.write_all(piece).unwrap();
            }
            let _ = listener.accept().unwrap();
        });
    }
}

/// Runs a command that must succeed.
fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Joins two namespaces by a cable with a network card at each end that leaves segmentation to the kernel.
fn join(here: &Elsewhere, there: &Elsewhere) {
    let [here, there] = [here, there].map(|end| end.keeper.id().to_string());
    let within = |pid: &str, words: &[&str]| run(&[&["nsenter", "--net", "-t", pid, "ip"], words].concat());
    within(
        &here,
        &["link", "add", "c0", "gso_max_segs", "1", "type", "veth", "peer", "name", "c1", "netns", &there],
    );
    for (pid, card, address) in [(&here, "c0", "192.0.2.1/30"), (&there, "c1", "192.0.2.2/30")] {
        within(pid, &["address", "add", address, "dev", card]);
        within(pid, &["link", "set", card, "up"]);
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Whether there is something to take.
fn is_awake(names: &Names) -> bool {
    let mut descriptors = [PollFd::from_borrowed_fd(names.descriptor(), PollFlags::IN)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

/// What has happened in one namespace up to now, and what was lost anywhere. What is sent on loopback has been heard when
/// sending it returns.
fn take(names: &mut Names, namespace: u64) -> Vec<Fact> {
    let mut facts = Vec::new();
    while !names.take(sys::now(), &mut facts).unwrap() {}
    let facts = facts.into_iter().map(|observation| observation.fact);
    let concerns = |fact: &Fact| match fact {
        Fact::NameResolved(resolution) => resolution.network_namespace == Some(namespace),
        Fact::ServerName(hello) => hello.network_namespace == Some(namespace),
        Fact::Coverage(_) => true,
        _ => false,
    };
    facts.filter(concerns).collect()
}

fn lost_for(facts: &[Fact], words: &str) -> Option<u64> {
    facts.iter().find_map(|fact| match fact {
        Fact::Coverage(change) if change.grade.reason().contains(words) => Some(change.grade.count()),
        _ => None,
    })
}

#[test]
fn names_are_heard_in_a_namespace_that_was_not_there_at_the_start() {
    let mut names = Names::open(false).unwrap();
    let Some(elsewhere) = Elsewhere::new("names_are_heard_in_a_namespace_that_was_not_there_at_the_start")
    else {
        return;
    };
    assert_eq!(names.facets()[0].grade, Grade::Complete);
    let namespace = elsewhere.namespace;
    names.meet(namespace, elsewhere.keeper.id());
    names.meet(namespace, elsewhere.keeper.id());
    let facts = take(&mut names, namespace);
    assert_eq!(lost_for(&facts, &format!("{namespace} was not known before")), Some(0), "{facts:?}");

    elsewhere.answer(1, true);
    elsewhere.send(8000, &[&hello(&[server_name_extension(b"a.example")])]);
    let long = long_hello("cloud.example.com");
    elsewhere.send(443, &[&long[..1_000], &long[1_000..]]);
    let before = sys::now();
    let mut facts = Vec::new();
    names.take(before, &mut facts).unwrap();
    let told: Vec<_> = facts
        .iter()
        .filter_map(|observation| match &observation.fact {
            Fact::NameResolved(told) if told.network_namespace == Some(namespace) => {
                assert_eq!(told.server, "127.0.0.53:53".parse().unwrap());
                Some(told.name.clone())
            }
            Fact::ServerName(told) if told.network_namespace == Some(namespace) => {
                assert_eq!(told.direction, Direction::Outbound);
                told.name.clone()
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, ["host0.example.com", "a.example", "cloud.example.com"]);
    let age = |observation: &Observation| before.boot_ns.saturating_sub(observation.at.boot_ns);
    assert!(facts.iter().all(|observation| age(observation) < 60_000_000_000));
}

#[test]
fn a_hello_that_is_cut_into_segments_is_heard_where_it_is_sent() {
    let test = "a_hello_that_is_cut_into_segments_is_heard_where_it_is_sent";
    let mut names = Names::open(false).unwrap();
    let (Some(client), Some(server)) = (Elsewhere::new(test), Elsewhere::new(test)) else { return };
    join(&client, &server);
    for end in [&client, &server] {
        names.meet(end.namespace, end.keeper.id());
    }
    names.ears.retain(|namespace, _| [client.namespace, server.namespace].contains(namespace));
    take(&mut names, client.namespace);
    let listener = server.within(|| TcpListener::bind("192.0.2.2:443").unwrap());
    let local = client.within(|| {
        let mut stream = TcpStream::connect("192.0.2.2:443").unwrap();
        stream.write_all(&long_hello("cloud.example.com")).unwrap();
        stream.local_addr().unwrap()
    });
    drop(listener);
    let facts = take(&mut names, client.namespace);
    let remote = "192.0.2.2:443".parse().unwrap();
    let hello = ObservedServerName {
        name: Some("cloud.example.com".into()),
        direction: Direction::Outbound,
        local,
        remote,
        socket: None,
        network_namespace: Some(client.namespace),
    };
    assert!(facts.contains(&Fact::ServerName(Box::new(hello))), "{facts:?}");
    assert_eq!(lost_for(&facts, "ClientHello"), None, "{facts:?}");

    // A question and its answer cross the cable: the answer is heard where it was asked for, and another is not believed.
    let resolver = server.within(|| UdpSocket::bind("192.0.2.2:53").unwrap());
    let asking = client.within(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    asking.send_to(&question(7, "a.example"), "192.0.2.2:53").unwrap();
    for name in ["a.example", "b.example"] {
        let answer = message(name, vec![record(name, 60, a("198.51.100.9"))]);
        resolver.send_to(&answer, asking.local_addr().unwrap()).unwrap();
    }
    let mut facts = Vec::new();
    while !names.take(sys::now(), &mut facts).unwrap() {}
    let heard: Vec<_> = facts
        .iter()
        .filter_map(|observation| match &observation.fact {
            Fact::NameResolved(told) => Some((told.network_namespace, &*told.name)),
            _ => None,
        })
        .filter(|(namespace, _)| [client.namespace, server.namespace].map(Some).contains(namespace))
        .collect();
    assert_eq!(heard, [(Some(client.namespace), "a.example")]);
    let facts: Vec<_> = facts.into_iter().map(|observation| observation.fact).collect();
    assert_eq!(lost_for(&facts, "not heard to ask for"), Some(1), "{facts:?}");
}

#[test]
fn a_namespace_is_found_and_let_go_when_it_is_gone() {
    let mut names = Names::open(false).unwrap();
    let Some(elsewhere) = Elsewhere::new("a_namespace_is_found_and_let_go_when_it_is_gone") else { return };
    let namespace = elsewhere.namespace;
    let mut facts = Vec::new();
    names.search(sys::now(), &mut facts);
    assert!(names.ears.contains_key(&namespace));
    let facts: Vec<_> = facts.into_iter().map(|observation| observation.fact).collect();
    assert_eq!(lost_for(&facts, "not known before"), Some(0), "{facts:?}");
    drop(elsewhere);
    names.search(sys::now(), &mut Vec::new());
    assert!(!names.ears.contains_key(&namespace));
    names.meet(namespace, std::process::id());
    assert_eq!(lost_for(&take(&mut names, namespace), "could not be listened in"), Some(0));
}

#[test]
fn a_flood_is_counted_exactly_and_holds_nothing_back() {
    const SENT: u64 = 20_000;
    let mut names = Names::open(false).unwrap();
    let Some(elsewhere) = Elsewhere::new("a_flood_is_counted_exactly_and_holds_nothing_back") else { return };
    names.meet(elsewhere.namespace, elsewhere.keeper.id());
    take(&mut names, elsewhere.namespace);
    // Alone, so that what others say meanwhile is not counted.
    names.ears.retain(|namespace, _| *namespace == elsewhere.namespace);
    let words = ["not heard to ask for", "faster than they were taken", "the rest was let go"];
    for _ in 0..2 {
        elsewhere.answer(SENT as usize, false);
        let mut facts = Vec::new();
        assert!(names.take(sys::now(), &mut facts).unwrap(), "there is more, and it is let go");
        let facts: Vec<_> = facts.into_iter().map(|observation| observation.fact).collect();
        let [read, no_room, let_go] = words.map(|words| lost_for(&facts, words).unwrap_or(0));
        assert_eq!(read, PACKETS_PER_TURN_MAX as u64);
        assert!(no_room > 0 && let_go > 0, "{no_room} {let_go}");
        assert_eq!(read + no_room + let_go, SENT);
        // What was let go is not read, and not told again.
        elsewhere.answer(1, true);
        let facts = take(&mut names, elsewhere.namespace);
        assert_eq!(words.map(|words| lost_for(&facts, words)), [None; 3], "{facts:?}");
        assert_eq!(facts.iter().filter(|fact| matches!(fact, Fact::NameResolved(_))).count(), 1);
    }
}

#[test]
fn other_traffic_wakes_nobody() {
    const CONNECTIONS: usize = 2_000;
    let mut names = Names::open(false).unwrap();
    let Some(elsewhere) = Elsewhere::new("other_traffic_wakes_nobody") else { return };
    names.meet(elsewhere.namespace, elsewhere.keeper.id());
    take(&mut names, elsewhere.namespace);
    // Alone in its epoll, so that what others say meanwhile does not wake it.
    names.ears.retain(|namespace, _| *namespace == elsewhere.namespace);
    elsewhere.within(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..CONNECTIONS {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"GET / HTTP/1.1").unwrap();
            listener.accept().unwrap().0.write_all(b"HTTP/1.1 200 OK").unwrap();
        }
    });
    assert!(!is_awake(&names));
    elsewhere.answer(1, true);
    assert!(is_awake(&names));
}

#[test]
fn namespaces_that_cannot_be_listened_in_are_told_up_to_a_bound() {
    let mut names = Names::open(false).unwrap();
    if matches!(names.reach, Reach::Own(_)) {
        let _ = writeln!(
            io::stderr(),
            "SKIPPED namespaces_that_cannot_be_listened_in_are_told_up_to_a_bound: needs root"
        );
        return;
    }
    // What others say and do meanwhile is not counted.
    names.ears.clear();
    names.untold.clear();
    // This process is in none of them.
    let count = TRIED_MAX as u64 + 9;
    for namespace in 0..count {
        names.meet(namespace, std::process::id());
        names.meet(namespace, std::process::id());
    }
    let facts = take(&mut names, 0);
    assert_eq!(facts.len(), TRIED_MAX + 1);
    assert!(lost_for(&facts, "and others came, after 1024").is_some());
    let until =
        facts.iter().filter_map(|fact| if let Fact::Coverage(change) = fact { change.to } else { None });
    assert!(until.min().unwrap() > sys::now().wall);
    names.search(sys::now(), &mut Vec::new());
    names.meet(0, std::process::id());
    assert_eq!(take(&mut names, 0).iter().filter(|fact| matches!(fact, Fact::Coverage(_))).count(), 1);
}

#[test]
fn who_hears_only_its_own_namespace_says_so_in_its_grade() {
    let grade = |own_only, reach| {
        let names = Names { reach, ..Names::open(own_only).unwrap() };
        names.facets().remove(0).grade
    };
    let own = || Reach::Own("no right to enter others".to_owned());
    let reason =
        "only names of the agent's own network namespace are heard: no right to enter others".to_owned();
    assert_eq!(grade(false, own()), Grade::Lost { count: 0, reason });
    assert_eq!(grade(true, own()), Grade::Complete, "its connections are of its own, too");
    assert_eq!(grade(false, Reach::All), Grade::Complete);
}
