//! The file, and what it takes to falsify the audit log in it.

use std::{fs, path::PathBuf, time::Duration};

use alibi_proto::{id::HostId, time::Timestamp};
use rusqlite::Connection;

use super::{AccessStore, audit::about, schema::FORMAT};
use crate::{
    access::{
        audit::{Actor, Entry, Filter, Note, PROBLEMS_MAX, Scope},
        role::Role,
    },
    store::StoreError,
};

struct House(tempfile::TempDir);

impl House {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("access.db")
    }

    fn open(&self) -> AccessStore {
        AccessStore::open(&self.file()).unwrap()
    }

    fn edit(&self, sql: &str) -> rusqlite::Result<()> {
        Connection::open(self.file()).unwrap().execute_batch(sql)
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn at(days: u64) -> Timestamp {
    Timestamp::from_secs(days * 86_400)
}

fn note(action: &str, scope: Scope) -> Note {
    Note {
        actor: Actor::Analyst { name: "jdoe".into(), role: Role::Analyst },
        from: "10.0.0.1".into(),
        action: action.into(),
        detail: "what was asked".into(),
        outcome: "ok".into(),
        rows: 7,
        scope,
    }
}

/// A log of entries 1 to 9, of which 4 is about two hosts.
fn log() -> (House, AccessStore) {
    let house = House::new();
    let store = house.open();
    for seq in 1..=9 {
        let hosts =
            if seq == 4 { vec![HostId::from_bytes([1; 16]), HostId::from_bytes([2; 16])] } else { vec![] };
        store.append_entry(note(&format!("action {seq}"), Scope::Hosts(hosts)), at(seq), 0).unwrap();
    }
    (house, store)
}

const WITHOUT_TRIGGERS: &str = "DROP TRIGGER audit_goes_on; DROP TRIGGER audit_stays_as_it_is; DROP TRIGGER audit_stays;
    DROP TRIGGER audit_host_stays_as_it_is; DROP TRIGGER audit_host_stays; DROP TRIGGER audit_end_goes_forward;
    DROP TRIGGER audit_end_stays;";

#[test]
fn a_file_of_another_program_or_version_is_left_alone() {
    for (sql, want) in [
        ("CREATE TABLE t (x)", "belongs to another program"),
        // The store of events is another file.
        ("PRAGMA application_id = 1097623906; CREATE TABLE t (x)", "belongs to another program"),
        (
            &format!(
                "PRAGMA application_id = {}; PRAGMA user_version = 99; CREATE TABLE t (x)",
                FORMAT.application_id
            ),
            "newer version (schema 99",
        ),
    ] {
        let house = House::new();
        house.edit(sql).unwrap();
        let before = fs::read(house.file()).unwrap();
        match AccessStore::open(&house.file()).err() {
            Some(StoreError::Foreign { problem, .. }) => assert!(problem.contains(want), "{problem}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(house.file()).unwrap(), before);
    }
}

#[test]
fn no_statement_changes_the_log() {
    let (house, store) = log();
    for (sql, want) in [
        ("UPDATE audit SET who = 'mroe' WHERE seq = 5", "is never changed"),
        ("UPDATE audit SET seq = 10 WHERE seq = 5", "is never changed"),
        ("DELETE FROM audit", "not before its time"),
        ("DELETE FROM audit WHERE seq = 1", "not before its time"),
        ("DELETE FROM audit WHERE seq = 9", "not before its time"),
        (
            "INSERT INTO audit SELECT 42, at, who, role, origin, action, detail, outcome, row_count, hosts, all_hosts, repeats, head FROM audit WHERE seq = 1",
            "at its end only",
        ),
        (
            "INSERT OR REPLACE INTO audit SELECT 5, at, who, role, origin, action, detail, outcome, row_count, hosts, all_hosts, repeats, head FROM audit WHERE seq = 1",
            "at its end only",
        ),
        ("UPDATE audit_host SET host = zeroblob(16)", "is never changed"),
        ("DELETE FROM audit_host", "not before its time"),
        ("UPDATE audit_end SET seq = 3", "goes forward only"),
        ("UPDATE audit_end SET base_seq = 10", "goes forward only"),
        ("DELETE FROM audit_end", "has an end"),
    ] {
        let refused = house.edit(sql).unwrap_err().to_string();
        assert!(refused.contains(want), "{sql}: {refused}");
    }
    assert_eq!(store.verify_entries().unwrap().problems, Vec::<String>::new());
}

#[test]
fn what_was_falsified_is_found() {
    for (what, sql, want) in [
        ("an analyst", "UPDATE audit SET who = 'mroe' WHERE seq = 5", "entry 5 was changed"),
        ("a role", "UPDATE audit SET role = 'admin' WHERE seq = 5", "entry 5 was changed"),
        ("a time", "UPDATE audit SET at = at + 1 WHERE seq = 5", "entry 5 was changed"),
        ("an origin", "UPDATE audit SET origin = '10.0.0.2' WHERE seq = 5", "entry 5 was changed"),
        ("an action", "UPDATE audit SET action = 'hosts' WHERE seq = 5", "entry 5 was changed"),
        ("a question", "UPDATE audit SET detail = '' WHERE seq = 5", "entry 5 was changed"),
        ("an outcome", "UPDATE audit SET outcome = 'refused' WHERE seq = 5", "entry 5 was changed"),
        ("a count", "UPDATE audit SET row_count = 0 WHERE seq = 5", "entry 5 was changed"),
        ("repeats", "UPDATE audit SET repeats = 1 WHERE seq = 5", "entry 5 was changed"),
        ("a scope", "UPDATE audit SET all_hosts = 1 WHERE seq = 5", "entry 5 was changed"),
        ("a host", "UPDATE audit SET hosts = substr(hosts, 17) WHERE seq = 4", "entry 4 was changed"),
        ("a head", "UPDATE audit SET head = zeroblob(32) WHERE seq = 5", "entry 5 was changed"),
        (
            "what moves between fields",
            "UPDATE audit SET action = action || detail, detail = '' WHERE seq = 5",
            "entry 5 was changed",
        ),
        ("the first", "UPDATE audit SET who = '' WHERE seq = 1", "entry 1 was changed"),
        ("the last", "UPDATE audit SET who = '' WHERE seq = 9", "entry 9 was changed"),
        ("one is gone", "DELETE FROM audit WHERE seq = 5", "entry 5 is missing"),
        ("some are gone", "DELETE FROM audit WHERE seq IN (5, 6, 7)", "entries 5 to 7 are missing"),
        ("the first is gone", "DELETE FROM audit WHERE seq = 1", "entry 1 is missing"),
        ("the last is gone", "DELETE FROM audit WHERE seq = 9", "entry 9 is missing at the end"),
        ("the last are gone", "DELETE FROM audit WHERE seq > 5", "entries 6 to 9 are missing at the end"),
        ("all are gone", "DELETE FROM audit", "entries 1 to 9 are missing at the end"),
        (
            "one is gone and those after it moved up",
            "DELETE FROM audit WHERE seq = 5; UPDATE audit SET seq = seq - 1 WHERE seq > 5; UPDATE audit_end SET seq = 8",
            "entry 5 was changed",
        ),
        (
            "two changed places",
            "UPDATE audit SET seq = 100 WHERE seq = 5; UPDATE audit SET seq = 5 WHERE seq = 6; UPDATE audit SET seq = 6 WHERE seq = 100",
            "entry 5 was changed",
        ),
        (
            "the end is gone, and its head",
            "DELETE FROM audit WHERE seq > 5; UPDATE audit_end SET seq = 5",
            "does not end as was noted",
        ),
        (
            "the first are gone, as if their time were over",
            "UPDATE audit_end SET base_seq = 3, base_head = (SELECT head FROM audit WHERE seq = 3); DELETE FROM audit WHERE seq <= 3",
            "begins with entry 4, and nothing in it says why",
        ),
        ("the noted end", "DELETE FROM audit_end", "does not end as was noted"),
        (
            "what is listed under a host",
            "DELETE FROM audit_host WHERE host = zeroblob(16) OR seq = 4",
            "entry 4 is not listed under the host",
        ),
        (
            "who it was, in that list",
            "UPDATE audit_host SET by_analyst = 0",
            "entry 4 is not listed under the host",
        ),
        (
            "what is added to that list",
            "INSERT INTO audit_host VALUES (zeroblob(16), 5, 1)",
            "more entries are listed",
        ),
        (
            "what cannot be read",
            "UPDATE audit SET hosts = x'00' WHERE seq = 5",
            "an entry after 4 cannot be read",
        ),
    ] {
        let (house, store) = log();
        assert_eq!(store.verify_entries().unwrap().problems, Vec::<String>::new());
        house.edit(WITHOUT_TRIGGERS).unwrap();
        house.edit(sql).unwrap();
        let problems = store.verify_entries().unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains(want)), "{what}: {problems:?}");
    }
}

/// One that was changed makes none of those after it suspect.
#[test]
fn what_is_not_falsified_is_not_told() {
    let (house, store) = log();
    house.edit(WITHOUT_TRIGGERS).unwrap();
    house.edit("UPDATE audit SET who = 'mroe' WHERE seq IN (2, 5)").unwrap();
    let verified = store.verify_entries().unwrap();
    assert_eq!(verified.problems.len(), 2, "{verified:?}");
    house.edit("UPDATE audit SET who = 'mroe'").unwrap();
    let verified = store.verify_entries().unwrap();
    assert_eq!(
        (verified.problems.len(), verified.problems_left_out),
        (PROBLEMS_MAX, 9 - PROBLEMS_MAX as u64)
    );
}

#[test]
fn what_is_past_its_time_goes_and_that_is_noted() {
    let (_house, store) = log();
    let now = at(400);
    assert_eq!(store.prune_entries(at(2), now).unwrap(), None, "not worth an entry yet");
    assert_eq!(store.prune_entries(at(5), now).unwrap(), Some(10));
    let entries = |store: &AccessStore| store.entries(0, 100, &Filter::default()).unwrap().entries;
    let seqs: Vec<u64> = entries(&store).iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, [10, 9, 8, 7, 6, 5]);
    let told: Entry = entries(&store).swap_remove(0);
    let told = (told.action.as_str(), told.detail.as_str(), told.rows, told.at);
    assert_eq!(told, ("audit prune", "entries 1 to 4, from before 1970-01-06T00:00:00Z", 4, now));
    let verified = store.verify_entries().unwrap();
    assert_eq!((verified.from_seq, verified.to_seq, &verified.problems[..]), (5, 10, &[][..]));
    assert_eq!(store.prune_entries(at(5), now).unwrap(), None);

    // All that there was, and then what told of it.
    assert_eq!(store.prune_entries(now.saturating_sub(DAY), now).unwrap(), Some(11));
    let verified = store.verify_entries().unwrap();
    assert_eq!((verified.from_seq, verified.to_seq, &verified.problems[..]), (10, 11, &[][..]));
    assert_eq!(store.append_entry(note("after", Scope::All), now, 0).unwrap().seq, 12);
    assert_eq!(store.verify_entries().unwrap().problems, Vec::<String>::new());
}

