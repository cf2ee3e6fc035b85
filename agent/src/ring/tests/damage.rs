//! Damage anywhere: nothing that is read is wrong, and what is missing is told.

use super::*;
use crate::sys::testing::wine_cannot;

/// Of the places in a file, how many there are from one that is damaged to the next. All of them where a ring is quickly made;
/// on Windows, where each file that is opened costs ten times as much, the others are left to the systems that share the
/// code. Prime to the sizes of what is written, so that every field is met.
const APART: usize = if cfg!(windows) { 11 } else { 1 };

/// Where the file of this name and so many bytes is damaged.
fn places(name: &OsString, bytes: usize) -> Vec<usize> {
    // Most of a slot of the checkpoint is zeros.
    let is_checkpoint = name == checkpoint::NAME;
    let places = (0..bytes).filter(|at| !is_checkpoint || at % 4096 < 100 || at % 97 == 0);
    places.step_by(APART).collect()
}

/// A place for thousands of rings: in memory where that can be, since each of them waits for its disk.
fn workshop() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

#[test]
fn a_tail_torn_anywhere_costs_what_it_held_and_no_more() {
    let temporary = workshop();
    for unsynced in [0, 6, 18] {
        let dir = temporary.path().join(unsynced.to_string());
        let written = small_ring(&dir, unsynced);
        let files = files_of(&dir);
        let newest = segment_files(&dir).pop().unwrap();
        let name = newest.file_name().unwrap().to_owned();
        let synced_next_seq = {
            let (_, checkpoint) = checkpoint::read(&dir.join(checkpoint::NAME)).unwrap().unwrap();
            checkpoint.next_seq.0
        };
        for length in (0..files[&name].len()).step_by(APART) {
            let mut torn = files.clone();
            torn.get_mut(&name).unwrap().truncate(length);
            put(&dir, &torn);

            let view = View::open_read_only(&dir).unwrap();
            assert_eq!(files_of(&dir), torn, "a reader changes nothing");
            let (before, holes) = read(view);
            check_against(&written, &before, &holes);

            let (mut ring, recovery) = open(&dir, TINY);
            let (records_left, holes) = read(ring.view());
            assert_eq!(records_left, before);
            check_against(&written, &records_left, &holes);
            let good = records_left.last().unwrap().0.0;
            assert_eq!(ring.next_seq().0, (good + 1).max(synced_next_seq), "{length} bytes");
            assert_eq!(recovery.lost_at_end, ring.next_seq().0 - good - 1);
            assert_eq!(holes.iter().map(Hole::count).sum::<u64>(), recovery.lost_at_end);
            assert!(!recovery.was_closed_cleanly);

            // It goes on, with other records, and stays so.
            let mut expected = seen(&written[..good as usize]);
            let fresh = records(ring.next_seq().0, 5, 1);
            ring.append(&fresh).unwrap();
            expected.extend(seen(&fresh));
            check_selections(&ring.view(), &fresh);
            assert_eq!(read(ring.view()).0, expected, "{length} bytes");
            drop(ring);
            let (ring, recovery) = open(&dir, TINY);
            assert_eq!((recovery.cut_bytes, recovery.lost_at_end), (0, 0));
            assert_eq!(read(ring.view()).0, expected, "{length} bytes");
        }
    }
}

/// Where the frames of a segment end, and its seal begins, if it has one.
fn frames_end(path: &Path) -> usize {
    let sealed = segment::read_seal(path, EPOCH).unwrap();
    sealed.map_or(usize::MAX, |(_, begins)| begins as usize)
}

/// Opens a ring of which one file has been changed, reads it and goes on: nothing is wrong, and what is missing is told.
/// How many records are missing; none if the ring is refused, and left as it is.
fn missing_after(
    dir: &Path,
    written: &[Record],
    name: &OsString,
    changed: Vec<u8>,
    context: &str,
) -> Option<usize> {
    fs::write(dir.join(name), changed).unwrap();
    let files = files_of(dir);
    let opened = View::open_read_only(dir);
    assert_eq!(files_of(dir), files, "a reader changes nothing");
    let (mut ring, recovery) = match Ring::open(dir, TINY, HOST, EPOCH, |bytes| Some(label(bytes))) {
        Ok(opened) => opened,
        Err(RingError::Foreign { path } | RingError::Newer { path, .. }) => {
            assert!(opened.is_err(), "{context}");
            assert_eq!((path, files_of(dir)), (dir.join(name), files), "{context}");
            return None;
        }
        Err(error) => panic!("{context}: {error}"),
    };
    let (mut left, holes) = read(ring.view());
    check_against(written, &left, &holes);
    let next_seq = ring.next_seq().0;
    assert!(next_seq > written.len() as u64 || recovery.cut_bytes > 0, "{context}: silence");
    assert_eq!(read(opened.unwrap()).0, left, "{context}");
    let missing = written.len() - left.len();
    check_selections(&ring.view(), &written[..left.last().map_or(0, |(seq, _)| seq.0 as usize)]);
    let fresh = records(next_seq, 2, 1);
    ring.append(&fresh).unwrap();
    left.extend(seen(&fresh));
    assert_eq!(read(ring.view()).0, left, "{context}");
    Some(missing)
}

