//! What happens on the laptops of a fleet: seeded, so that the same seed makes the same history for ever. Pure: nothing is
//! looked at or written, and every time comes from the [`Plan`].
//!
//! A [`Laptop`] yields its history in [`Step`]s, each made as it is wanted and kept by nobody. One has two tellings: the
//! *facts*, which is what a source saw and all that an agent is given; and what *truly* happened, whether anybody saw it or
//! not. Whoever drives an agent takes the one, whoever checks an answer makes the same history again and takes the other; so
//! neither has to hand anything to the other, or keep it.
//!
//! # What is modelled
//! Working hours in four time zones, quiet evenings, lids that are closed at night and now and then by day (a suspend that the
//! clocks prove), agents that are stopped, that crash, and that lose a part of what happens in a stretch and say so. Remotes by
//! Zipf's law ([`world`]); browsers, helpers that live for one connection, connections that live for days and move something
//! now and then, failures that are tried again at once, UDP, connections from outside.
//!
//! # What is not
//! Power-offs and wrong clocks: the past that is simulated was not measured by any collector, so only a boot that is its own
//! can be proven. The tests `truth` and `clock` have those.

use std::{net::IpAddr, sync::Arc, time::Duration};

use alibi_agent::capture::{Observation, ProcessKey, SocketKey};
use alibi_proto::{
    flow::Direction,
    time::{Moment, Timestamp},
    window::Window,
};
use serde::{Deserialize, Serialize};

mod laptop;
pub mod world;

pub use laptop::Laptop;
pub use world::World;

/// How long before its agent a laptop was started, so that its boot clock reaches over all of its history.
const BOOTED_BEFORE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What a fleet's history is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Another history for each.
    pub seed: u64,
    /// The instant at which all agents start, in nanoseconds.
    pub begins_ns: u64,
    /// And at which the history ends.
    pub ends_ns: u64,
    /// Events a second of a laptop that is worked on.
    pub events_per_s: f64,
    /// Between two looks of a source.
    pub look_ms: u64,
    /// Whether anybody rests or fails; else all are worked on all the time, and everything is recorded.
    pub is_eventful: bool,
    /// Names that the world has.
    pub sites: u32,
}

impl Plan {
    /// When all agents start.
    pub const fn begins(&self) -> Timestamp {
        Timestamp::from_nanos(self.begins_ns)
    }

    /// When the history ends.
    pub const fn ends(&self) -> Timestamp {
        Timestamp::from_nanos(self.ends_ns)
    }

    /// When all laptops were started.
    pub fn booted(&self) -> Timestamp {
        self.begins().saturating_sub(BOOTED_BEFORE)
    }

    /// Both clocks of a laptop at an instant; nobody sets them.
    pub fn moment(&self, wall: Timestamp) -> Moment {
        Moment { wall, boot_ns: wall.as_nanos().saturating_sub(self.booted().as_nanos()) }
    }

    const fn look(&self) -> Duration {
        Duration::from_millis(self.look_ms)
    }

    /// The history of the laptop with this number.
    pub fn laptop(&self, world: &Arc<World>, number: u32) -> Laptop {
        Laptop::new(*self, Arc::clone(world), number)
    }
}

/// The name that the laptop with this number goes by.
pub fn name_of(number: u32) -> String {
    format!("laptop-{number:05}")
}

/// The number of the laptop with this name.
pub fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("laptop-")?.parse().ok()
}

/// A stretch of a laptop's history.
#[derive(Debug)]
pub struct Step {
    /// How it began, if not by going on.
    pub began: Began,
    /// What the source told of it at its end, in order; everything before `until` that it could see.
    pub told: Vec<Observation>,
    /// Its end.
    pub until: Timestamp,
    /// Stretches of the lives of connections that ended in it. At the very end, of all that are open still.
    pub lived: Vec<Lived>,
    /// A time that was not recorded, or not wholly.
    pub unrecorded: Option<Unrecorded>,
}

/// How a step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// The source has gone on looking.
    GoingOn,
    /// The agent was started for the first time.
    First,
    /// It was stopped, and has said so, where the step before ended; and was started again at the end of this one.
    Stopped,
    /// The same, but it was killed.
    Killed,
}

/// A stretch of a connection's life: all of it, or what lies between two sleeps of the laptop.
#[derive(Clone, Debug)]
pub struct Lived {
    /// The connection.
    pub socket: SocketKey,
    /// Whose.
    pub owner: ProcessKey,
    /// What that runs.
    pub path: &'static str,
    /// The name's place in the [`World`]; none where there was no name.
    pub site: Option<u32>,
    /// Who asked for it.
    pub direction: Direction,
    /// The first instant.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// The source took it to be open until then, since it missed the end.
    pub told_last: Timestamp,
}

impl Lived {
    /// The other end.
    pub fn remote(&self) -> IpAddr {
        self.socket.remote.ip()
    }

    /// Whether some instant of it is in the window.
    pub fn overlaps(&self, window: Window) -> bool {
        window.overlaps(self.first, self.last)
    }
}

/// A time in which connections were not all recorded: `[from, to)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrecorded {
    /// From here on something may have been missed.
    pub from: Timestamp,
    /// From here on, nothing.
    pub to: Timestamp,
    /// What was seen from here on may not have been written yet when recording ended: never more than a second before `from`.
    pub doubtful_from: Timestamp,
}

impl Unrecorded {
    /// Whether an instant of the window is in it.
    pub fn touches(&self, window: Window) -> bool {
        self.from < window.to() && self.to > window.from()
    }

    /// The same, with what may not have been written.
    pub fn may_touch(&self, window: Window) -> bool {
        self.doubtful_from < window.to() && self.to >= window.from()
    }
}

#[cfg(test)]
mod tests;
