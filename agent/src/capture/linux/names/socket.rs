//! A packet socket in one network namespace.

use std::{
    io::{self, IoSliceMut},
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use alibi_proto::time::Timestamp;
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use socket2::{SockFilter, SockRef};

use super::filter::{self, SNAP_BYTES};

/// Room for packets that have not been taken yet; the kernel doubles it. A packet takes some 2 KiB of it.
const ROOM_BYTES: usize = 2 << 20;

/// What packets are received into.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    aside: Vec<u8>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: vec![0; SNAP_BYTES], aside: nix::cmsg_space!(nix::sys::time::TimeSpec) }
    }
}

/// A packet as the kernel hands it over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    /// From its IP header on, at most [`SNAP_BYTES`].
    pub(super) bytes: &'a [u8],
    /// When it was seen, by the wall clock; none where the kernel did not say.
    pub(super) wall: Option<Timestamp>,
    pub(super) interface: usize,
    pub(super) is_outgoing: bool,
    pub(super) is_loopback: bool,
}

/// Hears all interfaces of the namespace in which it was opened; never blocks.
#[derive(Debug)]
pub(super) struct Ear(OwnedFd);

impl Ear {
    /// Opens one in this thread's network namespace. Takes CAP_NET_RAW there.
    pub(super) fn open() -> io::Result<Self> {
        // Without a protocol it hears nothing until it is bound, so that nothing gets past the filter.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None)?;
        let program: Vec<_> = filter::program()
            .into_iter()
            .map(|line| SockFilter::new(line.code, line.jump_true, line.jump_false, line.operand))
            .collect();
        SockRef::from(&socket).attach_filter(&program)?;
        // Beyond the system's limit only with CAP_NET_ADMIN; less room means more losses, which are told.
        if sockopt::set_socket_recv_buffer_size_force(&socket, ROOM_BYTES).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, ROOM_BYTES)?;
        }
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        bind_to_all(socket.as_fd())?;
        Ok(Self(socket))
    }

    /// The next packet, if there is one.
    pub(super) fn receive<'a>(&self, buffer: &'a mut Buffer) -> io::Result<Option<Received<'a>>> {
        let Buffer { bytes, aside } = buffer;
        let (length, wall, address) = loop {
            let mut slices = [IoSliceMut::new(bytes)];
            // With TRUNC, a packet's own length is told; it may be longer than what the filter lets through of it.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            match recvmsg::<LinkAddr>(self.0.as_raw_fd(), &mut slices, Some(aside), flags) {
                Ok(message) => {
                    let wall = message.cmsgs()?.find_map(|part| match part {
                        ControlMessageOwned::ScmTimestampns(time) => Some(nanos(time)),
                        _ => None,
                    });
                    break (message.bytes, wall, message.address);
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                // An interface that went down says so once, at every socket; the others are heard on.
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENETDOWN) => {}
                Err(problem) => return Err(problem.into()),
            }
        };
        let length = length.min(bytes.len());
        Ok(Some(Received {
            bytes: &bytes[..length],
            wall,
            interface: address.map_or(0, |address| address.ifindex()),
            is_outgoing: address.is_some_and(|address| address.pkttype() == libc::PACKET_OUTGOING),
            is_loopback: address.is_some_and(|address| address.hatype() == libc::ARPHRD_LOOPBACK),
        }))
    }

    /// How many packets were put by to be taken, and how many found no room, since this was asked last.
    pub(super) fn counted(&self) -> io::Result<(u32, u32)> {
        // The kernel adds those that found no room to the others.
        let counted = statistics(self.0.as_fd())?;
        Ok((counted.tp_packets.saturating_sub(counted.tp_drops), counted.tp_drops))
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn nanos(time: nix::sys::time::TimeSpec) -> Timestamp {
    let secs = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    Timestamp::from_nanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Binds to all protocols on all interfaces.
#[expect(unsafe_code, reason = "no crate makes an address of a packet socket without it")]
fn bind_to_all(socket: BorrowedFd<'_>) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is valid for `length` bytes during the call, and the kernel only reads it.
    let outcome = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// PACKET_STATISTICS, which begins anew each time that it is read.
#[expect(unsafe_code, reason = "getsockopt(2) has no safe form for PACKET_STATISTICS")]
fn statistics(socket: BorrowedFd<'_>) -> io::Result<libc::tpacket_stats> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of what it writes to.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut statistics).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 { Ok(statistics) } else { Err(io::Error::last_os_error()) }
}
