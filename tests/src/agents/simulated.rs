//! A simulated agent: a real one without a source. Its ring, its service and its link are the agent's own; into the ring goes
//! what an idle agent records, which is its canary's four ends of connections a minute, and each second it has seen all.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use alibi_agent::{
    boots, identity, labels,
    link::{Link, LinkStatus, Membership, certificates},
    recorder::{Acknowledged, Progress, labels_of},
    ring::{Options as Limits, Record, Ring},
    server::{Recorded, Service},
    sys::{self, HostFacts},
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    dial::Proxy,
    event::{Event, EventKind},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    host::{FacetCoverage, SourceDescription, UserPresence},
    id::{Epoch, HostBoot, HostId, ProcessUid},
    process::{ProcessImage, ProcessRecord, User},
    time::Moment,
    token::Token,
    wire,
};
use anyhow::{Context as _, Result};
use prost::Message as _;
use tokio::sync::watch;

/// Between two looks, as agents look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two flights of the canary.
const CANARY_LOOKS: u64 = 60;
/// The least that a ring takes.
const RING_BYTES: u64 = 512 << 10;
/// Processes that run as it is started.
const PROCESSES: u32 = 10;

/// One agent, which has enrolled.
pub struct Simulated {
    directory: PathBuf,
    ring: Ring,
    boot: HostBoot,
    progress: watch::Sender<Progress>,
    service: Service,
    /// How it stands with the collector.
    pub status: watch::Receiver<LinkStatus>,
}

impl Simulated {
    /// Enrols the host of this number, and makes what an agent has that has just been started on it. Its data is in
    /// `directory`.
    ///
    /// # Errors
    /// When the collector refuses, or its ring cannot be made.
    pub async fn enrol(directory: PathBuf, number: usize, token: &Token) -> Result<Self> {
        std::fs::create_dir(&directory)?;
        let host = identity::make(&directory)?;
        let name = format!("laptop-{number:05}");
        certificates::enrol(&directory, token, host, name.clone(), &Proxy::none(), sys::now().wall)
            .await
            .with_context(|| format!("{name} does not enrol"))?;
        Self::begin(directory, host, name)
    }

    fn begin(directory: PathBuf, host: HostId, name: String) -> Result<Self> {
        let now = sys::now();
        // Each is a machine of its own, with a clock that is not the collector's for all that the collector knows.
        let facts = HostFacts {
            name,
            os: "linux",
            os_version: "simulated".to_owned(),
            machine_id: Some(host.to_string()),
            boot_id: format!("boot of {host}"),
            booted: now.wall.saturating_sub(Duration::from_nanos(now.boot_ns)),
        };
        let (mut ring, recovery) = Ring::open(
            &directory.join("ring"),
            Limits::within(RING_BYTES),
            host,
            Epoch(now.wall.as_nanos()),
            labels_of,
        )?;
        let boots = boots::enter(&directory, &facts.boot_id, ring.epoch(), ring.next_seq(), recovery.boot);
        ring.begin_boot(boots::number(&facts.boot_id));
        let users = [UserPresence { user: user(), processes: PROCESSES }];
        let first = Progress { users: users.into(), ..Progress::default() };
        let (progress, recorded) = watch::channel(first);
        let recorded = Recorded {
            view: ring.view(),
            progress: recorded,
            acknowledged: Acknowledged::default(),
            boots: boots.into(),
        };
        let membership = Arc::new(Membership::new(directory.clone()));
        let status = membership.status();
        let boot = HostBoot::new(host, &facts.boot_id);
        let service = Service::new(host, facts, source(), recorded, membership);
        let mut simulated = Self { directory, ring, boot, progress, service, status };
        let first = simulated.first(now);
        simulated.record(first, now)?;
        Ok(simulated)
    }

    /// Calls home and looks each second, until `stop` says so.
    ///
    /// # Errors
    /// When the ring takes nothing more.
    pub async fn run(mut self, stop: watch::Receiver<bool>) -> Result<()> {
        let link =
            Link { directory: self.directory.clone(), proxy: Proxy::none(), service: self.service.clone() };
        let look = async {
            // Laptops do not look all at the same instant.
            tokio::time::sleep(LOOK_INTERVAL.mul_f64(fastrand::f64())).await;
            let mut looks = tokio::time::interval(LOOK_INTERVAL);
            let canary = fastrand::u64(..CANARY_LOOKS);
            for number in 0_u64.. {
                looks.tick().await;
                let now = sys::now();
                let seen = if number % CANARY_LOOKS == canary { self.canary(now) } else { Vec::new() };
                self.record(seen, now)?;
            }
            Ok(())
        };
        tokio::select! {
            () = link.run(stop) => Ok(()),
            looked = look => looked,
        }
    }

