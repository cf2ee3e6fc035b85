//! The JSON that programs read: stable, additions allowed. Section by section as `alibi who --json` documents it.
//!
//! Times are RFC 3339 in UTC with up to nine digits of the second; uids are hexadecimal; what is not known is `null`. What
//! would steer a terminal is escaped: whoever reads the JSON sees it as it was, and whoever looks at it, as text.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    clock::shifted,
    coverage::{Gap, Scope},
    executable::{Package, Signature, VersionInfo},
    flow::FlowRecord,
    id::{ConnectionUid, HostId, ProcessUid},
    process::{ProcessLife, User},
    question::{Answer, ConnectionActivity, HostAnswer, ProcessActivity, Summary, Unproven},
    report::steers,
    time::Timestamp,
    window::Window,
};

/// For people and programs.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn pretty(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(safe(&serde_json::to_string_pretty(value)?))
}

/// In one line, for programs that read line by line.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn line(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(safe(&serde_json::to_string(value)?))
}

fn safe(text: &str) -> String {
    use std::fmt::Write as _;

    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // Between values there are line breaks, and within them nothing of the kind: all that is left is in strings.
        if c != '\n' && steers(c) {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// `who --json`.
#[derive(Debug, Serialize)]
pub struct WhoJson {
    target: String,
    addresses: Vec<String>,
    window: Window,
    /// The verdict over all hosts.
    verdict: &'static str,
    summary: SummaryJson,
    hosts: Vec<HostJson>,
}

/// The hosts by their verdicts, each in one place.
#[derive(Debug, Serialize)]
struct SummaryJson {
    talked: Vec<NamedHostJson>,
    /// Those that can be ruled out.
    clear: Vec<NamedHostJson>,
    /// By the reason for which most of the window is missing, that of most hosts first.
    unknown: Vec<UnprovenJson>,
}

#[derive(Debug, Serialize)]
struct NamedHostJson {
    host: Option<HostId>,
    name: String,
}

#[derive(Debug, Serialize)]
struct UnprovenJson {
    facet: Option<&'static str>,
    grade: Option<&'static str>,
    /// As the first of the hosts has it; others may have other numbers in it.
    reason: String,
    hosts: Vec<NamedHostJson>,
}

#[derive(Debug, Serialize)]
struct HostJson {
    host: Option<HostId>,
    name: String,
    verdict: &'static str,
    gaps: Vec<GapJson>,
    processes: Vec<ProcessActivityJson>,
    scopes: Vec<Arc<Scope>>,
    known_until: Option<Timestamp>,
    records_left_out: u64,
    clock: Option<AnswerClockJson>,
}

/// How the host's clock stood to the collector's; null where it was not measured, and where a host answers for itself. All
/// times of the host are the collector's; where `offset_us` is not 0, connections and the start of processes have the
/// host's own in `host_clock` beside them.
#[derive(Debug, Serialize)]
struct AnswerClockJson {
    /// The host's less the collector's; 0 where it cannot be told from 0.
    offset_us: i64,
    /// The truth is no further from it.
    bound_us: u64,
    /// The window as the host was asked, by its own clock.
    window: Window,
}

/// The same times by the host's own clock.
#[derive(Debug, Serialize)]
struct OwnTimesJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exited: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Timestamp>,
}

/// A stretch in which a facet was not recorded completely.
#[derive(Debug, Serialize)]
pub struct GapJson {
    facet: &'static str,
    grade: &'static str,
    reason: String,
    from: Timestamp,
    to: Timestamp,
    count: u64,
}

#[derive(Debug, Serialize)]
struct ProcessActivityJson {
    #[serde(flatten)]
    process: ProcessJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_clock: Option<OwnTimesJson>,
    flows: Vec<FlowJson>,
}

/// A process. Everything but `process` is null where only the uid is known, and all of it where not even that is.
#[derive(Debug, Default, Serialize)]
pub struct ProcessJson {
    process: Option<ProcessUid>,
    pid: Option<u32>,
    name: Option<String>,
    path: Option<String>,
    arguments: Vec<String>,
    arguments_truncated: bool,
    working_directory: Option<String>,
    user: Option<String>,
    user_id: Option<String>,
    effective_user: Option<String>,
    terminal: Option<String>,
    cgroup: Option<String>,
    started: Option<Timestamp>,
    already_running: Option<bool>,
    exited: Option<Timestamp>,
    exit_code: Option<i32>,
    parent: Option<ProcessUid>,
    parent_pid: Option<u32>,
    sha256: Option<String>,
    executable_size: Option<u64>,
    /// The package that the executable belongs to.
    package: Option<Package>,
    /// No file with the executable's content had been seen on the host before.
    first_on_host: Option<bool>,
    /// Who wrote the executable, where that was seen.
    executable_writer: Option<ProcessUid>,
    /// Why the executable has no hash.
    executable_problem: Option<String>,
    /// What the host says of the executable's signature.
    signature: Option<Signature>,
    /// What the executable says of itself.
    version: Option<VersionInfo>,
    /// What it ran, oldest first, where it became another program: `path` and the rest are those of the last.
    executions: Vec<ExecutionJson>,
    executions_left_out: u64,
}

/// A program that a process ran.
#[derive(Debug, Serialize)]
struct ExecutionJson {
    executed: Timestamp,
    path: Option<String>,
    name: String,
    arguments: Vec<String>,
    sha256: Option<String>,
}

/// A connection. `name` is what its owner most likely asked for, which need not be the name in the question where names
/// share an address. `first` and `last` are its life as far as known; in an answer the bytes are those of the window, and
/// elsewhere those of its newest record, with `in_window` null.
#[derive(Debug, Serialize)]
pub struct FlowJson {
    connection: ConnectionUid,
    protocol: &'static str,
    direction: &'static str,
    local: String,
    remote: String,
    /// Community ID v1, seed 0; null where an end is not known.
    community_id: Option<String>,
    name: Option<String>,
    /// dns or sni.
    name_source: Option<&'static str>,
    first: Timestamp,
    last: Timestamp,
    state: &'static str,
    errno: i32,
    bytes_sent: u64,
    bytes_received: u64,
    /// Of the packets sent, those sent again (TCP).
    retransmitted_packets: u64,
    /// Smoothed, in microseconds (TCP).
    round_trip_us: Option<u64>,
    /// False: the source could not measure bytes, and the zeros mean nothing.
    bytes_measured: bool,
    in_window: Option<&'static str>,
    attribution: &'static str,
    already_open: bool,
    /// It is so near an edge of the window that, by the bound of the host's clock, it may have been outside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_margin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_clock: Option<OwnTimesJson>,
}

impl From<&Answer> for WhoJson {
    fn from(answer: &Answer) -> Self {
        Self {
            target: answer.question.target.to_string(),
            addresses: answer.addresses.clone(),
            window: answer.question.window,
            verdict: answer.verdict().word(),
            summary: SummaryJson::from(answer.summary()),
            hosts: answer.hosts.iter().map(HostJson::from).collect(),
        }
    }
}

impl From<Summary<'_>> for SummaryJson {
    fn from(summary: Summary<'_>) -> Self {
        let named = |hosts: &[&HostAnswer]| {
            hosts.iter().map(|host| NamedHostJson { host: host.host, name: host.name.clone() }).collect()
        };
        let unproven = |unproven: &Unproven<'_>| UnprovenJson {
            facet: unproven.gap.map(|gap| gap.facet.word()),
            grade: unproven.gap.map(|gap| gap.grade.word()),
            reason: unproven.reason(),
            hosts: named(&unproven.hosts),
        };
        Self {
            talked: named(&summary.talked),
            clear: named(&summary.clear),
            unknown: summary.unknown.iter().map(unproven).collect(),
        }
    }
}

