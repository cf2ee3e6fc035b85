//! The tables, version by version.

use crate::store::database::Format;

pub(super) const FORMAT: Format = Format {
    // "AlAc".
    application_id: 0x416c_4163,
    migrations: &[VERSION_1],
    writer_cache_kib: 4 * 1024,
    reader_cache_kib: 2 * 1024,
};

/// Times are nanoseconds since 1970 (UTC), host ids their 16 bytes, keys, secrets and CAs their SHA-256.
///
/// - `state` has one row. `admin`: there was a credential of an admin's once.
/// - `authority`: the greatest id is the newest, and signs. `cross_certificate`: its name and key, signed by an older one.
/// - `host.lease` is the current one, `superseded` and `abandoned` are several in a row, the newest first; 16 bytes each.
///   `tags` are one a line, as are those of a credential.
/// - `place` 0 is where a host was admitted last; 1 and 2 where it was when it was found in two places, and 2 is the one that
///   was refused. A host is marked as long as it has 2.
/// - `credential.kind`: 1 enrols, 2 is an analyst's token, 3 an analyst's certificate, which has no secret.
/// - `audit.hosts` are several in a row, 16 bytes each; `audit_host` has the same to be found by. `audit_end` is how far the log
///   goes, and after which entry it begins now. Nothing is changed, and nothing goes but from the beginning.
const VERSION_1: &str = "
    CREATE TABLE state (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        next_credential INTEGER NOT NULL,
        admin INTEGER NOT NULL
    ) STRICT;
    INSERT INTO state VALUES (1, 1, 0);

    CREATE TABLE authority (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        fingerprint BLOB NOT NULL UNIQUE,
        certificate BLOB NOT NULL,
        not_before INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        retired INTEGER
    ) STRICT;

    CREATE TABLE cross_certificate (
        authority BLOB NOT NULL REFERENCES authority (fingerprint),
        issuer BLOB NOT NULL REFERENCES authority (fingerprint),
        certificate BLOB NOT NULL,
        PRIMARY KEY (authority, issuer)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE host (
        id INTEGER PRIMARY KEY,
        uuid BLOB NOT NULL UNIQUE,
        name TEXT NOT NULL,
        origin TEXT NOT NULL,
        key BLOB NOT NULL,
        tags TEXT NOT NULL,
        enrolled INTEGER NOT NULL,
        not_before INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        authority BLOB NOT NULL REFERENCES authority (fingerprint),
        revoked INTEGER,
        lease BLOB,
        offered BLOB,
        superseded BLOB NOT NULL DEFAULT x'',
        abandoned BLOB NOT NULL DEFAULT x''
    ) STRICT;

    CREATE TABLE place (
        host INTEGER NOT NULL REFERENCES host (id),
        which INTEGER NOT NULL,
        name TEXT NOT NULL,
        machine_id TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        address TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (host, which)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE credential (
        id INTEGER PRIMARY KEY,
        kind INTEGER NOT NULL,
        name TEXT NOT NULL,
        role TEXT,
        secret BLOB UNIQUE,
        parent INTEGER,
        tags TEXT NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        revoked INTEGER,
        used INTEGER,
        uses INTEGER NOT NULL,
        uses_max INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX credential_by_parent ON credential (parent) WHERE parent IS NOT NULL;

    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        role TEXT NOT NULL,
        origin TEXT NOT NULL,
        action TEXT NOT NULL,
        detail TEXT NOT NULL,
        outcome TEXT NOT NULL,
        row_count INTEGER NOT NULL,
        hosts BLOB NOT NULL,
        all_hosts INTEGER NOT NULL,
        repeats INTEGER NOT NULL,
        head BLOB NOT NULL
    ) STRICT;
    CREATE INDEX audit_by_who ON audit (who);
    CREATE INDEX audit_of_all ON audit (seq) WHERE all_hosts = 1 AND role NOT IN ('', 'host');

    CREATE TABLE audit_host (
        host BLOB NOT NULL,
        seq INTEGER NOT NULL,
        by_analyst INTEGER NOT NULL,
        PRIMARY KEY (host, seq)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE audit_end (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        seq INTEGER NOT NULL,
        head BLOB NOT NULL,
        base_seq INTEGER NOT NULL,
        base_head BLOB NOT NULL
    ) STRICT;

    CREATE TRIGGER audit_goes_on BEFORE INSERT ON audit WHEN new.seq != (SELECT seq + 1 FROM audit_end)
        BEGIN SELECT RAISE (ABORT, 'the audit log goes on at its end only'); END;
    CREATE TRIGGER audit_stays_as_it_is BEFORE UPDATE ON audit
        BEGIN SELECT RAISE (ABORT, 'an entry of the audit log is never changed'); END;
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit WHEN old.seq > (SELECT base_seq FROM audit_end)
        BEGIN SELECT RAISE (ABORT, 'an entry of the audit log goes when all before it are gone, and not before its time'); END;
    CREATE TRIGGER audit_host_stays_as_it_is BEFORE UPDATE ON audit_host
        BEGIN SELECT RAISE (ABORT, 'an entry of the audit log is never changed'); END;
    CREATE TRIGGER audit_host_stays BEFORE DELETE ON audit_host WHEN old.seq > (SELECT base_seq FROM audit_end)
        BEGIN SELECT RAISE (ABORT, 'an entry of the audit log goes when all before it are gone, and not before its time'); END;
    CREATE TRIGGER audit_end_goes_forward BEFORE UPDATE ON audit_end
        WHEN new.seq < old.seq OR new.base_seq < old.base_seq OR new.base_seq > new.seq
        BEGIN SELECT RAISE (ABORT, 'the audit log goes forward only'); END;
    CREATE TRIGGER audit_end_stays BEFORE DELETE ON audit_end
        BEGIN SELECT RAISE (ABORT, 'the audit log has an end'); END;
";
