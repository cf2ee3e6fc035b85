//! What only the SQLite store has: a file. And the suite that every store passes.

use std::{fs, path::PathBuf, time::Duration};

use alibi_proto::{
    clock::{BootBegin, ClockReading, Difference},
    coverage::{CoverageChange, Facet, Grade, Hole, Timeline},
    event::{Batch, Event, EventKind},
    id::{Epoch, HostId, ProcessUid, Seq},
    name::NamePattern,
    time::{Moment, Timestamp},
    window::Window,
    wire,
};
use prost::Message as _;
use rusqlite::Connection;

use super::{SqliteStore, schema::FORMAT};
use crate::store::{
    Store, StoreError,
    conformance::{
        Home,
        samples::{description, flow, no_names, question},
        suite,
    },
};

struct Directory(tempfile::TempDir);

impl Directory {
    fn file(&self) -> PathBuf {
        self.0.path().join("store.db")
    }

    /// Makes the file as it was when its tables had this version.
    fn make(&self, version: usize) {
        let connection = Connection::open(self.file()).unwrap();
        FORMAT.migrations[..version].iter().for_each(|step| connection.execute_batch(step).unwrap());
        connection.pragma_update(None, "application_id", FORMAT.application_id).unwrap();
        connection.pragma_update(None, "user_version", i32::try_from(version).unwrap()).unwrap();
    }

    fn edit(&self, sql: &str) {
        let connection = Connection::open(self.file()).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// Opens what must be refused, and proves that nothing was touched.
    #[track_caller]
    fn refuses(&self, want: &str) {
        let before = self.contents();
        match SqliteStore::open(&self.file()).err() {
            Some(StoreError::Foreign { problem, .. }) => assert!(problem.contains(want), "{problem}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(self.contents(), before);
    }

    fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file());
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }
}

impl Home for Directory {
    type Store = SqliteStore;

    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.file()).unwrap()
    }
}

suite!(Directory);

mod flips;

const VERSION: i32 = FORMAT.version();

const HOST: HostId = HostId::from_bytes([7; 16]);

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let directory = Directory::new();
    for contents in [b"hello".to_vec(), vec![b'x'; 5_000]] {
        fs::write(directory.file(), contents).unwrap();
        directory.refuses("is not a SQLite database");
    }
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    for sql in [
        "CREATE TABLE t (x)",
        "PRAGMA application_id = 5; CREATE TABLE t (x)",
        "PRAGMA journal_mode = WAL; CREATE TABLE t (x)",
    ] {
        let directory = Directory::new();
        directory.edit(sql);
        directory.refuses("belongs to another program");
    }
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let directory = Directory::new();
    drop(directory.open());
    directory.edit(&format!("PRAGMA user_version = {}", VERSION + 1));
    directory.refuses(&format!(
        "was written by a newer version (schema {}, this one knows up to {VERSION}): upgrade",
        VERSION + 1
    ));
}

#[test]
fn an_empty_file_becomes_a_store() {
    for sql in ["", "PRAGMA user_version = 0; VACUUM", "PRAGMA application_id = 5"] {
        let directory = Directory::new();
        fs::write(directory.file(), b"").unwrap();
        directory.edit(sql);
        assert!(directory.open().agents().unwrap().is_empty(), "{sql}");
        let connection = Connection::open(directory.file()).unwrap();
        let number =
            |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).unwrap();
        assert_eq!((number("application_id"), number("user_version")), (FORMAT.application_id, VERSION));
    }
}

#[test]
fn an_unreadable_place_is_an_error() {
    let directory = Directory::new();
    let inside_nothing = directory.0.path().join("nothing").join("store.db");
    assert!(matches!(SqliteStore::open(&inside_nothing), Err(StoreError::Unusable { .. })));
}

#[test]
fn commits_are_synchronous() {
    let directory = Directory::new();
    let store = directory.open();
    let writer = store.database.writer();
    let synchronous: i32 = writer.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    let mode: String = writer.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(
        (synchronous, mode.as_str()),
        (2, "wal"),
        "FULL: the agent may overwrite what was acknowledged"
    );
}

