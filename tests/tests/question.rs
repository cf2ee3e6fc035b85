//! The question core against a plain model that looks at every second: which connections match a window, at its edges
//! too, what they did in it, and whether the host is clear.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};

use alibi_lab::reference::Truth;
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Timeline},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    id::ConnectionUid,
    question::{Evidence, InWindow, Question, Verdict, judge},
    target::Target,
    time::Timestamp,
    window::Window,
};
use proptest::prelude::*;

/// No history is longer, so that no record is longer than one may be.
const SECONDS: u64 = 120;

/// One connection as it truly was.
#[derive(Clone, Debug)]
struct Connection {
    to_target: bool,
    opened: u64,
    /// None: it is open to the end of the history.
    closed: Option<u64>,
    /// Seconds in which a byte moved.
    moved: BTreeSet<u64>,
    /// Seconds at which one record ends and the next begins.
    cuts: BTreeSet<u64>,
}

prop_compose! {
    fn connection()(
        to_target in any::<bool>(),
        opened in 0..SECONDS,
        length in proptest::option::of(0..40_u64),
        moved in proptest::collection::btree_set(0..SECONDS, 0..4),
        cuts in proptest::collection::btree_set(0..SECONDS, 0..6),
    ) -> Connection {
        Connection { to_target, opened, closed: length.map(|length| (opened + length).min(SECONDS)), moved, cuts }
    }
}

impl Connection {
    fn last(&self) -> u64 {
        self.closed.unwrap_or(SECONDS)
    }

    /// Its life cut into records. Bytes that move at a second in which a record ends stand in that record.
    fn records(&self, number: u8) -> Vec<FlowRecord> {
        let inside = |second: &u64| *second > self.opened && *second < self.last();
        let mut ends: Vec<u64> = self.cuts.iter().copied().filter(inside).collect();
        match self.closed {
            Some(closed) => ends.push(closed),
            None if ends.is_empty() => ends.push(self.opened),
            None => {}
        }
        let mut first = self.opened;
        let mut counted = BTreeSet::new();
        let mut records = Vec::new();
        for (record, end) in ends.iter().copied().enumerate() {
            let moved =
                self.moved.iter().filter(|second| (first..=end).contains(second) && counted.insert(**second));
            let ended = self.closed == Some(end) && record == ends.len() - 1;
            records.push(FlowRecord {
                connection: ConnectionUid::from_bytes([number; 16]),
                process: None,
                attribution: Attribution::Unknown,
                protocol: Protocol::Tcp,
                direction: Direction::Outbound,
                local: ([192, 0, 2, 1], 1000).into(),
                remote: ([198, 51, 100, if self.to_target { 7 } else { 8 }], 443).into(),
                opened: Timestamp::from_secs(self.opened),
                already_open: false,
                first: Timestamp::from_secs(first),
                last: Timestamp::from_secs(end),
                traffic: Some(Traffic { bytes_sent: moved.count() as u64, ..Traffic::default() }),
                state: if ended { FlowState::Closed } else { FlowState::Established },
                end_reason: if ended { FlowEndReason::EndOfFlow } else { FlowEndReason::ActiveTimeout },
                record: u32::try_from(record).unwrap(),
                interface: None,
                network_namespace: None,
                round_trip: None,
                remote_name: None,
            });
            first = end;
        }
        records
    }
}

