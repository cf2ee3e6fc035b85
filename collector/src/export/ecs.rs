//! Events in the Elastic Common Schema, one document each.
//!
//! | what | `event.kind` | `event.category` | `event.type` |
//! | --- | --- | --- | --- |
//! | a connection | `event` | `network` | `connection`, with `start` (asked for), `info` (open), or `end` (over) |
//! | a process began, was found running, became another program, ended | `event` | `process` | `start`, `info`, `change`, `end` |
//! | the verdict on a host | `state` | `host` | `info` |
//! | a host | `asset` | `host` | `info` |
//! | an executable was first seen on a host | `event` | `file` | `creation` (written), or `info` (run) |
//! | what connections of a remote, an executable or a host come to | `metric` | `network` | `info` |
//!
//! What the schema has no field for is below `alibi`: the verdict with its gaps on every document of `who`, what a connection
//! did in the window, how its owner was found. What is not known is left away.

use alibi_proto::{
    executable::{Signature, SignatureStatus},
    flow::{Direction, FlowRecord, FlowState},
    host::HostStatus,
    process::{ProcessImage, ProcessLife},
    question::{Answer, HostAnswer, ProcessActivity},
    time::Timestamp,
};
use serde_json::{Value, json};

use super::{
    document::Document,
    executables::ExecutableJson,
    flows::Row,
    hosts::enrolled_name,
    page::Whose,
    process::ShownProcess,
    shared::{file_name, gaps},
    top::{RowJson, Top},
};

/// The version of the schema.
pub const VERSION: &str = "9.4.0";

/// The verdict on each host, and the connections that matched there.
pub fn answer(answer: &Answer) -> Vec<Value> {
    answer.hosts.iter().flat_map(|host| host_answer(answer, host)).collect()
}

fn host_answer(answer: &Answer, host: &HostAnswer) -> Vec<Value> {
    let window = answer.question.window;
    let about = |document: &mut Document| {
        document
            .set("host.id", host.host.map(|id| id.to_string()))
            .set("host.name", host.name.as_str())
            .set("alibi.target", answer.question.target.to_string())
            .set("alibi.window.from", window.from().to_string())
            .set("alibi.window.to", window.to().to_string())
            .set("alibi.verdict", host.verdict.word())
            .set("alibi.gaps", gaps(&host.gaps))
            .set("alibi.records_left_out", host.records_left_out)
            .set("alibi.known_until", host.known_until.map(|until| until.to_string()))
            .set("alibi.clock.offset_us", host.clock.map(|clock| clock.offset_ns / 1_000))
            .set("alibi.clock.bound_us", host.clock.map(|clock| clock.bound_ns.div_ceil(1_000)));
    };
    let mut verdict = document(Kind::State, "host", &["info"], "verdict", window.to());
    verdict
        .set("event.start", window.from().to_string())
        .set("event.end", window.to().to_string())
        .set("alibi.scopes", json!(host.scopes));
    about(&mut verdict);
    let mut documents = vec![verdict.into_value()];
    for process in &host.processes {
        for connection in &process.connections {
            let mut document = flow(&connection.flow);
            about(&mut document);
            document
                .set("alibi.in_window", connection.in_window.word())
                .set("alibi.in_margin", connection.in_margin);
            owner(&mut document, process);
            documents.push(document.into_value());
        }
    }
    documents
}

fn owner(document: &mut Document, owner: &ProcessActivity) {
    document.set("process.entity_id", owner.uid.map(|uid| uid.to_string()));
    if let Some(life) = &owner.life {
        process_fields(document, life, life.image());
        ended(document, life);
    }
}

/// What became of a process, its ancestors and its children, and its connections.
pub fn process(shown: &ShownProcess) -> Vec<Value> {
    let lives = std::iter::once(&shown.process).chain(&shown.ancestors).chain(&shown.children);
    let flows = shown.connections.iter().map(|connection| {
        let mut document = flow(connection);
        process_fields(&mut document, &shown.process, shown.process.image());
        ended(&mut document, &shown.process);
        document
    });
    let whose = shown.whose();
    lives.flat_map(life).chain(flows).map(|document| on_host(document, &whose)).collect()
}

