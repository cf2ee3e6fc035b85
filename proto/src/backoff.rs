//! How long to wait before the next try.

use std::time::Duration;

/// Each pause is anywhere between half of a span and all of it, so that many who wait do not come back at once; each try
/// doubles the span, up to a bound.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    span: Duration,
}

impl Backoff {
    /// From `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, span: first }
    }

    /// The next pause; `random` is from 0 to 1.
    pub fn pause(&mut self, random: f64) -> Duration {
        let pause = self.span.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        self.span = (self.span * 2).min(self.max);
        pause
    }

    /// It went well: the next pause is the first again.
    pub fn reset(&mut self) {
        self.span = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew() {
        let secs = Duration::from_secs;
        let mut backoff = Backoff::new(secs(2), secs(10));
        assert_eq!([1.0, 1.0, 1.0, 1.0].map(|random| backoff.pause(random)), [2, 4, 8, 10].map(secs));
        assert_eq!(
            [0.0, 0.5, 7.0].map(|random| backoff.pause(random)),
            [5_000, 7_500, 10_000].map(Duration::from_millis)
        );
        backoff.reset();
        assert_eq!(backoff.pause(0.0), secs(1));
    }
}
