//! When the host was shut down and started, by its own records.
//!
//! systemd writes to wtmp (utmp(5)) when it starts and, once ordinary services are stopped, when it ends. So the records
//! that follow on a shutdown tell whether anything came between it and this boot. What is odd proves nothing: then the
//! time in which the host may have been off stays one in which nothing was recorded.
//!
//! What these records do not tell: a system that was started without systemd or from another disk; and what was done at
//! the emergency console, which is reached by stopping all services, too, if the power was then cut there.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use alibi_proto::time::{Moment, Timestamp};

use crate::ledger::Restart;

const WTMP: &str = "/var/log/wtmp";
/// A record, as it is laid out where `time_t` was made to fit programs of 32 bits. Where it is longer, none is understood.
const RECORD_BYTES: usize = 384;
/// So many of the last are looked at.
const RECORDS_MAX: usize = 2048;
/// A boot may be recorded so much before the kernel began, by a clock that was steered since.
const STEERED_MAX: Duration = Duration::from_secs(60);

// Types of records: `ut_type`.
const RUN_LEVEL: u16 = 1;
const BOOT: u16 = 2;
const NEW_TIME: u16 = 3;
const OLD_TIME: u16 = 4;
const INIT_PROCESS: u16 = 5;
const LOGIN_PROCESS: u16 = 6;
const USER_PROCESS: u16 = 7;
const ACCOUNTING: u16 = 9;

pub(in crate::sys) fn last_restart(now: Moment) -> Option<Restart> {
    match tail(WTMP) {
        Ok(tail) => restart(&tail, now),
        Err(problem) => {
            tracing::debug!(%problem, "no records of shutdowns in {WTMP}");
            None
        }
    }
}

/// The last records.
fn tail(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let bytes_max = (RECORD_BYTES * RECORDS_MAX) as u64;
    if bytes % RECORD_BYTES as u64 != 0 {
        return Err(io::Error::other("its last record is torn, or of another kind"));
    }
    file.seek(SeekFrom::Start(bytes.saturating_sub(bytes_max)))?;
    let mut tail = Vec::new();
    file.take(bytes_max).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The last shutdown and this boot, if nothing is recorded between them but what ended with the shutdown.
fn restart(records: &[u8], now: Moment) -> Option<Restart> {
    let booted = now.wall.saturating_sub(Duration::from_nanos(now.boot_ns));
    let this_boot = booted.saturating_sub(STEERED_MAX)..=now.wall;
    let (records, rest) = records.as_chunks::<RECORD_BYTES>();
    if !rest.is_empty() {
        return None;
    }
    let mut started = None;
    for record in records.iter().rev() {
        let Record { kind, user, at } = Record::parse(record)?;
        match (kind, user, started) {
            (BOOT, _, None) if this_boot.contains(&at) => started = Some(at),
            (RUN_LEVEL, b"shutdown", Some(started)) => {
                let is_before = at <= booted && at <= started;
                return is_before.then_some(Restart { shutdown: at, started });
            }
            // Before this boot, and after a shutdown that was none.
            (BOOT | NEW_TIME | OLD_TIME, ..) => return None,
            (INIT_PROCESS | LOGIN_PROCESS | USER_PROCESS, _, Some(_)) => return None,
            _ => {}
        }
    }
    None
}

struct Record<'a> {
    kind: u16,
    user: &'a [u8],
    at: Timestamp,
}

impl<'a> Record<'a> {
    /// None of what is no record.
    fn parse(bytes: &'a [u8; RECORD_BYTES]) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(i32::from_le_bytes);
        let kind = u16::from_le_bytes([bytes[0], bytes[1]]);
        let user = bytes.get(44..76)?.split(|byte| *byte == 0).next()?;
        let seconds = u64::try_from(number(340)?).ok()?;
        let micros = u64::try_from(number(344)?).ok().filter(|micros| *micros < 1_000_000)?;
        let at = Timestamp::from_secs(seconds).saturating_add(Duration::from_micros(micros));
        (kind <= ACCOUNTING).then_some(Self { kind, user, at })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const DEAD_PROCESS: u16 = 8;
    const NOW: Moment = Moment { wall: Timestamp::from_secs(5_000), boot_ns: 100_000_000_000 };

    fn record(kind: u16, user: &str, at: i32) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[..2].copy_from_slice(&kind.to_le_bytes());
        record[8..10].copy_from_slice(b"~~");
        record[44..44 + user.len()].copy_from_slice(user.as_bytes());
        record[76..80].copy_from_slice(b"6.12");
        record[340..344].copy_from_slice(&at.to_le_bytes());
        record[344..348].copy_from_slice(&250_000_i32.to_le_bytes());
        record
    }

