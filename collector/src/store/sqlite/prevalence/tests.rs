//! What only this store has: what older versions kept, gone through once; and what it costs to note executables.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use alibi_proto::{
    event::EventKind,
    executable::{ExecutableRecord, ExecutableSighting, FileIdentity, Sha256},
    id::{HostId, ProcessUid},
    prevalence::Identity,
    process::{ProcessExecution, ProcessImage, ProcessRecord},
    time::Timestamp,
    window::Window,
};
use rusqlite::Connection;

use super::TABLES;
use crate::store::{
    FirstSeen, SqliteStore, Store,
    conformance::samples::{batch_of, description},
};

const HOST: HostId = HostId::from_bytes([7; 16]);

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn image(number: u64) -> ProcessImage {
    let modified = at(1);
    ProcessImage {
        path: Some(format!("/bin/{number}")),
        name: "x".into(),
        file: Some(FileIdentity { device: 1, inode: number, modified, size: 1 }),
        ..ProcessImage::default()
    }
}

fn hash(number: u64) -> Sha256 {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Sha256::from_bytes(bytes)
}

fn start(number: u64, secs: u64, image: ProcessImage) -> EventKind {
    EventKind::ProcessStarted(Box::new(ProcessRecord {
        uid: ProcessUid::from_bytes(u128::from(number).to_be_bytes()),
        pid: 1,
        parent: None,
        parent_pid: None,
        started: at(secs),
        already_running: false,
        image,
    }))
}

fn executed(number: u64, secs: u64, image: ProcessImage) -> EventKind {
    let uid = ProcessUid::from_bytes(u128::from(number).to_be_bytes());
    EventKind::ProcessExecuted(Box::new(ProcessExecution { uid, executed: at(secs), image }))
}

fn seen(number: u64, secs: u64, sighting: ExecutableSighting) -> EventKind {
    let ProcessImage { path, file, .. } = image(number);
    EventKind::ExecutableSeen(Box::new(ExecutableRecord {
        at: at(secs),
        path: path.unwrap(),
        file,
        sha256: Some(hash(number)),
        first_on_host: true,
        package: None,
        sighting,
        process: None,
        problem: None,
        signature: None,
        version: None,
    }))
}

fn follow(store: &SqliteStore) {
    store.add_agent("one:1").unwrap();
    store.describe("one:1", &description(HOST), None, at(1)).unwrap();
}

#[test]
fn what_an_older_version_kept_of_processes_is_gone_through_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("store.db");
    let store = SqliteStore::open(&file).unwrap();
    follow(&store);
    let mut kinds = Vec::new();
    for number in 1..30 {
        // Of some there is a hash; some are written, and of these some are run.
        let is_written = number % 4 == 0;
        let sighting = if is_written { ExecutableSighting::Written } else { ExecutableSighting::Run };
        if number % 3 > 0 {
            kinds.push(seen(number, 1_000 + number, sighting));
        }
        if number % 8 > 0 {
            kinds.push(start(number, 2_000 + number, image(number)));
        }
        kinds.push(executed(number, 3_000 + number, image(number % 5 + 100)));
    }
    store.commit(HOST, &batch_of(kinds), at(2)).unwrap();
    let ever = Window::new(at(0), at(100_000)).unwrap();
    let all = |store: &SqliteStore| -> Vec<FirstSeen> { store.first_seen(HOST, ever, 1_000).unwrap().rows };
    let want = all(&store);
    assert_eq!(want.len(), 29 - 1 + 5, "one was neither looked at nor run");
    drop(store);

    let gone = "DROP TABLE program; DROP TABLE program_path; DROP TABLE program_about; DROP TABLE sighting;
        DROP TABLE sighting_path; DROP TABLE sighting_forgotten;";
    Connection::open(&file).unwrap().execute_batch(&format!("{gone} {TABLES}")).unwrap();
    let store = SqliteStore::open(&file).unwrap();
    assert_eq!(all(&store), want);
    let connection = Connection::open(&file).unwrap();
    let due: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'sighting_due'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(due, 0, "it is done");
}

#[test]
fn what_is_told_apart_by_a_path_or_a_hash_is_never_mistaken() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    follow(&store);
    // As long as a hash, and beginning as the keys of others do.
    let paths = ["x".repeat(32), format!("\u{1}{}", "x".repeat(31)), "y".repeat(33)];
    let runs = paths.iter().zip(1..).map(|(path, number)| {
        let image = ProcessImage { path: Some(path.clone()), ..ProcessImage::default() };
        start(number, 1_000, image)
    });
    store.commit(HOST, &batch_of(runs.collect()), at(2)).unwrap();
    let window = Window::new(at(0), at(10_000)).unwrap();
    let mut found: Vec<Identity> =
        store.first_seen(HOST, window, 10).unwrap().rows.into_iter().map(|seen| seen.identity).collect();
    let mut want: Vec<Identity> = paths.into_iter().map(Identity::Path).collect();
    found.sort();
    want.sort();
    assert_eq!(found, want);
}
