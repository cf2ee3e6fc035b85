//! By which name a host knows an address: what DNS answered last, and what was asked for on the connection itself.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use alibi_proto::name::{NameSource, RemoteName};

use crate::capture::SocketKey;

/// Addresses whose names are remembered; the oldest are forgotten first.
const ADDRESSES_MAX: usize = 32_768;
/// Names asked for on connections of which no record has been written since.
const ASKED_MAX: usize = 4_096;

/// An address as it is seen from a network namespace.
type Place = (Option<u64>, IpAddr);
/// A connection that a name was asked for on: by the system's identity of its socket, or, where that is not known, by
/// network namespace, this end and the other. Ends come again when a port is used again, and may be translated on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asking {
    Socket(u64),
    Ends(Option<u64>, SocketAddr, SocketAddr),
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Names {
    resolved: Bounded<Place, String>,
    asked: Bounded<Asking, String>,
}

impl Names {
    /// DNS answered that `name` is at `address`.
    pub(super) fn resolved(&mut self, network_namespace: Option<u64>, address: IpAddr, name: &str) {
        self.resolved.insert((network_namespace, address), name.to_owned(), ADDRESSES_MAX);
    }

    /// `name` was asked for on a connection.
    pub(super) fn asked(&mut self, asking: Asking, name: &str) {
        self.asked.insert(asking, name.to_owned(), ASKED_MAX);
    }

    /// The name of `address`, as DNS had it last.
    pub(super) fn of_address(&self, network_namespace: Option<u64>, address: IpAddr) -> Option<RemoteName> {
        let name = self.resolved.values.get(&(network_namespace, address))?.1.clone();
        Some(RemoteName { name, source: NameSource::Dns })
    }

    /// The name that was asked for on a connection, if it has not been taken before.
    pub(super) fn take_asked(
        &mut self,
        socket: SocketKey,
        network_namespace: Option<u64>,
        local: SocketAddr,
    ) -> Option<RemoteName> {
        if self.asked.values.is_empty() {
            return None;
        }
        let ends = Asking::Ends(network_namespace, local, socket.remote);
        let by_ends = self.asked.remove(&ends);
        let name = self.asked.remove(&Asking::Socket(socket.socket)).or(by_ends)?;
        Some(RemoteName { name, source: NameSource::Sni })
    }
}

/// A map that forgets what was inserted first.
#[derive(Debug)]
struct Bounded<K, V> {
    values: HashMap<K, (u64, V)>,
    /// In the order of insertion; one that was inserted anew since, or removed, stands here with an old number.
    order: VecDeque<(u64, K)>,
    next: u64,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), next: 0 }
    }
}

impl<K: Copy + Eq + std::hash::Hash, V> Bounded<K, V> {
    fn insert(&mut self, key: K, value: V, max: usize) {
        self.next += 1;
        self.values.insert(key, (self.next, value));
        self.order.push_back((self.next, key));
        while self.values.len() > max || self.order.len() > 2 * max {
            let Some((number, key)) = self.order.pop_front() else { return };
            if self.values.get(&key).is_some_and(|(current, _)| *current == number) {
                self.values.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        // A key that comes often is mostly removed: its places in the order must not pile up.
        if self.values.len() == 1 {
            self.order.clear();
        }
        self.values.remove(key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::flow::Protocol;

    use super::*;

    #[test]
    fn the_latest_answer_counts_and_the_oldest_is_forgotten() {
        let mut bounded = Bounded::default();
        for (key, value) in [(1, 'a'), (2, 'b'), (1, 'c'), (3, 'd')] {
            bounded.insert(key, value, 2);
        }
        let value = |key| bounded.values.get(&key).map(|(_, value)| *value);
        assert_eq!([value(1), value(2), value(3)], [Some('c'), None, Some('d')]);
        assert_eq!((bounded.remove(&1), bounded.remove(&1)), (Some('c'), None));
        for round in 0..100 {
            bounded.insert(9, 'x', 2);
            assert!(bounded.order.len() <= 4 && bounded.values.len() <= 2, "{round}");
        }
    }

    #[test]
    fn a_name_belongs_to_its_namespace_and_to_one_connection() {
        let mut names = Names::default();
        let remote: SocketAddr = "198.51.100.7:443".parse().unwrap();
        let local: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        names.resolved(Some(1), remote.ip(), "cloud.example.com");
        let dns = Some(RemoteName { name: "cloud.example.com".into(), source: NameSource::Dns });
        assert_eq!(names.of_address(Some(1), remote.ip()), dns);
        assert_eq!(names.of_address(Some(2), remote.ip()), None);
        let socket = |cookie| SocketKey { protocol: Protocol::Tcp, remote, socket: cookie };
        let sni = Some(RemoteName { name: "www.example.com".into(), source: NameSource::Sni });
        names.asked(Asking::Ends(Some(1), local, remote), "www.example.com");
        assert_eq!(names.take_asked(socket(7), Some(2), local), None);
        assert_eq!(names.take_asked(socket(7), Some(1), local), sni);
        assert_eq!(names.take_asked(socket(7), Some(1), local), None);
        // The next connection between the same ends is another.
        names.asked(Asking::Socket(7), "www.example.com");
        assert_eq!(names.take_asked(socket(8), Some(1), local), None);
        assert_eq!(names.take_asked(socket(7), Some(1), local), sni);
    }
}
