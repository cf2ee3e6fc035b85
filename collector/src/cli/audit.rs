//! `alibi audit`.

use alibi_proto::{command_line::say, id::HostId, report, time::Timestamp, wire};
use anyhow::Result;
use serde::Serialize;

use super::{
    AuditArgs, AuditCommand,
    way::{Way, in_words},
};

pub(super) async fn audit(arguments: AuditArgs, way: &Way) -> Result<u8> {
    match arguments.command {
        None => list(arguments, way).await,
        Some(AuditCommand::Verify { json }) => verify(json, way).await,
    }
}

async fn list(arguments: AuditArgs, way: &Way) -> Result<u8> {
    let request = wire::AuditRequest {
        before_seq: arguments.before.unwrap_or(0),
        limit: arguments.limit,
        host: arguments.host,
        who: arguments.who,
    };
    let listed = way.client()?.audit(request).await.map_err(in_words(way))?.into_inner();
    let entries: Vec<_> = listed.entries.into_iter().map(EntryJson::from).collect();
    if arguments.json {
        say(alibi_proto::json::pretty(&AuditJson { entries, more: listed.more })?)?;
        return Ok(0);
    }
    for entry in &entries {
        say(entry.line())?;
    }
    if let (true, Some(last)) = (listed.more, entries.last()) {
        say(format_args!("older ones: --before {}", last.seq))?;
    }
    Ok(0)
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
        say(alibi_proto::json::pretty(&verified)?)?;
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
