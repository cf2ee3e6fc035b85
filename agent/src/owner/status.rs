//! What the owner is told, as it stands in the file: field names are part of the interface, additions allowed. Pure.
//!
//! Times are RFC 3339 in UTC; what is not known is `null`.

use std::time::Duration;

use alibi_proto::{
    coverage::{Facet, Grade},
    host::SourceDescription,
    id::HostId,
    time::{Moment, Timestamp},
};
use serde::{Deserialize, Serialize};

use super::{CollectorStatus, Entry, Told, health};
use crate::{
    enrich::redaction::{Redactions, Rule},
    recorder::Progress,
};

/// The format of the file. A newer one may mean something else by the same names.
pub(super) const FORMAT: u32 = 1;

/// What is older was not written by an agent that runs: it writes at least each 60 s, and a machine may be busy.
const STALE_AFTER: Duration = Duration::from_secs(150);

/// What does not change as long as the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This host.
    pub host: HostId,
    /// What it is called.
    pub name: String,
    /// The boot it is in.
    pub boot_id: String,
    /// The agent's process.
    pub pid: u32,
    /// When that started, in the unit of [`crate::sys::process_start`].
    pub process_start: Option<u64>,
    /// Since when it runs.
    pub started: Timestamp,
    /// Where it serves, if it serves anybody but its collector.
    pub serves: Option<String>,
    /// What captures.
    pub source: SourceDescription,
    /// How long the source may be silent.
    pub period: Duration,
    /// What the ring may take on disk.
    pub ring_bytes_max: u64,
    /// The rules of redaction that were added, in order.
    pub own_rules: Vec<String>,
}

/// What does.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// This instant.
    pub now: Moment,
    /// How far the recording is.
    pub progress: &'a Progress,
    /// What the ring has.
    pub ring: RingRoom,
    /// How the agent stands to its collector.
    pub link: &'a CollectorStatus,
    /// Who asked.
    pub asked: &'a Told,
    /// Why the agent ended, once it has.
    pub ended: Option<&'a str>,
}

/// What the ring has on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingRoom {
    /// Bytes that it takes.
    pub bytes: u64,
    /// When its oldest event was recorded; none if it has none.
    pub oldest: Option<Timestamp>,
}

/// What the owner is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub(super) format: u32,
    /// When it was written, by both clocks.
    pub(super) written: Timestamp,
    pub(super) written_boot_ns: u64,
    pub(super) host: HostStatus,
    pub(super) agent: AgentStatus,
    pub(super) source: String,
    /// How far anybody has seen the source work on such a system.
    pub(super) caveat: Option<String>,
    pub(super) facets: Vec<FacetStatus>,
    pub(super) collected: Vec<Collected>,
    pub(super) never_collected: Vec<String>,
    pub(super) ring: RingStatus,
    pub(super) recorded_until: Option<Timestamp>,
    pub(super) collector: CollectorStatus,
    pub(super) redacted: RedactedStatus,
    pub(super) asked: AskedStatus,
    /// What is not as it should be.
    pub(super) trouble: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostStatus {
    pub(super) id: HostId,
    pub(super) name: String,
    pub(super) boot_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentStatus {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) process_start: Option<u64>,
    pub(super) started: Timestamp,
    pub(super) serves: Option<String>,
    pub(super) ended: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) at: Timestamp,
    pub(super) reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FacetStatus {
    pub(super) facet: String,
    pub(super) grade: String,
    /// Why it is not complete; empty if it is.
    pub(super) reason: String,
    pub(super) source: String,
    pub(super) covers: String,
    pub(super) cannot_see: String,
}

