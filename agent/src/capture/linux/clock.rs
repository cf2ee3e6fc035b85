//! The clocks: wakes the source when the wall clock is set, and notices when the host was suspended.
//!
//! A clock that is set must be bracketed tightly, since the time between two reports is unknown then; so the source must
//! report at once. A timer that never ends does that: the kernel cancels it when the clock is set, and also at a resume.
//!
//! While the host is suspended the boot clock goes on and the monotonic clock does not. By how much they have come apart
//! since the last look is exactly how long nothing ran. When that was is known less exactly: between the two looks. What
//! is told is the stretch in which the host slept in any case, so that nothing that happened beside it is denied. That
//! takes a host that slept once and not twice with something in between, which the kernel's count of suspends must show;
//! where it does not, nothing is told, and what is open is believed to be open all the time.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use alibi_proto::time::Moment;
use rustix::{
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
        timerfd_create, timerfd_settime,
    },
};

use super::Sensor;
use crate::{
    capture::{CaptureError, Fact, Observation},
    sys,
};

/// Shorter is no suspend: the clocks are not read at the same instant.
const SLEPT_MIN_NS: u64 = 100_000_000;
/// Two clocks that are read within this are read as of one instant.
const TOGETHER_NS: u64 = SLEPT_MIN_NS / 2;
/// When the timer would end: farther away than any host runs (in the year 2200), and what every system can hold.
const NEVER_SECS: i64 = 7_258_118_400;

/// The sensor of the clocks.
pub(super) struct Clock {
    timer: OwnedFd,
    instruments: Instruments,
    previous: Option<Look>,
    /// How often the host had been suspended when that was looked at last.
    suspends: Option<u64>,
}

/// What the clocks and the kernel say.
#[derive(Clone, Copy)]
struct Instruments {
    monotonic_ns: fn() -> u64,
    /// How often this host has been suspended; none where the kernel does not count.
    suspends: fn() -> Option<u64>,
}

/// Both clocks at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    at: Moment,
    monotonic_ns: u64,
}

impl Clock {
    /// # Errors
    /// When the system has no such timers.
    pub(super) fn open() -> Result<Self, CaptureError> {
        Self::open_with(Instruments {
            monotonic_ns: || nanos(clock_gettime(ClockId::Monotonic)),
            // A hibernation is none of these.
            suspends: || fs::read_to_string("/sys/power/suspend_stats/success").ok()?.trim().parse().ok(),
        })
    }

    fn open_with(instruments: Instruments) -> Result<Self, CaptureError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags).map_err(unarmed)?;
        arm(&timer)?;
        Ok(Self { timer, instruments, previous: None, suspends: (instruments.suspends)() })
    }

    fn look(&mut self, at: Moment) -> Option<Fact> {
        let look = Look { at, monotonic_ns: (self.instruments.monotonic_ns)() };
        let previous = self.previous.replace(look)?;
        let slept_ns = slept_ns(previous, look);
        if slept_ns < SLEPT_MIN_NS {
            return None;
        }
        let suspends = (self.instruments.suspends)();
        let before = std::mem::replace(&mut self.suspends, suspends);
        let is_once = suspends.zip(before).is_some_and(|(now, before)| now.checked_sub(before) == Some(1));
        tracing::info!(slept_ms = slept_ns / 1_000_000, is_once, "the host was suspended");
        is_once.then(|| suspended(previous, look)).flatten()
    }
}

impl Sensor for Clock {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        if was_cancelled(rustix::io::read(&self.timer, &mut [0; 8]))? {
            arm(&self.timer)?;
        }
        // Dated to its end, up to which a connection's record that was cut has been told.
        // The turn may have begun a while ago, and the two clocks must be read as of one instant.
        let at = sys::now();
        let fact = self.look(at);
        if sys::now().boot_ns - at.boot_ns >= TOGETHER_NS {
            // They were not: there is nothing to compare with the next time.
            self.previous = None;
            return Ok(true);
        }
        facts.extend(fact.map(|fact| {
            let at = if let Fact::Suspended { to, .. } = &fact { *to } else { now };
            Observation { at, fact }
        }));
        Ok(true)
    }
}

/// By how much the clocks came apart between two looks.
fn slept_ns(earlier: Look, later: Look) -> u64 {
    later.at.boot_ns.saturating_sub(earlier.at.boot_ns).saturating_sub(awake_ns(earlier, later))
}

fn awake_ns(earlier: Look, later: Look) -> u64 {
    later.monotonic_ns.saturating_sub(earlier.monotonic_ns)
}

/// What the two looks say of one suspend between them.
///
/// The host slept for as long as the clocks came apart, and was awake for the rest. If all of that was before it slept, it
/// fell asleep at `later - slept`, and if all was after it, it woke up at `earlier + slept`. Between these two it slept in
/// any case. When it was awake for longer than it slept, that is no time at all.
fn suspended(earlier: Look, later: Look) -> Option<Fact> {
    let slept_ns = slept_ns(earlier, later);
    let asleep_ns = slept_ns.checked_sub(awake_ns(earlier, later)).filter(|asleep_ns| *asleep_ns > 0)?;
    let from = before(later.at, slept_ns);
    Some(Fact::Suspended { from, to: before(later.at, slept_ns - asleep_ns) })
}

fn before(moment: Moment, nanos: u64) -> Moment {
    let wall = moment.wall.saturating_sub(std::time::Duration::from_nanos(nanos));
    Moment { wall, boot_ns: moment.boot_ns.saturating_sub(nanos) }
}

fn arm(timer: &OwnedFd) -> Result<(), CaptureError> {
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: NEVER_SECS, tv_nsec: 0 },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &never).map(drop).map_err(unarmed)
}

