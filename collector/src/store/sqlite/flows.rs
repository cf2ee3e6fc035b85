//! Flow records: by remote end and time, and by process.

use std::{collections::HashMap, sync::Arc};

use alibi_proto::{
    event::ListenRecord,
    flow::{FlowRecord, Protocol, RECORD_SPAN_MAX},
    id::{HostId, ProcessUid},
    name::{NAME_BYTES_MAX, normal},
    question::{Question, unnamed_since},
    time::Timestamp,
    window::Window,
    wire,
};
use ipnet::IpNet;
use prost::Message;
use rusqlite::{Connection, ToSql, Transaction, params};

use super::{
    agents::host_row,
    codec::{damaged, decode, optional_time, unsigned},
    names::{key_range, name_key},
    processes,
};
use crate::store::{
    Bounded, ByKey, Damage, FlowsFound, FlowsOfAll, HostQuestion, StoreError, Visit,
    flows::{self as store_flows, Asked, Found, Lost, Remote, Row, Span, Spans, Staged, Sweep, View, Which},
};

/// Where an event stands: the rows of its host and ring, and its seq.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) host: i64,
    pub(super) ring: i64,
    pub(super) seq: i64,
}

/// When processes started, as far as that was looked up.
pub(super) type Starts = HashMap<ProcessUid, Option<Timestamp>>;

/// A record as it is kept. Those of one batch have few owners, each of which is looked up once.
pub(super) fn row(
    connection: &Connection,
    place: Place,
    flow: &FlowRecord,
    starts: &mut Starts,
) -> Result<Row, StoreError> {
    let unnamed_since = when_learned(connection, place.host, flow, starts)?;
    let name = flow.remote_name.as_ref().filter(|remote| remote.name.len() <= NAME_BYTES_MAX + 1);
    let name = name.map(|remote| name_key(&normal(&remote.name)));
    row_of(place, flow, name, unnamed_since, wire::Flow::from(flow.clone()).encode_to_vec())
}

/// A record with its own name's key, since when its address can have been known, and its message.
fn row_of(
    place: Place,
    flow: &FlowRecord,
    name: Option<Vec<u8>>,
    unnamed_since: Option<Timestamp>,
    record: Vec<u8>,
) -> Result<Row, StoreError> {
    let first = flow.first.as_nanos();
    Ok(Row {
        remote: Remote::of(flow.remote.ip().to_canonical()),
        host: number(place.host)?,
        ring: number(place.ring)?,
        seq: unsigned("seq", place.seq)?,
        first,
        last: flow.last.as_nanos().max(first),
        port: flow.remote.port(),
        protocol: flow.protocol,
        name,
        unnamed_since: unnamed_since.map(Timestamp::as_nanos),
        process: flow.process.map(|uid| *uid.as_bytes()),
        record,
    })
}

/// The number of a host, or of a ring.
fn number(row: i64) -> Result<u32, StoreError> {
    u32::try_from(row).map_err(|_| damaged("number of a host", row))
}

/// What is kept of [`unnamed_since`]. The start of a process comes before its first connection.
fn when_learned(
    connection: &Connection,
    host: i64,
    flow: &FlowRecord,
    starts: &mut Starts,
) -> Result<Option<Timestamp>, StoreError> {
    let mut since = unnamed_since(flow, None);
    if let Some(owner) = flow.process
        && since != unnamed_since(flow, Some(flow.opened))
    {
        let started = match starts.get(&owner) {
            Some(started) => *started,
            None => *starts.entry(owner).or_insert(processes::started(connection, host, owner)?),
        };
        since = unnamed_since(flow, started);
    }
    // Of one that is near the record, the window tells enough (see `NameEvidence::unnamed_since`).
    Ok(since.filter(|since| *since == Timestamp::ZERO || flow.last.since(*since) > RECORD_SPAN_MAX))
}

pub(super) fn store_listen(
    connection: &Connection,
    place: Place,
    listen: &ListenRecord,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO listen (host, since, ring, seq, process, record) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![
        place.host,
        listen.since.as_nanos_i64(),
        place.ring,
        place.seq,
        listen.process.as_ref().map(|uid| uid.as_bytes().as_slice()),
        wire::Listen::from(listen.clone()).encode_to_vec(),
    ])?;
    Ok(())
}

