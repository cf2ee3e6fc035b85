//! What an executable is: its size, its SHA-256, its package or signature, and whether this host has seen its content before.
//!
//! [`Identifier`] answers at once what it knows, and has one thread find out the rest behind everybody else's back. So a
//! process is recorded without waiting for the hash of its executable; the hash follows as [`Fact::ExecutableSeen`], and
//! both name the same [`FileIdentity`].
//!
//! What is said of a file is true of the file that was meant: it is opened first, and is then only believed if it is the
//! one that the process was started from, before and after all of it was read. Whatever makes that impossible is the
//! `problem` of the fact. Nothing is hashed without that, nothing but regular files is opened, and nothing waits: neither
//! the source nor the file behind it for a file system that does not answer (see `errands`).
//!
//! Limits of this, each said where it matters:
//! - A file whose content was exchanged under the same device, inode, size and time of change (root can set that) has the
//!   same identity. Within a run [`Writers`] tell of such a write; between runs the time of any change, which nobody can
//!   set, makes it be read again. On Windows and macOS nobody tells of writes, so within a run the old hash stands; and on
//!   Windows who may write a file can set all of its times.
//! - `first_on_host` is never true of a content that had been seen before, but may rarely be false of one that had not
//!   (see `known`).

use std::{
    convert::Infallible,
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use alibi_proto::{
    executable::{ExecutableSighting, FileIdentity, Sha256},
    process::ProcessImage,
    time::Moment,
};

use self::{
    known::Known,
    worker::{Found, Held, Job, Look, Worker},
};
use super::package::Packages;
use crate::{
    capture::{Fact, Observation, ObservedExecutable, ProcessKey},
    sys::{self, Examine},
};

mod errands;
mod file;
mod generations;
mod known;
#[cfg(test)]
mod tests;
mod worker;

pub use self::known::KnownError;
#[allow(unused_imports, reason = "not every system tells of files that are written")]
pub(crate) use self::{
    errands::{Errands, NoAnswer, Place, Terms},
    file::FileState,
    generations::Generations,
};

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files whose hash is remembered; the one not asked for longest is forgotten first.
    pub files_max: usize,
    /// Files that wait to be read, and results that wait to be taken.
    pub queue_max: usize,
    /// A larger file is not hashed.
    pub hashed_bytes_max: u64,
    /// Files of [`Writers`] that are kept open while they wait. Those beyond are found again by their path.
    pub held_max: usize,
    /// A file of which nothing comes for so long is given up: its file system does not answer.
    pub read_patience: Duration,
    /// The system has so long to tell what the signature of a file is worth: it has to read all of it once more.
    pub signature_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files_max: 16_384,
            queue_max: 4_096,
            hashed_bytes_max: 1 << 30,
            held_max: 128,
            read_patience: Duration::from_secs(10),
            signature_patience: Duration::from_secs(30),
        }
    }
}

/// Files that there was no room for are told one by one up to so many between two takes, and counted from there on.
const REFUSED_MAX: usize = 64;

/// A source can wait so long for what an executable is, and no longer. It waits so often at most while none of these
/// has been answered.
const STATES: Terms = Terms {
    name: "executable-of",
    patience: Duration::from_millis(250),
    given_up_max: 4,
    stands_back: false,
};

/// The worker stops within a moment, unless the system keeps it in the middle of a read: that may take for ever.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Says what executables are. Belongs to the thread of a source.
pub struct Identifier {
    files: Generations<FileIdentity, Asked>,
    states: Errands,
    jobs: SyncSender<Job>,
    // None while being dropped.
    found: Option<Receiver<Found>>,
    #[cfg(unix)]
    woken: std::os::unix::net::UnixStream,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    // Nothing is ever sent: the other end is dropped when the worker ends.
    ended: Receiver<Infallible>,
    limits: Limits,
    held: Arc<AtomicUsize>,
    refused: Vec<Observation>,
    refused_untold: u64,
}

