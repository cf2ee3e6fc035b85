//! Keys: what a record can be found by. Pure.

/// A hash that whoever writes and whoever asks make alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub(super) hash: u64,
    pub(super) is_rare: bool,
}

impl Key {
    /// The key of these bytes among those of one sort. FNV-1a, and the finish of MurmurHash3, so that keys that differ in
    /// a bit differ in all. Somebody who makes keys that collide is told "maybe" more often, and no more.
    pub fn of(sort: u8, bytes: &[u8]) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in std::iter::once(&sort).chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self { hash: hash ^ (hash >> 33), is_rare: false }
    }

    /// The same, of records of which a segment has few, and which are looked for by many keys at once: by these not only the
    /// segments are found, but the frames.
    pub fn of_rare(sort: u8, bytes: &[u8]) -> Self {
        Self { is_rare: true, ..Self::of(sort, bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_are_apart() {
        assert_ne!(Key::of(1, b"a"), Key::of(2, b"a"));
        assert_ne!(Key::of(1, b"a"), Key::of(1, b"b"));
        assert_ne!(Key::of(1, b"a"), Key::of_rare(1, b"a"));
    }
}
