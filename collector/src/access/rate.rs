//! How often each may: token buckets, one for each key, pure. Time is an argument: since any fixed moment, by a clock that is
//! never set.
//!
//! A bucket is one number: until when what was taken is being paid off. Its table is bounded, and must not be a way to a
//! fresh bucket: where it is full, a new key takes the place of the bucket that owes least, *and takes over what that one
//! owes*. So whoever comes under many keys gains nothing by it: its own bucket goes only once all others owe more, and each
//! newcomer owes as much as who went. All that is ever let through is what the whole table allows, however many keys come.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// How often one key may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a pause.
    pub burst: u32,
    /// In the long run.
    pub per_second: u32,
}

/// Questions of one credential.
pub const QUESTIONS: Rate = Rate { burst: 200, per_second: 50 };
/// Failed authentications from one address.
pub const FAILURES: Rate = Rate { burst: 20, per_second: 1 };

/// Keys that are kept apart. Few under test, so that the limit is met.
pub const KEYS_MAX: usize = if cfg!(test) { 8 } else { 10_000 };

/// The buckets.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    /// Until when each is being paid off, in nanoseconds.
    owed_until: HashMap<K, u64>,
    /// The same, by what is owed.
    by_debt: BTreeSet<(u64, K)>,
}

impl<K: Clone + Eq + Hash + Ord> Limiter<K> {
    /// All buckets are full.
    pub fn new(rate: Rate) -> Self {
        Self { rate, owed_until: HashMap::new(), by_debt: BTreeSet::new() }
    }

    /// Takes one out of the bucket of `key`.
    ///
    /// # Errors
    /// When it is empty: how long until there is one in it.
    pub fn take(&mut self, key: &K, now: Duration) -> Result<(), Duration> {
        let now = nanos(now);
        let owed_until = self.owed_until(key).max(now);
        self.check(owed_until, now)?;
        self.set(key, owed_until.saturating_add(self.interval()));
        Ok(())
    }

    /// Whether there is one in the bucket of `key`, without taking it.
    ///
    /// # Errors
    /// When it is empty: how long until there is one in it.
    pub fn would_take(&self, key: &K, now: Duration) -> Result<(), Duration> {
        let now = nanos(now);
        self.check(self.owed_until(key).max(now), now)
    }

    fn check(&self, owed_until: u64, now: u64) -> Result<(), Duration> {
        let most = self.interval().saturating_mul(u64::from(self.rate.burst.saturating_sub(1)));
        match (owed_until - now).saturating_sub(most) {
            0 => Ok(()),
            missing => Err(Duration::from_nanos(missing)),
        }
    }

    /// Of a key that is not kept apart, what it would take over.
    fn owed_until(&self, key: &K) -> u64 {
        let least = || match self.owed_until.len() < KEYS_MAX {
            true => 0,
            false => self.by_debt.first().map_or(0, |(owed_until, _)| *owed_until),
        };
        self.owed_until.get(key).copied().unwrap_or_else(least)
    }

    fn set(&mut self, key: &K, owed_until: u64) {
        if let Some(before) = self.owed_until.insert(key.clone(), owed_until) {
            self.by_debt.remove(&(before, key.clone()));
        } else if self.owed_until.len() > KEYS_MAX
            && let Some((_, gone)) = self.by_debt.pop_first()
        {
            self.owed_until.remove(&gone);
        }
        self.by_debt.insert((owed_until, key.clone()));
    }

    /// What one costs.
    fn interval(&self) -> u64 {
        1_000_000_000 / u64::from(self.rate.per_second.max(1))
    }
}

/// Whom an address stands for: one network has as many addresses of IPv6 as it likes, so they are one.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))
        }
        address => address,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 2 };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// How many of `tries` at `ms` are let through.
    fn let_through(limiter: &mut Limiter<u32>, key: u32, ms: u64, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.take(&key, at(ms)).is_ok()).count()
    }

    #[test]
    fn a_burst_at_once_and_the_rate_after_it() {
        let mut limiter = Limiter::new(RATE);
        for (ms, tries, want) in [
            (0, 9, 3),
            (499, 9, 0),
            (500, 9, 1),
            (1_500, 9, 2),
            (1_500, 9, 0),
            (100_000, 2, 2),
            // One is still in it, and two come back.
            (101_000, 9, 3),
        ] {
            assert_eq!(let_through(&mut limiter, 1, ms, tries), want, "at {ms} ms");
        }
        assert_eq!(let_through(&mut limiter, 2, 101_000, 9), 3, "another key has another bucket");
    }

    #[test]
    fn whoever_must_wait_is_told_how_long() {
        let mut limiter = Limiter::new(RATE);
        assert_eq!(let_through(&mut limiter, 1, 1_000, 3), 3);
        for ms in [1_000, 1_100, 1_499] {
            let wait = Err(at(1_500 - ms));
            assert_eq!((limiter.would_take(&1, at(ms)), limiter.take(&1, at(ms))), (wait, wait));
        }
        assert_eq!((limiter.would_take(&1, at(1_500)), limiter.take(&1, at(1_500))), (Ok(()), Ok(())));
    }

    /// A clock that seems to go back lets nobody through that owes.
    #[test]
    fn time_that_goes_back_gives_nothing() {
        let mut limiter = Limiter::new(RATE);
        assert_eq!(let_through(&mut limiter, 1, 10_000, 9), 3);
        assert_eq!(let_through(&mut limiter, 1, 5_000, 9), 0);
        assert_eq!(let_through(&mut limiter, 1, 10_500, 9), 1);
    }

    #[test]
    fn many_keys_are_no_way_to_a_fresh_bucket() {
        let mut limiter = Limiter::new(RATE);
        assert_eq!(let_through(&mut limiter, 0, 0, 9), 3);
        let others: usize = (1..10_000).map(|key| let_through(&mut limiter, key, 0, 9)).sum();
        assert_eq!(others, 3 * (KEYS_MAX - 1), "as much as the table allows, and no more");
        assert_eq!(let_through(&mut limiter, 0, 0, 9), 0);
        assert_eq!(limiter.owed_until.len(), KEYS_MAX);
        assert_eq!(limiter.by_debt.len(), KEYS_MAX);
        let later: usize = (0..10_000).map(|key| let_through(&mut limiter, key, 500, 9)).sum();
        assert_eq!(later, KEYS_MAX, "what came back to each");
    }

    #[test]
    fn a_network_is_one() {
        for (address, want) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::1"),
        ] {
            assert_eq!(network_of(address.parse().unwrap()).to_string(), want, "{address}");
        }
    }

    #[test]
    fn who_owes_nothing_makes_room_first() {
        let mut limiter = Limiter::new(RATE);
        for key in 0..KEYS_MAX as u32 {
            let_through(&mut limiter, key, 0, 3);
        }
        // Two who owe nothing any more, and one that goes on.
        assert_eq!(let_through(&mut limiter, 0, 10_000, 9), 3);
        assert_eq!(let_through(&mut limiter, 100, 10_000, 9), 3, "a newcomer is no worse off");
        assert_eq!(let_through(&mut limiter, 0, 10_000, 9), 0, "and whoever owed still does");
    }
}
