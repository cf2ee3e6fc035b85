//! How a host's stream is taken in.

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, INTERVALS_MAX},
    event::{Batch, EventKind},
    id::{Cursor, Epoch, HostId, Seq},
    time::Moment,
};

use super::{Home, samples::*};
use crate::store::{Progress, Store, StoreError};

const NOT_BEGUN: &str = "none(recording had not begun)";
const NOT_STATED: &str = "lost(0, events were lost, and the grade was not stated again since)";

fn stored_flows(store: &impl Store) -> usize {
    store.flows(HOST, &question("0.0.0.0/0", 0, 10_000), &no_names(), 10_000).unwrap().rows.len()
}

fn progress(store: &impl Store) -> Progress {
    store.agents().unwrap()[0].host.clone().unwrap().1
}

pub(in crate::store) fn takes_each_event_once<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let first = batch(EPOCH, 1, some_flows(5));
    let after = store.commit(HOST, &first, at(2)).unwrap();
    assert_eq!(after.next, Cursor { epoch: Epoch(EPOCH), seq: Seq(6) });
    assert_eq!((after.events, after.heard, after.known_until), (5, Some(at(2)), None));

    let again = store.commit(HOST, &first, at(3)).unwrap();
    assert_eq!(again, Progress { heard: Some(at(3)), ..after });
    let overlapping = store.commit(HOST, &batch(EPOCH, 4, some_flows(4)), at(4)).unwrap();
    assert_eq!((overlapping.next.seq, overlapping.events), (Seq(8), 7));
    assert_eq!(stored_flows(&store), 7);
    assert_eq!(progress(&store), overlapping);
}

pub(in crate::store) fn refuses_what_does_not_continue_it_and_stores_nothing_of_it<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let too_late = store.commit(HOST, &batch(EPOCH, 2, some_flows(1)), at(2));
    assert!(matches!(too_late, Err(StoreError::Discontinuity { got: 2, wanted: 1 })));

    let before = store.commit(HOST, &batch(EPOCH, 1, some_flows(2)), at(2)).unwrap();
    let mut jumping = Batch { watermark: Some(at(50)), ..batch(EPOCH, 3, some_flows(3)) };
    jumping.events.remove(1);
    let jump = store.commit(HOST, &jumping, at(3));
    assert!(matches!(jump, Err(StoreError::Discontinuity { got: 5, wanted: 4 })));
    let late_hole = Batch { hole: hole(4, 9, 1, 2), ..batch(EPOCH, 10, some_flows(1)) };
    let late_hole = store.commit(HOST, &late_hole, at(3));
    assert!(matches!(late_hole, Err(StoreError::Discontinuity { got: 4, wanted: 3 })));
    let jump_after_hole = Batch { hole: hole(3, 9, 1, 2), ..batch(EPOCH, 11, some_flows(1)) };
    let jump_after_hole = store.commit(HOST, &jump_after_hole, at(3));
    assert!(matches!(jump_after_hole, Err(StoreError::Discontinuity { got: 11, wanted: 10 })));
    let jump_in_a_new_ring = store.commit(HOST, &batch(EPOCH + 1, 3, some_flows(1)), at(3));
    assert!(matches!(jump_in_a_new_ring, Err(StoreError::Discontinuity { got: 3, wanted: 1 })));

    assert_eq!((progress(&store), stored_flows(&store)), (before, 2));
    assert_eq!(gaps(&store, Facet::Names), [format!("{NOT_BEGUN} 0..10000")]);
    assert!(store.commit(HOST, &batch(EPOCH, 3, some_flows(1)), at(4)).is_ok());
}

pub(in crate::store) fn makes_a_hole_a_loss_of_every_facet<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    store.commit(HOST, &batch(EPOCH, 1, all_complete(0)), at(2)).unwrap();
    let with_hole =
        Batch { hole: hole(2, 10, 100, 200), ..batch(EPOCH, 11, announced(11, all_complete(300))) };
    let after = store.commit(HOST, &with_hole, at(3)).unwrap();
    assert_eq!((after.next.seq, after.events), (Seq(14), 6), "what is missing is not stored");
    for facet in Facet::ALL {
        // Seq 2 and 3 are stored already.
        assert_eq!(
            gaps(&store, facet),
            ["lost(7, evicted) 100..200".to_owned(), format!("{NOT_STATED} 200..300")]
        );
    }

    let old = Batch { hole: hole(2, 13, 400, 500), ..batch(EPOCH, 14, vec![]) };
    assert_eq!(store.commit(HOST, &old, at(4)).unwrap().next.seq, Seq(14));
    assert_eq!(gaps(&store, Facet::Names).len(), 2, "nothing of this hole is missing");
    let alone = Batch { hole: hole(14, 14, 600, 601), ..batch(EPOCH, 15, vec![]) };
    assert_eq!(store.commit(HOST, &alone, at(5)).unwrap().next.seq, Seq(15));
    assert_eq!(gaps(&store, Facet::Names).len(), 4);
}

