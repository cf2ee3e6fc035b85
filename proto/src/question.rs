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
//! know where to connect. So the names facet must be without a gap too, from [`NAME_MEMORY`] before the window, or
//! before the opening of the oldest connection that is alive in the window, whichever is earlier; unless the analyst
//! gives the addresses, which then are what is asked about.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    coverage::{Facet, Gap, Grade, NOT_BEGUN, Scope, Timeline},
    flow::{Direction, FlowRecord, FlowState, RECORD_SPAN_MAX, Traffic, words},
    id::{ConnectionUid, HostId, ProcessUid},
    name::{NameSource, ServerNameRecord},
    process::ProcessLife,
    target::Target,
    time::Timestamp,
    window::Window,
};

/// How long a program may use an address before it resolves the name again: resolvers keep an answer for a day at most
/// by default (unbound and BIND 9 cap the time to live at a day or a week, systemd-resolved at two hours), and programs
/// for less.
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

/// When a connection was opened that does not tell by what name: [`Timestamp::ZERO`] if before recording began. None
/// if it tells (TLS), if the other end opened it, or if it does not leave the host.
pub fn unnamed_since(flow: &FlowRecord) -> Option<Timestamp> {
    let tells = flow.remote_name.as_ref().is_some_and(|name| name.source == NameSource::Sni);
    let leaves = flow.direction == Direction::Outbound && !flow.remote.ip().to_canonical().is_loopback();
    let since = if flow.already_open { Timestamp::ZERO } else { flow.opened };
    (leaves && !tells).then_some(since)
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
    /// Coverage of the connections facet.
    pub connections: &'a Timeline,
    /// Everything up to here is known; none if nothing is.
    pub known_until: Option<Timestamp>,
    /// What is known of the names; none if the target has none, or if nothing is known.
    pub names: Option<NameEvidence<'a>>,
    /// Records whose remote end matches the target or may match it, that begin before the window ends and do not end
    /// before [`Question::looks_back_to`]; in any order.
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
    pub scopes: Vec<Scope>,
    /// Everything up to here was known.
    pub known_until: Option<Timestamp>,
    /// How many matching records were left out to keep within a bound.
    pub records_left_out: u64,
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
    mut life_of: impl FnMut(ProcessUid) -> Option<ProcessLife>,
) -> HostAnswer {
    let matching = matching_connections(question, &evidence);
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
    let verdict = match (matching.is_empty(), gaps.is_empty()) {
        (false, _) => Verdict::Talked,
        (true, true) => Verdict::Clear,
        (true, false) => Verdict::Unknown,
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

    HostAnswer {
        host: evidence.host,
        name: evidence.name,
        verdict,
        gaps,
        processes,
        scopes,
        known_until: evidence.known_until,
        records_left_out: evidence.flows_left_out,
    }
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
            "a connection was open before recording began, and its name is not known: {GIVE_ADDRESSES}"
        );
        gaps.push(whole(Grade::NotRecorded { reason }));
    }
    let opened = oldest.filter(|since| *since > Timestamp::ZERO).unwrap_or(window.from());
    let needed = Window::new(opened.saturating_sub(NAME_MEMORY), window.to());
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

fn matching_connections(question: &Question, evidence: &Evidence<'_>) -> Vec<ConnectionActivity> {
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
            meant.then(|| connection_activity(question.window, evidence, &records)).flatten()
        })
        .collect()
}

