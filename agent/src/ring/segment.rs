//! Segments: files of frames, each named by the seq that it begins with.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use alibi_proto::{
    chain::Head,
    frame::Frame,
    id::{Epoch, HostId, Seq},
    time::Timestamp,
};

use super::{
    RingError, SEQ_MAX, Times, files,
    frame::{self, FrameHeader, head_at, u32_at, u64_at},
    seal::{self, Seal},
};
use crate::sys;

/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 88;

const MAGIC: [u8; 8] = *b"ALIBIRNG";
const FORMAT: u16 = 1;
const SUFFIX: &str = ".segment";
/// What a disk cannot read goes on for so long, at least.
const SECTOR_BYTES: u64 = 4096;
/// What is read at once, at least.
const CHUNK_BYTES: u64 = 64 * 1024;

/// The file of the segment that begins with `first_seq`.
pub(super) fn path(dir: &Path, first_seq: Seq) -> PathBuf {
    dir.join(format!("{:016x}{SUFFIX}", first_seq.0))
}

/// The seq that a segment of this name begins with; none if it is not a segment's name.
pub(super) fn first_seq_of(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let seq = u64::from_str_radix(digits, 16).ok().map(Seq).filter(|seq| *seq <= SEQ_MAX)?;
    (plain && seq >= Seq::FIRST).then_some(seq)
}

/// The start of a segment. Integers are little-endian.
///
/// ```text
///  0   8  magic "ALIBIRNG"
///  8   2  format version, 1
/// 10   2  0
/// 12   4  CRC32C of bytes 0..12 and 16..88
/// 16  16  host
/// 32   8  epoch
/// 40   8  seq of the first record
/// 48   8  when the last record before it was recorded (in the first segment: the first record), in nanoseconds since the
///         Unix epoch
/// 56  32  head of the chain before the first record
/// 88      frames, and once nothing more comes into it, the seal
/// ```
///
/// Whatever else changes in a later format, magic and version stay, and a version that is not known is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) host: HostId,
    pub(super) epoch: Epoch,
    pub(super) first_seq: Seq,
    pub(super) created: Timestamp,
    pub(super) previous: Head,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..32].copy_from_slice(self.host.as_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_seq.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.created.as_nanos().to_le_bytes());
        bytes[56..88].copy_from_slice(self.previous.as_bytes());
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header of the segment at `path`; none if it is damaged, cannot be read or was never wholly written.
    ///
    /// # Errors
    /// When the file is not a segment, or was written by a newer version.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, RingError> {
        let error = |source| RingError::Io { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let mut file = File::open(path).map_err(error)?;
        match files::read_at(&mut file, 0, HEADER_BYTES as u64, &mut bytes) {
            Err(source) if sys::is_bad_medium(&source) => return Ok(None),
            read => read.map_err(error)?,
        }
        check_magic(path, &bytes, MAGIC, FORMAT)?;
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        if u32_at(bytes, 12) != checksum(bytes) {
            return Ok(None);
        }
        Ok(Some(Self {
            host: HostId::from_bytes(*bytes[16..].first_chunk().expect("the layout has a host there")),
            epoch: Epoch(u64_at(bytes, 32)),
            first_seq: Seq(u64_at(bytes, 40)),
            created: Timestamp::from_nanos(u64_at(bytes, 48)),
            previous: head_at(bytes, 56),
        }))
    }
}

