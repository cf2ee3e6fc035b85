//! The collector: follows the agents, keeps what they recorded, and answers.

pub mod store;
