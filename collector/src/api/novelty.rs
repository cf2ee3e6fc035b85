//! How common an executable is, and whether it was new: what hosts saw of it, in the collector's time, and how completely each
//! was recorded before.
//!
//! How far each host is known is read first, what was seen then, and the coverage last: what comes in between can only make
//! less of it new.

use std::{collections::HashMap, sync::Arc, time::Duration};

use alibi_proto::{
    clock::{HostClock, shifted},
    coverage::{Facet, Gap},
    host::HostDescription,
    id::HostId,
    prevalence::{Identity, Instant, Novelty, RecordedBefore, Times, recorded_before},
    time::Timestamp,
    window::Window,
    wire,
};

use super::Service;
use crate::{
    clock,
    store::{FollowedAgent, SightingOn, StoreError},
};

/// Gaps of a host that are listed.
const GAPS_LISTED_MAX: usize = 4;

/// A host that is followed.
pub(super) struct KnownHost {
    pub(super) id: HostId,
    pub(super) name: String,
    pub(super) known_until: Option<Timestamp>,
    pub(super) clock: Arc<HostClock>,
}

/// The hosts of the fleet, and how their clocks stand.
pub(super) struct KnownFleet {
    hosts: HashMap<HostId, KnownHost>,
    never_answered: u64,
}

/// How completely the fleet was recorded before a window.
pub(super) struct FleetBefore {
    pub(super) by_host: HashMap<HostId, RecordedBefore>,
    /// Hosts of which it is not proven what was not there, and why of the first.
    pub(super) unproven: u64,
    pub(super) problem: Option<String>,
}

impl KnownFleet {
    pub(super) fn host(&self, host: HostId) -> Option<&KnownHost> {
        self.hosts.get(&host)
    }
}

impl Service {
    /// The hosts that are followed now, and how far each is known.
    pub(super) fn known_fleet(&self) -> Result<KnownFleet, StoreError> {
        let agents = self.store.agents()?;
        let never_answered = agents.iter().filter(|agent| agent.host.is_none()).count() as u64;
        let hosts = agents.iter().filter_map(|agent| self.known_host(agent).transpose());
        let hosts = hosts.map(|host| host.map(|host| (host.id, host))).collect::<Result<_, _>>()?;
        Ok(KnownFleet { hosts, never_answered })
    }

    /// A host that has answered.
    pub(super) fn known_host(&self, agent: &FollowedAgent) -> Result<Option<KnownHost>, StoreError> {
        let Some((description, progress)) = &agent.host else { return Ok(None) };
        let HostDescription { host, name, .. } = &**description;
        let clock = Arc::new(self.store.host_clock(*host, clock::now())?);
        Ok(Some(KnownHost { id: *host, name: name.clone(), known_until: progress.known_until, clock }))
    }

