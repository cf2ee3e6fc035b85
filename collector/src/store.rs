//! Where the collector keeps what the agents recorded. [`Store`] is all that the rest knows of it; SQL stays in here.
//!
//! Exactly once: an agent delivers at least once, and [`Store::commit`] takes each (host, epoch, seq) once, together
//! with the place where the stream goes on, in one transaction.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use alibi_proto::{
    chain::{Anchor, ChainStatus},
    clock::{ClockHistory, ClockReading, HostClock},
    coverage::{Facet, Timeline},
    event::Batch,
    flow::FlowRecord,
    host::HostDescription,
    id::{Cursor, Epoch, HostId, ProcessUid, Seq},
    link::LinkRecord,
    name::{NamePattern, ServerNameRecord},
    prevalence::Identity,
    process::ProcessLife,
    question::{NamedRemotes, Question},
    time::Timestamp,
    window::Window,
};

pub mod access;
pub mod backup;
mod checksum;
mod codec;
mod database;
mod flows;
pub mod listing;
mod prevalence;
mod sqlite;
mod together;

use listing::{FlowListing, ListedFlow, ListedProcess, Page, ProcessListing};

pub(crate) use database::lock;
pub use prevalence::{
    FirstSeen, LAST_WITHIN, SIGHTING_PATHS_MAX, SIGHTINGS_KEPT, SIGHTINGS_OF_HOST_MAX, SightingOn,
};
pub use sqlite::{Repaired, SqliteStore};

#[cfg(test)]
mod conformance;

/// Where there are many hosts, and each is looked up.
type ByKey<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// The collector's memory. Calls block, but for [`Store::note`]; readers never wait for the writer.
///
/// Times are the hosts' own, but where it is said that they are the collector's.
///
/// The batches of one host are committed one after another. A question reads [`Progress`] first, then the clock, then the
/// flows, and the coverage last: what is committed or forgotten between the calls can then only make the answer less certain.
pub trait Store: Send + Sync {
    /// The agents that are followed, in the order in which they were added.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn agents(&self) -> Result<Vec<FollowedAgent>, StoreError>;

    /// Follows the agent at `address` from now on; false if it is followed already.
    ///
    /// # Errors
    /// When there are [`AGENTS_MAX`] already, or the store cannot be written.
    fn add_agent(&self, address: &str) -> Result<bool, StoreError>;

    /// Stops following the agent at `address`; false if it was not followed. What it sent is kept.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remove_agent(&self, address: &str) -> Result<bool, StoreError>;

    /// Notes what the agent at `address` says of itself and what was read of its clock, and tells how far its host's stream
    /// is known.
    ///
    /// # Errors
    /// When the host is followed at another address, or the store cannot be written.
    fn describe(
        &self,
        address: &str,
        description: &HostDescription,
        reading: Option<&ClockReading>,
        heard: Timestamp,
    ) -> Result<Progress, StoreError>;

    /// Takes in a batch without events, as [`Store::commit`] does, if nothing has to be written for that now; none where it
    /// has to be committed. Does not block.
    fn note(&self, host: HostId, batch: &Batch, heard: Timestamp) -> Option<Progress>;

    /// What is known of a host's clocks: all that was read of them, and every moment that its stream has told.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn clock(&self, host: HostId) -> Result<Arc<ClockHistory>, StoreError>;

    /// How the clock of each of these hosts stands by that, as is known at `now` by the collector's.
    fn host_clocks(&self, hosts: &[HostId], now: Timestamp) -> Vec<Result<HostClock, StoreError>>;

