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
//! Executables are no facet of coverage: nothing that is asked of processes and connections rests on them. So what was
//! missed here makes no gap there. It is told where it is missed: as an executable without path or hash, whose problem
//! says how many, or since when.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use alibi_proto::{executable::ExecutableSighting, time::Moment};
use nix::{
    errno::Errno,
    sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    fs::{CWD, FileType, fstat},
    io::pread,
};

use self::mounts::Mount;
use super::Sensor;
use crate::{
    capture::{CaptureError, Fact, Observation, ObservedExecutable, ProcessKey},
    enrich::executable::{FileState, Generations, Writers, path_of},
    sys,
};

mod mounts;
#[cfg(test)]
mod tests;

/// Of the agent's own mount namespace.
const MOUNTS: &str = "/proc/thread-self/mountinfo";
/// More file systems are not listened to.
const FILE_SYSTEMS_MAX: usize = 1_024;
/// Reads in one take; each gives at most 170 events. What is left is taken in the next turn.
const READS_MAX: usize = 8;
/// Files whose last telling is remembered: one that is closed once more without being changed is not told again.
const TOLD_MAX: usize = 4_096;
/// Files that were told just now, have been written again, and are told again later. They are kept open.
const POSTPONED_MAX: usize = 64;
/// The least and the longest time between two tellings of a file.
const PERIOD_NS: u64 = 1_000_000_000;
const PERIOD_NS_MAX: u64 = 30_000_000_000;
/// So much longer for each byte: with that, hashing files again and again takes about 1 % of a core for each file.
const PERIOD_NS_PER_BYTE: u64 = 95;
/// What was missed is told at most so often.
const MISSED_PERIOD_NS: u64 = 1_000_000_000;
/// Enough to see what a file is.
const BEGINNING_BYTES: usize = 18;

/// The sensor.
pub(super) struct Written {
    fanotify: Fanotify,
    /// Tells whether something was mounted. What reads it needs one of its own, because it tells each reader once.
    mounts: File,
    /// Readable when there is an event, or something was mounted.
    waiting: OwnedFd,
    _mounts_waited_for: File,
    is_listened_to: Box<dyn Fn(&Mount) -> bool + Send>,
    /// File systems on which everybody may run everything.
    without_modes: HashSet<u64>,
    writers: Writers,
    told: Generations<FileNumber, Told>,
    postponed: HashMap<FileNumber, Postponed>,
    missed: Missed,
    /// All events before this have been read.
    read_until: Option<Moment>,
}

/// Device and inode: a file, whatever is written into it.
type FileNumber = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Told {
    state: FileState,
    boot_ns: u64,
}

struct Postponed {
    file: File,
    writer: Option<ProcessKey>,
    /// When it was last written.
    at: Moment,
    due_ns: u64,
}

/// What could not be told.
#[derive(Debug, Default)]
struct Missed {
    count: u64,
    /// The kernel had no room for events since then.
    overflow_since: Option<Moment>,
    told: u64,
}

impl Written {
    /// Listens to every local file system, and tells `writers`.
    ///
    /// # Errors
    /// When the system does not allow it: it takes `CAP_SYS_ADMIN`.
    pub(super) fn open(writers: Writers) -> io::Result<Self> {
        Self::listen_to(writers, Box::new(|_| true))
    }

