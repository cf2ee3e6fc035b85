//! Executables over the whole fleet: on which hosts each was run or written, first and last; what it was called there, and what
//! it is. Kept much longer than the processes that ran it ([`SIGHTINGS_KEPT`]), since what was seen long ago is not new.
//!
//! What is noted is the least and the greatest of times, so that it comes to the same however often, and in whichever order, it
//! is told. A batch is put together before any of it is written ([`Notes`]), and what was written is remembered
//! ([`Noted`]): to run a program again costs a look into memory, until an hour has passed. So the first time of everything is
//! exact, and the last is late by less than [`LAST_WITHIN`](crate::store::LAST_WITHIN).
//!
//! What has no hash is told apart by its file until one is told; then it becomes one with all that has the same content.

use alibi_proto::{
    executable::{FileIdentity, Sha256},
    id::HostId,
    prevalence::{About, Identity, Sighting, Times},
    time::Timestamp,
    window::Window,
    wire,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    agents::host_row,
    codec::{damaged, decode, hash, host_id, limit as sql_limit, optional_time, time},
    executables::file_key,
    flows::{bounded, nothing},
};
use crate::store::{
    Bounded, FirstSeen, SIGHTING_PATHS_MAX, SIGHTINGS_KEPT, SIGHTINGS_OF_HOST_MAX, SightingOn, StoreError,
};

mod fill;
mod noted;

pub(super) use fill::fill_some;
pub(super) use noted::{Noted, Notes, Written};

/// - `program`: an executable. Its `key` is a byte 0 and the SHA-256 of its content; or 1 and its file, as `executable.file` has
///   it; or 2 and its path.
/// - `sighting`: what a host saw of it, by the host's own clock. `first` is the least of the times. `more_paths`: it had more than
///   are in `sighting_path`.
/// - `program_about`: a message ExecutableAbout of the schema; few, which many have.
/// - `sighting_forgotten`: what a host last saw until then may have been forgotten to keep within its bound.
/// - `sighting_due`: how far what was stored before there was any of this has been gone through; gone once all has.
pub(super) const TABLES: &str = "
    CREATE TABLE program (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE
    ) STRICT;

    CREATE TABLE program_path (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL UNIQUE
    ) STRICT;

    CREATE TABLE program_about (
        id INTEGER PRIMARY KEY,
        record BLOB NOT NULL UNIQUE
    ) STRICT;

    CREATE TABLE sighting (
        program INTEGER NOT NULL,
        host INTEGER NOT NULL,
        first INTEGER NOT NULL,
        run_first INTEGER,
        run_last INTEGER,
        written_first INTEGER,
        written_last INTEGER,
        more_paths INTEGER NOT NULL DEFAULT 0,
        about INTEGER,
        PRIMARY KEY (program, host)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX sighting_by_host ON sighting (host, first);

    CREATE TABLE sighting_path (
        program INTEGER NOT NULL,
        host INTEGER NOT NULL,
        path INTEGER NOT NULL,
        PRIMARY KEY (program, host, path)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE sighting_forgotten (
        host INTEGER PRIMARY KEY,
        until INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE sighting_due (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        step INTEGER NOT NULL,
        host INTEGER NOT NULL,
        key BLOB NOT NULL
    ) STRICT;
    INSERT INTO sighting_due (one, step, host, key) VALUES (1, 0, 0, x'');
";

const BY_SHA256: u8 = 0;
const BY_FILE: u8 = 1;
const BY_PATH: u8 = 2;

fn key_of(identity: &Identity) -> Vec<u8> {
    match identity {
        Identity::Sha256(sha256) => [&[BY_SHA256], sha256.as_bytes().as_slice()].concat(),
        Identity::File(file) => [&[BY_FILE], file_key(file).as_slice()].concat(),
        Identity::Path(path) => [&[BY_PATH], path.as_bytes()].concat(),
    }
}

fn identity_of(key: &[u8]) -> Result<Identity, StoreError> {
    match key {
        [BY_SHA256, sha256 @ ..] => Ok(Identity::Sha256(Sha256::from_bytes(hash("SHA-256", sha256)?))),
        [BY_FILE, file @ ..] => Ok(Identity::File(file_of(file)?)),
        [BY_PATH, path @ ..] => {
            let path = std::str::from_utf8(path).map_err(|error| damaged("path of an executable", error))?;
            Ok(Identity::Path(path.to_owned()))
        }
        _ => Err(damaged("key of an executable", "it is of no known kind")),
    }
}

fn file_of(key: &[u8]) -> Result<FileIdentity, StoreError> {
    let mut numbers =
        key.chunks_exact(8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()));
    let mut next = || numbers.next().ok_or_else(|| damaged("key of a file", "it is cut"));
    let (device, inode, modified, size) = (next()?, next()?, next()?, next()?);
    Ok(FileIdentity { device, inode, modified: Timestamp::from_nanos(modified), size })
}

const TIMES: &str = "run_first, run_last, written_first, written_last";

/// From a row of [`TIMES`] from a column on.
fn sighting_of(row: &Row<'_>, from: usize) -> Result<Sighting, StoreError> {
    let time = |at| optional_time("time of a sighting", row.get(from + at)?);
    let times = |first, last| -> Result<Option<Times>, StoreError> {
        Ok(time(first)?.zip(time(last)?).map(|(first, last)| Times { first, last }))
    };
    Ok(Sighting { run: times(0, 1)?, written: times(2, 3)? })
}

/// What was seen of an executable, host by host.
pub(super) fn sightings(connection: &Connection, identity: &Identity) -> Result<Vec<SightingOn>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT host.uuid, {TIMES} FROM program JOIN sighting ON sighting.program = program.id
         JOIN host ON host.id = sighting.host WHERE program.key = ?"
    ))?;
    let mut rows = statement.query([key_of(identity)])?;
    let mut sightings = Vec::new();
    while let Some(row) = rows.next()? {
        let host = host_id(&row.get::<_, Vec<u8>>(0)?)?;
        sightings.push(SightingOn { host, sighting: sighting_of(row, 1)? });
    }
    Ok(sightings)
}

