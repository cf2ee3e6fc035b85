//! What the targets share: a ring on disk with bytes in it that are not its own, and what must hold of it all the same.
//!
//! Bytes at random rarely get past a checksum. So a target can have the checksums made right after the bytes were
//! changed: then what is behind them is met, as by somebody who changes a ring and knows its format.

#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use alibi_agent::ring::{
    ChainedFrame, Item, Key, Labels, Options, Read, Reader, Record, Ring, RingError, Selection, Standing,
    View,
};
use alibi_proto::{
    coverage::Hole,
    id::{Epoch, HostId, Seq},
    time::{Moment, Timestamp},
};

mod messages;
mod queries;

pub use messages::{payload, response, seed};
pub use queries::searched;

const HOST: HostId = HostId::from_bytes([0xa1; 16]);
const EPOCH: Epoch = Epoch(0xa11b1);
/// Room for some frames each, so that most of a change is about what lies between them.
const OPTIONS: Options = Options { bytes_max: 6 * 1000, segment_bytes: 1000, record_bytes_max: 300 };

const SEGMENT_HEADER_BYTES: usize = 88;
const FRAME_HEADER_BYTES: usize = 80;
const SEAL_BYTES: usize = 104;
const SEAL_FOOTER_BYTES: usize = 8;
const FRAME_MARKER: [u8; 4] = [0xa1, b'F', 0x0d, 0x0a];
const SEAL_MARKER: [u8; 4] = [0xa1, b'S', 0x0d, 0x0a];
/// The checkpoint has two places of this size; of each so much means something.
const SLOT_BYTES: usize = 4096;
const SLOT_CONTENT_BYTES: usize = 136;

/// The checksums are made right.
pub const FIX: u8 = 1;
/// There is no checkpoint.
pub const NO_CHECKPOINT: u8 = 2;
/// The header of the segment is not its own either.
pub const HEADER: u8 = 4;
/// Which of the three segments it is: this, and twice this.
pub const NTH: u8 = 8;

/// The files of a ring, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

fn record(seq: u64, salt: u8) -> Record {
    let bytes: Vec<u8> =
        (0..seq % 8 * 5).map(|at| at.wrapping_mul(at ^ seq) as u8).chain([salt, seq as u8]).collect();
    let recorded = Timestamp::from_secs(1_000_000 + seq % 1_000_000);
    let labels = label(&bytes).unwrap();
    Record { seq: Seq(seq), speaks_from: labels.from, recorded, bytes, labels }
}

/// By what a record can be found; of one without bytes that cannot be told.
fn label(bytes: &[u8]) -> Option<Labels> {
    let last = bytes.last()?;
    let from = Timestamp::from_secs(900_000);
    let key = if last.is_multiple_of(2) { Key::of_rare(1, &[*last]) } else { Key::of(1, &[*last]) };
    Some(Labels { kinds: 1 << (last % 3), keys: vec![key], from })
}

fn moment(secs: u64) -> Moment {
    Moment { wall: Timestamp::from_secs(secs), boot_ns: secs }
}

fn open(dir: &Path) -> Result<Ring, RingError> {
    Ring::open(dir, OPTIONS, HOST, EPOCH, label).map(|(ring, _)| ring)
}

/// A directory of this process alone, where `ALIBI_FUZZ_SCRATCH` says, and used again: libFuzzer ends without cleaning up.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let scratch = std::env::var_os("ALIBI_FUZZ_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = scratch.join(format!("alibi-fuzz-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    })
}

fn put(files: &Files) -> &'static Path {
    let dir = directory();
    for entry in fs::read_dir(dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    files.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
    dir
}

/// A ring of three segments, of which two are sealed.
pub fn sound() -> &'static Files {
    static SOUND: OnceLock<Files> = OnceLock::new();
    SOUND.get_or_init(|| {
        let dir = put(&Files::new());
        let mut ring = open(dir).unwrap();
        let mut segments = 0;
        while segments < 3 {
            let next = ring.next_seq().0;
            let fresh: Vec<Record> = (next..next + 1 + next % 3).map(|seq| record(seq, 0)).collect();
            segments += u32::from(ring.append(&fresh).unwrap().started_segment);
            ring.sync(moment(1_000_000 + next).wall, moment(1_000_000 + next)).unwrap();
        }
        let next = ring.next_seq().0;
        ring.append(&[record(next, 0)]).unwrap();
        ring.acknowledge(Seq(2)).unwrap();
        ring.sync(moment(2_000_000).wall, moment(2_000_000)).unwrap();
        drop(ring);
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let files =
            entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
        files.collect()
    })
}

/// The names of its segments, the oldest first.
pub fn segments() -> Vec<&'static str> {
    sound().keys().map(String::as_str).filter(|name| name.ends_with(".segment")).collect()
}

