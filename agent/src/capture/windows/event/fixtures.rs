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

/// A field: its name and its type.
type Field = (&'static str, Type);

/// Every event and version that is read.
pub(in crate::capture::windows) const ALL: &[(Provider, u16, u8)] = &[
    (Provider::Process, 1, 0),
    (Provider::Process, 1, 1),
    (Provider::Process, 1, 2),
    (Provider::Process, 1, 3),
    (Provider::Process, 1, 4),
    (Provider::Process, 2, 0),
    (Provider::Process, 2, 1),
    (Provider::Process, 2, 2),
    (Provider::Network, 10, 0),
    (Provider::Network, 11, 0),
    (Provider::Network, 12, 0),
    (Provider::Network, 13, 0),
    (Provider::Network, 14, 0),
    (Provider::Network, 15, 0),
    (Provider::Network, 26, 0),
    (Provider::Network, 27, 0),
    (Provider::Network, 28, 0),
    (Provider::Network, 29, 0),
    (Provider::Network, 30, 0),
    (Provider::Network, 31, 0),
    (Provider::Network, 42, 0),
    (Provider::Network, 43, 0),
    (Provider::Network, 58, 0),
    (Provider::Network, 59, 0),
    (Provider::Tcpip, 1002, 0),
    (Provider::Tcpip, 1033, 0),
    (Provider::Tcpip, 1033, 1),
    (Provider::Tcpip, 1034, 0),
    (Provider::Tcpip, 1034, 1),
    (Provider::Dns, 3008, 0),
    (Provider::Own, 1, 0),
];

/// The fields of an event, in order.
fn template((provider, id, version): (Provider, u16, u8)) -> Vec<Field> {
    match (provider, id) {
        (Provider::Process, 1) => process_start(version),
        (Provider::Process, 2) => process_stop(version),
        (Provider::Network, _) => network_event(id),
        (Provider::Tcpip, 1002) => vec![
            ("Tcb", Pointer),
            ("LocalAddress", Endpoint),
            ("RemoteAddress", Endpoint),
            ("NewState", UInt32),
            ("RexmitCount", UInt32),
        ],
        (Provider::Tcpip, _) => {
            let mut fields = vec![
                ("LocalAddress", Endpoint),
                ("RemoteAddress", Endpoint),
                ("Status", UInt32),
                ("ProcessId", UInt32),
                ("Compartment", UInt32),
                ("Tcb", Pointer),
            ];
            fields.extend((version >= 1).then_some(("ProcessSequenceNumber", UInt64)));
            fields
        }
        (Provider::Dns, _) => vec![
            ("QueryName", UnicodeString),
            ("QueryType", UInt32),
            ("QueryOptions", UInt64),
            ("QueryStatus", UInt32),
            ("QueryResults", UnicodeString),
        ],
        (Provider::Own, _) => vec![("Number", UInt64)],
        (Provider::Process, _) => panic!("no event {id} of processes is read"),
    }
}

/// Version 3 begins anew, with sequence numbers and what the token says; every other adds to the one before it.
fn process_start(version: u8) -> Vec<Field> {
    let mut fields = vec![("ProcessID", UInt32)];
    let is_numbered = version >= 3;
    fields.extend(is_numbered.then_some(("ProcessSequenceNumber", UInt64)));
    fields.extend([("CreateTime", FileTime), ("ParentProcessID", UInt32)]);
    fields.extend(is_numbered.then_some(("ParentProcessSequenceNumber", UInt64)));
    fields.push(("SessionID", UInt32));
    fields.extend((version >= 1).then_some(("Flags", UInt32)));
    if is_numbered {
        fields.extend([("ProcessTokenElevationType", UInt32), ("ProcessTokenIsElevated", UInt32)]);
        fields.push(("MandatoryLabel", Sid));
    }
    fields.push(("ImageName", UnicodeString));
    if version >= 2 {
        fields.extend([("ImageChecksum", UInt32), ("TimeDateStamp", UInt32)]);
        fields.extend([("PackageFullName", UnicodeString), ("PackageRelativeAppId", UnicodeString)]);
    }
    fields.extend((version >= 4).then_some(("SecurityMitigations", UInt32)));
    fields
}

fn process_stop(version: u8) -> Vec<Field> {
    let mut fields = vec![("ProcessID", UInt32)];
    fields.extend((version >= 2).then_some(("ProcessSequenceNumber", UInt64)));
    fields.extend([("CreateTime", FileTime), ("ExitTime", FileTime), ("ExitCode", UInt32)]);
    fields.extend([("TokenElevationType", UInt32), ("HandleCount", UInt32)]);
    fields.extend([("CommitCharge", UInt64), ("CommitPeak", UInt64)]);
    if version >= 1 {
        fields.push(("CPUCycleCount", UInt64));
        fields.extend([("ReadOperationCount", UInt32), ("WriteOperationCount", UInt32)]);
        fields.extend([("ReadTransferKiloBytes", UInt32), ("WriteTransferKiloBytes", UInt32)]);
        fields.push(("HardFaultCount", UInt32));
    }
    fields.push(("ImageName", AnsiString));
    fields
}

/// Those of IPv6 have their numbers 16 above those of IPv4, and wider addresses.
fn network_event(id: u16) -> Vec<Field> {
    let is_v6 = matches!(id, 26..=31 | 58 | 59);
    let address = if is_v6 { Ipv6 } else { Ipv4 };
    let mut fields = vec![("PID", UInt32), ("size", UInt32), ("daddr", address), ("saddr", address)];
    fields.extend([("dport", Port), ("sport", Port)]);
    match if is_v6 { id - 16 } else { id } {
        10 => fields.extend([("startime", UInt32), ("endtime", UInt32)]),
        12 | 15 => {
            fields.extend([("mss", UInt16), ("sackopt", UInt16), ("tsopt", UInt16), ("wsopt", UInt16)]);
            fields.extend([("rcvwin", UInt32), ("rcvwinscale", UInt16), ("sndwinscale", UInt16)]);
        }
        _ => {}
    }
    fields.extend([("seqnum", UInt32), ("connid", UInt32)]);
    fields
}

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
        let template = template((provider, id, version));
        let names: Vec<&str> = template.iter().map(|(name, _)| *name).collect();
        assert!(values.iter().all(|(name, _)| names.contains(name)), "{names:?} has not all of {values:?}");
        let mut payload = Vec::new();
        for (name, kind) in template {
            let value = values.iter().find(|(named, _)| *named == name).map(|(_, value)| value);
            put(&mut payload, kind, value);
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
