//! The clocks: wakes the source when the wall clock is set, and notices when the host was suspended.
//!
//! A clock that is set must be bracketed tightly, since the time between two reports is unknown then; so the source must
//! report at once. A timer that never ends does that: the kernel cancels it when the clock is set, and also at a resume.
//!
//! While the host is suspended the boot clock goes on and the monotonic clock does not. That it slept once and not twice
//! with something in between ([`suspends`](crate::capture::suspends)), the kernel's count of suspends must show.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use alibi_proto::time::Moment;
use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::Sensor;
use crate::{
    capture::{CaptureError, Observation, suspends::Suspends},
    sys,
};

/// When the timer would end: farther away than any host runs (in the year 2200), and what every system can hold.
const NEVER_SECS: i64 = 7_258_118_400;

/// The sensor of the clocks.
pub(super) struct Clock {
    timer: OwnedFd,
    suspends: Suspends,
    count: Count,
}

/// The kernel's count of suspends.
struct Count {
    /// How often this host has been suspended; none where the kernel does not count.
    read: fn() -> Option<u64>,
    /// What it was when it was asked last.
    last: Option<u64>,
}

impl Count {
    fn new(read: fn() -> Option<u64>) -> Self {
        Self { read, last: read() }
    }

    /// Whether the host was suspended exactly once since it was asked last.
    fn is_one_more(&mut self) -> bool {
        let now = (self.read)();
        let before = std::mem::replace(&mut self.last, now);
        now.zip(before).is_some_and(|(now, before)| now.checked_sub(before) == Some(1))
    }
}

impl Clock {
    /// # Errors
    /// When the system has no such timers.
    pub(super) fn open() -> Result<Self, CaptureError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags).map_err(unarmed)?;
        arm(&timer)?;
        // A hibernation is none of these.
        let count =
            Count::new(|| fs::read_to_string("/sys/power/suspend_stats/success").ok()?.trim().parse().ok());
        Ok(Self { timer, suspends: Suspends::default(), count })
    }
}

impl Sensor for Clock {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn take(&mut self, _now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        if was_cancelled(rustix::io::read(&self.timer, &mut [0; 8]))? {
            arm(&self.timer)?;
        }
        // The turn may have begun a while ago, and the clocks must be read as of one instant.
        let count = &mut self.count;
        let unbroken = |slept_ns| count.is_one_more().then_some(slept_ns);
        let (now, awake_ns) = (sys::now(), sys::awake_ns());
        facts.extend(self.suspends.look(now, awake_ns, sys::now(), unbroken));
        Ok(true)
    }
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

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

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
            let read: fn() -> Option<u64> = match now {
                None => || None,
                Some(1) => || Some(1),
                Some(4) => || Some(4),
                Some(_) => || Some(5),
            };
            let mut count = Count { read, last: before };
            assert_eq!(count.is_one_more(), is_told, "{before:?} {now:?}");
            assert_eq!(count.last, now, "the next one is compared with this");
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
