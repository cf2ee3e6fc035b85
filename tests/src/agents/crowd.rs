//! All simulated agents: they enrol, call home, and are told from outside.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use alibi_agent::link::LinkStatus;
use alibi_proto::token::Token;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::simulated::Simulated;

/// Agents that enrol at once: an administrator's script, not a fleet.
const ENROLLING_MAX: usize = 32;

/// The simulated agents.
pub struct Crowd {
    runtime: Arc<Runtime>,
    directory: PathBuf,
    token: Token,
    /// Enrolled, and not started yet.
    waiting: Vec<Simulated>,
    statuses: Vec<watch::Receiver<LinkStatus>>,
    failures: Arc<Mutex<Failures>>,
    stop: watch::Sender<bool>,
}

/// How often a call came to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// Nobody answered, or not in time, before anything was proven.
    pub unreached: u64,
    /// The handshake failed.
    pub handshakes: u64,
    /// It was connected, or about to be taken in, and the connection ended.
    pub ended: u64,
}

impl Failures {
    /// Those since then.
    #[must_use]
    pub fn since(self, before: &Self) -> Self {
        Self {
            unreached: self.unreached - before.unreached,
            handshakes: self.handshakes - before.handshakes,
            ended: self.ended - before.ended,
        }
    }

    fn count(&mut self, why: &str) {
        if why.contains("was reached, but") {
            self.handshakes += 1;
        } else if why.contains("cannot be reached") || why.contains("does not answer") {
            self.unreached += 1;
        } else if !why.contains("has not taken it in yet") {
            self.ended += 1;
        }
    }
}

impl Crowd {
    /// Nobody yet. They will enrol with `token`, and keep their data in `directory`.
    ///
    /// # Errors
    /// When it is no token.
    pub fn new(runtime: Arc<Runtime>, directory: &Path, token: &str) -> Result<Self> {
        Ok(Self {
            runtime,
            directory: directory.to_owned(),
            token: token.parse()?,
            waiting: Vec::new(),
            statuses: Vec::new(),
            failures: Arc::default(),
            stop: watch::Sender::new(false),
        })
    }

    /// How many have been started.
    pub fn len(&self) -> usize {
        self.statuses.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.statuses.is_empty()
    }

    /// Enrols so many more that they become `agents`. How long it took.
    ///
    /// # Errors
    /// When one does not enrol.
    pub fn enrol_up_to(&mut self, agents: usize) -> Result<Duration> {
        let (runtime, numbers) = (Arc::clone(&self.runtime), self.len()..agents);
        let places = Arc::new(Semaphore::new(ENROLLING_MAX));
        let began = Instant::now();
        self.waiting = runtime.block_on(async {
            let mut enrolling = JoinSet::new();
            for number in numbers {
                let place = Arc::clone(&places).acquire_owned().await?;
                let (directory, token) = (self.directory.join(number.to_string()), self.token.clone());
                enrolling.spawn(async move {
                    let _place = place;
                    Simulated::enrol(directory, number, &token).await
                });
            }
            enrolling.join_all().await.into_iter().collect::<Result<Vec<_>>>()
        })?;
        Ok(began.elapsed())
    }

    /// Starts those that have enrolled, and waits until all are connected. How long that took.
    ///
    /// # Errors
    /// When it takes longer than `patience`.
    pub fn connect_all(&mut self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        let _in_runtime = self.runtime.enter();
        for simulated in std::mem::take(&mut self.waiting) {
            self.statuses.push(simulated.status.clone());
            tokio::spawn(count_failures(simulated.status.clone(), Arc::clone(&self.failures)));
            let stop = self.stop.subscribe();
            tokio::spawn(async move {
                if let Err(error) = simulated.run(stop).await {
                    eprintln!("a simulated agent has ended: {error:#}");
                }
            });
        }
        self.await_connected(patience)?;
        Ok(began.elapsed())
    }

    /// Waits until all are connected.
    ///
    /// # Errors
    /// When it takes longer than `patience`.
    pub fn await_connected(&self, patience: Duration) -> Result<()> {
        let all = async {
            for status in &self.statuses {
                status.clone().wait_for(is_connected).await.context("an agent has ended")?;
            }
            anyhow::Ok(())
        };
        match self.runtime.block_on(async { tokio::time::timeout(patience, all).await }) {
            Ok(connected) => connected,
            Err(_) => bail!("after {patience:?}, {} of {} are connected", self.connected(), self.len()),
        }
    }

    /// Waits until each has noticed that the collector is gone.
    ///
    /// # Errors
    /// When one has ended.
    pub fn await_lost(&self) -> Result<()> {
        self.runtime.block_on(async {
            for status in &self.statuses {
                status
                    .clone()
                    .wait_for(|status| !is_connected(status))
                    .await
                    .context("an agent has ended")?;
            }
            Ok(())
        })
    }

    /// How many are connected just now.
    pub fn connected(&self) -> usize {
        self.statuses.iter().filter(|status| is_connected(&status.borrow())).count()
    }

    /// How often calls came to nothing until now.
    pub fn failures(&self) -> Failures {
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

fn is_connected(status: &LinkStatus) -> bool {
    matches!(status, LinkStatus::Connected { .. })
}

/// Several that come at once may count as one.
async fn count_failures(mut status: watch::Receiver<LinkStatus>, failures: Arc<Mutex<Failures>>) {
    while status.changed().await.is_ok() {
        if let LinkStatus::NotConnected { why, .. } = &*status.borrow_and_update() {
            failures.lock().unwrap_or_else(PoisonError::into_inner).count(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_what_agents_say() {
        let mut failures = Failures::default();
        for why in [
            "127.0.0.1:1 cannot be reached: connection refused",
            "127.0.0.1:1 does not answer",
            "127.0.0.1:1 was reached, but it took too long over the handshake",
            "the collector has not taken it in yet",
            "the collector ended the connection",
        ] {
            failures.count(why);
        }
        assert_eq!(failures, Failures { unreached: 2, handshakes: 1, ended: 1 });
        assert_eq!(failures.since(&Failures { unreached: 1, ..Failures::default() }).unreached, 1);
    }
}
