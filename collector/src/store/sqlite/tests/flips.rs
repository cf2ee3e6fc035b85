//! Whatever byte of the main database is another one, nothing is proven by it that was not.

use std::path::PathBuf;

use alibi_proto::{
    clock::ClockHistory,
    name::{NameResolution, ServerNameRecord},
};

use super::{super::agents, *};
use crate::store::Repaired;

/// What a `clear` rests on.
#[derive(Clone, Debug, PartialEq)]
struct Proof {
    known_until: Option<Timestamp>,
    coverage: Timeline,
    clock: ClockHistory,
    flows: Vec<alibi_proto::flow::FlowRecord>,
}

/// None where something of it is said to be damaged, or to be missing.
fn proof(store: &SqliteStore) -> Option<Proof> {
    let agents = store.agents().ok()?;
    assert_eq!(agents.len(), 1, "who is followed is never left out");
    let (described, progress) = agents[0].host.as_ref()?;
    let found = store.flows(described.host, &question("198.51.100.7", 0, 5_000), &no_names(), 10_000).ok()?;
    Some(Proof {
        known_until: Some(progress.known_until?),
        coverage: (*store.coverage(described.host, Facet::Connections).ok()?).clone(),
        clock: (*store.clock(described.host).ok()?).clone(),
        flows: if found.damage.is_empty() { found.rows } else { return None },
    })
}

/// A store with records in a run and records that had just come, with something forgotten.
fn filled() -> (Directory, Proof) {
    let directory = Directory::new();
    let store = directory.open();
    store.add_agent("one:1").unwrap();
    let reading = ClockReading {
        boot_id: "boot".into(),
        boot_ns: 5,
        difference: Difference::ZERO,
        measured: Timestamp::from_secs(1),
        shared: Some(1_000_000_000_000),
        epoch: Epoch(5),
        begins: Some(vec![BootBegin { boot_id: "boot".into(), first: Seq(1) }]),
    };
    store.describe("one:1", &description(HOST), Some(&reading), Timestamp::from_secs(1)).unwrap();
    let complete = EventKind::CoverageChanged(CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Complete,
        from: Timestamp::from_secs(100),
        to: None,
        scope: None,
        announced_from: None,
    });
    let flow_at = |second| EventKind::Flow(Box::new(flow("198.51.100.7:443", second, second)));
    let resolved = EventKind::NameResolved(Box::new(NameResolution {
        at: Timestamp::from_secs(1_999),
        name: "b.example".into(),
        aliases: Vec::new(),
        addresses: vec!["198.51.100.7".parse().unwrap()],
        ttl_s: 60,
        server: "192.0.2.53:53".parse().unwrap(),
        process: None,
        network_namespace: None,
    }));
    let said = EventKind::ServerName(Box::new(ServerNameRecord {
        at: Timestamp::from_secs(1_999),
        connection: None,
        name: Some("b.example".into()),
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: "198.51.100.7:443".parse().unwrap(),
        network_namespace: None,
    }));
    let kinds: Vec<_> = [complete, resolved, said].into_iter().chain((2_000..2_400).map(flow_at)).collect();
    let mut next = 1;
    for some in kinds.chunks(80) {
        let recorded = Moment { wall: Timestamp::from_secs(2_400), boot_ns: 6 };
        let events: Vec<_> = (next..)
            .zip(some)
            .map(|(seq, kind)| Event { seq: Seq(seq), recorded, kind: kind.clone() })
            .collect();
        next += events.len() as u64;
        let watermark = Some(Timestamp::from_secs(3_000));
        let batch = Batch { epoch: Epoch(5), hole: None, events, link: None, watermark, clock: None };
        store.commit(HOST, &batch, Timestamp::from_secs(3_000)).unwrap();
    }
    let in_runs = "SELECT count(*) FROM flow_run";
    while store.read(|connection| Ok(connection.query_row(in_runs, [], |row| row.get::<_, i64>(0))?)).unwrap()
        == 0
    {
        std::thread::yield_now();
    }
    store.forget(Timestamp::from_secs(500)).unwrap();
    let proof = proof(&store).unwrap();
    assert_eq!(proof.flows.len(), 400);
    drop(store);
    (directory, proof)
}

