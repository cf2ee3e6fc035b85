//! Events: the immutable records of a host.

use std::net::SocketAddr;

use crate::{
    chain::Head,
    coverage::{CoverageChange, Hole},
    executable::ExecutableRecord,
    flow::{Attribution, FlowRecord, Protocol},
    id::{Cursor, Epoch, ProcessUid, Seq},
    link::LinkRecord,
    name::{NameResolution, ServerNameRecord},
    process::{ProcessExecution, ProcessExit, ProcessRecord},
    time::{Moment, Timestamp},
};

/// One record in a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its position.
    pub seq: Seq,
    /// When it was recorded.
    pub recorded: Moment,
    /// What it says.
    pub kind: EventKind,
}

impl Event {
    /// The earliest instant that the event speaks of: losing it leaves a hole from here to [`Event::speaks_until`].
    pub fn speaks_from(&self) -> Timestamp {
        let from = match &self.kind {
            EventKind::Flow(flow) => flow.first,
            // A grade that is stated again tells nothing of the past that was not told before.
            EventKind::CoverageChanged(change) if change.to.is_none() && change.announced_from.is_some() => {
                self.recorded.wall
            }
            EventKind::CoverageChanged(change) => change.from,
            EventKind::ProcessExited(exit) => exit.exited,
            EventKind::ProcessExecuted(execution) => execution.executed,
            EventKind::NameResolved(resolution) => resolution.at,
            EventKind::ServerName(hello) => hello.at,
            EventKind::ExecutableSeen(executable) => executable.at,
            EventKind::LinkChanged(link) => link.at,
            EventKind::ProcessStarted(process) if !process.already_running => process.started,
            EventKind::ProcessStarted(_) | EventKind::Listen(_) | EventKind::Unrecognised => {
                self.recorded.wall
            }
        };
        from.min(self.recorded.wall)
    }

    /// The latest instant that the event speaks of: what is open is known to a later instant once it is recorded anew
    /// after this one.
    pub fn speaks_until(&self) -> Timestamp {
        let until = match &self.kind {
            EventKind::Flow(flow) => flow.last,
            EventKind::CoverageChanged(change) => change.to.unwrap_or(change.from),
            EventKind::ProcessExited(exit) => exit.exited,
            EventKind::ProcessStarted(process) => process.started,
            EventKind::ProcessExecuted(execution) => execution.executed,
            EventKind::NameResolved(resolution) => resolution.at,
            EventKind::ServerName(hello) => hello.at,
            EventKind::ExecutableSeen(executable) => executable.at,
            EventKind::LinkChanged(link) => link.at,
            EventKind::Listen(listen) => listen.since,
            EventKind::Unrecognised => self.recorded.wall,
        };
        until.max(self.speaks_from())
    }
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A process started, or was found running.
    ProcessStarted(Box<ProcessRecord>),
    /// A process became another program.
    ProcessExecuted(Box<ProcessExecution>),
    /// A process ended.
    ProcessExited(ProcessExit),
    /// A record of a connection.
    Flow(Box<FlowRecord>),
    /// A process listens.
    Listen(ListenRecord),
    /// A DNS answer arrived.
    NameResolved(Box<NameResolution>),
    /// A TLS ClientHello was seen.
    ServerName(Box<ServerNameRecord>),
    /// An executable was run first, or written.
    ExecutableSeen(Box<ExecutableRecord>),
    /// A network interface changed.
    LinkChanged(Box<LinkRecord>),
    /// Recording got better or worse.
    CoverageChanged(CoverageChange),
    /// From a newer agent, of a kind that this program does not know: counts as lost.
    Unrecognised,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenRecord {
    /// Its owner, where known.
    pub process: Option<ProcessUid>,
    /// How the owner was found.
    pub attribution: Attribution,
    /// The transport.
    pub protocol: Protocol,
    /// Where it listens.
    pub local: SocketAddr,
    /// When it was first seen.
    pub since: Timestamp,
}

/// A stretch of a host's stream, as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The ring it comes from.
    pub epoch: Epoch,
    /// What is missing before its first event.
    pub hole: Option<Hole>,
    /// In order of seq, without holes.
    pub events: Vec<Event>,
    /// How the chain of hashes goes over the events; none without events.
    pub link: Option<Link>,
    /// Everything up to here has been sent.
    pub watermark: Option<Timestamp>,
    /// The host's clocks, after the watermark was known and before it was sent.
    pub clock: Option<Moment>,
}

/// Where the chain of hashes enters a batch of events, and where it leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The head before the first event; none after a hole, where nobody knows it.
    pub previous: Option<Head>,
    /// The head after the last.
    pub head: Head,
}

impl Batch {
    /// The last position that this batch settles, if it settles any.
    pub fn settles(&self) -> Option<Cursor> {
        let last = self.events.last().map(|event| event.seq).or(self.hole.as_ref().map(|hole| hole.last))?;
        Some(Cursor { epoch: self.epoch, seq: last })
    }

    /// The earliest time at which what is in a ring's first batch can have been recorded.
    pub fn begins(&self) -> Option<Timestamp> {
        let events = self.events.iter().map(|event| match &event.kind {
            EventKind::CoverageChanged(change) => event.recorded.wall.min(change.from),
            _ => event.recorded.wall,
        });
        events.chain(self.hole.iter().map(|hole| hole.from)).chain(self.watermark).min()
    }
}