    fn listen_to(writers: Writers, is_listened_to: Box<dyn Fn(&Mount) -> bool + Send>) -> io::Result<Self> {
        let init = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        // Not to wait for a pipe's other end; not to be taken for somebody who read the file.
        let event = EventFFlags::O_RDONLY
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_LARGEFILE
            | EventFFlags::O_NONBLOCK
            | EventFFlags::O_NOATIME;
        let fanotify = Fanotify::init(init, event)?;
        let (mounts, mounts_waited_for) = (File::open(MOUNTS)?, File::open(MOUNTS)?);
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&waiting, &fanotify, data, epoll::EventFlags::IN)?;
        epoll::add(&waiting, &mounts_waited_for, data, epoll::EventFlags::PRI)?;
        let mut written = Self {
            fanotify,
            mounts,
            waiting,
            _mounts_waited_for: mounts_waited_for,
            is_listened_to,
            without_modes: HashSet::new(),
            writers,
            told: Generations::new(TOLD_MAX),
            postponed: HashMap::new(),
            missed: Missed::default(),
            read_until: None,
        };
        written.mark_mounts()?;
        Ok(written)
    }

    /// Listens to what is mounted by now; to what it listens to already it does so still.
    fn mark_mounts(&mut self) -> io::Result<()> {
        let mut mounts = mounts::local(&std::fs::read(MOUNTS)?);
        mounts.retain(|mount| (self.is_listened_to)(mount));
        if mounts.len() > FILE_SYSTEMS_MAX {
            let beyond = mounts.len() - FILE_SYSTEMS_MAX;
            tracing::warn!(
                "what is written on {beyond} file systems is not seen: there are more than {FILE_SYSTEMS_MAX}"
            );
            mounts.truncate(FILE_SYSTEMS_MAX);
        }
        self.without_modes.clear();
        for mount in mounts {
            let marked = self.fanotify.mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_CLOSE_WRITE,
                CWD,
                Some(&mount.path),
            );
            match marked {
                Ok(()) => {}
                // Gone again.
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(problem @ (Errno::EPERM | Errno::ENOSYS)) => return Err(problem.into()),
                Err(problem) => {
                    let path = mount.path.display();
                    tracing::warn!("what is written on {path} is not seen: {problem}");
                    continue;
                }
            }
            if !mount.has_modes {
                self.without_modes.insert(mount.device);
            }
        }
        Ok(())
    }

    fn has_new_mounts(&self) -> bool {
        let mut mounts = [PollFd::new(&self.mounts, PollFlags::PRI)];
        poll(&mut mounts, Some(&Timespec::default())).is_ok_and(|changed| changed > 0)
    }

    /// Reads events, until there are none or it is enough for now.
    fn read(&mut self, now: Moment) {
        for _ in 0..READS_MAX {
            match self.fanotify.read_events() {
                Ok(events) => {
                    // Not before what they tell of.
                    let heard = sys::now();
                    for event in events {
                        self.hear(&event, heard);
                    }
                }
                Err(Errno::EAGAIN) => {
                    self.read_until = Some(now);
                    return;
                }
                Err(Errno::EINTR) => {}
                // The file of this one event could not be opened, and the event is gone.
                Err(_) => self.missed.count += 1,
            }
        }
    }

    fn hear(&mut self, event: &FanotifyEvent, now: Moment) {
        if event.mask().contains(MaskFlags::FAN_Q_OVERFLOW) {
            self.missed.overflow_since.get_or_insert(self.read_until.unwrap_or(now));
            return;
        }
        let pid = u32::try_from(event.pid()).unwrap_or(0);
        let Some(file) = event.fd() else { return };
        if pid == std::process::id() || !self.is_executable(file) {
            return;
        }
        if self.tell(file, pid, now).is_none() {
            self.missed.count += 1;
        }
    }

    fn is_executable(&self, file: BorrowedFd<'_>) -> bool {
        let Ok(state) = fstat(file) else { return false };
        if FileType::from_raw_mode(state.st_mode) != FileType::RegularFile || state.st_size == 0 {
            return false;
        }
        if state.st_mode & 0o111 != 0 && !self.without_modes.contains(&state.st_dev) {
            return true;
        }
        let mut beginning = [0; BEGINNING_BYTES];
        pread(file, &mut beginning, 0).is_ok_and(|count| begins_as_program(&beginning[..count]))
    }

    /// Tells a file that was written, now or later. None if it cannot be told.
    fn tell(&mut self, file: BorrowedFd<'_>, pid: u32, now: Moment) -> Option<()> {
        let file = File::from(file.try_clone_to_owned().ok()?);
        let state = FileState::of(&file).ok()?;
        let number = number_of(&state);
        let told = self.told.get_mut(&number).copied();
        if told.is_some_and(|told| told.state == state) {
            return Some(());
        }
        let start = (pid != 0).then(|| sys::process_start(pid)).flatten();
        let writer = start.map(|start| ProcessKey { pid, start });
        let due_ns = told.map_or(0, |told| told.boot_ns.saturating_add(period_ns(state.identity.size)));
        if due_ns <= now.boot_ns {
            return self.pass_on(&file, &state, writer, now);
        }
        let has_room = self.postponed.len() < POSTPONED_MAX || self.postponed.contains_key(&number);
        has_room.then(|| {
            self.postponed.insert(number, Postponed { file, writer, at: now, due_ns });
        })
    }

    fn tell_postponed(&mut self, now: Moment) {
        for (number, postponed) in
            self.postponed.extract_if(|_, postponed| postponed.due_ns <= now.boot_ns).collect::<Vec<_>>()
        {
            let told = FileState::of(&postponed.file).ok().and_then(|state| {
                let is_told = self.told.get_mut(&number).is_some_and(|told| told.state == state);
                if is_told {
                    Some(())
                } else {
                    self.pass_on(&postponed.file, &state, postponed.writer, postponed.at)
                }
            });
            if told.is_none() {
                self.missed.count += 1;
            }
        }
    }

    fn pass_on(
        &mut self,
        file: &File,
        state: &FileState,
        writer: Option<ProcessKey>,
        at: Moment,
    ) -> Option<()> {
        let path = path_of(file)?;
        self.writers.written(file, state, path, writer, at).ok()?;
        self.told.insert(number_of(state), Told { state: *state, boot_ns: at.boot_ns });
        Some(())
    }
}

