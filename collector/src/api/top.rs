//! Remotes, processes and hosts by what their connections in a window come to.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use alibi_proto::{
    coverage::Facet,
    id::{HostId, ProcessUid},
    prevalence::{Identity, Instant, RecordedBefore, Times},
    process::ProcessLife,
    question::{NAME_ADDRESSES_MAX, NamedRemotes, Question},
    time::Timestamp,
    window::Window,
    wire,
};
use tonic::Status;

use super::{
    Answered, Service, about,
    executables::listed,
    invalid,
    novelty::{KnownHost, own_window},
    store_status,
};
use crate::{
    store::{Damage, FollowedAgent, HostQuestion, StoreError, Visit},
    totals::{Tally, Total},
};

/// Rows that an answer lists.
const LISTED_MAX: u32 = 1_000;
const LISTED: u32 = 20;
/// Names and ports of a remote that are listed.
const NAMES_MAX: usize = 8;
const PORTS_MAX: usize = 8;
/// Hosts that were not recorded completely that are listed.
const INCOMPLETE_MAX: usize = 64;

/// What is listed.
#[derive(Clone, Copy)]
struct Listing {
    window: Window,
    limit: usize,
    /// By what rows are sorted.
    by: fn(&Total) -> u64,
}

/// What connections come to.
struct Sums<'a> {
    /// Each with its host, where there is one only.
    rows: Vec<(Option<&'a KnownHost>, Total, wire::TopRow)>,
    all: Total,
    /// Records that are in no row.
    untold: u64,
    damage: Vec<Damage>,
}

/// The hosts that are asked, each with its window by its own clock.
struct InScope {
    hosts: Vec<(KnownHost, Window)>,
    agents: Vec<FollowedAgent>,
}

impl InScope {
    fn windows(&self) -> HashMap<HostId, Window> {
        self.hosts.iter().map(|(host, window)| (host.id, *window)).collect()
    }

    fn host(&self, id: HostId) -> Option<&KnownHost> {
        self.hosts.iter().map(|(host, _)| host).find(|host| host.id == id)
    }
}

impl Service {
    pub(super) async fn answer_top(
        &self,
        request: wire::TopRequest,
    ) -> Result<Answered<wire::TopResponse>, Status> {
        let (from, to) = match (&request.question, request.of()) {
            (Some(question), wire::TopOf::Processes) => (question.from_ns, question.to_ns),
            _ => (request.from_ns, request.to_ns),
        };
        let window = self.window(from, to)?;
        let mut request = request;
        if request.of() == wire::TopOf::Remotes {
            let word = request.process.clone();
            let (host, uid) = self.blocking(move |service| service.find_process(&word)).await?;
            request.process = uid.to_string();
            request.scope = Some(wire::HostScope { hosts: vec![host.to_string()], ..Default::default() });
        }
        self.await_window(request.scope.clone(), window).await?;
        self.blocking(move |service| service.top(request, window)).await
    }

    fn top(&self, request: wire::TopRequest, window: Window) -> Result<Answered<wire::TopResponse>, Status> {
        let limit = listed(request.limit, LISTED, LISTED_MAX)?;
        let by = match request.by() {
            wire::TopBy::Connections => |total: &Total| total.connections,
            _ => Total::bytes,
        };
        let listing = Listing { window, limit, by };
        match request.of() {
            wire::TopOf::Remotes => self.top_remotes(&request, listing),
            wire::TopOf::Processes => self.top_processes(request, listing),
            wire::TopOf::Hosts => self.top_hosts(&request, listing),
            wire::TopOf::Unspecified => Err(Status::invalid_argument("what of? remotes, processes or hosts")),
        }
    }