#[test]
fn damage_is_named() {
    let directory = Directory::new();
    let store = directory.open();
    directory.edit(
        "INSERT INTO host (id, uuid) VALUES (1, zeroblob(16));
         INSERT INTO host_description VALUES (1, x'ff');
         INSERT INTO agent (address, host) VALUES ('one:1', 1);
         INSERT INTO coverage (host, facet, kind, record) VALUES (1, 1, 0, x'ff'), (1, 2, 9, x'');
         INSERT INTO process (host, uid, record) VALUES (1, zeroblob(16), x'0a01');
         INSERT INTO answer VALUES (1, x'612e62', x'0401', 1, 1, 1, NULL);
         INSERT INTO resolved VALUES (1, 1, 1, 1, 1, NULL);
         INSERT INTO server_name VALUES (x'612e62', 1, 1, 1, 1, x'ff', NULL);
         INSERT INTO link VALUES (1, 1, 1, 1, x'ff');",
    );
    let (host, uid) = (HostId::from_bytes([0; 16]), ProcessUid::from_bytes([0; 16]));
    #[track_caller]
    fn check<T: std::fmt::Debug>(result: Result<T, StoreError>) {
        assert!(matches!(result, Err(StoreError::Damaged { .. })), "{result:?}");
    }
    let agents = store.agents().unwrap();
    assert!(agents.len() == 1 && agents[0].host.is_none(), "it is listed, and proves nothing: {agents:?}");
    check(store.coverage(host, Facet::Processes));
    check(store.coverage(host, Facet::Connections));
    check(store.process(host, uid, Timestamp::MAX));
    let name = NamePattern::parse("b.a").unwrap();
    check(store.addresses_of(&name, Timestamp::MAX, 1));
    check(store.resolutions(&name, 1));
    check(store.server_names(&[(host, Timestamp::MAX)], &name, 1).unwrap().remove(&host).unwrap());
    check(store.links(host, Window::new(Timestamp::ZERO, Timestamp::MAX).unwrap(), 1));
}

