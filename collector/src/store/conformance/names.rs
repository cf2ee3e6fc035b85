//! How names are kept and what they stand for.

use std::net::IpAddr;

use alibi_proto::{
    coverage::Facet,
    event::{Batch, EventKind},
    flow::{FlowRecord, RECORD_SPAN_MAX},
    id::{ConnectionUid, HostId, ProcessUid},
    link::LinkRecord,
    name::{NAME_BYTES_MAX, NamePattern, NameResolution, NameSource, RemoteName, ServerNameRecord},
    question::{NAME_MEMORY, NamedRemotes},
    target::Target,
    time::Timestamp,
    window::Window,
};

use super::{Home, samples::*};
use crate::store::{HostQuestion, Store};

fn resolved(name: &str, aliases: &[&str], addresses: &[&str], secs: u64) -> EventKind {
    EventKind::NameResolved(Box::new(NameResolution {
        at: at(secs),
        name: name.into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ttl_s: 60,
        server: "192.0.2.53:53".parse().unwrap(),
        process: None,
        network_namespace: None,
    }))
}

fn hello(connection: Option<u8>, name: Option<&str>, remote: &str, secs: u64) -> ServerNameRecord {
    ServerNameRecord {
        at: at(secs),
        connection: connection.map(|byte| ConnectionUid::from_bytes([byte; 16])),
        name: name.map(Into::into),
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: remote.parse().unwrap(),
        network_namespace: None,
    }
}

fn pattern(text: &str) -> NamePattern {
    NamePattern::parse(text).unwrap()
}

#[track_caller]
fn check_addresses(store: &impl Store, name: &str, before: u64, want: &[&str]) {
    let found = store.addresses_of(&pattern(name), at(before), 100).unwrap();
    let want: Vec<IpAddr> = want.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!((found.rows, found.left_out), (want, 0), "{name}");
}

fn stored(store: &impl Store, kinds: Vec<EventKind>) {
    follow(store);
    store.commit(HOST, &batch(EPOCH, 1, kinds), at(2)).unwrap();
}

pub(in crate::store) fn stand_for_what_any_host_resolved<H: Home>() {
    let home = H::new();
    let store = home.open();
    stored(
        &store,
        vec![
            resolved("cloud.example.com", &["edge.example.net"], &["198.51.100.7", "2001:db8::7"], 100),
            resolved("Cloud.Example.com.", &[], &["198.51.100.8", "::ffff:198.51.100.7"], 200),
            resolved("example.com", &[], &["192.0.2.80"], 100),
            resolved("badexample.com", &[], &["192.0.2.81"], 100),
            resolved("a.b.example.com", &[], &["192.0.2.82"], 100),
            resolved("empty.example.com", &[], &[], 100),
        ],
    );
    let other = HostId::from_bytes([8; 16]);
    assert!(store.add_agent("two:1").unwrap());
    store.describe("two:1", &description(other), Some(&same_clock()), at(1)).unwrap();
    let elsewhere = vec![resolved("cloud.example.com", &[], &["198.51.100.9", "198.51.100.7"], 50)];
    store.commit(other, &batch(EPOCH, 1, elsewhere), at(2)).unwrap();

    check_addresses(
        &store,
        "cloud.example.com",
        201,
        &["198.51.100.7", "198.51.100.8", "198.51.100.9", "2001:db8::7"],
    );
    check_addresses(&store, "cloud.example.com", 200, &["198.51.100.7", "198.51.100.9", "2001:db8::7"]);
    check_addresses(&store, "cloud.example.com", 51, &["198.51.100.7", "198.51.100.9"]);
    check_addresses(&store, "cloud.example.com", 50, &[]);
    check_addresses(&store, "edge.example.net", 1_000, &["198.51.100.7", "2001:db8::7"]);
    check_addresses(&store, "example.com", 1_000, &["192.0.2.80"]);
    let below = ["192.0.2.82", "198.51.100.7", "198.51.100.8", "198.51.100.9", "2001:db8::7"];
    check_addresses(&store, "*.example.com", 1_000, &below);
    check_addresses(&store, "*.b.example.com", 1_000, &["192.0.2.82"]);
    check_addresses(&store, "empty.example.com", 1_000, &[]);
    let cut = store.addresses_of(&pattern("*.example.com"), at(1_000), 3).unwrap();
    assert_eq!((cut.rows.len(), cut.left_out), (3, 1));

    let kept = store.resolutions(&pattern("cloud.example.com"), 100).unwrap().rows;
    let of_seven: Vec<_> = kept
        .iter()
        .filter(|kept| kept.address == IpAddr::from([198, 51, 100, 7]))
        .map(|kept| (kept.host, kept.name.as_str(), kept.first, kept.last, kept.ttl_s))
        .collect();
    let name = "cloud.example.com";
    assert_eq!(of_seven, [(HOST, name, at(100), at(200), 60), (other, name, at(50), at(50), 60)]);
    assert_eq!(store.resolutions(&pattern("*.example.com"), 2).unwrap().left_out, 1);
}

