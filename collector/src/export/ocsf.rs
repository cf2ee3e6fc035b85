//! Events in the Open Cybersecurity Schema Framework, one document each, with the profiles `host` and `datetime`.
//!
//! | what | class | activity |
//! | --- | --- | --- |
//! | a connection | 4001 Network Activity | Traffic (open), Close, Refuse, Reset, Fail; Other: asked for, and not answered yet |
//! | a process began, became another program | 1007 Process Activity | Launch |
//! | a process ended | 1007 Process Activity | Terminate |
//! | a process was found running | 1007 Process Activity | Other |
//! | a host, and the verdict on one | 5001 Device Inventory Info | Collect |
//! | an executable was first seen on a host | 1001 File System Activity | Create (written); Other: run |
//! | what connections of a remote, an executable or a host come to | 4001 Network Activity | Traffic, with their `count` |
//!
//! Times are milliseconds, as the schema has them; beside them, in `_dt`, they have their nanoseconds. What the schema has no
//! attribute for is in `unmapped`: the verdict with its gaps on every document of `who`, what a connection did in the window,
//! how its owner was found. Where an attribute is required and what it asks for is not known, it says Unknown.

use alibi_proto::{
    executable::SignatureStatus,
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
pub const VERSION: &str = "1.8.0";

/// A class of events.
#[derive(Clone, Copy)]
struct Class {
    category: u32,
    category_name: &'static str,
    uid: u32,
    name: &'static str,
}

const NETWORK_ACTIVITY: Class =
    Class { category: 4, category_name: "Network Activity", uid: 4001, name: "Network Activity" };
const PROCESS_ACTIVITY: Class =
    Class { category: 1, category_name: "System Activity", uid: 1007, name: "Process Activity" };
const FILE_ACTIVITY: Class =
    Class { category: 1, category_name: "System Activity", uid: 1001, name: "File System Activity" };
const DEVICE_INVENTORY: Class =
    Class { category: 5, category_name: "Discovery", uid: 5001, name: "Device Inventory Info" };

/// What happened, in the words of a class.
type Activity = (u32, &'static str);

const COLLECT: Activity = (2, "Collect");
const LAUNCH: Activity = (1, "Launch");
const TERMINATE: Activity = (2, "Terminate");
const CREATE: Activity = (1, "Create");
const FIRST_RUN: Activity = (OTHER, "First Run");
const TRAFFIC: Activity = (6, "Traffic");
const FOUND_RUNNING: Activity = (OTHER, "Found Running");
/// The schema has no such activity, and the name is ours.
const OTHER: u32 = 99;

/// The errno of Linux, by which all systems' are told.
const ECONNRESET: i32 = 104;
const ECONNREFUSED: i32 = 111;

/// The verdict on each host, and the connections that matched there.
pub fn answer(answer: &Answer) -> Vec<Value> {
    answer.hosts.iter().flat_map(|host| host_answer(answer, host)).collect()
}

fn host_answer(answer: &Answer, host: &HostAnswer) -> Vec<Value> {
    let window = answer.question.window;
    let about = |document: &mut Document| {
        document
            .set("device", device(host.host.map(|id| id.to_string()), Some(&host.name)).into_value())
            .set("unmapped.target", answer.question.target.to_string())
            .set("unmapped.window.from", window.from().to_string())
            .set("unmapped.window.to", window.to().to_string())
            .set("unmapped.verdict", host.verdict.word())
            .set("unmapped.gaps", gaps(&host.gaps))
            .set("unmapped.records_left_out", host.records_left_out)
            .set("unmapped.known_until", host.known_until.map(|until| until.to_string()))
            .set("unmapped.clock.offset_us", host.clock.map(|clock| clock.offset_ns / 1_000))
            .set("unmapped.clock.bound_us", host.clock.map(|clock| clock.bound_ns.div_ceil(1_000)));
    };
    let mut verdict = document(DEVICE_INVENTORY, COLLECT, window.to());
    set_time(&mut verdict, "start_time", window.from());
    set_time(&mut verdict, "end_time", window.to());
    verdict.set("unmapped.scopes", json!(host.scopes));
    about(&mut verdict);
    let mut documents = vec![verdict.into_value()];
    for process in &host.processes {
        for connection in &process.connections {
            let mut document = flow(&connection.flow);
            document.set_all("actor.process", owner(process));
            about(&mut document);
            document
                .set("unmapped.in_window", connection.in_window.word())
                .set("unmapped.in_margin", connection.in_margin);
            documents.push(document.into_value());
        }
    }
    documents
}

/// Nothing of it where the owner is not known.
fn owner(owner: &ProcessActivity) -> Document {
    match &owner.life {
        Some(life) => process_object(life, life.image()),
        None => {
            let mut only = Document::default();
            only.set("uid", owner.uid.map(|uid| uid.to_string()));
            only
        }
    }
}

/// What became of a process, its ancestors and its children, and its connections.
pub fn process(shown: &ShownProcess) -> Vec<Value> {
    let lives = std::iter::once(&shown.process).chain(&shown.ancestors).chain(&shown.children);
    let flows = shown.connections.iter().map(|connection| {
        let mut document = flow(connection);
        document.set_all("actor.process", process_object(&shown.process, shown.process.image()));
        document
    });
    let whose = shown.whose();
    lives.flat_map(life).chain(flows).map(|document| on_host(document, &whose)).collect()
}

fn on_host(mut document: Document, whose: &Whose) -> Value {
    document
        .set("device", device(Some(whose.host.to_string()), Some(&whose.name)).into_value())
        .set("unmapped.clock.offset_us", whose.clock.map(|(offset_ns, _)| offset_ns / 1_000))
        .set("unmapped.clock.bound_us", whose.clock.map(|(_, bound_ns)| bound_ns.div_ceil(1_000)));
    document.into_value()
}

/// What became of a process that a search found.
pub(super) fn found_process(whose: &Whose, found: &ProcessLife) -> Vec<Value> {
    life(found).into_iter().map(|document| on_host(document, whose)).collect()
}

/// A flow record that a search found, with what it tells of its owner.
pub(super) fn found_flow(row: &Row) -> Value {
    let mut document = flow(&row.flow);
    let mut owner = Document::default();
    owner
        .set("uid", row.flow.process.map(|uid| uid.to_string()))
        .set("pid", row.pid)
        .set("name", row.name.as_deref())
        .set("file.path", row.path.as_deref())
        .set("user.name", row.user.as_deref());
    document.set_all("actor.process", owner);
    on_host(document, &row.whose)
}

/// Its start, each program that it became, and its end.
fn life(life: &ProcessLife) -> Vec<Document> {
    let record = &life.record;
    let activity = if record.already_running { FOUND_RUNNING } else { LAUNCH };
    let mut start = document(PROCESS_ACTIVITY, activity, record.started);
    if !record.already_running {
        start.set("launch_type_id", 0).set("launch_type", "Unknown");
    }
    start.set_all("actor", launcher(life)).set_all("process", process_object(life, &record.image));
    let mut documents = vec![start];
    for execution in &life.executions {
        let mut document = document(PROCESS_ACTIVITY, LAUNCH, execution.executed);
        let process = || process_object(life, &execution.image);
        document
            .set("launch_type_id", 3)
            .set("launch_type", "Exec")
            .set_all("actor.process", process())
            .set_all("process", process());
        documents.push(document);
    }
    if let Some(exit) = life.exit {
        let mut document = document(PROCESS_ACTIVITY, TERMINATE, exit.exited);
        // Who ended it is not recorded; the schema has a process name itself then.
        document
            .set("exit_code", exit.exit_code)
            .set_all("actor.process", process_object(life, life.image()))
            .set_all("process", process_object(life, life.image()));
        documents.push(document);
    }
    documents
}

/// The parent, as far as it is known.
fn launcher(life: &ProcessLife) -> Document {
    let mut actor = Document::default();
    actor
        .set("process.uid", life.record.parent.map(|parent| parent.to_string()))
        .set("process.pid", life.record.parent_pid);
    if life.record.parent.is_none() && life.record.parent_pid.is_none() {
        // An actor is required, and names something.
        actor.set("app_name", "Unknown");
    }
    actor
}

/// A host, as it was when it was asked about.
pub fn host(host: &HostStatus, now: Timestamp) -> Value {
    let mut document = document(DEVICE_INVENTORY, COLLECT, now);
    let description = host.description.as_ref();
    let enrolled = host.enrolment.as_ref().map(|enrolment| enrolment.host);
    let id = description.map(|description| description.host).or(enrolled);
    let mut device = device(id.map(|id| id.to_string()), enrolled_name(host).or(Some(&host.address)));
    if let Some(description) = description {
        let (os, os_name) = match description.os.as_str() {
            "windows" => (100, "Windows"),
            "linux" => (200, "Linux"),
            "macos" => (300, "macOS"),
            _ => (0, "Unknown"),
        };
        let mut agent = Document::default();
        agent.set("name", "Alibi").set("version", description.agent_version.as_str());
        device
            .set("os.name", description.os_version.as_str())
            .set("os.type_id", os)
            .set("os.type", os_name)
            .set("boot_uid", description.boot_id.as_str())
            .set("agent_list", vec![agent.into_value()]);
        if description.os_version.is_empty() {
            device.set("os.name", "Unknown");
        }
        set_time(&mut device, "boot_time", description.booted);
    }
    if let Some(heard) = host.heard {
        set_time(&mut device, "last_seen_time", heard);
    }
    document
        .set_all("device", device)
        .set("unmapped.address", host.address.as_str())
        .set("unmapped.from", host.from.as_deref())
        .set("unmapped.connected", host.connected)
        .set("unmapped.trouble", host.trouble.as_deref())
        .set("unmapped.known_until", host.known_until.map(|until| until.to_string()))
        .set("unmapped.clock.offset_us", host.clock.map(|clock| clock.offset_ns / 1_000))
        .set("unmapped.clock.bound_us", host.clock.map(|clock| clock.bound_ns.div_ceil(1_000)))
        .set("unmapped.chain_breaks", host.chain.breaks.len());
    if let Some(enrolment) = &host.enrolment {
        document
            .set("unmapped.enrolment.enrolled", enrolment.enrolled.to_string())
            .set("unmapped.enrolment.tags", enrolment.tags.clone())
            .set("unmapped.enrolment.revoked", enrolment.revoked.map(|revoked| revoked.to_string()))
            .set("unmapped.enrolment.copied", enrolment.copied.as_deref());
    }
    document.into_value()
}

/// An executable, when a host saw it first.
pub(super) fn executable(seen: &ExecutableJson) -> Value {
    let activity = if seen.was_written() { CREATE } else { FIRST_RUN };
    let mut document = document(FILE_ACTIVITY, activity, seen.first_seen().unwrap_or_default());
    let path = seen.paths.first().map(String::as_str);
    let mut file = Document::default();
    file.set("name", path.map_or("Unknown", file_name))
        .set("path", path)
        .set("type_id", 1)
        .set("type", "Regular File")
        .set("hashes", seen.prevalence.sha256.as_deref().map(fingerprint).into_iter().collect::<Vec<_>>());
    if let Some(version) = &seen.version {
        file.set("company_name", version.company.as_deref())
            .set("desc", version.description.as_deref())
            .set("version", version.file_version.as_deref())
            .set("internal_name", version.original_file_name.as_deref());
    }
    signature(&mut file, seen.signature.as_ref().map(|signature| signature.status));
    document
        // Who wrote or ran it is not told here, and an actor is required.
        .set("actor.app_name", "Unknown")
        .set_all("file", file)
        .set_all("device", device(seen.host.map(|id| id.to_string()), Some(&seen.host_name)))
        .set("unmapped.run", seen.run)
        .set("unmapped.paths", seen.paths.clone())
        .set("unmapped.package", json!(seen.package))
        .set("unmapped.prevalence", json!(seen.prevalence));
    document.into_value()
}

/// What connections come to. The remote end is the destination here, whoever asked for them.
pub(super) fn top(top: &Top, row: &RowJson) -> Value {
    let mut document = document(NETWORK_ACTIVITY, TRAFFIC, top.window.to());
    set_time(&mut document, "start_time", top.window.from());
    set_time(&mut document, "end_time", top.window.to());
    let total = &row.total;
    let remote = row.remote.as_deref();
    document
        .set("count", total.connections)
        .set("traffic.bytes_out", total.bytes_sent)
        .set("traffic.bytes_in", total.bytes_received)
        .set("traffic.bytes", total.bytes_sent.saturating_add(total.bytes_received))
        .set("dst_endpoint.ip", remote)
        .set("dst_endpoint.hostname", row.names.first().filter(|_| row.names.len() == 1).map(String::as_str))
        .set("dst_endpoint.port", row.ports.first().filter(|_| row.ports.len() == 1).copied())
        .set("unmapped.of", top.of)
        .set("unmapped.by", top.by)
        .set("unmapped.names", row.names.clone())
        .set("unmapped.ports", row.ports.clone())
        .set("unmapped.hosts", row.hosts)
        .set("unmapped.processes", row.processes)
        .set("unmapped.total", json!(total));
    if remote.is_none() {
        // One end is required, and names something.
        document
            .set("src_endpoint.uid", row.host.map(|id| id.to_string()))
            .set("src_endpoint.hostname", row.host_name.as_deref().unwrap_or("Unknown"));
    }
    if row.host.is_some() {
        document.set_all("device", device(row.host.map(|id| id.to_string()), row.host_name.as_deref()));
    }
    if let Some(uid) = row.process {
        document.set("actor.process.uid", uid.to_string()).set("actor.process.name", row.name.as_deref());
    }
    document.set("unmapped.executable", row.path.as_deref()).set("unmapped.sha256", row.sha256.as_deref());
    document.into_value()
}

fn document(class: Class, (activity, activity_name): Activity, at: Timestamp) -> Document {
    let mut document = Document::default();
    document
        .set("metadata.version", VERSION)
        .set("metadata.profiles", vec!["host", "datetime"])
        .set("metadata.product.name", "Alibi")
        .set("metadata.product.vendor_name", "Alibi")
        .set("metadata.product.version", env!("CARGO_PKG_VERSION"))
        .set("category_uid", class.category)
        .set("category_name", class.category_name)
        .set("class_uid", class.uid)
        .set("class_name", class.name)
        .set("activity_id", activity)
        .set("activity_name", activity_name)
        .set("type_uid", class.uid * 100 + activity)
        .set(
            "type_name",
            format!("{}: {}", class.name, if activity == OTHER { "Other" } else { activity_name }),
        )
        .set("severity_id", 1)
        .set("severity", "Informational");
    set_time(&mut document, "time", at);
    document
}

/// In milliseconds, and in `_dt` to the nanosecond.
fn set_time(document: &mut Document, name: &str, at: Timestamp) {
    document.set(name, at.as_nanos() / 1_000_000).set(&format!("{name}_dt"), at.to_string());
}

/// A host is of a type that is not known: a laptop, most likely, and that is no record of it.
fn device(uid: Option<String>, name: Option<&str>) -> Document {
    let mut device = Document::default();
    device.set("uid", uid).set("name", name).set("hostname", name).set("type_id", 0).set("type", "Unknown");
    device
}

/// A connection as far as it is known, at the end of its life or of what is known of it.
fn flow(flow: &FlowRecord) -> Document {
    let (activity, status) = match flow.state {
        FlowState::Attempted => ((OTHER, "Attempt"), (0, "Unknown")),
        FlowState::Established => (TRAFFIC, (1, "Success")),
        FlowState::Closed => ((2, "Close"), (1, "Success")),
        FlowState::Failed(ECONNRESET) => ((3, "Reset"), (2, "Failure")),
        FlowState::Failed(ECONNREFUSED) => ((5, "Refuse"), (2, "Failure")),
        FlowState::Failed(_) => ((4, "Fail"), (2, "Failure")),
    };
    let mut document = document(NETWORK_ACTIVITY, activity, flow.last);
    set_time(&mut document, "start_time", flow.opened);
    set_time(&mut document, "end_time", flow.last);
    let errno = Some(flow.state.errno()).filter(|errno| *errno != 0);
    document
        .set("duration", u64::try_from(flow.last.since(flow.opened).as_millis()).ok())
        .set("status_id", status.0)
        .set("status", status.1)
        .set("status_code", errno.map(|errno| errno.to_string()))
        .set_all("connection_info", connection_info(flow))
        .set("unmapped.state", flow.state.word())
        .set("unmapped.attribution", flow.attribution.word())
        .set("unmapped.already_open", flow.already_open);
    ends(&mut document, flow);
    document
}

fn connection_info(flow: &FlowRecord) -> Document {
    let is_local = flow.remote.ip().to_canonical().is_loopback();
    let (direction, direction_name) = match flow.direction {
        _ if is_local => (4, "Local"),
        Direction::Outbound => (2, "Outbound"),
        Direction::Inbound => (1, "Inbound"),
    };
    let (boundary, boundary_name) = if is_local { (1, "Localhost") } else { (0, "Unknown") };
    let (version, version_name) = if flow.remote.ip().to_canonical().is_ipv4() {
        (4, "Internet Protocol version 4 (IPv4)")
    } else {
        (6, "Internet Protocol version 6 (IPv6)")
    };
    let mut info = Document::default();
    info.set("uid", flow.connection.to_string())
        .set("community_uid", flow.community_id())
        .set("protocol_num", flow.protocol.number())
        .set("protocol_name", flow.protocol.word())
        .set("protocol_ver_id", version)
        .set("protocol_ver", version_name)
        .set("direction_id", direction)
        .set("direction", direction_name)
        .set("boundary_id", boundary)
        .set("boundary", boundary_name);
    info
}

/// Who asked for the connection is its source.
fn ends(document: &mut Document, flow: &FlowRecord) {
    let end = |address: std::net::SocketAddr, name: Option<&str>| {
        let mut end = Document::default();
        end.set("ip", address.ip().to_canonical().to_string())
            .set("port", address.port())
            .set("hostname", name);
        end
    };
    let name = flow.remote_name.as_ref().map(|name| name.name.as_str());
    let (local, remote) = (end(flow.local, None), end(flow.remote, name));
    let is_outbound = flow.direction == Direction::Outbound;
    let (source, destination) = if is_outbound { (local, remote) } else { (remote, local) };
    document.set_all("src_endpoint", source).set_all("dst_endpoint", destination);
    let Some(traffic) = flow.traffic else { return };
    // Out is from the source to the destination.
    let (out, back) =
        ((traffic.bytes_sent, traffic.packets_sent), (traffic.bytes_received, traffic.packets_received));
    let (out, back) = if is_outbound { (out, back) } else { (back, out) };
    document
        .set("traffic.bytes_out", out.0)
        .set("traffic.bytes_in", back.0)
        .set("traffic.bytes", out.0.saturating_add(back.0))
        .set("traffic.packets_out", out.1)
        .set("traffic.packets_in", back.1)
        .set("traffic.packets", out.1.saturating_add(back.1));
}

/// A process, running this program.
fn process_object(life: &ProcessLife, image: &ProcessImage) -> Document {
    let record = &life.record;
    let all_arguments = !image.arguments_truncated && !image.arguments.is_empty();
    let mut process = Document::default();
    process
        .set("uid", record.uid.to_string())
        .set("pid", record.pid)
        .set("name", image.name.as_str())
        .set("path", image.path.as_deref())
        .set("cmd_line", all_arguments.then(|| image.arguments.join(" ")))
        .set("working_directory", image.working_directory.as_deref())
        .set("parent_process.uid", record.parent.map(|parent| parent.to_string()))
        .set("parent_process.pid", record.parent_pid);
    set_time(&mut process, "created_time", record.started);
    if let Some(exit) = life.exit {
        set_time(&mut process, "terminated_time", exit.exited);
    }
    if let Some(user) = &image.user {
        process.set("user.uid", user.id.as_str()).set("user.name", user.name.as_deref());
    }
    if let Some(path) = &image.path {
        process.set_all("file", file(life, image, path));
    }
    process
}

fn file(life: &ProcessLife, image: &ProcessImage, path: &str) -> Document {
    // What is on record of the executable is of the one in force.
    let is_in_force = std::ptr::eq(image, life.image());
    let sha256 = if is_in_force { life.sha256() } else { image.sha256 };
    let mut file = Document::default();
    file.set("name", file_name(path))
        .set("path", path)
        .set("type_id", 1)
        .set("type", "Regular File")
        .set("size", image.file.map(|file| file.size))
        .set("hashes", sha256.map(|sha256| fingerprint(&sha256.to_string())).into_iter().collect::<Vec<_>>());
    let status = life.signature().filter(|_| is_in_force).map(|signature| signature.status);
    signature(&mut file, status);
    file
}

/// Of a file.
fn signature(file: &mut Document, status: Option<SignatureStatus>) {
    let state = match status {
        Some(SignatureStatus::Trusted) => (1, "Valid"),
        Some(SignatureStatus::Untrusted) => (6, "Untrusted"),
        Some(SignatureStatus::Invalid) => (9, "Bad"),
        Some(SignatureStatus::NotChecked) => (0, "Unknown"),
        Some(SignatureStatus::Unsigned) | None => return,
    };
    file.set("signature.algorithm_id", 0)
        .set("signature.algorithm", "Unknown")
        .set("signature.state_id", state.0)
        .set("signature.state", state.1);
}

fn fingerprint(sha256: &str) -> Value {
    json!({ "algorithm_id": 3, "algorithm": "SHA-256", "value": sha256 })
}
