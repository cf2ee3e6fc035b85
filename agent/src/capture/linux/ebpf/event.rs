//! What the probe tells, as it lies in the buffer (`bpf/events.h`: change both together).

use std::net::{Ipv6Addr, SocketAddr};

/// The part that all events begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Nanoseconds since boot.
    pub(super) at: u64,
    /// The process; the owner of a connection, 0 if that is not known.
    pub(super) pid: u32,
    /// When it started, in nanoseconds since boot.
    pub(super) start: u64,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    Fork(Header, Fork),
    Exec(Header, Exec<'a>),
    /// With the status as wait(2) has it.
    Exit(Header, i32),
    Connection(Header, ConnectionKind, Connection),
    /// With the owner of its socket, if that is known.
    Packet(Header, Packet<'a>),
}

/// A packet with a name in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) cookie: u64,
    pub(super) network_namespace: u32,
    pub(super) is_leaving: bool,
    /// From the IP header on, as far as it was kept.
    pub(super) bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) pid: u32,
    pub(super) start: u64,
}

/// A process that came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fork {
    pub(super) parent: Parent,
    pub(super) user: u32,
    pub(super) effective_user: u32,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionKind {
    /// A process began to listen.
    Listen,
    /// TCP: the first packet is on its way.
    Attempt,
    /// TCP: an attempt was answered.
    Established,
    /// TCP: a connection came in.
    Accepted,
    /// Another process uses it than was known.
    Owner,
    Closed,
    /// UDP: a datagram to or from somebody new, or silent for long.
    Peer,
    /// UDP: the socket is closed.
    Released,
    /// How it stands with an open connection.
    Sample,
    /// It was open before the probe was there; one for each process that holds it.
    Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Unknown,
    Outbound,
    Inbound,
    Listening,
}

/// How the owner is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Not,
    /// From the listener.
    Inherited,
    /// From the open files.
    Table,
    /// At its own call.
    Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) cookie: u64,
    /// Nanoseconds since boot; 0 if that was not seen.
    pub(super) opened: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) packets_sent: u32,
    pub(super) packets_received: u32,
    pub(super) retransmitted: u32,
    pub(super) round_trip_us: u32,
    pub(super) network_namespace: u32,
    pub(super) error: i32,
    pub(super) is_udp: bool,
    pub(super) direction: Direction,
    pub(super) known: Known,
    /// The kernel's TCP state: now, or before a close.
    pub(super) state: u8,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// The kernel's TCP states, of those that the probe tells.
pub(super) mod tcp_state {
    pub(in crate::capture::linux::ebpf) const SYN_SENT: u8 = 2;
    pub(in crate::capture::linux::ebpf) const SYN_RECEIVED: u8 = 3;
    pub(in crate::capture::linux::ebpf) const TIME_WAIT: u8 = 6;
    pub(in crate::capture::linux::ebpf) const CLOSE: u8 = 7;
    pub(in crate::capture::linux::ebpf) const LISTEN: u8 = 10;
}

/// A process that became another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exec<'a> {
    pub(super) parent: Parent,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Nanoseconds since the Unix epoch.
    pub(super) modified: u64,
    /// Identity of the control group in the unified hierarchy.
    pub(super) cgroup: u64,
    /// Major and minor number of the executable's device.
    pub(super) device: (u32, u32),
    pub(super) user: u32,
    pub(super) effective_user: u32,
    /// Major and minor number of the controlling terminal; 0, 0 for none.
    pub(super) terminal: (u32, u32),
    /// The kernel's short name for what runs.
    pub(super) name: String,
    pub(super) path: String,
    pub(super) directory: String,
    /// Each ended by NUL.
    pub(super) arguments: &'a [u8],
    pub(super) arguments_cut: bool,
}

