//! From events of the proc connector to facts. Pure but for what it looks up, which is handed in.
//!
//! An event names a process by its pid and tells nothing else of it: what it runs, and for whom, must be looked up before
//! it is gone. When that came too late, the process is told all the same, and that its program is not known is counted.
//!
//! Most forks are followed by an exec at once. So that these two make one record, a fork waits for a moment for its exec.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use alibi_proto::{
    process::ProcessImage,
    time::{Moment, Timestamp},
};

use super::event::{Kind, exit_code};
use crate::{
    capture::{Fact, Observation, ObservedProcess, ProcessKey},
    sys::linux::{Life, TICK_NS},
};

/// A fork that has not become another program by then stays what it is.
const FORK_WAITS: Duration = Duration::from_millis(100);
/// Processes that are remembered; as many as Linux runs by default.
const RUNNING_MAX: usize = 32_768;
/// A fork is told a little after the instant that the kernel keeps as the process's start.
const START_BEFORE_TICKS: u64 = 10;

/// What can be looked up of a process as long as it is there.
pub(super) trait Look {
    /// In the unit of [`ProcessKey`].
    fn start(&mut self, pid: u32) -> Option<u64>;
    /// Its start and what it runs, without a path if it has ended but is still listed.
    fn image(&mut self, pid: u32) -> Option<(u64, ProcessImage)>;
    fn life(&mut self, pid: u32) -> Life;
}

/// What runs.
#[derive(Default)]
pub(super) struct Tracker {
    running: HashMap<u32, Running>,
    /// Forks that wait, by the boot time at which they were seen.
    waiting: VecDeque<(u64, ProcessKey)>,
    /// Processes whose first thread has left, with the latest exit of a thread and the status of the first one.
    leaving: BTreeMap<u32, (Moment, u32)>,
    /// Programs that were gone before they could be looked at.
    unseen: Stretch,
    /// Processes that there was no room for, and whose end will not be told.
    unfollowed: Stretch,
}

/// How many, from when to when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) count: u64,
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

struct Running {
    key: ProcessKey,
    parent: Option<ProcessKey>,
    parent_pid: Option<u32>,
    started: Timestamp,
    image: Arc<ProcessImage>,
    announced: bool,
    has_threads: bool,
}

impl Tracker {
    /// A process that was found running; true if it was not known.
    pub(super) fn found(&mut self, observed: &ObservedProcess) -> bool {
        let process = observed.process;
        if self.running.get(&process.pid).is_some_and(|running| is_same(running.key.start, process.start)) {
            return false;
        }
        self.insert(
            Running {
                key: process,
                parent: observed.parent,
                parent_pid: observed.parent_pid,
                started: observed.started,
                image: Arc::new(observed.image.clone()),
                announced: true,
                // Not known, so it is looked at when it leaves.
                has_threads: true,
            },
            observed.started,
        );
        true
    }

    /// Takes in one event. `is_outdated`: the process became yet another program since, so a look shows that one.
    pub(super) fn take(
        &mut self,
        kind: Kind,
        at: Moment,
        is_outdated: bool,
        look: &mut impl Look,
        facts: &mut Vec<Observation>,
    ) {
        match kind {
            Kind::Fork { process, is_thread: true, .. } => {
                if let Some(running) = self.running.get_mut(&process) {
                    running.has_threads = true;
                }
            }
            Kind::Fork { parent, process, is_thread: false } => self.fork(parent, process, at, look, facts),
            Kind::Exec { process } if is_outdated => {
                self.unseen.add(at);
                self.leaving.remove(&process);
            }
            Kind::Exec { process } => self.exec(process, at, look, facts),
            Kind::Exit { process, is_first_thread, status } => {
                self.exit(process, is_first_thread, status, at, look, facts);
            }
            Kind::Answer(_) | Kind::Other => {}
        }
    }

