//! Flow records: by remote end and time, and by process.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use alibi_proto::{
    event::ListenRecord,
    flow::{FlowRecord, RECORD_SPAN_MAX},
    id::{HostId, ProcessUid},
    name::{NAME_BYTES_MAX, NamePattern, normal},
    question::{NamedRemotes, Question, unnamed_since},
    time::Timestamp,
    wire,
};
use ipnet::IpNet;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, ToSql, named_params, params};

use super::{
    agents::host_row,
    codec::{address_key, damaged, decode, limit as sql_limit, optional_time, protocol_number, unsigned},
    names::{key_range, name_key},
    processes,
};
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
        "INSERT INTO flow (host, last, ring, seq, first, remote, remote_port, protocol, process, name, unnamed_since, record)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    let unnamed_since = when_learned(connection, place.host, flow)?;
    let name = flow.remote_name.as_ref().filter(|remote| remote.name.len() <= NAME_BYTES_MAX + 1);
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
        name.map(|remote| name_key(&normal(&remote.name))),
        unnamed_since.map(Timestamp::as_nanos_i64),
        wire::Flow::from(flow.clone()).encode_to_vec(),
    ])?;
    Ok(())
}

/// What is kept of [`unnamed_since`]. The start of a process comes before its first connection.
fn when_learned(
    connection: &Connection,
    host: i64,
    flow: &FlowRecord,
) -> Result<Option<Timestamp>, StoreError> {
    let mut since = unnamed_since(flow, None);
    if let Some(owner) = flow.process
        && since != unnamed_since(flow, Some(flow.opened))
    {
        since = unnamed_since(flow, processes::started(connection, host, owner)?);
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

/// A network of so many bits or more is looked up by address and then by time, a wider one by time alone.
const NARROW_BITS_V4: u8 = 16;
const NARROW_BITS_V6: u8 = 32;

/// What an answer is made of: by whether it overlaps the window, by its end, and by its place; the first is needed least.
type Kept = BTreeMap<(bool, i64, i64, i64), FlowRecord>;

/// The search for what answers a question: several stretches of the indices, no record of which counts twice.
struct Search<'a> {
    connection: &'a Connection,
    host: i64,
    question: &'a Question,
    limit: usize,
    kept: Kept,
    found: u64,
}

pub(super) fn answering(
    connection: &Connection,
    host: HostId,
    question: &Question,
    remotes: &NamedRemotes,
    limit: usize,
) -> Result<Bounded<FlowRecord>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(nothing()) };
    let target = &question.target;
    let mut search = Search { connection, host, question, limit, kept: Kept::new(), found: 0 };
    let resolved = remotes.addresses.iter().map(|address| IpNet::from(*address));
    let networks = target.networks().iter().copied().chain(resolved).collect();
    let networks = IpNet::aggregate(&networks);
    for network in &networks {
        search.network(*network)?;
    }
    let by_address = |flow: &FlowRecord| {
        let address = flow.remote.ip().to_canonical();
        networks.iter().any(|network| network.contains(&address))
    };
    if let Some(name) = target.name() {
        search.name(name, by_address)?;
        let hellos: BTreeSet<IpAddr> = remotes.hellos.iter().map(|hello| hello.remote.ip()).collect();
        let named = |flow: &FlowRecord| flow.remote_name.as_ref().is_some_and(|own| name.matches(&own.name));
        for address in
            hellos.into_iter().filter(|address| !networks.iter().any(|network| network.contains(address)))
        {
            search.address(address, |flow| !named(flow) && remotes.may_match(question, flow))?;
        }
    }
    let left_out = search.found.saturating_sub(search.kept.len() as u64);
    Ok(Bounded { rows: search.kept.into_values().rev().collect(), left_out })
}

