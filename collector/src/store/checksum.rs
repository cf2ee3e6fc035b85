//! Checksums of what is stored. SQLite has none of its pages, and what cannot be told from what was written must not prove
//! anything: each record that a `clear` rests on carries one, and is damage where it does not fit.
//!
//! CRC32C: it finds every change of up to four bytes in a row, and of others all but one in four thousand million. It is
//! there against disks, and not against people, who can make it anew.

use super::{StoreError, codec::damaged};

/// Adds up parts, each with its length, so that nothing moves from one to its neighbour.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Checksum(u32);

impl Checksum {
    /// Of these bytes alone.
    pub(super) fn of(bytes: &[u8]) -> u32 {
        crc32c::crc32c(bytes)
    }

    /// With these bytes behind all before.
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let counted = crc32c::crc32c_append(self.0, &(bytes.len() as u64).to_le_bytes());
        Self(crc32c::crc32c_append(counted, bytes))
    }

    /// With this number behind all before.
    pub(super) fn number(self, number: i64) -> Self {
        Self(crc32c::crc32c_append(self.0, &number.to_le_bytes()))
    }

    /// With a number that may be missing.
    pub(super) fn optional(self, number: Option<i64>) -> Self {
        self.number(number.is_some().into()).number(number.unwrap_or_default())
    }

    /// What is stored.
    pub(super) fn stored(self) -> i64 {
        self.0.into()
    }

    /// Holds it against what is stored; older versions have stored none.
    pub(super) fn check(self, what: &'static str, stored: Option<i64>) -> Result<(), StoreError> {
        match stored {
            Some(stored) if stored != self.stored() => Err(damaged(what, UNFIT)),
            _ => Ok(()),
        }
    }
}

/// What is wrong with what has another checksum.
pub(super) const UNFIT: &str = "its checksum does not fit";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_that_changes_is_found_and_nothing_moves_unseen() {
        let sum = |one: &[u8], other: &[u8]| Checksum::default().bytes(one).bytes(other).number(7).stored();
        let (bytes, want) = (*b"what was written", sum(b"what was written", b"x"));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes;
                changed[at] ^= 1 << bit;
                assert_ne!(sum(&changed, b"x"), want);
            }
        }
        assert_ne!(sum(b"what was writte", b"nx"), want);
        assert_ne!(
            Checksum::default().optional(None).stored(),
            Checksum::default().optional(Some(0)).stored()
        );
        let other = Checksum::default().number(1);
        assert!(other.check("number", Some(want)).is_err());
        assert!(other.check("number", Some(other.stored())).is_ok());
        assert!(other.check("number", None).is_ok(), "of an older version");
    }
}
