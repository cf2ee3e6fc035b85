//! The ring as a whole, with limits so small that their edges are met all the time, against what was appended to it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::{
    chain::Head,
    coverage::Hole,
    flow::RECORD_SPAN_MAX,
    id::{Epoch, HostId},
    time::Moment,
};
use proptest::prelude::*;

use super::*;

mod damage;
mod idle;
mod past;

const HOST: HostId = HostId::from_bytes([0xa1; 16]);
const EPOCH: Epoch = Epoch(0xa11b1);
/// Five segments, each with room for a few frames.
const TINY: Options = Options { bytes_max: 5 * 700, segment_bytes: 700, record_bytes_max: 120 };
const ROOMY: Options = Options { bytes_max: 25_000, segment_bytes: 1000, record_bytes_max: 120 };

/// By what a record of these bytes can be found: what it tells, some as what is rare, and that it is a long or a short one.
fn label(bytes: &[u8]) -> Labels {
    Labels {
        kinds: if bytes.len() > 60 { 2 } else { 1 },
        keys: vec![if bytes.len().is_multiple_of(3) { Key::of_rare(1, bytes) } else { Key::of(1, bytes) }],
        from: Timestamp::ZERO,
    }
}

fn record(seq: u64, bytes: Vec<u8>) -> Record {
    let recorded = Timestamp::from_secs(1_000_000 + seq);
    let speaks_from = recorded.saturating_sub(Duration::from_secs(seq * 7 % 60));
    let labels = label(&bytes);
    Record { seq: Seq(seq), speaks_from, recorded, bytes, labels }
}

/// `count` records from `first` on, which tell of their seq and of `salt`.
fn records(first: u64, count: u64, salt: u8) -> Vec<Record> {
    (first..first + count).map(|seq| record(seq, vec![seq as u8, salt, 0xa1, b'F', 0x0d, 0x0a])).collect()
}

/// `count` records of 100 bytes from `first` on, which take as much on disk.
fn incompressible(first: u64, count: u64) -> Vec<Record> {
    let bytes =
        |seq: u64| (0..100_u64).map(move |at| Head::of_nothing(HOST, Epoch(seq * 100 + at)).as_bytes()[0]);
    (first..first + count).map(|seq| record(seq, bytes(seq).collect())).collect()
}

fn open(dir: &Path, options: Options) -> (Ring, Recovery) {
    Ring::open(dir, options, HOST, EPOCH, |bytes| Some(label(bytes))).unwrap()
}

fn moment(seconds: u64) -> Moment {
    Moment { wall: Timestamp::from_secs(seconds), boot_ns: seconds * 1_000_000_000 }
}

/// What was read of a record.
type Seen = (Seq, Vec<u8>);

fn seen(records: &[Record]) -> Vec<Seen> {
    records.iter().map(|record| (record.seq, record.bytes.clone())).collect()
}

/// Everything from `from` on. Panics unless each item begins where the one before it ended, and the chain holds.
fn read_from(view: View, from: u64) -> (Vec<Seen>, Vec<Hole>) {
    let (mut records, mut holes) = (Vec::new(), Vec::new());
    let mut reader = Reader::new(view.clone(), Seq(from));
    let mut expected = from;
    let mut head: Option<Head> = None;
    loop {
        let position = reader.position();
        match reader.next_item().unwrap() {
            Item::Frame(ChainedFrame { frame, previous, head: after }) => {
                assert!(frame.first_seq <= Seq(expected) && Seq(expected) < frame.end_seq());
                assert!(head.is_none_or(|head| previous.is_none_or(|previous| previous == head)));
                assert!(previous.is_none_or(|previous| previous.then(&frame) == after));
                head = Some(after);
                for (bytes, seq) in frame.unpack().unwrap().iter().zip(frame.first_seq.0..) {
                    if seq >= from {
                        assert_eq!(seq, expected);
                        records.push((Seq(seq), bytes.to_vec()));
                        expected += 1;
                    }
                }
            }
            Item::Hole(hole) => {
                assert_eq!((hole.first, position), (Seq(expected), Seq(expected)));
                assert!(hole.last >= hole.first && hole.from <= hole.to, "{hole:?}");
                expected = hole.last.0 + 1;
                head = None;
                holes.push(hole);
            }
            Item::CaughtUp => {
                assert_eq!((position, view.next_seq()), (Seq(expected), Seq(expected)));
                return (records, holes);
            }
        }
    }
}