#[test]
fn a_byte_flipped_anywhere_is_refused_or_accounted_for() {
    let temporary = workshop();
    let mut refused = 0;
    for unsynced in [0, 6, 18] {
        let dir = temporary.path().join(unsynced.to_string());
        let written = small_ring(&dir, unsynced);
        let files = files_of(&dir);
        for (name, bytes) in &files {
            let is_checkpoint = name == checkpoint::NAME;
            put(&dir, &files);
            let frames_end = frames_end(&dir.join(name));
            for at in places(name, bytes.len()) {
                put(&dir, &files);
                let mut flipped = bytes.clone();
                flipped[at] ^= if at % 2 == 0 { 0xff } else { 1 << (at % 8) };
                let context = format!("byte {at} of {}", name.to_string_lossy());
                match missing_after(&dir, &written, name, flipped, &context) {
                    None => refused += 1,
                    Some(missing) if !is_checkpoint => {
                        let is_frame = (segment::HEADER_BYTES..frames_end).contains(&at);
                        assert!(
                            (1..=3).contains(&missing) || !is_frame && missing == 0,
                            "{context}: {missing}"
                        );
                    }
                    Some(_) => {}
                }
            }
        }
    }
    assert!(refused > 0);
}

/// Of the newest segment, see [`a_tail_torn_anywhere_costs_what_it_held_and_no_more`].
#[test]
fn a_file_cut_anywhere_costs_what_it_held_and_no_more() {
    let temporary = workshop();
    for unsynced in [0, 6, 18] {
        let dir = temporary.path().join(unsynced.to_string());
        let written = small_ring(&dir, unsynced);
        let files = files_of(&dir);
        let newest = segment_files(&dir).pop().unwrap();
        let others = files.iter().filter(|(name, _)| Some(name.as_os_str()) != newest.file_name());
        for (name, bytes) in others {
            put(&dir, &files);
            let frames_end = frames_end(&dir.join(name));
            let mut missing_most = 0;
            for length in places(name, bytes.len()).into_iter().rev() {
                put(&dir, &files);
                let context = format!("{length} bytes of {}", name.to_string_lossy());
                let cut = bytes[..length].to_vec();
                let missing = missing_after(&dir, &written, name, cut, &context).expect("it is ours");
                assert!(missing >= missing_most, "{context}: {missing}");
                // The seal can be missed.
                assert!(
                    name == checkpoint::NAME || (missing > 0) == (length < frames_end),
                    "{context}: {missing}"
                );
                missing_most = missing;
            }
        }
    }
}

#[test]
fn a_damaged_frame_is_a_hole_of_its_records_and_their_time() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let (mut ring, _) = open(dir, ROOMY);
    let written = records(1, 7, 0);
    ring.append(&written[..2]).unwrap();
    let damaged_at = fs::metadata(&segment_files(dir)[0]).unwrap().len() as usize;
    ring.append(&written[2..5]).unwrap();
    ring.append(&written[5..]).unwrap();
    // Whether its header, which says what is in it, or its payload.
    for at in [damaged_at + 6, damaged_at + frame::HEADER_BYTES + 3] {
        let path = &segment_files(dir)[0];
        let good = fs::read(path).unwrap();
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        fs::write(path, bytes).unwrap();
        let (left, holes) = read(ring.view());
        assert_eq!(left, seen(&[&written[..2], &written[5..]].concat()));
        let reason = "damaged on disk, in 0000000000000001.segment".into();
        let from = written[1].recorded.saturating_sub(RECORD_SPAN_MAX);
        assert_eq!(holes, [Hole { first: Seq(3), last: Seq(5), from, to: written[5].recorded, reason }]);
        fs::write(path, good).unwrap();
    }
}

