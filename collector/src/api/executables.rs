//! The executables that hosts saw first in a window.

use std::{collections::HashMap, time::Duration};

use alibi_proto::{
    coverage::Facet,
    id::HostId,
    prevalence::{Identity, Instant, Novelty, RecordedBefore, Times},
    time::Timestamp,
    window::Window,
    wire,
};
use tonic::Status;

use super::{
    Answered, Service, about,
    novelty::{KnownHost, own_window},
    store_status,
};
use crate::{
    clock,
    store::{Bounded, FirstSeen, FollowedAgent, SightingOn, StoreError},
};

/// Executables that an answer lists.
const LISTED_MAX: u32 = 1_000;
const LISTED: u32 = 100;

/// One that is listed.
struct Listed {
    /// By the collector's clock.
    first: Timestamp,
    host: HostId,
    seen: FirstSeen,
}

impl Service {
    pub(super) async fn answer_executables(
        &self,
        request: wire::ExecutablesRequest,
    ) -> Result<Answered<wire::ExecutablesResponse>, Status> {
        let window = self.window(request.from_ns, request.to_ns)?;
        self.await_window(request.scope.clone(), window).await?;
        self.blocking(move |service| service.executables(request, window)).await
    }

    /// A window that can be asked about.
    pub(super) fn window(&self, from_ns: u64, to_ns: u64) -> Result<Window, Status> {
        Window::new(Timestamp::from_nanos(from_ns), Timestamp::from_nanos(to_ns))
            .and_then(|window| window.not_wholly_in_the_future(clock::now()))
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }

    fn executables(
        &self,
        request: wire::ExecutablesRequest,
        window: Window,
    ) -> Result<Answered<wire::ExecutablesResponse>, Status> {
        let limit = listed(request.limit, LISTED, LISTED_MAX)?;
        let recorded_for = request.recorded_for_ns.map(Duration::from_nanos);
        // How far each host is known is read before what it saw, and how well it was recorded after that.
        let agents = self.in_scope(request.scope.clone(), Some(window))?;
        let fleet = self.known_fleet().map_err(store_status)?;
        let mut hosts = Vec::with_capacity(agents.len());
        let (mut all, mut left_out) = (Vec::new(), 0);
        for agent in &agents {
            let Some(host) = self.known_host(agent).map_err(store_status)? else {
                hosts.push(never_answered(agent));
                continue;
            };
            let own = own_window(&host.clock, window);
            let seen = self.store.first_seen(host.id, own, limit).map_err(store_status)?;
            let before = self.before(&host, window, recorded_for).map_err(store_status)?;
            left_out += seen.left_out;
            all.extend(of_host(&host, seen, window, request.only_new.then_some(&before)));
            hosts.push(self.recorded(&host, window, &before, Facet::Processes).map_err(store_status)?);
            left_out += cut(&mut all, limit);
        }
        let mut sightings: HashMap<&Identity, Vec<SightingOn>> = HashMap::new();
        for listed in &all {
            let identity = &listed.seen.identity;
            if !sightings.contains_key(identity) {
                sightings.insert(identity, self.store.sightings(identity).map_err(store_status)?);
            }
        }
        let before = self.fleet_before(&fleet, window, recorded_for).map_err(store_status)?;
        let mut executables = Vec::with_capacity(all.len());
        for listed in &all {
            let (identity, of) = (&listed.seen.identity, &sightings[&listed.seen.identity]);
            let prevalence = self
                .prevalence(identity, of, listed.host, &fleet, Some((window, &before)))
                .map_err(store_status)?;
            let host = fleet.host(listed.host);
            let run = host.map(|host| self.was_run(host, window, &listed.seen)).transpose();
            executables.push(wire::SeenExecutable {
                host: listed.host.as_bytes().to_vec(),
                host_name: host.map_or_else(|| listed.host.to_string(), |host| host.name.clone()),
                prevalence: Some(prevalence),
                paths: listed.seen.paths.clone(),
                more_paths: listed.seen.more_paths,
                about: Some(listed.seen.about.clone().into()),
                run: run.map_err(store_status)?.unwrap_or(wire::RunKind::Unknown).into(),
            });
        }
        let ids = agents.iter().filter_map(|agent| Some(agent.host.as_ref()?.0.host)).collect();
        Ok(Answered {
            rows: executables.len() as u64,
            about: about(request.scope.as_ref(), ids),
            response: wire::ExecutablesResponse {
                executables,
                left_out,
                hosts,
                fleet_unproven: before.unproven,
                fleet_problem: before.problem,
            },
        })
    }

    /// Whether it was run until the end of the window.
    fn was_run(
        &self,
        host: &KnownHost,
        window: Window,
        seen: &FirstSeen,
    ) -> Result<wire::RunKind, StoreError> {
        if seen.sighting.run.is_some() {
            return Ok(wire::RunKind::Run);
        }
        let (Some(Times { first, .. }), own) = (seen.sighting.written, own_window(&host.clock, window))
        else {
            return Ok(wire::RunKind::Unknown);
        };
        let Ok(since) = Window::new(first, own.to()) else { return Ok(wire::RunKind::Unknown) };
        let gaps =
            self.store.coverage(host.id, Facet::Processes)?.gaps(Facet::Processes, since, host.known_until);
        Ok(if gaps.is_empty() { wire::RunKind::NotRun } else { wire::RunKind::Unknown })
    }
}

/// How many are to be listed.
pub(super) fn listed(asked: u32, default: u32, max: u32) -> Result<usize, Status> {
    match asked {
        0 => Ok(default as usize),
        asked if asked <= max => Ok(asked as usize),
        asked => Err(Status::invalid_argument(format!(
            "{asked} are more than an answer lists: --limit takes at most {max}; ask about fewer hosts, or a shorter window"
        ))),
    }
}

/// What a host saw first in the window; with `before`, only what is proven to be new there.
fn of_host(
    host: &KnownHost,
    Bounded { rows, .. }: Bounded<FirstSeen>,
    window: Window,
    only_new: Option<&RecordedBefore>,
) -> Vec<Listed> {
    let listed = |seen: FirstSeen| {
        let own = seen.sighting.times()?.first;
        let instant = Instant::of(&host.clock, own);
        if instant.latest < window.from() || instant.earliest >= window.to() {
            return None;
        }
        let is_new = |before: &RecordedBefore| {
            let problem = before.problem.as_deref().or(seen.identity.problem());
            Novelty::of(instant, window, problem) == Novelty::New
        };
        let is_listed = only_new.is_none_or(is_new);
        is_listed.then(|| Listed { first: instant.told(own), host: host.id, seen })
    };
    rows.into_iter().filter_map(listed).collect()
}

/// Keeps the newest; how many those are that go.
fn cut(all: &mut Vec<Listed>, limit: usize) -> u64 {
    all.sort_by(|one, other| {
        other
            .first
            .cmp(&one.first)
            .then_with(|| (one.host, &one.seen.identity).cmp(&(other.host, &other.seen.identity)))
    });
    let gone = all.len().saturating_sub(limit);
    all.truncate(limit);
    gone as u64
}

/// A host of which nobody knows.
fn never_answered(agent: &FollowedAgent) -> wire::HostRecorded {
    wire::HostRecorded {
        host_name: agent.address.clone(),
        problem: Some("this host has never answered".to_owned()),
        ..wire::HostRecorded::default()
    }
}
