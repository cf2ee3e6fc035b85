//! Network interfaces and default routes as systems from the BSD family tell of them: getifaddrs(3), and the routing table
//! as messages of route(4). Linux has the former, too, and runs its tests.

use std::{collections::BTreeMap, io, net::IpAddr};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::{InterfaceFlags, if_nametoindex},
    sys::socket::SockaddrStorage,
};

use super::{Interface, ON_LINK};

/// All network interfaces with their addresses, without the routes.
///
/// # Errors
/// When the system does not tell.
pub(super) fn interfaces() -> io::Result<BTreeMap<u32, Interface>> {
    let mut interfaces = BTreeMap::new();
    let mut indices = BTreeMap::new();
    for entry in getifaddrs()? {
        let name = entry.interface_name.clone();
        // One that went meanwhile is not listed.
        let index = *indices.entry(name).or_insert_with_key(|name| if_nametoindex(name.as_str()).ok());
        let Some(index) = index else { continue };
        let interface = interfaces.entry(index).or_insert_with(|| interface(index, &entry));
        interface.addresses.extend(address(&entry));
    }
    Ok(interfaces)
}

fn interface(index: u32, entry: &InterfaceAddress) -> Interface {
    let is_up = entry.flags.contains(InterfaceFlags::IFF_UP);
    Interface {
        index,
        name: entry.interface_name.clone(),
        up: is_up,
        running: is_up && entry.flags.contains(InterfaceFlags::IFF_RUNNING),
        addresses: Vec::new(),
        default_gateways: Vec::new(),
    }
}

/// With its prefix length, as text; none if the entry has none of a family that is known.
fn address(entry: &InterfaceAddress) -> Option<String> {
    let address = ip(entry.address.as_ref()?)?;
    let prefix = match entry.netmask.as_ref().and_then(ip) {
        Some(IpAddr::V4(mask)) => mask.to_bits().count_ones(),
        Some(IpAddr::V6(mask)) => mask.to_bits().count_ones(),
        None if address.is_ipv4() => 32,
        None => 128,
    };
    Some(format!("{}/{prefix}", without_scope(address)))
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// The kernel may keep the index of the interface within an address of the link.
fn without_scope(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let mut segments = v6.segments();
            segments[1] = 0;
            IpAddr::V6(segments.into())
        }
        other => other,
    }
}

// Offsets in `struct rt_msghdr`: length, version, type, index, flags at 8, which addresses follow at 12. They follow at 92,
// each of them with its own length first, in places of four bytes.
pub(super) const HEADER_BYTES: usize = 92;
const PLACE_BYTES: usize = 4;
const VERSION: u8 = 5;
const RTF_UP: u32 = 0x1;
const RTF_GATEWAY: u32 = 0x2;
/// A cut-out of what else is reached: nothing goes there.
const RTF_REJECT_OR_BLACKHOLE: u32 = 0x8 | 0x1000;
const DESTINATION: u32 = 0x1;
const GATEWAY: u32 = 0x2;
const NETMASK: u32 = 0x4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 30;

/// The default routes in a table of messages: the interface that each goes through, and the gateway as text. What is no
/// message ends it.
pub(super) fn default_routes(table: &[u8]) -> Vec<(u32, String)> {
    let mut routes = Vec::new();
    let mut rest = table;
    while let Some((message, after)) = next_message(rest) {
        routes.extend(default_route(message));
        rest = after;
    }
    routes
}

fn next_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    if length < HEADER_BYTES || bytes.get(2) != Some(&VERSION) {
        return None;
    }
    bytes.split_at_checked(length)
}

fn default_route(message: &[u8]) -> Option<(u32, String)> {
    let number = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let index = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let (flags, present) = (number(8)?, number(12)?);
    if flags & RTF_UP == 0 || flags & RTF_REJECT_OR_BLACKHOLE != 0 {
        return None;
    }
    let mut rest = message.get(HEADER_BYTES..)?;
    let (mut is_default, mut is_masked, mut gateway) = (false, false, None);
    for kind in [DESTINATION, GATEWAY, NETMASK] {
        if present & kind == 0 {
            continue;
        }
        let length = usize::from(*rest.first()?);
        let address = rest.get(..length)?;
        match kind {
            DESTINATION => is_default = ip_in(address).is_some_and(|ip| ip.is_unspecified()),
            GATEWAY => gateway = ip_in(address).filter(|_| flags & RTF_GATEWAY != 0),
            // All that is left out is zero, and so may be the family.
            _ => is_masked = address.get(4..).is_some_and(|mask| mask.iter().any(|byte| *byte != 0)),
        }
        rest = rest.get(length.max(1).next_multiple_of(PLACE_BYTES)..).unwrap_or_default();
    }
    let has_mask = present & NETMASK != 0;
    let gateway = gateway.map_or_else(|| ON_LINK.to_owned(), |gateway| without_scope(gateway).to_string());
    (is_default && has_mask && !is_masked).then_some((index.into(), gateway))
}

