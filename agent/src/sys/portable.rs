//! The process and socket tables by way of sysinfo and netstat2 alone: for every system without a cheaper way.

use std::io;

use alibi_proto::time::Timestamp;
use netstat2::{AddressFamilyFlags, ProtocolFlags, SocketInfo};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, ThreadKind};

use super::{RunningProcess, TcpSocket, tcp_socket};

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

#[derive(Debug, Default)]
pub(crate) struct SocketTable;

impl SocketTable {
    pub(crate) fn read(&mut self) -> Result<Vec<TcpSocket>, netstat2::error::Error> {
        let sockets = netstat2::iterate_sockets_info(AddressFamilyFlags::all(), ProtocolFlags::TCP)?;
        sockets.map(|socket| socket.map(with_owner_as_identity)).filter_map(Result::transpose).collect()
    }

    /// Nothing is remembered.
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "only its reading is tested there"))]
    pub(crate) fn forget_owner(&mut self, _pid: u32) {}
}

/// These systems number no sockets: its owner has to do. Pid 0 stands for a socket without one.
fn with_owner_as_identity(mut socket: SocketInfo) -> Option<TcpSocket> {
    socket.associated_pids.retain(|pid| *pid != 0);
    let identity = socket.associated_pids.iter().min().copied().unwrap_or(0);
    tcp_socket(socket, identity.into())
}

/// When process `pid` started, in seconds since 1970.
#[cfg_attr(target_os = "linux", expect(dead_code, reason = "Linux counts in clock ticks"))]
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let mut system = System::new().ok()?;
    let pid = sysinfo::Pid::from_u32(pid);
    let what = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
    system.process(pid).map(sysinfo::Process::start_time)
}
