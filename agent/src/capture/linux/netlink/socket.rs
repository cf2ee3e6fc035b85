//! Sockets of netlink: those that listen to groups, and those that ask for a dump.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect,
        netlink::SocketAddrNetlink,
        recvfrom, send, socket_with,
        sockopt::{self, Timeout},
    },
};

use super::message::{self, DONE, ERROR, INTERRUPTED, Message, messages};
use crate::sys;

/// The kernel's messages are no longer than 32 KiB, or one page where that is more.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;
/// A dump is answered at once; one that is not must not hold up everything else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A dump that changes while it is made is asked for again, but not for ever.
const DUMP_ATTEMPTS_MAX: u32 = 4;

/// `NETLINK_ROUTE`, which is 0.
pub(in crate::capture::linux) const ROUTE: Option<Protocol> = None;

/// Hears what the kernel says to groups; never blocks.
#[derive(Debug)]
pub(in crate::capture::linux) struct Listener {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What a [`Listener`] heard.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::capture::linux) enum Heard<'a> {
    /// A datagram of one or more messages.
    Datagram(&'a [u8]),
    /// Some were dropped here, since they came faster than they were taken.
    Overrun,
    /// Nothing more for now.
    Nothing,
}

impl Listener {
    /// Listens to `groups` (a bit for each) of `protocol` in this thread's network namespace, with room for `room_bytes`
    /// of messages that have not been taken yet.
    pub(in crate::capture::linux) fn open(
        protocol: Option<Protocol>,
        groups: u32,
        room_bytes: usize,
    ) -> io::Result<Self> {
        let socket = open(protocol, SocketFlags::NONBLOCK)?;
        // Beyond the system's limit only with CAP_NET_ADMIN; less room means more overruns, which are told.
        if sockopt::set_socket_recv_buffer_size_force(&socket, room_bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, room_bytes)?;
        }
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM_BYTES_MAX] })
    }

    pub(in crate::capture::linux) fn send(&self, request: &[u8]) -> io::Result<()> {
        // The kernel is at address 0.
        connect(&self.socket, &SocketAddrNetlink::new(0, 0))?;
        send(&self.socket, request, SendFlags::empty())?;
        Ok(())
    }

    pub(in crate::capture::linux) fn hear(&mut self) -> io::Result<Heard<'_>> {
        loop {
            match recvfrom(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC) {
                Ok((_, length, from)) => {
                    let by_kernel = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                    if by_kernel.is_none_or(|from| from.pid() != 0) {
                        continue; // some other process writes to this socket
                    }
                    if length > self.buffer.len() {
                        return Ok(Heard::Overrun);
                    }
                    return Ok(Heard::Datagram(&self.buffer[..length]));
                }
                Err(Errno::AGAIN) => return Ok(Heard::Nothing),
                Err(Errno::NOBUFS) => return Ok(Heard::Overrun),
                Err(Errno::INTR) => {}
                Err(problem) => return Err(problem.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for dumps.
#[derive(Debug)]
pub(in crate::capture::linux) struct Asker {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Of the last request; an answer that was given up is told by it from the one that is waited for.
    sequence: u32,
}

impl Asker {
    /// Asks in this thread's network namespace.
    pub(in crate::capture::linux) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        // To whoever administrates the network the kernel shows more of a socket than anybody reads, such as its keys
        // (TCP_MD5SIG). A program can have so many that they fit into no answer: then the listing ends there, silently.
        let socket = sys::linux::without_network_administration(|| open(protocol, SocketFlags::empty()))?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM_BYTES_MAX], sequence: 0 })
    }

    /// Hands each message of the dump of `kind` to `each`, whose results are returned. What was being changed meanwhile
    /// is asked for again.
    pub(in crate::capture::linux) fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        each: impl Fn(Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut found = Vec::new();
            let torn = self.dump_once(kind, body, |message| found.extend(each(message)))?;
            if !torn || attempt == DUMP_ATTEMPTS_MAX {
                return Ok(found);
            }
        }
    }

    /// Whether what was listed changed meanwhile.
    fn dump_once(&mut self, kind: u16, body: &[u8], mut each: impl FnMut(Message<'_>)) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message::request(kind, message::DUMP, self.sequence, body);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut torn = false;
        loop {
            let (_, length, _) = match recvfrom(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(problem) => return Err(problem.into()),
            };
            let sequence = self.sequence;
            let answer = |message: &Message<'_>| message.sequence == sequence;
            for message in messages(&self.buffer[..length]).filter(answer) {
                torn |= message.flags & INTERRUPTED != 0;
                match message.kind {
                    DONE => return Ok(torn),
                    ERROR => return Err(refusal(message.body)),
                    _ => each(message),
                }
            }
        }
    }
}

fn open(protocol: Option<Protocol>, flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?)
}

/// The errno in an `NLMSG_ERROR`, which is negative there.
fn refusal(body: &[u8]) -> io::Error {
    let errno = message::u32_at(body, 0).map_or(0, u32::cast_signed);
    io::Error::from_raw_os_error(errno.saturating_neg())
}
