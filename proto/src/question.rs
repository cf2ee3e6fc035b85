//! The question and its answer. Pure: agent and collector ask the same one of what they have.
//!
//! A connection matches when its *life* overlaps the window; when its process started plays no part. `clear` needs
//! proof: no gap in the coverage of the whole window. Everything else without a match is `unknown`.
//!
//! # Names
//! A connection matches a name if its own known name (TLS, or the latest DNS answer) does, if its TLS ClientHello asked
//! for it, or if its remote address is one that any host had resolved for the name before the window ended, or one that
//! was given with the question. An address may be shared by many names (a content network): a connection with it
//! matches even if it asked for another name, because ruling a host out wrongly is worse; its record shows the name that
//! it did ask for.
//!
//! `clear` then needs more: a host that never resolved the name, though everything it resolved was recorded, did not
//! know where to connect. So the names facet must be without a gap too, from [`NAME_MEMORY`] before the window on, or
//! from as long before the earliest instant at which the owner of a connection that is alive in the window can have
//! learned its address ([`unnamed_since`]); unless the analyst gives the addresses, which then are what is asked about.
//!
//! Which instant that is, of a connection to an address A that no recorded answer gave for the name:
//! - It tells another name by TLS: it was made by that one. (Who lies there, as by domain fronting, is asked for by
//!   address.)
//! - No recorded answer gave A for any name: A came from somewhere that was not recorded, and may be the name's.
//! - An answer gave A for another name: A may be shared (a content network, a proxy), and the owner may have A from an
//!   older answer, for the name that is asked for. Programs keep an address for as long as they run (daemons that resolve
//!   at their start, pools that reconnect), so a time to live bounds nothing. But the memory of a process is no older than
//!   the process. What it was given at its start (arguments, what a parent had in its memory before a fork, a resolver's
//!   cache) is taken to be no older than [`NAME_MEMORY`]. An older answer that was recorded gives A for the name, however
//!   old it is, and then the connection matches.
//! - The owner is not known, or its start is not, or it started after the opening (another process opened the connection
//!   and handed it on): so is the instant.
//! - A is asked at the port of DNS, and no answer gave it: a resolver, whose address comes with the network. Who hides
//!   behind that port is asked for by address.
//!
//! # Clocks
//! The window is in the collector's time, all that a host recorded in its own: see [`Asked`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    clock::HostClock,
    coverage::{Facet, Gap, Grade, NOT_BEGUN, Scope, Timeline},
    flow::{Direction, FlowRecord, FlowState, RECORD_SPAN_MAX, Traffic, words},
    id::{ConnectionUid, HostId, ProcessUid},
    name::{NameSource, ServerNameRecord},
    process::ProcessLife,
    target::Target,
    time::Timestamp,
    window::Window,
};

mod asked;
mod summary;

pub use asked::{AnswerClock, Asked};
pub use summary::{Summary, Unproven};

/// How old an address may be that a process is given when it starts: resolvers keep an answer for a day at most by default
/// (unbound and BIND 9 cap the time to live at a day or a week, systemd-resolved at two hours), and programs that start
/// others for less.
pub const NAME_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// Addresses that one name is looked for by. What is beyond leaves hosts `unknown`.
pub const NAME_ADDRESSES_MAX: usize = 1_000;

/// A ClientHello may be recorded so much before the opening of its connection.
const HELLO_TOLERANCE: Duration = Duration::from_secs(1);

/// Who talked to `target` during `window`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The other end.
    pub target: Target,
    /// When.
    pub window: Window,
}

impl Question {
    /// Records that end before this cannot matter: none spans more than [`RECORD_SPAN_MAX`], and one that leaves its
    /// connection open is followed by another within that time.
    pub fn looks_back_to(&self) -> Timestamp {
        self.window.from().saturating_sub(RECORD_SPAN_MAX)
    }
}

/// What a name stands for, besides the addresses that are given with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedRemotes {
    /// Addresses that it was resolved to, by any host, before the window ended.
    pub addresses: BTreeSet<IpAddr>,
    /// There are more than [`NAME_ADDRESSES_MAX`] addresses or ClientHellos.
    pub left_out: bool,
    /// The ClientHellos of this host that asked for it before the window ended.
    pub hellos: Vec<ServerNameRecord>,
}

