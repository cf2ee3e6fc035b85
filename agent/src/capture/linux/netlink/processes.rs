//! Processes, from the proc connector: the kernel's own word on each fork, exec and exit, with its time.
//!
//! The events tell pids only, so a thread follows them and looks up what they name as fast as it can; [`tracker`] decides.
//! What was lost is known exactly, since the events of each CPU are numbered.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    host::FacetCoverage,
    process::ProcessImage,
    time::{Moment, Timestamp},
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::netlink::CONNECTOR,
    process::setpriority_process,
    thread::gettid,
    time::{ClockId, clock_gettime},
};

use super::{
    message::messages,
    socket::{Heard, Listener},
};
use crate::{
    capture::{
        CaptureError, Fact, Observation, ObservedProcess,
        linux::{Sensor, namespaces, users::Users},
        poll as polling,
    },
    sys::{
        self,
        linux::{Glimpse, Life},
    },
};

mod event;
#[cfg(test)]
mod tests;
mod tracker;

use event::{Event, Kind};
use tracker::{Look, Stretch, Tracker};

/// `CN_IDX_PROC`
const GROUPS: u32 = 1;
/// Room for events that have not been taken yet: some ten thousand.
const ROOM_BYTES: usize = 8 << 20;
/// Events that are looked at together. Few, since what they name is about to go.
const BATCH_EVENTS_MAX: usize = 64;
/// Facts that wait to be taken. Beyond, events stay in the kernel's buffer, which counts what it cannot hold.
const FACTS_MAX: usize = 65_536;
/// The kernel answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// As nice(1) has it: before everything that has no such wish.
const FOLLOWER_PRIORITY: i32 = -15;
/// `PROC_PID_INIT_INO`
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// The sensor of processes.
pub(super) struct Processes {
    shared: Arc<Shared>,
    follower: Option<JoinHandle<()>>,
}

/// What the follower and the sensor share.
struct Shared {
    ear: Mutex<Ear>,
    /// Facts have been taken, or it is time to stop.
    taken: Condvar,
    /// Readable when there are facts.
    ready: OwnedFd,
    /// Readable when it is time to stop.
    stop: OwnedFd,
}

/// Hears, looks up, and tells.
struct Ear {
    listener: Listener,
    tracker: Tracker,
    looker: Looker,
    sequences: HashMap<u32, (u32, Timestamp)>,
    facts: Vec<Observation>,
    lost: Stretch,
    /// When there was last nothing more to hear.
    heard_all: Moment,
    problem: Option<io::Error>,
    is_stopping: bool,
}

#[derive(Default)]
struct Looker {
    users: Users,
    /// What was looked at before its turn came, since it is about to go.
    ahead: HashMap<u32, Option<(u64, ProcessImage)>>,
}

impl Processes {
    /// Asks the kernel for the events.
    ///
    /// # Errors
    /// When it does not give them to the agent, or has none.
    pub(super) fn open() -> Result<Self, CaptureError> {
        Self::open_with_room(ROOM_BYTES)
    }

    fn open_with_room(room_bytes: usize) -> Result<Self, CaptureError> {
        let listener = listen(room_bytes).map_err(|(source, way_out)| CaptureError::Kernel {
            what: "be told of process starts (proc connector)",
            source,
            way_out,
        })?;
        let flag = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wait = |problem: rustix::io::Errno| CaptureError::Wait(problem.into());
        let ear = Ear {
            listener,
            tracker: Tracker::default(),
            looker: Looker::default(),
            sequences: HashMap::new(),
            facts: Vec::new(),
            lost: Stretch::default(),
            heard_all: sys::now(),
            problem: None,
            is_stopping: false,
        };
        let shared = Shared {
            ear: Mutex::new(ear),
            taken: Condvar::new(),
            ready: flag().map_err(wait)?,
            stop: flag().map_err(wait)?,
        };
        Ok(Self { shared: Arc::new(shared), follower: None })
    }

