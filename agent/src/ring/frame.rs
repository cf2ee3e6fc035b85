//! Frames as they lie on disk: what an append writes. Pure: bytes in, bytes out.

use alibi_proto::{
    chain::Head,
    frame::{self, Frame, Packer},
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{Record, SEQ_MAX, Times};

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 84;
/// A frame of several records has at most so many bytes of them, so that a reader holds little in memory.
const RECORD_BYTES_GOAL: usize = 256 << 10;

const MARKER: [u8; 4] = [0xa1, b'F', 0x0d, 0x0a];
/// A distance that is at least this is not known.
const FAR_MS: u32 = u32::MAX;

/// The start of a frame. Integers are little-endian, times in nanoseconds since the Unix epoch.
///
/// ```text
///  0   4  marker a1 46 0d 0a
///  4   4  bytes of the payload
///  8   8  seq of the first record
/// 16   4  count of the records, at least 1
/// 20   4  kinds of the records, bit by bit as the writer names them: what any of them has
/// 24   8  when the first of them was recorded
/// 32   8  when the last was
/// 40   4  by how much the earliest instant that they speak of lies before the first, in ms, rounded up; ffffffff: more
/// 44  32  head of the chain after this frame (`Head::then`)
/// 76   4  CRC32C of the epoch (8 bytes) and the payload
/// 80   4  CRC32C of the epoch (8 bytes) and bytes 0..80
/// 84      payload (`Frame::payload`)
/// ```
///
/// The header has a checksum of its own: its length is believed before the payload is read, damage to a payload costs
/// exactly the records that the header names, and after damage to a header the next frame is found by looking for a
/// header that holds. The epoch in the checksums keeps a frame of another ring, or one that somebody put into a
/// record's bytes, from being taken for one of this ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) payload_bytes: u32,
    pub(super) first_seq: Seq,
    pub(super) count: u32,
    pub(super) kinds: u32,
    pub(super) times: Times,
    pub(super) head: Head,
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
        let Times { speaks_from, recorded_from, recorded_to } = self.times;
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MARKER);
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_seq.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.kinds.to_le_bytes());
        bytes[24..32].copy_from_slice(&recorded_from.as_nanos().to_le_bytes());
        bytes[32..40].copy_from_slice(&recorded_to.as_nanos().to_le_bytes());
        bytes[40..44].copy_from_slice(&ms_before(recorded_from, speaks_from).to_le_bytes());
        bytes[44..76].copy_from_slice(self.head.as_bytes());
        bytes[76..80].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = checksum(epoch, &bytes[..80]);
        bytes[80..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that `bytes` begin with, if they do and it holds.
    pub(super) fn decode(epoch: Epoch, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        if bytes[..4] != MARKER || u32_at(bytes, 80) != checksum(epoch, &bytes[..80]) {
            return None;
        }
        let recorded_from = Timestamp::from_nanos(u64_at(bytes, 24));
        let header = Self {
            payload_bytes: u32_at(bytes, 4),
            first_seq: Seq(u64_at(bytes, 8)),
            count: u32_at(bytes, 16),
            kinds: u32_at(bytes, 20),
            times: Times {
                speaks_from: before(recorded_from, u32_at(bytes, 40)),
                recorded_from,
                recorded_to: Timestamp::from_nanos(u64_at(bytes, 32)),
            },
            head: head_at(bytes, 44),
            payload_crc: u32_at(bytes, 76),
        };
        let counts = header.first_seq >= Seq::FIRST
            && header.first_seq <= SEQ_MAX
            && header.count > 0
            && header.end_seq() <= SEQ_MAX;
        counts.then_some(header)
    }

    /// The frame, if this is its payload.
    pub(super) fn with_payload(&self, epoch: Epoch, payload: &[u8]) -> Option<Frame> {
        let holds =
            payload.len() == self.payload_bytes as usize && checksum(epoch, payload) == self.payload_crc;
        holds.then(|| Frame { first_seq: self.first_seq, count: self.count, payload: payload.to_vec() })
    }
}

fn ms_before(time: Timestamp, earlier: Timestamp) -> u32 {
    u32::try_from(time.since(earlier).as_nanos().div_ceil(1_000_000)).unwrap_or(FAR_MS)
}

fn before(time: Timestamp, ms: u32) -> Timestamp {
    match ms {
        FAR_MS => Timestamp::ZERO,
        _ => time.saturating_sub(std::time::Duration::from_millis(ms.into())),
    }
}

/// A frame as it is written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) header: FrameHeader,
    pub(super) bytes: Vec<u8>,
}

