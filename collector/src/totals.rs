//! What flow records come to, group by group: exact sums, in bounded memory. Pure.
//!
//! A record counts wholly where it overlaps the window, because nobody knows when in it its bytes moved; what is of records that
//! reach out of the window is told beside it, so the truth lies between the two. No record spans more than 15 minutes, and none
//! more than the active timeout while bytes move.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use alibi_proto::{flow::FlowRecord, id::ConnectionUid, prevalence::Times, time::Timestamp, window::Window};

/// Groups that are told apart; what is of more of them is in the sum of all alone. Few under test, so that the bound is met.
pub const GROUPS_MAX: usize = if cfg!(test) { 16 } else { 50_000 };

/// Connections that are told apart; of more, a group has at least so many as were.
pub const CONNECTIONS_MAX: usize = if cfg!(test) { 64 } else { 2_000_000 };

/// Stretches of time that a process is shown in.
pub const BUCKETS_MAX: u64 = 64;

/// What records come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Different connections; at least so many if `connections_cut`.
    pub connections: u64,
    /// There were too many to tell apart.
    pub connections_cut: bool,
    /// Records.
    pub records: u64,
    /// Bytes each way.
    pub bytes_sent: u64,
    /// The same from the other end.
    pub bytes_received: u64,
    /// Of these, in records that reach out of the window.
    pub bytes_sent_at_edges: u64,
    /// The same from the other end.
    pub bytes_received_at_edges: u64,
    /// Records of which bytes were not measured.
    pub unmeasured: u64,
    /// From the beginning of the first to the end of the last, by the hosts' own clocks.
    pub times: Option<Times>,
}

impl Total {
    /// Takes in a record of a connection, which `is_new` or was in another.
    fn add(&mut self, flow: &FlowRecord, window: Window, is_new: Option<bool>) {
        self.connections += u64::from(is_new == Some(true));
        self.connections_cut |= is_new.is_none();
        self.records += 1;
        let times = Times { first: flow.first, last: flow.last };
        self.times = Some(self.times.map_or(times, |all| all.and(times)));
        let Some(traffic) = flow.traffic else {
            self.unmeasured += 1;
            return;
        };
        let add = |sum: &mut u64, bytes: u64| *sum = sum.saturating_add(bytes);
        add(&mut self.bytes_sent, traffic.bytes_sent);
        add(&mut self.bytes_received, traffic.bytes_received);
        if flow.first < window.from() || flow.last >= window.to() {
            add(&mut self.bytes_sent_at_edges, traffic.bytes_sent);
            add(&mut self.bytes_received_at_edges, traffic.bytes_received);
        }
    }

    /// Takes in another one, of other connections.
    pub fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.connections_cut |= other.connections_cut;
        self.records += other.records;
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
        self.bytes_sent_at_edges = self.bytes_sent_at_edges.saturating_add(other.bytes_sent_at_edges);
        self.bytes_received_at_edges =
            self.bytes_received_at_edges.saturating_add(other.bytes_received_at_edges);
        self.unmeasured += other.unmeasured;
        self.times = self.times.into_iter().chain(other.times).reduce(Times::and);
    }

    /// Bytes both ways.
    pub const fn bytes(&self) -> u64 {
        self.bytes_sent.saturating_add(self.bytes_received)
    }
}

/// Records, group by group. A record that is told twice counts twice: a store has each once.
#[derive(Debug)]
pub struct Tally<K> {
    groups: HashMap<K, (u32, Total)>,
    connections: HashSet<(u32, ConnectionUid)>,
    all: Total,
    untold: u64,
}