    /// The inventory. The events that come meanwhile wait.
    fn begin(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<(), CaptureError> {
        let mut ear = self.shared.ear();
        for observed in running_processes()? {
            if ear.tracker.found(&observed) {
                facts.push(Observation { at: now, fact: Fact::ProcessStarted(Box::new(observed)) });
            }
        }
        let socket = ear.listener.as_fd().try_clone_to_owned().map_err(CaptureError::Wait)?;
        drop(ear);
        let shared = Arc::clone(&self.shared);
        let follower = thread::Builder::new().name("processes".into()).spawn(move || shared.follow(&socket));
        self.follower = Some(follower.map_err(CaptureError::Wait)?);
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.shared.ear().is_stopping = true;
        self.shared.taken.notify_all();
        signal(&self.shared.stop);
        if let Some(follower) = self.follower.take() {
            let _ = follower.join(); // a panic of its has been printed already, and this thread may be in one
        }
    }
}

impl Sensor for Processes {
    fn facets(&self) -> Vec<FacetCoverage> {
        let covers = "every fork, exec and exit, by the proc connector, in all containers";
        let cannot_see = "the program, arguments and user of a process that is over before /proc can be read: it is \
                          recorded without them, and counted as lost; a change of user or directory after the exec";
        vec![FacetCoverage {
            facet: Facet::Processes,
            grade: Grade::Complete,
            scope: Scope {
                source: super::NAME.to_owned(),
                covers: covers.to_owned(),
                cannot_see: cannot_see.to_owned(),
            },
        }]
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        if self.follower.is_none() {
            self.begin(now, facts)?;
        }
        let _ = rustix::io::read(&self.shared.ready, &mut [0; 8]); // nothing to read is no fault
        let mut ear = self.shared.ear();
        let has_all = ear.hear();
        ear.settle(now)?;
        facts.append(&mut ear.facts);
        self.shared.taken.notify_all();
        match ear.problem.take() {
            None => Ok(has_all),
            Some(source) => Err(CaptureError::Kernel {
                what: "hear of process starts (proc connector)",
                source,
                way_out: "restart the agent",
            }),
        }
    }
}

impl Shared {
    fn ear(&self) -> MutexGuard<'_, Ear> {
        self.ear.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes events as they come, until told to stop.
    fn follow(&self, socket: &OwnedFd) {
        // What it looks up is about to go. It does little, so that nobody else waits for long; without the right it is as
        // it was.
        let _ = setpriority_process(Some(gettid()), FOLLOWER_PRIORITY);
        loop {
            let mut descriptors = [socket, &self.stop].map(|fd| PollFd::new(fd, PollFlags::IN));
            match poll(&mut descriptors, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(problem) => {
                    self.ear().problem = Some(problem.into());
                    signal(&self.ready);
                    return;
                }
            }
            let is_full = |ear: &mut Ear| !ear.is_stopping && ear.facts.len() >= FACTS_MAX;
            let mut ear = self.taken.wait_while(self.ear(), is_full).unwrap_or_else(PoisonError::into_inner);
            if ear.is_stopping || ear.problem.is_some() {
                return;
            }
            let before = ear.facts.len();
            ear.hear();
            let has_something =
                ear.facts.len() > before || ear.lost != Stretch::default() || ear.problem.is_some();
            drop(ear);
            if has_something {
                signal(&self.ready);
            }
        }
    }
}

impl Ear {
    /// Takes what has come; false if there is more than there is room for.
    fn hear(&mut self) -> bool {
        while self.problem.is_none() {
            if self.facts.len() >= FACTS_MAX {
                return false;
            }
            let clocks = Clocks::read();
            let mut batch = Vec::with_capacity(BATCH_EVENTS_MAX);
            let mut has_all = false;
            while batch.len() < BATCH_EVENTS_MAX && !has_all {
                match self.listener.hear() {
                    Ok(Heard::Datagram(datagram)) => {
                        batch.extend(messages(datagram).filter_map(|message| event::parse(message.body)));
                    }
                    // Where there is a hole in the numbers shows how many.
                    Ok(Heard::Overrun) => {
                        let (from, to) = (self.heard_all.wall, sys::now().wall);
                        self.lost.add_stretch(0, from.min(to), to);
                    }
                    Ok(Heard::Nothing) => has_all = true,
                    Err(problem) => self.problem = Some(problem),
                }
                if self.problem.is_some() {
                    break;
                }
            }
            self.take(&batch, clocks);
            if has_all {
                self.heard_all = clocks.now;
                return true;
            }
        }
        false
    }

