//! What is kept of the hosts' clocks.

use alibi_proto::{
    clock::{BootBegin, ClockHistory, ClockReading, Difference},
    event::{Batch, EventKind},
    id::{Epoch, HostId, Seq},
    name::{NamePattern, NameResolution},
    time::{Moment, Timestamp},
};

use super::{Home, samples::*};
use crate::store::{Store, StoreError};

const SECOND: i64 = 1_000_000_000;

/// A reading of a host that was booted at second 900, by the collector's clock; its ring holds that boot alone.
fn reading(boot_secs: u64) -> ClockReading {
    ClockReading {
        boot_id: "boot".into(),
        boot_ns: boot_secs * 1_000_000_000,
        difference: Difference::exact(900 * SECOND),
        measured: at(900 + boot_secs),
        shared: None,
        epoch: Epoch(EPOCH),
        begins: Some(vec![BootBegin { boot_id: "boot".into(), first: Seq(1) }]),
    }
}

fn moment(wall: u64, boot: u64) -> Moment {
    Moment { wall: at(wall), boot_ns: boot * 1_000_000_000 }
}

/// Follows a host of which this was read.
fn follow_by(store: &impl Store, reading: &ClockReading) {
    assert!(store.add_agent("one:1").unwrap());
    store.describe("one:1", &description(HOST), Some(reading), at(1)).unwrap();
}

/// Flows from `first_seq` on, each recorded at one of these moments.
fn recorded(first_seq: u64, moments: &[Moment]) -> Batch {
    let mut batch = batch(EPOCH, first_seq, some_flows(moments.len() as u64));
    batch.events.iter_mut().zip(moments).for_each(|(event, moment)| event.recorded = *moment);
    batch
}

pub(in crate::store) fn are_kept_as_the_stream_and_the_readings_tell<H: Home>() {
    let home = H::new();
    let store = home.open();
    assert_eq!(*store.clock(HOST).unwrap(), ClockHistory::default(), "nothing is known of nobody");
    let mut told = ClockHistory::default();
    follow_by(&store, &reading(10));
    told.measured(&reading(10));
    assert_eq!(*store.clock(HOST).unwrap(), told);
    let moments = [moment(4_510, 10), moment(4_520, 20), moment(940, 40)];
    store.commit(HOST, &recorded(1, &moments), at(2)).unwrap();
    for (seq, moment) in (1..).zip(moments) {
        told.saw(Epoch(EPOCH), Some(Seq(seq)), moment);
    }
    let sent = Batch { clock: Some(moment(990, 90)), ..watermark(EPOCH, 985) };
    // So long after the last writing that this one is written too.
    store.commit(HOST, &sent, at(20)).unwrap();
    told.saw(Epoch(EPOCH), None, moment(990, 90));
    store.describe("one:1", &description(HOST), Some(&reading(95)), at(21)).unwrap();
    told.measured(&reading(95));
    store.describe("one:1", &description(HOST), None, at(22)).unwrap();
    assert_eq!(*store.clock(HOST).unwrap(), told);
    assert_eq!(told.pieces.len(), 2, "an hour ahead, and then right");
    drop(store);
    assert_eq!(*home.open().clock(HOST).unwrap(), told);
    assert_eq!(*home.open().clock(HostId::from_bytes([9; 16])).unwrap(), ClockHistory::default());
}

pub(in crate::store) fn tell_the_moments_of_what_is_new_alone<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow_by(&store, &reading(10));
    store.commit(HOST, &recorded(1, &[moment(910, 10), moment(920, 20)]), at(2)).unwrap();
    let before = store.clock(HOST).unwrap();
    // Sent again, after a lost acknowledgement.
    store.commit(HOST, &recorded(1, &[moment(1, 10), moment(2, 20)]), at(3)).unwrap();
    let refused = store.commit(HOST, &recorded(4, &[moment(3, 30)]), at(3));
    assert!(matches!(refused, Err(StoreError::Discontinuity { got: 4, wanted: 3 })));
    assert_eq!(store.clock(HOST).unwrap(), before);
}

pub(in crate::store) fn are_written_before_what_a_clock_stamped_that_was_set<H: Home>() {
    let home = H::new();
    let store = home.open();
    follow_by(&store, &reading(10));
    let sent = |wall: u64, boot| Batch { clock: Some(moment(wall, boot)), ..watermark(EPOCH, wall - 1) };
    let pieces = |store: &H::Store| store.clock(HOST).unwrap().pieces.len();
    store.commit(HOST, &recorded(1, &[moment(910, 10)]), at(2)).unwrap();
    store.commit(HOST, &sent(911, 11), at(11)).unwrap();
    for second in 12..15 {
        assert!(store.note(HOST, &sent(900 + second, second), at(second)).is_some());
    }
    assert_eq!(pieces(&store), 1);
    // Such a watermark comes alone, and is no reason to write by itself.
    assert_eq!(store.note(HOST, &sent(4_516, 16), at(16)), None);
    store.commit(HOST, &sent(4_516, 16), at(16)).unwrap();
    assert_eq!(pieces(&store), 2);
    let until = store.clock(HOST).unwrap().pieces[0].last;
    assert_eq!(until, moment(914, 14), "the last that was noted before it was set");
    store.commit(HOST, &sent(4_517, 17), at(17)).unwrap();
    assert_eq!(
        (pieces(&store), store.clock(HOST).unwrap().steady()),
        (2, Some(Difference::exact(4_500 * SECOND)))
    );
    drop(store);
    assert_eq!(pieces(&home.open()), 2);
}

pub(in crate::store) fn tell_whether_a_name_was_resolved_before<H: Home>() {
    let home = H::new();
    let store = home.open();
    // An hour ahead, and known to a second.
    let difference = Difference::between(899 * SECOND, 901 * SECOND);
    follow_by(&store, &ClockReading { difference, ..reading(10) });
    let resolved = EventKind::NameResolved(Box::new(NameResolution {
        at: at(4_550),
        name: "cloud.example.com".into(),
        aliases: vec![],
        addresses: vec!["198.51.100.7".parse().unwrap()],
        ttl_s: 60,
        server: "192.0.2.53:53".parse().unwrap(),
        process: None,
        network_namespace: None,
    }));
    let mut told = batch(EPOCH, 1, vec![resolved]);
    told.events[0].recorded = moment(4_550, 50);
    store.commit(HOST, &told, at(2)).unwrap();
    let name = NamePattern::parse("cloud.example.com").unwrap();
    let found = |before: Timestamp| store.addresses_of(&name, before, 9).unwrap().rows.len();
    // By its own clock it was later, and in truth about second 950.
    assert_eq!([found(at(948)), found(at(950)), found(at(952)), found(at(4_000))], [0, 1, 1, 1]);
}