pub(in crate::store) fn are_kept_whole_or_a_loss<H: Home>() {
    let home = H::new();
    let store = home.open();
    let long = "a".repeat(NAME_BYTES_MAX + 1);
    let many: Vec<String> = (0..5_000).map(|number| format!("a{number}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let odd = "\u{0}\u{fffd} é'\"%_.example";
    let mut kinds = all_complete(0);
    kinds.extend([
        resolved(odd, &[".", "..", ""], &["192.0.2.1"], 100),
        resolved(&long, &["short.example"], &["192.0.2.2"], 200),
        resolved("chain.example", &many, &["192.0.2.3"], 300),
        resolved("wide.example", &[], &["192.0.2.4"; 300], 400),
        EventKind::ServerName(Box::new(hello(None, Some(&long), "192.0.2.5:443", 500))),
        EventKind::ServerName(Box::new(hello(None, None, "192.0.2.5:443", 600))),
    ]);
    stored(&store, kinds);
    let begun: Vec<String> =
        gaps(&store, Facet::Names).iter().map(|gap| gap.rsplit_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(
        begun,
        ["200..200.000000001", "300..300.000000001", "400..400.000000001", "500..500.000000001"]
    );
    assert!(gaps(&store, Facet::Connections).is_empty());
    check_addresses(&store, "*.example", 1_000, &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]);
    check_addresses(&store, "chain.example", 1_000, &["192.0.2.3"]);
}

fn named(flow: FlowRecord, connection: u8, name: Option<(&str, NameSource)>) -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([connection; 16]),
        remote_name: name.map(|(name, source)| RemoteName { name: name.into(), source }),
        ..flow
    }
}

