//! Processes, from fork, exec and exit.
//!
//! Most forks are followed by an exec at once. So that these two make one record, a fork waits for a moment for its exec,
//! unless the process does something before.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    executable::FileIdentity,
    process::{ProcessImage, User},
    time::{Moment, Timestamp},
};
use rustix::fs::makedev;

use super::event::{Exec, Fork, Header, Parent};
use crate::{
    capture::{CaptureError, Fact, Observation, ObservedProcess, ProcessKey, linux::users::Users, poll},
    sys::linux::{TICK_NS, terminal},
    sys::process_start,
};

/// A fork that has not become another program by then stays what it is.
const FORK_WAITS: Duration = Duration::from_millis(100);
/// Programs take more arguments than anybody reads.
const ARGUMENTS_MAX: usize = 1024;
/// Processes that are remembered; as many as Linux runs by default.
const RUNNING_MAX: usize = 32_768;
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const CGROUPS_MAX: usize = 4_096;

/// What runs.
#[derive(Default)]
pub(super) struct Processes {
    running: HashMap<u32, Running>,
    /// Forks that wait, by the boot time at which they were seen.
    waiting: VecDeque<(u64, ProcessKey)>,
    users: Users,
    cgroups: HashMap<u64, Option<String>>,
    /// When those that are gone were looked for, because there was no room.
    swept: Option<Instant>,
    /// Forks that there was no room for.
    untold: u64,
}

struct Running {
    key: ProcessKey,
    parent: Parent,
    started: Timestamp,
    image: Arc<ProcessImage>,
    announced: bool,
}

impl Processes {
    /// What ran already.
    pub(super) fn found(&mut self, observed: &ObservedProcess) {
        let parent = observed.parent.map_or(Parent { pid: 0, start: 0 }, |parent| Parent {
            pid: parent.pid,
            start: parent.start.saturating_mul(TICK_NS),
        });
        let running = Running {
            key: observed.process,
            parent,
            started: observed.started,
            image: Arc::new(observed.image.clone()),
            announced: true,
        };
        self.running.insert(observed.process.pid, running);
    }

    pub(super) fn knows(&self, process: ProcessKey) -> bool {
        self.running.get(&process.pid).is_some_and(|running| running.key == process)
    }

    pub(super) fn fork(&mut self, header: Header, fork: Fork, now: Moment) {
        let process = key(header.pid, header.start);
        if self.knows(process) {
            return;
        }
        let inherited = self
            .running
            .get(&fork.parent.pid)
            .filter(|parent| parent.key == key(fork.parent.pid, fork.parent.start))
            .map(|parent| Arc::clone(&parent.image));
        let (user, effective_user) = self.people(fork.user, fork.effective_user);
        let mut image = inherited.unwrap_or_default();
        if image.user != user || image.effective_user != effective_user || image.working_directory.is_some() {
            // Where the parent was when it started is not where its child begins.
            let changed = ProcessImage { user, effective_user, working_directory: None, ..(*image).clone() };
            image = Arc::new(changed);
        }
        self.insert(Running {
            key: process,
            parent: fork.parent,
            started: since_boot(header.start, now),
            image,
            announced: false,
        });
        self.waiting.push_back((header.at, process));
    }

    pub(super) fn exec(
        &mut self,
        header: Header,
        exec: &Exec<'_>,
        now: Moment,
        facts: &mut Vec<Observation>,
    ) {
        let process = key(header.pid, header.start);
        let image = Arc::new(self.image(header.pid, exec));
        let at = moment(header.at, now);
        match self.running.get_mut(&header.pid).filter(|running| running.key == process) {
            Some(running) if running.announced => {
                if *running.image == *image {
                    return;
                }
                running.image = Arc::clone(&image);
                let image = Box::new((*image).clone());
                facts.push(Observation { at, fact: Fact::ProcessExecuted { process, image } });
            }
            Some(running) => {
                running.image = image;
                running.announce(at, facts);
            }
            None => {
                let mut running = Running {
                    key: process,
                    parent: exec.parent,
                    started: since_boot(header.start, now),
                    image,
                    announced: false,
                };
                running.announce(at, facts);
                self.insert(running);
            }
        }
    }

    pub(super) fn exit(&mut self, header: Header, status: i32, now: Moment, facts: &mut Vec<Observation>) {
        let process = key(header.pid, header.start);
        let at = moment(header.at, now);
        self.acts(process, at, facts);
        if self.knows(process) {
            self.running.remove(&process.pid);
        }
        // As wait(2) has it: the signal in the lower seven bits, or else the code in the second byte.
        let exit_code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
        facts.push(Observation { at, fact: Fact::ProcessExited { process, exit_code: Some(exit_code) } });
    }

    /// The process does something: who it is must be said before.
    pub(super) fn acts(&mut self, process: ProcessKey, at: Moment, facts: &mut Vec<Observation>) {
        if let Some(running) = self.running.get_mut(&process.pid)
            && running.key == process
            && !running.announced
        {
            running.announce(at, facts);
        }
    }

