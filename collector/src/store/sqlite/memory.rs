//! What a question about a whole fleet asks of every host, in memory: who it is, its clock and its coverage. Read when it is first
//! asked for, and kept as what is written is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock},
};

use alibi_proto::{
    clock::{ClockHistory, HostClock},
    coverage::{Facet, Timeline},
    host::HostDescription,
    id::HostId,
    time::Timestamp,
};

use crate::store::{ByKey, FollowedAgent, StoreError, lock};

/// What is known of the hosts that were asked about.
#[derive(Default)]
pub(super) struct Memory {
    hosts: Mutex<ByKey<HostId, Known>>,
    agents: Mutex<Listed>,
}

/// All agents.
#[derive(Default)]
struct Listed {
    /// How often there were others: what was read before the last time is not kept.
    written: u64,
    agents: Option<Vec<FollowedAgent>>,
    /// Where each is among them.
    places: HashMap<String, usize>,
}

#[derive(Default)]
struct Known {
    /// How often it was written: what was read before the last time is not kept.
    written: u64,
    clock: Option<Arc<Clock>>,
    coverage: BTreeMap<Facet, Arc<Timeline>>,
}

struct Clock {
    history: Arc<ClockHistory>,
    /// What that tells, once somebody has asked.
    stands: OnceLock<HostClock>,
}

impl Clock {
    fn of(history: ClockHistory) -> Self {
        Self { history: Arc::new(history), stands: OnceLock::new() }
    }
}

/// What was written of a host.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    /// Its clock, if that is another now.
    pub(super) clock: Option<ClockHistory>,
    /// Of which its coverage is another now.
    pub(super) coverage: Vec<Facet>,
}

impl Memory {
    /// The agents, with how far their hosts were known when that was read; `read` reads them.
    pub(super) fn agents(
        &self,
        read: impl FnOnce() -> Result<Vec<FollowedAgent>, StoreError>,
    ) -> Result<Vec<FollowedAgent>, StoreError> {
        let written = {
            let listed = lock(&self.agents);
            if let Some(agents) = &listed.agents {
                return Ok(agents.clone());
            }
            listed.written
        };
        let agents = read()?;
        let mut listed = lock(&self.agents);
        if listed.written == written {
            let places = agents.iter().enumerate().map(|(at, agent)| (agent.address.clone(), at));
            listed.places = places.collect();
            listed.agents = Some(agents.clone());
        }
        Ok(agents)
    }

    /// There are other agents now.
    pub(super) fn wrote_agents(&self) {
        let mut listed = lock(&self.agents);
        listed.written += 1;
        listed.agents = None;
    }

    /// What an agent says of itself now.
    pub(super) fn described(&self, address: &str, description: Arc<HostDescription>) {
        let mut listed = lock(&self.agents);
        listed.written += 1;
        let place = listed.places.get(address).copied();
        let agents = listed.agents.as_mut();
        let known = agents.zip(place).and_then(|(agents, place)| agents.get_mut(place)?.host.as_mut());
        match known {
            Some((known, _)) if known.host == description.host => *known = description,
            _ => listed.agents = None,
        }
    }

    /// The clock of a host; `read` reads it.
    pub(super) fn clock(
        &self,
        host: HostId,
        read: impl Fn(HostId) -> Result<ClockHistory, StoreError>,
    ) -> Result<Arc<ClockHistory>, StoreError> {
        let clock = self.clocks(&[host], read).pop();
        clock.map_or_else(|| Ok(Arc::default()), |clock| Ok(Arc::clone(&clock?.history)))
    }

    /// How the clocks of hosts stand; `read` reads one.
    pub(super) fn host_clocks(
        &self,
        hosts: &[HostId],
        now: Timestamp,
        read: impl Fn(HostId) -> Result<ClockHistory, StoreError>,
    ) -> Vec<Result<HostClock, StoreError>> {
        let stands = |clock: Arc<Clock>| clock.stands.get_or_init(|| clock.history.clock(now)).as_of(now);
        self.clocks(hosts, read).into_iter().map(|clock| clock.map(stands)).collect()
    }

