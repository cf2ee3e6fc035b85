//! Attacks on the real programs. Of each is shown what whoever does it gets, which is nothing; the reason, where one is
//! promised; and that others are served meanwhile.
//!
//! Attackers come from 127.0.0.2 and beyond: who fails from there makes nobody wait who is at 127.0.0.1.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "attacks/attacker.rs"]
mod attacker;
#[path = "attacks/certificates.rs"]
mod certificates;
#[path = "attacks/copies.rs"]
mod copies;
#[path = "attacks/false_agent.rs"]
mod false_agent;
#[path = "attacks/floods.rs"]
mod floods;
#[path = "attacks/forged.rs"]
mod forged;
#[path = "attacks/roles.rs"]
mod roles;
#[path = "attacks/scene.rs"]
mod scene;
#[path = "attacks/tokens.rs"]
mod tokens;
#[path = "attacks/words.rs"]
mod words;
