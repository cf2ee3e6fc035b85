//! rpm: `rpmdb.sqlite`, in `/usr/lib/sysimage/rpm` or `/var/lib/rpm`.
//!
//! The table `Basenames` says which packages have a file of a name, and its number in each; `Packages` has the header of
//! each package ([`header`]), which says in which directory that is. So a look-up reads a few pages, and nothing is kept
//! from one to the next.
//!
//! Nothing is ever written, made or locked for long in rpm's directory. rpm writes ahead (WAL): what it has not yet
//! brought into the database is in `rpmdb.sqlite-wal`, and as long as there is something in that, it is read through
//! `rpmdb.sqlite-shm`, which is only read, too. Otherwise the database stands for itself, and is read without any lock; if it
//! was changed meanwhile, that is no answer.
//!
//! The older forms, those of Berkeley DB (`Packages`, until 2020) and NDB (`Packages.db`), are not read.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alibi_proto::executable::{FileIdentity, Package};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, config::DbConfig, limits::Limit};

use self::header::{Header, PackageFile};
use super::Busy;

mod header;
#[cfg(test)]
mod tests;

/// Where the database is: on newer systems in the first, which the second is then a link to.
const DIRECTORIES: [&str; 2] = ["usr/lib/sysimage/rpm", "var/lib/rpm"];
const DATABASE: &str = "rpmdb.sqlite";
/// What an older rpm leaves there.
const OLDER: [&str; 2] = ["Packages", "Packages.db"];

/// A package with a larger header has no files here. The largest known has some 10 MiB.
const HEADER_BYTES_MAX: i32 = 64 << 20;
/// If more files have a name, in however many packages, those beyond are not looked at. The commonest names of programs are
/// in some tens of packages.
const CANDIDATES_MAX: u16 = 256;
/// Of the database, in memory during a look-up; negative, in KiB.
const CACHE_KIB: i32 = -256;

/// Directories that may be links to others: where `/usr` is merged, and where `/usr/sbin` is.
const MERGED: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr/sbin"];

pub(super) struct Rpm {
    root: PathBuf,
    /// Something that is wrong with it has been said.
    has_complained: bool,
}

/// How the database is to be read, and whether it is still the same.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    modified: Option<SystemTime>,
    bytes: u64,
    /// Something is in the database's log.
    has_log: bool,
    has_index_of_log: bool,
}

impl Rpm {
    pub(super) fn open(root: &Path) -> Self {
        Self { root: root.to_owned(), has_complained: false }
    }

    /// The package that has `file` at `path`.
    ///
    /// # Errors
    /// When the database cannot be read just now, or says nothing of this file while rpm works on it.
    pub(super) fn owner(&mut self, path: &str, file: &FileIdentity) -> Result<Option<Package>, Busy> {
        let Some(database) = self.database() else { return Ok(None) };
        let Some(before) = State::of(&database) else { return Err(Busy) };
        let found = self.look_up(&database, before, path, file);
        if !before.has_log && State::of(&database) != Some(before) {
            return Err(Busy);
        }
        match found {
            Ok(None) => Ok(None),
            // Written just now, and not yet in the database: what that says is of the file that was there before.
            Ok(Some(found)) if !found.is_it && is_locked(&database) => Err(Busy),
            Ok(Some(found)) => Ok(Some(found.package)),
            Err(problem) if is_passing(&problem) => Err(Busy),
            Err(problem) => {
                self.complain(&database, &problem.to_string());
                Ok(None)
            }
        }
    }

    fn database(&mut self) -> Option<PathBuf> {
        let directories = DIRECTORIES.map(|directory| self.root.join(directory));
        let found = directories.iter().map(|directory| directory.join(DATABASE)).find(|path| path.is_file());
        if found.is_none() && !self.has_complained {
            let mut older = directories.iter().flat_map(|directory| OLDER.map(|name| directory.join(name)));
            if let Some(older) = older.find(|path| path.is_file()) {
                self.complain(&older, "it has an older form than SQLite, which is not read");
            }
        }
        found
    }

