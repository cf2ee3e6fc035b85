//! Executable files by what they were when they were looked at, what processes ran, and network links.

use alibi_proto::{
    executable::{ExecutableRecord, ExecutableSighting, FileIdentity},
    id::HostId,
    link::LinkRecord,
    process::{ProcessExecution, ProcessImage, ProcessLife},
    time::Timestamp,
    window::Window,
    wire,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    agents::host_row,
    codec::{damaged, decode, limit as sql_limit, unsigned},
    flows::{Place, bounded, nothing},
};
use crate::store::{Bounded, EXECUTIONS_MAX, StoreError};

pub(super) fn file_key(file: &FileIdentity) -> Vec<u8> {
    [file.device, file.inode, file.modified.as_nanos(), file.size]
        .into_iter()
        .flat_map(u64::to_be_bytes)
        .collect()
}

/// The first record of a sighting is kept, and completed by what a later one found out. One without a file is of use to
/// nobody who has a process.
pub(super) fn store(connection: &Connection, host: i64, seen: &ExecutableRecord) -> Result<(), StoreError> {
    let Some(file) = &seen.file else { return Ok(()) };
    let is_written = seen.sighting == ExecutableSighting::Written;
    let before = connection
        .prepare_cached("SELECT record FROM executable WHERE host = ? AND file = ? AND written = ?")?
        .query_row(params![host, file_key(file), is_written], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    let Some(before) = before else {
        connection
            .prepare_cached(
                "INSERT INTO executable (host, file, written, used, hashed, record) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                host,
                file_key(file),
                is_written,
                seen.at.as_nanos_i64(),
                seen.sha256.is_some(),
                wire::ExecutableSeen::from(seen.clone()).encode_to_vec(),
            ])?;
        return Ok(());
    };
    let mut record: ExecutableRecord = decode::<wire::ExecutableSeen, _>("executable", &before)?;
    if record.completed_by(seen) {
        connection
            .prepare_cached(
                "UPDATE executable SET record = ?, hashed = ? WHERE host = ? AND file = ? AND written = ?",
            )?
            .execute(params![
                wire::ExecutableSeen::from(record.clone()).encode_to_vec(),
                record.sha256.is_some(),
                host,
                file_key(file),
                is_written,
            ])?;
    }
    Ok(())
}

/// An executable that is still run is not forgotten.
pub(super) fn used(
    connection: &Connection,
    host: i64,
    image: &ProcessImage,
    at: Timestamp,
) -> Result<(), StoreError> {
    let Some(file) = &image.file else { return Ok(()) };
    let at = at.as_nanos_i64();
    connection
        .prepare_cached("UPDATE executable SET used = ?1 WHERE host = ?2 AND file = ?3 AND used < ?1")?
        .execute(params![at, host, file_key(file)])?;
    Ok(())
}

/// What a host has of a file: that it was run, then that it was written.
pub(super) fn of_file(
    connection: &Connection,
    host: i64,
    file: &FileIdentity,
) -> Result<Vec<ExecutableRecord>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT record FROM executable WHERE host = ? AND file = ? ORDER BY written")?;
    let mut rows = statement.query(params![host, file_key(file)])?;
    let mut seen = Vec::new();
    while let Some(row) = rows.next()? {
        let record = row.get_ref(0)?.as_blob().map_err(|error| damaged("executable", error))?;
        seen.push(decode::<wire::ExecutableSeen, _>("executable", record)?);
    }
    Ok(seen)
}

/// Keeps an execution; of one process the [`EXECUTIONS_MAX`] newest, and how many were left out.
pub(super) fn store_execution(
    connection: &Connection,
    place: Place,
    execution: &ProcessExecution,
) -> Result<(), StoreError> {
    let uid = execution.uid.as_bytes().as_slice();
    let record = wire::ProcessExecuted::from(execution.clone()).encode_to_vec();
    let file = execution.image.file.as_ref().map(file_key);
    connection
        .prepare_cached(
            "INSERT INTO execution (host, process, time, ring, seq, file, record) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            place.host,
            uid,
            execution.executed.as_nanos_i64(),
            place.ring,
            place.seq,
            file,
            record
        ])?;
    let kept: i64 = connection
        .prepare_cached("SELECT count(*) FROM execution WHERE host = ? AND process = ?")?
        .query_row(params![place.host, uid], |row| row.get(0))?;
    let beyond = kept.saturating_sub(sql_limit(EXECUTIONS_MAX));
    if beyond > 0 {
        connection
            .prepare_cached(
                "DELETE FROM execution WHERE (host, process, time, ring, seq) IN (SELECT host, process, time, ring, seq
                 FROM execution WHERE host = ? AND process = ? ORDER BY time, ring, seq LIMIT ?)",
            )?
            .execute(params![place.host, uid, beyond])?;
        connection
            .prepare_cached(
                "INSERT INTO execution_left_out (host, process, count) VALUES (?1, ?2, ?3)
                 ON CONFLICT (host, process) DO UPDATE SET count = count + ?3",
            )?
            .execute(params![place.host, uid, beyond])?;
    }
    used(connection, place.host, &execution.image, execution.executed)
}

