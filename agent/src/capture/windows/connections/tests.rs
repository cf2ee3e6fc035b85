use super::*;
use alibi_proto::time::Timestamp;

const US: &str = "10.0.0.1:50000";
const THEM: &str = "192.0.2.7:443";

fn at(millis: u64) -> Moment {
    Moment { wall: Timestamp::from_nanos(millis * 1_000_000), boot_ns: millis * 1_000_000 }
}

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start: u64::from(pid) * 10 }
}

fn ends(local: &str, remote: &str) -> Ends {
    (local.parse().unwrap(), remote.parse().unwrap())
}

fn row(local: &str, remote: &str, state: TcpState, pid: u32) -> TcpSocket {
    let (local, remote) = ends(local, remote);
    TcpSocket { local, remote, state, identity: pid.into(), pids: vec![pid] }
}

fn listening(local: &str, pid: u32) -> TcpSocket {
    row(local, "0.0.0.0:0", TcpState::Listen, pid)
}

/// What is told, a word for each; connections by the order in which they were told first.
#[derive(Default)]
struct Told {
    connections: Connections,
    facts: Vec<Observation>,
    known: Vec<SocketKey>,
}

impl Told {
    fn tcp(&mut self, millis: u64, what: TcpEvent, bytes: u32, pid: u32) -> &mut Self {
        self.connections.tcp(at(millis), what, bytes, ends(US, THEM), Some(key(pid)), &mut self.facts);
        self
    }

    fn udp(&mut self, millis: u64, is_sent: bool, pid: u32, source: &str, destination: &str) -> &mut Self {
        let owner = (pid, Some(key(pid)));
        self.connections.udp(at(millis), is_sent, owner, 10, ends(source, destination), &mut self.facts);
        self
    }

    fn requested(&mut self, millis: u64, tcb: u64, local: &str, pid: u32) -> &mut Self {
        self.connections.requested(at(millis), tcb, ends(local, THEM), Some(key(pid)), &mut self.facts);
        self
    }

    fn ended(&mut self, millis: u64, tcb: u64, failure: Option<u32>, pid: u32) -> &mut Self {
        let owner = Some(key(pid));
        self.connections.request_ended(at(millis), tcb, ends(US, THEM), owner, failure, &mut self.facts);
        self
    }

    fn compare(&mut self, millis: u64, rows: &[TcpSocket], is_inventory: bool) -> &mut Self {
        self.connections.compare(at(millis), rows, is_inventory, |pid| Some(key(pid)), &mut self.facts);
        self
    }

    fn settle(&mut self, millis: u64) -> &mut Self {
        self.connections.settle(at(millis), &mut self.facts);
        self
    }

    /// What was told since the last time.
    fn words(&mut self) -> Vec<String> {
        let facts = std::mem::take(&mut self.facts);
        facts.iter().map(|observation| self.word(observation)).collect()
    }

    fn word(&mut self, observation: &Observation) -> String {
        let at = observation.at.boot_ns / 1_000_000;
        match &observation.fact {
            Fact::ConnectionOpened(told) => {
                assert!(!self.known.contains(&told.socket), "a name is given once");
                self.known.push(told.socket);
                let found = if told.already_open { " found" } else { "" };
                let owner = told.owner.map_or(0, |owner| owner.pid);
                let (number, protocol) = (self.known.len(), told.socket.protocol);
                format!(
                    "{at} #{number} {protocol} {} {:?} {}>{} of {owner}{found}",
                    told.direction, told.state, told.local, told.socket.remote
                )
            }
            Fact::ConnectionChanged { socket, change } => {
                let mut word = format!("{at} #{}", self.number(*socket));
                word += &change.state.map_or(String::new(), |state| format!(" {state:?}"));
                word += &change.local.map_or(String::new(), |local| format!(" at {local}"));
                word += &change.owner.map_or(String::new(), |(owner, _)| format!(" of {}", owner.pid));
                word + &change.traffic.map_or(String::new(), moved)
            }
            Fact::ConnectionClosed { socket, state, change } => {
                format!(
                    "{at} #{} {state:?}{}",
                    self.number(*socket),
                    change.traffic.map_or(String::new(), moved)
                )
            }
            Fact::Listening { owner, local, .. } => format!("{at} listens {local} {}", owner.unwrap().pid),
            other => panic!("{other:?}"),
        }
    }

