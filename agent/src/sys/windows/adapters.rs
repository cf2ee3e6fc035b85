//! Network interfaces, their addresses and the default routes, as IP Helper lists them.

use std::{collections::BTreeMap, io, net::IpAddr, ptr};

use windows_sys::Win32::{
    Foundation::{ERROR_NOT_FOUND, NO_ERROR, WIN32_ERROR},
    NetworkManagement::{
        IpHelper::{
            FreeMibTable, GetIfTable2, GetIpForwardTable2, GetUnicastIpAddressTable, MIB_IF_ROW2,
            MIB_IF_TABLE2, MIB_IPFORWARD_ROW2, MIB_IPFORWARD_TABLE2, MIB_UNICASTIPADDRESS_ROW,
            MIB_UNICASTIPADDRESS_TABLE,
        },
        Ndis::{IfOperStatusUp, NET_IF_ADMIN_STATUS_UP},
    },
    Networking::WinSock::{AF_INET, AF_INET6, AF_UNSPEC, SOCKADDR_INET},
};

use crate::sys::{Interface, ON_LINK};

/// `FilterInterface` among the flags: a layer of a driver above an interface that is listed itself.
const IS_FILTER: u8 = 1 << 1;

/// All network interfaces of this network compartment.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces: BTreeMap<u32, Interface> = if_rows()?
        .iter()
        .filter(|row| row.InterfaceAndOperStatusFlags._bitfield & IS_FILTER == 0)
        .map(|row| (row.InterfaceIndex, interface(row)))
        .collect();
    for row in address_rows()? {
        if let (Some(interface), Some(address)) = (interfaces.get_mut(&row.InterfaceIndex), ip(&row.Address))
        {
            interface.addresses.push(format!("{address}/{}", row.OnLinkPrefixLength));
        }
    }
    for row in route_rows()? {
        if row.DestinationPrefix.PrefixLength != 0 {
            continue;
        }
        if let (Some(interface), Some(hop)) = (interfaces.get_mut(&row.InterfaceIndex), ip(&row.NextHop)) {
            let gateway = if hop.is_unspecified() { ON_LINK.to_owned() } else { hop.to_string() };
            interface.default_gateways.push(gateway);
        }
    }
    Ok(interfaces.into_values().collect())
}

fn interface(row: &MIB_IF_ROW2) -> Interface {
    let name = row.Alias.split(|unit| *unit == 0).next().unwrap_or_default();
    Interface {
        index: row.InterfaceIndex,
        name: String::from_utf16_lossy(name),
        up: row.AdminStatus == NET_IF_ADMIN_STATUS_UP,
        running: row.OperStatus == IfOperStatusUp,
        addresses: Vec::new(),
        default_gateways: Vec::new(),
    }
}

/// None of another family.
#[expect(unsafe_code, reason = "an address is a union, which its family tells apart")]
fn ip(address: &SOCKADDR_INET) -> Option<IpAddr> {
    // SAFETY: every part of the union begins with the family.
    let family = unsafe { address.si_family };
    match family {
        // SAFETY: of this family, it is of this kind, and bytes may be read as they are.
        AF_INET => Some(unsafe { address.Ipv4.sin_addr.S_un.S_addr }.to_ne_bytes().into()),
        // SAFETY: the same.
        AF_INET6 => Some(unsafe { address.Ipv6.sin6_addr.u.Byte }.into()),
        _ => None,
    }
}

#[expect(unsafe_code, reason = "IP Helper has no safe form")]
fn if_rows() -> io::Result<Vec<MIB_IF_ROW2>> {
    // SAFETY: it is given the address of a pointer.
    let ask = |table| unsafe { GetIfTable2(table) };
    // SAFETY: `rows` gives it a table that the system has made.
    rows(ask, |table: *const MIB_IF_TABLE2| unsafe {
        ((*table).NumEntries, (&raw const (*table).Table).cast())
    })
}

#[expect(unsafe_code, reason = "IP Helper has no safe form")]
fn address_rows() -> io::Result<Vec<MIB_UNICASTIPADDRESS_ROW>> {
    // SAFETY: it is given the address of a pointer.
    let ask = |table| unsafe { GetUnicastIpAddressTable(AF_UNSPEC, table) };
    // SAFETY: `rows` gives it a table that the system has made.
    rows(ask, |table: *const MIB_UNICASTIPADDRESS_TABLE| unsafe {
        ((*table).NumEntries, (&raw const (*table).Table).cast())
    })
}

#[expect(unsafe_code, reason = "IP Helper has no safe form")]
fn route_rows() -> io::Result<Vec<MIB_IPFORWARD_ROW2>> {
    // SAFETY: it is given the address of a pointer.
    let ask = |table| unsafe { GetIpForwardTable2(AF_UNSPEC, table) };
    // SAFETY: `rows` gives it a table that the system has made.
    rows(ask, |table: *const MIB_IPFORWARD_TABLE2| unsafe {
        ((*table).NumEntries, (&raw const (*table).Table).cast())
    })
}

/// The rows of a table that `ask` has the system make; `parts` are how many, and the first.
#[expect(unsafe_code, reason = "IP Helper has no safe form")]
fn rows<T, R: Copy>(
    ask: impl FnOnce(*mut *mut T) -> WIN32_ERROR,
    parts: impl FnOnce(*const T) -> (u32, *const R),
) -> io::Result<Vec<R>> {
    let mut table = ptr::null_mut();
    match ask(&raw mut table) {
        NO_ERROR if !table.is_null() => {}
        // There is nothing to list.
        NO_ERROR | ERROR_NOT_FOUND => return Ok(Vec::new()),
        problem => return Err(io::Error::from_raw_os_error(problem.cast_signed())),
    }
    let (count, first) = parts(table);
    let mut rows = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the system has made a table of so many rows, one after the other.
        rows.push(unsafe { *first.add(index) });
    }
    // SAFETY: the table is the system's, and nobody has it any more.
    unsafe { FreeMibTable(table.cast()) };
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_with_its_address() {
        let interfaces = interfaces().unwrap();
        let has = |interface: &&Interface| interface.addresses.iter().any(|address| address == "127.0.0.1/8");
        let loopback = interfaces.iter().find(has).unwrap_or_else(|| panic!("{interfaces:?}"));
        assert!(loopback.up && loopback.index != 0 && !loopback.name.is_empty(), "{loopback:?}");
    }
}
