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
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    clock,
    codec::{address, address_key, damaged, decode, time},
    coverage::Coverage,
    flows::Place,
};
use crate::store::{Bounded, Resolution, StoreError, checksum::Checksum};

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
    for name in names.iter().filter(|name| name.len() <= NAME_BYTES_MAX) {
        let key = name_key(name);
        for address in &addresses {
            let answer = Answer::note(connection, &key, &address_key(*address), host, at)?;
            let resolved = Resolved::load(connection, answer, host)?;
            resolved.and(at, resolution.ttl_s).store(connection, answer, host)?;
        }
    }
    Ok(())
}

/// A name with one of its addresses.
struct Answer {
    id: i64,
    /// Which host was the first to get it, as far as is known by each one's own clock, and when, in nanoseconds.
    host: i64,
    first: i64,
    /// Nobody got it more than [`LAST_WITHIN_NS`] after this.
    last: i64,
}

/// That an answer is given still is written so often.
const LAST_WITHIN_NS: i64 = 24 * 60 * 60 * 1_000_000_000;

impl Answer {
    /// A host got it: its number, which it gets where it has none.
    fn note(
        connection: &Connection,
        name: &[u8],
        address: &[u8],
        host: i64,
        at: i64,
    ) -> Result<i64, StoreError> {
        let select = "SELECT id, host, first, last FROM answer WHERE name = ? AND address = ?";
        let found = connection.prepare_cached(select)?.query_row([name, address], Self::of_row).optional()?;
        let mut answer = match found {
            Some(Self { first, last, id, .. })
                if first <= at && at <= last.saturating_add(LAST_WITHIN_NS) =>
            {
                return Ok(id);
            }
            Some(answer) => answer,
            None => {
                let insert = "INSERT INTO answer (name, address, host, first, last) VALUES (?, ?, ?, ?, ?)";
                connection.prepare_cached(insert)?.execute(params![name, address, host, at, at])?;
                Self { id: connection.last_insert_rowid(), host, first: at, last: at }
            }
        };
        if at < answer.first {
            (answer.host, answer.first) = (host, at);
        }
        answer.last = answer.last.max(at);
        let update = "UPDATE answer SET host = ?, first = ?, last = ?, checksum = ? WHERE id = ?";
        let checksum = answer.checksum(name, address).stored();
        connection.prepare_cached(update)?.execute([
            answer.host,
            answer.first,
            answer.last,
            checksum,
            answer.id,
        ])?;
        Ok(answer.id)
    }

    /// Of a row that begins with id, host, first, last.
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, host: row.get(1)?, first: row.get(2)?, last: row.get(3)? })
    }

    fn checksum(&self, name: &[u8], address: &[u8]) -> Checksum {
        let numbers = [self.id, self.host, self.first, self.last];
        numbers.iter().fold(Checksum::default().bytes(name).bytes(address), |sum, one| sum.number(*one))
    }
}

/// When a host got an answer, and what was said with the last one.
#[derive(Clone, Copy)]
struct Resolved {
    /// The first and the last time, in nanoseconds; the other way round before there is any.
    first: i64,
    last: i64,
    ttl_s: u32,
}

impl Resolved {
    const NEVER: Self = Self { first: i64::MAX, last: i64::MIN, ttl_s: 0 };

    fn load(connection: &Connection, answer: i64, host: i64) -> Result<Self, StoreError> {
        let select = "SELECT first, last, ttl FROM resolved WHERE host = ? AND answer = ?";
        let row = |row: &Row<'_>| Ok(Self { first: row.get(0)?, last: row.get(1)?, ttl_s: row.get(2)? });
        let found = connection.prepare_cached(select)?.query_row([host, answer], row).optional()?;
        Ok(found.unwrap_or(Self::NEVER))
    }

    fn and(self, at: i64, ttl_s: u32) -> Self {
        let ttl_s = if at >= self.last { ttl_s } else { self.ttl_s };
        Self { first: self.first.min(at), last: self.last.max(at), ttl_s }
    }

    fn store(self, connection: &Connection, answer: i64, host: i64) -> Result<(), StoreError> {
        let mut statement = connection.prepare_cached(
            "INSERT OR REPLACE INTO resolved (host, answer, first, last, ttl, checksum) VALUES (?, ?, ?, ?, ?, ?)",
        )?;
        let checksum = self.checksum(answer, host).stored();
        statement.execute(params![host, answer, self.first, self.last, self.ttl_s, checksum])?;
        Ok(())
    }

    fn checksum(self, answer: i64, host: i64) -> Checksum {
        Checksum::default().number(answer).number(host).number(self.first).number(self.last)
    }
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
        "INSERT INTO server_name (host, name, time, ring, seq, record, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?;
    let record = wire::ServerName::from(hello.clone()).encode_to_vec();
    let (name, at) = (name_key(&name), hello.at.as_nanos_i64());
    let checksum = sum_of_hello(place.host, &name, at, &record).stored();
    statement.execute(params![place.host, name, at, place.ring, place.seq, record, checksum])?;
    Ok(())
}

