//! Opening an executable, making sure that it is the one that was meant, and reading all of it.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use alibi_proto::{
    executable::{FileIdentity, Sha256, Signature},
    time::Timestamp,
};
use sha2::Digest as _;

use super::errands::{NoAnswer, Progress};
use crate::{
    capture::ProcessKey,
    sys::{self, Examine, Examined},
};

/// A file as the system describes it at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileState {
    pub(crate) identity: FileIdentity,
    /// When anything of it was changed, in nanoseconds since 1970. Unlike the time of the last write, nobody can set it
    /// back; but on Windows who may write the file can.
    pub(crate) changed_ns: u64,
}

#[cfg(unix)]
impl FileState {
    /// Of what is open.
    ///
    /// # Errors
    /// When the system does not tell, or it is no regular file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Self::from_metadata(&file.metadata()?)
    }

    /// Of what is found at `path`, links followed.
    ///
    /// # Errors
    /// When the system does not tell, or it is no regular file.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Self::from_metadata(&std::fs::metadata(path)?)
    }

    fn from_metadata(metadata: &std::fs::Metadata) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        if !metadata.is_file() {
            return Err(not_regular());
        }
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: Timestamp::from_nanos(nanos(metadata.mtime(), metadata.mtime_nsec())),
            size: metadata.len(),
        };
        Ok(Self { identity, changed_ns: nanos(metadata.ctime(), metadata.ctime_nsec()) })
    }
}

#[cfg(not(unix))]
impl FileState {
    /// Of what is open.
    ///
    /// # Errors
    /// When the system does not tell, or it is no regular file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let facts = sys::file_facts(file)?;
        let identity = FileIdentity {
            device: facts.volume,
            inode: facts.number,
            modified: Timestamp::from_nanos(facts.modified_ns),
            size: facts.size,
        };
        Ok(Self { identity, changed_ns: facts.changed_ns })
    }

    /// Of what is found at `path`, if that leads nowhere else.
    ///
    /// # Errors
    /// When the system does not tell, or it is no regular file of this machine.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Self::of(&sys::open_to_look(path)?)
    }
}

#[cfg(unix)]
fn nanos(secs: i64, nanos: i64) -> u64 {
    u64::try_from(secs.saturating_mul(1_000_000_000).saturating_add(nanos)).unwrap_or(0)
}

#[cfg(unix)]
fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

impl FileState {
    /// Whether this is the file that is found at `path` from here. A path that comes from another mount namespace may be
    /// that of another file here.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        Self::at(path).is_ok_and(|found| is_same_but_for_device(&found.identity, &self.identity))
    }
}

/// A file system of several devices (btrfs, overlay) may tell a program another device than the kernel uses inside.
pub(super) fn is_same_but_for_device(one: &FileIdentity, other: &FileIdentity) -> bool {
    FileIdentity { device: other.device, ..*one } == *other
}

/// The executable of a process that is running; none if it is another process by now.
pub(super) fn state_of_process(process: ProcessKey) -> Option<FileState> {
    let path = sys::executable_of(process.pid)?;
    let state = FileState::at(&path).ok()?;
    is_still_at(process, &path).then_some(state)
}

/// Asked after a file was looked at: the pid was not given to another in between, nor the path to another file.
fn is_still_at(process: ProcessKey, path: &Path) -> bool {
    sys::process_start(process.pid) == Some(process.start)
        && sys::executable_of(process.pid).is_some_and(|now| now == path)
}

/// An executable that is open, and what it was when it was opened.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) state: FileState,
    /// By which it was opened.
    pub(super) path: PathBuf,
}

/// Opens the executable that `process` runs or that is at `path`, whichever is `wanted`.
///
/// # Errors
/// In words, why it cannot be the one that is wanted.
pub(super) fn open(
    path: &Path,
    process: Option<ProcessKey>,
    wanted: Option<FileIdentity>,
) -> Result<Opened, String> {
    let running = process.and_then(|process| open_of_process(process, wanted));
    if let Some(opened) = running {
        return Ok(opened);
    }
    let opened = open_regular(path).map_err(|problem| match problem.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => VANISHED.to_owned(),
        _ => format!("cannot be read: {problem}"),
    })?;
    match wanted {
        Some(wanted) if wanted != opened.state.identity => Err(REPLACED.to_owned()),
        _ => Ok(opened),
    }
}

pub(super) const VANISHED: &str = "vanished before it could be read";
pub(super) const REPLACED: &str = "cannot be told from another file at its path";
pub(super) const CHANGED: &str = "changed while it was read";

fn open_of_process(process: ProcessKey, wanted: Option<FileIdentity>) -> Option<Opened> {
    let path = sys::executable_of(process.pid)?;
    let opened = open_regular(&path).ok()?;
    if !is_still_at(process, &path) {
        return None;
    }
    // On a file that this very process runs, the rest leaves no doubt.
    let is_it = wanted.is_none_or(|wanted| is_same_but_for_device(&wanted, &opened.state.identity));
    is_it.then_some(opened)
}

fn open_regular(path: &Path) -> io::Result<Opened> {
    let file = open_file(path)?;
    let state = FileState::of(&file)?;
    Ok(Opened { file, state, path: path.to_owned() })
}

