//! One process: what it is, where it comes from and what it started, how common its executable is, and its connections over time.

use std::{collections::HashSet, time::Duration};

use alibi_proto::{
    coverage::Facet,
    flow::FlowRecord,
    id::{HostId, ProcessUid},
    name::NameSource,
    prevalence::Identity,
    process::ProcessLife,
    time::Timestamp,
    window::Window,
    wire,
};
use tonic::Status;

use super::{
    Service,
    answers::{CHILDREN_MAX, CONNECTIONS_MAX, clock_status},
    novelty::{KnownFleet, KnownHost, own_window},
    store_status,
    top::told,
};
use crate::{
    clock,
    store::{StoreError, Visit},
    totals::{Bucket, Buckets, Tally, Total},
};

/// Names that are listed of a process.
const NAMES_MAX: usize = 100;

impl Service {
    pub(super) fn process(&self, request: &wire::ProcessRequest) -> Result<wire::ProcessResponse, Status> {
        let window = match (request.from_ns, request.to_ns) {
            (None, None) => None,
            (Some(from), Some(to)) => Some(self.window(from, to)?),
            _ => return Err(Status::invalid_argument("a window has a beginning and an end: give both")),
        };
        let (host, uid) = self.find_process(&request.process)?;
        let fleet = self.known_fleet().map_err(store_status)?;
        let known = fleet.host(host);
        let own = match (window, known) {
            (Some(window), Some(known)) => Some(own_window(&known.clock, window)),
            (window, _) => window,
        };
        let until = own.map_or(Timestamp::MAX, |window| window.to());
        let life = self.store.process(host, uid, until).map_err(store_status)?;
        let life =
            life.ok_or_else(|| Status::not_found(format!("of the process {uid} only its end is on record")))?;
        let clock = self.store.host_clock(host, clock::now()).map_err(store_status)?;
        let children = self.store.children(host, uid, CHILDREN_MAX).map_err(store_status)?;
        let flows = self.store.flows_of_process(host, uid, CONNECTIONS_MAX).map_err(store_status)?;
        let over_time = self.over_time(host, uid, own, known).map_err(store_status)?;
        let recorded_for = request.recorded_for_ns.map(Duration::from_nanos);
        let common = self.common(&life, host, &fleet, window, recorded_for).map_err(store_status)?;
        let (prevalence, recorded) = common;
        let mut damage: Vec<String> = flows.damage.into_iter().map(|damage| damage.reason).collect();
        damage.extend(over_time.damage);
        damage.sort();
        damage.dedup();
        Ok(wire::ProcessResponse {
            host: host.as_bytes().to_vec(),
            host_name: known.map_or_else(|| host.to_string(), |known| known.name.clone()),
            ancestors: self.ancestors(host, &life)?.into_iter().map(Into::into).collect(),
            process: Some(life.into()),
            children: children.rows.into_iter().map(Into::into).collect(),
            connections: newest_of_each(flows.rows).map(Into::into).collect(),
            left_out: children.left_out + flows.left_out,
            clock: clock_status(&clock).map(Into::into),
            damage,
            prevalence,
            buckets: over_time.buckets,
            bucket_ns: over_time.bucket_ns,
            total: Some(over_time.total),
            names: over_time.names,
            names_left_out: over_time.names_left_out,
            recorded,
        })
    }

    /// How common its executable is; and with a window how its host was recorded before.
    fn common(
        &self,
        life: &ProcessLife,
        host: HostId,
        fleet: &KnownFleet,
        window: Option<Window>,
        recorded_for: Option<Duration>,
    ) -> Result<(Option<wire::Prevalence>, Option<wire::HostRecorded>), StoreError> {
        let image = life.image();
        let identity = Identity::of(life.sha256(), image.file, image.path.as_deref());
        let sightings = identity.as_ref().map(|identity| self.store.sightings(identity)).transpose()?;
        // Last, as for everything that is proven by it.
        let before = match window {
            Some(window) => Some((window, self.fleet_before(fleet, window, recorded_for)?)),
            None => None,
        };
        let new = before.as_ref().map(|(window, before)| (*window, before));
        let prevalence = match (&identity, &sightings) {
            (Some(identity), Some(sightings)) if !sightings.is_empty() => {
                Some(self.prevalence(identity, sightings, host, fleet, new)?)
            }
            _ => None,
        };
        let recorded = new.and_then(|(window, before)| {
            let known = fleet.host(host)?;
            Some(self.recorded(known, window, before.by_host.get(&host)?, Facet::Processes))
        });
        Ok((prevalence, recorded.transpose()?))
    }

    /// Its connections in the window, or all of them: first what they come to, then when that was.
    fn over_time(
        &self,
        host: HostId,
        uid: ProcessUid,
        window: Option<Window>,
        known: Option<&KnownHost>,
    ) -> Result<OverTime, StoreError> {
        let window = match window.map_or_else(|| Window::new(Timestamp::ZERO, Timestamp::MAX), Ok) {
            Ok(window) => window,
            Err(_) => return Ok(OverTime::default()),
        };
        let visit = Visit::Process(host, uid, window);
        let mut tally: Tally<Option<(String, NameSource)>> = Tally::default();
        let damage = self.store.visit(&visit, &mut |_, flow| {
            let name = flow.remote_name.as_ref().map(|name| (name.name.clone(), name.source));
            tally.add(name, flow, window);
        })?;
        let all = tally.all().clone();
        let mut names: Vec<_> =
            tally.into_groups().filter_map(|(name, total)| Some((name?, total))).collect();
        names.sort_by(|(one, one_total), (other, other_total)| {
            other_total.connections.cmp(&one_total.connections).then_with(|| one.cmp(other))
        });
        let names_left_out = names.len().saturating_sub(NAMES_MAX) as u64;
        names.truncate(NAMES_MAX);
        let (mut buckets, mut bucket_ns) = (Vec::new(), 0);
        if let Some(times) = all.times {
            let mut over = Buckets::over(times);
            self.store.visit(&visit, &mut |_, flow| over.add(flow))?;
            bucket_ns = u64::try_from(over.width().as_nanos()).unwrap_or(u64::MAX);
            let width = over.width();
            buckets = over.into_some().map(|bucket| bucket_told(&bucket, width)).collect();
        }
        let named = |((name, source), total): ((String, NameSource), Total)| wire::NameUsed {
            name: Some(alibi_proto::name::RemoteName { name, source }.into()),
            total: Some(told(&total, known)),
        };
        Ok(OverTime {
            total: told(&all, known),
            buckets,
            bucket_ns,
            names: names.into_iter().map(named).collect(),
            names_left_out,
            damage: damage.into_iter().map(|damage| damage.reason).collect(),
        })
    }
}

#[derive(Default)]
struct OverTime {
    total: wire::Total,
    buckets: Vec<wire::Bucket>,
    bucket_ns: u64,
    names: Vec<wire::NameUsed>,
    names_left_out: u64,
    damage: Vec<String>,
}

fn bucket_told(bucket: &Bucket, width: Duration) -> wire::Bucket {
    wire::Bucket {
        from_ns: bucket.from.as_nanos(),
        to_ns: bucket.from.saturating_add(width).as_nanos(),
        opened: bucket.opened,
        records: bucket.records,
        bytes_sent: bucket.bytes_sent,
        bytes_received: bucket.bytes_received,
    }
}

/// The newest record of each connection; newest first.
fn newest_of_each(flows: Vec<FlowRecord>) -> impl Iterator<Item = FlowRecord> {
    let mut seen = HashSet::new();
    flows.into_iter().filter(move |flow| seen.insert(flow.connection))
}
