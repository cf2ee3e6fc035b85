//! What a new run says of the time before it.
//!
//! Nothing was recorded from where the run before ended until this one begins. Two things are known besides. A host that
//! was off did nothing, where the system's own records prove that it was. And where the wall clock was set back, a time
//! that seems to be over and recorded has happened once more, unrecorded.

use std::time::Duration;

use alibi_proto::{
    clock::STEP_MIN,
    coverage::{CoverageChange, Grade, Scope},
    time::{Moment, Timestamp},
};

use super::{Ledger, not_recorded};
use crate::ring::Recovery;

/// So long after the system has recorded its shutdown may something run. systemd writes the record once ordinary services
/// are stopped. What it stops besides gets until `poweroff.target` forces the end, half an hour after the shutdown began;
/// whatever is left then gets two timeouts of 90 s, one to end in and one to be killed in.
pub(super) const SHUTDOWN_MAX: Duration = Duration::from_secs(30 * 60 + 2 * 90);

const TWICE: &str = "the clock was set back: this time happened twice, and was not recorded both times";

/// How the run before this one ended, as the ring tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviousRun {
    /// There was none.
    None,
    /// It said that it stopped.
    Stopped {
        /// Up to here its recording was whole.
        recorded_until: Timestamp,
    },
    /// It said nothing, and the host runs on: crash or kill.
    Killed {
        /// Up to here its recording was whole, and no more was told.
        recorded_until: Timestamp,
    },
    /// It said nothing: crash, kill or power loss.
    Ended {
        /// Up to here its recording was whole.
        recorded_until: Timestamp,
        /// It may have told that it was whole up to here, without this being known any more.
        told_until: Timestamp,
    },
}

impl PreviousRun {
    /// As the recovered ring tells it, in this boot of the host.
    pub fn of(recovery: &Recovery, boot: u64) -> Self {
        match recovery.recorded_until {
            _ if recovery.is_new => Self::None,
            Some(recorded_until) if recovery.was_closed_cleanly => Self::Stopped { recorded_until },
            // The system itself did not end: what was written is there.
            Some(recorded_until) if recovery.boot == Some(boot) => Self::Killed { recorded_until },
            Some(recorded_until) => Self::Ended {
                recorded_until,
                told_until: recorded_until.saturating_add(Recovery::UNSAFE_MAX),
            },
            // The checkpoint is gone: nothing vouches for any of it.
            None => Self::Ended { recorded_until: Timestamp::ZERO, told_until: Timestamp::ZERO },
        }
    }
}

/// What a new run knows of the time before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// How the run before ended.
    pub previous: PreviousRun,
    /// Both clocks at an instant up to which that run recorded, if it told.
    pub recorded_at: Option<Moment>,
    /// Whether that run was in this boot of the host; none if it did not tell.
    pub is_this_boot: Option<bool>,
    /// What the system has recorded of how this boot came about.
    pub restart: Option<Restart>,
}

/// That the host was shut down and started again, and that nothing else ran in between, by the system's own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// When it was shut down, by the clock as it was then.
    pub shutdown: Timestamp,
    /// When it was started, by the clock as it was when that was recorded.
    pub started: Timestamp,
}

impl From<PreviousRun> for Past {
    fn from(previous: PreviousRun) -> Self {
        Self { previous, recorded_at: None, is_this_boot: None, restart: None }
    }
}

impl Past {
    /// As the recovered ring and the system's records tell it, in this boot of the host.
    pub fn of(recovery: &Recovery, boot: u64, restart: Option<Restart>) -> Self {
        Self {
            previous: PreviousRun::of(recovery, boot),
            recorded_at: recovery.recorded_at,
            is_this_boot: recovery.boot.map(|recorded_in| recorded_in == boot),
            restart,
        }
    }

    /// A time that may have been told as recorded, and has happened again since, or will.
    fn happens_twice(&self, now: Moment) -> Option<(Timestamp, Timestamp)> {
        let told_until = self.previous.told_until()?;
        let until = match self.previous {
            // What happened between the last word and the kill went unrecorded.
            PreviousRun::Killed { .. } => told_until.saturating_add(Recovery::UNSAFE_MAX),
            _ => told_until,
        };
        let is_told = |from: Timestamp| (told_until > now.wall).then_some((from, until));
        match (self.recorded_at, self.is_this_boot) {
            (Some(at), Some(true)) => {
                let away = Duration::from_nanos(now.boot_ns.saturating_sub(at.boot_ns));
                let expected = at.wall.saturating_add(away);
                if expected.since(now.wall) < STEP_MIN {
                    return is_told(now.wall);
                }
                // It was set back at some instant in between, and showed no earlier time than if that was at once, and
                // no later one than if it was just now.
                Some((now.wall.saturating_sub(away), expected.max(until)))
            }
            // Behind the end of the recording, after another boot: how far it went back meanwhile is not known.
            (Some(at), _) if now.wall < at.wall => Some((Timestamp::ZERO, until.max(at.wall))),
            // Whatever this boot has shown so far went unrecorded.
            (Some(at), _) => {
                let until = if told_until > at.wall { until } else { at.wall };
                (until > booted(now)).then_some((booted(now), until))
            }
            // Since when the clock is behind is not known, but that the host has been on since this boot.
            (None, _) => is_told(booted(now)),
        }
    }

