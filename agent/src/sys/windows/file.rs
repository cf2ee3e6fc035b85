//! Files of this machine: opening them without being led elsewhere, and which they are.
//!
//! A path may lead to another machine: by its own words, by the letter of a drive that is there, or by a link. Such a file is
//! not opened, since its server may not answer, and is told who this machine is. Who may make links could still exchange a
//! directory for one between the look at it and the opening; on Windows those are administrators, and everybody only in
//! developer mode.

use std::{
    fs::{self, File},
    io,
    os::windows::{
        fs::OpenOptionsExt as _,
        io::{AsRawHandle as _, RawHandle},
    },
    path::Path,
    ptr,
};

use windows_sys::Win32::{
    Foundation::HANDLE,
    Storage::FileSystem::{
        BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_DIRECTORY, FILE_ATTRIBUTE_RECALL_ON_DATA_ACCESS,
        FILE_ATTRIBUTE_RECALL_ON_OPEN, FILE_BASIC_INFO, FILE_FLAG_BACKUP_SEMANTICS, FILE_ID_INFO,
        FILE_INFO_BY_HANDLE_CLASS, FILE_READ_ATTRIBUTES, FILE_STANDARD_INFO, FILE_TYPE_DISK, FileBasicInfo,
        FileIdInfo, FileStandardInfo, GetDriveTypeW, GetFileInformationByHandle,
        GetFileInformationByHandleEx, GetFileType,
    },
};

use super::text::wide;
use crate::sys::nt;

/// What the system says of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// Serial number.
    pub(crate) volume: u64,
    /// [`nt::file_number`].
    pub(crate) number: u64,
    /// Since 1970.
    pub(crate) modified_ns: u64,
    /// When anything of it was changed, since 1970. Who may write the file can set this.
    pub(crate) changed_ns: u64,
    pub(crate) size: u64,
}

/// Says which file is open.
///
/// # Errors
/// When the system does not tell, or it is no regular file whose content is here.
pub(crate) fn file_facts(file: &File) -> io::Result<FileFacts> {
    let handle = file.as_raw_handle();
    if !is_on_disk(handle) {
        return Err(no_regular_file());
    }
    let basic: FILE_BASIC_INFO = information(handle)?;
    if basic.FileAttributes & FILE_ATTRIBUTE_DIRECTORY != 0 {
        return Err(no_regular_file());
    }
    if basic.FileAttributes & (FILE_ATTRIBUTE_RECALL_ON_OPEN | FILE_ATTRIBUTE_RECALL_ON_DATA_ACCESS) != 0 {
        return Err(unsupported("its content is kept elsewhere, from where the agent fetches nothing"));
    }
    let standard: FILE_STANDARD_INFO = information(handle)?;
    let (volume, number) = volume_and_number(handle)?;
    Ok(FileFacts {
        volume,
        number,
        modified_ns: nt::since_1970_ns(basic.LastWriteTime),
        changed_ns: nt::since_1970_ns(basic.ChangeTime),
        size: u64::try_from(standard.EndOfFile).unwrap_or(0),
    })
}

/// Opens the file at `path` to read it. Hinders nobody: it can be written, renamed and deleted meanwhile.
///
/// # Errors
/// When it is not on this machine, no regular file, or the system says no.
pub(crate) fn open_local(path: &Path) -> io::Result<File> {
    // Looked at before it is opened: opening a device may set something off.
    file_facts(&open_to_look(path)?)?;
    File::open(way_to(path)?)
}

/// As [`open_local`], to ask what it is and not what is in it: whoever may list the directory may do that.
///
/// # Errors
/// When it is not on this machine, or the system says no.
pub(crate) fn open_to_look(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    // Without these, a directory is said to be forbidden.
    options.access_mode(FILE_READ_ATTRIBUTES).custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
    options.open(way_to(path)?)
}

/// The path by which a file is opened, after it was made sure that it leads nowhere else.
fn way_to(path: &Path) -> io::Result<String> {
    let path = path.to_str().ok_or_else(|| unsupported("its path is no Unicode"))?;
    let way = nt::local_path(path)?;
    let root = nt::root_of(&way);
    if is_remote(root.strip_prefix(r"\\?\").filter(|root| root.len() == 3).unwrap_or(root)) {
        return Err(unsupported(nt::ELSEWHERE));
    }
    let separators = way[root.len()..].match_indices('\\').map(|(at, _)| root.len() + at);
    for end in separators.chain([way.len()]) {
        refuse_link(&way[..end])?;
    }
    Ok(way)
}

/// The system tells the path of what a process runs without links. So one in it was put there since, and leads to another
/// file; but where a volume is mounted in a directory, it has no other path.
fn refuse_link(path: &str) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_symlink() {
        return Ok(());
    }
    let is_volume = fs::read_link(path)?.to_str().is_some_and(|target| target.starts_with(r"\\?\Volume{"));
    if is_volume {
        Ok(())
    } else {
        Err(unsupported("there is a link in its path, which the agent does not follow"))
    }
}

fn unsupported(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why.to_owned())
}

