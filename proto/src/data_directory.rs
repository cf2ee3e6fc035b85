//! The directory that a program keeps its data in: marked as its own, locked while it runs, readable by its user only.
//!
//! A directory that is not empty and not marked is somebody else's, and one with a higher format was written by a newer
//! version: both are refused and left as they are.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

#[cfg(windows)]
mod windows;

const MARKER: &str = "alibi.json";
const LOCK: &str = "lock";
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A data directory that is ours alone until dropped. One that was made by opening it is taken away again when dropped
/// before [`DataDirectory::keep`]: a program that cannot start leaves nothing behind.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    made: Option<Made>,
    /// Unlocked when closed.
    lock: Option<File>,
}

/// What did not exist: directories, innermost first. If there is none of them, the directory was empty.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

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
        let made = match check_marker(path, program, format) {
            Err(DataDirectoryError::Absent(_)) => Some(create(path, program, format).map_err(error)?),
            checked => checked.map(|()| None)?,
        };
        let options = File::options().create(true).truncate(false).write(true).clone();
        let locked = options.open(path.join(LOCK)).map_err(TryLockError::Error);
        match locked.and_then(|lock| lock.try_lock().map(|()| lock)) {
            Ok(lock) => Ok(Self { path: path.to_owned(), made, lock: Some(lock) }),
            // Whoever was quicker has what was made.
            Err(TryLockError::WouldBlock) => Err(DataDirectoryError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => {
                made.iter().for_each(|made| made.take_away(path, None));
                Err(error(source))
            }
        }
    }

    /// The program has started: from now on the directory stays.
    pub fn keep(&mut self) {
        self.made = None;
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            made.take_away(&self.path, self.lock.take());
        }
    }
}

impl Made {
    /// Best effort: there is an error to tell already, and it says why.
    fn take_away(&self, path: &Path, lock: Option<File>) {
        // It was empty and has been ours alone since, so everything in it is ours.
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        // Last, since there may be systems that remove no directory in which a file is open: as long as it has this one
        // and no mark, nobody else takes it for theirs.
        drop(lock);
        let _ = fs::remove_file(path.join(LOCK));
        for directory in &self.0 {
            let _ = fs::remove_dir(directory);
        }
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

fn create(path: &Path, program: &str, format: u32) -> io::Result<Made> {
    let is_missing = |path: &&Path| matches!(path.try_exists(), Ok(false));
    let ancestors = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    let made = Made(ancestors.take_while(is_missing).map(Path::to_owned).collect());
    let marked = (|| {
        create_parents(path)?;
        create_private(path)?;
        make_private(path)?;
        let marker = Marker { program: program.to_owned(), format };
        write_whole(&path.join(MARKER), &serde_json::to_vec(&marker)?)
    })();
    match marked {
        Ok(()) => Ok(made),
        Err(error) => {
            for directory in &made.0 {
                // The first error is the one to tell.
                let _ = fs::remove_dir(directory);
            }
            Err(error)
        }
    }
}

/// Writes a small file so that after a crash it is either whole or not there.
///
/// # Errors
/// When it cannot be written; nothing of it is left then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, bytes, File::options().create(true).truncate(true))
}

fn write_with(path: &Path, bytes: &[u8], options: &mut fs::OpenOptions) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let written = (|| {
        let mut file = options.write(true).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Writes a small file that its user alone may read; on Windows, whoever may enter its directory. It is whole or not there
/// after a crash, and there once this returns.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What an earlier try left behind may be open to others.
    match fs::remove_file(path.with_extension("unfinished")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    write_with(path, bytes, &mut options)?;
    // Elsewhere a directory cannot be opened to be synced, nor need be.
    #[cfg(unix)]
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Reads a small file that its user alone may read.
///
/// # Errors
/// When it cannot be read, is large, or others may read it.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata()?.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            let path = path.display();
            return Err(io::Error::other(format!(
                "others may read it (mode {mode:o}): find out who did, and `chmod 600 {path}`"
            )));
        }
    }
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has more than {SECRET_BYTES_MAX} bytes, and is no secret of ours"
        )));
    }
    Ok(bytes)
}

