//! The ring: a bounded log on disk of opaque records, each with its seq, two times and what it can be found by.
//!
//! A directory of segments, which are files of frames, and a checkpoint. Records are appended to the newest segment; when
//! the budget is used up, the oldest segment is removed whole; what the writer sums up of all
//! records is kept beside them. A segment into which nothing more comes gets a seal, which
//! tells what is in it. There is one writer, [`Ring`], and any number of [`Reader`]s, which see what it has wholly written
//! through a [`View`].
//!
//! It keeps these promises:
//! - A seq names one record: what was acknowledged, or was safe on disk, is never numbered again after a restart. What
//!   was not yet safe when the power was cut may be, see [`View::durable_next_seq`].
//! - A reader gets every record as it was written, or a hole in its place: nothing is left out silently, and no damage
//!   makes one record into another.
//! - After the program is killed, everything appended is there. After a power cut, everything before the last
//!   [`Ring::sync`] is; only up to when it was recorded may be known a little less well. A torn tail is cut off and
//!   reported.
//! - Every frame carries the head of a chain of hashes over all frames before it, so that whoever knows a head
//!   ([`Anchor`](alibi_proto::chain::Anchor)) sees whether the past was changed since, see [`View::compare`].
//! - What is not a ring's own, or was written by a newer version, is refused and left as it is.
//!
//! It must never read a clock, know what is in a record, or hold more of the ring in memory than a frame per reader.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::{
    id::Seq,
    time::{Moment, Timestamp},
};

mod checkpoint;
mod eviction;
mod files;
mod filter;
mod frame;
mod key;
mod places;
mod reader;
mod recovery;
mod seal;
mod segment;
mod summary;
#[cfg(test)]
mod tests;
mod view;
mod writer;

#[cfg(test)]
pub(crate) use files::fault;
pub use key::Key;
pub use reader::{ChainedFrame, Item, Read, Reader, Selection};
pub use view::{Standing, View};
pub use writer::Ring;

/// What the ring keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub seq: Seq,
    /// The earliest instant that it speaks of.
    pub speaks_from: Timestamp,
    /// Up to when the recorder had seen as it recorded this; nothing is spoken of at or after that. Never less than that of
    /// the record before: where the clock was set back, what was seen before that counts.
    pub recorded: Timestamp,
    /// What it says.
    pub bytes: Vec<u8>,
    /// What it can be found by.
    pub labels: Labels,
}

/// What a record can be found by. What the kinds and keys mean, only the writer and who asks know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// A bit for each kind of record that this one is.
    pub kinds: u32,
    /// What it is about.
    pub keys: Vec<Key>,
    /// Who looks for what was before this does not look for it.
    pub from: Timestamp,
}

/// The labels of a record, from its bytes; none if they cannot be told.
pub type Labeller = fn(&[u8]) -> Option<Labels>;

/// The limits of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// All segments together have at most so many bytes, the room that is set aside for them included; the checkpoint has
    /// 8 KiB besides, and the summary at most 2 MiB.
    pub bytes_max: u64,
    /// A segment has at most so many.
    pub segment_bytes: u64,
    /// A record has at most so many.
    pub record_bytes_max: usize,
}

/// What was found when a ring was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was no ring: it was made.
    pub is_new: bool,
    /// Whether recording had been ended in order, by [`Ring::mark_closed`].
    pub was_closed_cleanly: bool,
    /// Up to when everything was recorded, as the last checkpoint says. What was recorded after it may be there, too.
    /// After a power cut, up to [`Recovery::UNSAFE_MAX`] more may have been recorded and told.
    pub recorded_until: Option<Timestamp>,
    /// Both clocks at one instant up to which was recorded, in the boot that is named below. None if that is not known.
    pub recorded_at: Option<Moment>,
    /// The boot of the host in which it was written last, if it was named then.
    pub boot: Option<u64>,
    /// Bytes after the last good frame, which were cut off: an append that was never finished, or damage.
    pub cut_bytes: u64,
    /// How many records were safe on disk after the last good one and are not there any more: damage. Readers get a hole.
    pub lost_at_end: u64,
    /// The checkpoint was gone or unreadable: what was acknowledged, and until when was recorded, is not known.
    pub checkpoint_lost: bool,
}

impl Recovery {
    /// By so much may a power cut set back [`Recovery::recorded_until`], if nothing was recorded in that time.
    pub const UNSAFE_MAX: Duration = checkpoint::UNSAFE_MAX;
}

/// What an append did besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// A new segment was begun.
    pub started_segment: bool,
    /// How many events that nobody had acknowledged were removed to make room.
    pub evicted_unacknowledged: u64,
}

/// The times of some records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// The earliest instant that they speak of.
    speaks_from: Timestamp,
    /// When the first of them was recorded.
    recorded_from: Timestamp,
    /// When the last was; they speak of no later instant.
    recorded_to: Timestamp,
}

/// Beyond that, no ring ever counts: what claims to be there is damage.
const SEQ_MAX: Seq = Seq(i64::MAX as u64);

/// Records that were evicted before anybody acknowledged them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: Seq,
    last: Seq,
    /// The earliest instant that they spoke of.
    from: Timestamp,
    /// The latest.
    to: Timestamp,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, segment_bytes: 2 << 20, record_bytes_max: 1 << 20 }
    }
}

impl Options {
    /// A larger segment would take too much memory and time whenever it is read as a whole.
    const SEGMENT_BYTES_MAX: u64 = 1 << 30;

    /// A small ring needs small segments: what is evicted with one is a small part of the whole.
    const SEGMENTS_WANTED: u64 = 16;
    /// A payload of no more than this may have no room for a record.
    const PAYLOAD_BYTES_MIN: u64 = 128;
    /// A process with all the arguments that are kept of it fits into such a segment.
    const SEGMENT_BYTES_MIN: u64 = 256 << 10;