fn on_host(mut document: Document, whose: &Whose) -> Value {
    document
        .set("host.id", whose.host.to_string())
        .set("host.name", whose.name.as_str())
        .set("alibi.clock.offset_us", whose.clock.map(|(offset_ns, _)| offset_ns / 1_000))
        .set("alibi.clock.bound_us", whose.clock.map(|(_, bound_ns)| bound_ns.div_ceil(1_000)));
    document.into_value()
}

/// What became of a process that a search found.
pub(super) fn found_process(whose: &Whose, found: &ProcessLife) -> Vec<Value> {
    life(found).into_iter().map(|document| on_host(document, whose)).collect()
}

/// A flow record that a search found, with what it tells of its owner.
pub(super) fn found_flow(row: &Row) -> Value {
    let mut document = flow(&row.flow);
    document
        .set("process.entity_id", row.flow.process.map(|uid| uid.to_string()))
        .set("process.pid", row.pid)
        .set("process.name", row.name.as_deref())
        .set("process.executable", row.path.as_deref())
        .set("user.name", row.user.as_deref());
    on_host(document, &row.whose)
}

/// Its start, each program that it became, and its end.
fn life(life: &ProcessLife) -> Vec<Document> {
    let record = &life.record;
    let (kind, action) =
        if record.already_running { ("info", "process_found_running") } else { ("start", "process_started") };
    let mut start = document(Kind::Event, "process", &[kind], action, record.started);
    process_fields(&mut start, life, &record.image);
    let mut documents = vec![start];
    for execution in &life.executions {
        let mut document =
            document(Kind::Event, "process", &["change"], "process_executed", execution.executed);
        process_fields(&mut document, life, &execution.image);
        documents.push(document);
    }
    if let Some(exit) = life.exit {
        let mut document = document(Kind::Event, "process", &["end"], "process_ended", exit.exited);
        process_fields(&mut document, life, life.image());
        ended(&mut document, life);
        documents.push(document);
    }
    documents
}

/// A host, as it was when it was asked about.
pub fn host(host: &HostStatus, now: Timestamp) -> Value {
    let mut document = document(Kind::Asset, "host", &["info"], "host_listed", now);
    document
        .set("host.name", enrolled_name(host))
        .set("alibi.address", host.address.as_str())
        .set("alibi.from", host.from.as_deref())
        .set("alibi.connected", host.connected)
        .set("alibi.trouble", host.trouble.as_deref())
        .set("alibi.heard", host.heard.map(|heard| heard.to_string()))
        .set("alibi.known_until", host.known_until.map(|until| until.to_string()))
        .set("alibi.clock.offset_us", host.clock.map(|clock| clock.offset_ns / 1_000))
        .set("alibi.clock.bound_us", host.clock.map(|clock| clock.bound_ns.div_ceil(1_000)))
        .set("alibi.chain_breaks", host.chain.breaks.len());
    if let Some(enrolment) = &host.enrolment {
        document
            .set("host.id", enrolment.host.to_string())
            .set("tags", enrolment.tags.clone())
            .set("alibi.enrolment.enrolled", enrolment.enrolled.to_string())
            .set("alibi.enrolment.revoked", enrolment.revoked.map(|revoked| revoked.to_string()))
            .set("alibi.enrolment.copied", enrolment.copied.as_deref());
    }
    if let Some(description) = &host.description {
        let kind = Some(description.os.as_str()).filter(|os| ["linux", "macos", "windows"].contains(os));
        document
            .set("host.id", description.host.to_string())
            .set("host.hostname", description.name.as_str())
            .set("host.os.type", kind)
            .set("host.os.full", description.os_version.as_str())
            .set("host.boot.id", description.boot_id.as_str())
            .set("agent.type", "alibi")
            .set("agent.version", description.agent_version.as_str())
            .set("alibi.booted", description.booted.to_string());
    }
    document.into_value()
}

