//! Where facts come from: the [`Source`] trait, what a source says, and the one place where the OS is chosen.
//!
//! A source looks at the system and says what it saw, in order, in [`Report`]s. It numbers nothing, stores nothing, and
//! knows neither ring nor gRPC. It runs on a thread of its own and may block.

use std::{
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender},
    time::Duration,
};

use alibi_proto::{
    coverage::CoverageChange,
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    host::SourceDescription,
    process::ProcessImage,
    time::{Moment, Timestamp},
};
use serde::{Deserialize, Serialize};

mod poll;
mod replay;

/// A way of capturing.
pub trait Source: Send {
    /// What it is, and what it is worth on this host, facet by facet. Its grades are in force from its first report.
    fn describe(&self) -> SourceDescription;

    /// Looks, and reports to `outlet`, until told to stop or until there is nothing more to come.
    ///
    /// The first report is the inventory: everything that runs or is open already, marked so.
    ///
    /// # Errors
    /// When it can look no longer.
    fn run(self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError>;
}

/// What a source saw since its last report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// In the order in which it happened, as far as the source can tell.
    pub observations: Vec<Observation>,
    /// Whatever the source can see of the time before this has been reported.
    pub seen_until: Moment,
}

/// A fact and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// When it happened; from a source that polls, when it was seen.
    pub at: Moment,
    /// What happened.
    pub fact: Fact,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A process started, or was found running.
    ProcessStarted(Box<ObservedProcess>),
    /// A process ended.
    ProcessExited {
        /// Which.
        process: ProcessKey,
        /// Its exit code, where known.
        exit_code: Option<i32>,
    },
    /// A connection was asked for, accepted, or found open.
    ConnectionOpened(Box<ObservedConnection>),
    /// Something about an open connection changed. What is none has not.
    ConnectionChanged {
        /// Which.
        socket: SocketKey,
        /// Its new state.
        state: Option<FlowState>,
        /// Its new owner.
        owner: Option<ProcessKey>,
        /// All that it has moved so far.
        traffic: Option<Traffic>,
    },
    /// A connection ended.
    ConnectionClosed {
        /// Which.
        socket: SocketKey,
        /// Closed, or failed; errno 0 is one that is not known.
        state: FlowState,
        /// All that it moved, where measured.
        traffic: Option<Traffic>,
    },
    /// A process began to listen.
    Listening {
        /// The owner, where known.
        owner: Option<ProcessKey>,
        /// How the owner was found.
        attribution: Attribution,
        /// The transport.
        protocol: Protocol,
        /// Where.
        local: SocketAddr,
    },
    /// The source got better or worse, or lost something.
    Coverage(CoverageChange),
}

/// Names a process in this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// The system's number for it.
    pub pid: u32,
    /// When it started, in the finest unit that the system keeps unchanged (Linux: clock ticks since boot; elsewhere
    /// seconds since 1970). Every source on a system must use the same.
    pub start: u64,
}

/// Names a connection in this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketKey {
    /// The transport.
    pub protocol: Protocol,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The system's identity of the socket: an inode or a cookie, or the owner's pid where it has none. A socket that
    /// had none at all when it was first seen is named by that instant, in nanoseconds since boot.
    pub socket: u64,
}

/// A process as a source saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedProcess {
    /// Which.
    pub process: ProcessKey,
    /// Its parent, where that was running.
    pub parent: Option<ProcessKey>,
    /// Its parent's pid, where the system tells it.
    pub parent_pid: Option<u32>,
    /// When it started.
    pub started: Timestamp,
    /// It was running before the source began to look.
    pub already_running: bool,
    /// What the system tells of it; arguments not yet redacted.
    pub image: ProcessImage,
}

/// A connection as a source saw it first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedConnection {
    /// Which.
    pub socket: SocketKey,
    /// The owner, where known.
    pub owner: Option<ProcessKey>,
    /// How the owner was found.
    pub attribution: Attribution,
    /// Who asked for it.
    pub direction: Direction,
    /// Attempted or established; closed or failed if it was over when it was first seen.
    pub state: FlowState,
    /// It was open before the source began to look.
    pub already_open: bool,
    /// All that it has moved so far; none where the source cannot measure it.
    pub traffic: Option<Traffic>,
    /// Network interface, where known.
    pub interface: Option<String>,
    /// Network namespace, where known.
    pub network_namespace: Option<u64>,
}

/// Where a source reports to, and how it hears that it must stop. Bounded: a source that is too fast waits, or counts
/// what it had to let go.
#[derive(Debug)]
pub struct Outlet {
    reports: SyncSender<Report>,
    // Nothing is ever sent: the other end is dropped to say stop.
    stop: Receiver<std::convert::Infallible>,
}

/// The outlet's other end is gone: stop.
#[derive(Debug)]
pub struct Stopped;

impl Outlet {
    /// An outlet into `reports`, until the sender of `stop` is dropped.
    pub fn new(reports: SyncSender<Report>, stop: Receiver<std::convert::Infallible>) -> Self {
        Self { reports, stop }
    }

    /// Hands a report over; waits while the queue is full.
    ///
    /// # Errors
    /// When it is time to stop.
    pub fn report(&self, report: Report) -> Result<(), Stopped> {
        self.reports.send(report).map_err(|_| Stopped)
    }

    /// Waits for `duration`.
    ///
    /// # Errors
    /// As soon as it is time to stop.
    pub fn wait(&self, duration: Duration) -> Result<(), Stopped> {
        match self.stop.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
            Ok(never) => match never {},
        }
    }

    /// Waits until it is time to stop.
    pub fn wait_for_stop(&self) -> Stopped {
        match self.stop.recv() {
            Err(_) => Stopped,
            Ok(never) => match never {},
        }
    }
}

/// A source that can look no longer, or cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The system's socket table cannot be read.
    #[error("cannot read the socket table: {0}")]
    Sockets(#[from] netstat2::error::Error),
    /// The system's process table cannot be read.
    #[error("cannot read the process table: {0}")]
    Processes(#[source] std::io::Error),
    /// It broke.
    #[error("the source panicked: this is a fault in the agent, please report it")]
    Panicked,
    /// The recording cannot be read.
    #[error("cannot replay {}: {source}", path.display())]
    Replay {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line of the recording is no report.
    #[error("cannot replay {}: line {line} is not a report: {problem}", path.display())]
    ReplayLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Which source to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The best that this system and these privileges allow.
    Auto,
    /// The socket and process tables, each second.
    Poll,
    /// Reports from a file, one in a line, as fast as they are taken.
    Replay(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.split_once(':')) {
            ("auto", _) => Ok(Self::Auto),
            ("poll", _) => Ok(Self::Poll),
            (_, Some(("replay", path))) if !path.is_empty() => Ok(Self::Replay(path.into())),
            _ => Err(format!("`{text}` is not a source: write auto, poll or replay:FILE")),
        }
    }
}

/// Opens a source.
///
/// # Errors
/// When it cannot begin.
pub fn open(choice: &Choice, period: Duration) -> Result<Box<dyn Source>, CaptureError> {
    match choice {
        Choice::Auto | Choice::Poll => Ok(Box::new(poll::Poll::open(period)?)),
        Choice::Replay(path) => Ok(Box::new(replay::Replay::open(path)?)),
    }
}
