//! Payloads as the manifests of Windows have them (Windows 10, 18990; versions that came later as its documents tell), for
//! tests. Written from the templates, field by field, and not by way of what reads them.

use std::net::SocketAddr;

use super::{Provider, Record};

/// The type of a field, after its `inType`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::capture::windows) enum Type {
    UInt16,
    UInt32,
    UInt64,
    FileTime,
    Pointer,
    UnicodeString,
    AnsiString,
    Sid,
    /// `win:UInt32` with the bytes of an IPv4 address.
    Ipv4,
    /// `win:Binary` of sixteen bytes.
    Ipv6,
    /// `win:UInt16` as on the wire.
    Port,
    /// `win:UInt32` and `win:Binary` of that length: a socket address.
    Endpoint,
}

/// The value of a field.
#[derive(Clone, Debug)]
pub(in crate::capture::windows) enum Value {
    Number(u64),
    Text(&'static str),
    At(SocketAddr),
}

use Type::*;

type Template = &'static [(&'static str, Type)];

const START_0: Template = &[
    ("ProcessID", UInt32),
    ("CreateTime", FileTime),
    ("ParentProcessID", UInt32),
    ("SessionID", UInt32),
    ("ImageName", UnicodeString),
];
const START_1: Template = &[
    ("ProcessID", UInt32),
    ("CreateTime", FileTime),
    ("ParentProcessID", UInt32),
    ("SessionID", UInt32),
    ("Flags", UInt32),
    ("ImageName", UnicodeString),
];
const START_2: Template = &[
    ("ProcessID", UInt32),
    ("CreateTime", FileTime),
    ("ParentProcessID", UInt32),
    ("SessionID", UInt32),
    ("Flags", UInt32),
    ("ImageName", UnicodeString),
    ("ImageChecksum", UInt32),
    ("TimeDateStamp", UInt32),
    ("PackageFullName", UnicodeString),
    ("PackageRelativeAppId", UnicodeString),
];
const START_3: Template = &[
    ("ProcessID", UInt32),
    ("ProcessSequenceNumber", UInt64),
    ("CreateTime", FileTime),
    ("ParentProcessID", UInt32),
    ("ParentProcessSequenceNumber", UInt64),
    ("SessionID", UInt32),
    ("Flags", UInt32),
    ("ProcessTokenElevationType", UInt32),
    ("ProcessTokenIsElevated", UInt32),
    ("MandatoryLabel", Sid),
    ("ImageName", UnicodeString),
    ("ImageChecksum", UInt32),
    ("TimeDateStamp", UInt32),
    ("PackageFullName", UnicodeString),
    ("PackageRelativeAppId", UnicodeString),
];
const START_4: Template = &[
    ("ProcessID", UInt32),
    ("ProcessSequenceNumber", UInt64),
    ("CreateTime", FileTime),
    ("ParentProcessID", UInt32),
    ("ParentProcessSequenceNumber", UInt64),
    ("SessionID", UInt32),
    ("Flags", UInt32),
    ("ProcessTokenElevationType", UInt32),
    ("ProcessTokenIsElevated", UInt32),
    ("MandatoryLabel", Sid),
    ("ImageName", UnicodeString),
    ("ImageChecksum", UInt32),
    ("TimeDateStamp", UInt32),
    ("PackageFullName", UnicodeString),
    ("PackageRelativeAppId", UnicodeString),
    ("SecurityMitigations", UInt32),
];
const STOP_0: Template = &[
    ("ProcessID", UInt32),
    ("CreateTime", FileTime),
    ("ExitTime", FileTime),
    ("ExitCode", UInt32),
    ("TokenElevationType", UInt32),
    ("HandleCount", UInt32),
    ("CommitCharge", UInt64),
    ("CommitPeak", UInt64),
    ("ImageName", AnsiString),
];
const STOP_1: Template = &[
    ("ProcessID", UInt32),
    ("CreateTime", FileTime),
    ("ExitTime", FileTime),
    ("ExitCode", UInt32),
    ("TokenElevationType", UInt32),
    ("HandleCount", UInt32),
    ("CommitCharge", UInt64),
    ("CommitPeak", UInt64),
    ("CPUCycleCount", UInt64),
    ("ReadOperationCount", UInt32),
    ("WriteOperationCount", UInt32),
    ("ReadTransferKiloBytes", UInt32),
    ("WriteTransferKiloBytes", UInt32),
    ("HardFaultCount", UInt32),
    ("ImageName", AnsiString),
];
const STOP_2: Template = &[
    ("ProcessID", UInt32),
    ("ProcessSequenceNumber", UInt64),
    ("CreateTime", FileTime),
    ("ExitTime", FileTime),
    ("ExitCode", UInt32),
    ("TokenElevationType", UInt32),
    ("HandleCount", UInt32),
    ("CommitCharge", UInt64),
    ("CommitPeak", UInt64),
    ("CPUCycleCount", UInt64),
    ("ReadOperationCount", UInt32),
    ("WriteOperationCount", UInt32),
    ("ReadTransferKiloBytes", UInt32),
    ("WriteTransferKiloBytes", UInt32),
    ("HardFaultCount", UInt32),
    ("ImageName", AnsiString),
];
const SENT_4: Template = &[
    ("PID", UInt32),
    ("size", UInt32),
    ("daddr", Ipv4),
    ("saddr", Ipv4),
    ("dport", Port),
    ("sport", Port),
    ("startime", UInt32),
    ("endtime", UInt32),
    ("seqnum", UInt32),
    ("connid", UInt32),
];
const MOVED_4: Template = &[
    ("PID", UInt32),
    ("size", UInt32),
    ("daddr", Ipv4),
    ("saddr", Ipv4),
    ("dport", Port),
    ("sport", Port),
    ("seqnum", UInt32),
    ("connid", UInt32),
];
const CONNECTED_4: Template = &[
    ("PID", UInt32),
    ("size", UInt32),
    ("daddr", Ipv4),
    ("saddr", Ipv4),
    ("dport", Port),
    ("sport", Port),
    ("mss", UInt16),
    ("sackopt", UInt16),
    ("tsopt", UInt16),
    ("wsopt", UInt16),
    ("rcvwin", UInt32),
    ("rcvwinscale", UInt16),
    ("sndwinscale", UInt16),
    ("seqnum", UInt32),
    ("connid", UInt32),
];
const SENT_6: Template = &[
    ("PID", UInt32),
    ("size", UInt32),
    ("daddr", Ipv6),
    ("saddr", Ipv6),
    ("dport", Port),
    ("sport", Port),
    ("startime", UInt32),
    ("endtime", UInt32),
    ("seqnum", UInt32),
    ("connid", UInt32),
];
const MOVED_6: Template = &[
    ("PID", UInt32),
    ("size", UInt32),
    ("daddr", Ipv6),
    ("saddr", Ipv6),
    ("dport", Port),
    ("sport", Port),
    ("seqnum", UInt32),
    ("connid", UInt32),
];
const CONNECTED_6: Template = &[
    ("PID", UInt32),
    ("size", UInt32),
    ("daddr", Ipv6),
    ("saddr", Ipv6),
    ("dport", Port),
    ("sport", Port),
    ("mss", UInt16),
    ("sackopt", UInt16),
    ("tsopt", UInt16),
    ("wsopt", UInt16),
    ("rcvwin", UInt32),
    ("rcvwinscale", UInt16),
    ("sndwinscale", UInt16),
    ("seqnum", UInt32),
    ("connid", UInt32),
];
const REQUESTED: Template = &[
    ("Tcb", Pointer),
    ("LocalAddress", Endpoint),
    ("RemoteAddress", Endpoint),
    ("NewState", UInt32),
    ("RexmitCount", UInt32),
];
const ENDED_0: Template = &[
    ("LocalAddress", Endpoint),
    ("RemoteAddress", Endpoint),
    ("Status", UInt32),
    ("ProcessId", UInt32),
    ("Compartment", UInt32),
    ("Tcb", Pointer),
];
const ENDED_1: Template = &[
    ("LocalAddress", Endpoint),
    ("RemoteAddress", Endpoint),
    ("Status", UInt32),
    ("ProcessId", UInt32),
    ("Compartment", UInt32),
    ("Tcb", Pointer),
    ("ProcessSequenceNumber", UInt64),
];
const RESOLVED: Template = &[
    ("QueryName", UnicodeString),
    ("QueryType", UInt32),
    ("QueryOptions", UInt64),
    ("QueryStatus", UInt32),
    ("QueryResults", UnicodeString),
];
const MARKER: Template = &[("Number", UInt64)];