/// An executable, when a host saw it first.
pub(super) fn executable(seen: &ExecutableJson) -> Value {
    let kind = if seen.was_written() { "creation" } else { "info" };
    let at = seen.first_seen().unwrap_or_default();
    let mut document = document(Kind::Event, "file", &[kind], "executable_first_seen", at);
    let path = seen.paths.first().map(String::as_str);
    document
        .set("host.id", seen.host.map(|id| id.to_string()))
        .set("host.name", seen.host_name.as_str())
        .set("file.path", path)
        .set("file.name", path.map(file_name))
        .set("file.hash.sha256", seen.prevalence.sha256.as_deref())
        .set("alibi.run", seen.run)
        .set("alibi.paths", seen.paths.clone())
        .set("alibi.prevalence", json!(seen.prevalence));
    if let Some(package) = &seen.package {
        document
            .set("package.name", package.name.as_str())
            .set("package.version", package.version.as_str())
            .set("package.type", package.source.as_str());
    }
    if let Some(version) = &seen.version {
        document
            .set("file.pe.company", version.company.as_deref())
            .set("file.pe.product", version.product.as_deref())
            .set("file.pe.description", version.description.as_deref())
            .set("file.pe.file_version", version.file_version.as_deref())
            .set("file.pe.original_file_name", version.original_file_name.as_deref());
    }
    seen.signature.iter().for_each(|one| signature(&mut document, "file", one));
    document.into_value()
}

/// What connections come to. The remote end is the destination here, whoever asked for them.
pub(super) fn top(top: &Top, row: &RowJson) -> Value {
    let action = format!("top_{}", top.of);
    let mut document = document(Kind::Metric, "network", &["info"], &action, top.window.to());
    let total = &row.total;
    let remote = row.remote.as_deref();
    document
        .set("event.start", top.window.from().to_string())
        .set("event.end", top.window.to().to_string())
        .set("network.bytes", total.bytes_sent.saturating_add(total.bytes_received))
        .set("source.bytes", total.bytes_sent)
        .set("destination.bytes", total.bytes_received)
        .set("destination.ip", remote)
        .set("destination.domain", row.names.first().filter(|_| row.names.len() == 1).map(String::as_str))
        .set("destination.port", row.ports.first().filter(|_| row.ports.len() == 1).copied())
        .set("process.entity_id", row.process.map(|uid| uid.to_string()))
        .set("process.name", row.name.as_deref())
        .set("process.executable", row.path.as_deref())
        .set("process.hash.sha256", row.sha256.as_deref())
        .set("host.id", row.host.map(|id| id.to_string()))
        .set("host.name", row.host_name.as_deref())
        .set("alibi.by", top.by)
        .set("alibi.names", row.names.clone())
        .set("alibi.ports", row.ports.clone())
        .set("alibi.hosts", row.hosts)
        .set("alibi.processes", row.processes)
        .set("alibi.total", json!(total));
    document.into_value()
}

#[derive(Clone, Copy)]
enum Kind {
    Event,
    Metric,
    State,
    Asset,
}

fn document(kind: Kind, category: &str, types: &[&str], action: &str, at: Timestamp) -> Document {
    let mut document = Document::default();
    document
        .set("@timestamp", at.to_string())
        .set("ecs.version", VERSION)
        .set(
            "event.kind",
            match kind {
                Kind::Event => "event",
                Kind::Metric => "metric",
                Kind::State => "state",
                Kind::Asset => "asset",
            },
        )
        .set("event.category", vec![category])
        .set("event.type", types.to_vec())
        .set("event.action", action)
        .set("event.module", "alibi")
        .set("event.dataset", format!("alibi.{category}"));
    document
}