fn read(view: View) -> (Vec<Seen>, Vec<Hole>) {
    read_from(view, 1)
}

/// Who looks for each of these alone finds it, or a hole in its place, or one that takes all belief away before it.
fn check_selections(view: &View, written: &[Record]) {
    // Not all of them each time, but each some time.
    let nth = written.len().wrapping_mul(7) % 5;
    for record in written.iter().skip(nth).step_by(5) {
        let times = record.recorded..=Timestamp::MAX;
        let Labels { kinds, keys, .. } = record.labels.clone();
        let selection = Selection { kinds, keys: Some(keys), times };
        let mut reader = Reader::selecting(view.clone(), Seq::FIRST, selection);
        let is_met = loop {
            match reader.next_records().unwrap() {
                Read::Records(first, columns) => {
                    let records = columns.records();
                    if records
                        .iter()
                        .zip(first.0..)
                        .any(|(bytes, seq)| Seq(seq) == record.seq && bytes == record.bytes)
                    {
                        break true;
                    }
                }
                Read::Hole(hole) if (hole.first..=hole.last).contains(&record.seq) => break true,
                Read::Hole(_) => {}
                Read::CaughtUp => break false,
            }
        };
        assert!(is_met, "{record:?}");
    }
}

/// What is read must have been written, and what is missing must be in a hole that is wide enough.
fn check_against(written: &[Record], records: &[Seen], holes: &[Hole]) {
    for (seq, bytes) in records {
        assert_eq!(Some(bytes), written.get(seq.0 as usize - 1).map(|record| &record.bytes));
    }
    for hole in holes {
        for missing in written.iter().filter(|record| (hole.first..=hole.last).contains(&record.seq)) {
            assert!(hole.from <= missing.speaks_from && missing.recorded <= hole.to, "{hole:?}, {missing:?}");
        }
    }
}

fn files_of(dir: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap_or_default())).collect()
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let names = files_of(dir).into_keys().filter(|name| name.to_string_lossy().ends_with(".segment"));
    names.map(|name| dir.join(name)).collect()
}