    /// What time has brought by `now`: forks have waited long enough, last threads have left.
    pub(super) fn settle(&mut self, now: Moment, look: &mut impl Look, facts: &mut Vec<Observation>) {
        let waits_ns = u64::try_from(FORK_WAITS.as_nanos()).unwrap_or(u64::MAX);
        let until = now.boot_ns.saturating_sub(waits_ns);
        while let Some((_, process)) = self.waiting.pop_front_if(|(seen, _)| *seen <= until) {
            self.announce(process, now, facts);
        }
        let lives: Vec<_> = self.leaving.keys().map(|pid| (*pid, look.life(*pid))).collect();
        for (pid, life) in lives {
            match life {
                Life::FirstThreadLeft => {}
                // Another thread has become the first one, by an exec.
                Life::Running => drop(self.leaving.remove(&pid)),
                Life::Ended => self.end_of_leaving(pid, facts),
            }
        }
    }

    /// After events were lost: `now_running` is what runs. Tells what that shows to have been missed.
    pub(super) fn reconcile(
        &mut self,
        now_running: Vec<ObservedProcess>,
        now: Moment,
        facts: &mut Vec<Observation>,
    ) {
        let starts: HashMap<u32, u64> =
            now_running.iter().map(|observed| (observed.process.pid, observed.process.start)).collect();
        let gone: Vec<ProcessKey> = self
            .running
            .values()
            .map(|running| running.key)
            .filter(|key| starts.get(&key.pid).is_none_or(|start| !is_same(key.start, *start)))
            .collect();
        for process in gone {
            self.end(process.pid, None, now, facts);
        }
        for observed in now_running {
            let process = observed.process;
            if self.found(&observed) {
                let fact =
                    Fact::ProcessStarted(Box::new(ObservedProcess { already_running: false, ..observed }));
                facts.push(Observation { at: now, fact });
            } else if let Some(running) = self.running.get_mut(&process.pid)
                && running.announced
                && (&running.image.path, &running.image.arguments)
                    != (&observed.image.path, &observed.image.arguments)
            {
                running.image = Arc::new(observed.image.clone());
                let (process, image) = (running.key, Box::new(observed.image));
                facts.push(Observation { at: now, fact: Fact::ProcessExecuted { process, image } });
            }
        }
    }

    /// Programs that could not be looked at since the last call.
    pub(super) fn take_unseen(&mut self) -> Stretch {
        std::mem::take(&mut self.unseen)
    }

    /// Processes that could not be followed since the last call.
    pub(super) fn take_unfollowed(&mut self) -> Stretch {
        std::mem::take(&mut self.unfollowed)
    }

    fn fork(
        &mut self,
        parent_pid: u32,
        pid: u32,
        at: Moment,
        look: &mut impl Look,
        facts: &mut Vec<Observation>,
    ) {
        let latest = at.boot_ns / TICK_NS;
        let start = look.start(pid).filter(|start| is_same(latest, *start) && *start <= latest);
        let process = ProcessKey { pid, start: start.unwrap_or(latest) };
        if self.leaving.contains_key(&pid) {
            self.end_of_leaving(pid, facts);
        }
        if let Some(running) = self.running.get(&pid) {
            if is_same(running.key.start, process.start) {
                return; // found running, after this event was written
            }
            // Its end was lost.
            self.end(pid, None, at, facts);
        }
        let parent = self.running.get(&parent_pid);
        let running = Running {
            key: process,
            parent: parent.map(|parent| parent.key),
            parent_pid: Some(parent_pid).filter(|parent| *parent != 0),
            started: at.wall,
            // As long as it is a fork without exec it runs what its parent runs.
            image: parent.map(|parent| Arc::clone(&parent.image)).unwrap_or_default(),
            announced: false,
            has_threads: false,
        };
        if self.insert(running, at.wall) {
            self.waiting.push_back((at.boot_ns, process));
        }
    }