/// A clock that was set back and forth: what is younger keeps what is behind it.
#[test]
fn nothing_goes_from_the_middle() {
    let house = House::new();
    let store = house.open();
    for day in [1, 9, 2, 3] {
        store.append_entry(note("x", Scope::All), at(day), 0).unwrap();
    }
    store.prune_entries(at(5), at(400)).unwrap();
    let seqs: Vec<u64> =
        store.entries(0, 100, &Filter::default()).unwrap().entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, [5, 4, 3, 2]);
}

#[test]
fn what_goes_at_once_is_bounded() {
    let house = House::new();
    let store = house.open();
    for _ in 0..40 {
        store.append_entry(note("x", Scope::All), at(1), 0).unwrap();
    }
    for want in [17, 33, 41] {
        store.prune_entries(at(100), at(400)).unwrap();
        let verified = store.verify_entries().unwrap();
        assert_eq!((verified.from_seq, &verified.problems[..]), (want, &[][..]));
    }
}

/// Each host that is connected asks for what is new about it, each time that there is something new.
#[test]
fn what_is_about_a_host_is_found_by_its_indexes() {
    let house = House::new();
    drop(house.open());
    let connection = Connection::open(house.file()).unwrap();
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {}", about())).unwrap();
    let plan = statement.query_map([0, 0, 0], |row| row.get::<_, String>(3)).unwrap();
    let plan: Vec<String> = plan.map(Result::unwrap).collect();
    for want in ["audit_host USING PRIMARY KEY (host=? AND seq>?)", "audit USING INDEX audit_of_all (seq>?)"]
    {
        assert!(plan.iter().any(|step| step.ends_with(want)), "{want}: {plan:?}");
    }
    assert!(!plan.iter().any(|step| step.starts_with("SCAN audit")), "{plan:?}");
}

#[test]
fn damage_is_named() {
    let house = House::new();
    let store = house.open();
    for (sql, what) in [
        (
            "INSERT INTO authority (fingerprint, certificate, not_before, not_after) VALUES (x'01', x'', 0, 0)",
            "fingerprint",
        ),
        (
            "DELETE FROM authority; INSERT INTO credential VALUES (1, 9, '', NULL, NULL, NULL, '', 0, 0, NULL, NULL, 0, 0)",
            "credential",
        ),
        ("UPDATE credential SET kind = 2, role = 'root'", "role"),
        ("UPDATE credential SET role = NULL, secret = x'00'", "secret"),
    ] {
        house.edit(sql).unwrap();
        let error = store.authorities().map(drop).and_then(|()| store.credentials().map(drop)).unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { what: damaged, .. } if damaged == what),
            "{sql}: {error:?}"
        );
    }
}
