//! Seals: what is said of a whole segment once nothing more comes into it. Pure.

use std::collections::BTreeSet;

use alibi_proto::{
    chain::Head,
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{
    Labels, SEQ_MAX, Times,
    filter::Filter,
    frame::{FrameHeader, checksum, head_at, u32_at, u64_at},
    places::{Places, Print},
};

/// Bytes of a seal without its filter and its places.
const BARE_BYTES: usize = CONTENT_BYTES + FOOTER_BYTES;
const CONTENT_BYTES: usize = 104;
pub(super) const FOOTER_BYTES: usize = 8;

const MARKER: [u8; 4] = [0xa1, b'S', 0x0d, 0x0a];
const END_MARKER: [u8; 4] = [0xa1, b'E', 0x0d, 0x0a];

/// The end of a segment. Integers are little-endian, times in nanoseconds since the Unix epoch. It is found from the end
/// of the file. A segment without one, or with one that is damaged, is read to see what is in it.
///
/// ```text
///  0   4  marker a1 53 0d 0a
///  4   4  bytes of the filter; 0 if there is none, since it is not known what it should have
///  8   8  seq of the last record
/// 16   8  the earliest instant that the records speak of
/// 24   8  when the first was recorded
/// 32   8  when the last was recorded
/// 40   4  count of the frames
/// 44   4  kinds of the records: what any of them has
/// 48   8  count of the records
/// 56  32  head of the chain after the last frame
/// 88   8  the earliest `Labels::from` of the records
/// 96   4  bytes of the places; ffffffff if there are none, since they are not known or too many
/// 100  4  CRC32C of the epoch (8 bytes), bytes 0..100, the filter and the places
/// 104     filter of the keys of all records, but for rare ones: a Bloom filter of 2ⁿ bits, bit 0 first. A key of 64 bits
///         sets six: n bits of a + i·b, for i from 0 to 5, where a are its low 32 bits, and b its high 32 bits and 1
///         places of the rare keys of all records (`Places`)
///      4  bytes of the whole seal
///      4  marker a1 45 0d 0a
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) last_seq: Seq,
    pub(super) times: Times,
    pub(super) frames: u32,
    pub(super) kinds: u32,
    pub(super) records: u64,
    pub(super) head: Head,
    pub(super) labelled_from: Timestamp,
    /// None if it is not known which keys the records have.
    pub(super) filter: Option<Filter>,
    /// None if it is not known which rare keys they have, or they are too many.
    pub(super) places: Option<Places>,
}

/// In place of the bytes of the places, where there are none.
const NO_PLACES: u32 = u32::MAX;

/// The most bytes that the filter of a segment of so many has.
pub(super) const fn filter_bytes_max(segment_bytes: u64) -> usize {
    let wanted = segment_bytes / 32;
    if wanted >= Filter::BYTES_MAX as u64 {
        Filter::BYTES_MAX
    } else if wanted <= Filter::BYTES_MIN as u64 {
        Filter::BYTES_MIN
    } else {
        1 << wanted.ilog2()
    }
}

/// The most bytes that the places have beside a filter of so many.
const fn places_bytes_max(filter_bytes: usize) -> usize {
    filter_bytes * 2
}

/// The most bytes that the seal of a segment of so many has.
pub(super) const fn bytes_max(segment_bytes: u64) -> usize {
    let filter_bytes = filter_bytes_max(segment_bytes);
    BARE_BYTES + filter_bytes + places_bytes_max(filter_bytes)
}

impl Seal {
    /// What is to be said of a segment with nothing in it yet.
    pub(super) fn begin(segment_bytes: u64) -> Self {
        Self {
            last_seq: Seq(0),
            times: Times {
                speaks_from: Timestamp::MAX,
                recorded_from: Timestamp::MAX,
                recorded_to: Timestamp::ZERO,
            },
            frames: 0,
            kinds: 0,
            records: 0,
            head: Head::UNKNOWN,
            labelled_from: Timestamp::MAX,
            filter: Some(Filter::new(filter_bytes_max(segment_bytes))),
            places: Some(Places::default()),
        }
    }

