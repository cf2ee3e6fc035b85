//! What Windows tells, as it lies in the payload of an event. Pure: bytes become words, or a reason why not.
//!
//! The layouts are those of the manifests of four providers, by event and version. A version that is not known is refused,
//! since fields have been put in the middle before (version 3 of ProcessStart).
//!
//! All numbers are little-endian, but addresses and ports, which are as on the wire. Texts are UTF-16 and end with a zero.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use alibi_proto::{coverage::Facet, time::Timestamp};

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Provider {
    /// Microsoft-Windows-Kernel-Process.
    Process,
    /// Microsoft-Windows-Kernel-Network.
    Network,
    /// Microsoft-Windows-TCPIP.
    Tcpip,
    /// Microsoft-Windows-DNS-Client.
    Dns,
    /// The agent itself.
    Own,
}

impl Provider {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [Self::Process, Self::Network, Self::Tcpip, Self::Dns, Self::Own];

    /// Its GUID.
    pub(super) const fn guid(self) -> u128 {
        match self {
            Self::Process => 0x22fb_2cd6_0e7b_422b_a0c7_2fad_1fd0_e716,
            Self::Network => 0x7dd4_2a49_5329_4832_8dfd_43d9_7915_3a88,
            Self::Tcpip => 0x2f07_e2ee_15db_40f1_90ef_9d7b_a282_188a,
            Self::Dns => 0x1c95_126e_7eea_49a9_a3fe_a378_b03d_db4d,
            Self::Own => 0x6b1c_4fd6_0f0e_4b0e_9a55_d61f_6c1e_a11b,
        }
    }

    /// Its name, by which Windows lists it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Process => "Microsoft-Windows-Kernel-Process",
            Self::Network => "Microsoft-Windows-Kernel-Network",
            Self::Tcpip => "Microsoft-Windows-TCPIP",
            Self::Dns => "Microsoft-Windows-DNS-Client",
            Self::Own => "Alibi-Agent",
        }
    }

    /// The keywords that the events which are needed have; any will do.
    pub(super) const fn keywords(self) -> u64 {
        match self {
            // WINEVENT_KEYWORD_PROCESS
            Self::Process => 0x10,
            // KERNEL_NETWORK_KEYWORD_IPV4 and _IPV6
            Self::Network => 0x30,
            // ut:ConnectPath
            Self::Tcpip => 0x4_0000_0000,
            // Its events have none but that of their channel.
            Self::Dns | Self::Own => 0,
        }
    }

    /// The events that are needed.
    pub(super) const fn events(self) -> &'static [u16] {
        match self {
            Self::Process => &[PROCESS_START, PROCESS_STOP],
            // Those that tell no ends (17, 49) and copies within the system (18, 34) are left out.
            Self::Network => &[10, 11, 12, 13, 14, 15, 26, 27, 28, 29, 30, 31, 42, 43, 58, 59],
            Self::Tcpip => &[REQUEST_CONNECT, CONNECT_COMPLETE, CONNECT_FAILURE],
            Self::Dns => &[QUERY_COMPLETED],
            Self::Own => &[MARKER],
        }
    }

    /// What is not known where an event of it cannot be read.
    pub(super) const fn facet(self) -> Facet {
        match self {
            Self::Process => Facet::Processes,
            Self::Network | Self::Tcpip | Self::Own => Facet::Connections,
            Self::Dns => Facet::Names,
        }
    }
}

const PROCESS_START: u16 = 1;
const PROCESS_STOP: u16 = 2;
const REQUEST_CONNECT: u16 = 1002;
const CONNECT_COMPLETE: u16 = 1033;
const CONNECT_FAILURE: u16 = 1034;
const QUERY_COMPLETED: u16 = 3008;
/// The agent's own.
pub(super) const MARKER: u16 = 1;