fn put(dir: &Path, files: &BTreeMap<OsString, Vec<u8>>) {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Sync,
    Acknowledge(prop::sample::Index),
    Reopen { clean: bool, torn_bytes: usize },
    Prepare,
    Read { from: prop::sample::Index },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0..=TINY.record_bytes_max, 0..6).prop_map(Step::Append),
        2 => Just(Step::Sync),
        2 => any::<prop::sample::Index>().prop_map(Step::Acknowledge),
        1 => (any::<bool>(), 0_usize..60).prop_map(|(clean, torn_bytes)| Step::Reopen { clean, torn_bytes }),
        2 => Just(Step::Prepare),
        2 => any::<prop::sample::Index>().prop_map(|from| Step::Read { from }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_ring_is_its_newest_records(steps in prop::collection::vec(step(), 1..40)) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("ring");
        let (mut ring, recovery) = open(&dir, TINY);
        prop_assert!(recovery.is_new);
        let mut written: Vec<Record> = Vec::new();
        let mut acknowledged_on_disk = Seq(0);
        // Evicted since the last append.
        let mut unreported = 0;
        // The same, as a reader would who was there from the start and never had to wait.
        let mut follower = Reader::new(ring.view(), Seq::FIRST);
        for step in steps {
            match step {
                Step::Append(sizes) => {
                    let next = written.len() as u64 + 1;
                    let fresh: Vec<_> =
                        sizes.iter().zip(next..).map(|(&size, seq)| record(seq, vec![seq as u8; size])).collect();
                    let first_seq = ring.first_seq();
                    let appended = match ring.append(&fresh) {
                        Err(RingError::AppendTooLarge { segments, segments_max, .. }) => {
                            prop_assert!(segments > segments_max);
                            prop_assert_eq!((ring.first_seq(), ring.next_seq()), (first_seq, Seq(next)));
                            continue;
                        }
                        appended => appended.unwrap(),
                    };
                    written.extend(fresh);
                    let evicted = first_seq.max(ring.acknowledged().next()).0..ring.first_seq().0;
                    let evicted = evicted.end.saturating_sub(evicted.start);
                    prop_assert_eq!(appended.evicted_unacknowledged, evicted + std::mem::take(&mut unreported));
                    if ring.first_seq() != first_seq {
                        prop_assert!(appended.started_segment);
                        // An eviction is on disk at once, and what was acknowledged with it.
                        acknowledged_on_disk = ring.acknowledged();
                    }
                }
                Step::Sync => {
                    ring.sync(moment(2_000_000).wall, moment(2_000_000)).unwrap();
                    prop_assert_eq!(ring.view().durable_next_seq(), ring.next_seq());
                    acknowledged_on_disk = ring.acknowledged();
                }
                Step::Acknowledge(index) => {
                    let seq = Seq(index.index(written.len() + 1) as u64);
                    let before = ring.acknowledged();
                    ring.acknowledge(seq).unwrap();
                    prop_assert_eq!(ring.acknowledged(), before.max(seq));
                    prop_assert!(ring.acknowledge(ring.next_seq()).is_err());
                }
                Step::Reopen { clean, torn_bytes } => {
                    if clean {
                        ring.mark_closed(moment(3_000_000).wall, moment(3_000_000)).unwrap();
                        acknowledged_on_disk = ring.acknowledged();
                    }
                    let first_seq = ring.first_seq();
                    drop(ring);
                    let mut cut_bytes = 0;
                    if let Some(newest) = segment_files(&dir).last() {
                        let mut bytes = fs::read(newest).unwrap();
                        // What an append may leave that was killed: the start of a frame.
                        let torn = bytes[segment::HEADER_BYTES..][..torn_bytes.min(20)].to_vec();
                        bytes.extend_from_slice(&torn);
                        cut_bytes = torn.len() as u64;
                        fs::write(newest, bytes).unwrap();
                    }
                    let recovery;
                    unreported = 0;
                    (ring, recovery) = open(&dir, TINY);
                    prop_assert_eq!(ring.first_seq(), first_seq);
                    prop_assert_eq!(ring.acknowledged(), acknowledged_on_disk);
                    prop_assert_eq!(recovery.was_closed_cleanly, clean);
                    prop_assert_eq!(recovery.cut_bytes, cut_bytes);
                    prop_assert_eq!(recovery.lost_at_end, 0);
                    prop_assert!(!recovery.is_new && !recovery.checkpoint_lost);
                    follower = Reader::new(ring.view(), follower.position());
                }
                Step::Prepare => {
                    let acknowledged = ring.acknowledged();
                    let first_seq = ring.first_seq();
                    ring.prepare().unwrap();
                    let evicted = first_seq.max(acknowledged.next()).0..ring.first_seq().0;
                    unreported += evicted.end.saturating_sub(evicted.start);
                    if ring.first_seq() != first_seq {
                        acknowledged_on_disk = acknowledged;
                    }
                }
                Step::Read { from } => {
                    let from = from.index(written.len() + 1) as u64 + 1;
                    let (records, holes) = read_from(ring.view(), from);
                    check_against(&written, &records, &holes);
                    check_selections(&ring.view(), &written);
                    // Nothing but what was evicted is missing.
                    prop_assert_eq!(records.first().map_or(ring.next_seq(), |(seq, _)| *seq), ring.first_seq().max(Seq(from)));
                    prop_assert!(holes.len() <= 1);
                    let evicted = ring.view().index().evicted;
                    if let (Some(hole), Some(span)) = (holes.first(), evicted) {
                        prop_assert_eq!(hole.from != Timestamp::ZERO, Seq(from) >= span.first);
                    }
                }
            }
            prop_assert_eq!(ring.next_seq().0, written.len() as u64 + 1);
            let bytes: u64 = segment_files(&dir).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
            prop_assert!(bytes <= TINY.bytes_max, "{bytes} bytes");
            prop_assert!(ring.view().durable_next_seq() <= ring.next_seq());
            let evicted = ring.view().index().evicted;
            if let Some(span) = evicted {
                prop_assert!(span.last.next() == ring.first_seq() && span.last > ring.acknowledged());
            }
            match follower.next_item().unwrap() {
                Item::Frame(ChainedFrame { frame, .. }) => {
                    let records = frame.unpack().unwrap();
                    let records: Vec<Seen> = records.iter().map(<[u8]>::to_vec).zip(frame.first_seq.0..).map(|(bytes, seq)| (Seq(seq), bytes)).collect();
                    check_against(&written, &records, &[]);
                }
                Item::Hole(hole) => check_against(&written, &[], &[hole]),
                Item::CaughtUp => prop_assert_eq!(follower.position(), ring.next_seq()),
            }
        }
    }
}

