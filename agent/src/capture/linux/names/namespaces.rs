//! The network namespaces of this host: which there are, and how to get a socket in one.
//!
//! Only a thread made for it ever enters another namespace, and it ends there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_a_namespace_that_is_found() {
        let own = of_process(std::process::id()).unwrap();
        assert!(find().unwrap().contains_key(&own));
        assert_eq!(of_process(u32::MAX), None);
    }
}