/// An event as the trace delivers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) provider: Provider,
    pub(super) id: u16,
    pub(super) version: u8,
    /// In whose context it was told. For what the kernel tells of connections this means nothing.
    pub(super) pid: u32,
    /// When, by the trace's own reckoning: 100 ns since 1601.
    pub(super) file_time: u64,
    /// 4 where a 32-bit program told it.
    pub(super) pointer_bytes: usize,
    pub(super) payload: &'a [u8],
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// 100 ns since 1601, by the trace's own reckoning.
    pub(super) file_time: u64,
    pub(super) what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    ProcessStarted(Started),
    ProcessStopped {
        pid: u32,
        /// 100 ns since 1970.
        created: u64,
        exit_code: u32,
    },
    Tcp {
        what: TcpEvent,
        pid: u32,
        bytes: u32,
        local: SocketAddr,
        remote: SocketAddr,
    },
    Udp {
        is_sent: bool,
        pid: u32,
        bytes: u32,
        /// As the event has it. Of what was received, some versions of Windows tell this end here and some the other.
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// A program asks for a connection.
    ConnectRequested {
        /// The kernel's identity of the connection, as long as there is one.
        tcb: u64,
        pid: u32,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// It was answered, or it failed.
    ConnectEnded {
        tcb: u64,
        pid: u32,
        local: SocketAddr,
        remote: SocketAddr,
        /// Why it failed (NTSTATUS); none if it was answered.
        failure: Option<u32>,
    },
    /// A name was looked up: by the process in whose context that was told.
    Resolved {
        pid: u32,
        name: String,
        query_type: u32,
        /// A Windows error; 0 if there is an answer.
        status: u32,
        results: String,
    },
    /// What the agent wrote into the trace.
    Marker(u64),
}

/// A process that came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Started {
    pub(super) pid: u32,
    /// 100 ns since 1970.
    pub(super) created: u64,
    pub(super) parent_pid: u32,
    /// The executable as the kernel names it (`\Device\HarddiskVolume3\…`).
    pub(super) image: String,
}

/// What happened to a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TcpEvent {
    Connected,
    Accepted,
    Sent,
    Received,
    Retransmitted,
    Disconnected,
}

/// An event that is not as its manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Unreadable {
    pub(super) provider: Provider,
    pub(super) why: Why,
}

/// Why an event cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// This version of Windows tells it otherwise: none of its kind can be read.
    UnknownVersion { id: u16, version: u8 },
    /// It ends too early, or is no such thing.
    Torn { id: u16 },
}

impl Event {
    /// None for an event that is not needed.
    ///
    /// # Errors
    /// When it is needed and not as its manifest says.
    pub(super) fn decode(record: &Record<'_>) -> Result<Option<Self>, Unreadable> {
        if !record.provider.events().contains(&record.id) {
            return Ok(None);
        }
        let unreadable = |why| Unreadable { provider: record.provider, why };
        let mut fields = Fields { rest: record.payload, pointer_bytes: record.pointer_bytes };
        let (id, version) = (record.id, record.version);
        let what = match (record.provider, id, version) {
            (Provider::Process, PROCESS_START, 0..=4) => fields.started(version),
            (Provider::Process, PROCESS_STOP, 0..=2) => fields.stopped(version),
            (Provider::Network, _, 0) => fields.network(id),
            (Provider::Tcpip, REQUEST_CONNECT, 0) => fields.requested(record.pid),
            (Provider::Tcpip, CONNECT_COMPLETE | CONNECT_FAILURE, 0..=1) => {
                fields.ended(id == CONNECT_FAILURE)
            }
            (Provider::Dns, QUERY_COMPLETED, 0) => fields.resolved(record.pid),
            (Provider::Own, _, _) => fields.u64().map(What::Marker),
            _ => return Err(unreadable(Why::UnknownVersion { id, version })),
        };
        let what = what.ok_or(unreadable(Why::Torn { id }))?;
        Ok(Some(Self { file_time: record.file_time, what }))
    }
}

/// 100 ns since 1601 as 100 ns since 1970. What lies before is 1970.
pub(super) const fn since_1970(file_time: u64) -> u64 {
    file_time.saturating_sub(116_444_736_000_000_000)
}

/// 100 ns since 1970 as a time.
pub(super) const fn timestamp(ticks: u64) -> Timestamp {
    Timestamp::from_nanos(ticks.saturating_mul(100))
}

/// Reads from the front.
struct Fields<'a> {
    rest: &'a [u8],
    pointer_bytes: usize,
}