pub(in crate::store) fn stops_all_recording_where_the_ring_was_made_anew<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let first = Batch { watermark: Some(at(50)), ..batch(EPOCH, 1, all_complete(0)) };
    store.commit(HOST, &first, at(2)).unwrap();
    store.commit(HOST, &watermark(EPOCH, 60), at(3)).unwrap();

    let anew = batch(EPOCH + 9, 1, [all_complete(90), some_flows(2)].concat());
    let after = store.commit(HOST, &anew, at(4)).unwrap();
    assert_eq!(after.next, Cursor { epoch: Epoch(EPOCH + 9), seq: Seq(6) });
    assert_eq!((after.events, after.known_until), (8, Some(at(60))));
    for facet in Facet::ALL {
        assert_eq!(gaps(&store, facet), ["none(the agent's ring was made anew) 60..90"]);
    }

    let with_hole = Batch { hole: hole(1, 20, 95, 96), ..batch(EPOCH + 10, 21, all_complete(97)) };
    assert_eq!(store.commit(HOST, &with_hole, at(5)).unwrap().next.seq, Seq(24));
    assert_eq!(stored_flows(&store), 2);
}

pub(in crate::store) fn rules_nothing_out_by_the_old_ring_in_a_time_that_happens_twice<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let first = Batch { watermark: Some(at(60)), ..batch(EPOCH, 1, all_complete(0)) };
    store.commit(HOST, &first, at(2)).unwrap();
    // A new ring, on a host whose clock says 30, and may have said less before.
    let after = store.commit(HOST, &batch(EPOCH + 9, 1, all_complete(30)), at(3)).unwrap();
    assert_eq!(after.known_until, Some(at(60)));
    let twice = "none(the agent's ring was made anew, and its clock set back: this time happened twice)";
    for facet in Facet::ALL {
        assert_eq!(gaps(&store, facet), [format!("{twice} 0..60"), format!("{NOT_TOLD_AGAIN} 60..960")]);
    }
}

pub(in crate::store) fn goes_on_where_an_epoch_was_left<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    store.commit(HOST, &batch(EPOCH, 1, some_flows(5)), at(2)).unwrap();
    store.commit(HOST, &batch(EPOCH + 1, 1, some_flows(1)), at(3)).unwrap();
    // The old ring, restored from a backup.
    let after = store.commit(HOST, &batch(EPOCH, 1, some_flows(6)), at(4)).unwrap();
    assert_eq!((after.next.seq, after.events, stored_flows(&store)), (Seq(7), 7, 7));
}

pub(in crate::store) fn says_that_a_time_happened_twice_whatever_a_ring_that_comes_back_begins_with<
    H: Home,
>() {
    let recorded = |mut batch: Batch, second: u64| {
        let recorded = Moment { wall: at(second), boot_ns: second };
        batch.events.iter_mut().for_each(|event| event.recorded = recorded);
        batch
    };
    let grade = Grade::NotRecorded { reason: "stopped".into() };
    let stopped = Facet::ALL.map(|facet| standing(facet, grade.clone(), 100));
    let of_both = [false, true].map(|is_empty_first| {
        let home = H::new();
        let store = home.open();
        follow(&store);
        store.commit(HOST, &recorded(batch(EPOCH, 1, announced(1, all_complete(10))), 10), at(11)).unwrap();
        let last = Batch { watermark: Some(at(100)), ..batch(EPOCH, 4, stopped.to_vec()) };
        store.commit(HOST, &recorded(last, 100), at(100)).unwrap();
        let other =
            Batch { watermark: Some(at(200)), ..batch(EPOCH + 1, 1, announced(1, all_complete(110))) };
        store.commit(HOST, &recorded(other, 110), at(200)).unwrap();
        // The first comes back; the clock was set back to 120 meanwhile, and it records from 150 on.
        if is_empty_first {
            store.commit(HOST, &batch(EPOCH, 1, vec![]), at(250)).unwrap();
        }
        let again = Batch { watermark: Some(at(400)), ..batch(EPOCH, 7, announced(7, all_complete(150))) };
        store.commit(HOST, &recorded(again, 150), at(500)).unwrap();
        gaps(&store, Facet::Connections)
    });
    assert_eq!(of_both[0], of_both[1]);
    assert!(of_both[0].iter().any(|gap| gap.ends_with("0..200")), "{of_both:?}");
}

