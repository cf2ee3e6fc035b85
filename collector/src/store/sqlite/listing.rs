//! What searches list: flow records, and processes with what belongs to them.
//!
//! Processes are gone through in the order of their start, the newest first, some at a time; or, where only those are wanted
//! that have a connection of some kind, those that own a record of it are found first, however long ago they were started.

use std::{collections::HashMap, sync::Arc, time::Instant};

use alibi_proto::{
    flow::{Protocol, RECORD_SPAN_MAX},
    id::ProcessUid,
    process::ProcessLife,
    time::Timestamp,
};
use ipnet::IpNet;
use rusqlite::{Connection as Sql, params};

use super::{
    codec::{sixteen, time},
    executables,
    flows::damage,
    processes,
};
use crate::{
    search::{
        cursor::Place,
        document::{Connection, Truth},
        time::Stretch,
    },
    store::{
        Damage, StoreError,
        flows::{Listed, Owner, Remote, Span, Spans, Sweep, View},
        listing::{
            Candidate, FlowListing, HostStretch, ListedFlow, ListedProcess, PROCESSES_PASSED_MAX,
            PROCESSES_READ_MAX, Page, ProcessListing, READING_MAX, RECORDS_OF_PROCESS_MAX,
            RECORDS_OF_PROCESSES_MAX, RECORDS_READ_MAX, RecordSelection,
        },
    },
};

/// Hosts, by their numbers here.
type Hosts = HashMap<u32, HostStretch>;

/// Processes that are looked at together: few first, which is enough where most are wanted.
const TOGETHER_FIRST: usize = if cfg!(test) { 7 } else { 256 };
const TOGETHER_MAX: usize = if cfg!(test) { 20 } else { 4_096 };

const MANY_RECORDS: &str = "as many flow records were read as are read for one page";
const MANY_PROCESSES: &str = "as many processes were read as are read for one page";
const MANY_RECORDS_OF_PROCESSES: &str =
    "a process has more records of connections than are read of one page's processes: only the newest were";
const MANY_OWNERS: &str =
    "more processes have such connections than are looked at: only those with the newest were";

pub(super) fn flows(
    view: &View,
    hosts: &Hosts,
    listing: &mut FlowListing<'_>,
) -> Result<Page<ListedFlow>, StoreError> {
    let host = |number: u32| hosts.get(&number).map(|host| host.host);
    let mut wants = |number: u32, flow: &_| match host(number) {
        Some(host) => (listing.wants)(host, flow),
        None => Ok(false),
    };
    let page = view.list(&mut Listed {
        sweep: &sweep(&listing.selection),
        spans: &spans(hosts),
        order: listing.order,
        after: listing.after,
        limit: listing.limit,
        records_max: RECORDS_READ_MAX,
        until: Instant::now() + READING_MAX,
        wants: &mut wants,
    })?;
    let row = |(place, flow): (Place, _)| Some(ListedFlow { place, host: host(place.host)?, flow });
    Ok(Page {
        rows: page.rows.into_iter().filter_map(row).collect(),
        next: page.next,
        cut: page.is_cut.then_some(MANY_RECORDS),
        looked_at: page.looked_at,
        damage: damage(page.lost),
    })
}

/// A source may have been found damaged more than once.
fn each_once(damage: Vec<Damage>) -> Vec<Damage> {
    let mut once: Vec<Damage> = Vec::new();
    for damage in damage {
        if !once.contains(&damage) {
            once.push(damage);
        }
    }
    once
}

/// Records that may have stood for their connection in the stretch.
fn spans(hosts: &Hosts) -> Spans {
    let span = |stretch: Stretch| Span {
        looks_back_to: stretch.from.saturating_sub(RECORD_SPAN_MAX).as_nanos(),
        from: stretch.from.as_nanos(),
        to: stretch.to.as_nanos().saturating_add(1),
    };
    Spans::of(hosts.iter().map(|(number, host)| (*number, span(host.stretch))))
}

