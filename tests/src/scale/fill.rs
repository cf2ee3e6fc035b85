//! Puts a fleet's history into a store, as agents tell it: of all hosts the same stretch of time, host after host, each with
//! what it says of its coverage, its programs and its names.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use alibi_collector::store::{SqliteStore, Store};
use alibi_proto::{
    clock::{BootBegin, ClockReading, Difference},
    coverage::{CoverageChange, Facet, Grade, Scope},
    event::{Batch, Event, EventKind},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    host::HostDescription,
    id::{Epoch, HostBoot, Seq},
    name::{NameResolution, NameSource, RemoteName},
    process::{ProcessImage, ProcessRecord, User},
    time::{Moment, Timestamp},
};
use anyhow::{Result, anyhow};

use super::made::{self, Fleet, Made, PROGRAMS, SITES};
use crate::capture::measure::{self, own_cpu};

/// A host's clock is measured each time that so much of its time has passed: once for some batches, as it is where agents tell
/// something each second. What is known of it is wider here.
const MEASURED_EACH: Duration = Duration::from_secs(8 * 3_600);
/// How exactly.
const MEASURED_WITHIN_NS: i64 = 2_000_000;
/// An answer came so long before the connection.
const RESOLVED_BEFORE: Duration = Duration::from_millis(5);

/// What has been told of each host so far.
pub struct Filler {
    hosts: Vec<Told>,
}

#[derive(Clone, Debug)]
struct Told {
    number: u32,
    boot: HostBoot,
    flows: u64,
    next_seq: u64,
    /// A bit for each site whose name it has resolved.
    resolved: Vec<u64>,
    /// The last day whose programs it has told of.
    day: Option<u32>,
    measured: Option<Timestamp>,
}

/// What that has cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filled {
    /// Flow records.
    pub flows: u64,
    /// All events, these among them.
    pub events: u64,
    /// Seconds that have passed.
    pub seconds: f64,
    /// Seconds of processor time that the store had, its own threads with it.
    pub cpu_s: f64,
}

impl Filler {
    /// Of a fleet that has told nothing.
    pub fn new(fleet: &Fleet) -> Self {
        let told = |number| Told {
            number,
            boot: made::boot_of(number),
            flows: 0,
            next_seq: 1,
            resolved: vec![0; SITES.div_ceil(64) as usize],
            day: None,
            measured: None,
        };
        Self { hosts: (0..fleet.plan().hosts).map(told).collect() }
    }

    /// Each host says what it is, which is before all that is measured.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn introduce(&mut self, store: &SqliteStore, fleet: &Fleet, threads: usize) -> Result<()> {
        in_parts(&mut self.hosts, threads, |hosts| {
            hosts.iter_mut().try_for_each(|told| told.measure(store, fleet))
        })
    }

    /// How many flows of each host it has put there.
    pub fn reached(&self) -> u64 {
        self.hosts.first().map_or(0, |told| told.flows)
    }

    /// Goes on until each host has told so many flows, `together` in a batch; `threads` tell at the same time.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn until(
        &mut self,
        store: &SqliteStore,
        fleet: &Fleet,
        flows: u64,
        together: u64,
        threads: usize,
    ) -> Result<Filled> {
        let (began, cpu_ns) = (Instant::now(), measure::cpu_ns(std::process::id())?);
        let (made_ns, events, from) = (AtomicU64::new(0), AtomicU64::new(0), self.reached());
        in_parts(&mut self.hosts, threads, |hosts| {
            tell(store, fleet, hosts, flows, together, &made_ns, &events)
        })?;
        let cpu_ns = measure::cpu_ns(std::process::id())? - cpu_ns;
        Ok(Filled {
            flows: (self.reached() - from) * self.hosts.len() as u64,
            events: events.into_inner(),
            seconds: began.elapsed().as_secs_f64(),
            cpu_s: cpu_ns.saturating_sub(made_ns.into_inner()) as f64 / 1e9,
        })
    }
}

