//! What truly happened on a laptop, as far as questions ask: its history is made again, and what concerns none is forgotten.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use alibi_agent::capture::{ProcessKey, SocketKey};
use alibi_proto::{time::Timestamp, window::Window};

use super::Asked;
use crate::fleet::model::{Lived, Plan, Unrecorded, World};

/// What is true of one host and one question.
#[derive(Clone, Debug, Default)]
pub struct HostTruth {
    /// Connections that are meant and were alive in the window.
    pub must: Vec<Alive>,
    /// These, and such as can be taken for them: to an address that is another's, too, or taken to be open still.
    pub may: Vec<Alive>,
    /// Some of the window was not recorded.
    pub is_unrecorded: bool,
    /// The same, or what was seen last before that was not written.
    pub may_be_unrecorded: bool,
}

/// A connection that was alive in a window.
#[derive(Clone, Debug)]
pub struct Alive {
    /// Which.
    pub socket: SocketKey,
    /// Whose.
    pub owner: ProcessKey,
    /// What that runs.
    pub path: &'static str,
    /// As far as is told here.
    pub first: Timestamp,
    /// The same.
    pub last: Timestamp,
    /// Some instant of it in the window was recorded.
    pub is_recorded: bool,
}

impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, owner, path, first, last, .. } = self;
        write!(
            f,
            "{} connection {} of {path} ({}) to {}, {first} to {last}",
            socket.protocol.word(),
            socket.socket,
            owner.pid,
            socket.remote
        )
    }
}

/// Of each question, what is true of the laptop of this number.
pub(super) fn of(
    plan: &Plan,
    world: &Arc<World>,
    number: u32,
    concerned: &mut Concerned<'_>,
) -> Vec<HostTruth> {
    let asked = concerned.asked;
    let mut truths = vec![HostTruth::default(); asked.len()];
    // Nothing was recorded before the agent was there.
    let begins = plan.begins();
    let before = Unrecorded { from: Timestamp::ZERO, to: begins, doubtful_from: Timestamp::ZERO };
    let mut unrecorded = vec![before];
    let mut laptop = plan.laptop(world, number);
    while let Some(step) = laptop.step() {
        unrecorded.extend(step.unrecorded);
        for lived in &step.lived {
            for &(question, is_meant) in concerned.by(lived) {
                take(&mut truths[question], asked[question], lived, is_meant);
            }
        }
    }
    for (truth, asked) in truths.iter_mut().zip(asked) {
        truth.is_unrecorded = unrecorded.iter().any(|time| time.touches(asked.window));
        truth.may_be_unrecorded = unrecorded.iter().any(|time| time.may_touch(asked.window));
        for alive in &mut truth.must {
            alive.is_recorded = is_recorded(alive, asked.window, &unrecorded);
        }
    }
    truths
}

fn take(truth: &mut HostTruth, asked: &Asked, lived: &Lived, is_meant: bool) {
    let window = asked.window;
    if !asked.admits(lived) || !window.overlaps(lived.first, lived.told_last) {
        return;
    }
    let Lived { socket, owner, path, first, last, .. } = *lived;
    let alive = Alive { socket, owner, path, first, last, is_recorded: false };
    if is_meant && lived.overlaps(window) {
        truth.must.push(alive.clone());
    }
    truth.may.push(alive);
}

/// Whether some instant of it, in the window, is in no time that was not recorded. These are in order.
fn is_recorded(alive: &Alive, window: Window, unrecorded: &[Unrecorded]) -> bool {
    let mut from = alive.first.max(window.from());
    let last = alive.last.min(Timestamp::from_nanos(window.to().as_nanos() - 1));
    for time in unrecorded {
        if time.doubtful_from <= from {
            // Where recording begins again, what is open is told of the very next instant at the latest.
            from = from.max(Timestamp::from_nanos(time.to.as_nanos() + 1));
        }
    }
    from <= last
}

/// A question, by its place, and whether a connection is truly one that is meant.
type Concern = (usize, bool);

/// Which questions a connection concerns, by its other end and its name; and whether it is truly one that is meant.
pub(super) struct Concerned<'a> {
    world: &'a World,
    asked: &'a [&'a Asked],
    /// Of all that were looked at: remotes are few.
    by_remote: HashMap<(IpAddr, Option<u32>), Vec<Concern>>,
}

impl<'a> Concerned<'a> {
    pub(super) fn new(world: &'a World, asked: &'a [&'a Asked]) -> Self {
        Self { world, asked, by_remote: HashMap::new() }
    }

    fn by(&mut self, lived: &Lived) -> &[Concern] {
        self.by_remote.entry((lived.remote(), lived.site)).or_insert_with(|| {
            let concerned = self.asked.iter().enumerate().filter_map(|(question, asked)| {
                let is_meant = asked.what.is_meant(self.world, lived);
                let may_be = is_meant || asked.what.may_be_meant(self.world, lived);
                may_be.then_some((question, is_meant))
            });
            concerned.collect()
        })
    }
}
