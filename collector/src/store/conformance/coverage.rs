//! What the events of a stream come to.

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Hole, INTERVALS_MAX, Scope, Summary},
    event::{Batch, EventKind},
    id::{Epoch, Seq},
};

use super::{
    Home,
    samples::{EPOCH, HOST, at, batch, follow, gaps, some_flows},
};
use crate::store::Store;

fn change(random: &mut fastrand::Rng, next: Seq) -> EventKind {
    let from = random.u64(0..2_000);
    let scope = Scope {
        source: "ebpf".into(),
        covers: format!("way {}", random.u8(0..2)),
        cannot_see: "nothing".into(),
    };
    EventKind::CoverageChanged(CoverageChange {
        facet: Facet::ALL[random.usize(0..3)],
        grade: match random.u8(0..5) {
            0 => Grade::NotRecorded { reason: "stopped".into() },
            1 => Grade::Lost { count: random.u64(0..9), reason: format!("full {}", random.u8(0..2)) },
            2 => Grade::Sampled { period: std::time::Duration::from_secs(1) },
            3 => Grade::Doubtful { reason: "set back".into() },
            _ => Grade::Complete,
        },
        from: at(from),
        to: random.bool().then(|| at(from + random.u64(0..100))),
        scope: random.bool().then_some(scope),
        announced_from: random.bool().then_some(next),
    })
}

pub(in crate::store) fn is_what_the_same_events_come_to_in_a_ledger<H: Home>() {
    let home = H::new();
    let mut store = home.open();
    follow(&store);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut ledger, mut epoch, mut known_until) = (Summary::default(), EPOCH, None);
    for round in 0..400 {
        let is_another_ring = round > 0 && random.u8(0..30) == 0;
        if is_another_ring {
            epoch += 1;
        }
        let mut next = if is_another_ring { Seq::FIRST } else { ledger.next };
        let hole = (random.u8(0..8) == 0).then(|| {
            let (first, from) = (next, random.u64(0..2_000));
            next = Seq(first.0 + random.u64(1..9));
            let to = at(from + random.u64(0..50));
            Hole { first, last: Seq(next.0 - 1), from: at(from), to, reason: "evicted".into() }
        });
        let watermark = random.bool().then_some(at(random.u64(0..2_000)));
        let kinds = (0..random.u64(1..6)).map(|index| match random.u8(0..8) {
            0 => EventKind::Unrecognised,
            1 => some_flows(1).remove(0),
            _ => change(&mut random, Seq(next.0 + index)),
        });
        let batch = Batch { hole, watermark, ..batch(epoch, next.0, kinds.collect()) };

        if is_another_ring {
            ledger.enter_ring(Seq::FIRST, known_until, batch.begins());
        }
        batch.hole.iter().for_each(|hole| ledger.apply_hole(hole));
        batch.events.iter().for_each(|event| ledger.apply(event, known_until));
        known_until = store.commit(HOST, &batch, at(3_000 + round)).unwrap().known_until;
        if random.u8(0..4) == 0 {
            // Sent again after an acknowledgement that was lost.
            store.commit(HOST, &batch, at(3_000 + round)).unwrap();
            batch.events.iter().for_each(|event| ledger.apply(event, known_until));
        }
        if random.u8(0..50) == 0 {
            drop(store);
            store = home.open();
        }
        let progress = store.agents().unwrap()[0].host.as_ref().unwrap().1;
        assert_eq!((progress.next.epoch, progress.next.seq), (Epoch(epoch), ledger.next));
        for facet in Facet::ALL {
            assert_eq!(*store.coverage(HOST, facet).unwrap(), ledger.timeline(facet), "{facet} in {round}");
        }
    }
}

pub(in crate::store) fn is_bounded_however_much_is_lost<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let losses = INTERVALS_MAX as u64 * 2;
    let mut ledger = Summary::default();
    for first in (1..=losses).step_by(64) {
        let kinds = (first..first + 64).map(|seq| {
            EventKind::CoverageChanged(CoverageChange {
                facet: Facet::Connections,
                grade: Grade::Lost { count: 1, reason: "full".into() },
                from: at(seq * 2),
                to: Some(at(seq * 2 + 1)),
                scope: None,
                announced_from: None,
            })
        });
        let batch = batch(EPOCH, first, kinds.collect());
        store.commit(HOST, &batch, at(2)).unwrap();
        batch.events.iter().for_each(|event| ledger.apply(event, None));
    }
    let timeline = store.coverage(HOST, Facet::Connections).unwrap();
    assert!(timeline.intervals() <= INTERVALS_MAX, "{}", timeline.intervals());
    assert_eq!(*timeline, ledger.timeline(Facet::Connections));
    assert_eq!(gaps(&store, Facet::Names), ["none(recording had not begun) 0..10000"]);
}