/// The sound ring with this in the place of one segment, or of all of it but its header. The first byte says how.
pub fn with_segment(data: &[u8]) -> Option<Files> {
    let (&how, bytes) = data.split_first()?;
    let mut files = sound().clone();
    if how & NO_CHECKPOINT != 0 {
        files.remove("checkpoint");
    }
    let name = segments()[usize::from(how / NTH) % 3];
    let segment = files.get_mut(name)?;
    let sound = segment.clone();
    segment.truncate(if how & HEADER != 0 { 0 } else { SEGMENT_HEADER_BYTES });
    segment.extend_from_slice(bytes);
    if how & FIX != 0 {
        fix_segment(segment, &sound);
    }
    Some(files)
}

/// The sound ring with this as its checkpoint: two places' content, or the whole file if checksums are not made right.
pub fn with_checkpoint(data: &[u8]) -> Option<Files> {
    let (&how, bytes) = data.split_first()?;
    let mut files = sound().clone();
    if how & FIX == 0 {
        files.insert("checkpoint".into(), bytes.to_vec());
        return Some(files);
    }
    let checkpoint = files.get_mut("checkpoint")?;
    let magic: Vec<u8> = checkpoint[..10].to_vec();
    let magic = if magic[0] == 0 { checkpoint[SLOT_BYTES..SLOT_BYTES + 10].to_vec() } else { magic };
    let mut file = vec![0; 2 * SLOT_BYTES];
    for (slot, content) in file.chunks_mut(SLOT_BYTES).zip(bytes.chunks(SLOT_CONTENT_BYTES)) {
        slot[..content.len()].copy_from_slice(content);
        slot[..10].copy_from_slice(&magic);
        if how & HEADER == 0 {
            slot[24..32].copy_from_slice(&EPOCH.0.to_le_bytes());
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&slot[..12]), &slot[16..SLOT_CONTENT_BYTES]);
        slot[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    *checkpoint = file;
    Some(files)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(&EPOCH.0.to_le_bytes()), bytes).to_le_bytes()
}

/// Makes all checksums of a segment right, and the lengths of what ends beyond it.
fn fix_segment(bytes: &mut Vec<u8>, sound: &[u8]) {
    if bytes.len() < SEGMENT_HEADER_BYTES {
        return;
    }
    // Which ring it is of; what else it says is its own.
    bytes[..12].copy_from_slice(&sound[..12]);
    bytes[16..48].copy_from_slice(&sound[16..48]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..SEGMENT_HEADER_BYTES]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        if rest.starts_with(&FRAME_MARKER) && rest.len() >= FRAME_HEADER_BYTES {
            let claimed = u32::from_le_bytes(*rest[4..].first_chunk().unwrap());
            let payload_bytes = (claimed as usize).min(rest.len() - FRAME_HEADER_BYTES);
            rest[4..8].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
            let crc = checksum(&rest[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload_bytes]);
            rest[72..76].copy_from_slice(&crc);
            let crc = checksum(&rest[..76]);
            rest[76..80].copy_from_slice(&crc);
            at += FRAME_HEADER_BYTES + payload_bytes;
        } else if rest.starts_with(&SEAL_MARKER) && rest.len() >= SEAL_BYTES + SEAL_FOOTER_BYTES {
            let filter_bytes = rest.len() - SEAL_BYTES - SEAL_FOOTER_BYTES;
            rest[4..8].copy_from_slice(&(filter_bytes as u32).to_le_bytes());
            let end = rest.len() - SEAL_FOOTER_BYTES;
            let seal_bytes = (rest.len() as u32).to_le_bytes();
            let crc = checksum(&[&rest[..100], &rest[SEAL_BYTES..end]].concat());
            rest[100..104].copy_from_slice(&crc);
            rest[end..end + 4].copy_from_slice(&seal_bytes);
            rest[end + 4..].copy_from_slice(&[0xa1, b'E', 0x0d, 0x0a]);
            return;
        } else {
            at += 1;
        }
    }
}

/// What is read: every record, with its place.
type Seen = Vec<(u64, Vec<u8>)>;