/// The executables that a host saw first in a window of its own clock, newest first.
pub(super) fn first_seen(
    connection: &Connection,
    host: HostId,
    window: Window,
    limit: usize,
) -> Result<Bounded<FirstSeen>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(nothing()) };
    let (from, to) = (window.from().as_nanos_i64(), window.to().as_nanos_i64());
    let condition = "FROM sighting WHERE host = :host AND first >= :from AND first < :to";
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {TIMES}, more_paths, program.key, program.id, program_about.record FROM
         (SELECT * {condition} ORDER BY first DESC, program DESC LIMIT :limit) AS newest
         JOIN program ON program.id = newest.program LEFT JOIN program_about ON program_about.id = newest.about
         ORDER BY newest.first DESC, newest.program DESC"
    ))?;
    let mut rows = statement.query(
        rusqlite::named_params! { ":host": host, ":from": from, ":to": to, ":limit": sql_limit(limit) },
    )?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(FirstSeen {
            identity: identity_of(row.get_ref(5)?.as_blob().map_err(|error| damaged("executable", error))?)?,
            sighting: sighting_of(row, 0)?,
            paths: paths(connection, host, row.get(6)?)?,
            more_paths: row.get(4)?,
            about: about_of(row.get(7)?)?,
        });
    }
    let matching = rusqlite::named_params! { ":host": host, ":from": from, ":to": to };
    bounded(connection, found, limit, &format!("SELECT count(*) {condition}"), matching)
}

fn paths(connection: &Connection, host: i64, program: i64) -> Result<Vec<String>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT program_path.path FROM sighting_path JOIN program_path ON program_path.id = sighting_path.path
         WHERE program = ? AND host = ? ORDER BY program_path.path",
    )?;
    let paths = statement.query_map([program, host], |row| row.get(0))?;
    Ok(paths.collect::<Result<_, _>>()?)
}

fn about_of(record: Option<Vec<u8>>) -> Result<About, StoreError> {
    record.map_or_else(
        || Ok(About::default()),
        |record| decode::<wire::ExecutableAbout, _>("description of an executable", &record),
    )
}

/// The SHA-256 that a host told of a file.
fn hash_of_file(
    connection: &Connection,
    host: i64,
    file: &FileIdentity,
) -> Result<Option<Sha256>, StoreError> {
    Ok(super::executables::of_file(connection, host, file)?.iter().find_map(|seen| seen.sha256))
}

