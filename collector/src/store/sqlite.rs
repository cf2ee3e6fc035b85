//! The store in one SQLite file: the default, for fleets that one machine can follow.
//!
//! One connection writes, behind a lock; readers have their own connections and, by SQLite's write-ahead log, never
//! wait for it. A commit is on the disk when [`SqliteStore::commit`] returns, because the agent may overwrite then
//! what was acknowledged; what others write meanwhile is made safe with it. The one thing that is not written each time is a
//! watermark that came alone (each host sends one each second): it is held in memory, seen by every reader, and written with
//! what the host tells next, events or what it says of itself, or else after [`PERSIST_AFTER`]. Losing it makes answers
//! `unknown` that could be `clear`, never the other way round.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use alibi_proto::{
    chain::ChainStatus,
    clock::{ClockHistory, ClockReading, Difference, HostClock},
    coverage::{Facet, Timeline},
    event::Batch,
    flow::{FlowRecord, RECORD_SPAN_MAX},
    host::HostDescription,
    id::{Cursor, Epoch, HostId, ProcessUid, Seq},
    link::LinkRecord,
    name::NamePattern,
    prevalence::Identity,
    process::ProcessLife,
    question::{NamedRemotes, Question},
    time::{Moment, Timestamp},
    window::Window,
};
use rusqlite::{Connection, Transaction};

use super::{
    Bounded, ByKey, Damage, FirstSeen, Fitted, FlowsFound, FlowsOfAll, FollowedAgent, HellosOfAll,
    HostQuestion, Progress, Resolution, ResumePoint, SightingOn, Store, StoreError, StoredFlow, Visit, codec,
    database::{Database, lock},
    flows::{self as store_flows, Flows},
    listing::{FlowListing, HostStretch, ListedFlow, ListedProcess, Page, ProcessListing},
    together::Together,
};

mod agents;
mod chain;
mod clock;
mod coverage;
mod executables;
mod flows;
mod ingest;
mod integrity;
mod listing;
mod memory;
mod names;
mod prevalence;
mod processes;
mod repair;
mod room;
mod schema;
#[cfg(test)]
mod tests;

pub use repair::Repaired;
pub(super) use schema::FORMAT;

use clock::Seen;
use ingest::Committed;
use integrity::Integrity;
use memory::{Changed, Memory};
use prevalence::Noted;

/// The directory of the flow records, beside the file.
const FLOWS_EXTENSION: &str = "flows";
/// A watermark that came alone is written after so long, if nothing else is of its host.
const PERSIST_AFTER: Duration = Duration::from_secs(60);
/// Events of a batch that is written together with what others write. A larger one takes longer than to make it safe does.
const TOGETHER_EVENTS_MAX: usize = 1_024;

/// A store in one SQLite file.
pub struct SqliteStore {
    database: Arc<Database>,
    flows: Arc<Flows>,
    /// What comes of agents, and the flow records in it.
    together: Together<store_flows::Row>,
    /// The number of each host, which never changes, as far as it was asked for.
    numbers: Mutex<ByKey<HostId, u32>>,
    memory: Memory,
    /// What is damaged in the file, as far as that is known.
    integrity: Arc<Integrity>,
    /// What of executables need not be written again.
    noted: Arc<Noted>,
    /// What is newer than the file. Changed only after the file was, so that it never promises more than the file has.
    live: Mutex<ByKey<HostId, Live>>,
}

/// How far a host's stream is known, and what of it has been written.
#[derive(Clone, Copy)]
struct Live {
    progress: Progress,
    /// [`Progress::heard`] when the file was last written.
    persisted: Option<Timestamp>,
    /// The host's wall clock less its boot clock, as it is written; none where that may be another by now.
    steady: Option<Difference>,
    /// The clocks that came with the last watermark, if that is not written.
    moment: Option<Moment>,
}

/// What is held in memory of a host, to be written with what comes next.
#[derive(Clone, Copy, Default)]
struct Held {
    known_until: Option<Timestamp>,
    /// The ring, and the clocks of its last watermark.
    moment: Option<(Epoch, Moment)>,
}

