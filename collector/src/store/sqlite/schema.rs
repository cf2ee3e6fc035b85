//! The file: whose it is, which version its tables have, and how an older version becomes this one.
//!
//! A file that is not ours is left exactly as it is: its header is read before SQLite may touch it (which would make
//! files beside it, or roll a journal back). The application id is on page 1 before the write-ahead log is turned on,
//! so that the header tells it even after a crash.

use std::{fs::File, io::Read, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::store::StoreError;

/// `PRAGMA application_id` of our files: "Alib".
pub(super) const APPLICATION_ID: i32 = 0x416c_6962;

/// `PRAGMA user_version`: the version of the tables that this program reads and writes.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Step n brings version n to version n + 1. A step that was released is never changed.
const MIGRATIONS: &[&str] =
    &[VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8];

/// Times are nanoseconds since 1970 (UTC), uids and host ids their 16 bytes, records the messages of the schema.
///
/// - `ring`: each (host, epoch) ever seen, and the next seq wanted of it: an epoch that comes back goes on there.
/// - `flow` lies in order of time, so that a stretch of time is one stretch of the file. `remote` is a byte 4 or 6 and
///   then the address, so that a network is a range. An event that is stored twice breaks the primary key.
/// - `process` without `record` is one whose end was seen and its start not (yet).
/// - `user`: everybody who ever had a process there, for good; an empty name is that of an id without one.
/// - `coverage` is played back in order of `id`: kind 0 is a CoverageChanged, kind 1 a Hole.
const VERSION_1: &str = "
    CREATE TABLE host (
        id INTEGER PRIMARY KEY,
        uuid BLOB NOT NULL UNIQUE,
        description BLOB NOT NULL,
        ring INTEGER REFERENCES ring (id),
        known_until INTEGER,
        heard INTEGER,
        events INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    CREATE TABLE agent (
        added INTEGER PRIMARY KEY AUTOINCREMENT,
        address TEXT NOT NULL UNIQUE,
        host INTEGER UNIQUE REFERENCES host (id)
    ) STRICT;

    CREATE TABLE ring (
        id INTEGER PRIMARY KEY,
        host INTEGER NOT NULL REFERENCES host (id),
        epoch INTEGER NOT NULL,
        next_seq INTEGER NOT NULL,
        UNIQUE (host, epoch)
    ) STRICT;

    CREATE TABLE flow (
        host INTEGER NOT NULL,
        last INTEGER NOT NULL,
        ring INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        first INTEGER NOT NULL,
        remote BLOB NOT NULL,
        remote_port INTEGER NOT NULL,
        protocol INTEGER NOT NULL,
        process BLOB,
        record BLOB NOT NULL,
        PRIMARY KEY (host, last, ring, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX flow_by_remote ON flow (host, remote, last);
    CREATE INDEX flow_by_process ON flow (host, process, last) WHERE process IS NOT NULL;

    CREATE TABLE process (
        host INTEGER NOT NULL,
        uid BLOB NOT NULL,
        parent BLOB,
        started INTEGER,
        already_running INTEGER,
        record BLOB,
        exited INTEGER,
        exit_code INTEGER,
        PRIMARY KEY (host, uid)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX process_by_parent ON process (host, parent, started) WHERE parent IS NOT NULL;
    CREATE INDEX process_by_uid ON process (uid);
    CREATE INDEX process_by_exit ON process (exited) WHERE exited IS NOT NULL;

    CREATE TABLE user (
        host INTEGER NOT NULL,
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        PRIMARY KEY (host, id, name)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE listen (
        host INTEGER NOT NULL,
        since INTEGER NOT NULL,
        ring INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        process BLOB,
        record BLOB NOT NULL,
        PRIMARY KEY (host, since, ring, seq)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE coverage (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        host INTEGER NOT NULL,
        facet INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        record BLOB NOT NULL
    ) STRICT;
    CREATE INDEX coverage_by_host ON coverage (host, facet);

    CREATE TABLE forgotten (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        until INTEGER NOT NULL
    ) STRICT;
";

/// Names, executables, executions and links.
///
/// - `flow.name` is the key of the connection's own known name; `flow.unnamed_since` is since when the address of a
///   connection that does not tell its name can have been known, where that is long before the record; 0 if not known. Records
///   that are older than these columns lack both: nothing was recorded of names then, which the coverage tells.
/// - A `name` is the key of one: its labels from the last to the first, so that all names below one are one range.
/// - `resolution`: names in DNS answers, aliases included, each with each address; `ttl` in seconds, of the newest.
/// - `file` is a file's identity: device, inode, time of change and size, 8 bytes each. `used`: last known to be run.
/// - `execution_left_out`: how many executions of a process were not kept.
const VERSION_2: &str = "
    ALTER TABLE flow ADD COLUMN name BLOB;
    ALTER TABLE flow ADD COLUMN unnamed_since INTEGER;
    CREATE INDEX flow_by_name ON flow (host, name, last) WHERE name IS NOT NULL;
    CREATE INDEX flow_unnamed ON flow (host, last, first, remote_port, protocol, unnamed_since)
        WHERE unnamed_since IS NOT NULL;

    ALTER TABLE process ADD COLUMN file BLOB;
    CREATE INDEX process_by_file ON process (host, file) WHERE file IS NOT NULL;

    CREATE TABLE resolution (
        name BLOB NOT NULL,
        address BLOB NOT NULL,
        host INTEGER NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        ttl INTEGER NOT NULL,
        PRIMARY KEY (name, address, host)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX resolution_by_last ON resolution (last);

    CREATE TABLE server_name (
        host INTEGER NOT NULL,
        name BLOB NOT NULL,
        time INTEGER NOT NULL,
        ring INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (host, name, time, ring, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX server_name_by_time ON server_name (time);

    CREATE TABLE executable (
        host INTEGER NOT NULL,
        file BLOB NOT NULL,
        written INTEGER NOT NULL,
        used INTEGER NOT NULL,
        hashed INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (host, file, written)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE execution (
        host INTEGER NOT NULL,
        process BLOB NOT NULL,
        time INTEGER NOT NULL,
        ring INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        file BLOB,
        record BLOB NOT NULL,
        PRIMARY KEY (host, process, time, ring, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX execution_by_file ON execution (host, file) WHERE file IS NOT NULL;

    CREATE TABLE execution_left_out (
        host INTEGER NOT NULL,
        process BLOB NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (host, process)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE link (
        host INTEGER NOT NULL,
        time INTEGER NOT NULL,
        ring INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (host, time, ring, seq)
    ) STRICT, WITHOUT ROWID;
";

/// Until then, `flow.unnamed_since` was the opening of the connection, and missing where that was near: the owner may have
/// known the address for longer. Which of those with a name tell it themselves, only their records say.
const VERSION_3: &str = "
    UPDATE flow SET unnamed_since = 0 WHERE unnamed_since > 0 OR (unnamed_since IS NULL AND name IS NOT NULL);
";

/// `coverage` of kind 2 is a CoverageChanged that is true of a stretch only; until then it had kind 0, and may have it still.
/// The index finds all else, which is little, however much was lost.
const VERSION_4: &str = "
    CREATE INDEX coverage_standing ON coverage (host, facet) WHERE kind <> 2;
";

/// What is known of each host's clocks: a message of the schema. What was recorded before is of no known boot: the messages
/// that begin with say so of all the time until the latest that the host spoke of (the fixed64 `ClockPiece.last_ns`).
const VERSION_5: &str = "
    CREATE TABLE clock (
        host INTEGER PRIMARY KEY REFERENCES host (id),
        record BLOB NOT NULL
    ) STRICT;
    INSERT INTO clock (host, record)
        SELECT id, unhex('220921' || printf('%02X%02X%02X%02X%02X%02X%02X%02X', until & 255, until >> 8 & 255,
            until >> 16 & 255, until >> 24 & 255, until >> 32 & 255, until >> 40 & 255, until >> 48 & 255,
            until >> 56 & 255))
        FROM (SELECT id, max(coalesce(known_until, 0), coalesce(heard, 0),
            coalesce((SELECT max(last) FROM flow WHERE flow.host = host.id), 0)) AS until
            FROM host WHERE ring IS NOT NULL);
";

/// The chain of hashes: `ring.head` is that before `next_seq`, missing where it is not known. A ring whose past became
/// another one has its negative id for an epoch, and the one that it became has its epoch.
const VERSION_6: &str = "
    ALTER TABLE ring ADD COLUMN head BLOB;

    CREATE TABLE anchor (
        ring INTEGER NOT NULL REFERENCES ring (id),
        seq INTEGER NOT NULL,
        head BLOB NOT NULL,
        at INTEGER NOT NULL,
        known_until INTEGER,
        PRIMARY KEY (ring, seq)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE chain_break (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        host INTEGER NOT NULL REFERENCES host (id),
        at INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE INDEX chain_break_by_host ON chain_break (host);
";

/// `coverage` of kind 3 is a Timeline: all that the rows before it came to. The rows of a host that has many are folded into
/// one when the next comes; nothing is changed before.
const VERSION_7: &str = "";

/// `coverage` has one row of each host and facet, of kind 3. What was written before in several becomes one when the next is
/// told.
const VERSION_8: &str = "DROP INDEX coverage_standing;";

const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const WRITER_CACHE_KIB: i32 = 64 * 1024;
const READER_CACHE_KIB: i32 = 8 * 1024;
const STATEMENTS_KEPT_MAX: usize = 64;
/// The write-ahead log is cut back to this after a reader let it grow.
const JOURNAL_BYTES_MAX: i64 = 64 * 1024 * 1024;

/// Opens the file for writing, makes it if there is none, and brings it up to date.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let foreign = |problem: String| StoreError::Foreign { path: path.display().to_string(), problem };
    check_header(path).map_err(foreign)?;

    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // What was written last may be in the log still, and the header behind it.
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    check_version(version).map_err(foreign)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    migrate(&mut connection)?;

    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(foreign(format!(
            "is on a file system that allows no write-ahead log (journal mode {mode}): keep the data on a local disk"
        )));
    }
    connection.pragma_update_and_check(None, "journal_size_limit", JOURNAL_BYTES_MAX, |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT_MAX);
    Ok(connection)
}

/// Opens the file, which [`open_writer`] has opened, for reading.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT_MAX);
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(0);
    for step in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    if done < MIGRATIONS.len() {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Whether the file is ours, or empty, by its header alone (the SQLite file format, sections 1.3 and 1.6).
fn check_header(path: &Path) -> Result<(), String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
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
    if application != APPLICATION_ID {
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
    check_version(integer(60))
}

const NO_DATABASE: &str =
    "is not a SQLite database: move it elsewhere, or choose another directory with --data";

fn unreadable(error: std::io::Error) -> String {
    format!("cannot be read: {error}; mend that, or choose another directory with --data")
}

fn check_version(version: i32) -> Result<(), String> {
    if version > VERSION {
        return Err(format!(
            "was written by a newer version (schema {version}, this one knows up to {VERSION}): upgrade, or choose another directory with --data"
        ));
    }
    if version < 0 { Err(format!("has schema {version}, which no version ever wrote")) } else { Ok(()) }
}