/// A file that was asked about.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// None as long as it is not known, and if it cannot be.
    sha256: Option<Sha256>,
    /// It has been said, or will be, that it was run.
    run_told: bool,
}

impl Identifier {
    /// Begins, with what `known`, a file in the agent's data directory, says of earlier runs; it is made if there is
    /// none. Package databases are those of this system.
    ///
    /// # Errors
    /// When that file cannot be read or written, or is of a newer version; when there is no thread to be had.
    pub fn open(known: &Path) -> Result<Self, KnownError> {
        Self::with_limits(known, Path::new("/"), Limits::default())
    }

    /// As [`Identifier::open`], with other bounds, and package databases under `root`.
    ///
    /// # Errors
    /// As [`Identifier::open`].
    pub fn with_limits(known: &Path, root: &Path, limits: Limits) -> Result<Self, KnownError> {
        Self::examining(known, root, limits, sys::examine())
    }

    fn examining(
        known: &Path,
        root: &Path,
        limits: Limits,
        examine: Option<Examine>,
    ) -> Result<Self, KnownError> {
        let known = Known::open(known, limits.files_max)?;
        let (jobs, waiting) = sync_channel(limits.queue_max);
        let (found, results) = sync_channel(limits.queue_max);
        let stop = Arc::new(AtomicBool::new(false));
        #[cfg(unix)]
        let (wake, woken) = Wake::pair().map_err(KnownError::Worker)?;
        #[cfg(not(unix))]
        let wake = Wake;
        let packages = Packages::open(root);
        let worker = Worker {
            jobs: waiting,
            found,
            wake,
            stop: Arc::clone(&stop),
            known,
            packages,
            limits,
            errands: Errands::new(worker::terms(&limits)),
            examine,
            examiners: Errands::new(worker::examiners(&limits)),
            buffer: Vec::new(),
            put_off: Vec::new(),
        };
        let (running, ended) = sync_channel(0);
        let worker = thread::Builder::new().name("executables".to_owned()).spawn(move || {
            worker.run();
            drop(running);
        });
        Ok(Self {
            files: Generations::new(limits.files_max),
            states: Errands::new(STATES),
            jobs,
            found: Some(results),
            #[cfg(unix)]
            woken,
            stop,
            worker: Some(worker.map_err(KnownError::Worker)?),
            ended,
            limits,
            held: Arc::default(),
            refused: Vec::new(),
            refused_untold: 0,
        })
    }

    /// Fills in what is known of the images in `facts` ([`Identifier::identify`]).
    pub fn identify_all(&mut self, facts: &mut [Observation]) {
        for Observation { at, fact } in facts {
            match fact {
                Fact::ProcessStarted(started) => self.identify(started.process, *at, &mut started.image),
                Fact::ProcessExecuted { process, image } => self.identify(*process, *at, image),
                _ => {}
            }
        }
    }

    /// Fills in the hash of what `process` runs, where it is known; else has it found out. Takes well below a
    /// microsecond where the image names its file; else that is asked of the system and filled in, which takes some
    /// tens of microseconds. Where a file system does not answer it stays open, after a quarter of a second, and is not
    /// asked again until it answers.
    pub fn identify(&mut self, process: ProcessKey, at: Moment, image: &mut ProcessImage) {
        let Some(path) = &image.path else { return };
        if image.file.is_none() {
            image.file = self.file_of(process, path);
        }
        let mut asked = Asked { run_told: true, ..Asked::default() };
        if let Some(file) = &image.file {
            if let Some(known) = self.files.get_mut(file) {
                image.sha256 = known.sha256;
                if known.run_told {
                    return;
                }
                known.run_told = true;
                asked = *known;
            } else {
                self.files.insert(*file, asked);
            }
        }
        let look = Box::new(Look {
            path: path.clone(),
            file: image.file,
            sha256: asked.sha256,
            process: Some(process),
            at,
            sighting: ExecutableSighting::Run,
            held: None,
        });
        if let Err(look) = send(&self.jobs, look) {
            self.refuse(*look);
        }
    }