impl SqliteStore {
    /// Opens the database file at `path`, or makes it; one of an older version is brought up to date.
    ///
    /// # Errors
    /// When the file is no database, belongs to another program or to a newer version (it is left untouched then), or
    /// cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || {
            let database = Arc::new(Database::open(path, &FORMAT)?);
            integrity::check_proof(&database)?;
            let flows = Flows::open(&path.with_extension(FLOWS_EXTENSION), Arc::clone(&database))?;
            Ok((database, Arc::new(flows)))
        };
        let (database, flows) = open().map_err(|error| integrity::with_ways_out(path, error))?;
        while let Some(moved) = database.write(flows::move_some)? {
            flows.show(moved);
        }
        while database.write(prevalence::fill_some)? {}
        let forgotten = database.read(coverage::forgotten)?;
        let store = Self {
            integrity: Arc::default(),
            database,
            flows,
            together: Together::default(),
            numbers: Mutex::default(),
            memory: Memory::default(),
            noted: Arc::default(),
            live: Mutex::default(),
        };
        forgotten.map_or(Ok(()), |before| store.forget_flows(before))?;
        Ok(store)
    }

    /// Every flow record in the store at `path`, in no order, though another program may be writing there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn every_flow(path: &Path) -> Result<Vec<StoredFlow>, StoreError> {
        let database = Database::open(path, &FORMAT)?;
        let every = store_flows::every(&database, &path.with_extension(FLOWS_EXTENSION))?;
        let (hosts, epochs) =
            database.read(|connection| Ok((agents::numbers(connection)?, agents::epochs(connection)?)))?;
        let hosts: HashMap<u32, HostId> = hosts.into_iter().map(|(host, number)| (number, host)).collect();
        let stored = |(numbers, flow): (store_flows::Numbers, FlowRecord)| {
            let (host, epoch) = (*hosts.get(&numbers.host)?, *epochs.get(&numbers.ring)?);
            Some(StoredFlow { host, epoch, seq: Seq(numbers.seq), flow })
        };
        Ok(every.into_iter().filter_map(stored).collect())
    }

    /// How many flow records there are in the store at `path`, without reading them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn count_flows(path: &Path) -> Result<u64, StoreError> {
        Database::open(path, &FORMAT)?.read(store_flows::count)
    }

    /// What is damaged in the store at `path`, though a collector may be writing there; nothing where nothing is.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn check(path: &Path) -> Result<Vec<String>, StoreError> {
        repair::check(path)
    }

    /// Makes the main database at `path`, which nobody has open, anew of what can be read of it, and puts the damaged one aside.
    /// Nothing that was told until `now` is proven any more. None where nothing in it is damaged, and nothing was done.
    ///
    /// # Errors
    /// When it belongs to another program or to a newer version, or the new one cannot be written; nothing was done then.
    pub fn repair(path: &Path, now: Timestamp) -> Result<Option<Repaired>, StoreError> {
        repair::repair(path, now)
    }

    /// Reads all that there is, in a thread of its own and without haste, until the store is dropped. What is damaged is told in
    /// the log; where it is not known of what that takes the proof, everything is a gap.
    pub fn check_beside(&self) {
        integrity::check_beside(&self.integrity, &self.database, &self.flows);
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.database.read(read)
    }

    fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.database.write(write)
    }

    /// Writes in one transaction with what others write so meanwhile, and with the flow records that all of them leave, which are
    /// shown before the progress that they belong to: whoever reads that first finds them.
    fn write_together<T: Send + 'static>(
        &self,
        write: impl Fn(&Transaction<'_>, &mut Vec<store_flows::Row>) -> Result<T, StoreError>
        + Send
        + Sync
        + 'static,
    ) -> Result<T, StoreError> {
        let stage = |transaction: &Transaction<'_>, flows: Vec<_>| store_flows::stage(transaction, &flows);
        self.together.write(&self.database, write, stage, |flows| self.flows.show(flows))
    }

    /// Keeps no flow records that no question about the time from `before` on needs.
    fn forget_flows(&self, before: Timestamp) -> Result<(), StoreError> {
        self.flows.forget(before.saturating_sub(RECORD_SPAN_MAX).as_nanos())
    }

    /// The numbers of hosts, in their order; none of one that never described itself.
    fn numbers_of(&self, asked: &[HostQuestion<'_>]) -> Result<Vec<Option<u32>>, StoreError> {
        self.numbers(asked.iter().map(|asked| asked.host))
    }

    fn numbers(&self, hosts: impl Iterator<Item = HostId> + Clone) -> Result<Vec<Option<u32>>, StoreError> {
        let mut numbers = lock(&self.numbers);
        if hosts.clone().any(|host| !numbers.contains_key(&host)) {
            *numbers = self.read(agents::numbers)?.into_iter().collect();
        }
        Ok(hosts.map(|host| numbers.get(&host).copied()).collect())
    }

    fn hosts_by_number(&self, hosts: &[HostStretch]) -> Result<HashMap<u32, HostStretch>, StoreError> {
        let numbers = self.numbers(hosts.iter().map(|host| host.host))?;
        Ok(numbers.into_iter().zip(hosts).filter_map(|(number, host)| Some((number?, *host))).collect())
    }

    fn held(&self, host: HostId) -> Held {
        let live = lock(&self.live).get(&host).copied();
        live.map_or_else(Held::default, |live| Held {
            known_until: live.progress.known_until,
            moment: live.moment.map(|moment| (live.progress.next.epoch, moment)),
        })
    }

    fn written(&self, host: HostId, progress: Progress, steady: Option<Difference>) {
        let mut live = lock(&self.live);
        let known_until = live.get(&host).and_then(|live| live.progress.known_until);
        let progress = Progress { known_until: progress.known_until.max(known_until), ..progress };
        live.insert(host, Live { progress, persisted: progress.heard, steady, moment: None });
    }
}

