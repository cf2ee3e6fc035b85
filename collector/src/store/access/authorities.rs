//! The CAs.

use alibi_proto::{time::Timestamp, tls::Fingerprint};
use rusqlite::{Connection, params};

use crate::{
    access::authority::{Authority, Cross},
    store::{
        StoreError,
        codec::{hash, optional_time, time},
    },
};

pub(super) fn list(connection: &Connection) -> Result<Vec<Authority>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT fingerprint, certificate, not_before, not_after, retired FROM authority ORDER BY id DESC",
    )?;
    let mut rows = statement.query([])?;
    let mut authorities = Vec::new();
    while let Some(row) = rows.next()? {
        let fingerprint = Fingerprint(hash("fingerprint", &row.get::<_, Vec<u8>>(0)?)?);
        authorities.push(Authority {
            fingerprint,
            certificate: row.get(1)?,
            not_before: time("validity", row.get(2)?)?,
            not_after: time("validity", row.get(3)?)?,
            retired: optional_time("retirement", row.get(4)?)?,
            crosses: crosses(connection, fingerprint)?,
        });
    }
    Ok(authorities)
}

fn crosses(connection: &Connection, authority: Fingerprint) -> Result<Vec<Cross>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT issuer, certificate FROM cross_certificate WHERE authority = ? ORDER BY issuer",
    )?;
    let mut rows = statement.query([authority.0])?;
    let mut crosses = Vec::new();
    while let Some(row) = rows.next()? {
        let issuer = Fingerprint(hash("fingerprint", &row.get::<_, Vec<u8>>(0)?)?);
        crosses.push(Cross { issuer, certificate: row.get(1)? });
    }
    Ok(crosses)
}

pub(super) fn add(connection: &Connection, authority: &Authority) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO authority (fingerprint, certificate, not_before, not_after) VALUES (?, ?, ?, ?)",
        params![
            authority.fingerprint.0,
            authority.certificate,
            authority.not_before.as_nanos_i64(),
            authority.not_after.as_nanos_i64(),
        ],
    )?;
    for cross in &authority.crosses {
        connection.execute(
            "INSERT INTO cross_certificate (authority, issuer, certificate) VALUES (?, ?, ?)",
            params![authority.fingerprint.0, cross.issuer.0, cross.certificate],
        )?;
    }
    Ok(())
}

pub(super) fn retire(
    connection: &Connection,
    fingerprint: Fingerprint,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE authority SET retired = ? WHERE fingerprint = ? AND retired IS NULL",
        params![now.as_nanos_i64(), fingerprint.0],
    )?;
    Ok(())
}
