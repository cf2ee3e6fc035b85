//! The answers of hosts that cannot be asked: listed, and unknown.

use alibi_proto::{
    clock::HostClock,
    coverage::{CoverageChange, Facet, Grade, Timeline},
    question::{Evidence, HostAnswer, Question, judge},
    time::Timestamp,
};

use crate::store::{FollowedAgent, StoreError};

/// Of a host of which something is damaged: it is unknown, for this reason.
pub(super) fn unanswerable(question: &Question, agent: FollowedAgent, error: &StoreError) -> HostAnswer {
    let mut connections = Timeline::default();
    connections.apply(&CoverageChange {
        facet: Facet::Connections,
        grade: Grade::NotRecorded { reason: error.to_string() },
        from: Timestamp::ZERO,
        to: None,
        scope: None,
        announced_from: None,
    });
    let description = agent.host.map(|(description, _)| description);
    let evidence = Evidence {
        host: description.as_ref().map(|description| description.host),
        name: description.map_or(agent.address, |description| description.name.clone()),
        clock: &HostClock::own(),
        connections: &connections,
        known_until: Some(Timestamp::MAX),
        names: None,
        flows: Vec::new(),
        flows_left_out: 0,
    };
    judge(question, evidence, |_| None)
}

/// Of a host that never answered.
pub(super) fn never_answered(question: &Question, address: String) -> HostAnswer {
    let evidence = Evidence {
        host: None,
        name: address,
        clock: &HostClock::default(),
        connections: &Timeline::default(),
        known_until: None,
        names: None,
        flows: Vec::new(),
        flows_left_out: 0,
    };
    judge(question, evidence, |_| None)
}
