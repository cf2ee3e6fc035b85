//! `alibi search`: processes that a query found. A row each.

use alibi_proto::{
    json::{ProcessJson, pretty},
    process::ProcessLife,
    report::{instant, shortened},
    time::Timestamp,
    wire,
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::{
    Format, Listing, ROWS_AND_EVENTS, Table, ecs, ocsf,
    page::{Page, Whose, WhoseJson, cells, plain_table, short_uid, whose_columns, with_notes},
    shared::process_columns,
};

/// Characters of a name or path in a table.
const CELL_CHARS_MAX: usize = 60;

/// A page of processes.
#[derive(Debug)]
pub struct FoundProcesses {
    rows: Vec<Found>,
    page: Page,
}

impl FoundProcesses {
    /// What the collector answered to `query`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(query: &str, response: wire::SearchResponse) -> Result<Self> {
        let rows = response.processes.into_iter().map(Found::try_from);
        let page = Page::new(query, response.listing.unwrap_or_default());
        Ok(Self { rows: rows.collect::<Result<_>>()?, page })
    }
}

impl Listing for FoundProcesses {
    const NAME: &'static str = "search";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

    fn text(&self) -> String {
        with_notes(&table(&self.rows), self.rows.len(), &self.page)
    }

    fn json(&self) -> serde_json::Result<String> {
        let processes = self.rows.iter().map(FoundJson::from).collect();
        pretty(&SearchJson { page: &self.page, processes })
    }

    fn table(&self) -> Table {
        let columns = whose_columns(|found: &Found| &found.whose)
            .text("process", |found| Some(found.life.record.uid.to_string()));
        let columns = process_columns(columns, |found: &Found| Some(&found.life))
            .text("parent_name", |found| found.parent_name.clone())
            .count("connections", |found| found.connections)
            .boolean("connections_at_least", |found| Some(found.records_left_out > 0))
            .time("last_activity", |found| Some(found.last_activity));
        Table::new(&columns, &self.rows)
    }

    fn ecs(&self) -> Vec<Value> {
        self.rows.iter().flat_map(|found| ecs::found_process(&found.whose, &found.life)).collect()
    }

    fn ocsf(&self) -> Vec<Value> {
        self.rows.iter().flat_map(|found| ocsf::found_process(&found.whose, &found.life)).collect()
    }

    fn notices(&self) -> Vec<String> {
        self.page.notices()
    }
}

#[derive(Debug)]
struct Found {
    whose: Whose,
    life: ProcessLife,
    parent_name: Option<String>,
    connections: Option<u64>,
    records_left_out: u64,
    last_activity: Timestamp,
}

impl TryFrom<wire::FoundProcess> for Found {
    type Error = anyhow::Error;

    fn try_from(found: wire::FoundProcess) -> Result<Self> {
        Ok(Self {
            whose: found.host.try_into()?,
            life: found.process.context("the process of a row is missing")?.try_into()?,
            parent_name: found.parent_name,
            connections: found.connections,
            records_left_out: found.records_left_out,
            last_activity: Timestamp::from_nanos(found.last_activity_ns),
        })
    }
}

fn table(rows: &[Found]) -> comfy_table::Table {
    let mut table =
        plain_table(&["HOST", "STARTED", "LAST ACTIVITY", "PROCESS", "PID", "USER", "CONNECTIONS", "UID"]);
    for Found { whose, life, connections, records_left_out, last_activity, .. } in rows {
        let image = life.image();
        let more = if *records_left_out > 0 { " or more" } else { "" };
        table.add_row(cells([
            whose.name.clone(),
            instant(life.record.started),
            instant(*last_activity),
            shortened(image.path.as_deref().unwrap_or(&image.name), CELL_CHARS_MAX),
            life.record.pid.to_string(),
            image.user.as_ref().map_or_else(|| "?".to_owned(), |user| user.label().to_owned()),
            connections.map_or_else(|| "not asked".to_owned(), |count| format!("{count}{more}")),
            short_uid(&life.record.uid),
        ]));
    }
    table
}

/// `search --json`. Stable; additions are allowed.
#[derive(Debug, Serialize)]
struct SearchJson<'a> {
    #[serde(flatten)]
    page: &'a Page,
    processes: Vec<FoundJson>,
}

#[derive(Debug, Serialize)]
struct FoundJson {
    #[serde(flatten)]
    whose: WhoseJson,
    #[serde(flatten)]
    process: ProcessJson,
    /// Null where the query did not need it.
    parent_name: Option<String>,
    /// How many of its connections are on record; null where the query did not need it.
    connections: Option<u64>,
    /// There may be more than that: not all records were read.
    connections_at_least: bool,
    last_activity: Timestamp,
}

impl From<&Found> for FoundJson {
    fn from(found: &Found) -> Self {
        Self {
            whose: (&found.whose).into(),
            process: (&found.life).into(),
            parent_name: found.parent_name.clone(),
            connections: found.connections,
            connections_at_least: found.records_left_out > 0,
            last_activity: found.last_activity,
        }
    }
}
