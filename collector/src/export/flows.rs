//! `alibi flows`: flow records that a query found. A row each.

use alibi_proto::{
    flow::{Direction, FlowRecord},
    id::ProcessUid,
    json::{FlowJson, pretty},
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
    shared::flow_columns,
};

/// Characters of a path in a table.
const PATH_CHARS_MAX: usize = 40;

/// A page of flow records.
#[derive(Debug)]
pub struct FoundFlows {
    rows: Vec<Row>,
    page: Page,
}

impl FoundFlows {
    /// What the collector answered to `query`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(query: &str, response: wire::FlowsResponse) -> Result<Self> {
        let rows = response.flows.into_iter().map(Row::try_from);
        let page = Page::new(query, response.listing.unwrap_or_default());
        Ok(Self { rows: rows.collect::<Result<_>>()?, page })
    }
}

impl Listing for FoundFlows {
    const NAME: &'static str = "flows";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

    fn text(&self) -> String {
        with_notes(&table(&self.rows), self.rows.len(), &self.page)
    }

    fn json(&self) -> serde_json::Result<String> {
        let flows = self.rows.iter().map(RowJson::from).collect();
        pretty(&FlowsJson { page: &self.page, flows })
    }

    fn table(&self) -> Table {
        let columns = whose_columns(|row: &Row| &row.whose)
            .text("process", |row| Some(row.flow.process?.to_string()))
            .text("process_name", |row| row.name.clone())
            .text("path", |row| row.path.clone())
            .count("pid", |row| row.pid.map(Into::into))
            .text("user", |row| row.user.clone());
        let columns = flow_columns(columns, |row: &Row| Some(&row.flow))
            .count("record", |row| Some(row.flow.record.into()))
            .time("record_first", |row| Some(row.flow.first))
            .time("record_last", |row| Some(row.flow.last))
            .text("end_reason", |row| Some(row.flow.end_reason.word().to_owned()));
        Table::new(&columns, &self.rows)
    }

    fn ecs(&self) -> Vec<Value> {
        self.rows.iter().map(ecs::found_flow).collect()
    }

    fn ocsf(&self) -> Vec<Value> {
        self.rows.iter().map(ocsf::found_flow).collect()
    }

    fn notices(&self) -> Vec<String> {
        self.page.notices()
    }
}

/// A record and its owner.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) whose: Whose,
    pub(super) flow: FlowRecord,
    pub(super) name: Option<String>,
    pub(super) path: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) user: Option<String>,
}

impl TryFrom<wire::FlowRow> for Row {
    type Error = anyhow::Error;

    fn try_from(row: wire::FlowRow) -> Result<Self> {
        Ok(Self {
            whose: row.host.try_into()?,
            flow: row.flow.context("the record of a row is missing")?.try_into()?,
            name: row.process_name,
            path: row.process_path,
            pid: row.pid,
            user: row.user,
        })
    }
}

fn table(rows: &[Row]) -> comfy_table::Table {
    let mut table = plain_table(&[
        "HOST", "FROM", "TO", "PROCESS", "UID", "LOCAL", "", "REMOTE", "STATE", "SENT", "RECEIVED",
    ]);
    for Row { whose, flow, name, path, .. } in rows {
        let arrow = match flow.direction {
            Direction::Outbound => "→",
            Direction::Inbound => "←",
        };
        let owner = path.as_ref().or(name.as_ref()).cloned().unwrap_or_else(|| "?".to_owned());
        let remote = match &flow.remote_name {
            Some(remote) => format!("{} ({})", remote.name, flow.remote),
            None => flow.remote.to_string(),
        };
        let state = match flow.state.errno() {
            0 => flow.state.word().to_owned(),
            errno => format!("failed, errno {errno}"),
        };
        let bytes = |of: fn(alibi_proto::flow::Traffic) -> u64| {
            flow.traffic.map_or_else(|| "?".to_owned(), |traffic| of(traffic).to_string())
        };
        table.add_row(cells([
            whose.name.clone(),
            instant(flow.first),
            instant(flow.last),
            shortened(&owner, PATH_CHARS_MAX),
            flow.process.map_or_else(|| "?".to_owned(), |uid| short_uid(&uid)),
            format!("{} {}", flow.protocol, flow.local),
            arrow.to_owned(),
            remote,
            state,
            bytes(|traffic| traffic.bytes_sent),
            bytes(|traffic| traffic.bytes_received),
        ]));
    }
    table
}

/// `flows --json`. Stable; additions are allowed.
#[derive(Serialize)]
struct FlowsJson<'a> {
    #[serde(flatten)]
    page: &'a Page,
    flows: Vec<RowJson>,
}

/// A record. `first` and `last` are its connection's life as far as known at its end; `record_first` and `record_last` its
/// own, and so are the bytes.
#[derive(Serialize)]
struct RowJson {
    #[serde(flatten)]
    whose: WhoseJson,
    #[serde(flatten)]
    flow: FlowJson,
    record: u32,
    record_first: Timestamp,
    record_last: Timestamp,
    end_reason: &'static str,
    process: Option<ProcessUid>,
    process_name: Option<String>,
    process_path: Option<String>,
    pid: Option<u32>,
    user: Option<String>,
}

impl From<&Row> for RowJson {
    fn from(row: &Row) -> Self {
        let flow = &row.flow;
        Self {
            whose: (&row.whose).into(),
            record: flow.record,
            record_first: flow.first,
            record_last: flow.last,
            end_reason: flow.end_reason.word(),
            process: flow.process,
            process_name: row.name.clone(),
            process_path: row.path.clone(),
            pid: row.pid,
            user: row.user.clone(),
            flow: flow.into(),
        }
    }
}
