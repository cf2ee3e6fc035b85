//! Frames: what an append writes. Pure: bytes in, bytes out.

use alibi_proto::{
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{Record, Times};

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 28;
/// A record adds at most this to its own bytes: three varints.
pub(super) const RECORD_OVERHEAD_BYTES_MAX: usize = 10 + 10 + 10;
/// A frame of several records has at most this much payload, so that a reader holds little in memory.
const PAYLOAD_BYTES_GOAL: usize = 256 * 1024;

const MARKER: [u8; 4] = [0xa1, b'F', 0x0d, 0x0a];

/// The start of a frame. Integers are little-endian.
///
/// ```text
///  0   4  marker a1 46 0d 0a
///  4   4  bytes of the payload
///  8   8  seq of the first record
/// 16   4  count of the records, at least 1
/// 20   4  CRC32C of the epoch (8 bytes) and the payload
/// 24   4  CRC32C of the epoch (8 bytes) and bytes 0..24
/// 28      payload
/// ```
///
/// The header has a checksum of its own: its length is believed before the payload is read, damage to a payload costs
/// exactly the records that the header names, and after damage to a header the next frame is found by looking for a
/// header that holds. The epoch in the checksums keeps a frame of another ring, or one that somebody put into a
/// record's bytes, from being taken for one of this ring.
///
/// The payload is its records one after another, in order of seq. Varints are LEB128; signed ones are zigzag.
///
/// ```text
/// signed varint    `recorded`, less that of the record before it (of the first: less 0)
/// signed varint    `recorded` less `speaks_from`
/// unsigned varint  length of the bytes
/// bytes
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) payload_bytes: u32,
    pub(super) first_seq: Seq,
    pub(super) count: u32,
    payload_crc: u32,
}

impl FrameHeader {
    /// The position after its last record.
    pub(super) fn end_seq(&self) -> Seq {
        Seq(self.first_seq.0 + u64::from(self.count))
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    fn encode(&self, epoch: Epoch) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MARKER);
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_seq.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = checksum(epoch, &bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that `bytes` begin with, if they do and it holds.
    pub(super) fn decode(epoch: Epoch, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        if bytes[..4] != MARKER || u32_at(bytes, 24) != checksum(epoch, &bytes[..24]) {
            return None;
        }
        let header = Self {
            payload_bytes: u32_at(bytes, 4),
            first_seq: Seq(u64_at(bytes, 8)),
            count: u32_at(bytes, 16),
            payload_crc: u32_at(bytes, 20),
        };
        let plausible = header.count > 0 && header.first_seq.0.checked_add(u64::from(header.count)).is_some();
        plausible.then_some(header)
    }

    /// The records of this frame, if its payload holds.
    pub(super) fn decode_payload(&self, epoch: Epoch, payload: &[u8]) -> Option<Vec<Record>> {
        if payload.len() != self.payload_bytes as usize || checksum(epoch, payload) != self.payload_crc {
            return None;
        }
        let mut records = Vec::new();
        let mut rest = payload;
        let mut before = 0;
        for offset in 0..u64::from(self.count) {
            let recorded = i64::wrapping_add(before, signed(&mut rest)?);
            let speaks_from = recorded.wrapping_sub(signed(&mut rest)?);
            let length = usize::try_from(unsigned(&mut rest)?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            records.push(Record {
                seq: Seq(self.first_seq.0 + offset),
                speaks_from: Timestamp::from_nanos(u64::try_from(speaks_from).ok()?),
                recorded: Timestamp::from_nanos(u64::try_from(recorded).ok()?),
                bytes: bytes.to_vec(),
            });
            (rest, before) = (after, recorded);
        }
        rest.is_empty().then_some(records)
    }
}

/// A frame as it is written.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) first_seq: Seq,
    pub(super) first_recorded: Timestamp,
    pub(super) times: Times,
    pub(super) bytes: Vec<u8>,
}

/// These records, whose seqs follow on each other, in as few frames as may be. No payload exceeds `payload_bytes_max`,
/// which has room for the largest of them.
pub(super) fn encode(epoch: Epoch, records: &[Record], payload_bytes_max: usize) -> Vec<Frame> {
    let goal = PAYLOAD_BYTES_GOAL.min(payload_bytes_max);
    let mut frames = Vec::new();
    let mut rest = records;
    while let Some(first) = rest.first() {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut times = Times::of(first);
        let mut before = 0;
        let mut count = 0;
        for record in rest {
            let room_bytes = (HEADER_BYTES + goal).saturating_sub(bytes.len());
            if count > 0 && record.bytes.len().saturating_add(RECORD_OVERHEAD_BYTES_MAX) > room_bytes {
                break;
            }
            let recorded = record.recorded.as_nanos_i64();
            put_signed(&mut bytes, recorded - before);
            put_signed(&mut bytes, recorded - record.speaks_from.as_nanos_i64());
            put_unsigned(&mut bytes, record.bytes.len() as u64);
            bytes.extend_from_slice(&record.bytes);
            before = recorded;
            times = times.and(Times::of(record));
            count += 1;
        }
        let payload = &bytes[HEADER_BYTES..];
        let header = FrameHeader {
            payload_bytes: u32::try_from(payload.len()).expect("a segment is smaller than 4 GiB"),
            first_seq: first.seq,
            count: u32::try_from(count).expect("a record takes more than one byte"),
            payload_crc: checksum(epoch, payload),
        };
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode(epoch));
        frames.push(Frame { first_seq: first.seq, first_recorded: first.recorded, times, bytes });
        rest = &rest[count..];
    }
    frames
}

