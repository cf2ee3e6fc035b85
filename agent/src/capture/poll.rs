//! Polling: looks at the process and socket tables each period. Works on every system and needs no rights, but what
//! comes and goes between two looks is not seen, which its grade says.
//!
//! [`tables`] reads, [`differ`] decides what the difference between two looks means. Only the first touches the system. What
//! [`Surroundings`] tells besides, suspends and network interfaces, it tells at each look, and where the system says at once
//! that there is something to see, the next look comes before its time.

use std::time::{Duration, Instant};

use alibi_proto::{
    coverage::{Facet, Grade},
    host::{FacetCoverage, SourceDescription},
    time::Moment,
};

use super::{CaptureError, Fact, Observation, Outlet, Report, Source, Surroundings};
use crate::sys;

mod differ;
mod scope;
pub(super) mod tables;

use differ::Differ;
#[cfg(any(test, target_os = "linux", target_os = "windows"))]
pub(super) use differ::owner;
#[cfg(any(test, target_os = "windows"))]
pub(super) use differ::state_of;
use scope::scope;
#[cfg(any(test, target_os = "windows"))]
pub(super) use tables::ProcessRow;
use tables::Tables;
#[cfg(target_os = "linux")]
pub(super) use tables::bounded;

const NAME: &str = "poll";

/// Looking more often than this costs more than it shows.
const PERIOD_MIN: Duration = Duration::from_millis(100);

/// The source that polls.
pub(super) struct Poll {
    period: Duration,
    tables: Tables,
}

impl Poll {
    /// Polls each `period`, but not more often than each 100 ms.
    ///
    /// # Errors
    /// When the process or the socket table cannot be read.
    pub(super) fn open(period: Duration) -> Result<Self, CaptureError> {
        Ok(Self { period: period.max(PERIOD_MIN), tables: Tables::open()? })
    }
}

impl Source for Poll {
    fn describe(&self) -> SourceDescription {
        let facet = |facet| FacetCoverage { facet, grade: grade(facet, self.period), scope: scope(facet) };
        SourceDescription {
            name: NAME.to_owned(),
            facets: Facet::ALL.map(facet).to_vec(),
            caveat: scope::caveat(),
        }
    }

    fn run(mut self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError> {
        let (outlet, wake) = outlet.with_wake().map_err(CaptureError::Wait)?;
        let mut surroundings = Surroundings::open(&wake);
        let mut differ = Differ::new(self.period, sys::network_namespace());
        loop {
            let began = Instant::now();
            let (at, around) = surroundings.look();
            let report = with_surroundings(around, &mut differ, |differ| look(&mut self.tables, at, differ));
            if outlet.report(report).is_err() {
                return Ok(());
            }
            // However often something happens around: a look costs what it costs.
            if outlet.wait(PERIOD_MIN.saturating_sub(began.elapsed())).is_err()
                || outlet.wait_or_wake(self.period.saturating_sub(began.elapsed())).is_err()
            {
                return Ok(());
            }
        }
    }
}

/// The report of a look, and what was seen around before it.
fn with_surroundings(
    mut around: Vec<Observation>,
    differ: &mut Differ,
    look: impl FnOnce(&mut Differ) -> Report,
) -> Report {
    for observation in &around {
        if let Fact::Suspended { from, to } = &observation.fact {
            differ.slept(*from, *to);
        }
    }
    let Report { observations, seen_until } = look(differ);
    around.extend(observations);
    around.sort_by_key(|observation| observation.at.boot_ns);
    Report { observations: around, seen_until }
}

/// The processes that run now, with their images, as if they had just been found.
///
/// # Errors
/// When the process table cannot be read.
#[cfg(target_os = "linux")]
pub(super) fn running_processes() -> Result<Vec<Observation>, CaptureError> {
    let report = look(&mut Tables::open()?, sys::now(), &mut Differ::new(PERIOD_MIN, None));
    let is_process = |observation: &Observation| matches!(observation.fact, Fact::ProcessStarted(_));
    Ok(report.observations.into_iter().filter(is_process).collect())
}

fn look(tables: &mut Tables, at: Moment, differ: &mut Differ) -> Report {
    let snapshot = tables.look(at, |process| differ.knows(process));
    differ.diff(snapshot)
}

fn grade(facet: Facet, period: Duration) -> Grade {
    match facet {
        Facet::Processes | Facet::Connections => Grade::Sampled { period },
        Facet::Names => Grade::NotRecorded { reason: "polling does not see name lookups".to_owned() },
    }
}

#[cfg(test)]
mod tests;
