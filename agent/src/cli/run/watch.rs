//! Telling whoever runs the service that the recording goes on, and only then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch::Receiver;

use crate::{
    recorder::Progress,
    sys::service::{News, Supervisor},
};

/// Tells `supervisor` that the agent is ready once the first report of the source has been recorded, with the words `how`;
/// and from then on, twice in each time that it waits, that the source reports and the recorder takes it. `period` is how
/// long the source may be silent.
///
/// A disk that takes nothing is no reason to be silent: what waits for it would be lost with the process.
pub(super) async fn keep_told(
    supervisor: Arc<Supervisor>,
    mut progress: Receiver<Progress>,
    period: Duration,
    how: String,
) {
    if progress.wait_for(|progress| progress.heard.boot_ns > 0).await.is_err() {
        return;
    }
    supervisor.tell(News::Ready(&how));
    let Some(patience) = supervisor.watchdog() else { return };
    let mut goes_on = GoesOn::new(patience / 4 + period, Instant::now());
    let mut interval = tokio::time::interval(patience / 2);
    loop {
        interval.tick().await;
        let heard = progress.borrow().heard.boot_ns;
        if goes_on.does(heard, Instant::now()) {
            supervisor.tell(News::Well);
        }
    }
}

/// Whether something that counts up still does.
#[derive(Debug)]
struct GoesOn {
    silence_max: Duration,
    last: u64,
    since: Instant,
}

impl GoesOn {
    fn new(silence_max: Duration, now: Instant) -> Self {
        Self { silence_max, last: 0, since: now }
    }

    /// It is `count` now. False if it has been the same for too long.
    fn does(&mut self, count: u64, now: Instant) -> bool {
        if count != self.last {
            (self.last, self.since) = (count, now);
        }
        now.duration_since(self.since) <= self.silence_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_still_too_long_does_not_go_on_until_it_moves() {
        let begin = Instant::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let mut goes_on = GoesOn::new(Duration::from_secs(16), begin);
        for (secs, count, wanted) in [
            (0, 5, true),
            (15, 6, true),
            (30, 6, true),
            (32, 6, false),
            (60, 6, false),
            (90, 7, true),
            (107, 7, false),
        ] {
            assert_eq!(goes_on.does(count, at(secs)), wanted, "after {secs} s");
        }
    }
}
