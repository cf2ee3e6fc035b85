//! Names: which addresses they were resolved to, and which connections asked for them by TLS.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    name::{NAME_BYTES_MAX, NamePattern, NameResolution, ServerNameRecord, normal},
    question::NAME_MEMORY,
    time::Timestamp,
    wire,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    clock,
    codec::{address, address_key, damaged, decode, time},
    coverage::Coverage,
    flows::Place,
};
use crate::store::{Bounded, Resolution, StoreError};

/// What is kept of one DNS answer. Resolvers follow no longer chains, and give no more addresses than fit in a datagram;
/// what goes beyond is a loss of the names facet.
const ALIASES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 256;

/// A name as it is stored: its labels from the last to the first, so that all names below one are one range.
pub(super) fn name_key(name: &str) -> Vec<u8> {
    let mut labels: Vec<&str> = name.split('.').collect();
    labels.reverse();
    labels.join(".").into_bytes()
}

/// The lowest key of a pattern, and the lowest after them.
pub(super) fn key_range(pattern: &NamePattern) -> (Vec<u8>, Vec<u8>) {
    match (pattern.exact(), pattern.suffix()) {
        (Some(name), _) => {
            let key = name_key(name);
            (key.clone(), [key.as_slice(), &[0]].concat())
        }
        (None, suffix) => {
            let key = name_key(suffix.unwrap_or_default());
            // The byte after the dot.
            ([key.as_slice(), b"."].concat(), [key.as_slice(), b"/"].concat())
        }
    }
}

pub(super) fn store_resolution(
    connection: &Connection,
    host: i64,
    resolution: &NameResolution,
    coverage: &mut Coverage<'_>,
) -> Result<(), StoreError> {
    let names: BTreeSet<String> = std::iter::once(&resolution.name)
        .chain(resolution.aliases.iter().take(ALIASES_MAX))
        .map(|name| normal(name))
        .collect();
    let addresses: BTreeSet<IpAddr> =
        resolution.addresses.iter().take(ADDRESSES_MAX).map(IpAddr::to_canonical).collect();
    let too_long = names.iter().any(|name| name.len() > NAME_BYTES_MAX);
    if too_long || resolution.aliases.len() > ALIASES_MAX || resolution.addresses.len() > ADDRESSES_MAX {
        let reason = format!(
            "a DNS answer was not kept whole: it has more than {ALIASES_MAX} aliases or {ADDRESSES_MAX} addresses, or a name of more than {NAME_BYTES_MAX} bytes"
        );
        lose(coverage, resolution.at, reason)?;
    }
    let at = resolution.at.as_nanos_i64();
    let mut statement = connection.prepare_cached(
        "INSERT INTO resolution (name, address, host, first, last, ttl) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (name, address, host) DO UPDATE SET first = min(first, excluded.first),
         ttl = CASE WHEN excluded.last >= last THEN excluded.ttl ELSE ttl END, last = max(last, excluded.last)",
    )?;
    for name in names.iter().filter(|name| name.len() <= NAME_BYTES_MAX) {
        let key = name_key(name);
        for address in &addresses {
            statement.execute(params![key, address_key(*address), host, at, at, resolution.ttl_s])?;
        }
    }
    Ok(())
}

/// A ClientHello without a name tells nothing that a question asks for.
pub(super) fn store_server_name(
    connection: &Connection,
    place: Place,
    hello: &ServerNameRecord,
    coverage: &mut Coverage<'_>,
) -> Result<(), StoreError> {
    let Some(name) = hello.name.as_deref().map(normal) else { return Ok(()) };
    if name.len() > NAME_BYTES_MAX {
        let reason = format!("a ClientHello asks for a name of more than {NAME_BYTES_MAX} bytes");
        return lose(coverage, hello.at, reason);
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO server_name (host, name, time, ring, seq, record) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    let record = wire::ServerName::from(hello.clone()).encode_to_vec();
    let at = hello.at.as_nanos_i64();
    statement.execute(params![place.host, name_key(&name), at, place.ring, place.seq, record])?;
    Ok(())
}

fn lose(coverage: &mut Coverage<'_>, at: Timestamp, reason: String) -> Result<(), StoreError> {
    coverage.apply(&CoverageChange {
        facet: Facet::Names,
        grade: Grade::Lost { count: 1, reason },
        from: at,
        to: Some(at.saturating_add(Duration::from_nanos(1))),
        scope: None,
        announced_from: None,
    })
}

pub(super) fn addresses(
    connection: &Connection,
    pattern: &NamePattern,
    before: Timestamp,
    limit: usize,
) -> Result<Bounded<IpAddr>, StoreError> {
    let (lowest, beyond) = key_range(pattern);
    let mut statement = connection
        .prepare_cached("SELECT address, host, first FROM resolution WHERE name >= ? AND name < ?")?;
    let mut rows = statement.query(params![lowest, beyond])?;
    let mut found: BTreeSet<IpAddr> = BTreeSet::new();
    // By the clock of each host.
    let mut until: HashMap<i64, Timestamp> = HashMap::new();
    while let Some(row) = rows.next()? {
        let (host, first): (i64, i64) = (row.get(1)?, row.get(2)?);
        let until = match until.get(&host) {
            Some(until) => *until,
            None => {
                let latest = clock::of_row(connection, host)?.clock(before).latest(before);
                *until.entry(host).or_insert(latest)
            }
        };
        if time("resolution", first)? >= until {
            continue;
        }
        let address = address(row.get_ref(0)?.as_blob().map_err(|error| damaged("resolution", error))?)?;
        if found.len() == limit && !found.contains(&address) {
            return Ok(Bounded { rows: found.into_iter().collect(), left_out: 1 });
        }
        found.insert(address);
    }
    Ok(Bounded { rows: found.into_iter().collect(), left_out: 0 })
}

pub(super) fn resolutions(
    connection: &Connection,
    pattern: &NamePattern,
    limit: usize,
) -> Result<Bounded<Resolution>, StoreError> {
    let (lowest, beyond) = key_range(pattern);
    let mut statement = connection.prepare_cached(
        "SELECT host.uuid, resolution.name, address, first, last, ttl FROM resolution
         JOIN host ON host.id = resolution.host WHERE resolution.name >= ? AND resolution.name < ?
         ORDER BY resolution.name, address, host.uuid LIMIT ?",
    )?;
    let mut rows = statement.query(params![lowest, beyond, super::codec::limit(limit.saturating_add(1))])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if found.len() == limit {
            return Ok(Bounded { rows: found, left_out: 1 });
        }
        let key = String::from_utf8(row.get(1)?).map_err(|error| damaged("name", error))?;
        let mut labels: Vec<&str> = key.split('.').collect();
        labels.reverse();
        found.push(Resolution {
            host: super::codec::host_id(&row.get::<_, Vec<u8>>(0)?)?,
            name: labels.join("."),
            address: address(&row.get::<_, Vec<u8>>(2)?)?,
            first: time("resolution", row.get(3)?)?,
            last: time("resolution", row.get(4)?)?,
            ttl_s: row.get(5)?,
        });
    }
    Ok(Bounded { rows: found, left_out: 0 })
}

