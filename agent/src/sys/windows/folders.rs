//! Where Windows keeps what, as it says itself: variables say so too, and are wrong in some services.

use std::{ffi::OsString, os::windows::ffi::OsStringExt as _, path::PathBuf, ptr::null_mut, slice};

use windows_sys::{
    Win32::{
        System::Com::CoTaskMemFree,
        UI::Shell::{
            FOLDERID_LocalAppData, FOLDERID_ProgramData, FOLDERID_ProgramFiles, KF_FLAG_DEFAULT,
            SHGetKnownFolderPath,
        },
    },
    core::{GUID, PWSTR},
};

/// The data of programs, for all users.
pub(super) fn program_data() -> PathBuf {
    folder(&FOLDERID_ProgramData).unwrap_or_else(|| r"C:\ProgramData".into())
}

/// The programs themselves.
pub(super) fn program_files() -> PathBuf {
    folder(&FOLDERID_ProgramFiles).unwrap_or_else(|| r"C:\Program Files".into())
}

/// The data of this user's programs, that stay on this machine.
pub(super) fn local_data() -> Option<PathBuf> {
    folder(&FOLDERID_LocalAppData)
}

#[expect(unsafe_code, reason = "the standard library does not know these folders")]
fn folder(id: &GUID) -> Option<PathBuf> {
    let mut text: PWSTR = null_mut();
    // SAFETY: the id is one of the system's; what is allocated is freed below.
    let code =
        unsafe { SHGetKnownFolderPath(id, KF_FLAG_DEFAULT.cast_unsigned(), null_mut(), &raw mut text) };
    let path = (code == 0 && !text.is_null()).then(|| {
        // SAFETY: it ends in NUL.
        let units = (0..).take_while(|index| unsafe { *text.add(*index) } != 0).count();
        // SAFETY: there are so many before that.
        OsString::from_wide(unsafe { slice::from_raw_parts(text, units) }).into()
    });
    // SAFETY: it was allocated for us alone, if at all, and is not used after this.
    unsafe { CoTaskMemFree(text.cast()) };
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_are_there() {
        for path in [program_data(), program_files(), local_data().unwrap()] {
            assert!(path.is_absolute() && path.is_dir(), "{}", path.display());
        }
    }
}
