//! `alibi executables`: what was first seen in a window. A row for each executable on each host.

use alibi_proto::{
    executable::{Package, Signature, VersionInfo},
    id::HostId,
    json::pretty,
    prevalence::{About, Times},
    report::{instant, printable},
    time::Timestamp,
    window::Window,
    wire,
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Format, Listing, ROWS_AND_EVENTS, Table, ecs, ocsf,
    prevalence::{PrevalenceJson, RecordedJson, host, prevalence_columns},
    table::Columns,
};

/// What was first seen in a window, on each host.
#[derive(Debug, Serialize)]
pub struct ListedExecutables {
    window: Window,
    executables: Vec<ExecutableJson>,
    left_out: u64,
    hosts: Vec<RecordedJson>,
    /// Hosts of the fleet of which it is not proven what was not there, and why of the first.
    fleet_unproven: u64,
    fleet_problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ExecutableJson {
    pub(super) host: Option<HostId>,
    pub(super) host_name: String,
    pub(super) paths: Vec<String>,
    more_paths: bool,
    /// run, `not_run` (written, and proven not to have been run until the end of the window) or unknown.
    pub(super) run: &'static str,
    pub(super) package: Option<Package>,
    pub(super) signature: Option<Signature>,
    pub(super) version: Option<VersionInfo>,
    #[serde(flatten)]
    pub(super) prevalence: PrevalenceJson,
}

impl ListedExecutables {
    /// What the collector told of `window`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(window: Window, response: wire::ExecutablesResponse) -> Result<Self> {
        let executables = response.executables.into_iter().map(ExecutableJson::try_from);
        let hosts = response.hosts.into_iter().map(RecordedJson::try_from);
        Ok(Self {
            window,
            executables: executables.collect::<Result<_>>()?,
            left_out: response.left_out,
            hosts: hosts.collect::<Result<_>>()?,
            fleet_unproven: response.fleet_unproven,
            fleet_problem: response.fleet_problem,
        })
    }
}

impl TryFrom<wire::SeenExecutable> for ExecutableJson {
    type Error = anyhow::Error;

    fn try_from(seen: wire::SeenExecutable) -> Result<Self> {
        let run = match seen.run() {
            wire::RunKind::Run => "run",
            wire::RunKind::NotRun => "not_run",
            _ => "unknown",
        };
        let About { package, signature, version } = seen.about.unwrap_or_default().try_into()?;
        Ok(Self {
            host: host(&seen.host)?,
            host_name: seen.host_name,
            paths: seen.paths,
            more_paths: seen.more_paths,
            run,
            package,
            signature,
            version,
            prevalence: seen.prevalence.context("how common it is, is missing")?.into(),
        })
    }
}

/// Lines about hosts that are printed; `--json` has all.
const HOST_LINES_MAX: usize = 8;

impl Listing for ListedExecutables {
    const NAME: &'static str = "executables";
    const FORMATS: &'static [Format] = ROWS_AND_EVENTS;

    fn text(&self) -> String {
        let (from, to) = (instant(self.window.from()), instant(self.window.to()));
        let mut text = format!("Executables first seen from {from} until {to}, newest first\n");
        for executable in &self.executables {
            text.push_str(&executable.text());
        }
        match (self.executables.len(), self.left_out) {
            (0, 0) => text.push_str("\nnone is on record\n"),
            (_, 0) => {}
            (_, more) => {
                text.push_str(&format!("\n{more} more are not shown: --limit, or a shorter window\n"))
            }
        }
        text.push('\n');
        let troubled = self.hosts.iter().filter(|host| host.problem.is_some() || !host.gaps.is_empty());
        let troubled: Vec<&RecordedJson> = troubled.collect();
        for host in troubled.iter().take(HOST_LINES_MAX) {
            let name = printable(&host.name);
            if let Some(problem) = &host.problem {
                text.push_str(&format!(
                    "{name}: {}; what was not seen before is not proven to be new: {}\n",
                    host.text(),
                    printable(problem)
                ));
            }
            if !host.gaps.is_empty() {
                text.push_str(&format!("{name}: not recorded completely in the window: more may have run\n"));
            }
        }
        if troubled.len() > HOST_LINES_MAX {
            text.push_str(&format!("and {} more hosts (--json has all)\n", troubled.len() - HOST_LINES_MAX));
        }
        if let Some(problem) = &self.fleet_problem {
            text.push_str(&format!("in the fleet: {}\n", printable(problem)));
        }
        text
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(self)
    }