/// A ring of several segments with several frames each; the last `unsynced` records were not synced.
fn small_ring(dir: &Path, unsynced: u64) -> Vec<Record> {
    let (mut ring, _) = open(dir, TINY);
    let mut written = Vec::new();
    let mut next = 1;
    while next <= 18 {
        let fresh = records(next, 1 + next % 3, 0);
        next += fresh.len() as u64;
        if next <= 18 - unsynced {
            ring.append(&fresh).unwrap();
            ring.sync(moment(1_000_000 + next).wall, moment(1_000_000 + next)).unwrap();
        } else {
            ring.append(&fresh).unwrap();
        }
        written.extend(fresh);
    }
    assert_eq!(ring.first_seq(), Seq::FIRST);
    assert!(segment_files(dir).len() >= 3);
    written
}

#[test]
fn a_full_disk_changes_nothing_and_the_append_can_be_tried_again() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let grow = [records(3, 1, 1), records(3, 4, 1), records(3, 20, 1)];
    for fresh in &grow {
        for room in 0.. {
            let _ = fs::remove_dir_all(&dir);
            let (mut ring, _) = open(&dir, ROOMY);
            let before = records(1, 2, 0);
            ring.append(&before).unwrap();
            let files = files_of(&dir);
            files::fault::set_room(Some(room));
            let failed = ring.append(fresh);
            files::fault::set_room(None);
            if failed.is_ok() {
                break;
            }
            assert_eq!(files_of(&dir), files, "room for {room} bytes");
            assert_eq!((ring.next_seq(), read(ring.view()).0), (Seq(3), seen(&before)));

            // Others of the same seqs do not mix with what was left behind.
            let others = records(3, 2, 2);
            if room % 2 == 0 {
                ring.append(&others).unwrap();
                assert_eq!(read(ring.view()).0, seen(&[before.clone(), others].concat()));
            } else {
                ring.append(fresh).unwrap();
                assert_eq!(read(ring.view()).0, seen(&[before.clone(), fresh.clone()].concat()));
            }
            let before = read(ring.view());
            drop(ring);
            let (ring, recovery) = open(&dir, ROOMY);
            assert_eq!((recovery.cut_bytes, read(ring.view())), (0, before), "room for {room} bytes");
        }
    }
}

