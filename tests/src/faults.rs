//! A disk that fails when a test says so: a layer between a program and what it asks of the system, see `faults.c`.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::io::Errno;

/// Kinds of calls that can fail, as `faults.c` has them.
pub mod kind {
    /// Writing to a file.
    pub const WRITE: u32 = 1;
    /// Making it safe.
    pub const SYNC: u32 = 2;
    /// Making one, or opening it to write.
    pub const OPEN: u32 = 4;
    /// Giving it its name.
    pub const RENAME: u32 = 8;
    /// Removing it.
    pub const UNLINK: u32 = 16;
    /// Cutting it.
    pub const TRUNCATE: u32 = 32;
    /// A write that fails has first written half.
    pub const SHORT: u32 = 64;
    /// All of them.
    pub const ALL: u32 = 127;
}

/// The layer, and what it is told.
#[derive(Debug)]
pub struct Faults {
    directory: tempfile::TempDir,
    below: PathBuf,
    control: File,
}

impl Faults {
    /// One that can make fail what is asked of paths below this directory, and lets all pass for now.
    ///
    /// # Panics
    /// When it cannot be compiled.
    pub fn below(below: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let source = directory.path().join("faults.c");
        fs::write(&source, include_str!("faults.c")).expect("it can be written");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(directory.path().join("faults.so"));
        let output = compile.arg(&source).arg("-ldl").output().expect("there is a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.path().join("control"))
            .expect("it can be made");
        let faults = Self { directory, below: below.to_owned(), control };
        faults.mend();
        faults
    }

    /// Puts a program that is yet to be started on the layer.
    pub fn under<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_PRELOAD", self.directory.path().join("faults.so"))
            .env("ALIBI_FAULTS_BELOW", &self.below)
            .env("ALIBI_FAULTS_CONTROL", self.directory.path().join("control"))
    }

    /// From now on, one in so many calls of these kinds fails.
    pub fn fail(&self, with: Errno, kinds: u32, one_in: u32) {
        self.tell([with.raw_os_error() as u32, kinds, one_in]);
    }

    /// From now on, none does.
    pub fn mend(&self) {
        self.tell([0; 3]);
    }

    /// How many have failed so far.
    ///
    /// # Panics
    /// When that cannot be read.
    pub fn failed(&self) -> u64 {
        let mut count = [0; 8];
        self.control.read_exact_at(&mut count, 16).expect("it can be read");
        u64::from_ne_bytes(count)
    }

    fn tell(&self, words: [u32; 3]) {
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        self.control.write_all_at(&bytes, 0).expect("it can be written");
        let counts = self.control.metadata().expect("it is there").len();
        if counts < 24 {
            self.control.set_len(24).expect("it can be longer");
        }
    }
}
