//! The canary: the agent connects and sends to itself now and then, and must see it, with itself as the owner. A source
//! that does not see what is certainly there is not believed.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    flow::{Direction, Protocol},
    time::Moment,
};

use crate::{
    capture::{Fact, Observation, ObservedConnection, ProcessKey},
    sys,
};

/// Between two connections.
const INTERVAL: Duration = Duration::from_secs(60);
/// A connection must have been seen by then.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same, of a source that is told what happened in portions, and a while later.
#[cfg(any(test, target_os = "windows"))]
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// Connections and datagrams that are taken at once.
const VISITORS_MAX: usize = 64;
/// A machine that does not even complete a connection to itself by then is not to be waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// What the canary says of a turn.
#[derive(Debug, PartialEq)]
enum Word {
    Nothing,
    /// It was not seen; before this it had been.
    Missed {
        since: Moment,
    },
    /// It was seen again.
    SeenAgain,
}

/// The canary.
#[derive(Debug)]
pub(super) struct Canary {
    listener: TcpListener,
    target: SocketAddr,
    /// Other hooks see datagrams. None where the source does not claim to see everything.
    datagrams: Option<(UdpSocket, SocketAddr)>,
    /// Nobody listens there. None where what is asked for and what is established is told by the same hook.
    closed: Option<SocketAddr>,
    owner: ProcessKey,
    /// Of the last one, what has been seen.
    sights: Sights,
    /// The grade and the scope of the source when it is believed.
    grade: (Grade, Scope),
    state: State,
}

/// What must be seen of one: a connection that is asked for, the same as it comes in, a datagram that leaves, and the same
/// as it arrives, and where that is told otherwise, a connection that nobody answers. Each is seen by another hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sights {
    connection: bool,
    accepted: bool,
    leaving: bool,
    arriving: bool,
    attempt: bool,
}

#[derive(Debug)]
struct State {
    patience: Duration,
    /// When the last one flew, if it has not been seen.
    expected: Option<Moment>,
    flown: Option<Moment>,
    /// When one was seen last; before the first, when the first flew.
    seen: Option<Moment>,
    is_missed: bool,
}