#[test]
fn coverage_that_an_older_version_wrote_in_rows_becomes_one() {
    let directory = Directory::new();
    let store = directory.open();
    directory.edit("INSERT INTO host (id, uuid) VALUES (1, x'07070707070707070707070707070707')");
    let at = Timestamp::from_secs;
    let grade = Grade::NotRecorded { reason: "stopped".into() };
    let (facet, scope, announced_from) = (Facet::Names, None, None);
    let change = |grade: &Grade, from, to: Option<u64>| CoverageChange {
        facet,
        grade: grade.clone(),
        from: at(from),
        to: to.map(at),
        scope: scope.clone(),
        announced_from,
    };
    let changes = [
        change(&Grade::Complete, 10, None),
        change(&grade, 20, Some(30)),
        change(&grade, 40, None),
        change(&Grade::Complete, 50, None),
    ];
    let hole = Hole { first: Seq(1), last: Seq(1), from: at(60), to: at(61), reason: "damaged".into() };
    let connection = Connection::open(directory.file()).unwrap();
    let row = |kind: i32, record: Vec<u8>| {
        let insert = "INSERT INTO coverage (host, facet, kind, record) VALUES (1, ?, ?, ?)";
        connection
            .execute(insert, rusqlite::params![super::codec::facet_number(facet), kind, record])
            .unwrap();
    };
    let mut told = Timeline::default();
    for (change, kind) in changes.iter().zip([0, 2, 0, 0]) {
        row(kind, wire::CoverageChanged::from(change.clone()).encode_to_vec());
        told.apply(change);
    }
    row(1, wire::Hole::from(hole.clone()).encode_to_vec());
    told.apply_hole(&hole);
    assert_eq!(*store.coverage(HOST, facet).unwrap(), told);

    let change = change(&grade, 70, Some(80));
    told.apply(&change);
    let event = Event {
        seq: Seq(1),
        recorded: Moment { wall: at(80), boot_ns: 1 },
        kind: EventKind::CoverageChanged(change),
    };
    let events = vec![event];
    let batch = Batch { epoch: Epoch(5), hole: None, events, link: None, watermark: None, clock: None };
    store.commit(HOST, &batch, at(100)).unwrap();
    assert_eq!(*store.coverage(HOST, facet).unwrap(), told);
    let rows: i64 = connection.query_row("SELECT count(*) FROM coverage", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

/// A watermark that comes alone each second costs no write, and is seen all the same.
#[test]
fn a_watermark_that_comes_alone_is_written_later() {
    let directory = Directory::new();
    let store = directory.open();
    store.add_agent("one:1").unwrap();
    let description = description(HOST);
    store.describe("one:1", &description, None, Timestamp::from_secs(99)).unwrap();
    let take = |secs| {
        let (watermark, heard) = (Some(Timestamp::from_secs(secs)), Timestamp::from_secs(secs));
        let batch = Batch { epoch: Epoch(5), hole: None, events: vec![], link: None, watermark, clock: None };
        let noted = store.note(HOST, &batch, heard);
        noted.unwrap_or_else(|| store.commit(HOST, &batch, heard).unwrap()).known_until
    };
    let written = || {
        let connection = Connection::open(directory.file()).unwrap();
        connection
            .query_row("SELECT known_until / 1000000000 FROM host", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    for (secs, want) in [(100, 100), (101, 100), (159, 100), (160, 160), (161, 160)] {
        assert_eq!(take(secs), Some(Timestamp::from_secs(secs)));
        assert_eq!(written(), want, "at second {secs}");
    }
    store.describe("one:1", &description, None, Timestamp::from_secs(162)).unwrap();
    assert_eq!(written(), 161, "with what else is written of the host");
    take(163);
    assert_eq!(written(), 161);
    drop(store);
    assert_eq!(written(), 163);
}

#[test]
fn flow_records_of_an_older_version_are_moved_to_where_they_belong() {
    let directory = Directory::new();
    directory.make(8);
    directory.edit(
        "INSERT INTO host (id, uuid, description) VALUES (3, x'07070707070707070707070707070707', x'')",
    );
    let connection = Connection::open(directory.file()).unwrap();
    let mut stored = Vec::new();
    for number in 0..1_000_u64 {
        let mut flow = flow("198.51.100.7:443", number, number + 1);
        flow.record = u32::try_from(number).unwrap();
        let insert = "INSERT INTO flow (host, last, ring, seq, first, remote, remote_port, protocol, process, name, unnamed_since,
             record) VALUES (3, ?1, 1, ?2, ?1, x'04c6336407', 443, 1, NULL, NULL, NULL, ?3)";
        let (last, record) = (flow.last.as_nanos_i64(), wire::Flow::from(flow.clone()).encode_to_vec());
        connection.execute(insert, rusqlite::params![last, number as i64, record]).unwrap();
        stored.push(flow);
    }
    drop(connection);
    for _ in 0..2 {
        let store = directory.open();
        let asked = question("198.51.100.7", 0, 2_000);
        let found = store.flows(HOST, &asked, &no_names(), 10_000).unwrap();
        assert!(found.rows.iter().eq(stored.iter().rev()));
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'flow' OR name LIKE 'flow_by%'";
        let count =
            store.read(|connection| Ok(connection.query_row(tables, [], |row| row.get::<_, i64>(0))?));
        assert_eq!(count.unwrap(), 0);
    }
}

#[test]
fn names_and_descriptions_of_an_older_version_are_kept() {
    let directory = Directory::new();
    directory.make(14);
    let described = wire::DescribeResponse::from(description(HOST)).encode_to_vec();
    let connection = Connection::open(directory.file()).unwrap();
    let insert = "INSERT INTO host (id, uuid, description) VALUES (3, ?, ?)";
    connection.execute(insert, rusqlite::params![HOST.as_bytes(), described]).unwrap();
    connection.execute_batch(
        "INSERT INTO agent (address, host) VALUES ('one:1', 3);
         INSERT INTO resolution VALUES (x'612e62', x'0401020304', 3, 5, 7, 60), (x'612e62', x'0401020305', 3, 6, 6, 61),
             (x'612e63', x'0401020304', 3, 8, 9, 62);",
    )
    .unwrap();
    drop(connection);
    let store = directory.open();
    assert_eq!(*store.agents().unwrap()[0].host.as_ref().unwrap().0, description(HOST));
    let kept = store.resolutions(&NamePattern::parse("*.a").unwrap(), 10).unwrap().rows;
    let kept: Vec<(String, u64, u64, u32)> = kept
        .into_iter()
        .map(|kept| {
            (
                format!("{} {}", kept.name, kept.address),
                kept.first.as_nanos(),
                kept.last.as_nanos(),
                kept.ttl_s,
            )
        })
        .collect();
    let want = [("b.a 1.2.3.4", 5, 7, 60), ("b.a 1.2.3.5", 6, 6, 61), ("c.a 1.2.3.4", 8, 9, 62)];
    assert_eq!(kept, want.map(|(what, first, last, ttl)| (what.to_owned(), first, last, ttl)));
    assert_eq!(SqliteStore::check(&directory.file()).unwrap(), Vec::<String>::new());
}

#[test]
fn what_was_recorded_before_clocks_were_measured_is_of_no_known_time() {
    let directory = Directory::new();
    let until = Timestamp::from_nanos(1_764_000_000_123_456_789);
    directory.make(4);
    directory.edit(&format!(
        "BEGIN; PRAGMA defer_foreign_keys = 1; INSERT INTO ring VALUES (1, 1, 5, 1);
         INSERT INTO host VALUES (1, x'07070707070707070707070707070707', x'', 1, {until}, 100000000000, 0); COMMIT",
        until = until.as_nanos()
    ));
    let store = directory.open();
    let mut history = alibi_proto::clock::ClockHistory::clone(&store.clock(HOST).unwrap());
    let [piece] = &history.pieces[..] else { panic!("{history:?}") };
    assert_eq!((&piece.boot_id, piece.first.wall, piece.last.wall), (&None, Timestamp::ZERO, until));

    history.measured(&ClockReading {
        boot_id: "boot".into(),
        boot_ns: 5,
        difference: Difference::ZERO,
        measured: until,
        shared: Some(0),
        epoch: Epoch(5),
        begins: Some(vec![BootBegin { boot_id: "boot".into(), first: Seq(1) }]),
    });
    let now = until.saturating_add(Duration::from_secs(1_000));
    history.saw(Epoch(5), None, Moment { wall: now, boot_ns: now.as_nanos() });
    let clock = history.clock(now.saturating_add(Duration::from_secs(100)));
    let window = |from: Timestamp| Window::new(from, from.saturating_add(Duration::from_secs(9))).unwrap();
    assert_eq!(clock.over(window(Timestamp::from_secs(1_763_000_000))).unmeasured.len(), 1);
    assert_eq!(clock.over(window(now.saturating_add(Duration::from_secs(6)))).unmeasured, []);
}

/// Of what is deleted, the room comes back, in a file that was made by this version.
#[test]
fn what_is_forgotten_gives_its_room_back() {
    let directory = Directory::new();
    let store = directory.open();
    directory.edit("CREATE TABLE large (x BLOB)");
    directory.edit("INSERT INTO large SELECT zeroblob(10000) FROM json_each('[' || substr(replace(hex(zeroblob(500)), '00', ',1'), 2) || ']')");
    let bytes = || fs::metadata(directory.file()).unwrap().len();
    let cut = || directory.edit("PRAGMA wal_checkpoint(TRUNCATE)");
    cut();
    let before = bytes();
    assert!(before > 5_000_000);
    directory.edit("DROP TABLE large");
    store.forget(Timestamp::from_secs(1)).unwrap();
    cut();
    assert!(bytes() < before - 4_900_000, "{} of {before}", bytes());
}
