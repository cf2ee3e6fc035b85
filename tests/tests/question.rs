//! The question core against a plain model that looks at every second: which connections match a window, at its edges
//! too, what they did in it, and whether the host is clear.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};

use alibi_lab::reference::{NamedConnection, NamedTruth, Truth};
use alibi_proto::{
    clock::HostClock,
    coverage::{CoverageChange, Facet, Grade, Timeline},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    id::{ConnectionUid, ProcessUid},
    name::{NameSource, RemoteName, ServerNameRecord},
    question::{
        Evidence, InWindow, NAME_MEMORY, NameEvidence, NamedRemotes, Question, Verdict, judge, unnamed_since,
    },
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
    timeline_of(Facet::Connections, 0, losses)
}

/// Complete from a second on, but for the losses.
fn timeline_of(facet: Facet, begins: u64, losses: &[(u64, u64)]) -> Timeline {
    let change = |grade, from, to: Option<u64>| CoverageChange {
        facet,
        grade,
        from: Timestamp::from_secs(from),
        to: to.map(Timestamp::from_secs),
        scope: None,
        announced_from: None,
    };
    let mut timeline = Timeline::default();
    timeline.apply(&change(Grade::Complete, begins, None));
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
            clock: &HostClock::own(),
            connections: &timeline,
            known_until: Some(Timestamp::from_secs(SECONDS)),
            names: None,
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

/// The seconds of the test of names: long enough for memories to run out.
const DAYS: u64 = 4 * 24 * 60 * 60;

/// What is on record of a connection's owner.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Known,
    /// Not that it started.
    WithoutStart,
    /// Another, that it was handed to.
    Another,
}

/// One connection, and how its name came to be known.
#[derive(Clone, Debug)]
struct Named {
    /// It was made by the name that is asked for.
    ours: bool,
    address: u8,
    opened: u64,
    length: u64,
    /// How long its owner had been running at its opening.
    owner_age: u64,
    /// How long before its opening the answer came, by which it was made.
    resolved_before: u64,
    /// An answer that was recorded gave the address for another name.
    is_shared: bool,
    owner: Owner,
    /// It says the name in its ClientHello.
    says: bool,
    /// That ClientHello is told by its ends only.
    unmatched: bool,
    /// Its own record carries the name of its ClientHello.
    carries: bool,
    inbound: bool,
}

prop_compose! {
    fn named()(
        (ours, address) in (any::<bool>(), 1..6_u8),
        opened in 0..DAYS,
        length in prop_oneof![0..900_u64, 0..DAYS, Just(DAYS)],
        (owner_age, resolved_before) in prop_oneof![0..900_u64, 0..DAYS]
            .prop_flat_map(|age| (Just(age), 0..=age + NAME_MEMORY.as_secs())),
        owner in prop_oneof![8 => Just(Owner::Known), 1 => Just(Owner::WithoutStart), 1 => Just(Owner::Another)],
        (says, unmatched, carries, is_shared, inbound) in (
            any::<bool>(),
            any::<bool>(),
            any::<bool>(),
            proptest::bool::weighted(0.8),
            proptest::bool::weighted(0.2),
        ),
    ) -> Named {
        let inbound = inbound && !ours;
        Named {
            ours, address, opened, length, owner_age, resolved_before, is_shared, owner, says, unmatched, carries, inbound,
        }
    }
}

