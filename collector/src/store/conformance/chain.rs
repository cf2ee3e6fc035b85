//! How the chain over a host's events is followed.

use alibi_proto::{
    chain::{Anchor, Head},
    coverage::{CHANGED_ON_DISK, Facet},
    event::{Batch, Link},
    id::{Epoch, Seq},
};

use super::{Home, samples::*};
use crate::store::{ANCHORS_MAX, BREAKS_MAX, Store, StoreError};

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

fn begin() -> Head {
    Head::of_nothing(HOST, Epoch(EPOCH))
}

pub(in crate::store) fn is_anchored_with_what_is_stored<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    assert_eq!(store.anchors(HOST).unwrap(), []);
    assert_eq!(store.chain(HOST).unwrap().anchored, None);
    store.commit(HOST, &linked(1, 2, begin()), at(10)).unwrap();
    store.commit(HOST, &linked(3, 3, head(2)), at(11)).unwrap();
    // What was stored already is no news.
    store.commit(HOST, &linked(3, 3, head(2)), at(12)).unwrap();
    let wanted = [5, 2].map(|seq| Anchor { seq: Seq(seq), head: head(seq) });
    assert_eq!(store.anchors(HOST).unwrap(), wanted);
    drop(store);
    let store = home.open();
    assert_eq!(store.anchors(HOST).unwrap(), wanted);
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
    let anchors: Vec<_> = store.anchors(HOST).unwrap().iter().map(|anchor| anchor.seq.0).collect();
    assert_eq!(anchors, [10, 8, 7, 2]);
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

    let after = store.diverge(HOST, Seq(seq), "rewound", at(201)).unwrap();
    assert_eq!((after.next.epoch, after.next.seq), (Epoch(EPOCH), Seq(seq)));
    // What was proven before the last thing that both pasts have in common is proven still.
    assert_eq!(gaps(&store), ["none(rewound) 100..200", "none(rewound) 200..10000"]);
    let chain = store.chain(HOST).unwrap();
    assert_eq!((chain.breaks[0].seq, chain.breaks[0].reason.as_str()), (Seq(seq), "rewound"));
    assert_eq!(store.anchors(HOST).unwrap(), [], "none of it is anchored");

    // The same seqs are events of the other past, from any head on.
    let other = Batch { watermark: Some(at(300)), ..batch(EPOCH, seq, announced(seq, all_complete(250))) };
    let other = Batch { link: Some(Link { previous: Some(head(99)), head: head(98) }), ..other };
    store.commit(HOST, &other, at(300)).unwrap();
    assert_eq!(gaps(&store), ["none(rewound) 100..200", "none(rewound) 200..250"]);
    assert_eq!(store.anchors(HOST).unwrap().len(), 1);
    drop(store);
    assert_eq!(gaps(&home.open()).len(), 2);
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
    let anchors = store.anchors(HOST).unwrap();
    assert!((16 + 50..=16 + 70).contains(&anchors.len()), "{}", anchors.len());
    assert!(anchors.len() <= ANCHORS_MAX);
    let seqs: Vec<u64> = anchors.iter().map(|anchor| anchor.seq.0).collect();
    assert_eq!(seqs[..16], (1_065..=1_080).rev().collect::<Vec<_>>(), "the newest");
    assert!(seqs.iter().filter(|seq| **seq < 700).count() <= 3, "one an hour: {seqs:?}");
    // And one of each minute between.
    assert!(seqs.windows(2).all(|pair| pair[1] < 720 || pair[0] - pair[1] <= 6), "{seqs:?}");
}