#[test]
fn an_eviction_is_reported_once_even_if_the_append_fails() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut ring, _) = open(temporary.path(), TINY);
    let mut next = 1;
    let failed = loop {
        let fresh = vec![record(next, vec![0; 100])];
        // Room for a checkpoint, not for a segment: only an append that evicts fails after it did.
        let is_full = segment_files(temporary.path()).len() >= 5;
        files::fault::set_room(is_full.then_some(4096 + 50));
        let first_seq = ring.first_seq();
        match ring.append(&fresh) {
            Ok(appended) => assert_eq!(appended.evicted_unacknowledged, 0),
            Err(_) => break (fresh, ring.first_seq().0 - first_seq.0),
        }
        next += 1;
    };
    files::fault::set_room(None);
    let (fresh, evicted) = failed;
    assert!(evicted > 0);
    let appended = ring.append(&fresh).unwrap();
    assert_eq!(appended, Appended { started_segment: true, evicted_unacknowledged: evicted });
}

#[test]
fn what_is_not_ours_or_newer_is_refused_and_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    small_ring(&dir, 0);
    let files = files_of(&dir);
    let segment = segment_files(&dir)[1].file_name().unwrap().to_owned();
    let checkpoint = OsString::from(checkpoint::NAME);
    type Change = fn(&mut Vec<u8>);
    type Check = fn(&RingError) -> bool;
    let is_newer: Check =
        |error| matches!(error, RingError::Newer { written, known, .. } if *written == known + 1);
    let is_foreign: Check = |error| matches!(error, RingError::Foreign { .. });
    let cases: [(&OsString, Change, Check); 7] = [
        (&segment, |bytes| bytes[8] = 2, is_newer),
        (&segment, |bytes| *bytes = b"dear diary".to_vec(), is_foreign),
        (&checkpoint, |bytes| bytes[8] = 2, is_newer),
        (&checkpoint, |bytes| bytes[4096 + 8] = 2, is_newer),
        (&checkpoint, |bytes| *bytes = b"dear diary".to_vec(), is_foreign),
        (&"notes.txt".into(), |bytes| *bytes = b"dear diary".to_vec(), is_foreign),
        (&"1.segment".into(), |bytes| bytes.clear(), is_foreign),
    ];
    for (name, change, is_right) in cases {
        let mut changed = files.clone();
        change(changed.entry(name.clone()).or_default());
        put(&dir, &changed);
        for error in
            [Ring::open(&dir, TINY, HOST, EPOCH, |_| None).map(drop), View::open_read_only(&dir).map(drop)]
        {
            let error = error.unwrap_err();
            assert!(is_right(&error), "{name:?}: {error:?}");
            assert!(error.to_string().contains(&*name.to_string_lossy()), "{error}");
            assert_eq!(files_of(&dir), changed);
        }
    }

    // A segment of another ring, whole as it is.
    let other = temporary.path().join("other");
    let (mut ring, _) = Ring::open(&other, TINY, HOST, Epoch(2), |_| None).unwrap();
    ring.append(&records(1, 1, 0)).unwrap();
    let mut mixed = files.clone();
    mixed.extend(files_of(&other).into_iter().filter(|(name, _)| *name != checkpoint));
    put(&dir, &mixed);
    assert!(is_foreign(&Ring::open(&dir, TINY, HOST, EPOCH, |_| None).unwrap_err()));
    assert_eq!(files_of(&dir), mixed);

    // Only what was never finished may lie around.
    put(&dir, &files);
    fs::write(dir.join("0000000000000100.segment.unfinished"), "half").unwrap();
    open(&dir, TINY);
}