#[test]
fn a_segment_that_is_gone_is_a_hole() {
    let temporary = tempfile::tempdir().unwrap();
    let written = small_ring(temporary.path(), 0);
    let segments = segment_files(temporary.path());
    for gone in &segments {
        let bytes = fs::read(gone).unwrap();
        let (ring, _) = open(temporary.path(), TINY);
        fs::remove_file(gone).unwrap();
        // Under the eyes of the writer, and before it is opened.
        let mut views = vec![ring.view()];
        if gone.exists() && wine_cannot("take away the name of a file that is open") {
            views.clear();
            drop(ring);
            assert!(!gone.exists());
        }
        views.push(View::open_read_only(temporary.path()).unwrap());
        for (records, holes) in views.into_iter().map(read) {
            check_against(&written, &records, &holes);
            assert_eq!(holes.len(), 1);
            assert_eq!(records.len() as u64 + holes[0].count(), written.len() as u64);
        }
        fs::write(gone, bytes).unwrap();
    }
}

#[test]
fn a_lost_checkpoint_costs_no_record() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let written = small_ring(dir, 0);
    fs::remove_file(dir.join(checkpoint::NAME)).unwrap();
    let (ring, recovery) = Ring::open(dir, TINY, HOST, Epoch(99), |bytes| Some(label(bytes))).unwrap();
    assert_eq!((ring.epoch(), ring.next_seq()), (EPOCH, Seq(written.len() as u64 + 1)));
    assert!(recovery.checkpoint_lost && recovery.recorded_until.is_none());
    assert_eq!(read(ring.view()), (seen(&written), vec![]));
}

/// Whoever puts frames with good checksums where they cannot have been does not stop who reads.
#[test]
fn a_frame_of_seqs_that_cannot_be_there_is_damage() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let written = small_ring(&dir, 0);
    let files = files_of(&dir);
    let last = written.len() as u64;
    let head = View::open_read_only(&dir).unwrap().index().head;
    let segments = segment_files(&dir);
    for (path, is_newest) in [(&segments[0], false), (segments.last().unwrap(), true)] {
        let name = path.file_name().unwrap();
        let end = frames_end(path).min(files[name].len());
        for first_seq in
            [0, 1, last - 1, last + 1, last + 9, SEQ_MAX.0 - 1, SEQ_MAX.0, u64::MAX - 2, u64::MAX]
        {
            let record = Record { seq: Seq(first_seq), ..record(last + 1, vec![7; 9]) };
            let packer = &mut alibi_proto::frame::Packer::default();
            let forged = frame::encode(EPOCH, head, &[record], 500, packer).remove(0).bytes;
            let mut changed = files.clone();
            let bytes = changed.get_mut(name).unwrap();
            bytes.splice(end..end, forged);
            put(&dir, &changed);
            let context = format!("seq {first_seq}, in the newest: {is_newest}");

            // What may be the next is believed, as the writer may have written it.
            let may_be = is_newest && (last + 1..SEQ_MAX.0).contains(&first_seq);
            let (mut ring, recovery) = open(&dir, TINY);
            let (mut left, holes) = read(ring.view());
            left.retain(|(seq, _)| seq.0 <= last);
            assert_eq!(left, seen(&written), "{context}");
            assert_eq!(holes.len(), usize::from(may_be && first_seq > last + 1), "{context}");
            assert_eq!(recovery.cut_bytes > 0, is_newest && !may_be, "{context}");
            assert_eq!(ring.next_seq(), Seq(if may_be { first_seq + 1 } else { last + 1 }), "{context}");
            if first_seq < SEQ_MAX.0 - 1 {
                let fresh = records(ring.next_seq().0, 2, 1);
                ring.append(&fresh).unwrap();
                let (left, _) = read(ring.view());
                assert!(left.ends_with(&seen(&fresh)), "{context}");
            }
        }
    }
}

