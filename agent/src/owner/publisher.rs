//! Writes what the owner is told, as it changes, and often enough to be believed.
//!
//! It is not made safe from a power cut: whoever reads it after one is told by its age that it is not of now.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::data_directory::create_public;
use tokio::sync::{oneshot, watch};

use super::{CollectorStatus, Facts, Now, RingRoom, Status, WhoAsked};
use crate::{link::LinkStatus, recorder::Progress, ring::View, sys};

/// The name of the file.
pub const FILE: &str = "status.json";
/// It is never older while the agent runs.
pub const WRITTEN_AT_LEAST: Duration = Duration::from_secs(60);
/// How often is looked whether something has changed, and so the least between two times that it is written.
const LOOKED_EACH: Duration = Duration::from_secs(5);

/// Where the file is written.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    /// Everybody may read it.
    is_public: bool,
    /// It could not be written last time.
    is_in_trouble: bool,
}

/// What others publish.
#[derive(Debug)]
pub struct Seen {
    /// How far the recording is.
    pub progress: watch::Receiver<Progress>,
    /// The ring.
    pub view: View,
    /// How the agent stands to its collector.
    pub link: watch::Receiver<LinkStatus>,
    /// Who asked.
    pub asked: WhoAsked,
}

/// Writes the file, from what others publish.
#[derive(Debug)]
pub struct Publisher {
    facts: Facts,
    seen: Seen,
    places: Vec<Place>,
    written: Option<Status>,
}

impl Publisher {
    /// One that writes the file into `private`, and where there is one, into a directory for everybody, which is made.
    pub fn new(facts: Facts, seen: Seen, private: &Path, public: Option<&Path>) -> Self {
        let place = |directory: &Path, is_public| Place {
            path: directory.join(FILE),
            is_public,
            is_in_trouble: false,
        };
        let public = public.filter(|directory| match create_public(directory) {
            Ok(()) => true,
            Err(problem) => {
                tracing::warn!(path = %directory.display(), %problem, "the owner of this machine sees no status");
                false
            }
        });
        let places = std::iter::once(place(private, false)).chain(public.map(|public| place(public, true)));
        let places = places.collect();
        Self { facts, seen, places, written: None }
    }

    /// Writes as long as the agent runs; once it is told why that ended, a last time.
    pub async fn run(mut self, mut ended: oneshot::Receiver<String>) {
        let mut look = tokio::time::interval(LOOKED_EACH);
        loop {
            let reason = tokio::select! {
                _ = look.tick() => None,
                reason = &mut ended => Some(reason.unwrap_or_else(|_| "it did not say why".to_owned())),
            };
            let is_last = reason.is_some();
            // The disk may be slow, and whoever else is served here does not wait for it.
            let done = tokio::task::spawn_blocking(move || {
                self.publish(reason.as_deref());
                self
            });
            match done.await {
                Ok(publisher) if !is_last => self = publisher,
                _ => return,
            }
        }
    }

    /// Writes, if there is something new or what was written gets old.
    fn publish(&mut self, ended: Option<&str>) {
        let status = self.status(ended);
        let is_fresh = |written: &Status| {
            let age = Duration::from_nanos(status.written_boot_ns.saturating_sub(written.written_boot_ns));
            // Not only just before it is too old: it is looked at each few seconds.
            age + LOOKED_EACH < WRITTEN_AT_LEAST && status.says_the_same(written)
        };
        if self.written.as_ref().is_some_and(is_fresh) {
            return;
        }
        for place in &mut self.places {
            place.write(&status);
        }
        self.written = Some(status);
    }

    fn status(&self, ended: Option<&str>) -> Status {
        let seen = &self.seen;
        let progress = seen.progress.borrow().clone();
        let (link, asked) = (CollectorStatus::from(&*seen.link.borrow()), seen.asked.told());
        let (bytes, oldest) = seen.view.room();
        let ring = RingRoom { bytes, oldest };
        let now = Now { now: sys::now(), progress: &progress, ring, link: &link, asked: &asked, ended };
        Status::of(&self.facts, &now)
    }
}

impl Place {
    fn write(&mut self, status: &Status) {
        let written = serde_json::to_vec_pretty(status).map_err(io::Error::from);
        match written.and_then(|text| replace(&self.path, &text, self.is_public)) {
            Ok(()) => self.is_in_trouble = false,
            Err(problem) if !std::mem::replace(&mut self.is_in_trouble, true) => {
                tracing::warn!(path = %self.path.display(), %problem, "what the owner is told cannot be written");
            }
            Err(_) => {}
        }
    }
}

/// Puts a file in the place of the one there, whole.
fn replace(path: &Path, text: &[u8], is_public: bool) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        #[cfg(unix)]
        if is_public {
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        }
        let _ = is_public;
        file.write_all(text)?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        // What it was written for did not come about, and that is told.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests;
