//! Network namespaces: which there are, and doing something in one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where named ones are kept that no process may be in.
const NAMED: [&str; 3] = ["/run/netns", "/run/docker/netns", "/var/run/netns"];

/// Does `work` in the network namespace behind `file`, on a thread of its own, so that this one stays where it is.
///
/// # Errors
/// When the namespace cannot be entered.
pub(super) fn inside<T: Send>(file: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let there = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    thread::scope(|scope| match scope.spawn(there).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The namespaces that can be reached, by inode, each with a path that leads there: those that a process is in, and
/// those with a name; or this thread's alone. The first `max` of them, and how many more there are.
///
/// A namespace that only a thread is in, or only an open file leads to, is not found.
pub(super) fn reachable(only_own: bool, max: usize) -> io::Result<(BTreeMap<u64, PathBuf>, usize)> {
    let mut found = BTreeMap::new();
    let mut beyond = BTreeSet::new();
    let mut add = |path: PathBuf| {
        let Ok(inode) = fs::metadata(&path).map(|namespace| namespace.ino()) else { return };
        if found.len() < max || found.contains_key(&inode) {
            found.entry(inode).or_insert(path);
        } else {
            beyond.insert(inode);
        }
    };
    // The agent's own is never the one that there is no room for.
    add(PathBuf::from("/proc/thread-self/ns/net"));
    if only_own {
        return Ok((found, 0));
    }
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            add(entry.path().join("ns/net"));
        }
    }
    for directory in NAMED {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        entries.flatten().for_each(|entry| add(entry.path()));
    }
    Ok((found, beyond.len()))
}
