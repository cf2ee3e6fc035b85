//! Tokens, and analysts' certificates.

use alibi_proto::time::Timestamp;
use rusqlite::{Connection, params};

use super::Use;
use crate::{
    access::{
        credential::{Credential, CredentialId, CredentialKind, SecretHash},
        role::Role,
    },
    store::{
        StoreError,
        codec::{damaged, hash, optional_time, signed, time, unsigned},
    },
};

pub(super) fn list(connection: &Connection) -> Result<Vec<(Credential, Option<SecretHash>)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, kind, name, role, secret, parent, tags, created, expires, revoked, used, uses, uses_max
         FROM credential ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut credentials = Vec::new();
    while let Some(row) = rows.next()? {
        let role: Option<String> = row.get(3)?;
        let secret: Option<Vec<u8>> = row.get(4)?;
        let parent: Option<i64> = row.get(5)?;
        let credential = Credential {
            id: id(row.get(0)?)?,
            kind: kind(row.get(1)?)?,
            name: row.get(2)?,
            role: role
                .map(|role| role.parse::<Role>().map_err(|error| damaged("role", error)))
                .transpose()?,
            parent: parent.map(id).transpose()?,
            tags: read_tags(&row.get::<_, String>(6)?),
            created: time("credential", row.get(7)?)?,
            expires: time("credential", row.get(8)?)?,
            revoked: optional_time("revocation", row.get(9)?)?,
            used: optional_time("use", row.get(10)?)?,
            uses: row.get(11)?,
            uses_max: row.get(12)?,
        };
        let secret = secret.map(|secret| hash("secret", &secret).map(SecretHash)).transpose()?;
        credentials.push((credential, secret));
    }
    Ok(credentials)
}

pub(super) fn next(connection: &Connection) -> Result<(CredentialId, bool), StoreError> {
    let select = "SELECT next_credential, admin FROM state";
    let (next, admin) = connection.query_row(select, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((id(next)?, admin))
}

pub(super) fn add(
    connection: &Connection,
    credential: &Credential,
    secret: Option<SecretHash>,
) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO credential (id, kind, name, role, secret, parent, tags, created, expires, uses, uses_max)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
        params![
            signed("credential", credential.id.0)?,
            number(credential.kind),
            credential.name,
            credential.role.map(Role::word),
            secret.map(|secret| secret.0),
            credential.parent.map(|parent| signed("credential", parent.0)).transpose()?,
            written_tags(&credential.tags),
            credential.created.as_nanos_i64(),
            credential.expires.as_nanos_i64(),
            credential.uses_max,
        ],
    )?;
    connection.execute(
        "UPDATE state SET next_credential = ?, admin = admin OR ?",
        params![signed("credential", credential.id.0)? + 1, credential.role == Some(Role::Admin)],
    )?;
    Ok(())
}

/// False if it cannot be used any more.
pub(super) fn spend(connection: &Connection, id: CredentialId, now: Timestamp) -> Result<bool, StoreError> {
    let spent = connection.execute(
        "UPDATE credential SET uses = min(uses + 1, 4294967295), used = ?1
         WHERE id = ?2 AND revoked IS NULL AND expires > ?1 AND (uses_max = 0 OR uses < uses_max)",
        params![now.as_nanos_i64(), signed("credential", id.0)?],
    )?;
    Ok(spent > 0)
}

pub(super) fn revoke(connection: &Connection, id: CredentialId, now: Timestamp) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE credential SET revoked = ?1 WHERE (id = ?2 OR parent = ?2) AND revoked IS NULL",
        params![now.as_nanos_i64(), signed("credential", id.0)?],
    )?;
    Ok(())
}

pub(super) fn note_used(connection: &Connection, id: CredentialId, used: &Use) -> Result<(), StoreError> {
    let mut statement = connection
        .prepare_cached("UPDATE credential SET used = ?, uses = min(uses + ?, 4294967295) WHERE id = ?")?;
    statement.execute(params![used.last.as_nanos_i64(), used.times, signed("credential", id.0)?])?;
    Ok(())
}

pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    connection.execute("DELETE FROM credential WHERE expires < ?", [before.as_nanos_i64()])?;
    Ok(())
}

fn id(number: i64) -> Result<CredentialId, StoreError> {
    unsigned("credential", number).map(CredentialId)
}

fn number(kind: CredentialKind) -> i64 {
    match kind {
        CredentialKind::EnrolmentToken => 1,
        CredentialKind::AnalystToken => 2,
        CredentialKind::AnalystCertificate => 3,
    }
}

fn kind(number: i64) -> Result<CredentialKind, StoreError> {
    match number {
        1 => Ok(CredentialKind::EnrolmentToken),
        2 => Ok(CredentialKind::AnalystToken),
        3 => Ok(CredentialKind::AnalystCertificate),
        other => Err(damaged("credential", format!("there is no kind {other}"))),
    }
}

/// One a line: no tag has more than one.
pub(super) fn written_tags(tags: &[String]) -> String {
    tags.join("\n")
}

pub(super) fn read_tags(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