impl Search<'_> {
    /// Every record with the network.
    fn network(&mut self, network: IpNet) -> Result<(), StoreError> {
        let (lowest, highest) = (address_key(network.network()), address_key(network.broadcast()));
        let condition = condition(network);
        let limit = sql_limit(self.limit);
        let select = format!(
            "SELECT last, ring, seq, record {condition}
             ORDER BY last >= :from DESC, last DESC, ring DESC, seq DESC LIMIT :limit"
        );
        let from = self.question.window.from().as_nanos_i64();
        let own: &[(&str, &dyn ToSql)] =
            named_params! { ":lowest": lowest, ":highest": highest, ":from": from, ":limit": limit };
        let mut taken = 0;
        self.read(&select, own, |flow| {
            taken += 1;
            network.contains(&flow.remote.ip().to_canonical()).then_some(true).ok_or_else(|| {
                damaged("flow record", format!("it is with {}, and is filed under {network}", flow.remote))
            })
        })?;
        if taken == self.limit {
            let count = format!("SELECT count(*) {condition}");
            let own: &[(&str, &dyn ToSql)] = named_params! { ":lowest": lowest, ":highest": highest };
            let all = self.with_parameters(own, |parameters| {
                Ok(self
                    .connection
                    .prepare_cached(&count)?
                    .query_row(parameters, |row| row.get::<_, i64>(0))?)
            })?;
            let all = unsigned("number of records", all)?;
            self.found = self.found.saturating_add(all.saturating_sub(taken as u64));
        }
        Ok(())
    }

    /// Every record whose own name is meant, but those found by their address.
    fn name(
        &mut self,
        name: &NamePattern,
        by_address: impl Fn(&FlowRecord) -> bool,
    ) -> Result<(), StoreError> {
        let (mut lowest, beyond) = key_range(name);
        let select = format!(
            "SELECT last, ring, seq, record FROM flow INDEXED BY flow_by_name
             WHERE host = :host AND name = :name {IN_TIME}"
        );
        // From name to name: of each, the index leads to the time, however much is stored of other times.
        let next = "SELECT name FROM flow INDEXED BY flow_by_name
             WHERE host = ? AND name >= ? AND name < ? ORDER BY name LIMIT 1";
        loop {
            let found: Option<Vec<u8>> = self
                .connection
                .prepare_cached(next)?
                .query_row(params![self.host, lowest, beyond], |row| row.get(0))
                .optional()?;
            let Some(found) = found else { return Ok(()) };
            let own: &[(&str, &dyn ToSql)] = named_params! { ":name": found };
            self.read(&select, own, |flow| Ok(!by_address(flow)))?;
            lowest = [found.as_slice(), &[0]].concat();
        }
    }

    /// The records with an address that are wanted.
    fn address(&mut self, address: IpAddr, wanted: impl Fn(&FlowRecord) -> bool) -> Result<(), StoreError> {
        let key = address_key(address);
        let condition = condition(IpNet::from(address));
        let own: &[(&str, &dyn ToSql)] = named_params! { ":lowest": key, ":highest": key };
        self.read(&format!("SELECT last, ring, seq, record {condition}"), own, |flow| Ok(wanted(flow)))
    }

    fn read(
        &mut self,
        select: &str,
        own: &[(&str, &dyn ToSql)],
        mut wanted: impl FnMut(&FlowRecord) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let (mut kept, mut found) = (std::mem::take(&mut self.kept), self.found);
        self.with_parameters(own, |parameters| {
            let mut statement = self.connection.prepare_cached(select)?;
            let mut rows = statement.query(parameters)?;
            while let Some(row) = rows.next()? {
                let record = row.get_ref(3)?.as_blob().map_err(|error| damaged("flow record", error))?;
                let flow: FlowRecord = decode::<wire::Flow, _>("flow record", record)?;
                if !wanted(&flow)? {
                    continue;
                }
                found += 1;
                let overlaps = flow.last >= self.question.window.from();
                kept.insert((overlaps, row.get(0)?, row.get(1)?, row.get(2)?), flow);
                if kept.len() > self.limit {
                    kept.pop_first();
                }
            }
            Ok(())
        })?;
        (self.kept, self.found) = (kept, found);
        Ok(())
    }

    /// With what every search has in common.
    fn with_parameters<T>(
        &self,
        own: &[(&str, &dyn ToSql)],
        run: impl FnOnce(&[(&str, &dyn ToSql)]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (target, window) = (&self.question.target, self.question.window);
        // Begun before the window ends, a record has ended so long after it; said so, it bounds the search by time.
        let ends_before = window.to().saturating_add(RECORD_SPAN_MAX).as_nanos_i64();
        let looks_back_to = self.question.looks_back_to().as_nanos_i64();
        let to = window.to().as_nanos_i64();
        let (port, protocol) = (target.port(), target.protocol().map(protocol_number));
        let common: &[(&str, &dyn ToSql)] = named_params! {
            ":host": self.host, ":port": port, ":protocol": protocol,
            ":looks_back_to": looks_back_to, ":ends_before": ends_before, ":to": to,
        };
        let parameters: Vec<(&str, &dyn ToSql)> = common.iter().chain(own).copied().collect();
        run(parameters.as_slice())
    }
}

/// The earliest instant at which the address of a connection that is alive near the window can have been learned.
pub(super) fn oldest_unnamed(
    connection: &Connection,
    host: HostId,
    question: &Question,
) -> Result<Option<Timestamp>, StoreError> {
    let Some(host) = host_row(connection, host)? else { return Ok(None) };
    let search = Search { connection, host, question, limit: 0, kept: Kept::new(), found: 0 };
    let select = format!(
        "SELECT min(unnamed_since) FROM flow INDEXED BY flow_unnamed
         WHERE host = :host AND unnamed_since IS NOT NULL {IN_TIME}"
    );
    let oldest = search.with_parameters(&[], |parameters| {
        Ok(connection.prepare_cached(&select)?.query_row(parameters, |row| row.get(0))?)
    })?;
    optional_time("opening of a connection", oldest)
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

/// Near enough to the window, and with the port and protocol that are asked for.
const IN_TIME: &str = "AND last BETWEEN :looks_back_to AND :ends_before AND first < :to
    AND (:port IS NULL OR remote_port = :port) AND (:protocol IS NULL OR protocol = :protocol)";

/// The records that a question about a network needs. A network is a range of one family: its ends are not made
/// canonical, because a wide IPv6 network may end in an address that stands for an IPv4 one.
pub(super) fn condition(network: IpNet) -> String {
    let narrow_bits = if network.addr().is_ipv4() { NARROW_BITS_V4 } else { NARROW_BITS_V6 };
    // Left alone, SQLite takes a stretch of time to be narrower than one address. The plus forbids an index.
    let (table, remote) = if network.prefix_len() == network.max_prefix_len() {
        ("flow INDEXED BY flow_by_remote", "remote = :lowest AND remote <= :highest")
    } else if network.prefix_len() >= narrow_bits {
        ("flow INDEXED BY flow_by_remote", "remote BETWEEN :lowest AND :highest")
    } else {
        ("flow", "+remote BETWEEN :lowest AND :highest")
    };
    format!("FROM {table} WHERE host = :host AND {remote} {IN_TIME}")
}