/// A connection as far as it is known, at the end of its life or of what is known of it.
fn flow(flow: &FlowRecord) -> Document {
    let (progress, action, outcome) = match flow.state {
        FlowState::Attempted => ("start", "connection_attempted", "unknown"),
        FlowState::Established => ("info", "connection_established", "success"),
        FlowState::Closed => ("end", "connection_closed", "success"),
        FlowState::Failed(_) => ("end", "connection_failed", "failure"),
    };
    let mut document = document(Kind::Event, "network", &["connection", progress], action, flow.last);
    let duration = u64::try_from(flow.last.since(flow.opened).as_nanos()).ok();
    let errno = Some(flow.state.errno()).filter(|errno| *errno != 0);
    document
        .set("event.outcome", outcome)
        .set("event.start", flow.opened.to_string())
        .set("event.end", flow.last.to_string())
        .set("event.duration", duration)
        .set("error.code", errno.map(|errno| errno.to_string()))
        .set("network.transport", flow.protocol.word())
        .set("network.iana_number", flow.protocol.number().to_string())
        .set("network.type", if flow.remote.ip().to_canonical().is_ipv4() { "ipv4" } else { "ipv6" })
        .set("network.community_id", flow.community_id())
        .set("alibi.connection", flow.connection.to_string())
        .set("alibi.state", flow.state.word())
        .set("alibi.attribution", flow.attribution.word())
        .set("alibi.already_open", flow.already_open);
    let name = flow.remote_name.as_ref().map(|name| name.name.as_str());
    let (local, remote, direction) = match flow.direction {
        Direction::Outbound => ("source", "destination", "egress"),
        Direction::Inbound => ("destination", "source", "ingress"),
    };
    document.set("network.direction", direction);
    for (end, address) in [(local, flow.local), (remote, flow.remote)] {
        document
            .set(&format!("{end}.ip"), address.ip().to_canonical().to_string())
            .set(&format!("{end}.port"), address.port());
    }
    document.set(&format!("{remote}.domain"), name);
    if let Some(traffic) = flow.traffic {
        document
            .set(&format!("{local}.bytes"), traffic.bytes_sent)
            .set(&format!("{local}.packets"), traffic.packets_sent)
            .set(&format!("{remote}.bytes"), traffic.bytes_received)
            .set(&format!("{remote}.packets"), traffic.packets_received)
            .set("network.bytes", traffic.bytes_sent.saturating_add(traffic.bytes_received))
            .set("network.packets", traffic.packets_sent.saturating_add(traffic.packets_received));
    }
    document
}

/// What a process is, running this program.
fn process_fields(document: &mut Document, life: &ProcessLife, image: &ProcessImage) {
    let record = &life.record;
    let all_arguments = !image.arguments_truncated && !image.arguments.is_empty();
    document
        .set("process.entity_id", record.uid.to_string())
        .set("process.pid", record.pid)
        .set("process.parent.entity_id", record.parent.map(|parent| parent.to_string()))
        .set("process.parent.pid", record.parent_pid)
        .set("process.start", record.started.to_string())
        .set("process.name", image.name.as_str())
        .set("process.executable", image.path.as_deref())
        .set("process.args", image.arguments.clone())
        .set("process.args_count", all_arguments.then_some(image.arguments.len()))
        .set("process.command_line", all_arguments.then(|| image.arguments.join(" ")))
        .set("process.working_directory", image.working_directory.as_deref())
        .set("alibi.already_running", record.already_running)
        .set("alibi.cgroup", image.cgroup.as_deref())
        .set("alibi.terminal", image.terminal.as_deref());
    if let Some(user) = &image.user {
        document.set("user.id", user.id.as_str()).set("user.name", user.name.as_deref());
    }
    if let Some(user) = &image.effective_user {
        document.set("user.effective.id", user.id.as_str()).set("user.effective.name", user.name.as_deref());
    }
    // What is on record of the executable is of the one in force.
    let is_in_force = std::ptr::eq(image, life.image());
    let sha256 = if is_in_force { life.sha256() } else { image.sha256 };
    document.set("process.hash.sha256", sha256.map(|sha256| sha256.to_string()));
    if is_in_force {
        life.signature().into_iter().for_each(|one| signature(document, "process", one));
    }
}

/// Of what stands below this name.
fn signature(document: &mut Document, of: &str, signature: &Signature) {
    let (exists, valid, trusted) = match signature.status {
        SignatureStatus::Trusted => (Some(true), Some(true), Some(true)),
        SignatureStatus::Untrusted => (Some(true), Some(true), Some(false)),
        SignatureStatus::Invalid => (Some(true), Some(false), Some(false)),
        SignatureStatus::Unsigned => (Some(false), None, None),
        SignatureStatus::NotChecked => (None, None, None),
    };
    let field = |name: &str| format!("{of}.code_signature.{name}");
    document
        .set(&field("exists"), exists)
        .set(&field("valid"), valid)
        .set(&field("trusted"), trusted)
        .set(&field("status"), signature.status.word())
        .set(&field("subject_name"), signature.subject.as_deref())
        .set(&field("signing_id"), signature.identifier.as_deref())
        .set(&field("team_id"), signature.team.as_deref());
}

fn ended(document: &mut Document, life: &ProcessLife) {
    if let Some(exit) = life.exit {
        document.set("process.end", exit.exited.to_string()).set("process.exit_code", exit.exit_code);
    }
}