/// The head of the chain before the segment at `path`; none if its header is damaged, or it was evicted just now.
///
/// # Errors
/// As [`SegmentHeader::read`].
pub(super) fn previous_head(path: &Path) -> Result<Option<Head>, RingError> {
    match SegmentHeader::read(path) {
        Err(RingError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        header => Ok(header?.map(|header| header.previous)),
    }
}

/// The seal of the segment at `path`, if it has one that holds and can be read, and where it begins. One that tells of no
/// record that can be there is another segment's.
pub(super) fn read_seal(path: &Path, epoch: Epoch) -> io::Result<Option<(Seal, u64)>> {
    let first_seq = path.file_name().and_then(|name| first_seq_of(name.to_str()?));
    match try_read_seal(path, epoch) {
        Err(source) if sys::is_bad_medium(&source) => Ok(None),
        seal => Ok(seal?.filter(|(seal, _)| Some(seal.last_seq) >= first_seq)),
    }
}

fn try_read_seal(path: &Path, epoch: Epoch) -> io::Result<Option<(Seal, u64)>> {
    let mut file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut read = |bytes: usize| -> io::Result<Option<Vec<u8>>> {
        let Some(from) = file_bytes.checked_sub(bytes as u64) else { return Ok(None) };
        let mut content = Vec::with_capacity(bytes);
        files::read_at(&mut file, from, bytes as u64, &mut content)?;
        Ok(Some(content))
    };
    let footer = read(seal::FOOTER_BYTES)?;
    let Some(seal_bytes) = footer.as_deref().and_then(Seal::bytes_by_footer) else { return Ok(None) };
    let seal = read(seal_bytes)?.and_then(|bytes| Seal::decode(epoch, &bytes));
    Ok(seal.map(|seal| (seal, file_bytes - seal_bytes as u64)))
}

/// Refuses bytes that begin with another magic, or with a newer version. Bytes that end too early may be ours, and zeros
/// are what a file system leaves of bytes that it had no time to write.
pub(super) fn check_magic(path: &Path, bytes: &[u8], magic: [u8; 8], format: u16) -> Result<(), RingError> {
    let known = bytes.len().min(magic.len());
    if bytes[..known] != magic[..known] && bytes.iter().any(|&byte| byte != 0) {
        return Err(RingError::Foreign { path: path.to_owned() });
    }
    let Some(&[low, high]) = bytes.get(8..10).and_then(|version| version.first_chunk()) else {
        return Ok(());
    };
    let written = u16::from_le_bytes([low, high]);
    if written > format {
        return Err(RingError::Newer { path: path.to_owned(), written, known: format });
    }
    Ok(())
}

fn checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

/// A segment that is read frame by frame. Never keeps more in memory than a chunk and a frame that is there.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    epoch: Epoch,
    /// Where the next frame begins.
    offset: u64,
    /// It begins with no seq before this one.
    next_seq: Seq,
    /// What the file holds from `window_offset` on.
    window: Vec<u8>,
    window_offset: u64,
    /// The last frame was not wanted, so that no more is read at once than it takes to see the next one's header.
    is_passing: bool,
}

/// What comes next in a segment.
#[derive(Debug)]
pub(super) enum Found {
    /// A frame.
    Frame(FrameHeader, Frame),
    /// A frame that is not wanted; its payload was not looked at.
    Passed(FrameHeader),
    /// Bytes that are no frame, up to the next that may be one; what its header says, if that holds.
    Damage(Option<FrameHeader>),
    /// Nothing.
    End,
}

impl Frames {
    /// Those of the segment that begins with `first_seq`.
    pub(super) fn open(path: &Path, epoch: Epoch, first_seq: Seq) -> io::Result<Self> {
        let (file, offset) = (File::open(path)?, HEADER_BYTES as u64);
        let (window, window_offset) = (Vec::new(), offset);
        Ok(Self { file, epoch, offset, next_seq: first_seq, window, window_offset, is_passing: false })
    }

    /// Where the next frame begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What comes next before byte `end` of the file, up to which it does not change any more, and before `end_seq`. A frame
    /// of other seqs than those that can be there is damage, whatever its checksums say, and so is what the disk cannot read.
    pub(super) fn next(
        &mut self,
        end: u64,
        end_seq: Seq,
        wanted: impl FnOnce(&FrameHeader) -> bool,
    ) -> io::Result<Found> {
        let before = self.offset;
        match self.try_next(end, end_seq, wanted) {
            Err(source) if sys::is_bad_medium(&source) => {
                self.window.clear();
                self.offset =
                    (self.offset.max(before) / SECTOR_BYTES + 1).saturating_mul(SECTOR_BYTES).min(end);
                self.window_offset = self.offset;
                Ok(Found::Damage(None))
            }
            found => found,
        }
    }