#[cfg(unix)]
fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Looked at before it is opened: opening a device may set something off.
    FileState::at(path)?;
    // In case it has become a pipe since, which nobody may ever write to.
    let flags = rustix::fs::OFlags::NONBLOCK.union(rustix::fs::OFlags::NOCTTY);
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

#[cfg(not(unix))]
fn open_file(path: &Path) -> io::Result<File> {
    sys::open_local(path)
}

/// Why there is no hash.
#[derive(Debug)]
pub(super) enum Unread {
    /// In words.
    Problem(String),
    /// Its file system does not answer.
    Silent(NoAnswer),
    /// The agent stops.
    Stopped,
}

/// Reads all of a file from its beginning, `buffer` by `buffer`.
///
/// # Errors
/// When it is larger than `bytes_max`, changes meanwhile, or cannot be read; or when `stop` becomes true.
pub(super) fn hash(
    opened: &mut Opened,
    buffer: &mut [u8],
    bytes_max: u64,
    stop: &AtomicBool,
    progress: &Progress,
) -> Result<Sha256, Unread> {
    let too_large = || Unread::Problem(format!("larger than {bytes_max} bytes, the most that is hashed"));
    let unreadable = |problem: io::Error| Unread::Problem(format!("cannot be read: {problem}"));
    if opened.state.identity.size > bytes_max {
        return Err(too_large());
    }
    opened.file.rewind().map_err(unreadable)?;
    let mut hasher = sha2::Sha256::new();
    let mut read: u64 = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Unread::Stopped);
        }
        let count = match opened.file.read(buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => continue,
            Err(problem) => return Err(unreadable(problem)),
        };
        read += count as u64;
        if read > bytes_max {
            return Err(too_large());
        }
        hasher.update(&buffer[..count]);
        progress.step();
        thread::yield_now();
    }
    let after = FileState::of(&opened.file).map_err(unreadable)?;
    if !is_same_content(&opened.state, &after) || read != after.identity.size {
        return Err(Unread::Problem(CHANGED.to_owned()));
    }
    Ok(Sha256::from_bytes(hasher.finalize().into()))
}

/// What is to be said of a file beyond the content that was just read of it. The signature is that of this very content:
/// where it was changed since, or its path is that of another file, which the system may have looked at, it was not checked.
pub(super) fn examined(opened: &Opened, examine: Examine) -> Examined {
    let examined = examine(&opened.file, &opened.path);
    let is_the_same = FileState::of(&opened.file).is_ok_and(|after| is_same_content(&opened.state, &after));
    if is_the_same && opened.state.is_at(&opened.path) {
        return examined;
    }
    Examined { signature: Signature::not_checked("it was changed or moved meanwhile"), version: None }
}

/// A link or a right that was changed meanwhile changes nothing in it, so the time of any change is not looked at.
fn is_same_content(before: &FileState, after: &FileState) -> bool {
    (before.identity.modified, before.identity.size) == (after.identity.modified, after.identity.size)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    fn hash_of(opened: &mut Opened, bytes_max: u64) -> Result<Sha256, Unread> {
        hash(opened, &mut [0; 16], bytes_max, &AtomicBool::new(false), &Progress::default())
    }

    #[test]
    fn a_file_is_hashed_whole_whatever_the_buffer() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        let mut opened = open(file.path(), None, None).unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_of(&mut opened, 3).unwrap().to_string(), abc);
        assert_eq!(hash_of(&mut opened, 3).unwrap().to_string(), abc, "from the beginning again");
        let Err(Unread::Problem(problem)) = hash_of(&mut opened, 2) else { panic!("it has 3 bytes") };
        assert_eq!(problem, "larger than 2 bytes, the most that is hashed");
        let stopped = hash(&mut opened, &mut [0; 16], 3, &AtomicBool::new(true), &Progress::default());
        assert!(matches!(stopped, Err(Unread::Stopped)));
    }

    #[test]
    fn a_file_that_is_written_to_meanwhile_is_not_believed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        let mut opened = open(file.path(), None, None).unwrap();
        file.write_all(b"d").unwrap();
        let Err(Unread::Problem(problem)) = hash_of(&mut opened, 99) else { panic!("it has grown") };
        assert_eq!(problem, CHANGED);
    }

    #[test]
    fn only_the_file_that_is_wanted_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, "one").unwrap();
        let wanted = FileState::at(&path).unwrap().identity;
        assert!(open(&path, None, Some(wanted)).is_ok());
        fs::remove_file(&path).unwrap();
        assert_eq!(open(&path, None, Some(wanted)).err(), Some(VANISHED.to_owned()));
        fs::write(&path, "other").unwrap();
        assert_eq!(open(&path, None, Some(wanted)).err(), Some(REPLACED.to_owned()));
    }

    #[test]
    #[cfg(unix)]
    fn nothing_but_a_regular_file_is_opened() {
        let problem = |path: &Path| open(path, None, None).err().unwrap();
        assert_eq!(problem(Path::new("/dev/null")), "cannot be read: not a regular file");
        assert_eq!(problem(Path::new("/")), "cannot be read: not a regular file");
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(problem(&pipe), "cannot be read: not a regular file");
        let dangling = directory.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert_eq!(problem(&dangling), VANISHED);
    }
}
