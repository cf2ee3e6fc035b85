//! What a source says in a made history, of connections to a target and to somewhere else.

use alibi_agent::capture::{ConnectionChange, Fact, ObservedConnection, ProcessKey, SocketKey};
use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    host::{FacetCoverage, SourceDescription},
};

/// Whom questions ask about.
pub const TARGET: [u8; 4] = [198, 51, 100, 7];
/// Somebody else.
pub const OTHER: [u8; 4] = [198, 51, 100, 8];

/// A source that claims to see all of these.
pub fn source(facets: &[Facet]) -> SourceDescription {
    let scope = Scope { source: "test".into(), covers: "all".into(), cannot_see: "nothing".into() };
    let facets = facets.iter().copied();
    let facets = facets.map(|facet| FacetCoverage { facet, grade: Grade::Complete, scope: scope.clone() });
    SourceDescription { name: "test".into(), facets: facets.collect(), caveat: None }
}

/// The connection from `port`, to the target or not.
pub fn socket(port: u16, target: bool) -> SocketKey {
    SocketKey {
        protocol: Protocol::Tcp,
        remote: (if target { TARGET } else { OTHER }, 443).into(),
        socket: port.into(),
    }
}

/// It was opened, or was found open.
pub fn opened(port: u16, target: bool, already_open: bool) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: socket(port, target),
        local: ([192, 0, 2, 1], port).into(),
        owner: Some(ProcessKey { pid: 7, start: 1 }),
        attribution: Attribution::InKernel,
        direction: Direction::Outbound,
        state: FlowState::Established,
        already_open,
        traffic: Some(Traffic::default()),
        interface: None,
        network_namespace: None,
    }))
}

/// It was closed.
pub fn closed(port: u16, target: bool) -> Fact {
    Fact::ConnectionClosed {
        socket: socket(port, target),
        state: FlowState::Closed,
        change: ConnectionChange::default(),
    }
}