    /// The same of one host.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn host_clock(&self, host: HostId, now: Timestamp) -> Result<HostClock, StoreError> {
        self.host_clocks(&[host], now).pop().unwrap_or_else(|| Ok(HostClock::default()))
    }

    /// Takes in a batch of a host that has been described, in one transaction: events that are stored already are
    /// passed over, a hole becomes a loss in the coverage of every facet, an event of unknown kind a loss at its time,
    /// and another epoch than before a stop of all recording from where the stream was known. `Progress::known_until`
    /// becomes the batch's watermark, and never goes back. What was committed survives a power cut, except that a
    /// watermark that came alone may be lost, which is safe.
    ///
    /// The head of the chain after it becomes an anchor.
    ///
    /// # Errors
    /// When the batch does not continue the stream, or the chain (nothing of it is stored then), or the store cannot be
    /// written.
    fn commit(&self, host: HostId, batch: &Batch, heard: Timestamp) -> Result<Progress, StoreError>;

    /// Where a ring of a host is gone on with, if it is followed: one that was left and comes back, where it was left.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn resume_point(&self, host: HostId, epoch: Epoch) -> Result<ResumePoint, StoreError>;

    /// What is known of the chain of a host.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn chain(&self, host: HostId) -> Result<ChainStatus, StoreError>;

    /// What the host tells in a ring from `from` on contradicts what it told before, or does not go on from it, for this
    /// `reason`. What it told stays; the time since the last anchor before `from` becomes a gap; and the stream goes on at
    /// `from` as that of another ring. A ring of which nothing was told has nothing to contradict.
    ///
    /// # Errors
    /// When the host was never described, or the store cannot be written.
    fn diverge(
        &self,
        host: HostId,
        from: Cursor,
        reason: &str,
        heard: Timestamp,
    ) -> Result<Progress, StoreError>;

    /// The coverage of one facet of each of these hosts, over all that is kept.
    fn coverages(&self, hosts: &[HostId], facet: Facet) -> Vec<Result<Arc<Timeline>, StoreError>>;

    /// The same of one host.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn coverage(&self, host: HostId, facet: Facet) -> Result<Arc<Timeline>, StoreError> {
        self.coverages(&[host], facet).pop().unwrap_or_else(|| Ok(Arc::default()))
    }

    /// The records of a host that a question needs: remote end matched by the target or by what its name stands for
    /// ([`NamedRemotes::may_match`]), begun before the window ends, not ended before [`Question::looks_back_to`]. At most
    /// `limit`; those that overlap the window itself come first, then the newest.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn flows(
        &self,
        host: HostId,
        question: &Question,
        remotes: &NamedRemotes,
        limit: usize,
    ) -> Result<FlowsFound, StoreError>;

    /// As [`Store::flows`], of many hosts at once: of each, what it is asked. A host without any is missing. They are asked
    /// about one target, with the same addresses.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn flows_of_all(&self, asked: &[HostQuestion<'_>], limit: usize) -> Result<FlowsOfAll, StoreError>;

    /// The earliest [`unnamed_since`](alibi_proto::question::unnamed_since) of the records of each host that its question's
    /// port, protocol and time admit, whatever their remote; by the starts of processes that were committed before the
    /// records of their connections. Those within [`RECORD_SPAN_MAX`] of the record's end may be missing. And what could not be
    /// read that may have an earlier one.
    ///
    /// [`RECORD_SPAN_MAX`]: alibi_proto::flow::RECORD_SPAN_MAX
    ///
    /// # Errors
    /// When the store cannot be read.
    fn oldest_unnamed(
        &self,
        asked: &[HostQuestion<'_>],
    ) -> Result<(HashMap<HostId, Timestamp>, Vec<Damage>), StoreError>;

    /// The addresses that any host had resolved the name to before `before`, which is the collector's time, or may have, for
    /// all that is known of its clock; aliases included, sorted, at most `limit`; if there are more, `left_out` is 1.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn addresses_of(
        &self,
        name: &NamePattern,
        before: Timestamp,
        limit: usize,
    ) -> Result<Bounded<IpAddr>, StoreError>;

    /// Who resolved the name to what and when, at most `limit`; if there are more, `left_out` is 1.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn resolutions(&self, name: &NamePattern, limit: usize) -> Result<Bounded<Resolution>, StoreError>;

    /// The ClientHellos of hosts that asked for the name, each before an instant by its own clock, newest first, at most `limit` of
    /// each; if there are more, `left_out` is 1. A host without any is missing.
    ///
    /// # Errors
    /// When the store cannot be read; where it is damaged, that of the host.
    fn server_names(
        &self,
        asked: &[(HostId, Timestamp)],
        name: &NamePattern,
        limit: usize,
    ) -> Result<HellosOfAll, StoreError>;

    /// The changes of a host's network interfaces in a window, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn links(&self, host: HostId, window: Window, limit: usize) -> Result<Bounded<LinkRecord>, StoreError>;

    /// A process of a host, with what it became before `until` (of each process the [`EXECUTIONS_MAX`] newest executions
    /// are kept), and what is known of the executable that is then in force. An image without a hash has that of its
    /// file, whichever came first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn process(
        &self,
        host: HostId,
        uid: ProcessUid,
        until: Timestamp,
    ) -> Result<Option<ProcessLife>, StoreError>;

    /// The processes whose uid in lowercase hexadecimal begins with `prefix`, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn processes_by_prefix(
        &self,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(HostId, ProcessUid)>, StoreError>;

    /// Whether the host has, or ever had, a process of the user that `word` means, by name or id.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn had_user(&self, host: HostId, word: &str) -> Result<bool, StoreError>;

    /// The children of a process, in order of their start, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn children(
        &self,
        host: HostId,
        parent: ProcessUid,
        limit: usize,
    ) -> Result<Bounded<ProcessLife>, StoreError>;

    /// The flow records of a process, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn flows_of_process(
        &self,
        host: HostId,
        process: ProcessUid,
        limit: usize,
    ) -> Result<FlowsFound, StoreError>;

    /// Every flow record that is wanted and overlaps its host's window, each once, in no order and however many there are; `take`
    /// is told each with its host. And what could not be read that may have more.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn visit(
        &self,
        visit: &Visit<'_>,
        take: &mut dyn FnMut(HostId, &FlowRecord),
    ) -> Result<Vec<Damage>, StoreError>;

    /// What every host saw of an executable, also of one that was forgotten otherwise ([`SIGHTINGS_KEPT`]).
    ///
    /// # Errors
    /// When the store cannot be read.
    fn sightings(&self, identity: &Identity) -> Result<Vec<SightingOn>, StoreError>;

    /// The executables that a host saw first in a window, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn first_seen(
        &self,
        host: HostId,
        window: Window,
        limit: usize,
    ) -> Result<Bounded<FirstSeen>, StoreError>;

    /// What the host last saw until then may have been forgotten to keep within [`SIGHTINGS_OF_HOST_MAX`]; none if nothing was.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn sightings_forgotten(&self, host: HostId) -> Result<Option<Timestamp>, StoreError>;

    /// A page of a listing of flow records.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn list_flows(&self, listing: &mut FlowListing<'_>) -> Result<Page<ListedFlow>, StoreError>;

    /// A page of a listing of processes whose start is on record. What of one process cannot be read is told as damage.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn list_processes(&self, listing: &mut ProcessListing<'_>) -> Result<Page<ListedProcess>, StoreError>;

    /// Forgets what ended before `before`, and makes the coverage of that time `none`. What questions about the time
    /// from `before` on need is kept: the records that they look back to, and their owners.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn forget(&self, before: Timestamp) -> Result<(), StoreError>;

    /// As [`Store::forget`], day after day, the oldest first, until no more is taken on the disk than `bytes_max`. A day that is
    /// not over for a day by `now`, and what hosts say is from later than it came, stay, and then more may be taken.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    fn forget_to_fit(&self, bytes_max: u64, now: Timestamp) -> Result<Fitted, StoreError>;
}