pub(in crate::store) fn tell_flows_by_all_that_is_known<H: Home>() {
    let home = H::new();
    let store = home.open();
    let remote = |last: u8| format!("198.51.100.{last}:443");
    let cloud = "cloud.example.com";
    let stored_flows = [
        named(flow(&remote(1), 100, 101), 1, None), // resolved
        named(flow(&remote(2), 100, 102), 2, Some((cloud, NameSource::Dns))), // by its own name
        named(flow(&remote(1), 100, 103), 3, Some((cloud, NameSource::Sni))), // both
        named(flow(&remote(3), 100, 104), 4, None), // by a ClientHello
        named(flow(&remote(3), 100, 105), 5, None), // beside it
        named(flow(&remote(4), 100, 106), 6, None), // given
        named(flow(&remote(5), 100, 107), 7, Some(("other.example", NameSource::Sni))),
        named(flow("198.51.100.1:80", 100, 108), 8, None),
        named(flow(&remote(1), 9_000, 9_001), 9, None),
    ];
    let mut kinds = flows(&stored_flows);
    let hello_of_four = hello(Some(4), Some("CLOUD.example.com"), &remote(3), 99);
    kinds.push(EventKind::ServerName(Box::new(hello_of_four.clone())));
    kinds.push(EventKind::ServerName(Box::new(hello(Some(7), Some("other.example"), &remote(5), 99))));
    stored(&store, kinds);

    let names = |name: &str, before, limit| {
        let mut found = store.server_names(&[(HOST, before)], &pattern(name), limit).unwrap();
        found.remove(&HOST).transpose().unwrap().unwrap_or_default()
    };
    let hellos = names(cloud, at(200), 10);
    assert_eq!((hellos.rows, hellos.left_out), (vec![hello_of_four.clone()], 0));
    assert!(names(cloud, at(99), 10).rows.is_empty());
    assert_eq!(names("*.example.com", at(200), 0).left_out, 1);

    let remotes = NamedRemotes {
        addresses: ["198.51.100.1".parse().unwrap()].into(),
        left_out: false,
        hellos: vec![hello_of_four],
    };
    let target = Target::parse("cloud.example.com:443", None, None).unwrap();
    let target = target.with_addresses(&["198.51.100.4", "198.51.100.4/31"]).unwrap();
    let question = question_of(target, 50, 200);
    // 5 has the same remote as the ClientHello of 4; the records of each connection will tell them apart. 7 is given too.
    let found = store.flows(HOST, &question, &remotes, 100).unwrap();
    let numbers: Vec<u8> = found.rows.iter().map(|flow| flow.connection.as_bytes()[0]).collect();
    assert_eq!((numbers, found.left_out), (vec![7, 6, 5, 4, 3, 2, 1], 0));
    for limit in 0..8 {
        let cut = store.flows(HOST, &question, &remotes, limit).unwrap();
        assert_eq!(cut.rows, found.rows[..limit.min(7)]);
        assert_eq!(cut.left_out as usize, 7 - limit.min(7), "each is counted once");
    }
    let suffix = question_of(Target::parse("*.example.com", None, None).unwrap(), 50, 200);
    let found = store.flows(HOST, &suffix, &no_names(), 100).unwrap();
    assert_eq!(found.rows.iter().map(|flow| flow.connection.as_bytes()[0]).collect::<Vec<_>>(), [3, 2]);
}

pub(in crate::store) fn tell_the_oldest_connection_without_one<H: Home>() {
    let home = H::new();
    let store = home.open();
    let span = RECORD_SPAN_MAX.as_secs();
    let long = |opened: u64, remote: &str| FlowRecord { opened: at(opened), ..flow(remote, 9_900, 10_000) };
    let sni = Some(("other.example", NameSource::Sni));
    let loopback = long(1, "127.0.0.1:443");
    let inbound =
        FlowRecord { direction: alibi_proto::flow::Direction::Inbound, ..long(2, "198.51.100.1:443") };
    let of = |uid, flow| FlowRecord { process: Some(ProcessUid::from_bytes([uid; 16])), ..flow };
    let dns = Some(("other.example", NameSource::Dns));
    let near = named(long(10_000 - span + 5, "198.51.100.1:443"), 4, dns);
    let stored_flows = [loopback, inbound, named(long(3, "198.51.100.1:443"), 3, sni), of(3, near)];
    let starts = [process(2, None, 200), process(3, None, 10_000 - span), process(4, None, 350)];
    let starts = starts.iter().map(start);
    stored(&store, starts.chain(flows(&stored_flows)).collect());
    let oldest = |from, to, port| {
        let target = Target::parse("cloud.example.com", port, None).unwrap();
        let (question, remotes) = (question_of(target, from, to), no_names());
        let asked = HostQuestion { host: HOST, question: &question, remotes: &remotes };
        store.oldest_unnamed(&[asked]).unwrap().0.get(&HOST).copied()
    };
    assert_eq!(oldest(9_000, 10_000, None), None, "of a record near the opening, the window tells enough");

    let more = [
        of(4, named(long(400, "198.51.100.1:443"), 5, dns)),
        long(9_940, "198.51.100.1:81"),
        named(long(9_900, "198.51.100.1:80"), 2, dns),
        FlowRecord { already_open: true, ..long(9_950, "198.51.100.1:22") },
        // Of these owners no start, or a later one, is on record.
        of(9, named(long(9_900, "198.51.100.1:82"), 6, dns)),
        of(3, named(long(400, "198.51.100.1:83"), 7, dns)),
        FlowRecord { process: None, ..named(long(9_900, "198.51.100.1:84"), 8, dns) },
    ];
    store.commit(HOST, &batch(EPOCH, 8, flows(&more)), at(3)).unwrap();
    assert_eq!(oldest(9_000, 10_000, None), Some(Timestamp::ZERO));
    assert_eq!(oldest(9_000, 10_000, Some(81)), Some(Timestamp::ZERO), "no answer ever gave its address");
    assert_eq!(oldest(9_000, 10_000, Some(80)), Some(at(200)), "its owner may have had it from its start");
    assert_eq!(oldest(9_000, 10_000, Some(443)), Some(at(350)));
    for port in 82..85 {
        assert_eq!(oldest(9_000, 10_000, Some(port)), Some(Timestamp::ZERO), "{port}");
    }
    assert_eq!(oldest(10_000 + span, 20_000, None), Some(Timestamp::ZERO));
    assert_eq!(oldest(10_001 + span, 20_000, None), None, "it ended long before");
    assert_eq!(oldest(9_000, 9_900, None), None, "it began after");
}