impl NamedRemotes {
    /// The addresses that an answer is made with, as text: those given with the question, and these; sorted, each once.
    pub fn used(&self, question: &Question) -> Vec<String> {
        let resolved = self.addresses.iter().filter(|address| !question.target.contains(**address));
        let mut used: Vec<IpNet> = resolved.map(|address| IpNet::from(*address)).collect();
        used.extend(question.target.networks());
        used.sort_unstable();
        used.into_iter().map(crate::target::network_text).collect()
    }

    /// Whether a record may belong to a connection that is meant; whether it does, all records of the connection tell.
    pub fn may_match(&self, question: &Question, flow: &FlowRecord) -> bool {
        question.target.admits(flow.protocol, flow.remote.port())
            && (self.names_record(question, flow)
                || self.hellos.iter().any(|hello| hello.remote == flow.remote))
    }

    /// Whether the record alone tells that its connection is meant.
    fn names_record(&self, question: &Question, flow: &FlowRecord) -> bool {
        let named = |name| question.target.name().is_some_and(|pattern| pattern.matches(name));
        question.target.contains(flow.remote.ip())
            || self.addresses.contains(&flow.remote.ip().to_canonical())
            || flow.remote_name.as_ref().is_some_and(|remote| named(&remote.name))
    }

    /// Whether a connection is meant, whose records these are, in order of time.
    fn names_connection(&self, question: &Question, records: &[&FlowRecord]) -> bool {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return false };
        if !question.target.admits(first.protocol, first.remote.port()) {
            return false;
        }
        let its_own = |hello: &ServerNameRecord| match hello.connection {
            Some(connection) => connection == first.connection,
            None => {
                hello.local == first.local
                    && hello.remote == first.remote
                    && hello.at >= first.opened.saturating_sub(HELLO_TOLERANCE)
                    && (last.leaves_open() || hello.at <= last.last)
            }
        };
        records.iter().any(|record| self.names_record(question, record)) || self.hellos.iter().any(its_own)
    }
}

/// What is known of one host's names.
#[derive(Debug)]
pub struct NameEvidence<'a> {
    /// Coverage of the names facet.
    pub coverage: &'a Timeline,
    /// What the name stands for.
    pub remotes: &'a NamedRemotes,
    /// The earliest of [`unnamed_since`] of all connections that are alive in the window and that the target's port and
    /// protocol admit; up to half an hour before the window need not be told.
    pub unnamed_since: Option<Timestamp>,
}

/// Since when the owner of a connection, which started at `owner_started`, can have its address from an answer for any
/// name: since it started; or since an instant that is not known ([`Timestamp::ZERO`]), if no answer ever gave the address,
/// if the connection was open before recording began, or if the owner is not known to have run when it was opened. None if
/// the connection tells its name (TLS), if the other end opened it, or if it goes to no other host: to this one, or to all
/// that listen (multicast, broadcast).
///
/// A connection to the port of DNS is one to a resolver, whose address comes with the network and not by name.
pub fn unnamed_since(flow: &FlowRecord, owner_started: Option<Timestamp>) -> Option<Timestamp> {
    const DNS_PORT: u16 = 53;
    let source = flow.remote_name.as_ref().map(|name| name.source);
    let remote = flow.remote.ip().to_canonical();
    let leaves = flow.direction == Direction::Outbound
        && !remote.is_loopback()
        && !remote.is_multicast()
        && remote != IpAddr::from(Ipv4Addr::BROADCAST);
    if !leaves || source == Some(NameSource::Sni) {
        return None;
    }
    let since = match source {
        _ if flow.already_open => None,
        Some(_) => owner_started.filter(|started| *started <= flow.opened),
        None => (flow.remote.port() == DNS_PORT).then_some(flow.opened),
    };
    Some(since.unwrap_or(Timestamp::ZERO))
}

words! {
    /// The answer for one host.
    Verdict {
        /// At least one matching connection.
        Talked = "talked",
        /// None, and proven complete.
        Clear = "clear",
        /// None found, and nothing proven.
        Unknown = "unknown",
    }
}