/// A kind of thing that is recorded, and what of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Collected {
    pub(super) what: String,
    pub(super) words: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RingStatus {
    #[serde(flatten)]
    pub(super) room: RingRoom,
    pub(super) bytes_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RedactedStatus {
    /// Since the agent was started.
    pub(super) total: u64,
    pub(super) by_rule: Vec<RuleStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RuleStatus {
    pub(super) rule: String,
    /// It was added to those that are built in.
    pub(super) own: bool,
    pub(super) count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AskedStatus {
    /// How many there were in all, as far as the collector has told.
    pub(super) total: u64,
    /// Newest first.
    pub(super) newest: Vec<Entry>,
}

impl Status {
    /// What is told now.
    pub fn of(facts: &Facts, now: &Now<'_>) -> Self {
        let Facts { host, name, boot_id, source, .. } = facts;
        let facets = facets(source, now.progress);
        Self {
            format: FORMAT,
            written: now.now.wall,
            written_boot_ns: now.now.boot_ns,
            host: HostStatus { id: *host, name: name.clone(), boot_id: boot_id.clone() },
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: facts.pid,
                process_start: facts.process_start,
                started: facts.started,
                serves: facts.serves.clone(),
                ended: now.ended.map(|reason| Ended { at: now.now.wall, reason: reason.to_owned() }),
            },
            source: source.name.clone(),
            caveat: source.caveat.clone(),
            collected: collected(&facets),
            never_collected: NEVER_COLLECTED.map(str::to_owned).to_vec(),
            trouble: health::trouble(facts, now),
            facets,
            ring: RingStatus { room: now.ring, bytes_max: facts.ring_bytes_max },
            recorded_until: now.progress.known_until(now.now),
            collector: now.link.clone(),
            redacted: redacted(&facts.own_rules, &now.progress.redactions),
            asked: AskedStatus { total: now.asked.total, newest: now.asked.newest.to_vec() },
        }
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// When it is damaged, or of a newer version.
    pub fn parse(text: &[u8]) -> Result<Self, StatusError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(text)?;
        if format > FORMAT {
            return Err(StatusError::Newer(format));
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// Whether something is not as it should be.
    pub fn is_in_trouble(&self) -> bool {
        !self.trouble.is_empty()
    }

    /// Why the agent that wrote this is not taken to run, in the boot `boot_id`; none if it is. `has_ended` tells that of a
    /// process by its pid and start.
    pub fn why_not_running(
        &self,
        now: Moment,
        boot_id: &str,
        has_ended: impl Fn(u32, u64) -> bool,
    ) -> Option<String> {
        let agent = &self.agent;
        if let Some(Ended { at, reason }) = &agent.ended {
            return Some(format!("it ended at {at:.0}: {reason}"));
        }
        let is_this_boot = self.host.boot_id == boot_id;
        if is_this_boot && agent.process_start.is_some_and(|start| has_ended(agent.pid, start)) {
            return Some("it ended without saying so (crash, kill or power loss)".to_owned());
        }
        // Of another boot, the clocks since then have nothing in common but the wall.
        let age = match is_this_boot {
            true => Duration::from_nanos(now.boot_ns.saturating_sub(self.written_boot_ns)),
            false => now.wall.since(self.written),
        };
        (age > STALE_AFTER).then(|| format!("it has told nothing for {} s", age.as_secs()))
    }

    /// Whether `other`, written before, says the same, but for what changes all the time.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let lasting = |status: &Self| Self {
            written: Timestamp::ZERO,
            written_boot_ns: 0,
            // That anything is recorded is news, and how much is none.
            recorded_until: status.recorded_until.map(|_| Timestamp::ZERO),
            ring: RingStatus { room: RingRoom::default(), bytes_max: 0 },
            ..status.clone()
        };
        lasting(self) == lasting(other)
    }
}

/// Each facet as it is recorded now; where the source has said nothing yet, as it will be.
fn facets(source: &SourceDescription, progress: &Progress) -> Vec<FacetStatus> {
    let facet = |described: &alibi_proto::host::FacetCoverage| {
        let said = progress.grades.iter().find(|said| said.facet == described.facet);
        let grade = said.map_or(&described.grade, |said| &said.grade);
        let scope = said.and_then(|said| said.scope.as_ref()).unwrap_or(&described.scope);
        FacetStatus {
            facet: described.facet.word().to_owned(),
            grade: grade.word().to_owned(),
            reason: grade.reason(),
            source: scope.source.clone(),
            covers: scope.covers.clone(),
            cannot_see: scope.cannot_see.clone(),
        }
    };
    source.facets.iter().map(facet).collect()
}

fn collected(facets: &[FacetStatus]) -> Vec<Collected> {
    const OF_FACETS: [(Facet, &str); 3] = [
        (
            Facet::Processes,
            "of each program that runs: its path, arguments (secrets redacted), working directory, user, terminal, parent, \
             and when it started and ended",
        ),
        (
            Facet::Connections,
            "of each network connection: the program, both addresses and ports, when, how many bytes, and what came of it",
        ),
        (Facet::Names, "which names are looked up (DNS), and which server a TLS connection asks for"),
    ];
    const OTHERS: [(&str, &str); 3] = [
        (
            "executables",
            "of each program file that is run, and where that can be seen, newly written: its path, size, hash, package or \
             signer, and who wrote it",
        ),
        ("links", "network interfaces, their addresses and default routes, as they change"),
        (
            "host",
            "its name, system and users, its clocks, when it slept, and when it and this agent were stopped",
        ),
    ];
    let none = Grade::NotRecorded { reason: String::new() };
    let is_recorded =
        |facet: &Facet| facets.iter().any(|told| told.facet == facet.word() && told.grade != none.word());
    let of_facets = OF_FACETS.iter().filter(|(facet, _)| is_recorded(facet));
    of_facets
        .map(|(facet, words)| (facet.word(), *words))
        .chain(OTHERS)
        .map(|(what, words)| Collected { what: what.to_owned(), words: words.to_owned() })
        .collect()
}

const NEVER_COLLECTED: [&str; 4] = [
    "what is sent or received over a connection, beyond the names above",
    "what is in files",
    "environment variables",
    "what is typed, shown or said",
];

fn redacted(own_rules: &[String], redactions: &Redactions) -> RedactedStatus {
    let built_in = Rule::ALL.iter().map(|rule| RuleStatus {
        rule: rule.word().to_owned(),
        own: false,
        count: redactions.by(*rule),
    });
    let own = own_rules.iter().enumerate().map(|(index, rule)| RuleStatus {
        rule: rule.clone(),
        own: true,
        count: redactions.own(index),
    });
    RedactedStatus { total: redactions.total(), by_rule: built_in.chain(own).collect() }
}

/// A file that does not tell the status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// It is damaged.
    #[error(transparent)]
    Damaged(#[from] serde_json::Error),
    /// It was written by a newer version.
    #[error(
        "it has format {0}, and this version knows up to {FORMAT}: run the `status` of the agent that is installed"
    )]
    Newer(u32),
}

#[cfg(test)]
mod tests;