/// Where in `bytes` a header may begin, at the earliest: a marker, or what may be the start of one.
pub(super) fn find_marker(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MARKER.len()).position(|window| window == MARKER)
}

fn checksum(epoch: Epoch, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&epoch.0.to_le_bytes()), bytes)
}

fn put_signed(bytes: &mut Vec<u8>, value: i64) {
    put_unsigned(bytes, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

fn put_unsigned(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn signed(bytes: &mut &[u8]) -> Option<i64> {
    let value = unsigned(bytes)?;
    Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

fn unsigned(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The integer at `at`, which lies within `bytes`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the layout has four bytes there"))
}

/// The integer at `at`, which lies within `bytes`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the layout has eight bytes there"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Epoch = Epoch(0xfeed);

    fn decode(frames: &[Frame], epoch: Epoch) -> Option<Vec<Record>> {
        let mut records = Vec::new();
        for frame in frames {
            let header = FrameHeader::decode(epoch, &frame.bytes)?;
            assert_eq!(header.frame_bytes(), frame.bytes.len() as u64);
            records.extend(header.decode_payload(epoch, &frame.bytes[HEADER_BYTES..])?);
        }
        Some(records)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            parts in prop::collection::vec(
                (any::<u64>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 1..20),
            payload_bytes_max in 70_usize..400,
        ) {
            let records: Vec<_> = parts
                .into_iter()
                .zip(7..)
                .map(|((speaks_from, recorded, bytes), seq)| Record {
                    seq: Seq(seq),
                    speaks_from: Timestamp::from_nanos(speaks_from),
                    recorded: Timestamp::from_nanos(recorded),
                    bytes,
                })
                .collect();
            let frames = encode(EPOCH, &records, payload_bytes_max);
            prop_assert!(frames.iter().all(|frame| frame.bytes.len() <= HEADER_BYTES + payload_bytes_max));
            prop_assert_eq!(decode(&frames, EPOCH), Some(records));
            prop_assert_eq!(decode(&frames, Epoch(1)), None);
        }

        #[test]
        fn any_payload_is_decoded_or_refused(
            payload in prop::collection::vec(any::<u8>(), 0..60),
            count in 1_u32..9,
        ) {
            let payload_crc = checksum(EPOCH, &payload);
            let header = FrameHeader { payload_bytes: payload.len() as u32, first_seq: Seq(1), count, payload_crc };
            if let Some(records) = header.decode_payload(EPOCH, &payload) {
                prop_assert_eq!(records.len(), count as usize);
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let records = [Record {
            seq: Seq(1),
            speaks_from: Timestamp::ZERO,
            recorded: Timestamp::MAX,
            bytes: vec![1; 9],
        }];
        let frame = encode(EPOCH, &records, 100).remove(0);
        for bit in 0..frame.bytes.len() * 8 {
            let mut bytes = frame.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let flipped = Frame { bytes, ..frame };
            let header = FrameHeader::decode(EPOCH, &flipped.bytes);
            assert!(
                header.is_none_or(|header| header
                    .decode_payload(EPOCH, &flipped.bytes[HEADER_BYTES..])
                    .is_none()),
                "bit {bit}"
            );
        }
    }
}