    fn top_hosts(
        &self,
        request: &wire::TopRequest,
        listing: Listing,
    ) -> Result<Answered<wire::TopResponse>, Status> {
        let scope = self.hosts_in(request.scope.clone(), listing.window)?;
        let windows = scope.windows();
        let mut tally: Tally<HostId> = Tally::default();
        let asked: Vec<(HostId, Window)> = windows.iter().map(|(host, window)| (*host, *window)).collect();
        let damage = self.store.visit(&Visit::All(&asked), &mut |host, flow| {
            tally.add(host, flow, windows[&host]);
        });
        let damage = damage.map_err(store_status)?;
        let (all, untold) = (tally.all().clone(), tally.untold());
        let rows = tally.into_groups().map(|(host, total)| {
            let row =
                wire::TopRow { hosts: 1, host: Some(host.as_bytes().to_vec()), ..wire::TopRow::default() };
            (scope.host(host), total, row)
        });
        let sums = Sums { rows: rows.collect(), all, untold, damage };
        self.answer(&request.scope, &scope, listing, sums)
    }

    fn top_remotes(
        &self,
        request: &wire::TopRequest,
        listing: Listing,
    ) -> Result<Answered<wire::TopResponse>, Status> {
        let (host, uid) = self.find_process(&request.process)?;
        let scope = self.hosts_in(request.scope.clone(), listing.window)?;
        let own = scope.windows().get(&host).copied().unwrap_or(listing.window);
        let mut tally: Tally<IpAddr> = Tally::default();
        let mut called: HashMap<IpAddr, (BTreeSet<String>, BTreeSet<u16>)> = HashMap::new();
        let damage = self.store.visit(&Visit::Process(host, uid, own), &mut |_, flow| {
            let address = flow.remote.ip();
            tally.add(address, flow, own);
            if called.len() >= crate::totals::GROUPS_MAX && !called.contains_key(&address) {
                return;
            }
            let (names, ports) = called.entry(address).or_default();
            if names.len() < NAMES_MAX
                && let Some(name) = &flow.remote_name
            {
                names.insert(name.name.clone());
            }
            if ports.len() < PORTS_MAX {
                ports.insert(flow.remote.port());
            }
        });
        let damage = damage.map_err(store_status)?;
        let (all, untold) = (tally.all().clone(), tally.untold());
        let rows = tally.into_groups().map(|(address, total)| {
            let (names, ports) = called.remove(&address).unwrap_or_default();
            let row = wire::TopRow {
                remote: Some(address.to_string()),
                names: names.into_iter().collect(),
                ports: ports.into_iter().map(u32::from).collect(),
                hosts: 1,
                processes: 1,
                ..wire::TopRow::default()
            };
            (scope.host(host), total, row)
        });
        let rows = rows.collect();
        let sums = Sums { rows, all, untold, damage };
        self.answer(&request.scope, &scope, listing, sums)
    }

    fn top_processes(
        &self,
        request: wire::TopRequest,
        listing: Listing,
    ) -> Result<Answered<wire::TopResponse>, Status> {
        let question = Question::try_from(request.question).map_err(invalid)?;
        let scope = self.hosts_in(request.scope.clone(), listing.window)?;
        let remotes = self.remotes(&question).map_err(store_status)?;
        let asked: Vec<(HostId, Question, NamedRemotes)> = scope
            .hosts
            .iter()
            .map(|(host, own)| self.asked(&question, &remotes, host.id, *own))
            .collect::<Result<_, _>>()
            .map_err(store_status)?;
        let questions: Vec<HostQuestion<'_>> = asked
            .iter()
            .map(|(host, question, remotes)| HostQuestion { host: *host, question, remotes })
            .collect();
        let windows = scope.windows();
        let mut tally: Tally<(HostId, Option<ProcessUid>)> = Tally::default();
        let damage = self.store.visit(&Visit::Asked(&questions), &mut |host, flow| {
            tally.add((host, flow.process), flow, windows[&host]);
        });
        let damage = damage.map_err(store_status)?;
        let (all, untold) = (tally.all().clone(), tally.untold());
        let rows = self.by_executable(tally, &windows).map_err(store_status)?;
        let rows =
            rows.into_iter().map(|(host, total, row)| (host.and_then(|host| scope.host(host)), total, row));
        let sums = Sums { rows: rows.collect(), all, untold, damage };
        self.answer(&request.scope, &scope, listing, sums)
    }

