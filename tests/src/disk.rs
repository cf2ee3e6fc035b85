//! A small file system of its own, for tests of full disks. Needs root.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A file system in memory; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

/// What fills a disk; taken away when dropped.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl SmallDisk {
    /// One with room for so many bytes.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn new(bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "alibi-lab"])
            .arg(directory.path());
        assert!(
            mount.status().expect("`mount` can be run").success(),
            "a small file system cannot be mounted"
        );
        Self(directory)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    /// When it cannot be written at all.
    pub fn fill(&self) -> Ballast {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).expect("a file");
        for piece in [&[0; 4096][..], &[0]] {
            while file.write_all(piece).is_ok() {}
        }
        Ballast(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what still runs on it in a test that failed must not keep it.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
