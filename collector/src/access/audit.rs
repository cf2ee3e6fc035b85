//! What was done, and by whom: a log that only grows, each entry chained to all before it.
//!
//! An entry is on the disk when [`Audit::append`] returns. What is refused to nobody in particular, or to a host that calls, is counted rather than
//! noted each time (`refusals`), so that a flood of it costs little.
//!
//! The chain shows that an entry was changed, taken out, put in or moved, and the head that is noted beside it, that the
//! newest are missing. It shows nothing against who can write the file and makes the chain anew: whoever needs that keeps the
//! newest head elsewhere, as `alibi audit verify` prints it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use alibi_proto::{chain::Head, id::HostId, time::Timestamp};
use tokio::sync::watch;

use self::{recent::Recent, refusals::Refusals};
use super::role::Role;
use crate::store::{StoreError, access::AccessStore, lock};

mod recent;
mod refusals;
#[cfg(test)]
mod tests;

pub use refusals::{FOLDED_FOR, REFUSALS_FOLDED_MAX, Refusal};

/// How long an entry is kept, unless somebody says otherwise.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(400 * 86_400);
/// Bytes of each text in an entry. What is longer is cut, and marked so.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Hosts that one entry names. What is about more is noted as being about all, so that none of them misses it.
pub const HOSTS_MAX: usize = if cfg!(test) { 4 } else { 256 };
/// Entries that one call gives.
pub const ENTRIES_MAX: usize = 1_000;
/// Entries that wait for a disk that is full.
pub const WAITING_MAX: usize = if cfg!(test) { 4 } else { 1_000 };
/// Problems that are told of.
pub const PROBLEMS_MAX: usize = if cfg!(test) { 8 } else { 64 };

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Somebody who was not known, or the collector itself.
    Nobody,
    /// A host.
    Host(HostId),
    /// An analyst.
    Analyst {
        /// Who.
        name: String,
        /// As what.
        role: Role,
    },
}

/// Which hosts it was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// These; perhaps none.
    Hosts(Vec<HostId>),
    /// Every one.
    All,
}

/// Something that was done, or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who did it.
    pub actor: Actor,
    /// Where it came from.
    pub from: String,
    /// What was done: `who`, `token create`, …
    pub action: String,
    /// What was asked, in words.
    pub detail: String,
    /// `ok`, or why it was refused or failed.
    pub outcome: String,
    /// How many rows the answer had.
    pub rows: u64,
    /// Which hosts it was about.
    pub scope: Scope,
}

/// A note as it is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log, from 1 on without a gap.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// An analyst's name, a host's uuid, or nothing.
    pub who: String,
    /// An analyst's role, `host`, or nothing.
    pub role: String,
    /// Where it came from.
    pub from: String,
    /// What was done.
    pub action: String,
    /// What was asked.
    pub detail: String,
    /// What came of it.
    pub outcome: String,
    /// How many rows the answer had.
    pub rows: u64,
    /// Which hosts it was about.
    pub hosts: Vec<HostId>,
    /// It was about every host.
    pub all_hosts: bool,
    /// It stands for so many that were the same. 0: for one.
    pub repeats: u64,
    /// The head of the chain after it.
    pub head: Head,
}

/// The role of a host in an entry.
const HOST: &str = "host";

impl Entry {
    /// The head of a log in which nothing is noted yet: BLAKE3 of `alibi audit 1`.
    pub fn head_of_nothing() -> Head {
        Head::from_bytes(*blake3::hash(b"alibi audit 1").as_bytes())
    }

    /// The entry that follows on the head `previous`.
    pub(crate) fn new(seq: u64, at: Timestamp, note: &Note, repeats: u64, previous: &Head) -> Self {
        let (who, role) = match &note.actor {
            Actor::Nobody => (String::new(), ""),
            Actor::Host(host) => (host.to_string(), HOST),
            Actor::Analyst { name, role } => (name.clone(), role.word()),
        };
        let (hosts, all_hosts) = match &note.scope {
            Scope::Hosts(hosts) if hosts.len() <= HOSTS_MAX => (distinct(hosts), false),
            Scope::Hosts(_) | Scope::All => (Vec::new(), true),
        };
        let mut entry = Self {
            seq,
            at,
            who: cut(&who),
            role: role.to_owned(),
            from: cut(&note.from),
            action: cut(&note.action),
            detail: cut(&note.detail),
            outcome: cut(&note.outcome),
            rows: note.rows.min(i64::MAX as u64),
            hosts,
            all_hosts,
            repeats,
            head: Head::UNKNOWN,
        };
        entry.head = entry.head_after(previous);
        entry
    }