/// The sum of all, among the groups.
const ALL: u32 = u32::MAX;

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self { groups: HashMap::new(), connections: HashSet::new(), all: Total::default(), untold: 0 }
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// Takes in a record that overlaps the window, which is in its host's time.
    pub fn add(&mut self, key: K, flow: &FlowRecord, window: Window) {
        let is_first = is_first_in(&mut self.connections, ALL, flow.connection);
        self.all.add(flow, window, is_first);
        let next = self.groups.len();
        if next >= GROUPS_MAX && !self.groups.contains_key(&key) {
            self.untold += 1;
            return;
        }
        let (number, total) = self
            .groups
            .entry(key)
            .or_insert_with(|| (u32::try_from(next).unwrap_or(ALL - 1), Total::default()));
        let is_first = is_first_in(&mut self.connections, *number, flow.connection);
        total.add(flow, window, is_first);
    }

    /// All of them together.
    pub const fn all(&self) -> &Total {
        &self.all
    }

    /// How many records are of groups that were not told apart.
    pub const fn untold(&self) -> u64 {
        self.untold
    }

    /// The groups, in no order.
    pub fn into_groups(self) -> impl Iterator<Item = (K, Total)> {
        self.groups.into_iter().map(|(key, (_, total))| (key, total))
    }
}

/// Whether a connection is the first time in a group; none where there are too many to tell.
fn is_first_in(
    connections: &mut HashSet<(u32, ConnectionUid)>,
    group: u32,
    uid: ConnectionUid,
) -> Option<bool> {
    if connections.contains(&(group, uid)) {
        return Some(false);
    }
    (connections.len() < CONNECTIONS_MAX).then(|| connections.insert((group, uid)))
}

/// What happened in a stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its beginning.
    pub from: Timestamp,
    /// Connections that were opened in it.
    pub opened: u64,
    /// Records that ended in it.
    pub records: u64,
    /// Their bytes each way.
    pub bytes_sent: u64,
    /// The same from the other end.
    pub bytes_received: u64,
}

/// Stretches of time of one length, no more than [`BUCKETS_MAX`] from the first to the last.
#[derive(Clone, Debug)]
pub struct Buckets {
    width: Duration,
    from: Timestamp,
    to: Timestamp,
    buckets: Vec<Bucket>,
}

/// How long a stretch may be, in seconds.
const WIDTHS_S: [u64; 11] =
    [1, 10, 60, 300, 900, 3_600, 6 * 3_600, 86_400, 7 * 86_400, 28 * 86_400, 364 * 86_400];

impl Buckets {
    /// Over all of these times.
    pub fn over(times: Times) -> Self {
        let place = |at: Timestamp, width: u64| at.as_nanos() / 1_000_000_000 / width;
        let fits = |width: &&u64| place(times.last, **width) - place(times.first, **width) < BUCKETS_MAX;
        let width = *WIDTHS_S.iter().find(fits).unwrap_or(&WIDTHS_S[WIDTHS_S.len() - 1]);
        let first = place(times.first, width);
        let last = place(times.last, width).min(first + BUCKETS_MAX - 1);
        let at = |place: u64| Timestamp::from_secs(place * width);
        let bucket =
            |place| Bucket { from: at(place), opened: 0, records: 0, bytes_sent: 0, bytes_received: 0 };
        let buckets = (first..=last).map(bucket).collect();
        Self { width: Duration::from_secs(width), from: at(first), to: at(last + 1), buckets }
    }

    /// How long each is.
    pub const fn width(&self) -> Duration {
        self.width
    }

    /// Takes in a record. One that ends beyond the last stretch is of the last.
    pub fn add(&mut self, flow: &FlowRecord) {
        if flow.record == 0 && (self.from..self.to).contains(&flow.opened) {
            self.at(flow.opened).opened += 1;
        }
        let traffic = flow.traffic.unwrap_or_default();
        let bucket = self.at(flow.last);
        bucket.records += 1;
        bucket.bytes_sent = bucket.bytes_sent.saturating_add(traffic.bytes_sent);
        bucket.bytes_received = bucket.bytes_received.saturating_add(traffic.bytes_received);
    }

    fn at(&mut self, instant: Timestamp) -> &mut Bucket {
        let place = instant.since(self.from).as_nanos() / self.width.as_nanos();
        let last = self.buckets.len() - 1;
        &mut self.buckets[usize::try_from(place).unwrap_or(last).min(last)]
    }

    /// Those in which anything happened, in order.
    pub fn into_some(self) -> impl Iterator<Item = Bucket> {
        self.buckets.into_iter().filter(|bucket| bucket.opened > 0 || bucket.records > 0)
    }
}

#[cfg(test)]
mod tests;
