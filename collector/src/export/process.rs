//! `alibi process`: one process, its ancestors and children, and its connections.
//!
//! Rows: one for each connection of the process, or one without any; and one for each ancestor, the nearest first, and child.
//! Which of these a row is, `relation` says. All times are the host's own.

use alibi_proto::{
    flow::FlowRecord,
    host::ClockStatus,
    id::HostId,
    json::{FlowJson, ProcessJson, pretty},
    process::ProcessLife,
    report::{self, printable},
    wire,
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::{
    Format, Listing, ROWS_AND_EVENTS, Table, ecs,
    hosts::ClockJson,
    ocsf,
    page::Whose,
    prevalence::{BucketJson, NameJson, PrevalenceJson, RecordedJson, TotalJson, bytes},
    shared::{flow_columns, process_columns},
    table::Columns,
};

/// A process and what is around it.
#[derive(Debug)]
pub struct ShownProcess {
    /// Where it ran.
    pub host: HostId,
    /// What that is called.
    pub host_name: String,
    /// The process.
    pub process: ProcessLife,
    /// Its parent, the parent of that, and so on.
    pub ancestors: Vec<ProcessLife>,
    /// What it started.
    pub children: Vec<ProcessLife>,
    /// Its connections, the newest record of each, newest first.
    pub connections: Vec<FlowRecord>,
    /// More children and connection records than are listed.
    pub left_out: u64,
    /// Why connections may be missing.
    pub damage: Vec<String>,
    /// How the host's clock stands now, where it was measured.
    pub clock: Option<ClockStatus>,
    /// How common its executable is, and what its connections come to.
    pub more: More,
}

/// What is told of it besides what it is. All times of `prevalence` are the collector's; `buckets` are in the host's own.
#[derive(Debug, Default, Serialize)]
pub struct More {
    /// How common its executable is; null where nothing is known by which it could be told from others.
    prevalence: Option<PrevalenceJson>,
    /// How its host was recorded; null without a window.
    recorded: Option<RecordedJson>,
    /// What its connections come to, in the window or ever.
    total: TotalJson,
    /// Stretches of one length in which there were any.
    buckets: Vec<BucketJson>,
    bucket_s: u64,
    /// By which it knew its remotes.
    names: Vec<NameJson>,
    names_left_out: u64,
}

impl ShownProcess {
    /// What the collector answered.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(response: wire::ProcessResponse) -> Result<Self> {
        let lives = |lives: Vec<wire::ProcessLife>| lives.into_iter().map(ProcessLife::try_from).collect();
        let ancestors: Result<_, _> = lives(response.ancestors);
        let children: Result<_, _> = lives(response.children);
        let connections = response.connections.into_iter().map(FlowRecord::try_from);
        let more = More {
            prevalence: response.prevalence.map(Into::into),
            recorded: response.recorded.map(TryInto::try_into).transpose()?,
            total: response.total.unwrap_or_default().into(),
            buckets: response.buckets.into_iter().map(Into::into).collect(),
            bucket_s: response.bucket_ns / 1_000_000_000,
            names: response.names.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            names_left_out: response.names_left_out,
        };
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
            more,
        })
    }

    pub(super) fn whose(&self) -> Whose {
        let clock = self.clock.map(|clock| (clock.offset_ns, clock.bound_ns));
        Whose { host: self.host, name: self.host_name.clone(), clock }
    }
}

impl Listing for ShownProcess {
    const NAME: &'static str = "process";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

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
        self.more.text(&mut text);
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

    fn json(&self) -> serde_json::Result<String> {
        pretty(&ShownJson::from(self))
    }

    fn table(&self) -> Table {
        Table::new(&columns(), rows(self))
    }

    fn ecs(&self) -> Vec<Value> {
        ecs::process(self)
    }

    fn ocsf(&self) -> Vec<Value> {
        ocsf::process(self)
    }