impl From<&HostAnswer> for HostJson {
    fn from(host: &HostAnswer) -> Self {
        let offset_ns = host.clock.map_or(0, |clock| clock.offset_ns);
        Self {
            host: host.host,
            name: host.name.clone(),
            verdict: host.verdict.word(),
            gaps: host.gaps.iter().map(GapJson::from).collect(),
            processes: host.processes.iter().map(|process| activity(process, offset_ns)).collect(),
            scopes: host.scopes.clone(),
            known_until: host.known_until,
            records_left_out: host.records_left_out,
            clock: host.clock.map(|clock| AnswerClockJson {
                offset_us: clock.offset_ns / 1_000,
                bound_us: clock.bound_ns.div_ceil(1_000),
                window: clock.window,
            }),
        }
    }
}

impl From<&Gap> for GapJson {
    fn from(gap: &Gap) -> Self {
        Self {
            facet: gap.facet.word(),
            grade: gap.grade.word(),
            reason: gap.grade.reason(),
            from: gap.from,
            to: gap.to,
            count: gap.grade.count(),
        }
    }
}

/// On a host whose clock is later by the offset.
fn activity(activity: &ProcessActivity, offset_ns: i64) -> ProcessActivityJson {
    let own = |time: Timestamp| Some(shifted(time, offset_ns)).filter(|_| offset_ns != 0);
    let process = match &activity.life {
        Some(life) => ProcessJson::from(life),
        None => ProcessJson { process: activity.uid, ..ProcessJson::default() },
    };
    let flows = activity.connections.iter().map(|connection| {
        let flow = FlowJson::from(connection);
        let (first, last) = (own(flow.first), own(flow.last));
        let host_clock = first.map(|_| OwnTimesJson { started: None, exited: None, first, last });
        FlowJson { host_clock, ..flow }
    });
    let (started, exited) = (process.started.and_then(own), process.exited.and_then(own));
    ProcessActivityJson {
        host_clock: started.map(|_| OwnTimesJson { started, exited, first: None, last: None }),
        flows: flows.collect(),
        process,
    }
}

