//! `alibi who`: which process, on which host, talked to X during the window, and which hosts can be ruled out.
//!
//! Rows: one for each connection that matched, and one for each host without any. A row has the verdict and the gaps of its
//! host, so that no selection of rows loses why a host is not clear.

use alibi_proto::{
    json::{WhoJson, pretty},
    question::{Answer, ConnectionActivity, HostAnswer, ProcessActivity},
    report,
};
use serde_json::{Value, json};

use super::{
    Format, Listing, ROWS_AND_EVENTS, Table, ecs, ocsf,
    shared::{flow_columns, gaps, process_columns},
    table::Columns,
};

impl Listing for Answer {
    const NAME: &'static str = "who";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

    fn text(&self) -> String {
        report::answer(self)
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(&WhoJson::from(self))
    }

    fn table(&self) -> Table {
        Table::new(&columns(), self.hosts.iter().flat_map(|host| rows(self, host)))
    }

    fn ecs(&self) -> Vec<Value> {
        ecs::answer(self)
    }

    fn ocsf(&self) -> Vec<Value> {
        ocsf::answer(self)
    }

    fn notices(&self) -> Vec<String> {
        let cut = self.hosts.iter().filter(|host| host.records_left_out > 0);
        cut.map(|host| {
            let HostAnswer { name, records_left_out, .. } = host;
            format!("{records_left_out} more records of {name} matched and are left out: ask about less time")
        })
        .collect()
    }
}

struct Row<'a> {
    answer: &'a Answer,
    host: &'a HostAnswer,
    /// None where nothing matched on the host.
    process: Option<&'a ProcessActivity>,
    connection: Option<&'a ConnectionActivity>,
}

fn rows<'a>(answer: &'a Answer, host: &'a HostAnswer) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for process in &host.processes {
        let row = |connection| Row { answer, host, process: Some(process), connection };
        rows.extend(process.connections.iter().map(|connection| row(Some(connection))));
    }
    if rows.is_empty() {
        rows.push(Row { answer, host, process: None, connection: None });
    }
    rows
}

fn columns<'a>() -> Columns<'a, Row<'a>> {
    let columns = Columns::default()
        .text("target", |row: &Row<'a>| Some(row.answer.question.target.to_string()))
        .time("window_from", |row| Some(row.answer.question.window.from()))
        .time("window_to", |row| Some(row.answer.question.window.to()))
        .text("host", |row| Some(row.host.host?.to_string()))
        .text("host_name", |row| Some(row.host.name.clone()))
        .text("verdict", |row| Some(row.host.verdict.word().to_owned()))
        .list("gaps", |row| Some(gaps(&row.host.gaps)))
        .list("scopes", |row| Some(json!(row.host.scopes)))
        .time("known_until", |row| row.host.known_until)
        .count("records_left_out", |row| Some(row.host.records_left_out))
        .integer("clock_offset_us", |row| Some(row.host.clock?.offset_ns / 1_000))
        .count("clock_bound_us", |row| Some(row.host.clock?.bound_ns.div_ceil(1_000)))
        .text("process", |row| Some(row.process?.uid?.to_string()));
    let columns = process_columns(columns, |row: &Row<'a>| row.process?.life.as_ref());
    let columns = flow_columns(columns, |row: &Row<'a>| Some(&row.connection?.flow));
    columns
        .text("in_window", |row| Some(row.connection?.in_window.word().to_owned()))
        .boolean("in_margin", |row| Some(row.connection?.in_margin))
}
