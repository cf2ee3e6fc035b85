//! Times in a query: `NOW-10MINUTES` as in Carbon Black and Solr, `now-10m` as in Elastic, `-10m`, RFC 3339, a date.
//!
//! A month is 30 days here, and a year 365. What has no zone is UTC. A time that is not written to the last digit is a
//! stretch: `2026-11-28` is that day, from its first nanosecond to its last.

use std::time::Duration;

use alibi_proto::{time::Timestamp, window::parse_instant};

/// A stretch of time, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Its first instant.
    pub from: Timestamp,
    /// Its last.
    pub to: Timestamp,
}

impl Stretch {
    /// All of time.
    pub const EVER: Self = Self { from: Timestamp::ZERO, to: Timestamp::MAX };

    const fn instant(at: Timestamp) -> Self {
        Self { from: at, to: at }
    }

    /// Whether both have an instant in common.
    pub fn meets(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    /// What both have in common; it may be empty, and then ends before it begins.
    pub fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), to: self.to.min(other.to) }
    }

    /// From the beginning of the one to the end of the other.
    pub fn hull(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// A time is no longer ago than this: it is written wrong.
const AGO_MAX_DAYS: u64 = 36_500;
const TEXT_BYTES_MAX: usize = 64;

/// The time that a text stands for; none if it stands for none.
pub fn parse(text: &str, now: Timestamp) -> Option<Stretch> {
    if text.len() > TEXT_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    if let Some(rest) = text.get(..3).filter(|word| word.eq_ignore_ascii_case("now")).map(|_| &text[3..]) {
        return relative(rest, now);
    }
    if text.starts_with('-') {
        return relative(text, now);
    }
    absolute(text, now)
}

/// What follows on `NOW`: any of `-10MINUTES`, `+1d` and `/DAY`.
fn relative(mut rest: &str, now: Timestamp) -> Option<Stretch> {
    let mut stretch = Stretch::instant(now);
    while let Some(sign) = rest.bytes().next() {
        rest = &rest[1..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (count, unit) = (&rest[..digits], unit_of(&rest[digits..digits + letters])?);
        rest = &rest[digits + letters..];
        stretch = match sign {
            b'/' if count.is_empty() && unit <= DAY => rounded(stretch.from, unit),
            b'-' | b'+' => {
                let length = count.parse::<u64>().ok()?.checked_mul(unit)?;
                if length > AGO_MAX_DAYS * DAY {
                    return None;
                }
                let length = Duration::from_nanos(length);
                let moved = |at: Timestamp| match sign {
                    b'-' => at.saturating_sub(length),
                    _ => at.saturating_add(length),
                };
                Stretch { from: moved(stretch.from), to: moved(stretch.to) }
            }
            _ => return None,
        };
    }
    Some(stretch)
}

/// The whole unit that an instant is in.
fn rounded(at: Timestamp, unit: u64) -> Stretch {
    let from = at.as_nanos() / unit * unit;
    Stretch { from: Timestamp::from_nanos(from), to: Timestamp::from_nanos(from + unit - 1) }
}

/// In nanoseconds. The short ones are Elastic's, in which `M` is a month and `m` a minute.
fn unit_of(word: &str) -> Option<u64> {
    Some(match word {
        "s" => SECOND,
        "m" => MINUTE,
        "h" | "H" => HOUR,
        "d" => DAY,
        "w" => 7 * DAY,
        "M" => 30 * DAY,
        "y" => 365 * DAY,
        word => match word.to_ascii_uppercase().trim_end_matches('S') {
            "MILLI" | "MILLISECOND" => SECOND / 1_000,
            "SEC" | "SECOND" => SECOND,
            "MIN" | "MINUTE" => MINUTE,
            "HOUR" => HOUR,
            "DAY" => DAY,
            "WEEK" => 7 * DAY,
            "MONTH" => 30 * DAY,
            "YEAR" => 365 * DAY,
            _ => return None,
        },
    })
}

fn absolute(text: &str, now: Timestamp) -> Option<Stretch> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let (whole, unit) = match shape.as_str() {
        "0000-00-00" => (format!("{text}T00:00:00Z"), DAY),
        "0000-00-00T00:00" => (format!("{text}:00Z"), MINUTE),
        "0000-00-00T00:00Z" => (format!("{}:00Z", &text[..16]), MINUTE),
        "0000-00-00T00:00:00" => (format!("{text}Z"), SECOND),
        shape if shape.starts_with("0000-00-00T00:00:00") => {
            let is_exact = shape.contains('.');
            let zoned = if shape.ends_with('Z') || shape[19..].contains(['+', '-']) {
                text.to_owned()
            } else {
                format!("{text}Z")
            };
            (zoned, if is_exact { 1 } else { SECOND })
        }
        _ => return None,
    };
    let from = parse_instant(&whole, now).ok()?;
    Some(Stretch { from, to: Timestamp::from_nanos(from.as_nanos().saturating_add(unit - 1)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_others_write_them() {
        let now = parse_instant("2026-11-28T10:31:07.5Z", Timestamp::ZERO).unwrap();
        let instant = |text: &str| parse_instant(text, now).unwrap();
        for (text, from, length_ns) in [
            ("NOW", "2026-11-28T10:31:07.5Z", 0),
            ("NOW-10MINUTES", "2026-11-28T10:21:07.5Z", 0),
            ("now-10m", "2026-11-28T10:21:07.5Z", 0),
            ("-10m", "2026-11-28T10:21:07.5Z", 0),
            ("NOW-1DAY+2HOURS", "2026-11-27T12:31:07.5Z", 0),
            ("NOW-1MONTH", "2026-10-29T10:31:07.5Z", 0),
            ("now-1M", "2026-10-29T10:31:07.5Z", 0),
            ("NOW-1WEEK", "2026-11-21T10:31:07.5Z", 0),
            ("NOW/DAY", "2026-11-28T00:00:00Z", DAY - 1),
            ("now-1d/d", "2026-11-27T00:00:00Z", DAY - 1),
            ("2026-11-28", "2026-11-28T00:00:00Z", DAY - 1),
            ("2026-11-28T10:31", "2026-11-28T10:31:00Z", MINUTE - 1),
            ("2026-11-28T10:31:05", "2026-11-28T10:31:05Z", SECOND - 1),
            ("2026-11-28T10:31:05Z", "2026-11-28T10:31:05Z", SECOND - 1),
            ("2026-11-28T10:31:05.25Z", "2026-11-28T10:31:05.25Z", 0),
            ("2026-11-28T10:31:05+01:00", "2026-11-28T09:31:05Z", SECOND - 1),
        ] {
            let stretch = parse(text, now).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(stretch.from, instant(from), "{text}");
            assert_eq!(stretch.to.as_nanos() - stretch.from.as_nanos(), length_ns, "{text}");
        }
        for bad in [
            "",
            "yesterday",
            "NOW-",
            "NOW-10",
            "NOW-MINUTES",
            "NOW-10PARSECS",
            "NOW*2",
            "NOW/WEEK",
            "2026",
            "2026-13-01",
            "2026-11-28T25:00:00Z",
            "NOW-99999999999999999999DAYS",
            "NOW-40000DAYS",
            "10:31",
            "NOW-1DAY trailing",
            "é",
            "1960-01-01",
        ] {
            assert_eq!(parse(bad, now), None, "{bad}");
        }
        assert_eq!(parse(&"NOW-1s".repeat(20), now), None, "too long");
    }
}