/// The main database in a data directory.
pub const MAIN_DATABASE: &str = "alibi.db";

/// The directory of the flow records, beside it.
pub const FLOWS: &str = "alibi.flows";

/// The most agents that one collector follows. Few under test, so that the limit is met.
pub const AGENTS_MAX: usize = if cfg!(test) { 16 } else { 10_000 };

/// Anchors that are kept of one ring.
pub const ANCHORS_MAX: usize = alibi_proto::convert::stream::ANCHORS_MAX;

/// Breaks of the chain that are kept of one host, the newest. Few under test, so that the limit is met.
pub const BREAKS_MAX: usize = if cfg!(test) { 4 } else { 256 };

/// Executions that are kept of one process, those before them being counted. Few under test, so that the limit is met.
pub const EXECUTIONS_MAX: usize = if cfg!(test) { 4 } else { 64 };

/// Flow records of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowsFound {
    /// The records.
    pub rows: Vec<FlowRecord>,
    /// How many more there are.
    pub left_out: u64,
    /// What could not be read that may have more.
    pub damage: Vec<Damage>,
}

/// Flow records of many hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowsOfAll {
    /// Of each host that has some.
    pub by_host: HashMap<HostId, Bounded<FlowRecord>>,
    /// What could not be read that may have more, of any host.
    pub damage: Vec<Damage>,
}

/// Flow records that cannot be read, of any host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// From when on the connections in them may have lived, by the hosts' own clocks.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
    /// What is damaged, and how.
    pub reason: String,
}

/// What became of a store that was to take no more than so much room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// What it takes now.
    pub bytes: u64,
    /// What ended before is forgotten, if anything had to be.
    pub forgotten_before: Option<Timestamp>,
}