impl Store for SqliteStore {
    fn agents(&self) -> Result<Vec<FollowedAgent>, StoreError> {
        let mut agents = self.memory.agents(|| self.read(agents::list))?;
        let live = lock(&self.live);
        for (description, progress) in agents.iter_mut().filter_map(|agent| agent.host.as_mut()) {
            if let Some(live) = live.get(&description.host) {
                *progress = live.progress;
            }
        }
        Ok(agents)
    }

    fn add_agent(&self, address: &str) -> Result<bool, StoreError> {
        let added = self.write_together({
            let address = address.to_owned();
            move |transaction, _| agents::add(transaction, &address)
        })?;
        self.memory.wrote_agents();
        Ok(added)
    }

    fn remove_agent(&self, address: &str) -> Result<bool, StoreError> {
        let removed = self.write(|transaction| agents::remove(transaction, address))?;
        self.memory.wrote_agents();
        Ok(removed)
    }

    fn describe(
        &self,
        address: &str,
        description: &HostDescription,
        reading: Option<&ClockReading>,
        heard: Timestamp,
    ) -> Result<Progress, StoreError> {
        let host = description.host;
        let held = self.held(host);
        let description = Arc::new(description.clone());
        let (stored, Seen { steady, changed }) = self.write_together({
            let (address, description) = (address.to_owned(), Arc::clone(&description));
            let reading = reading.cloned();
            move |transaction, _| {
                let stored = agents::describe(transaction, &address, &description, held.known_until, heard)?;
                Ok((stored, clock::measured(transaction, host, held.moment, reading.as_ref())?))
            }
        })?;
        self.memory.described(address, description);
        self.memory.wrote(host, Changed { clock: changed, coverage: Vec::new() });
        let mut live = lock(&self.live);
        let first = Live { progress: stored, persisted: None, steady, moment: None };
        let live = live.entry(host).or_insert(first);
        live.progress.heard = Some(heard);
        (live.persisted, live.steady, live.moment) = (Some(heard), steady, None);
        Ok(live.progress)
    }

    fn note(&self, host: HostId, batch: &Batch, heard: Timestamp) -> Option<Progress> {
        let mut live = lock(&self.live);
        let live = live.get_mut(&host)?;
        let due = live
            .persisted
            .is_none_or(|persisted| heard.since(persisted).max(persisted.since(heard)) >= PERSIST_AFTER);
        let continues = live.progress.next.epoch == batch.epoch && batch.epoch != Epoch::default();
        // A clock that was set is written before anything is believed that it stamped.
        let wall = batch.clock.map(Difference::of);
        let steady = wall.is_none_or(|wall| live.steady.is_some_and(|steady| steady.or(wall) == steady));
        if due || !continues || !steady || batch.settles().is_some() {
            return None;
        }
        live.progress.heard = Some(heard);
        live.progress.known_until = live.progress.known_until.max(batch.watermark);
        live.moment = batch.clock.or(live.moment);
        Some(live.progress)
    }

    fn clock(&self, host: HostId) -> Result<Arc<ClockHistory>, StoreError> {
        self.memory.clock(host, |host| self.read(|connection| clock::history(connection, host)))
    }

    fn host_clocks(&self, hosts: &[HostId], now: Timestamp) -> Vec<Result<HostClock, StoreError>> {
        self.memory.host_clocks(hosts, now, |host| self.read(|connection| clock::history(connection, host)))
    }

