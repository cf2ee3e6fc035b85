//! One agent: a real one but for its source.

use std::{
    collections::VecDeque,
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alibi_agent::{
    boots,
    capture::{Observation, Report},
    identity,
    ledger::Past,
    link::{Link, LinkState, LinkStatus, Membership, certificates},
    pipeline::{Limits, Pipeline},
    recorder::{self, Acknowledged, Progress, Recorder, labels_of},
    ring::{Options as RingLimits, Ring},
    server::{Recorded, Service},
    sys::{self, HostFacts},
};
use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    dial::Proxy,
    host::{FacetCoverage, SourceDescription},
    id::{Epoch, HostBoot, HostId},
    time::{Moment, Timestamp},
    token::Token,
};
use anyhow::{Context as _, Result};
use tokio::{sync::watch, task::JoinHandle};

use super::Pace;
use crate::fleet::model::{Began, Laptop, Plan, Step, World, name_of};

/// The least that a ring takes: some minutes of a laptop that is worked on, which must do for thousands on one machine.
const RING_BYTES_LIVE: u64 = 512 << 10;
/// Where the past is made as fast as it is taken, so many events may wait for the collector: what comes of them, in a frame
/// each at worst, fits into the ring, so that none is overwritten.
const AHEAD_EVENTS_MAX: u64 = 1_000;
const RING_BYTES_PAST: u64 = 2 << 20;
/// Between two looks whether the collector has more of them.
const TAKEN_LOOK: Duration = Duration::from_millis(10);
/// Between two looks of an agent whose history has ended.
const RESTING_LOOK: Duration = Duration::from_secs(1);
/// Looks that wait for an acknowledgement, by which its lag is known; of more only the oldest.
const UNACKNOWLEDGED_MAX: usize = 1_024;
/// How long the end of a call home may take as an agent ends.
const ENDING: Duration = Duration::from_secs(5);

/// From when on nothing happens on any laptop of a crowd.
#[derive(Clone, Debug)]
pub struct Rest(Arc<AtomicU64>);

impl Rest {
    /// Something does, for ever.
    pub fn never() -> Self {
        Self(Arc::new(AtomicU64::new(Timestamp::MAX.as_nanos())))
    }

    /// From this instant on, nothing does. An agent that is behind tells all until then.
    pub fn from(&self, instant: Timestamp) {
        self.0.store(instant.as_nanos(), Ordering::Relaxed);
    }

    fn since(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// How an agent stands; written by it, read by the crowd.
#[derive(Debug, Default)]
pub struct Standing {
    lag: Mutex<Lag>,
    /// How far the agent itself is behind the history that it is to tell in time.
    pub late_ms: AtomicU64,
    /// Its history has ended, and all of it is acknowledged.
    pub done: AtomicBool,
    /// It is connected.
    pub connected: AtomicBool,
    /// How often it lost its connection, or called in vain.
    pub failed: AtomicU64,
}

/// How an agent stands with the collector.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Events that it has recorded.
    pub recorded: u64,
    /// Of these, those that the collector has acknowledged.
    pub acknowledged: u64,
    /// How old the oldest event is that is not acknowledged.
    pub lag: Duration,
}

impl Standing {
    /// How it stands with the collector, now.
    pub fn taken(&self) -> Taken {
        let mut lag = self.lag();
        let oldest = lag.look(Instant::now());
        Taken { recorded: lag.recorded, acknowledged: lag.acknowledged, lag: oldest }
    }

    fn lag(&self) -> MutexGuard<'_, Lag> {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One agent, which has enrolled.
pub struct Agent {
    directory: PathBuf,
    host: HostId,
    number: u32,
    standing: Arc<Standing>,
}

/// It runs: what a real agent has from its start to its end.
struct Run {
    recorder: Recorder,
    progress: watch::Receiver<Progress>,
    stop: watch::Sender<bool>,
    link: JoinHandle<()>,
}

impl Agent {
    /// Enrols the laptop of this number. Its agent's data is in `directory`.
    ///
    /// # Errors
    /// When the collector refuses.
    pub async fn enrol(directory: PathBuf, number: u32, token: &Token) -> Result<Self> {
        std::fs::create_dir(&directory)?;
        let host = identity::make(&directory)?;
        let name = name_of(number);
        certificates::enrol(&directory, token, host, name.clone(), &Proxy::none(), sys::now().wall)
            .await
            .with_context(|| format!("{name} does not enrol"))?;
        Ok(Self { directory, host, number, standing: Arc::default() })
    }

