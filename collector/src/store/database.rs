//! A SQLite file of ours: whose it is, which version its tables have, how an older version becomes this one; one connection
//! that writes, behind a lock, and some that read and, by the write-ahead log, never wait for it.
//!
//! A file that is not ours is left exactly as it is: its header is read before SQLite may touch it (which would make
//! files beside it, or roll a journal back). The application id is on page 1 before the write-ahead log is turned on,
//! so that the header tells it even after a crash.
//!
//! What was written is on the disk when the call returns.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, InterruptHandle, OpenFlags, Transaction, TransactionBehavior, config::DbConfig,
    ffi,
};

use super::{StoreError, together::Together};

/// Connections for reading that are kept open when nobody reads; more are opened when more is read at once.
const READERS_KEPT_MAX: usize = 8;
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const STATEMENTS_KEPT_MAX: usize = 64;
/// Pages that the write-ahead log has before they are written where they belong, each once: most are written again and again.
const JOURNAL_PAGES: u32 = 4_096;
/// The write-ahead log is cut back to this after a reader let it grow.
const JOURNAL_BYTES_MAX: i64 = 64 * 1024 * 1024;

/// What makes a file one of ours.
pub(super) struct Format {
    /// `PRAGMA application_id`.
    pub(super) application_id: i32,
    /// Step n brings version n (`PRAGMA user_version`) to version n + 1. A step that was released is never changed.
    pub(super) migrations: &'static [&'static str],
    /// What the connection that writes keeps in memory.
    pub(super) writer_cache_kib: i32,
    /// What each connection that reads keeps in memory.
    pub(super) reader_cache_kib: i32,
}

impl Format {
    /// The version of the tables that this program reads and writes.
    pub(super) const fn version(&self) -> i32 {
        self.migrations.len() as i32
    }
}

/// One file.
pub(super) struct Database {
    path: PathBuf,
    format: &'static Format,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    together: Together<Infallible>,
}

impl Database {
    /// Opens the file at `path`, or makes it, for its user alone; one of an older version is brought up to date.
    ///
    /// # Errors
    /// When the file is no database, belongs to another program or to a newer version (it is left untouched then), or
    /// cannot be opened.
    pub(super) fn open(path: &Path, format: &'static Format) -> Result<Self, StoreError> {
        let writer = open_writer(path, format).map_err(|error| named(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            format,
            writer: Mutex::new(writer),
            readers: Mutex::default(),
            together: Together::default(),
        })
    }

    /// Opens the file, which another program may be writing, to read it only.
    ///
    /// # Errors
    /// When there is none, it is no database of ours, of another version than this program's, or cannot be opened.
    pub(super) fn open_to_read(path: &Path, format: &'static Format) -> Result<Self, StoreError> {
        let foreign = |problem: String| StoreError::Foreign { path: path.display().to_string(), problem };
        check_header(path, format).map_err(foreign)?;
        let open = || -> Result<(Connection, i32), StoreError> {
            let connection = open_reader(path, format)?;
            let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok((connection, version))
        };
        let (reader, version) = open().map_err(|error| named(path, error))?;
        check_version(version, format).map_err(foreign)?;
        if version != format.version() {
            return Err(foreign(format!(
                "was written by an older version (schema {version}, this one's is {}): start `alibi serve` once, which brings it up to date",
                format.version()
            )));
        }
        // Whoever tried to write would find that it may not.
        let writer = Mutex::new(reader);
        Ok(Self {
            path: path.to_owned(),
            format,
            writer,
            readers: Mutex::default(),
            together: Together::default(),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with how a table and its indexes lie in the file, in few words; nothing where all of it can be reached. What
    /// is in the rows is not looked at. `begins` is given what ends that early.
    pub(super) fn check_table(
        &self,
        table: &str,
        begins: impl FnOnce(InterruptHandle),
    ) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            begins(connection.get_interrupt_handle());
            check_table(connection, table)
        })
    }

    /// The names of its tables.
    pub(super) fn tables(&self) -> Result<Vec<String>, StoreError> {
        self.read(tables)
    }

