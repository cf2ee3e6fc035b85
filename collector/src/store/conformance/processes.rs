//! How processes are put together and found.

use alibi_proto::{
    event::EventKind,
    flow::RECORD_SPAN_MAX,
    id::{HostId, ProcessUid},
    process::{ProcessLife, ProcessRecord},
};

use super::{Home, samples::*};
use crate::store::Store;

fn uid(byte: u8) -> ProcessUid {
    ProcessUid::from_bytes([byte; 16])
}

fn stored(store: &impl Store, kinds: Vec<EventKind>) {
    follow(store);
    store.commit(HOST, &batch(EPOCH, 1, kinds), at(2)).unwrap();
}

pub(in crate::store) fn are_joined_with_their_end_in_either_order<H: Home>() {
    let home = H::new();
    let store = home.open();
    let (one, two, three) = (process(1, None, 10), process(2, Some(1), 11), process(3, None, 12));
    let ends = [exit(1, 20, Some(0)), exit(2, 21, Some(-9)), exit(4, 22, None), exit(1, 99, Some(7))];
    let [end_one, end_two, end_four, end_one_again] = ends.map(EventKind::ProcessExited);
    let kinds = vec![start(&one), end_one, end_two, start(&two), start(&three), end_four, end_one_again];
    stored(&store, kinds);

    let life = |uid| store.process(HOST, uid).unwrap();
    assert_eq!(life(uid(1)), Some(ProcessLife { record: one, exit: Some(ends[0]) }), "the first end is kept");
    assert_eq!(
        life(uid(2)),
        Some(ProcessLife { record: two, exit: Some(ends[1]) }),
        "ended before it started"
    );
    assert_eq!(life(uid(3)), Some(ProcessLife { record: three, exit: None }));
    assert_eq!(life(uid(4)), None, "of which the end alone is known");
    assert_eq!(life(uid(5)), None);
    assert_eq!(store.process(HostId::from_bytes([9; 16]), uid(1)).unwrap(), None);

    let late = process(4, None, 13);
    store.commit(HOST, &batch(EPOCH, 8, vec![start(&late)]), at(3)).unwrap();
    assert_eq!(life(uid(4)), Some(ProcessLife { record: late, exit: Some(ends[2]) }));
}

pub(in crate::store) fn keep_the_record_that_saw_most<H: Home>() {
    let home = H::new();
    let store = home.open();
    let named = |record: ProcessRecord, name: &str, already_running| {
        let mut record = ProcessRecord { already_running, ..record };
        record.image.name = name.into();
        record
    };
    let (seen, found) = (
        |uid, name| named(process(uid, None, 10), name, false),
        |uid, name| named(process(uid, None, 10), name, true),
    );
    stored(
        &store,
        vec![
            start(&seen(1, "first")),
            start(&found(1, "after a restart")),
            start(&found(2, "first")),
            start(&found(2, "after a restart")),
            start(&found(3, "found running")),
            start(&seen(3, "seen starting")),
        ],
    );
    let name = |byte| store.process(HOST, uid(byte)).unwrap().unwrap().record.image.name;
    assert_eq!([name(1), name(2), name(3)], ["first", "first", "seen starting"]);
}

pub(in crate::store) fn list_their_children_in_order<H: Home>() {
    let home = H::new();
    let store = home.open();
    let children = [process(5, Some(1), 30), process(3, Some(1), 10), process(4, Some(1), 20)];
    let mut kinds: Vec<_> = children.iter().map(start).collect();
    kinds.extend([start(&process(6, Some(2), 5)), EventKind::ProcessExited(exit(3, 40, Some(1)))]);
    stored(&store, kinds);

    let listed = |limit| {
        let listed = store.children(HOST, uid(1), limit).unwrap();
        (listed.rows.iter().map(|life| life.record.pid).collect::<Vec<_>>(), listed.left_out)
    };
    assert_eq!(listed(10), (vec![3, 4, 5], 0));
    assert_eq!(listed(3), (vec![3, 4, 5], 0));
    assert_eq!(listed(2), (vec![3, 4], 1));
    assert_eq!(listed(0), (vec![], 3));
    assert_eq!(store.children(HOST, uid(1), 1).unwrap().rows[0].exit, Some(exit(3, 40, Some(1))));
    assert!(store.children(HOST, uid(9), 1).unwrap().rows.is_empty());
}

pub(in crate::store) fn are_found_by_prefix<H: Home>() {
    let home = H::new();
    let store = home.open();
    let mut near = process(0xab, None, 1);
    near.uid = ProcessUid::from_bytes(*b"\xab\xab\xac\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let only_ended = EventKind::ProcessExited(exit(0xac, 5, None));
    stored(
        &store,
        vec![start(&near), start(&process(0xab, None, 1)), start(&process(0xff, None, 2)), only_ended],
    );

    let found = |prefix: &str, limit| {
        let found = store.processes_by_prefix(prefix, limit).unwrap();
        assert!(found.iter().all(|(host, _)| *host == HOST));
        found.into_iter().map(|(_, uid)| uid).collect::<Vec<_>>()
    };
    assert_eq!(found("ab", 10), [uid(0xab), near.uid]);
    assert_eq!(found("ababa", 10), [uid(0xab), near.uid]);
    assert_eq!(found("ababac", 10), [near.uid]);
    assert_eq!(found(&uid(0xab).to_string(), 10), [uid(0xab)]);
    assert_eq!(found("f", 10), [uid(0xff)]);
    assert_eq!(found("", 2), [uid(0xab), near.uid]);
    assert_eq!(found("ac", 10), [], "of which the end alone is known");
    let longer = format!("{}0", uid(0xab));
    for none in ["0", "AB", "ab ", "xy", "é", "+f", longer.as_str()] {
        assert_eq!(found(none, 10), [], "{none}");
    }
}

pub(in crate::store) fn are_forgotten_when_they_ended<H: Home>() {
    let home = H::new();
    let store = home.open();
    let span = RECORD_SPAN_MAX.as_secs();
    let ends = [(1, 5_000 - span - 1), (2, 5_000 - span)].map(|(uid, exited)| exit(uid, exited, None));
    let mut kinds =
        vec![start(&process(1, None, 1)), start(&process(2, None, 1)), start(&process(3, None, 1))];
    kinds.extend(ends.map(EventKind::ProcessExited));
    stored(&store, kinds);
    store.forget(at(5_000)).unwrap();
    let kept = |byte| store.process(HOST, uid(byte)).unwrap().is_some();
    assert_eq!(
        [kept(1), kept(2), kept(3)],
        [false, true, true],
        "what may own a kept flow, or runs, is kept"
    );
}
