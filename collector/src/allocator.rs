//! How the system's allocator shares memory out.

/// Has all threads take their memory from one place, and large pieces from the system and back to it. By default glibc gives
/// threads places of their own, in which what many short errands leave behind lies between what stays: of ten thousand
/// connections that is half as much again as they have. To be called before there is a second thread.
#[cfg(all(unix, target_env = "gnu"))]
#[expect(unsafe_code, reason = "the standard library does not know the allocator")]
pub fn keep_together() {
    /// HTTP/2 sets aside so much for each connection to write in, and an idle one touches the first page of it.
    const LARGE_BYTES: libc::c_int = 16 << 10;
    // SAFETY: it takes two numbers, and nobody else uses the allocator meanwhile.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: the same. Where the allocator refuses, all stays as it was.
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
}

/// Other allocators are left to themselves.
#[cfg(not(all(unix, target_env = "gnu")))]
pub fn keep_together() {}
