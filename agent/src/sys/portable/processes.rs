//! The process table by way of sysinfo.

use std::io;

use alibi_proto::time::Timestamp;
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, ThreadKind};

use crate::sys::RunningProcess;

/// Kept between reads: a process that is known already is not asked for its name again.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    system: System,
}

impl ProcessTable {
    pub(crate) fn open() -> io::Result<Self> {
        let system = System::new().map_err(|problem| io::Error::other(format!("{problem:?}")))?;
        Ok(Self { system })
    }

    pub(crate) fn read(&mut self) -> io::Result<Vec<RunningProcess>> {
        let what = ProcessRefreshKind::nothing().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        let processes: Vec<_> = self.system.processes().values().filter_map(running).collect();
        if processes.is_empty() {
            return Err(io::Error::other("the process table is empty"));
        }
        Ok(processes)
    }
}

fn running(process: &sysinfo::Process) -> Option<RunningProcess> {
    if matches!(process.thread_kind(), Some(ThreadKind::Userland)) {
        return None;
    }
    Some(RunningProcess {
        pid: process.pid().as_u32(),
        parent_pid: process.parent().map(sysinfo::Pid::as_u32),
        start: process.start_time(),
        started: Timestamp::from_secs(process.start_time()),
        name: process.name().to_string_lossy().into_owned(),
        ended: matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead),
        terminal: None,
    })
}

/// When process `pid` started, in seconds since 1970.
#[cfg(target_os = "macos")]
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let mut system = System::new().ok()?;
    let pid = sysinfo::Pid::from_u32(pid);
    let what = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
    system.process(pid).map(sysinfo::Process::start_time)
}
