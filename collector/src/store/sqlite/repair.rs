//! A main database that is damaged, made anew of what can be read of it.
//!
//! Nobody knows which rows are missing then. So nothing before the repair is proven any more, of any host; what is there is
//! found as before. The damaged file is put aside. To do all that is for a person to decide, who may have a backup, or a disk
//! that must be replaced first: the collector never does it by itself.

use std::path::{Path, PathBuf};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Timeline},
    id::HostId,
    time::Timestamp,
};
use rusqlite::{Connection, OpenFlags, Transaction, params, params_from_iter, types::Value};

use super::{
    FLOWS_EXTENSION, FORMAT, agents, clock,
    codec::{damaged, host_id},
    coverage, names,
};
use crate::store::{
    StoreError,
    database::{self, Database},
    flows as store_flows,
};

/// Numbers of hosts and of rings that may have been given out and are not known any more: none of them is given out again, so
/// that no record becomes another host's.
const NUMBERS_SKIPPED: i64 = 1_000_000;
/// Why nothing is proven before.
const REASON: &str = "the collector's main database was damaged then, and repaired";

/// What became of a database that was repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What was wrong.
    pub problems: Vec<String>,
    /// How many rows there are now, table by table.
    pub rows: Vec<(String, u64)>,
    /// What was damaged is there now.
    pub aside: PathBuf,
}

/// What is wrong in the database at `path` and in the flow records beside it, though a collector may be writing there.
pub(super) fn check(path: &Path) -> Result<Vec<String>, StoreError> {
    let database = Database::open_to_read(path, &FORMAT)?;
    let mut found = Vec::new();
    for checked in [problems(&database), store_flows::check(&database, &path.with_extension(FLOWS_EXTENSION))]
    {
        match checked {
            Err(error) if store_flows::opening::is_damage(&error) => found.push(error.to_string()),
            checked => found.extend(checked?),
        }
    }
    Ok(found)
}

/// What is wrong in the database itself.
fn problems(database: &Database) -> Result<Vec<String>, StoreError> {
    let mut problems = Vec::new();
    for table in database.tables()? {
        let of_table = database.check_table(&table, drop)?;
        problems.extend(of_table.into_iter().map(|problem| format!("{table}: {problem}")));
    }
    // Where the tables are damaged, which rows are is not to be told.
    if problems.is_empty() {
        problems = database.read(check_rows)?;
        let names = database.read(|connection| names::check_rows(connection, || true));
        problems.extend(names.err().map(|error| error.to_string()));
    }
    Ok(problems)
}

/// Of the rows that a `clear` rests on, those that are not as they were written.
pub(super) fn check_rows(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut problems = Vec::new();
    let mut note = |of: &str, result: Result<(), StoreError>| match result {
        Err(error @ StoreError::Damaged { .. }) => {
            problems.push(format!("{of}: {error}"));
            Ok(())
        }
        other => other,
    };
    for (row, uuid) in hosts(connection)? {
        let Ok(host) = host_id(&uuid) else {
            note("host", Err(damaged("host id", row)))?;
            continue;
        };
        let of = format!("host {host}");
        note(&of, agents::load(connection, host).map(drop))?;
        note(&of, clock::of_row(connection, row).map(drop))?;
        for facet in Facet::ALL {
            note(&of, coverage::stored(connection, row, facet).map(drop))?;
        }
    }
    note("what is forgotten", coverage::forgotten(connection).map(drop))?;
    Ok(problems)
}

fn hosts(connection: &Connection) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
    let mut statement = connection.prepare("SELECT id, uuid FROM host ORDER BY id")?;
    let hosts = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(hosts.collect::<Result<_, _>>()?)
}

/// Makes the database at `path`, which nobody has open, anew of what can be read of it; nothing where nothing is wrong.
pub(super) fn repair(path: &Path, now: Timestamp) -> Result<Option<Repaired>, StoreError> {
    let problems = match Database::open(path, &FORMAT).and_then(|database| problems(&database)) {
        Ok(problems) if problems.is_empty() => return Ok(None),
        Ok(problems) => problems,
        Err(error) if store_flows::opening::is_damage(&error) => vec![error.to_string()],
        Err(error) => return Err(error),
    };
    let anew = path.with_extension("repaired");
    database::remove(&anew)?;
    drop(Database::open(&anew, &FORMAT)?);
    let rows = copy_all(path, &anew, now);
    // What was made so far is worth nothing.
    let rows = rows.inspect_err(|_| drop(database::remove(&anew)))?;
    let aside = database::put_aside(path)?;
    let unusable = |error: std::io::Error| damaged("repaired database", error);
    std::fs::rename(&anew, path).map_err(unusable)?;
    Ok(Some(Repaired { problems, rows, aside }))
}

fn copy_all(from: &Path, to: &Path, now: Timestamp) -> Result<Vec<(String, u64)>, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let from = Connection::open_with_flags(from, flags)?;
    let mut to = Connection::open(to)?;
    to.pragma_update(None, "foreign_keys", false)?;
    let transaction = to.transaction()?;
    let mut rows = Vec::new();
    for (table, has_rowid) in tables(&transaction)? {
        copy_table(&from, &transaction, &table, has_rowid)?;
        let count = format!("SELECT count(*) FROM \"{table}\"");
        let count: i64 = transaction.query_row(&count, [], |row| row.get(0))?;
        rows.push((table, count.cast_unsigned()));
    }
    prove_nothing(&transaction, now)?;
    transaction.commit()?;
    to.pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |_| Ok(()))?;
    Ok(rows)
}

