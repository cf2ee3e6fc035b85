//! The process and socket tables by way of sysinfo and netstat2 alone: for every system without a cheaper way.

use netstat2::{AddressFamilyFlags, ProtocolFlags, SocketInfo};

use super::{TcpSocket, tcp_socket};

// Windows has a cheaper way to its processes, whose tests run this one, too.
#[cfg(any(test, not(target_os = "windows")))]
mod processes;

#[cfg(any(test, not(target_os = "windows")))]
pub(crate) use processes::ProcessTable;
#[cfg(target_os = "macos")]
pub(crate) use processes::process_start;

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

/// These systems number no sockets: owner and port have to do, which two at once may not share towards one remote. Above all
/// numbers and instants that may stand for a socket elsewhere. Pid 0 stands for a socket without an owner.
fn with_owner_as_identity(mut socket: SocketInfo) -> Option<TcpSocket> {
    socket.associated_pids.retain(|pid| *pid != 0);
    let owner = socket.associated_pids.iter().min().copied();
    let socket = tcp_socket(socket, 0)?;
    let identity = |owner: u32| 1 << 63 | u64::from(owner) << 16 | u64::from(socket.local.port());
    Some(TcpSocket { identity: owner.map_or(0, identity), ..socket })
}
