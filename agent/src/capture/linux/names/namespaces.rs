//! The network namespaces of this host: which there are, and how to get a socket in one.
//!
//! Only a thread made for it ever enters another namespace, and it ends there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::socket::Ear;

/// A process in each network namespace that has one and can be seen, by the namespace's inode.
pub(super) fn find() -> io::Result<BTreeMap<u64, u32>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(namespace) = of_process(pid) {
            found.entry(namespace).or_insert(pid);
        }
    }
    Ok(found)
}

/// The namespace of a process, if it is there and may be looked at.
fn of_process(pid: u32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Opens an ear in each of these namespaces, through a process that is in it.
pub(super) fn listen_in(namespaces: &[(u64, u32)]) -> Vec<(u64, io::Result<Ear>)> {
    if namespaces.is_empty() {
        return Vec::new();
    }
    let opened = thread::scope(|scope| {
        let enter_all = || {
            let opened = namespaces.iter().map(|(namespace, pid)| (*namespace, enter(*namespace, *pid)));
            opened.collect::<Vec<_>>()
        };
        let helper = thread::Builder::new().name("names-enter".to_owned()).spawn_scoped(scope, enter_all)?;
        helper.join().map_err(|_| io::Error::other("the thread that entered it panicked"))
    });
    opened.unwrap_or_else(|problem: io::Error| {
        let failed = |(namespace, _): &(u64, u32)| {
            (*namespace, Err(io::Error::new(problem.kind(), problem.to_string())))
        };
        namespaces.iter().map(failed).collect()
    })
}

/// Moves this thread into a namespace, for good, and opens an ear there.
fn enter(namespace: u64, pid: u32) -> io::Result<Ear> {
    let link = File::open(format!("/proc/{pid}/ns/net"))?;
    if link.metadata()?.ino() != namespace {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the process has left it"));
    }
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ear::open()
}

/// The ends of the TCP connections in the namespace of process `pid` that are open: this one and the other.
pub(super) fn open_connections(pid: u32) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut connections = Vec::new();
    for table in ["tcp", "tcp6"] {
        match fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => connections.extend(text.lines().filter_map(open_connection)),
            // A kernel without IPv6 has no such table.
            Err(problem) if table == "tcp6" && problem.kind() == io::ErrorKind::NotFound => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(connections)
}

/// A line of the table; none if it is no connection, or one that is over.
fn open_connection(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    const TIME_WAIT: &str = "06";
    const CLOSE: &str = "07";
    const LISTEN: &str = "0A";
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (end(words.next()?)?, end(words.next()?)?, words.next()?);
    (![TIME_WAIT, CLOSE, LISTEN].contains(&state)).then_some((local, remote))
}

/// An address as the table writes it: words of 32 bits as they lie in memory, and the port.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn this_process_is_in_a_namespace_that_is_found() {
        let own = of_process(std::process::id()).unwrap();
        assert!(find().unwrap().contains_key(&own));
        assert_eq!(of_process(u32::MAX), None);
    }

    #[test]
    fn open_connections_are_found_and_closed_ones_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        // The table is not read in one instant, and a close takes its time on a busy machine.
        let becomes = |wanted: bool| {
            let is_open = || open_connections(std::process::id()).unwrap().contains(&ends);
            (0..1_000).any(|_| is_open() == wanted)
        };
        assert!(becomes(true));
        let unspecified = "0.0.0.0:0".parse().unwrap();
        let listening = (listener.local_addr().unwrap(), unspecified);
        assert!(!open_connections(std::process::id()).unwrap().contains(&listening));
        drop(accepted);
        drop(client);
        assert!(becomes(false));
    }

    #[test]
    fn lines_are_read() {
        let line =
            "   1: 0100007F:1F90 0700A8C0:01BB 01 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let (local, remote) = ("127.0.0.1:8080".parse().unwrap(), "192.168.0.7:443".parse().unwrap());
        if cfg!(target_endian = "little") {
            assert_eq!(open_connection(line), Some((local, remote)));
            let mapped = "0000000000000000FFFF00000100007F:1F90";
            assert_eq!(end(mapped), Some(local));
        }
        for line in ["", "sl local_address rem_address st", "1: 0100007F:1F90 0700A8C0 01", "1: é:1 é:2 01"]
        {
            assert_eq!(open_connection(line), None);
        }
    }
}