#[test]
fn what_cannot_be_kept_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    for bad in [
        Options { bytes_max: 2 * TINY.segment_bytes - 1, ..TINY },
        Options { segment_bytes: 400, ..TINY },
        Options { segment_bytes: 1 << 40, bytes_max: u64::MAX, ..TINY },
        Options { record_bytes_max: 0, ..TINY },
    ] {
        assert!(
            matches!(Ring::open(dir, bad, HOST, EPOCH, |_| None), Err(RingError::Limits { .. })),
            "{bad:?}"
        );
    }
    assert!(matches!(View::open_read_only(dir), Err(RingError::Absent { .. })));
    assert!(matches!(View::open_read_only(&dir.join("absent")), Err(RingError::Absent { .. })));

    let (mut ring, _) = open(dir, TINY);
    let errors = [
        ring.append(&records(2, 1, 0)).unwrap_err().to_string(),
        ring.append(&[record(1, vec![0; 121])]).unwrap_err().to_string(),
        ring.append(&incompressible(1, 200)).unwrap_err().to_string(),
        ring.acknowledge(Seq(1)).unwrap_err().to_string(),
        Reader::new(ring.view(), Seq(2)).next_item().unwrap_err().to_string(),
    ];
    assert_eq!(errors[0], "record 2 is out of order: 1 comes next");
    assert_eq!(errors[1], "record 1 has 121 bytes, more than the 120 that a record may have");
    assert!(errors[2].ends_with("and there can be 4: append fewer at a time"), "{}", errors[2]);
    assert_eq!(errors[3], "record 1 cannot be acknowledged: the next to be written is 1");
    assert_eq!(errors[4], "cannot read from record 2: the next to be written is 1");
    assert_eq!((ring.first_seq(), ring.next_seq()), (Seq(1), Seq(1)));

    // The limit is what a segment holds, if that is less.
    let other = dir.join("other");
    let other_options = Options { record_bytes_max: 1000, ..TINY };
    let (mut ring, _) = open(&other, other_options);
    let limit = frame::record_bytes_max(other_options.payload_bytes_max());
    assert!(limit < 1000);
    ring.append(&[record(1, (0..limit).map(|at| (at * at) as u8).collect())]).unwrap();
    let error = ring.append(&[record(2, vec![0; limit + 1])]).unwrap_err();
    assert!(
        matches!(error, RingError::RecordTooLarge { seq: Seq(2), limit_bytes, .. } if limit_bytes == limit)
    );
}

#[test]
fn only_the_last_thing_done_can_be_a_clean_close() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let until = moment(77);
    let (mut ring, _) = open(dir, TINY);
    ring.append(&records(1, 2, 0)).unwrap();
    ring.acknowledge(Seq(2)).unwrap();
    ring.mark_closed(until.wall, until).unwrap();
    let view = View::open_read_only(dir).unwrap();
    assert!(view.is_closed_cleanly());
    assert_eq!(
        (view.recorded_until(), view.acknowledged(), view.next_seq()),
        (Some(until.wall), Seq(2), Seq(3))
    );

    ring.append(&records(3, 1, 0)).unwrap();
    drop(ring);
    let (mut ring, recovery) = open(dir, TINY);
    assert!(!recovery.was_closed_cleanly);
    ring.mark_closed(until.wall, until).unwrap();
    drop(ring);
    let (ring, recovery) = open(dir, TINY);
    assert_eq!((recovery.was_closed_cleanly, recovery.recorded_until), (true, Some(until.wall)));
    drop(ring);
    assert!(!open(dir, TINY).1.was_closed_cleanly);

    // Nor does damage to a newer checkpoint bring back an older one that says so.
    let (mut ring, _) = open(dir, TINY);
    ring.mark_closed(until.wall, until).unwrap();
    drop(ring);
    open(dir, TINY);
    let files = files_of(dir);
    for at in 0..2 * 4096 {
        let mut damaged = files[OsString::from(checkpoint::NAME).as_os_str()].clone();
        damaged[at] ^= 1;
        fs::write(dir.join(checkpoint::NAME), damaged).unwrap();
        assert!(
            View::open_read_only(dir).is_ok_and(|view| !view.is_closed_cleanly())
                || matches!(at % 4096, 8 | 9),
            "byte {at}"
        );
    }
}

