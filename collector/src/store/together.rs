//! Small writes of many at once: those that come while another one is synced share the next transaction, and what all of them
//! leave to be done once for all.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, Thread},
};

use rusqlite::Transaction;

use super::{
    StoreError,
    database::{Database, lock},
};

/// How many write together at most: what they have to write is in memory.
const TOGETHER_MAX: usize = 128;

/// Those who wait to write; as many as there are threads at most. Each leaves any number of `X` to be written for all.
///
/// One of them leads: it writes for all who have come until it can begin, wakes them, and wakes whoever leads next of those who
/// have come meanwhile. The others do not wait for the connection, which each of them would have to get in turn.
pub(super) struct Together<X> {
    waiting: Mutex<Waiting<X>>,
}

struct Waiting<X> {
    queue: Vec<Arc<dyn Write<X>>>,
    /// Somebody leads, or was woken to.
    is_led: bool,
}

impl<X> Default for Together<X> {
    fn default() -> Self {
        Self { waiting: Mutex::new(Waiting { queue: Vec::new(), is_led: false }) }
    }
}

impl<X: 'static> Together<X> {
    /// Writes all or nothing, in one transaction with what others write so meanwhile; on the disk when it returns. `write` may be
    /// called more than once, where the transaction failed because of one of the others; who only may not write what they want to
    /// does not make it fail. `finish` writes what was left, of all of them, and what comes of that is given to `committed`
    /// before any of them goes on, and before anybody else can write.
    pub(super) fn write<T: Send + 'static, D>(
        &self,
        database: &Database,
        write: impl Fn(&Transaction<'_>, &mut Vec<X>) -> Result<T, StoreError> + Send + Sync + 'static,
        finish: impl Fn(&Transaction<'_>, Vec<X>) -> Result<D, StoreError>,
        committed: impl FnOnce(D),
    ) -> Result<T, StoreError> {
        let (wrote, turn, thread) = (Mutex::new(None), AtomicU8::new(WAITS), thread::current());
        let own = Arc::new(Shared { write, wrote, turn, thread });
        let leads = {
            let mut waiting = lock(&self.waiting);
            waiting.queue.push(own.clone());
            !std::mem::replace(&mut waiting.is_led, true)
        };
        let turn = if leads { LEADS } else { own.wait() };
        if turn != IS_DONE {
            let mut writer = database.writer();
            let mut write_all = |those: &[Arc<dyn Write<X>>], guard| {
                database.write_with(&mut writer, |transaction| {
                    let mut left = Vec::new();
                    those.iter().try_for_each(|one| one.run(transaction, &mut left, guard))?;
                    finish(transaction, left)
                })
            };
            let led = (turn == LEADS).then(|| Led::of(&self.waiting));
            // To keep what each has written apart costs as much as to write it, and hardly ever is any of them refused.
            let done = led.as_ref().map(|Led { those, .. }| {
                write_all(those, Guard::Nobody).or_else(|_| write_all(those, Guard::Each))
            });
            match (led, done) {
                (Some(led), Some(Ok(done))) => {
                    committed(done);
                    led.those.iter().for_each(|one| one.wake(IS_DONE));
                }
                // Each finds out for itself.
                (led, _) => {
                    drop(led);
                    let alone: Arc<dyn Write<X>> = own.clone();
                    committed(write_all(std::slice::from_ref(&alone), Guard::Each)?);
                }
            }
        }
        lock(&own.wrote).take().expect("what was committed was run before")
    }
}

/// Those for whom one writes. In the end, however it comes, whoever of them is not told otherwise goes on alone, and another one
/// leads.
struct Led<'a, X> {
    waiting: &'a Mutex<Waiting<X>>,
    those: Vec<Arc<dyn Write<X>>>,
}

impl<'a, X> Led<'a, X> {
    /// Those who came first: whoever leads is the first of them.
    fn of(waiting: &'a Mutex<Waiting<X>>) -> Self {
        let mut queue = lock(waiting);
        let count = queue.queue.len().min(TOGETHER_MAX);
        let those = queue.queue.drain(..count).collect();
        drop(queue);
        Self { waiting, those }
    }
}

impl<X> Drop for Led<'_, X> {
    fn drop(&mut self) {
        self.those.iter().for_each(|one| one.wake(IS_ALONE));
        let mut waiting = lock(self.waiting);
        match waiting.queue.first() {
            Some(next) => next.wake(LEADS),
            None => waiting.is_led = false,
        }
    }
}

/// Of those who share a transaction, whose writes can be taken back alone.
#[derive(Clone, Copy, PartialEq)]
enum Guard {
    /// Whoever is refused makes all fail.
    Nobody,
    /// What each has written until it was refused; the others' stays.
    Each,
}

/// Whose turn it is: nobody's yet,
const WAITS: u8 = 0;
/// to write for all,
const LEADS: u8 = 1;
/// to write for itself alone,
const IS_ALONE: u8 = 2;
/// or to go on, since all was written.
const IS_DONE: u8 = 3;

