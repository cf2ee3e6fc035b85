//! The chain of hashes over a ring's frames: what is said of the past once, cannot be said otherwise later.
//!
//! Each frame's head is made of the head before it and of what the frame says. So a head stands for all that was
//! recorded up to it, and who knows one ([`Anchor`]) sees whether any of that was changed, left out or put in since.

use std::fmt;

use crate::{
    frame::Frame,
    id::{Epoch, HostId, Seq},
    time::Timestamp,
};

/// What stands for everything that was recorded in a ring up to some event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head([u8; Head::BYTES]);

impl Head {
    /// Its length.
    pub const BYTES: usize = 32;
    /// Where nobody can say any more what was before: it stands for nothing that was ever recorded.
    pub const UNKNOWN: Self = Self([0; Self::BYTES]);

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The head of a ring in which nothing is recorded yet: BLAKE3 of `alibi chain 1`, the host's 16 bytes and the epoch
    /// (8 bytes, little-endian).
    pub fn of_nothing(host: HostId, epoch: Epoch) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"alibi chain 1").update(host.as_bytes()).update(&epoch.0.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The head after `frame`, if this is the one before it: BLAKE3 of this head, the seq of the frame's first event
    /// (8 bytes, little-endian), their count (4 bytes) and the payload.
    pub fn then(&self, frame: &Frame) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&frame.first_seq.0.to_le_bytes());
        hasher.update(&frame.count.to_le_bytes()).update(&frame.payload);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({self})")
    }
}

/// A head, and how far it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The last event that it stands for.
    pub seq: Seq,
    /// The head after that.
    pub head: Head,
}

/// What a collector knows of the chain over a host's events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainStatus {
    /// The newest anchor; none before the first.
    pub anchored: Option<Anchored>,
    /// Where the past became another one, the newest first; a bounded number of them.
    pub breaks: Vec<ChainBreak>,
}

/// An anchor that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchored {
    /// The ring.
    pub epoch: Epoch,
    /// The head.
    pub anchor: Anchor,
    /// When, by the collector's clock.
    pub at: Timestamp,
}

/// A place where what a host told does not go on from what it told before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainBreak {
    /// When it was noticed, by the collector's clock.
    pub at: Timestamp,
    /// The ring.
    pub epoch: Epoch,
    /// From which event on.
    pub seq: Seq,
    /// What was noticed.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_depends_on_everything_before_it() {
        let host = HostId::from_bytes([1; 16]);
        let nothing = Head::of_nothing(host, Epoch(1));
        assert_ne!(nothing, Head::of_nothing(host, Epoch(2)));
        assert_ne!(nothing, Head::of_nothing(HostId::from_bytes([2; 16]), Epoch(1)));
        let frame = Frame { first_seq: Seq(1), count: 2, payload: vec![3; 9] };
        let head = nothing.then(&frame);
        assert_eq!(head, nothing.then(&frame.clone()));
        for other in [
            Frame { first_seq: Seq(2), ..frame.clone() },
            Frame { count: 3, ..frame.clone() },
            Frame { payload: vec![3; 8], ..frame.clone() },
        ] {
            assert_ne!(head, nothing.then(&other));
        }
        assert_ne!(head, head.then(&frame));
        assert_ne!(head.then(&frame), nothing.then(&frame));
    }
}
