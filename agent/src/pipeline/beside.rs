//! What is told beside the events: as it is now, and kept nowhere.

use std::collections::BTreeMap;

use alibi_proto::{coverage::CoverageChange, host::UserPresence, process::User};

use super::Pipeline;
use crate::enrich::redaction::Redactions;

impl Pipeline {
    /// Users with at least one running process, most processes first, at most `max` of them.
    pub fn users(&self, max: usize) -> Vec<UserPresence> {
        let mut counts: BTreeMap<&User, u32> = BTreeMap::new();
        self.users.values().for_each(|user| *counts.entry(user).or_default() += 1);
        let mut users: Vec<_> = counts
            .into_iter()
            .map(|(user, processes)| UserPresence { user: user.clone(), processes })
            .collect();
        users.sort_by_key(|presence| std::cmp::Reverse(presence.processes));
        users.truncate(max);
        users
    }

    /// How many secrets were redacted so far, by rule.
    pub fn redactions(&self) -> Redactions {
        self.redactor.redactions()
    }

    /// What the source last said of each facet of which it has said something.
    pub fn grades(&self) -> impl Iterator<Item = &CoverageChange> {
        self.source_grades.values()
    }
}