/// The largest record that fits into a frame with a payload of so many bytes.
pub(super) fn record_bytes_max(payload_bytes_max: usize) -> usize {
    let fits = |bytes: usize| frame::packed_bytes_max(bytes, 1) <= payload_bytes_max;
    let (mut low, mut high) = (0, payload_bytes_max.min(frame::UNPACKED_BYTES_MAX - 4));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// These records, whose seqs follow on each other, in as few frames as may be; `head` is that before them. No payload
/// exceeds `payload_bytes_max`, which has room for the largest of them.
pub(super) fn encode(
    epoch: Epoch,
    mut head: Head,
    records: &[Record],
    payload_bytes_max: usize,
    packer: &mut Packer,
) -> Vec<Written> {
    let mut frames = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let count = fitting(rest, payload_bytes_max);
        let (these, after) = rest.split_at(count);
        let bytes: Vec<&[u8]> = these.iter().map(|record| record.bytes.as_slice()).collect();
        let frame = Frame {
            first_seq: these[0].seq,
            count: u32::try_from(count).expect("a frame has fewer records"),
            payload: packer.pack(&bytes),
        };
        head = head.then(&frame);
        let header = FrameHeader {
            payload_bytes: u32::try_from(frame.payload.len()).expect("a segment is smaller than 4 GiB"),
            first_seq: frame.first_seq,
            count: frame.count,
            kinds: these.iter().fold(0, |kinds, record| kinds | record.labels.kinds),
            times: these.iter().map(Times::of).reduce(Times::and).expect("there is a record"),
            head,
            payload_crc: checksum(epoch, &frame.payload),
        };
        let mut bytes = header.encode(epoch).to_vec();
        bytes.extend_from_slice(&frame.payload);
        frames.push(Written { header, bytes });
        rest = after;
    }
    frames
}

/// How many of these go into one frame; at least one.
fn fitting(records: &[Record], payload_bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |(before, record): &(usize, &Record)| {
        bytes += record.bytes.len();
        *before == 0
            || bytes <= RECORD_BYTES_GOAL && frame::packed_bytes_max(bytes, before + 1) <= payload_bytes_max
    };
    records.iter().enumerate().take(frame::RECORDS_MAX).take_while(fits).count()
}

/// Where in `bytes` a header may begin, at the earliest: a marker, or what may be the start of one.
pub(super) fn find_marker(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MARKER.len()).position(|window| window == MARKER)
}

/// The checksum of what lies in a ring of this epoch.
pub(super) fn checksum(epoch: Epoch, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&epoch.0.to_le_bytes()), bytes)
}

/// The integer at `at`, which lies within `bytes`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the layout has four bytes there"))
}

/// The integer at `at`, which lies within `bytes`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the layout has eight bytes there"))
}

/// The head at `at`, which lies within `bytes`.
pub(super) fn head_at(bytes: &[u8], at: usize) -> Head {
    Head::from_bytes(*bytes[at..].first_chunk().expect("the layout has a head there"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::Labels;

    const EPOCH: Epoch = Epoch(0xfeed);

    fn before_all() -> Head {
        Head::from_bytes([9; 32])
    }

    fn decode(frames: &[Written], epoch: Epoch) -> Option<Vec<Vec<u8>>> {
        let mut records = Vec::new();
        let mut head = before_all();
        for written in frames {
            let header = FrameHeader::decode(epoch, &written.bytes)?;
            assert_eq!(header.frame_bytes(), written.bytes.len() as u64);
            let frame = header.with_payload(epoch, &written.bytes[HEADER_BYTES..])?;
            head = head.then(&frame);
            assert_eq!(header.head, head);
            records.extend(frame.unpack().ok()?.iter().map(<[u8]>::to_vec));
        }
        Some(records)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            parts in prop::collection::vec(
                (any::<u64>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40), any::<u32>()), 1..20),
            payload_bytes_max in 140_usize..400,
        ) {
            let records: Vec<_> = parts
                .into_iter()
                .zip(7..)
                .map(|((speaks_from, recorded, bytes, kinds), seq)| Record {
                    seq: Seq(seq),
                    speaks_from: Timestamp::from_nanos(speaks_from),
                    recorded: Timestamp::from_nanos(recorded),
                    bytes,
                    labels: Labels { kinds, ..Labels::default() },
                })
                .collect();
            let frames = encode(EPOCH, before_all(), &records, payload_bytes_max, &mut Packer::default());
            prop_assert!(frames.iter().all(|frame| frame.bytes.len() <= HEADER_BYTES + payload_bytes_max));
            let bytes = records.iter().map(|record| record.bytes.clone()).collect();
            prop_assert_eq!(decode(&frames, EPOCH), Some(bytes));
            prop_assert_eq!(decode(&frames, Epoch(1)), None);
            for frame in &frames {
                let header = FrameHeader::decode(EPOCH, &frame.bytes).unwrap();
                for record in records.iter().filter(|record| (header.first_seq..header.end_seq()).contains(&record.seq)) {
                    let times = header.times;
                    prop_assert!(times.speaks_from <= record.speaks_from.min(record.recorded));
                    prop_assert!((times.recorded_from..=times.recorded_to).contains(&record.recorded));
                    prop_assert_eq!(header.kinds & record.labels.kinds, record.labels.kinds);
                }
            }
        }

        #[test]
        fn the_largest_record_fits(payload_bytes_max in 140_usize..5_000) {
            let max = record_bytes_max(payload_bytes_max);
            prop_assert!(frame::packed_bytes_max(max, 1) <= payload_bytes_max);
            prop_assert!(frame::packed_bytes_max(max + 1, 1) > payload_bytes_max);
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let records = [Record {
            seq: Seq(1),
            speaks_from: Timestamp::ZERO,
            recorded: Timestamp::MAX,
            bytes: vec![1; 9],
            labels: Labels::default(),
        }];
        let frame = encode(EPOCH, before_all(), &records, 200, &mut Packer::default()).remove(0);
        for bit in 0..frame.bytes.len() * 8 {
            let mut bytes = frame.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let header = FrameHeader::decode(EPOCH, &bytes);
            assert!(
                header.is_none_or(|header| header.with_payload(EPOCH, &bytes[HEADER_BYTES..]).is_none()),
                "bit {bit}"
            );
        }
    }
}
