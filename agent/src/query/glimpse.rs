//! What a recorded event says, as far as it takes to see whether it is looked for: a few of its bytes, where they lie.
//!
//! Only to pass over what cannot be meant: whatever is not as expected may be meant, and is decoded.

use std::net::IpAddr;

use alibi_proto::{frame::Row, time::Timestamp};

use crate::labels;

/// A recorded event, and where what is particular to its kind begins and ends in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glimpse<'a> {
    row: Row<'a>,
    /// The field of `Event.kind`.
    kind: u64,
    from: usize,
    to: usize,
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;

impl<'a> Glimpse<'a> {
    /// None if it is not as expected.
    pub(super) fn of(row: Row<'a>) -> Option<Self> {
        let mut fields = Fields { row, at: 0, to: row.len() };
        loop {
            let field = fields.next()?;
            if field.number >= 10 && field.wire_type == LENGTH_DELIMITED {
                return Some(Self { row, kind: field.number, from: field.from, to: field.to });
            }
        }
    }

    /// Its kind, as events are labelled by.
    pub(super) const fn kinds(&self) -> u32 {
        match self.kind {
            10 | 11 | 15 => labels::PROCESSES,
            12 => labels::FLOWS,
            13 | 19 => labels::OTHERS,
            14 => labels::COVERAGE,
            16 | 17 => labels::NAMES,
            18 => labels::EXECUTABLES,
            _ => u32::MAX,
        }
    }

    /// The process that starts, becomes another program, or ends; the connection.
    pub(super) fn uid(&self) -> Option<[u8; 16]> {
        self.fields().find(|field| field.number == 1).and_then(|field| self.bytes(field))
    }

    /// Of a flow: the other end's address, and its first and last time.
    pub(super) fn flow(&self) -> Option<(IpAddr, Timestamp, Timestamp)> {
        let (mut remote, mut first, mut last) = (None, None, None);
        for field in self.fields() {
            match field.number {
                7 => remote = Some(self.address(field)?),
                8 => first = Some(self.time(field)?),
                9 => last = Some(self.time(field)?),
                10.. => break,
                _ => {}
            }
        }
        Some((remote?, first?, last?))
    }

    /// Of a DNS answer or a ClientHello: whether one of its names is one of these; or it is not as expected.
    pub(super) fn may_name(&self, is_meant: impl Fn(&str) -> bool) -> bool {
        let mut name = Vec::new();
        self.fields().filter(|field| matches!((self.kind, field.number), (16, 2 | 3) | (17, 3))).any(
            |field| {
                name.clear();
                name.extend((field.from..field.to).map_while(|at| self.row.get(at)));
                std::str::from_utf8(&name).map_or(true, &is_meant)
            },
        )
    }

    fn address(&self, endpoint: Field) -> Option<IpAddr> {
        let mut fields = Fields { row: self.row, at: endpoint.from, to: endpoint.to };
        let field = fields.find(|field| field.number == 1)?;
        match field.to - field.from {
            4 => self.bytes::<4>(field).map(IpAddr::from),
            _ => self.bytes::<16>(field).map(IpAddr::from),
        }
    }

    fn time(&self, field: Field) -> Option<Timestamp> {
        (field.wire_type == FIXED64)
            .then(|| self.bytes(field))?
            .map(|bytes| Timestamp::from_nanos(u64::from_le_bytes(bytes)))
    }

    fn bytes<const N: usize>(&self, field: Field) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if field.to - field.from != N {
            return None;
        }
        for (place, at) in bytes.iter_mut().zip(field.from..) {
            *place = self.row.get(at)?;
        }
        Some(bytes)
    }

    fn fields(&self) -> Fields<'a> {
        Fields { row: self.row, at: self.from, to: self.to }
    }
}

/// A field of a message, and where its content is.
#[derive(Clone, Copy, Debug)]
struct Field {
    number: u64,
    wire_type: u64,
    from: usize,
    to: usize,
}

/// The fields of a message, up to the first that is not as expected.
struct Fields<'a> {
    row: Row<'a>,
    at: usize,
    to: usize,
}

impl Fields<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.row.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

