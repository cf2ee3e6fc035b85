//! The thread that reads executables: one at a time, behind everybody else, in memory that does not depend on their size.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::Duration,
};

use alibi_proto::{
    executable::{ExecutableSighting, FileIdentity, Package, Sha256},
    time::Moment,
};

use super::{
    Limits, Wake,
    file::{self, FileState, Opened, Unread},
    known::Known,
};
use crate::{
    capture::{ObservedExecutable, ProcessKey},
    enrich::package::Packages,
    sys,
};

const BUFFER_BYTES: usize = 64 * 1024;
/// So many results at most are brought to the disk, and told, together.
const BATCH_MAX: usize = 64;
/// A batch of large files is told before it is full.
const BATCH_BYTES: u64 = 64 << 20;
/// Without work for so long, what can be read again is forgotten.
const REST: Duration = Duration::from_secs(120);

/// What the worker is asked.
pub(super) enum Job {
    Look(Box<Look>),
    Stop,
}

/// A file to look at.
pub(super) struct Look {
    pub(super) path: String,
    /// Which file it must be, where that is known.
    pub(super) file: Option<FileIdentity>,
    /// What is in it, where that is known already.
    pub(super) sha256: Option<Sha256>,
    pub(super) process: Option<ProcessKey>,
    pub(super) at: Moment,
    pub(super) sighting: ExecutableSighting,
    pub(super) held: Option<Held>,
}

/// A file that is kept open until it has been read, and counted as long as it is.
pub(super) struct Held {
    pub(super) file: File,
    pub(super) count: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the worker found.
pub(super) struct Found {
    pub(super) at: Moment,
    pub(super) observed: ObservedExecutable,
    /// Another look may find more.
    pub(super) is_passing: bool,
}

pub(super) struct Worker {
    pub(super) jobs: Receiver<Job>,
    pub(super) found: SyncSender<Found>,
    pub(super) wake: Wake,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) known: Known,
    pub(super) packages: Packages,
    pub(super) limits: Limits,
}

impl Worker {
    /// Works until told to stop.
    pub(super) fn run(mut self) {
        sys::stand_back();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let job = match self.jobs.recv_timeout(REST) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.packages.forget();
                    match self.jobs.recv() {
                        Ok(job) => job,
                        Err(_) => return,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(batch) = self.batch(job, &mut buffer) else { return };
            if self.tell(batch).is_err() {
                return;
            }
        }
    }

    /// What is found of `first` and of some of those that wait behind it; none when it is time to stop.
    fn batch(&mut self, first: Job, buffer: &mut [u8]) -> Option<Vec<Found>> {
        let mut batch = Vec::new();
        let mut bytes: u64 = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            let Job::Look(look) = job else { return None };
            batch.push(self.look(*look, buffer)?);
            let size = batch.last().and_then(|found| found.observed.file).map_or(0, |file| file.size);
            bytes = bytes.saturating_add(size);
            let has_room = batch.len() < BATCH_MAX && bytes < BATCH_BYTES;
            next = if has_room { self.jobs.try_recv().ok() } else { None };
        }
        Some(batch)
    }

    fn tell(&mut self, mut batch: Vec<Found>) -> Result<(), Stopped> {
        if let Err(problem) = self.known.save() {
            tracing::warn!("{problem}; until that is mended, no executable is called new on this host");
            // A crash could make it new once more.
            batch.iter_mut().for_each(|found| found.observed.first_on_host = false);
        }
        for found in batch {
            if let Err(TrySendError::Full(found)) = self.found.try_send(found) {
                self.wake.wake();
                self.found.send(found).map_err(|_| Stopped)?;
            }
        }
        self.wake.wake();
        Ok(())
    }

    /// None when it is time to stop.
    fn look(&mut self, look: Look, buffer: &mut [u8]) -> Option<Found> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let mut observed = ObservedExecutable {
            path: look.path,
            file: look.file,
            sha256: look.sha256,
            first_on_host: false,
            package: None,
            sighting: look.sighting,
            process: look.process,
            problem: None,
        };
        let mut is_passing = false;
        if observed.sha256.is_none() {
            match self.read(&mut observed, look.held, buffer) {
                Ok(()) => {}
                Err(Unread::Stopped) => return None,
                Err(Unread::Problem(problem)) => {
                    is_passing = [file::VANISHED, file::REPLACED, file::CHANGED].contains(&problem.as_str());
                    observed.problem = Some(problem);
                }
            }
        }
        observed.package = self.package(&observed);
        Some(Found { at: look.at, observed, is_passing })
    }

    /// The package of a file that is where it is said to be: not one of a container, whose paths mean other files here.
    fn package(&mut self, observed: &ObservedExecutable) -> Option<Package> {
        let found = FileState::at(Path::new(&observed.path)).ok()?;
        let is_it = file::is_same_but_for_device(&found.identity, &observed.file?);
        if is_it { self.packages.owner(&observed.path) } else { None }
    }

    fn read(
        &mut self,
        observed: &mut ObservedExecutable,
        held: Option<Held>,
        buffer: &mut [u8],
    ) -> Result<(), Unread> {
        let Some(held) = held else {
            let mut opened = file::open(Path::new(&observed.path), observed.process_run(), observed.file)
                .map_err(Unread::Problem)?;
            observed.file.get_or_insert(opened.state.identity);
            return self.read_opened(observed, &mut opened, buffer);
        };
        // Whatever has been done to it since: this is the file, and this is what it is now.
        let read = self.read_held(observed, &held.file, buffer);
        match read {
            // Who writes a file often sets its times afterwards, as those who unpack archives do.
            Err(Unread::Problem(problem)) if problem == file::CHANGED => {
                self.read_held(observed, &held.file, buffer)
            }
            read => read,
        }
    }

    fn read_held(
        &mut self,
        observed: &mut ObservedExecutable,
        held: &File,
        buffer: &mut [u8],
    ) -> Result<(), Unread> {
        let unreadable = |problem: io::Error| Unread::Problem(format!("cannot be read: {problem}"));
        let file = held.try_clone().map_err(unreadable)?;
        let state = FileState::of(&file).map_err(unreadable)?;
        observed.file = Some(state.identity);
        if let Some(path) = super::path_of(&file) {
            observed.path = path;
        }
        self.read_opened(observed, &mut Opened { file, state }, buffer)
    }

    fn read_opened(
        &mut self,
        observed: &mut ObservedExecutable,
        opened: &mut Opened,
        buffer: &mut [u8],
    ) -> Result<(), Unread> {
        let sha256 = match self.known.sha256(&opened.state) {
            Some(sha256) => sha256,
            None => {
                let sha256 = file::hash(opened, buffer, self.limits.hashed_bytes_max, &self.stop)?;
                observed.first_on_host = self.known.learn(&opened.state, sha256);
                sha256
            }
        };
        observed.sha256 = Some(sha256);
        Ok(())
    }
}

impl ObservedExecutable {
    /// The process whose executable it is; one that wrote it is none.
    fn process_run(&self) -> Option<ProcessKey> {
        self.process.filter(|_| self.sighting == ExecutableSighting::Run)
    }
}

/// Nobody listens any more.
struct Stopped;