impl From<&ProcessLife> for ProcessJson {
    fn from(life: &ProcessLife) -> Self {
        let record = &life.record;
        let image = life.image().clone();
        let started = (!life.executions.is_empty()).then_some((record.started, &record.image));
        let later = life.executions.iter().map(|execution| (execution.executed, &execution.image));
        let executions = started.into_iter().chain(later).map(|(executed, image)| ExecutionJson {
            executed,
            path: image.path.clone(),
            name: image.name.clone(),
            arguments: image.arguments.clone(),
            sha256: image.sha256.map(|sha256| sha256.to_string()),
        });
        let label = |user: &Option<User>| user.as_ref().map(|user| user.label().to_owned());
        Self {
            process: Some(record.uid),
            pid: Some(record.pid),
            name: Some(image.name),
            path: image.path,
            arguments: image.arguments,
            arguments_truncated: image.arguments_truncated,
            working_directory: image.working_directory,
            user: label(&image.user),
            user_id: image.user.map(|user| user.id),
            effective_user: label(&image.effective_user),
            terminal: image.terminal,
            cgroup: image.cgroup,
            started: Some(record.started),
            already_running: Some(record.already_running),
            exited: life.exit.map(|exit| exit.exited),
            exit_code: life.exit.and_then(|exit| exit.exit_code),
            parent: record.parent,
            parent_pid: record.parent_pid,
            sha256: life.sha256().map(|sha256| sha256.to_string()),
            executable_size: image.file.map(|file| file.size),
            package: life.executable.iter().find_map(|seen| seen.package.clone()),
            first_on_host: (!life.executable.is_empty())
                .then(|| life.executable.iter().any(|seen| seen.first_on_host)),
            executable_writer: life.writer(),
            executable_problem: match life.sha256() {
                Some(_) => None,
                None => life.executable.iter().find_map(|seen| seen.problem.clone()),
            },
            signature: life.signature().cloned(),
            version: life.version().cloned(),
            executions: executions.collect(),
            executions_left_out: life.executions_left_out,
        }
    }
}

impl From<&ConnectionActivity> for FlowJson {
    fn from(activity: &ConnectionActivity) -> Self {
        let in_window = Some(activity.in_window.word());
        Self { in_window, in_margin: activity.in_margin, ..Self::from(&activity.flow) }
    }
}

impl From<&FlowRecord> for FlowJson {
    fn from(flow: &FlowRecord) -> Self {
        let traffic = flow.traffic.unwrap_or_default();
        Self {
            connection: flow.connection,
            protocol: flow.protocol.word(),
            direction: flow.direction.word(),
            local: flow.local.to_string(),
            remote: flow.remote.to_string(),
            community_id: flow.community_id(),
            name: flow.remote_name.as_ref().map(|name| name.name.clone()),
            name_source: flow.remote_name.as_ref().map(|name| name.source.word()),
            first: flow.opened,
            last: flow.last,
            state: flow.state.word(),
            errno: flow.state.errno(),
            bytes_sent: traffic.bytes_sent,
            bytes_received: traffic.bytes_received,
            retransmitted_packets: traffic.packets_retransmitted,
            round_trip_us: flow.round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            bytes_measured: flow.traffic.is_some(),
            in_window: None,
            attribution: flow.attribution.word(),
            already_open: flow.already_open,
            in_margin: false,
            host_clock: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_steers_the_terminal_and_it_reads_back() {
        let hostile =
            "a\u{1b}]0;x\u{7}\u{9b}2J\r\n\u{7f}\u{202e}exe.txt\u{2066}\u{2028}<script>\"\\u0041 東京";
        let text = pretty(&vec![hostile]).unwrap();
        assert!(text.chars().all(|c| c == '\n' || !steers(c)), "{text:?}");
        assert!(
            text.contains(r"\u009b2J") && text.contains(r"\u202eexe.txt") && text.contains("東京"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [hostile]);
        let text = line(&vec![hostile, "x"]).unwrap();
        assert!(text.chars().all(|c| !steers(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [hostile, "x"]);
    }
}