    /// Forks that have waited long enough, and how many there was no room for.
    pub(super) fn tell_waiting(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        let count = std::mem::take(&mut self.untold);
        if count > 0 {
            let reason = format!("more than {RUNNING_MAX} processes ran at once");
            let change = CoverageChange {
                facet: Facet::Processes,
                grade: Grade::Lost { count, reason },
                from: now.wall,
                to: Some(now.wall),
                scope: None,
                announced_from: None,
            };
            facts.push(Observation { at: now, fact: Fact::Coverage(change) });
        }
        let until = now.boot_ns.saturating_sub(u64::try_from(FORK_WAITS.as_nanos()).unwrap_or(u64::MAX));
        while let Some((_, process)) = self.waiting.pop_front_if(|(seen, _)| *seen <= until) {
            self.acts(process, now, facts);
        }
    }

    /// After events were lost: ends those that are gone, and begins those that came.
    pub(super) fn reconcile(
        &mut self,
        now: Moment,
        facts: &mut Vec<Observation>,
    ) -> Result<(), CaptureError> {
        let present = poll::running_processes()?;
        let mut alive = HashSet::new();
        for observation in present {
            let Fact::ProcessStarted(mut found) = observation.fact else { continue };
            alive.insert(found.process);
            if !self.knows(found.process) {
                self.found(&found);
                found.already_running = true;
                facts.push(Observation { at: now, fact: Fact::ProcessStarted(found) });
            }
        }
        let is_gone = |running: &Running| !alive.contains(&running.key);
        let gone: Vec<ProcessKey> =
            self.running.values().filter(|running| is_gone(running)).map(|running| running.key).collect();
        for process in gone {
            // One that started since is not among those present, and is not gone.
            if process_start(process.pid) == Some(process.start) {
                continue;
            }
            self.acts(process, now, facts);
            self.running.remove(&process.pid);
            facts.push(Observation { at: now, fact: Fact::ProcessExited { process, exit_code: None } });
        }
        Ok(())
    }

    fn insert(&mut self, running: Running) {
        if self.running.len() >= RUNNING_MAX
            && self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL)
        {
            // Ends have been lost, or the system runs more than usual.
            self.swept = Some(Instant::now());
            self.running.retain(|pid, _| fs::exists(format!("/proc/{pid}")).unwrap_or(false));
        }
        if self.running.len() < RUNNING_MAX {
            self.running.insert(running.key.pid, running);
        } else if !running.announced {
            self.untold += 1;
        }
    }

    fn image(&mut self, pid: u32, exec: &Exec<'_>) -> ProcessImage {
        let (user, effective_user) = self.people(exec.user, exec.effective_user);
        let arguments = exec.arguments.strip_suffix(b"\0").unwrap_or(exec.arguments);
        let mut words =
            arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let kept =
            if exec.arguments.is_empty() { Vec::new() } else { words.by_ref().take(ARGUMENTS_MAX).collect() };
        ProcessImage {
            path: Some(exec.path.clone()),
            name: exec.name.clone(),
            arguments_truncated: exec.arguments_cut || words.next().is_some() && !exec.arguments.is_empty(),
            arguments: kept,
            working_directory: Some(exec.directory.clone()),
            user,
            effective_user,
            terminal: terminal(exec.terminal.0, exec.terminal.1),
            cgroup: self.cgroup(exec.cgroup, pid),
            file: Some(FileIdentity {
                device: makedev(exec.device.0, exec.device.1),
                inode: exec.inode,
                modified: Timestamp::from_nanos(exec.modified),
                size: exec.size,
            }),
            sha256: None,
        }
    }

    fn people(&mut self, user: u32, effective: u32) -> (Option<User>, Option<User>) {
        (Some(self.users.user(user)), (effective != user).then(|| self.users.user(effective)))
    }

    fn cgroup(&mut self, id: u64, pid: u32) -> Option<String> {
        if let Some(known) = self.cgroups.get(&id) {
            return known.clone();
        }
        // It may be gone already; then the next process in the group tells.
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let group = Some(path.to_owned()).filter(|path| path != "/");
        if self.cgroups.len() >= CGROUPS_MAX {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, group.clone());
        group
    }
}

impl Running {
    fn announce(&mut self, at: Moment, facts: &mut Vec<Observation>) {
        self.announced = true;
        let has_parent = self.parent.pid != 0;
        let observed = ObservedProcess {
            process: self.key,
            parent: has_parent.then(|| key(self.parent.pid, self.parent.start)),
            parent_pid: has_parent.then_some(self.parent.pid),
            started: self.started,
            already_running: false,
            image: (*self.image).clone(),
        };
        facts.push(Observation { at, fact: Fact::ProcessStarted(Box::new(observed)) });
    }
}

/// The process with a pid and a start in nanoseconds since boot.
pub(super) fn key(pid: u32, start: u64) -> ProcessKey {
    ProcessKey { pid, start: start / TICK_NS }
}

/// An instant of the boot clock on both clocks, given what both say now.
pub(super) fn moment(boot_ns: u64, now: Moment) -> Moment {
    Moment { wall: since_boot(boot_ns, now), boot_ns }
}

fn since_boot(boot_ns: u64, now: Moment) -> Timestamp {
    let wall = now.wall.as_nanos();
    Timestamp::from_nanos(match now.boot_ns.checked_sub(boot_ns) {
        Some(ago) => wall.saturating_sub(ago),
        None => wall.saturating_add(boot_ns - now.boot_ns),
    })
}
