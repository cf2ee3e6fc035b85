//! The one real agent: it records all the time, and how fresh it is at the collector is watched.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use alibi_agent::identity;
use alibi_proto::{
    address::Address,
    id::HostId,
    time::Timestamp,
    transport::{self, MESSAGE_BYTES_MAX},
    wire::{self, analyst_client::AnalystClient},
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use tonic::transport::Channel;

use super::asked;
use crate::{
    capture::measure::Spread,
    live::{Live, TARGET},
    system::{Agent, Collector, now},
};

/// Between two processes with a connection each, of this agent.
const RECORDED_EACH: Duration = Duration::from_millis(100);
/// Between two looks at how fresh it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a look may take; the collector may be away.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// An agent that is known until so long ago is live.
const LIVE_LAG_MAX: Duration = Duration::from_secs(3);
/// How often each question is asked.
const QUESTION_TIMES: usize = 5;

/// The real agent.
pub struct LiveAgent {
    host: HostId,
    _agent: Agent,
    /// It records until this is dropped.
    _record: mpsc::Sender<()>,
}

/// How far behind the agent is known, in milliseconds, as far as there was an answer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Freshness {
    /// Half of the looks found it no older.
    pub p50_ms: Option<f64>,
    /// All but one of a hundred.
    pub p99_ms: Option<f64>,
    /// Looks.
    pub looks: usize,
    /// Looks without an answer.
    pub unanswered: usize,
}

/// How long questions take, the command with all that it does included, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Questions {
    /// Who talked to an address in the last minute, which waits until the last instant of it is known.
    pub who_now_ms: Spread,
    /// The same of a minute that is over.
    pub who_before_ms: Spread,
    /// All hosts.
    pub hosts_ms: Spread,
}

struct Look {
    ended: Instant,
    /// How long before the look's end it was known.
    lag: Option<Duration>,
}

/// Looks how fresh the agent is, until it is told to end.
pub struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl LiveAgent {
    /// Enrols it, and starts it. Its data is in `directory`.
    ///
    /// # Errors
    /// When it has no identity then.
    pub fn start(directory: &Path, token: &str) -> Result<Self> {
        let data = directory.join("agent");
        Agent::enrol(&data, token);
        let host = identity::load(&data)?.context("it has enrolled without an identity")?;
        let (mut live, agent) = Live::begin(directory, &data);
        let (record, stopped) = mpsc::channel();
        thread::spawn(move || {
            while stopped.recv_timeout(RECORDED_EACH) == Err(RecvTimeoutError::Timeout) {
                live.more(1);
            }
        });
        Ok(Self { host, _agent: agent, _record: record })
    }

    /// Watches how fresh it is at the collector behind `socket`, from now on.
    ///
    /// # Errors
    /// When there is no thread to do it.
    pub fn watch(&self, socket: &Path) -> Result<Watch> {
        let looks: Arc<Mutex<Vec<Look>>> = Arc::default();
        let (stop, stopped) = mpsc::channel();
        let (kept, host, address) = (Arc::clone(&looks), self.host, Address::Unix(socket.to_owned()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let channel = {
                let _in_runtime = runtime.enter();
                transport::channel(&address)
            };
            let Ok(channel) = channel else { return };
            let client = AnalystClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let look = known_until(client.clone(), host);
                let known = runtime.block_on(async { tokio::time::timeout(LOOK_TIMEOUT, look).await });
                let known_until = known.ok().flatten();
                let lag = known_until.map(|known_until| now().since(known_until));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(Look { ended: Instant::now(), lag });
            }
        })?;
        Ok(Watch { looks, stop, thread })
    }

    /// Asks who talked to whom, and which hosts there are.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn questions(&self, collector: &Collector) -> Result<Questions> {
        let spread = |words: &[&str]| -> Result<Spread> {
            Spread::of(asked(collector, words, QUESTION_TIMES)?).context("nothing was asked")
        };
        Ok(Questions {
            who_now_ms: spread(&["who", TARGET, "--last", "1m", "--json"])?,
            who_before_ms: spread(&["who", TARGET, "--from", "-2m", "--to", "-1m", "--json"])?,
            hosts_ms: spread(&["hosts", "--json"])?,
        })
    }
}

async fn known_until(mut client: AnalystClient<Channel>, host: HostId) -> Option<Timestamp> {
    let scope = Some(wire::HostScope { hosts: vec![host.to_string()], ..wire::HostScope::default() });
    let hosts = client.hosts(wire::HostsRequest { scope }).await.ok()?.into_inner().hosts;
    hosts.first()?.known_until_ns.map(Timestamp::from_nanos)
}

impl Watch {
    /// How long after `since` it was live again.
    pub fn live_again_after(&self, since: Instant) -> Option<Duration> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let live = |look: &&Look| look.ended > since && look.lag.is_some_and(|lag| lag <= LIVE_LAG_MAX);
        looks.iter().find(live).map(|look| look.ended.duration_since(since))
    }

    /// Ends it: what was seen.
    pub fn end(self) -> Freshness {
        drop(self.stop);
        // One that panicked has seen what it has seen.
        let _ = self.thread.join();
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        Freshness::of(looks.iter().map(|look| look.lag).collect())
    }
}

impl Freshness {
    fn of(looks: Vec<Option<Duration>>) -> Self {
        let mut lags: Vec<f64> = looks.iter().flatten().map(|lag| lag.as_secs_f64() * 1e3).collect();
        lags.sort_by(f64::total_cmp);
        let at = |part: usize| lags.get((lags.len() * part / 100).min(lags.len().saturating_sub(1))).copied();
        Self { p50_ms: at(50), p99_ms: at(99), looks: looks.len(), unanswered: looks.len() - lags.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_that_of_the_looks_that_were_answered() {
        let looks = (1..=200).map(|ms| Some(Duration::from_millis(ms))).chain([None; 3]).collect();
        let fresh = Freshness::of(looks);
        assert_eq!((fresh.p50_ms, fresh.p99_ms), (Some(101.0), Some(199.0)));
        assert_eq!((fresh.looks, fresh.unanswered), (203, 3));
        let nothing = Freshness::of(vec![None]);
        assert_eq!((nothing.p50_ms, nothing.p99_ms), (None, None));
    }
}
