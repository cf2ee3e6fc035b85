//! The window of a question: half open, in UTC.

use std::time::Duration;

use jiff::{civil, tz::TimeZone};
use serde::Serialize;

use crate::time::{Timestamp, parse_duration};

/// `[from, to)`, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    from: Timestamp,
    to: Timestamp,
}

impl Window {
    /// A window from `from` up to, not including, `to`.
    ///
    /// # Errors
    /// When it is reversed or empty.
    pub fn new(from: Timestamp, to: Timestamp) -> Result<Self, WindowError> {
        if from < to { Ok(Self { from, to }) } else { Err(WindowError::Reversed { from, to }) }
    }

    /// As an analyst gives it: `--last 10m`, or `--from` and `--to`, where `--to` is `now` if it is left out.
    ///
    /// # Errors
    /// When neither or both are given, when one cannot be read, or when the window is reversed, empty or begins
    /// in the future.
    pub fn from_words(
        last: Option<&str>,
        from: Option<&str>,
        to: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, WindowError> {
        let window = match (last, from, to) {
            (Some(last), None, None) => {
                let length = parse_duration(last).map_err(|error| WindowError::Length(error.to_string()))?;
                Self::new(now.saturating_sub(length), now)?
            }
            (None, Some(from), to) => {
                Self::new(parse_instant(from, now)?, to.map_or(Ok(now), |to| parse_instant(to, now))?)?
            }
            (None, None, _) => return Err(WindowError::Missing),
            (Some(_), ..) => return Err(WindowError::Both),
        };
        window.not_wholly_in_the_future(now)
    }

    /// The window itself, if any of it has happened by `now`.
    ///
    /// # Errors
    /// When it begins after `now`.
    pub fn not_wholly_in_the_future(self, now: Timestamp) -> Result<Self, WindowError> {
        if self.from > now { Err(WindowError::Future { from: self.from, now }) } else { Ok(self) }
    }

    /// The first instant inside.
    pub const fn from(&self) -> Timestamp {
        self.from
    }

    /// The first instant after.
    pub const fn to(&self) -> Timestamp {
        self.to
    }

    /// Whether something that lived `[first, last]`, both included, lived inside the window.
    pub fn overlaps(&self, first: Timestamp, last: Timestamp) -> bool {
        first < self.to && last >= self.from
    }

    /// Whether the instant is inside.
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.from <= instant && instant < self.to
    }
}

/// An instant as an analyst writes it: RFC 3339, `10:31` or `10:31:07` (UTC, the latest not after `now`), `-15m`,
/// or `now`.
///
/// # Errors
/// The text, when it is none of these.
pub fn parse_instant(text: &str, now: Timestamp) -> Result<Timestamp, WindowError> {
    if text == "now" {
        return Ok(now);
    }
    if let Some(ago) = text.strip_prefix('-')
        && let Ok(length) = parse_duration(ago)
    {
        return Ok(now.saturating_sub(length));
    }
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(instant.as_nanosecond())
            .map(Timestamp::from_nanos)
            .map_err(|_| WindowError::Instant(text.to_owned()));
    }
    latest_time_of_day(text, now).ok_or_else(|| WindowError::Instant(text.to_owned()))
}

fn latest_time_of_day(text: &str, now: Timestamp) -> Option<Timestamp> {
    // `civil::Time` also reads `1031`, which may be meant as a year, and the time of a date, which has no zone.
    let is_clock = text.contains(':') && text.chars().all(|c| c.is_ascii_digit() || c == ':' || c == '.');
    let time: civil::Time = if is_clock { text.parse().ok()? } else { return None };
    let now_timestamp = jiff::Timestamp::from_nanosecond(i128::from(now.as_nanos())).ok()?;
    let today = TimeZone::UTC.to_datetime(now_timestamp).date();
    let instant = TimeZone::UTC.to_timestamp(today.to_datetime(time)).ok()?;
    let instant = Timestamp::from_nanos(u64::try_from(instant.as_nanosecond()).ok()?);
    Some(if instant > now { instant.saturating_sub(Duration::from_secs(86_400)) } else { instant })
}