    fn commit(&self, host: HostId, batch: &Batch, heard: Timestamp) -> Result<Progress, StoreError> {
        let held = self.held(host);
        let together = batch.events.len() <= TOGETHER_EVENTS_MAX;
        let Committed { progress, steady, changed, noted } = if together {
            let (batch, noted) = (batch.clone(), Arc::clone(&self.noted));
            self.write_together(move |transaction, flows| {
                ingest::commit(transaction, host, held, &noted, &batch, heard, flows)
            })?
        } else {
            let (committed, flows) = self.write(|transaction| {
                let mut flows = Vec::new();
                let committed =
                    ingest::commit(transaction, host, held, &self.noted, batch, heard, &mut flows)?;
                Ok((committed, store_flows::stage(transaction, &flows)?))
            })?;
            self.flows.show(flows);
            committed
        };
        self.flows.wait_for_room();
        self.noted.remember(noted);
        self.memory.wrote(host, changed);
        self.written(host, progress, steady);
        Ok(progress)
    }

    fn resume_point(&self, host: HostId, epoch: Epoch) -> Result<ResumePoint, StoreError> {
        self.read(|connection| chain::resume_point(connection, host, epoch))
    }

    fn chain(&self, host: HostId) -> Result<ChainStatus, StoreError> {
        self.read(|connection| chain::status(connection, host))
    }

    fn diverge(
        &self,
        host: HostId,
        from: Cursor,
        reason: &str,
        heard: Timestamp,
    ) -> Result<Progress, StoreError> {
        let known_until = self.held(host).known_until;
        let progress =
            self.write(|transaction| chain::diverge(transaction, host, from, known_until, reason, heard))?;
        self.memory.wrote(host, Changed { clock: None, coverage: Facet::ALL.to_vec() });
        self.written(host, progress, None);
        Ok(progress)
    }

    fn coverages(&self, hosts: &[HostId], facet: Facet) -> Vec<Result<Arc<Timeline>, StoreError>> {
        let read = |host| self.read(|connection| coverage::timeline(connection, host, facet));
        self.memory.coverages(hosts, facet, read)
    }

    fn flows(
        &self,
        host: HostId,
        question: &Question,
        remotes: &NamedRemotes,
        limit: usize,
    ) -> Result<FlowsFound, StoreError> {
        let FlowsOfAll { mut by_host, damage } =
            self.flows_of_all(&[HostQuestion { host, question, remotes }], limit)?;
        let Bounded { rows, left_out } = by_host.remove(&host).unwrap_or_default();
        Ok(FlowsFound { rows, left_out, damage })
    }

