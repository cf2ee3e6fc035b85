//! What is noted of executables while a batch is taken in, and what was noted before and need not be written again.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Mutex,
};

use alibi_proto::{
    executable::{ExecutableRecord, ExecutableSighting, FileIdentity, Sha256},
    prevalence::{About, Identity, Sighting, Times, path_kept},
    process::ProcessImage,
    time::Timestamp,
};
use rusqlite::Connection;

use super::{become_one, hash_of_file, write};
use crate::store::{LAST_WITHIN, StoreError, lock};

/// What is remembered as written, of all hosts; when there is more, all of it is looked up again. Few under test, so that the
/// bound is met.
const NOTED_MAX: usize = if cfg!(test) { 1_000 } else { 1 << 18 };

/// Names what was told of an executable: host, kind, path, file, hash.
type Key = [u8; 16];

/// What was written and committed, in memory.
#[derive(Default)]
pub(in crate::store::sqlite) struct Noted(Mutex<HashMap<Key, Times>>);

/// What a batch wrote, to be remembered once it is committed.
#[derive(Default)]
pub(in crate::store::sqlite) struct Written(Vec<(Key, Times)>);

impl Noted {
    /// What was written is committed.
    pub(in crate::store::sqlite) fn remember(&self, Written(written): Written) {
        let mut noted = lock(&self.0);
        for (key, times) in written {
            if noted.len() >= NOTED_MAX && !noted.contains_key(&key) {
                noted.clear();
            }
            noted.entry(key).and_modify(|noted| *noted = noted.and(times)).or_insert(times);
        }
    }

    /// Something that was written is no longer there.
    pub(in crate::store::sqlite) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Whether that it was seen at this time needs no write.
    fn covers(&self, key: &Key, at: Timestamp) -> bool {
        lock(&self.0)
            .get(key)
            .is_some_and(|noted| noted.first <= at && at < noted.last.saturating_add(LAST_WITHIN))
    }
}

/// What a batch tells of executables that is not written yet.
pub(in crate::store::sqlite) struct Notes<'a> {
    noted: &'a Noted,
    pending: HashMap<Key, Note>,
}

struct Note {
    host: i64,
    sighting: ExecutableSighting,
    path: Option<String>,
    file: Option<FileIdentity>,
    sha256: Option<Sha256>,
    times: Times,
    /// What a look at it told; none where a process ran it and that is all.
    about: Option<About>,
}

impl<'a> Notes<'a> {
    pub(in crate::store::sqlite) fn new(noted: &'a Noted) -> Self {
        Self { noted, pending: HashMap::new() }
    }

    /// A process ran this.
    pub(in crate::store::sqlite) fn run(&mut self, host: i64, image: &ProcessImage, at: Timestamp) {
        let path = image.path.as_deref();
        self.note(host, ExecutableSighting::Run, path, image.file, image.sha256, at, None);
    }

    /// The host looked at this.
    pub(in crate::store::sqlite) fn seen(&mut self, host: i64, seen: &ExecutableRecord) {
        let about = About::of(seen);
        let about = (!about.is_empty() || seen.sha256.is_some()).then_some(about);
        self.note(host, seen.sighting, Some(&seen.path), seen.file, seen.sha256, seen.at, about);
    }

    /// With `about`, it is written in any case.
    #[expect(clippy::too_many_arguments, reason = "they are what an event tells")]
    fn note(
        &mut self,
        host: i64,
        sighting: ExecutableSighting,
        path: Option<&str>,
        file: Option<FileIdentity>,
        sha256: Option<Sha256>,
        at: Timestamp,
        about: Option<About>,
    ) {
        let path = path.map(path_kept).filter(|path| !path.is_empty());
        if path.is_none() && file.is_none() && sha256.is_none() {
            return;
        }
        let key = key(host, sighting, path, file.as_ref(), sha256.as_ref());
        if about.is_none() && self.noted.covers(&key, at) {
            return;
        }
        match self.pending.entry(key) {
            Entry::Occupied(note) => {
                let note = note.into_mut();
                note.times = note.times.and(Times::once(at));
                if let Some(about) = about {
                    note.about.get_or_insert_default().completed_by(&about);
                }
            }
            Entry::Vacant(place) => {
                let (path, times) = (path.map(str::to_owned), Times::once(at));
                place.insert(Note { host, sighting, path, file, sha256, times, about });
            }
        }
    }