pub(in crate::store) fn are_forgotten<H: Home>() {
    let home = H::new();
    let store = home.open();
    let day = NAME_MEMORY.as_secs();
    let hello = |secs| {
        EventKind::ServerName(Box::new(hello(None, Some("cloud.example.com"), "198.51.100.7:443", secs)))
    };
    stored(
        &store,
        vec![
            resolved("cloud.example.com", &[], &["198.51.100.1"], 4_999),
            resolved("cloud.example.com", &[], &["198.51.100.2"], 5_000),
            hello(day + 4_999),
            hello(day + 5_000),
        ],
    );
    store.forget(at(day + 5_000)).unwrap();
    check_addresses(&store, "cloud.example.com", 5_000, &["198.51.100.1"]);
    let of_cloud = store.server_names(&[(HOST, Timestamp::MAX)], &pattern("cloud.example.com"), 10);
    let left = of_cloud.unwrap().remove(&HOST).unwrap().unwrap().rows;
    assert_eq!(left.iter().map(|hello| hello.at).collect::<Vec<_>>(), [at(day + 5_000)]);
    store.forget(at(day * 2 + 5_000)).unwrap();
    check_addresses(&store, "cloud.example.com", day * 9, &["198.51.100.2"]);
}

pub(in crate::store) fn leave_links_listed<H: Home>() {
    let home = H::new();
    let store = home.open();
    let link = |secs| LinkRecord {
        at: at(secs),
        interface: "eth0".into(),
        index: 2,
        present: true,
        up: true,
        running: secs % 2 == 0,
        addresses: vec!["192.0.2.7/24".into()],
        default_gateways: vec!["on-link".into()],
        network_namespace: None,
    };
    let kinds = (100..104).map(|secs| EventKind::LinkChanged(Box::new(link(secs)))).collect();
    follow(&store);
    let first = Batch { watermark: Some(at(200)), ..batch(EPOCH, 1, kinds) };
    store.commit(HOST, &first, at(2)).unwrap();
    let listed = |from, to, limit| {
        let listed = store.links(HOST, Window::new(at(from), at(to)).unwrap(), limit).unwrap();
        (listed.rows, listed.left_out)
    };
    assert_eq!(listed(101, 103, 10), (vec![link(102), link(101)], 0));
    assert_eq!(listed(0, 200, 1), (vec![link(103)], 3));
    store.forget(at(102)).unwrap();
    assert_eq!(listed(0, 200, 10), (vec![link(103), link(102)], 0));
}
