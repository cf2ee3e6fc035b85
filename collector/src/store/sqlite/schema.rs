//! The tables, version by version.

use super::prevalence;
use crate::store::{database::Format, flows};

pub(in crate::store) const FORMAT: Format = Format {
    // "Alib".
    application_id: 0x416c_6962,
    migrations: &[
        VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8, VERSION_9,
        VERSION_10, VERSION_11, VERSION_12, VERSION_13, VERSION_14, VERSION_15,
    ],
    writer_cache_kib: 64 * 1024,
    reader_cache_kib: 8 * 1024,
};

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

/// Flow records are in files of their own (`store/flows`), and here only until they are there. What was written into `flow`
/// before is moved as the store is opened, and the table goes.
const VERSION_9: &str = flows::CATALOG;

/// What tells damage in flow records from what was written.
const VERSION_10: &str = flows::CHECKSUMS;

/// The same of what else a `clear` rests on (`store/checksum`). Rows that an older version has written have none, until they are
/// written the next time.
const VERSION_11: &str = "
    ALTER TABLE host ADD COLUMN checksum INTEGER;
    ALTER TABLE coverage ADD COLUMN checksum INTEGER;
    ALTER TABLE clock ADD COLUMN checksum INTEGER;
    ALTER TABLE forgotten ADD COLUMN checksum INTEGER;
";

/// Executables over the whole fleet. What was stored of processes before is gone through as the store is opened
/// (`prevalence/fill`).
const VERSION_12: &str = prevalence::TABLES;

/// Processes in the order in which a search lists them.
const VERSION_13: &str =
    "CREATE INDEX process_by_start ON process (started DESC, host, uid) WHERE record IS NOT NULL;";

/// ClientHellos by their name: a question is about all hosts.
const VERSION_14: &str = "
    CREATE TABLE server_name_anew (
        name BLOB NOT NULL,
        host INTEGER NOT NULL,
        time INTEGER NOT NULL,
        ring INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (name, host, time, ring, seq)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO server_name_anew (name, host, time, ring, seq, record)
        SELECT name, host, time, ring, seq, record FROM server_name;
    DROP TABLE server_name;
    ALTER TABLE server_name_anew RENAME TO server_name;
    CREATE INDEX server_name_by_time ON server_name (time);
";

/// What is written with each batch takes little room, so that many hosts share a page.
///
/// - `host_description`: what a host says of itself, which was in `host`.
/// - `answer`: a name in a DNS answer with one of its addresses, who was the first to get it, and about when it was last got; and
///   `resolved`: which host got it and when, `ttl` in seconds, of the newest. Both were in `resolution`.
///
/// The checksums are those of what a `clear` by name rests on; rows of older versions have none.
const VERSION_15: &str = "
    CREATE TABLE host_description (
        host INTEGER PRIMARY KEY REFERENCES host (id),
        record BLOB NOT NULL
    ) STRICT;
    INSERT INTO host_description (host, record) SELECT id, description FROM host;
    ALTER TABLE host DROP COLUMN description;

    CREATE TABLE answer (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name BLOB NOT NULL,
        address BLOB NOT NULL,
        host INTEGER NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        checksum INTEGER,
        UNIQUE (name, address)
    ) STRICT;
    INSERT INTO answer (name, address, host, first, last)
        SELECT name, address, host, min(first), (SELECT max(last) FROM resolution AS one
            WHERE one.name = resolution.name AND one.address = resolution.address)
        FROM resolution GROUP BY name, address ORDER BY name, address;

    CREATE TABLE resolved (
        host INTEGER NOT NULL,
        answer INTEGER NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        ttl INTEGER NOT NULL,
        checksum INTEGER,
        PRIMARY KEY (host, answer)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO resolved (host, answer, first, last, ttl)
        SELECT resolution.host, answer.id, resolution.first, resolution.last, ttl FROM resolution
        JOIN answer ON answer.name = resolution.name AND answer.address = resolution.address ORDER BY 1, 2;
    DROP TABLE resolution;

    ALTER TABLE server_name ADD COLUMN checksum INTEGER;
";