impl Fields<'_> {
    /// `ProcessStartArgs`, `_V1`, `_V2` and `ProcessRundownArgs_V1`, which version 4 adds to at its end.
    fn started(&mut self, version: u8) -> Option<What> {
        let is_numbered = version >= 3;
        let pid = self.u32()?;
        self.skip(if is_numbered { 8 } else { 0 })?;
        let created = since_1970(self.u64()?);
        let parent_pid = self.u32()?;
        self.skip(if is_numbered { 8 } else { 0 })?;
        self.u32()?; // SessionID
        self.skip(if version >= 1 { 4 } else { 0 })?; // Flags
        if is_numbered {
            self.skip(8)?; // ProcessTokenElevationType, ProcessTokenIsElevated
            self.skip_sid()?;
        }
        Some(What::ProcessStarted(Started { pid, created, parent_pid, image: self.text()? }))
    }

    /// `ProcessStopArgs`, `_V1` and `_V2`.
    fn stopped(&mut self, version: u8) -> Option<What> {
        let pid = self.u32()?;
        self.skip(if version >= 2 { 8 } else { 0 })?;
        let created = since_1970(self.u64()?);
        self.u64()?; // ExitTime
        Some(What::ProcessStopped { pid, created, exit_code: self.u32()? })
    }

    /// All that tell the ends begin alike: `PID`, `size`, `daddr`, `saddr`, `dport`, `sport`.
    fn network(&mut self, id: u16) -> Option<What> {
        let (pid, bytes) = (self.u32()?, self.u32()?);
        let is_v6 = matches!(id, 26..=31 | 58 | 59);
        let [destination, source] =
            if is_v6 { [self.ipv6()?, self.ipv6()?] } else { [self.ipv4()?, self.ipv4()?] };
        let destination = SocketAddr::new(destination, self.port()?);
        let source = SocketAddr::new(source, self.port()?);
        let what = match id {
            10 | 26 => TcpEvent::Sent,
            11 | 27 => TcpEvent::Received,
            12 | 28 => TcpEvent::Connected,
            13 | 29 => TcpEvent::Disconnected,
            14 | 30 => TcpEvent::Retransmitted,
            15 | 31 => TcpEvent::Accepted,
            _ => {
                let is_sent = matches!(id, 42 | 58);
                return Some(What::Udp { is_sent, pid, bytes, source, destination });
            }
        };
        Some(What::Tcp { what, pid, bytes, local: source, remote: destination })
    }

    /// `TcpRequestConnectArgs`.
    fn requested(&mut self, pid: u32) -> Option<What> {
        let tcb = self.pointer()?;
        let (local, remote) = (self.endpoint()?, self.endpoint()?);
        Some(What::ConnectRequested { tcb, pid, local, remote })
    }

    /// `TcpAccpetListenerRouteLookupFailureArgs` (as the manifest spells it), which its version 1 adds to at its end.
    fn ended(&mut self, is_failure: bool) -> Option<What> {
        let (local, remote) = (self.endpoint()?, self.endpoint()?);
        let (status, pid) = (self.u32()?, self.u32()?);
        self.u32()?; // Compartment
        let tcb = self.pointer()?;
        Some(What::ConnectEnded { tcb, pid, local, remote, failure: is_failure.then_some(status) })
    }

    /// `task_03008Args`.
    fn resolved(&mut self, pid: u32) -> Option<What> {
        let (name, query_type) = (self.text()?, self.u32()?);
        self.u64()?; // QueryOptions
        Some(What::Resolved { pid, name, query_type, status: self.u32()?, results: self.text()? })
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count..)?;
        Some(())
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn pointer(&mut self) -> Option<u64> {
        if self.pointer_bytes == 4 { self.u32().map(u64::from) } else { self.u64() }
    }

    fn port(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn ipv4(&mut self) -> Option<IpAddr> {
        self.take::<4>().map(|bytes| Ipv4Addr::from(bytes).into())
    }

    /// One that is mapped from IPv4 is IPv4.
    fn ipv6(&mut self) -> Option<IpAddr> {
        self.take::<16>().map(|bytes| Ipv6Addr::from(bytes).to_canonical())
    }

    /// A length, and a `sockaddr_in` or `sockaddr_in6` of that length.
    fn endpoint(&mut self) -> Option<SocketAddr> {
        let length = usize::try_from(self.u32()?).ok()?;
        let bytes = self.rest.get(..length)?;
        let mut fields = Fields { rest: bytes, pointer_bytes: self.pointer_bytes };
        self.skip(length)?;
        let family = fields.take().map(u16::from_le_bytes)?;
        let port = fields.port()?;
        let address = match family {
            2 => fields.ipv4()?,
            23 => {
                fields.u32()?; // sin6_flowinfo
                fields.ipv6()?
            }
            _ => return None,
        };
        Some(SocketAddr::new(address, port))
    }

    /// Revision, count, six bytes of authority, and so many sub-authorities of four bytes.
    fn skip_sid(&mut self) -> Option<()> {
        let [_revision, count] = self.take()?;
        self.skip(6 + 4 * usize::from(count))
    }

    fn text(&mut self) -> Option<String> {
        let mut units = Vec::new();
        loop {
            match self.take().map(u16::from_le_bytes)? {
                0 => return Some(String::from_utf16_lossy(&units)),
                unit => units.push(unit),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod fixtures;
#[cfg(test)]
mod tests;