/// Each of the threads has some of the hosts.
fn in_parts(
    hosts: &mut [Told],
    threads: usize,
    each: impl Fn(&mut [Told]) -> Result<()> + Sync,
) -> Result<()> {
    let part = hosts.len().div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        let parts: Vec<_> = hosts.chunks_mut(part).map(|hosts| scope.spawn(|| each(hosts))).collect();
        let done = |part: thread::ScopedJoinHandle<'_, Result<()>>| {
            part.join().unwrap_or_else(|_| Err(anyhow!("whoever told has panicked")))
        };
        parts.into_iter().try_for_each(done)
    })
}

/// All of these hosts, stretch by stretch.
fn tell(
    store: &SqliteStore,
    fleet: &Fleet,
    hosts: &mut [Told],
    until: u64,
    together: u64,
    made_ns: &AtomicU64,
    events: &AtomicU64,
) -> Result<()> {
    while hosts.first().is_some_and(|told| told.flows < until) {
        for told in &mut *hosts {
            let to = (told.flows + together.max(1)).min(until);
            told.measure(store, fleet)?;
            let began = own_cpu();
            let batch = told.batch(fleet, to);
            made_ns.fetch_add((own_cpu() - began).as_nanos() as u64, Ordering::Relaxed);
            events.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
            store.commit(made::host_of(told.number), &batch, fleet.reached(to))?;
        }
    }
    // Once more, so that what was told last is between two measurements.
    hosts.iter_mut().try_for_each(|told| told.measure_now(store, fleet))
}

impl Told {
    /// As the collector does each time that it hears of a host.
    fn measure(&mut self, store: &SqliteStore, fleet: &Fleet) -> Result<()> {
        let now = fleet.reached(self.flows);
        match self.measured.is_some_and(|measured| now.since(measured) < MEASURED_EACH) {
            true => Ok(()),
            false => self.measure_now(store, fleet),
        }
    }

    fn measure_now(&mut self, store: &SqliteStore, fleet: &Fleet) -> Result<()> {
        let now = fleet.reached(self.flows);
        let address = made::host_of(self.number).to_string();
        if self.measured.is_none() {
            store.add_agent(&address)?;
        }
        let booted = fleet.booted();
        let description = HostDescription {
            host: made::host_of(self.number),
            name: format!("laptop-{:05}", self.number),
            os: "linux".to_owned(),
            os_version: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            machine_id: None,
            boot_id: made::BOOT.to_owned(),
            booted,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            users: Vec::new(),
            sources: Vec::new(),
            epoch: Epoch(1),
            first_seq: Seq::FIRST,
            next_seq: Seq(self.next_seq),
        };
        let difference = booted.as_nanos_i64();
        let reading = ClockReading {
            boot_id: made::BOOT.to_owned(),
            boot_ns: moment(fleet, now).boot_ns,
            difference: Difference::between(difference - MEASURED_WITHIN_NS, difference + MEASURED_WITHIN_NS),
            measured: now,
            shared: None,
            epoch: Epoch(1),
            begins: Some(vec![BootBegin { boot_id: made::BOOT.to_owned(), first: Seq::FIRST }]),
        };
        store.describe(&address, &description, Some(&reading), now)?;
        self.measured = Some(now);
        Ok(())
    }

    /// What comes next, up to the flow in this place.
    fn batch(&mut self, fleet: &Fleet, to: u64) -> Batch {
        let mut events = Vec::with_capacity((to - self.flows) as usize + 16);
        if self.flows == 0 {
            let from = fleet.plan().begins;
            for facet in Facet::ALL {
                let grade = Grade::Complete;
                let scope = Some(scope(facet));
                let change = CoverageChange { facet, grade, from, to: None, scope, announced_from: None };
                self.event(&mut events, fleet, from, EventKind::CoverageChanged(change));
            }
        }
        for flow in self.flows..to {
            let made = fleet.flow(self.number, flow);
            if self.day != Some(made.day) {
                self.day = Some(made.day);
                let started = fleet.day(made.day);
                for program in 0..PROGRAMS {
                    let record = self.program(started, made.day, program);
                    self.event(&mut events, fleet, started, EventKind::ProcessStarted(Box::new(record)));
                }
            }
            if let Some(site) = made.site
                && self.resolves(site)
            {
                let at = made.first.saturating_sub(RESOLVED_BEFORE);
                self.event(&mut events, fleet, at, EventKind::NameResolved(Box::new(resolution(site, at))));
            }
            let record = self.record(fleet.day(made.day), flow, &made);
            self.event(&mut events, fleet, made.last, EventKind::Flow(Box::new(record)));
        }
        self.flows = to;
        let until = fleet.reached(to);
        Batch {
            epoch: Epoch(1),
            hole: None,
            events,
            link: None,
            watermark: Some(until),
            clock: Some(moment(fleet, until)),
        }
    }

