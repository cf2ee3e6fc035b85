//! How flow records are found, bounded and forgotten.

use std::net::{IpAddr, SocketAddr};

use alibi_proto::{
    coverage::Facet,
    event::Batch,
    flow::{FlowRecord, Protocol, RECORD_SPAN_MAX},
    id::{HostId, ProcessUid},
    question::Question,
    target::Target,
};

use super::{Home, samples::*};
use crate::store::{HostQuestion, Store};

const ADDRESSES: &[&str] =
    &["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.255.255.255", "192.0.2.255", "0.0.0.0", "::1", "2001:db8::1"];
const MORE_ADDRESSES: &[&str] = &["2001:db8::ffff", "2001:db8:1::1", "::ffff:10.0.0.1", "::", "fe80::1"];
const TARGETS: &[&str] = &[
    "10.0.0.1",
    "10.0.0.0/31",
    "10.0.0.0/24",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "192.0.2.255",
    "::1",
    "::/0",
    "2001:db8::/32",
    "2001:db8::/64",
    "2001:db8::/31",
    "::ffff:10.0.0.0/120",
    "::ff00:0:0/88",
    "fe80::/10",
    "0.0.0.0",
];

fn random_flow(random: &mut fastrand::Rng) -> FlowRecord {
    let addresses = [ADDRESSES, MORE_ADDRESSES].concat();
    let address: IpAddr = addresses[random.usize(0..addresses.len())].parse().unwrap();
    let first = random.u64(0..5_000);
    let mut flow = flow("10.0.0.1:1", first, first + random.u64(0..=RECORD_SPAN_MAX.as_secs()));
    // A store keeps the one form of an address; agents send no other.
    flow.remote = SocketAddr::new(address.to_canonical(), random.u16(440..444));
    flow.protocol = if random.bool() { Protocol::Tcp } else { Protocol::Udp };
    flow.record = random.u32(..);
    flow
}

fn random_question(random: &mut fastrand::Rng) -> Question {
    let port = random.bool().then(|| random.u16(440..444));
    let protocol = [None, Some(Protocol::Tcp), Some(Protocol::Udp)][random.usize(0..3)];
    let target = Target::parse(TARGETS[random.usize(0..TARGETS.len())], port, protocol).unwrap();
    let from = random.u64(0..6_000);
    question_of(target, from, from + random.u64(1..1_000))
}

/// What the trait says, word by word, over everything that was ever stored.
fn plain_search(stored: &[FlowRecord], question: &Question) -> Vec<FlowRecord> {
    let mut found: Vec<_> = stored
        .iter()
        .filter(|flow| question.target.matches(flow.protocol, flow.remote))
        .filter(|flow| flow.first < question.window.to() && flow.last >= question.looks_back_to())
        .cloned()
        .collect();
    found
        .sort_by_key(|flow| (!question.window.overlaps(flow.first, flow.last), std::cmp::Reverse(flow.last)));
    found
}

pub(in crate::store) fn are_found_as_a_plain_search_finds_them<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    assert!(store.add_agent("two:1").unwrap());
    let other = HostId::from_bytes([8; 16]);
    store.describe("two:1", &description(other), None, at(1)).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let stored: Vec<_> = std::iter::repeat_with(|| random_flow(&mut random)).take(1_500).collect();
    store.commit(HOST, &batch(EPOCH, 1, flows(&stored)), at(2)).unwrap();
    store.commit(other, &batch(EPOCH, 1, flows(&stored[..100])), at(2)).unwrap();

    let by_time = |flow: &FlowRecord| (flow.last, flow.record);
    for _ in 0..1_000 {
        let question = random_question(&mut random);
        let mut want = plain_search(&stored, &question);
        let got = store.flows(HOST, &question, &no_names(), 10_000).unwrap();
        assert_eq!(got.left_out, 0);
        let order = |flows: &[FlowRecord]| flows.iter().map(|flow| flow.last).collect::<Vec<_>>();
        assert_eq!(order(&got.rows), order(&want), "{question:?}");
        let mut got = got.rows;
        got.sort_by_key(by_time);
        want.sort_by_key(by_time);
        assert_eq!(got, want, "{question:?}");

        // Of many hosts at once, each in its own time.
        let (later, remotes) = (random_question(&mut random), no_names());
        let later = Question { target: question.target.clone(), ..later };
        let unknown = HostId::from_bytes([9; 16]);
        let asked = [(HOST, &question), (other, &later), (unknown, &question)]
            .map(|(host, question)| HostQuestion { host, question, remotes: &remotes });
        let mut all = store.flows_of_all(&asked, 20).unwrap().by_host;
        for HostQuestion { host, question, remotes } in asked {
            let one = store.flows(host, question, remotes, 20).unwrap();
            let in_all = all.remove(&host).unwrap_or_default();
            assert_eq!(
                (order(&in_all.rows), in_all.left_out),
                (order(&one.rows), one.left_out),
                "{question:?}"
            );
        }
    }
}

