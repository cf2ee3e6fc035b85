//! The audit log.

use std::time::Duration;

use alibi_proto::{chain::Head, id::HostId, time::Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter, types::Value};

use crate::{
    access::audit::{Actor, Entries, Entry, Filter, Note, PROBLEMS_MAX, Scope, Verified},
    store::{
        StoreError,
        codec::{hash, host_id, limit as sql_limit, signed, time, unsigned},
    },
};

/// The columns that [`entry`] reads.
const COLUMNS: &str =
    "seq, at, who, role, origin, action, detail, outcome, row_count, hosts, all_hosts, repeats, head";

/// What was pruned is worth an entry once the oldest is older than it had to be by so much.
const PRUNED_LATE: Duration = Duration::from_secs(86_400);
/// Entries that go at once, so that others wait for the store only so long. Few under test, so that the limit is met.
const PRUNED_MAX: u64 = if cfg!(test) { 16 } else { 100_000 };

/// What is noted of it.
const PRUNE: &str = "audit prune";

fn up_to(last: u64) -> String {
    format!("to {last}, ")
}

/// How far the log goes, and where it begins.
struct End {
    seq: u64,
    head: Head,
    base_seq: u64,
    base_head: Head,
}

fn end(connection: &Connection) -> Result<End, StoreError> {
    let mut statement = connection.prepare_cached("SELECT seq, head, base_seq, base_head FROM audit_end")?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else {
        let head = Entry::head_of_nothing();
        return Ok(End { seq: 0, head, base_seq: 0, base_head: head });
    };
    Ok(End {
        seq: unsigned("audit log", row.get(0)?)?,
        head: head(row, 1)?,
        base_seq: unsigned("audit log", row.get(2)?)?,
        base_head: head(row, 3)?,
    })
}

fn head(row: &Row<'_>, index: usize) -> Result<Head, StoreError> {
    hash("head of the audit log", &row.get::<_, Vec<u8>>(index)?).map(Head::from_bytes)
}

pub(super) fn newest(connection: &Connection) -> Result<u64, StoreError> {
    end(connection).map(|end| end.seq)
}

pub(super) fn append(
    connection: &Connection,
    note: &Note,
    at: Timestamp,
    repeats: u64,
) -> Result<Entry, StoreError> {
    let end = end(connection)?;
    if end.seq == 0 {
        connection.execute(
            "INSERT OR IGNORE INTO audit_end (one, seq, head, base_seq, base_head) VALUES (1, 0, ?1, 0, ?1)",
            [end.head.as_bytes()],
        )?;
    }
    let entry = Entry::new(end.seq + 1, at, note, repeats, &end.head);
    insert(connection, &entry)?;
    let mut statement = connection.prepare_cached("UPDATE audit_end SET seq = ?, head = ?")?;
    statement.execute(params![signed("seq", entry.seq)?, entry.head.as_bytes()])?;
    Ok(entry)
}

