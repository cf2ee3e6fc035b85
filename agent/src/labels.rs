//! What events can be found by in the ring: made alike when they are written and when a question is asked. Pure.

use std::net::IpAddr;

use alibi_proto::{
    event::{Event, EventKind},
    executable::FileIdentity,
    id::ProcessUid,
    name::NamePattern,
    target::Target,
    time::Timestamp,
};
use ipnet::IpNet;

use crate::ring::{Key, Labels};

/// Records of connections.
pub const FLOWS: u32 = 1;
/// What is said of coverage.
pub const COVERAGE: u32 = 1 << 1;
/// Starts, executions and ends of processes.
pub const PROCESSES: u32 = 1 << 2;
/// DNS answers and ClientHellos.
pub const NAMES: u32 = 1 << 3;
/// Executable files.
pub const EXECUTABLES: u32 = 1 << 4;
/// Everything else.
pub const OTHERS: u32 = 1 << 5;
/// Kinds that a newer version may label events with.
pub const UNKNOWN: u32 = !(FLOWS | COVERAGE | PROCESSES | NAMES | EXECUTABLES | OTHERS);

/// Networks of these sizes have keys of their own, for questions about networks; the smallest first.
const NETWORKS_V4: [u8; 2] = [24, 16];
const NETWORKS_V6: [u8; 3] = [64, 48, 32];

mod sort {
    pub(super) const ADDRESS: u8 = 1;
    pub(super) const NETWORK: u8 = 2;
    pub(super) const PROCESS: u8 = 3;
    pub(super) const NAME: u8 = 4;
    pub(super) const FILE: u8 = 5;
}

/// The labels of an event.
pub fn of(event: &Event) -> Labels {
    let recorded = event.recorded.wall;
    match &event.kind {
        EventKind::Flow(flow) => {
            Labels { kinds: FLOWS, keys: of_address(flow.remote.ip()).collect(), from: flow.first }
        }
        EventKind::CoverageChanged(_) => Labels { kinds: COVERAGE, keys: vec![], from: recorded },
        EventKind::ProcessStarted(process) => of_process(process.uid, recorded),
        EventKind::ProcessExecuted(execution) => of_process(execution.uid, recorded),
        EventKind::ProcessExited(exit) => of_process(exit.uid, recorded),
        EventKind::NameResolved(resolution) => {
            let names = std::iter::once(&resolution.name).chain(&resolution.aliases);
            Labels { kinds: NAMES, keys: names.flat_map(|name| of_name(name)).collect(), from: resolution.at }
        }
        EventKind::ServerName(hello) => Labels {
            kinds: NAMES,
            keys: hello.name.iter().flat_map(|name| of_name(name)).collect(),
            from: hello.at,
        },
        EventKind::ExecutableSeen(executable) => Labels {
            kinds: EXECUTABLES,
            keys: executable.file.iter().map(of_file).collect(),
            from: executable.at.min(recorded),
        },
        EventKind::Listen(_) | EventKind::LinkChanged(_) => {
            Labels { kinds: OTHERS, keys: vec![], from: recorded }
        }
        EventKind::Unrecognised => Labels { kinds: u32::MAX, keys: vec![], from: Timestamp::ZERO },
    }
}

/// Every record of a connection to the target has one of these keys; none: it may have any.
pub fn of_target(target: &Target) -> Option<Vec<Key>> {
    target.networks().iter().copied().map(of_network).collect()
}

/// Every record of a connection to the address has this key.
pub fn of_remote(address: IpAddr) -> Key {
    Key::of(sort::ADDRESS, &octets(address))
}

/// Every event of a name that the pattern matches has this key.
pub fn of_pattern(pattern: &NamePattern) -> Key {
    Key::of(sort::NAME, pattern.name().as_bytes())
}

/// Every event of the process has this key.
pub fn of_owner(uid: ProcessUid) -> Key {
    Key::of_rare(sort::PROCESS, uid.as_bytes())
}

/// Every event of the executable file has this key.
pub fn of_file(file: &FileIdentity) -> Key {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&file.device.to_le_bytes());
    bytes[8..].copy_from_slice(&file.inode.to_le_bytes());
    Key::of_rare(sort::FILE, &bytes)
}

fn of_process(uid: ProcessUid, from: Timestamp) -> Labels {
    Labels { kinds: PROCESSES, keys: vec![of_owner(uid)], from }
}

/// A name, and all that it is below of.
fn of_name(name: &str) -> impl Iterator<Item = Key> + '_ {
    let parents = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
    std::iter::once(name).chain(parents).map(|name| Key::of(sort::NAME, name.as_bytes()))
}

fn of_address(address: IpAddr) -> impl Iterator<Item = Key> {
    let networks = sizes(address).iter().filter_map(move |size| of_sized(address, *size));
    std::iter::once(of_remote(address)).chain(networks)
}

fn sizes(address: IpAddr) -> &'static [u8] {
    if address.to_canonical().is_ipv4() { &NETWORKS_V4 } else { &NETWORKS_V6 }
}

/// The key of the smallest network that has one and contains this.
fn of_network(network: IpNet) -> Option<Key> {
    let address = network.addr();
    if network.prefix_len() == network.max_prefix_len() {
        return Some(of_remote(address));
    }
    let size = sizes(address).iter().find(|size| **size <= network.prefix_len())?;
    of_sized(address, *size)
}

fn of_sized(address: IpAddr, size: u8) -> Option<Key> {
    let network = IpNet::new(address.to_canonical(), size).ok()?.trunc();
    let mut bytes = [0; 17];
    bytes[0] = size;
    bytes[1..].copy_from_slice(&octets(network.addr()));
    Some(Key::of(sort::NETWORK, &bytes))
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_target_contains_has_one_of_its_keys() {
        let check = |target: &str, inside: &str| {
            let keys = of_target(&Target::parse(target, None, None).unwrap()).unwrap();
            let of: Vec<Key> = of_address(inside.parse().unwrap()).collect();
            assert!(of.iter().any(|key| keys.contains(key)), "{inside} in {target}");
            of
        };
        check("10.1.2.3", "10.1.2.3");
        check("10.1.2.3", "::ffff:10.1.2.3");
        check("10.1.2.0/30", "10.1.2.3");
        check("10.1.2.0/24", "10.1.2.200");
        check("10.1.0.0/23", "10.1.1.200");
        check("10.1.0.0/16", "10.1.200.1");
        check("2001:db8::1", "2001:db8::1");
        check("2001:db8::/64", "2001:db8::5");
        check("2001:db8::/50", "2001:db8:0:1000::5");
        check("2001:db8::/32", "2001:db8:ffff::5");
        for wide in ["10.0.0.0/8", "2001::/16", "0.0.0.0/0"] {
            assert_eq!(of_target(&Target::parse(wide, None, None).unwrap()), None, "{wide}");
        }
        let others = of_address("10.2.0.1".parse().unwrap()).collect::<Vec<_>>();
        assert!(check("10.1.2.3", "10.1.2.3").iter().all(|key| !others.contains(key)));
    }

    #[test]
    fn whatever_a_pattern_matches_has_its_key() {
        for (pattern, name, is_meant) in [
            ("cloud.example.com", "cloud.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "a.example.org", false),
            ("example.com", "notexample.com", false),
        ] {
            let key = of_pattern(Target::parse(pattern, None, None).unwrap().name().unwrap());
            assert_eq!(of_name(name).any(|of| of == key), is_meant, "{pattern} {name}");
        }
    }
}
