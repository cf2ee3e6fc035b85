//! Questions about a fleet whose flows can be made again, and whether their answers are true.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, sync::Arc, thread, time::Duration};

use alibi_proto::{
    flow::Protocol,
    id::ConnectionUid,
    question::{Answer, HostAnswer, Verdict},
    time::Timestamp,
    window::Window,
    wire,
};
use anyhow::{Result, ensure};
use fastrand::Rng;
use serde::Serialize;

use super::made::{self, Fleet, Made};

/// Names can be proven from so long after recording began: programs are of the day before, and what they were told is of the
/// day before that.
const NAMES_PROVEN_AFTER: Duration = Duration::from_secs(2 * 86_400 + 3_600);
/// No clock is known worse than that.
const CLOCK_BOUND_MAX: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An address, 10 minutes, all hosts.
    Address,
    /// An address that nobody talked to, 10 minutes, all hosts.
    Nobody,
    /// A network of 16 bits, an hour, all hosts.
    Network,
    /// A name, 10 minutes, all hosts.
    Name,
    /// An address, a day, one host.
    OneHost,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 5] = [Self::Address, Self::Nobody, Self::Network, Self::Name, Self::OneHost];

    const fn length(self) -> Duration {
        match self {
            Self::Address | Self::Nobody | Self::Name => Duration::from_secs(600),
            Self::Network => Duration::from_secs(3_600),
            Self::OneHost => Duration::from_secs(86_400),
        }
    }

    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Address => "an address, 10 minutes, all hosts",
            Self::Nobody => "an address that nobody talked to, 10 minutes, all hosts",
            Self::Network => "a /16, an hour, all hosts",
            Self::Name => "a name, 10 minutes, all hosts",
            Self::OneHost => "an address, a day, one host",
        }
    }
}

/// A question.
#[derive(Clone, Debug)]
pub struct Case {
    /// Of which kind.
    pub kind: Kind,
    /// The lowest address that is meant.
    pub low: Ipv4Addr,
    /// And the highest.
    pub high: Ipv4Addr,
    /// What it is called, if it is asked for by name.
    pub name: Option<String>,
    /// When.
    pub window: Window,
    /// One host, or all of them.
    pub host: Option<u32>,
}

impl Case {
    /// Some questions of a kind, about what happened until an instant; the same of the same seed.
    ///
    /// # Errors
    /// When less has happened than they ask about.
    pub fn some(fleet: &Fleet, kind: Kind, until: Timestamp, count: usize) -> Result<Vec<Self>> {
        let mut rng = Rng::with_seed(fleet.plan().seed ^ kind as u64);
        let begins = fleet.plan().begins;
        let length = kind.length().min(until.since(begins) / 2);
        let last_from = until.saturating_sub(length + CLOCK_BOUND_MAX).as_nanos();
        ensure!(last_from > begins.as_nanos(), "nothing has happened yet");
        let case = |_| {
            let from = Timestamp::from_nanos(rng.u64(begins.as_nanos()..last_from));
            let window = Window::new(from, from.saturating_add(length))?;
            let site = fleet.some_site(&mut rng);
            let address = made::address_of(site);
            let (low, high) = match kind {
                Kind::Nobody => {
                    let nobody = made::nobodys_address(&mut rng);
                    (nobody, nobody)
                }
                Kind::Network => {
                    let network = u32::from(address) & 0xFFFF_0000;
                    (Ipv4Addr::from(network), Ipv4Addr::from(network | 0xFFFF))
                }
                _ => (address, address),
            };
            let name = (kind == Kind::Name).then(|| made::name_of(site));
            let host = (kind == Kind::OneHost).then(|| rng.u32(0..fleet.plan().hosts));
            Ok(Self { kind, low, high, name, window, host })
        };
        (0..count).map(case).collect()
    }

    /// As it is sent.
    pub fn to_wire(&self) -> wire::WhoRequest {
        let target = match (&self.name, self.kind) {
            (Some(name), _) => name.clone(),
            (None, Kind::Network) => format!("{}/16", self.low),
            _ => self.low.to_string(),
        };
        let question = wire::Question {
            target,
            from_ns: self.window.from().as_nanos(),
            to_ns: self.window.to().as_nanos(),
            port: None,
            protocol: wire::Protocol::Unspecified.into(),
            addresses: Vec::new(),
        };
        let hosts = self.host.iter().map(|host| made::host_of(*host).to_string()).collect();
        let scope = Some(wire::HostScope { hosts, ..Default::default() });
        wire::WhoRequest { question: Some(question), scope }
    }

    /// Whether this end is one that is meant. Who asks by name means its address, whoever else is there.
    pub fn is_meant(&self, remote: Ipv4Addr) -> bool {
        (self.low..=self.high).contains(&remote)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let question = self.to_wire().question.unwrap_or_default();
        write!(f, "`who {} --from {} --to {}", question.target, self.window.from(), self.window.to())?;
        match self.host {
            Some(host) => write!(f, " --host {}`", made::host_of(host)),
            None => f.write_str("`"),
        }
    }
}

/// The flows that a question may mean, of each host that has any: those in the window, and those that some clock may have put
/// there.
#[derive(Debug, Default)]
pub struct Truth {
    flows: BTreeMap<u32, Vec<(ConnectionUid, Made)>>,
}