    /// The limits of a ring of so many bytes.
    pub fn within(bytes_max: u64) -> Self {
        let default = Self::default();
        let segment_bytes =
            (bytes_max / Self::SEGMENTS_WANTED).clamp(Self::SEGMENT_BYTES_MIN, default.segment_bytes);
        Self { bytes_max, segment_bytes, ..default }
    }

    /// Whether a ring can keep to these limits.
    ///
    /// # Errors
    /// When they make no sense.
    pub fn check(&self) -> Result<(), RingError> {
        let Self { bytes_max, segment_bytes, record_bytes_max } = *self;
        let bare_bytes = (segment::HEADER_BYTES + seal::bytes_max(segment_bytes) + frame::HEADER_BYTES)
            as u64
            + Self::PAYLOAD_BYTES_MIN;
        let reason = if segment_bytes <= bare_bytes {
            format!(
                "a segment of {segment_bytes} bytes has no room for a record: it takes more than {bare_bytes}"
            )
        } else if segment_bytes > Self::SEGMENT_BYTES_MAX {
            format!("a segment of {segment_bytes} bytes is larger than {}", Self::SEGMENT_BYTES_MAX)
        } else if bytes_max / 2 < segment_bytes {
            format!("{bytes_max} bytes have no room for two segments of {segment_bytes}")
        } else if record_bytes_max == 0 {
            "records of 0 bytes say nothing".into()
        } else {
            return Ok(());
        };
        Err(RingError::Limits { reason })
    }

    /// What frames can take of a segment.
    fn frames_bytes_max(&self) -> u64 {
        let around = segment::HEADER_BYTES + seal::bytes_max(self.segment_bytes);
        self.segment_bytes.saturating_sub(around as u64)
    }

    /// The largest payload of a frame that is alone in its segment.
    fn payload_bytes_max(&self) -> usize {
        usize::try_from(self.frames_bytes_max()).unwrap_or(usize::MAX).saturating_sub(frame::HEADER_BYTES)
    }

    /// The largest record that is taken.
    fn record_bytes_limit(&self) -> usize {
        self.record_bytes_max.min(frame::record_bytes_max(self.payload_bytes_max()))
    }
}

impl Times {
    fn of(record: &Record) -> Self {
        Self {
            speaks_from: record.speaks_from.min(record.recorded),
            recorded_from: record.recorded,
            recorded_to: record.recorded,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            speaks_from: self.speaks_from.min(other.speaks_from),
            recorded_from: self.recorded_from.min(other.recorded_from),
            recorded_to: self.recorded_to.max(other.recorded_to),
        }
    }
}

/// A ring that cannot be used so.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The limits make no sense.
    #[error("the ring cannot keep to its limits: {reason}")]
    Limits {
        /// What is wrong with them.
        reason: String,
    },
    /// There is none.
    #[error("no ring in {}: nothing has been recorded there yet", dir.display())]
    Absent {
        /// Where it should be.
        dir: PathBuf,
    },
    /// A file that is not this ring's.
    #[error("{} does not belong to the ring: move it elsewhere", path.display())]
    Foreign {
        /// The file, which is left as it is.
        path: PathBuf,
    },
    /// A file that was written by a newer version.
    #[error("{} was written by a newer version (format {written}, this one knows up to {known}): upgrade", path.display())]
    Newer {
        /// The file, which is left as it is.
        path: PathBuf,
        /// Its format.
        written: u16,
        /// The newest known here.
        known: u16,
    },
    /// It was recorded by another host.
    #[error("the ring in {} was recorded by another host: move it elsewhere, and a new one will be made", dir.display())]
    OtherHost {
        /// Where it is, left as it is.
        dir: PathBuf,
    },
    /// Damage has left nothing that says which ring it is.
    #[error("the ring in {} is damaged beyond recognition: move it elsewhere, and a new one will be made", dir.display())]
    Unidentifiable {
        /// Where it is, left as it is.
        dir: PathBuf,
    },
    /// A record that does not follow on the one before it.
    #[error("record {} is out of order: {} comes next", seq.0, expected.0)]
    OutOfOrder {
        /// Its position.
        seq: Seq,
        /// The one that comes next.
        expected: Seq,
    },
    /// A record that is too large.
    #[error("record {} has {size_bytes} bytes, more than the {limit_bytes} that a record may have", seq.0)]
    RecordTooLarge {
        /// Its position.
        seq: Seq,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A summary that is too large.
    #[error("a summary of {size_bytes} bytes is larger than {limit_bytes}: sum up more coarsely")]
    SummaryTooLarge {
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Records that are too large together.
    #[error(
        "{size_bytes} bytes take {segments} new segments, and there can be {segments_max}: append fewer at a time"
    )]
    AppendTooLarge {
        /// Their size, as written.
        size_bytes: u64,
        /// How many segments they take.
        segments: u64,
        /// How many can be made new at once.
        segments_max: u64,
    },
    /// An acknowledgement of what was never written.
    #[error("record {} cannot be acknowledged: the next to be written is {}", seq.0, next_seq.0)]
    NotWritten {
        /// What was acknowledged.
        seq: Seq,
        /// The position of the next record.
        next_seq: Seq,
    },
    /// A reader that is ahead of the ring.
    #[error("cannot read from record {}: the next to be written is {}", from.0, next_seq.0)]
    Ahead {
        /// Where it wants to read.
        from: Seq,
        /// The position of the next record.
        next_seq: Seq,
    },
    /// The system says no.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl RingError {
    /// Whether it is for want of room on the disk.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

fn io_error(path: &Path, source: io::Error) -> RingError {
    RingError::Io { path: path.to_owned(), source }
}
