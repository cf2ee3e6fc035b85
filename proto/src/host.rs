//! Hosts: what an agent says of itself, and what a collector knows of it.

use crate::{
    chain::ChainStatus,
    coverage::{Facet, Grade, Scope},
    id::{Epoch, HostId, Seq},
    process::User,
    time::Timestamp,
};

/// Who and what a host is, and how well it records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDescription {
    /// Fixed for ever.
    pub host: HostId,
    /// Host name.
    pub name: String,
    /// linux, macos or windows.
    pub os: String,
    /// Distribution or edition, and version.
    pub os_version: String,
    /// The system's own id of the machine, where it has one.
    pub machine_id: Option<String>,
    /// Changes at each boot.
    pub boot_id: String,
    /// When it was booted.
    pub booted: Timestamp,
    /// Version of the agent.
    pub agent_version: String,
    /// Users with at least one process.
    pub users: Vec<UserPresence>,
    /// What is captured, by which means.
    pub sources: Vec<SourceDescription>,
    /// The ring's identity.
    pub epoch: Epoch,
    /// The oldest event that the ring still has.
    pub first_seq: Seq,
    /// The position of the next event.
    pub next_seq: Seq,
}

/// A user and the number of processes that run for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPresence {
    /// The user.
    pub user: User,
    /// How many processes.
    pub processes: u32,
}

/// A way of capturing, and what it is worth on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDescription {
    /// ebpf, netlink, etw, poll or replay.
    pub name: String,
    /// What it is worth, facet by facet.
    pub facets: Vec<FacetCoverage>,
    /// How far anybody has seen it work on such a system; none where it is tested there.
    pub caveat: Option<String>,
}

/// What a source is worth for one facet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FacetCoverage {
    /// The facet.
    pub facet: Facet,
    /// How well.
    pub grade: Grade,
    /// What it covers and cannot see.
    pub scope: Scope,
}

/// What a collector knows of an agent that it follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// The agent's address.
    pub address: String,
    /// What the agent last said of itself; none until it has answered once.
    pub description: Option<HostDescription>,
    /// Whether the agent is being tailed now.
    pub connected: bool,
    /// When it was last heard.
    pub heard: Option<Timestamp>,
    /// Everything up to here has been received.
    pub known_until: Option<Timestamp>,
    /// Why it is not connected.
    pub trouble: Option<String>,
    /// How many of its events are stored.
    pub events: u64,
    /// How its clock stands; none where it was not measured.
    pub clock: Option<ClockStatus>,
    /// How the chain over its events stands.
    pub chain: ChainStatus,
    /// Where it calls from, or did last.
    pub from: Option<String>,
    /// None where it is not enrolled: nobody has proven then that it is who it says.
    pub enrolment: Option<HostEnrolment>,
}

/// What is known of a host by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEnrolment {
    /// Which.
    pub host: HostId,
    /// What it was called when it enrolled.
    pub name: String,
    /// When it enrolled last.
    pub enrolled: Timestamp,
    /// Until when its certificate is valid.
    pub certificate_until: Timestamp,
    /// What it is marked with.
    pub tags: Vec<String>,
    /// Since when it is not enrolled any more.
    pub revoked: Option<Timestamp>,
    /// That its identity was found in two places, and where.
    pub copied: Option<String>,
}

/// How a host's clock stands to the collector's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStatus {
    /// The host's clock less the collector's, in nanoseconds; 0 where it cannot be told from 0.
    pub offset_ns: i64,
    /// The truth is no further from the offset. 0 where both have one clock.
    pub bound_ns: u64,
    /// When it was measured last, by the collector's clock.
    pub measured: Timestamp,
}
