//! What the store takes on the disk, and how the oldest makes room.

use std::{path::Path, time::Duration};

use alibi_proto::{flow::RECORD_SPAN_MAX, time::Timestamp};
use rusqlite::Transaction;

use crate::store::{Fitted, StoreError, database::Database};

const DAY: Duration = Duration::from_secs(86_400);
/// However little room there is, so much of the newest is kept.
const KEPT_MIN: Duration = DAY;
/// Pages that are given back in one transaction, so that nobody waits long for it.
const PAGES_AT_ONCE: u32 = 1_024;
/// Such transactions of one call: 1 GiB. The next call goes on.
const TRANSACTIONS_MAX: u32 = 256;

/// Forgets one day after another, the oldest first, until no more is taken than `bytes_max`. `days` are those of which there are
/// files, in days since 1970 and in order; `taken` tells the bytes, `forget` forgets what ended before.
pub(super) fn fit(
    bytes_max: u64,
    now: Timestamp,
    days: &[u64],
    taken: impl Fn() -> Result<u64, StoreError>,
    mut forget: impl FnMut(Timestamp) -> Result<(), StoreError>,
) -> Result<Fitted, StoreError> {
    let mut fitted = Fitted { bytes: taken()?, forgotten_before: None };
    let newest = now.saturating_sub(KEPT_MIN);
    for day in days {
        let before = after(*day);
        if fitted.bytes <= bytes_max || before > newest {
            break;
        }
        forget(before)?;
        fitted = Fitted { bytes: taken()?, forgotten_before: Some(before) };
    }
    Ok(fitted)
}

/// From when on nothing looks back any more to what came on a day.
fn after(day: u64) -> Timestamp {
    let end = Timestamp::from_secs((day + 1).saturating_mul(DAY.as_secs()));
    end.saturating_add(RECORD_SPAN_MAX).saturating_add(Duration::from_secs(1))
}

/// What a file, with what SQLite has beside it, or all files in a directory take, in bytes.
pub(super) fn bytes_of(path: &Path) -> u64 {
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    if path.is_dir() {
        // One that goes meanwhile takes nothing.
        return std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| length(&entry.path()))
            .sum();
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    length(path) + length(Path::new(&log))
}

/// Gives pages that are free back to the disk, a bounded number of them; of files that were made before this was possible, none.
pub(super) fn give_back(database: &Database) -> Result<(), StoreError> {
    for _ in 0..TRANSACTIONS_MAX {
        if !database.write(give_some_back)? {
            break;
        }
    }
    Ok(())
}

/// Whether there may be more.
fn give_some_back(transaction: &Transaction<'_>) -> Result<bool, StoreError> {
    let free = || transaction.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
    let before = free()?;
    if before == 0 {
        return Ok(false);
    }
    let mut statement = transaction.prepare(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(free()? < before)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Days 20,000 to 20,004, each of which takes 100 bytes, on the day after them; those that stay.
    fn check(bytes_max: u64, now_s: u64, pinned: &[u64], want: (&[u64], u64)) {
        let there = RefCell::new((20_000..20_005).collect::<Vec<u64>>());
        let last = Cell::new(None);
        let days = there.borrow().clone();
        let taken = || Ok(100 * there.borrow().len() as u64);
        let fitted = fit(bytes_max, Timestamp::from_secs(now_s), &days, taken, |before| {
            there.borrow_mut().retain(|day| after(*day) > before || pinned.contains(day));
            last.set(Some(before));
            Ok(())
        });
        let want_fitted = Fitted { bytes: want.1, forgotten_before: last.get() };
        assert_eq!((&there.borrow()[..], fitted.unwrap()), (want.0, want_fitted));
    }

    #[test]
    fn the_oldest_days_go_until_it_fits_and_the_newest_stays() {
        const NOON: u64 = 20_005 * 86_400 + 43_200;
        check(500, NOON, &[], (&[20_000, 20_001, 20_002, 20_003, 20_004], 500));
        check(499, NOON, &[], (&[20_001, 20_002, 20_003, 20_004], 400));
        check(250, NOON, &[], (&[20_003, 20_004], 200));
        // What is younger than a day stays, however little room there is.
        check(1, NOON, &[], (&[20_004], 100));
        check(1, NOON + 86_400, &[], (&[], 0));
        check(1, 20_003 * 86_400, &[], (&[20_001, 20_002, 20_003, 20_004], 400));
        // One that cannot go yet keeps no other.
        check(450, NOON, &[20_000], (&[20_000, 20_002, 20_003, 20_004], 400));
    }
}