impl Canary {
    /// None on a machine that cannot listen on its own loopback.
    pub(super) fn open(grade: Grade, scope: Scope) -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        listener.set_nonblocking(true).ok()?;
        let target = listener.local_addr().ok()?;
        let pid = std::process::id();
        let owner = ProcessKey { pid, start: sys::process_start(pid)? };
        let datagrams = if grade == Grade::Complete { Some(receiver()?) } else { None };
        let (sights, state) = (Sights::default(), State::default());
        Some(Self { listener, target, datagrams, closed: None, owner, sights, grade: (grade, scope), state })
    }

    /// For a source that hears of attempts elsewhere than of connections, so that they must be seen, too, and of all of it a
    /// while later.
    #[cfg(any(test, target_os = "windows"))]
    pub(super) fn told_later(self) -> Self {
        // Its port was given by the system just now, which gives others first.
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|gone| gone.local_addr()).ok();
        let state = State { patience: LONG_PATIENCE, ..self.state };
        Self { closed, state, ..self }
    }

    /// Looks for the last canary in what was seen, says what follows, and lets the next one fly when it is time.
    pub(super) fn turn(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        facts.retain(|observation| self.believes(&observation.fact));
        for observation in &*facts {
            if let Fact::ConnectionOpened(connection) = &observation.fact {
                self.look_at(connection);
            }
        }
        let is_seen = self.sights == self.wanted();
        if is_seen {
            self.sights = Sights::default();
        }
        match self.state.turn(now, is_seen) {
            Word::Nothing => {}
            Word::Missed { since } => {
                tracing::error!("the source did not see the agent's own connection: it is not believed");
                let reason = "the agent's own connection to itself was not seen (canary)".to_owned();
                facts.push(self.coverage(now, since, Grade::NotRecorded { reason }, None));
            }
            Word::SeenAgain => {
                tracing::info!("the source sees the agent's own connection again");
                let (grade, scope) = self.grade.clone();
                facts.push(self.coverage(now, now, grade, Some(scope)));
            }
        }
        if self.state.is_due(now) {
            self.state.fly(now);
            self.sights = Sights::default();
            // Whatever comes of it, a connection was asked for.
            drop(TcpStream::connect_timeout(&self.target, CONNECT_TIMEOUT));
            if let Some(closed) = &self.closed {
                drop(TcpStream::connect_timeout(closed, CONNECT_TIMEOUT));
            }
            // Others may knock, too, and must not keep the agent here.
            for _ in 0..VISITORS_MAX {
                if self.listener.accept().is_err() {
                    break;
                }
            }
            if let Some((receiver, target)) = &self.datagrams {
                // From another port each time, so that it is somebody new.
                let sent =
                    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|sender| sender.send_to(b"c", target));
                if let Err(problem) = sent {
                    tracing::debug!(%problem, "no datagram could be sent to the agent itself");
                }
                for _ in 0..VISITORS_MAX {
                    if receiver.recv(&mut [0]).is_err() {
                        break;
                    }
                }
            }
        }
    }

    /// False for a grade of the source while the source is not believed. It is kept for when it is again.
    fn believes(&mut self, fact: &Fact) -> bool {
        match fact {
            Fact::Coverage(CoverageChange { facet: Facet::Connections, grade, to: None, scope, .. }) => {
                self.grade.0 = grade.clone();
                if let Some(scope) = scope {
                    self.grade.1 = scope.clone();
                }
                !self.state.is_missed
            }
            _ => true,
        }
    }

    fn look_at(&mut self, connection: &ObservedConnection) {
        let datagrams = self.datagrams.as_ref().map(|(_, target)| *target);
        let is_own = connection.owner == Some(self.owner);
        match (connection.socket.protocol, connection.direction) {
            (Protocol::Tcp, Direction::Outbound) => {
                self.sights.connection |= is_own && connection.socket.remote == self.target;
                self.sights.attempt |= is_own && Some(connection.socket.remote) == self.closed;
            }
            (Protocol::Udp, Direction::Outbound) => {
                self.sights.leaving |= is_own && Some(connection.socket.remote) == datagrams;
            }
            (Protocol::Udp, Direction::Inbound) => {
                self.sights.arriving |= Some(connection.local) == datagrams;
            }
            (Protocol::Tcp, Direction::Inbound) => self.sights.accepted |= connection.local == self.target,
        }
    }

    fn wanted(&self) -> Sights {
        let datagrams = self.datagrams.is_some();
        Sights {
            connection: true,
            accepted: true,
            leaving: datagrams,
            arriving: datagrams,
            attempt: self.closed.is_some(),
        }
    }

    fn coverage(&self, at: Moment, from: Moment, grade: Grade, scope: Option<Scope>) -> Observation {
        let (facet, from) = (Facet::Connections, from.wall);
        let change = CoverageChange { facet, grade, from, to: None, scope, announced_from: None };
        Observation { at, fact: Fact::Coverage(change) }
    }
}

/// Somebody to send datagrams to.
fn receiver() -> Option<(UdpSocket, SocketAddr)> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    receiver.set_nonblocking(true).ok()?;
    let target = receiver.local_addr().ok()?;
    Some((receiver, target))
}

impl Default for State {
    fn default() -> Self {
        Self { patience: PATIENCE, expected: None, flown: None, seen: None, is_missed: false }
    }
}

impl State {
    fn turn(&mut self, now: Moment, is_seen: bool) -> Word {
        if is_seen {
            self.expected = None;
            self.seen = Some(now);
            return if std::mem::take(&mut self.is_missed) { Word::SeenAgain } else { Word::Nothing };
        }
        let is_late = |flown: Moment| since(flown, now) > self.patience;
        if self.expected.is_some_and(is_late) {
            self.expected = None;
            if !std::mem::replace(&mut self.is_missed, true) {
                return Word::Missed { since: self.seen.unwrap_or(now) };
            }
        }
        Word::Nothing
    }

    fn is_due(&self, now: Moment) -> bool {
        self.flown.is_none_or(|flown| since(flown, now) >= INTERVAL)
    }