    /// The head after this entry, if `previous` is the one before it: BLAKE3 of that (32 bytes) and of what follows. A byte 1;
    /// then `seq`, `at` (nanoseconds), `who`, `role`, `from`, `action`, `detail`, `outcome`, `rows`, `hosts` (16 bytes each),
    /// `all_hosts` (a byte 0 or 1) and `repeats`: each its length in bytes (4 bytes) and then itself, texts in UTF-8,
    /// numbers in 8 bytes, all little-endian.
    pub fn head_after(&self, previous: &Head) -> Head {
        let mut hasher = blake3::Hasher::new();
        hasher.update(previous.as_bytes()).update(&[1]);
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u32).to_le_bytes()).update(bytes);
        };
        field(&self.seq.to_le_bytes());
        field(&self.at.as_nanos().to_le_bytes());
        for text in [&self.who, &self.role, &self.from, &self.action, &self.detail, &self.outcome] {
            field(text.as_bytes());
        }
        field(&self.rows.to_le_bytes());
        field(&self.hosts.iter().flat_map(|host| *host.as_bytes()).collect::<Vec<u8>>());
        field(&[u8::from(self.all_hosts)]);
        field(&self.repeats.to_le_bytes());
        Head::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Whether an analyst did it, so that the owner of a host that it was about sees it.
    pub fn is_analysts(&self) -> bool {
        !self.role.is_empty() && self.role != HOST
    }
}

fn distinct(hosts: &[HostId]) -> Vec<HostId> {
    let mut hosts = hosts.to_vec();
    hosts.sort();
    hosts.dedup();
    hosts
}

fn cut(text: &str) -> String {
    const MARK: &str = "…";
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES_MAX - MARK.len()).rev().find(|end| text.is_char_boundary(*end));
    [&text[..end.unwrap_or(0)], MARK].concat()
}

/// Some entries, and whether there are more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// The entries.
    pub entries: Vec<Entry>,
    /// There are more of them.
    pub more: bool,
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those that are about this host, or about all.
    pub host: Option<HostId>,
    /// Only those of this analyst, or of the host with this uuid.
    pub who: Option<String>,
}

/// What reading the whole log again came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The first entry that there is; what was before it was forgotten after its time.
    pub from_seq: u64,
    /// The newest.
    pub to_seq: u64,
    /// The head after that.
    pub head: Head,
    /// What does not hold, at most [`PROBLEMS_MAX`].
    pub problems: Vec<String>,
    /// How much more does not.
    pub problems_left_out: u64,
}

/// The log.
pub struct Audit {
    store: Arc<AccessStore>,
    /// What waits for a disk that is full, in order.
    waiting: Mutex<VecDeque<Waiting>>,
    refusals: Mutex<Refusals>,
    recent: Mutex<Recent>,
    newest: watch::Sender<u64>,
}

/// A note that is not on the disk yet.
struct Waiting {
    note: Note,
    at: Timestamp,
    repeats: u64,
}