    fn try_next(
        &mut self,
        end: u64,
        end_seq: Seq,
        wanted: impl FnOnce(&FrameHeader) -> bool,
    ) -> io::Result<Found> {
        if self.offset >= end {
            return Ok(Found::End);
        }
        let epoch = self.epoch;
        let Some(header) = FrameHeader::decode(epoch, self.peek(frame::HEADER_BYTES as u64, end)?) else {
            self.find_header(end)?;
            return Ok(Found::Damage(None));
        };
        let frame_end = self.offset.saturating_add(header.frame_bytes());
        if frame_end > end {
            self.offset = end;
            return Ok(Found::Damage(Some(header)));
        }
        if header.first_seq < self.next_seq || header.end_seq() > end_seq {
            self.offset = frame_end;
            return Ok(Found::Damage(None));
        }
        self.is_passing = !wanted(&header);
        if self.is_passing {
            (self.offset, self.next_seq) = (frame_end, header.end_seq());
            return Ok(Found::Passed(header));
        }
        let frame_bytes = usize::try_from(header.frame_bytes()).unwrap_or(usize::MAX);
        let bytes = self.peek(header.frame_bytes(), end)?;
        let frame = bytes
            .get(frame::HEADER_BYTES..frame_bytes)
            .and_then(|payload| header.with_payload(epoch, payload));
        self.offset = frame_end;
        // What a damaged frame claims keeps no other from being where it is.
        let Some(frame) = frame else { return Ok(Found::Damage(Some(header))) };
        self.next_seq = header.end_seq();
        Ok(Found::Frame(header, frame))
    }

    /// Goes to the next header that holds, or to the end.
    fn find_header(&mut self, end: u64) -> io::Result<()> {
        self.offset += 1;
        self.is_passing = false;
        loop {
            let epoch = self.epoch;
            let bytes = self.peek(frame::HEADER_BYTES as u64, end)?;
            if bytes.len() < frame::HEADER_BYTES {
                self.offset = end;
                return Ok(());
            }
            let Some(at) = frame::find_marker(bytes) else {
                // A marker may have begun in the last of these bytes.
                self.offset += (bytes.len() - frame::HEADER_BYTES + 1) as u64;
                continue;
            };
            let seen_whole = bytes.len() - at >= frame::HEADER_BYTES;
            let found = FrameHeader::decode(epoch, &bytes[at..]).is_some();
            self.offset += at as u64;
            if found {
                return Ok(());
            }
            // One seen only in part is looked at again, with what follows it.
            if seen_whole {
                self.offset += 1;
            }
        }
    }

    /// What comes at the offset: at least `bytes` bytes, unless the file, or `end`, comes first.
    fn peek(&mut self, bytes: u64, end: u64) -> io::Result<&[u8]> {
        let window_end = self.window_offset + self.window.len() as u64;
        let there = window_end.saturating_sub(self.offset);
        let left = end.saturating_sub(self.offset);
        if there < bytes.min(left) {
            let consumed = usize::try_from(self.offset - self.window_offset).unwrap_or(usize::MAX);
            self.window.drain(..consumed.min(self.window.len()));
            self.window_offset = self.offset;
            let at_once = if self.is_passing { 0 } else { CHUNK_BYTES };
            let from = self.offset + there;
            let [needed, more] =
                [bytes - there, (bytes - there).max(at_once)].map(|bytes| bytes.min(left - there));
            let known = self.window.len();
            match files::read_at(&mut self.file, from, more, &mut self.window) {
                // What is needed may be readable where what comes after it is not.
                Err(source) if more > needed && sys::is_bad_medium(&source) => {
                    self.window.truncate(known);
                    files::read_at(&mut self.file, from, needed, &mut self.window)?;
                }
                read => read?,
            }
        }
        let start = usize::try_from(self.offset - self.window_offset).unwrap_or(usize::MAX);
        Ok(self.window.get(start..).unwrap_or_default())
    }
}