/// A write that shares its transaction.
trait Write<X>: Send + Sync {
    fn run(&self, transaction: &Transaction<'_>, left: &mut Vec<X>, guard: Guard) -> Result<(), StoreError>;

    /// Tells whose turn it is, if that was not told yet.
    fn wake(&self, turn: u8);
}

struct Shared<T, W> {
    write: W,
    wrote: Mutex<Option<Result<T, StoreError>>>,
    turn: AtomicU8,
    thread: Thread,
}

impl<T, W> Shared<T, W> {
    /// Waits until it is told.
    fn wait(&self) -> u8 {
        loop {
            match self.turn.load(Ordering::Acquire) {
                WAITS => thread::park(),
                turn => return turn,
            }
        }
    }
}

impl<X, T: Send, W> Write<X> for Shared<T, W>
where
    W: Fn(&Transaction<'_>, &mut Vec<X>) -> Result<T, StoreError> + Send + Sync,
{
    fn run(&self, transaction: &Transaction<'_>, left: &mut Vec<X>, guard: Guard) -> Result<(), StoreError> {
        if guard == Guard::Nobody {
            *lock(&self.wrote) = Some(Ok((self.write)(transaction, left)?));
            return Ok(());
        }
        transaction.prepare_cached("SAVEPOINT one")?.execute([])?;
        let before = left.len();
        let wrote = match (self.write)(transaction, left) {
            Err(StoreError::Sqlite(error)) => return Err(error.into()),
            wrote => wrote,
        };
        if wrote.is_err() {
            left.truncate(before);
            transaction.prepare_cached("ROLLBACK TO one")?.execute([])?;
        }
        transaction.prepare_cached("RELEASE one")?.execute([])?;
        *lock(&self.wrote) = Some(wrote);
        Ok(())
    }

    fn wake(&self, turn: u8) {
        if self.turn.compare_exchange(WAITS, turn, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        thread::{scope, yield_now},
    };

    use rusqlite::Connection;

    use super::{super::database::Format, *};

    const FORMAT: Format = Format {
        application_id: 7,
        migrations: &["CREATE TABLE number (one INTEGER PRIMARY KEY) STRICT"],
        writer_cache_kib: 1_024,
        reader_cache_kib: 1_024,
    };

    struct Opened {
        _directory: tempfile::TempDir,
        database: Database,
        together: Together<i64>,
        /// What was left to be written for all, of each transaction.
        finished: Mutex<Vec<Vec<i64>>>,
    }

    fn open() -> Opened {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("a.db"), &FORMAT).unwrap();
        Opened { _directory: directory, database, together: Together::default(), finished: Mutex::default() }
    }

    impl Opened {
        fn numbers(&self) -> Vec<i64> {
            let read = |connection: &Connection| {
                let mut statement = connection.prepare("SELECT one FROM number ORDER BY one")?;
                let rows = statement.query_map([], |row| row.get(0))?;
                Ok(rows.collect::<Result<_, _>>()?)
            };
            self.database.read(read).unwrap()
        }

        /// Each writes its number while others wait, and leaves it; how often what each writes was run, and what it came to.
        fn write(
            &self,
            numbers: &[i64],
            may: fn(i64) -> Result<i64, StoreError>,
        ) -> Vec<(usize, Result<i64, StoreError>)> {
            let writer = self.database.writer();
            let runs: Vec<Arc<AtomicUsize>> = numbers.iter().map(|_| Arc::default()).collect();
            let written: Vec<_> = scope(|scope| {
                let mut threads = Vec::new();
                for (index, (number, runs)) in numbers.iter().zip(&runs).enumerate() {
                    let (number, runs) = (*number, Arc::clone(runs));
                    let write = move |transaction: &Transaction<'_>, left: &mut Vec<i64>| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        left.push(number);
                        transaction.execute("INSERT INTO number VALUES (?)", [number])?;
                        may(number)
                    };
                    let committed = |left| lock(&self.finished).push(left);
                    let write =
                        move || self.together.write(&self.database, write, |_, left| Ok(left), committed);
                    threads.push(scope.spawn(write));
                    while lock(&self.together.waiting).queue.len() <= index {
                        yield_now();
                    }
                }
                drop(writer);
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            runs.iter().map(|runs| runs.load(Ordering::Relaxed)).zip(written).collect()
        }

        /// All that was left, sorted.
        fn left(&self) -> Vec<i64> {
            let mut left = lock(&self.finished).concat();
            left.sort_unstable();
            left
        }
    }

    #[test]
    fn those_who_wait_write_together() {
        let opened = open();
        let written = opened.write(&[1, 2, 3, 4], Ok);
        let written: Vec<(usize, i64)> =
            written.into_iter().map(|(runs, wrote)| (runs, wrote.unwrap())).collect();
        assert_eq!(written, [(1, 1), (1, 2), (1, 3), (1, 4)]);
        assert_eq!(opened.numbers(), [1, 2, 3, 4]);
        assert_eq!((opened.left().as_slice(), lock(&opened.finished).len()), (&[1, 2, 3, 4][..], 1));
    }

    #[test]
    fn who_cannot_write_keeps_no_other_from_it() {
        let opened = open();
        let mut results = opened.write(&[1, 2, 2, 3], Ok);
        let refused = results.iter().filter(|(_, written)| written.is_err()).count();
        assert_eq!(refused, 1, "{results:?}");
        assert_eq!((opened.numbers(), opened.left()), (vec![1, 2, 3], vec![1, 2, 3]));
        results.retain(|(_, written)| written.is_ok());
        assert!(results.iter().any(|(runs, _)| *runs > 1), "they shared a transaction first: {results:?}");
    }

    #[test]
    fn who_may_not_write_takes_nothing_from_the_others() {
        let opened = open();
        let may = |number| if number == 2 { Err(StoreError::TooManyAgents) } else { Ok(number) };
        let wrote: Vec<_> =
            opened.write(&[1, 2, 3], may).into_iter().map(|(_, written)| written.ok()).collect();
        assert_eq!(wrote, [Some(1), None, Some(3)]);
        assert_eq!((opened.numbers(), opened.left()), (vec![1, 3], vec![1, 3]));
    }
}
