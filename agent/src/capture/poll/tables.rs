//! One look at the tables. No decisions beyond what is worth reading: of a process that is known already nothing but
//! its line in the process table.

use std::collections::{HashMap, HashSet};

use alibi_proto::{
    process::{ProcessImage, User},
    time::{Moment, Timestamp},
};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, Uid, UpdateKind};

use crate::{
    capture::{CaptureError, ProcessKey},
    sys::{self, ProcessTable, RunningProcess, SocketTable, TcpSocket},
};

const ARGUMENTS_MAX: usize = 1024;
const ARGUMENTS_BYTES_MAX: usize = 64 * 1024;

/// What was there when somebody looked.
#[derive(Clone, Debug)]
pub(in crate::capture) struct Snapshot {
    /// Taken before the tables were read: what happened later may be missing.
    pub(in crate::capture) at: Moment,
    /// The processes, or why they cannot be read.
    pub(in crate::capture) processes: Result<Vec<ProcessRow>, String>,
    /// The TCP sockets, or why they cannot be read.
    pub(in crate::capture) sockets: Result<Vec<TcpSocket>, String>,
}

/// A process in the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::capture) struct ProcessRow {
    pub(in crate::capture) key: ProcessKey,
    pub(in crate::capture) parent_pid: Option<u32>,
    pub(in crate::capture) started: Timestamp,
    /// It has ended, and its parent has not taken note yet.
    pub(in crate::capture) ended: bool,
    /// Read only when the process was not known before.
    pub(in crate::capture) image: Option<Box<ProcessImage>>,
}

/// The tables of the system.
pub(in crate::capture) struct Tables {
    processes: ProcessTable,
    sockets: SocketTable,
    running: HashSet<ProcessKey>,
}

impl Tables {
    pub(in crate::capture) fn open() -> Result<Self, CaptureError> {
        let mut sockets = SocketTable::default();
        sockets.read()?;
        let processes = ProcessTable::open().map_err(CaptureError::Processes)?;
        Ok(Self { processes, sockets, running: HashSet::new() })
    }

    /// Reads the tables, `at` this instant. Sockets before processes: so the owner of a socket is among the processes,
    /// unless it ended in between.
    pub(in crate::capture) fn look(
        &mut self,
        at: Moment,
        is_known: impl Fn(&ProcessKey) -> bool,
    ) -> Snapshot {
        let sockets = self.sockets.read().map_err(|problem| match problem {
            netstat2::error::Error::OsError(source) => source.to_string(),
            other => other.to_string(),
        });
        let processes = self.processes.read().map_err(|problem| problem.to_string());
        let processes = processes.map(|running| self.examine(running, is_known));
        Snapshot { at, processes, sockets }
    }

    fn examine(
        &mut self,
        running: Vec<RunningProcess>,
        is_known: impl Fn(&ProcessKey) -> bool,
    ) -> Vec<ProcessRow> {
        let now_running: HashSet<ProcessKey> = running.iter().map(key).collect();
        for gone in self.running.difference(&now_running) {
            self.sockets.forget_owner(gone.pid);
        }
        self.running = now_running;

        let is_new = |process: &&RunningProcess| !is_known(&key(process));
        let new = Self::images(running.iter().filter(is_new));
        let row = |process: RunningProcess| ProcessRow {
            key: key(&process),
            parent_pid: process.parent_pid,
            started: process.started,
            ended: process.ended,
            image: new.get(&process.pid).cloned().map(Box::new),
        };
        running.into_iter().map(row).collect()
    }

    /// A process that ends while it is being looked at keeps what was read until then.
    fn images<'a>(processes: impl Iterator<Item = &'a RunningProcess>) -> HashMap<u32, ProcessImage> {
        let processes: Vec<_> = processes.collect();
        let pids: Vec<_> = processes.iter().map(|process| process.pid).collect();
        let mut seen = read_images(&pids);
        let image = |process: &RunningProcess| {
            let mut image = seen.remove(&process.pid).unwrap_or_default();
            image.name.clone_from(&process.name);
            image.terminal.clone_from(&process.terminal);
            image.cgroup = sys::control_group(process.pid);
            (process.pid, image)
        };
        processes.into_iter().map(image).collect()
    }
}