    /// Reads from one state of the database, whatever is written meanwhile.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.try_read(read).map_err(|error| named(&self.path, error))
    }

    fn try_read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let kept = lock(&self.readers).pop();
        let connection = kept.map_or_else(|| open_reader(&self.path, self.format), Ok)?;
        let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Deferred)?;
        let result = read(&transaction)?;
        transaction.finish()?;
        let mut readers = lock(&self.readers);
        if readers.len() < READERS_KEPT_MAX {
            readers.push(connection);
        }
        Ok(result)
    }

    /// The connection that writes. Nobody else writes until it is let go.
    pub(super) fn writer(&self) -> MutexGuard<'_, Connection> {
        lock(&self.writer)
    }

    /// Writes all or nothing; on the disk when it returns.
    pub(super) fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.write_with(&mut self.writer(), write)
    }

    /// The same by whoever has the connection that writes.
    pub(super) fn write_with<T>(
        &self,
        connection: &mut Connection,
        write: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        transact(connection, write).map_err(|error| named(&self.path, error))
    }

    /// The same, in one transaction with what others write so meanwhile: see [`Together`].
    pub(super) fn write_together<T: Send + 'static>(
        &self,
        write: impl Fn(&Transaction<'_>) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let write = move |transaction: &Transaction<'_>, _: &mut Vec<Infallible>| write(transaction);
        self.together.write(self, write, |_, _| Ok(()), |()| {})
    }
}

/// What is told of one table.
const PROBLEMS_MAX: usize = 8;

fn check_table(connection: &Connection, table: &str) -> Result<Vec<String>, StoreError> {
    // The names of tables are ours, and have no quotes.
    let check = format!("PRAGMA quick_check('{table}')");
    let said = (|| {
        let mut statement = connection.prepare(&check)?;
        let said = statement.query_map([], |row| row.get::<_, String>(0))?.take(PROBLEMS_MAX);
        said.collect::<Result<Vec<String>, _>>()
    })();
    match said {
        Ok(said) => Ok(said.into_iter().filter(|said| said != "ok").collect()),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
            Ok(vec![error.to_string()])
        }
        Err(error) => Err(error.into()),
    }
}

fn tables(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let select =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut statement = connection.prepare(select)?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

fn transact<T>(
    connection: &mut Connection,
    write: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let result = write(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

/// Says which file it is that SQLite cannot use, and whether its disk is full.
fn named(path: &Path, error: StoreError) -> StoreError {
    let StoreError::Sqlite(source) = error else { return error };
    let path = path.display().to_string();
    // The index of the write-ahead log, which readers and the writer share, cannot grow for no other reason.
    let no_index =
        source.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE);
    if no_index || source.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        StoreError::Full { path }
    } else {
        StoreError::Unusable { path, source }
    }
}

/// What the locks guard is whole between any two statements, and a transaction that unwinds is rolled back.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file for writing, makes it if there is none, and brings it up to date.
fn open_writer(path: &Path, format: &Format) -> Result<Connection, StoreError> {
    let foreign = |problem: String| StoreError::Foreign { path: path.display().to_string(), problem };
    check_header(path, format).map_err(foreign)?;
    // If that fails SQLite tells why.
    let _ = make_private(path);

    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    plan_once(&connection)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // What was written last may be in the log still, and the header behind it.
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    check_version(version, format).map_err(foreign)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -format.writer_cache_kib)?;
    // Of a file that is made now: what becomes free can be given back to the disk.
    if version == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    migrate(&mut connection, format)?;

    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(foreign(format!(
            "is on a file system that allows no write-ahead log (journal mode {mode}): keep the data on a local disk"
        )));
    }
    connection.pragma_update_and_check(None, "journal_size_limit", JOURNAL_BYTES_MAX, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", JOURNAL_PAGES, |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT_MAX);
    Ok(connection)
}

/// Makes the file, if there is none, so that its user alone may read it. SQLite gives those beside it the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// What stands behind the name of a file that was put aside, and before a number.
pub(super) const ASIDE: &str = ".damaged-";