impl Iterator for Fields<'_> {
    type Item = Field;

    fn next(&mut self) -> Option<Field> {
        if self.at >= self.to {
            return None;
        }
        let key = self.varint()?;
        let (number, wire_type) = (key >> 3, key & 7);
        let length = match wire_type {
            VARINT => {
                let from = self.at;
                self.varint()?;
                return Some(Field { number, wire_type, from, to: self.at });
            }
            FIXED64 => 8,
            LENGTH_DELIMITED => usize::try_from(self.varint()?).ok()?,
            _ => return None,
        };
        let from = self.at;
        let to = from.checked_add(length).filter(|to| *to <= self.to)?;
        self.at = to;
        Some(Field { number, wire_type, from, to })
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        frame::{Frame, Packer},
        id::Seq,
        wire,
    };
    use prost::Message as _;

    use super::*;

    fn with_row<T>(bytes: &[u8], look: impl FnOnce(Row<'_>) -> T) -> T {
        // Another one of the same length beside it, so that its bytes lie apart.
        let other = vec![0xff; bytes.len()];
        let payload = Packer::default().pack(&[bytes, &other]);
        let columns = Frame { first_seq: Seq(1), count: 2, payload }.columns().unwrap();
        let row = columns.rows().next().unwrap();
        look(row)
    }

    #[test]
    fn what_is_seen_is_what_was_recorded() {
        let endpoint = |address: Vec<u8>| Some(wire::Endpoint { address, port: 70 });
        for (address, wanted) in
            [(vec![10, 0, 0, 1], "10.0.0.1"), (vec![1; 16], "101:101:101:101:101:101:101:101")]
        {
            let flow = wire::Flow {
                connection_uid: vec![3; 16],
                process_uid: Some(vec![4; 16]),
                local: endpoint(vec![9; 4]),
                remote: endpoint(address),
                first_ns: 5,
                last_ns: 6,
                opened_ns: 7,
                ..wire::Flow::default()
            };
            let kind = Some(wire::event::Kind::Flow(flow));
            let event = wire::Event { seq: 1 << 60, time_ns: 1, boot_time_ns: 2, kind };
            with_row(&event.encode_to_vec(), |row| {
                let glimpse = Glimpse::of(row).unwrap();
                assert_eq!((glimpse.kinds(), glimpse.uid()), (labels::FLOWS, Some([3; 16])));
                let times = (Timestamp::from_nanos(5), Timestamp::from_nanos(6));
                assert_eq!(glimpse.flow(), Some((wanted.parse().unwrap(), times.0, times.1)));
            });
        }
        let exited = wire::ProcessExited { uid: vec![8; 16], exited_ns: 1, exit_code: None };
        let kind = Some(wire::event::Kind::ProcessExited(exited));
        with_row(&wire::Event { seq: 1, kind, ..wire::Event::default() }.encode_to_vec(), |row| {
            let glimpse = Glimpse::of(row).unwrap();
            assert_eq!((glimpse.kinds(), glimpse.uid()), (labels::PROCESSES, Some([8; 16])));
            assert_eq!(glimpse.flow(), None);
        });
    }

    #[test]
    fn names_are_seen_wherever_they_stand() {
        let resolved = wire::NameResolved {
            name: "www.example.com".into(),
            aliases: vec!["a.example.net".into(), "b.example.net".into()],
            ..wire::NameResolved::default()
        };
        let hello = wire::ServerName { name: Some("www.example.org".into()), ..wire::ServerName::default() };
        for (kind, names) in [
            (wire::event::Kind::NameResolved(resolved), &["www.example.com", "b.example.net"][..]),
            (wire::event::Kind::ServerName(hello), &["www.example.org"]),
        ] {
            let event = wire::Event { seq: 1, kind: Some(kind), ..wire::Event::default() };
            with_row(&event.encode_to_vec(), |row| {
                let glimpse = Glimpse::of(row).unwrap();
                assert!(names.iter().all(|wanted| glimpse.may_name(|name| name == *wanted)));
                assert!(!glimpse.may_name(|name| name == "example.com"));
            });
        }
    }

    #[test]
    fn anything_else_may_be_anything() {
        for bytes in [&[][..], &[8, 1], &[0xff; 20], &[0x52, 0xff, 0x01], &[0x52]] {
            with_row(bytes, |row| assert!(Glimpse::of(row).is_none(), "{bytes:?}"));
        }
        with_row(&[0x62, 2, 0x3a, 9], |row| assert_eq!(Glimpse::of(row).unwrap().flow(), None));
    }
}
