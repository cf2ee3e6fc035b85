//! The hosts that are or were enrolled.

use std::collections::HashMap;

use alibi_proto::{id::HostId, time::Timestamp, tls::Fingerprint};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    Admitted,
    credentials::{read_tags, written_tags},
};
use crate::{
    access::{
        host::{Copied, EnrolledHost, KeyHash, Validity},
        lease::{Lease, Leases, Place},
    },
    store::{
        StoreError,
        codec::{hash, host_id, optional_time, sixteen, time},
    },
};

/// Of `place.which`.
const ADMITTED: i64 = 0;
const THERE: i64 = 1;
const HERE: i64 = 2;

pub(super) fn list(connection: &Connection) -> Result<Vec<EnrolledHost>, StoreError> {
    let mut places = places(connection)?;
    let mut statement = connection.prepare_cached(
        "SELECT id, uuid, name, origin, key, tags, enrolled, not_before, not_after, authority, revoked, lease, offered,
             superseded, abandoned FROM host ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut hosts = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let here = places.remove(&(id, HERE));
        let there = places.remove(&(id, THERE));
        hosts.push(EnrolledHost {
            id: host_id(&row.get::<_, Vec<u8>>(1)?)?,
            name: row.get(2)?,
            from: row.get(3)?,
            key: KeyHash(hash("key", &row.get::<_, Vec<u8>>(4)?)?),
            tags: read_tags(&row.get::<_, String>(5)?),
            enrolled: time("enrolment", row.get(6)?)?,
            certificate: Validity {
                not_before: time("validity", row.get(7)?)?,
                not_after: time("validity", row.get(8)?)?,
                authority: Fingerprint(hash("fingerprint", &row.get::<_, Vec<u8>>(9)?)?),
            },
            revoked: optional_time("revocation", row.get(10)?)?,
            leases: Leases {
                current: lease(row, 11)?,
                offered: lease(row, 12)?,
                superseded: leases(row, 13)?,
                abandoned: leases(row, 14)?,
            },
            admitted: places.remove(&(id, ADMITTED)),
            copied: here.map(|here| Copied { there, here }),
        });
    }
    Ok(hosts)
}

fn lease(row: &Row<'_>, index: usize) -> Result<Option<Lease>, StoreError> {
    let bytes: Option<Vec<u8>> = row.get(index)?;
    bytes.map(|bytes| sixteen("lease", &bytes).map(Lease::from_bytes)).transpose()
}

fn leases(row: &Row<'_>, index: usize) -> Result<Vec<Lease>, StoreError> {
    let bytes: Vec<u8> = row.get(index)?;
    bytes.chunks(16).map(|bytes| sixteen("lease", bytes).map(Lease::from_bytes)).collect()
}

fn places(connection: &Connection) -> Result<HashMap<(i64, i64), Place>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT host, which, name, machine_id, boot_id, address, at FROM place")?;
    let mut rows = statement.query([])?;
    let mut places = HashMap::new();
    while let Some(row) = rows.next()? {
        let place = Place {
            name: row.get(2)?,
            machine_id: row.get(3)?,
            boot_id: row.get(4)?,
            address: row.get(5)?,
            at: time("place", row.get(6)?)?,
        };
        places.insert((row.get(0)?, row.get(1)?), place);
    }
    Ok(places)
}

/// What became of its leases stays.
pub(super) fn enrol(connection: &Connection, host: &EnrolledHost) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO host (uuid, name, origin, key, tags, enrolled, not_before, not_after, authority)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (uuid) DO UPDATE SET name = excluded.name,
         origin = excluded.origin, tags = excluded.tags, enrolled = excluded.enrolled,
         not_before = excluded.not_before, not_after = excluded.not_after, authority = excluded.authority",
        params![
            host.id.as_bytes(),
            host.name,
            host.from,
            host.key.0,
            written_tags(&host.tags),
            host.enrolled.as_nanos_i64(),
            host.certificate.not_before.as_nanos_i64(),
            host.certificate.not_after.as_nanos_i64(),
            host.certificate.authority.0,
        ],
    )?;
    Ok(())
}

pub(super) fn renew(connection: &Connection, host: HostId, certificate: &Validity) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE host SET not_before = ?, not_after = ?, authority = ? WHERE uuid = ?",
        params![
            certificate.not_before.as_nanos_i64(),
            certificate.not_after.as_nanos_i64(),
            certificate.authority.0,
            host.as_bytes(),
        ],
    )?;
    Ok(())
}

pub(super) fn revoke(connection: &Connection, host: HostId, now: Timestamp) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE host SET revoked = ? WHERE uuid = ? AND revoked IS NULL",
        params![now.as_nanos_i64(), host.as_bytes()],
    )?;
    Ok(())
}

pub(super) fn keep_admitted(connection: &Connection, admitted: &Admitted) -> Result<(), StoreError> {
    let several = |leases: &[Lease]| leases.iter().flat_map(|lease| *lease.as_bytes()).collect::<Vec<u8>>();
    let Admitted { host, leases, place: kept } = admitted;
    let mut statement = connection.prepare_cached(
        "UPDATE host SET lease = ?, offered = ?, superseded = ?, abandoned = ? WHERE uuid = ?",
    )?;
    statement.execute(params![
        leases.current.as_ref().map(Lease::as_bytes),
        leases.offered.as_ref().map(Lease::as_bytes),
        several(&leases.superseded),
        several(&leases.abandoned),
        host.as_bytes(),
    ])?;
    place(connection, *host, ADMITTED, kept.as_ref())
}

pub(super) fn mark_copied(
    connection: &Connection,
    host: HostId,
    copied: Option<&Copied>,
) -> Result<(), StoreError> {
    place(connection, host, THERE, copied.and_then(|copied| copied.there.as_ref()))?;
    place(connection, host, HERE, copied.map(|copied| &copied.here))
}

fn place(connection: &Connection, host: HostId, which: i64, place: Option<&Place>) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached("SELECT id FROM host WHERE uuid = ?")?;
    let row: Option<i64> = statement.query_row([host.as_bytes()], |row| row.get(0)).optional()?;
    let row = row.ok_or(StoreError::UnknownHost(host))?;
    let Some(Place { name, machine_id, boot_id, address, at }) = place else {
        connection.execute("DELETE FROM place WHERE host = ? AND which = ?", params![row, which])?;
        return Ok(());
    };
    let mut statement = connection.prepare_cached(
        "INSERT INTO place (host, which, name, machine_id, boot_id, address, at) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (host, which) DO UPDATE SET name = excluded.name, machine_id = excluded.machine_id,
         boot_id = excluded.boot_id, address = excluded.address, at = excluded.at",
    )?;
    statement.execute(params![row, which, name, machine_id, boot_id, address, at.as_nanos_i64()])?;
    Ok(())
}
