//! Where facts come from: the [`Source`] trait, what a source says, and the one place where the OS is chosen.
//!
//! A source looks at the system and says what it saw, in order, in [`Report`]s. It numbers nothing, stores nothing, and
//! knows neither ring nor gRPC. It runs on a thread of its own and may block.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender},
    time::Duration,
};

use alibi_proto::{
    coverage::CoverageChange,
    executable::{ExecutableSighting, FileIdentity, Package, Sha256, Signature, VersionInfo},
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    host::SourceDescription,
    link::LinkRecord,
    process::ProcessImage,
    time::{Moment, Timestamp},
};
use serde::{Deserialize, Serialize};

use crate::enrich::executable::{Identifier, Writers};

#[cfg(any(target_os = "linux", target_os = "windows"))]
mod canary;
mod fallback;
mod interfaces;
#[cfg(target_os = "linux")]
mod linux;
mod poll;
mod replay;
// Linux has sensors for that; its tests run this one too, so that it is run somewhere.
#[cfg(any(test, not(target_os = "linux")))]
mod surroundings;
mod suspends;
mod wake;
// What it decides is tested everywhere; only Windows runs it.
#[cfg(any(test, target_os = "windows"))]
#[cfg_attr(not(target_os = "windows"), allow(dead_code, reason = "its source is not compiled here"))]
mod windows;

#[cfg(target_os = "linux")]
use linux::Surroundings;
#[cfg(not(target_os = "linux"))]
use surroundings::Surroundings;
use wake::Wake;

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
    /// A process became another program.
    ProcessExecuted {
        /// Which.
        process: ProcessKey,
        /// What it runs from then on; arguments not yet redacted.
        image: Box<ProcessImage>,
    },
    /// A process ended.
    ProcessExited {
        /// Which.
        process: ProcessKey,
        /// Its exit code, where known.
        exit_code: Option<i32>,
    },
    /// A connection was asked for, accepted, or found open.
    ConnectionOpened(Box<ObservedConnection>),
    /// Something about an open connection changed.
    ConnectionChanged {
        /// Which.
        socket: SocketKey,
        /// What changed. What is none has not.
        change: ConnectionChange,
    },
    /// A connection ended.
    ConnectionClosed {
        /// Which.
        socket: SocketKey,
        /// Closed, or failed; errno 0 is one that is not known.
        state: FlowState,
        /// What else has become known of it; `state` is in the field above.
        change: ConnectionChange,
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
    /// A DNS answer arrived.
    NameResolved(Box<ObservedResolution>),
    /// A TLS ClientHello was seen on a connection.
    ServerName(Box<ObservedServerName>),
    /// An executable was run first, or written.
    ExecutableSeen(Box<ObservedExecutable>),
    /// A network interface came, went or changed, or was found.
    LinkChanged(Box<LinkRecord>),
    /// The host was suspended, as its clocks prove: nothing ran from `from` until `to`. It slept for a little longer than
    /// that, by so much that is not known to lie on one side or the other. Observed at `to`.
    Suspended {
        /// From here on it slept in any case.
        from: Moment,
        /// Until here.
        to: Moment,
    },
    /// The source got better or worse, or lost something.
    Coverage(CoverageChange),
}

/// Names a process in this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// The system's number for it.
    pub pid: u32,
    /// When it started, in the finest unit that the system keeps unchanged (Linux: clock ticks since boot; Windows: 100 ns
    /// since 1970; macOS: seconds since 1970). Every source on a system must use the same.
    pub start: u64,
}

/// Names a connection in this boot. The local end is no part of it: a connection that is only asked for may have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketKey {
    /// The transport.
    pub protocol: Protocol,
    /// The other end.
    pub remote: SocketAddr,
    /// The system's identity of the socket: an inode or a cookie. A socket that had none when it was first seen is
    /// named by that instant in nanoseconds since boot, which no two may share.
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
    /// This end; with port 0, and perhaps an unspecified address, as long as it has none.
    pub local: SocketAddr,
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

/// What has become known of a connection since it was opened. None: nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionChange {
    /// Its new state.
    pub state: Option<FlowState>,
    /// Its new owner, and how that was found.
    pub owner: Option<(ProcessKey, Attribution)>,
    /// This end.
    pub local: Option<SocketAddr>,
    /// All that it has moved so far.
    pub traffic: Option<Traffic>,
    /// Smoothed round-trip time (TCP).
    pub round_trip: Option<Duration>,
}

