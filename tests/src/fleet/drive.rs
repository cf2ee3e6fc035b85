//! The histories of the laptops go through everything that real ones do: pipeline, recorder, ring, service and link are the
//! agent's own, and the collector is the program. Only who sees is another: a [`Laptop`](super::model::Laptop) instead of a
//! source. Nothing is held but what an agent holds.

pub mod agent;
pub mod crowd;
pub mod crowds;

use serde::{Deserialize, Serialize};

use super::model::Plan;

/// How fast a history happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pace {
    /// As it did: a look is told once its time has come.
    Live,
    /// As fast as it is taken.
    Past,
}

/// What some agents are to do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The numbers of their laptops: from here on,
    pub from: u32,
    /// up to, not including, here.
    pub to: u32,
    /// What happens on them.
    pub plan: Plan,
    /// And how fast.
    pub pace: Pace,
}
