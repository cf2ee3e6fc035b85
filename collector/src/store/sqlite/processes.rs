//! Processes: their start and their end, in whichever order they arrive.

use alibi_proto::{
    flow::RECORD_SPAN_MAX,
    id::{HostId, ProcessUid},
    process::{ProcessExit, ProcessLife, ProcessRecord, User},
    time::Timestamp,
    wire,
};
use prost::Message;
use rusqlite::{Connection, Row, named_params, params};

use super::{
    agents::host_row,
    codec::{damaged, decode, host_id, limit as sql_limit, optional_time, process_uid},
    executables,
    flows::{bounded, nothing},
};
use crate::store::{Bounded, StoreError};

/// The first record is kept, because parents leave and names change; only one that saw the start itself is better
/// than one that found the process running.
pub(super) fn store_start(
    connection: &Connection,
    host: i64,
    process: &ProcessRecord,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO process (host, uid, parent, started, already_running, file, record)
         VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (host, uid) DO UPDATE SET parent = excluded.parent, started = excluded.started,
         already_running = excluded.already_running, file = excluded.file, record = excluded.record
         WHERE record IS NULL OR (already_running AND NOT excluded.already_running)",
    )?;
    statement.execute(params![
        host,
        process.uid.as_bytes(),
        process.parent.as_ref().map(|uid| uid.as_bytes().as_slice()),
        process.started.as_nanos_i64(),
        process.already_running,
        process.image.file.as_ref().map(executables::file_key),
        wire::ProcessStarted::from(process.clone()).encode_to_vec(),
    ])?;
    executables::used(connection, host, &process.image, process.started)?;
    for user in [&process.image.user, &process.image.effective_user].into_iter().flatten() {
        connection
            .prepare_cached("INSERT OR IGNORE INTO user (host, id, name) VALUES (?, ?, ?)")?
            .execute(params![host, user.id, user.name.as_deref().unwrap_or_default()])?;
    }
    Ok(())
}

pub(super) fn had_user(connection: &Connection, host: HostId, word: &str) -> Result<bool, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(false) };
    let mut statement = connection.prepare_cached("SELECT id, name FROM user WHERE host = ?")?;
    let mut rows = statement.query([host])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        let user = User { id: row.get(0)?, name: Some(name).filter(|name| !name.is_empty()) };
        if user.answers_to(word) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first end is kept. That of a process whose start is not known waits for it.
pub(super) fn store_exit(connection: &Connection, host: i64, exit: &ProcessExit) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO process (host, uid, exited, exit_code) VALUES (?, ?, ?, ?)
         ON CONFLICT (host, uid) DO UPDATE SET exited = excluded.exited, exit_code = excluded.exit_code
         WHERE exited IS NULL",
    )?;
    statement.execute(params![host, exit.uid.as_bytes(), exit.exited.as_nanos_i64(), exit.exit_code])?;
    Ok(())
}

/// When a process started, if that is on record.
pub(super) fn started(
    connection: &Connection,
    host: i64,
    uid: ProcessUid,
) -> Result<Option<Timestamp>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT started FROM process WHERE host = ? AND uid = ?")?;
    let mut rows = statement.query(params![host, uid.as_bytes()])?;
    match rows.next()? {
        Some(row) => optional_time("start of a process", row.get(0)?),
        None => Ok(None),
    }
}

pub(super) fn one(
    connection: &Connection,
    host: HostId,
    uid: ProcessUid,
    until: Timestamp,
) -> Result<Option<ProcessLife>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(None) };
    let Some(mut life) = plain(connection, host, uid)? else { return Ok(None) };
    executables::complete(connection, host, until, &mut life)?;
    Ok(Some(life))
}

/// A process as it was first recorded, and its end.
pub(super) fn plain(
    connection: &Connection,
    host: i64,
    uid: ProcessUid,
) -> Result<Option<ProcessLife>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT record, exited, exit_code FROM process WHERE host = ? AND uid = ? AND record IS NOT NULL",
    )?;
    let mut rows = statement.query(params![host, uid.as_bytes()])?;
    rows.next()?.map(life).transpose()
}

pub(super) fn by_prefix(
    connection: &Connection,
    prefix: &str,
    limit: usize,
) -> Result<Vec<(HostId, ProcessUid)>, StoreError> {
    let Some((lowest, highest)) = uid_range(prefix) else { return Ok(Vec::new()) };
    let mut statement = connection.prepare_cached(
        "SELECT host.uuid, process.uid FROM process JOIN host ON host.id = process.host
         WHERE process.uid BETWEEN ? AND ? AND record IS NOT NULL ORDER BY process.uid, host.uuid LIMIT ?",
    )?;
    let mut rows = statement.query(params![lowest, highest, sql_limit(limit)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((host_id(&row.get::<_, Vec<u8>>(0)?)?, process_uid(&row.get::<_, Vec<u8>>(1)?)?));
    }
    Ok(found)
}

pub(super) fn children(
    connection: &Connection,
    host: HostId,
    parent: ProcessUid,
    limit: usize,
) -> Result<Bounded<ProcessLife>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(nothing()) };
    let (parent, bound) = (parent.as_bytes().as_slice(), sql_limit(limit));
    let condition = "FROM process WHERE host = :host AND parent = :parent";
    let mut statement = connection.prepare_cached(&format!(
        "SELECT record, exited, exit_code {condition} ORDER BY started, uid LIMIT :limit"
    ))?;
    let mut rows = statement.query(named_params! { ":host": host, ":parent": parent, ":limit": bound })?;
    let mut lives = Vec::new();
    while let Some(row) = rows.next()? {
        let mut life = life(row)?;
        executables::complete(connection, host, Timestamp::MAX, &mut life)?;
        lives.push(life);
    }
    let count = format!("SELECT count(*) {condition}");
    bounded(connection, lives, limit, &count, named_params! { ":host": host, ":parent": parent })
}

/// Processes that ended before `before`, except those that may own a flow record that is kept.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let ended_before = before.saturating_sub(RECORD_SPAN_MAX).as_nanos_i64();
    connection.execute("DELETE FROM process WHERE exited < ?", [ended_before])?;
    Ok(())
}

/// From a row of record, exited, exit_code.
fn life(row: &Row<'_>) -> Result<ProcessLife, StoreError> {
    let record = row.get_ref(0)?.as_blob().map_err(|error| damaged("process record", error))?;
    let record: ProcessRecord = decode::<wire::ProcessStarted, _>("process record", record)?;
    let exit = match optional_time("end of a process", row.get(1)?)? {
        Some(exited) => Some(ProcessExit { uid: record.uid, exited, exit_code: row.get(2)? }),
        None => None,
    };
    Ok(ProcessLife::new(record, exit))
}

/// The lowest and the highest uid with the prefix; none if no uid can have it.
fn uid_range(prefix: &str) -> Option<([u8; 16], [u8; 16])> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if prefix.len() > 32 || !prefix.bytes().all(is_digit) {
        return None;
    }
    let filled = |filler: char| {
        let digits = prefix.chars().chain(std::iter::repeat(filler)).take(32).collect::<String>();
        u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
    };
    Some((filled('0')?, filled('f')?))
}
