//! The canary: the agent connects to itself now and then, and must see it, with itself as the owner. A source that does
//! not see what is certainly there is not believed.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    flow::Direction,
    time::Moment,
};

use crate::{
    capture::{Fact, Observation, ProcessKey},
    sys,
};

/// Between two connections.
const INTERVAL: Duration = Duration::from_secs(60);
/// A connection must have been seen by then.
const PATIENCE: Duration = Duration::from_secs(1);
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
    owner: ProcessKey,
    /// The grade and the scope of the source when it is believed.
    grade: (Grade, Scope),
    state: State,
}

#[derive(Debug, Default)]
struct State {
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
        Some(Self { listener, target, owner, grade: (grade, scope), state: State::default() })
    }

    /// Looks for the last canary in what was seen, says what follows, and lets the next one fly when it is time.
    pub(super) fn turn(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        let is_seen = facts.iter().any(|observation| self.is_it(&observation.fact));
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
            // Whatever comes of it, a connection was asked for.
            drop(TcpStream::connect_timeout(&self.target, CONNECT_TIMEOUT));
            while self.listener.accept().is_ok() {}
        }
    }

    fn is_it(&self, fact: &Fact) -> bool {
        matches!(fact, Fact::ConnectionOpened(connection)
            if connection.socket.remote == self.target
                && connection.direction == Direction::Outbound
                && connection.owner == Some(self.owner))
    }

    fn coverage(&self, at: Moment, from: Moment, grade: Grade, scope: Option<Scope>) -> Observation {
        let (facet, from) = (Facet::Connections, from.wall);
        let change = CoverageChange { facet, grade, from, to: None, scope, announced_from: None };
        Observation { at, fact: Fact::Coverage(change) }
    }
}

impl State {
    fn turn(&mut self, now: Moment, is_seen: bool) -> Word {
        if is_seen {
            self.expected = None;
            self.seen = Some(now);
            return if std::mem::take(&mut self.is_missed) { Word::SeenAgain } else { Word::Nothing };
        }
        let is_late = |flown: Moment| since(flown, now) > PATIENCE;
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
    use alibi_proto::time::Timestamp;

    use super::*;

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
}
