//! One host, its agent, and a collector that hears of it late; and beside them, what truly happens.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use alibi_agent::{
    capture::{ConnectionChange, Fact, Observation, Report},
    ledger::{Past, Restart},
    pipeline::{Limits, Pipeline},
    recorder::{Acknowledged, Progress, Recorder, labels_of},
    ring::{Options, Ring, View},
};
use alibi_lab::history::{closed, opened, socket, source};
use alibi_lab::reference::{Second, Seconds};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Summary},
    flow::Traffic,
    id::{Epoch, HostBoot, HostId, Seq},
    time::{Moment, Timestamp},
};
use tokio::sync::watch;

use crate::{
    asking::Tally,
    collector::{Collector, Read, read},
    steps::{PowerOff, Step},
};

const HOST: HostId = HostId::from_bytes([1; 16]);

/// So long that losses come while the last one is not paid for.
const RESTATING_INTERVAL: Duration = Duration::from_secs(20);

/// Where the wall clock stands when a history begins, so that it can be set back.
const BEGUN: u64 = 1_000_000;

/// A power cut may undo that so much time has passed in which nothing was recorded.
const UNSAFE_MAX: u64 = 10;

/// The boot of nothing.
const NO_BOOT: u64 = 0;

/// Longer the agent does not wait with a sync.
const UNSYNCED_MAX: u64 = 3;

pub(crate) struct World {
    directory: PathBuf,
    /// By the wall clock, as all that is told of the history.
    pub(crate) now: u64,
    /// By the clock that nobody sets.
    since_boot: u64,
    boot: u64,
    /// The boot in which an agent ran last.
    last_boot: u64,
    /// When the system recorded the shutdown before this boot, and the boot.
    shutdown: Option<u64>,
    started: u64,
    next_port: u16,
    /// By port: whether it is to the target, and whether the source has told of it.
    open: BTreeMap<u16, (bool, bool)>,
    is_blind: bool,
    pub(crate) truth: Seconds,
    pub(crate) agent: Option<Agent>,
    /// What the checkpoint of the ring will remember besides.
    remembered: Remembered,
    /// The ring as it was when it was last safe from a power cut.
    safe: Safe,
    /// The ring as it was once, of a boot, if no clock was set since.
    copy: Option<(Safe, u64)>,
    epoch: Epoch,
    /// What was told of the time before went with a ring that was lost: the agent does not know it, while a collector may.
    pub(crate) forgotten_until: u64,
    pub(crate) collector: Collector,
    /// The clock was set while no agent ran.
    was_set: bool,
    /// The host was on since no agent runs.
    lived_untold: bool,
    /// It was set back; what was told of the time that it shows again is right until that is heard.
    pub(crate) is_unheard: bool,
    pub(crate) tally: Tally,
    /// Where something happened.
    pub(crate) instants: Vec<u64>,
}

pub(crate) struct Agent {
    recorder: Recorder,
    pub(crate) view: View,
    acknowledged: Acknowledged,
    pub(crate) progress: watch::Receiver<Progress>,
    /// Up to here the checkpoint vouches for the recording.
    synced: u64,
    /// Its ledger knows all that was ever said.
    knows_all: bool,
}

#[derive(Clone, Default)]
struct Remembered {
    at: Option<Moment>,
    summary: Summary,
}

#[derive(Clone, Default)]
struct Safe {
    files: Vec<(PathBuf, Vec<u8>)>,
    remembered: Remembered,
    next_seq: Seq,
    synced: u64,
}

pub(crate) fn at(second: u64) -> Timestamp {
    Timestamp::from_secs(second)
}

impl World {
    pub(crate) fn new(directory: PathBuf) -> Self {
        let mut world = Self {
            directory,
            now: BEGUN,
            since_boot: 1_000,
            boot: 1,
            last_boot: 1,
            was_set: false,
            lived_untold: false,
            shutdown: None,
            started: BEGUN - 1_000,
            next_port: 1,
            open: BTreeMap::new(),
            is_blind: false,
            truth: Seconds::new(BEGUN),
            agent: None,
            remembered: Remembered::default(),
            safe: Safe::default(),
            copy: None,
            epoch: Epoch(1),
            forgotten_until: BEGUN,
            collector: Collector::default(),
            is_unheard: false,
            tally: Tally::default(),
            instants: Vec::new(),
        };
        world.start();
        world
    }