/// Gives a file, and what SQLite has beside it, another name, so that another can take its place. That name.
pub(super) fn put_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let free = |number: &u32| !with_end(path, &format!("{ASIDE}{number}")).exists();
    let aside = with_end(path, &format!("{ASIDE}{}", (1..).find(free).unwrap_or_default()));
    each_file(path, "put aside", |end| std::fs::rename(with_end(path, end), with_end(&aside, end)))?;
    Ok(aside)
}

/// Removes a file, and what SQLite has beside it. Whoever reads it still, goes on.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    each_file(path, "removed", |end| std::fs::remove_file(with_end(path, end)))
}

/// Does it with the file, and with what SQLite has beside it, as far as that is there.
fn each_file(path: &Path, done: &str, change: impl Fn(&str) -> io::Result<()>) -> Result<(), StoreError> {
    for end in ["", "-wal", "-shm"] {
        match change(end) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = path.display().to_string();
                return Err(StoreError::Foreign { path, problem: format!("cannot be {done}: {error}") });
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Opens the file, which [`open_writer`] has opened, for reading.
fn open_reader(path: &Path, format: &Format) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    plan_once(&connection)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -format.reader_cache_kib)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT_MAX);
    Ok(connection)
}

/// A statement is planned when it is prepared. Otherwise SQLite plans it anew for other parameters, which takes longer than most
/// of ours, and there are no statistics that it could learn anything from.
fn plan_once(connection: &Connection) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn migrate(connection: &mut Connection, format: &Format) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(0);
    for step in format.migrations.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    if done < format.migrations.len() {
        transaction.pragma_update(None, "application_id", format.application_id)?;
        transaction.pragma_update(None, "user_version", format.version())?;
    }
    transaction.commit()?;
    Ok(())
}

/// Whether a file is one of ours that a newer version has written, as far as its header tells.
pub(super) fn is_newer(path: &Path, format: &Format) -> bool {
    let mut header = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let integer =
        |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    read.is_ok() && integer(68) == format.application_id && integer(60) > format.version()
}

/// Whether the file is ours, or empty, by its header alone (the SQLite file format, sections 1.3 and 1.6).
fn check_header(path: &Path, format: &Format) -> Result<(), String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut header = Vec::new();
    Read::by_ref(&mut file).take(108).read_to_end(&mut header).map_err(unreadable)?;
    if header.is_empty() {
        return Ok(());
    }
    let Ok(header) = <[u8; 108]>::try_from(header) else {
        return Err(NO_DATABASE.to_owned());
    };
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(NO_DATABASE.to_owned());
    }
    let integer =
        |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let application = integer(68);
    if application != format.application_id {
        let logged = header[18] == 2;
        let (pages, tables) = (integer(28), u16::from_be_bytes([header[103], header[104]]));
        let empty = !logged && pages <= 1 && tables == 0;
        return if empty {
            Ok(())
        } else {
            Err("belongs to another program: move it elsewhere, or choose another directory with --data"
                .to_owned())
        };
    }
    check_version(integer(60), format)
}

const NO_DATABASE: &str =
    "is not a SQLite database: move it elsewhere, or choose another directory with --data";

fn unreadable(error: io::Error) -> String {
    format!("cannot be read: {error}; mend that, or choose another directory with --data")
}

fn check_version(version: i32, format: &Format) -> Result<(), String> {
    let known = format.version();
    if version > known {
        return Err(format!(
            "was written by a newer version (schema {version}, this one knows up to {known}): upgrade, or choose another directory with --data"
        ));
    }
    if version < 0 { Err(format!("has schema {version}, which no version ever wrote")) } else { Ok(()) }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FORMAT: Format = Format {
        application_id: 7,
        migrations: &["CREATE TABLE number (one INTEGER PRIMARY KEY) STRICT"],
        writer_cache_kib: 1_024,
        reader_cache_kib: 1_024,
    };

    #[test]
    fn a_file_is_its_users_alone() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("a.db"), &FORMAT).unwrap();
        database.write(|transaction| Ok(transaction.execute("INSERT INTO number VALUES (1)", [])?)).unwrap();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
    }
}