/// The tables that there are in a new database, and whether each has row ids.
fn tables(connection: &Connection) -> Result<Vec<(String, bool)>, StoreError> {
    let select = "SELECT name, wr FROM pragma_table_list WHERE type = 'table' AND schema = 'main' AND name NOT LIKE 'sqlite_%'";
    let mut statement = connection.prepare(select)?;
    let tables = statement.query_map([], |row| Ok((row.get(0)?, !row.get::<_, bool>(1)?)))?;
    Ok(tables.collect::<Result<_, _>>()?)
}

/// Copies the rows that can be reached from the beginning of a table, and those that can be reached from its end.
fn copy_table(
    from: &Connection,
    to: &Transaction<'_>,
    table: &str,
    has_rowid: bool,
) -> Result<(), StoreError> {
    let list = |select: &str| -> Result<Vec<String>, StoreError> {
        let mut statement = to.prepare(select)?;
        let names = statement.query_map([table], |row| row.get::<_, String>(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    };
    let columns = list("SELECT name FROM pragma_table_info(?)")?;
    let key = list("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk")?;
    let key = if has_rowid { vec!["rowid".to_owned()] } else { key };
    let names = columns.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let places = vec!["?"; columns.len()].join(", ");
    let mut insert = to.prepare(&format!("INSERT OR IGNORE INTO \"{table}\" ({names}) VALUES ({places})"))?;
    for direction in ["ASC", "DESC"] {
        let order = key.iter().map(|name| format!("{name} {direction}")).collect::<Vec<_>>().join(", ");
        let select = format!("SELECT {names} FROM \"{table}\" NOT INDEXED ORDER BY {order}");
        // What cannot be read is what is damaged; and what is no row of the table, is none.
        let Ok(mut statement) = from.prepare(&select) else { continue };
        let Ok(mut rows) = statement.query([]) else { continue };
        while let Ok(Some(row)) = rows.next() {
            let values: Result<Vec<Value>, _> = (0..columns.len()).map(|at| row.get(at)).collect();
            let Ok(values) = values else { continue };
            match insert.execute(params_from_iter(values)) {
                Err(error) if error.sqlite_error_code() != Some(rusqlite::ErrorCode::ConstraintViolation) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Nothing that was told until now is proven; what is damaged in a row is taken away.
fn prove_nothing(transaction: &Transaction<'_>, now: Timestamp) -> Result<(), StoreError> {
    if matches!(coverage::forgotten(transaction), Err(StoreError::Damaged { .. })) {
        transaction.execute("DELETE FROM forgotten", [])?;
    }
    // Runs are told of anew by the files that they are in.
    for entry in store_flows::opening::entries(transaction)?.iter().filter(|entry| entry.times.is_none()) {
        transaction.execute("DELETE FROM flow_run WHERE id = ?", [entry.id])?;
    }
    for (row, uuid) in hosts(transaction)? {
        let Ok(host) = host_id(&uuid) else {
            transaction.execute("DELETE FROM host WHERE id = ?", [row])?;
            transaction.execute("DELETE FROM host_description WHERE host = ?", [row])?;
            continue;
        };
        prove_nothing_of(transaction, row, host, now)?;
    }
    transaction.execute("UPDATE agent SET host = NULL WHERE host NOT IN (SELECT id FROM host)", [])?;
    // Whose name is lost, it must not become another one's.
    transaction.execute("DELETE FROM resolved WHERE answer NOT IN (SELECT id FROM answer)", [])?;
    skip_numbers(transaction, now)
}

fn prove_nothing_of(
    transaction: &Transaction<'_>,
    row: i64,
    host: HostId,
    now: Timestamp,
) -> Result<(), StoreError> {
    if matches!(clock::of_row(transaction, row), Err(StoreError::Damaged { .. })) {
        transaction.execute("DELETE FROM clock WHERE host = ?", [row])?;
    }
    transaction
        .execute("UPDATE host SET ring = NULL WHERE id = ? AND ring NOT IN (SELECT id FROM ring)", [row])?;
    let progress = match agents::load(transaction, host) {
        Err(StoreError::Damaged { .. }) => {
            // How far it is known is not known. What is wanted next, the chain will show to be right or wrong.
            transaction.execute("UPDATE host SET checksum = NULL, known_until = NULL WHERE id = ?", [row])?;
            agents::load(transaction, host)?
        }
        loaded => loaded?,
    };
    if let Some(stored) = progress {
        agents::persist(transaction, host, &stored.progress)?;
    }
    for facet in Facet::ALL {
        let mut timeline = match coverage::stored(transaction, row, facet) {
            Err(StoreError::Damaged { .. }) => Timeline::default(),
            stored => stored?,
        };
        timeline.apply(&CoverageChange {
            facet,
            grade: Grade::NotRecorded { reason: REASON.to_owned() },
            from: Timestamp::ZERO,
            to: Some(now),
            scope: None,
            announced_from: None,
        });
        coverage::replace(transaction, row, facet, timeline)?;
    }
    Ok(())
}

/// Takes the greatest number of a host and of a ring, far behind all that may have been given out.
fn skip_numbers(transaction: &Transaction<'_>, now: Timestamp) -> Result<(), StoreError> {
    let greatest = |table: &str| {
        let select = format!("SELECT coalesce(max(id), 0) + {NUMBERS_SKIPPED} FROM {table}");
        transaction.query_row(&select, [], |row| row.get::<_, i64>(0))
    };
    let (host, ring) = (greatest("host")?, greatest("ring")?);
    let nobody = [[0; 8], now.as_nanos().to_be_bytes()].concat();
    let insert = "INSERT INTO host (id, uuid) VALUES (?, ?)";
    transaction.execute(insert, params![host, nobody])?;
    let insert = "INSERT INTO ring (id, host, epoch, next_seq) VALUES (?, ?, 1, 1)";
    transaction.execute(insert, params![ring, host])?;
    Ok(())
}
