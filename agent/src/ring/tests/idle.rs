//! Turns in which nothing was recorded: cheap, and no less true.

use super::*;

/// How often something was waited for until it was safe.
fn syncs(work: impl FnOnce()) -> usize {
    fault::remember();
    work();
    fault::remembered().iter().filter(|done| **done == fault::Done::Sync).count()
}

#[test]
fn a_turn_without_records_is_not_waited_for_and_is_known_after_a_kill() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let at = moment;
    let (mut ring, recovery) = open(dir, TINY);
    assert_eq!(recovery.boot, None);
    ring.begin_boot(7);
    ring.append(&records(1, 2, 0)).unwrap();
    // The segment, the name of its file, which is not counted here, and the checkpoint.
    assert_eq!(syncs(|| ring.sync(at(100).wall, at(100)).unwrap()), 2);
    let safe = files_of(dir);
    assert_eq!(syncs(|| (101..110).for_each(|second| ring.sync(at(second).wall, at(second)).unwrap())), 0);
    assert_eq!(ring.view().recorded_until(), Some(at(109).wall));
    drop(ring);
    let killed = files_of(dir);

    // A kill costs nothing; a power cut, what was not waited for, and no record.
    for (files, until) in [(&killed, 109), (&safe, 100)] {
        put(dir, files);
        let (mut ring, recovery) = open(dir, TINY);
        let known = (recovery.recorded_until, recovery.boot, recovery.was_closed_cleanly);
        assert_eq!(known, (Some(at(until).wall), Some(7), false));
        assert_eq!(recovery.recorded_at, Some(at(until)));
        assert_eq!(read(ring.view()), (seen(&records(1, 2, 0)), vec![]));
        ring.append(&records(3, 1, 0)).unwrap();
    }

    // Everything else is waited for, and as much time, too.
    let (mut ring, _) = open(dir, TINY);
    ring.sync(at(109).wall, at(109)).unwrap();
    ring.acknowledge(Seq(2)).unwrap();
    assert_eq!(syncs(|| ring.sync(at(110).wall, at(110)).unwrap()), 1);
    assert_eq!(syncs(|| ring.sync(at(120).wall, at(120)).unwrap()), 1);
    assert_eq!(syncs(|| ring.mark_closed(at(121).wall, at(121)).unwrap()), 1);
    assert_eq!(syncs(|| ring.sync(at(121).wall, at(121)).unwrap()), 1, "it takes the closing back");
    ring.append(&records(ring.next_seq().0, 1, 0)).unwrap();
    assert_eq!(syncs(|| ring.sync(at(121).wall, at(121)).unwrap()), 2);
}
