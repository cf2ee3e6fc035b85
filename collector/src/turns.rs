//! Turns: of very many that want to do something at once, few do, one step each, while all else goes on beside them.
//!
//! The runtime gives each task that can go on its turn, one after another, so that ten thousand who come at once are ten
//! thousand before anybody who is there already. Who is paced here waits outside of that queue, and takes a place only for
//! as long as one step takes, and none while it waits for the other end: nobody who is slow keeps another from coming in.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    thread::available_parallelism,
};

use tokio::sync::{Notify, Semaphore};

/// Who waits for a turn before the door stays shut until fewer do: what the network keeps is kept in order, and costs nothing.
const WAITING_MAX: usize = if cfg!(test) { 2 } else { 256 };

/// The turns.
#[derive(Clone, Debug)]
pub struct Turns {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Semaphore,
    waiting: AtomicUsize,
    fewer: Notify,
}

/// Waits for a turn, as long as this lives.
struct Waiting<'a>(&'a Shared);

impl Default for Turns {
    /// As many at once as leave half of the processors to what goes on.
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, |all| all.get().div_ceil(2)))
    }
}

impl Turns {
    fn new(places: usize) -> Self {
        let (waiting, fewer) = (AtomicUsize::new(0), Notify::new());
        Self { shared: Arc::new(Shared { places: Semaphore::new(places), waiting, fewer }) }
    }

    /// Does `work`, each of its steps in turn.
    pub async fn pace<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let waiting = Waiting::new(&self.shared);
            // It is never closed.
            let place = self.shared.places.acquire().await;
            drop(waiting);
            let step = std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
            drop(place);
            match step {
                Poll::Ready(done) => return done,
                Poll::Pending => until_woken().await,
            }
        }
    }

    /// Resolves when few enough wait that more may come.
    pub async fn await_fewer(&self) {
        loop {
            let fewer = self.shared.fewer.notified();
            if self.shared.waiting.load(Ordering::Relaxed) < WAITING_MAX {
                return;
            }
            fewer.await;
        }
    }
}

/// Resolves the next time that the task is woken, which what is pending does when it can go on.
async fn until_woken() {
    let mut is_woken = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut is_woken, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::Relaxed) == WAITING_MAX {
            self.0.fewer.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use tokio::{sync::oneshot, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn who_waits_for_another_keeps_no_place() {
        let turns = Turns::new(1);
        let (tell, told) = oneshot::channel();
        let patient = turns.pace(told);
        let quick = async {
            for _ in 0..100 {
                turns.pace(yield_now()).await;
            }
            tell.send(7).unwrap();
        };
        assert_eq!(tokio::join!(patient, quick).0, Ok(7));
    }

    #[tokio::test]
    async fn no_more_are_at_it_than_there_are_places() {
        let turns = Turns::new(2);
        let at_it = Cell::new(0);
        let work = || async {
            for _ in 0..10 {
                at_it.set(at_it.get() + 1);
                assert!(at_it.get() <= 2);
                at_it.set(at_it.get() - 1);
                yield_now().await;
            }
        };
        tokio::join!(turns.pace(work()), turns.pace(work()), turns.pace(work()), turns.pace(work()));
    }

    #[tokio::test]
    async fn the_door_is_shut_while_too_many_wait() {
        let turns = Turns::new(1);
        turns.await_fewer().await;
        let place = turns.shared.places.acquire().await.unwrap();
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let turns = turns.clone();
                tokio::spawn(async move { turns.pace(std::future::ready(())).await })
            })
            .collect();
        while turns.shared.waiting.load(Ordering::Relaxed) < WAITING_MAX {
            yield_now().await;
        }
        let shut = tokio::time::timeout(Duration::from_millis(1), turns.await_fewer()).await;
        assert!(shut.is_err());
        drop(place);
        turns.await_fewer().await;
        for one in waiting {
            one.await.unwrap();
        }
        // Who gives up waits no more.
        assert_eq!(turns.shared.waiting.load(Ordering::Relaxed), 0);
    }
}