    /// What a host is asked, in its own time.
    fn asked(
        &self,
        question: &Question,
        fleet: &NamedRemotes,
        host: HostId,
        window: Window,
    ) -> Result<(HostId, Question, NamedRemotes), StoreError> {
        let mut remotes = fleet.clone();
        if let Some(name) = question.target.name() {
            let mut found = self.store.server_names(&[(host, window.to())], name, NAME_ADDRESSES_MAX)?;
            remotes.hellos = found.remove(&host).transpose()?.unwrap_or_default().rows;
        }
        Ok((host, Question { target: question.target.clone(), window }, remotes))
    }

    /// Processes with one executable together, on whichever host; those without an owner, too. The host is told where there is
    /// one only.
    fn by_executable(
        &self,
        tally: Tally<(HostId, Option<ProcessUid>)>,
        windows: &HashMap<HostId, Window>,
    ) -> Result<Vec<(Option<HostId>, Total, wire::TopRow)>, StoreError> {
        let mut programs: HashMap<Option<Identity>, Together> = HashMap::new();
        for ((host, uid), total) in tally.into_groups() {
            let until = windows.get(&host).map_or(Timestamp::MAX, |window| window.to());
            let life = match uid {
                Some(uid) => self.store.process(host, uid, until)?,
                None => None,
            };
            let identity = life.as_ref().map(|life| {
                let (path, name) = (life.image().path.as_deref(), &life.image().name);
                Identity::of(life.sha256(), None, path).unwrap_or_else(|| Identity::Path(name.clone()))
            });
            let together = programs.entry(identity).or_default();
            together.add(host, uid, &total);
            if let Some(image) = life.as_ref().map(ProcessLife::image) {
                // Of several, the first in their order: the same question has the same answer.
                let called = (image.path.clone(), image.name.clone());
                let is_first = together.called.as_ref().is_none_or(|known| called < *known);
                together.called = Some(called).filter(|_| is_first).or(together.called.take());
            }
        }
        let row = |(identity, together): (Option<Identity>, Together)| {
            let only = (together.hosts.len() == 1).then(|| together.hosts.iter().next().copied()).flatten();
            let (path, name) = together.called.unzip();
            let sha256 = identity.and_then(|identity| identity.sha256());
            let row = wire::TopRow {
                path: path.flatten(),
                name,
                sha256: sha256.map(|sha256| sha256.as_bytes().to_vec()),
                hosts: together.hosts.len() as u64,
                processes: together.processes,
                process_uid: together.last.map(|(_, uid)| uid.as_bytes().to_vec()),
                ..wire::TopRow::default()
            };
            (only, together.total, row)
        };
        Ok(programs.into_iter().map(row).collect())
    }

    fn hosts_in(&self, scope: Option<wire::HostScope>, window: Window) -> Result<InScope, Status> {
        let agents = self.in_scope(scope, Some(window))?;
        let hosts = agents.iter().filter_map(|agent| self.known_host(agent).transpose());
        let hosts = hosts.map(|host| {
            let host = host.map_err(store_status)?;
            let own = own_window(&host.clock, window);
            Ok((host, own))
        });
        Ok(InScope { hosts: hosts.collect::<Result<_, Status>>()?, agents })
    }