/// Every event and version that is read, with its template.
pub(in crate::capture::windows) const ALL: &[(Provider, u16, u8, Template)] = &[
    (Provider::Process, 1, 0, START_0),
    (Provider::Process, 1, 1, START_1),
    (Provider::Process, 1, 2, START_2),
    (Provider::Process, 1, 3, START_3),
    (Provider::Process, 1, 4, START_4),
    (Provider::Process, 2, 0, STOP_0),
    (Provider::Process, 2, 1, STOP_1),
    (Provider::Process, 2, 2, STOP_2),
    (Provider::Network, 10, 0, SENT_4),
    (Provider::Network, 11, 0, MOVED_4),
    (Provider::Network, 12, 0, CONNECTED_4),
    (Provider::Network, 13, 0, MOVED_4),
    (Provider::Network, 14, 0, MOVED_4),
    (Provider::Network, 15, 0, CONNECTED_4),
    (Provider::Network, 26, 0, SENT_6),
    (Provider::Network, 27, 0, MOVED_6),
    (Provider::Network, 28, 0, CONNECTED_6),
    (Provider::Network, 29, 0, MOVED_6),
    (Provider::Network, 30, 0, MOVED_6),
    (Provider::Network, 31, 0, CONNECTED_6),
    (Provider::Network, 42, 0, MOVED_4),
    (Provider::Network, 43, 0, MOVED_4),
    (Provider::Network, 58, 0, MOVED_6),
    (Provider::Network, 59, 0, MOVED_6),
    (Provider::Tcpip, 1002, 0, REQUESTED),
    (Provider::Tcpip, 1033, 0, ENDED_0),
    (Provider::Tcpip, 1033, 1, ENDED_1),
    (Provider::Tcpip, 1034, 0, ENDED_0),
    (Provider::Tcpip, 1034, 1, ENDED_1),
    (Provider::Dns, 3008, 0, RESOLVED),
    (Provider::Own, 1, 0, MARKER),
];