/// Until when what was last seen may have been forgotten; none if nothing was but what is older than all is kept for.
pub(super) fn forgotten(connection: &Connection, host: HostId) -> Result<Option<Timestamp>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(None) };
    let until = connection
        .prepare_cached("SELECT until FROM sighting_forgotten WHERE host = ?")?
        .query_row([host], |row| row.get::<_, i64>(0))
        .optional()?;
    until.map(|until| time("time of a sighting", until)).transpose()
}

/// What was last seen [`SIGHTINGS_KEPT`] before `before`; and of each host what is beyond [`SIGHTINGS_OF_HOST_MAX`].
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let long_before = before.saturating_sub(SIGHTINGS_KEPT).as_nanos_i64();
    let mut hosts = connection.prepare("SELECT id FROM host")?;
    let hosts = hosts.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    let mut gone = 0;
    for host in hosts {
        let old = format!("DELETE FROM sighting WHERE host = ? AND first < ? AND {LAST} < ?");
        gone += connection.prepare_cached(&old)?.execute(params![host, long_before, long_before])?;
        let beyond = beyond_bound(connection, host)?;
        if let Some(beyond) = beyond {
            let old = format!("DELETE FROM sighting WHERE host = ? AND {LAST} <= ?");
            gone += connection.prepare_cached(&old)?.execute(params![host, beyond])?;
            connection.execute(
                "INSERT INTO sighting_forgotten (host, until) VALUES (?, ?)
                 ON CONFLICT (host) DO UPDATE SET until = max(until, excluded.until)",
                [host, beyond],
            )?;
        }
    }
    if gone > 0 {
        connection.execute_batch(
            "DELETE FROM sighting_path WHERE NOT EXISTS (SELECT 1 FROM sighting
                 WHERE sighting.program = sighting_path.program AND sighting.host = sighting_path.host);
             DELETE FROM program WHERE NOT EXISTS (SELECT 1 FROM sighting WHERE sighting.program = program.id);
             DELETE FROM program_path WHERE id NOT IN (SELECT path FROM sighting_path);
             DELETE FROM program_about WHERE id NOT IN
                 (SELECT about FROM sighting WHERE about IS NOT NULL);",
        )?;
    }
    Ok(())
}

/// When what is beyond the bound of a host was last seen.
fn beyond_bound(connection: &Connection, host: i64) -> Result<Option<i64>, StoreError> {
    let kept = sql_limit(SIGHTINGS_OF_HOST_MAX);
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM sighting WHERE host = ?")?
        .query_row([host], |row| row.get(0))?;
    if count <= kept {
        return Ok(None);
    }
    let newest = format!("SELECT {LAST} FROM sighting WHERE host = ? ORDER BY {LAST} DESC LIMIT 1 OFFSET ?");
    Ok(connection.prepare_cached(&newest)?.query_row([host, kept], |row| row.get(0)).optional()?)
}

/// When a host last saw it.
const LAST: &str = "max(coalesce(run_last, 0), coalesce(written_last, 0))";

/// Writes what a host saw of an executable.
fn write(
    connection: &Connection,
    host: i64,
    identity: &Identity,
    sighting: Sighting,
    paths: &[&str],
    about: &About,
) -> Result<(), StoreError> {
    let Some(times) = sighting.times() else { return Ok(()) };
    let program = program(connection, identity)?;
    let columns = |times: Option<Times>| {
        (times.map(|times| times.first.as_nanos_i64()), times.map(|times| times.last.as_nanos_i64()))
    };
    let ((run_first, run_last), (written_first, written_last)) =
        (columns(sighting.run), columns(sighting.written));
    // `min` and `max` of two are none where one is.
    connection
        .prepare_cached(
            "INSERT INTO sighting (program, host, first, run_first, run_last, written_first, written_last)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (program, host) DO UPDATE SET first = min(first, excluded.first),
             run_first = min(coalesce(run_first, excluded.run_first), coalesce(excluded.run_first, run_first)),
             run_last = max(coalesce(run_last, excluded.run_last), coalesce(excluded.run_last, run_last)),
             written_first = min(coalesce(written_first, excluded.written_first),
                 coalesce(excluded.written_first, written_first)),
             written_last = max(coalesce(written_last, excluded.written_last),
                 coalesce(excluded.written_last, written_last))",
        )?
        .execute(params![
            program,
            host,
            times.first.as_nanos_i64(),
            run_first,
            run_last,
            written_first,
            written_last
        ])?;
    paths.iter().try_for_each(|path| write_path(connection, host, program, path))?;
    write_about(connection, host, program, about)
}

