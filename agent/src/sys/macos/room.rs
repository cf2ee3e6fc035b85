//! Room on the disk before it is needed.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
};

/// Of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Room is set aside beyond what the file has on the disk already.
pub(in crate::sys) fn set_room_aside(file: &File, bytes: u64) -> io::Result<()> {
    let missing = bytes.saturating_sub(file.metadata()?.blocks().saturating_mul(BLOCK_BYTES));
    if missing == 0 {
        return Ok(());
    }
    match allocate(file, missing) {
        Err(problem) if matches!(problem.raw_os_error(), Some(libc::ENOTSUP | libc::EOPNOTSUPP)) => Ok(()),
        done => done,
    }
}

#[expect(unsafe_code, reason = "F_PREALLOCATE of fcntl(2) has no safe form")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let mut room = libc::fstore_t {
        fst_flags: libc::F_ALLOCATEALL,
        fst_posmode: libc::F_PEOFPOSMODE,
        fst_offset: 0,
        fst_length: i64::try_from(bytes).unwrap_or(i64::MAX),
        fst_bytesalloc: 0,
    };
    // SAFETY: the file is open, and the structure is of the kind that this command takes.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PREALLOCATE, &raw mut room) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