fn sweep(selection: &RecordSelection<'_>) -> Sweep {
    let networks = match selection.remotes {
        Some(remotes) => IpNet::aggregate(&remotes.to_vec()),
        None => ["0.0.0.0/0", "::/0"].map(|all| all.parse().expect("it is a network")).to_vec(),
    };
    let range = |network: &IpNet| (Remote::of(network.network()), Remote::of(network.broadcast()));
    let mut remotes: Vec<_> = networks.iter().map(range).collect();
    remotes.sort_unstable();
    Sweep {
        remotes,
        port: selection.port,
        is_udp: selection.protocol.map(|protocol| protocol == Protocol::Udp),
        ..Sweep::default()
    }
}

pub(super) fn processes(
    sql: &Sql,
    view: impl FnOnce() -> Arc<View>,
    hosts: &Hosts,
    with_record: Option<&Hosts>,
    listing: &mut ProcessListing<'_>,
) -> Result<Page<ListedProcess>, StoreError> {
    // Before any process is read: whoever's records are found has come before them.
    let view = view();
    let mut going = Going {
        sql,
        view: &view,
        hosts,
        page: Page::default(),
        until: Instant::now() + READING_MAX,
        at: listing.after,
    };
    let mut owners = None;
    if let (Some(selection), Some(record_hosts)) = (&listing.with_record, with_record) {
        owners = Some(going.owners(selection, record_hosts)?);
    }
    let mut together = TOGETHER_FIRST;
    let mut passed = 0;
    loop {
        if passed >= PROCESSES_PASSED_MAX
            || going.page.looked_at >= PROCESSES_READ_MAX as u64
            || Instant::now() >= going.until
        {
            going.page.cut = Some(MANY_PROCESSES);
            going.page.next = going.at;
            break;
        }
        let batch = match &mut owners {
            Some(owners) => {
                owners.split_off(owners.len().saturating_sub(together)).into_iter().rev().collect()
            }
            None => going.next_started(together)?,
        };
        let Some(last) = batch.last().copied() else { break };
        passed += batch.len();
        if going.take(&batch, listing)? {
            break;
        }
        going.at = Some(last);
        together = (together * 2).min(TOGETHER_MAX);
    }
    Ok(going.page)
}

/// A page that is being made.
struct Going<'a> {
    sql: &'a Sql,
    view: &'a View,
    hosts: &'a Hosts,
    page: Page<ListedProcess>,
    until: Instant,
    /// The last process that was gone through.
    at: Option<Place>,
}

/// A process, what was read of it, and what holds so far.
struct Read {
    place: Place,
    life: ProcessLife,
    parent: Option<ProcessLife>,
    truth: Truth,
}