    fn number(&self, socket: SocketKey) -> usize {
        self.known.iter().position(|known| *known == socket).unwrap() + 1
    }
}

fn moved(traffic: Traffic) -> String {
    format!(" {}/{}", traffic.bytes_sent, traffic.bytes_received)
}

#[test]
fn a_connection_is_told_from_its_request_to_its_end_as_one() {
    let mut told = Told::default();
    told.requested(1, 7, "0.0.0.0:0", 5).tcp(20, TcpEvent::Connected, 0, 5).ended(21, 7, None, 5);
    told.tcp(30, TcpEvent::Sent, 100, 5).tcp(40, TcpEvent::Received, 900, 5).settle(200);
    told.settle(400).tcp(500, TcpEvent::Sent, 1, 5).tcp(600, TcpEvent::Disconnected, 0, 5).settle(700);
    assert_eq!(
        told.words(),
        [
            "1 #1 tcp outbound Attempted 0.0.0.0:0>192.0.2.7:443 of 5",
            "20 #1 Established at 10.0.0.1:50000",
            "200 #1 100/900",
            "600 #1 Closed 101/900",
        ]
    );
    assert_eq!((told.connections.take_untold(), told.connections.take_unfollowed()), (0, 0));
}

#[test]
fn an_answer_that_comes_before_the_networks_own_word_is_the_same_connection() {
    let mut told = Told::default();
    told.requested(1, 7, "0.0.0.0:0", 5).requested(2, 8, "0.0.0.0:0", 5).ended(20, 8, None, 5);
    told.tcp(21, TcpEvent::Connected, 0, 5);
    let words = told.words();
    assert_eq!(words.last().unwrap(), "21 #2 Established at 10.0.0.1:50000", "{words:?}");
}

#[test]
fn an_attempt_that_fails_says_why() {
    let mut told = Told::default();
    told.requested(1, 7, "0.0.0.0:0", 5).ended(2_000, 7, Some(0xc000_0236), 5);
    told.ended(2_100, 9, Some(0xc000_00b5), 6);
    told.requested(2_200, 11, "0.0.0.0:0", 5).requested(2_300, 11, "0.0.0.0:0", 6).settle(302_400);
    assert_eq!(
        told.words(),
        [
            "1 #1 tcp outbound Attempted 0.0.0.0:0>192.0.2.7:443 of 5",
            "2000 #1 Failed(111) 0/0",
            "2100 #2 tcp outbound Failed(110) 10.0.0.1:50000>192.0.2.7:443 of 6",
            "2200 #3 tcp outbound Attempted 0.0.0.0:0>192.0.2.7:443 of 5",
            "2300 #3 Failed(0) 0/0",
            "2300 #4 tcp outbound Attempted 0.0.0.0:0>192.0.2.7:443 of 6",
            "302400 #4 Failed(0) 0/0",
        ]
    );
}

#[test]
fn an_attempt_of_another_process_is_not_taken_for_this_connection() {
    let mut told = Told::default();
    told.requested(1, 7, "0.0.0.0:0", 5).tcp(20, TcpEvent::Connected, 0, 6);
    assert_eq!(told.words()[1..], ["20 #2 tcp outbound Established 10.0.0.1:50000>192.0.2.7:443 of 6"]);
}

#[test]
fn both_ends_on_this_host_are_two_connections() {
    let mut told = Told::default();
    let (client, server) = (ends("127.0.0.1:50000", "127.0.0.1:80"), ends("127.0.0.1:80", "127.0.0.1:50000"));
    for (what, ends, pid) in [(TcpEvent::Accepted, server, 4), (TcpEvent::Connected, client, 5)] {
        told.connections.tcp(at(1), what, 0, ends, Some(key(pid)), &mut told.facts);
    }
    assert_eq!(
        told.words(),
        [
            "1 #1 tcp inbound Established 127.0.0.1:80>127.0.0.1:50000 of 4",
            "1 #2 tcp outbound Established 127.0.0.1:50000>127.0.0.1:80 of 5",
        ]
    );
}