pub(in crate::store) fn keeps_what_it_can_read_however_much_is_lost_before_the_first_grade<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let lost =
        |n: u64| match standing(Facet::Connections, Grade::Lost { count: 1, reason: "x".into() }, n * 10) {
            EventKind::CoverageChanged(change) => {
                EventKind::CoverageChanged(CoverageChange { to: Some(at(n * 10 + 1)), ..change })
            }
            other => other,
        };
    let losses = INTERVALS_MAX as u64;
    let kinds = (1..=losses).map(lost).chain([complete(Facet::Connections, 5)]).collect();
    store.commit(HOST, &batch(EPOCH, 1, kinds), at(2)).unwrap();
    store.commit(HOST, &batch(EPOCH, losses + 2, vec![complete(Facet::Connections, 6)]), at(3)).unwrap();
    assert!(store.coverage(HOST, Facet::Connections).unwrap().intervals() <= INTERVALS_MAX);
}

fn standing(facet: Facet, grade: Grade, from: u64) -> EventKind {
    let (to, scope, announced_from) = (None, None, None);
    EventKind::CoverageChanged(CoverageChange { facet, grade, from: at(from), to, scope, announced_from })
}

pub(in crate::store) fn loses_what_it_does_not_know<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let known = Batch { watermark: Some(at(1_000)), ..batch(EPOCH, 1, all_complete(0)) };
    store.commit(HOST, &known, at(2)).unwrap();
    let after = store.commit(HOST, &batch(EPOCH, 4, vec![EventKind::Unrecognised]), at(2)).unwrap();
    assert_eq!((after.next.seq, after.events), (Seq(5), 4));
    for facet in Facet::ALL {
        let reason = "lost(1, it is of a kind that is not known here: upgrade)";
        let doubted = format!("{NOT_TOLD_AGAIN} 1000.000000001..1900.000000001");
        let until_stated = format!("{NOT_STATED} 1000.000000001..10000");
        assert_eq!(gaps(&store, facet), [format!("{reason} 100..1000.000000001"), doubted, until_stated]);
    }
    // It may have told of a connection that is open since, or that something is recorded no more.
    for (seq, gaps_left) in [(4, 3), (8, 2)] {
        let stated = announced(seq, all_complete(0));
        let next = store.agents().unwrap()[0].host.as_ref().unwrap().1.next.seq.0;
        store.commit(HOST, &batch(EPOCH, next, stated), at(3)).unwrap();
        Facet::ALL.iter().for_each(|facet| assert_eq!(gaps(&store, *facet).len(), gaps_left));
    }
}

pub(in crate::store) fn never_goes_back_in_time<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let with = |secs, batch| Batch { watermark: Some(at(secs)), ..batch };
    let known = |batch: &Batch, heard| store.commit(HOST, batch, at(heard)).unwrap().known_until;
    assert_eq!(known(&with(50, batch(EPOCH, 1, some_flows(1))), 2), Some(at(50)));
    assert_eq!(known(&with(40, batch(EPOCH, 2, some_flows(1))), 3), Some(at(50)));
    assert_eq!(known(&watermark(EPOCH, 45), 4), Some(at(50)));
    assert_eq!(known(&watermark(EPOCH, 55), 5), Some(at(55)));
    assert_eq!(known(&batch(EPOCH, 3, some_flows(1)), 6), Some(at(55)), "no watermark changes nothing");
    assert_eq!(known(&watermark(EPOCH + 1, 30), 7), Some(at(55)), "another ring either");
    assert_eq!(progress(&store).known_until, Some(at(55)));
    assert_eq!(progress(&store).heard, Some(at(7)));
}

