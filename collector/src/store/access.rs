//! Where what decides about access is kept: a SQLite file of its own, so that what is forgotten, restored or given away with
//! the events takes none of it along.
//!
//! No private key and no secret is in it. Everything that is written is on the disk when the call returns. What is decided is
//! decided in [`crate::access`]: here is only what one transaction must do as one.

use std::path::Path;

use alibi_proto::{id::HostId, time::Timestamp, tls::Fingerprint};

use super::{StoreError, database::Database};
use crate::access::{
    audit::{Entries, Entry, Filter, Note, Verified},
    authority::Authority,
    credential::{Credential, CredentialId, SecretHash},
    host::{Copied, EnrolledHost, Validity},
    lease::{Leases, Place},
};

mod audit;
mod authorities;
mod credentials;
mod hosts;
mod schema;
#[cfg(test)]
mod tests;

/// The store of access.
pub struct AccessStore {
    database: Database,
}

/// What is remembered of how a host was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The host.
    pub host: HostId,
    /// Its leases.
    pub leases: Leases,
    /// Where it was last.
    pub place: Option<Place>,
}

/// How a credential was used since it was last written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// When last.
    pub last: Timestamp,
    /// How often.
    pub times: u32,
}

impl AccessStore {
    /// Opens the database file at `path`, or makes it, for its user alone; one of an older version is brought up to date.
    ///
    /// # Errors
    /// When the file is no database, belongs to another program or to a newer version (it is left untouched then), or
    /// cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(path, &schema::FORMAT)? })
    }

    /// What is damaged in the store at `path`, though a collector may be writing there; nothing where nothing is.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn check(path: &Path) -> Result<Vec<String>, StoreError> {
        let database = Database::open_to_read(path, &schema::FORMAT)?;
        let mut problems = Vec::new();
        for table in database.tables()? {
            let of_table = database.check_table(&table, drop)?;
            problems.extend(of_table.into_iter().map(|problem| format!("{table}: {problem}")));
        }
        let verified = database.read(audit::verify)?;
        problems.extend(verified.problems.into_iter().map(|problem| format!("audit log: {problem}")));
        Ok(problems)
    }

    /// Takes no more room than it has, until told otherwise, as if the disk were full.
    #[cfg(test)]
    pub(crate) fn fill(&self, is_full: bool) {
        let writer = self.database.writer();
        let pages: i64 = match is_full {
            true => writer.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap(),
            false => i64::from(u32::MAX - 1),
        };
        writer.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    }

    /// All CAs, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        self.database.read(authorities::list)
    }

    /// Adds a CA, which is the newest from now on.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn add_authority(&self, authority: &Authority) -> Result<(), StoreError> {
        self.database.write(|transaction| authorities::add(transaction, authority))
    }

    /// A CA is believed no longer.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn retire_authority(&self, fingerprint: Fingerprint, now: Timestamp) -> Result<(), StoreError> {
        self.database.write(|transaction| authorities::retire(transaction, fingerprint, now))
    }

    /// All hosts that are or were enrolled.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn hosts(&self) -> Result<Vec<EnrolledHost>, StoreError> {
        self.database.read(hosts::list)
    }

    /// Enrols a host, and uses its token, both or neither. False if the token cannot be used any more; nothing is done then.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn enrol(&self, host: &EnrolledHost, token: CredentialId) -> Result<bool, StoreError> {
        self.database.write(|transaction| {
            let is_used = credentials::spend(transaction, token, host.enrolled)?;
            if is_used {
                hosts::enrol(transaction, host)?;
            }
            Ok(is_used)
        })
    }

    /// A host has a new certificate.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn renew(&self, host: HostId, certificate: &Validity) -> Result<(), StoreError> {
        self.database.write(|transaction| hosts::renew(transaction, host, certificate))
    }

    /// A host is not enrolled any more.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn revoke_host(&self, host: HostId, now: Timestamp) -> Result<(), StoreError> {
        self.database.write(|transaction| hosts::revoke(transaction, host, now))
    }

    /// Keeps what `admitted` tells as it is written, together with what others write meanwhile: hosts come in crowds.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn keep_admitted(
        &self,
        admitted: impl Fn() -> Vec<Admitted> + Send + Sync + 'static,
    ) -> Result<(), StoreError> {
        self.database.write_together(move |transaction| {
            admitted().iter().try_for_each(|admitted| hosts::keep_admitted(transaction, admitted))
        })
    }

    /// A host was found in two places, or that is settled.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn mark_copied(&self, host: HostId, copied: Option<&Copied>) -> Result<(), StoreError> {
        self.database.write(|transaction| hosts::mark_copied(transaction, host, copied))
    }

    /// All credentials, with what is kept of the secrets of those that have one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn credentials(&self) -> Result<Vec<(Credential, Option<SecretHash>)>, StoreError> {
        self.database.read(credentials::list)
    }

    /// The number that the next credential gets, and whether there ever was one of an admin's.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_credential(&self) -> Result<(CredentialId, bool), StoreError> {
        self.database.read(credentials::next)
    }

    /// Adds a credential, and uses the token that it is given for, both or neither. False if that cannot be used any more;
    /// nothing is done then.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn add_credential(
        &self,
        credential: &Credential,
        secret: Option<SecretHash>,
    ) -> Result<bool, StoreError> {
        self.database.write(|transaction| {
            let may_be = match credential.parent {
                Some(parent) => credentials::spend(transaction, parent, credential.created)?,
                None => true,
            };
            if may_be {
                credentials::add(transaction, credential, secret)?;
            }
            Ok(may_be)
        })
    }

    /// A credential, and what was given for it, is not good any more.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn revoke_credential(&self, id: CredentialId, now: Timestamp) -> Result<(), StoreError> {
        self.database.write(|transaction| credentials::revoke(transaction, id, now))
    }

    /// How credentials were used.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn note_used(&self, used: &[(CredentialId, Use)]) -> Result<(), StoreError> {
        self.database.write(|transaction| {
            used.iter().try_for_each(|(id, used)| credentials::note_used(transaction, *id, used))
        })
    }

    /// Forgets the credentials that expired before `before`.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_credentials(&self, before: Timestamp) -> Result<(), StoreError> {
        self.database.write(|transaction| credentials::forget(transaction, before))
    }

    /// The place of the newest entry in the audit log; 0 before the first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn newest_entry(&self) -> Result<u64, StoreError> {
        self.database.read(audit::newest)
    }

    /// Adds an entry, together with what others write meanwhile. Tells its place.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn append_entry(&self, note: Note, at: Timestamp, repeats: u64) -> Result<Entry, StoreError> {
        self.database.write_together(move |transaction| audit::append(transaction, &note, at, repeats))
    }

    /// As [`Audit::entries`](crate::access::audit::Audit::entries).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn entries(&self, before: u64, limit: usize, filter: &Filter) -> Result<Entries, StoreError> {
        self.database.read(|connection| audit::entries(connection, before, limit, filter))
    }

    /// As [`Audit::entries_about`](crate::access::audit::Audit::entries_about).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn entries_about(&self, host: HostId, after: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.database.read(|connection| audit::entries_about(connection, host, after, limit))
    }

    /// Reads the whole audit log and its chain again.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn verify_entries(&self) -> Result<Verified, StoreError> {
        self.database.read(audit::verify)
    }

    /// As [`Audit::prune`](crate::access::audit::Audit::prune). The entry that tells of it, if there is one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn prune_entries(&self, before: Timestamp, now: Timestamp) -> Result<Option<u64>, StoreError> {
        self.database.write(|transaction| audit::prune(transaction, before, now))
    }
}