    /// The number of its laptop.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// How it stands, from now on.
    pub fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing)
    }

    /// Records what happens on its laptop, until `stop` says so; it stays connected when nothing happens any more.
    ///
    /// # Errors
    /// When its ring takes nothing more.
    pub async fn run(
        self,
        plan: Plan,
        world: Arc<World>,
        pace: Pace,
        rest: Rest,
        mut stop: watch::Receiver<bool>,
    ) -> Result<()> {
        tokio::select! {
            lived = self.live(plan, plan.laptop(&world, self.number), pace, rest) => match lived? {},
            _ = stop.wait_for(|stop| *stop) => Ok(()),
        }
    }

    async fn live(&self, plan: Plan, mut laptop: Laptop, pace: Pace, rest: Rest) -> Result<Infallible> {
        // Laptops do not look all at the same instant.
        let phase = Duration::from_millis(plan.look_ms).mul_f64(fastrand::f64());
        let mut run: Option<Run> = None;
        while laptop.now() < rest.since()
            && let Some(step) = laptop.step()
        {
            if pace == Pace::Live {
                self.await_instant(step.until.saturating_add(phase)).await;
            }
            let mut running = match (run.take(), step.began) {
                (Some(running), Began::GoingOn) => running,
                (running, began) => {
                    if let Some(running) = running {
                        self.end(running, began, &plan, &step).await?;
                    }
                    self.start(&plan, pace, step.until)?
                }
            };
            self.look(&mut running, step.told, plan.moment(step.until));
            while pace == Pace::Past && self.waiting() > AHEAD_EVENTS_MAX {
                tokio::time::sleep(TAKEN_LOOK).await;
            }
            run = Some(running);
            tokio::task::yield_now().await;
        }
        let mut running = run.context("a history without a step")?;
        // It goes on looking, and nothing happens: what is open is told of when its time comes, and the watermark goes on.
        loop {
            self.look(&mut running, Vec::new(), plan.moment(sys::now().wall));
            tokio::time::sleep(RESTING_LOOK).await;
            self.standing.done.store(self.waiting() == 0, Ordering::Relaxed);
        }
    }

    fn look(&self, running: &mut Run, observations: Vec<Observation>, now: Moment) {
        running.recorder.take(Report { observations, seen_until: now }, now);
        running.recorder.sync();
        let recorded = running.progress.borrow().next_seq.0.saturating_sub(1);
        self.standing.lag().recorded(recorded, Instant::now());
    }