words! {
    /// What a connection did inside the window.
    InWindow {
        /// Bytes moved.
        Bytes = "bytes",
        /// It was asked for, or failed.
        Attempt = "attempt",
        /// It was open; no byte is known to have moved.
        Idle = "idle",
    }
}

/// All that is known of one host when the question is put.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// None for a host that never answered.
    pub host: Option<HostId>,
    /// Its name, or its address if it never answered.
    pub name: String,
    /// How its clock stands to that of whoever asks. All times below are by the host's.
    pub clock: &'a HostClock,
    /// Coverage of the connections facet.
    pub connections: &'a Timeline,
    /// Everything up to here is known; none if nothing is.
    pub known_until: Option<Timestamp>,
    /// What is known of the names; none if the target has none, or if nothing is known.
    pub names: Option<NameEvidence<'a>>,
    /// Records whose remote end matches the target or may match it, that begin before the window of [`Asked`] ends and do
    /// not end before [`Question::looks_back_to`] of it; in any order.
    pub flows: Vec<FlowRecord>,
    /// How many such records were left out to keep within a bound.
    pub flows_left_out: u64,
}

/// The answer for one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAnswer {
    /// None for a host that never answered.
    pub host: Option<HostId>,
    /// Its name, or its address if it never answered.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Every stretch of the window that is not proven complete.
    pub gaps: Vec<Gap>,
    /// Who talked, and how.
    pub processes: Vec<ProcessActivity>,
    /// What the recordings in the window covered.
    pub scopes: Vec<Arc<Scope>>,
    /// Everything up to here was known.
    pub known_until: Option<Timestamp>,
    /// How many matching records were left out to keep within a bound.
    pub records_left_out: u64,
    /// How its clock stood, if another asked and it was measured. All times are the asker's: by the host's clock they are
    /// later by the offset.
    pub clock: Option<AnswerClock>,
}

/// The matching connections of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessActivity {
    /// The owner; none if it is not known.
    pub uid: Option<ProcessUid>,
    /// The owner's record; none if there is none.
    pub life: Option<ProcessLife>,
    /// Its matching connections, in order of their opening.
    pub connections: Vec<ConnectionActivity>,
}

/// One matching connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionActivity {
    /// The last of its records that overlaps the window; its `first` is the connection's opening, its `last` the end
    /// of its life as far as known, its `traffic` what moved in the records that overlap the window.
    pub flow: FlowRecord,
    /// What it did inside the window.
    pub in_window: InWindow,
    /// It is so near an edge of the window that, by the bound of the host's clock, it may have been outside.
    pub in_margin: bool,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was asked.
    pub question: Question,
    /// The addresses that the target stood for.
    pub addresses: Vec<String>,
    /// Every host in scope, talkers first.
    pub hosts: Vec<HostAnswer>,
}

impl Answer {
    /// The verdict over all hosts: somebody talked, or all are clear, or unknown. Nobody asked is unknown.
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.hosts.iter().any(|host| host.verdict == verdict);
        if any(Verdict::Talked) {
            Verdict::Talked
        } else if any(Verdict::Unknown) || self.hosts.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Clear
        }
    }
}

/// Answers for one host. `life_of` looks a process up.
pub fn judge(
    question: &Question,
    evidence: Evidence<'_>,
    life_of: impl FnMut(ProcessUid) -> Option<ProcessLife>,
) -> HostAnswer {
    judge_asked(&question.asked_of(evidence.clock), evidence, life_of)
}