fn insert(connection: &Connection, entry: &Entry) -> Result<(), StoreError> {
    let seq = signed("seq", entry.seq)?;
    let hosts: Vec<u8> = entry.hosts.iter().flat_map(|host| *host.as_bytes()).collect();
    let mut statement = connection.prepare_cached(&format!(
        "INSERT INTO audit ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    ))?;
    statement.execute(params![
        seq,
        entry.at.as_nanos_i64(),
        entry.who,
        entry.role,
        entry.from,
        entry.action,
        entry.detail,
        entry.outcome,
        signed("number of rows", entry.rows)?,
        hosts,
        entry.all_hosts,
        signed("number of repeats", entry.repeats)?,
        entry.head.as_bytes(),
    ])?;
    let mut statement =
        connection.prepare_cached("INSERT INTO audit_host (host, seq, by_analyst) VALUES (?, ?, ?)")?;
    for host in &entry.hosts {
        statement.execute(params![host.as_bytes(), seq, entry.is_analysts()])?;
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> Result<Entry, StoreError> {
    let hosts: Vec<u8> = row.get(9)?;
    Ok(Entry {
        seq: unsigned("seq", row.get(0)?)?,
        at: time("entry", row.get(1)?)?,
        who: row.get(2)?,
        role: row.get(3)?,
        from: row.get(4)?,
        action: row.get(5)?,
        detail: row.get(6)?,
        outcome: row.get(7)?,
        rows: unsigned("number of rows", row.get(8)?)?,
        hosts: hosts.chunks(16).map(host_id).collect::<Result<_, _>>()?,
        all_hosts: row.get(10)?,
        repeats: unsigned("number of repeats", row.get(11)?)?,
        head: head(row, 12)?,
    })
}

pub(super) fn entries(
    connection: &Connection,
    before: u64,
    limit: usize,
    filter: &Filter,
) -> Result<Entries, StoreError> {
    let mut conditions = String::new();
    let mut values = Vec::new();
    if before != 0 {
        conditions.push_str(" AND seq < ?");
        values.push(Value::from(i64::try_from(before).unwrap_or(i64::MAX)));
    }
    if let Some(who) = &filter.who {
        conditions.push_str(" AND who = ?");
        values.push(Value::from(who.clone()));
    }
    if let Some(host) = filter.host {
        conditions.push_str(
            " AND (all_hosts = 1 OR EXISTS (SELECT 1 FROM audit_host WHERE host = ? AND audit_host.seq = audit.seq))",
        );
        values.push(Value::from(host.as_bytes().to_vec()));
    }
    values.push(Value::from(sql_limit(limit.saturating_add(1))));
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE TRUE{conditions} ORDER BY seq DESC LIMIT ?"
    ))?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(entry(row)?);
    }
    let more = entries.len() > limit;
    entries.truncate(limit);
    Ok(Entries { entries, more })
}

pub(super) fn entries_about(
    connection: &Connection,
    host: HostId,
    after: u64,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut statement = connection.prepare_cached(&about())?;
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![host.as_bytes(), after, sql_limit(limit)])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(entry(row)?);
    }
    Ok(entries)
}

/// A host, the entry before the first that is wanted, and how many are.
pub(super) fn about() -> String {
    format!(
        "SELECT {COLUMNS} FROM audit WHERE seq IN (
             SELECT seq FROM (SELECT seq FROM audit_host WHERE host = ?1 AND seq > ?2 AND by_analyst = 1
                 ORDER BY seq LIMIT ?3)
             UNION SELECT seq FROM (SELECT seq FROM audit WHERE all_hosts = 1 AND role NOT IN ('', 'host') AND seq > ?2
                 ORDER BY seq LIMIT ?3)
         ) ORDER BY seq LIMIT ?3"
    )
}

/// The entry that tells of it, if any went.
pub(super) fn prune(
    connection: &Connection,
    before: Timestamp,
    now: Timestamp,
) -> Result<Option<u64>, StoreError> {
    let oldest = "SELECT at FROM audit ORDER BY seq LIMIT 1";
    let oldest: Option<i64> = connection.query_row(oldest, [], |row| row.get(0)).optional()?;
    let late = before.saturating_sub(PRUNED_LATE);
    if oldest.is_none_or(|oldest| oldest >= late.as_nanos_i64()) {
        return Ok(None);
    }
    let End { seq: newest, base_seq, .. } = end(connection)?;
    let kept = "SELECT seq FROM audit WHERE at >= ? ORDER BY seq LIMIT 1";
    let kept: Option<i64> =
        connection.query_row(kept, [before.as_nanos_i64()], |row| row.get(0)).optional()?;
    let kept = kept.map_or(Ok(newest + 1), |kept| unsigned("seq", kept))?;
    let last = (kept - 1).min(base_seq + PRUNED_MAX);
    let seq = signed("seq", last)?;
    connection.execute(
        "UPDATE audit_end SET base_seq = ?1, base_head = (SELECT head FROM audit WHERE seq = ?1)",
        [seq],
    )?;
    connection.execute("DELETE FROM audit WHERE seq <= ?", [seq])?;
    connection.execute("DELETE FROM audit_host WHERE seq <= ?", [seq])?;
    let note = Note {
        actor: Actor::Nobody,
        from: "the collector".into(),
        action: PRUNE.into(),
        detail: format!("entries {} {}from before {before:.0}", base_seq + 1, up_to(last)),
        outcome: "ok".into(),
        rows: last - base_seq,
        scope: Scope::Hosts(Vec::new()),
    };
    append(connection, &note, now, 0).map(|entry| Some(entry.seq))
}

