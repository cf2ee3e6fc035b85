//! The directory that a program keeps its data in: marked as its own, locked while it runs, readable by its user only.
//!
//! A directory that is not empty and not marked is somebody else's, and one with a higher format was written by a newer
//! version: both are refused and left as they are.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

const MARKER: &str = "alibi.json";
const LOCK: &str = "lock";

/// A data directory that is ours alone until dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    // Unlocked when closed.
    _lock: File,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    program: String,
    format: u32,
}

impl DataDirectory {
    /// Opens the directory of `program` in `format`; makes and marks it if it does not exist or is empty.
    ///
    /// # Errors
    /// When it cannot be read or written, is not this program's, was written in a newer format, or is in use.
    pub fn open(path: &Path, program: &str, format: u32) -> Result<Self, DataDirectoryError> {
        let error = |source| DataDirectoryError::Io { path: path.to_owned(), source };
        match check_marker(path, program, format) {
            Err(DataDirectoryError::Absent(_)) => create(path, program, format).map_err(error)?,
            checked => checked?,
        }
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(error)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirectoryError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(error(source)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks that `path` is a data directory of `program` in a format that `format` includes, without opening it.
///
/// # Errors
/// As [`DataDirectory::open`], and [`DataDirectoryError::Absent`] when there is none.
pub fn check_marker(path: &Path, program: &str, format: u32) -> Result<(), DataDirectoryError> {
    let error = |source| DataDirectoryError::Io { path: path.to_owned(), source };
    let text = match fs::read(path.join(MARKER)) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            let absent = match fs::read_dir(path) {
                Ok(mut entries) => entries.next().is_none(),
                Err(source) if source.kind() == io::ErrorKind::NotFound => true,
                Err(source) => return Err(error(source)),
            };
            let path = path.to_owned();
            return Err(if absent {
                DataDirectoryError::Absent(path)
            } else {
                DataDirectoryError::Foreign(path)
            });
        }
        Err(source) => return Err(error(source)),
    };
    let marker: Marker =
        serde_json::from_slice(&text).map_err(|_| DataDirectoryError::Foreign(path.to_owned()))?;
    if marker.program != program {
        return Err(DataDirectoryError::OtherProgram { path: path.to_owned(), owner: marker.program });
    }
    if marker.format > format {
        let written = marker.format;
        return Err(DataDirectoryError::Newer { path: path.to_owned(), written, known: format });
    }
    Ok(())
}

fn create(path: &Path, program: &str, format: u32) -> io::Result<()> {
    let existed = path.is_dir();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let made = create_private(path).and_then(|()| make_private(path)).and_then(|()| {
        let marker = Marker { program: program.to_owned(), format };
        write_whole(&path.join(MARKER), &serde_json::to_vec(&marker)?)
    });
    if made.is_err() && !existed {
        // Nothing is left of a directory that could not be finished; the first error is the one to tell.
        let _ = fs::remove_dir(path);
    }
    made
}

/// Writes a small file so that after a crash it is either whole or not there.
///
/// # Errors
/// When it cannot be written; nothing of it is left then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Makes a directory that only its user may enter, if there is none.
///
/// # Errors
/// When it cannot be made.
pub fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Takes a directory that was there already, and empty, from all but its user.
fn make_private(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let _ = path;
    Ok(())
}

/// A directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// There is none, or it is empty.
    #[error("no data in {}: nothing has been recorded there yet; name the agent's directory with --data", .0.display())]
    Absent(PathBuf),
    /// It has files in it, and is not marked.
    #[error("{} is not a data directory of Alibi and is not empty: choose another with --data", .0.display())]
    Foreign(PathBuf),
    /// It is marked by the other program.
    #[error("{} holds the data of {owner}: choose another with --data", path.display())]
    OtherProgram {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// It was written by a newer version.
    #[error("{} was written by a newer version (format {written}, this one knows up to {known}): upgrade, or choose another with --data", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        written: u32,
        /// The newest known here.
        known: u32,
    },
    /// Another process has it.
    #[error("{} is in use by another process: stop that first, or choose another with --data", .0.display())]
    InUse(PathBuf),
    /// The system says no.
    #[error("cannot use the data directory {}: {source}; mend that, or choose another with --data", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<DataDirectory, DataDirectoryError> {
        DataDirectory::open(path, "alibi-agent", 1)
    }

    #[test]
    fn a_directory_is_made_marked_locked_and_found_again() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("deep/data");
        let first = open(&path).unwrap();
        assert!(matches!(open(&path), Err(DataDirectoryError::InUse(_))));
        drop(first);
        open(&path).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_directory_that_was_there_becomes_private_too() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path();
        let names =
            || fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();

        fs::write(path.join("diary.txt"), "dear").unwrap();
        assert!(matches!(open(path), Err(DataDirectoryError::Foreign(_))));
        assert_eq!(names(), ["diary.txt"]);
        fs::remove_file(path.join("diary.txt")).unwrap();

        fs::write(path.join(MARKER), r#"{"program":"alibi","format":1}"#).unwrap();
        assert!(matches!(open(path), Err(DataDirectoryError::OtherProgram { .. })));
        fs::write(path.join(MARKER), r#"{"program":"alibi-agent","format":2}"#).unwrap();
        assert!(matches!(open(path), Err(DataDirectoryError::Newer { written: 2, known: 1, .. })));
        fs::write(path.join(MARKER), "{").unwrap();
        assert!(matches!(open(path), Err(DataDirectoryError::Foreign(_))));
        assert_eq!(names(), [MARKER]);
    }

    #[test]
    fn a_file_is_no_directory() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(open(temporary.path()), Err(DataDirectoryError::Io { .. })));
    }
}