pub(in crate::store) fn are_cut_to_the_limit_and_counted<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let mut random = fastrand::Rng::with_seed(8);
    let stored: Vec<_> = std::iter::repeat_with(|| random_flow(&mut random)).take(500).collect();
    store.commit(HOST, &batch(EPOCH, 1, flows(&stored)), at(2)).unwrap();
    for limit in [0, 1, 2, 10, 400, 500] {
        for _ in 0..20 {
            let question = random_question(&mut random);
            let want = plain_search(&stored, &question);
            let got = store.flows(HOST, &question, &no_names(), limit).unwrap();
            assert_eq!(got.rows.len(), want.len().min(limit));
            assert_eq!(got.left_out as usize, want.len().saturating_sub(limit));
            let inside = |flow: &FlowRecord| question.window.overlaps(flow.first, flow.last);
            let (got_first, want_first) = (&got.rows, &want[..got.rows.len()]);
            for (got, want) in got_first.iter().zip(want_first) {
                assert_eq!((inside(got), got.last), (inside(want), want.last));
            }
        }
    }
}

pub(in crate::store) fn of_a_process_come_newest_first<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let uid = ProcessUid::from_bytes([2; 16]);
    let mut stored: Vec<_> = [5, 9, 1, 7].map(|last| flow("10.0.0.1:1", 0, last)).to_vec();
    stored[1].process = None;
    stored[2].process = Some(ProcessUid::from_bytes([3; 16]));
    store.commit(HOST, &batch(EPOCH, 1, flows(&stored)), at(2)).unwrap();

    let all = store.flows_of_process(HOST, uid, 10).unwrap();
    assert_eq!((all.rows, all.left_out), (vec![stored[3].clone(), stored[0].clone()], 0));
    let one = store.flows_of_process(HOST, uid, 1).unwrap();
    assert_eq!((one.rows, one.left_out), (vec![stored[3].clone()], 1));
    assert!(store.flows_of_process(HostId::from_bytes([9; 16]), uid, 1).unwrap().rows.is_empty());
}

pub(in crate::store) fn are_forgotten_with_their_coverage<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let span = RECORD_SPAN_MAX.as_secs();
    let stored = [flow("10.0.0.1:1", 1, 5_000 - span - 1), flow("10.0.0.1:1", 5_000 - span, 5_000 - span)];
    let kinds = [all_complete(0), flows(&stored)].concat();
    let first = Batch { watermark: Some(at(9_000)), ..batch(EPOCH, 1, kinds) };
    let before = store.commit(HOST, &first, at(2)).unwrap();

    store.forget(at(5_000)).unwrap();
    store.forget(at(4_000)).unwrap();
    let left = store.flows(HOST, &question("10.0.0.1", 0, 9_000), &no_names(), 10).unwrap();
    assert_eq!(left.rows, [stored[1].clone()], "a question from second 5,000 on looks back to it");
    for facet in Facet::ALL {
        assert_eq!(gaps(&store, facet), ["none(older than this collector keeps) 0..5000"]);
    }
    assert_eq!(store.agents().unwrap()[0].host.as_ref().unwrap().1, before, "the stream goes on");
    assert_eq!(store.commit(HOST, &first, at(3)).unwrap().next, before.next, "and forgets not what it had");
    assert_eq!(store.flows(HOST, &question("10.0.0.1", 0, 9_000), &no_names(), 10).unwrap().rows.len(), 1);

    store.forget(at(6_000)).unwrap();
    drop(store);
    let store = home.open();
    assert_eq!(gaps(&store, Facet::Names), ["none(older than this collector keeps) 0..6000"]);
    assert!(store.flows(HOST, &question("10.0.0.1", 0, 9_000), &no_names(), 10).unwrap().rows.is_empty());
}

pub(in crate::store) fn are_read_while_others_are_written<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let asked = question("198.51.100.7", 0, 1_000);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 0..50 {
                store.commit(HOST, &batch(EPOCH, 1 + number * 10, some_flows(10)), at(number)).unwrap();
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < 500 {
                    let now = store.flows(HOST, &asked, &no_names(), 10_000).unwrap().rows.len();
                    assert!(now >= seen && now % 10 == 0, "{now} after {seen}: a batch is seen whole");
                    seen = now;
                    std::thread::yield_now();
                }
            });
        }
        writer.join().unwrap();
    });
}