fn sum_of_hello(host: i64, name: &[u8], at: i64, record: &[u8]) -> Checksum {
    Checksum::default().number(host).bytes(name).number(at).bytes(record)
}

/// Whether each row is as it was written. What of a name is not found where it should be, nobody who asks for it can see. There
/// may be millions: it ends early where it is not to go on.
pub(super) fn check_rows(connection: &Connection, go_on: impl Fn() -> bool) -> Result<(), StoreError> {
    let blob = |row: &Row<'_>, at| -> Result<Vec<u8>, StoreError> { Ok(row.get(at)?) };
    let each = |select: &str, check: &dyn Fn(&Row<'_>) -> Result<(), StoreError>| {
        let mut statement = connection.prepare(select)?;
        let mut rows = statement.query([])?;
        let mut checked = 0_usize;
        while let Some(row) = rows.next()? {
            check(row)?;
            checked += 1;
            if checked.is_multiple_of(ASKED_EACH) && !go_on() {
                break;
            }
        }
        Ok::<_, StoreError>(())
    };
    each("SELECT id, host, first, last, name, address, checksum FROM answer", &|row| {
        let sum = Answer::of_row(row)?.checksum(&blob(row, 4)?, &blob(row, 5)?);
        sum.check("name and its address", row.get(6)?)
    })?;
    each("SELECT answer, host, first, last, checksum FROM resolved", &|row| {
        let resolved = Resolved { first: row.get(2)?, last: row.get(3)?, ttl_s: 0 };
        resolved.checksum(row.get(0)?, row.get(1)?).check("time of a DNS answer", row.get(4)?)
    })?;
    each("SELECT host, name, time, record, checksum FROM server_name", &|row| {
        let sum = sum_of_hello(row.get(0)?, &blob(row, 1)?, row.get(2)?, &blob(row, 3)?);
        sum.check("ClientHello", row.get(4)?)
    })
}

/// After so many rows it is asked whether to go on.
const ASKED_EACH: usize = 4_096;

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
    let select = "SELECT id, host, first, last, address FROM answer WHERE name >= ? AND name < ? ORDER BY name, address";
    let mut answers = connection.prepare_cached(select)?;
    let mut others = connection.prepare_cached(OF_ALL_HOSTS)?;
    let mut rows = answers.query(params![lowest, beyond])?;
    let mut found: BTreeSet<IpAddr> = BTreeSet::new();
    // By the clock of each host.
    let mut until: HashMap<i64, Timestamp> = HashMap::new();
    let mut is_before = |host: i64, first: i64| {
        let until = match until.get(&host) {
            Some(until) => *until,
            None => {
                let latest = clock::of_row(connection, host)?.clock(before).latest(before);
                *until.entry(host).or_insert(latest)
            }
        };
        Ok::<_, StoreError>(time("resolution", first)? < until)
    };
    while let Some(row) = rows.next()? {
        let Answer { id, host, first, .. } = Answer::of_row(row)?;
        let address = address(row.get_ref(4)?.as_blob().map_err(|error| damaged("resolution", error))?)?;
        if found.contains(&address) {
            continue;
        }
        let mut is_found = is_before(host, first)?;
        // Another one's clock may be behind that of whoever seems to be the first.
        let mut hosts = others.query([id])?;
        while !is_found && let Some(row) = hosts.next()? {
            is_found = is_before(row.get(0)?, row.get(1)?)?;
        }
        if is_found && found.len() == limit {
            return Ok(Bounded { rows: found.into_iter().collect(), left_out: 1 });
        }
        if is_found {
            found.insert(address);
        }
    }
    Ok(Bounded { rows: found.into_iter().collect(), left_out: 0 })
}

/// Who got an answer, and when first. There is no order in which those of an answer lie together, since a host tells many at once.
const OF_ALL_HOSTS: &str =
    "SELECT host.id, first FROM host CROSS JOIN resolved ON resolved.host = host.id AND answer = ?";

pub(super) fn resolutions(
    connection: &Connection,
    pattern: &NamePattern,
    limit: usize,
) -> Result<Bounded<Resolution>, StoreError> {
    let (lowest, beyond) = key_range(pattern);
    let mut statement = connection.prepare_cached(
        "SELECT host.uuid, name, address, resolved.first, resolved.last, ttl FROM answer CROSS JOIN host
         CROSS JOIN resolved ON resolved.host = host.id AND resolved.answer = answer.id
         WHERE name >= ? AND name < ? ORDER BY name, address, host.uuid LIMIT ?",
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

/// Resolutions are kept as long as a program may go by them, and what they gave up to a day longer; ClientHellos as long as the
/// coverage of names is.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let resolved_before = before.saturating_sub(NAME_MEMORY).as_nanos_i64();
    connection.execute("DELETE FROM resolved WHERE last < ?", [resolved_before])?;
    connection
        .execute("DELETE FROM answer WHERE last < ?", [resolved_before.saturating_sub(LAST_WITHIN_NS)])?;
    connection.execute("DELETE FROM server_name WHERE time < ?", [before.as_nanos_i64()])?;
    Ok(())
}