fn no_regular_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// Whether the drive with this root (`C:\`) is on another machine. Asks nobody there.
#[expect(unsafe_code, reason = "the standard library does not ask for it")]
fn is_remote(root: &str) -> bool {
    const DRIVE_REMOTE: u32 = 4;
    let root = wide(root);
    // SAFETY: the text ends with 0, and lives until the call returns.
    unsafe { GetDriveTypeW(root.as_ptr()) == DRIVE_REMOTE }
}

/// That is: no pipe, console or other device.
#[expect(unsafe_code, reason = "the standard library does not ask for it")]
fn is_on_disk(handle: RawHandle) -> bool {
    // SAFETY: whatever the handle is, it is only looked at; it is open as long as its owner is borrowed.
    unsafe { GetFileType(handle as HANDLE) == FILE_TYPE_DISK }
}

/// The volume and the file's number on it. Where the system knows no long ids (FAT), it is the short one.
fn volume_and_number(handle: RawHandle) -> io::Result<(u64, u64)> {
    if let Ok(id) = information::<FILE_ID_INFO>(handle) {
        return Ok((id.VolumeSerialNumber, nt::file_number(id.FileId.Identifier)));
    }
    let short = short_information(handle)?;
    let index = u64::from(short.nFileIndexHigh) << 32 | u64::from(short.nFileIndexLow);
    Ok((short.dwVolumeSerialNumber.into(), index))
}

#[expect(unsafe_code, reason = "the standard library does not ask for it")]
fn short_information(handle: RawHandle) -> io::Result<BY_HANDLE_FILE_INFORMATION> {
    let mut information = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open as long as its owner is borrowed, and the pointer is to what the call fills in.
    let done = unsafe { GetFileInformationByHandle(handle as HANDLE, &raw mut information) };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(information) }
}

/// One sort of what the system says of an open file.
trait Information: Default {
    const CLASS: FILE_INFO_BY_HANDLE_CLASS;
}

impl Information for FILE_BASIC_INFO {
    const CLASS: FILE_INFO_BY_HANDLE_CLASS = FileBasicInfo;
}

impl Information for FILE_STANDARD_INFO {
    const CLASS: FILE_INFO_BY_HANDLE_CLASS = FileStandardInfo;
}

impl Information for FILE_ID_INFO {
    const CLASS: FILE_INFO_BY_HANDLE_CLASS = FileIdInfo;
}

#[expect(unsafe_code, reason = "the standard library does not ask for it")]
fn information<T: Information>(handle: RawHandle) -> io::Result<T> {
    let mut information = T::default();
    let bytes = u32::try_from(size_of::<T>()).unwrap_or(0);
    let place = ptr::from_mut(&mut information).cast();
    // SAFETY: the handle is open as long as its owner is borrowed; there is room for `bytes` at the place, which is for what
    // the system fills in for this class, and what it fills in is always one of these.
    let done = unsafe { GetFileInformationByHandleEx(handle as HANDLE, T::CLASS, place, bytes) };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(information) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn facts_at(path: &Path) -> FileFacts {
        file_facts(&open_local(path).unwrap()).unwrap()
    }

    fn problem(path: &str) -> String {
        open_local(Path::new(path)).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_told_from_one_that_took_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("program"), directory.path().join("other"));
        fs::write(&path, "one").unwrap();
        let before = facts_at(&path);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(before.size, 3);
        let since_1970 = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(u128::from(before.modified_ns), since_1970.as_nanos());
        // A volume need not have a number of its own.
        assert!(before.number != 0 && before.changed_ns > 0);
        assert_eq!(facts_at(&path), before);

        fs::write(&other, "two").unwrap();
        File::options().write(true).open(&other).unwrap().set_modified(modified).unwrap();
        fs::rename(&other, &path).unwrap();
        let after = facts_at(&path);
        assert_eq!((after.size, after.modified_ns), (before.size, before.modified_ns));
        assert_ne!(after.number, before.number);
    }

    #[test]
    fn a_change_is_seen_though_the_time_of_writing_was_set_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, "one").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        let facts = facts_at(&path);
        assert!(facts.changed_ns > facts.modified_ns, "{facts:?}");
    }

    #[test]
    fn nobody_is_hindered_by_a_file_that_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, "one").unwrap();
        let open = open_local(&path).unwrap();
        fs::write(&path, "another").unwrap();
        fs::rename(&path, directory.path().join("renamed")).unwrap();
        fs::remove_file(directory.path().join("renamed")).unwrap();
        drop(open);
    }

    #[test]
    fn nothing_but_a_regular_file_of_this_machine_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(problem(directory.path().to_str().unwrap()), "not a regular file");
        assert_eq!(problem(r"\\server.invalid\share\x.exe"), nt::ELSEWHERE);
        assert!(problem(r"\\.\pipe\x").contains("device"));
        let gone = open_local(&directory.path().join("gone")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        let in_nothing = open_local(&directory.path().join(r"gone\gone")).unwrap_err();
        assert_eq!(in_nothing.kind(), io::ErrorKind::NotFound);
    }
}