/// An event that owns its payload.
#[derive(Clone, Debug)]
pub(in crate::capture::windows) struct Fixture {
    provider: Provider,
    id: u16,
    version: u8,
    pub(in crate::capture::windows) pid: u32,
    pub(in crate::capture::windows) file_time: u64,
    pub(in crate::capture::windows) payload: Vec<u8>,
}

impl Fixture {
    /// With the values that are named, and in every other field something that is not 0.
    pub(in crate::capture::windows) fn new(
        (provider, id, version): (Provider, u16, u8),
        values: &[(&str, Value)],
    ) -> Self {
        let known = ALL.iter().find(|known| (known.0, known.1, known.2) == (provider, id, version));
        let template = known.unwrap().3;
        let names: Vec<&str> = template.iter().map(|(name, _)| *name).collect();
        assert!(values.iter().all(|(name, _)| names.contains(name)), "{names:?} has not all of {values:?}");
        let mut payload = Vec::new();
        for (name, kind) in template {
            let value = values.iter().find(|(named, _)| named == name).map(|(_, value)| value);
            put(&mut payload, *kind, value);
        }
        Self { provider, id, version, pid: 0, file_time: 0, payload }
    }

    /// In the context of a process.
    pub(in crate::capture::windows) fn by(self, pid: u32) -> Self {
        Self { pid, ..self }
    }

    /// At a time, in 100 ns since 1601.
    pub(in crate::capture::windows) fn at(self, file_time: u64) -> Self {
        Self { file_time, ..self }
    }