/// What these processes run, of those that still do.
#[cfg(target_os = "windows")]
pub(in crate::capture) fn images_of(processes: &[ProcessKey]) -> HashMap<ProcessKey, ProcessImage> {
    let pids: Vec<_> = processes.iter().map(|process| process.pid).collect();
    let mut seen = read_images(&pids);
    // Looked at afterwards: the number was not given to another in between.
    let is_it = |process: &&ProcessKey| sys::process_start(process.pid) == Some(process.start);
    processes
        .iter()
        .filter(is_it)
        .filter_map(|process| Some((*process, seen.remove(&process.pid)?)))
        .collect()
}

/// What the system tells of processes, by pid.
fn read_images(pids: &[u32]) -> HashMap<u32, ProcessImage> {
    if pids.is_empty() {
        return HashMap::new();
    }
    let pids: Vec<_> = pids.iter().copied().map(sysinfo::Pid::from_u32).collect();
    // Made anew each time, so that it remembers nobody who ended.
    let Ok(mut system) = System::new() else { return HashMap::new() };
    let what = ProcessRefreshKind::nothing()
        .without_tasks()
        .with_cmd(UpdateKind::OnlyIfNotSet)
        .with_cwd(UpdateKind::OnlyIfNotSet)
        .with_exe(UpdateKind::OnlyIfNotSet)
        .with_user(UpdateKind::OnlyIfNotSet);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, what);
    let seen = |pid: &sysinfo::Pid| Some((pid.as_u32(), image(system.process(*pid)?)));
    pids.iter().filter_map(seen).collect()
}

fn image(process: &sysinfo::Process) -> ProcessImage {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let path = sys::image_path(process.pid().as_u32());
    let arguments = process.cmd().iter().map(|argument| argument.to_string_lossy());
    let (arguments, arguments_truncated) = bounded(arguments);
    let user = process.user_id();
    let effective = process.effective_user_id().filter(|effective| Some(*effective) != user);
    ProcessImage {
        path: path.as_deref().or(process.exe()).map(text).filter(|path| !path.is_empty()),
        name: process.name().to_string_lossy().into_owned(),
        arguments,
        arguments_truncated,
        // Windows keeps it with a separator at its end.
        working_directory: process
            .cwd()
            .map(|path| text(path.components().as_path()))
            .filter(|path| !path.is_empty()),
        user: user.map(named),
        effective_user: effective.map(named),
        terminal: None,
        cgroup: None,
        file: None,
        sha256: None,
    }
}

fn named(id: &Uid) -> User {
    let id = id.to_string();
    User { name: sys::user_name(&id), id }
}

fn key(process: &RunningProcess) -> ProcessKey {
    ProcessKey { pid: process.pid, start: process.start }
}

/// As many arguments as the limits allow, and whether any were cut.
pub(in crate::capture) fn bounded(arguments: impl Iterator<Item = impl AsRef<str>>) -> (Vec<String>, bool) {
    let mut kept = Vec::new();
    let mut room = ARGUMENTS_BYTES_MAX;
    for argument in arguments {
        let argument = argument.as_ref();
        if kept.len() == ARGUMENTS_MAX {
            return (kept, true);
        }
        if argument.len() > room {
            kept.push(argument[..argument.floor_char_boundary(room)].to_owned());
            return (kept, true);
        }
        room -= argument.len();
        kept.push(argument.to_owned());
    }
    (kept, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_cut_to_the_limits() {
        let many = vec!["a"; ARGUMENTS_MAX + 1];
        let (kept, truncated) = bounded(many.iter());
        assert_eq!((kept.len(), truncated), (ARGUMENTS_MAX, true));
        assert!(!bounded(many[1..].iter()).1);

        let long = "ü".repeat(ARGUMENTS_BYTES_MAX);
        let (kept, truncated) = bounded(["x", &long].into_iter());
        assert!(truncated && kept[0] == "x" && kept[1].len() == ARGUMENTS_BYTES_MAX - 2);
        assert_eq!(bounded(["ls", "-l"].into_iter()), (vec!["ls".to_owned(), "-l".to_owned()], false));
    }
}
