//! The collector's store derives from a stream what the agent's ledger does, which was told of it event by event.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::time::Duration;

use alibi_agent::ledger::Ledger;
use alibi_collector::store::{SqliteStore, Store};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Hole, INTERVALS_MAX, Scope, Summary},
    event::{Batch, Event, EventKind},
    frame::Packer,
    host::HostDescription,
    id::{Epoch, HostId, Seq},
    time::{Moment, Timestamp},
    wire,
};
use prost::Message as _;

const HOST: HostId = HostId::from_bytes([3; 16]);
const BATCHES: u64 = 600;

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn change(random: &mut fastrand::Rng, now: u64, next: Seq) -> EventKind {
    // Mostly of what is just over, and sometimes of what is long past.
    let from = now.saturating_sub(if random.u8(0..8) == 0 { random.u64(0..2_000) } else { random.u64(0..5) });
    let way = ["ebpf", "netlink"][random.usize(0..2)];
    let scope = Scope { source: way.into(), covers: format!("all by {way}"), cannot_see: "tunnels".into() };
    EventKind::CoverageChanged(CoverageChange {
        facet: Facet::ALL[random.usize(0..3)],
        grade: match random.u8(0..7) {
            0 => Grade::NotRecorded { reason: "stopped".into() },
            1 => Grade::Sampled { period: Duration::from_secs(random.u64(1..3)) },
            2 | 3 => Grade::Lost { count: random.u64(0..9), reason: format!("full {}", random.u8(0..2)) },
            4 => Grade::Doubtful { reason: "set back".into() },
            _ => Grade::Complete,
        },
        from: at(from),
        to: (random.u8(0..3) > 0).then(|| at(from + random.u64(0..4))),
        scope: random.bool().then_some(scope),
        announced_from: random.bool().then_some(next),
    })
}

/// As it comes over the wire.
fn over_the_wire(batch: &Batch) -> Batch {
    let events = batch.events.iter().cloned().map(|event| wire::Event::from(event).encode_to_vec());
    let events: Vec<Vec<u8>> = events.collect();
    let payload = Packer::default().pack(&events.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let first_seq = batch.events[0].seq.0;
    let response = wire::TailResponse {
        epoch: batch.epoch.0,
        hole: batch.hole.clone().map(Into::into),
        frames: vec![wire::Frame { first_seq, count: events.len() as u32, payload }],
        head: Some(vec![1; 32]),
        watermark_ns: batch.watermark.map(Timestamp::as_nanos),
        ..Default::default()
    };
    let bytes = response.encode_to_vec();
    wire::TailResponse::decode(bytes.as_slice()).unwrap().try_into().unwrap()
}

fn restored(ledger: &Ledger) -> Ledger {
    let bytes = wire::CoverageSummary::from(ledger.summary()).encode_to_vec();
    let summary = wire::CoverageSummary::decode(bytes.as_slice()).unwrap();
    let mut restored = Ledger::default();
    restored.restore(summary.try_into().unwrap());
    restored
}

fn description(epoch: u64) -> HostDescription {
    HostDescription {
        host: HOST,
        name: "laptop".into(),
        os: "linux".into(),
        os_version: "12".into(),
        machine_id: None,
        boot_id: "boot".into(),
        booted: at(1),
        agent_version: "0.1.0".into(),
        users: vec![],
        sources: vec![],
        epoch: Epoch(epoch),
        first_seq: Seq::FIRST,
        next_seq: Seq::FIRST,
    }
}

#[test]
fn the_store_and_the_ledger_come_to_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("alibi.db")).unwrap();
    store.add_agent("one:1").unwrap();
    let mut epoch = 1;
    store.describe("one:1", &description(epoch), None, at(1)).unwrap();
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let mut ledger = Ledger::default();
    let (mut known_until, mut now) = (None, 10_000);
    for round in 0..BATCHES {
        now += random.u64(0..20);
        let is_another_ring = round > 0 && random.u8(0..100) == 0;
        let mut next = ledger.summary().next;
        if is_another_ring {
            (epoch, next) = (epoch + 1, Seq::FIRST);
        }
        let hole = (random.u8(0..20) == 0).then(|| {
            let (first, from) = (next, now - random.u64(0..50));
            next = Seq(first.0 + random.u64(1..9));
            let (from, to) = (at(from), at(from + random.u64(0..50)));
            Hole { first, last: Seq(next.0 - 1), from, to, reason: "overwritten".into() }
        });
        let watermark = random.bool().then_some(at(now));
        let events = (0..random.u64(1..20)).map(|index| Event {
            seq: Seq(next.0 + index),
            recorded: Moment { wall: at(now), boot_ns: now },
            kind: change(&mut random, now, Seq(next.0 + index)),
        });
        let events = events.collect();
        let sent = Batch { epoch: Epoch(epoch), hole, events, link: None, watermark, clock: None };
        let batch = over_the_wire(&sent);

        if is_another_ring {
            // The agent begins anew, and what it said before is told of by the collector alone.
            let mut summary: Summary = ledger.summary();
            summary.enter_ring(Seq::FIRST, known_until, batch.begins());
            ledger.restore(summary);
        }
        batch.hole.iter().for_each(|hole| ledger.replay_hole(hole));
        batch.events.iter().for_each(|event| ledger.replay(event));
        if random.u8(0..10) == 0 {
            ledger = restored(&ledger);
        }
        known_until = store.commit(HOST, &batch, at(now)).unwrap().known_until;
        if round % 10 == 9 || round + 1 == BATCHES {
            for facet in Facet::ALL {
                let timeline = store.coverage(HOST, facet).unwrap();
                assert_eq!(*timeline, ledger.summary().timeline(facet), "{facet} in {round}");
                assert!(timeline.intervals() <= INTERVALS_MAX);
            }
        }
    }
}