    fn clocks(
        &self,
        hosts: &[HostId],
        read: impl Fn(HostId) -> Result<ClockHistory, StoreError>,
    ) -> Vec<Result<Arc<Clock>, StoreError>> {
        let read = |host| Ok(Clock::of(read(host)?));
        self.get(hosts, |known| known.clock.clone(), read, |known, clock| known.clock = Some(clock))
    }

    /// The coverage of a facet of hosts; `read` reads that of one.
    pub(super) fn coverages(
        &self,
        hosts: &[HostId],
        facet: Facet,
        read: impl Fn(HostId) -> Result<Timeline, StoreError>,
    ) -> Vec<Result<Arc<Timeline>, StoreError>> {
        let known = |known: &Known| known.coverage.get(&facet).cloned();
        self.get(hosts, known, read, |known, timeline| drop(known.coverage.insert(facet, timeline)))
    }

    /// What is known of each host, at once; and then what has to be read.
    fn get<T>(
        &self,
        hosts: &[HostId],
        known: impl Fn(&Known) -> Option<Arc<T>>,
        read: impl Fn(HostId) -> Result<T, StoreError>,
        keep: impl Fn(&mut Known, Arc<T>),
    ) -> Vec<Result<Arc<T>, StoreError>> {
        let all: Vec<Result<Arc<T>, u64>> = {
            let mut all = lock(&self.hosts);
            let mut one = |host: &HostId| {
                let host = all.entry(*host).or_default();
                known(host).ok_or(host.written)
            };
            hosts.iter().map(&mut one).collect()
        };
        let read = |(host, known): (&HostId, Result<Arc<T>, u64>)| {
            let written = match known {
                Ok(known) => return Ok(known),
                Err(written) => written,
            };
            let read = Arc::new(read(*host)?);
            let mut hosts = lock(&self.hosts);
            let host = hosts.entry(*host).or_default();
            if host.written == written {
                keep(host, Arc::clone(&read));
            }
            Ok(read)
        };
        hosts.iter().zip(all).map(read).collect()
    }

    /// Something was written of a host.
    pub(super) fn wrote(&self, host: HostId, changed: Changed) {
        let Changed { clock, coverage } = changed;
        let mut hosts = lock(&self.hosts);
        let host = hosts.entry(host).or_default();
        host.written += 1;
        if let Some(clock) = clock {
            host.clock = Some(Arc::new(Clock::of(clock)));
        }
        coverage.iter().for_each(|facet| drop(host.coverage.remove(facet)));
    }

    /// The coverage of every host is another now.
    pub(super) fn wrote_all(&self) {
        lock(&self.hosts).values_mut().for_each(|host| {
            host.written += 1;
            host.coverage.clear();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use alibi_proto::id::Epoch;

    use super::*;

    const HOST: HostId = HostId::from_bytes([1; 16]);

    #[test]
    fn what_was_read_before_it_was_written_is_not_kept() {
        let memory = Memory::default();
        let history = |epoch| ClockHistory { epoch: Epoch(epoch), ..ClockHistory::default() };
        let read = |epoch| Ok::<_, StoreError>(history(epoch));
        let first = memory.clock(HOST, |_| {
            memory.wrote(HOST, Changed { clock: Some(history(2)), coverage: Vec::new() });
            read(1)
        });
        assert_eq!(first.unwrap().epoch, Epoch(1));
        assert_eq!(memory.clock(HOST, |_| read(9)).unwrap().epoch, Epoch(2), "what was written");

        let facet = Facet::Names;
        let is_read = |memory: &Memory| {
            let is_read = Cell::new(false);
            let read = |_| {
                is_read.set(true);
                Ok(Timeline::default())
            };
            memory.coverages(&[HOST], facet, read).pop().unwrap().unwrap();
            is_read.get()
        };
        assert_eq!([is_read(&memory), is_read(&memory)], [true, false]);
        for forget in [
            &(|| memory.wrote(HOST, Changed { clock: None, coverage: vec![facet] })) as &dyn Fn(),
            &(|| memory.wrote_all()),
        ] {
            forget();
            assert!(is_read(&memory));
        }
        let other = Changed { clock: None, coverage: vec![Facet::Processes] };
        memory.wrote(HOST, other);
        assert!(!is_read(&memory));
    }
}
