//! Places: which frames of a segment hold records with some rare key. Pure.
//!
//! A filter tells whether a key may be in a segment. Who looks for many keys at once is told so of every segment, and would
//! read all of it. So of keys that few records have, it is told frame by frame.

use std::collections::BTreeSet;

use alibi_proto::id::Seq;

use super::Key;

const SEQ_BYTES: usize = 8;
const COUNT_BYTES: usize = 2;
const PRINT_BYTES: usize = 3;

/// What is kept of a key: one in 2²⁴ others has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Print([u8; PRINT_BYTES]);

impl Print {
    /// None if the key is not rare.
    pub(super) fn of(key: &Key) -> Option<Self> {
        let [first, second, third, ..] = key.hash.to_le_bytes();
        key.is_rare.then_some(Self([first, second, third]))
    }
}

/// For each frame of a segment that has records with rare keys, in order. Integers are little-endian.
///
/// ```text
/// 0   8  seq of its first record
/// 8   2  count of the keys
/// 10     the low 24 bits of each key, each once
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    bytes: Vec<u8>,
}

impl Places {
    /// A frame that begins with this seq was added, with these keys. False if that cannot be told in so many bytes.
    #[must_use]
    pub(super) fn add(&mut self, frame: Seq, prints: &BTreeSet<Print>, bytes_max: usize) -> bool {
        if prints.is_empty() {
            return true;
        }
        let Ok(count) = u16::try_from(prints.len()) else { return false };
        if self.bytes.len() + SEQ_BYTES + COUNT_BYTES + prints.len() * PRINT_BYTES > bytes_max {
            return false;
        }
        self.bytes.extend(frame.0.to_le_bytes());
        self.bytes.extend(count.to_le_bytes());
        self.bytes.extend(prints.iter().flat_map(|print| print.0));
        true
    }

    /// The frames that may have a record with one of these keys, by the seqs that they begin with.
    pub(super) fn find(&self, are_wanted: impl Fn(Print) -> bool) -> BTreeSet<Seq> {
        let frames = frames(&self.bytes).flatten();
        let frames = frames.filter(|(_, prints)| prints.iter().any(|print| are_wanted(Print(*print))));
        frames.map(|(frame, _)| frame).collect()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// None if they are not as they are written.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        frames(bytes).all(|frame| frame.is_some()).then(|| Self { bytes: bytes.to_vec() })
    }
}

type Prints<'a> = &'a [[u8; PRINT_BYTES]];

/// Each frame, and the prints of its keys. None, at last, where the bytes are not as they are written.
fn frames(mut rest: &[u8]) -> impl Iterator<Item = Option<(Seq, Prints<'_>)>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = frame(rest);
        rest = frame.map_or(&[], |(.., after)| after);
        Some(frame.map(|(seq, prints, _)| (seq, prints)))
    })
}

fn frame(bytes: &[u8]) -> Option<(Seq, Prints<'_>, &[u8])> {
    let (seq, bytes) = bytes.split_first_chunk()?;
    let (count, bytes) = bytes.split_first_chunk()?;
    let prints_bytes = usize::from(u16::from_le_bytes(*count)) * PRINT_BYTES;
    let (prints, after) = bytes.split_at_checked(prints_bytes)?;
    Some((Seq(u64::from_le_bytes(*seq)), prints.as_chunks().0, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints(numbers: std::ops::Range<u32>) -> BTreeSet<Print> {
        numbers.filter_map(|number| Print::of(&Key::of_rare(1, &number.to_le_bytes()))).collect()
    }

    #[test]
    fn what_was_put_in_is_found_in_its_frame_and_little_else() {
        let mut places = Places::default();
        for frame in 0..100_u32 {
            let keys = prints(frame * 40..frame * 40 + 40);
            assert!(places.add(Seq(1_000 + u64::from(frame) * 400), &keys, 1 << 20));
        }
        assert!(places.add(Seq(50_000), &BTreeSet::new(), 1 << 20));
        let places = Places::from_bytes(places.as_bytes()).unwrap();
        for frame in 0..100_u32 {
            let wanted = prints(frame * 40 + 7..frame * 40 + 8);
            let found = places.find(|print| wanted.contains(&print));
            assert!(found.contains(&Seq(1_000 + u64::from(frame) * 400)) && found.len() < 3, "{found:?}");
        }
        let others = prints(10_000..10_400);
        assert!(places.find(|print| others.contains(&print)).len() < 5);
        assert_eq!(Print::of(&Key::of(1, b"a")), None);
    }

    #[test]
    fn what_cannot_be_told_is_refused_and_what_is_cut_is_seen() {
        let mut places = Places::default();
        assert!(places.add(Seq(1_000), &prints(0..5), 50));
        let before = places.clone();
        assert!(!places.add(Seq(1_001), &prints(0..10), 50), "it has no room");
        assert!(!places.add(Seq(1_001), &prints(0..70_000), 1 << 20), "it has too many");
        assert_eq!(places, before);
        let bytes = places.as_bytes();
        assert!(Places::from_bytes(&[]).is_some());
        (1..bytes.len()).for_each(|cut| assert_eq!(Places::from_bytes(&bytes[..cut]), None, "{cut}"));
    }
}