/// The records that answer what hosts are asked, of which `numbers` tells the numbers.
pub(super) fn of_all(
    view: &View,
    asked: &[HostQuestion<'_>],
    numbers: &[Option<u32>],
    limit: usize,
) -> FlowsOfAll {
    let by_number = by_number(asked, numbers);
    let (found, lost) = view.search(&Asked {
        sweep: &sweep(asked),
        spans: &spans(&by_number),
        limit,
        is_meant: &|number, flow| {
            by_number.get(&number).is_some_and(|asked| asked.remotes.may_match(asked.question, flow))
        },
    });
    let of_host = |(number, Found { rows, left_out })| (by_number[&number].host, Bounded { rows, left_out });
    FlowsOfAll { by_host: found.into_iter().map(of_host).collect(), damage: damage(lost) }
}

/// The connections in what is lost may have lived for as long after it as a record stands for one that it leaves open.
pub(super) fn damage(lost: Vec<Lost>) -> Vec<Damage> {
    let of_one = |Lost { times, why, .. }: Lost| Damage {
        from: Timestamp::from_nanos(times.first),
        to: Timestamp::from_nanos(times.until).saturating_add(RECORD_SPAN_MAX),
        reason: format!("a part of the collector's records cannot be read: {why}"),
    };
    lost.into_iter().map(of_one).collect()
}

/// The earliest instant at which the address of a connection of each host that is alive near its window can have been learned.
pub(super) fn oldest_unnamed(
    view: &View,
    asked: &[HostQuestion<'_>],
    numbers: &[Option<u32>],
) -> (HashMap<HostId, Timestamp>, Vec<Damage>) {
    let by_number = by_number(asked, numbers);
    let (oldest, lost) = view.oldest_unnamed(&sweep(asked), &spans(&by_number));
    let of_host = |(number, since)| (by_number[&number].host, Timestamp::from_nanos(since));
    (oldest.into_iter().map(of_host).collect(), damage(lost))
}

/// What each host is asked, by its number. One without has no records.
fn by_number<'a>(asked: &'a [HostQuestion<'a>], numbers: &[Option<u32>]) -> ByKey<u32, &'a HostQuestion<'a>> {
    numbers.iter().zip(asked).filter_map(|(number, asked)| Some(((*number)?, asked))).collect()
}

/// What is looked for: the target and its addresses, which all are asked about, and where any of them said hello.
fn sweep(asked: &[HostQuestion<'_>]) -> Sweep {
    let Some(HostQuestion { question, remotes, .. }) = asked.first() else { return Sweep::default() };
    let target = &question.target;
    let resolved = remotes.addresses.iter().map(|address| IpNet::from(*address));
    let networks: Vec<IpNet> = target.networks().iter().copied().chain(resolved).collect();
    let mut ranges: Vec<(Remote, Remote)> = IpNet::aggregate(&networks)
        .iter()
        .map(|network| (Remote::of(network.network()), Remote::of(network.broadcast())))
        .collect();
    ranges.sort_unstable();
    let hellos = asked.iter().flat_map(|asked| &asked.remotes.hellos);
    let mut unsure: Vec<Remote> = hellos.map(|hello| Remote::of(hello.remote.ip().to_canonical())).collect();
    unsure.sort_unstable();
    unsure.dedup();
    Sweep {
        remotes: ranges,
        unsure,
        names: target.name().map(key_range),
        port: target.port(),
        is_udp: target.protocol().map(|protocol| protocol == Protocol::Udp),
    }
}

/// Which records of each host are near enough to its window.
fn spans(by_number: &ByKey<u32, &HostQuestion<'_>>) -> Spans {
    let span = |question: &Question| Span {
        looks_back_to: question.looks_back_to().as_nanos(),
        from: question.window.from().as_nanos(),
        to: question.window.to().as_nanos(),
    };
    Spans::of(by_number.iter().map(|(number, asked)| (*number, span(asked.question))))
}

pub(super) fn of_process(
    connection: &Connection,
    view: impl FnOnce() -> Arc<View>,
    host: HostId,
    process: ProcessUid,
    limit: usize,
) -> Result<FlowsFound, StoreError> {
    let Some(host) = host_row(connection, host)?.map(number).transpose()? else {
        return Ok(FlowsFound::default());
    };
    let (Found { rows, left_out }, lost) = view().of_process(host, process.as_bytes(), limit);
    Ok(FlowsFound { rows, left_out, damage: damage(lost) })
}

/// The records that are visited, each with its host; `number_of` tells the number of a host.
pub(super) fn visit(
    view: &View,
    visit: &Visit<'_>,
    number_of: impl Fn(HostId) -> Option<u32>,
    take: &mut dyn FnMut(HostId, &FlowRecord),
) -> Vec<Damage> {
    let windows: Vec<(HostId, Window)> = match visit {
        Visit::All(windows) => windows.to_vec(),
        Visit::Asked(asked) => asked.iter().map(|asked| (asked.host, asked.question.window)).collect(),
        Visit::Process(host, _, window) => vec![(*host, *window)],
    };
    let numbers: HashMap<u32, HostId> =
        windows.iter().filter_map(|(host, _)| Some((number_of(*host)?, *host))).collect();
    let spans = windows.iter().filter_map(|(host, window)| {
        let (from, to) = (window.from().as_nanos(), window.to().as_nanos());
        Some((number_of(*host)?, Span { looks_back_to: from, from, to }))
    });
    let spans = Spans::of(spans);
    let mut take = |number: u32, flow: &FlowRecord| {
        if let Some(host) = numbers.get(&number) {
            take(*host, flow);
        }
    };
    let lost = match visit {
        Visit::Process(_, process, _) => view.visit(&Which::Owner(*process.as_bytes()), &spans, &mut take),
        Visit::All(_) => view.visit(&Which::Swept(&Sweep::all(), &|_, _| true), &spans, &mut take),
        Visit::Asked([]) => Vec::new(),
        Visit::Asked(asked) => {
            let by_host: HashMap<HostId, &HostQuestion<'_>> =
                asked.iter().map(|asked| (asked.host, asked)).collect();
            let is_meant = |number: u32, flow: &FlowRecord| {
                let asked = numbers.get(&number).and_then(|host| by_host.get(host));
                asked.is_some_and(|asked| asked.remotes.may_match(asked.question, flow))
            };
            view.visit(&Which::Swept(&sweep(asked), &is_meant), &spans, &mut take)
        }
    };
    damage(lost)
}

/// What was written by older versions, a part of it, oldest first: taken out, and put where flow records are. None is left
/// where there is nothing to show.
pub(super) fn move_some(transaction: &Transaction<'_>) -> Result<Option<Staged>, StoreError> {
    let is_there = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'flow'";
    if transaction.query_row(is_there, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(None);
    }
    let mut rows = Vec::new();
    let mut select = transaction
        .prepare("SELECT host, last, ring, seq, name, unnamed_since, record FROM flow ORDER BY host, last, ring, seq LIMIT ?")?;
    let mut delete =
        transaction.prepare("DELETE FROM flow WHERE host = ? AND last = ? AND ring = ? AND seq = ?")?;
    let mut found = select.query([MOVED_TOGETHER])?;
    let mut gone = Vec::new();
    while let Some(old) = found.next()? {
        let record = old.get_ref(6)?.as_blob().map_err(|error| damaged("flow record", error))?;
        let flow: FlowRecord = decode::<wire::Flow, _>("flow record", record)?;
        let place = Place { host: old.get(0)?, ring: old.get(2)?, seq: old.get(3)? };
        let unnamed_since = optional_time("opening of a connection", old.get(5)?)?;
        rows.push(row_of(place, &flow, old.get(4)?, unnamed_since, record.to_vec())?);
        gone.push([place.host, old.get(1)?, place.ring, place.seq]);
    }
    drop(found);
    gone.iter().try_for_each(|place| delete.execute(*place).map(drop))?;
    drop((select, delete));
    if rows.is_empty() {
        transaction.execute_batch("DROP TABLE flow")?;
    }
    store_flows::stage(transaction, &rows).map(Some)
}

/// Records of older versions that are moved in one transaction.
const MOVED_TOGETHER: i64 = 4_096;

/// What listened.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    // Host by host, because the table lies in that order.
    let mut hosts = connection.prepare("SELECT id FROM host")?;
    let hosts = hosts.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    for host in hosts {
        connection
            .execute("DELETE FROM listen WHERE host = ? AND since < ?", [host, before.as_nanos_i64()])?;
    }
    Ok(())
}

/// Counts what the limit left out, if it can have left anything out.
pub(super) fn bounded<T>(
    connection: &Connection,
    rows: Vec<T>,
    limit: usize,
    count: &str,
    parameters: &[(&str, &dyn ToSql)],
) -> Result<Bounded<T>, StoreError> {
    if rows.len() < limit {
        return Ok(Bounded { rows, left_out: 0 });
    }
    let count: i64 = connection.prepare_cached(count)?.query_row(parameters, |row| row.get(0))?;
    let left_out = unsigned("number of records", count)?.saturating_sub(rows.len() as u64);
    Ok(Bounded { rows, left_out })
}

pub(super) fn nothing<T>() -> Bounded<T> {
    Bounded { rows: Vec::new(), left_out: 0 }
}
