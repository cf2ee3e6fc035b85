use alibi_proto::{
    coverage::Timeline,
    event::{Event, EventKind},
    host::SourceDescription,
    id::{HostBoot, HostId, Seq},
    window::Window,
};

use super::*;
use crate::{
    capture::{ConnectionChange, Fact, Observation, ObservedConnection, Report},
    ledger::PreviousRun,
    pipeline::Limits,
};

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn socket(protocol: Protocol, remote: &str) -> SocketKey {
    SocketKey { protocol, remote: end(remote), socket: 7 }
}

fn connection(port: u16) -> Connection {
    Connection::Socket(SocketKey { socket: port.into(), ..socket(Protocol::Tcp, "8.8.8.8:443") })
}

const fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn moment(secs: u64) -> Moment {
    Moment { wall: at(secs), boot_ns: secs * 1_000_000_000 }
}

#[test]
fn servers_are_known_by_name_port_or_address() {
    for (remote, hides) in [
        ("192.0.2.7:853", true),
        ("1.1.1.1:443", true),
        ("[::ffff:1.1.1.1]:443", true),
        ("[2620:fe::fe]:443", true),
        ("1.1.1.1:8443", false),
        ("1.1.1.1:53", false),
        ("192.0.2.7:443", false),
    ] {
        let address = end(remote).ip().to_canonical();
        let reason = hides.then(|| format!("encrypted DNS to {address} was used"));
        assert_eq!(hidden_behind(end(remote)), reason);
    }
    for (name, reason) in [
        ("dns.google", Some("encrypted DNS to dns.google was used")),
        ("abc123.dns.nextdns.io", Some("encrypted DNS to abc123.dns.nextdns.io was used")),
        ("cloudflare-ech.com", Some("a server name was encrypted, under the outer name cloudflare-ech.com")),
        ("notdns.google", None),
    ] {
        assert_eq!(hidden_by(name).as_deref(), reason);
    }
}

#[test]
fn a_use_is_told_once_a_minute() {
    let mut encrypted = Encrypted::default();
    let mut used =
        |secs| encrypted.is_used("it".into(), at(secs), connection(1)).map(|told| (told.from, told.to));
    assert_eq!(used(100), Some((at(100), at(160))));
    assert_eq!(used(100), None);
    assert_eq!(used(159), None);
    assert_eq!(used(160), Some((at(160), at(220))));
    // The clock was set back.
    assert_eq!(used(9), Some((at(9), at(69))));
}

#[test]
fn a_use_goes_on_while_its_connection_is_open() {
    let mut encrypted = Encrypted::default();
    encrypted.is_used("it".into(), at(100), connection(1)).unwrap();
    assert!(!encrypted.is_due(at(110)));
    assert_eq!(encrypted.renew(at(110), |_| true), []);
    assert!(encrypted.is_due(at(150)));
    let hidden = |from, to| Hidden { reason: "it".into(), from: at(from), to: at(to) };
    assert_eq!(encrypted.renew(at(150), |_| true), [hidden(150, 210)]);
    assert_eq!(encrypted.renew(at(215), |_| false), []);
    assert!(encrypted.uses.is_empty());
    // The machine slept through: what lies between is told too.
    encrypted.is_used("it".into(), at(300), connection(1)).unwrap();
    assert_eq!(encrypted.renew(at(1_000), |_| true), [hidden(360, 1_060)]);
    assert_eq!(encrypted.standing(at(1_010)), [hidden(1_010, 1_060)]);
}

#[test]
fn beyond_the_bounds_more_is_told_never_less() {
    let mut encrypted = Encrypted::default();
    for port in 0..2_000u16 {
        encrypted.is_used(format!("server {}", port % 100), at(100), connection(port));
    }
    assert!(encrypted.uses.len() <= SERVERS_MAX + 1 && encrypted.has_more);
    let others = "encrypted DNS to more than 64 servers was used";
    assert!(encrypted.uses.contains_key(others));
    // One that is looked after is open: so may be any of the others.
    assert_eq!(encrypted.renew(at(150), |open| *open == connection(7)).len(), SERVERS_MAX + 1);
    assert_eq!(encrypted.renew(at(210), |_| false), []);
}

fn opened(key: SocketKey, direction: Direction, state: FlowState, already_open: bool) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: key,
        local: end("192.0.2.1:5000"),
        owner: None,
        attribution: alibi_proto::flow::Attribution::Unknown,
        direction,
        state,
        already_open,
        traffic: None,
        interface: None,
        network_namespace: None,
    }))
}

fn became(key: SocketKey, state: FlowState) -> Fact {
    Fact::ConnectionChanged {
        socket: key,
        change: ConnectionChange { state: Some(state), ..ConnectionChange::default() },
    }
}