impl Going<'_> {
    /// Whose the records of a kind are: the one first that was started first.
    fn owners(&mut self, selection: &RecordSelection<'_>, hosts: &Hosts) -> Result<Vec<Place>, StoreError> {
        let (owners, is_cut, lost) = self.view.owners(&sweep(selection), &spans(hosts));
        self.page.damage.extend(damage(lost));
        if is_cut {
            self.page.cut = Some(MANY_OWNERS);
        }
        let mut places = Vec::with_capacity(owners.len());
        for (host, uid) in owners.into_keys() {
            let started = processes::started(self.sql, host.into(), ProcessUid::from_bytes(uid))?;
            places.extend(started.map(|started| place(started, host, uid)));
        }
        places.retain(|place| self.at.is_none_or(|at| *place > at));
        places.sort_unstable_by(|one, other| other.cmp(one));
        Ok(places)
    }

    /// The next processes in the order of their start, whichever host they are of.
    fn next_started(&self, count: usize) -> Result<Vec<Place>, StoreError> {
        let latest = self.hosts.values().map(|host| host.stretch.to).max().unwrap_or(Timestamp::ZERO);
        let earliest = self.hosts.values().map(|host| host.stretch.from).min().unwrap_or(Timestamp::MAX);
        let after =
            self.at.unwrap_or_else(|| Place { key: u64::MAX - latest.as_nanos(), ..Place::default() });
        let mut statement = self.sql.prepare_cached(
            "SELECT started, host, uid FROM process WHERE record IS NOT NULL AND started <= ?1 AND started >= ?2
             AND (started < ?1 OR (host, uid) > (?3, ?4)) ORDER BY started DESC, host, uid LIMIT ?5",
        )?;
        let started = Timestamp::from_nanos(u64::MAX - after.key);
        let mut rows = statement.query(params![
            started.as_nanos_i64(),
            earliest.as_nanos_i64(),
            after.host,
            after.uid.as_slice(),
            count as i64
        ])?;
        let mut places = Vec::with_capacity(count);
        while let Some(row) = rows.next()? {
            let started = time("start of a process", row.get(0)?)?;
            places.push(place(started, row.get(1)?, sixteen("process uid", &row.get::<_, Vec<u8>>(2)?)?));
        }
        Ok(places)
    }

    /// Takes those that are wanted; whether the page is full.
    fn take(&mut self, batch: &[Place], listing: &mut ProcessListing<'_>) -> Result<bool, StoreError> {
        let mut read = Vec::new();
        for place in batch {
            match self.read(*place, listing) {
                Ok(found) => read.extend(found),
                Err(StoreError::Damaged { what, problem }) => self.page.damage.push(Damage {
                    from: started(*place),
                    to: Timestamp::MAX,
                    reason: format!("a stored {what} of a process is damaged: {problem}"),
                }),
                Err(error) => return Err(error),
            }
        }
        let open = read.iter().filter(|read| read.truth == Truth::Perhaps);
        let open: Vec<Owner> = open.map(|read| owner(read.place)).collect();
        let mut records = HashMap::new();
        if !open.is_empty() {
            let (found, lost) =
                self.view.of_processes(&open, RECORDS_OF_PROCESS_MAX, RECORDS_OF_PROCESSES_MAX);
            records = found;
            self.page.damage = each_once([std::mem::take(&mut self.page.damage), damage(lost)].concat());
        }
        for Read { place, life, parent, truth } in read {
            let Some(host) = self.hosts.get(&place.host).map(|host| host.host) else { continue };
            let (mut connections, mut records_left_out, mut truth) = (None, 0, truth);
            if truth == Truth::Perhaps {
                let (records, left_out) = records.remove(&owner(place)).unwrap_or_default();
                let found = Connection::of_records(records);
                let candidate =
                    Candidate { host, life: &life, parent: parent.as_ref(), connections: Some(&found) };
                truth = (listing.wants)(&candidate);
                // What was not read may have made another of it.
                if left_out > 0 {
                    self.page.cut = self.page.cut.or(Some(MANY_RECORDS_OF_PROCESSES));
                }
                (connections, records_left_out) = (Some(found), left_out);
            }
            if truth == Truth::No {
                continue;
            }
            if self.page.rows.len() == listing.limit {
                self.page.next = self.at;
                return Ok(true);
            }
            self.at = Some(place);
            self.page.rows.push(ListedProcess { place, host, life, parent, connections, records_left_out });
        }
        Ok(false)
    }

    /// What it takes to tell whether a process is wanted, but for its connections; none where it is not.
    fn read(&mut self, place: Place, listing: &mut ProcessListing<'_>) -> Result<Option<Read>, StoreError> {
        let Some(host) = self.hosts.get(&place.host) else { return Ok(None) };
        let stretch = Stretch { from: started(place), to: started(place) };
        if !host.stretch.meets(stretch) {
            return Ok(None);
        }
        let number = i64::from(place.host);
        self.page.looked_at += 1;
        let Some(mut life) = processes::plain(self.sql, number, ProcessUid::from_bytes(place.uid))? else {
            return Ok(None);
        };
        executables::complete(self.sql, number, Timestamp::MAX, &mut life)?;
        let mut parent = None;
        if let Some(uid) = life.record.parent.filter(|_| listing.with_parent) {
            parent = processes::plain(self.sql, number, uid)?;
        }
        let candidate =
            Candidate { host: host.host, life: &life, parent: parent.as_ref(), connections: None };
        let truth = (listing.wants)(&candidate);
        Ok((truth != Truth::No).then_some(Read { place, life, parent, truth }))
    }
}

/// The newest first.
fn place(started: Timestamp, host: u32, uid: [u8; 16]) -> Place {
    Place { key: u64::MAX - started.as_nanos(), host, ring: 0, seq: 0, uid }
}

fn started(place: Place) -> Timestamp {
    Timestamp::from_nanos(u64::MAX - place.key)
}

const fn owner(place: Place) -> Owner {
    (place.host, place.uid)
}