/// A DNS answer as it arrived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedResolution {
    /// What was asked for: lowercase, without the final dot.
    pub name: String,
    /// The names that it turned out to be an alias of (CNAME), in order.
    pub aliases: Vec<String>,
    /// Its addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// The shortest time to live in the answer, in seconds; 0 where the system does not tell.
    pub ttl_s: u32,
    /// Who gave the answer; unspecified where the system does not tell.
    pub server: SocketAddr,
    /// Where the answer arrived; unspecified where the system does not tell.
    pub local: SocketAddr,
    /// Who asked, where known.
    pub process: Option<ProcessKey>,
    /// Network namespace, where known.
    pub network_namespace: Option<u64>,
}

/// A TLS ClientHello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedServerName {
    /// The name asked for: lowercase, without the final dot. None where it has none or hides it.
    pub name: Option<String>,
    /// Whose end sent it: outbound from here, inbound from there.
    pub direction: Direction,
    /// The system's identity of its socket, where known.
    pub socket: Option<u64>,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Network namespace, where known.
    pub network_namespace: Option<u64>,
}

/// An executable that was run first, or written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedExecutable {
    /// Where it was.
    pub path: String,
    /// Which file; none if it had gone before it could be looked at.
    pub file: Option<FileIdentity>,
    /// Its content; none where `problem` says why.
    pub sha256: Option<Sha256>,
    /// No file with this content has been seen on this host before.
    pub first_on_host: bool,
    /// The package that it belongs to.
    pub package: Option<Package>,
    /// Run or written.
    pub sighting: ExecutableSighting,
    /// Who ran it first, or wrote it; where known.
    pub process: Option<ProcessKey>,
    /// Why there is no hash.
    pub problem: Option<String>,
    /// What the system says of its signature; none where executables carry none, and where there is no hash.
    pub signature: Option<Signature>,
    /// What it says of itself, where it does.
    pub version: Option<VersionInfo>,
}

/// Where a source reports to, and how it hears that it must stop. Bounded: a source that is too fast waits, or counts
/// what it had to let go.
pub struct Outlet {
    reports: SyncSender<Report>,
    /// Says of every report that goes out what the executables in it are.
    identifier: Option<RefCell<Identifier>>,
    stop: Stop,
}

/// Where it is heard that it is time to stop.
enum Stop {
    // Nothing is ever sent: the other end is dropped to say stop.
    Channel(Receiver<std::convert::Infallible>),
    Wake(Wake),
}

/// The outlet's other end is gone: stop.
#[derive(Debug)]
pub struct Stopped;

impl Outlet {
    /// An outlet into `reports`, until the sender of `stop` is dropped.
    pub fn new(reports: SyncSender<Report>, stop: Receiver<std::convert::Infallible>) -> Self {
        Self { reports, identifier: None, stop: Stop::Channel(stop) }
    }

