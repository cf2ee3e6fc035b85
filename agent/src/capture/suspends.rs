//! When the host was suspended, as its clocks tell. Pure.
//!
//! While the host is suspended one clock goes on and another does not. By how much they have come apart since the last look
//! is exactly how long nothing ran. When that was is known less exactly: between the two looks. What is told is the stretch
//! in which the host slept in any case, so that nothing that happened beside it is denied. That takes a host that slept once
//! and not twice with something in between. The clocks cannot show that: whoever looks at them brings a proof for it. Where
//! there is none, nothing is told, and what is open is believed to be open all the time.

use std::time::Duration;

use alibi_proto::time::Moment;

use super::{Fact, Observation};

/// Shorter is no suspend: the clocks are not read at the same instant.
const SLEPT_MIN_NS: u64 = 100_000_000;
/// Clocks that are read within this are read as of one instant.
const TOGETHER_NS: u64 = SLEPT_MIN_NS / 2;
/// Systems tell when they last slept by a clock of seconds, and a little before and after they do.
#[cfg(any(test, not(target_os = "linux")))]
const LAST_SLEEP_ERROR: Duration = Duration::from_secs(2);

/// Both clocks at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    at: Moment,
    /// By the clock that stops while the host is suspended.
    awake_ns: u64,
}

/// Remembers the last look.
#[derive(Debug, Default)]
pub(super) struct Suspends {
    previous: Option<Look>,
}

impl Suspends {
    /// What there is to tell of a suspend since the last look. `awake_ns` is what the clock shows that stops while the host is
    /// suspended, read after `now` and before `after`. Where the host has slept, `unbroken` is asked for how long in one
    /// piece, in any case, of so many nanoseconds in all.
    pub(super) fn look(
        &mut self,
        now: Moment,
        awake_ns: u64,
        after: Moment,
        unbroken: impl FnOnce(u64) -> Option<u64>,
    ) -> Option<Observation> {
        let fact = self.compare(Look { at: now, awake_ns }, unbroken);
        if after.boot_ns.saturating_sub(now.boot_ns) >= TOGETHER_NS {
            // They were not read as of one instant: there is nothing to compare with the next time.
            self.previous = None;
            return None;
        }
        let fact = fact?;
        // Dated to its end, up to which a connection's record that was cut has been told.
        let at = if let Fact::Suspended { to, .. } = &fact { *to } else { now };
        Some(Observation { at, fact })
    }

    fn compare(&mut self, look: Look, unbroken: impl FnOnce(u64) -> Option<u64>) -> Option<Fact> {
        let previous = self.previous.replace(look)?;
        let slept_ns = slept_ns(previous, look);
        if slept_ns < SLEPT_MIN_NS {
            return None;
        }
        let unbroken_ns = unbroken(slept_ns).map(|unbroken_ns| unbroken_ns.min(slept_ns));
        tracing::info!(
            slept_ms = slept_ns / 1_000_000,
            is_proven = unbroken_ns.is_some(),
            "the host was suspended"
        );
        suspended(previous, look, unbroken_ns?)
    }
}

/// By how much the clocks came apart between two looks.
fn slept_ns(earlier: Look, later: Look) -> u64 {
    passed_ns(earlier, later).saturating_sub(later.awake_ns.saturating_sub(earlier.awake_ns))
}

fn passed_ns(earlier: Look, later: Look) -> u64 {
    later.at.boot_ns.saturating_sub(earlier.at.boot_ns)
}

/// What the two looks say of a host that slept for `unbroken_ns` in one piece between them.
///
/// If it was awake before it slept for all the rest, it fell asleep at `later - unbroken`, and if it was awake after it, it
/// woke up at `earlier + unbroken`. Between these two it slept in any case. When it was awake for longer than it slept, that
/// is no time at all.
fn suspended(earlier: Look, later: Look, unbroken_ns: u64) -> Option<Fact> {
    let rest_ns = passed_ns(earlier, later).saturating_sub(unbroken_ns);
    let asleep_ns = unbroken_ns.checked_sub(rest_ns).filter(|asleep_ns| *asleep_ns > 0)?;
    let from = before(later.at, unbroken_ns);
    Some(Fact::Suspended { from, to: before(later.at, unbroken_ns - asleep_ns) })
}

fn before(moment: Moment, nanos: u64) -> Moment {
    let wall = moment.wall.saturating_sub(Duration::from_nanos(nanos));
    Moment { wall, boot_ns: moment.boot_ns.saturating_sub(nanos) }
}

