//! What rtnetlink's messages say of interfaces, addresses and routes. Pure.

use std::net::IpAddr;

use crate::capture::{
    interfaces::{Change, Route},
    linux::netlink::message::{Message, attributes, bytes_at, u16_at, u32_at},
};

/// `RTM_NEWLINK` and so on.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;

const IFF_UP: u32 = 1;
/// `IFF_RUNNING | IFF_LOWER_UP`: allowed to carry traffic, and somebody is at the other end.
const RUNNING: u32 = 1 << 6 | 1 << 16;
const RTN_UNICAST: u8 = 1;

/// What `message` changes; none if that is of no interest here.
pub(super) fn change(message: Message<'_>) -> Option<Change> {
    match message.kind {
        NEW_LINK | DELETE_LINK => link(message),
        NEW_ADDRESS | DELETE_ADDRESS => address(message),
        NEW_ROUTE | DELETE_ROUTE => (!default_routes(message).is_empty()).then_some(Change::DefaultRoutes),
        _ => None,
    }
}

/// `struct ifinfomsg`: family, type at 2, index at 4, flags at 8.
fn link(message: Message<'_>) -> Option<Change> {
    const IFLA_IFNAME: u16 = 3;
    let body = message.body;
    // A bridge tells of its ports in messages of the same kind.
    if *body.first()? == AF_BRIDGE {
        return None;
    }
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    if message.kind == DELETE_LINK {
        return Some(Change::LinkGone { index });
    }
    let (_, name) = attributes(body, 16).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Some(Change::Link {
        index,
        name: String::from_utf8_lossy(name).into_owned(),
        up: flags & IFF_UP != 0,
        running: flags & (RUNNING | IFF_UP) == RUNNING | IFF_UP,
    })
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index at 4.
fn address(message: Message<'_>) -> Option<Change> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let body = message.body;
    let (family, prefix, index) = (*body.first()?, *body.get(1)?, u32_at(body, 4)?);
    let find = |wanted: u16| attributes(body, 8).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    // Where there are both, the other is the one at the far end of a cable.
    let address = ip(family, find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?)?;
    let address = format!("{address}/{prefix}");
    Some(match message.kind {
        NEW_ADDRESS => Change::Address { index, address },
        _ => Change::AddressGone { index, address },
    })
}

/// The default routes in a message of a route; none if it is of another.
///
/// `struct rtmsg`: family, destination's length, source's length, tos, table, protocol, scope, type at 7.
pub(super) fn default_routes(message: Message<'_>) -> Vec<Route> {
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_VIA: u16 = 18;
    let body = message.body;
    let (Some(&family), Some(0), Some(&RTN_UNICAST)) = (body.first(), body.get(1), body.get(7)) else {
        return Vec::new();
    };
    if !matches!(family, AF_INET | AF_INET6) {
        return Vec::new();
    }
    let mut hops = Vec::new();
    let (mut interface, mut gateway) = (None, None);
    for (kind, value) in attributes(body, 12) {
        match kind {
            RTA_OIF => interface = u32_at(value, 0),
            RTA_GATEWAY => gateway = ip(family, value),
            // A gateway of the other family: that family, then its address.
            RTA_VIA => {
                gateway = u16_at(value, 0).and_then(|family| ip(u8::try_from(family).ok()?, value.get(2..)?))
            }
            RTA_MULTIPATH => hops = next_hops(family, value),
            _ => {}
        }
    }
    hops.extend(interface.map(|interface| (interface, gateway)));
    let on_link = || "on-link".to_owned();
    let text = |gateway: Option<IpAddr>| gateway.map_or_else(on_link, |gateway| gateway.to_string());
    hops.into_iter().map(|(interface, gateway)| (interface, text(gateway))).collect()
}

/// `struct rtnexthop`: length, flags, hops, interface at 4, then attributes.
fn next_hops(family: u8, mut rest: &[u8]) -> Vec<(u32, Option<IpAddr>)> {
    const RTA_GATEWAY: u16 = 5;
    let mut hops = Vec::new();
    while let (Some(length), Some(interface)) = (u16_at(rest, 0).map(usize::from), u32_at(rest, 4)) {
        let Some(hop) = rest.get(..length).filter(|hop| hop.len() >= 8) else { break };
        let gateway = attributes(hop, 8).find(|(kind, _)| *kind == RTA_GATEWAY);
        hops.push((interface, gateway.and_then(|(_, value)| ip(family, value))));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => bytes_at::<4>(value, 0).map(IpAddr::from),
        AF_INET6 => bytes_at::<16>(value, 0).map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::linux::netlink::message::{messages, request};

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn routes(family: u8, prefix: u8, attributes: &[Vec<u8>]) -> Vec<Route> {
        let header = vec![family, prefix, 0, 0, 254, 3, 0, RTN_UNICAST, 0, 0, 0, 0];
        let datagram = request(NEW_ROUTE, 0, 0, &[header, attributes.concat()].concat());
        default_routes(messages(&datagram).next().unwrap())
    }

    #[test]
    fn default_routes_are_read_in_every_form() {
        let through = |index: u32| attribute(4, &index.to_ne_bytes());
        let gateway = attribute(5, &[192, 0, 2, 1]);
        assert_eq!(routes(AF_INET, 0, &[through(3), gateway.clone()]), [(3, "192.0.2.1".to_owned())]);
        assert_eq!(routes(AF_INET, 0, &[through(3)]), [(3, "on-link".to_owned())]);
        assert_eq!(routes(AF_INET, 24, &[through(3), gateway.clone()]), []);
        let mut via = AF_INET6.to_ne_bytes().to_vec();
        via.push(0);
        via.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(routes(AF_INET, 0, &[through(3), attribute(18, &via)]), [(3, "fe80::1".to_owned())]);
        let hop = |index: u32, attributes: &[u8]| {
            let length = u16::try_from(8 + attributes.len()).unwrap();
            [&length.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes(), attributes].concat()
        };
        let hops = attribute(9, &[hop(3, &gateway), hop(4, &[])].concat());
        let expected = [(3, "192.0.2.1".to_owned()), (4, "on-link".to_owned())];
        assert_eq!(routes(AF_INET, 0, &[hops]), expected);
    }
}