    pub(crate) fn run(&mut self, step: &Step) {
        if !matches!(step, Step::Wait(_) | Step::Ask { .. } | Step::AskMany { .. }) {
            self.instants.push(self.now);
        }
        match *step {
            Step::Wait(seconds) => {
                self.pass(seconds);
                self.report(vec![]);
            }
            Step::Open { target, after } => {
                self.pass(after);
                let port = self.next_port;
                self.next_port += 1;
                let is_told = !self.is_blind;
                self.open.insert(port, (target, is_told));
                self.touch();
                let opened = is_told.then(|| opened(port, target, false));
                self.report(opened.into_iter().collect());
            }
            Step::Close { after } => {
                self.pass(after);
                let first = if self.is_blind { None } else { self.open.pop_first() };
                let closed = first.map(|(port, (target, _))| closed(port, target));
                self.report(closed.into_iter().collect());
            }
            Step::Short => self.connect_shortly(),
            Step::Burst(count) => (0..count).for_each(|_| self.connect_shortly()),
            Step::Move => {
                self.pass(1);
                let moved = self.open.last_key_value().filter(|(_, (_, is_told))| *is_told).map(
                    |(&port, &(target, _))| {
                        let traffic = Some(Traffic { bytes_sent: self.now, ..Traffic::default() });
                        let change = ConnectionChange { traffic, ..ConnectionChange::default() };
                        Fact::ConnectionChanged { socket: socket(port, target), change }
                    },
                );
                self.report(moved.into_iter().collect());
            }
            Step::Sync => self.sync(),
            Step::Lose(seconds) => {
                self.lose(Facet::Connections, seconds, |second| second.connections_unrecorded = true)
            }
            Step::LoseNames(seconds) => {
                self.lose(Facet::Names, seconds, |second| second.names_unrecorded = true)
            }
            Step::Miss(seconds) => {
                self.pass(1);
                if self.agent.is_some() && !self.is_blind {
                    self.is_blind = true;
                    let from = self.now - seconds;
                    self.truth.mark(from..self.now, |second| second.connections_unrecorded = true);
                    let grade =
                        Grade::NotRecorded { reason: "the source does not see its own connections".into() };
                    self.report(vec![coverage(Facet::Connections, grade, from, None)]);
                    self.hear_what_takes_back(from);
                }
            }
            Step::See => self.see(),
            Step::Deliver => self.deliver(),
            Step::Stop => self.stop(),
            Step::Crash => self.crash(),
            Step::Newer(count) => {
                if let Some(agent) = &self.agent {
                    self.collector.does_not_know(self.epoch, agent.view.next_seq(), count.into());
                }
            }
            Step::LoseRing => self.lose_ring(),
            Step::Copy => self.copy = Some((self.safe.clone(), self.last_boot)),
            Step::Restore => self.restore(),
            Step::Start => {
                self.pass(1);
                if self.agent.is_none() {
                    self.start();
                }
            }
            Step::Suspend(seconds) => {
                let from = self.moment();
                self.jump(|world| {
                    world.now += seconds;
                    world.since_boot += seconds;
                });
                let to = self.moment();
                self.report(vec![Fact::Suspended { from, to }]);
            }
            Step::SetForward(seconds) => {
                if self.agent.is_none() && std::mem::replace(&mut self.was_set, true) {
                    return;
                }
                self.copy = None;
                let before = self.now;
                self.jump(|world| world.now += seconds);
                // Nobody can tell at which instant of the second that passes.
                self.truth.mark(before..self.now + 1, unrecorded);
                self.pass(1);
                self.report(vec![]);
            }
            Step::SetBack(seconds) => self.set_back(seconds),
            Step::PowerCut { off, clock, starting } => {
                // That the clock was set in a boot that has ended is not known to anybody.
                if !self.is_unheard {
                    self.cut_power();
                    self.be_off(off, clock, starting, false);
                }
            }
            Step::PowerOff(ref power_off) => self.power_off(power_off),
            Step::Ask { ago, length } => self.ask(ago, length),
            Step::AskMany { seed } => self.ask_many(seed),
        }
    }

