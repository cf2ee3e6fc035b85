//! Some simulated agents in a process of their own: a process may have only so many files open. What it is to do comes in
//! lines, as [`crowds`](super::crowds) writes them.

use std::{
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use alibi_agent::link::{LinkState, LinkStatus};
use alibi_proto::token::Token;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{raise_files, simulated::Simulated};

/// Agents that enrol at once: an administrator's script, not a fleet.
const ENROLLING_MAX: usize = 32;
/// Agents of one process.
pub(super) const AGENTS_MAX: usize = 4_000;
/// Descriptors of an agent: its connection, the files of its ring, and the one that is read; and of all else here.
const FILES_OF_AN_AGENT: usize = 4;
const OTHER_FILES: usize = 512;

/// The agents of this process.
struct Crowd {
    runtime: Runtime,
    directory: PathBuf,
    token: Token,
    /// Enrolled, and not started yet.
    waiting: Vec<Simulated>,
    statuses: Vec<watch::Receiver<LinkStatus>>,
    failures: Arc<Mutex<Failures>>,
    stop: watch::Sender<bool>,
}

/// How a crowd stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Agents that are connected just now.
    pub connected: usize,
    /// How often calls came to nothing until now.
    pub failures: Failures,
}

/// How often a call came to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

    /// All of both.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self {
            unreached: self.unreached + other.unreached,
            handshakes: self.handshakes + other.handshakes,
            ended: self.ended + other.ended,
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

/// Does what the lines of standard input say, and answers each in a line, until there are no more.
///
/// # Errors
/// When an agent cannot enrol, or a line means nothing.
pub fn serve(directory: &Path, token: &str) -> Result<()> {
    raise_files((AGENTS_MAX * FILES_OF_AN_AGENT + OTHER_FILES) as u64)?;
    let mut crowd = Crowd {
        runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
        directory: directory.to_owned(),
        token: token.parse()?,
        waiting: Vec::new(),
        statuses: Vec::new(),
        failures: Arc::default(),
        stop: watch::Sender::new(false),
    };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["enrol", from, to] => crowd.enrol(from.parse()?, to.parse()?).map(|()| "enrolled".to_owned())?,
            ["start"] => crowd.start(),
            ["tell"] => serde_json::to_string(&crowd.standing())?,
            _ => bail!("what is `{line}`?"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    crowd.stop.send_replace(true);
    Ok(())
}

/// Enrols agents of these numbers, some at a time.
///
/// # Errors
/// When one of them does not enrol.
pub(crate) fn enrol_together<N, A, F>(
    runtime: &Runtime,
    numbers: impl IntoIterator<Item = N>,
    enrol: impl Fn(N) -> F,
) -> Result<Vec<A>>
where
    A: Send + 'static,
    F: Future<Output = Result<A>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(ENROLLING_MAX));
    let enrolled = runtime.block_on(async {
        let mut enrolling = JoinSet::new();
        for number in numbers {
            let place = Arc::clone(&places).acquire_owned().await?;
            let agent = enrol(number);
            enrolling.spawn(async move {
                let _place = place;
                agent.await
            });
        }
        enrolling.join_all().await.into_iter().collect::<Result<Vec<_>>>()
    });
    enrolled.context("agents do not enrol")
}

impl Crowd {
    /// Enrols the agents of these numbers.
    fn enrol(&mut self, from: usize, to: usize) -> Result<()> {
        let (directory, token) = (&self.directory, &self.token);
        let enrolled = enrol_together(&self.runtime, from..to, |number| {
            let (directory, token) = (directory.join(number.to_string()), token.clone());
            async move { Simulated::enrol(directory, number, &token).await }
        });
        self.waiting.extend(enrolled?);
        Ok(())
    }

    /// Starts those that have enrolled.
    fn start(&mut self) -> String {
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
        "started".to_owned()
    }

    fn standing(&self) -> Standing {
        let is_connected = |status: &&watch::Receiver<LinkStatus>| {
            matches!(status.borrow().state(), Some(LinkState::Connected { .. }))
        };
        let connected = self.statuses.iter().filter(is_connected);
        let failures = *self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        Standing { connected: connected.count(), failures }
    }
}

/// Several that come at once may count as one.
async fn count_failures(mut status: watch::Receiver<LinkStatus>, failures: Arc<Mutex<Failures>>) {
    while status.changed().await.is_ok() {
        if let Some(LinkState::NotConnected { why }) = status.borrow_and_update().state() {
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
        assert_eq!(failures.and(&failures).since(&failures), failures);
    }
}