/// The same, of a question as the host of the evidence is asked.
pub fn judge_asked(
    asked: &Asked,
    evidence: Evidence<'_>,
    mut life_of: impl FnMut(ProcessUid) -> Option<ProcessLife>,
) -> HostAnswer {
    let question = &asked.question;
    let matching = matching_connections(asked, &evidence);
    let talked = matching.iter().any(|connection| !connection.in_margin);
    let mut gaps = evidence.connections.gaps(Facet::Connections, question.window, evidence.known_until);
    gaps.extend(name_gaps(question, &evidence));
    if evidence.flows_left_out > 0 && matching.is_empty() {
        gaps.push(Gap {
            facet: Facet::Connections,
            grade: Grade::Lost {
                count: evidence.flows_left_out,
                reason: "more records than one answer may hold: narrow the target or the window".to_owned(),
            },
            from: question.window.from(),
            to: question.window.to(),
        });
    }
    if !talked && !matching.is_empty() && asked.is_measured() {
        gaps.push(asked.in_margin());
    }
    let verdict = match (talked, matching.is_empty() && gaps.is_empty() && asked.is_measured()) {
        (true, _) => Verdict::Talked,
        (false, true) => Verdict::Clear,
        (false, false) => Verdict::Unknown,
    };

    let mut scopes = evidence.connections.scopes(question.window);
    for scope in evidence.names.iter().flat_map(|names| names.coverage.scopes(question.window)) {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }

    let mut by_owner: BTreeMap<Option<ProcessUid>, Vec<ConnectionActivity>> = BTreeMap::new();
    for connection in matching {
        by_owner.entry(connection.flow.process).or_default().push(connection);
    }
    let mut processes: Vec<_> = by_owner
        .into_iter()
        .map(|(uid, mut connections)| {
            connections.sort_by_key(|connection| connection.flow.opened);
            ProcessActivity { uid, life: uid.and_then(&mut life_of), connections }
        })
        .collect();
    processes.sort_by_key(|process| process.connections.first().map(|connection| connection.flow.opened));

    let mut answer = HostAnswer {
        host: evidence.host,
        name: evidence.name,
        verdict,
        gaps,
        processes,
        scopes,
        known_until: evidence.known_until,
        records_left_out: evidence.flows_left_out,
        clock: None,
    };
    asked.translate(&mut answer, evidence.clock);
    // Where nothing was received, that is reason enough.
    if evidence.known_until.is_some() {
        answer.gaps.extend(asked.unmeasured());
    }
    answer
}

/// Why a host is not ruled out by a name of which no match was found; none if the target is no name.
fn name_gaps(question: &Question, evidence: &Evidence<'_>) -> Vec<Gap> {
    if question.target.name().is_none() {
        return Vec::new();
    }
    let window = question.window;
    let whole = |grade| Gap { facet: Facet::Names, grade, from: window.from(), to: window.to() };
    let Some(names) = &evidence.names else {
        let reason = "nothing is known of this host's names".to_owned();
        return vec![whole(Grade::NotRecorded { reason })];
    };
    let mut gaps = Vec::new();
    if names.remotes.left_out {
        let reason = format!(
            "the name stands for more than {NAME_ADDRESSES_MAX} addresses or ClientHellos: ask for a longer name"
        );
        gaps.push(whole(Grade::Lost { count: 0, reason }));
    }
    if !question.target.networks().is_empty() {
        return gaps;
    }
    let oldest = names.unnamed_since.filter(|since| *since < window.from());
    if oldest == Some(Timestamp::ZERO) {
        let reason = format!(
            "there was a connection to an address that no recorded answer gave, or that was open before recording \
             began, or whose owner's start is not on record: {GIVE_ADDRESSES}"
        );
        gaps.push(whole(Grade::NotRecorded { reason }));
    }
    let learned = oldest.filter(|since| *since > Timestamp::ZERO).unwrap_or(window.from());
    let needed = Window::new(learned.saturating_sub(NAME_MEMORY), window.to());
    let needed = needed.unwrap_or(window);
    for mut gap in names.coverage.gaps(Facet::Names, needed, evidence.known_until) {
        if let Grade::NotRecorded { reason } = &mut gap.grade {
            *reason = match reason.as_str() {
                NOT_BEGUN => format!("names before {} were not recorded", gap.to),
                _ => std::mem::take(reason),
            };
            if gap.from < window.from() {
                *reason =
                    format!("{reason}: a program may have kept an address from before; {GIVE_ADDRESSES}");
            }
        }
        gaps.push(gap);
    }
    gaps
}

const GIVE_ADDRESSES: &str = "give the addresses with --address";