/// What one of many hosts is asked.
#[derive(Clone, Copy, Debug)]
pub struct HostQuestion<'a> {
    /// The host.
    pub host: HostId,
    /// The question, in the host's own time.
    pub question: &'a Question,
    /// What its name stands for there.
    pub remotes: &'a NamedRemotes,
}

/// Which flow records are visited; windows are in the hosts' own time.
#[derive(Clone, Copy, Debug)]
pub enum Visit<'a> {
    /// All of these hosts.
    All(&'a [(HostId, Window)]),
    /// Those that may match what hosts are asked, about one target, with the same addresses.
    Asked(&'a [HostQuestion<'a>]),
    /// Those of a process.
    Process(HostId, ProcessUid, Window),
}

/// A flow record, and which event of its host it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFlow {
    /// The host.
    pub host: HostId,
    /// The ring that it came from.
    pub epoch: Epoch,
    /// Its place there.
    pub seq: Seq,
    /// The record.
    pub flow: FlowRecord,
}

/// A name that a host resolved to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The host.
    pub host: HostId,
    /// The name that it asked for, or an alias in the answer.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// When it was first so resolved.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
    /// The time to live in the last answer, in seconds.
    pub ttl_s: u32,
}

/// A listing that was kept within a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounded<T> {
    /// What is listed.
    pub rows: Vec<T>,
    /// How many more there are.
    pub left_out: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), left_out: 0 }
    }
}

/// The ClientHellos of hosts.
pub type HellosOfAll = HashMap<HostId, Result<Bounded<ServerNameRecord>, StoreError>>;

/// An agent, and what is known of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowedAgent {
    /// Where it is dialled.
    pub address: String,
    /// What it last said of itself, and how far its stream is known; none until it has answered once.
    pub host: Option<(Arc<HostDescription>, Progress)>,
}

/// Where a ring of a host is gone on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    /// The event that is wanted next of it.
    pub next: Cursor,
    /// Heads of the chain over its events, up to which each is stored: the newest first, at most [`ANCHORS_MAX`].
    pub anchors: Vec<Anchor>,
}

/// How far a host's stream is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The next event wanted. Epoch 0 as long as there is none.
    pub next: Cursor,
    /// Everything up to here is stored.
    pub known_until: Option<Timestamp>,
    /// When the agent was last heard.
    pub heard: Option<Timestamp>,
    /// How many events have been stored, those forgotten since included.
    pub events: u64,
}

/// The store refuses, or cannot.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Two agents say that they are the same host.
    #[error(
        "the host {host} is followed at {address} already: stop one of the two agents, or `alibi host remove` one"
    )]
    HostTaken {
        /// The host.
        host: HostId,
        /// Where it is followed.
        address: String,
    },
    /// The list of agents is full.
    #[error("{AGENTS_MAX} agents are followed already, and one collector takes no more: remove one first")]
    TooManyAgents,
    /// The address is not in the list.
    #[error("no agent is followed at {0}: `alibi hosts` lists those that are")]
    UnknownAgent(String),
    /// The host never described itself.
    #[error("no host {0} is known")]
    UnknownHost(HostId),
    /// Events are missing between what is stored and the batch.
    #[error("the batch begins at seq {got}, and seq {wanted} is wanted: events are missing without a hole")]
    Discontinuity {
        /// The first of the batch.
        got: u64,
        /// The next that is wanted.
        wanted: u64,
    },
    /// The batch does not go on where the chain ended.
    #[error("what comes from seq {seq} on does not continue what was told before it")]
    Broken {
        /// The first event of the batch.
        seq: u64,
    },
    /// A number from an agent that no honest agent sends.
    #[error("the {what} {value} cannot be stored: it is 0, or too large")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// Something stored cannot be read back.
    #[error("a stored {what} is damaged: {problem}")]
    Damaged {
        /// What it was.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Written by a newer version, or by another program.
    #[error("cannot use the database {path}, which {problem}")]
    Foreign {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no room for more. Nothing of what did not fit is stored.
    #[error("the disk of the database {path} is full: make room there")]
    Full {
        /// The file.
        path: String,
    },
    /// SQLite cannot use its file.
    #[error("cannot use the database {path}: {source}; mend that, or choose another directory with --data")]
    Unusable {
        /// The file.
        path: String,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// SQLite cannot; which file it is, is added where that is known.
    #[error("the database cannot be used: {0}")]
    Sqlite(#[from] rusqlite::Error),
}