/// What a look through a whole segment shows.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Where the last good frame ends; the header's end if there is none.
    pub(super) good_end: u64,
    /// The position after the last good record.
    pub(super) end_seq: Option<Seq>,
    /// The head of the chain there.
    pub(super) head: Option<Head>,
    /// What the good records speak of.
    pub(super) times: Option<Times>,
    /// Whether all records from the segment's first to `end_seq` are good.
    pub(super) whole: bool,
}

/// Looks through the first `end` bytes of the segment that begins with `first_seq`, and shows each frame before `end_seq`
/// that is good.
pub(super) fn scan(
    path: &Path,
    epoch: Epoch,
    first_seq: Seq,
    end: u64,
    end_seq: Seq,
    mut show: impl FnMut(&FrameHeader, &Frame),
) -> io::Result<Scan> {
    let mut frames = Frames::open(path, epoch, first_seq)?;
    let mut scan = Scan { good_end: end.min(HEADER_BYTES as u64), whole: true, ..Scan::default() };
    loop {
        match frames.next(end, end_seq, |_| true)? {
            Found::Frame(header, frame) => {
                show(&header, &frame);
                scan.whole &= header.first_seq == scan.end_seq.unwrap_or(first_seq);
                scan.good_end = frames.offset();
                scan.end_seq = Some(header.end_seq());
                scan.head = Some(header.head);
                scan.times = Some(scan.times.map_or(header.times, |times| times.and(header.times)));
            }
            Found::Passed(_) | Found::Damage(_) => {}
            Found::End => return Ok(scan),
        }
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::frame::Packer;

    use super::*;
    use crate::ring::{Labels, Record};

    #[test]
    fn a_name_says_where_a_segment_begins() {
        let path = path(Path::new("ring"), Seq(0x1f));
        assert_eq!(path, Path::new("ring/000000000000001f.segment"));
        assert_eq!(first_seq_of("000000000000001f.segment"), Some(Seq(0x1f)));
        for bad in [
            "1f.segment",
            "000000000000001F.segment",
            "+00000000000001f.segment",
            "0000000000000000.segment",
            "ffffffffffffffff.segment",
        ] {
            assert_eq!(first_seq_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_frame_is_found_again_wherever_it_begins() {
        let epoch = Epoch(5);
        let record = Record {
            seq: Seq(9),
            speaks_from: Timestamp::ZERO,
            recorded: Timestamp::ZERO,
            bytes: (0..50).collect(),
            labels: Labels::default(),
        };
        let head = Head::from_bytes([3; 32]);
        let frame = frame::encode(epoch, head, &[record], 1000, &mut Packer::default()).remove(0).bytes;
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("x");
        let chunk = CHUNK_BYTES as usize;
        // Debris before it: markers, starts of markers, nothing; its header across the end of what is read at once.
        for debris in [&frame[..4], &frame[..83], &[0_u8][..]] {
            for length in (1..200).chain(chunk - 90..chunk + 90) {
                let mut bytes = vec![0; HEADER_BYTES];
                bytes.extend(debris.iter().cycle().take(length));
                bytes.extend_from_slice(&frame);
                bytes.extend_from_slice(&frame[..60]);
                std::fs::write(&path, &bytes).unwrap();
                let mut frames = Frames::open(&path, epoch, Seq::FIRST).unwrap();
                let end = bytes.len() as u64;
                let mut found = Vec::new();
                loop {
                    match frames.next(end, SEQ_MAX, |_| true).unwrap() {
                        Found::Frame(header, _) => found.push(header.first_seq),
                        Found::End => break,
                        Found::Damage(_) | Found::Passed(_) => {}
                    }
                }
                assert_eq!(found, [Seq(9)], "{length} bytes before it");
            }
        }
    }
}
