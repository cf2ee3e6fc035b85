//! Filters: whether a segment may hold a record with some key, answered without reading it. Pure.

use super::Key;

/// Bits that a key sets. With half of all bits set, one in 2⁶ keys that were never put in is taken for one that was.
const BITS_PER_KEY: u64 = 6;

/// A Bloom filter. Its size is a power of two, so that one that turns out too large is folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    words: Vec<u64>,
}

impl Filter {
    /// The smallest, in bytes.
    pub(super) const BYTES_MIN: usize = 16;
    /// The largest.
    pub(super) const BYTES_MAX: usize = 64 << 10;

    /// An empty one of this size.
    pub(super) fn new(bytes: usize) -> Self {
        debug_assert!(bytes.is_power_of_two() && (Self::BYTES_MIN..=Self::BYTES_MAX).contains(&bytes));
        Self { words: vec![0; bytes / 8] }
    }

    /// Its size.
    pub(super) const fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    pub(super) fn put(&mut self, key: Key) {
        for (word, bit) in self.places(key) {
            self.words[word] |= bit;
        }
    }

    /// Whether the key may have been put in: false is certain.
    pub(super) fn may_have(&self, key: Key) -> bool {
        self.places(key).all(|(word, bit)| self.words[word] & bit != 0)
    }

    /// The same in as few bytes as still tell most keys apart.
    pub(super) fn folded(mut self) -> Self {
        while self.bytes() > Self::BYTES_MIN {
            let (low, high) = self.words.split_at(self.words.len() / 2);
            let folded: Vec<u64> = low.iter().zip(high).map(|(low, high)| low | high).collect();
            let set: u64 = folded.iter().map(|word| u64::from(word.count_ones())).sum();
            if set * 2 > folded.len() as u64 * 64 {
                break;
            }
            self.words = folded;
        }
        self
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// None if it has no size that a filter has.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let is_one =
            bytes.len().is_power_of_two() && (Self::BYTES_MIN..=Self::BYTES_MAX).contains(&bytes.len());
        let (words, _) = bytes.as_chunks();
        is_one.then(|| Self { words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() })
    }

    fn places(&self, key: Key) -> impl Iterator<Item = (usize, u64)> + use<> {
        let mask = self.words.len() as u64 * 64 - 1;
        let (first, step) = (key.hash & 0xffff_ffff, (key.hash >> 32) | 1);
        (0..BITS_PER_KEY).map(move |nth| {
            let bit = first.wrapping_add(nth * step) & mask;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        Key::of(1, &number.to_be_bytes())
    }

    #[test]
    fn what_was_put_in_is_never_denied() {
        for count in [0, 1, 10, 1_000, 100_000] {
            let mut filter = Filter::new(Filter::BYTES_MAX);
            (0..count).for_each(|number| filter.put(key(number)));
            let folded = filter.clone().folded();
            for filter in [filter, folded.clone(), Filter::from_bytes(&folded.to_bytes()).unwrap()] {
                assert!((0..count).all(|number| filter.may_have(key(number))));
            }
            let others = (1_000_000..1_010_000).filter(|number| folded.may_have(key(*number))).count();
            let bytes = folded.to_bytes().len();
            assert!(
                count > 60_000 || others < 10_000 * 3 / 64,
                "{others} of 10,000 others, {count} in {bytes}"
            );
            assert!(bytes <= 16.max(count as usize * 4), "{bytes} bytes for {count}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        for bytes in [0, 8, 15, 17, 24, Filter::BYTES_MAX * 2] {
            assert_eq!(Filter::from_bytes(&vec![0; bytes]), None, "{bytes}");
        }
    }
}