impl<'a> Event<'a> {
    /// None for bytes that the probe cannot have written.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let (at, kind, pid, start) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u64()?);
        let header = Header { at, pid, start };
        let kind = match kind {
            1 => {
                let start = fields.u64()?;
                let parent = Parent { pid: fields.u32()?, start };
                fields.skip(4)?;
                let (user, effective_user) = (fields.u32()?, fields.u32()?);
                return Some(Self::Fork(header, Fork { parent, user, effective_user }));
            }
            2 => return Some(Self::Exec(header, exec(&mut fields)?)),
            3 => {
                fields.skip(12)?;
                return Some(Self::Exit(header, fields.u32()?.cast_signed()));
            }
            4 => ConnectionKind::Listen,
            5 => ConnectionKind::Attempt,
            6 => ConnectionKind::Established,
            7 => ConnectionKind::Accepted,
            8 => ConnectionKind::Owner,
            9 => ConnectionKind::Closed,
            10 => ConnectionKind::Peer,
            11 => ConnectionKind::Released,
            12 => ConnectionKind::Sample,
            13 => ConnectionKind::Found,
            14 => {
                let (cookie, network_namespace) = (fields.u64()?, fields.u32()?);
                let length = usize::from(fields.u16()?);
                let [is_leaving, _] = *fields.take::<2>()?;
                let bytes = fields.0.get(..length)?;
                let packet = Packet { cookie, network_namespace, is_leaving: is_leaving != 0, bytes };
                return Some(Self::Packet(header, packet));
            }
            _ => return None,
        };
        Some(Self::Connection(header, kind, connection(&mut fields)?))
    }

    /// The events that a BPF iterator wrote one after the other; they are connections.
    pub(super) fn parse_all(bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
        bytes.chunks_exact(CONNECTION_BYTES).filter_map(Event::parse)
    }
}

/// Of a whole connection event.
const CONNECTION_BYTES: usize = 120;

fn connection(fields: &mut Fields<'_>) -> Option<Connection> {
    let [cookie, opened, sent, received] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
    let [packets_sent, packets_received] = [fields.u32()?, fields.u32()?];
    let [retransmitted, round_trip_us] = [fields.u32()?, fields.u32()?];
    let [network_namespace, error] = [fields.u32()?, fields.u32()?];
    let [local_port, remote_port] = [fields.u16()?, fields.u16()?];
    let [protocol, direction, known, state] = *fields.take::<4>()?;
    let [local, remote] = [address(fields.take()?, local_port), address(fields.take()?, remote_port)];
    Some(Connection {
        cookie,
        opened,
        sent,
        received,
        packets_sent,
        packets_received,
        retransmitted,
        round_trip_us,
        network_namespace,
        error: error.cast_signed(),
        is_udp: protocol == 17,
        direction: match direction {
            1 => Direction::Outbound,
            2 => Direction::Inbound,
            3 => Direction::Listening,
            _ => Direction::Unknown,
        },
        known: match known {
            1 => Known::Inherited,
            2 => Known::Table,
            3 => Known::Call,
            _ => Known::Not,
        },
        state,
        local,
        remote,
    })
}

fn address(bytes: &[u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(*bytes).to_canonical(), port)
}

fn exec<'a>(fields: &mut Fields<'a>) -> Option<Exec<'a>> {
    let parent_start = fields.u64()?;
    let [inode, size, modified, cgroup] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
    let [parent_pid, device, user, effective_user] =
        [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
    let [major, minor, arguments_total] = [fields.u32()?, fields.u32()?, fields.u32()?];
    let [path, directory, arguments] = [fields.u16()?, fields.u16()?, fields.u16()?].map(usize::from);
    let cut = fields.u16()?;
    let name = fields.take::<16>()?;
    let (path, rest) = fields.0.split_at_checked(path)?;
    let (directory, rest) = rest.split_at_checked(directory)?;
    let text = rest.get(..arguments)?;
    Some(Exec {
        parent: Parent { pid: parent_pid, start: parent_start },
        inode,
        size,
        modified,
        cgroup,
        device: (device >> 20, device & 0xf_ffff),
        user,
        effective_user,
        terminal: (major, minor),
        name: until_nul(name),
        path: join(path, cut & 1 != 0),
        directory: join(directory, cut & 2 != 0),
        arguments: text,
        arguments_cut: u32::try_from(text.len()).is_ok_and(|length| length < arguments_total),
    })
}

fn until_nul(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The path of `components`, which stand in it from last to first. One that is cut lacks its beginning, and says so.
fn join(components: &[u8], is_cut: bool) -> String {
    let components = components.strip_suffix(b"\0").unwrap_or(components);
    let mut path = String::with_capacity(components.len() + 4);
    if is_cut {
        path.push_str("...");
    }
    if components.is_empty() {
        path.push('/');
        return path;
    }
    for component in components.rsplit(|byte| *byte == 0) {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(component));
    }
    path
}

/// Reads from the front, in the machine's byte order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(first)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(|bytes| u16::from_ne_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(|bytes| u64::from_ne_bytes(*bytes))
    }
}