    /// Takes what has been found out: one [`Fact::ExecutableSeen`] for each file that was run in this run of the agent,
    /// and one for each that was written; one more where a file could not be read before, is run again, and can be.
    ///
    /// A fact has the time at which the file was run or written, so it may be older than what was reported before it.
    pub fn take(&mut self, facts: &mut Vec<Observation>) {
        #[cfg(unix)]
        self.forget_wakes();
        facts.append(&mut self.refused);
        if self.refused_untold > 0 {
            let (count, queue_max) = (self.refused_untold, self.limits.queue_max);
            tracing::warn!("{count} more executables were not looked at, because {queue_max} were waiting");
            self.refused_untold = 0;
        }
        for _ in 0..self.limits.queue_max {
            let Some(found) = self.found.as_ref().and_then(|found| found.try_recv().ok()) else { break };
            self.learn(&found);
            facts.push(Observation { at: found.at, fact: Fact::ExecutableSeen(Box::new(found.observed)) });
        }
    }

    /// Readable when there is something to take.
    #[cfg(unix)]
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.woken)
    }

    /// For those who see files being written.
    pub fn writers(&self) -> Writers {
        Writers { jobs: self.jobs.clone(), held: Arc::clone(&self.held), held_max: self.limits.held_max }
    }

    /// On another thread: a file system that does not answer would keep this one, and all recording with it.
    fn file_of(&mut self, process: ProcessKey, path: &str) -> Option<FileIdentity> {
        let path = Path::new(path).to_owned();
        let state = self.states.run(Place::of(&path, None), None, move |_| {
            file::state_of_process(process).or_else(|| FileState::at(&path).ok())
        });
        Some(state.ok()??.identity)
    }

    fn refuse(&mut self, look: Look) {
        if let Some(file) = &look.file {
            // Asked again when it is run again.
            self.files.remove(file);
        }
        if self.refused.len() < REFUSED_MAX {
            self.refused.push(refused(look, self.limits.queue_max));
        } else {
            self.refused_untold += 1;
        }
    }

    fn learn(&mut self, found: &Found) {
        let Some(file) = &found.observed.file else { return };
        if found.is_passing {
            self.files.remove(file);
            return;
        }
        let run_told = found.observed.sighting == ExecutableSighting::Run
            || self.files.get_mut(file).is_some_and(|asked| asked.run_told);
        self.files.insert(*file, Asked { sha256: found.observed.sha256, run_told });
    }

    #[cfg(unix)]
    fn forget_wakes(&mut self) {
        use std::io::Read as _;
        let mut wakes = [0; 64];
        while matches!(self.woken.read(&mut wakes), Ok(1..)) {}
    }
}

impl Drop for Identifier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A worker that waits hears this; one that has no room for it looks whether to stop before it works on.
        let _ = self.jobs.try_send(Job::Stop);
        self.found = None;
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP_PATIENCE) {
            tracing::warn!("an executable could not be read until the end: its file system does not answer");
            return;
        }
        if let Some(worker) = self.worker.take() {
            // It has said itself what was wrong with it.
            let _ = worker.join();
        }
    }
}

/// Hears of files that were written.
#[derive(Clone)]
#[allow(dead_code, reason = "not every system tells of files that are written")]
pub struct Writers {
    jobs: SyncSender<Job>,
    held: Arc<AtomicUsize>,
    held_max: usize,
}