/// For how long a host slept in one piece that slept for `slept_ns` in all, if the last of its sleeps took `last`, by the
/// word of its system. None where that leaves room for another one: then it is not said of when it was awake between them.
#[cfg(any(test, not(target_os = "linux")))]
pub(super) fn unbroken_ns(slept_ns: u64, last: Duration) -> Option<u64> {
    let slept = Duration::from_nanos(slept_ns);
    let unbroken = slept.checked_sub(2 * LAST_SLEEP_ERROR).filter(|unbroken| !unbroken.is_zero())?;
    let is_once = last + LAST_SLEEP_ERROR >= slept;
    is_once.then(|| u64::try_from(unbroken.as_nanos()).unwrap_or(slept_ns))
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn moment(boot_ms: u64) -> Moment {
        let wall = Timestamp::from_nanos((1_764_000_000_000 + boot_ms) * MS);
        Moment { wall, boot_ns: boot_ms * MS }
    }

    fn look(boot_ms: u64, awake_ms: u64) -> Look {
        Look { at: moment(boot_ms), awake_ns: awake_ms * MS }
    }

    /// The stretch of certain sleep, in ms after `from`.
    fn stretch(from: Look, fact: &Fact) -> (u64, u64) {
        let Fact::Suspended { from: asleep, to } = fact else { panic!("{fact:?}") };
        let since = |moment: &Moment| (moment.boot_ns - from.at.boot_ns) / MS;
        assert_eq!(u128::from(since(asleep)), asleep.wall.since(from.at.wall).as_millis());
        assert_eq!(u128::from(since(to)), to.wall.since(from.at.wall).as_millis());
        (since(asleep), since(to))
    }

    /// Awake for `awake` of the `passed` ms, and asleep once.
    #[track_caller]
    fn check(passed: u64, awake: u64, want: Option<(u64, u64)>) {
        let (earlier, later) = (look(5_000, 2_000), look(5_000 + passed, 2_000 + awake));
        let mut suspends = Suspends { previous: Some(earlier) };
        let told = suspends.compare(later, Some).map(|fact| stretch(earlier, &fact));
        assert_eq!(told, want, "awake {awake} ms of {passed}");
        assert_eq!(suspends.previous, Some(later));
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
    fn what_is_not_proven_is_not_told() {
        let mut suspends = Suspends { previous: Some(look(0, 0)) };
        assert_eq!(suspends.compare(look(60_000, 500), |_| None), None);
        assert_eq!(suspends.previous, Some(look(60_000, 500)), "the next one is compared with this");
        // Of a proof for more than there was, only so much is believed.
        let fact = suspends.compare(look(120_000, 1_000), |slept_ns| Some(slept_ns + 1_000 * MS)).unwrap();
        assert_eq!(stretch(look(60_000, 500), &fact), (500, 59_500));
    }

    #[test]
    fn clocks_that_were_not_read_together_are_compared_with_nothing() {
        let mut suspends = Suspends::default();
        // All of it asleep, and so many ms from the first clock to the last.
        let mut look = |boot_ms: u64, slow_ms: u64| {
            suspends.look(moment(boot_ms), 0, moment(boot_ms + slow_ms), Some).map(|told| told.at)
        };
        assert_eq!(look(1_000, 0), None, "there is nothing to compare the first look with");
        assert_eq!(look(2_000, 49), Some(moment(2_000)));
        assert_eq!(look(2_000, 0), None, "it is told once");
        assert_eq!(look(3_000, 50), None);
        assert_eq!(look(4_000, 0), None, "the look before was none");
        assert_eq!(look(5_000, 0), Some(moment(5_000)));
    }

    #[test]
    fn the_last_sleep_must_have_been_all_of_it() {
        let check = |slept_s: u64, last_s: u64, want_s: Option<u64>| {
            let unbroken = unbroken_ns(slept_s * 1_000 * MS, Duration::from_secs(last_s));
            assert_eq!(unbroken, want_s.map(|secs| secs * 1_000 * MS), "{slept_s} s, the last {last_s} s");
        };
        check(3_600, 3_600, Some(3_596));
        check(3_600, 3_598, Some(3_596));
        check(3_600, 4_000, Some(3_596));
        // It slept before, too, and nobody knows when it was awake in between.
        check(3_600, 3_597, None);
        check(3_600, 0, None);
        check(4, 4, None);
        check(u64::MAX / (1_000 * MS), 1, None);
    }

    proptest! {
        /// Awake, asleep, awake and so on between two looks: whatever is told, the host slept through all of it.
        #[test]
        fn what_is_told_was_slept_through(
            stretches in prop::collection::vec((0_u64..20_000, 0_u64..20_000), 1..5),
            awake_after in 0_u64..5_000,
            error in 0_u64..2_000,
        ) {
            let mut sleeps = Vec::new();
            let (mut now, mut awake) = (0, 0);
            for (up, asleep) in &stretches {
                sleeps.push((now + up, now + up + asleep));
                now += up + asleep;
                awake += up;
            }
            let (earlier, later) = (look(0, 0), look(now + awake_after, awake + awake_after));
            let (_, last) = stretches[stretches.len() - 1];
            // A kernel that counts knows that there was one; another one tells how long the last took, or so.
            let counted = |slept_ns: u64| (stretches.len() == 1).then_some(slept_ns);
            let told = |slept_ns: u64| unbroken_ns(slept_ns, Duration::from_millis(last + error));
            for unbroken in [&counted as &dyn Fn(u64) -> Option<u64>, &told] {
                let mut suspends = Suspends { previous: Some(earlier) };
                if let Some(fact) = suspends.compare(later, unbroken) {
                    let (from, to) = stretch(earlier, &fact);
                    let is_asleep = sleeps.iter().any(|(asleep, up)| *asleep <= from && to <= *up);
                    prop_assert!(is_asleep && from < to, "{from}..{to} is not in {sleeps:?}");
                }
            }
        }
    }
}
