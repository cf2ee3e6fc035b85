//! What somebody remembers of the past, held against what is here: it is the same unless it was changed, whatever is
//! damaged or gone.

use alibi_proto::chain::Anchor;

use super::*;

/// The heads that were told, one after each sync.
fn told(dir: &Path, options: Options, appends: u64) -> Vec<Anchor> {
    let (mut ring, _) = open(dir, options);
    let mut anchors = vec![ring.view().anchor()];
    for _ in 0..appends {
        let next = ring.next_seq().0;
        ring.append(&records(next, 1 + next % 3, 0)).unwrap();
        ring.sync(moment(1_000_000 + next).wall, moment(1_000_000 + next)).unwrap();
        anchors.push(ring.view().anchor());
    }
    anchors
}

fn standings(view: &View, anchors: &[Anchor]) -> Vec<Standing> {
    anchors.iter().map(|anchor| view.compare(anchor).unwrap()).collect()
}

#[test]
fn a_head_is_of_the_same_past_until_that_is_overwritten() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let anchors = told(dir, TINY, 60);
    let (mut ring, _) = open(dir, TINY);
    let first_seq = ring.first_seq();
    assert!(first_seq > Seq(20) && ring.next_seq() > Seq(80));
    for view in [ring.view(), View::open_read_only(dir).unwrap()] {
        for anchor in &anchors {
            let gone = anchor.seq.next() < first_seq;
            let wanted = if gone { Standing::Gone } else { Standing::Same };
            assert_eq!(view.compare(anchor).unwrap(), wanted, "{anchor:?}");
            let other = Anchor { head: Head::UNKNOWN, ..*anchor };
            let wanted = if gone { Standing::Gone } else { Standing::Other };
            assert_eq!(view.compare(&other).unwrap(), wanted, "{other:?}");
        }
        let ahead = Anchor { seq: view.next_seq(), head: Head::UNKNOWN };
        assert_eq!(view.compare(&ahead).unwrap(), Standing::Ahead);
        assert_eq!(view.compare(&Anchor { seq: Seq(u64::MAX), ..ahead }).unwrap(), Standing::Ahead);
    }
    // It goes on where it was.
    let last = *anchors.last().unwrap();
    assert_eq!(ring.view().anchor(), last);
    ring.append(&records(last.seq.0 + 1, 2, 1)).unwrap();
    assert_eq!(ring.view().compare(&last).unwrap(), Standing::Same);
}

#[test]
fn a_past_that_was_changed_or_set_back_is_seen() {
    let temporary = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| temporary.path().join(name));
    let anchors = told(&one, ROOMY, 9);
    let older = files_of(&one);
    let (mut ring, _) = open(&one, ROOMY);
    let next = ring.next_seq().0;
    ring.append(&records(next, 1, 0)).unwrap();
    ring.sync(moment(2_000_000).wall, moment(2_000_000)).unwrap();
    let newest = ring.view().anchor();
    drop(ring);

    // The same ring with one record of another content, and one that was cut at another place.
    let (mut ring, _) = open(&other, ROOMY);
    ring.append(&records(1, 2, 0)).unwrap();
    ring.append(&records(3, 1, 9)).unwrap();
    let count = newest.seq.0 - 3;
    ring.append(&records(4, count, 0)).unwrap();
    let changed = standings(&ring.view(), &anchors);
    assert_eq!(changed[..2], [Standing::Same; 2], "nothing, and the first two records");
    assert!(changed[2..].iter().all(|standing| *standing == Standing::Other), "{changed:?}");

    put(&one, &older);
    let (ring, _) = open(&one, ROOMY);
    assert!(standings(&ring.view(), &anchors).iter().all(|standing| *standing == Standing::Same));
    assert_eq!(ring.view().compare(&newest).unwrap(), Standing::Ahead);
}

#[test]
fn damage_is_no_other_past() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("ring");
    let anchors = told(&dir, TINY, 9);
    let files = files_of(&dir);
    assert!(segment_files(&dir).len() >= 3);
    let (mut same, mut gone) = (0, 0);
    for (name, bytes) in files.iter().filter(|(name, _)| *name != checkpoint::NAME) {
        let is_newest = Some(dir.join(name)) == segment_files(&dir).pop();
        let flips = (0..bytes.len()).map(|at| (at, false));
        // Only the newest may be shorter than it was, as a file system leaves it.
        let cuts = (0..bytes.len()).filter(|_| is_newest).map(|at| (at, true));
        for (at, cut) in flips.chain(cuts) {
            let mut damaged = files.clone();
            let bytes = damaged.get_mut(name).unwrap();
            if cut {
                bytes.truncate(at)
            } else {
                bytes[at] ^= 0x10
            }
            put(&dir, &damaged);
            let Ok(view) = View::open_read_only(&dir) else { continue };
            let found = standings(&view, &anchors);
            let context = format!("byte {at} of {name:?}, cut: {cut}: {found:?}");
            assert!(found.iter().all(|one| matches!(one, Standing::Same | Standing::Gone)), "{context}");
            assert_eq!(found.last(), Some(&Standing::Same), "{context}");
            same += found.iter().filter(|one| **one == Standing::Same).count();
            gone += found.iter().filter(|one| **one == Standing::Gone).count();

            // So it stays when the ring goes on.
            if at % 7 == 0 {
                let (mut ring, _) = open(&dir, TINY);
                ring.append(&records(ring.next_seq().0, 1, 1)).unwrap();
                assert_eq!(standings(&ring.view(), &anchors), found, "{context}");
            }
        }
    }
    assert!(gone > 0 && same > 10 * gone, "{same} {gone}");
}