#[test]
fn a_byte_that_changes_proves_nothing_that_was_not_proven() {
    let (directory, want) = filled();
    directory.edit("PRAGMA wal_checkpoint(TRUNCATE)");
    let whole = fs::read(directory.file()).unwrap();
    let flows: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(directory.file().with_extension("flows"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let beside = |end: &str| PathBuf::from(format!("{}{end}", directory.file().display()));
    let mut random = fastrand::Rng::with_seed(9);
    let (mut refused, mut unproven, mut same) = (0, 0, 0);
    for at in (0..whole.len()).filter(|at| at % 601 == 0 || (whole[*at] != 0 && at % 11 == 0)) {
        let mut changed = whole.clone();
        changed[at] ^= if random.bool() { 1 << random.u8(..8) } else { random.u8(1..) };
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(beside(end));
        }
        fs::write(directory.file(), changed).unwrap();
        for (path, bytes) in &flows {
            fs::write(path, bytes).unwrap();
        }
        let Ok(store) = SqliteStore::open(&directory.file()) else {
            refused += 1;
            continue;
        };
        let Some(is) = proof(&store) else {
            unproven += 1;
            continue;
        };
        // A host of which nothing is known proves nothing.
        if is.coverage == Timeline::default() {
            unproven += 1;
            continue;
        }
        assert!(is.known_until <= want.known_until, "byte {at}: {:?}", is.known_until);
        assert_eq!(Proof { known_until: want.known_until, ..is }, want, "byte {at}");
        same += 1;
    }
    assert!(
        refused > 50 && unproven > 50 && same > 50,
        "{refused} refused, {unproven} unproven, {same} the same"
    );
}

#[test]
fn a_main_database_that_is_damaged_names_the_ways_out() {
    let (directory, _) = filled();
    directory.edit("PRAGMA wal_checkpoint(TRUNCATE)");
    let connection = Connection::open(directory.file()).unwrap();
    let page = "SELECT rootpage FROM sqlite_schema WHERE name = 'coverage'";
    let page: i64 = connection.query_row(page, [], |row| row.get(0)).unwrap();
    drop(connection);
    let mut bytes = fs::read(directory.file()).unwrap();
    bytes[(page as usize - 1) * 4_096..][..64].fill(0xa5);
    fs::write(directory.file(), bytes).unwrap();
    let Err(error) = SqliteStore::open(&directory.file()) else { panic!("it was opened") };
    let error = error.to_string();
    assert!(
        error.contains("is damaged (")
            && error.contains("`alibi restore`")
            && error.contains("`alibi repair`"),
        "{error}"
    );
}

/// Tables that nothing is refused for are looked at beside the work, and are a gap of everything.
#[test]
fn damage_that_is_found_beside_the_work_is_a_gap() {
    let (directory, _) = filled();
    let records = "INSERT INTO answer (name, address, host, first, last) SELECT randomblob(40), randomblob(5), 1, 1, 1 FROM json_each('[1' || replace(hex(zeroblob(400)), '00', ',1') || ']')";
    directory.edit(records);
    directory.edit("PRAGMA wal_checkpoint(TRUNCATE)");
    let connection = Connection::open(directory.file()).unwrap();
    let page = "SELECT rootpage FROM sqlite_schema WHERE name = 'answer'";
    let page: i64 = connection.query_row(page, [], |row| row.get(0)).unwrap();
    drop(connection);
    let mut bytes = fs::read(directory.file()).unwrap();
    bytes[(page as usize - 1) * 4_096..][..64].fill(0xa5);
    fs::write(directory.file(), bytes).unwrap();
    let store = directory.open();
    assert!(proof(&store).is_some());
    store.check_beside();
    while store.integrity.damage().is_empty() {
        std::thread::yield_now();
    }
    let found = store.flows(HOST, &question("198.51.100.7", 0, 5_000), &no_names(), 10_000).unwrap();
    assert!(found.damage[0].reason.contains("answer"), "{:?}", found.damage);
    assert_eq!(found.rows.len(), 400, "what is there is found all the same");
}

/// A name that is not found where it belongs could prove that nobody talked to it.
#[test]
fn names_that_are_not_as_they_were_told_are_a_gap_of_everything() {
    for edit in [
        "UPDATE answer SET name = CAST('a' || name AS BLOB)",
        "UPDATE resolved SET first = first + 1",
        "UPDATE server_name SET name = CAST('a' || name AS BLOB)",
    ] {
        let (directory, _) = filled();
        directory.edit(edit);
        assert_eq!(SqliteStore::check(&directory.file()).unwrap().len(), 1, "{edit}");
        let store = directory.open();
        store.check_beside();
        while store.integrity.damage().is_empty() {
            std::thread::yield_now();
        }
    }
}

/// Overwrites the beginning of the first page of a table, or another one of its pages.
fn damage(directory: &Directory, table: &str, skip: usize) {
    directory.edit("PRAGMA wal_checkpoint(TRUNCATE)");
    let connection = Connection::open(directory.file()).unwrap();
    let page = "SELECT pageno FROM dbstat WHERE name = ? ORDER BY path LIMIT 1 OFFSET ?";
    let page: i64 =
        connection.query_row(page, rusqlite::params![table, skip as i64], |row| row.get(0)).unwrap();
    drop(connection);
    let mut bytes = fs::read(directory.file()).unwrap();
    bytes[(page as usize - 1) * 4_096..][..64].fill(0xa5);
    fs::write(directory.file(), bytes).unwrap();
}

/// No moment until then is proven.
#[track_caller]
fn assert_unproven(coverage: &Timeline, until: Timestamp) {
    for second in (0..until.as_nanos() / 1_000_000_000).step_by(50).map(Timestamp::from_secs) {
        let window = Window::new(second, second.saturating_add(Duration::from_secs(1))).unwrap();
        assert!(!coverage.gaps(Facet::Connections, window, Some(Timestamp::MAX)).is_empty(), "{second}");
    }
}

#[test]
fn a_database_that_is_repaired_has_what_could_be_read_and_proves_nothing_from_before() {
    for table in ["coverage", "host", "arrived", "clock", "flow_run", "ring", "process", "anchor"] {
        let (directory, before) = filled();
        let now = Timestamp::from_secs(4_000);
        assert_eq!(SqliteStore::check(&directory.file()).unwrap(), Vec::<String>::new());
        assert_eq!(SqliteStore::repair(&directory.file(), now).unwrap(), None, "nothing is wrong");
        damage(&directory, table, 0);
        let problems = SqliteStore::check(&directory.file()).unwrap();
        assert!(problems.iter().any(|problem| problem.contains(table)), "{table}: {problems:?}");
        let Repaired { aside, .. } = SqliteStore::repair(&directory.file(), now).unwrap().unwrap();
        assert!(aside.exists(), "{}", aside.display());

        let store = directory.open();
        let agents = store.agents().unwrap();
        assert_eq!(agents.len(), 1, "{table}");
        // Of a host that is not known any more, nothing is; else all of the time until now is a gap.
        let coverage = store.coverage(HOST, Facet::Connections).unwrap();
        assert_unproven(&coverage, now);
        let found = store.flows(HOST, &question("198.51.100.7", 0, 5_000), &no_names(), 10_000).unwrap();
        match table {
            "host" => assert!(agents[0].host.is_none() && found.rows.is_empty()),
            "arrived" => assert!(found.rows.len() < before.flows.len() && !found.rows.is_empty()),
            _ => assert_eq!(found.rows, before.flows, "{table}"),
        }
        // The host is heard again, and goes on; a number that was another's is not given out again.
        store.describe("one:1", &description(HOST), None, now).unwrap();
        let number = store.read(|connection| Ok(agents::numbers(connection)?[&HOST])).unwrap();
        assert_eq!(number == 1, table != "host", "{table}: {number}");
        drop(store);
        assert_eq!(SqliteStore::check(&directory.file()).unwrap(), Vec::<String>::new(), "{table}");
    }
}

#[test]
fn a_row_that_is_damaged_is_a_gap_of_its_host_until_it_is_repaired() {
    for (edit, told) in [
        ("UPDATE coverage SET checksum = checksum + 1", "coverage record"),
        ("UPDATE host SET known_until = known_until + 1000000000000", "progress of a host"),
        ("UPDATE ring SET next_seq = next_seq + 1", "progress of a host"),
        ("UPDATE clock SET record = CAST(record || x'00' AS BLOB)", "clock history"),
        ("UPDATE forgotten SET until = 0", "end of what is forgotten"),
    ] {
        let (directory, before) = filled();
        directory.edit(edit);
        let problems = SqliteStore::check(&directory.file()).unwrap();
        assert!(
            problems.iter().all(|problem| problem.contains(told)) && !problems.is_empty(),
            "{edit}: {problems:?}"
        );
        if told != "end of what is forgotten" {
            let store = directory.open();
            assert_eq!(proof(&store), None, "{edit}");
        }
        let now = Timestamp::from_secs(4_000);
        SqliteStore::repair(&directory.file(), now).unwrap().unwrap();
        let store = directory.open();
        let found = store.flows(HOST, &question("198.51.100.7", 0, 5_000), &no_names(), 10_000).unwrap();
        assert_eq!(found.rows, before.flows, "{edit}");
        assert_unproven(&store.coverage(HOST, Facet::Connections).unwrap(), now);
        let known_until = store.agents().unwrap()[0].host.as_ref().unwrap().1.known_until;
        assert!(known_until <= before.known_until, "{edit}: {known_until:?}");
    }
}