/// Found by fuzzing: a header that holds, of a frame that does not, with seqs that are yet to come.
#[test]
fn a_damaged_frame_that_claims_seqs_to_come_keeps_none_from_being_read() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let (mut ring, _) = open(&dir, ROOMY);
    let written = records(1, 4, 0);
    ring.append(&written[..2]).unwrap();
    let path = segment_files(&dir)[0].clone();
    let end = fs::metadata(&path).unwrap().len() as usize;
    ring.append(&written[2..]).unwrap();
    drop(ring);
    let head = View::open_read_only(&dir).unwrap().index().head;
    let packer = &mut alibi_proto::frame::Packer::default();
    let mut forged = frame::encode(EPOCH, head, &records(5, 3, 9), 500, packer).remove(0).bytes;
    *forged.last_mut().unwrap() ^= 1;
    let mut bytes = fs::read(&path).unwrap();
    bytes.splice(end..end, forged);
    fs::write(&path, bytes).unwrap();
    let (mut ring, _) = open(&dir, ROOMY);
    let fresh = records(5, 3, 1);
    ring.append(&fresh).unwrap();
    assert_eq!(read(ring.view()), (seen(&[written, fresh].concat()), vec![]));
    ring.sync(moment(1_000_100).wall, moment(1_000_100)).unwrap();
    let anchor = ring.view().anchor();
    ring.append(&records(8, 1, 1)).unwrap();
    assert_eq!(ring.view().compare(&anchor).unwrap(), Standing::Same);
}

/// Found by fuzzing: a seal of another segment at the end of the newest.
#[test]
fn a_seal_that_tells_of_earlier_records_is_not_believed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let written = small_ring(&dir, 0);
    let segments = segment_files(&dir);
    let (_, begins) = segment::read_seal(&segments[0], EPOCH).unwrap().unwrap();
    let seal = fs::read(&segments[0]).unwrap().split_off(begins as usize);
    let newest = segments.last().unwrap();
    let bytes = [fs::read(newest).unwrap(), seal].concat();
    // Its frames are there, or none is.
    for length in [bytes.len(), segment::HEADER_BYTES] {
        let mut bytes = bytes.clone();
        let end = fs::metadata(newest).unwrap().len() as usize;
        bytes.drain(length.min(end)..end);
        let other = temporary.path().join(length.to_string());
        put(&other, &files_of(&dir));
        fs::write(other.join(newest.file_name().unwrap()), bytes).unwrap();
        fs::remove_file(other.join(checkpoint::NAME)).unwrap();
        let (mut ring, _) = Ring::open(&other, TINY, HOST, EPOCH, |bytes| Some(label(bytes))).unwrap();
        let first_seq = segment::first_seq_of(newest.file_name().unwrap().to_str().unwrap()).unwrap();
        assert!(ring.next_seq() >= first_seq, "{length}");
        let (left, holes) = read(ring.view());
        check_against(&written, &left, &holes);
        let fresh = records(ring.next_seq().0, 2, 1);
        ring.append(&fresh).unwrap();
        assert_eq!(read(ring.view()).0, [left, seen(&fresh)].concat(), "{length}");
    }
}

/// It is damage, and neither keeps the ring from being opened nor a reader from going on.
#[test]
fn what_the_disk_cannot_read_is_a_hole() {
    let temporary = workshop();
    let dir = temporary.path().join("ring");
    let options = Options { bytes_max: 400_000, segment_bytes: 100_000, record_bytes_max: 9_000 };
    let (mut ring, _) = open(&dir, options);
    let mut random = fastrand::Rng::with_seed(1);
    let written: Vec<Record> =
        (1..=60).map(|seq| record(seq, (0..3_000).map(|_| random.u8(..)).collect())).collect();
    for records in written.chunks(2) {
        ring.append(records).unwrap();
    }
    ring.sync(moment(1_000_100).wall, moment(1_000_100)).unwrap();
    drop(ring);
    let files = files_of(&dir);
    for bad in [0..10, 5_000..5_001, 40_000..60_000, 90_000..100_000] {
        put(&dir, &files);
        fault::set_bad(bad.clone());
        let (mut ring, _) = open(&dir, options);
        let (left, holes) = read(ring.view());
        check_against(&written, &left, &holes);
        let missing = written.len() - left.len();
        assert_eq!(holes.iter().map(Hole::count).sum::<u64>(), missing as u64, "{bad:?}");
        assert!(missing <= 22 && (missing > 0 || bad.start < 88), "{bad:?}: {missing}");
        let fresh = records(ring.next_seq().0, 2, 1);
        ring.append(&fresh).unwrap();
        fault::set_bad(0..0);
        assert!(read(ring.view()).0.ends_with(&seen(&fresh)), "{bad:?}");
    }
}