    fn moment(&self) -> Moment {
        Moment { wall: at(self.now), boot_ns: self.since_boot * 1_000_000_000 }
    }

    /// So many seconds pass; what is open lives in all of them, from the instant at which they begin to that at which they
    /// end.
    fn pass(&mut self, seconds: u64) {
        let (from, to) = (self.now, self.now + seconds);
        self.now = to;
        self.since_boot += seconds;
        self.live(from);
        self.lived_untold |= self.agent.is_none() && seconds > 0;
        let (is_blind, is_away) = (self.is_blind, self.agent.is_none());
        self.truth.mark(from..to, |second| {
            second.connections_unrecorded |= is_blind || is_away;
            second.names_unrecorded |= is_away;
        });
    }

    fn live(&mut self, from: u64) {
        if self.open.values().any(|(target, _)| *target) {
            self.truth.mark(from..self.now + 1, |second| second.talked = true);
        }
    }

    /// What is open lives at this instant.
    fn touch(&mut self) {
        self.live(self.now);
    }

    /// Something that ends, for what is open, one stretch of its life and begins another.
    fn jump(&mut self, what: impl FnOnce(&mut Self)) {
        // As it does each second; what is not known is at which instant between two reports it happened.
        self.report(vec![]);
        self.touch();
        let before = self.now;
        what(self);
        if self.agent.is_none() {
            self.lived_untold = true;
            self.truth.mark(before..self.now, unrecorded);
        }
        self.touch();
    }

    fn connect_shortly(&mut self) {
        let port = self.next_port;
        self.next_port += 1;
        self.report(vec![opened(port, false, false), closed(port, false)]);
    }

    fn lose(&mut self, facet: Facet, seconds: u64, mark: impl Fn(&mut Second)) {
        self.pass(1);
        let from = self.now - seconds;
        if self.agent.is_some() {
            self.truth.mark(from..self.now, mark);
        }
        let grade = Grade::Lost { count: 1, reason: "test".into() };
        self.report(vec![coverage(facet, grade, from, Some(self.now))]);
        self.hear_what_takes_back(from);
    }

    /// What was told is right until something is heard that reaches back into it.
    fn hear_what_takes_back(&mut self, from: u64) {
        if self.agent.as_ref().is_some_and(|agent| agent.progress.borrow().watermark > Some(at(from))) {
            self.sync();
            self.deliver();
        }
    }

    /// The source lists what is open, and then says that it sees again.
    fn see(&mut self) {
        if !std::mem::take(&mut self.is_blind) {
            return;
        }
        let untold = self.open.iter_mut().filter(|(_, (_, is_told))| !*is_told);
        let mut facts: Vec<_> = untold
            .map(|(&port, (target, is_told))| {
                *is_told = true;
                opened(port, *target, true)
            })
            .collect();
        facts.push(coverage(Facet::Connections, Grade::Complete, self.now, None));
        self.report(facts);
    }

    fn set_back(&mut self, seconds: u64) {
        self.copy = None;
        let before = self.now;
        if self.agent.is_none() {
            // How often it was set cannot be told from where it stands at last, nor anything if it was not known before.
            if !self.was_set && self.last_boot == self.boot && before >= BEGUN + seconds {
                self.was_set = true;
                self.now -= seconds;
                self.is_unheard = true;
                self.touch();
            }
            return;
        }
        if before < BEGUN + seconds {
            return;
        }
        self.jump(|world| world.now -= seconds);
        self.truth.mark(self.now..before + 1, unrecorded);
        self.pass(1);
        self.report(vec![]);
        // What was told of this time before is right until it is heard that it happened again.
        self.sync();
        self.deliver();
    }

