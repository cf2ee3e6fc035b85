//! How the chain over a host's events is followed.

use alibi_proto::{
    chain::{Anchor, Head},
    coverage::{CHANGED_ON_DISK, Facet},
    event::{Batch, Link},
    id::{Cursor, Epoch, Seq},
};

use super::{Home, samples::*};
use crate::store::{ANCHORS_MAX, BREAKS_MAX, ResumePoint, Store, StoreError};

fn head(number: u64) -> Head {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Head::from_bytes(bytes)
}

/// A batch of so many events, by which the chain goes from `previous` to the head of its last seq.
fn linked(first_seq: u64, count: u64, previous: Head) -> Batch {
    let head = head(first_seq + count - 1);
    let link = Some(Link { previous: Some(previous), head });
    Batch { link, watermark: Some(at(first_seq * 10)), ..batch(EPOCH, first_seq, some_flows(count)) }
}

fn anchors(store: &impl Store) -> Vec<Anchor> {
    store.resume_point(HOST, Epoch(EPOCH)).unwrap().anchors
}

fn cursor(seq: u64) -> Cursor {
    Cursor { epoch: Epoch(EPOCH), seq: Seq(seq) }
}

fn begin() -> Head {
    Head::of_nothing(HOST, Epoch(EPOCH))
}

pub(in crate::store) fn is_anchored_with_what_is_stored<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    assert_eq!(anchors(&store), []);
    assert_eq!(store.chain(HOST).unwrap().anchored, None);
    store.commit(HOST, &linked(1, 2, begin()), at(10)).unwrap();
    store.commit(HOST, &linked(3, 3, head(2)), at(11)).unwrap();
    // What was stored already is no news.
    store.commit(HOST, &linked(3, 3, head(2)), at(12)).unwrap();
    let wanted = [5, 2].map(|seq| Anchor { seq: Seq(seq), head: head(seq) });
    assert_eq!(anchors(&store), wanted);
    drop(store);
    let store = home.open();
    assert_eq!(anchors(&store), wanted);
    let chain = store.chain(HOST).unwrap();
    let anchored = chain.anchored.unwrap();
    assert_eq!((anchored.epoch, anchored.anchor, anchored.at), (Epoch(EPOCH), wanted[0], at(11)));
    assert_eq!(chain.breaks, []);
}

pub(in crate::store) fn refuses_what_does_not_continue_it<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let is_broken = |batch: &Batch, seq: u64| {
        let broken = store.commit(HOST, batch, at(20));
        assert!(matches!(broken, Err(StoreError::Broken { seq: at }) if at == seq), "{broken:?}");
    };
    is_broken(&linked(1, 2, head(9)), 1);
    store.commit(HOST, &linked(1, 2, begin()), at(10)).unwrap();
    is_broken(&linked(3, 2, head(1)), 3);
    assert_eq!(
        store.agents().unwrap()[0].host.as_ref().unwrap().1.next.seq,
        Seq(3),
        "nothing of it is stored"
    );
    // After a hole nobody knows where it should go on, and from there on it must go on again.
    let after_hole = Batch { hole: hole(3, 6, 30, 40), ..linked(7, 1, head(77)) };
    store.commit(HOST, &after_hole, at(12)).unwrap();
    is_broken(&linked(8, 1, head(6)), 8);
    store.commit(HOST, &linked(8, 1, head(7)), at(13)).unwrap();
    // A hole alone leaves no head either.
    store.commit(HOST, &Batch { hole: hole(9, 9, 50, 51), ..batch(EPOCH, 10, vec![]) }, at(14)).unwrap();
    store.commit(HOST, &linked(10, 1, head(78)), at(15)).unwrap();
    let seqs: Vec<_> = anchors(&store).iter().map(|anchor| anchor.seq.0).collect();
    assert_eq!(seqs, [10, 8, 7, 2]);
}

pub(in crate::store) fn becomes_another_where_the_past_is_contradicted<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let first = Batch { watermark: Some(at(100)), ..batch(EPOCH, 1, announced(1, all_complete(0))) };
    let first = Batch { link: Some(Link { previous: None, head: head(3) }), ..first };
    store.commit(HOST, &first, at(100)).unwrap();
    let seq = 1 + first.events.len() as u64;
    let second = Batch { watermark: Some(at(200)), ..linked(seq, 2, head(3)) };
    store.commit(HOST, &second, at(200)).unwrap();
    let gaps = |store: &H::Store| gaps(store, Facet::Connections);
    assert_eq!(gaps(&store), Vec::<String>::new());

    let after = store.diverge(HOST, cursor(seq), "rewound", at(201)).unwrap();
    assert_eq!(after.next, cursor(seq));
    // What was proven before the last thing that both pasts have in common is proven still.
    let none = "none(rewound) 100..200";
    let doubted = format!("{NOT_TOLD_AGAIN} 200..1100");
    assert_eq!(gaps(&store), [none, &doubted, "none(rewound) 200..10000"]);
    let chain = store.chain(HOST).unwrap();
    assert_eq!((chain.breaks[0].seq, chain.breaks[0].reason.as_str()), (Seq(seq), "rewound"));
    let common = Anchor { seq: Seq(seq - 1), head: head(3) };
    assert_eq!(anchors(&store), [common], "what both have in common is anchored");

    // The same seqs are events of the other past, which goes on from there.
    let other = Batch { watermark: Some(at(300)), ..batch(EPOCH, seq, announced(seq, all_complete(250))) };
    let other = |previous| Batch { link: Some(Link { previous, head: head(98) }), ..other.clone() };
    assert!(matches!(store.commit(HOST, &other(Some(head(99))), at(300)), Err(StoreError::Broken { .. })));
    store.commit(HOST, &other(Some(head(3))), at(300)).unwrap();
    let wanted = [none, "none(rewound) 200..250", &doubted];
    assert_eq!(gaps(&store), wanted);
    assert_eq!(anchors(&store).len(), 2);
    drop(store);
    assert_eq!(gaps(&home.open()), wanted);
}