#[test]
fn the_same_ends_used_again_are_another_connection() {
    let mut told = Told::default();
    told.tcp(1, TcpEvent::Connected, 0, 5).tcp(2, TcpEvent::Sent, 9, 5).tcp(3, TcpEvent::Connected, 0, 6);
    told.tcp(4, TcpEvent::Disconnected, 0, 6).tcp(5, TcpEvent::Connected, 0, 5);
    assert_eq!(
        told.words(),
        [
            "1 #1 tcp outbound Established 10.0.0.1:50000>192.0.2.7:443 of 5",
            "3 #1 Closed 9/0",
            "3 #2 tcp outbound Established 10.0.0.1:50000>192.0.2.7:443 of 6",
            "4 #2 Closed 0/0",
            "5 #3 tcp outbound Established 10.0.0.1:50000>192.0.2.7:443 of 5",
        ]
    );
    assert_eq!(told.connections.take_untold(), 0);
}

#[test]
fn what_moves_in_a_connection_that_nobody_told_is_told_and_counted() {
    let mut told = Told::default();
    told.compare(1, &[listening("0.0.0.0:50000", 5)], true).words();
    told.tcp(2, TcpEvent::Received, 9, 5).tcp(3, TcpEvent::Accepted, 0, 5).settle(4);
    assert_eq!(
        told.words(),
        ["2 #1 tcp inbound Established 10.0.0.1:50000>192.0.2.7:443 of 5 found", "4 #1 0/9"],
        "its beginning came later, and is no other's"
    );
    assert_eq!(told.connections.take_untold(), 1);
    assert_eq!(told.connections.take_untold(), 0);
    told.tcp(5, TcpEvent::Disconnected, 0, 5).tcp(6, TcpEvent::Received, 1, 5).words();
    assert_eq!(told.connections.take_untold(), 0, "one that is closed from here goes on");
    told.tcp(7, TcpEvent::Disconnected, 0, 5).settle(1_000_000).words();
    told.tcp(1_000_001, TcpEvent::Disconnected, 0, 5);
    assert_eq!(
        told.words(),
        [
            "1000001 #3 tcp inbound Established 10.0.0.1:50000>192.0.2.7:443 of 5 found",
            "1000001 #3 Closed 0/0"
        ]
    );
    assert_eq!(told.connections.take_untold(), 1);
}

#[test]
fn the_table_begins_what_was_not_told_and_ends_what_it_lacks() {
    let mut told = Told::default();
    let other = row("10.0.0.1:50001", "192.0.2.8:443", TcpState::Established, 6);
    let inventory = [listening("0.0.0.0:80", 4), row(US, THEM, TcpState::Established, 5), other.clone()];
    told.compare(1, &inventory, true);
    assert_eq!(
        told.words(),
        [
            "1 listens 0.0.0.0:80 4",
            "1 #1 tcp outbound Established 10.0.0.1:50000>192.0.2.7:443 of 5 found",
            "1 #2 tcp outbound Established 10.0.0.1:50001>192.0.2.8:443 of 6 found",
        ]
    );
    assert_eq!(told.connections.take_untold(), 0, "they were there before");
    let accepted = row("10.0.0.1:80", "192.0.2.9:1234", TcpState::CloseWait, 4);
    let trace = row("10.0.0.1:50009", "192.0.2.9:443", TcpState::TimeWait, 0);
    told.compare(1_000, &[inventory[0].clone(), other, accepted, trace], false);
    assert_eq!(
        told.words(),
        ["1000 #3 tcp inbound Established 10.0.0.1:80>192.0.2.9:1234 of 4 found", "1000 #1 Closed 0/0"]
    );
    assert_eq!(told.connections.take_untold(), 1);
}

