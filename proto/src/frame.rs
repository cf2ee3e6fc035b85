//! Frames: records packed together, as a ring keeps them and as they travel. Pure: bytes in, bytes out.
//!
//! Records of one length have their fields in the same places, and most fields hardly change from one record to the
//! next. So records are turned into columns, the first byte of all records of a length, then the second of all, before
//! they are compressed: what does not change costs nothing then, and what is the same in two fields costs once. What
//! the bytes mean is not looked at.

use std::cell::RefCell;

use crate::id::Seq;

/// A frame has at most so many records.
pub const RECORDS_MAX: usize = 1 << 16;
/// The records of a frame have at most so many bytes together, unpacked. A reader sets aside no more.
pub const UNPACKED_BYTES_MAX: usize = 2 << 20;
/// Packing adds at most so much to records that cannot be compressed.
pub const fn packed_bytes_max(unpacked_bytes: usize, records: usize) -> usize {
    // Marks are at most one in eight bytes.
    let columns = unpacked_bytes + unpacked_bytes / MARKED_FROM + records * LENGTH_BYTES_MAX;
    // As `ZSTD_compressBound` has it.
    columns + columns / 256 + 64 + PAYLOAD_HEADER_BYTES
}

/// Layout, length of the columns.
const PAYLOAD_HEADER_BYTES: usize = 1 + 4;
/// The only layout so far.
const COLUMNS: u8 = 1;
/// Columns of so many bytes are marked, if they are told by their differences.
const MARKED_FROM: usize = 8;
const DIFFERENCES: u8 = 1;
/// Rows that are turned into columns together.
const ROWS_TURNED: usize = 16;
/// A length is a varint of at most so many bytes.
const LENGTH_BYTES_MAX: usize = 4;
/// Faster levels save no time here, and slower ones little room.
const LEVEL: i32 = 1;

thread_local! {
    /// To make one costs as much as to unpack a frame.
    static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> =
        RefCell::new(zstd::bulk::Decompressor::new().expect("there is memory for a context"));
}

/// Some records whose seqs follow on each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The seq of the first.
    pub first_seq: Seq,
    /// How many there are; at least one.
    pub count: u32,
    /// The records, packed. Integers are little-endian.
    ///
    /// ```text
    /// 0   1  layout, 1
    /// 1   4  bytes of the columns
    /// 5      the columns, as one Zstandard frame (RFC 8878)
    /// ```
    ///
    /// The columns: the length of each record (varint, LEB128), in order; then, for each length that occurs, from the
    /// shortest on, the first byte of each record of that length, in order; then the second of each; and so on. Of a length
    /// that at least 8 records have, each of these columns stands behind a byte: 0, or 1 if each byte but the first is told
    /// by how much it is more than the one before it (modulo 256).
    pub payload: Vec<u8>,
}

impl Frame {
    /// The position after its last record.
    pub const fn end_seq(&self) -> Seq {
        Seq(self.first_seq.0.saturating_add(self.count as u64))
    }

    /// What its records take in memory, as it says itself.
    pub fn unpacked_bytes(&self) -> usize {
        unpacked_bytes(&self.payload)
    }

    /// Its records.
    ///
    /// # Errors
    /// When the payload is none, or goes beyond a bound.
    pub fn unpack(&self) -> Result<Records, FrameError> {
        Ok(self.columns()?.records())
    }

    /// Its records as they are packed, to look at a few bytes of each.
    ///
    /// # Errors
    /// When the payload is none, or goes beyond a bound.
    pub fn columns(&self) -> Result<Columns, FrameError> {
        let Self { payload, count, .. } = self;
        let count = usize::try_from(*count).unwrap_or(usize::MAX);
        let (&layout, _) = payload.split_first().ok_or(FrameError::Cut)?;
        if layout != COLUMNS {
            return Err(FrameError::Layout(layout));
        }
        let compressed = payload.get(PAYLOAD_HEADER_BYTES..).ok_or(FrameError::Cut)?;
        let columns_bytes = self.unpacked_bytes();
        if count == 0 || count > RECORDS_MAX || columns_bytes > UNPACKED_BYTES_MAX {
            return Err(FrameError::Bounds { count, bytes: columns_bytes });
        }
        let columns = DECOMPRESSOR
            .with_borrow_mut(|decompressor| decompressor.decompress(compressed, columns_bytes))
            .map_err(|_| FrameError::Compression)?;
        if columns.len() != columns_bytes {
            return Err(FrameError::Compression);
        }
        Columns::of(columns, count)
    }
}