    /// A frame was added, whose records have these labels.
    pub(super) fn add<'a>(&mut self, frame: &FrameHeader, labels: impl Iterator<Item = &'a Labels>) {
        self.last_seq = Seq(frame.end_seq().0 - 1);
        self.times = self.times.and(frame.times);
        self.frames += 1;
        self.kinds |= frame.kinds;
        self.records += u64::from(frame.count);
        self.head = frame.head;
        let mut prints = BTreeSet::new();
        for labels in labels {
            self.labelled_from = self.labelled_from.min(labels.from);
            for key in &labels.keys {
                match (Print::of(key), &mut self.filter) {
                    (Some(print), _) => {
                        prints.insert(print);
                    }
                    (None, Some(filter)) => filter.put(*key),
                    (None, None) => {}
                }
            }
        }
        let room = self.filter.as_ref().map_or(0, |filter| places_bytes_max(filter.bytes()));
        self.places = self
            .places
            .take()
            .and_then(|mut places| places.add(frame.first_seq, &prints, room).then_some(places));
    }

    /// A frame was added, of whose records nothing is known.
    pub(super) fn add_unlabelled(&mut self, frame: &FrameHeader) {
        self.add(frame, std::iter::empty());
        self.kinds = u32::MAX;
        self.labelled_from = Timestamp::ZERO;
        (self.filter, self.places) = (None, None);
    }

    pub(super) fn encode(&self, epoch: Epoch) -> Vec<u8> {
        let filter = self.filter.clone().map(|filter| filter.folded().to_bytes()).unwrap_or_default();
        let mut bytes = vec![0; CONTENT_BYTES];
        bytes[..4].copy_from_slice(&MARKER);
        bytes[4..8].copy_from_slice(&(filter.len() as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.last_seq.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.times.speaks_from.as_nanos().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.times.recorded_from.as_nanos().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.times.recorded_to.as_nanos().to_le_bytes());
        bytes[40..44].copy_from_slice(&self.frames.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.kinds.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.records.to_le_bytes());
        bytes[56..88].copy_from_slice(self.head.as_bytes());
        bytes[88..96].copy_from_slice(&self.labelled_from.as_nanos().to_le_bytes());
        let places = self.places.as_ref().map(Places::as_bytes);
        let places_bytes = places.map_or(NO_PLACES, |places| places.len() as u32);
        bytes[96..100].copy_from_slice(&places_bytes.to_le_bytes());
        bytes.extend_from_slice(&filter);
        bytes.extend_from_slice(places.unwrap_or_default());
        let crc = crc32c::crc32c_append(checksum(epoch, &bytes[..100]), &bytes[CONTENT_BYTES..]);
        bytes[100..104].copy_from_slice(&crc.to_le_bytes());
        let seal_bytes = (bytes.len() + FOOTER_BYTES) as u32;
        bytes.extend_from_slice(&seal_bytes.to_le_bytes());
        bytes.extend_from_slice(&END_MARKER);
        bytes
    }

    /// How many bytes the seal has that ends with this footer, if it is one.
    pub(super) fn bytes_by_footer(footer: &[u8]) -> Option<usize> {
        let footer = footer.first_chunk::<FOOTER_BYTES>().filter(|footer| footer[4..] == END_MARKER)?;
        let bytes = usize::try_from(u32_at(footer, 0)).ok()?;
        let most = BARE_BYTES + Filter::BYTES_MAX + places_bytes_max(Filter::BYTES_MAX);
        (BARE_BYTES..=most).contains(&bytes).then_some(bytes)
    }

    /// The seal that these bytes are, if it holds.
    pub(super) fn decode(epoch: Epoch, bytes: &[u8]) -> Option<Self> {
        let seal_bytes = Self::bytes_by_footer(bytes.get(bytes.len().checked_sub(FOOTER_BYTES)?..)?)?;
        let content = bytes.get(CONTENT_BYTES..bytes.len() - FOOTER_BYTES)?;
        let crc = crc32c::crc32c_append(checksum(epoch, &bytes[..100]), content);
        if seal_bytes != bytes.len() || bytes[..4] != MARKER || u32_at(bytes, 100) != crc {
            return None;
        }
        let (filter, places) = content.split_at_checked(u32_at(bytes, 4) as usize)?;
        let places = match u32_at(bytes, 96) {
            NO_PLACES if places.is_empty() => None,
            told if told as usize == places.len() => Some(Places::from_bytes(places)?),
            _ => return None,
        };
        let time = |at| Timestamp::from_nanos(u64_at(bytes, at));
        Some(Self {
            last_seq: Some(Seq(u64_at(bytes, 8))).filter(|last| *last < SEQ_MAX)?,
            times: Times { speaks_from: time(16), recorded_from: time(24), recorded_to: time(32) },
            frames: u32_at(bytes, 40),
            kinds: u32_at(bytes, 44),
            records: u64_at(bytes, 48),
            head: head_at(bytes, 56),
            labelled_from: time(88),
            filter: if filter.is_empty() { None } else { Some(Filter::from_bytes(filter)?) },
            places,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Key;

    fn seal(filter: Option<Filter>, places: Option<Places>) -> Seal {
        let at = Timestamp::from_secs;
        let times = Times { speaks_from: at(1), recorded_from: at(2), recorded_to: at(3) };
        let head = Head::from_bytes([4; 32]);
        let labelled_from = at(9);
        Seal { last_seq: Seq(5), times, frames: 6, kinds: 7, records: 8, head, labelled_from, filter, places }
    }

    #[test]
    fn what_goes_in_comes_out_and_every_flipped_bit_is_seen() {
        let mut filter = Filter::new(32);
        (0..9).for_each(|number| filter.put(Key::of(1, &[number])));
        let mut places = Places::default();
        let print = Print::of(&Key::of_rare(1, b"a")).unwrap();
        assert!(places.add(Seq(3), &[print].into(), 100));
        for seal in
            [seal(None, None), seal(Some(filter.folded()), Some(Places::default())), seal(None, Some(places))]
        {
            let bytes = seal.encode(Epoch(1));
            assert_eq!(Seal::bytes_by_footer(&bytes[bytes.len() - FOOTER_BYTES..]), Some(bytes.len()));
            assert_eq!(Seal::decode(Epoch(1), &bytes), Some(seal));
            assert_eq!(Seal::decode(Epoch(2), &bytes), None);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Seal::decode(Epoch(1), &flipped), None, "bit {bit}");
            }
            (0..bytes.len()).for_each(|cut| assert_eq!(Seal::decode(Epoch(1), &bytes[..cut]), None));
        }
    }

    #[test]
    fn a_seal_keeps_to_its_size() {
        for segment_bytes in [100, 640, 4096, 1 << 20, 1 << 30] {
            let mut seal = Seal::begin(segment_bytes);
            let filter = seal.filter.as_mut().unwrap();
            (0..50_000_u32).for_each(|number| filter.put(Key::of(1, &number.to_le_bytes())));
            let room = places_bytes_max(filter.bytes());
            let places = seal.places.as_mut().unwrap();
            let print = |number: u32| Print::of(&Key::of_rare(1, &number.to_le_bytes()));
            for frame in 0..50_000 {
                let prints = (frame..frame + 5).filter_map(print).collect();
                if !places.add(Seq(frame.into()), &prints, room) {
                    break;
                }
            }
            assert!(seal.encode(Epoch(1)).len() <= bytes_max(segment_bytes));
        }
    }
}
