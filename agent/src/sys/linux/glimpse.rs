//! One process, looked at once, in as few system calls as it takes: it may be gone any moment.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::ffi::OsStringExt as _,
};

use super::{Stat, control_group, parse_stat, read_small, terminal_name};

/// Nobody reads more of the arguments than this.
const ARGUMENTS_BYTES_MAX: u64 = 64 * 1024;

/// What was still to be seen of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Glimpse {
    /// In the unit of [`crate::capture::ProcessKey`].
    pub(crate) start: u64,
    pub(crate) parent_pid: Option<u32>,
    pub(crate) name: String,
    /// None once it has ended, and for a thread of the kernel.
    pub(crate) path: Option<String>,
    pub(crate) arguments: Vec<String>,
    pub(crate) arguments_truncated: bool,
    pub(crate) working_directory: Option<String>,
    /// Real and effective.
    pub(crate) users: Option<(u32, u32)>,
    pub(crate) terminal: Option<String>,
    pub(crate) cgroup: Option<String>,
}

/// How it stands with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its first thread runs.
    Running,
    /// Its first thread has left, others run.
    FirstThreadLeft,
    /// It has ended.
    Ended,
}

/// A glimpse of process `pid`; none when there is no such process.
pub(crate) fn glimpse(pid: u32) -> Option<Glimpse> {
    // What goes first when it ends is read first.
    let path = link(pid, "exe");
    let (arguments, arguments_truncated) = arguments(pid);
    let working_directory = link(pid, "cwd");
    let Stat { name, parent_pid, terminal, start_ticks: start, .. } = stat(pid)?;
    Some(Glimpse {
        start,
        parent_pid: Some(parent_pid).filter(|parent| *parent != 0),
        name,
        path,
        arguments,
        arguments_truncated,
        working_directory,
        users: users(pid),
        terminal: terminal_name(terminal),
        cgroup: control_group(pid),
    })
}

/// How it stands with process `pid`.
pub(crate) fn life(pid: u32) -> Life {
    match stat(pid) {
        None => Life::Ended,
        Some(stat) if stat.ended => Life::Ended,
        Some(stat) if stat.first_thread_left => Life::FirstThreadLeft,
        Some(_) => Life::Running,
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&read_small(&format!("/proc/{pid}/stat")).ok()?)
}

/// As the kernel writes it: of a file that was deleted, with ` (deleted)` behind it.
fn link(pid: u32, name: &str) -> Option<String> {
    let target = fs::read_link(format!("/proc/{pid}/{name}")).ok()?;
    Some(String::from_utf8_lossy(&target.into_os_string().into_vec()).into_owned())
}

/// The arguments, and whether there are more.
fn arguments(pid: u32) -> (Vec<String>, bool) {
    let mut bytes = Vec::with_capacity(256);
    let read = File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(ARGUMENTS_BYTES_MAX).read_to_end(&mut bytes));
    if read.is_err() || bytes.is_empty() {
        return (Vec::new(), false);
    }
    let is_cut = bytes.len() as u64 == ARGUMENTS_BYTES_MAX;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    (bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect(), is_cut)
}

fn users(pid: u32) -> Option<(u32, u32)> {
    let status = read_small(&format!("/proc/{pid}/status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut ids = str::from_utf8(line).ok()?.split_ascii_whitespace().map(str::parse);
    Some((ids.next()?.ok()?, ids.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::sys;

    #[test]
    fn a_process_is_seen_as_long_as_it_is_there() {
        let mut running = Command::new("cat")
            .args(["-", ""])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Once it answers it is what it was to become.
        running.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        running.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let seen = glimpse(running.id()).unwrap();
        assert_eq!(seen.name, "cat");
        assert!(seen.path.unwrap().contains('/'));
        assert_eq!(seen.arguments, ["cat", "-", ""]);
        assert_eq!(seen.parent_pid, Some(std::process::id()));
        assert_eq!(Some(seen.start), sys::process_start(running.id()));
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(seen.users, Some((uid, uid)));
        assert_eq!(life(running.id()), Life::Running);
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!((glimpse(running.id()), life(running.id())), (None, Life::Ended));
    }
}