fn matching_connections(asked: &Asked, evidence: &Evidence<'_>) -> Vec<ConnectionActivity> {
    let question = &asked.question;
    let mut connections: BTreeMap<ConnectionUid, Vec<&FlowRecord>> = BTreeMap::new();
    for flow in &evidence.flows {
        connections.entry(flow.connection).or_default().push(flow);
    }
    let nothing = NamedRemotes::default();
    let remotes = evidence.names.as_ref().map_or(&nothing, |names| names.remotes);
    connections
        .into_values()
        .filter_map(|mut records| {
            // Records of an instant share their times; only their position tells the last one.
            records.sort_by_key(|record| (record.first, record.last, record.record));
            // A name is that of the connection, whichever of its records tells it.
            let meant = remotes.names_connection(question, &records);
            meant.then(|| connection_activity(asked, evidence, &records)).flatten()
        })
        .collect()
}

/// Puts the records of one connection together, in order of time; none if its life does not overlap the window.
fn connection_activity(
    asked: &Asked,
    evidence: &Evidence<'_>,
    records: &[&FlowRecord],
) -> Option<ConnectionActivity> {
    let window = asked.question.window;
    let mut found: Option<ConnectionActivity> = None;
    // Since when it is proven to have lived, without a break.
    let mut alive: Option<(Timestamp, Timestamp)> = None;
    for (index, record) in records.iter().enumerate() {
        // The next one begins where this one ends. One that begins inside it was stamped before the clock was set back.
        let next = records[index + 1..].iter().map(|next| next.first).find(|first| *first >= record.last);
        let life_ends = life_ends(record, next, evidence);
        if !window.overlaps(record.first, life_ends) {
            continue;
        }
        alive = match alive {
            Some((since, until)) if record.first <= until => Some((since, until.max(life_ends))),
            _ => Some((record.first, life_ends)),
        };
        let certain =
            alive.is_some_and(|(since, until)| asked.certainly_overlaps(evidence.clock, since, until));
        let in_margin = !certain && found.as_ref().is_none_or(|before| before.in_margin);
        let in_window = in_window(asked, record);
        let (traffic, in_window) = match &found {
            Some(before) => (sum(before.flow.traffic, record.traffic), in_window.min(before.in_window)),
            None => (record.traffic, in_window),
        };
        // Moved outside the window, but in a record whose life reaches in by being left open: not counted.
        let traffic = if window.overlaps(record.first, record.last) {
            traffic
        } else {
            found.as_ref().map_or(record.traffic.map(|_| Traffic::default()), |before| before.flow.traffic)
        };
        let flow = FlowRecord { first: record.opened, last: life_ends, traffic, ..(*record).clone() };
        found = Some(ConnectionActivity { flow, in_window, in_margin });
    }
    found
}

/// How far a record proves the connection's life. One that leaves it open does so until the next record, until
/// recording was interrupted, or as far as the stream is known, and never longer than a record may span.
fn life_ends(record: &FlowRecord, next: Option<Timestamp>, evidence: &Evidence<'_>) -> Timestamp {
    if !record.leaves_open() {
        return record.last;
    }
    [
        next,
        evidence.connections.interrupted_after(record.last),
        evidence.known_until,
        Some(record.last.saturating_add(RECORD_SPAN_MAX)),
    ]
    .into_iter()
    .flatten()
    .min()
    .map_or(record.last, |end| end.max(record.last))
}

/// What it did inside, for certain.
fn in_window(asked: &Asked, record: &FlowRecord) -> InWindow {
    let (from, to) = asked.certain();
    let contains = |instant| from <= instant && instant < to;
    let moved = record.traffic.is_some_and(|traffic| traffic.any());
    let opened = !record.already_open && contains(record.opened);
    let failed = matches!(record.state, FlowState::Failed(_)) && contains(record.last);
    if moved && record.first < to && record.last >= from {
        InWindow::Bytes
    } else if opened || failed {
        InWindow::Attempt
    } else {
        InWindow::Idle
    }
}

fn sum(before: Option<Traffic>, more: Option<Traffic>) -> Option<Traffic> {
    match (before, more) {
        (Some(before), Some(more)) => Some(before.plus(&more)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