/// What the records of a frame with this payload take in memory, as it says itself.
pub fn unpacked_bytes(payload: &[u8]) -> usize {
    payload
        .get(1..PAYLOAD_HEADER_BYTES)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| usize::try_from(u32::from_le_bytes(*bytes)).unwrap_or(usize::MAX))
}

/// The records of a frame, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    bytes: Vec<u8>,
    /// Where each record ends in `bytes`.
    ends: Vec<u32>,
}

impl Records {
    /// One after another.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let start = |at: usize| at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.ends.iter().enumerate().map(move |(at, &end)| &self.bytes[start(at)..end as usize])
    }
}

/// The records of a frame in columns: what a record says can be looked at without putting all of it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    bytes: Vec<u8>,
    rows: Vec<Place>,
}

/// Where a record's bytes are: the first at `first`, and each other so many after the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    length: u32,
    first: u32,
    step: u32,
}

/// The records of one length.
struct Group {
    length: u32,
    count: usize,
    /// Where the first byte of the next of them is.
    next: usize,
    step: usize,
}

impl Columns {
    fn of(mut bytes: Vec<u8>, count: usize) -> Result<Self, FrameError> {
        let mut rest = bytes.as_slice();
        let mut rows = Vec::with_capacity(count);
        let mut left = bytes.len();
        for _ in 0..count {
            let length = varint(&mut rest).ok_or(FrameError::Columns)?;
            left = left.checked_sub(length).ok_or(FrameError::Columns)?;
            rows.push(Place { length: length as u32, first: 0, step: 0 });
        }
        let mut start = bytes.len() - rest.len();
        // Few lengths occur, so that counting is faster than sorting.
        let mut groups: Vec<Group> = Vec::new();
        for row in &rows {
            match groups.binary_search_by_key(&row.length, |group| group.length) {
                Ok(at) => groups[at].count += 1,
                Err(at) => groups.insert(at, Group { length: row.length, count: 1, next: 0, step: 0 }),
            }
        }
        for group in groups.iter_mut().filter(|group| group.length > 0) {
            let mark_bytes = usize::from(group.count >= MARKED_FROM);
            let step = mark_bytes + group.count;
            let end = start + group.length as usize * step;
            (group.next, group.step) = (start + mark_bytes, step);
            let columns = bytes.get_mut(start..end).ok_or(FrameError::Columns)?;
            if mark_bytes > 0 {
                for column in columns.chunks_exact_mut(step) {
                    match column.split_at_mut(mark_bytes) {
                        ([0], _) => {}
                        ([DIFFERENCES], column) => add_up(column),
                        _ => return Err(FrameError::Columns),
                    }
                }
            }
            start = end;
        }
        if start != bytes.len() {
            return Err(FrameError::Columns);
        }
        for row in &mut rows {
            if let Ok(at) = groups.binary_search_by_key(&row.length, |group| group.length) {
                let group = &mut groups[at];
                (row.first, row.step) = (group.next as u32, group.step as u32);
                group.next += 1;
            }
        }
        Ok(Self { bytes, rows })
    }

    /// One record after another.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|place| Row { bytes: &self.bytes, place: *place })
    }

    /// All of them, put together.
    pub fn records(&self) -> Records {
        let total: usize = self.rows.iter().map(|place| place.length as usize).sum();
        let mut bytes = Vec::with_capacity(total);
        let mut ends = Vec::with_capacity(self.rows.len());
        for row in self.rows() {
            row.append_to(&mut bytes);
            ends.push(bytes.len() as u32);
        }
        Records { bytes, ends }
    }
}

/// A record in columns.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    bytes: &'a [u8],
    place: Place,
}

impl Row<'_> {
    /// Its length.
    pub const fn len(&self) -> usize {
        self.place.length as usize
    }

    /// Whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.place.length == 0
    }

    /// Its byte at `at`; none beyond its end.
    pub fn get(&self, at: usize) -> Option<u8> {
        let Place { length, first, step } = self.place;
        (at < length as usize).then(|| self.bytes[first as usize + at * step as usize])
    }

    /// Puts it together at the end of `bytes`.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        let Place { length, first, step } = self.place;
        if length > 0 {
            bytes.extend(self.bytes[first as usize..].iter().step_by(step as usize).take(length as usize));
        }
    }
}

/// Packs records. Kept, so that its memory is used again.
pub struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    columns: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Default for Packer {
    fn default() -> Self {
        let compressor = zstd::bulk::Compressor::new(LEVEL).expect("the level is one of Zstandard's");
        Self { compressor, columns: Vec::new() }
    }
}

