//! The question and its answer. Pure: agent and collector ask the same one of what they have.
//!
//! A connection matches when its *life* overlaps the window; when its process started plays no part. `clear` needs
//! proof: no gap in the coverage of the whole window. Everything else without a match is `unknown`.

use std::collections::BTreeMap;

use crate::{
    coverage::{Facet, Gap, Grade, Scope, Timeline},
    flow::{FlowRecord, FlowState, RECORD_SPAN_MAX, Traffic, words},
    id::{HostId, ProcessUid},
    process::ProcessLife,
    target::Target,
    time::Timestamp,
    window::Window,
};

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
    /// Records whose remote end matches the target, that begin before the window ends and do not end before
    /// [`Question::looks_back_to`]; in any order.
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
        scopes: evidence.connections.scopes(question.window),
        known_until: evidence.known_until,
        records_left_out: evidence.flows_left_out,
    }
}

fn matching_connections(question: &Question, evidence: &Evidence<'_>) -> Vec<ConnectionActivity> {
    let mut connections: BTreeMap<_, Vec<&FlowRecord>> = BTreeMap::new();
    for flow in &evidence.flows {
        if question.target.matches(flow.protocol, flow.remote) {
            connections.entry(flow.connection).or_default().push(flow);
        }
    }
    connections
        .into_values()
        .filter_map(|mut records| {
            // Records of an instant share their times; only their position tells the last one.
            records.sort_by_key(|record| (record.first, record.last, record.record));
            connection_activity(question.window, evidence, &records)
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
}
