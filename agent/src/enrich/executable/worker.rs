//! The thread that has executables read: one at a time, behind everybody else, in memory that does not depend on their
//! size. What may keep it for ever, everything that asks the file system of an executable, is an errand
//! ([`super::errands`]): a file whose file system does not answer is told so, and the next is looked at.

use std::{
    fs::File,
    io, mem,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use alibi_proto::{
    executable::{ExecutableSighting, FileIdentity, Sha256, Signature},
    time::Moment,
};

use super::{
    Limits, Wake,
    errands::{Errands, NoAnswer, Place, Progress, Terms},
    file::{self, FileState, Opened, Unread},
    known::Known,
};
use crate::{
    capture::{ObservedExecutable, ProcessKey},
    enrich::package::{Busy, Packages},
    sys::{self, Examine, Examined},
};

const BUFFER_BYTES: usize = 64 * 1024;
/// So many results at most are brought to the disk, and told, together.
const BATCH_MAX: usize = 64;
/// A batch of large files is told before it is full.
const BATCH_BYTES: u64 = 64 << 20;
/// Without work for so long, what can be read again is forgotten.
const REST: Duration = Duration::from_secs(120);

/// Files whose file systems do not answer, at a time. Beyond that no file is read until one of them does.
const SILENT_MAX: usize = 8;

/// How executables are read.
pub(super) fn terms(limits: &Limits) -> Terms {
    Terms { name: "executable", patience: limits.read_patience, given_up_max: SILENT_MAX, stands_back: true }
}

/// Looks at signatures that have not returned, at a time. Beyond that no signature is looked at until one of them does.
const EXAMINERS_MAX: usize = 2;

/// How signatures are looked at.
pub(super) fn examiners(limits: &Limits) -> Terms {
    Terms {
        name: "signature",
        patience: limits.signature_patience,
        given_up_max: EXAMINERS_MAX,
        stands_back: true,
    }
}

/// A file of a package that is just being installed is told a little later, with its package: so much later at most, and
/// that is asked so often.
const PUT_OFF: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(250);
const PUT_OFF_MAX: usize = 64;

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
    /// Which package it belongs to could not be told when it was looked at.
    is_busy: bool,
}

pub(super) struct Worker {
    pub(super) jobs: Receiver<Job>,
    pub(super) found: SyncSender<Found>,
    pub(super) wake: Wake,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) known: Known,
    pub(super) packages: Packages,
    pub(super) limits: Limits,
    pub(super) errands: Errands,
    /// How signatures are looked at; none where there are none.
    pub(super) examine: Option<Examine>,
    /// Those who look at signatures: what keeps them need not be the file system.
    pub(super) examiners: Errands,
    /// Empty while it is lent to an errand, and after one that was given up.
    pub(super) buffer: Vec<u8>,
    /// What is found, but for the package, and since when.
    pub(super) put_off: Vec<(Instant, Found)>,
}

