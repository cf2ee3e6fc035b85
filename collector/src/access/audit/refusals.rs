//! Refusals to nobody in particular, and to hosts that call: the first of its kind is noted at once, and those that follow within a minute are
//! counted, and noted as one. Pure.
//!
//! Kinds that are counted at once are bounded. Where there are more, all others are one kind, so that whatever comes, a
//! minute costs at most twice as many entries as there are kinds.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use alibi_proto::{id::HostId, time::Timestamp};

use super::{Actor, Note, Scope, cut};
use crate::access::rate::network_of;

/// How long refusals are counted before they are noted.
pub const FOLDED_FOR: Duration = Duration::from_secs(60);
/// Kinds that are counted at once. Few under test, so that the limit is met.
pub const REFUSALS_FOLDED_MAX: usize = if cfg!(test) { 4 } else { 256 };

/// What makes two refusals the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Who it was, where that was proven.
    host: Option<HostId>,
    from: String,
    action: String,
    outcome: String,
}

#[derive(Debug)]
struct Folded {
    /// What was said of the first.
    detail: String,
    last: Timestamp,
    /// Beside the first.
    more: u64,
}

/// Somebody who was refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusal<'a> {
    /// Which host it was, where that was proven.
    pub host: Option<HostId>,
    /// From where; none on this machine.
    pub from: Option<IpAddr>,
    /// What was wanted.
    pub action: &'a str,
    /// Why it was refused. Those for whom it differs are counted apart.
    pub outcome: &'a str,
    /// More of the first that is counted.
    pub detail: &'a str,
}

/// What is to be noted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) note: Note,
    pub(super) at: Timestamp,
    pub(super) repeats: u64,
}

/// What is being counted.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    folded: HashMap<Kind, Folded>,
    /// Since when each is, the oldest first.
    since: VecDeque<(Timestamp, Kind)>,
}

impl Refusals {
    /// Takes one in, and tells what is to be noted now.
    pub(super) fn note(&mut self, refusal: &Refusal<'_>, now: Timestamp) -> Vec<Due> {
        let Refusal { host, from, action, outcome, detail } = *refusal;
        let mut due = self.due(now);
        let mut kind = Kind { host, from: origin(from), action: cut(action), outcome: cut(outcome) };
        let mut detail = cut(detail);
        if !self.folded.contains_key(&kind) && self.folded.len() >= REFUSALS_FOLDED_MAX {
            let (action, outcome) = ("several".into(), "refused".into());
            kind = Kind { host: None, from: "elsewhere".into(), action, outcome };
            detail.clear();
        }
        if let Some(folded) = self.folded.get_mut(&kind) {
            folded.last = now;
            folded.more += 1;
        } else {
            due.push(Due { note: kind.note(detail.clone()), at: now, repeats: 0 });
            self.since.push_back((now, kind.clone()));
            self.folded.insert(kind, Folded { detail, last: now, more: 0 });
        }
        due
    }

    /// What was counted for long enough by now.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Due> {
        // A clock that was set back keeps nothing for longer than one that was not.
        let is_over = |since: Timestamp| now.since(since).max(since.since(now)) >= FOLDED_FOR;
        let mut due = Vec::new();
        while self.since.front().is_some_and(|(since, _)| is_over(*since)) {
            due.extend(self.end_first());
        }
        due
    }

    /// All that was counted.
    pub(super) fn rest(&mut self) -> Vec<Due> {
        let mut rest = Vec::new();
        while !self.since.is_empty() {
            rest.extend(self.end_first());
        }
        rest
    }

    fn end_first(&mut self) -> Option<Due> {
        let (_, kind) = self.since.pop_front()?;
        let Folded { detail, last, more } = self.folded.remove(&kind)?;
        (more > 0).then(|| Due { note: kind.note(detail), at: last, repeats: more })
    }
}

impl Kind {
    fn note(&self, detail: String) -> Note {
        Note {
            actor: self.host.map_or(Actor::Nobody, Actor::Host),
            from: self.from.clone(),
            action: self.action.clone(),
            detail,
            outcome: self.outcome.clone(),
            rows: 0,
            scope: Scope::Hosts(self.host.into_iter().collect()),
        }
    }
}