    async fn await_instant(&self, instant: Timestamp) {
        let now = sys::now().wall;
        let late = now.since(instant).as_millis();
        self.standing.late_ms.store(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
        tokio::time::sleep(instant.since(now)).await;
    }

    /// As the program does it when it is started.
    fn start(&self, plan: &Plan, pace: Pace, at: Timestamp) -> Result<Run> {
        let now = plan.moment(at);
        let own = sys::host_facts();
        // In the collector's own boot, so that it knows the clock of days that it did not measure.
        let facts = HostFacts {
            name: name_of(self.number),
            os: "linux",
            os_version: "simulated".to_owned(),
            machine_id: Some(self.host.to_string()),
            boot_id: own.boot_id,
            booted: plan.booted(),
        };
        let ring_bytes = if pace == Pace::Live { RING_BYTES_LIVE } else { RING_BYTES_PAST };
        let (mut ring, recovery) = Ring::open(
            &self.directory.join("ring"),
            RingLimits::within(ring_bytes),
            self.host,
            Epoch(now.wall.as_nanos()),
            labels_of,
        )?;
        let this_boot = boots::number(&facts.boot_id);
        let begins =
            boots::enter(&self.directory, &facts.boot_id, ring.epoch(), ring.next_seq(), recovery.boot);
        ring.begin_boot(this_boot);
        let boot = HostBoot::new(self.host, &facts.boot_id);
        let past = Past::of(&recovery, this_boot, None);
        let mut pipeline = Pipeline::new(boot, Limits::default(), source(), ring.next_seq(), past, now);
        recorder::remember(pipeline.ledger(), &ring)?;

        let acknowledged = Acknowledged::default();
        let first = Progress { next_seq: ring.next_seq(), ..Progress::default() };
        let (sender, progress) = watch::channel(first);
        let recorded = Recorded {
            view: ring.view(),
            progress: progress.clone(),
            acknowledged: acknowledged.clone(),
            boots: begins.into(),
        };
        let membership = Arc::new(Membership::new(self.directory.clone()));
        tokio::spawn(watch_link(membership.status(), self.standing()));
        let clock = *plan;
        let service = Service::new(self.host, facts, source(), recorded, membership)
            .with_clock(move || clock.moment(sys::now().wall));
        let recorder = Recorder::new(pipeline, ring, recovery.recorded_until, acknowledged.clone(), sender);
        let stop = watch::Sender::new(false);
        let link = Link { directory: self.directory.clone(), proxy: Proxy::none(), service };
        let link = tokio::spawn(link.run(stop.subscribe()));
        self.standing.lag().acknowledging = acknowledged;
        Ok(Run { recorder, progress, stop, link })
    }

    /// It is stopped, or killed, before this step.
    async fn end(&self, running: Run, began: Began, plan: &Plan, step: &Step) -> Result<()> {
        let Run { recorder, stop, mut link, .. } = running;
        match (began, step.unrecorded) {
            (Began::Stopped, Some(away)) => {
                recorder.close("the agent was stopped", plan.moment(away.from))?
            }
            _ => drop(recorder),
        }
        stop.send_replace(true);
        // A connection that does not end is broken off, as it is when a program ends.
        if tokio::time::timeout(ENDING, &mut link).await.is_err() {
            link.abort();
        }
        Ok(())
    }

    /// Events that the collector has not acknowledged.
    fn waiting(&self) -> u64 {
        let Taken { recorded, acknowledged, .. } = self.standing.taken();
        recorded - acknowledged
    }
}

/// Since when events wait to be acknowledged.
#[derive(Debug, Default)]
struct Lag {
    recorded: u64,
    /// A run that has just begun knows of no acknowledgement, and none is taken back.
    acknowledged: u64,
    acknowledging: Acknowledged,
    /// Up to which event was recorded when.
    waiting: VecDeque<(u64, Instant)>,
}

impl Lag {
    fn recorded(&mut self, recorded: u64, now: Instant) {
        if recorded > self.recorded && self.waiting.len() < UNACKNOWLEDGED_MAX {
            self.waiting.push_back((recorded, now));
        }
        self.recorded = recorded;
        self.look(now);
    }

    /// How long the oldest has waited.
    fn look(&mut self, now: Instant) -> Duration {
        let acknowledged = self.acknowledged.max(self.acknowledging.seq().0).min(self.recorded);
        self.acknowledged = acknowledged;
        while self.waiting.pop_front_if(|(upto, _)| *upto <= acknowledged).is_some() {}
        self.waiting.front().map_or(Duration::ZERO, |(_, since)| now.duration_since(*since))
    }
}

async fn watch_link(mut status: watch::Receiver<LinkStatus>, standing: Arc<Standing>) {
    while status.changed().await.is_ok() {
        let is_connected = match status.borrow_and_update().state() {
            Some(LinkState::Connected { .. }) => true,
            Some(LinkState::NotConnected { .. }) => {
                standing.failed.fetch_add(1, Ordering::Relaxed);
                false
            }
            _ => false,
        };
        standing.connected.store(is_connected, Ordering::Relaxed);
    }
}

fn source() -> SourceDescription {
    let scope = || Scope {
        source: "ebpf".to_owned(),
        covers: "TCP and UDP of all network namespaces, as a real agent says it".to_owned(),
        cannot_see: "kernel tunnels, traffic of virtual machines, raw sockets".to_owned(),
    };
    let facet = |facet| FacetCoverage { facet, grade: Grade::Complete, scope: scope() };
    SourceDescription { name: "ebpf".to_owned(), facets: Facet::ALL.map(facet).to_vec(), caveat: None }
}

#[cfg(test)]
mod tests {
    use alibi_proto::id::Seq;

    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_event_that_is_not_acknowledged() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let acknowledging = Acknowledged::default();
        let mut lag = Lag { acknowledging: acknowledging.clone(), ..Lag::default() };
        lag.recorded(10, after(0));
        lag.recorded(20, after(2));
        assert_eq!(lag.look(after(3)), Duration::from_secs(3));
        acknowledging.up_to(Seq(10));
        assert_eq!((lag.look(after(4)), lag.acknowledged), (Duration::from_secs(2), 10));
        acknowledging.up_to(Seq(20));
        assert_eq!((lag.look(after(5)), lag.acknowledged), (Duration::ZERO, 20));
        // The next run has heard of nothing yet.
        lag.acknowledging = Acknowledged::default();
        assert_eq!((lag.look(after(6)), lag.acknowledged), (Duration::ZERO, 20));
    }
}
