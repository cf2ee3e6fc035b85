//! `alibi host`.

use std::fmt;

use alibi_proto::{chain::ChainStatus, command_line::say, report, wire};
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    HostCommand,
    way::{Way, in_words},
};
use crate::export::hosts::ChainJson;

pub(super) async fn host(command: HostCommand, way: &Way) -> Result<u8> {
    let mut collector = way.client()?;
    match command {
        HostCommand::Add { address: agent } => {
            let request = wire::AddAgentRequest { address: agent.to_string() };
            collector.add_agent(request).await.map_err(in_words(way))?;
            say(format_args!("{agent} is followed from now on"))?;
        }
        HostCommand::Remove { address: agent } => {
            let request = wire::RemoveAgentRequest { address: agent.clone() };
            collector.remove_agent(request).await.map_err(in_words(way))?;
            say(format_args!("{} is followed no longer", report::printable(&agent)))?;
        }
        HostCommand::Revoke { host } => {
            let request = wire::RevokeHostRequest { host: host.clone() };
            collector.revoke_host(request).await.map_err(in_words(way))?;
            say(format_args!("the enrolment of {} is ended", report::printable(&host)))?;
        }
        HostCommand::Unmark { host } => {
            let request = wire::UnmarkHostRequest { host: host.clone() };
            collector.unmark_host(request).await.map_err(in_words(way))?;
            say(format_args!("{} is in one place again", report::printable(&host)))?;
        }
        HostCommand::Verify { host, json } => {
            let request = wire::VerifyHostRequest { host };
            let verified = collector.verify_host(request).await.map_err(in_words(way))?.into_inner();
            let verified = VerifiedJson::try_from(verified)?;
            if json {
                say(alibi_proto::json::pretty(&verified)?)?;
            } else {
                say(&verified)?;
            }
            return Ok(u8::from(!verified.holds));
        }
    }
    Ok(0)
}

/// What a host has on its disk, held against what was anchored.
#[derive(Serialize)]
struct VerifiedJson {
    name: String,
    /// Nothing that the host still has contradicts what was anchored.
    holds: bool,
    from_seq: u64,
    to_seq: u64,
    events: u64,
    /// Anchors that hold, and those that speak of what was overwritten since.
    anchors: u64,
    anchors_gone: u64,
    problems: Vec<String>,
    problems_left_out: u64,
    chain: ChainJson,
}

impl TryFrom<wire::VerifyHostResponse> for VerifiedJson {
    type Error = anyhow::Error;

    fn try_from(verified: wire::VerifyHostResponse) -> Result<Self> {
        let chain = ChainStatus::try_from(verified.chain.unwrap_or_default());
        Ok(Self {
            name: verified.host_name,
            holds: verified.problems.is_empty(),
            from_seq: verified.from_seq,
            to_seq: verified.to_seq,
            events: verified.events,
            anchors: verified.anchors,
            anchors_gone: verified.anchors_gone,
            problems: verified.problems,
            problems_left_out: verified.problems_left_out,
            chain: ChainJson::from(&chain.context("the collector's answer cannot be read")?),
        })
    }
}

impl fmt::Display for VerifiedJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from_seq, to_seq, events, anchors, anchors_gone, .. } = self;
        let name = report::printable(&self.name);
        writeln!(f, "{name}: read {events} events, {from_seq} to {to_seq}")?;
        writeln!(f, "{anchors} anchors hold, {anchors_gone} speak of what the host has no more")?;
        for problem in &self.problems {
            writeln!(f, "does not hold: {}", report::printable(problem))?;
        }
        if self.problems_left_out > 0 {
            writeln!(f, "and {} more", self.problems_left_out)?;
        }
        for broken in &self.chain.breaks {
            writeln!(
                f,
                "broken at event {} at {}: {}",
                broken.seq,
                broken.at,
                report::printable(&broken.reason)
            )?;
        }
        let holds = if self.holds { "holds" } else { "DOES NOT HOLD" };
        writeln!(f, "what {name} has on its disk {holds} against what was anchored")
    }
}
