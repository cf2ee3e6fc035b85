//! The store in one SQLite file: the default, for fleets that one machine can follow.
//!
//! One connection writes, behind a lock; readers have their own connections and, by SQLite's write-ahead log, never
//! wait for it. A commit is on the disk when [`SqliteStore::commit`] returns, because the agent may overwrite then
//! what was acknowledged. The one thing that is not written each time is a watermark that came alone (each host sends
//! one each second): it is held in memory, seen by every reader, and written with the next events or after
//! [`PERSIST_AFTER`]. Losing it makes answers `unknown` that could be `clear`, never the other way round.

use std::{collections::HashMap, net::IpAddr, path::Path, sync::Mutex, time::Duration};

use alibi_proto::{
    chain::ChainStatus,
    clock::{ClockHistory, ClockReading, Difference},
    coverage::{Facet, Timeline},
    event::Batch,
    flow::FlowRecord,
    host::HostDescription,
    id::{Cursor, Epoch, HostId, ProcessUid},
    link::LinkRecord,
    name::{NamePattern, ServerNameRecord},
    process::ProcessLife,
    question::{NamedRemotes, Question},
    time::Timestamp,
    window::Window,
};
use rusqlite::{Connection, Transaction};

use super::{
    Bounded, FollowedAgent, Progress, Resolution, ResumePoint, Store, StoreError, codec,
    database::{Database, lock},
};

mod agents;
mod chain;
mod clock;
mod coverage;
mod executables;
mod flows;
mod ingest;
mod names;
mod processes;
mod schema;
#[cfg(test)]
mod tests;

/// A watermark that came alone is written after so long.
const PERSIST_AFTER: Duration = Duration::from_secs(10);

/// A store in one SQLite file.
pub struct SqliteStore {
    database: Database,
    /// What is newer than the file. Changed only after the file was, so that it never promises more than the file has.
    live: Mutex<HashMap<HostId, Live>>,
}

/// How far a host's stream is known, and what of it has been written.
#[derive(Clone, Copy)]
struct Live {
    progress: Progress,
    /// [`Progress::heard`] when the file was last written.
    persisted: Option<Timestamp>,
    /// The host's wall clock less its boot clock, as it is written; none where that may be another by now.
    steady: Option<Difference>,
}

impl SqliteStore {
    /// Opens the database file at `path`, or makes it; one of an older version is brought up to date.
    ///
    /// # Errors
    /// When the file is no database, belongs to another program or to a newer version (it is left untouched then), or
    /// cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(path, &schema::FORMAT)?, live: Mutex::default() })
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

    /// Takes in a watermark that came alone, in memory; none when something must be written.
    fn commit_in_memory(&self, host: HostId, batch: &Batch, heard: Timestamp) -> Option<Progress> {
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
        Some(live.progress)
    }

    fn live(&self, host: HostId) -> Option<Progress> {
        lock(&self.live).get(&host).map(|live| live.progress)
    }

    fn written(&self, host: HostId, progress: Progress, steady: Option<Difference>) {
        let mut live = lock(&self.live);
        let known_until = live.get(&host).and_then(|live| live.progress.known_until);
        let progress = Progress { known_until: progress.known_until.max(known_until), ..progress };
        live.insert(host, Live { progress, persisted: progress.heard, steady });
    }
}

impl Store for SqliteStore {
    fn agents(&self) -> Result<Vec<FollowedAgent>, StoreError> {
        let mut agents = self.read(agents::list)?;
        let live = lock(&self.live);
        for (description, progress) in agents.iter_mut().filter_map(|agent| agent.host.as_mut()) {
            if let Some(live) = live.get(&description.host) {
                *progress = live.progress;
            }
        }
        Ok(agents)
    }

    fn add_agent(&self, address: &str) -> Result<bool, StoreError> {
        self.write(|transaction| agents::add(transaction, address))
    }

    fn remove_agent(&self, address: &str) -> Result<bool, StoreError> {
        self.write(|transaction| agents::remove(transaction, address))
    }

    fn describe(
        &self,
        address: &str,
        description: &HostDescription,
        reading: Option<&ClockReading>,
        heard: Timestamp,
    ) -> Result<Progress, StoreError> {
        let mut writer = self.database.writer();
        let (stored, steady) = self.database.write_with(&mut writer, |transaction| {
            let stored = agents::describe(transaction, address, description, heard)?;
            Ok((stored, clock::measured(transaction, description.host, reading)?))
        })?;
        let mut live = lock(&self.live);
        let first = Live { progress: stored, persisted: stored.heard, steady };
        let live = live.entry(description.host).or_insert(first);
        live.progress.heard = Some(heard);
        live.steady = steady;
        Ok(live.progress)
    }

    fn clock(&self, host: HostId) -> Result<ClockHistory, StoreError> {
        self.read(|connection| clock::history(connection, host))
    }

    fn commit(&self, host: HostId, batch: &Batch, heard: Timestamp) -> Result<Progress, StoreError> {
        if let Some(progress) = self.commit_in_memory(host, batch, heard) {
            return Ok(progress);
        }
        let mut writer = self.database.writer();
        let known_until = self.live(host).and_then(|live| live.known_until);
        let (progress, steady) = self.database.write_with(&mut writer, |transaction| {
            ingest::commit(transaction, host, known_until, batch, heard)
        })?;
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
        let mut writer = self.database.writer();
        let known_until = self.live(host).and_then(|live| live.known_until);
        let progress = self.database.write_with(&mut writer, |transaction| {
            chain::diverge(transaction, host, from, known_until, reason, heard)
        })?;
        self.written(host, progress, None);
        Ok(progress)
    }

    fn coverage(&self, host: HostId, facet: Facet) -> Result<Timeline, StoreError> {
        self.read(|connection| coverage::timeline(connection, host, facet))
    }

    fn flows(
        &self,
        host: HostId,
        question: &Question,
        remotes: &NamedRemotes,
        limit: usize,
    ) -> Result<Bounded<FlowRecord>, StoreError> {
        self.read(|connection| flows::answering(connection, host, question, remotes, limit))
    }

    fn oldest_unnamed(&self, host: HostId, question: &Question) -> Result<Option<Timestamp>, StoreError> {
        self.read(|connection| flows::oldest_unnamed(connection, host, question))
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
        host: HostId,
        name: &NamePattern,
        before: Timestamp,
        limit: usize,
    ) -> Result<Bounded<ServerNameRecord>, StoreError> {
        self.read(|connection| names::server_names(connection, host, name, before, limit))
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
    ) -> Result<Bounded<FlowRecord>, StoreError> {
        self.read(|connection| flows::of_process(connection, host, process, limit))
    }

    fn forget(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write(|transaction| {
            flows::forget(transaction, before)?;
            processes::forget(transaction, before)?;
            executables::forget(transaction, before)?;
            names::forget(transaction, before)?;
            coverage::forget(transaction, before)
        })
    }
}

impl Drop for SqliteStore {
    /// Writes the watermarks that are in memory only. If that fails they are lost, which is safe.
    fn drop(&mut self) {
        let live = std::mem::take(&mut *lock(&self.live));
        let newer = live.into_iter().filter(|(_, live)| live.progress.heard != live.persisted);
        let _ = self.write(|transaction| {
            newer
                .map(|(host, live)| (host, live.progress))
                .try_for_each(|(host, progress)| agents::persist(transaction, host, &progress))
        });
    }
}