pub(super) fn verify(connection: &Connection) -> Result<Verified, StoreError> {
    let end = end(connection)?;
    let mut verified = Verified {
        from_seq: end.base_seq + 1,
        to_seq: end.base_seq,
        head: end.base_head,
        problems: Vec::new(),
        problems_left_out: 0,
    };
    let (mut hosts, mut is_pruning_noted) = (0, end.base_seq == 0);
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match entry(row) {
            Ok(entry) => {
                follow(&mut verified, &entry);
                hosts += entry.hosts.len() as u64;
                is_pruning_noted |= entry.action == PRUNE && entry.detail.contains(&up_to(end.base_seq));
                find_by_host(connection, &mut verified, &entry)?;
            }
            Err(error) => {
                let unreadable = format!("an entry after {} cannot be read: {error}", verified.to_seq);
                problem(&mut verified, unreadable);
            }
        }
    }
    if !is_pruning_noted {
        let begin = end.base_seq + 1;
        problem(&mut verified, format!("the log begins with entry {begin}, and nothing in it says why"));
    }
    if verified.to_seq < end.seq {
        let missing = span(verified.to_seq + 1, end.seq);
        problem(&mut verified, format!("{missing} missing at the end"));
    } else if (verified.to_seq, verified.head) != (end.seq, end.head) {
        problem(&mut verified, format!("the log does not end as was noted, with entry {}", end.seq));
    }
    let listed: i64 = connection.query_row("SELECT count(*) FROM audit_host", [], |row| row.get(0))?;
    if unsigned("number of entries", listed)? > hosts {
        problem(&mut verified, "more entries are listed under hosts than are about them".to_owned());
    }
    Ok(verified)
}

/// Goes on with `entry`. What comes after one that was changed is held against the head that is stored with that.
fn follow(verified: &mut Verified, entry: &Entry) {
    let wanted = verified.to_seq + 1;
    let (seq, follows) = (entry.seq, entry.head_after(&verified.head) == entry.head);
    if seq > wanted {
        problem(verified, format!("{} missing", span(wanted, seq - 1)));
    } else if seq < wanted {
        problem(verified, format!("entry {seq} is from before those that are kept"));
    } else if !follows {
        problem(verified, format!("entry {seq} was changed, or what is before it"));
    }
    verified.to_seq = verified.to_seq.max(seq);
    verified.head = entry.head;
}

fn find_by_host(connection: &Connection, verified: &mut Verified, entry: &Entry) -> Result<(), StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT count(*) FROM audit_host WHERE host = ? AND seq = ? AND by_analyst = ?")?;
    for host in &entry.hosts {
        let values = params![host.as_bytes(), signed("seq", entry.seq)?, entry.is_analysts()];
        if statement.query_row(values, |row| row.get::<_, i64>(0))? != 1 {
            problem(verified, format!("entry {} is not listed under the host {host}", entry.seq));
        }
    }
    Ok(())
}

fn span(first: u64, last: u64) -> String {
    if first == last { format!("entry {first} is") } else { format!("entries {first} to {last} are") }
}

fn problem(verified: &mut Verified, problem: String) {
    if verified.problems.len() < PROBLEMS_MAX {
        verified.problems.push(problem);
    } else {
        verified.problems_left_out += 1;
    }
}