impl Packer {
    /// These records as the payload of a frame.
    ///
    /// # Panics
    /// When they go beyond [`RECORDS_MAX`] or [`UNPACKED_BYTES_MAX`].
    pub fn pack(&mut self, records: &[&[u8]]) -> Vec<u8> {
        self.columns.clear();
        columns(records, &mut self.columns);
        let columns_bytes = self.columns.len();
        assert!(!records.is_empty() && records.len() <= RECORDS_MAX && columns_bytes <= UNPACKED_BYTES_MAX);
        let mut payload = vec![0; PAYLOAD_HEADER_BYTES + zstd::zstd_safe::compress_bound(columns_bytes)];
        payload[0] = COLUMNS;
        payload[1..PAYLOAD_HEADER_BYTES].copy_from_slice(&(columns_bytes as u32).to_le_bytes());
        let room = &mut payload[PAYLOAD_HEADER_BYTES..];
        let written = self.compressor.compress_to_buffer(&self.columns, room);
        let written = written.expect("there is room, and memory");
        payload.truncate(PAYLOAD_HEADER_BYTES + written);
        payload.shrink_to_fit();
        payload
    }
}

fn columns(records: &[&[u8]], columns: &mut Vec<u8>) {
    for record in records {
        put_varint(columns, record.len());
    }
    let mut sorted = records.to_vec();
    sorted.sort_by_key(|record| record.len());
    for rows in sorted.chunk_by(|one, other| one.len() == other.len()).filter(|rows| !rows[0].is_empty()) {
        let (length, count) = (rows[0].len(), rows.len());
        let mark_bytes = usize::from(count >= MARKED_FROM);
        let (start, step) = (columns.len(), mark_bytes + count);
        columns.resize(start + length * step, 0);
        let columns = &mut columns[start..];
        // A few rows at a time, so that both what is read and what is written stays near.
        for (nth, rows) in rows.chunks(ROWS_TURNED).enumerate() {
            let from = mark_bytes + nth * ROWS_TURNED;
            for (at, column) in columns.chunks_exact_mut(step).enumerate() {
                for (place, row) in column[from..].iter_mut().zip(rows) {
                    *place = row[at];
                }
            }
        }
        if mark_bytes > 0 {
            columns.chunks_exact_mut(step).for_each(|column| {
                let (mark, column) = column.split_at_mut(mark_bytes);
                if counts_up(column) {
                    mark[0] = DIFFERENCES;
                    differ(column);
                }
            });
        }
    }
}

/// Whether a column is told better by differences: what counts up has the same difference again and again. By how it begins,
/// since looking at all of it costs as much as all else.
fn counts_up(column: &[u8]) -> bool {
    const LOOKED_AT: usize = 48;
    let column = &column[..column.len().min(LOOKED_AT)];
    let same = column.windows(2).filter(|pair| pair[0] == pair[1]).count();
    let steady = column
        .windows(3)
        .filter(|three| three[1].wrapping_sub(three[0]) == three[2].wrapping_sub(three[1]))
        .count();
    steady > same + column.len() / 8
}

fn differ(column: &mut [u8]) {
    let mut before = 0;
    for byte in column {
        (*byte, before) = (byte.wrapping_sub(before), *byte);
    }
}

