//! Network namespaces: which there are, and doing something in one.
//!
//! Only a thread made for it ever enters another namespace, and it ends there.
//!
//! A namespace that only a thread is in, or only an open file leads to, is not found: to look at each thread would cost
//! five to ten times as much at every search, on a desktop some ten milliseconds each second. Who relies on a search says
//! so in its scope; a sensor that is shown a process there by another ([`super::names::Names::meet`]) finds it all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where named ones are kept that no process may be in.
const NAMED: [&str; 3] = ["/run/netns", "/run/docker/netns", "/var/run/netns"];
/// The one that this thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// Namespaces that can be reached.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By inode, each with a path that leads there.
    pub(super) paths: BTreeMap<u64, PathBuf>,
    /// How many there are beyond the bound.
    pub(super) beyond: usize,
}

/// This thread's own, those that a process is in, and those with a name; at most `max`. The own one is never beyond.
///
/// # Errors
/// When the processes cannot be listed.
pub(super) fn find(max: usize) -> io::Result<Found> {
    let mut found = own();
    let mut beyond = BTreeSet::new();
    let mut add = |path: PathBuf| {
        let Ok(inode) = fs::metadata(&path).map(|namespace| namespace.ino()) else { return };
        if found.paths.len() < max || found.paths.contains_key(&inode) {
            found.paths.entry(inode).or_insert(path);
        } else {
            beyond.insert(inode);
        }
    };
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
    found.beyond = beyond.len();
    Ok(found)
}

/// This thread's own.
pub(super) fn own() -> Found {
    let inode = fs::metadata(OWN).map(|namespace| namespace.ino());
    Found { paths: inode.into_iter().map(|inode| (inode, PathBuf::from(OWN))).collect(), beyond: 0 }
}

/// The path to the namespace that a process is in.
pub(super) fn of_process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Does `work` in the network namespace behind `path`, on a thread of its own, so that this one stays where it is.
///
/// # Errors
/// When the namespace cannot be entered; as not found, when the path leads to another one by now.
pub(super) fn inside<T: Send>(
    namespace: u64,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let there = || {
        // A relative meaning of the path, as "this thread", would be this very thread's: its namespace is the same.
        let link = File::open(path)?;
        if link.metadata()?.ino() != namespace {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another network namespace is there by now"));
        }
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    thread::scope(|scope| {
        let helper = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, there)?;
        match helper.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::netlink::testing::{in_fresh_namespace, ip},
        *,
    };

    #[test]
    fn the_own_one_is_found_first_whatever_the_bound() {
        let (own, _) = own().paths.pop_first().unwrap();
        assert!(find(1).unwrap().paths.contains_key(&own));
        assert!(find(usize::MAX).unwrap().paths.contains_key(&own));
        assert_eq!(fs::metadata(of_process(std::process::id())).unwrap().ino(), own);
        let words = inside(own, Path::new(OWN), || Ok("done"));
        assert_eq!(words.unwrap(), "done");
        let problem = inside(own + 1, Path::new(OWN), || Ok(())).unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_that_no_process_is_in_is_found_by_its_name() {
        in_fresh_namespace(|| {
            // Of this process only this thread is in it.
            let (inode, _) = own().paths.pop_first().unwrap();
            let found = find(usize::MAX).unwrap();
            assert!(found.paths[&inode].starts_with("/proc/thread-self"));
            let elsewhere = thread::scope(|scope| scope.spawn(|| ()).join()).map(|()| inode);
            assert_eq!(elsewhere.unwrap(), inode);
            let name = format!("alibi{}named", std::process::id());
            ip(&format!("netns add {name}"));
            let path = Path::new("/run/netns").join(&name);
            let named = fs::metadata(&path).unwrap().ino();
            let found = find(usize::MAX).unwrap();
            let bounded = find(1).unwrap();
            ip(&format!("netns del {name}"));
            assert_eq!(found.paths.get(&named).map(|path| path.file_name()), Some(path.file_name()));
            assert!(bounded.paths.len() == 1 && bounded.beyond >= 1);
        });
    }
}