/// Whether the timer must be armed again, by the outcome of reading it: the clock was set, or set past its end.
fn was_cancelled(read: Result<usize, Errno>) -> Result<bool, CaptureError> {
    match read {
        Ok(_) | Err(Errno::CANCELED) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(problem) => Err(unarmed(problem)),
    }
}

fn unarmed(problem: Errno) -> CaptureError {
    CaptureError::Kernel {
        what: "be told when the clock is set (timerfd)",
        source: problem.into(),
        way_out: "a sandbox around the agent must allow timerfd_create and timerfd_settime",
    }
}

fn nanos(time: Timespec) -> u64 {
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    const MS: u64 = 1_000_000;

    fn look(boot_ms: u64, monotonic_ms: u64) -> Look {
        let wall = Timestamp::from_nanos((1_764_000_000_000 + boot_ms) * MS);
        Look { at: Moment { wall, boot_ns: boot_ms * MS }, monotonic_ns: monotonic_ms * MS }
    }

    /// Awake for `awake` of the `passed` ms: the stretch of certain sleep, in ms after the first look.
    #[track_caller]
    fn check(passed: u64, awake: u64, want: Option<(u64, u64)>) {
        let (earlier, later) = (look(5_000, 2_000), look(5_000 + passed, 2_000 + awake));
        let told = Some(slept_ns(earlier, later)).filter(|slept| *slept >= SLEPT_MIN_NS);
        let told = told.and_then(|_| suspended(earlier, later)).map(|fact| {
            let Fact::Suspended { from, to } = fact else { panic!("{fact:?}") };
            let since = |moment: Moment| (moment.boot_ns - earlier.at.boot_ns) / MS;
            assert_eq!(u128::from(since(from)), from.wall.since(earlier.at.wall).as_millis());
            assert_eq!(u128::from(since(to)), to.wall.since(earlier.at.wall).as_millis());
            (since(from), since(to))
        });
        assert_eq!(told, want, "awake {awake} ms of {passed}");
    }

    #[test]
    fn only_what_was_slept_through_in_any_case_is_told() {
        check(500, 500, None);
        check(580, 500, None);
        check(60_000, 0, Some((0, 60_000)));
        check(60_500, 500, Some((500, 60_000)));
        // Awake for longer than asleep: it can have been before or after.
        check(900, 500, None);
        check(1_100, 500, Some((500, 600)));
        check(100, 0, Some((0, 100)));
        check(99, 0, None);
        // Clocks that are read one after the other, and not at the same time.
        check(500, 501, None);
    }

    #[test]
    fn wherever_it_slept_between_two_looks_it_slept_in_the_stretch_that_is_told() {
        for (awake_before, slept, awake_after) in
            [(0, 1_000, 500), (499, 1_000, 1), (250, 600, 250), (500, 100_000, 0)]
        {
            let passed = awake_before + slept + awake_after;
            let (earlier, later) = (look(0, 0), look(passed, awake_before + awake_after));
            let Some(Fact::Suspended { from, to }) = suspended(earlier, later) else { panic!() };
            assert!(from.boot_ns >= awake_before * MS && to.boot_ns <= (awake_before + slept) * MS);
            assert!(from.boot_ns < to.boot_ns);
        }
    }

    #[test]
    fn a_suspend_is_told_once() {
        let instruments = Instruments { monotonic_ns: || 7_000 * MS, suspends: || Some(3) };
        let mut clock = Clock::open_with(instruments).unwrap();
        clock.suspends = Some(2);
        assert_eq!(clock.look(look(10_000, 0).at), None, "there is nothing to compare the first look with");
        assert!(matches!(clock.look(look(20_000, 0).at), Some(Fact::Suspended { .. })));
        assert_eq!(clock.look(look(20_000, 0).at), None);
    }

    #[test]
    fn a_host_that_may_have_woken_up_in_between_is_not_said_to_have_slept_through() {
        for (before, now, is_told) in [
            (Some(3), Some(4), true),
            (Some(3), Some(5), false),
            // A turn that took long is no suspend.
            (Some(4), Some(4), false),
            (None, Some(1), false),
            (Some(3), None, false),
            (None, None, false),
        ] {
            let mut clock = Clock::open_with(Instruments { monotonic_ns: || 0, suspends: || None }).unwrap();
            clock.look(look(10_000, 0).at);
            clock.suspends = before;
            clock.instruments.suspends = match now {
                None => || None,
                Some(1) => || Some(1),
                Some(4) => || Some(4),
                Some(_) => || Some(5),
            };
            assert_eq!(clock.look(look(20_000, 0).at).is_some(), is_told, "{before:?} {now:?}");
            assert_eq!(clock.suspends, now, "the next one is compared with this");
        }
    }

    #[test]
    fn the_timer_waits_until_the_clock_is_set() {
        let mut clock = Clock::open().unwrap();
        let readable = |clock: &Clock| {
            let mut descriptors = [PollFd::from_borrowed_fd(clock.descriptor(), PollFlags::IN)];
            poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        };
        assert!(!readable(&clock));
        let mut facts = Vec::new();
        for _ in 0..3 {
            clock.take(sys::now(), &mut facts).unwrap();
        }
        assert_eq!(facts, [], "this host was not suspended just now");
        assert!(!readable(&clock));
        // Setting the clock of a host that others use is not for a test: its outcomes are injected.
        assert!(was_cancelled(Err(Errno::CANCELED)).unwrap());
        assert!(was_cancelled(Ok(8)).unwrap());
        assert!(!was_cancelled(Err(Errno::AGAIN)).unwrap());
        assert!(was_cancelled(Err(Errno::BADF)).is_err());
        arm(&clock.timer).unwrap();
        assert!(!readable(&clock));
    }
}
