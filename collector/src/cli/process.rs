//! `alibi process`.

use alibi_proto::{
    command_line::say,
    flow::FlowRecord,
    host::ClockStatus,
    id::HostId,
    json::{FlowJson, ProcessJson},
    process::ProcessLife,
    report::{self, printable},
    wire,
};
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    ProcessArgs,
    hosts::ClockJson,
    way::{Way, in_words},
};

pub(super) async fn process(arguments: ProcessArgs, way: &Way) -> Result<u8> {
    let request = wire::ProcessRequest { process: arguments.uid };
    let response = way.client()?.process(request).await.map_err(in_words(way))?.into_inner();
    let shown = Shown::try_from(response).context("the collector's answer cannot be read")?;
    if arguments.json {
        say(alibi_proto::json::pretty(&ShownJson::from(&shown))?)?;
    } else {
        say(shown.text())?;
    }
    Ok(0)
}

struct Shown {
    host: HostId,
    host_name: String,
    process: ProcessLife,
    ancestors: Vec<ProcessLife>,
    children: Vec<ProcessLife>,
    connections: Vec<FlowRecord>,
    left_out: u64,
    damage: Vec<String>,
    clock: Option<ClockStatus>,
}

impl TryFrom<wire::ProcessResponse> for Shown {
    type Error = anyhow::Error;

    fn try_from(response: wire::ProcessResponse) -> Result<Self> {
        let lives = |lives: Vec<wire::ProcessLife>| lives.into_iter().map(ProcessLife::try_from).collect();
        let ancestors: Result<_, _> = lives(response.ancestors);
        let children: Result<_, _> = lives(response.children);
        let connections = response.connections.into_iter().map(FlowRecord::try_from);
        Ok(Self {
            host: HostId::from_wire(&response.host)?,
            host_name: response.host_name,
            process: response.process.context("the process is missing")?.try_into()?,
            ancestors: ancestors?,
            children: children?,
            connections: connections.collect::<Result<_, _>>()?,
            left_out: response.left_out,
            damage: response.damage,
            clock: response.clock.map(Into::into),
        })
    }
}

impl Shown {
    /// The tree from the oldest ancestor down to the children, then the connections.
    fn text(&self) -> String {
        let mut text = format!("on {} ({})\n", report::printable(&self.host_name), self.host);
        if let Some(ClockStatus { offset_ns, bound_ns, .. }) = self.clock.filter(|clock| clock.offset_ns != 0)
        {
            text.push_str(&format!(
                "times are its own: its clock is {} now\n",
                report::clock(offset_ns, bound_ns)
            ));
        }
        let line = self.ancestors.iter().rev().chain([&self.process]);
        let mut indent = 0;
        for life in line {
            report::process(&mut text, indent, life);
            indent += 1;
        }
        for child in &self.children {
            report::process(&mut text, indent, child);
        }
        if !self.connections.is_empty() {
            text.push_str("connections, newest first\n");
        }
        for connection in &self.connections {
            text.push_str(&format!("  {}\n", report::connection_life(connection)));
        }
        if self.left_out > 0 {
            text.push_str(&format!("{} more children and connection records are not shown\n", self.left_out));
        }
        for damage in &self.damage {
            text.push_str(&format!("connections may be missing: {}\n", printable(damage)));
        }
        text
    }
}

#[derive(Serialize)]
struct ShownJson {
    host: HostId,
    host_name: String,
    #[serde(flatten)]
    process: ProcessJson,
    ancestors: Vec<ProcessJson>,
    children: Vec<ProcessJson>,
    flows: Vec<FlowJson>,
    left_out: u64,
    damage: Vec<String>,
    /// All times are the host's own.
    clock: Option<ClockJson>,
}

impl From<&Shown> for ShownJson {
    fn from(shown: &Shown) -> Self {
        Self {
            host: shown.host,
            host_name: shown.host_name.clone(),
            process: (&shown.process).into(),
            ancestors: shown.ancestors.iter().map(Into::into).collect(),
            children: shown.children.iter().map(Into::into).collect(),
            flows: shown.connections.iter().map(Into::into).collect(),
            left_out: shown.left_out,
            damage: shown.damage.clone(),
            clock: shown.clock.map(Into::into),
        }
    }
}
