//! Processes, from their starts and stops. Pure: what a process runs was read by somebody else, right after its start.

use std::collections::{HashMap, HashSet};

use alibi_proto::{process::ProcessImage, time::Moment};

use super::event::{Started, timestamp};
use crate::capture::{Fact, Observation, ObservedProcess, ProcessKey, poll::ProcessRow};

/// One that has ended is remembered for so long, so that what it left to the kernel is still known to be its own.
const REMEMBERED_NS: u64 = 10 * 60 * 1_000_000_000;
/// So many that have ended are remembered; a process keeps its number to itself as long as it runs.
const ENDED_MAX: usize = 65_536;

/// What runs.
#[derive(Debug, Default)]
pub(super) struct Processes {
    by_pid: HashMap<u32, Running>,
    ended: usize,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    key: ProcessKey,
    /// When it ended, in nanoseconds since boot.
    ended: Option<u64>,
}

impl Processes {
    /// The process that has this number, or had it last.
    pub(super) fn of(&self, pid: u32) -> Option<ProcessKey> {
        self.by_pid.get(&pid).map(|running| running.key)
    }

    /// Whether it is known, and has not ended.
    pub(super) fn runs(&self, key: ProcessKey) -> bool {
        self.by_pid.get(&key.pid).is_some_and(|running| running.key == key && running.ended.is_none())
    }

    /// A process came to be; `image` is what was read of it, if it was still there.
    pub(super) fn started(
        &mut self,
        at: Moment,
        started: &Started,
        image: Option<ProcessImage>,
        facts: &mut Vec<Observation>,
    ) {
        let key = ProcessKey { pid: started.pid, start: started.created };
        if self.runs(key) {
            return;
        }
        let image = image.unwrap_or_else(|| named_by_the_kernel(&started.image));
        self.begin(at, key, started.parent_pid, false, image, facts);
    }

    /// A process ended. One that nobody told of before has left nothing to say.
    pub(super) fn stopped(
        &mut self,
        at: Moment,
        key: ProcessKey,
        exit_code: Option<i32>,
        facts: &mut Vec<Observation>,
    ) {
        let Some(running) = self.by_pid.get_mut(&key.pid) else { return };
        if running.key != key || running.ended.is_some() {
            return;
        }
        running.ended = Some(at.boot_ns);
        self.ended += 1;
        facts.push(Observation { at, fact: Fact::ProcessExited { process: key, exit_code } });
        self.forget(at.boot_ns);
    }

    /// The process table, as it was at `at`: what it has and was not told, begins; what it lacks, has ended. How many began
    /// so. `since` are those that started or ended since it was read: the table says nothing about them.
    pub(super) fn compare(
        &mut self,
        at: Moment,
        rows: Vec<ProcessRow>,
        since: &HashSet<ProcessKey>,
        already_running: bool,
        facts: &mut Vec<Observation>,
    ) -> u64 {
        let present: HashSet<ProcessKey> = rows.iter().map(|row| row.key).collect();
        let mut gone: Vec<ProcessKey> = self
            .by_pid
            .values()
            .filter(|running| {
                running.ended.is_none() && !present.contains(&running.key) && !since.contains(&running.key)
            })
            .map(|running| running.key)
            .collect();
        gone.sort_unstable();
        for key in gone {
            self.stopped(at, key, None, facts);
        }
        let mut untold = 0;
        let mut rows: Vec<ProcessRow> =
            rows.into_iter().filter(|row| !self.runs(row.key) && !since.contains(&row.key)).collect();
        // Parents before children.
        rows.sort_unstable_by_key(|row| (row.key.start, row.key.pid));
        for row in rows {
            untold += 1;
            let image = row.image.map_or_else(ProcessImage::default, |image| *image);
            self.begin(at, row.key, row.parent_pid.unwrap_or(0), already_running, image, facts);
        }
        untold
    }

    fn begin(
        &mut self,
        at: Moment,
        key: ProcessKey,
        parent_pid: u32,
        already_running: bool,
        image: ProcessImage,
        facts: &mut Vec<Observation>,
    ) {
        // Whoever started later is somebody else with the parent's number.
        let parent = self.of(parent_pid).filter(|parent| parent.start <= key.start && *parent != key);
        let before = self.by_pid.insert(key.pid, Running { key, ended: None });
        if let Some(before) = before {
            match before.ended {
                Some(_) => self.ended -= 1,
                // Its end was not told: the number would not be another's otherwise.
                None => facts.push(Observation {
                    at,
                    fact: Fact::ProcessExited { process: before.key, exit_code: None },
                }),
            }
        }
        facts.push(Observation {
            at,
            fact: Fact::ProcessStarted(Box::new(ObservedProcess {
                process: key,
                parent,
                parent_pid: (parent_pid != 0).then_some(parent_pid),
                started: timestamp(key.start),
                already_running,
                image,
            })),
        });
    }

    fn forget(&mut self, now_ns: u64) {
        if self.ended <= ENDED_MAX {
            return;
        }
        let is_old = |running: &Running| {
            running.ended.is_some_and(|ended| now_ns.saturating_sub(ended) > REMEMBERED_NS)
        };
        self.by_pid.retain(|_, running| !is_old(running));
        self.ended = self.by_pid.values().filter(|running| running.ended.is_some()).count();
        if self.ended > ENDED_MAX {
            self.by_pid.retain(|_, running| running.ended.is_none());
            self.ended = 0;
        }
    }
}