/// Puts the records of one connection together, in order of time; none if its life does not overlap the window.
fn connection_activity(
    window: Window,
    evidence: &Evidence<'_>,
    records: &[&FlowRecord],
) -> Option<ConnectionActivity> {
    let mut found: Option<ConnectionActivity> = None;
    for (index, record) in records.iter().enumerate() {
        let next = records.get(index + 1).map(|next| next.first);
        let life_ends = life_ends(record, next, evidence);
        if !window.overlaps(record.first, life_ends) {
            continue;
        }
        let in_window = in_window(window, record);
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
        found = Some(ConnectionActivity { flow, in_window });
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

fn in_window(window: Window, record: &FlowRecord) -> InWindow {
    let moved = record.traffic.is_some_and(|traffic| traffic.any());
    let asked = !record.already_open && window.contains(record.opened);
    let failed = matches!(record.state, FlowState::Failed(_)) && window.contains(record.last);
    if moved && window.overlaps(record.first, record.last) {
        InWindow::Bytes
    } else if asked || failed {
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
mod tests {
    use super::*;
    use crate::{
        coverage::CoverageChange,
        flow::{Attribution, Direction, FlowEndReason, Protocol},
        id::ConnectionUid,
    };

    const MINUTE: u64 = 60_000_000_000;

    fn minute(minutes: u64) -> Timestamp {
        Timestamp::from_nanos(minutes * MINUTE)
    }

    /// A record from minute to minute; open ended if `open`.
    fn record(first: u64, last: u64, open: bool, bytes: Option<u64>) -> FlowRecord {
        FlowRecord {
            connection: ConnectionUid::from_bytes([1; 16]),
            process: Some(ProcessUid::from_bytes([2; 16])),
            attribution: Attribution::SocketTable,
            protocol: Protocol::Tcp,
            direction: Direction::Outbound,
            local: "192.0.2.1:5000".parse().unwrap(),
            remote: "198.51.100.7:443".parse().unwrap(),
            opened: minute(first),
            already_open: false,
            first: minute(first),
            last: minute(last),
            traffic: bytes.map(|bytes| Traffic { bytes_sent: bytes, ..Traffic::default() }),
            state: if open { FlowState::Established } else { FlowState::Closed },
            end_reason: if open { FlowEndReason::ActiveTimeout } else { FlowEndReason::EndOfFlow },
            record: 0,
            interface: None,
            network_namespace: None,
            round_trip: None,
            remote_name: None,
        }
    }

    fn complete() -> Timeline {
        let mut timeline = Timeline::default();
        timeline.apply(&CoverageChange {
            facet: Facet::Connections,
            grade: Grade::Complete,
            from: Timestamp::ZERO,
            to: None,
            scope: None,
            announced_from: None,
        });
        timeline
    }

    fn ask(timeline: &Timeline, flows: Vec<FlowRecord>, known_until: u64) -> HostAnswer {
        let question = Question {
            target: Target::parse("198.51.100.7", None, None).unwrap(),
            window: Window::new(minute(100), minute(110)).unwrap(),
        };
        let evidence = Evidence {
            host: None,
            name: "h".into(),
            connections: timeline,
            known_until: Some(minute(known_until)),
            names: None,
            flows,
            flows_left_out: 0,
        };
        judge(&question, evidence, |_| None)
    }

    #[track_caller]
    fn check(flows: Vec<FlowRecord>, verdict: Verdict, in_window: Option<InWindow>) {
        let answer = ask(&complete(), flows, 200);
        let found = answer.processes.first().map(|process| process.connections[0].in_window);
        assert_eq!((answer.verdict, found), (verdict, in_window));
    }

    #[test]
    fn a_life_that_touches_the_window_matches() {
        use InWindow::{Attempt, Bytes, Idle};
        use Verdict::{Clear, Talked};
        check(vec![], Clear, None);
        check(vec![record(95, 100, false, None)], Talked, Some(Idle)); // ends exactly at from
        check(vec![record(90, 99, false, None)], Clear, None);
        check(vec![record(110, 112, false, None)], Clear, None); // starts exactly at to
        check(vec![record(109, 112, false, None)], Talked, Some(Attempt));
        check(vec![record(99, 111, false, None)], Talked, Some(Idle)); // spans the whole window
        check(vec![record(99, 111, false, Some(5))], Talked, Some(Bytes));
        check(vec![record(99, 111, false, Some(0))], Talked, Some(Idle));
        check(vec![record(98, 99, true, Some(7))], Talked, Some(Idle)); // left open before the window
        check(vec![record(70, 84, true, None)], Clear, None); // no record after it for more than 15 minutes
        check(vec![record(98, 99, true, None), record(99, 99, false, None)], Clear, None); // closed before it
    }

    #[test]
    fn records_of_one_instant_stand_in_their_order_whatever_order_they_come_in() {
        let opened = record(98, 98, true, None);
        let closed = FlowRecord { record: 1, ..record(98, 98, false, None) };
        check(vec![opened.clone(), closed.clone()], Verdict::Clear, None);
        check(vec![closed, opened], Verdict::Clear, None);
    }

    #[test]
    fn a_failure_inside_the_window_is_an_attempt() {
        let mut failed = record(99, 105, false, None);
        failed.state = FlowState::Failed(113);
        check(vec![failed], Verdict::Talked, Some(InWindow::Attempt));
    }

    #[test]
    fn an_open_life_is_not_believed_past_an_interruption() {
        let mut timeline = complete();
        timeline.apply(&CoverageChange {
            facet: Facet::Connections,
            grade: Grade::NotRecorded { reason: "stopped".into() },
            from: minute(99),
            to: None,
            scope: None,
            announced_from: None,
        });
        let answer = ask(&timeline, vec![record(97, 98, true, None)], 200);
        assert_eq!(answer.verdict, Verdict::Unknown);
        let answer = ask(&complete(), vec![record(97, 98, true, None)], 99);
        assert_eq!(answer.verdict, Verdict::Unknown, "the stream is known up to minute 99 only");
    }

    #[test]
    fn a_cut_listing_is_never_clear() {
        let question = Question {
            target: Target::parse("198.51.100.7", None, None).unwrap(),
            window: Window::new(minute(100), minute(110)).unwrap(),
        };
        let timeline = complete();
        let evidence = Evidence {
            host: None,
            name: "h".into(),
            connections: &timeline,
            known_until: Some(minute(200)),
            names: None,
            flows: vec![],
            flows_left_out: 3,
        };
        assert_eq!(judge(&question, evidence, |_| None).verdict, Verdict::Unknown);
    }

    #[test]
    fn records_of_a_connection_are_put_together() {
        let mut second = record(101, 105, false, Some(20));
        second.opened = minute(50);
        let mut first = record(96, 101, true, Some(10));
        first.opened = minute(50);
        let answer = ask(&complete(), vec![second, first], 200);
        let connection = &answer.processes[0].connections[0];
        assert_eq!(connection.flow.traffic.unwrap().bytes_sent, 30);
        assert_eq!((connection.flow.first, connection.flow.last), (minute(50), minute(105)));
        assert_eq!(connection.in_window, InWindow::Bytes);
    }

    /// The verdict on `cloud.example.com`, names being recorded from minute `names_from` of a host that is recorded from
    /// the beginning; the window begins a day and 100 minutes after that.
    fn ask_name(
        names_from: u64,
        address: Option<&str>,
        remotes: NamedRemotes,
        unnamed_since: Option<Timestamp>,
        flows: Vec<FlowRecord>,
    ) -> HostAnswer {
        let given: Vec<&str> = address.into_iter().collect();
        let target = Target::parse("cloud.example.com", None, None).unwrap().with_addresses(&given).unwrap();
        let window = Window::new(minute(DAY + 100), minute(DAY + 110)).unwrap();
        let mut names = Timeline::default();
        names.apply(&CoverageChange {
            facet: Facet::Names,
            grade: Grade::Complete,
            from: minute(names_from),
            to: None,
            scope: None,
            announced_from: None,
        });
        let evidence = Evidence {
            host: None,
            name: "h".into(),
            connections: &complete(),
            known_until: Some(minute(DAY + 200)),
            names: Some(NameEvidence { coverage: &names, remotes: &remotes, unnamed_since }),
            flows,
            flows_left_out: 0,
        };
        judge(&Question { target, window }, evidence, |_| None)
    }

    const DAY: u64 = 24 * 60;

    fn hello(connection: Option<u8>, at: u64) -> NamedRemotes {
        let hello = ServerNameRecord {
            at: minute(DAY + at),
            connection: connection.map(|byte| ConnectionUid::from_bytes([byte; 16])),
            name: Some("cloud.example.com".into()),
            local: "192.0.2.1:5000".parse().unwrap(),
            remote: "198.51.100.7:443".parse().unwrap(),
            network_namespace: None,
        };
        NamedRemotes { hellos: vec![hello], ..NamedRemotes::default() }
    }

    #[test]
    fn a_name_is_cleared_by_a_day_of_names_or_by_addresses() {
        let nothing = NamedRemotes::default;
        let verdict = |from, address, since: Option<u64>| {
            ask_name(from, address, nothing(), since.map(minute), vec![]).verdict
        };
        assert_eq!(verdict(100, None, None), Verdict::Clear);
        assert_eq!(verdict(101, None, None), Verdict::Unknown, "a minute less than a day");
        assert_eq!(verdict(101, Some("198.51.100.7"), None), Verdict::Clear);
        assert_eq!(
            verdict(0, None, Some(DAY)),
            Verdict::Clear,
            "a long connection, its name recorded all along"
        );
        assert_eq!(verdict(1, None, Some(DAY)), Verdict::Unknown, "it may have kept an address from before");
        assert_eq!(verdict(0, None, Some(0)), Verdict::Unknown, "open before recording began");
        assert_eq!(verdict(0, Some("198.51.100.7"), Some(0)), Verdict::Clear);

        let answer = ask_name(DAY, None, nothing(), None, vec![]);
        let reasons: Vec<_> = answer.gaps.iter().map(|gap| (gap.facet, gap.grade.reason())).collect();
        assert_eq!(
            reasons,
            [(
                Facet::Names,
                "names before 1970-01-02T00:00:00Z were not recorded: a program may have kept an address from \
                 before; give the addresses with --address"
                    .to_owned()
            )]
        );
        let many = NamedRemotes { left_out: true, ..nothing() };
        assert_eq!(ask_name(0, None, many.clone(), None, vec![]).verdict, Verdict::Unknown);
        assert_eq!(ask_name(0, Some("192.0.2.9"), many, None, vec![]).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_name_matches_by_address_by_tls_and_by_its_records() {
        let flow = || record(DAY + 101, DAY + 102, false, Some(1));
        let named = |name: &str, source| FlowRecord {
            remote_name: Some(crate::name::RemoteName { name: name.into(), source }),
            ..flow()
        };
        let resolved = |address: &str| NamedRemotes {
            addresses: [address.parse().unwrap()].into(),
            ..NamedRemotes::default()
        };
        let nothing = NamedRemotes::default;
        let check = |address, remotes, flow, want| {
            assert_eq!(ask_name(0, address, remotes, None, vec![flow]).verdict, want);
        };
        check(None, nothing(), flow(), Verdict::Clear);
        check(Some("198.51.100.0/24"), nothing(), flow(), Verdict::Talked);
        check(Some("192.0.2.0/24"), nothing(), flow(), Verdict::Clear);
        check(None, resolved("198.51.100.7"), flow(), Verdict::Talked);
        check(None, resolved("198.51.100.8"), flow(), Verdict::Clear);
        check(None, resolved("198.51.100.7"), named("other.example.com", NameSource::Sni), Verdict::Talked);
        check(None, nothing(), named("cloud.example.com", NameSource::Dns), Verdict::Talked);
        check(None, nothing(), named("a.cloud.example.com", NameSource::Sni), Verdict::Clear);
        check(None, hello(Some(1), 101), flow(), Verdict::Talked);
        check(None, hello(Some(2), 101), flow(), Verdict::Clear);
        check(None, hello(None, 101), flow(), Verdict::Talked);
        check(None, hello(None, 100), flow(), Verdict::Clear); // of one with the same ends before
        check(None, hello(None, 103), flow(), Verdict::Clear); // of one with the same ends after
    }

    #[test]
    fn a_name_told_in_one_record_is_that_of_the_whole_connection() {
        let before = record(DAY + 101, DAY + 102, true, Some(1));
        let after = FlowRecord {
            opened: before.opened,
            remote_name: Some(crate::name::RemoteName {
                name: "cloud.example.com".into(),
                source: NameSource::Sni,
            }),
            record: 1,
            ..record(DAY + 102, DAY + 103, false, Some(2))
        };
        let answer = ask_name(0, None, NamedRemotes::default(), None, vec![before, after]);
        assert_eq!(answer.processes[0].connections[0].flow.traffic.unwrap().bytes_sent, 3);
    }
}