    fn take(&mut self, batch: &[Event], clocks: Clocks) {
        for event in batch {
            if let Kind::Exec { process } = event.kind {
                self.looker.look_ahead(process);
            }
        }
        for (index, event) in batch.iter().enumerate() {
            if matches!(event.kind, Kind::Answer(_)) {
                continue; // has no number of its own
            }
            let at = clocks.moment(event.at_ns);
            self.count(event, at);
            let is_again = |later: &Event| later.kind == event.kind;
            let is_outdated =
                matches!(event.kind, Kind::Exec { .. }) && batch[index + 1..].iter().any(is_again);
            self.tracker.take(event.kind, at, is_outdated, &mut self.looker, &mut self.facts);
        }
        self.looker.ahead.clear();
    }

    /// A hole in the numbers of a CPU is a loss.
    fn count(&mut self, event: &Event, at: Moment) {
        let before = self.sequences.insert(event.cpu, (event.sequence, at.wall));
        let Some((sequence, since)) = before else { return };
        let missing = event.sequence.wrapping_sub(sequence).wrapping_sub(1);
        // Numbers that go back are those of a CPU that was taken away and came again.
        if missing != 0 && missing < u32::MAX / 2 {
            self.lost.add_stretch(missing.into(), since.min(at.wall), at.wall);
        }
    }

    /// What time has brought, and what was lost.
    fn settle(&mut self, now: Moment) -> Result<(), CaptureError> {
        if self.lost != Stretch::default() {
            self.tracker.reconcile(running_processes()?, now, &mut self.facts);
        }
        self.tracker.settle(now, &mut self.looker, &mut self.facts);
        let losses = [
            (std::mem::take(&mut self.lost), "the kernel's buffer for process events was full"),
            (self.tracker.take_unseen(), "programs were over before /proc could tell which they were"),
            (
                self.tracker.take_unfollowed(),
                "more processes ran than are followed: the ends of some are not told",
            ),
        ];
        for (stretch, reason) in losses.into_iter().filter(|(stretch, _)| *stretch != Stretch::default()) {
            let change = CoverageChange {
                facet: Facet::Processes,
                grade: Grade::Lost { count: stretch.count, reason: reason.to_owned() },
                from: stretch.from,
                to: Some(stretch.to),
                scope: None,
                announced_from: None,
            };
            self.facts.push(Observation { at: now, fact: Fact::Coverage(change) });
        }
        Ok(())
    }
}

impl Looker {
    fn look_ahead(&mut self, pid: u32) {
        if !self.ahead.contains_key(&pid) {
            let seen = self.look(pid);
            self.ahead.insert(pid, seen);
        }
    }

    fn look(&mut self, pid: u32) -> Option<(u64, ProcessImage)> {
        let seen: Glimpse = sys::linux::glimpse(pid)?;
        let (arguments, is_cut) = polling::bounded(seen.arguments.into_iter());
        let (user, effective) = seen.users.unzip();
        let image = ProcessImage {
            path: seen.path,
            name: seen.name,
            arguments,
            arguments_truncated: is_cut || seen.arguments_truncated,
            working_directory: seen.working_directory,
            user: user.map(|id| self.users.user(id)),
            effective_user: effective.filter(|id| Some(*id) != user).map(|id| self.users.user(id)),
            terminal: seen.terminal,
            cgroup: seen.cgroup,
            file: None,
            sha256: None,
        };
        Some((seen.start, image))
    }
}

impl Look for Looker {
    fn start(&mut self, pid: u32) -> Option<u64> {
        match self.ahead.get(&pid) {
            Some(seen) => seen.as_ref().map(|(start, _)| *start),
            None => sys::process_start(pid),
        }
    }

    fn image(&mut self, pid: u32) -> Option<(u64, ProcessImage)> {
        match self.ahead.get(&pid) {
            Some(seen) => seen.clone(),
            None => self.look(pid),
        }
    }

