//! The file that a process runs.

use std::{
    os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle},
    path::PathBuf,
};

use windows_sys::Win32::{
    Foundation::HANDLE,
    System::Threading::{OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION, QueryFullProcessImageNameW},
};

use super::text::narrow;

/// As long as a path can be.
const PATH_UNITS_MAX: u32 = 32_768;

/// By the path that it has now: the system asks the file system for it, so it follows a file that was renamed.
#[expect(unsafe_code, reason = "the standard library does not ask for it")]
pub(in crate::sys) fn executable_of(pid: u32) -> Option<PathBuf> {
    let process = open_process(pid)?;
    let mut path = vec![0; PATH_UNITS_MAX as usize];
    let mut units = PATH_UNITS_MAX;
    // SAFETY: the handle is open; there is room for `units` at the pointer.
    let done = unsafe {
        QueryFullProcessImageNameW(process.as_raw_handle() as HANDLE, 0, path.as_mut_ptr(), &raw mut units)
    };
    let path = narrow(&path);
    (done != 0 && !path.is_empty()).then(|| path.into())
}

/// To ask what everybody may ask of a process, if it is not protected from this one.
#[expect(unsafe_code, reason = "the standard library opens none of others")]
pub(super) fn open_process(pid: u32) -> Option<OwnedHandle> {
    // SAFETY: no pointer is given.
    let process = unsafe { OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid) };
    // SAFETY: it is a handle that nobody else has.
    (!process.is_null()).then(|| unsafe { OwnedHandle::from_raw_handle(process.cast()) })
}