    fn shutdown(at: i32) -> [u8; RECORD_BYTES] {
        record(RUN_LEVEL, "shutdown", at)
    }

    fn boot(at: i32) -> [u8; RECORD_BYTES] {
        record(BOOT, "reboot", at)
    }

    /// This host was booted at 4,900, and now is 5,000.
    #[track_caller]
    fn check(records: &[[u8; RECORD_BYTES]], want: Option<u64>) {
        let found = restart(records.as_flattened(), NOW).map(|restart| restart.shutdown);
        let want = want.map(|secs| Timestamp::from_nanos(secs * 1_000_000_000 + 250_000_000));
        assert_eq!(found, want);
    }

    #[test]
    fn the_shutdown_before_this_boot_is_found() {
        let runlevel = record(RUN_LEVEL, "runlevel", 4_910);
        let login = record(USER_PROCESS, "jdoe", 4_950);
        check(&[shutdown(4_000), boot(4_903)], Some(4_000));
        check(
            &[boot(10), shutdown(1_000), boot(2_000), shutdown(4_000), boot(4_903), runlevel, login],
            Some(4_000),
        );
        let logout = record(DEAD_PROCESS, "", 4_001);
        check(&[shutdown(4_000), logout, boot(4_903), login], Some(4_000));
        // Steered by a little since it was recorded.
        check(&[shutdown(4_000), boot(4_850)], Some(4_000));
    }

    #[test]
    fn what_ended_without_a_shutdown_or_came_after_it_proves_nothing() {
        check(&[], None);
        check(&[shutdown(4_000)], None);
        check(&[boot(4_903)], None);
        check(&[boot(3_000), boot(4_903)], None);
        // A boot that ended with the power, after the last shutdown.
        check(&[shutdown(4_000), boot(4_200), boot(4_903)], None);
        check(&[shutdown(4_000), boot(4_200)], None);
        check(&[shutdown(4_000), record(USER_PROCESS, "root", 4_100), boot(4_903)], None);
        // This boot's own end, of which it came back.
        check(&[shutdown(4_000), boot(4_903), shutdown(4_950), boot(4_960)], None);
        for set in [OLD_TIME, NEW_TIME] {
            check(&[shutdown(4_000), record(set, "date", 4_000), boot(4_903)], None);
            check(&[shutdown(4_000), boot(4_903), record(set, "date", 4_904)], None);
        }
        // Recorded by a clock that was ahead.
        check(&[shutdown(4_901), boot(4_903)], None);
        check(&[shutdown(4_000), boot(5_001)], None);
    }

    #[test]
    fn what_is_no_record_proves_nothing() {
        let broken = |at: usize, byte: u8| {
            let mut record = record(DEAD_PROCESS, "", 4_100);
            record[at] = byte;
            record
        };
        for odd in [broken(0, 200), broken(1, 1), broken(343, 255), broken(347, 127)] {
            check(&[shutdown(4_000), odd, boot(4_903)], None);
        }
        check(
            &[shutdown(4_000), record(RUN_LEVEL, "shutdown now and not later, truly", 4_100), boot(4_903)],
            Some(4_000),
        );
        let records = [shutdown(4_000), boot(4_903)];
        let whole = records.as_flattened();
        for length in 0..whole.len() {
            assert_eq!(restart(&whole[..length], NOW), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_it_is_read(spoilt in proptest::collection::vec((0..2 * RECORD_BYTES, any::<u8>()), 0..40)) {
            let mut records = [shutdown(4_000), boot(4_903)].as_flattened().to_vec();
            spoilt.iter().for_each(|(at, byte)| records[*at] = *byte);
            let found = restart(&records, NOW);
            prop_assert!(found.is_none_or(|found| found.shutdown <= Timestamp::from_secs(4_900)));
        }
    }

    #[test]
    fn of_a_long_file_the_end_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for _ in 0..RECORDS_MAX {
            file.write_all(&record(USER_PROCESS, "jdoe", 1_000)).unwrap();
        }
        file.write_all([shutdown(4_000), boot(4_903)].as_flattened()).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let found = tail(&path).unwrap();
        assert_eq!(found.len(), RECORDS_MAX * RECORD_BYTES);
        assert!(restart(&found, NOW).is_some());
        // What was not written wholly could say anything.
        file.write_all(b"torn").unwrap();
        assert!(tail(&path).is_err() && tail("/nonexistent").is_err());
    }
}
