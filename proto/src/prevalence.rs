//! How common an executable is: where it was seen, since when, and whether it was new. Pure.
//!
//! *New* is a negative, and so it takes proof, as `clear` does: nothing was seen of it before, *and* what ran before was
//! recorded completely, for long enough to mean something. Whatever is missing makes it unknown, with the reason; a clock that
//! leaves it open whether something was before the window, too.

use std::time::Duration;

use serde::Serialize;

use crate::{
    clock::{HostClock, shifted},
    coverage::{Facet, Gap, Grade, Timeline},
    executable::{ExecutableRecord, FileIdentity, Package, Sha256, Signature, VersionInfo},
    flow::words,
    process::ProcessImage,
    time::Timestamp,
    window::Window,
};

/// What tells one executable from another, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// Its content.
    Sha256(Sha256),
    /// Its file, where there is no hash: the same on another host only where that is a copy of this one's disk.
    File(FileIdentity),
    /// Its path, where not even the file was to be looked at: another program may have had the same.
    Path(String),
}

words! {
    /// What an executable is told apart by.
    IdentifiedBy {
        /// The SHA-256 of its content.
        Sha256 = "sha256",
        /// Its file: device, inode, time of change and size.
        File = "file",
        /// Its path alone.
        Path = "path",
    }
}

impl Identity {
    /// The best that is known of an executable; none where nothing is.
    pub fn of(sha256: Option<Sha256>, file: Option<FileIdentity>, path: Option<&str>) -> Option<Self> {
        sha256.map(Self::Sha256).or_else(|| file.map(Self::File)).or_else(|| {
            path.filter(|path| !path.is_empty()).map(|path| Self::Path(path_kept(path).to_owned()))
        })
    }

    /// That of what a process runs.
    pub fn of_image(image: &ProcessImage) -> Option<Self> {
        Self::of(image.sha256, image.file, image.path.as_deref())
    }

    /// What it is told apart by.
    pub const fn identified_by(&self) -> IdentifiedBy {
        match self {
            Self::Sha256(_) => IdentifiedBy::Sha256,
            Self::File(_) => IdentifiedBy::File,
            Self::Path(_) => IdentifiedBy::Path,
        }
    }

    /// Why it is not proven to be new, whatever is known of where it was: its content may have been elsewhere.
    pub const fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Sha256(_) => None,
            _ => Some("it has no SHA-256 (yet): the same content may have been there as another file"),
        }
    }

    /// Its hash.
    pub const fn sha256(&self) -> Option<Sha256> {
        if let Self::Sha256(sha256) = self { Some(*sha256) } else { None }
    }
}

/// Bytes of a path that are kept with an executable.
pub const PATH_BYTES_MAX: usize = 4_096;

/// As much of a path as is kept.
pub fn path_kept(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH_BYTES_MAX)]
}

/// From the first time to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Times {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
}

impl Times {
    /// Once.
    pub const fn once(at: Timestamp) -> Self {
        Self { first: at, last: at }
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// What a host saw of an executable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// When it was run.
    pub run: Option<Times>,
    /// When it was written.
    pub written: Option<Times>,
}

impl Sighting {
    /// From the first that was seen of it to the last.
    pub fn times(&self) -> Option<Times> {
        self.run.into_iter().chain(self.written).reduce(Times::and)
    }
}

/// What an executable is, besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The package that it belongs to.
    pub package: Option<Package>,
    /// What the system of the host says of its signature.
    pub signature: Option<Signature>,
    /// What it says of itself.
    pub version: Option<VersionInfo>,
}

impl About {
    /// What a look at an executable told.
    pub fn of(seen: &ExecutableRecord) -> Self {
        Self {
            package: seen.package.clone(),
            signature: seen.signature.clone(),
            version: seen.version.clone(),
        }
    }

    /// Whether it tells nothing.
    pub const fn is_empty(&self) -> bool {
        self.package.is_none() && self.signature.is_none() && self.version.is_none()
    }

    /// Takes over what another look told and this one did not; a signature that was checked goes over one that was not.
    pub fn completed_by(&mut self, other: &Self) {
        if self.package.is_none() {
            self.package.clone_from(&other.package);
        }
        let is_checked =
            |signature: &Option<Signature>| signature.as_ref().is_some_and(Signature::is_checked);
        if self.signature.is_none() || (!is_checked(&self.signature) && is_checked(&other.signature)) {
            self.signature.clone_from(&other.signature);
        }
        if self.version.is_none() {
            self.version.clone_from(&other.version);
        }
    }
}

/// A host that has been recorded for less says of nothing that it is new, unless it is asked to.
pub const RECORDED_BEFORE_MIN: Duration = Duration::from_secs(24 * 3_600);

/// How the processes of a host were recorded before a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedBefore {
    /// Since when, by the host's clock; none if never.
    pub since: Option<Timestamp>,
    /// Why what was not seen before is not proven not to have been there; none where it is.
    pub problem: Option<String>,
}