/// What is known of a process that was gone before it could be looked at.
fn named_by_the_kernel(path: &str) -> ProcessImage {
    let name = path.rsplit('\\').next().unwrap_or_default().to_owned();
    ProcessImage {
        path: Some(path.to_owned()).filter(|path| !path.is_empty()),
        name,
        ..ProcessImage::default()
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment { wall: Timestamp::from_nanos(millis * 1_000_000), boot_ns: millis * 1_000_000 }
    }

    fn started(pid: u32, created: u64, parent_pid: u32) -> Started {
        Started { pid, created, parent_pid, image: r"\Device\HarddiskVolume3\a\b.exe".to_owned() }
    }

    fn key(pid: u32, start: u64) -> ProcessKey {
        ProcessKey { pid, start }
    }

    fn row(pid: u32, start: u64, parent_pid: u32) -> ProcessRow {
        ProcessRow {
            key: key(pid, start),
            parent_pid: Some(parent_pid),
            started: timestamp(start),
            ended: false,
            image: None,
        }
    }

    /// `+pid@start<parent` for a start, `-pid@start` for an end.
    fn words(facts: &[Observation]) -> Vec<String> {
        let word = |observation: &Observation| match &observation.fact {
            Fact::ProcessStarted(process) => {
                let parent = process.parent.map_or(0, |parent| parent.pid);
                format!("+{}@{}<{parent}", process.process.pid, process.process.start)
            }
            Fact::ProcessExited { process, .. } => format!("-{}@{}", process.pid, process.start),
            other => panic!("{other:?}"),
        };
        facts.iter().map(word).collect()
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let (mut processes, mut facts) = (Processes::default(), Vec::new());
        processes.started(at(1), &started(8, 100, 4), None, &mut facts);
        processes.stopped(at(2), key(8, 100), Some(1), &mut facts);
        assert_eq!(processes.of(8), Some(key(8, 100)), "what it left to the kernel is its own");
        processes.started(at(3), &started(8, 101, 4), None, &mut facts);
        assert_eq!(processes.of(8), Some(key(8, 101)));
        processes.stopped(at(4), key(8, 100), Some(1), &mut facts);
        assert_eq!(words(&facts), ["+8@100<0", "-8@100", "+8@101<0"]);
        processes.started(at(5), &started(8, 102, 4), None, &mut facts);
        assert_eq!(words(&facts)[3..], ["-8@101", "+8@102<0"], "an end that was not told");
    }

    #[test]
    fn a_parent_is_whoever_had_the_number_then() {
        let (mut processes, mut facts) = (Processes::default(), Vec::new());
        processes.started(at(1), &started(4, 50, 0), None, &mut facts);
        processes.started(at(1), &started(8, 100, 4), None, &mut facts);
        processes.started(at(2), &started(12, 90, 8), None, &mut facts);
        assert_eq!(words(&facts), ["+4@50<0", "+8@100<4", "+12@90<0"]);
    }

    #[test]
    fn a_process_that_was_gone_has_the_name_that_the_kernel_gave() {
        let (mut processes, mut facts) = (Processes::default(), Vec::new());
        processes.started(at(1), &started(8, 100, 4), None, &mut facts);
        let Fact::ProcessStarted(process) = &facts[0].fact else { panic!() };
        assert_eq!(process.image.name, "b.exe");
        assert_eq!(process.image.path.as_deref(), Some(r"\Device\HarddiskVolume3\a\b.exe"));
    }

    #[test]
    fn the_table_ends_what_it_lacks_and_begins_what_was_not_told() {
        let (mut processes, mut facts) = (Processes::default(), Vec::new());
        let inventory = vec![row(12, 30, 8), row(8, 20, 4), row(4, 10, 0)];
        assert_eq!(processes.compare(at(1), inventory, &HashSet::new(), true, &mut facts), 3);
        assert_eq!(words(&facts), ["+4@10<0", "+8@20<4", "+12@30<8"]);
        facts.clear();
        processes.started(at(2), &started(16, 40, 8), None, &mut facts);
        facts.clear();
        // 16 started after the table was read, and 20 ended; 12 is gone, 24 is new.
        let since = HashSet::from([key(16, 40), key(20, 41)]);
        let table = vec![row(4, 10, 0), row(8, 20, 4), row(20, 41, 8), row(24, 42, 8)];
        assert_eq!(processes.compare(at(3), table, &since, false, &mut facts), 1);
        assert_eq!(words(&facts), ["-12@30", "+24@42<8"]);
        assert!(processes.runs(key(16, 40)) && !processes.runs(key(12, 30)));
    }

    #[test]
    fn those_that_ended_are_forgotten_in_time() {
        let (mut processes, mut facts) = (Processes::default(), Vec::new());
        let count = ENDED_MAX as u32 + 2;
        for pid in 1..=count {
            processes.started(at(1), &started(pid, 1, 0), None, &mut facts);
        }
        for pid in 1..count {
            processes.stopped(at(2), key(pid, 1), None, &mut facts);
        }
        assert!(processes.by_pid.len() <= ENDED_MAX + 1, "{}", processes.by_pid.len());
        assert!(processes.runs(key(count, 1)));
    }
}
