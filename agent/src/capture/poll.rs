//! Polling: looks at the process and socket tables each period. Works on every system and needs no rights, but what
//! comes and goes between two looks is not seen, which its grade says.
//!
//! [`tables`] reads, [`differ`] decides what the difference between two looks means. Only the first touches the system.

use std::time::{Duration, Instant};

use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    host::{FacetCoverage, SourceDescription},
};

use super::{CaptureError, Outlet, Report, Source};
use crate::sys;

mod differ;
pub(super) mod tables;

use differ::Differ;
#[cfg(any(target_os = "linux", target_os = "windows"))]
pub(super) use differ::owner;
#[cfg(any(test, target_os = "windows"))]
pub(super) use differ::state_of;
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
        SourceDescription { name: NAME.to_owned(), facets: Facet::ALL.map(facet).to_vec() }
    }

    fn run(mut self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError> {
        let mut differ = Differ::new(self.period, sys::network_namespace());
        loop {
            let began = Instant::now();
            let report = look(&mut self.tables, &mut differ);
            if outlet.report(report).is_err() {
                return Ok(());
            }
            if outlet.wait(self.period.saturating_sub(began.elapsed())).is_err() {
                return Ok(());
            }
        }
    }
}

/// The processes that run now, with their images, as if they had just been found.
///
/// # Errors
/// When the process table cannot be read.
#[cfg(target_os = "linux")]
pub(super) fn running_processes() -> Result<Vec<super::Observation>, CaptureError> {
    let report = look(&mut Tables::open()?, &mut Differ::new(PERIOD_MIN, None));
    let is_process =
        |observation: &super::Observation| matches!(observation.fact, super::Fact::ProcessStarted(_));
    Ok(report.observations.into_iter().filter(is_process).collect())
}

fn look(tables: &mut Tables, differ: &mut Differ) -> Report {
    let snapshot = tables.look(|process| differ.knows(process));
    differ.diff(snapshot)
}

fn grade(facet: Facet, period: Duration) -> Grade {
    match facet {
        Facet::Processes | Facet::Connections => Grade::Sampled { period },
        Facet::Names => Grade::NotRecorded { reason: "polling does not see name lookups".to_owned() },
    }
}

fn scope(facet: Facet) -> Scope {
    let (covers, cannot_see) = match facet {
        Facet::Processes => (
            "processes that the agent is allowed to see, at each look",
            "processes shorter than the period; a program that a process turns into (exec) after the look that found \
             it; exit codes; where the system hides other users' processes, those",
        ),
        Facet::Connections => (
            "TCP sockets of the agent's own network namespace, at each look",
            "UDP; connections shorter than the period, except those that this host closed first, whose owner is \
             unknown then; other network namespaces (containers); raw sockets; the own traffic of virtual machines; \
             bytes; why an attempt failed; without administrator's rights the owners of other users' sockets",
        ),
        Facet::Names => ("nothing", "name lookups"),
    };
    let cannot_see = match sys::NEVER_RUN {
        "" => cannot_see.to_owned(),
        never_run => format!("{cannot_see}; {never_run}"),
    };
    Scope { source: NAME.to_owned(), covers: covers.to_owned(), cannot_see }
}

#[cfg(test)]
mod tests;
