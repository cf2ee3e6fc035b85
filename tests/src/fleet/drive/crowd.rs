//! Some agents in a process of their own: a process may have only so many files open. What it is to do comes in lines, as
//! [`crowds`](super::crowds) writes them.

use std::{
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use alibi_proto::{time::Timestamp, token::Token};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Runtime, sync::watch};

use super::{
    Order,
    agent::{Agent, Rest, Standing},
};
use crate::{
    agents::{crowd::enrol_together, raise_files},
    fleet::model::World,
};

/// Agents of one process.
pub(super) const AGENTS_MAX: u32 = 4_000;
/// Descriptors of an agent: its connection, the files of its ring, and the one that is read; and of all else here.
const FILES_OF_AN_AGENT: u32 = 4;
const OTHER_FILES: u32 = 512;

/// The agents of this process.
struct Crowd {
    runtime: Runtime,
    directory: PathBuf,
    token: Token,
    /// Enrolled, and not started yet.
    waiting: Vec<Agent>,
    standings: Vec<Arc<Standing>>,
    rest: Rest,
    stop: watch::Sender<bool>,
}

/// How some agents stand together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Agents that were started.
    pub agents: usize,
    /// Of these, those that are connected just now.
    pub connected: usize,
    /// Those whose history has ended, all of it acknowledged.
    pub done: usize,
    /// Events that they have recorded.
    pub recorded: u64,
    /// Events of these that were acknowledged.
    pub acknowledged: u64,
    /// How often they lost their connection, or called in vain.
    pub failed: u64,
    /// How old the oldest event of each is that is not acknowledged.
    pub lag: Delays,
    /// How far each is itself behind what it is to tell.
    pub late: Delays,
}

/// How many delays there are of about the same length: a line must be short, however many agents it tells of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delays(Vec<u64>);

impl Delays {
    /// Lengths that differ by a fourth of a doubling count as one.
    const IN_A_DOUBLING: f64 = 4.0;

    fn add(&mut self, ms: u64) {
        let place = ((ms + 1) as f64).log2() * Self::IN_A_DOUBLING;
        // Of 64 bits: at most 256.
        let place = place as usize;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] += 1;
    }

    fn join(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(one, other)| *one += other);
    }

    /// So large a part of them is no longer than this, in milliseconds, or a fifth more.
    pub fn at(&self, part: f64) -> f64 {
        let all: u64 = self.0.iter().sum();
        let mut before = 0;
        let place = self.0.iter().position(|count| {
            before += count;
            before > 0 && before as f64 >= part * all as f64
        });
        place.map_or(0.0, |place| (place as f64 / Self::IN_A_DOUBLING).exp2() - 1.0)
    }
}

impl Told {
    /// Both together.
    pub fn join(&mut self, other: &Self) {
        self.agents += other.agents;
        self.connected += other.connected;
        self.done += other.done;
        self.recorded += other.recorded;
        self.acknowledged += other.acknowledged;
        self.failed += other.failed;
        self.lag.join(&other.lag);
        self.late.join(&other.late);
    }
}

/// Does what the lines of standard input say, and answers each in a line, until there are no more.
///
/// # Errors
/// When an agent cannot enrol, or a line means nothing.
pub fn serve(directory: &Path, token: &str) -> Result<()> {
    raise_files((AGENTS_MAX * FILES_OF_AN_AGENT + OTHER_FILES).into())?;
    let mut crowd = Crowd {
        runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
        directory: directory.to_owned(),
        token: token.parse()?,
        waiting: Vec::new(),
        standings: Vec::new(),
        rest: Rest::never(),
        stop: watch::Sender::new(false),
    };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("enrol", numbers) => crowd.enrol(numbers)?,
            ("start", order) => crowd.start(serde_json::from_str(order)?),
            ("tell", "") => serde_json::to_string(&crowd.told())?,
            ("rest", instant) => {
                crowd.rest.from(Timestamp::from_nanos(instant.parse()?));
                "rests".to_owned()
            }
            _ => bail!("what is `{line}`?"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    crowd.stop.send_replace(true);
    Ok(())
}

impl Crowd {
    /// Enrols the agents of these numbers.
    fn enrol(&mut self, numbers: &str) -> Result<String> {
        let (from, to) = numbers.split_once(' ').context("from which number to which?")?;
        let (from, to): (u32, u32) = (from.parse()?, to.parse()?);
        let (directory, token) = (&self.directory, &self.token);
        let enrolled = enrol_together(&self.runtime, from..to, |number| {
            let (directory, token) = (directory.join(number.to_string()), token.clone());
            async move { Agent::enrol(directory, number, &token).await }
        });
        self.waiting.extend(enrolled?);
        Ok("enrolled".to_owned())
    }

    /// Starts those of an order that have enrolled.
    fn start(&mut self, order: Order) -> String {
        let _in_runtime = self.runtime.enter();
        let Order { from, to, plan, pace } = order;
        let world = Arc::new(World::new(plan.seed, plan.sites));
        for agent in self.waiting.extract_if(.., |agent| (from..to).contains(&agent.number())) {
            self.standings.push(agent.standing());
            let (world, number) = (Arc::clone(&world), agent.number());
            let (rest, stop) = (self.rest.clone(), self.stop.subscribe());
            tokio::spawn(async move {
                if let Err(error) = agent.run(plan, world, pace, rest, stop).await {
                    eprintln!("agent {number} has ended: {error:#}");
                }
            });
        }
        "started".to_owned()
    }

    fn told(&self) -> Told {
        let mut told = Told { agents: self.standings.len(), ..Told::default() };
        for standing in &self.standings {
            told.connected += usize::from(standing.connected.load(Ordering::Relaxed));
            told.done += usize::from(standing.done.load(Ordering::Relaxed));
            let taken = standing.taken();
            told.recorded += taken.recorded;
            told.acknowledged += taken.acknowledged;
            told.failed += standing.failed.load(Ordering::Relaxed);
            told.lag.add(u64::try_from(taken.lag.as_millis()).unwrap_or(u64::MAX));
            told.late.add(standing.late_ms.load(Ordering::Relaxed));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_told_within_a_fifth() {
        let mut delays = Delays::default();
        (1..=1_000).for_each(|ms| delays.add(ms));
        let mut others = Delays::default();
        others.add(100_000);
        delays.join(&others);
        for (part, ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 100_000.0)] {
            let at = delays.at(part);
            assert!(at <= ms && at >= ms / 1.25, "{part}: {at}");
        }
        assert_eq!(Delays::default().at(0.99), 0.0);
    }
}