    fn answer(
        &self,
        asked: &Option<wire::HostScope>,
        scope: &InScope,
        listing: Listing,
        sums: Sums<'_>,
    ) -> Result<Answered<wire::TopResponse>, Status> {
        let Listing { window, limit, by } = listing;
        let Sums { mut rows, all, untold, damage } = sums;
        for Damage { from, to, reason } in &damage {
            tracing::error!(%from, %to, reason, "flow records are damaged");
        }
        // Sorted by what they are, too, so that the same question has the same answer.
        rows.sort_by(|(_, one, one_row), (_, other, other_row)| {
            let key = |row: &wire::TopRow| {
                (row.remote.clone(), row.path.clone(), row.host.clone(), row.sha256.clone())
            };
            by(other).cmp(&by(one)).then_with(|| key(one_row).cmp(&key(other_row)))
        });
        let rows_left_out = rows.len().saturating_sub(limit) as u64;
        rows.truncate(limit);
        let rows = rows.into_iter().map(|(host, total, row)| wire::TopRow {
            host: host.map(|host| host.id.as_bytes().to_vec()).or(row.host),
            host_name: host.map(|host| host.name.clone()),
            total: Some(told(&total, host)),
            ..row
        });
        let rows: Vec<wire::TopRow> = rows.collect();
        let (incomplete, incomplete_left_out) = self.incomplete(scope, window).map_err(store_status)?;
        Ok(Answered {
            rows: rows.len() as u64,
            about: about(asked.as_ref(), scope.hosts.iter().map(|(host, _)| host.id).collect()),
            response: wire::TopResponse {
                rows,
                rows_left_out,
                total: Some(told(&all, None)),
                records_untold: untold,
                damage: damage.into_iter().map(|damage| damage.reason).collect(),
                incomplete,
                incomplete_left_out,
            },
        })
    }

    /// The hosts of which connections may be missing.
    fn incomplete(
        &self,
        scope: &InScope,
        window: Window,
    ) -> Result<(Vec<wire::HostRecorded>, u64), StoreError> {
        let mut incomplete: Vec<wire::HostRecorded> = Vec::new();
        let nothing = RecordedBefore { since: None, problem: None };
        for (host, _) in &scope.hosts {
            incomplete.push(self.recorded(host, window, &nothing, Facet::Connections)?);
        }
        incomplete.retain(|host| !host.gaps.is_empty());
        let never = scope.agents.iter().filter(|agent| agent.host.is_none());
        incomplete.extend(never.map(|agent| wire::HostRecorded {
            host_name: agent.address.clone(),
            problem: Some("this host has never answered".to_owned()),
            ..wire::HostRecorded::default()
        }));
        let left_out = incomplete.len().saturating_sub(INCOMPLETE_MAX) as u64;
        incomplete.truncate(INCOMPLETE_MAX);
        Ok((incomplete, left_out))
    }
}

/// Processes of one executable.
#[derive(Default)]
struct Together {
    total: Total,
    hosts: HashSet<HostId>,
    processes: u64,
    /// Path and name.
    called: Option<(Option<String>, String)>,
    last: Option<(Timestamp, ProcessUid)>,
}

impl Together {
    fn add(&mut self, host: HostId, uid: Option<ProcessUid>, total: &Total) {
        self.total.merge(total);
        self.hosts.insert(host);
        self.processes += u64::from(uid.is_some());
        self.last = self.last.max(total.times.map(|times| times.last).zip(uid));
    }
}

/// In the collector's time, where it is of one host.
pub(super) fn told(total: &Total, host: Option<&KnownHost>) -> wire::Total {
    let times = total.times.map(|Times { first, last }| match host {
        Some(host) => {
            let told = |own| Instant::of(&host.clock, own).told(own);
            Times { first: told(first), last: told(last) }
        }
        None => Times { first, last },
    });
    wire::Total {
        connections: total.connections,
        connections_cut: total.connections_cut,
        records: total.records,
        bytes_sent: total.bytes_sent,
        bytes_received: total.bytes_received,
        bytes_sent_at_edges: total.bytes_sent_at_edges,
        bytes_received_at_edges: total.bytes_received_at_edges,
        unmeasured: total.unmeasured,
        first_ns: times.map_or(0, |times| times.first.as_nanos()),
        last_ns: times.map_or(0, |times| times.last.as_nanos()),
    }
}
