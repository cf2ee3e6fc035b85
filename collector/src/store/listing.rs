//! What is listed for a search, as the rest of the collector asks the store for it.

use alibi_proto::{
    flow::{FlowRecord, Protocol},
    id::HostId,
    process::ProcessLife,
};
use ipnet::IpNet;

use super::{Damage, StoreError};
use crate::search::{
    cursor::Place,
    document::{Connection, Truth},
    time::Stretch,
};

/// Flow records that are read for a page. Few under test, so that the limit is met.
pub const RECORDS_READ_MAX: u64 = if cfg!(test) { 700 } else { 1_000_000 };
/// Processes that are read for a page.
pub const PROCESSES_READ_MAX: usize = if cfg!(test) { 50 } else { 20_000 };
/// Processes that are passed over for a page, by their host or start alone.
pub const PROCESSES_PASSED_MAX: usize = if cfg!(test) { 120 } else { 2_000_000 };
/// Processes that are found by their connections for a page: those with the newest.
pub const OWNERS_MAX: usize = if cfg!(test) { 20 } else { 20_000 };
/// Flow records of one process that are read to tell its connections, the newest.
pub const RECORDS_OF_PROCESS_MAX: usize = if cfg!(test) { 30 } else { 10_000 };
/// Those of all processes that are read together.
pub const RECORDS_OF_PROCESSES_MAX: usize = if cfg!(test) { 300 } else { 500_000 };
/// How long a page may take to be read. What was found until then is told, and where it goes on.
pub const READING_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// A host that is meant, and a stretch of its own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStretch {
    /// The host.
    pub host: HostId,
    /// By its clock.
    pub stretch: Stretch,
}

/// Which flow records may be wanted: a superset, by which reading is saved.
#[derive(Clone, Copy, Debug)]
pub struct RecordSelection<'a> {
    /// The hosts, and when the record may have stood for its connection.
    pub hosts: &'a [HostStretch],
    /// Its remote; none: any.
    pub remotes: Option<&'a [IpNet]>,
    /// Its remote port; none: any.
    pub port: Option<u16>,
    /// Its protocol; none: any.
    pub protocol: Option<Protocol>,
}

/// In which order flow records are listed. Times are the ends of records, by each host's own clock; what is equal is in the
/// order of hosts and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowOrder {
    /// The newest first.
    Newest,
    /// The oldest first.
    Oldest,
    /// Those with the most bytes, both ways, first.
    MostBytes,
}

/// A listing of flow records.
pub struct FlowListing<'a> {
    /// Which may be wanted.
    pub selection: RecordSelection<'a>,
    /// In which order.
    pub order: FlowOrder,
    /// Only those after this one.
    pub after: Option<Place>,
    /// At most so many.
    pub limit: usize,
    /// Whether a record is wanted.
    pub wants: &'a mut dyn FnMut(HostId, &FlowRecord) -> Result<bool, StoreError>,
}

/// A listing of processes, the one that was started last first; by each host's own clock.
pub struct ProcessListing<'a> {
    /// The hosts, and when the process may have been started.
    pub hosts: &'a [HostStretch],
    /// Only those with a record of a connection like this; none: whatever they have.
    pub with_record: Option<RecordSelection<'a>>,
    /// Whether to look up parents.
    pub with_parent: bool,
    /// Only those after this one.
    pub after: Option<Place>,
    /// At most so many.
    pub limit: usize,
    /// Whether a process is wanted. Asked again with its connections where that depends on them.
    pub wants: &'a mut dyn FnMut(&Candidate<'_>) -> Truth,
}

/// A process that may be wanted.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its host.
    pub host: HostId,
    /// The process.
    pub life: &'a ProcessLife,
    /// Its parent, where that is on record and was looked up.
    pub parent: Option<&'a ProcessLife>,
    /// Its connections, where they were looked up.
    pub connections: Option<&'a [Connection]>,
}

/// A page of a listing.
#[derive(Debug)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next page begins, after this; none where there is none.
    pub next: Option<Place>,
    /// Where not everything was looked at that may belong on this page: why.
    pub cut: Option<&'static str>,
    /// How many records or processes were read for it.
    pub looked_at: u64,
    /// What could not be read that may have more.
    pub damage: Vec<Damage>,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), next: None, cut: None, looked_at: 0, damage: Vec::new() }
    }
}

/// A flow record that is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFlow {
    /// Where it stands.
    pub place: Place,
    /// Its host.
    pub host: HostId,
    /// The record.
    pub flow: FlowRecord,
}

/// A process that is listed.
#[derive(Clone, Debug)]
pub struct ListedProcess {
    /// Where it stands.
    pub place: Place,
    /// Its host.
    pub host: HostId,
    /// The process.
    pub life: ProcessLife,
    /// Its parent, where that is on record and was looked up.
    pub parent: Option<ProcessLife>,
    /// Its connections, where they were looked up.
    pub connections: Option<Vec<Connection>>,
    /// How many records of its connections were not read: there may be more connections, and more in them.
    pub records_left_out: u64,
}