impl Named {
    fn name(&self) -> &'static str {
        if self.ours { "cloud.example.com" } else { "other.example.com" }
    }

    fn last(&self) -> u64 {
        (self.opened + self.length).min(DAYS)
    }

    /// When the process started that made it.
    fn started(&self) -> u64 {
        self.opened.saturating_sub(self.owner_age)
    }

    /// When its owner on record started, if that is on record.
    fn owner_started(&self) -> Option<Timestamp> {
        match self.owner {
            Owner::Known => Some(Timestamp::from_secs(self.started())),
            Owner::WithoutStart => None,
            Owner::Another => Some(Timestamp::from_secs(self.opened + 1)),
        }
    }

    fn resolved(&self) -> u64 {
        self.opened.saturating_sub(self.resolved_before)
    }

    fn ends(&self, number: u8) -> (std::net::SocketAddr, std::net::SocketAddr) {
        (([192, 0, 2, 1], 1000 + u16::from(number)).into(), ([198, 51, 100, self.address], 443).into())
    }

    /// Its records from second `from` on, each of at most a quarter of an hour; found open at `begins` if it is older.
    fn records(&self, number: u8, begins: u64) -> Vec<FlowRecord> {
        let (local, remote) = self.ends(number);
        let already_open = self.opened < begins;
        let opened = self.opened.max(begins);
        let remote_name = if self.says && self.carries && !already_open {
            Some(RemoteName { name: self.name().to_owned(), source: NameSource::Sni })
        } else {
            let other = RemoteName { name: "shared.example.com".to_owned(), source: NameSource::Dns };
            self.is_shared.then_some(other)
        };
        let mut first = opened;
        let mut records = Vec::new();
        while first <= self.last() {
            let last = (first + 900).min(self.last());
            let ended = last == self.last();
            records.push(FlowRecord {
                connection: ConnectionUid::from_bytes([number; 16]),
                process: Some(ProcessUid::from_bytes([number; 16])),
                attribution: Attribution::InKernel,
                protocol: Protocol::Tcp,
                direction: if self.inbound { Direction::Inbound } else { Direction::Outbound },
                local,
                remote,
                opened: Timestamp::from_secs(opened),
                already_open,
                first: Timestamp::from_secs(first),
                last: Timestamp::from_secs(last),
                traffic: None,
                state: if ended { FlowState::Closed } else { FlowState::Established },
                end_reason: if ended { FlowEndReason::EndOfFlow } else { FlowEndReason::IdleTimeout },
                record: u32::try_from(records.len()).unwrap(),
                interface: None,
                network_namespace: None,
                round_trip: None,
                remote_name: remote_name.clone(),
            });
            if ended {
                break;
            }
            first = last;
        }
        records
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing that was made by the name is ruled out, though its answer, its ClientHello, or its opening was not recorded.
    #[test]
    fn a_host_is_never_cleared_of_a_name_it_talked_to(
        connections in prop_oneof![
            proptest::collection::vec(named(), 1..2),
            proptest::collection::vec(named(), 0..5),
        ],
        begins in prop_oneof![Just(0), 0..DAYS],
        names_begin in prop_oneof![Just(0), 0..DAYS],
        names_lost in proptest::collection::vec((0..DAYS, 1..10_000_u64), 0..2),
        (from, length) in (prop_oneof![0..DAYS, DAYS - 9_000..DAYS - 3_600], 1..3_600_u64),
        given in proptest::option::of(1..6_u8),
    ) {
        let window = from..(from + length).min(DAYS);
        let names_begin = names_begin.max(begins);
        let seen = |second: u64| {
            second >= names_begin && !names_lost.iter().any(|(from, length)| (*from..from + length).contains(&second))
        };
        let mut remotes = NamedRemotes::default();
        let mut flows: Vec<FlowRecord> = Vec::new();
        for (connection, number) in connections.iter().zip(1_u8..) {
            let (local, remote) = connection.ends(number);
            if connection.ours && seen(connection.resolved()) && connection.resolved() < window.end {
                remotes.addresses.insert(remote.ip());
            }
            if connection.ours && connection.says && seen(connection.opened) && connection.opened < window.end {
                remotes.hellos.push(ServerNameRecord {
                    at: Timestamp::from_secs(connection.opened),
                    connection: (!connection.unmatched).then(|| ConnectionUid::from_bytes([number; 16])),
                    name: Some(connection.name().into()),
                    local,
                    remote,
                    network_namespace: None,
                });
            }
            flows.extend(connection.records(number, begins));
        }

        let target = Target::parse("cloud.example.com", None, None).unwrap();
        let given: Vec<String> = given.iter().map(|address| format!("198.51.100.{address}")).collect();
        let question = Question {
            target: target.with_addresses(&given).unwrap(),
            window: Window::new(Timestamp::from_secs(window.start), Timestamp::from_secs(window.end)).unwrap(),
        };
        flows.retain(|flow| flow.first < question.window.to() && flow.last >= question.looks_back_to());
        // As a store tells it: not what is near the record.
        let since = |flow: &FlowRecord| {
            let number = flow.process.unwrap().as_bytes()[0];
            let since = unnamed_since(flow, connections[usize::from(number) - 1].owner_started())?;
            (since == Timestamp::ZERO || flow.last.since(since).as_secs() > 900).then_some(since)
        };
        let unnamed_since = flows.iter().filter_map(since).min();
        let names = timeline_of(Facet::Names, names_begin, &names_lost);
        let evidence = Evidence {
            host: None,
            name: "host".into(),
            clock: &HostClock::own(),
            connections: &timeline_of(Facet::Connections, begins, &[]),
            known_until: Some(Timestamp::from_secs(DAYS)),
            names: Some(NameEvidence { coverage: &names, remotes: &remotes, unnamed_since }),
            flows: flows.into_iter().filter(|flow| remotes.may_match(&question, flow)).collect(),
            flows_left_out: 0,
        };
        let answer = judge(&question, evidence, |_| None);

        let mut unrecorded: Vec<_> = names_lost.iter().map(|(from, length)| *from..from + length).collect();
        unrecorded.push(0..names_begin);
        let connections_unrecorded = std::iter::once(0..begins).collect();
        let by_name = connections.iter().filter(|connection| connection.ours).map(|connection| NamedConnection {
            life: connection.opened..connection.last(),
            started: connection.started(),
            resolved: connection.resolved(),
            address: connection.address,
        });
        let truth =
            NamedTruth { by_name: by_name.collect(), names_unrecorded: unrecorded, connections_unrecorded };
        match answer.verdict {
            Verdict::Clear if given.is_empty() => {
                // Memories may be half an hour longer than a store tells, which the constant stands for.
                let recent = truth.by_name.iter().all(|connection| {
                    connection.started.saturating_sub(connection.resolved) + 1_800 <= NAME_MEMORY.as_secs()
                });
                prop_assert!(!recent || !truth.talked(&window), "{connections:?} in {window:?}");
                let names = window.start.saturating_sub(NAME_MEMORY.as_secs())..window.end;
                prop_assert!(truth.whole(names, window));
            }
            Verdict::Clear => {
                let addresses = truth.addresses(&window);
                let asked = addresses.iter().any(|address| given.contains(&format!("198.51.100.{address}")));
                prop_assert!(!asked, "{:?} in {:?}", connections, window);
                prop_assert!(truth.whole(0..0, window));
            }
            Verdict::Talked => {
                let alive = |connection: &&Named| connection.opened < window.end && connection.last() >= window.start;
                let known = |connection: &Named| {
                    let address = ([198, 51, 100, connection.address]).into();
                    connection.ours || remotes.addresses.contains(&address)
                        || given.contains(&format!("198.51.100.{}", connection.address))
                };
                prop_assert!(connections.iter().filter(alive).any(known), "found what never was");
            }
            Verdict::Unknown => {}
        }
    }
}