impl Audit {
    /// Goes on with the log in the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn open(store: Arc<AccessStore>) -> Result<Self, StoreError> {
        let newest = watch::Sender::new(store.newest_entry()?);
        let (waiting, refusals, recent) = Default::default();
        Ok(Self { store, waiting, refusals, recent, newest })
    }

    /// Notes something. On the disk when it returns, together with what others note meanwhile. Tells its place in the log.
    ///
    /// Where the disk is full, it waits in memory, and its place is 0: in the middle of an incident that is no reason to answer
    /// nothing. As long as not too much waits, and no longer than the collector runs.
    ///
    /// # Errors
    /// When the store cannot be written, for another reason or for too long.
    pub fn append(&self, note: Note, now: Timestamp) -> Result<u64, StoreError> {
        self.append_repeated(note, now, 0)
    }

    fn append_repeated(&self, note: Note, at: Timestamp, repeats: u64) -> Result<u64, StoreError> {
        let mut waiting = lock(&self.waiting);
        let written = match self.write(&mut waiting) {
            Ok(()) if waiting.is_empty() => {
                // Many append at once, and are written together.
                drop(waiting);
                let written = self.append_now(note.clone(), at, repeats);
                waiting = lock(&self.waiting);
                written
            }
            written => written.map(|()| 0),
        };
        match written {
            Err(StoreError::Full { path }) if waiting.len() < WAITING_MAX => {
                if waiting.is_empty() {
                    tracing::error!(path, "the disk is full: the audit log waits in memory");
                }
                waiting.push_back(Waiting { note, at, repeats });
                Ok(0)
            }
            written => written,
        }
    }

    /// Writes what waits, in order.
    fn write(&self, waiting: &mut VecDeque<Waiting>) -> Result<(), StoreError> {
        while let Some(Waiting { note, at, repeats }) = waiting.front() {
            self.append_now(note.clone(), *at, *repeats)?;
            waiting.pop_front();
            if waiting.is_empty() {
                tracing::info!("the audit log is written again");
            }
        }
        Ok(())
    }

    fn append_now(&self, note: Note, at: Timestamp, repeats: u64) -> Result<u64, StoreError> {
        let entry = self.store.append_entry(note, at, repeats)?;
        let seq = entry.seq;
        lock(&self.recent).add(Arc::new(entry));
        self.newest.send_if_modified(|newest| {
            let is_newer = seq > *newest;
            *newest = seq.max(*newest);
            is_newer
        });
        Ok(seq)
    }

    /// Notes that somebody was refused who is not known, or a host. The first is noted at once; those that are the same and follow within
    /// [`FOLDED_FOR`] become one entry after that.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn refused(&self, refusal: &Refusal<'_>, now: Timestamp) -> Result<(), StoreError> {
        let due = lock(&self.refusals).note(refusal, now);
        self.append_refusals(due)
    }

    /// Writes what was counted for long enough. To be called every few seconds.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn flush(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(&mut lock(&self.waiting))?;
        let due = lock(&self.refusals).due(now);
        self.append_refusals(due)
    }

    fn append_refusals(&self, due: Vec<refusals::Due>) -> Result<(), StoreError> {
        due.into_iter().try_for_each(|due| self.append_repeated(due.note, due.at, due.repeats).map(drop))
    }

    /// Entries before `before` (0: from the newest on), the newest first, at most `limit` and at most [`ENTRIES_MAX`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn entries(&self, before: u64, limit: usize, filter: &Filter) -> Result<Entries, StoreError> {
        self.store.entries(before, limit.min(ENTRIES_MAX), filter)
    }

    /// What analysts did about a host after the entry `after`, in order, at most `limit` and at most [`ENTRIES_MAX`]: for its
    /// owner to see.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn entries_about(
        &self,
        host: HostId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Entry>>, StoreError> {
        if let Some(recent) = self.recent_about(host, after, limit) {
            return Ok(recent);
        }
        let entries = self.store.entries_about(host, after, limit.min(ENTRIES_MAX))?;
        Ok(entries.into_iter().map(Arc::new).collect())
    }

    /// The same, where that needs no reading: if all since `after` is in memory.
    pub fn recent_about(&self, host: HostId, after: u64, limit: usize) -> Option<Vec<Arc<Entry>>> {
        let newest = *self.newest.borrow();
        lock(&self.recent).about(host, after, newest, limit.min(ENTRIES_MAX))
    }

    /// The newest entry, as it changes; 0 before the first.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Reads the whole log and its chain again.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn verify(&self) -> Result<Verified, StoreError> {
        self.store.verify_entries()
    }

    /// Forgets what is from before `before`, the oldest first, and notes that. Does nothing until that is worth an entry. What
    /// is forgotten does not come back: whoever asks sees that its clock did not leap ahead.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn prune(&self, before: Timestamp, now: Timestamp) -> Result<(), StoreError> {
        if let Some(seq) = self.store.prune_entries(before, now)? {
            self.newest.send_modify(|newest| *newest = seq.max(*newest));
        }
        Ok(())
    }
}

impl Drop for Audit {
    /// Best effort: what was counted only, and is not written, is lost.
    fn drop(&mut self) {
        if let Err(error) = self.write(&mut lock(&self.waiting)) {
            tracing::error!(%error, "what waited for the disk could not be noted");
        }
        let due = lock(&self.refusals).rest();
        if let Err(error) = self.append_refusals(due) {
            tracing::error!(%error, "refusals that were counted could not be noted");
        }
    }
}