    fn complain(&mut self, database: &Path, problem: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            tracing::warn!("cannot tell packages of files by {}: {problem}", database.display());
        }
    }

    fn look_up(
        &mut self,
        database: &Path,
        state: State,
        path: &str,
        file: &FileIdentity,
    ) -> rusqlite::Result<Option<Found>> {
        let Some((directory, name)) = path.rsplit_once('/') else { return Ok(None) };
        let connection = connect(database, state)?;
        let mut statement = connection
            .prepare("SELECT hnum, idx FROM Basenames WHERE key = ?1 ORDER BY hnum DESC LIMIT ?2")?;
        let candidates = statement.query_map((name, CANDIDATES_MAX + 1), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })?;
        let mut candidates: Vec<_> = candidates.collect::<Result<_, _>>()?;
        if candidates.len() > CANDIDATES_MAX.into() {
            candidates.truncate(CANDIDATES_MAX.into());
            self.complain(database, &format!("more than {CANDIDATES_MAX} files are called {name}"));
        }
        let directories = Directories::of(&self.root);
        let wanted = directories.name(&format!("{directory}/"));
        let mut statement =
            connection.prepare("SELECT blob FROM Packages WHERE hnum = ?1 AND length(blob) <= ?2")?;
        let mut best = None;
        // The one that was put there last first: while a package is replaced, both are there.
        for (package, index) in candidates {
            let Ok(index) = usize::try_from(index) else { continue };
            let found = statement.query_row((package, HEADER_BYTES_MAX), |row| {
                let header = Header::parse(row.get_ref(0)?.as_blob()?);
                Ok(header.and_then(|header| {
                    let found = header.file(index)?;
                    let is_there = found.name == name.as_bytes()
                        && found.is_installed
                        && directories.name(str::from_utf8(found.directory).ok()?) == wanted;
                    is_there.then(|| Found::new(&header, &found, file))?
                }))
            });
            let Some(found) = found.optional()?.flatten() else { continue };
            if found.is_it {
                return Ok(Some(found));
            }
            best = best.or(Some(found));
        }
        Ok(best)
    }
}

struct Found {
    package: Package,
    /// The file is as the package has it.
    is_it: bool,
}

impl Found {
    fn new(header: &Header<'_>, found: &PackageFile<'_>, file: &FileIdentity) -> Option<Self> {
        let is_size = found.size.is_none_or(|size| u64::from(size) == file.size);
        let modified_s = file.modified.as_nanos() / 1_000_000_000;
        let is_it = is_size && found.modified_s.is_some_and(|modified| u64::from(modified) == modified_s);
        let (name, version) = (header.name()?.to_owned(), header.version()?);
        Some(Self { package: Package { name, version, source: "rpm".to_owned() }, is_it })
    }
}

impl State {
    fn of(database: &Path) -> Option<Self> {
        let beside = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            fs::metadata(path).ok()
        };
        let metadata = fs::metadata(database).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            has_log: beside("-wal").is_some_and(|log| log.len() > 0),
            has_index_of_log: beside("-shm").is_some(),
        })
    }
}

fn connect(database: &Path, state: State) -> rusqlite::Result<Connection> {
    let how = match (state.has_log, state.has_index_of_log) {
        (false, _) => "immutable=1",
        (true, true) => "readonly_shm=1",
        // It would have to be made.
        (true, false) => return Err(failure(rusqlite::ffi::SQLITE_BUSY)),
    };
    let Some(path) = database.to_str() else { return Err(failure(rusqlite::ffi::SQLITE_CANTOPEN)) };
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{path}?{how}"), flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, HEADER_BYTES_MAX + 1024)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // A view could compute for ever.
    let tables =
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('Packages', 'Basenames')";
    if connection.query_row(tables, [], |row| row.get::<_, i64>(0))? != 2 {
        return Err(failure(rusqlite::ffi::SQLITE_SCHEMA));
    }
    Ok(connection)
}

fn failure(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
}

/// Somebody works on the database, or has just exchanged it.
fn is_passing(problem: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, FileLockingProtocolFailed, ReadOnly};
    matches!(
        problem.sqlite_error_code(),
        Some(CannotOpen | DatabaseBusy | DatabaseLocked | FileLockingProtocolFailed | ReadOnly)
    )
}

/// Whether rpm is installing or removing something: then it holds a lock. Where the system does not list its locks, it does
/// not seem so.
fn is_locked(database: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(lock) = fs::metadata(database.with_file_name(".rpm.lock")) else { return false };
        let Ok(locks) = fs::read_to_string("/proc/locks") else { return false };
        // `1: POSIX  ADVISORY  WRITE 4711 00:2a:1234 0 EOF`. The device is not always what a program is told.
        let inode = format!(":{}", lock.ino());
        locks.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace();
            fields.nth(3) == Some("WRITE") && fields.nth(1).is_some_and(|file| file.ends_with(&inode))
        })
    }
    #[cfg(not(unix))]
    {
        let _ = database;
        false
    }
}

/// Names of the same directory.
struct Directories(Vec<(&'static str, String)>);

impl Directories {
    fn of(root: &Path) -> Self {
        let target = |name: &'static str| {
            let target = fs::read_link(root.join(&name[1..])).ok()?;
            let target = Path::new(name).parent()?.join(target).to_str()?.to_owned();
            // Nothing else is the same for a package manager.
            let is_merged =
                MERGED.contains(&target.as_str()) || MERGED.contains(&target.strip_prefix("/usr")?);
            is_merged.then_some((name, target))
        };
        Self(MERGED.into_iter().filter_map(target).collect())
    }

    /// The same for all names of a directory.
    fn name(&self, directory: &str) -> String {
        let mut name = directory.to_owned();
        // A link may lead to a link.
        for _ in 0..3 {
            let link = self.0.iter().find_map(|(link, target)| {
                name.strip_prefix(link)
                    .filter(|rest| rest.starts_with('/'))
                    .map(|rest| format!("{target}{rest}"))
            });
            match link {
                Some(other) => name = other,
                None => break,
            }
        }
        name
    }
}