    fn flows_of_all(&self, asked: &[HostQuestion<'_>], limit: usize) -> Result<FlowsOfAll, StoreError> {
        let numbers = self.numbers_of(asked)?;
        let mut found = flows::of_all(&self.flows.view(), asked, &numbers, limit);
        found.damage.extend(self.integrity.damage());
        Ok(found)
    }

    fn oldest_unnamed(
        &self,
        asked: &[HostQuestion<'_>],
    ) -> Result<(HashMap<HostId, Timestamp>, Vec<Damage>), StoreError> {
        let numbers = self.numbers_of(asked)?;
        Ok(flows::oldest_unnamed(&self.flows.view(), asked, &numbers))
    }

    fn addresses_of(
        &self,
        name: &NamePattern,
        before: Timestamp,
        limit: usize,
    ) -> Result<Bounded<IpAddr>, StoreError> {
        self.read(|connection| names::addresses(connection, name, before, limit))
    }

    fn resolutions(&self, name: &NamePattern, limit: usize) -> Result<Bounded<Resolution>, StoreError> {
        self.read(|connection| names::resolutions(connection, name, limit))
    }

    fn server_names(
        &self,
        asked: &[(HostId, Timestamp)],
        name: &NamePattern,
        limit: usize,
    ) -> Result<HellosOfAll, StoreError> {
        let numbers = self.numbers(asked.iter().map(|(host, _)| *host))?;
        let with_number =
            || numbers.iter().zip(asked).filter_map(|(number, asked)| Some(((*number)?, *asked)));
        let hosts: HashMap<u32, HostId> = with_number().map(|(number, (host, _))| (number, host)).collect();
        let before = with_number().map(|(number, (_, before))| (number, before)).collect();
        let found = self.read(|connection| names::server_names(connection, &before, name, limit))?;
        Ok(found.into_iter().map(|(number, hellos)| (hosts[&number], hellos)).collect())
    }

    fn links(&self, host: HostId, window: Window, limit: usize) -> Result<Bounded<LinkRecord>, StoreError> {
        self.read(|connection| executables::links(connection, host, window, limit))
    }

    fn process(
        &self,
        host: HostId,
        uid: ProcessUid,
        until: Timestamp,
    ) -> Result<Option<ProcessLife>, StoreError> {
        self.read(|connection| processes::one(connection, host, uid, until))
    }

    fn processes_by_prefix(
        &self,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(HostId, ProcessUid)>, StoreError> {
        self.read(|connection| processes::by_prefix(connection, prefix, limit))
    }

    fn had_user(&self, host: HostId, word: &str) -> Result<bool, StoreError> {
        self.read(|connection| processes::had_user(connection, host, word))
    }

    fn children(
        &self,
        host: HostId,
        parent: ProcessUid,
        limit: usize,
    ) -> Result<Bounded<ProcessLife>, StoreError> {
        self.read(|connection| processes::children(connection, host, parent, limit))
    }

    fn flows_of_process(
        &self,
        host: HostId,
        process: ProcessUid,
        limit: usize,
    ) -> Result<FlowsFound, StoreError> {
        self.read(|connection| flows::of_process(connection, || self.flows.view(), host, process, limit))
    }

    fn visit(
        &self,
        visit: &Visit<'_>,
        take: &mut dyn FnMut(HostId, &FlowRecord),
    ) -> Result<Vec<Damage>, StoreError> {
        let numbers = self.read(agents::numbers)?;
        Ok(flows::visit(&self.flows.view(), visit, |host| numbers.get(&host).copied(), take))
    }

    fn sightings(&self, identity: &Identity) -> Result<Vec<SightingOn>, StoreError> {
        self.read(|connection| prevalence::sightings(connection, identity))
    }

    fn first_seen(
        &self,
        host: HostId,
        window: Window,
        limit: usize,
    ) -> Result<Bounded<FirstSeen>, StoreError> {
        self.read(|connection| prevalence::first_seen(connection, host, window, limit))
    }

    fn sightings_forgotten(&self, host: HostId) -> Result<Option<Timestamp>, StoreError> {
        self.read(|connection| prevalence::forgotten(connection, host))
    }

    fn list_flows(&self, listing: &mut FlowListing<'_>) -> Result<Page<ListedFlow>, StoreError> {
        let hosts = self.hosts_by_number(listing.selection.hosts)?;
        listing::flows(&self.flows.view(), &hosts, listing)
    }

    fn list_processes(&self, listing: &mut ProcessListing<'_>) -> Result<Page<ListedProcess>, StoreError> {
        let hosts = self.hosts_by_number(listing.hosts)?;
        let with_record = listing.with_record.map(|with| self.hosts_by_number(with.hosts)).transpose()?;
        self.read(|connection| {
            listing::processes(connection, || self.flows.view(), &hosts, with_record.as_ref(), listing)
        })
    }

    fn forget(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write(|transaction| {
            flows::forget(transaction, before)?;
            processes::forget(transaction, before)?;
            executables::forget(transaction, before)?;
            names::forget(transaction, before)?;
            prevalence::forget(transaction, before)?;
            coverage::forget(transaction, before)
        })?;
        self.memory.wrote_all();
        self.noted.clear();
        self.forget_flows(before)?;
        room::give_back(&self.database)
    }

    fn forget_to_fit(&self, bytes_max: u64, now: Timestamp) -> Result<Fitted, StoreError> {
        let file = self.database.path();
        let taken = || Ok(room::bytes_of(file) + room::bytes_of(&file.with_extension(FLOWS_EXTENSION)));
        room::fit(bytes_max, now, &self.flows.days()?, taken, |before| self.forget(before))
    }
}

impl Drop for SqliteStore {
    /// Writes the watermarks that are in memory only. If that fails they are lost, which is safe.
    fn drop(&mut self) {
        self.integrity.stop();
        let live = std::mem::take(&mut *lock(&self.live));
        let newer = live.into_iter().filter(|(_, live)| live.progress.heard != live.persisted);
        let _ = self.write(|transaction| {
            newer
                .map(|(host, live)| (host, live.progress))
                .try_for_each(|(host, progress)| agents::persist(transaction, host, &progress))
        });
    }
}