/// Reads everything. What is read is in order and without a gap that is not told.
fn read(view: &View, from: u64) -> (Seen, Vec<Hole>) {
    let (mut records, mut holes) = (Seen::new(), Vec::new());
    let mut reader = Reader::new(view.clone(), Seq(from));
    let mut expected = from;
    for _ in 0..10_000 {
        assert_eq!(reader.position().0, expected);
        let item = reader.next_item().unwrap();
        match item {
            Item::Frame(ChainedFrame { frame, .. }) => {
                assert!(
                    frame.first_seq.0 <= expected && expected < frame.end_seq().0,
                    "{expected}: {frame:?}"
                );
                match frame.unpack() {
                    Ok(unpacked) => {
                        let seqs = frame.first_seq.0..;
                        let some = seqs.zip(unpacked.iter()).filter(|(seq, _)| *seq >= expected);
                        records.extend(some.map(|(seq, bytes)| (seq, bytes.to_vec())));
                        assert_eq!(unpacked.iter().len() as u64, u64::from(frame.count));
                    }
                    // Its records are lost, and whoever reads records is told so.
                    Err(_) => records.push((frame.first_seq.0, Vec::new())),
                }
                expected = frame.end_seq().0;
            }
            Item::Hole(hole) => {
                assert_eq!(hole.first.0, expected);
                assert!(hole.last >= hole.first && hole.from <= hole.to, "{hole:?}");
                expected = hole.last.0 + 1;
                holes.push(hole);
            }
            Item::CaughtUp => {
                assert_eq!(view.next_seq().0, expected);
                return (records, holes);
            }
        }
    }
    panic!("reading does not end");
}

/// Reads selectively to the end: whether a record is met, or a hole in its place.
fn finds(view: &View, wanted: &Record) -> bool {
    let Labels { kinds, keys, .. } = wanted.labels.clone();
    let selection = Selection { kinds, keys: Some(keys), times: wanted.recorded..=Timestamp::MAX };
    let mut reader = Reader::selecting(view.clone(), Seq::FIRST, selection);
    let mut is_found = false;
    for _ in 0..10_000 {
        match reader.next_records().unwrap() {
            Read::Records(first, columns) => {
                let records = columns.records();
                let mut records = records.iter().zip(first.0..);
                is_found |= records.any(|(bytes, seq)| seq == wanted.seq.0 && bytes == wanted.bytes);
            }
            Read::Hole(hole) => is_found |= (hole.first..=hole.last).contains(&wanted.seq),
            Read::CaughtUp => return is_found,
        }
    }
    panic!("reading selectively does not end");
}

/// Opens these files as a ring, reads, goes on writing, and opens them again: what cannot be a ring is refused, and what
/// can be one is without contradiction.
pub fn check(files: &Files) {
    let dir = put(files);
    let view = View::open_read_only(dir);
    let mut ring = match (open(dir), &view) {
        (Ok(ring), Ok(_)) => ring,
        (Err(RingError::OtherHost { .. }), Ok(_)) => return,
        (Err(error), Err(_)) => {
            assert!(!matches!(error, RingError::Io { .. }), "{error}");
            return;
        }
        (opened, viewed) => panic!("{:?}, but {:?}", opened.err(), viewed.as_ref().err()),
    };
    let before = read(&ring.view(), 1);
    assert_eq!(read(&view.unwrap(), 1).0, before.0, "whether it is to be written or not");
    let next_seq = ring.next_seq().0;
    for from in [next_seq, next_seq.saturating_sub(3).max(1), next_seq / 2 + 1] {
        read(&ring.view(), from);
    }
    let anchor = ring.view().anchor();
    assert_eq!(ring.view().compare(&anchor).unwrap(), Standing::Same);
    for (seq, _) in before.0.iter().step_by(3) {
        ring.view().compare(&alibi_proto::chain::Anchor { seq: Seq(*seq), ..anchor }).unwrap();
    }

    let fresh: Vec<Record> = (next_seq..next_seq + 9).map(|seq| record(seq, 1)).collect();
    for some in fresh.chunks(3) {
        ring.append(some).unwrap();
    }
    ring.acknowledge(Seq(next_seq)).unwrap();
    ring.prepare().unwrap();
    assert_eq!(ring.view().compare(&anchor).unwrap(), Standing::Same);
    let after = read(&ring.view(), 1);
    let first_seq = ring.first_seq().0;
    let is_kept = |(seq, _): &&(u64, Vec<u8>)| *seq >= first_seq;
    let wanted = fresh.iter().map(|record| (record.seq.0, record.bytes.clone()));
    let wanted: Seen = before.0.iter().filter(is_kept).cloned().chain(wanted).collect();
    let got: Seen = after.0.iter().filter(is_kept).cloned().collect();
    assert_eq!(got, wanted);
    assert!(fresh.iter().all(|record| finds(&ring.view(), record)));
    ring.sync(moment(3_000_000).wall, moment(3_000_000)).unwrap();
    let anchors = [anchor, ring.view().anchor()];
    drop(ring);

    let ring = open(dir).unwrap();
    assert_eq!(ring.next_seq().0, next_seq + 9);
    assert_eq!(read(&ring.view(), 1).0, after.0, "opened again");
    assert!(fresh.iter().all(|record| finds(&ring.view(), record)));
    for anchor in anchors {
        let standing = ring.view().compare(&anchor).unwrap();
        let is_gone = anchor.seq.next().0 < ring.first_seq().0;
        assert!(standing == Standing::Same || is_gone && standing == Standing::Gone, "{standing:?}");
    }
}