fn number_of(state: &FileState) -> FileNumber {
    (state.identity.device, state.identity.inode)
}

fn period_ns(bytes: u64) -> u64 {
    bytes.saturating_mul(PERIOD_NS_PER_BYTE).saturating_add(PERIOD_NS).min(PERIOD_NS_MAX)
}

impl Sensor for Written {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }

    /// Gives nothing but what was missed; the rest comes from the identifier. Never behind: what it adds is of no facet.
    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        if self.has_new_mounts()
            && let Err(problem) = self.mark_mounts()
        {
            tracing::warn!("what is written on file systems mounted since is not seen: {problem}");
        }
        self.tell_postponed(now);
        self.read(now);
        facts.extend(self.missed.tell(now));
        Ok(true)
    }
}

impl Missed {
    fn tell(&mut self, now: Moment) -> Option<Observation> {
        let is_something = self.count > 0 || self.overflow_since.is_some();
        if !is_something || now.boot_ns.saturating_sub(self.told) < MISSED_PERIOD_NS {
            return None;
        }
        let mut problems = Vec::new();
        if let Some(since) = self.overflow_since.take() {
            let (from, to) = (since.wall, now.wall);
            problems.push(format!(
                "files were written faster than they could be looked at: of the executables written between \
                 {from} and {to} not all are known"
            ));
        }
        if self.count > 0 {
            let count = std::mem::take(&mut self.count);
            problems.push(format!(
                "{count} written files could not be looked at, because too many were waiting or they could not be opened"
            ));
        }
        self.told = now.boot_ns;
        let observed = ObservedExecutable {
            path: String::new(),
            file: None,
            sha256: None,
            first_on_host: false,
            package: None,
            sighting: ExecutableSighting::Written,
            process: None,
            problem: Some(problems.join("; ")),
        };
        Some(Observation { at: now, fact: Fact::ExecutableSeen(Box::new(observed)) })
    }
}

/// Whether a file that begins so is run by the system, or by Windows.
fn begins_as_program(beginning: &[u8]) -> bool {
    const EXECUTABLE: u16 = 2;
    const SHARED: u16 = 3;
    match beginning {
        [b'#', b'!', ..] | [b'M', b'Z', ..] => true,
        [0x7f, b'E', b'L', b'F', _, order, ..] => {
            let Some(kind) = beginning.get(16..18).and_then(|kind| kind.try_into().ok()) else {
                return false;
            };
            let kind = if *order == 2 { u16::from_be_bytes(kind) } else { u16::from_le_bytes(kind) };
            matches!(kind, EXECUTABLE | SHARED)
        }
        _ => false,
    }
}
