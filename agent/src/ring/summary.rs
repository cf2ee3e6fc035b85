//! What the writer sums up of all its records, those that were evicted included: one file beside the segments, written anew
//! as a whole. What is in it, only the writer knows.

use std::{fs::File, io::Read as _, path::Path};

use alibi_proto::id::{Epoch, Seq};

use super::{
    RingError, files,
    frame::{checksum, u32_at, u64_at},
    segment::check_magic,
};

/// The name of its file.
pub(super) const NAME: &str = "summary";
/// It has at most so many bytes.
pub(super) const BYTES_MAX: usize = 2 << 20;

const MAGIC: [u8; 8] = *b"ALIBISUM";
const FORMAT: u16 = 1;
const HEADER_BYTES: usize = 24;

/// The file. Integers are little-endian.
///
/// ```text
///  0   8  magic "ALIBISUM"
///  8   2  format version, 1
/// 10   2  0
/// 12   4  CRC32C of the epoch (8 bytes), bytes 0..12 and 16 to the end
/// 16   8  seq of the first record that is not summed up
/// 24      the sum
/// ```
fn encode(epoch: Epoch, next: Seq, sum: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&next.0.to_le_bytes());
    bytes.extend_from_slice(sum);
    let crc = crc32c::crc32c_append(checksum(epoch, &bytes[..12]), &bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Writes it, safe from a power cut once the names in the directory are.
pub(super) fn write(dir: &Path, epoch: Epoch, next: Seq, sum: &[u8]) -> Result<(), RingError> {
    let path = dir.join(NAME);
    let error = |source| RingError::Io { path: path.clone(), source };
    let file = files::create_whole(&path, &encode(epoch, next, sum)).map_err(error)?;
    files::sync(&file).map_err(error)
}

/// What was summed up last, before `end`, and the first record that is not in it; none if there is nothing that holds: then
/// it can be had from the records alone.
///
/// # Errors
/// When the file cannot be read, is not a summary, or was written by a newer version.
pub(super) fn read(dir: &Path, epoch: Epoch, end: Seq) -> Result<Option<(Seq, Vec<u8>)>, RingError> {
    let path = dir.join(NAME);
    let mut bytes = Vec::new();
    let limit = (HEADER_BYTES + BYTES_MAX) as u64;
    match File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RingError::Io { path, source }),
        Ok(_) => {}
    }
    check_magic(&path, &bytes, MAGIC, FORMAT)?;
    let Some(sum) = bytes.get(HEADER_BYTES..) else { return Ok(None) };
    let crc = crc32c::crc32c_append(checksum(epoch, &bytes[..12]), &bytes[16..]);
    let next = Seq(u64_at(&bytes, 16));
    Ok((u32_at(&bytes, 12) == crc && next <= end).then(|| (next, sum.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_damage_is_seen() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let (epoch, end) = (Epoch(3), Seq(100));
        assert_eq!(read(dir, epoch, end).unwrap(), None);
        for sum in [&b""[..], b"something"] {
            write(dir, epoch, Seq(7), sum).unwrap();
            assert_eq!(read(dir, epoch, end).unwrap(), Some((Seq(7), sum.to_vec())));
        }
        assert_eq!(read(dir, Epoch(4), end).unwrap(), None, "of another ring");
        assert_eq!(read(dir, epoch, Seq(6)).unwrap(), None, "of records that are not there");
        let path = dir.join(NAME);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let seen = read(dir, epoch, end);
            let is_refused = matches!(seen, Err(RingError::Foreign { .. } | RingError::Newer { .. }));
            assert!(is_refused == (at < 10 && at != 8) || matches!(seen, Ok(None)), "byte {at}: {seen:?}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert_eq!(read(dir, epoch, end).unwrap(), None, "cut at {at}");
        }
    }
}