pub(in crate::store) fn outlives_the_program<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let first =
        Batch { watermark: Some(at(50)), ..batch(EPOCH, 1, [all_complete(0), some_flows(2)].concat()) };
    store.commit(HOST, &first, at(2)).unwrap();
    let after = store.commit(HOST, &watermark(EPOCH, 60), at(3)).unwrap();
    drop(store);

    let store = home.open();
    assert_eq!(progress(&store), after);
    assert_eq!((stored_flows(&store), gaps(&store, Facet::Connections)), (2, vec![]));
    assert_eq!(store.describe("one:1", &description(HOST), None, at(4)).unwrap().next, after.next);
    assert_eq!(
        store.commit(HOST, &first, at(5)).unwrap().events,
        5,
        "sent again after a lost acknowledgement"
    );
}

pub(in crate::store) fn refuses_numbers_that_no_agent_sends<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let refused =
        |batch: &Batch| matches!(store.commit(HOST, batch, at(2)), Err(StoreError::OutOfRange { .. }));
    assert!(refused(&batch(0, 1, some_flows(1))));
    assert!(refused(&watermark(0, 5)));
    assert!(refused(&batch(u64::MAX, 1, some_flows(1))));
    assert!(refused(&Batch { hole: hole(1, u64::MAX, 1, 2), ..batch(EPOCH, 1, vec![]) }));
    assert_eq!(progress(&store).next, Cursor::default());
    assert_eq!(stored_flows(&store), 0);
}

pub(in crate::store) fn needs_a_host_that_described_itself<H: Home>() {
    let home = H::new();
    let store = home.open();
    let nobody = HostId::from_bytes([9; 16]);
    let refused = store.commit(nobody, &batch(EPOCH, 1, some_flows(1)), at(2));
    assert!(matches!(refused, Err(StoreError::UnknownHost(host)) if host == nobody));
    assert_eq!(
        *store.coverage(nobody, Facet::Connections).unwrap(),
        alibi_proto::coverage::Timeline::default()
    );
    assert!(store.flows(nobody, &question("0.0.0.0/0", 0, 10), &no_names(), 10).unwrap().rows.is_empty());
}

pub(in crate::store) fn grades_it_as_it_is_told_however_often<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    let mut random = fastrand::Rng::with_seed(1);
    let mut told = alibi_proto::coverage::Timeline::default();
    for seq in 1..300 {
        let from = random.u64(0..1_000);
        let grade = match random.u8(0..3) {
            0 => Grade::Complete,
            1 => Grade::NotRecorded { reason: "stopped".into() },
            _ => Grade::Lost { count: 1, reason: "full".into() },
        };
        let to = random.bool().then(|| at(from + random.u64(0..100)));
        let change = CoverageChange {
            facet: Facet::Connections,
            grade,
            from: at(from),
            to,
            scope: None,
            announced_from: None,
        };
        told.apply(&change);
        store.commit(HOST, &batch(EPOCH, seq, vec![EventKind::CoverageChanged(change)]), at(seq)).unwrap();
    }
    assert_eq!(*store.coverage(HOST, Facet::Connections).unwrap(), told);
    assert_eq!(*store.coverage(HOST, Facet::Names).unwrap(), alibi_proto::coverage::Timeline::default());
}

pub(in crate::store) fn notes_what_need_not_be_written<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow(&store);
    assert_eq!(store.note(HOST, &watermark(EPOCH, 40), at(2)), None, "of a ring of which nothing is stored");
    let first = Batch { watermark: Some(at(50)), ..batch(EPOCH, 1, some_flows(2)) };
    let after = store.commit(HOST, &first, at(2)).unwrap();
    let noted = Progress { heard: Some(at(3)), known_until: Some(at(60)), ..after };
    assert_eq!(store.note(HOST, &watermark(EPOCH, 60), at(3)), Some(noted));
    assert_eq!(store.note(HOST, &watermark(EPOCH, 55), at(3)), Some(noted), "it never goes back");
    assert_eq!(progress(&store), noted);
    let more = batch(EPOCH, 3, some_flows(1));
    for other in [&more, &watermark(EPOCH + 1, 70)] {
        assert_eq!(store.note(HOST, other, at(3)), None);
    }
    assert_eq!(store.commit(HOST, &more, at(4)).unwrap().known_until, Some(at(60)));
    drop(store);
    assert_eq!(progress(&home.open()).known_until, Some(at(60)));
}