impl Worker {
    /// Works until told to stop.
    pub(super) fn run(mut self) {
        sys::stand_back();
        loop {
            let rest = if self.put_off.is_empty() { REST } else { ASK_AGAIN };
            let job = match self.jobs.recv_timeout(rest) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if !self.put_off.is_empty() => {
                    let ready = self.ask_again();
                    if self.tell(ready).is_err() {
                        return;
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.packages.forget();
                    match self.jobs.recv() {
                        Ok(job) => job,
                        Err(_) => return,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(mut batch) = self.batch(job) else { return };
            self.put_off(&mut batch);
            batch.extend(self.ask_again());
            if self.tell(batch).is_err() {
                return;
            }
        }
    }

    /// What is found of `first` and of some of those that wait behind it; none when it is time to stop.
    fn batch(&mut self, first: Job) -> Option<Vec<Found>> {
        let mut batch = Vec::new();
        let mut bytes: u64 = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            let Job::Look(look) = job else { return None };
            batch.push(self.look(*look)?);
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
        if batch.is_empty() {
            return Ok(());
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
    fn look(&mut self, look: Look) -> Option<Found> {
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
            signature: None,
            version: None,
        };
        let mut is_passing = false;
        if observed.sha256.is_none() {
            match self.read(&mut observed, look.held) {
                Ok(()) => {}
                Err(Unread::Stopped) => return None,
                Err(Unread::Problem(problem)) => {
                    is_passing = [file::VANISHED, file::REPLACED, file::CHANGED].contains(&problem.as_str());
                    observed.problem = Some(problem);
                }
                Err(Unread::Silent(problem)) => {
                    is_passing = true;
                    observed.problem = Some(format!("not read: {problem}"));
                }
            }
        }
        let mut is_busy = false;
        // Not of a file of a container, whose paths mean other files here.
        match self.is_at_its_path(&observed) {
            Ok(true) => {
                is_busy = !self.name_package(&mut observed);
            }
            Err(Unread::Stopped) => return None,
            Ok(false) | Err(_) => {}
        }
        Some(Found { at: look.at, observed, is_passing, is_busy })
    }

    /// Fills in the package. False if that cannot be told just now.
    fn name_package(&mut self, observed: &mut ObservedExecutable) -> bool {
        let Some(file) = observed.file else { return true };
        match self.packages.owner(&observed.path, &file) {
            Ok(package) => observed.package = package,
            Err(Busy) => return false,
        }
        true
    }

    /// Has those that can be told from the others, which wait.
    fn put_off(&mut self, batch: &mut Vec<Found>) {
        let mut put_off = batch.extract_if(.., |found| found.is_busy);
        while self.put_off.len() < PUT_OFF_MAX
            && let Some(found) = put_off.next()
        {
            self.put_off.push((Instant::now(), found));
        }
        // There is no room: without its package.
        let others: Vec<_> = put_off.collect();
        batch.extend(others);
    }

    /// Those that were put off and need wait no longer.
    fn ask_again(&mut self) -> Vec<Found> {
        let mut ready = Vec::new();
        for (since, mut found) in mem::take(&mut self.put_off) {
            if self.name_package(&mut found.observed) || since.elapsed() >= PUT_OFF {
                ready.push(found);
            } else {
                self.put_off.push((since, found));
            }
        }
        ready
    }

    /// Does what asks the file system of an executable.
    fn ask<T: Send + 'static>(
        &mut self,
        observed: &ObservedExecutable,
        work: impl FnOnce(&Progress) -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let device = observed.file.map(|file| file.device);
        let place = Place::of(Path::new(&observed.path), device);
        self.errands.run(place, Some(&self.stop), work).map_err(|problem| match problem {
            NoAnswer::Stopped => Unread::Stopped,
            problem => Unread::Silent(problem),
        })
    }

    fn is_at_its_path(&mut self, observed: &ObservedExecutable) -> Result<bool, Unread> {
        let Some(file) = observed.file else { return Ok(false) };
        let path = observed.path.clone();
        let is_at = move || {
            FileState::at(Path::new(&path))
                .is_ok_and(|found| file::is_same_but_for_device(&found.identity, &file))
        };
        self.ask(observed, move |_| is_at())
    }

    fn read(&mut self, observed: &mut ObservedExecutable, held: Option<Held>) -> Result<(), Unread> {
        let Some(held) = held else {
            let (path, process, wanted) = (observed.path.clone(), observed.process_run(), observed.file);
            let opened = self
                .ask(observed, move |_| file::open(Path::new(&path), process, wanted))?
                .map_err(Unread::Problem)?;
            observed.file.get_or_insert(opened.state.identity);
            return self.read_opened(observed, opened);
        };
        // Whatever has been done to it since: this is the file, and this is what it is now.
        let held = Arc::new(held);
        match self.read_held(observed, &held) {
            // Who writes a file often sets its times afterwards, as those who unpack archives do.
            Err(Unread::Problem(problem)) if problem == file::CHANGED => self.read_held(observed, &held),
            read => read,
        }
    }

    fn read_held(&mut self, observed: &mut ObservedExecutable, held: &Arc<Held>) -> Result<(), Unread> {
        let unreadable = |problem: io::Error| Unread::Problem(format!("cannot be read: {problem}"));
        let (held, said) = (Arc::clone(held), observed.path.clone());
        let (opened, path) = self.ask(observed, move |_| {
            let file = held.file.try_clone().map_err(unreadable)?;
            let state = FileState::of(&file).map_err(unreadable)?;
            let path = super::path_of(&file).unwrap_or(said);
            Ok((Opened { file, state, path: path.clone().into() }, path))
        })??;
        observed.file = Some(opened.state.identity);
        observed.path = path;
        self.read_opened(observed, opened)
    }

    fn read_opened(&mut self, observed: &mut ObservedExecutable, mut opened: Opened) -> Result<(), Unread> {
        let state = opened.state;
        let is_examined = self.examine.is_some();
        let (sha256, opened) = match self.known.sha256(&state) {
            Some(sha256) if is_examined => (sha256, Some(opened)),
            Some(sha256) => {
                // Closing, too, may ask.
                self.ask(observed, move |_| drop(opened))?;
                (sha256, None)
            }
            None => {
                let mut buffer = mem::take(&mut self.buffer);
                buffer.resize(BUFFER_BYTES, 0);
                let (bytes_max, stop) = (self.limits.hashed_bytes_max, Arc::clone(&self.stop));
                let (hashed, opened, buffer) = self.ask(observed, move |progress| {
                    let hashed = file::hash(&mut opened, &mut buffer, bytes_max, &stop, progress);
                    let opened = (is_examined && hashed.is_ok()).then_some(opened);
                    (hashed, opened, buffer)
                })?;
                self.buffer = buffer;
                let sha256 = hashed?;
                observed.first_on_host = self.known.learn(&state, sha256);
                (sha256, opened)
            }
        };
        observed.sha256 = Some(sha256);
        match (opened, self.examine) {
            (Some(opened), Some(examine)) => self.look_at_signature(observed, opened, examine),
            _ => Ok(()),
        }
    }

    fn look_at_signature(
        &mut self,
        observed: &mut ObservedExecutable,
        opened: Opened,
        examine: Examine,
    ) -> Result<(), Unread> {
        let place = Place::of(&opened.path, Some(opened.state.identity.device));
        let examined = self.examiners.run(place, Some(&self.stop), move |_| file::examined(&opened, examine));
        let reason = match examined {
            Ok(Examined { signature, version }) => {
                (observed.signature, observed.version) = (Some(signature), version);
                return Ok(());
            }
            Err(NoAnswer::Stopped) => return Err(Unread::Stopped),
            Err(NoAnswer::Silent(patience)) => {
                format!("the system has not told within {} s", patience.as_secs_f32())
            }
            Err(NoAnswer::StillSilent) => "the system has not told of another file there".to_owned(),
            Err(problem) => problem.to_string(),
        };
        observed.signature = Some(Signature::not_checked(&reason));
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