#[test]
fn the_table_says_nothing_of_what_happened_after_it_was_read() {
    let mut told = Told::default();
    told.compare(1, &[], true);
    // It was read at 100: the first has ended since, the second began.
    told.tcp(50, TcpEvent::Connected, 0, 5).tcp(120, TcpEvent::Disconnected, 0, 5);
    let later = ends("10.0.0.1:50001", THEM);
    told.connections.tcp(at(110), TcpEvent::Connected, 0, later, Some(key(5)), &mut told.facts);
    told.requested(111, 7, "0.0.0.0:0", 5);
    told.words();
    let attempt = row("10.0.0.1:50002", THEM, TcpState::SynSent, 5);
    told.compare(100, &[row(US, THEM, TcpState::Established, 5), attempt], false);
    assert_eq!(told.words(), Vec::<String>::new());
    // What is left of one that ended before is no other one, but where it is established it is.
    told.compare(
        200,
        &[row(US, THEM, TcpState::FinWait2, 5), row("10.0.0.1:50001", THEM, TcpState::Established, 5)],
        false,
    );
    assert_eq!((told.words(), told.connections.take_untold()), (Vec::new(), 0));
    told.compare(
        300,
        &[row(US, THEM, TcpState::Established, 5), row("10.0.0.1:50001", THEM, TcpState::Established, 5)],
        false,
    );
    assert_eq!(told.words().len(), 1);
    assert_eq!(told.connections.take_untold(), 1);
}

#[test]
fn datagrams_to_one_other_end_are_one_flow_until_it_is_silent() {
    let mut told = Told::default();
    let dns = "192.0.2.53:53";
    told.compare(1, &[row("10.0.0.1:1", THEM, TcpState::Established, 1)], true).words();
    told.udp(2, true, 5, US, dns).udp(3, false, 5, dns, US).settle(4).udp(5, true, 6, US, dns);
    told.udp(6, true, 5, US, "192.0.2.54:53").settle(7).settle(65_003).settle(65_004);
    assert_eq!(
        told.words()[..4],
        [
            "2 #2 udp outbound Established 10.0.0.1:50000>192.0.2.53:53 of 5",
            "4 #2 10/10",
            "5 #3 udp outbound Established 10.0.0.1:50000>192.0.2.53:53 of 6",
            "6 #4 udp outbound Established 10.0.0.1:50000>192.0.2.54:53 of 5",
        ]
    );
    told.settle(65_100);
    let mut ends = told.words();
    ends.sort();
    assert_eq!(ends, ["5 #3 Closed 10/0", "6 #4 Closed 10/0"], "dated to when something moved last");
}

/// Windows before 2019 tells this end first of what is received, too.
#[test]
fn whichever_end_comes_first_this_one_is_the_local_one() {
    let mut told = Told::default();
    told.compare(1, &[row("10.0.0.1:1", THEM, TcpState::Established, 1)], true).words();
    told.udp(2, false, 5, US, "192.0.2.53:53").udp(3, false, 6, "192.0.2.53:53", US);
    told.udp(4, false, 7, "192.0.2.53:5353", "224.0.0.251:5353");
    assert_eq!(
        told.words(),
        [
            "2 #2 udp inbound Established 10.0.0.1:50000>192.0.2.53:53 of 5",
            "3 #3 udp inbound Established 10.0.0.1:50000>192.0.2.53:53 of 6",
            "4 #4 udp inbound Established 224.0.0.251:5353>192.0.2.53:5353 of 7",
        ]
    );
}

#[test]
fn a_socket_that_another_process_uses_has_another_owner() {
    let mut told = Told::default();
    told.connections.tcp(at(1), TcpEvent::Sent, 1, ends(US, THEM), None, &mut told.facts);
    told.tcp(2, TcpEvent::Connected, 0, 5);
    assert_eq!(
        told.words(),
        ["1 #1 tcp outbound Established 10.0.0.1:50000>192.0.2.7:443 of 0 found", "2 #1 of 5"]
    );
}

#[test]
fn what_is_beyond_the_bound_is_told_as_it_begins_and_counted() {
    let mut told = Told::default();
    for number in 0..=OPEN_MAX as u32 {
        let local = SocketAddr::from(([10, (number >> 16) as u8, (number >> 8) as u8, number as u8], 50_000));
        let remote = THEM.parse().unwrap();
        told.connections.tcp(at(1), TcpEvent::Connected, 0, (local, remote), None, &mut told.facts);
    }
    assert_eq!(told.connections.tcp.len(), OPEN_MAX);
    assert_eq!((told.connections.take_unfollowed(), told.connections.take_unfollowed()), (1, 0));
    let Fact::ConnectionOpened(last) = &told.facts.last().unwrap().fact else { panic!() };
    assert_eq!(last.state, FlowState::Closed);
}
