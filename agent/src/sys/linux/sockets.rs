//! The table of TCP sockets, and who holds a socket.

use std::{
    collections::{HashMap, HashSet},
    ffi::CStr,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use netstat2::{AddressFamilyFlags, ProtocolFlags, SocketInfo};
use rustix::fs::{Dir, Mode, OFlags};

use super::pids;
use crate::sys::{TcpSocket, tcp_socket};

/// A process may pass a socket on without anything new to be seen in the tables, so owners are looked up anew at least
/// each so many reads.
const OWNERS_KEPT_FOR_READS: u32 = 10;

/// The table, with the owners.
#[derive(Debug, Default)]
pub(in crate::sys) struct SocketTable(SocketOwners);

impl SocketTable {
    pub(in crate::sys) fn read(&mut self) -> Result<Vec<TcpSocket>, netstat2::error::Error> {
        let listed =
            netstat2::iterate_sockets_info_without_pids(AddressFamilyFlags::all(), ProtocolFlags::TCP)?;
        let with_inode = |socket: SocketInfo| {
            let inode = u64::from(socket.inode);
            tcp_socket(socket, inode)
        };
        let mut sockets = listed
            .map(|socket| socket.map(with_inode))
            .filter_map(Result::transpose)
            .collect::<Result<Vec<_>, _>>()?;
        self.0.look_up(sockets.iter().map(|socket| socket.identity))?;
        for socket in &mut sockets {
            socket.pids = self.0.pids(socket.identity).to_vec();
        }
        Ok(sockets)
    }

    pub(in crate::sys) fn forget_owner(&mut self, pid: u32) {
        self.0.forget(pid);
    }
}

/// Remembers owners by inode. An inode without an owner is remembered too: it is most likely somebody else's, and
/// looking each second would not help.
#[derive(Debug, Default)]
pub(crate) struct SocketOwners {
    owners: HashMap<u64, Vec<u32>>,
    reads_since_lookup: u32,
}

impl SocketOwners {
    /// These are all the sockets that there are now, by inode; 0 is none. True if they were looked up anew, all of them.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub(crate) fn look_up(&mut self, inodes: impl Iterator<Item = u64>) -> io::Result<bool> {
        let inodes: HashSet<u64> = inodes.filter(|inode| *inode != 0).collect();
        self.reads_since_lookup += 1;
        let stale = self.reads_since_lookup >= OWNERS_KEPT_FOR_READS;
        if stale || inodes.iter().any(|inode| !self.owners.contains_key(inode)) {
            self.owners = look_up_owners(inodes)?;
            self.reads_since_lookup = 0;
            return Ok(true);
        }
        self.owners.retain(|inode, _| inodes.contains(inode));
        Ok(false)
    }

    /// The processes that held the socket when it was looked up; empty where that cannot be seen.
    pub(crate) fn pids(&self, inode: u64) -> &[u32] {
        self.owners.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// What was looked up of `pid` no longer counts.
    pub(crate) fn forget(&mut self, pid: u32) {
        self.owners.retain(|_, pids| !pids.contains(&pid));
    }
}

fn look_up_owners(inodes: HashSet<u64>) -> io::Result<HashMap<u64, Vec<u32>>> {
    let mut owners: HashMap<u64, Vec<u32>> = inodes.into_iter().map(|inode| (inode, Vec::new())).collect();
    if owners.is_empty() {
        return Ok(owners);
    }
    for pid in pids()? {
        // Ended, or not ours to look at.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty()) else {
            continue;
        };
        for inode in sockets_in(&directory) {
            if let Some(pids) = owners.get_mut(&inode)
                && pids.last() != Some(&pid)
            {
                pids.push(pid);
            }
        }
    }
    Ok(owners)
}

fn sockets_in(open_files: &OwnedFd) -> Vec<u64> {
    let Ok(entries) = Dir::read_from(open_files) else { return Vec::new() };
    entries.flatten().filter_map(|entry| socket_behind(open_files, entry.file_name())).collect()
}

/// An open socket is a link to `socket:[INODE]`.
fn socket_behind(open_files: &OwnedFd, name: &CStr) -> Option<u64> {
    let mut target = [MaybeUninit::uninit(); 64];
    let (target, _) = rustix::fs::readlinkat_raw(open_files, name, &mut target).ok()?;
    let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    str::from_utf8(inode).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_looked_up_again_once_it_is_forgotten() {
        let pid = std::process::id();
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut table = SocketTable::default();
        table.read().unwrap();
        let ours = |table: &SocketTable| table.0.owners.values().filter(|pids| pids.contains(&pid)).count();
        let before = ours(&table);
        assert!(before >= 1);
        table.forget_owner(pid);
        assert_eq!(ours(&table), 0);
        table.read().unwrap();
        assert!(ours(&table) >= 1);
    }
}