fn add_up(column: &mut [u8]) {
    let mut before = 0_u8;
    for byte in column {
        *byte = byte.wrapping_add(before);
        before = *byte;
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in (0..7 * LENGTH_BYTES_MAX).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends too early.
    #[error("a frame ends too early")]
    Cut,
    /// It was packed by a newer version.
    #[error("a frame is packed in the layout {0}, and only {COLUMNS} is known: upgrade")]
    Layout(u8),
    /// It claims to be empty, or larger than any frame.
    #[error(
        "a frame claims {count} records of {bytes} bytes: it may have 1 to {RECORDS_MAX} of {UNPACKED_BYTES_MAX}"
    )]
    Bounds {
        /// How many records it claims.
        count: usize,
        /// How many bytes.
        bytes: usize,
    },
    /// It cannot be decompressed to what it claims.
    #[error("a frame cannot be decompressed")]
    Compression,
    /// What was compressed is no records.
    #[error("a frame does not hold the records that it claims")]
    Columns,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(records: &[Vec<u8>]) -> Frame {
        let records: Vec<_> = records.iter().map(Vec::as_slice).collect();
        let payload = Packer::default().pack(&records);
        Frame { first_seq: Seq(1), count: records.len() as u32, payload }
    }

    /// A payload of these columns.
    fn payload(columns: &[u8]) -> Vec<u8> {
        let mut payload = vec![COLUMNS];
        payload.extend((columns.len() as u32).to_le_bytes());
        payload.extend(zstd::bulk::compress(columns, LEVEL).unwrap());
        payload
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 1..40)) {
            let frame = packed(&records);
            let bytes: usize = records.iter().map(Vec::len).sum();
            prop_assert!(frame.payload.len() <= packed_bytes_max(bytes, records.len()));
            let unpacked = frame.unpack().unwrap();
            prop_assert_eq!(unpacked.iter().collect::<Vec<_>>(), records);
        }

        #[test]
        fn what_counts_up_comes_out(
            from: u32, by in 0..1_000_u32, count in 1..100_u32, noise in prop::collection::vec(any::<u8>(), 100)) {
            let record = |at: u32| [&(from.wrapping_add(at * by)).to_le_bytes()[..], &[noise[at as usize], 7]].concat();
            let records: Vec<Vec<u8>> = (0..count).map(record).collect();
            let unpacked = packed(&records).unpack().unwrap();
            prop_assert_eq!(unpacked.iter().collect::<Vec<_>>(), records);
        }

        #[test]
        fn any_columns_are_unpacked_or_refused(
            columns in prop::collection::vec(0..200_u8, 0..60), count in 0..9_u32) {
            let frame = Frame { first_seq: Seq(1), count, payload: payload(&columns) };
            if let Ok(records) = frame.unpack() {
                prop_assert_eq!(records.iter().len(), count as usize);
                let again: Vec<_> = records.iter().map(<[u8]>::to_vec).collect();
                prop_assert!(packed(&again).unpack() == Ok(records));
            }
        }

        #[test]
        fn any_payload_is_unpacked_or_refused(payload in prop::collection::vec(any::<u8>(), 0..60), count: u32) {
            let _ = Frame { first_seq: Seq(1), count, payload }.unpack();
        }
    }

    #[test]
    fn large_records_and_many_are_packed() {
        let large = packed(&[vec![7; 1 << 20], vec![], vec![8; 70_000]]);
        assert_eq!(large.unpack().unwrap().iter().map(<[u8]>::len).collect::<Vec<_>>(), [1 << 20, 0, 70_000]);
        let counting: Vec<Vec<u8>> = (0..1000_u32).map(|at| at.to_le_bytes().to_vec()).collect();
        let counting = packed(&counting);
        assert!(
            counting.payload.len() < 100,
            "what counts up costs next to nothing: {}",
            counting.payload.len()
        );
        let many = packed(&vec![vec![1, 2]; RECORDS_MAX]);
        assert!(many.payload.len() < 100, "what does not change costs nothing");
        assert_eq!(many.unpack().unwrap().iter().len(), RECORDS_MAX);
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let good = packed(&[vec![1; 30], vec![2; 30]]);
        let check = |payload: Vec<u8>, count: u32, want: FrameError| {
            assert_eq!(Frame { first_seq: Seq(1), count, payload }.unpack(), Err(want));
        };
        check(vec![], 1, FrameError::Cut);
        check(good.payload[..4].to_vec(), 2, FrameError::Cut);
        check([&[9], &good.payload[1..]].concat(), 2, FrameError::Layout(9));
        check(good.payload.clone(), 0, FrameError::Bounds { count: 0, bytes: 62 });
        check(good.payload.clone(), 1, FrameError::Columns);
        check(good.payload.clone(), 3, FrameError::Columns);
        for cut in PAYLOAD_HEADER_BYTES..good.payload.len() {
            check(good.payload[..cut].to_vec(), 2, FrameError::Compression);
        }
        // What would become very large is not unpacked to see it.
        let bomb = payload(&vec![0; 50 << 20]);
        assert!(bomb.len() < 10_000);
        check(bomb.clone(), 2, FrameError::Bounds { count: 2, bytes: 50 << 20 });
        check([&[1, 0xff, 0, 0, 0], &bomb[5..]].concat(), 2, FrameError::Compression);
        check(payload(&[0xff, 0xff, 0xff, 0x7f]), 1, FrameError::Columns);
        check(payload(&[0x80, 0x80, 0x80, 0x80, 0]), 1, FrameError::Columns);
        check(payload(&[2, 1]), 1, FrameError::Columns);
    }
}
