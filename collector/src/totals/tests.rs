//! Sums held against a plain count, and their bounds.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;

use alibi_proto::flow::{Attribution, Direction, FlowEndReason, FlowState, Protocol, Traffic};

use super::*;

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn window() -> Window {
    Window::new(at(100), at(200)).unwrap()
}

fn record(connection: u8, first: u64, last: u64, bytes: Option<(u64, u64)>) -> FlowRecord {
    let traffic = |(bytes_sent, bytes_received)| Traffic { bytes_sent, bytes_received, ..Traffic::default() };
    FlowRecord {
        connection: ConnectionUid::from_bytes([connection; 16]),
        process: None,
        attribution: Attribution::InKernel,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: "198.51.100.7:443".parse().unwrap(),
        opened: at(first),
        already_open: false,
        first: at(first),
        last: at(last),
        traffic: bytes.map(traffic),
        state: FlowState::Closed,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: None,
    }
}

#[test]
fn sums_are_those_of_a_plain_count() {
    let mut random = fastrand::Rng::with_seed(1);
    let records: Vec<(u8, FlowRecord)> = std::iter::repeat_with(|| {
        let first = random.u64(50..199);
        let bytes = random.bool().then(|| (random.u64(0..1_000), random.u64(0..1_000)));
        let record = record(random.u8(0..8), first, random.u64(first.max(100)..=260), bytes);
        (random.u8(0..5), record)
    })
    .take(500)
    .collect();
    let mut tally = Tally::default();
    records.iter().for_each(|(key, record)| tally.add(*key, record, window()));
    let plain = |wanted: &dyn Fn(u8) -> bool| {
        let of: Vec<&FlowRecord> =
            records.iter().filter(|(key, _)| wanted(*key)).map(|(_, record)| record).collect();
        let is_at_edge = |record: &FlowRecord| record.first < at(100) || record.last >= at(200);
        let sum = |bytes: fn(&Traffic) -> u64, edges_only: bool| {
            let of = of.iter().filter(|record| !edges_only || is_at_edge(record));
            of.filter_map(|record| record.traffic.as_ref()).map(bytes).sum::<u64>()
        };
        Total {
            connections: of.iter().map(|record| record.connection).collect::<BTreeSet<_>>().len() as u64,
            connections_cut: false,
            records: of.len() as u64,
            bytes_sent: sum(|traffic| traffic.bytes_sent, false),
            bytes_received: sum(|traffic| traffic.bytes_received, false),
            bytes_sent_at_edges: sum(|traffic| traffic.bytes_sent, true),
            bytes_received_at_edges: sum(|traffic| traffic.bytes_received, true),
            unmeasured: of.iter().filter(|record| record.traffic.is_none()).count() as u64,
            times: of
                .iter()
                .map(|record| Times { first: record.first, last: record.last })
                .reduce(Times::and),
        }
    };
    assert_eq!(*tally.all(), plain(&|_| true));
    let groups: Vec<_> = tally.into_groups().collect();
    assert_eq!(groups.len(), 5);
    for (key, total) in groups {
        assert_eq!(total, plain(&|other| other == key), "{key}");
    }
}

#[test]
fn what_goes_over_a_bound_is_counted() {
    let mut tally = Tally::default();
    for key in 0..GROUPS_MAX + 3 {
        tally.add(key, &record(1, 120, 130, Some((1, 0))), window());
    }
    assert_eq!((tally.untold(), tally.all().bytes()), (3, GROUPS_MAX as u64 + 3));
    assert_eq!(tally.into_groups().count(), GROUPS_MAX);

    let mut tally = Tally::default();
    for connection in 0..=CONNECTIONS_MAX {
        tally.add((), &record(connection as u8, 120, 130, Some((1, 1))), window());
    }
    let all = tally.all().clone();
    assert_eq!((all.records, all.connections_cut), (CONNECTIONS_MAX as u64 + 1, true));
    assert!(all.connections < CONNECTIONS_MAX as u64 && all.connections > 0);
}

#[test]
fn time_is_cut_into_few_stretches_that_lose_nothing() {
    let mut random = fastrand::Rng::with_seed(2);
    for (first, last, width) in
        [(100, 100, 1), (100, 163, 1), (100, 164, 10), (0, 86_399, 3_600), (5, 50_000_000, 7 * 86_400 * 4)]
    {
        let mut buckets = Buckets::over(Times { first: at(first), last: at(last) });
        assert_eq!(buckets.width(), Duration::from_secs(width), "{first} to {last}");
        assert!(buckets.buckets.len() as u64 <= BUCKETS_MAX);
        let (mut opened, mut bytes) = (0, 0);
        for _ in 0..200 {
            let begin = random.u64(first..=last);
            let mut flow = record(1, begin, random.u64(begin..=last), Some((random.u64(..100), 1)));
            flow.record = random.u32(..2);
            opened += u64::from(flow.record == 0);
            bytes += flow.traffic.unwrap().bytes_sent;
            buckets.add(&flow);
        }
        let some: Vec<Bucket> = buckets.into_some().collect();
        assert!(some.is_sorted_by_key(|bucket| bucket.from));
        assert_eq!(
            some.iter()
                .map(|bucket| (bucket.records, bucket.bytes_received))
                .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
            (200, 200)
        );
        assert_eq!(some.iter().map(|bucket| bucket.opened).sum::<u64>(), opened);
        assert_eq!(some.iter().map(|bucket| bucket.bytes_sent).sum::<u64>(), bytes);
    }
}