    /// As if of another version.
    pub(in crate::capture::windows) fn of_version(self, version: u8) -> Self {
        Self { version, ..self }
    }

    pub(in crate::capture::windows) fn record(&self) -> Record<'_> {
        Record {
            provider: self.provider,
            id: self.id,
            version: self.version,
            pid: self.pid,
            file_time: self.file_time,
            pointer_bytes: 8,
            payload: &self.payload,
        }
    }
}

fn put(payload: &mut Vec<u8>, kind: Type, value: Option<&Value>) {
    let number = match value {
        Some(Value::Number(number)) => *number,
        _ => 0x11,
    };
    let text = match value {
        Some(Value::Text(text)) => text,
        _ => "other",
    };
    let at = match value {
        Some(Value::At(at)) => *at,
        _ => "9.9.9.9:9".parse().unwrap(),
    };
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    match kind {
        UInt16 => payload.extend((number as u16).to_le_bytes()),
        UInt32 => payload.extend((number as u32).to_le_bytes()),
        UInt64 | FileTime | Pointer => payload.extend(number.to_le_bytes()),
        UnicodeString => {
            payload.extend(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        }
        AnsiString => payload.extend(text.bytes().chain([0])),
        // S-1-16-8192
        Sid => payload.extend([1, 1, 0, 0, 0, 0, 0, 16, 0, 0x20, 0, 0]),
        Ipv4 | Ipv6 => {
            let other = std::net::Ipv4Addr::new(9, 9, 9, 9);
            let default = if kind == Ipv4 { other.into() } else { other.to_ipv6_mapped().into() };
            let bytes = octets(value.map_or(default, |_| at.ip()));
            assert_eq!(bytes.len(), if kind == Ipv4 { 4 } else { 16 });
            payload.extend(bytes);
        }
        Port => payload.extend(at.port().to_be_bytes()),
        Endpoint => {
            let mut bytes = if at.is_ipv4() { 2_u16 } else { 23 }.to_le_bytes().to_vec();
            bytes.extend(at.port().to_be_bytes());
            bytes.extend(if at.is_ipv4() { vec![] } else { vec![0; 4] });
            bytes.extend(octets(at.ip()));
            bytes.resize(if at.is_ipv4() { 16 } else { 28 }, 0);
            payload.extend((bytes.len() as u32).to_le_bytes());
            payload.extend(bytes);
        }
    }
}

/// Of an event of the network: 4 and 6 choose its id, and `values` of the ends its addresses and ports.
pub(in crate::capture::windows) fn network(
    [id_v4, id_v6]: [u16; 2],
    pid: u32,
    size: u64,
    source: &str,
    destination: &str,
) -> Fixture {
    let [source, destination]: [SocketAddr; 2] = [source, destination].map(|end| end.parse().unwrap());
    let id = if source.is_ipv4() { id_v4 } else { id_v6 };
    let values = [
        ("PID", Value::Number(pid.into())),
        ("size", Value::Number(size)),
        ("daddr", Value::At(destination)),
        ("saddr", Value::At(source)),
        ("dport", Value::At(destination)),
        ("sport", Value::At(source)),
    ];
    // In the context of somebody else, as most of them are.
    Fixture::new((Provider::Network, id, 0), &values).by(4)
}

pub(in crate::capture::windows) const SENT: [u16; 2] = [10, 26];
pub(in crate::capture::windows) const RECEIVED: [u16; 2] = [11, 27];
pub(in crate::capture::windows) const CONNECTED: [u16; 2] = [12, 28];
pub(in crate::capture::windows) const DISCONNECTED: [u16; 2] = [13, 29];
pub(in crate::capture::windows) const RETRANSMITTED: [u16; 2] = [14, 30];
pub(in crate::capture::windows) const ACCEPTED: [u16; 2] = [15, 31];
pub(in crate::capture::windows) const UDP_SENT: [u16; 2] = [42, 58];
pub(in crate::capture::windows) const UDP_RECEIVED: [u16; 2] = [43, 59];