#[test]
fn what_is_lost_at_the_end_is_stood_for_by_the_head_after_it() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let anchors = told(dir, ROOMY, 6);
    let [before, last] = [anchors[4], anchors[6]];
    let newest = segment_files(dir).pop().unwrap();
    let bytes = fs::read(&newest).unwrap();
    // The last two frames.
    let epoch = EPOCH;
    let mut frames = segment::Frames::open(&newest, epoch, Seq::FIRST).unwrap();
    let mut end = segment::HEADER_BYTES as u64;
    while let segment::Found::Frame(header, _) = frames.next(bytes.len() as u64, SEQ_MAX, |_| true).unwrap() {
        if header.end_seq() <= before.seq.next() {
            end = frames.offset();
        }
    }
    fs::write(&newest, &bytes[..end as usize]).unwrap();
    let (mut ring, recovery) = open(dir, ROOMY);
    assert_eq!((recovery.lost_at_end, ring.next_seq()), (last.seq.0 - before.seq.0, last.seq.next()));
    assert_eq!(ring.view().anchor(), last);
    let wanted = [Standing::Same, Standing::Gone, Standing::Same];
    let told = [before, anchors[5], last];
    assert_eq!(standings(&ring.view(), &told), wanted);
    // Also when it has gone on, which the head after the loss is the beginning of.
    ring.append(&records(last.seq.0 + 1, 3, 1)).unwrap();
    ring.sync(moment(3_000_000).wall, moment(3_000_000)).unwrap();
    let later = ring.view().anchor();
    drop(ring);
    let (ring, _) = open(dir, ROOMY);
    assert_eq!(standings(&ring.view(), &told), wanted);
    assert_eq!(ring.view().compare(&later).unwrap(), Standing::Same);
}

#[test]
fn a_segment_that_is_gone_is_no_error_to_who_compares() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let anchors = told(dir, TINY, 9);
    let (ring, _) = open(dir, TINY);
    // As one that is evicted just now, of which it is not known yet.
    let gone = segment_files(dir)[1].clone();
    fs::remove_file(&gone).unwrap();
    let found = standings(&ring.view(), &anchors);
    assert!(found.contains(&Standing::Gone), "{found:?}");
    assert!(!found.contains(&Standing::Other), "{found:?}");
}

#[test]
fn a_segment_that_was_set_aside_is_nobodys_loss() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let (mut ring, _) = open(dir, TINY);
    let written = records(1, 2, 0);
    ring.append(&written).unwrap();
    ring.prepare().unwrap();
    // Nobody has ended it in order.
    drop(ring);
    let spare = dir.join("next.segment.unfinished");
    assert!(spare.exists());
    assert_eq!(read(View::open_read_only(dir).unwrap()), (seen(&written), vec![]));
    let (mut ring, recovery) = open(dir, TINY);
    assert_eq!((recovery.cut_bytes, recovery.lost_at_end), (0, 0));
    assert!(!spare.exists());
    assert_eq!(read(ring.view()), (seen(&written), vec![]));
    ring.prepare().unwrap();
    ring.mark_closed(moment(1).wall, moment(1)).unwrap();
    assert!(!spare.exists(), "one that is closed leaves none");
}

#[test]
fn what_cannot_be_labelled_again_is_not_passed_over() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let (mut ring, _) = open(dir, ROOMY);
    let mut written = records(1, 3, 0);
    ring.append(&written).unwrap();
    drop(ring);
    // Of the newest segment's records, the next writer does not know by what they can be found.
    let (mut ring, _) = Ring::open(dir, ROOMY, HOST, EPOCH, |_| None).unwrap();
    while segment_files(dir).len() < 3 {
        let fresh = records(ring.next_seq().0, 3, 0);
        ring.append(&fresh).unwrap();
        written.extend(fresh);
    }
    for count in 1..=written.len() {
        check_selections(&ring.view(), &written[..count]);
    }
}