    fn life(&mut self, pid: u32) -> Life {
        sys::linux::life(pid)
    }
}

/// The clocks at one instant.
#[derive(Clone, Copy)]
struct Clocks {
    now: Moment,
    monotonic_ns: u64,
}

impl Clocks {
    fn read() -> Self {
        let monotonic = clock_gettime(ClockId::Monotonic);
        let secs = u64::try_from(monotonic.tv_sec).unwrap_or(0);
        let monotonic_ns = secs.saturating_mul(1_000_000_000) + u64::try_from(monotonic.tv_nsec).unwrap_or(0);
        Self { now: sys::now(), monotonic_ns }
    }

    /// When the monotonic clock showed `at_ns`. An event that a suspend kept from being taken is dated after it.
    fn moment(&self, at_ns: u64) -> Moment {
        let (boot_ns, wall) = (self.now.boot_ns, self.now.wall);
        match self.monotonic_ns.checked_sub(at_ns) {
            Some(ago) => Moment {
                wall: wall.saturating_sub(Duration::from_nanos(ago)),
                boot_ns: boot_ns.saturating_sub(ago),
            },
            None => {
                let ahead = at_ns - self.monotonic_ns;
                Moment {
                    wall: wall.saturating_add(Duration::from_nanos(ahead)),
                    boot_ns: boot_ns.saturating_add(ahead),
                }
            }
        }
    }
}

fn running_processes() -> Result<Vec<ObservedProcess>, CaptureError> {
    let process = |observation: Observation| match observation.fact {
        Fact::ProcessStarted(process) => Some(*process),
        _ => None,
    };
    Ok(polling::running_processes()?.into_iter().filter_map(process).collect())
}

/// A listener to the events, or what is wrong and what would help.
fn listen(room_bytes: usize) -> Result<Listener, (io::Error, &'static str)> {
    const RIGHT: &str = "it takes root or CAP_NET_ADMIN outside of any container";
    const FEATURE: &str = "it takes a kernel with CONFIG_PROC_EVENTS";
    let namespace = fs::metadata("/proc/self/ns/pid").map_err(|problem| (problem, "mount /proc"))?;
    if namespace.ino() != INITIAL_PID_NAMESPACE {
        let problem = io::Error::other("the agent runs in a process namespace of its own");
        return Err((problem, RIGHT));
    }
    let ask = || -> io::Result<Listener> {
        let listener = Listener::open(Some(CONNECTOR), GROUPS, room_bytes)?;
        listener.send(&event::listen())?;
        Ok(listener)
    };
    let asked = match ask() {
        // Nobody answers here: only the initial network namespace has the connector. The kernel's own threads (the second
        // process begins them all) never leave it; the first process may be closed to everybody.
        Err(problem) if problem.kind() == io::ErrorKind::ConnectionRefused => {
            let path = namespaces::of_process(2);
            fs::metadata(&path).and_then(|namespace| namespaces::inside(namespace.ino(), &path, ask))
        }
        asked => asked,
    };
    let listener = asked.map_err(|problem: io::Error| match problem.kind() {
        io::ErrorKind::PermissionDenied => (problem, RIGHT),
        _ => (problem, FEATURE),
    })?;
    answered(listener).map_err(|problem| match problem.kind() {
        io::ErrorKind::TimedOut => (problem, FEATURE),
        _ => (problem, RIGHT),
    })
}

/// Waits for the kernel's answer. The events that came with it are for the inventory to show.
fn answered(mut listener: Listener) -> io::Result<Listener> {
    let timeout = Timespec::try_from(ANSWER_TIMEOUT).map_err(io::Error::other)?;
    loop {
        let mut descriptors = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        if poll(&mut descriptors, Some(&timeout))? == 0 {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        let Heard::Datagram(datagram) = listener.hear()? else { continue };
        let answer = messages(datagram).find_map(|message| match event::parse(message.body)?.kind {
            Kind::Answer(errno) => Some(errno.cast_signed()),
            _ => None,
        });
        match answer {
            Some(0) => return Ok(listener),
            Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
            None => {}
        }
    }
}

fn signal(flag: &OwnedFd) {
    // It fails only where it is raised to the brim already.
    let _ = rustix::io::write(flag, &1_u64.to_ne_bytes());
}