/// A window that cannot be asked about.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WindowError {
    /// It ends before it begins, or where it begins.
    #[error(
        "the window is reversed or empty: it begins at {from} and ends at {to}; --from must be before --to"
    )]
    Reversed {
        /// Its beginning.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// It has not begun.
    #[error("the window is in the future: it begins at {from}, and now is {now}; --from must be before that")]
    Future {
        /// Its beginning.
        from: Timestamp,
        /// The time of asking.
        now: Timestamp,
    },
    /// Neither form was given.
    #[error("no window: give --last 10m, or --from T and --to T")]
    Missing,
    /// Both forms were given.
    #[error("two windows: give either --last, or --from and --to")]
    Both,
    /// `--last` cannot be read.
    #[error("{0}")]
    Length(String),
    /// An instant cannot be read.
    #[error(
        "`{0}` is not a time: write RFC 3339 such as 2026-11-24T10:31:00Z, a time of day in UTC such as 10:31, or -15m"
    )]
    Instant(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        parse_instant(text, Timestamp::ZERO).unwrap()
    }

    #[test]
    fn instants_are_read_in_every_form() {
        let now = at("2026-11-24T10:31:00Z");
        for (text, want) in [
            ("2026-11-24T11:00:00.5+01:00", "2026-11-24T10:00:00.5Z"),
            ("10:31", "2026-11-24T10:31:00Z"),
            ("10:30:59", "2026-11-24T10:30:59Z"),
            ("10:32", "2026-11-23T10:32:00Z"),
            ("-15m", "2026-11-24T10:16:00Z"),
            ("now", "2026-11-24T10:31:00Z"),
        ] {
            assert_eq!(parse_instant(text, now).unwrap().to_string(), want, "{text}");
        }
        for bad in
            ["", "yesterday", "2026", "25:00", "-", "-5", "1960-01-01T00:00:00Z", "2026-11-24T10:31:00"]
        {
            assert_eq!(parse_instant(bad, now), Err(WindowError::Instant(bad.into())), "{bad}");
        }
    }

    #[test]
    fn windows_are_never_empty_reversed_or_in_the_future() {
        let now = at("2026-11-24T10:31:00Z");
        let words = |last, from, to| Window::from_words(last, from, to, now);
        let window = words(Some("10m"), None, None).unwrap();
        assert_eq!((window.from(), window.to()), (at("2026-11-24T10:21:00Z"), now));
        assert_eq!(words(None, Some("-10m"), None).unwrap(), window);
        assert!(
            words(None, Some("-10m"), Some("2026-11-25T00:00:00Z")).is_ok(),
            "its beginning has happened"
        );

        assert_eq!(words(None, None, None), Err(WindowError::Missing));
        assert_eq!(words(Some("10m"), Some("-5m"), None), Err(WindowError::Both));
        assert!(matches!(words(None, Some("10:30"), Some("10:29")), Err(WindowError::Reversed { .. })));
        assert!(matches!(words(None, Some("10:30"), Some("10:30")), Err(WindowError::Reversed { .. })));
        let future = words(None, Some("2026-11-24T10:31:01Z"), Some("2026-11-24T11:00:00Z"));
        assert!(matches!(future, Err(WindowError::Future { .. })));
    }

    #[test]
    fn the_end_of_a_life_is_inside_and_the_end_of_a_window_is_not() {
        let window = Window::new(Timestamp::from_nanos(10), Timestamp::from_nanos(20)).unwrap();
        let overlaps =
            |first, last| window.overlaps(Timestamp::from_nanos(first), Timestamp::from_nanos(last));
        assert!(overlaps(5, 10), "ends exactly at from");
        assert!(!overlaps(5, 9));
        assert!(!overlaps(20, 25), "starts exactly at to");
        assert!(overlaps(19, 25));
        assert!(overlaps(0, 100), "spans the whole window");
        assert!(overlaps(12, 12), "an instant");
    }
}
