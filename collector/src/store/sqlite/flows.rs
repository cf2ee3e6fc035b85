//! Flow records: by remote end and time, and by process.

use alibi_proto::{
    event::ListenRecord,
    flow::{FlowRecord, RECORD_SPAN_MAX},
    id::{HostId, ProcessUid},
    question::Question,
    target::Target,
    time::Timestamp,
    wire,
};
use prost::Message;
use rusqlite::{Connection, ToSql, named_params, params};

use super::codec::{address_key, damaged, decode, host_row, limit as sql_limit, protocol_number, unsigned};
use crate::store::{Bounded, StoreError};

/// Where an event stands: the rows of its host and ring, and its seq.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) host: i64,
    pub(super) ring: i64,
    pub(super) seq: i64,
}

pub(super) fn store(connection: &Connection, place: Place, flow: &FlowRecord) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO flow (host, last, ring, seq, first, remote, remote_port, protocol, process, record)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![
        place.host,
        flow.last.as_nanos_i64(),
        place.ring,
        place.seq,
        flow.first.as_nanos_i64(),
        address_key(flow.remote.ip().to_canonical()),
        flow.remote.port(),
        protocol_number(flow.protocol),
        flow.process.as_ref().map(|uid| uid.as_bytes().as_slice()),
        wire::Flow::from(flow.clone()).encode_to_vec(),
    ])?;
    Ok(())
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

/// A network of so many bits or more is looked up by address and then by time, a wider one by time alone.
const NARROW_BITS_V4: u8 = 16;
const NARROW_BITS_V6: u8 = 32;

pub(super) fn answering(
    connection: &Connection,
    host: HostId,
    question: &Question,
    limit: usize,
) -> Result<Bounded<FlowRecord>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(nothing()) };
    let (target, window) = (&question.target, question.window);
    let network = target.network();
    let (lowest, highest) = (address_key(network.network()), address_key(network.broadcast()));
    let port = target.port();
    let protocol = target.protocol().map(protocol_number);
    // Begun before the window ends, a record has ended so long after it; said so, it bounds the search by time.
    let ends_before = window.to().saturating_add(RECORD_SPAN_MAX).as_nanos_i64();
    let looks_back_to = question.looks_back_to().as_nanos_i64();
    let (from, to) = (window.from().as_nanos_i64(), window.to().as_nanos_i64());
    let matching: &[(&str, &dyn ToSql)] = named_params! {
        ":host": host, ":lowest": lowest, ":highest": highest, ":port": port, ":protocol": protocol,
        ":looks_back_to": looks_back_to, ":ends_before": ends_before, ":to": to,
    };

    let condition = condition(target);
    let select = format!(
        "SELECT record {condition} ORDER BY last >= :from DESC, last DESC, ring DESC, seq DESC LIMIT :limit"
    );
    let bound = sql_limit(limit);
    let selecting: Vec<(&str, &dyn ToSql)> =
        matching.iter().copied().chain([(":from", &from as &dyn ToSql), (":limit", &bound)]).collect();
    let rows = records(connection, &select, selecting.as_slice())?;
    if let Some(stray) = rows.iter().find(|flow| !target.matches(flow.protocol, flow.remote)) {
        let problem = format!("it is with {}, and is filed under {target}", stray.remote);
        return Err(damaged("flow record", problem));
    }
    bounded(connection, rows, limit, &format!("SELECT count(*) {condition}"), matching)
}

pub(super) fn of_process(
    connection: &Connection,
    host: HostId,
    process: ProcessUid,
    limit: usize,
) -> Result<Bounded<FlowRecord>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(nothing()) };
    let (process, bound) = (process.as_bytes().as_slice(), sql_limit(limit));
    let condition = "FROM flow WHERE host = :host AND process = :process";
    let select = format!("SELECT record {condition} ORDER BY last DESC, ring DESC, seq DESC LIMIT :limit");
    let rows =
        records(connection, &select, named_params! { ":host": host, ":process": process, ":limit": bound })?;
    let count = format!("SELECT count(*) {condition}");
    bounded(connection, rows, limit, &count, named_params! { ":host": host, ":process": process })
}

/// Flows that ended so long before `before` that none of them reaches past it by being left open; and what listened.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let flows_before = before.saturating_sub(RECORD_SPAN_MAX).as_nanos_i64();
    // Host by host, because the tables lie in that order.
    let mut hosts = connection.prepare("SELECT id FROM host")?;
    let hosts = hosts.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    for host in hosts {
        connection.execute("DELETE FROM flow WHERE host = ? AND last < ?", [host, flows_before])?;
        connection
            .execute("DELETE FROM listen WHERE host = ? AND since < ?", [host, before.as_nanos_i64()])?;
    }
    Ok(())
}

fn records(
    connection: &Connection,
    select: &str,
    parameters: &[(&str, &dyn ToSql)],
) -> Result<Vec<FlowRecord>, StoreError> {
    let mut statement = connection.prepare_cached(select)?;
    let mut rows = statement.query(parameters)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let record = row.get_ref(0)?.as_blob().map_err(|error| damaged("flow record", error))?;
        records.push(decode::<wire::Flow, _>("flow record", record)?);
    }
    Ok(records)
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

/// The records that a question about `target` needs. A network is a range of one family: its ends are not made
/// canonical, because a wide IPv6 network may end in an address that stands for an IPv4 one.
pub(super) fn condition(target: &Target) -> String {
    let network = target.network();
    let narrow_bits = if network.addr().is_ipv4() { NARROW_BITS_V4 } else { NARROW_BITS_V6 };
    // Left alone, SQLite takes a stretch of time to be narrower than one address. The plus forbids an index.
    let (table, remote) = if network.prefix_len() == network.max_prefix_len() {
        ("flow INDEXED BY flow_by_remote", "remote = :lowest AND remote <= :highest")
    } else if network.prefix_len() >= narrow_bits {
        ("flow INDEXED BY flow_by_remote", "remote BETWEEN :lowest AND :highest")
    } else {
        ("flow", "+remote BETWEEN :lowest AND :highest")
    };
    format!(
        "FROM {table} WHERE host = :host AND {remote}
         AND last BETWEEN :looks_back_to AND :ends_before AND first < :to
         AND (:port IS NULL OR remote_port = :port) AND (:protocol IS NULL OR protocol = :protocol)"
    )
}
