//! What surrounds processes and connections, from the sensors of [`clock`] and [`links`], for a source that is not made of
//! sensors. The same as `capture/surroundings` elsewhere.

use alibi_proto::time::Moment;

use super::{Sensor, clock::Clock, links::Links};
use crate::{
    capture::{Observation, Wake},
    sys,
};

/// Looks around.
pub(in crate::capture) struct Surroundings {
    sensors: Vec<Box<dyn Sensor>>,
}

impl Surroundings {
    /// The surroundings of this host. Nobody is woken: the sensors have their say when somebody looks. What cannot be told is
    /// said in the log.
    pub(in crate::capture) fn open(_wake: &Wake) -> Self {
        Self { sensors: sensors() }
    }

    /// What has happened since the last look, of interfaces the first time also what there is; and an instant that none of
    /// it is younger than.
    pub(in crate::capture) fn look(&mut self) -> (Moment, Vec<Observation>) {
        let mut observations = Vec::new();
        let now = sys::now();
        self.sensors.retain_mut(|sensor| match sensor.take(now, &mut observations) {
            Ok(_) => true,
            Err(problem) => {
                tracing::warn!(%problem, "recording without it");
                false
            }
        });
        (sys::now(), observations)
    }
}

/// Those that there are: what cannot be told is said in the log.
pub(super) fn sensors() -> Vec<Box<dyn Sensor>> {
    let clock = Clock::open().map(|clock| Box::new(clock) as Box<dyn Sensor>);
    let links = Links::open().map(|links| Box::new(links) as Box<dyn Sensor>);
    let mut sensors = Vec::new();
    for sensor in [clock, links] {
        match sensor {
            Ok(sensor) => sensors.push(sensor),
            Err(problem) => tracing::warn!(%problem, "recording without it"),
        }
    }
    sensors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Fact;

    #[test]
    fn the_first_look_tells_the_loopback_interface() {
        let mut surroundings = Surroundings::open(&Wake::default());
        let (at, observations) = surroundings.look();
        assert!(observations.iter().all(|observation| observation.at.boot_ns <= at.boot_ns));
        let is_loopback = |observation: &Observation| matches!(&observation.fact, Fact::LinkChanged(link) if link.interface == "lo" && link.present);
        assert!(observations.iter().any(is_loopback), "{observations:?}");
    }
}