#[test]
fn readers_follow_a_writer_on_another_thread() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut ring, _) = open(temporary.path(), TINY);
    const COUNT: u64 = 3_000;
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut reader = Reader::new(ring.view(), Seq::FIRST);
            std::thread::spawn(move || {
                let mut got = 0;
                while reader.position().0 <= COUNT {
                    let position = reader.position();
                    match reader.next_item().unwrap() {
                        Item::Frame(ChainedFrame { frame, .. }) => {
                            let batch = frame.unpack().unwrap();
                            let want = records(position.0, batch.iter().len() as u64, 0);
                            assert!(batch.iter().eq(want.iter().map(|record| record.bytes.as_slice())));
                            got += batch.iter().len();
                        }
                        Item::Hole(hole) => {
                            assert_eq!(hole.first, position);
                            assert!(hole.reason.contains("overwritten"), "{hole:?}");
                        }
                        Item::CaughtUp => std::thread::yield_now(),
                    }
                }
                got
            })
        })
        .collect();
    for first in (1..=COUNT).step_by(3) {
        ring.append(&records(first, 3, 0)).unwrap();
    }
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

#[test]
fn a_smaller_budget_is_kept_to_from_the_next_segment_on() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut ring, _) = open(temporary.path(), ROOMY);
    let written = records(1, 200, 0);
    for some in written.chunks(9) {
        ring.append(some).unwrap();
    }
    drop(ring);
    let (mut ring, _) = open(temporary.path(), TINY);
    ring.append(&records(201, 9, 0)).unwrap();
    let bytes: u64 =
        segment_files(temporary.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes <= TINY.bytes_max, "{bytes}");
    let (left, holes) = read(ring.view());
    assert_eq!(left, seen(&records(ring.first_seq().0, 210 - ring.first_seq().0, 0)));
    check_against(&written, &[], &holes);
}

#[cfg(unix)]
#[test]
fn only_the_user_can_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let temporary = tempfile::tempdir().unwrap();
    small_ring(temporary.path(), 0);
    for name in files_of(temporary.path()).keys() {
        let mode = fs::metadata(temporary.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name:?}");
    }
}

/// The segment that comes after them tells until when they may have been recorded.
#[test]
fn what_is_lost_at_the_end_stays_a_hole_that_reaches_far_enough() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let (mut ring, _) = open(&dir, ROOMY);
    ring.append(&records(1, 5, 0)).unwrap();
    let path = segment_files(&dir)[0].clone();
    let good_bytes = fs::metadata(&path).unwrap().len();
    ring.append(&records(6, 5, 0)).unwrap();
    ring.sync(moment(1_000_011).wall, moment(1_000_011)).unwrap();
    drop(ring);
    fs::File::options().write(true).open(&path).unwrap().set_len(good_bytes).unwrap();
    let (mut ring, recovery) = open(&dir, ROOMY);
    assert_eq!(recovery.lost_at_end, 5);
    let written = records(1, 10, 0);
    for _ in 0..2 {
        let (left, holes) = read(ring.view());
        assert_eq!(holes.len(), 1);
        check_against(&written, &left[..5], &holes);
        ring.append(&records(ring.next_seq().0.max(11), 2, 0)).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_full_ring_takes_no_more_of_the_disk_than_its_budget() {
    use std::os::unix::fs::MetadataExt as _;
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let options = Options::within(4 << 20);
    let (mut ring, _) = open(&dir, options);
    let mut random = fastrand::Rng::with_seed(1);
    for seq in 1..300 {
        // So large that many a one does not fit into what a segment has left.
        let bytes = (0..60_000).map(|_| random.u8(..)).collect();
        ring.append(&[Record { labels: Labels::default(), ..record(seq, bytes) }]).unwrap();
        ring.prepare().unwrap();
        let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        let disk_bytes: u64 = entries.map(|metadata| metadata.blocks() * 512).sum();
        // A file's last block is counted whole, and the checkpoint besides.
        assert!(disk_bytes <= options.bytes_max + (64 << 10), "{disk_bytes} at {seq}");
    }
}