fn timeline(losses: &[(u64, u64)]) -> Timeline {
    let change = |grade, from, to: Option<u64>| CoverageChange {
        facet: Facet::Connections,
        grade,
        from: Timestamp::from_secs(from),
        to: to.map(Timestamp::from_secs),
        scope: None,
        announced_from: None,
    };
    let mut timeline = Timeline::default();
    timeline.apply(&change(Grade::Complete, 0, None));
    for (from, length) in losses {
        let grade = Grade::Lost { count: 1, reason: "test".into() };
        timeline.apply(&change(grade, *from, Some(from + length)));
    }
    timeline
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_finds_what_the_model_finds(
        connections in proptest::collection::vec(connection(), 0..8),
        losses in proptest::collection::vec((0..SECONDS, 1..10_u64), 0..3),
        (from, length) in (0..SECONDS, 1..60_u64),
        shuffle in any::<u64>(),
    ) {
        let window = from..(from + length).min(SECONDS);
        // Every connection that lives on past a loss is recorded anew at its end, as agents do.
        let connections: Vec<Connection> = connections
            .into_iter()
            .map(|mut connection| {
                connection.cuts.extend(losses.iter().map(|(from, length)| from + length));
                connection
            })
            .collect();
        let mut flows: Vec<FlowRecord> =
            connections.iter().zip(1..).flat_map(|(connection, number)| connection.records(number)).collect();
        let middle = usize::try_from(shuffle).unwrap_or(0) % flows.len().max(1);
        flows.rotate_left(middle);

        let timeline = timeline(&losses);
        let question = Question {
            target: Target::parse("198.51.100.7", None, None).unwrap(),
            window: Window::new(Timestamp::from_secs(window.start), Timestamp::from_secs(window.end)).unwrap(),
        };
        let evidence = Evidence {
            host: None,
            name: "host".into(),
            connections: &timeline,
            known_until: Some(Timestamp::from_secs(SECONDS)),
            flows,
            flows_left_out: 0,
        };
        let answer = judge(&question, evidence, |_| None);

        // What the model knows, second by second.
        let in_window = |second: &u64| window.contains(second);
        let to_target = connections.iter().zip(1_u8..).filter(|(connection, _)| connection.to_target);
        let matching: BTreeMap<[u8; 16], &Connection> = to_target
            .filter(|(connection, _)| (connection.opened..=connection.last()).any(|second| in_window(&second)))
            .map(|(connection, number)| ([number; 16], connection))
            .collect();
        let found: BTreeMap<[u8; 16], (InWindow, u64)> = answer
            .processes
            .iter()
            .flat_map(|process| &process.connections)
            .map(|found| {
                let bytes = found.flow.traffic.unwrap().bytes_sent;
                (*found.flow.connection.as_bytes(), (found.in_window, bytes))
            })
            .collect();
        for (number, connection) in &matching {
            // One that is open past a loss it began in is known again from the loss's end on only.
            let hidden = losses.iter().any(|(from, length)| connection.opened < from + length && window.start >= *from);
            let Some((what, bytes)) = found.get(number) else {
                prop_assert!(hidden && answer.verdict != Verdict::Clear, "{connection:?} is not found in {window:?}");
                continue;
            };
            let lived: Vec<u64> =
                connection.moved.iter().copied().filter(|s| (connection.opened..=connection.last()).contains(s)).collect();
            if lived.iter().any(in_window) && !hidden && connection.closed.is_some() {
                prop_assert_eq!(*what, InWindow::Bytes, "{:?} in {:?}", connection, window);
            }
            prop_assert!(*bytes <= lived.len() as u64);
            if lived.is_empty() {
                let expected = if in_window(&connection.opened) { InWindow::Attempt } else { InWindow::Idle };
                prop_assert_eq!(*what, expected, "{:?} in {:?}", connection, window);
            }
        }
        prop_assert!(found.keys().all(|number| matching.contains_key(number)), "found what never was");

        let truth = Truth {
            connections: matching.values().map(|connection| connection.opened..connection.last()).collect(),
            unrecorded: losses.iter().map(|(from, length)| *from..from + length).collect(),
        };
        match answer.verdict {
            Verdict::Talked => prop_assert!(truth.talked(window)),
            Verdict::Clear => prop_assert!(!truth.talked(window.clone()) && truth.whole(window)),
            Verdict::Unknown => prop_assert!(!truth.whole(window), "needlessly unknown"),
        }
    }
}
