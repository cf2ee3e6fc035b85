//! What the tests ask of the system.

use std::{fs::File, io::Write as _, path::Path, time::SystemTime};

/// Whether a Windows program is run by Wine here, which `.ci/wine` says, and which cannot do `what`: said out loud, since
/// that is not tested then. A Windows of its own is never excused.
pub(crate) fn wine_cannot(what: &str) -> bool {
    let is_wine = cfg!(windows) && std::env::var_os("ALIBI_UNDER_WINE").is_some();
    if is_wine {
        // Past what the test harness keeps back of a test that passes.
        let _ = std::io::stderr().write_all(format!("NOT TESTED: Wine cannot {what}\n").as_bytes());
    }
    is_wine
}

/// Sets when a file or a directory was written last.
pub(crate) fn set_modified(path: &Path, when: SystemTime) {
    open_to_describe(path).and_then(|file| file.set_modified(when)).unwrap();
}

#[cfg(unix)]
fn open_to_describe(path: &Path) -> std::io::Result<File> {
    File::open(path)
}

/// There it takes the right to change what a file is described by, and directories are opened only on purpose.
#[cfg(windows)]
fn open_to_describe(path: &Path) -> std::io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt as _;
    const FILE_WRITE_ATTRIBUTES: u32 = 0x100;
    const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;
    File::options().access_mode(FILE_WRITE_ATTRIBUTES).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(path)
}
