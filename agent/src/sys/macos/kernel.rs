//! What the kernel tells by name and number (sysctl(3)).

use std::{ffi::CStr, io, ptr, time::Duration};

const _: () = assert!(size_of::<libc::rt_msghdr>() == super::super::bsd::HEADER_BYTES);

/// A table that grows while it is read is asked for anew.
const TRIES: u32 = 4;
/// More than this is not read.
const TABLE_BYTES_MAX: usize = 4 << 20;

/// An instant by the wall clock, since 1970. None where the kernel does not tell, and at 0, which it says for "not yet".
#[expect(unsafe_code, reason = "sysctlbyname(3) has no safe form")]
pub(super) fn instant(name: &CStr) -> Option<Duration> {
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut bytes = size_of::<libc::timeval>();
    // SAFETY: the name ends in a zero, and no more is written than the room that is told.
    let outcome = unsafe {
        libc::sysctlbyname(name.as_ptr(), (&raw mut time).cast(), &raw mut bytes, ptr::null_mut(), 0)
    };
    let is_whole = outcome == 0 && bytes == size_of::<libc::timeval>();
    let secs = u64::try_from(time.tv_sec).ok().filter(|secs| is_whole && *secs != 0)?;
    Some(Duration::from_secs(secs) + Duration::from_micros(u64::try_from(time.tv_usec).ok()?))
}

/// The routing table, as messages.
///
/// # Errors
/// When the kernel refuses, or the table is larger than 4 MiB.
pub(super) fn routes() -> io::Result<Vec<u8>> {
    let all_families = 0;
    let mut name = [libc::CTL_NET, libc::PF_ROUTE, 0, all_families, libc::NET_RT_DUMP, 0];
    for _ in 0..TRIES {
        let needed = table(&mut name, &mut [])?;
        // New routes may come between the two questions.
        let mut bytes = vec![0; (needed + needed / 4 + 1024).min(TABLE_BYTES_MAX)];
        match table(&mut name, &mut bytes) {
            Ok(written) => {
                bytes.truncate(written);
                return Ok(bytes);
            }
            Err(problem) if problem.raw_os_error() == Some(libc::ENOMEM) => {}
            Err(problem) => return Err(problem),
        }
    }
    Err(io::Error::other(
        "the routing table does not stay as it is for long enough to be read, or is too large",
    ))
}

/// The bytes written; with no room, those needed.
#[expect(unsafe_code, reason = "sysctl(3) has no safe form")]
fn table(name: &mut [libc::c_int; 6], room: &mut [u8]) -> io::Result<usize> {
    let mut bytes = room.len();
    let place = if room.is_empty() { ptr::null_mut() } else { room.as_mut_ptr() };
    // SAFETY: the name has as many parts as are told, and no more is written than the room that is told.
    let outcome =
        unsafe { libc::sysctl(name.as_mut_ptr(), 6, place.cast(), &raw mut bytes, ptr::null_mut(), 0) };
    if outcome == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}
