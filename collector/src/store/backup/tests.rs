use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, yield_now},
};

use alibi_proto::{
    data_directory::DataDirectory,
    event::{Batch, Event, EventKind},
    flow::FlowRecord,
    id::{Epoch, HostId, Seq},
    time::{Moment, Timestamp},
};

use super::*;
use crate::{
    access::Access,
    backup::{Made, make, restore},
    store::{
        FLOWS, MAIN_DATABASE, SqliteStore, Store,
        conformance::samples::{description, flow, no_names, question},
    },
};

const HOST: HostId = HostId::from_bytes([7; 16]);
const EPOCH: Epoch = Epoch(5);
/// Of one batch.
const RECORDS: u64 = 50;

fn now() -> Timestamp {
    Timestamp::from_secs(1_764_000_000)
}

/// The data directory of a collector, and backups of it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        DataDirectory::open(&home.data(), "alibi", crate::DATA_FORMAT).unwrap().keep();
        drop(Access::open(&home.data(), now()).unwrap());
        home
    }

    fn data(&self) -> PathBuf {
        self.at("data")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> SqliteStore {
        open(&self.data())
    }
}

fn open(data: &Path) -> SqliteStore {
    let store = SqliteStore::open(&data.join(MAIN_DATABASE)).unwrap();
    if store.add_agent("one:1").unwrap() {
        store.describe("one:1", &description(HOST), None, now()).unwrap();
    }
    store
}

fn next(store: &SqliteStore) -> u64 {
    store.agents().unwrap()[0].host.as_ref().unwrap().1.next.seq.0.max(1)
}

/// The next records of the host.
fn tell(store: &SqliteStore) {
    let first = next(store);
    let kind =
        |seq| EventKind::Flow(Box::new(FlowRecord { record: 0, ..flow("198.51.100.7:443", seq, seq) }));
    let recorded = Moment { wall: now(), boot_ns: 1 };
    let events =
        (first..first + RECORDS).map(|seq| Event { seq: Seq(seq), recorded, kind: kind(seq) }).collect();
    let batch = Batch { epoch: EPOCH, hole: None, events, link: None, watermark: None, clock: None };
    store.commit(HOST, &batch, now()).unwrap();
}

/// Ends who waits for it, however that comes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many records are in runs.
fn in_runs(data: &Path) -> i64 {
    let connection = Connection::open(data.join(MAIN_DATABASE)).unwrap();
    connection.query_row("SELECT coalesce(sum(rows), 0) FROM flow_run", [], |row| row.get(0)).unwrap()
}

/// The records in a data directory are those of the host up to where its stream is known, each once.
fn assert_each_once(data: &Path) -> u64 {
    let until = next(&open(data));
    let every = SqliteStore::every_flow(&data.join(MAIN_DATABASE)).unwrap();
    let places: BTreeSet<u64> = every.iter().map(|flow| flow.seq.0).collect();
    assert!(places.into_iter().eq(1..until) && every.len() as u64 == until - 1, "{} of {until}", every.len());
    until
}

#[test]
fn a_backup_of_a_store_that_goes_on_is_one_state_of_it_and_the_stream_goes_on_there() {
    let home = Home::new();
    let store = home.open();
    let is_enough = AtomicBool::new(false);
    let mut backups: Vec<(PathBuf, Made)> = Vec::new();
    scope(|scope| {
        let (store, is_enough) = (&store, &is_enough);
        let teller = scope.spawn(move || {
            while !is_enough.load(Ordering::Relaxed) {
                tell(store);
            }
        });
        let _ends = Ends(is_enough);
        for number in 1..=6 {
            // Each has more runs than the one before.
            let before = in_runs(&home.data());
            while in_runs(&home.data()) <= before + 400 && !teller.is_finished() {
                yield_now();
            }
            let to = home.at(&format!("backup-{number}"));
            let previous = backups.last().map(|(path, _)| path.clone());
            let made = make(&home.data(), &to, previous.as_deref(), now()).unwrap();
            assert_eq!(made.manifest.left_out, Vec::<String>::new());
            backups.push((to, made));
        }
    });
    drop(store);
    let all = assert_each_once(&home.data());
    let mut reached = 0;
    for (number, (path, _)) in backups.iter().enumerate() {
        let data = home.at(&format!("restored-{number}"));
        restore(path, &data, now()).unwrap();
        let until = assert_each_once(&data);
        assert!(until > reached && until <= all, "{until} of {all}");
        reached = until;
        // The agent is asked from there on.
        let store = open(&data);
        for _ in 0..20 {
            tell(&store);
        }
        drop(store);
        assert_eq!(assert_each_once(&data), until + 20 * RECORDS);
        let access = Access::open(&data, now()).unwrap();
        let newest = access.audit().entries(u64::MAX, 1, &Default::default()).unwrap();
        assert_eq!(newest.entries[0].action, "restore");
        assert!(access.audit().verify().unwrap().problems.is_empty());
    }
}

#[test]
fn a_file_that_is_the_same_is_not_copied_again_and_one_that_was_changed_is() {
    let home = Home::new();
    let store = home.open();
    while in_runs(&home.data()) < 600 {
        tell(&store);
    }
    drop(store);
    let [first, second, third] = ["first", "second", "third"].map(|name| home.at(name));
    assert_eq!(make(&home.data(), &first, None, now()).unwrap().taken_over, 0);
    assert_eq!(make(&home.data(), &second, Some(&first), now()).unwrap().taken_over, 1);
    let day = fs::read_dir(second.join("data").join(FLOWS)).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&day).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&day, bytes).unwrap();
    assert_eq!(make(&home.data(), &third, Some(&second), now()).unwrap().taken_over, 0);
    restore(&third, &home.at("restored"), now()).unwrap();
    assert_each_once(&home.at("restored"));
}