    fn notices(&self) -> Vec<String> {
        let left_out = (self.left_out > 0)
            .then(|| format!("{} more children and connection records are left out", self.left_out));
        let damage = self.damage.iter().map(|damage| format!("connections may be missing: {damage}"));
        left_out.into_iter().chain(damage).collect()
    }
}

/// Lines of a list that are printed; `--json` has all.
const LINES_MAX: usize = 16;

impl More {
    fn text(&self, text: &mut String) {
        let mut line =
            |indent: &str, content: &str| text.push_str(&format!("{indent}{}\n", printable(content)));
        if let Some(prevalence) = &self.prevalence {
            line("", &format!("its executable was {}", prevalence.text()));
            let new = [(&prevalence.new_on_host, "on this host"), (&prevalence.new_in_fleet, "in the fleet")];
            for (new, place) in new {
                new.iter().for_each(|new| line("  ", &format!("in the window: {}", new.text(place))));
            }
        }
        if let Some(recorded) = &self.recorded {
            line("  ", &format!("the host is {}", recorded.text()));
        }
        if self.total.connections == 0 {
            return;
        }
        let total = &self.total;
        line(
            "",
            &format!(
                "{} connections, {} sent, {} received; by stretches of {}",
                total.connections_text(),
                bytes(total.bytes_sent),
                bytes(total.bytes_received),
                report::length(self.bucket_s)
            ),
        );
        for bucket in self.buckets.iter().rev().take(LINES_MAX).rev() {
            line(
                "  ",
                &format!(
                    "{}  {} opened, {} sent, {} received",
                    report::instant(bucket.from),
                    bucket.opened,
                    bytes(bucket.bytes_sent),
                    bytes(bucket.bytes_received)
                ),
            );
        }
        if self.buckets.len() > LINES_MAX {
            line("  ", &format!("and {} stretches before (--json has all)", self.buckets.len() - LINES_MAX));
        }
        if !self.names.is_empty() {
            line("", "names of its remotes");
        }
        for NameJson { name, source, total } in self.names.iter().take(LINES_MAX) {
            line("  ", &format!("{name} ({source}), {} connections", total.connections_text()));
        }
        let more = self.names.len().saturating_sub(LINES_MAX) as u64 + self.names_left_out;
        if more > 0 {
            line("  ", &format!("and {more} more names"));
        }
    }
}

struct Row<'a> {
    shown: &'a ShownProcess,
    relation: &'static str,
    life: &'a ProcessLife,
    connection: Option<&'a FlowRecord>,
}

fn rows(shown: &ShownProcess) -> Vec<Row<'_>> {
    let row = |relation, life| Row { shown, relation, life, connection: None };
    let mut rows: Vec<_> = shown
        .connections
        .iter()
        .map(|connection| Row { connection: Some(connection), ..row("process", &shown.process) })
        .collect();
    if rows.is_empty() {
        rows.push(row("process", &shown.process));
    }
    rows.extend(shown.ancestors.iter().map(|life| row("ancestor", life)));
    rows.extend(shown.children.iter().map(|life| row("child", life)));
    rows
}

fn columns<'a>() -> Columns<'a, Row<'a>> {
    let columns = Columns::default()
        .text("host", |row: &Row<'a>| Some(row.shown.host.to_string()))
        .text("host_name", |row| Some(row.shown.host_name.clone()))
        .integer("clock_offset_us", |row| Some(row.shown.clock?.offset_ns / 1_000))
        .count("clock_bound_us", |row| Some(row.shown.clock?.bound_ns.div_ceil(1_000)))
        .text("relation", |row| Some(row.relation.to_owned()))
        .text("process", |row| Some(row.life.record.uid.to_string()));
    let columns = process_columns(columns, |row: &Row<'a>| Some(row.life));
    flow_columns(columns, |row: &Row<'a>| row.connection)
}

#[derive(Serialize)]
struct ShownJson<'a> {
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
    #[serde(flatten)]
    more: &'a More,
}

impl<'a> From<&'a ShownProcess> for ShownJson<'a> {
    fn from(shown: &'a ShownProcess) -> Self {
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
            more: &shown.more,
        }
    }
}