    /// How a host was recorded before a window.
    pub(super) fn before(
        &self,
        host: &KnownHost,
        window: Window,
        recorded_for: Option<Duration>,
    ) -> Result<RecordedBefore, StoreError> {
        let before = match self.store.coverage(host.id, Facet::Processes) {
            Ok(processes) => recorded_before(&processes, &host.clock, window, recorded_for, host.known_until),
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, host = %host.id, "what is stored of a host is damaged");
                RecordedBefore { since: None, problem: Some(error.to_string()) }
            }
            Err(error) => return Err(error),
        };
        // What made room may have been seen within that time.
        let forgotten = self.store.sightings_forgotten(host.id)?;
        let may_be_forgotten = forgotten.filter(|until| before.since.is_none_or(|since| *until >= since));
        let problem = may_be_forgotten
            .map(|until| format!("what was last seen until {until} may have been forgotten to make room"));
        Ok(RecordedBefore { problem: before.problem.or(problem), ..before })
    }

    /// How all hosts were. To be called once it has been read what they saw.
    pub(super) fn fleet_before(
        &self,
        fleet: &KnownFleet,
        window: Window,
        recorded_for: Option<Duration>,
    ) -> Result<FleetBefore, StoreError> {
        let mut hosts: Vec<&KnownHost> = fleet.hosts.values().collect();
        hosts.sort_by_key(|host| (&host.name, host.id));
        let mut by_host = HashMap::with_capacity(hosts.len());
        let mut problem = None;
        for host in hosts {
            let before = self.before(host, window, recorded_for)?;
            if problem.is_none() {
                problem = before.problem.as_ref().map(|problem| format!("{}: {problem}", host.name));
            }
            by_host.insert(host.id, before);
        }
        let unproven = by_host.values().filter(|before| before.problem.is_some()).count() as u64;
        let unproven = unproven + fleet.never_answered;
        let never = || (fleet.never_answered > 0).then(|| "a host never answered".to_owned());
        let problem = problem.or_else(never).map(|first| match unproven {
            1 => format!("of 1 host it is not proven that it was not there: {first}"),
            many => format!("of {many} hosts it is not proven that it was not there; {first}"),
        });
        Ok(FleetBefore { by_host, unproven, problem })
    }

    /// How common an executable is, by what hosts saw of it; and, of a window, whether it was new.
    pub(super) fn prevalence(
        &self,
        identity: &Identity,
        sightings: &[SightingOn],
        host: HostId,
        fleet: &KnownFleet,
        new: Option<(Window, &FleetBefore)>,
    ) -> Result<wire::Prevalence, StoreError> {
        let mut told = wire::Prevalence {
            identified_by: wire::IdentifiedBy::from(identity.identified_by()).into(),
            sha256: identity.sha256().map(|sha256| sha256.as_bytes().to_vec()),
            hosts: sightings.len() as u64,
            hosts_known: fleet.hosts.len() as u64,
            ..wire::Prevalence::default()
        };
        let (mut run, mut written): (Option<Times>, Option<Times>) = (None, None);
        let (mut first, mut first_on_host): (Option<Instant>, Option<Instant>) = (None, None);
        for SightingOn { host: on, sighting } in sightings {
            let clock = match fleet.host(*on) {
                Some(host) => Arc::clone(&host.clock),
                None => Arc::new(self.store.host_clock(*on, clock::now())?),
            };
            let Some(times) = sighting.times() else { continue };
            let instant = Instant::of(&clock, times.first);
            first = Some(first.map_or(instant, |first| earlier(first, instant)));
            told.hosts_run += u64::from(sighting.run.is_some());
            told.hosts_unmeasured += u64::from(!instant.is_measured());
            let in_collectors = |times: Times| {
                let told = |own| Instant::of(&clock, own).told(own);
                Times { first: told(times.first), last: told(times.last) }
            };
            let (on_run, on_written) = (sighting.run.map(in_collectors), sighting.written.map(in_collectors));
            run = run.into_iter().chain(on_run).reduce(Times::and);
            written = written.into_iter().chain(on_written).reduce(Times::and);
            if *on == host {
                first_on_host = Some(instant);
                told.host_run = on_run.map(Into::into);
                told.host_written = on_written.map(Into::into);
            }
        }
        told.fleet_run = run.map(Into::into);
        told.fleet_written = written.map(Into::into);
        if let Some((window, before)) = new {
            let on_host = before.by_host.get(&host).map(|before| before.problem.as_deref());
            let on_host = on_host.unwrap_or(Some("the host is followed no longer"));
            let of = |first: Option<Instant>, problem: Option<&str>| {
                first.map(|first| Novelty::of(first, window, problem.or(identity.problem())).into())
            };
            told.on_host = of(first_on_host, on_host);
            told.in_fleet = of(first, before.problem.as_deref());
        }
        Ok(told)
    }

    /// How the processes of a host are recorded, before a window and in it.
    pub(super) fn recorded(
        &self,
        host: &KnownHost,
        window: Window,
        before: &RecordedBefore,
        facet: Facet,
    ) -> Result<wire::HostRecorded, StoreError> {
        let coverage = self.store.coverage(host.id, facet)?;
        let gaps = coverage.gaps(facet, own_window(&host.clock, window), host.known_until);
        Ok(wire::HostRecorded {
            host: host.id.as_bytes().to_vec(),
            host_name: host.name.clone(),
            since_ns: before.since.map(|since| Instant::of(&host.clock, since).told(since).as_nanos()),
            problem: before.problem.clone(),
            gaps: listed(gaps),
        })
    }
}

fn listed(gaps: Vec<Gap>) -> Vec<wire::Gap> {
    alibi_proto::coverage::at_most(gaps, GAPS_LISTED_MAX).into_iter().map(Into::into).collect()
}

/// The one that came first, or may have.
fn earlier(one: Instant, other: Instant) -> Instant {
    Instant { earliest: one.earliest.min(other.earliest), latest: one.latest.min(other.latest) }
}

/// All that may have been in a window, by a host's own clock.
pub(super) fn own_window(clock: &HostClock, window: Window) -> Window {
    let Some(difference) = clock.over(window).difference else { return window };
    let (from, to) = (shifted(window.from(), difference.least()), shifted(window.to(), difference.most()));
    Window::new(from, to).unwrap_or(window)
}