/// An address as it is noted.
fn origin(from: Option<IpAddr>) -> String {
    match from.map(network_of) {
        None => "local".into(),
        Some(IpAddr::V6(network)) if !network.is_loopback() => format!("{network}/64"),
        Some(address) => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    /// Where from, when and how often what is due.
    fn summary(due: Vec<Due>) -> Vec<(String, u64, u64)> {
        due.into_iter().map(|due| (due.note.from, due.at.as_nanos() / 1_000_000_000, due.repeats)).collect()
    }

    fn note(refusals: &mut Refusals, from: &str, secs: u64) -> Vec<(String, u64, u64)> {
        let refusal =
            Refusal { from: from.parse().ok(), action: "login", outcome: "unknown", ..Refusal::default() };
        summary(refusals.note(&refusal, at(secs)))
    }

    fn one(from: &str, secs: u64, repeats: u64) -> (String, u64, u64) {
        (from.to_owned(), secs, repeats)
    }

    #[test]
    fn the_first_is_noted_at_once_and_the_others_as_one() {
        let mut refusals = Refusals::default();
        for (from, secs, want) in [
            ("10.0.0.1", 100, vec![one("10.0.0.1", 100, 0)]),
            ("10.0.0.1", 101, vec![]),
            ("10.0.0.2", 102, vec![one("10.0.0.2", 102, 0)]),
            ("10.0.0.1", 159, vec![]),
            ("10.0.0.1", 160, vec![one("10.0.0.1", 159, 2), one("10.0.0.1", 160, 0)]),
            // Alone, so there is nothing to add.
            ("10.0.0.3", 162, vec![one("10.0.0.3", 162, 0)]),
            ("10.0.0.1", 163, vec![]),
        ] {
            assert_eq!(note(&mut refusals, from, secs), want, "{from} at {secs}");
        }
        assert_eq!(summary(refusals.due(at(219))), []);
        assert_eq!(summary(refusals.due(at(220))), [one("10.0.0.1", 163, 1)]);
        assert_eq!(summary(refusals.rest()), []);
        note(&mut refusals, "10.0.0.1", 300);
        note(&mut refusals, "10.0.0.1", 301);
        assert_eq!(summary(refusals.rest()), [one("10.0.0.1", 301, 1)]);
    }

    #[test]
    fn what_differs_is_counted_apart() {
        let mut refusals = Refusals::default();
        let from = "10.0.0.1".parse().ok();
        let host = |number| Some(HostId::from_bytes([number; 16]));
        for (host, action, outcome) in [
            (None, "login", "unknown"),
            (None, "login", "expired"),
            (None, "enrol", "unknown"),
            (host(1), "enrol", "unknown"),
        ] {
            for (detail, count) in [("first", 1), ("second", 0)] {
                let refusal = Refusal { host, from, action, outcome, detail };
                assert_eq!(refusals.note(&refusal, at(1)).len(), count, "{refusal:?}");
            }
        }
        let rest = refusals.rest();
        assert!(rest.iter().all(|due| due.note.detail == "first"));
        let actors: Vec<_> = rest.iter().filter(|due| due.note.actor != Actor::Nobody).collect();
        assert_eq!(actors.len(), 1);
    }

    #[test]
    fn a_network_is_one() {
        for (from, want) in [
            (Some("10.0.0.1"), "10.0.0.1"),
            (Some("::ffff:10.0.0.1"), "10.0.0.1"),
            (Some("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"),
            (Some("::1"), "::1"),
            (None, "local"),
        ] {
            assert_eq!(origin(from.map(|from| from.parse().unwrap())), want);
        }
    }

    #[test]
    fn beyond_the_limit_all_others_are_one() {
        let mut refusals = Refusals::default();
        let entries: usize =
            (0..200).map(|last| note(&mut refusals, &format!("10.0.0.{last}"), 100).len()).sum();
        assert_eq!(entries, REFUSALS_FOLDED_MAX + 1);
        assert_eq!(refusals.folded.len(), REFUSALS_FOLDED_MAX + 1);
        let others = 200 - REFUSALS_FOLDED_MAX as u64 - 1;
        assert_eq!(summary(refusals.due(at(160))), [one("elsewhere", 100, others)]);
    }

    #[test]
    fn a_clock_that_was_set_back_ends_what_is_counted() {
        let mut refusals = Refusals::default();
        note(&mut refusals, "10.0.0.1", 1_000);
        note(&mut refusals, "10.0.0.1", 1_001);
        assert_eq!(
            note(&mut refusals, "10.0.0.1", 500),
            [one("10.0.0.1", 1_001, 1), one("10.0.0.1", 500, 0)]
        );
    }
}
