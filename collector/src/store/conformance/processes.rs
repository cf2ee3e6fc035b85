//! How processes are put together and found.

use alibi_proto::{
    event::EventKind,
    executable::{
        ExecutableRecord, ExecutableSighting, FileIdentity, Sha256, Signature, SignatureStatus, VersionInfo,
    },
    flow::RECORD_SPAN_MAX,
    id::{HostId, ProcessUid},
    process::{ProcessExecution, ProcessImage, ProcessLife, ProcessRecord},
    time::Timestamp,
};

use super::{Home, samples::*};
use crate::store::{EXECUTIONS_MAX, Store};

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

    let life = |uid| store.process(HOST, uid, Timestamp::MAX).unwrap();
    assert_eq!(life(uid(1)), Some(ProcessLife::new(one, Some(ends[0]))), "the first end is kept");
    assert_eq!(life(uid(2)), Some(ProcessLife::new(two, Some(ends[1]))), "ended before it started");
    assert_eq!(life(uid(3)), Some(ProcessLife::new(three, None)));
    assert_eq!(life(uid(4)), None, "of which the end alone is known");
    assert_eq!(life(uid(5)), None);
    assert_eq!(store.process(HostId::from_bytes([9; 16]), uid(1), Timestamp::MAX).unwrap(), None);

    let late = process(4, None, 13);
    store.commit(HOST, &batch(EPOCH, 8, vec![start(&late)]), at(3)).unwrap();
    assert_eq!(life(uid(4)), Some(ProcessLife::new(late, Some(ends[2]))));
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
    let name = |byte| store.process(HOST, uid(byte), Timestamp::MAX).unwrap().unwrap().record.image.name;
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
    let kept = |byte| store.process(HOST, uid(byte), Timestamp::MAX).unwrap().is_some();
    assert_eq!(
        [kept(1), kept(2), kept(3)],
        [false, true, true],
        "what may own a kept flow, or runs, is kept"
    );
}

fn file(inode: u64) -> FileIdentity {
    FileIdentity { device: 1, inode, modified: at(5), size: 7 }
}

fn executed(byte: u8, secs: u64, inode: u64) -> EventKind {
    EventKind::ProcessExecuted(Box::new(ProcessExecution {
        uid: uid(byte),
        executed: at(secs),
        image: ProcessImage {
            name: format!("at {secs}"),
            file: Some(file(inode)),
            ..ProcessImage::default()
        },
    }))
}

fn seen(inode: u64, sighting: ExecutableSighting, sha256: Option<u8>) -> EventKind {
    EventKind::ExecutableSeen(Box::new(ExecutableRecord {
        at: at(50),
        path: "/bin/x".into(),
        file: Some(file(inode)),
        sha256: sha256.map(|byte| Sha256::from_bytes([byte; 32])),
        first_on_host: true,
        package: None,
        sighting,
        process: Some(uid(9)),
        problem: sha256.is_none().then(|| "vanished".into()),
        signature: None,
        version: None,
    }))
}

pub(in crate::store) fn tell_what_they_became<H: Home>() {
    let home = H::new();
    let store = home.open();
    let mut kinds = vec![start(&process(1, None, 10))];
    kinds.extend((0..EXECUTIONS_MAX as u64 + 2).map(|number| executed(1, 20 + number, 1)));
    let last = 20 + EXECUTIONS_MAX as u64 + 1;
    stored(&store, kinds);
    let until = |secs| store.process(HOST, uid(1), at(secs)).unwrap().unwrap();
    let names = |life: &ProcessLife| {
        life.executions.iter().map(|execution| execution.image.name.clone()).collect::<Vec<_>>()
    };
    let all = until(1_000);
    assert_eq!((all.executions.len(), all.executions_left_out), (EXECUTIONS_MAX, 2));
    assert_eq!((all.record.image.name.as_str(), &all.image().name), ("process 1", &format!("at {last}")));
    assert_eq!(names(&until(24)), ["at 22", "at 23"], "what it became later is not told");
    assert_eq!(until(15).image().name, "process 1");
}