    /// The same, and what ends [`Outlet::wait_or_wake`] before its time, from any thread.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    fn with_wake(self) -> std::io::Result<(Self, Wake)> {
        let Self { reports, identifier, stop } = self;
        let wake = match stop {
            Stop::Channel(stop) => Wake::with_stop(stop)?,
            Stop::Wake(wake) => wake,
        };
        Ok((Self { reports, identifier, stop: Stop::Wake(wake.clone()) }, wake))
    }

    /// With somebody who says what the executables of this very host are.
    #[must_use]
    pub fn with_identifier(self, identifier: Identifier) -> Self {
        Self { identifier: Some(RefCell::new(identifier)), ..self }
    }

    /// For a source that sees executables being written, if anybody wants to know of them.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "no source sees that there"))]
    pub(crate) fn writers(&self) -> Option<Writers> {
        self.identifier.as_ref().map(|identifier| identifier.borrow().writers())
    }

    /// Hands a report over; waits while the queue is full.
    ///
    /// # Errors
    /// When it is time to stop.
    pub fn report(&self, mut report: Report) -> Result<(), Stopped> {
        if let Some(identifier) = &self.identifier {
            let mut identifier = identifier.borrow_mut();
            identifier.identify_all(&mut report.observations);
            identifier.take(&mut report.observations);
        }
        self.reports.send(report).map_err(|_| Stopped)
    }

    /// Waits for `duration`.
    ///
    /// # Errors
    /// As soon as it is time to stop.
    pub fn wait(&self, duration: Duration) -> Result<(), Stopped> {
        let stop = match &self.stop {
            Stop::Channel(stop) => stop,
            Stop::Wake(wake) => return wake.wait_through(duration),
        };
        match stop.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
            Ok(never) => match never {},
        }
    }

    /// Waits for `duration`, or until the wake of [`Outlet::with_wake`] ends that.
    ///
    /// # Errors
    /// As soon as it is time to stop.
    fn wait_or_wake(&self, duration: Duration) -> Result<(), Stopped> {
        match &self.stop {
            Stop::Channel(_) => self.wait(duration),
            Stop::Wake(wake) => wake.wait(duration),
        }
    }

    /// Waits until it is time to stop.
    pub fn wait_for_stop(&self) -> Stopped {
        match &self.stop {
            Stop::Channel(stop) => match stop.recv() {
                Err(_) => Stopped,
                Ok(never) => match never {},
            },
            Stop::Wake(wake) => wake.wait_for_stop(),
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
    /// The system does not let the source wait for anything.
    #[error("cannot wait for what happens: {0}")]
    Wait(#[source] std::io::Error),
    /// The kernel refuses a part of the BPF probe.
    #[error(
        "the kernel refuses {what} of the BPF probe: {problem} (it takes Linux 5.11 or later with BTF, and root or the \
         capabilities CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)"
    )]
    Ebpf {
        /// Which part.
        what: String,
        /// The kernel's words; of a program, the verifier's.
        problem: String,
    },
    /// Another system's source.
    #[error("the source {0} does not exist on this system: write auto or poll")]
    NotHere(&'static str),
    /// Windows refuses the trace, or has ended it.
    #[error(
        "cannot {what} of Event Tracing for Windows: {problem} (it takes an administrator, the system, or a member of \
         Performance Log Users with the right to kernel events)"
    )]
    Etw {
        /// What was to be done.
        what: &'static str,
        /// The system's words.
        problem: String,
    },
    /// The kernel does not tell what it is asked for.
    #[error("cannot {what}: {source} ({way_out})")]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
        /// What would help.
        way_out: &'static str,
    },
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
    /// Events from the kernel by BPF (Linux).
    Ebpf,
    /// The kernel's messages on processes and sockets, and its tables each second (Linux).
    Netlink,
    /// Events by Event Tracing for Windows.
    Etw,
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
            ("ebpf", _) => Ok(Self::Ebpf),
            ("netlink", _) => Ok(Self::Netlink),
            ("etw", _) => Ok(Self::Etw),
            ("poll", _) => Ok(Self::Poll),
            (_, Some(("replay", path))) if !path.is_empty() => Ok(Self::Replay(path.into())),
            _ => {
                Err(format!("`{text}` is not a source: write auto, ebpf, netlink, etw, poll or replay:FILE"))
            }
        }
    }
}

/// Opens a source.
///
/// # Errors
/// When it cannot begin.
pub fn open(choice: &Choice, options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    match choice {
        Choice::Auto => fallback::first_that_opens(vec![
            ("ebpf", Box::new(|| ebpf(options))),
            ("netlink", Box::new(|| netlink(options))),
            ("etw", Box::new(|| etw(options))),
            ("poll", Box::new(|| poll(options))),
        ]),
        Choice::Ebpf => ebpf(options),
        Choice::Netlink => netlink(options),
        Choice::Etw => etw(options),
        Choice::Poll => poll(options),
        Choice::Replay(path) => Ok(Box::new(replay::Replay::open(path)?)),
    }
}

/// How a source works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of a source that polls: the time between two looks.
    pub period: Duration,
    /// Of the BPF source: bytes of the buffer between kernel and agent, a power of two.
    pub buffer_bytes: Option<u32>,
    /// Of the BPF source: connections of the agent's own network namespace only.
    pub own_network_namespace: bool,
}

#[cfg(target_os = "linux")]
fn ebpf(options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Ok(Box::new(linux::ebpf(options)?))
}

#[cfg(not(target_os = "linux"))]
fn ebpf(_options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Err(CaptureError::NotHere("ebpf"))
}

#[cfg(target_os = "linux")]
fn netlink(options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Ok(Box::new(linux::netlink(options)?))
}

#[cfg(not(target_os = "linux"))]
fn netlink(_options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Err(CaptureError::NotHere("netlink"))
}

#[cfg(target_os = "windows")]
fn etw(_options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Ok(Box::new(windows::etw()?))
}

#[cfg(not(target_os = "windows"))]
fn etw(_options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Err(CaptureError::NotHere("etw"))
}

fn poll(options: &Options) -> Result<Box<dyn Source>, CaptureError> {
    Ok(Box::new(poll::Poll::open(options.period)?))
}