pub(in crate::store) fn goes_on_once_a_break_is_noted<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    store.commit(HOST, &linked(1, 2, begin()), at(10)).unwrap();
    let other = linked(3, 2, head(9));
    assert!(matches!(store.commit(HOST, &other, at(20)), Err(StoreError::Broken { seq: 3 })));
    store.diverge(HOST, cursor(3), "changed", at(20)).unwrap();
    assert_eq!(anchors(&store).len(), 1, "nothing that was told is another thing now");
    // Nobody knows the head that it goes on from.
    assert_eq!(store.commit(HOST, &other, at(21)).unwrap().next, cursor(5));
    assert_eq!(store.chain(HOST).unwrap().breaks.len(), 1);
}

pub(in crate::store) fn is_that_of_the_epoch_that_comes_back<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    store.commit(HOST, &linked(1, 3, begin()), at(10)).unwrap();
    store.commit(HOST, &linked(4, 3, head(3)), at(11)).unwrap();
    store
        .commit(HOST, &Batch { watermark: Some(at(500)), ..batch(EPOCH + 1, 1, all_complete(90)) }, at(12))
        .unwrap();
    let point = store.resume_point(HOST, Epoch(EPOCH)).unwrap();
    assert_eq!((point.next, point.anchors.len()), (cursor(7), 2));
    let never_told = store.resume_point(HOST, Epoch(EPOCH + 2)).unwrap();
    let first = Cursor { epoch: Epoch(EPOCH + 2), seq: Seq(1) };
    assert_eq!(never_told, ResumePoint { next: first, anchors: vec![] });

    // A copy of it that went another way after seq 3: what it tells under seqs that were told already is no repetition.
    let other = Batch { watermark: None, ..linked(1, 8, begin()) };
    assert!(matches!(store.commit(HOST, &other, at(13)), Err(StoreError::Broken { seq: 7 })));
    let after = store.diverge(HOST, cursor(4), "rewound", at(14)).unwrap();
    assert_eq!(after.next, cursor(4));
    assert_eq!(anchors(&store).len(), 1);
    let stored = store.agents().unwrap()[0].host.as_ref().unwrap().1;
    assert_eq!((stored.next, stored.known_until), (cursor(4), Some(at(500))));
    let before = stored.events;
    let after = store.commit(HOST, &linked(4, 5, head(3)), at(15)).unwrap();
    assert_eq!((after.next, after.events), (cursor(9), before + 5));
    let of_the_past = gaps(&store, Facet::Connections);
    assert!(of_the_past.contains(&"none(rewound) 10..500".to_owned()), "{of_the_past:?}");
    // Of one of which nothing was told, nothing is contradicted.
    assert_eq!(store.diverge(HOST, first, "rewound", at(16)).unwrap().next, cursor(9));
}

pub(in crate::store) fn is_broken_by_what_was_changed_on_the_host<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    store.commit(HOST, &linked(1, 2, begin()), at(10)).unwrap();
    for seq in 3..3 + BREAKS_MAX as u64 + 2 {
        let mut changed = Batch { hole: hole(seq, seq, 30, 40), ..batch(EPOCH, seq + 1, vec![]) };
        changed.hole.as_mut().unwrap().reason = format!("{CHANGED_ON_DISK}, in x");
        store.commit(HOST, &changed, at(seq)).unwrap();
    }
    let breaks = store.chain(HOST).unwrap().breaks;
    let seqs: Vec<_> = breaks.iter().map(|one| one.seq.0).collect();
    let last = 2 + BREAKS_MAX as u64 + 2;
    assert_eq!(seqs, (last + 1 - BREAKS_MAX as u64..=last).rev().collect::<Vec<_>>(), "the newest are kept");
}

pub(in crate::store) fn keeps_few_anchors_of_what_is_long_past<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let mut previous = begin();
    // Every ten seconds for three hours.
    for seq in 1..=1_080 {
        store.commit(HOST, &linked(seq, 1, previous), at(seq * 10)).unwrap();
        previous = head(seq);
    }
    let anchors = anchors(&store);
    assert!((16 + 50..=16 + 70).contains(&anchors.len()), "{}", anchors.len());
    assert!(anchors.len() <= ANCHORS_MAX);
    let seqs: Vec<u64> = anchors.iter().map(|anchor| anchor.seq.0).collect();
    assert_eq!(seqs[..16], (1_065..=1_080).rev().collect::<Vec<_>>(), "the newest");
    assert!(seqs.iter().filter(|seq| **seq < 700).count() <= 3, "one an hour: {seqs:?}");
    // And one of each minute between.
    assert!(seqs.windows(2).all(|pair| pair[1] < 720 || pair[0] - pair[1] <= 6), "{seqs:?}");
}