fn program(connection: &Connection, identity: &Identity) -> Result<i64, StoreError> {
    let key = key_of(identity);
    let known = connection
        .prepare_cached("SELECT id FROM program WHERE key = ?")?
        .query_row([&key], |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    connection.prepare_cached("INSERT INTO program (key) VALUES (?)")?.execute([&key])?;
    Ok(connection.last_insert_rowid())
}

fn write_path(connection: &Connection, host: i64, program: i64, path: &str) -> Result<(), StoreError> {
    let find = "SELECT id FROM program_path WHERE path = ?";
    let known: Option<i64> =
        connection.prepare_cached(find)?.query_row([path], |row| row.get(0)).optional()?;
    let (is_there, count): (bool, i64) = connection
        .prepare_cached(
            "SELECT coalesce(max(path = ?), 0), count(*) FROM sighting_path WHERE program = ? AND host = ?",
        )?
        .query_row(params![known, program, host], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if is_there {
        return Ok(());
    }
    if count >= sql_limit(SIGHTING_PATHS_MAX) {
        connection
            .prepare_cached(
                "UPDATE sighting SET more_paths = 1 WHERE program = ? AND host = ? AND NOT more_paths",
            )?
            .execute([program, host])?;
        return Ok(());
    }
    let id = match known {
        Some(known) => known,
        None => {
            connection.prepare_cached("INSERT INTO program_path (path) VALUES (?)")?.execute([path])?;
            connection.last_insert_rowid()
        }
    };
    connection
        .prepare_cached("INSERT INTO sighting_path (program, host, path) VALUES (?, ?, ?)")?
        .execute([program, host, id])?;
    Ok(())
}

fn write_about(connection: &Connection, host: i64, program: i64, about: &About) -> Result<(), StoreError> {
    if about.is_empty() {
        return Ok(());
    }
    let before: Option<Vec<u8>> = connection
        .prepare_cached(
            "SELECT program_about.record FROM sighting
             LEFT JOIN program_about ON program_about.id = sighting.about WHERE program = ? AND host = ?",
        )?
        .query_row([program, host], |row| row.get(0))?;
    let before = about_of(before)?;
    let mut now = before.clone();
    now.completed_by(about);
    if now == before {
        return Ok(());
    }
    let record = prost::Message::encode_to_vec(&wire::ExecutableAbout::from(now));
    connection
        .prepare_cached("INSERT OR IGNORE INTO program_about (record) VALUES (?)")?
        .execute([&record])?;
    connection
        .prepare_cached(
            "UPDATE sighting SET about = (SELECT id FROM program_about WHERE record = ?)
             WHERE program = ? AND host = ?",
        )?
        .execute(params![record, program, host])?;
    Ok(())
}

/// What a host saw of a file without a hash, now that it has one, is what it saw of that content.
fn become_one(
    connection: &Connection,
    host: i64,
    file: &FileIdentity,
    sha256: Sha256,
) -> Result<(), StoreError> {
    let find = format!(
        "SELECT {TIMES}, program.id FROM program JOIN sighting ON sighting.program = program.id
         WHERE program.key = ? AND sighting.host = ?"
    );
    let mut statement = connection.prepare_cached(&find)?;
    let mut rows = statement.query(params![key_of(&Identity::File(*file)), host])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let (sighting, program): (_, i64) = (sighting_of(row, 0)?, row.get(4)?);
    let paths = paths(connection, host, program)?;
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    write(connection, host, &Identity::Sha256(sha256), sighting, &paths, &About::default())?;
    for gone in [
        "DELETE FROM sighting_path WHERE program = ? AND host = ?",
        "DELETE FROM sighting WHERE program = ? AND host = ?",
    ] {
        connection.prepare_cached(gone)?.execute([program, host])?;
    }
    let unused =
        "DELETE FROM program WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM sighting WHERE program = ?1)";
    connection.prepare_cached(unused)?.execute([program])?;
    Ok(())
}

#[cfg(test)]
mod tests;
