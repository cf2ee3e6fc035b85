//! The few things that the ring asks of the file system, in one place.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

/// What the name of a file ends in until it is whole.
pub(super) const UNFINISHED: &str = "unfinished";

/// Makes `path` with these bytes: after a crash of the program it is whole or not there.
pub(super) fn create_whole(path: &Path, bytes: &[u8]) -> io::Result<File> {
    set_aside(path, 0)?.become_whole(path, bytes)
}

/// A file without content, for which room is set aside on the disk.
#[derive(Debug)]
pub(super) struct SetAside {
    file: File,
    unfinished: PathBuf,
}

/// Makes a file that is to become `path`, and sets room for so many bytes aside, where the file system can.
pub(super) fn set_aside(path: &Path, bytes: u64) -> io::Result<SetAside> {
    let unfinished = unfinished(path);
    let file = options().write(true).create(true).truncate(true).open(&unfinished)?;
    let aside = SetAside { file, unfinished };
    if let Err(error) = reserve(&aside.file, bytes) {
        aside.remove();
        return Err(error);
    }
    Ok(aside)
}

/// Sets room aside for the first so many bytes of a file, which stays as long as it is.
pub(super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    #[cfg(test)]
    fault::check(bytes)?;
    crate::sys::set_room_aside(file, bytes)
}

impl SetAside {
    /// Gives it these bytes and its name.
    pub(super) fn become_whole(mut self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let written = write_at(&mut self.file, 0, bytes);
        if let Err(error) = written.and_then(|()| std::fs::rename(&self.unfinished, path)) {
            self.remove();
            return Err(error);
        }
        Ok(self.file)
    }

    /// Gives the room back.
    pub(super) fn remove(&self) {
        // What stays holds nothing, and is removed when the ring is opened.
        let _ = std::fs::remove_file(&self.unfinished);
    }
}

/// The name of `path` until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(UNFINISHED);
    name.into()
}

/// Opens a file that exists, to write to it in place.
pub(super) fn open_to_write(path: &Path) -> io::Result<File> {
    options().write(true).open(path)
}

/// Removes a file, unless it is gone already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Writes all of `bytes` from `offset` on. When it fails, some of them may have been written.
pub(super) fn write_at(file: &mut File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    #[cfg(test)]
    return fault::write_all(file, offset, bytes);
    #[cfg(not(test))]
    file.write_all(bytes)
}

/// Reads up to so many bytes from `offset` on, as far as the file has them, to the end of `into`.
pub(super) fn read_at(file: &mut File, offset: u64, bytes: u64, into: &mut Vec<u8>) -> io::Result<()> {
    #[cfg(test)]
    fault::check_read(offset, bytes)?;
    file.seek(SeekFrom::Start(offset))?;
    file.take(bytes).read_to_end(into).map(drop)
}

/// What was written to `file` survives a power cut from here on.
pub(super) fn sync(file: &File) -> io::Result<()> {
    #[cfg(test)]
    fault::note(|| fault::Done::Sync);
    file.sync_data()
}

/// The names in `dir` survive a power cut from here on.
#[cfg(not(windows))]
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The names in `dir` survive a power cut from here on.
#[cfg(windows)]
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    // FILE_FLAG_BACKUP_SEMANTICS, without which no directory can be opened. Only what is open for writing can be synced.
    const OF_DIRECTORIES: u32 = 0x0200_0000;
    let mut options = OpenOptions::new();
    std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, OF_DIRECTORIES);
    options.write(true).open(dir)?.sync_all()
}

/// Files that only their user may read.
fn options() -> OpenOptions {
    #[cfg_attr(not(unix), expect(unused_mut))]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A disk that is full when a test says so, and remembers what was asked of it if a test wants to know.
#[cfg(test)]
#[cfg_attr(
    windows,
    allow(clippy::missing_const_for_thread_local, reason = "they are, and it is not seen there")
)]
pub(crate) mod fault {
    use super::*;
    use std::{
        cell::{Cell, RefCell},
        ops::Range,
    };

    /// What was asked of the file system, whichever file it was.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Done {
        /// These bytes were written to a file from here on.
        Write(u64, Vec<u8>),
        /// A file was made safe.
        Sync,
    }

    thread_local! {
        static ROOM: Cell<Option<usize>> = const { Cell::new(None) };
        static DONE: RefCell<Option<Vec<Done>>> = const { RefCell::new(None) };
        static BAD: RefCell<Range<u64>> = const { RefCell::new(0..0) };
    }

    /// These bytes of whatever file this thread reads cannot be read, until it is given others.
    pub(crate) fn set_bad(bytes: Range<u64>) {
        BAD.set(bytes);
    }

    /// Whether so many bytes from here on can be read.
    pub(super) fn check_read(offset: u64, bytes: u64) -> io::Result<()> {
        let is_bad = BAD.with_borrow(|bad| bad.start < offset + bytes && offset < bad.end);
        if is_bad { Err(crate::sys::bad_medium()) } else { Ok(()) }
    }

    /// How many bytes this thread can still write, until it is given others.
    pub(crate) fn set_room(bytes: Option<usize>) {
        ROOM.set(bytes);
    }

    /// From here on, what this thread asks is remembered.
    pub(crate) fn remember() {
        DONE.set(Some(Vec::new()));
    }

    /// What it has asked since, which is forgotten.
    pub(crate) fn remembered() -> Vec<Done> {
        DONE.take().unwrap_or_default()
    }

    pub(super) fn note(done: impl FnOnce() -> Done) {
        DONE.with_borrow_mut(|all| {
            if let Some(all) = all {
                all.push(done());
            }
        });
    }

    /// Whether there is room for so many bytes, which takes none.
    pub(super) fn check(bytes: u64) -> io::Result<()> {
        let room = ROOM.get().map_or(u64::MAX, |room| room as u64);
        if bytes <= room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    pub(super) fn write_all(file: &mut File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = ROOM.get().unwrap_or(usize::MAX).min(bytes.len());
        note(|| Done::Write(offset, bytes[..written].to_vec()));
        file.write_all(&bytes[..written])?;
        ROOM.set(ROOM.get().map(|room| room - written));
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}