    fn stop(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        let now = self.moment();
        self.remembered.at = Some(now);
        // The collector may be there to hear the last words, or not.
        let (view, progress) = (agent.view, agent.progress);
        agent.recorder.close("stopped", now).unwrap();
        if self.now.is_multiple_of(2) {
            self.collector.take(&view, &progress.borrow());
        }
        self.is_blind = false;
    }

    /// The program does so each second. If it had not for long, a clock that is set back could show a time once more that was
    /// recorded and is not known to be.
    fn sync_in_time(&mut self) {
        if self.agent.as_ref().is_some_and(|agent| self.now.abs_diff(agent.synced) > UNSYNCED_MAX) {
            self.sync();
        }
    }

    fn crash(&mut self) {
        self.sync_in_time();
        if let Some(agent) = self.agent.take() {
            self.truth.mark(agent.synced..self.now, unrecorded);
            self.is_blind = false;
        }
    }

    fn cut_power(&mut self) {
        self.touch();
        if self.agent.is_some() {
            self.crash();
            self.write_safe();
        }
        self.shutdown = None;
    }

    /// The ring becomes what it was when it was last safe.
    fn write_safe(&mut self) {
        fs::remove_dir_all(&self.directory).unwrap();
        fs::create_dir(&self.directory).unwrap();
        for (path, bytes) in &self.safe.files {
            fs::write(path, bytes).unwrap();
        }
        self.remembered = self.safe.remembered.clone();
    }

    /// Everything that was not told yet is lost with the ring, and the next is another.
    fn lose_ring(&mut self) {
        if self.is_unheard {
            return;
        }
        self.crash();
        self.safe = Safe::default();
        self.write_safe();
        self.epoch = Epoch(self.epoch.0 + 1);
        self.copy = None;
        // Nor is it known in which boot it ended, so that nobody knows of a clock that is set back until the next one begins.
        self.last_boot = NO_BOOT;
        self.lived_untold = true;
    }

    /// The ring is replaced by an older copy; what was told since is right until that is heard.
    fn restore(&mut self) {
        if self.is_unheard {
            return;
        }
        let Some((copy, boot)) = self.copy.clone() else { return };
        self.crash();
        self.safe = copy;
        self.write_safe();
        self.last_boot = boot;
        self.is_unheard = true;
    }

    fn power_off(&mut self, how: &PowerOff) {
        // As of a power cut.
        if self.is_unheard {
            return;
        }
        self.stop();
        self.pass(how.stopping);
        self.shutdown = how.is_recorded.then_some(self.now);
        self.pass(how.lingering);
        self.be_off(how.off, how.clock, how.starting, how.is_recorded);
    }

    /// Nothing runs, and whatever was open is not any more.
    fn be_off(&mut self, seconds: u64, clock: i64, starting: u64, is_proven: bool) {
        self.is_blind = false;
        self.open.clear();
        let from = self.now;
        self.instants.push(from);
        // What was lived unrecorded since the agent ended, and is shown once more by a clock that was set meanwhile, leaves
        // no trace at all.
        let earliest = if self.lived_untold { from } else { BEGUN };
        self.now = (from + seconds).saturating_add_signed(clock).max(earliest);
        if !is_proven {
            self.truth.mark(from..self.now, unrecorded);
        }
        // What the clock may show again is unrecorded as it does.
        self.is_unheard = self.now < from;
        self.was_set |= clock != 0;
        self.copy = self.copy.take().filter(|_| clock == 0);
        self.instants.push(self.now);
        self.boot += 1;
        self.since_boot = 0;
        self.started = self.now;
        self.pass(starting);
    }