    /// Writes them, after all else of the batch: what it tells of files is known then.
    pub(in crate::store::sqlite) fn write(self, connection: &Connection) -> Result<Written, StoreError> {
        let mut written = Vec::with_capacity(self.pending.len());
        // In one order, whatever the batch was.
        let mut pending: Vec<(Key, Note)> = self.pending.into_iter().collect();
        pending.sort_unstable_by_key(|(key, note)| (note.times, *key));
        for (key, note) in pending {
            note.write(connection)?;
            written.push((key, note.times));
        }
        Ok(Written(written))
    }
}

impl Note {
    fn write(&self, connection: &Connection) -> Result<(), StoreError> {
        let (host, times) = (self.host, Some(self.times));
        let sha256 = match (self.sha256, &self.file) {
            (None, Some(file)) => hash_of_file(connection, host, file)?,
            (sha256, _) => sha256,
        };
        // Only a look at the file tells all that runs it what its hash is.
        if let (Some(sha256), Some(file), Some(_)) = (sha256, &self.file, &self.about) {
            become_one(connection, host, file, sha256)?;
        }
        let Some(identity) = Identity::of(sha256, self.file, self.path.as_deref()) else { return Ok(()) };
        let sighting = match self.sighting {
            ExecutableSighting::Run => Sighting { run: times, written: None },
            ExecutableSighting::Written => Sighting { run: None, written: times },
        };
        let path: Vec<&str> = self.path.as_deref().into_iter().collect();
        let about = self.about.clone().unwrap_or_default();
        write(connection, host, &identity, sighting, &path, &about)
    }
}

fn key(
    host: i64,
    sighting: ExecutableSighting,
    path: Option<&str>,
    file: Option<&FileIdentity>,
    sha256: Option<&Sha256>,
) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&host.to_be_bytes());
    hasher.update(&[sighting as u8, u8::from(file.is_some()), u8::from(sha256.is_some())]);
    if let Some(file) = file {
        for number in [file.device, file.inode, file.modified.as_nanos(), file.size] {
            hasher.update(&number.to_be_bytes());
        }
    }
    if let Some(sha256) = sha256 {
        hasher.update(sha256.as_bytes());
    }
    hasher.update(path.unwrap_or_default().as_bytes());
    let mut key = Key::default();
    hasher.finalize_xof().fill(&mut key);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_covers_an_hour() {
        let noted = Noted::default();
        let key = |number: u64| {
            let mut key = Key::default();
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        let at = Timestamp::from_secs;
        let hour = LAST_WITHIN.as_secs();
        let wrote = |number, first, last| {
            noted.remember(Written(vec![(key(number), Times { first: at(first), last: at(last) })]));
        };
        wrote(0, 1_000, 2_000);
        let covers = |number, secs| noted.covers(&key(number), at(secs));
        assert_eq!(
            [999, 1_000, 1_999 + hour, 2_000 + hour].map(|secs| covers(0, secs)),
            [false, true, true, false]
        );
        wrote(0, 500, 500);
        assert!(covers(0, 500) && covers(0, 2_000) && !covers(1, 2_000));
        (1..NOTED_MAX as u64).for_each(|number| wrote(number, 1, 1));
        assert!(covers(0, 2_000), "there is room");
        wrote(0, 400, 400);
        assert!(covers(0, 2_000), "it is not another");
        wrote(NOTED_MAX as u64, 1, 1);
        assert!(covers(NOTED_MAX as u64, 1) && !covers(0, 2_000), "all of it is looked up again");
        noted.clear();
        assert!(!covers(NOTED_MAX as u64, 1));
    }
}