/// Hosts that are looked up one by one where no more are asked.
const ONE_BY_ONE_MAX: usize = 8;

/// The ClientHellos of hosts, by their numbers, each with before when; those that have any.
pub(super) fn server_names(
    connection: &Connection,
    asked: &HashMap<u32, Timestamp>,
    pattern: &NamePattern,
    limit: usize,
) -> Result<HashMap<u32, Result<Bounded<ServerNameRecord>, StoreError>>, StoreError> {
    // What is asked for is sought: there are many of each name.
    let mut next_name = connection
        .prepare_cached("SELECT name FROM server_name WHERE name >= ? AND name < ? ORDER BY name LIMIT 1")?;
    let mut next_host = connection
        .prepare_cached("SELECT host FROM server_name WHERE name = ? AND host > ? ORDER BY host LIMIT 1")?;
    let mut found: HashMap<u32, Vec<Hello>> = HashMap::new();
    let (mut from, beyond) = key_range(pattern);
    while let Some(name) = next_name.query_row([&from, &beyond], |row| row.get::<_, Vec<u8>>(0)).optional()? {
        let mut of_host = |host: u32| {
            let Some(before) = asked.get(&host) else { return Ok(()) };
            let hellos = hellos(connection, host, &name, *before, limit)?;
            found.entry(host).or_default().extend(hellos);
            Ok::<_, StoreError>(())
        };
        if asked.len() <= ONE_BY_ONE_MAX {
            asked.keys().try_for_each(|host| of_host(*host))?;
        } else {
            let mut host = -1_i64;
            while let Some(next) =
                next_host.query_row(params![name, host], |row| row.get::<_, u32>(0)).optional()?
            {
                of_host(next)?;
                host = next.into();
            }
        }
        // The lowest key after it.
        from = name;
        from.push(0);
    }
    let newest = |mut hellos: Vec<Hello>| {
        hellos.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        let left_out = u64::from(hellos.len() > limit);
        hellos.truncate(limit);
        let decoded = hellos.iter().map(|(_, record)| decode::<wire::ServerName, _>("ClientHello", record));
        Ok(Bounded { rows: decoded.collect::<Result<_, _>>()?, left_out })
    };
    let found = found.into_iter().filter(|(_, hellos)| !hellos.is_empty());
    Ok(found.map(|(host, hellos)| (host, newest(hellos))).collect())
}

/// When it was, and the numbers of its ring and of the event; and its record.
type Hello = ((i64, i64, i64), Vec<u8>);

/// The newest of one host and one name, one more than `limit`.
fn hellos(
    connection: &Connection,
    host: u32,
    name: &[u8],
    before: Timestamp,
    limit: usize,
) -> Result<Vec<Hello>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT time, ring, seq, record FROM server_name WHERE name = ? AND host = ? AND time < ?
         ORDER BY time DESC, ring DESC, seq DESC LIMIT ?",
    )?;
    let bound = super::codec::limit(limit.saturating_add(1));
    let rows = statement.query_map(params![name, host, before.as_nanos_i64(), bound], |row| {
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?), row.get(3)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Resolutions are kept as long as a program may go by them; ClientHellos as long as the coverage of names is.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let resolved_before = before.saturating_sub(NAME_MEMORY).as_nanos_i64();
    connection.execute("DELETE FROM resolution WHERE last < ?", [resolved_before])?;
    connection.execute("DELETE FROM server_name WHERE time < ?", [before.as_nanos_i64()])?;
    Ok(())
}
