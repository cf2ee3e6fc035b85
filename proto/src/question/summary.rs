//! An answer by its three verdicts: who talked, who can be ruled out, and who is unknown and why.

use std::collections::BTreeMap;

use super::{Answer, HostAnswer, Verdict};
use crate::coverage::{Facet, Gap};

/// The hosts of an answer, each once.
#[derive(Debug)]
pub struct Summary<'a> {
    /// Those that talked.
    pub talked: Vec<&'a HostAnswer>,
    /// Those that can be ruled out.
    pub clear: Vec<&'a HostAnswer>,
    /// All others, by why; the reason of most hosts first.
    pub unknown: Vec<Unproven<'a>>,
}

/// Hosts that are unknown for one reason. Each has more gaps than that one, perhaps, and may have other numbers in it.
#[derive(Debug)]
pub struct Unproven<'a> {
    /// What was not recorded, and how; as the first of the hosts has it. None where the clock's bound alone is the reason.
    pub gap: Option<&'a Gap>,
    /// The hosts.
    pub hosts: Vec<&'a HostAnswer>,
}

impl Unproven<'_> {
    /// In words.
    pub fn reason(&self) -> String {
        self.gap.map_or_else(|| "nothing is proven".to_owned(), |gap| gap.grade.reason())
    }
}

impl Answer {
    /// The hosts by their verdicts. One that is unknown for more than one reason is where most of the window is missing.
    pub fn summary(&self) -> Summary<'_> {
        let with = |verdict| self.hosts.iter().filter(move |host| host.verdict == verdict).collect();
        let mut by_reason: BTreeMap<Option<(Facet, &str, String)>, Unproven<'_>> = BTreeMap::new();
        for host in self.hosts.iter().filter(|host| host.verdict == Verdict::Unknown) {
            let gap = host.gaps.iter().max_by_key(|gap| gap.to.since(gap.from));
            let reason = gap.map(|gap| (gap.facet, gap.grade.word(), without_numbers(&gap.grade.reason())));
            by_reason.entry(reason).or_insert_with(|| Unproven { gap, hosts: Vec::new() }).hosts.push(host);
        }
        let mut unknown: Vec<_> = by_reason.into_values().collect();
        unknown.sort_by_key(|unproven| std::cmp::Reverse(unproven.hosts.len()));
        Summary { talked: with(Verdict::Talked), clear: with(Verdict::Clear), unknown }
    }
}

/// Hosts have the same reason with other times and counts in it.
fn without_numbers(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{coverage::Grade, question::Question, target::Target, time::Timestamp, window::Window};

    fn host(name: &str, verdict: Verdict, gaps: &[(&str, u64, u64)]) -> HostAnswer {
        let gap = |(reason, from, to): &(&str, u64, u64)| Gap {
            facet: Facet::Connections,
            grade: Grade::NotRecorded { reason: (*reason).to_owned() },
            from: Timestamp::from_secs(*from),
            to: Timestamp::from_secs(*to),
        };
        HostAnswer {
            host: None,
            name: name.to_owned(),
            verdict,
            gaps: gaps.iter().map(gap).collect(),
            processes: Vec::new(),
            scopes: Vec::new(),
            known_until: None,
            records_left_out: 0,
            clock: None,
        }
    }

    #[test]
    fn each_host_is_in_one_place_and_the_unknown_ones_by_why() {
        let (off, stopped) = ("it was off for 7 minutes", "recording was stopped");
        let answer = Answer {
            question: Question {
                target: Target::parse("192.0.2.1", None, None).unwrap(),
                window: Window::new(Timestamp::from_secs(0), Timestamp::from_secs(100)).unwrap(),
            },
            addresses: Vec::new(),
            hosts: vec![
                host("a", Verdict::Talked, &[(off, 0, 9)]),
                host("b", Verdict::Clear, &[]),
                host("c", Verdict::Unknown, &[(stopped, 0, 50), (off, 50, 60)]),
                host("d", Verdict::Unknown, &[(off, 0, 20), (stopped, 30, 40)]),
                host("e", Verdict::Unknown, &[("it was off for 12 minutes", 0, 20)]),
                host("f", Verdict::Unknown, &[]),
                host("g", Verdict::Clear, &[]),
            ],
        };
        let summary = answer.summary();
        let names = |hosts: &[&HostAnswer]| hosts.iter().map(|host| host.name.clone()).collect::<String>();
        assert_eq!((names(&summary.talked), names(&summary.clear)), ("a".into(), "bg".into()));
        let unknown: Vec<_> =
            summary.unknown.iter().map(|unproven| (unproven.reason(), names(&unproven.hosts))).collect();
        let want = [(off, "de"), ("nothing is proven", "f"), (stopped, "c")];
        assert_eq!(unknown, want.map(|(reason, hosts)| (reason.to_owned(), hosts.to_owned())));
    }
}
