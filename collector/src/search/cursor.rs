//! Where a listing goes on: one word, which only the same question takes.
//!
//! It carries the time that the first page was asked at, and its window, so that `NOW` and `--last` mean the same on every
//! page, and what comes in between does not move rows from one to another.

use alibi_proto::time::Timestamp;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::time::Stretch;

/// Layout 1: the layout (1), what was asked (8), now, from and to (8 each), then the place: a key (8), the number of a
/// host (4), of a ring (4), of an event (8) and a uid (16), and a checksum over all of that (4). Integers are big-endian.
const BYTES: usize = 1 + 8 + 3 * 8 + 8 + 4 + 4 + 8 + 16 + 4;
const LAYOUT: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListingCursor {
    /// When the first page was asked.
    pub now: Timestamp,
    /// The window of all pages; all of time where there is none.
    pub window: Stretch,
    /// The last row that was listed, or looked at.
    pub place: Place,
}

/// Which row it is, in the order of a listing. What the listing does not need is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// By what the listing is sorted: nanoseconds, or bytes.
    pub key: u64,
    /// The number of the host.
    pub host: u32,
    /// The number of the ring of a flow record.
    pub ring: u32,
    /// Its place there.
    pub seq: u64,
    /// The uid of a process.
    pub uid: [u8; 16],
}

impl ListingCursor {
    /// As a word, for the question that these words are.
    pub fn write(&self, question: &[&str]) -> String {
        let Self { now, window, place } = self;
        let mut bytes = vec![LAYOUT];
        bytes.extend(digest(question));
        for time in [*now, window.from, window.to] {
            bytes.extend(time.as_nanos().to_be_bytes());
        }
        bytes.extend(place.key.to_be_bytes());
        bytes.extend(place.host.to_be_bytes());
        bytes.extend(place.ring.to_be_bytes());
        bytes.extend(place.seq.to_be_bytes());
        bytes.extend(place.uid);
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// From a word.
    ///
    /// # Errors
    /// When it is none, or that of another question.
    pub fn read(word: &str, question: &[&str]) -> Result<Self, CursorError> {
        if word.len() > 2 * BYTES {
            return Err(CursorError::Unreadable);
        }
        let bytes = URL_SAFE_NO_PAD.decode(word).map_err(|_| CursorError::Unreadable)?;
        let (body, sum) = bytes.split_at_checked(BYTES - CHECKSUM_BYTES).ok_or(CursorError::Unreadable)?;
        if sum != checksum(body) || body[0] != LAYOUT {
            return Err(CursorError::Unreadable);
        }
        let mut rest = &body[1..];
        if take::<8>(&mut rest) != digest(question) {
            return Err(CursorError::Foreign);
        }
        let [now, from, to] =
            std::array::from_fn(|_| Timestamp::from_nanos(u64::from_be_bytes(take(&mut rest))));
        let place = Place {
            key: u64::from_be_bytes(take(&mut rest)),
            host: u32::from_be_bytes(take(&mut rest)),
            ring: u32::from_be_bytes(take(&mut rest)),
            seq: u64::from_be_bytes(take(&mut rest)),
            uid: take(&mut rest),
        };
        Ok(Self { now, window: Stretch { from, to }, place })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().expect("the length was checked");
    *bytes = rest;
    *taken
}

fn digest(question: &[&str]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for word in question {
        hasher.update(&(word.len() as u64).to_be_bytes());
        hasher.update(word.as_bytes());
    }
    *hasher.finalize().as_bytes().first_chunk().expect("it has 32 bytes")
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("it has 32 bytes")
}

/// A cursor that leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It was cut or changed.
    #[error(
        "the cursor is cut or changed: copy the whole of what the page before has, or begin without --cursor"
    )]
    Unreadable,
    /// It is that of another listing.
    #[error(
        "the cursor is that of another question: ask with the same query, hosts, user and order as the page before, or begin \
         without --cursor"
    )]
    Foreign,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_by_the_same_question_alone() {
        let cursor = ListingCursor {
            now: Timestamp::from_secs(5),
            window: Stretch { from: Timestamp::from_secs(1), to: Timestamp::MAX },
            place: Place { key: 7, host: 1, ring: 2, seq: u64::MAX, uid: [9; 16] },
        };
        let word = cursor.write(&["flows", "a", "b"]);
        assert_eq!(ListingCursor::read(&word, &["flows", "a", "b"]), Ok(cursor));
        for other in [&["flows", "ab", ""][..], &["search", "a", "b"], &["flows", "a"], &[]] {
            assert_eq!(ListingCursor::read(&word, other), Err(CursorError::Foreign));
        }
        for at in 0..word.len() {
            let mut changed = word.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(ListingCursor::read(&changed, &["flows", "a", "b"]), Err(CursorError::Unreadable));
            assert!(ListingCursor::read(&word[..at], &["flows", "a", "b"]).is_err());
        }
        for bad in ["", "!", "AAAA", &"A".repeat(10_000)] {
            assert_eq!(ListingCursor::read(bad, &[]), Err(CursorError::Unreadable));
        }
    }
}
