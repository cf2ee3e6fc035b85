//! `alibi audit`.

use alibi_proto::{command_line::say, id::HostId, json::pretty, report, time::Timestamp, wire};
use anyhow::Result;
use serde::Serialize;

use super::{
    AuditArgs, AuditCommand, format,
    way::{Way, in_words},
};
use crate::export::{Format, Listing, ROWS, Table, table::Columns};

pub(super) async fn audit(arguments: AuditArgs, way: &Way) -> Result<u8> {
    match arguments.command {
        None => list(arguments, way).await,
        Some(AuditCommand::Verify { json }) => verify(json, way).await,
    }
}

async fn list(arguments: AuditArgs, way: &Way) -> Result<u8> {
    let format = arguments.format.of::<AuditJson>()?;
    let request = wire::AuditRequest {
        before_seq: arguments.before.unwrap_or(0),
        limit: arguments.limit,
        host: arguments.host,
        who: arguments.who,
    };
    let listed = way.client()?.audit(request).await.map_err(in_words(way))?.into_inner();
    let entries = listed.entries.into_iter().map(EntryJson::from).collect();
    format::print(format, &AuditJson { entries, more: listed.more })?;
    Ok(0)
}

impl Listing for AuditJson {
    const NAME: &'static str = "audit";
    const FORMATS: &'static [Format] = ROWS;

    fn text(&self) -> String {
        let lines: Vec<_> = self.entries.iter().map(EntryJson::line).chain(self.notices()).collect();
        lines.join("\n")
    }

    fn json(&self) -> serde_json::Result<String> {
        pretty(self)
    }

    fn table(&self) -> Table {
        let columns = Columns::<EntryJson>::default()
            .count("seq", |entry| Some(entry.seq))
            .time("at", |entry| Some(entry.at))
            .text("who", |entry| Some(entry.who.clone()))
            .text("role", |entry| Some(entry.role.clone()))
            .text("from", |entry| Some(entry.from.clone()))
            .text("action", |entry| Some(entry.action.clone()))
            .text("detail", |entry| Some(entry.detail.clone()))
            .text("outcome", |entry| Some(entry.outcome.clone()))
            .count("rows", |entry| Some(entry.rows))
            .list("hosts", |entry| Some(serde_json::json!(entry.hosts)))
            .boolean("all_hosts", |entry| Some(entry.all_hosts))
            .count("repeats", |entry| Some(entry.repeats))
            .text("head", |entry| Some(entry.head.clone()));
        Table::new(&columns, &self.entries)
    }

    fn notices(&self) -> Vec<String> {
        let last = self.entries.last().filter(|_| self.more);
        last.map(|last| format!("older ones: --before {}", last.seq)).into_iter().collect()
    }
}

#[derive(Serialize)]
struct AuditJson {
    entries: Vec<EntryJson>,
    more: bool,
}

#[derive(Serialize)]
struct EntryJson {
    seq: u64,
    at: Timestamp,
    who: String,
    role: String,
    from: String,
    action: String,
    detail: String,
    outcome: String,
    rows: u64,
    hosts: Vec<HostId>,
    all_hosts: bool,
    repeats: u64,
    head: String,
}

impl From<wire::AuditEntry> for EntryJson {
    fn from(entry: wire::AuditEntry) -> Self {
        let host = |bytes: &Vec<u8>| Some(HostId::from_bytes(bytes.as_slice().try_into().ok()?));
        Self {
            seq: entry.seq,
            at: Timestamp::from_nanos(entry.at_ns),
            who: entry.who,
            role: entry.role,
            from: entry.from,
            action: entry.action,
            detail: entry.detail,
            outcome: entry.outcome,
            rows: entry.rows,
            hosts: entry.hosts.iter().filter_map(host).collect(),
            all_hosts: entry.all_hosts,
            repeats: entry.repeats,
            head: hexadecimal(&entry.head),
        }
    }
}

impl EntryJson {
    fn line(&self) -> String {
        let Self { seq, at, from, action, detail, outcome, rows, repeats, .. } = self;
        let who = if self.who.is_empty() { "nobody" } else { &self.who };
        let role = if self.role.is_empty() { String::new() } else { format!(" ({})", self.role) };
        let rows = if *rows > 0 { format!(", {rows} rows") } else { String::new() };
        let repeats = if *repeats > 0 { format!(", and {repeats} more times") } else { String::new() };
        let detail = if detail.is_empty() { String::new() } else { format!(" {detail}") };
        report::printable(&format!(
            "{seq}  {at}  {who}{role} from {from}: {action}{detail}: {outcome}{rows}{repeats}"
        ))
    }
}

async fn verify(json: bool, way: &Way) -> Result<u8> {
    let verified =
        way.client()?.verify_audit(wire::VerifyAuditRequest {}).await.map_err(in_words(way))?.into_inner();
    let verified = VerifiedJson {
        holds: verified.problems.is_empty(),
        from_seq: verified.from_seq,
        to_seq: verified.to_seq,
        head: hexadecimal(&verified.head),
        problems: verified.problems,
    };
    if json {
        say(pretty(&verified)?)?;
    } else {
        say(format_args!(
            "read entries {} to {}, head {}",
            verified.from_seq, verified.to_seq, verified.head
        ))?;
        for problem in &verified.problems {
            say(format_args!("does not hold: {}", report::printable(problem)))?;
        }
        say(format_args!("the audit log {}", if verified.holds { "holds" } else { "DOES NOT HOLD" }))?;
    }
    Ok(u8::from(!verified.holds))
}

#[derive(Serialize)]
struct VerifiedJson {
    holds: bool,
    from_seq: u64,
    to_seq: u64,
    head: String,
    problems: Vec<String>,
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
