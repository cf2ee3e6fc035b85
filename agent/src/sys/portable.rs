//! The process and socket tables by way of sysinfo and netstat2 alone: for every system without a cheaper way.

use std::collections::HashMap;

use netstat2::{AddressFamilyFlags, ProtocolFlags, SocketInfo, TcpState};

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
        let sockets: Result<Vec<_>, _> =
            sockets.map(|socket| socket.map(with_owner_as_identity)).filter_map(Result::transpose).collect();
        sockets.map(merged)
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

/// macOS lists a connection once for each process that holds its socket.
fn merged(sockets: Vec<TcpSocket>) -> Vec<TcpSocket> {
    let mut merged: Vec<TcpSocket> = Vec::with_capacity(sockets.len());
    let mut places = HashMap::new();
    for socket in sockets {
        let place = match socket.state {
            // Several can listen at one place, each with a socket of its own.
            TcpState::Listen => merged.len(),
            _ => *places.entry((socket.local, socket.remote)).or_insert(merged.len()),
        };
        match merged.get_mut(place).filter(|same| same.state == socket.state) {
            Some(same) => {
                same.identity = same.identity.min(socket.identity);
                same.pids.extend(socket.pids);
            }
            None => merged.push(socket),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_of_several_processes_is_listed_once() {
        let socket = |remote: u16, state, pid: u32| TcpSocket {
            local: "10.0.0.1:5000".parse().unwrap(),
            remote: ([192, 0, 2, 1], remote).into(),
            state,
            identity: pid.into(),
            pids: vec![pid],
        };
        let (established, traces) = (TcpState::Established, TcpState::TimeWait);
        let listed = merged(vec![
            socket(443, established, 8),
            socket(80, established, 8),
            socket(443, established, 7),
            // A trace of it beside it is something else.
            socket(443, traces, 0),
            socket(0, TcpState::Listen, 7),
            socket(0, TcpState::Listen, 8),
        ]);
        let listed: Vec<_> =
            listed.into_iter().map(|socket| (socket.remote.port(), socket.identity, socket.pids)).collect();
        let expected =
            [(443, 7, vec![8, 7]), (80, 8, vec![8]), (443, 0, vec![0]), (0, 7, vec![7]), (0, 8, vec![8])];
        assert_eq!(listed, expected);
    }
}
