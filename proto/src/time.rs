//! Instants. Wall time is UTC in nanoseconds; boot time counts from boot, suspend included, and cannot be set.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Nanoseconds since the Unix epoch, UTC. Printed in RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch: earlier than anything recorded.
    pub const ZERO: Self = Self(0);
    /// Later than anything recorded, and the last instant that can be printed and stored (in the year 2262).
    pub const MAX: Self = Self(i64::MAX as u64);

    /// From nanoseconds since the Unix epoch; what lies past [`Timestamp::MAX`] becomes it.
    pub const fn from_nanos(nanos: u64) -> Self {
        if nanos > Self::MAX.0 { Self::MAX } else { Self(nanos) }
    }

    /// From whole seconds since the Unix epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_nanos(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Nanoseconds since the Unix epoch, for stores whose integers are signed. Never negative.
    pub const fn as_nanos_i64(self) -> i64 {
        self.0 as i64
    }

    /// Later by `duration`, at most [`Timestamp::MAX`].
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self::from_nanos(self.0.saturating_add(nanos(duration)))
    }

    /// Earlier by `duration`, at least [`Timestamp::ZERO`].
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(instant) => match f.precision() {
                Some(digits) => write!(f, "{instant:.digits$}"),
                None => write!(f, "{instant}"),
            },
            Err(_) => write!(f, "{} ns since 1970", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        u64::try_from(instant.as_nanosecond()).map(Self::from_nanos).map_err(D::Error::custom)
    }
}

/// One instant by both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Wall time.
    pub wall: Timestamp,
    /// Nanoseconds since boot, suspend included.
    pub boot_ns: u64,
}

/// A length of time as a person writes it: `90s`, `10m`, `2h`, `1d`, `250ms`.
///
/// # Errors
/// The text, when it is not a positive whole number and one of those units, or longer than ten years.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let count: u64 = text[..split].parse().map_err(|_| error())?;
    let unit_ms: u64 = match &text[split..] {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(error()),
    };
    const TEN_YEARS_MS: u64 = 3_653 * 86_400_000;
    match count.checked_mul(unit_ms) {
        Some(ms @ 1..=TEN_YEARS_MS) => Ok(Duration::from_millis(ms)),
        _ => Err(error()),
    }
}

/// A text that is not a length of time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a length of time: write a positive number and ms, s, m, h or d, such as 10m, for ten years at most"
)]
pub struct DurationError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_printed_in_rfc_3339() {
        let instant = Timestamp::from_nanos(1_764_000_000_120_000_000);
        assert_eq!(instant.to_string(), "2025-11-24T16:00:00.12Z");
        assert_eq!(format!("{instant:.0}"), "2025-11-24T16:00:00Z");
        assert_eq!(Timestamp::from_nanos(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.to_string(), "2262-04-11T23:47:16.854775807Z");
    }

    #[test]
    fn lengths_of_time_are_read_or_named() {
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "10", "m", "0m", "-5m", "5 m", "5w", "1.5h", "99999999999999999999d", "4000d"] {
            assert!(parse_duration(bad).unwrap_err().to_string().contains(&format!("`{bad}`")), "{bad}");
        }
    }
}
