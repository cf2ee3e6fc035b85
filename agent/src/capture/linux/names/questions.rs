//! The DNS questions that this host asked of late. An answer that belongs to none of them was not asked for: no resolver
//! takes it, and anybody may have sent it. It must not be believed, least of all as the reason why an address is known.
//!
//! A question is known by who asks (a socket, or a port where that is all that is seen), its number and its name. Not by
//! the server: a forger knows that and writes it into his packet, and where addresses are translated on the way (a
//! container's resolver, a cluster's) it is another in the answer than in the question.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use alibi_proto::time::Moment;

/// Longer than resolvers wait for an answer.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// Questions that are remembered; the oldest are forgotten first, and their answers are then not believed.
const REMEMBERED_MAX: usize = 16_384;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    /// A socket, by its cookie.
    Socket(u64),
    /// A port in a network namespace.
    Port(u64, u16),
}

/// What has been asked.
#[derive(Debug, Default)]
pub(super) struct Questions {
    // Seeded at random, so that nobody can make a question that is taken for another.
    hasher: RandomState,
    /// When each was asked last, in nanoseconds since boot.
    asked: HashMap<u64, u64>,
    /// In order of time; one that was asked again since stands here with its old time, too.
    order: VecDeque<(u64, u64)>,
}

impl Questions {
    /// A question.
    pub(super) fn ask(&mut self, asker: Asker, number: u16, name: &str, at: Moment) {
        self.remember(self.hasher.hash_one((asker, number, name)), at);
    }

    /// A stream over which questions are asked.
    pub(super) fn open(&mut self, asker: Asker, at: Moment) {
        self.remember(self.hasher.hash_one(asker), at);
    }

    /// Whether an answer was asked for.
    pub(super) fn is_asked(&self, asker: Asker, number: u16, name: &str, at: Moment) -> bool {
        self.is_remembered(self.hasher.hash_one((asker, number, name)), at)
    }

    /// Whether anything was asked over a stream.
    pub(super) fn is_open(&self, asker: Asker, at: Moment) -> bool {
        self.is_remembered(self.hasher.hash_one(asker), at)
    }

    fn remember(&mut self, digest: u64, at: Moment) {
        self.asked.insert(digest, at.boot_ns);
        self.order.push_back((digest, at.boot_ns));
        while self.order.len() > REMEMBERED_MAX
            || self.order.front().is_some_and(|(_, asked)| is_over(*asked, at))
        {
            let Some((digest, asked)) = self.order.pop_front() else { break };
            if self.asked.get(&digest) == Some(&asked) {
                self.asked.remove(&digest);
            }
        }
    }

    fn is_remembered(&self, digest: u64, at: Moment) -> bool {
        self.asked.get(&digest).is_some_and(|asked| !is_over(*asked, at))
    }
}

fn is_over(asked: u64, at: Moment) -> bool {
    Duration::from_nanos(at.boot_ns.saturating_sub(asked)) > REMEMBERED_FOR
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;

    use super::*;

    fn at(secs: u64) -> Moment {
        Moment { wall: Timestamp::from_secs(1_764_000_000 + secs), boot_ns: secs * 1_000_000_000 }
    }

    #[test]
    fn only_what_was_asked_of_late_is_known() {
        let mut questions = Questions::default();
        let port = Asker::Port(1, 4000);
        questions.ask(port, 7, "a.example", at(10));
        questions.open(Asker::Socket(5), at(10));
        assert!(questions.is_asked(port, 7, "a.example", at(40)));
        assert!(!questions.is_asked(port, 7, "a.example", at(41)));
        for (asker, number, name) in [
            (Asker::Port(1, 4001), 7, "a.example"),
            (Asker::Port(2, 4000), 7, "a.example"),
            (Asker::Socket(4000), 7, "a.example"),
            (port, 8, "a.example"),
            (port, 7, "b.example"),
        ] {
            assert!(!questions.is_asked(asker, number, name, at(10)), "{asker:?} {number} {name}");
        }
        assert!(questions.is_open(Asker::Socket(5), at(40)) && !questions.is_open(port, at(10)));
        // One that is asked again is known from then on.
        questions.ask(port, 7, "a.example", at(35));
        questions.ask(port, 8, "a.example", at(60));
        assert!(questions.is_asked(port, 7, "a.example", at(65)));
    }

    #[test]
    fn no_more_are_remembered_than_the_bound() {
        let mut questions = Questions::default();
        let port = Asker::Port(1, 4000);
        for number in 0..50_000u32 {
            questions.ask(port, number as u16, &format!("{}.example", number % 9), at(1));
            assert!(questions.order.len() <= REMEMBERED_MAX && questions.asked.len() <= REMEMBERED_MAX);
        }
        assert!(!questions.is_asked(port, 0, "0.example", at(1)));
        assert!(questions.is_asked(port, 49_999u32 as u16, &format!("{}.example", 49_999 % 9), at(1)));
    }
}