    /// As the recorder does: what was recorded is safe before anybody is told how far the recording is.
    fn record(&mut self, kinds: Vec<EventKind>, now: Moment) -> Result<()> {
        let mut seq = self.ring.next_seq();
        let mut records = Vec::new();
        for kind in kinds {
            let event = Event { seq, recorded: now, kind };
            records.push(Record {
                seq,
                speaks_from: event.speaks_from(),
                recorded: now.wall,
                labels: labels::of(&event),
                bytes: wire::Event::from(event).encode_to_vec(),
            });
            seq = seq.next();
        }
        if !records.is_empty() {
            self.ring.append(&records)?;
            self.ring.sync(now.wall, now)?;
        }
        self.progress.send_modify(|progress| {
            progress.next_seq = seq;
            progress.watermark = Some(now.wall);
            (progress.looked, progress.heard) = (now, now);
        });
        Ok(())
    }

    /// What an agent says as it begins: how well it records, and what runs already.
    fn first(&self, now: Moment) -> Vec<EventKind> {
        let grades = Facet::ALL.into_iter().map(|facet| {
            EventKind::CoverageChanged(CoverageChange {
                facet,
                grade: Grade::Complete,
                from: now.wall,
                to: None,
                scope: Some(scope()),
                announced_from: Some(self.ring.next_seq()),
            })
        });
        let processes = (1..=PROCESSES).map(|pid| {
            let name = format!("program-{pid}");
            let image = ProcessImage {
                path: Some(format!("/usr/bin/{name}")),
                arguments: vec![name.clone()],
                name,
                user: Some(user()),
                ..ProcessImage::default()
            };
            EventKind::ProcessStarted(Box::new(ProcessRecord {
                uid: self.process(pid),
                pid,
                parent: None,
                parent_pid: None,
                started: now.wall.saturating_sub(Duration::from_secs(60)),
                already_running: true,
                image,
            }))
        });
        grades.chain(processes).collect()
    }

    fn process(&self, pid: u32) -> ProcessUid {
        self.boot.process(pid, u64::from(pid))
    }

    /// A connection of the agent's to itself, and a datagram, both ends of each.
    fn canary(&self, now: Moment) -> Vec<EventKind> {
        let own = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ends = [
            (Protocol::Tcp, Direction::Outbound, 40_000, 41_000),
            (Protocol::Tcp, Direction::Inbound, 41_000, 40_000),
            (Protocol::Udp, Direction::Outbound, 42_000, 43_000),
            (Protocol::Udp, Direction::Inbound, 43_000, 42_000),
        ];
        let flow = |(protocol, direction, local, remote)| {
            let (local, remote) = (own(local), own(remote));
            EventKind::Flow(Box::new(FlowRecord {
                connection: self.boot.connection(protocol, remote, now.boot_ns),
                process: Some(self.process(1)),
                attribution: Attribution::InKernel,
                protocol,
                direction,
                local,
                remote,
                first: now.wall.saturating_sub(Duration::from_millis(1)),
                last: now.wall,
                traffic: Some(Traffic::default()),
                state: FlowState::Closed,
                end_reason: FlowEndReason::EndOfFlow,
                record: 0,
                interface: None,
                network_namespace: Some(1),
                opened: now.wall.saturating_sub(Duration::from_millis(1)),
                already_open: false,
                round_trip: None,
                remote_name: None,
            }))
        };
        ends.into_iter().map(flow).collect()
    }
}

fn user() -> User {
    User { id: "1000".to_owned(), name: Some("jdoe".to_owned()) }
}

fn scope() -> Scope {
    Scope {
        source: "ebpf".to_owned(),
        covers: "TCP and UDP of all network namespaces, as a real agent says it".to_owned(),
        cannot_see: "kernel tunnels, traffic of virtual machines, raw sockets".to_owned(),
    }
}

fn source() -> SourceDescription {
    let facet = |facet| FacetCoverage { facet, grade: Grade::Complete, scope: scope() };
    SourceDescription { name: "ebpf".to_owned(), facets: Facet::ALL.map(facet).to_vec(), caveat: None }
}