impl Truth {
    /// Makes all flows near the window again, of every host.
    ///
    /// # Errors
    /// When the window has no room around it.
    pub fn of(fleet: &Arc<Fleet>, case: &Case) -> Result<Self> {
        let window = case.window;
        let wide = Window::new(
            window.from().saturating_sub(CLOCK_BOUND_MAX),
            window.to().saturating_add(CLOCK_BOUND_MAX),
        )?;
        let hosts: Vec<u32> = case.host.map_or_else(|| (0..fleet.plan().hosts).collect(), |host| vec![host]);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let parts = thread::scope(|scope| {
            let made: Vec<_> = hosts
                .chunks(hosts.len().div_ceil(threads).max(1))
                .map(|hosts| scope.spawn(move || meant(fleet, case, wide, hosts)))
                .collect();
            made.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        let mut flows = BTreeMap::new();
        for part in parts {
            flows.extend(part.map_err(|_| anyhow::anyhow!("whoever made them again has panicked"))?);
        }
        Ok(Self { flows })
    }

    /// How many of them are alive in the window itself.
    pub fn count(&self, window: Window) -> u64 {
        let alive = self.flows.values().flatten().filter(|(_, made)| window.overlaps(made.first, made.last));
        alive.count() as u64
    }

    /// What is wrong with an answer.
    pub fn faults(&self, fleet: &Fleet, case: &Case, answer: &Answer) -> Vec<String> {
        let mut faults = Vec::new();
        let asked = case.host.map_or(fleet.plan().hosts, |_| 1) as usize;
        let mut numbers: Vec<_> = answer.hosts.iter().filter_map(|host| host.host).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() != asked || answer.hosts.len() != asked {
            faults.push(format!("{case}: {} hosts of {asked} are answered for", numbers.len()));
        }
        for host in &answer.hosts {
            let number = host.host.map(made::number_of);
            let none = Vec::new();
            let flows = number.and_then(|number| self.flows.get(&number)).unwrap_or(&none);
            if let Err(fault) = check(fleet, case, flows, host) {
                faults.push(format!("{case}: {}: {fault}", host.name));
            }
        }
        faults
    }
}

fn meant(fleet: &Fleet, case: &Case, wide: Window, hosts: &[u32]) -> Vec<(u32, Vec<(ConnectionUid, Made)>)> {
    let near = fleet.near(wide);
    let of_host = |host: &u32| {
        let boot = made::boot_of(*host);
        let flows = near.clone().filter_map(|flow| {
            let made = fleet.flow(*host, flow);
            (case.is_meant(made.remote) && wide.overlaps(made.first, made.last)).then(|| {
                let remote = (made.remote, made.port).into();
                (boot.connection(Protocol::Tcp, remote, made::cookie_of(flow)), made)
            })
        });
        let flows: Vec<_> = flows.collect();
        (!flows.is_empty()).then_some((*host, flows))
    };
    hosts.iter().filter_map(of_host).collect()
}

/// Holds the answer for a host against the flows that may be meant.
fn check(fleet: &Fleet, case: &Case, flows: &[(ConnectionUid, Made)], host: &HostAnswer) -> Result<()> {
    let bound = host.clock.map(|clock| Duration::from_nanos(clock.bound_ns));
    let bound = bound.filter(|bound| *bound < CLOCK_BOUND_MAX);
    let Some(bound) = bound else {
        anyhow::bail!("its clock is told to be off by {:?}", host.clock);
    };
    let (from, to) = (case.window.from(), case.window.to());
    let certain =
        |made: &Made| made.first.saturating_add(bound) < to && made.last >= from.saturating_add(bound);
    let possible =
        |made: &Made| made.first < to.saturating_add(bound) && made.last.saturating_add(bound) >= from;
    let talked = flows.iter().any(|(_, made)| certain(made));
    let maybe = flows.iter().any(|(_, made)| possible(made));
    let names_proven = case.name.is_none() || from >= fleet.plan().begins.saturating_add(NAMES_PROVEN_AFTER);
    let is_true = match host.verdict {
        Verdict::Talked => maybe,
        Verdict::Clear => !maybe,
        Verdict::Unknown => !talked && (maybe || !names_proven),
    };
    ensure!(
        is_true,
        "{} where {} flows are meant, {} of them for certain; gaps {:?}",
        host.verdict.word(),
        flows.len(),
        flows.iter().filter(|(_, made)| certain(made)).count(),
        host.gaps.first()
    );
    let mut missing: BTreeMap<ConnectionUid, &Made> = flows.iter().map(|(uid, made)| (*uid, made)).collect();
    for process in &host.processes {
        for connection in &process.connections {
            let made = missing.remove(&connection.flow.connection);
            let Some(made) = made.filter(|made| possible(made)) else {
                anyhow::bail!("a connection to {} that was not there, or twice", connection.flow.remote);
            };
            let pid = process.life.as_ref().map(|life| life.record.pid);
            ensure!(
                pid == Some(made::pid_of(made.day, made.program)),
                "{pid:?} as the owner of a connection of {}",
                made::pid_of(made.day, made.program)
            );
        }
    }
    let missing = missing.values().filter(|made| certain(made)).count();
    ensure!(
        missing == 0 || host.records_left_out > 0,
        "{missing} connections are missing, and none is said to be left out"
    );
    Ok(())
}
