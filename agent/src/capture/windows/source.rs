//! The source: takes the session's turns, looks at the tables now and then, and is believed as long as it sees the canary.

use std::time::{Duration, Instant};

use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    host::{FacetCoverage, SourceDescription},
};

use super::{
    session::Session,
    tracker::{Look, Tracker},
};
use crate::{
    capture::{
        CaptureError, Observation, Outlet, Report, Source, Surroundings,
        canary::Canary,
        poll::tables::{Snapshot, Tables, images_of},
    },
    sys,
};

const NAME: &str = "etw";
const CAVEAT: &str = "this was compiled for Windows and has never been run there (Wine has no ETW)";
/// Between two turns: each gives a buffer of the trace away, however little is in it.
const TURN: Duration = Duration::from_millis(200);
/// Between two looks at the tables when nothing was lost; and at least, when something was.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_AFTER_LOSS: Duration = Duration::from_secs(1);

/// Opens the source of first choice.
///
/// # Errors
/// When Windows refuses the trace, or its tables cannot be read.
pub(in crate::capture) fn etw() -> Result<Etw, CaptureError> {
    let tables = Tables::open()?;
    Ok(Etw { session: Session::begin()?, tables, tracker: Tracker::default() })
}

/// The source.
pub(in crate::capture) struct Etw {
    session: Session,
    tables: Tables,
    tracker: Tracker,
}

impl Source for Etw {
    fn describe(&self) -> SourceDescription {
        let facet = |facet| FacetCoverage { facet, grade: grade(facet), scope: scope(facet) };
        SourceDescription {
            name: NAME.to_owned(),
            facets: Facet::ALL.map(facet).to_vec(),
            caveat: Some(CAVEAT.to_owned()),
        }
    }

    fn run(mut self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError> {
        let (outlet, wake) = outlet.with_wake().map_err(CaptureError::Wait)?;
        let mut around = Around { surroundings: Surroundings::open(&wake), held: Vec::new() };
        let mut canary =
            Canary::open(grade(Facet::Connections), scope(Facet::Connections)).map(Canary::told_later);
        let look = self.look()?;
        let mut report = self.tracker.begin(look);
        let mut looked = Instant::now();
        let mut is_in_doubt = false;
        loop {
            around.join(&mut report);
            if outlet.report(report).is_err() || outlet.wait_or_wake(TURN).is_err() {
                return Ok(());
            }
            let (marker, batch) = self.session.turn()?;
            report = self.tracker.turn(marker, batch, images_of, sys::now());
            is_in_doubt |= Tracker::wants_look(&report);
            if let Some(canary) = &mut canary {
                canary.turn(report.seen_until, &mut report.observations);
            }
            if looked.elapsed() >= if is_in_doubt { LOOK_AFTER_LOSS } else { LOOK } {
                match self.look() {
                    Ok(look) => self.tracker.look(look),
                    // The trace goes on telling all there is.
                    Err(problem) => tracing::warn!(%problem, "the trace is not compared with the tables"),
                }
                (looked, is_in_doubt) = (Instant::now(), false);
            }
        }
    }
}

/// What is told beside the trace.
struct Around {
    surroundings: Surroundings,
    /// What is younger than the last report.
    held: Vec<Observation>,
}

impl Around {
    /// Adds to a report what happened around until then.
    fn join(&mut self, report: &mut Report) {
        self.held.extend(self.surroundings.look().1);
        let is_told = |observation: &mut Observation| observation.at.boot_ns <= report.seen_until.boot_ns;
        report.observations.extend(self.held.extract_if(.., is_told));
        report.observations.sort_by_key(|observation| observation.at.boot_ns);
    }
}

impl Etw {
    fn look(&mut self) -> Result<Look, CaptureError> {
        let tracker = &self.tracker;
        let Snapshot { at, processes, sockets } =
            self.tables.look(sys::now(), |process| tracker.runs(*process));
        let problem = |problem| CaptureError::Etw { what: "compare the events", problem };
        Ok(Look { at, processes: processes.map_err(problem)?, sockets: sockets.map_err(problem)? })
    }
}

fn grade(facet: Facet) -> Grade {
    match facet {
        // Believed as long as the agent sees what it does itself.
        Facet::Processes | Facet::Connections => Grade::Complete,
        Facet::Names => Grade::Doubtful {
            reason: "that every lookup is told has never been proven on Windows itself".to_owned(),
        },
    }
}

fn scope(facet: Facet) -> Scope {
    let (covers, cannot_see) = match facet {
        Facet::Processes => (
            "starts and ends of all processes by ETW (Kernel-Process)",
            "command line, user and directory of a process that ended before it was looked at, some tenths of a second; \
             processes of other virtual machines, the Linux subsystem's among them",
        ),
        Facet::Connections => (
            "TCP and UDP over IPv4 and IPv6 by ETW (Kernel-Network; attempts by TCPIP)",
            "raw sockets; what drivers send beside the system's own TCP and UDP; traffic of virtual machines, the Linux \
             subsystem's among them; who uses a socket that was handed on; packets of TCP, of which only the bytes are \
             counted",
        ),
        Facet::Names => (
            "lookups by the system's own resolver, by ETW (DNS-Client)",
            "lookups that programs make themselves (nslookup, DNS over HTTPS in a browser); what a program resolved before \
             the agent ran; TLS server names; who answered, and for how long that holds",
        ),
    };
    let cannot_see = format!("{cannot_see}; {CAVEAT}");
    Scope { source: NAME.to_owned(), covers: covers.to_owned(), cannot_see }
}
