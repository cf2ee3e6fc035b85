//! What is on disk, to the byte; and disks that are small.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// How long a disk may take to give back what was removed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything in a directory: each path in it, with a file's bytes, a link's end, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Listing {
    /// What is in `directory` now; nothing if there is none.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn of(directory: &Path) -> Self {
        let mut listing = Self::default();
        if directory.symlink_metadata().is_ok() {
            listing.take(directory);
        }
        listing
    }

    fn take(&mut self, path: &Path) {
        let kind = path.symlink_metadata().expect("it is there").file_type();
        let content = if kind.is_file() { Some(fs::read(path).expect("it can be read")) } else { None };
        self.0.insert(path.to_owned(), content);
        if kind.is_dir() {
            for entry in fs::read_dir(path).expect("it can be read") {
                self.take(&entry.expect("it can be read").path());
            }
        }
    }

    /// The paths that are different, there, or not there any more.
    pub fn differences(&self, after: &Self) -> Vec<PathBuf> {
        let paths = self.0.keys().chain(after.0.keys().filter(|path| !self.0.contains_key(*path)));
        paths.filter(|path| self.0.get(*path) != after.0.get(*path)).cloned().collect()
    }
}

/// A file system in memory with room for little. Taken away when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// A file system of so many KiB.
    ///
    /// # Panics
    /// When it cannot be mounted: the test needs root.
    pub fn new(size_kib: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let size = format!("size={size_kib}k");
        let mut command = Command::new("mount");
        let output = command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output();
        let output = output.expect("`mount` can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { directory }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves room for so many pages of 4 KiB, by a file that takes all else.
    ///
    /// # Panics
    /// When it has less room, or something that was removed keeps its room.
    pub fn fill_but(&self, pages: u64) {
        self.settle();
        let mut filler = OpenOptions::new().append(true).create(true).open(self.filler()).expect("a file");
        let page = [b'x'; 4096];
        while filler.write_all(&page).is_ok() {}
        let length = filler.metadata().expect("its length").len();
        filler.set_len(length - length % 4096 - pages * 4096).expect("it can be cut");
    }

    /// Waits until nothing takes room but what can be seen. On a busy machine the room of a removed file comes back a little
    /// after the program that had it open last has ended, and a disk filled before that is not full.
    fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disk = rustix::fs::statvfs(self.path()).expect("it is mounted");
            let used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
            let seen = bytes_taken(self.path());
            if used <= seen {
                return;
            }
            assert!(Instant::now() < deadline, "{used} bytes are taken, and files have {seen}");
            std::thread::yield_now();
        }
    }

    /// Takes away what fills it.
    ///
    /// # Panics
    /// When it is not filled.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("it is filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

/// What the files below `directory` take on disk.
fn bytes_taken(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("it can be read");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let taken = |path: PathBuf| {
        let metadata = path.symlink_metadata().expect("it is there");
        let below = if metadata.is_dir() { bytes_taken(&path) } else { 0 };
        below + metadata.blocks() * 512
    };
    paths.map(taken).sum()
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as a program may just be ending on it. A test that fails must not fail again here.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// A directory in which nothing can be made or changed any more, but for files that are open already. As it was again when
/// dropped.
#[derive(Debug)]
pub struct ReadOnly(PathBuf);

impl ReadOnly {
    /// Makes it so.
    ///
    /// # Panics
    /// When nothing can be mounted there: the test needs root.
    pub fn over(directory: &Path) -> Self {
        let read_only = Self(directory.to_owned());
        for words in [&["--bind"][..], &["-o", "remount,bind,ro"]] {
            let mut command = Command::new("mount");
            command.args(words).arg(directory);
            if words == ["--bind"] {
                command.arg(directory);
            }
            let output = command.output().expect("`mount` can be run");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        read_only
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // A test that fails must not fail again here.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Opens the writing end of a named pipe, made anew: the reader's end is to be opened meanwhile.
///
/// # Errors
/// When there is no `mkfifo`, or it cannot be opened.
pub fn pipe(path: &Path) -> io::Result<File> {
    let made = Command::new("mkfifo").arg(path).status()?;
    if !made.success() {
        return Err(io::Error::other("mkfifo failed"));
    }
    // Open for both, so that nobody waits for the other end.
    OpenOptions::new().read(true).write(true).open(path)
}