    fn event(&mut self, events: &mut Vec<Event>, fleet: &Fleet, at: Timestamp, kind: EventKind) {
        events.push(Event { seq: Seq(self.next_seq), recorded: moment(fleet, at), kind });
        self.next_seq += 1;
    }

    /// Whether it has not resolved the name before.
    fn resolves(&mut self, site: u32) -> bool {
        let (word, bit) = (&mut self.resolved[site as usize / 64], 1_u64 << (site % 64));
        let is_first = *word & bit == 0;
        *word |= bit;
        is_first
    }

    fn program(&self, started: Timestamp, day: u32, program: u32) -> ProcessRecord {
        let pid = made::pid_of(day, program);
        ProcessRecord {
            uid: self.boot.process(pid, started.as_nanos()),
            pid,
            parent: None,
            parent_pid: Some(1),
            started,
            already_running: false,
            image: ProcessImage {
                path: Some(format!("/usr/bin/program-{program}")),
                name: format!("program-{program}"),
                arguments: vec![format!("/usr/bin/program-{program}"), "--quiet".to_owned()],
                user: Some(User { id: "1000".to_owned(), name: Some(format!("user-{}", self.number)) }),
                ..ProcessImage::default()
            },
        }
    }

    fn record(&self, day: Timestamp, flow: u64, made: &Made) -> FlowRecord {
        let remote = SocketAddr::new(made.remote.into(), made.port);
        let name = made.site.map_or_else(|| made::name_at(made.remote), made::name_of);
        let host = self.number.to_be_bytes();
        FlowRecord {
            connection: self.boot.connection(Protocol::Tcp, remote, made::cookie_of(flow)),
            process: Some(self.boot.process(made::pid_of(made.day, made.program), day.as_nanos())),
            attribution: Attribution::InKernel,
            protocol: Protocol::Tcp,
            direction: Direction::Outbound,
            local: SocketAddr::new([10, host[1], host[2], host[3]].into(), made.local_port),
            remote,
            opened: made.first,
            already_open: false,
            first: made.first,
            last: made.last,
            traffic: Some(Traffic {
                bytes_sent: made.sent,
                bytes_received: made.received,
                packets_sent: made.sent / 1_200 + 3,
                packets_received: made.received / 1_400 + 3,
                packets_retransmitted: 0,
            }),
            state: FlowState::Closed,
            end_reason: FlowEndReason::EndOfFlow,
            record: 0,
            interface: Some("wlan0".to_owned()),
            network_namespace: Some(4_026_531_840),
            round_trip: Some(Duration::from_micros(5_000 + made.sent)),
            remote_name: Some(RemoteName { name, source: NameSource::Dns }),
        }
    }
}

/// In about as many words as agents have.
fn scope(facet: Facet) -> Scope {
    Scope {
        source: "ebpf".to_owned(),
        covers: format!("{} of all network namespaces, as the kernel tells of each", facet.word()),
        cannot_see: "raw sockets, tunnels of the kernel and the traffic of virtual machines".to_owned(),
    }
}

fn moment(fleet: &Fleet, wall: Timestamp) -> Moment {
    Moment { wall, boot_ns: wall.as_nanos().saturating_sub(fleet.booted().as_nanos()) }
}

fn resolution(site: u32, at: Timestamp) -> NameResolution {
    NameResolution {
        at,
        name: made::name_of(site),
        aliases: Vec::new(),
        addresses: vec![made::address_of(site).into()],
        ttl_s: 300,
        server: SocketAddr::from(([10, 0, 0, 53], 53)),
        process: None,
        network_namespace: None,
    }
}