/// Adds what a process became before `until`, and what is known of its executable files.
pub(super) fn complete(
    connection: &Connection,
    host: i64,
    until: Timestamp,
    life: &mut ProcessLife,
) -> Result<(), StoreError> {
    let uid = life.record.uid;
    let uid = uid.as_bytes().as_slice();
    let mut statement = connection.prepare_cached(
        "SELECT record FROM execution WHERE host = ? AND process = ? AND time < ? ORDER BY time, ring, seq",
    )?;
    let mut rows = statement.query(params![host, uid, until.as_nanos_i64()])?;
    while let Some(row) = rows.next()? {
        let record = row.get_ref(0)?.as_blob().map_err(|error| damaged("execution", error))?;
        life.executions.push(decode::<wire::ProcessExecuted, _>("execution", record)?);
    }
    let left_out: Option<i64> = connection
        .prepare_cached("SELECT count FROM execution_left_out WHERE host = ? AND process = ?")?
        .query_row(params![host, uid], |row| row.get(0))
        .optional()?;
    life.executions_left_out = unsigned("number of executions", left_out.unwrap_or(0))?;
    for image in life.images_mut() {
        if let (None, Some(file)) = (image.sha256, &image.file) {
            image.sha256 = of_file(connection, host, file)?.iter().find_map(|seen| seen.sha256);
        }
    }
    if let Some(file) = life.image().file {
        life.executable = of_file(connection, host, &file)?;
    }
    Ok(())
}

pub(super) fn store_link(connection: &Connection, place: Place, link: &LinkRecord) -> Result<(), StoreError> {
    let record = wire::LinkChanged::from(link.clone()).encode_to_vec();
    connection
        .prepare_cached("INSERT INTO link (host, time, ring, seq, record) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![place.host, link.at.as_nanos_i64(), place.ring, place.seq, record])?;
    Ok(())
}

pub(super) fn links(
    connection: &Connection,
    host: HostId,
    window: Window,
    limit: usize,
) -> Result<Bounded<LinkRecord>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(nothing()) };
    let (from, to) = (window.from().as_nanos_i64(), window.to().as_nanos_i64());
    let condition = "FROM link WHERE host = :host AND time >= :from AND time < :to";
    let mut statement = connection.prepare_cached(&format!(
        "SELECT record {condition} ORDER BY time DESC, ring DESC, seq DESC LIMIT :limit"
    ))?;
    let matching = rusqlite::named_params! { ":host": host, ":from": from, ":to": to };
    let mut rows = statement.query(
        rusqlite::named_params! { ":host": host, ":from": from, ":to": to, ":limit": sql_limit(limit) },
    )?;
    let mut links = Vec::new();
    while let Some(row) = rows.next()? {
        let record = row.get_ref(0)?.as_blob().map_err(|error| damaged("link", error))?;
        links.push(
            wire::LinkChanged::decode(record)
                .map(LinkRecord::from)
                .map_err(|error| damaged("link", error))?,
        );
    }
    bounded(connection, links, limit, &format!("SELECT count(*) {condition}"), matching)
}

/// After processes were forgotten: what nobody ran since, and nobody who is kept runs.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let before = before.as_nanos_i64();
    connection.execute(
        "DELETE FROM execution WHERE time < ? AND NOT EXISTS (SELECT 1 FROM process
         WHERE process.host = execution.host AND process.uid = execution.process)",
        [before],
    )?;
    connection.execute(
        "DELETE FROM execution_left_out WHERE NOT EXISTS (SELECT 1 FROM execution
         WHERE execution.host = execution_left_out.host AND execution.process = execution_left_out.process)",
        [],
    )?;
    connection.execute(
        "DELETE FROM executable WHERE used < ?
         AND NOT EXISTS (SELECT 1 FROM process WHERE process.host = executable.host AND process.file = executable.file)
         AND NOT EXISTS (SELECT 1 FROM execution
             WHERE execution.host = executable.host AND execution.file = executable.file)",
        [before],
    )?;
    connection.execute("DELETE FROM link WHERE time < ?", [before])?;
    Ok(())
}