/// Makes a directory that only its user may enter, if there is none; on Windows, by a program with an administrator's
/// rights, only administrators and the system.
///
/// # Errors
/// When it cannot be made.
#[cfg(not(windows))]
pub fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes a directory that only its user may enter, if there is none; on Windows, by a program with an administrator's
/// rights, only administrators and the system.
///
/// # Errors
/// When it cannot be made.
#[cfg(windows)]
pub fn create_private(path: &Path) -> io::Result<()> {
    windows::create_private(path)
}

/// Takes a directory that was there already from all but those for whom [`create_private`] makes one.
///
/// # Errors
/// When it is not ours to give.
#[cfg(not(windows))]
pub fn make_private(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let _ = path;
    Ok(())
}

/// Takes a directory that was there already from all but those for whom [`create_private`] makes one.
///
/// # Errors
/// When it is not ours to give.
#[cfg(windows)]
pub fn make_private(path: &Path) -> io::Result<()> {
    windows::make_private(path)
}

/// Makes a directory, if there is none, in which everybody may read and only its user, on Windows administrators and the
/// system, may write. What is above it may be closed.
///
/// # Errors
/// When it cannot be made.
#[cfg(not(windows))]
pub fn create_public(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_parents(path)?;
    fs::create_dir(path)?;
    // Whatever this program keeps from others otherwise (umask).
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// Makes a directory, if there is none, in which everybody may read and only its user, on Windows administrators and the
/// system, may write. What is above it may be closed.
///
/// # Errors
/// When it cannot be made.
#[cfg(windows)]
pub fn create_public(path: &Path) -> io::Result<()> {
    windows::create_public(path)
}

/// Whether this program has the rights of an administrator; then its directories are the administrators'.
#[cfg(windows)]
pub fn is_elevated() -> bool {
    windows::is_elevated()
}

#[cfg(not(windows))]
fn create_parents(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Where everybody may make files in a new directory, whoever may write above ours could put his own in its place.
#[cfg(windows)]
fn create_parents(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), create_private)
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
    #[error("cannot use the data directory {}: {source}; choose another with --data, or mend that", path.display())]
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
        let mut first = open(&path).unwrap();
        assert!(matches!(open(&path), Err(DataDirectoryError::InUse(_))));
        first.keep();
        drop(first);
        drop(open(&path).unwrap());
        assert!(path.join(MARKER).exists(), "it was there before");
    }

    #[test]
    fn what_was_made_for_a_program_that_does_not_start_is_taken_away() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("deep/data");
        let directory = open(&path).unwrap();
        fs::create_dir(path.join("ring")).unwrap();
        fs::write(path.join("ring/file"), "x").unwrap();
        drop(directory);
        assert!(!temporary.path().join("deep").exists());

        fs::create_dir_all(&path).unwrap();
        drop(open(&path).unwrap());
        assert!(path.exists(), "an empty directory was there before");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
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
    fn a_secret_is_its_users_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a.key");
        fs::write(path.with_extension("unfinished"), "left behind").unwrap();
        for secret in ["one", "another"] {
            write_secret(&path, secret.as_bytes()).unwrap();
            assert_eq!(read_secret(&path).unwrap(), secret.as_bytes());
        }
        assert!(!path.with_extension("unfinished").exists());
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(read_secret(&path).unwrap_err().to_string().contains("65536 bytes"));
    }

    #[test]
    #[cfg(unix)]
    fn a_secret_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a.key");
        write_secret(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_secret(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("(mode {mode:o})")) && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn what_is_public_can_be_read_by_everybody_and_stays_as_it_was_made() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("above/public");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        create_public(&path).unwrap();
        assert_eq!(mode(), 0o755);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        create_public(&path).unwrap();
        assert_eq!(mode(), 0o700, "somebody wanted it so");
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