    fn exec(&mut self, pid: u32, at: Moment, look: &mut impl Look, facts: &mut Vec<Observation>) {
        self.leaving.remove(&pid);
        let seen = look.image(pid);
        let known = self.running.get_mut(&pid);
        let seen =
            seen.filter(|(start, _)| known.as_ref().is_none_or(|known| is_same(known.key.start, *start)));
        if seen.as_ref().is_none_or(|(_, image)| image.path.is_none()) {
            self.unseen.add(at);
        }
        let Some(running) = known else {
            // Its fork was lost, and it may be gone already.
            let Some((start, image)) = seen else { return };
            let observed = ObservedProcess {
                process: ProcessKey { pid, start },
                parent: None,
                parent_pid: None,
                started: at.wall,
                already_running: false,
                image,
            };
            self.found(&observed);
            facts.push(Observation { at, fact: Fact::ProcessStarted(Box::new(observed)) });
            return;
        };
        let image = Arc::new(seen.map(|(_, image)| image).unwrap_or_default());
        // An exec that the inventory has seen already.
        let is_told = running.announced && running.image == image;
        running.image = Arc::clone(&image);
        let process = running.key;
        if is_told {
        } else if running.announced {
            let image = Box::new((*image).clone());
            facts.push(Observation { at, fact: Fact::ProcessExecuted { process, image } });
        } else {
            self.announce(process, at, facts);
        }
    }

    fn exit(
        &mut self,
        pid: u32,
        is_first_thread: bool,
        status: u32,
        at: Moment,
        look: &mut impl Look,
        facts: &mut Vec<Observation>,
    ) {
        if let Some((last, _)) = self.leaving.get_mut(&pid) {
            *last = at;
            if look.life(pid) == Life::Ended {
                self.end_of_leaving(pid, facts);
            }
            return;
        }
        let Some(running) = self.running.get(&pid).filter(|_| is_first_thread) else { return };
        if running.has_threads && look.life(pid) != Life::Ended {
            self.leaving.insert(pid, (at, status));
        } else {
            self.end(pid, Some(exit_code(status)), at, facts);
        }
    }

    fn end_of_leaving(&mut self, pid: u32, facts: &mut Vec<Observation>) {
        if let Some((at, status)) = self.leaving.remove(&pid) {
            self.end(pid, Some(exit_code(status)), at, facts);
        }
    }

    fn end(&mut self, pid: u32, exit_code: Option<i32>, at: Moment, facts: &mut Vec<Observation>) {
        let Some(process) = self.running.get(&pid).map(|running| running.key) else { return };
        self.leaving.remove(&pid);
        self.announce(process, at, facts);
        self.running.remove(&pid);
        facts.push(Observation { at, fact: Fact::ProcessExited { process, exit_code } });
    }

    fn announce(&mut self, process: ProcessKey, at: Moment, facts: &mut Vec<Observation>) {
        let Some(running) = self.running.get_mut(&process.pid) else { return };
        if running.key != process || std::mem::replace(&mut running.announced, true) {
            return;
        }
        let observed = ObservedProcess {
            process,
            parent: running.parent,
            parent_pid: running.parent_pid,
            started: running.started,
            already_running: false,
            image: (*running.image).clone(),
        };
        facts.push(Observation { at, fact: Fact::ProcessStarted(Box::new(observed)) });
    }

    /// False if there was no room.
    fn insert(&mut self, running: Running, at: Timestamp) -> bool {
        if self.running.len() >= RUNNING_MAX {
            self.unfollowed.add(Moment { wall: at, boot_ns: 0 });
            return false;
        }
        self.running.insert(running.key.pid, running);
        true
    }
}

impl Stretch {
    pub(super) fn add(&mut self, at: Moment) {
        self.add_stretch(1, at.wall, at.wall);
    }

    pub(super) fn add_stretch(&mut self, count: u64, from: Timestamp, to: Timestamp) {
        if *self == Self::default() {
            (self.from, self.to) = (from, to);
        }
        self.count += count;
        self.from = self.from.min(from);
        self.to = self.to.max(to);
    }
}

/// Two starts of a pid so near to each other are one: no pid comes round so soon.
fn is_same(one: u64, other: u64) -> bool {
    one.abs_diff(other) <= START_BEFORE_TICKS
}

#[cfg(test)]
mod tests;