    fn fly(&mut self, now: Moment) {
        self.expected = Some(now);
        self.flown = Some(now);
        self.seen = self.seen.or(Some(now));
    }
}

fn since(then: Moment, now: Moment) -> Duration {
    Duration::from_nanos(now.boot_ns.saturating_sub(then.boot_ns))
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        flow::{Attribution, FlowState},
        time::Timestamp,
    };

    use super::*;
    use crate::capture::SocketKey;

    fn at(millis: u64) -> Moment {
        Moment { wall: Timestamp::from_nanos(millis * 1_000_000), boot_ns: millis * 1_000_000 }
    }

    #[test]
    fn a_canary_that_is_missed_is_told_from_when_one_was_seen_last() {
        let mut state = State::default();
        assert!(state.is_due(at(0)));
        state.fly(at(0));
        assert!(!state.is_due(at(59_999)));
        assert_eq!(state.turn(at(500), false), Word::Nothing);
        assert_eq!(state.turn(at(700), true), Word::Nothing);

        state.fly(at(60_000));
        assert_eq!(state.turn(at(61_000), false), Word::Nothing);
        assert_eq!(state.turn(at(61_001), false), Word::Missed { since: at(700) });
        assert_eq!(state.turn(at(62_000), false), Word::Nothing);
        state.fly(at(120_000));
        assert_eq!(state.turn(at(121_500), false), Word::Nothing);
        state.fly(at(180_000));
        assert_eq!(state.turn(at(180_100), true), Word::SeenAgain);
        assert_eq!(state.turn(at(182_000), false), Word::Nothing);
    }

    #[test]
    fn a_source_that_sees_nothing_is_not_believed_from_the_first() {
        let mut state = State::default();
        state.fly(at(10));
        assert_eq!(state.turn(at(1_500), false), Word::Missed { since: at(10) });
    }

    /// A connection as the source would tell it: `own` is the canary's end.
    fn opened(canary: &Canary, protocol: Protocol, direction: Direction, own: SocketAddr) -> Observation {
        let other = SocketAddr::from((Ipv4Addr::LOCALHOST, 4_711));
        let (local, remote) = match direction {
            Direction::Outbound => (other, own),
            Direction::Inbound => (own, other),
        };
        let connection = ObservedConnection {
            socket: SocketKey { protocol, remote, socket: 1 },
            local,
            owner: Some(canary.owner),
            attribution: Attribution::InKernel,
            direction,
            state: FlowState::Attempted,
            already_open: false,
            traffic: None,
            interface: None,
            network_namespace: None,
        };
        Observation { at: at(0), fact: Fact::ConnectionOpened(Box::new(connection)) }
    }

    #[test]
    fn what_one_hook_does_not_see_is_missed_though_all_others_see_theirs() {
        let scope = Scope { source: "test".into(), covers: "all".into(), cannot_see: "nothing".into() };
        for left_out in 0..=5 {
            let mut canary = Canary::open(Grade::Complete, scope.clone()).unwrap().told_later();
            let (connections, datagrams) = (canary.target, canary.datagrams.as_ref().unwrap().1);
            let nobody = canary.closed.unwrap();
            canary.turn(at(10), &mut Vec::new());
            let mut facts = vec![
                opened(&canary, Protocol::Tcp, Direction::Outbound, connections),
                opened(&canary, Protocol::Tcp, Direction::Inbound, connections),
                opened(&canary, Protocol::Udp, Direction::Outbound, datagrams),
                opened(&canary, Protocol::Udp, Direction::Inbound, datagrams),
                opened(&canary, Protocol::Tcp, Direction::Outbound, nobody),
            ];
            if left_out < facts.len() {
                facts.remove(left_out);
            }
            canary.turn(at(20), &mut facts);
            facts.clear();
            canary.turn(at(4_900), &mut facts);
            assert!(facts.is_empty(), "it may yet come: {facts:?}");
            canary.turn(at(5_100), &mut facts);
            assert_eq!(facts.len(), usize::from(left_out < 5), "without {left_out}: {facts:?}");
        }
    }
}
