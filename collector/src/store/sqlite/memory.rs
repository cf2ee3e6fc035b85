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
        read: impl FnOnce() -> Result<ClockHistory, StoreError>,
    ) -> Result<Arc<ClockHistory>, StoreError> {
        Ok(Arc::clone(&self.known_clock(host, read)?.history))
    }

    /// How the clock of a host stands; `read` reads it.
    pub(super) fn host_clock(
        &self,
        host: HostId,
        now: Timestamp,
        read: impl FnOnce() -> Result<ClockHistory, StoreError>,
    ) -> Result<HostClock, StoreError> {
        let clock = self.known_clock(host, read)?;
        Ok(clock.stands.get_or_init(|| clock.history.clock(now)).as_of(now))
    }

    fn known_clock(
        &self,
        host: HostId,
        read: impl FnOnce() -> Result<ClockHistory, StoreError>,
    ) -> Result<Arc<Clock>, StoreError> {
        let read = || Ok(Clock::of(read()?));
        self.get(host, |known| known.clock.clone(), read, |known, clock| known.clock = Some(clock))
    }

    /// The coverage of a facet of a host; `read` reads it.
    pub(super) fn coverage(
        &self,
        host: HostId,
        facet: Facet,
        read: impl FnOnce() -> Result<Timeline, StoreError>,
    ) -> Result<Arc<Timeline>, StoreError> {
        let known = |known: &Known| known.coverage.get(&facet).cloned();
        self.get(host, known, read, |known, timeline| drop(known.coverage.insert(facet, timeline)))
    }

    fn get<T>(
        &self,
        host: HostId,
        known: impl FnOnce(&Known) -> Option<Arc<T>>,
        read: impl FnOnce() -> Result<T, StoreError>,
        keep: impl FnOnce(&mut Known, Arc<T>),
    ) -> Result<Arc<T>, StoreError> {
        let written = {
            let mut hosts = lock(&self.hosts);
            let host = hosts.entry(host).or_default();
            if let Some(known) = known(host) {
                return Ok(known);
            }
            host.written
        };
        let read = Arc::new(read()?);
        let mut hosts = lock(&self.hosts);
        let host = hosts.entry(host).or_default();
        if host.written == written {
            keep(host, Arc::clone(&read));
        }
        Ok(read)
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
    use alibi_proto::id::Epoch;

    use super::*;

    const HOST: HostId = HostId::from_bytes([1; 16]);

    #[test]
    fn what_was_read_before_it_was_written_is_not_kept() {
        let memory = Memory::default();
        let history = |epoch| ClockHistory { epoch: Epoch(epoch), ..ClockHistory::default() };
        let read = |epoch| Ok::<_, StoreError>(history(epoch));
        let first = memory.clock(HOST, || {
            memory.wrote(HOST, Changed { clock: Some(history(2)), coverage: Vec::new() });
            read(1)
        });
        assert_eq!(first.unwrap().epoch, Epoch(1));
        assert_eq!(memory.clock(HOST, || read(9)).unwrap().epoch, Epoch(2), "what was written");

        let timeline = Timeline::default;
        let facet = Facet::Names;
        memory.coverage(HOST, facet, || Ok(timeline())).unwrap();
        memory.coverage(HOST, facet, || panic!("it is known")).unwrap();
        for forget in [
            &(|| memory.wrote(HOST, Changed { clock: None, coverage: vec![facet] })) as &dyn Fn(),
            &(|| memory.wrote_all()),
        ] {
            forget();
            let mut is_read = false;
            let read = || {
                is_read = true;
                Ok(timeline())
            };
            memory.coverage(HOST, facet, read).unwrap();
            assert!(is_read);
        }
        let other = Changed { clock: None, coverage: vec![Facet::Processes] };
        memory.wrote(HOST, other);
        memory.coverage(HOST, facet, || panic!("it is known")).unwrap();
    }
}