pub(in crate::store) fn get_the_hash_of_their_file_in_either_order<H: Home>() {
    use ExecutableSighting::{Run, Written};
    let home = H::new();
    let store = home.open();
    let of = |byte, inode| {
        let mut record = process(byte, None, 10);
        record.image.file = Some(file(inode));
        start(&record)
    };
    stored(
        &store,
        vec![
            of(1, 1),
            seen(1, Run, Some(0xa)),
            seen(2, Written, Some(0xb)),
            of(2, 2),
            of(3, 3),
            seen(3, Run, None),
            seen(4, Run, None),
            seen(4, Run, Some(0xd)),
            of(4, 4),
            executed(4, 20, 1),
        ],
    );
    let life = |byte| store.process(HOST, uid(byte), Timestamp::MAX).unwrap().unwrap();
    let hash = |byte| Some(Sha256::from_bytes([byte; 32]));
    assert_eq!([life(1).sha256(), life(2).sha256(), life(3).sha256()], [hash(0xa), hash(0xb), None]);
    assert_eq!((life(1).writer(), life(2).writer()), (None, Some(uid(9))));
    assert_eq!(life(3).executable[0].problem.as_deref(), Some("vanished"));
    assert_eq!((life(4).record.image.sha256, life(4).sha256()), (hash(0xd), hash(0xa)));
}

pub(in crate::store) fn are_told_with_who_signed_their_executable<H: Home>() {
    let home = H::new();
    let store = home.open();
    let mut record = process(1, None, 10);
    record.image.file = Some(file(1));
    let looked_at = |signature: Option<Signature>, company: Option<&str>| {
        let EventKind::ExecutableSeen(mut record) = seen(1, ExecutableSighting::Run, Some(0xa)) else {
            panic!()
        };
        record.first_on_host = signature.is_none();
        record.signature = signature;
        record.version =
            company.map(|company| VersionInfo { company: Some(company.into()), ..VersionInfo::default() });
        EventKind::ExecutableSeen(record)
    };
    let trusted = Signature {
        subject: Some("Example Corp.".into()),
        certificate_sha256: Some(Sha256::from_bytes([7; 32])),
        ..Signature::of_status(SignatureStatus::Trusted, None)
    };
    let unsigned = Signature::of_status(SignatureStatus::Unsigned, None);
    // As an agent of an older version told it first, then one that could not, then one that could tell.
    stored(
        &store,
        vec![
            start(&record),
            looked_at(None, None),
            looked_at(Some(Signature::not_checked("busy")), Some("Example Corp.")),
            looked_at(Some(trusted.clone()), Some("another")),
            looked_at(Some(unsigned), None),
        ],
    );
    let life = store.process(HOST, uid(1), Timestamp::MAX).unwrap().unwrap();
    assert_eq!(life.signature(), Some(&trusted));
    assert_eq!(life.version().and_then(|version| version.company.as_deref()), Some("Example Corp."));
    assert_eq!(life.executable.len(), 1);
    assert!(life.executable[0].first_on_host, "what the first look told stays");
}

pub(in crate::store) fn keep_their_executables_from_being_forgotten<H: Home>() {
    let home = H::new();
    let store = home.open();
    let of = |byte, inode, started| {
        let mut record = process(byte, None, started);
        record.image.file = Some(file(inode));
        start(&record)
    };
    let run = |inode| seen(inode, ExecutableSighting::Run, Some(1));
    let ended = |byte, secs| EventKind::ProcessExited(exit(byte, secs, None));
    // 1 runs still, 2 ended long ago, 3 ended long ago and another ran it since, 4 was never run.
    stored(
        &store,
        vec![
            run(1),
            run(2),
            run(3),
            run(4),
            of(1, 1, 60),
            of(2, 2, 60),
            ended(2, 70),
            of(3, 3, 6_000),
            ended(3, 70),
        ],
    );
    store.forget(at(5_000)).unwrap();
    let asked: Vec<_> = (1..=4).map(|inode| of(10 + inode as u8, inode, 7_000)).collect();
    store.commit(HOST, &batch(EPOCH, 10, asked), at(3)).unwrap();
    let known =
        |inode: u8| store.process(HOST, uid(10 + inode), Timestamp::MAX).unwrap().unwrap().sha256().is_some();
    assert_eq!([known(1), known(2), known(3), known(4)], [true, false, true, false]);
}