    /// When the host was off, if that is proven.
    ///
    /// A shutdown that seems to be before the end of the recording, or after the boot, was recorded by a clock that was set
    /// since. And nobody vouches for a clock that ran long after the end of the recording: by what was set back of it, the
    /// shutdown would seem to be too early. By what was set forward in this boot, its beginning would seem to be too late.
    fn off(&self, now: Moment) -> Option<(Timestamp, Timestamp)> {
        let (recorded_until, told_until) = (self.previous.recorded_until()?, self.previous.told_until()?);
        let Restart { shutdown, started } = self.restart.filter(|_| self.is_this_boot == Some(false))?;
        let (from, to) = (shutdown.saturating_add(SHUTDOWN_MAX), booted(now).min(started));
        let clock_is_vouched_for = recorded_until <= shutdown
            && self.recorded_at.is_none_or(|at| at.wall <= shutdown)
            && shutdown.since(recorded_until) <= SHUTDOWN_MAX;
        (clock_is_vouched_for && told_until <= from && from < to).then_some((from, to))
    }
}

impl PreviousRun {
    fn recorded_until(&self) -> Option<Timestamp> {
        match *self {
            Self::None => None,
            Self::Stopped { recorded_until }
            | Self::Killed { recorded_until }
            | Self::Ended { recorded_until, .. } => Some(recorded_until),
        }
    }

    /// No later time was ever told as recorded.
    fn told_until(&self) -> Option<Timestamp> {
        if let Self::Ended { told_until, .. } = *self { Some(told_until) } else { self.recorded_until() }
    }
}

/// When the host was started, by the clock as it is set now.
fn booted(now: Moment) -> Timestamp {
    now.wall.saturating_sub(Duration::from_nanos(now.boot_ns))
}

impl Ledger {
    /// What a new run has to say of the time before it. Run before anything else is recorded.
    pub fn begin(&mut self, past: impl Into<Past>, now: Moment) -> Vec<CoverageChange> {
        let past = past.into();
        let mut changes = Vec::new();
        if let PreviousRun::Ended { recorded_until, .. } | PreviousRun::Killed { recorded_until } =
            past.previous
        {
            let reason = "the agent ended without saying so (crash, kill or power loss)";
            changes.extend(self.all(|facet| not_recorded(facet, reason, recorded_until, None)));
        }
        if let Some((from, to)) = past.happens_twice(now) {
            changes.extend(self.unrecorded(TWICE, from, to));
        }
        self.boot_was_told = past.is_this_boot == Some(true);
        if let Some(at) = past.recorded_at.filter(|_| self.boot_was_told) {
            changes.extend(self.boot_may_be_earlier(at, now));
        }
        if let Some((from, to)) = past.off(now) {
            self.boot_was_told = true;
            changes.extend(self.was_off(from, to));
        }
        changes
    }

    /// The host was off: what the run before left unrecorded ends where the host did, and goes on where it was started.
    ///
    /// Nobody was told anything else of that time. Until this is heard it is not known at all, as everything after the end
    /// of the run before is not; so this makes nothing better that was ever told.
    fn was_off(&self, from: Timestamp, to: Timestamp) -> Vec<CoverageChange> {
        let scope = Scope {
            source: "boot records".to_owned(),
            covers: "everything: the system was shut down, as its records prove, so that nothing ran"
                .to_owned(),
            cannot_see: "another system that was started on this machine meanwhile".to_owned(),
        };
        let off = self.all(|facet| CoverageChange {
            facet,
            grade: Grade::Complete,
            from,
            to: None,
            scope: Some(scope.clone()),
            announced_from: None,
        });
        let reason = "the host was started, and recording had not begun yet";
        off.into_iter().chain(self.all(|facet| not_recorded(facet, reason, to, None))).collect()
    }

    /// If the clock was set back from `before` to `after`, in one boot, it may have been wrong since that began. Then the
    /// host was started earlier than was said, and ran in a time in which it was said to be off.
    pub fn boot_may_be_earlier(&self, before: Moment, after: Moment) -> Vec<CoverageChange> {
        let (from, to) = (booted(after), booted(before));
        if !self.boot_was_told || to.since(from) < STEP_MIN {
            return Vec::new();
        }
        let reason = "the clock was set back: the host may have been started before it was said to be";
        // Where it was not said to be off, what was recorded then is as good as it was.
        self.all(|facet| CoverageChange {
            facet,
            grade: Grade::Doubtful { reason: reason.to_owned() },
            from,
            to: Some(to),
            scope: None,
            announced_from: None,
        })
    }
}