    pub(crate) fn start(&mut self) {
        let options = Options { bytes_max: 6 << 10, segment_bytes: 1 << 10, ..Options::default() };
        let (mut ring, recovery) = Ring::open(&self.directory, options, HOST, self.epoch, labels_of).unwrap();
        if recovery.is_new {
            self.forgotten_until = self.truth.end();
        }
        ring.begin_boot(self.boot);
        self.last_boot = self.boot;
        self.was_set = false;
        self.lived_untold = false;
        let boot = HostBoot::new(HOST, &format!("boot {}", self.boot));
        let now = self.moment();
        let mut pipeline = Pipeline::new(
            boot,
            Limits { restating_interval: RESTATING_INTERVAL, ..Limits::default() },
            source(&[Facet::Connections, Facet::Names]),
            ring.next_seq(),
            Past::of(&recovery, self.boot, self.restart()),
            now,
        );
        let (sender, progress) = watch::channel(Progress::default());
        let (view, acknowledged) = (ring.view(), Acknowledged::default());
        // What the ring has, and the checkpoint did not know yet.
        let mut knows_all = true;
        let summary = std::mem::take(&mut self.remembered.summary);
        let next = summary.next;
        pipeline.ledger().restore(summary);
        read(&view, next, ring.next_seq(), |item| match item {
            Read::Event(event) => pipeline.ledger().replay(&event),
            Read::Hole(hole) => {
                knows_all = false;
                pipeline.ledger().replay_hole(&hole);
            }
        });
        let recorder = Recorder::new(pipeline, ring, recovery.recorded_until, acknowledged.clone(), sender);
        self.agent = Some(Agent { recorder, view, acknowledged, progress, synced: self.now, knows_all });
        let inventory = self.open.iter_mut().map(|(&port, (target, is_told))| {
            *is_told = true;
            opened(port, *target, true)
        });
        let inventory = inventory.collect();
        self.report(inventory);
        // As the program does it once it runs.
        self.sync();
        if std::mem::take(&mut self.is_unheard) {
            self.deliver();
        }
    }

    /// The records as they are read.
    fn restart(&self) -> Option<Restart> {
        let booted = self.now.saturating_sub(self.since_boot);
        let is_this_boot = (booted.saturating_sub(60)..=self.now).contains(&self.started);
        let shutdown =
            self.shutdown.filter(|shutdown| is_this_boot && *shutdown <= booted.min(self.started))?;
        Some(Restart { shutdown: at(shutdown), started: at(self.started) })
    }

    fn report(&mut self, facts: Vec<Fact>) {
        let now = self.moment();
        let observations = facts.into_iter().map(|fact| Observation { at: now, fact }).collect();
        if let Some(agent) = &mut self.agent {
            // What was seen is recorded a little later.
            let recorded = Moment { wall: now.wall.saturating_add(Duration::from_millis(300)), ..now };
            agent.recorder.take(Report { observations, seen_until: now }, recorded);
        }
    }

    fn sync(&mut self) {
        let moment = self.moment();
        let Some(agent) = &mut self.agent else { return };
        agent.recorder.sync();
        agent.synced = self.now;
        self.remembered = Remembered { at: Some(moment), summary: agent.recorder.summary() };
        let next_seq = agent.progress.borrow().next_seq;
        if next_seq != self.safe.next_seq || self.now.abs_diff(self.safe.synced) >= UNSAFE_MAX {
            let entries = fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path());
            let files = entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
            self.safe = Safe { files, remembered: self.remembered.clone(), next_seq, synced: self.now };
        }
    }

    fn deliver(&mut self) {
        let Some(agent) = &self.agent else { return };
        self.collector.take(&agent.view, &agent.progress.borrow());
        agent.acknowledged.up_to(Seq(self.collector.summary.next.0 - 1));
        let (ledger, collector) = (&self.remembered.summary, &self.collector);
        if agent.knows_all && !collector.knows_other && ledger.next == collector.summary.next {
            for facet in Facet::ALL {
                assert_eq!(ledger.timeline(facet), collector.summary.timeline(facet));
            }
            self.tally.equal_ledgers += 1;
        }
    }
}

fn unrecorded(second: &mut Second) {
    second.connections_unrecorded = true;
    second.names_unrecorded = true;
}

fn coverage(facet: Facet, grade: Grade, from: u64, to: Option<u64>) -> Fact {
    Fact::Coverage(CoverageChange {
        facet,
        grade,
        from: at(from),
        to: to.map(at),
        scope: None,
        announced_from: None,
    })
}