#[allow(dead_code, reason = "not every system tells of files that are written")]
impl Writers {
    /// A file was written at `at`, by `writer` where that is known: it will be told by the [`Identifier`]. `file` is
    /// open for reading.
    ///
    /// # Errors
    /// When too many are waiting: then nothing will be told of it.
    pub(crate) fn written(
        &self,
        file: &File,
        state: &FileState,
        path: String,
        writer: Option<ProcessKey>,
        at: Moment,
    ) -> Result<(), QueueFull> {
        let look = Box::new(Look {
            path,
            file: Some(state.identity),
            sha256: None,
            process: writer,
            at,
            sighting: ExecutableSighting::Written,
            held: self.hold(file),
        });
        send(&self.jobs, look).map_err(|_| QueueFull)
    }

    /// Keeps the file open, so that it can be read whatever it is called by then, if not too many are kept already.
    fn hold(&self, file: &File) -> Option<Held> {
        if self.held.fetch_add(1, Ordering::Relaxed) >= self.held_max {
            self.held.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        match file.try_clone() {
            Ok(file) => Some(Held { file, count: Arc::clone(&self.held) }),
            Err(_) => {
                self.held.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Too many files wait to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "not every system tells of files that are written")]
pub(crate) struct QueueFull;

/// Gives back what there is no room for.
fn send(jobs: &SyncSender<Job>, look: Box<Look>) -> Result<(), Box<Look>> {
    match jobs.try_send(Job::Look(look)) {
        Err(TrySendError::Full(Job::Look(look)) | TrySendError::Disconnected(Job::Look(look))) => Err(look),
        _ => Ok(()),
    }
}

fn refused(look: Look, queue_max: usize) -> Observation {
    let problem = format!("not looked at, because {queue_max} other executables were waiting");
    let observed = ObservedExecutable {
        path: look.path,
        file: look.file,
        sha256: look.sha256,
        first_on_host: false,
        package: None,
        sighting: look.sighting,
        process: look.process,
        problem: Some(problem),
        signature: None,
        version: None,
    };
    Observation { at: look.at, fact: Fact::ExecutableSeen(Box::new(observed)) }
}

/// Where the system says that an open file is now; none where it does not say. A path that is not that of this file from
/// here, as one in a container, begins with `(unreachable)`, as the kernel itself has it elsewhere.
pub(crate) fn path_of(file: &File) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::{fd::AsRawFd as _, unix::fs::MetadataExt as _};
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let read = || std::fs::read_link(&link).ok();
        let mut path = read()?;
        let state = FileState::of(file).ok()?;
        if !state.is_at(&path) {
            // Moved, perhaps, since the link was read.
            path = read()?;
        }
        let is_gone = file.metadata().is_ok_and(|metadata| metadata.nlink() == 0);
        let is_here = is_gone || state.is_at(&path);
        let path = path.to_string_lossy();
        let path = if is_gone { path.strip_suffix(" (deleted)").unwrap_or(&path) } else { &path };
        path.starts_with('/').then(|| if is_here { path.to_owned() } else { format!("(unreachable){path}") })
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        None
    }
}

/// Says that a test cannot run here; where none may be skipped, as in CI, that is a failure.
#[cfg(all(test, unix))]
pub(crate) fn skip(why: &str) {
    let is_forbidden = std::env::var("ALIBI_LAB_SKIP").as_deref() == Ok("forbid");
    assert!(!is_forbidden, "no test may be skipped here, and this one cannot run: {why}");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("SKIPPED: {why}\n").as_bytes());
}

/// Makes the descriptor of an [`Identifier`] readable.
#[cfg(unix)]
struct Wake(std::os::unix::net::UnixStream);

#[cfg(unix)]
impl Wake {
    fn pair() -> std::io::Result<(Self, std::os::unix::net::UnixStream)> {
        let (wake, woken) = std::os::unix::net::UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok((Self(wake), woken))
    }

    fn wake(&self) {
        // There is no room only if it is readable already.
        let _ = std::io::Write::write(&mut &self.0, &[1]);
    }
}

/// Where nobody waits for descriptors.
#[cfg(not(unix))]
struct Wake;

#[cfg(not(unix))]
impl Wake {
    fn wake(&self) {}
}
