//! `alibi top`: what connections come to, by remote, executable or host. A row each.

use alibi_proto::{
    id::{HostId, ProcessUid},
    json::pretty,
    report::printable,
    window::Window,
    wire,
};
use anyhow::Result;
use comfy_table::{CellAlignment, presets::NOTHING};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Format, Listing, ROWS_AND_EVENTS, Table, ecs, ocsf,
    prevalence::{RecordedJson, TotalJson, bytes, hexadecimal, host, total_columns},
    table::Columns,
};

/// What talked most, and to whom.
#[derive(Debug, Serialize)]
pub struct Top {
    pub(super) window: Window,
    /// remotes, processes or hosts.
    pub(super) of: &'static str,
    pub(super) by: &'static str,
    rows: Vec<RowJson>,
    rows_left_out: u64,
    /// All of them together, those that are left out, too.
    total: TotalJson,
    /// Records of what was not told apart any more, since there was too much; they are in `total` alone.
    records_untold: u64,
    /// What cannot be read, and may have more.
    damage: Vec<String>,
    /// Hosts of which connections may be missing.
    incomplete: Vec<RecordedJson>,
    incomplete_left_out: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct RowJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remote: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ports: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
    pub(super) hosts: u64,
    pub(super) processes: u64,
    /// Where there is one only.
    pub(super) host: Option<HostId>,
    pub(super) host_name: Option<String>,
    /// One of the processes: that which was active last.
    pub(super) process: Option<ProcessUid>,
    #[serde(flatten)]
    pub(super) total: TotalJson,
}

impl Top {
    /// What the collector told of `of` in `window`, sorted by what `by` says.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(
        window: Window,
        of: wire::TopOf,
        by: &'static str,
        response: wire::TopResponse,
    ) -> Result<Self> {
        let incomplete = response.incomplete.into_iter().map(RecordedJson::try_from);
        Ok(Self {
            window,
            of: match of {
                wire::TopOf::Remotes => "remotes",
                wire::TopOf::Processes => "processes",
                _ => "hosts",
            },
            by,
            rows: response.rows.into_iter().map(RowJson::try_from).collect::<Result<_>>()?,
            rows_left_out: response.rows_left_out,
            total: response.total.unwrap_or_default().into(),
            records_untold: response.records_untold,
            damage: response.damage,
            incomplete: incomplete.collect::<Result<_>>()?,
            incomplete_left_out: response.incomplete_left_out,
        })
    }
}

impl TryFrom<wire::TopRow> for RowJson {
    type Error = anyhow::Error;

    fn try_from(row: wire::TopRow) -> Result<Self> {
        let uid = row.process_uid.as_deref().and_then(|uid| uid.try_into().ok());
        Ok(Self {
            remote: row.remote,
            names: row.names,
            ports: row.ports,
            path: row.path,
            name: row.name,
            sha256: row.sha256.as_deref().and_then(hexadecimal),
            hosts: row.hosts,
            processes: row.processes,
            host: host(row.host.as_deref().unwrap_or_default())?,
            host_name: row.host_name,
            process: uid.map(ProcessUid::from_bytes),
            total: row.total.unwrap_or_default().into(),
        })
    }
}

impl Listing for Top {
    const NAME: &'static str = "top";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

    fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(NOTHING);
        let mut header = vec!["SENT", "RECEIVED", "CONNECTIONS"];
        header.extend(match self.of {
            "processes" => &["HOSTS", "PROCESSES", "EXECUTABLE"][..],
            "remotes" => &["REMOTE", "PORTS", "NAMES"],
            _ => &["HOST"],
        });
        table.set_header(header);
        for row in &self.rows {
            let total = &row.total;
            let mut cells =
                vec![bytes(total.bytes_sent), bytes(total.bytes_received), total.connections_text()];
            cells.extend(row.cells(self.of));
            table.add_row(cells.iter().map(|cell| printable(cell)));
        }
        for column in table.column_iter_mut().take(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n");
        if self.rows_left_out > 0 {
            text.push_str(&format!("{} more are not shown (--limit)\n", self.rows_left_out));
        }
        if self.records_untold > 0 {
            text.push_str(&format!(
                "{} records are of more than can be told apart: ask about fewer hosts, or a shorter window\n",
                self.records_untold
            ));
        }
        let edges = self.total.at_edges();
        if edges > 0 {
            text.push_str(&format!(
                "records count wholly where they overlap the window; {} are of some that reach out of it\n",
                bytes(edges)
            ));
        }
        for damage in &self.damage {
            text.push_str(&format!("connections may be missing: {}\n", printable(damage)));
        }
        if let Some(incomplete) = self.incomplete() {
            text.push_str(&format!(
                "{}
",
                printable(&incomplete)
            ));
        }
        text
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(self)
    }

    fn table(&self) -> Table {
        Table::new(&columns(), &self.rows)
    }

    fn ecs(&self) -> Vec<Value> {
        self.rows.iter().map(|row| ecs::top(self, row)).collect()
    }

    fn ocsf(&self) -> Vec<Value> {
        self.rows.iter().map(|row| ocsf::top(self, row)).collect()
    }

    fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.rows_left_out > 0 {
            notices.push(format!("{} more are left out (--limit)", self.rows_left_out));
        }
        if self.records_untold > 0 {
            notices.push(format!(
                "{} records are of more than can be told apart: ask about fewer hosts, or a shorter window",
                self.records_untold
            ));
        }
        notices.extend(self.damage.iter().map(|damage| format!("connections may be missing: {damage}")));
        notices.extend(self.incomplete());
        notices
    }
}

impl Top {
    /// That hosts were not recorded completely.
    fn incomplete(&self) -> Option<String> {
        let incomplete = self.incomplete.len() as u64 + self.incomplete_left_out;
        let first = self.incomplete.first()?;
        Some(format!(
            "connections may be missing: {incomplete} {} not recorded completely in the window: {}{}",
            if incomplete == 1 { "host was" } else { "hosts were" },
            first.name,
            if incomplete > 1 { ", …" } else { "" }
        ))
    }
}

fn columns() -> Columns<'static, RowJson> {
    let columns = Columns::default()
        .text("remote", |row: &RowJson| row.remote.clone())
        .list("names", |row| Some(json!(row.names)))
        .list("ports", |row| Some(json!(row.ports)))
        .text("path", |row| row.path.clone())
        .text("name", |row| row.name.clone())
        .text("sha256", |row| row.sha256.clone())
        .count("hosts", |row| Some(row.hosts))
        .count("processes", |row| Some(row.processes))
        .text("host", |row| Some(row.host?.to_string()))
        .text("host_name", |row| row.host_name.clone())
        .text("process", |row| Some(row.process?.to_string()));
    total_columns(columns, |row| &row.total)
}

impl RowJson {
    fn cells(&self, of: &str) -> Vec<String> {
        match of {
            "processes" => {
                let executable = self.path.as_ref().or(self.name.as_ref()).cloned();
                let executable = executable.unwrap_or_else(|| "owner unknown".to_owned());
                let sha256 = self.sha256.as_ref().map(|sha256| format!("  sha256 {}…", &sha256[..12]));
                let on = self.host_name.as_ref().map(|name| format!("  on {name}"));
                let executable =
                    format!("{executable}{}{}", sha256.unwrap_or_default(), on.unwrap_or_default());
                vec![self.hosts.to_string(), self.processes.to_string(), executable]
            }
            "remotes" => {
                let ports: Vec<String> = self.ports.iter().map(u32::to_string).collect();
                vec![self.remote.clone().unwrap_or_default(), ports.join(","), self.names.join(", ")]
            }
            _ => vec![self.host_name.clone().unwrap_or_else(|| "?".to_owned())],
        }
    }
}
