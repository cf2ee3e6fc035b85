//! What may be passed over unread, by what the tree asks for. A hint only ever saves reading: whatever the tree may hold of is
//! admitted by it, and the tree has the last word.

use alibi_proto::flow::Protocol;
use ipnet::IpNet;

use super::{
    fields::Field,
    time::Stretch,
    tree::{Condition, Test, Tree},
};

/// Networks of a hint; with more, it is none.
const NETWORKS_MAX: usize = 1_024;

/// Which flow records may be wanted. What is none admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordHints {
    /// In the collector's time: they overlap it, for as long as they may stand for their connection.
    pub times: Option<Stretch>,
    /// Their remotes are in these.
    pub remotes: Option<Vec<IpNet>>,
    /// Their remote port.
    pub port: Option<u16>,
    /// Their protocol.
    pub protocol: Option<Protocol>,
}

impl RecordHints {
    /// What a search of flow records needs: all of it must hold of one record.
    pub fn of_records(tree: &Tree) -> Self {
        match tree {
            Tree::And(trees) => trees.iter().map(Self::of_records).fold(Self::default(), Self::and),
            Tree::Or(trees) => trees.iter().map(Self::of_records).reduce(Self::or).unwrap_or_default(),
            Tree::Not(_) => Self::default(),
            Tree::Test(test) => Self::of_test(test),
        }
    }

    /// What a search of processes needs that holds only of those that have a connection of some kind: such a kind; none
    /// where it may hold of others. Of terms that must all hold, one alone is used: each may be about another connection.
    pub fn of_some_connection(tree: &Tree) -> Option<Self> {
        match tree {
            Tree::And(trees) => {
                let hints = trees.iter().filter_map(Self::of_some_connection);
                hints.max_by_key(Self::narrowness)
            }
            Tree::Or(trees) => {
                let hints: Option<Vec<Self>> = trees.iter().map(Self::of_some_connection).collect();
                hints?.into_iter().reduce(Self::or).filter(|hints| *hints != Self::default())
            }
            Tree::Not(_) => None,
            Tree::Test(Test { field: Field::LastUpdate, .. }) => None,
            Tree::Test(test) => Some(Self::of_test(test)).filter(|hints| *hints != Self::default()),
        }
    }

    fn of_test(test: &Test) -> Self {
        let mut hints = Self::default();
        match (test.field, &test.condition) {
            (Field::ConnectionActivity | Field::LastUpdate, Condition::Times(stretch)) => {
                hints.times = Some(*stretch);
            }
            (Field::RemoteAddress, Condition::Network(network)) => hints.remotes = Some(vec![*network]),
            (Field::RemotePort, Condition::Numbers { least, most }) if least == most => {
                hints.port = u16::try_from(*least).ok();
            }
            (Field::Transport, Condition::Text(pattern)) => {
                let mut fitting = [Protocol::Tcp, Protocol::Udp]
                    .into_iter()
                    .filter(|protocol| pattern.fits(protocol.word()));
                hints.protocol = fitting.next().filter(|_| fitting.next().is_none());
            }
            _ => {}
        }
        hints
    }

    /// Both must hold.
    fn and(self, other: Self) -> Self {
        let remotes = match (self.remotes, other.remotes) {
            // Whoever has fewer is near enough.
            (Some(one), Some(other)) => Some(if one.len() <= other.len() { one } else { other }),
            (one, other) => one.or(other),
        };
        Self {
            times: match (self.times, other.times) {
                (Some(one), Some(other)) => Some(one.and(other)),
                (one, other) => one.or(other),
            },
            remotes,
            port: self.port.or(other.port),
            protocol: self.protocol.or(other.protocol),
        }
    }

    /// Either may.
    fn or(self, other: Self) -> Self {
        let both = |one: Option<Vec<IpNet>>, other: Option<Vec<IpNet>>| {
            let networks = [one?, other?].concat();
            (networks.len() <= NETWORKS_MAX).then_some(networks)
        };
        Self {
            times: self.times.zip(other.times).map(|(one, other)| one.hull(other)),
            remotes: both(self.remotes, other.remotes),
            port: self.port.filter(|port| other.port == Some(*port)),
            protocol: self.protocol.filter(|protocol| other.protocol == Some(*protocol)),
        }
    }

    /// How much it saves, roughly: remotes are what records lie by.
    const fn narrowness(&self) -> u8 {
        match (&self.remotes, &self.times, &self.port) {
            (Some(_), ..) => 3,
            (_, Some(_), _) => 2,
            (.., Some(_)) => 1,
            _ => 0,
        }
    }
}

/// When a process that may be wanted was started, in the collector's time; none where that does not matter.
pub fn started(tree: &Tree) -> Option<Stretch> {
    match tree {
        Tree::And(trees) => trees.iter().filter_map(started).reduce(Stretch::and),
        Tree::Or(trees) => {
            let hints: Option<Vec<Stretch>> = trees.iter().map(started).collect();
            hints?.into_iter().reduce(Stretch::hull)
        }
        Tree::Test(Test { field: Field::ProcessStart, condition: Condition::Times(stretch), .. }) => {
            Some(*stretch)
        }
        Tree::Not(_) | Tree::Test(_) => None,
    }
}