/// How the processes of a host were recorded before `window`, which is in the collector's time. All that is on record must be
/// complete, and be [`RECORDED_BEFORE_MIN`] at least; with `recorded_for`, only so much before the window.
pub fn recorded_before(
    processes: &Timeline,
    clock: &HostClock,
    window: Window,
    recorded_for: Option<Duration>,
    known_until: Option<Timestamp>,
) -> RecordedBefore {
    let over = clock.over(window);
    let begins = over.difference.filter(|_| over.unmeasured.is_empty());
    let Some(begins) = begins.map(|difference| shifted(window.from(), difference.most())) else {
        let problem = "the host's clock was not measured in the window".to_owned();
        return RecordedBefore { since: None, problem: Some(problem) };
    };
    let Ok(ever) = Window::new(Timestamp::ZERO, begins) else {
        return RecordedBefore { since: None, problem: Some("the window has no time before it".to_owned()) };
    };
    let gaps = processes.gaps(Facet::Processes, ever, known_until);
    let mut since = Timestamp::ZERO;
    let begun = gaps.iter().take_while(|gap| {
        let is_before = matches!(gap.grade, Grade::NotRecorded { .. }) && gap.from <= since;
        if is_before {
            since = since.max(gap.to);
        }
        is_before
    });
    let begun = begun.count();
    if since >= begins {
        let problem = "nothing was recorded before the window".to_owned();
        return RecordedBefore { since: None, problem: Some(problem) };
    }
    let (wanted_from, least) = match recorded_for {
        Some(recorded_for) => (begins.saturating_sub(recorded_for), recorded_for),
        None => (since, RECORDED_BEFORE_MIN),
    };
    let problem = if begins.since(since) < least {
        let (hours, least) = (in_words(begins.since(since)), in_words(least));
        Some(format!("recorded for {hours} only before the window, and {least} at least are wanted"))
    } else {
        incomplete(gaps.iter().skip(begun).filter(|gap| gap.to > wanted_from))
    };
    RecordedBefore { since: Some(since), problem }
}

/// What was not recorded completely.
fn incomplete<'a>(gaps: impl Iterator<Item = &'a Gap>) -> Option<String> {
    let gaps: Vec<&Gap> = gaps.collect();
    let last = gaps.iter().max_by_key(|gap| gap.to)?;
    let (grade, reason) = (last.grade.word(), last.grade.reason());
    let gaps = match gaps.len() {
        1 => "1 gap".to_owned(),
        many => format!("{many} gaps, the last"),
    };
    Some(format!(
        "processes were not recorded completely before the window: {gaps} from {} until {}, {grade}: {reason}",
        last.from, last.to
    ))
}

fn in_words(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Between which instants by the collector's clock something was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    /// No earlier.
    pub earliest: Timestamp,
    /// No later.
    pub latest: Timestamp,
}

impl Instant {
    /// What a host's clock showed. Where that clock was not measured it may have been at any time.
    pub fn of(clock: &HostClock, own: Timestamp) -> Self {
        let (earliest, latest) = clock.when(own).unwrap_or((Timestamp::ZERO, Timestamp::MAX));
        Self { earliest, latest }
    }

    /// Whether that is all there is to say.
    pub fn is_measured(self) -> bool {
        self.latest != Timestamp::MAX
    }

    /// In one word: the middle, or `own` where that can be meant, or where nothing is known.
    pub fn told(self, own: Timestamp) -> Timestamp {
        if self.earliest <= own && own <= self.latest {
            return own;
        }
        Timestamp::from_nanos(self.earliest.as_nanos().midpoint(self.latest.as_nanos()))
    }
}

/// Whether something was new in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Novelty {
    /// It was seen first in it, and was not there before, which is proven for the time since then.
    New,
    /// It was seen before it.
    SeenBefore,
    /// It was not seen before it, but may have been there, or not seen at all.
    Unknown(String),
}

impl Novelty {
    /// Of what was seen first at `first`, where `problem` tells why what was not seen is not proven.
    pub fn of(first: Instant, window: Window, problem: Option<&str>) -> Self {
        if first.latest < window.from() {
            return Self::SeenBefore;
        }
        if first.earliest < window.from() {
            let reason = if first.is_measured() {
                "by the bound of the host's clock it may have been seen before the window first"
            } else {
                "the clock of a host that saw it was not measured then"
            };
            return Self::Unknown(reason.to_owned());
        }
        match problem {
            Some(problem) => Self::Unknown(problem.to_owned()),
            None if first.earliest >= window.to() => {
                Self::Unknown("it was seen after the window first".to_owned())
            }
            None => Self::New,
        }
    }

    /// The word for it, as in JSON and tables.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::SeenBefore => "seen_before",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Why it is not known.
    pub fn reason(&self) -> Option<&str> {
        if let Self::Unknown(reason) = self { Some(reason) } else { None }
    }
}

#[cfg(test)]
mod tests;