    fn table(&self) -> Table {
        Table::new(&columns(), &self.executables)
    }

    fn ecs(&self) -> Vec<Value> {
        self.executables.iter().map(ecs::executable).collect()
    }

    fn ocsf(&self) -> Vec<Value> {
        self.executables.iter().map(ocsf::executable).collect()
    }

    fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.left_out > 0 {
            notices.push(format!("{} more are left out: --limit, or a shorter window", self.left_out));
        }
        for host in &self.hosts {
            if let Some(problem) = &host.problem {
                notices.push(format!(
                    "{}: what was not seen before is not proven to be new: {problem}",
                    host.name
                ));
            }
            if !host.gaps.is_empty() {
                notices
                    .push(format!("{}: not recorded completely in the window: more may have run", host.name));
            }
        }
        notices.extend(self.fleet_problem.iter().map(|problem| format!("in the fleet: {problem}")));
        notices
    }
}

fn columns() -> Columns<'static, ExecutableJson> {
    let columns = Columns::default()
        .text("host", |row: &ExecutableJson| Some(row.host?.to_string()))
        .text("host_name", |row| Some(row.host_name.clone()))
        .list("paths", |row| Some(json!(row.paths)))
        .boolean("more_paths", |row| Some(row.more_paths))
        .text("run", |row| Some(row.run.to_owned()))
        .text("package", |row| Some(row.package.as_ref()?.name.clone()))
        .text("package_version", |row| Some(row.package.as_ref()?.version.clone()))
        .text("signature", |row| Some(row.signature.as_ref()?.status.word().to_owned()))
        .text("signer", |row| row.signature.as_ref()?.subject.clone());
    prevalence_columns(columns, |row| &row.prevalence)
}

impl ExecutableJson {
    /// When the host saw it first.
    pub(super) fn first_seen(&self) -> Option<Timestamp> {
        let seen = &self.prevalence.host;
        seen.run.into_iter().chain(seen.written).reduce(Times::and).map(|times| times.first)
    }

    /// Whether it was written before it was run.
    pub(super) fn was_written(&self) -> bool {
        let seen = &self.prevalence.host;
        seen.written.is_some_and(|written| seen.run.is_none_or(|run| written.first <= run.first))
    }

    fn text(&self) -> String {
        let path = self.paths.first().map_or("a file without a name", String::as_str);
        let more = match (self.paths.len(), self.more_paths) {
            (0 | 1, false) => String::new(),
            (paths, false) => format!(" and {} more paths", paths - 1),
            (..) => " and many more paths".to_owned(),
        };
        let seen = &self.prevalence.host;
        let first = self.first_seen().map_or_else(String::new, instant);
        let mut lines = vec![format!("{first}  {}  {path}{more}", self.host_name)];
        lines.push(match (self.run, seen.written) {
            ("run", None) => "run".to_owned(),
            ("run", Some(written)) => format!("written {} and run", instant(written.first)),
            ("not_run", _) => "written, not run".to_owned(),
            _ => "written; no run is on record, but not all that ran is".to_owned(),
        });
        lines.extend(self.prevalence.sha256.as_ref().map(|sha256| format!("sha256 {sha256}")));
        if let Some(Package { name, version, source }) = &self.package {
            lines.push(format!("package {name} {version} ({source})"));
        }
        if let Some(signature) = &self.signature {
            let subject = signature.subject.as_ref().map(|subject| format!(", by {subject}"));
            lines.push(format!("signature {}{}", signature.status, subject.unwrap_or_default()));
        }
        lines.push(self.prevalence.text());
        let new = &self.prevalence;
        lines.extend(new.new_on_host.as_ref().map(|new| new.text("on this host")));
        lines.extend(new.new_in_fleet.as_ref().map(|new| new.text("in the fleet")));
        lines.iter().enumerate().fold("\n".to_owned(), |text, (number, line)| {
            let indent = if number == 0 { "" } else { "  " };
            format!("{text}{indent}{}\n", printable(line))
        })
    }
}
