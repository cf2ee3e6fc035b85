//! What was stored of processes and executables before there was any of this, noted once, a part at a time, as the store is
//! opened. What it reads are messages of the schema, which never change.

use alibi_proto::{
    executable::{ExecutableRecord, ExecutableSighting},
    process::{ProcessExecution, ProcessImage, ProcessRecord},
    time::Timestamp,
    wire,
};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{Noted, Notes};
use crate::store::{
    StoreError,
    codec::{decode, time},
};

/// Rows that are gone through in one transaction: more than have one key.
const ROWS_TOGETHER: u32 = if cfg!(test) { 8 } else { 4_096 };

/// What is gone through, in this order, since a process has the hash of its file; by which key, and what is read.
const STEPS: [(&str, &str); 3] = [
    (
        "executable",
        "SELECT host, file, record, used FROM executable WHERE (host, file) >= (?, ?) ORDER BY host, file, written LIMIT ?",
    ),
    (
        "process",
        "SELECT host, uid, record, 0 FROM process WHERE (host, uid) >= (?, ?) ORDER BY host, uid LIMIT ?",
    ),
    (
        "execution",
        "SELECT host, process, record, 0 FROM execution WHERE (host, process) >= (?, ?) ORDER BY host, process, time, ring, seq LIMIT ?",
    ),
];

/// Goes through some of it; true if there is more.
pub(in crate::store::sqlite) fn fill_some(transaction: &Transaction<'_>) -> Result<bool, StoreError> {
    let is_there = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'sighting_due'";
    if transaction.query_row(is_there, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(false);
    }
    let due = transaction
        .query_row("SELECT step, host, key FROM sighting_due", [], |row| {
            Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))
        })
        .optional()?;
    let due = due.and_then(|(step, host, key)| Some((step, STEPS.get(step as usize)?, host, key)));
    let Some((step, (what, select), host, key)) = due else {
        transaction.execute_batch("DROP TABLE sighting_due")?;
        return Ok(false);
    };
    let next = go_through(transaction, what, select, host, &key)?;
    let (step, host, key) = next.map_or_else(|| (step + 1, 0, Vec::new()), |(host, key)| (step, host, key));
    transaction.execute("UPDATE sighting_due SET step = ?, host = ?, key = ?", params![step, host, key])?;
    Ok(true)
}

/// Notes some rows from a place on; where to go on, if there are more.
fn go_through(
    connection: &Connection,
    what: &'static str,
    select: &str,
    host: i64,
    key: &[u8],
) -> Result<Option<(i64, Vec<u8>)>, StoreError> {
    // All of one key in one part: what is read again is noted to the same.
    let noted = Noted::default();
    let mut notes = Notes::new(&noted);
    let mut statement = connection.prepare(select)?;
    let mut rows = statement.query(params![host, key, ROWS_TOGETHER])?;
    let (mut count, mut last) = (0, None);
    while let Some(row) = rows.next()? {
        note(&mut notes, what, row)?;
        count += 1;
        last = Some((row.get(0)?, row.get(1)?));
    }
    notes.write(connection)?;
    Ok(last.filter(|_| count == ROWS_TOGETHER))
}

fn note(notes: &mut Notes<'_>, what: &'static str, row: &Row<'_>) -> Result<(), StoreError> {
    let host = row.get(0)?;
    let Some(record) = row.get::<_, Option<Vec<u8>>>(2)? else { return Ok(()) };
    match what {
        "executable" => {
            let seen: ExecutableRecord = decode::<wire::ExecutableSeen, _>(what, &record)?;
            notes.seen(host, &seen);
            let used: Timestamp = time("time of an executable", row.get(3)?)?;
            if seen.sighting == ExecutableSighting::Run && used > seen.at {
                let ExecutableRecord { path, file, sha256, .. } = seen;
                notes.run(
                    host,
                    &ProcessImage { path: Some(path), file, sha256, ..ProcessImage::default() },
                    used,
                );
            }
        }
        "process" => {
            let process: ProcessRecord = decode::<wire::ProcessStarted, _>(what, &record)?;
            notes.run(host, &process.image, process.started);
        }
        _ => {
            let execution: ProcessExecution = decode::<wire::ProcessExecuted, _>(what, &record)?;
            notes.run(host, &execution.image, execution.executed);
        }
    }
    Ok(())
}