/// `struct sockaddr`: length, family, then what the family has. A zero that ends it may be left out.
fn ip_in(address: &[u8]) -> Option<IpAddr> {
    fn part<const N: usize>(address: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|index| address.get(at + index).copied().unwrap_or(0))
    }
    match *address.get(1)? {
        AF_INET => Some(part::<4>(address, 4).into()),
        AF_INET6 => Some(part::<16>(address, 8).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_with_its_address() {
        let interfaces = interfaces().unwrap();
        let has = |interface: &&Interface| interface.addresses.iter().any(|address| address == "127.0.0.1/8");
        let loopback = interfaces.values().find(has).unwrap_or_else(|| panic!("{interfaces:?}"));
        assert!(loopback.up && loopback.running && loopback.name.starts_with("lo"), "{loopback:?}");
        assert_eq!(interfaces[&loopback.index], *loopback);
    }

    const UP: u32 = RTF_UP;

    fn v4(ip: [u8; 4]) -> Vec<u8> {
        [&[16, AF_INET, 0, 0][..], &ip, &[0; 8]].concat()
    }

    fn v6(ip: [u8; 16]) -> Vec<u8> {
        [&[28, AF_INET6, 0, 0, 0, 0, 0, 0][..], &ip, &[0; 4]].concat()
    }

    /// Through interface 6.
    fn message(flags: u32, present: u32, addresses: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        for address in addresses {
            bytes.extend(address);
            // What has no length takes a place all the same.
            bytes.resize(bytes.len().next_multiple_of(PLACE_BYTES), 0);
        }
        let length = u16::try_from(bytes.len()).unwrap();
        bytes[..2].copy_from_slice(&length.to_ne_bytes());
        bytes[2..4].copy_from_slice(&[VERSION, 4]);
        bytes[4..6].copy_from_slice(&6_u16.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&present.to_ne_bytes());
        bytes
    }

    #[test]
    fn default_routes_are_read_in_every_form() {
        const ALL: u32 = DESTINATION | GATEWAY | NETMASK;
        // A mask of no bits: no length and no family, in a place of four bytes.
        let no_mask = vec![0, 0, 0, 0];
        let short_mask = vec![5, 0, 0, 0, 255];
        let (any, router) = (v4([0; 4]), v4([192, 0, 2, 1]));
        let link = vec![20, 18, 6, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut link_local = [0; 16];
        (link_local[0], link_local[1], link_local[3], link_local[15]) = (0xfe, 0x80, 6, 1);
        let messages = [
            message(UP | RTF_GATEWAY, ALL, &[any.clone(), router.clone(), no_mask.clone()]),
            message(UP, ALL, &[any.clone(), link, no_mask.clone()]),
            message(UP | RTF_GATEWAY, ALL, &[v6([0; 16]), v6(link_local), no_mask.clone()]),
            // Those are none: to 0.0.0.0 of a network, to one host, to another network, one that is down, a black hole.
            message(UP | RTF_GATEWAY, ALL, &[any.clone(), router.clone(), short_mask.clone()]),
            message(UP | RTF_GATEWAY, DESTINATION | GATEWAY, &[any.clone(), router.clone()]),
            message(UP | RTF_GATEWAY, ALL, &[v4([10, 0, 0, 0]), router.clone(), short_mask]),
            message(RTF_GATEWAY, ALL, &[any.clone(), router.clone(), no_mask.clone()]),
            message(UP | RTF_GATEWAY | 0x1000, ALL, &[any, router, no_mask]),
        ];
        let routes = default_routes(&messages.concat());
        let gateways: Vec<_> = routes.iter().map(|(index, gateway)| (*index, gateway.as_str())).collect();
        assert_eq!(gateways, [(6, "192.0.2.1"), (6, ON_LINK), (6, "fe80::1")]);
    }

    proptest! {
        #[test]
        fn no_bytes_confuse_the_reading(mut table in prop::collection::vec(any::<u8>(), 0..400), whole: bool) {
            if whole && table.len() >= HEADER_BYTES {
                let length = u16::try_from(table.len()).unwrap();
                table[..2].copy_from_slice(&length.to_ne_bytes());
                table[2] = VERSION;
            }
            prop_assert!(default_routes(&table).len() <= 4);
        }
    }
}
