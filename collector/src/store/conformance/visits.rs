//! Records that are visited, held against a plain look at all that was stored.

use alibi_proto::{
    flow::{FlowRecord, RECORD_SPAN_MAX},
    id::{ConnectionUid, HostId, ProcessUid},
    name::{NameSource, RemoteName},
    question::{NamedRemotes, Question},
    target::Target,
    window::Window,
};

use super::{Home, samples::*};
use crate::store::{HostQuestion, Store, Visit};

const OTHER: HostId = HostId::from_bytes([8; 16]);

fn random_flow(random: &mut fastrand::Rng) -> FlowRecord {
    let first = random.u64(0..5_000);
    let remote =
        ["10.0.0.1:443", "10.0.0.2:53", "[2001:db8::1]:443", "255.255.255.255:1", "[ffff::]:2", "0.0.0.0:1"];
    let mut flow =
        flow(remote[random.usize(0..remote.len())], first, first + random.u64(0..=RECORD_SPAN_MAX.as_secs()));
    flow.connection = ConnectionUid::from_bytes([random.u8(0..20); 16]);
    flow.process = random.bool().then(|| ProcessUid::from_bytes([random.u8(0..4); 16]));
    flow.record = random.u32(..);
    let name = RemoteName { name: "cloud.example.com".into(), source: NameSource::Dns };
    flow.remote_name = (random.u8(0..4) == 0).then_some(name);
    flow
}

/// Two hosts with some records each, in runs and not.
fn stored<H: Home>(home: &H, seed: u64) -> (H::Store, Vec<(HostId, FlowRecord)>) {
    let store = home.open();
    follow(&store);
    store.add_agent("two:1").unwrap();
    store.describe("two:1", &description(OTHER), None, at(1)).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = Vec::new();
    let mut next = [1; 2];
    for _ in 0..10 {
        for (host, next) in [HOST, OTHER].into_iter().zip(&mut next) {
            let new: Vec<_> = std::iter::repeat_with(|| random_flow(&mut random)).take(97).collect();
            store.commit(host, &batch(EPOCH, *next, flows(&new)), at(2)).unwrap();
            *next += 97;
            all.extend(new.into_iter().map(|flow| (host, flow)));
        }
    }
    (store, all)
}

#[track_caller]
fn is_visited(store: &impl Store, visit: &Visit<'_>, want: Vec<(HostId, FlowRecord)>) {
    let mut found = Vec::new();
    let damage = store.visit(visit, &mut |host, flow| found.push((host, flow.clone()))).unwrap();
    assert!(damage.is_empty());
    let sorted = |mut of: Vec<(HostId, FlowRecord)>| {
        of.sort_by_key(|(host, flow)| (*host, flow.first, flow.last, flow.record, flow.connection));
        of
    };
    let (found, want) = (sorted(found), sorted(want));
    assert_eq!(found.len(), want.len());
    assert!(found == want);
}

fn window(from: u64, to: u64) -> Window {
    Window::new(at(from), at(to)).unwrap()
}

pub(in crate::store) fn tell_each_record_that_overlaps_once<H: Home>() {
    let home = H::new();
    let (store, all) = stored(&home, 1);
    let never = HostId::from_bytes([9; 16]);
    for (one, other) in
        [((0, 10_000), (0, 10_000)), ((1_000, 1_010), (3_000, 4_000)), ((7_000, 7_001), (4_999, 5_000))]
    {
        let windows =
            [(HOST, window(one.0, one.1)), (OTHER, window(other.0, other.1)), (never, window(0, 9))];
        let overlaps = |(host, flow): &&(HostId, FlowRecord)| {
            windows.iter().any(|(of, window)| of == host && window.overlaps(flow.first, flow.last))
        };
        is_visited(&store, &Visit::All(&windows), all.iter().filter(overlaps).cloned().collect());
        is_visited(&store, &Visit::All(&windows[..0]), Vec::new());
    }
    let one = [(OTHER, window(0, 10_000))];
    is_visited(&store, &Visit::All(&one), all.iter().filter(|(host, _)| *host == OTHER).cloned().collect());
}

pub(in crate::store) fn tell_what_may_match_a_question<H: Home>() {
    let home = H::new();
    let (store, all) = stored(&home, 2);
    for target in ["10.0.0.1", "10.0.0.0/30", "::/0", "0.0.0.0/0", "cloud.example.com", "*.example.com"] {
        let target = Target::parse(target, None, None).unwrap();
        let addresses = target.name().map(|_| "10.0.0.2".parse().unwrap());
        let remotes = NamedRemotes { addresses: addresses.into_iter().collect(), ..no_names() };
        let asked = [(HOST, (1_000, 2_000)), (OTHER, (1_500, 6_000))]
            .map(|(host, (from, to))| (host, Question { target: target.clone(), window: window(from, to) }));
        let asked: Vec<HostQuestion<'_>> = asked
            .iter()
            .map(|(host, question)| HostQuestion { host: *host, question, remotes: &remotes })
            .collect();
        let is_meant = |(host, flow): &&(HostId, FlowRecord)| {
            asked.iter().any(|asked| {
                asked.host == *host
                    && asked.question.window.overlaps(flow.first, flow.last)
                    && remotes.may_match(asked.question, flow)
            })
        };
        let want: Vec<_> = all.iter().filter(is_meant).cloned().collect();
        assert!(!want.is_empty() && want.len() < all.len(), "{}", target.text());
        is_visited(&store, &Visit::Asked(&asked), want);
    }
    is_visited(&store, &Visit::Asked(&[]), Vec::new());
}

pub(in crate::store) fn tell_those_of_a_process<H: Home>() {
    let home = H::new();
    let (store, all) = stored(&home, 3);
    for byte in 0..5 {
        let (uid, window) = (ProcessUid::from_bytes([byte; 16]), window(1_000, 3_000));
        let is_its = |(host, flow): &&(HostId, FlowRecord)| {
            *host == OTHER && flow.process == Some(uid) && window.overlaps(flow.first, flow.last)
        };
        let want: Vec<_> = all.iter().filter(is_its).cloned().collect();
        assert_eq!(want.is_empty(), byte == 4);
        is_visited(&store, &Visit::Process(OTHER, uid, window), want);
    }
}