#[test]
fn what_is_not_as_it_was_made_is_not_brought_back_and_nothing_is_left() {
    let home = Home::new();
    let store = home.open();
    while in_runs(&home.data()) < 600 {
        tell(&store);
    }
    drop(store);
    let backup = home.at("backup");
    let made = make(&home.data(), &backup, None, now()).unwrap();
    let names: Vec<&str> = made.manifest.files.iter().map(|file| file.path.as_str()).collect();
    for wanted in ["alibi.json", "alibi.db", "access.db", "authority/", "alibi.flows/flows-"] {
        assert!(names.iter().any(|name| name.starts_with(wanted)), "{wanted} is not among {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("lock") || name.contains("-wal")), "{names:?}");
    let refused = |want: &str| {
        let error = format!("{:#}", restore(&backup, &home.at("restored"), now()).unwrap_err());
        assert!(error.contains(want), "{error}");
        assert!(!home.at("restored").exists() && !home.at("restored.unfinished").exists());
    };
    for name in &names {
        let path = backup.join("data").join(name);
        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 4;
        for wrong in [changed, bytes[1..].to_vec(), [&bytes[..], b"x"].concat()] {
            fs::write(&path, wrong).unwrap();
            refused("is not what was backed up");
        }
        fs::remove_file(&path).unwrap();
        refused("(os error 2)");
        fs::write(&path, bytes).unwrap();
    }
    let manifest = fs::read_to_string(backup.join("backup.json")).unwrap();
    for (was, wrong, want) in [
        ("alibi.db", "../alibi.db", "which is no file of a backup"),
        ("\"format\": 1", "\"format\": 2", "was made by a newer version"),
        ("\"program\": \"alibi\"", "\"program\": \"other\"", "is a backup of other"),
        ("{", "", "is no backup"),
    ] {
        fs::write(backup.join("backup.json"), manifest.replacen(was, wrong, 1)).unwrap();
        refused(want);
    }
    fs::write(backup.join("backup.json"), manifest).unwrap();
    restore(&backup, &home.at("restored"), now()).unwrap();
    let error = restore(&backup, &home.at("restored"), now()).unwrap_err().to_string();
    assert!(error.contains("has something in it already"), "{error}");
}

#[test]
fn a_backup_goes_nowhere_where_something_is_and_is_its_users_alone() {
    let home = Home::new();
    drop(home.open());
    let error = |data: &Path, to: &Path| format!("{:#}", make(data, to, None, now()).unwrap_err());
    let taken = home.at("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("letter"), "dear").unwrap();
    assert!(error(&home.data(), &taken).contains("has something in it already"));
    assert!(error(&taken, &home.at("backup")).contains("taken"), "of no data directory");
    let in_the_way = home.at("backup.unfinished");
    fs::create_dir(&in_the_way).unwrap();
    fs::write(in_the_way.join("letter"), "dear").unwrap();
    assert!(error(&home.data(), &home.at("backup")).contains("move it elsewhere"));
    fs::remove_file(in_the_way.join("letter")).unwrap();
    fs::create_dir(in_the_way.join("data")).unwrap();
    fs::write(in_the_way.join("data/alibi.db"), "half").unwrap();
    fs::write(in_the_way.join(".unfinished"), "").unwrap();
    make(&home.data(), &home.at("backup"), None, now()).unwrap();
    assert!(!in_the_way.exists(), "what an earlier try left behind is gone");
    #[cfg(unix)]
    assert_private(&home.at("backup"));
}

#[cfg(unix)]
fn assert_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let want = if path.is_dir() { 0o700 } else { 0o600 };
    assert_eq!(mode, want, "{}", path.display());
    for entry in fs::read_dir(path).into_iter().flatten() {
        assert_private(&entry.unwrap().path());
    }
}

#[test]
fn what_is_damaged_is_left_out_and_told_and_is_a_gap_after_it_was_brought_back() {
    let home = Home::new();
    let store = home.open();
    while in_runs(&home.data()) < 900 {
        tell(&store);
    }
    let files = fs::read_dir(home.data().join(FLOWS)).unwrap().map(|entry| entry.unwrap().path());
    let day = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "db")).unwrap();
    let edit = "UPDATE block SET records = zeroblob(length(records)) WHERE id = 2";
    Connection::open(&day).unwrap().execute_batch(edit).unwrap();
    let made = make(&home.data(), &home.at("backup"), None, now()).unwrap();
    let [problem] = &made.manifest.left_out[..] else { panic!("{:?}", made.manifest.left_out) };
    assert!(problem.contains("run 2") && problem.contains("checksum"), "{problem}");
    drop(store);
    restore(&home.at("backup"), &home.at("restored"), now()).unwrap();
    let store = open(&home.at("restored"));
    let found = store.flows(HOST, &question("198.51.100.7", 0, 100_000), &no_names(), 100_000).unwrap();
    let damage: Vec<_> = found.damage.iter().map(|damage| (damage.from, &damage.reason)).collect();
    assert!(damage.len() == 1 && damage[0].0 == Timestamp::from_secs(301), "{damage:?}");
    assert_eq!(found.rows.len() as u64, next(&store) - 1 - 300);
}