fn ended(key: SocketKey, state: FlowState) -> Fact {
    Fact::ConnectionClosed { socket: key, state, change: ConnectionChange::default() }
}

/// The stretches of the names facet in seconds `[0, 1000)` that are lost, after these facts, each with its second; a
/// report comes each `step` seconds.
fn hidden(facts: Vec<(u64, Fact)>, step: u64) -> Vec<(u64, u64)> {
    let boot = HostBoot::new(HostId::from_bytes([1; 16]), "boot");
    let source = SourceDescription { name: "test".into(), facets: vec![], caveat: None };
    let mut pipeline =
        Pipeline::new(boot, Limits::default(), source, Seq::FIRST, PreviousRun::None, moment(0));
    let mut timeline = Timeline::default();
    timeline.apply(&CoverageChange {
        facet: Facet::Names,
        grade: Grade::Complete,
        from: at(0),
        to: None,
        scope: None,
        announced_from: None,
    });
    let mut facts = facts.into_iter().peekable();
    for second in (0..=1_000).step_by(usize::try_from(step).unwrap()) {
        let mut observations = Vec::new();
        while let Some((when, fact)) = facts.next_if(|(when, _)| *when <= second) {
            observations.push(Observation { at: moment(when), fact });
        }
        pipeline.take(Report { observations, seen_until: moment(second) }, moment(second));
        for Event { kind, .. } in pipeline.events() {
            if let EventKind::CoverageChanged(change) = kind
                && change.facet == Facet::Names
            {
                timeline.apply(&change);
            }
        }
        // What is published as seen is either heard or told as hidden by now.
    }
    let window = Window::new(at(0), at(1_000)).unwrap();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for gap in timeline.gaps(Facet::Names, window, Some(at(1_000))) {
        let (from, to) = (gap.from.as_nanos() / 1_000_000_000, gap.to.as_nanos() / 1_000_000_000);
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

#[test]
fn a_connection_to_a_known_server_hides_names_for_as_long_as_it_is_open() {
    use FlowState::{Attempted, Closed, Established, Failed};
    let tls = socket(Protocol::Tcp, "192.0.2.7:853");
    let quic = socket(Protocol::Udp, "8.8.8.8:443");
    let https = socket(Protocol::Tcp, "[2606:4700:4700::1111]:443");
    let elsewhere = socket(Protocol::Tcp, "192.0.2.7:443");
    let covers = |found: &[(u64, u64)], from: u64, to: u64, slack: u64| {
        assert!(matches!(found, [(a, b)] if *a == from && *b >= to && *b <= to + slack), "{found:?}");
    };
    for step in [1, 7, 100] {
        // HTTP/3 counts as well as HTTP/2, and one that was open before as well as a new one.
        for (key, already_open) in [(tls, false), (quic, false), (https, true)] {
            let facts = vec![
                (100, opened(key, Direction::Outbound, Established, already_open)),
                (500, ended(key, Closed)),
            ];
            covers(&hidden(facts, step), 100, 500, 60 + 2 * step);
        }
        // Asked for at first, then there.
        let facts = vec![
            (100, opened(tls, Direction::Outbound, Attempted, false)),
            (130, became(tls, Established)),
            (300, ended(tls, Closed)),
        ];
        covers(&hidden(facts, step), 130, 300, 60 + 2 * step);
    }
    let nothing: [(u64, u64); 0] = [];
    let facts = vec![
        (100, opened(tls, Direction::Outbound, Attempted, false)),
        (130, ended(tls, Failed(111))),
        (140, opened(elsewhere, Direction::Outbound, Established, false)),
        (150, opened(https, Direction::Inbound, Established, false)),
    ];
    assert_eq!(hidden(facts, 1), nothing);
}

#[test]
fn a_hello_that_names_a_server_hides_names_for_as_long_as_its_connection_is_open() {
    let key = socket(Protocol::Tcp, "192.0.2.7:443");
    for told_socket in [None, Some(7)] {
        let hello = Fact::ServerName(Box::new(ObservedServerName {
            name: Some("dns.google".into()),
            direction: Direction::Outbound,
            socket: told_socket,
            local: end("192.0.2.1:5000"),
            remote: key.remote,
            network_namespace: None,
        }));
        let facts = vec![
            (100, opened(key, Direction::Outbound, FlowState::Established, false)),
            (100, hello),
            (500, ended(key, FlowState::Closed)),
        ];
        let found = hidden(facts, 1);
        assert!(matches!(found[..], [(100, 500..=560)]), "{found:?}");
    }
}
