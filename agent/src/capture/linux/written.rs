//! Executables that are written: fanotify.
//!
//! The kernel tells of every file that was open for writing and is closed (`FAN_CLOSE_WRITE`), on every local file system
//! that is mounted in the agent's mount namespace, whoever wrote it and in whichever namespace. Those that can be run go to
//! the [`Identifier`](crate::enrich::executable::Identifier), which tells them with hash, package and writer.
//!
//! A file can be run if somebody may run it, or if it begins as a program: ELF (not object files or core dumps), `#!`, MZ.
//!
//! Only ever notifications, never questions that a program would have to wait for. Events carry an open file, so whatever
//! is done to the file meanwhile, it is the one that was written.
//!
//! Blind spots:
//! - A file that is moved or linked into place is told where it was written: under the name that it has when it is read,
//!   usually the final one. A later name is told when it is run.
//! - Empty files, and files that are made executable later without beginning as a program.
//! - Where file systems lie upon each other (overlay), a file is told as it is in each that is listened to. A path that is
//!   not that of this file from here, as in a container, begins with `(unreachable)`.
//! - Network file systems and those served by programs (FUSE), devtmpfs; file systems that are mounted in other mount
//!   namespaces only; what is written to a file system before the agent has heard that it is mounted.
//! - What a file contains for a moment only: one that is written again and again is told once a second at most, a large
//!   one more seldom (10 MiB of it take a second, up to 30), and then as it is at the end of that time.
//! - A writer that is in another tree of process ids or has gone when the event is read is not known.
//!
//! All of it is done on a thread of its own. Even a local file system may keep who asks it: the way to it may lead through
//! one that does not answer, and an overlay may lie upon one. Then recording goes on, and it is said since when nothing is
//! known of what is written. Marking a file system walks that way first of all, and is given up by itself, so that those
//! that answer are listened to; it is tried again each minute.
//!
//! Executables are no facet of coverage: nothing that is asked of processes and connections rests on them. So what was
//! missed here makes no gap there. It is told where it is missed: as an executable without path or hash, whose problem
//! says how many, or since when.

use std::{
    convert::Infallible,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use alibi_proto::time::Moment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::listener::{Listener, unseen};
use super::Sensor;
use crate::{
    capture::{CaptureError, Observation},
    enrich::executable::Writers,
    sys,
};

mod listener;
mod mounts;
#[cfg(test)]
mod silence;
#[cfg(test)]
mod tests;

/// Facts that wait to be taken: there is one a second at most.
const FACTS_MAX: usize = 64;
/// After something has been heard, more is let come.
const GATHER: Duration = Duration::from_millis(20);
/// A turn that takes longer than this hangs.
const TURN_NS_MAX: u64 = 10_000_000_000;
/// The source waits so long for the first turn, so that what is written from then on is seen.
const FIRST_TURN_MAX: Duration = Duration::from_secs(1);
/// The thread ends within a moment, unless a file system keeps it.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The sensor: what the thread that listens has to say.
pub(super) struct Written {
    facts: Receiver<Observation>,
    woken: UnixStream,
    /// When the turn began that the thread is at, in nanoseconds since boot; 0 while it waits.
    busy_since: Arc<AtomicU64>,
    /// The turn whose hanging has been told.
    told_of: u64,
    // Hung up to say stop.
    stop: Option<UnixStream>,
    // Nothing is ever sent: the other end is dropped when the thread ends.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Written {
    /// Listens to every local file system, and tells `writers`.
    ///
    /// # Errors
    /// When the system does not allow it: it takes `CAP_SYS_ADMIN`.
    pub(super) fn open(writers: Writers) -> io::Result<Self> {
        Self::run(Listener::open(writers)?)
    }

    fn run(listener: Listener) -> io::Result<Self> {
        let (facts, taken) = sync_channel(FACTS_MAX);
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let (stop, stopped) = UnixStream::pair()?;
        let busy_since = Arc::new(AtomicU64::new(0));
        let (running, ended) = sync_channel(0);
        let (ready, first_turn) = sync_channel(1);
        let turns = Turns { listener, facts, wake, stopped, busy_since: Arc::clone(&busy_since) };
        let thread = thread::Builder::new().name("written".to_owned()).spawn(move || {
            turns.run(&ready);
            drop(running);
        })?;
        let _ = first_turn.recv_timeout(FIRST_TURN_MAX);
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Self { facts: taken, woken, busy_since, told_of: 0, stop, ended, thread })
    }
}

impl Sensor for Written {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// Never behind: what it adds is of no facet.
    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        let mut wakes = [0; 64];
        while matches!(self.woken.read(&mut wakes), Ok(1..)) {}
        facts.extend(self.facts.try_iter().take(FACTS_MAX));
        let since = self.busy_since.load(Ordering::Relaxed);
        if since != 0 && since != self.told_of && now.boot_ns.saturating_sub(since) > TURN_NS_MAX {
            self.told_of = since;
            let seconds = now.boot_ns.saturating_sub(since) / 1_000_000_000;
            let problem = format!(
                "of the executables written since {seconds} s ago none is known, until a file system answers that \
                 does not now"
            );
            facts.push(unseen(now, problem));
        }
        Ok(true)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.stop = None;
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP_PATIENCE) {
            tracing::warn!("what was written last is not known: a file system does not answer");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // It has said itself what was wrong with it.
            let _ = thread.join();
        }
    }
}

/// What the thread does.
struct Turns {
    listener: Listener,
    facts: SyncSender<Observation>,
    wake: UnixStream,
    stopped: UnixStream,
    busy_since: Arc<AtomicU64>,
}

impl Turns {
    /// Until told to stop.
    fn run(mut self, ready: &SyncSender<()>) {
        let mut untold = Vec::new();
        loop {
            let now = sys::now();
            self.busy_since.store(now.boot_ns, Ordering::Relaxed);
            self.listener.take(now, &mut untold);
            // The oldest says since when. There is no room only if nobody takes anything.
            untold.truncate(FACTS_MAX);
            self.tell(&mut untold);
            self.busy_since.store(0, Ordering::Relaxed);
            let _ = ready.try_send(());
            let untold_within = (!untold.is_empty()).then_some(Duration::from_secs(1));
            let within = untold_within.or(self.listener.wants_turn_within());
            if !self.wait(true, within) || !self.wait(false, Some(GATHER)) {
                return;
            }
        }
    }

    fn tell(&mut self, untold: &mut Vec<Observation>) {
        let mut is_told = false;
        while !untold.is_empty() && self.facts.try_send(untold[0].clone()).is_ok() {
            untold.remove(0);
            is_told = true;
        }
        if is_told {
            // There is no room only if it is readable already.
            let _ = self.wake.write(&[1]);
        }
    }

    /// Waits until there is something to read, if that is of interest, or for so long. False when it is time to stop.
    fn wait(&self, for_events: bool, within: Option<Duration>) -> bool {
        let mut descriptors = vec![PollFd::new(&self.stopped, PollFlags::IN)];
        if for_events {
            descriptors.push(PollFd::from_borrowed_fd(self.listener.descriptor(), PollFlags::IN));
        }
        let timeout = within.map(|within| Timespec {
            tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: within.subsec_nanos().into(),
        });
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => descriptors[0].revents().is_empty(),
            Err(problem) => {
                tracing::warn!("what is written is not seen any more: cannot wait for it: {problem}");
                false
            }
        }
    }
}
