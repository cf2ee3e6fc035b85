//! What hears the kernel: what is to be listened to, what of that is an executable, and when it is told.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
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

use super::mounts::{self, Mount};
use crate::{
    capture::{Fact, Observation, ObservedExecutable, ProcessKey},
    enrich::executable::{Errands, FileState, Generations, NoAnswer, Place, Terms, Writers, path_of},
    sys,
};

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
pub(super) const PERIOD_NS: u64 = 1_000_000_000;
pub(super) const PERIOD_NS_MAX: u64 = 30_000_000_000;
/// So much longer for each byte: with that, hashing files again and again takes about 1 % of a core for each file.
const PERIOD_NS_PER_BYTE: u64 = 95;
/// What was missed is told at most so often.
const MISSED_PERIOD_NS: u64 = 1_000_000_000;
/// Enough to see what a file is.
const BEGINNING_BYTES: usize = 18;

/// How file systems are marked.
const MARKING: Terms =
    Terms { name: "written-mark", patience: Duration::from_secs(1), given_up_max: 4, stands_back: false };
/// Those that could not be marked are tried again so often.
const AGAIN_NS: u64 = 60_000_000_000;

/// Listens.
pub(super) struct Listener {
    fanotify: Arc<Fanotify>,
    marking: Errands,
    /// Where the way to a local file system does not answer; each is told once.
    silent: BTreeSet<PathBuf>,
    /// When those are tried again.
    again_ns: u64,
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
    pub(super) postponed: HashMap<FileNumber, Postponed>,
    missed: Missed,
    /// All events before this have been read.
    pub(super) read_until: Option<Moment>,
}

/// Device and inode: a file, whatever is written into it.
pub(super) type FileNumber = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Told {
    state: FileState,
    boot_ns: u64,
}

pub(super) struct Postponed {
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
    /// File systems that cannot be listened to, and why; each once, so no more than are listened to.
    file_systems: Vec<String>,
    told: u64,
}

impl Listener {
    /// Listens to every local file system, and tells `writers`.
    ///
    /// # Errors
    /// When the system does not allow it: it takes `CAP_SYS_ADMIN`.
    pub(super) fn open(writers: Writers) -> io::Result<Self> {
        Self::listen_to(writers, Box::new(|_| true))
    }

    /// As [`Listener::open`], to some of them. None is marked before the first [`Listener::take`].
    pub(super) fn listen_to(
        writers: Writers,
        is_listened_to: Box<dyn Fn(&Mount) -> bool + Send>,
    ) -> io::Result<Self> {
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
        Ok(Self {
            fanotify: Arc::new(fanotify),
            marking: Errands::new(MARKING),
            silent: BTreeSet::new(),
            again_ns: 0,
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
        })
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
        let known = std::mem::take(&mut self.silent);
        for mount in mounts {
            match self.mark(&mount.path) {
                Ok(Ok(())) => {}
                // Gone again.
                Ok(Err(Errno::ENOENT | Errno::ENOTDIR)) => continue,
                Ok(Err(problem @ (Errno::EPERM | Errno::ENOSYS))) => return Err(problem.into()),
                Ok(Err(problem)) => {
                    let path = mount.path.display();
                    tracing::warn!("what is written on {path} is not seen: {problem}");
                    continue;
                }
                Err(problem) => {
                    if !known.contains(&mount.path) {
                        self.missed.file_systems.push(format!("{}, because {problem}", mount.path.display()));
                    }
                    self.silent.insert(mount.path);
                }
            }
            // If it answers one day, it is marked without more ado.
            if !mount.has_modes {
                self.without_modes.insert(mount.device);
            }
        }
        Ok(())
    }

    fn mark(&mut self, path: &Path) -> Result<Result<(), Errno>, NoAnswer> {
        let (fanotify, path) = (Arc::clone(&self.fanotify), path.to_owned());
        self.marking.run(Place::directory(&path), None, move |_| {
            fanotify.mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_CLOSE_WRITE,
                CWD,
                Some(&path),
            )
        })
    }

    /// Readable when there is something to take.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }

    /// How long it may be left alone, though there is nothing to read.
    pub(super) fn wants_turn_within(&self) -> Option<Duration> {
        let is_waiting = !self.postponed.is_empty() || self.missed.is_something();
        let again = (!self.silent.is_empty()).then_some(AGAIN_NS);
        is_waiting.then_some(PERIOD_NS / 2).or(again).map(Duration::from_nanos)
    }

    /// Tells what has been written. Gives nothing but what was missed; the rest comes from the identifier.
    pub(super) fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        let is_again = self.again_ns == 0 || !self.silent.is_empty() && now.boot_ns >= self.again_ns;
        if self.has_new_mounts() || is_again {
            self.again_ns = now.boot_ns.saturating_add(AGAIN_NS);
            if let Err(problem) = self.mark_mounts() {
                tracing::warn!("what is written on some file systems is not seen: {problem}");
            }
        }
        self.tell_postponed(now);
        self.read(now);
        facts.extend(self.missed.tell(now));
    }

    pub(super) fn has_new_mounts(&self) -> bool {
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

pub(super) fn period_ns(bytes: u64) -> u64 {
    bytes.saturating_mul(PERIOD_NS_PER_BYTE).saturating_add(PERIOD_NS).min(PERIOD_NS_MAX)
}

impl Missed {
    fn is_something(&self) -> bool {
        self.count > 0 || self.overflow_since.is_some() || !self.file_systems.is_empty()
    }

    fn tell(&mut self, now: Moment) -> Option<Observation> {
        if !self.is_something() || now.boot_ns.saturating_sub(self.told) < MISSED_PERIOD_NS {
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
        for file_system in self.file_systems.drain(..) {
            problems.push(format!("what is written is not seen on {file_system}"));
        }
        self.told = now.boot_ns;
        Some(unseen(now, problems.join("; ")))
    }
}

/// That something which was written is not known.
pub(super) fn unseen(now: Moment, problem: String) -> Observation {
    let observed = ObservedExecutable {
        path: String::new(),
        file: None,
        sha256: None,
        first_on_host: false,
        package: None,
        sighting: ExecutableSighting::Written,
        process: None,
        problem: Some(problem),
        signature: None,
        version: None,
    };
    Observation { at: now, fact: Fact::ExecutableSeen(Box::new(observed)) }
}

/// Whether a file that begins so is run by the system, or by Windows.
pub(super) fn begins_as_program(beginning: &[u8]) -> bool {
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
