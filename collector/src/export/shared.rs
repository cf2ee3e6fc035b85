//! Columns that more than one listing has: of a process, and of a connection.

use alibi_proto::{
    coverage::Gap,
    flow::{FlowRecord, Traffic},
    process::{ProcessLife, User},
};
use serde_json::{Value, json};

use super::table::Columns;

/// Of the process that a row is about, if it is about one.
pub(super) fn process_columns<'a, T: 'a>(
    columns: Columns<'a, T>,
    of: fn(&T) -> Option<&ProcessLife>,
) -> Columns<'a, T> {
    let label = |user: &Option<User>| user.as_ref().map(|user| user.label().to_owned());
    columns
        .count("pid", move |row| Some(of(row)?.record.pid.into()))
        .text("process_name", move |row| Some(of(row)?.image().name.clone()))
        .text("path", move |row| of(row)?.image().path.clone())
        .list("arguments", move |row| Some(json!(of(row)?.image().arguments)))
        .boolean("arguments_truncated", move |row| Some(of(row)?.image().arguments_truncated))
        .text("working_directory", move |row| of(row)?.image().working_directory.clone())
        .text("user", move |row| label(&of(row)?.image().user))
        .text("user_id", move |row| Some(of(row)?.image().user.as_ref()?.id.clone()))
        .text("effective_user", move |row| label(&of(row)?.image().effective_user))
        .time("started", move |row| Some(of(row)?.record.started))
        .boolean("already_running", move |row| Some(of(row)?.record.already_running))
        .time("exited", move |row| Some(of(row)?.exit?.exited))
        .integer("exit_code", move |row| of(row)?.exit?.exit_code.map(Into::into))
        .text("parent", move |row| Some(of(row)?.record.parent?.to_string()))
        .count("parent_pid", move |row| of(row)?.record.parent_pid.map(Into::into))
        .text("sha256", move |row| Some(of(row)?.sha256()?.to_string()))
        .text("package", move |row| Some(package(of(row)?)?.0))
        .text("package_version", move |row| Some(package(of(row)?)?.1))
        .text("signature", move |row| Some(of(row)?.signature()?.status.word().to_owned()))
        .text("signer", move |row| of(row)?.signature()?.subject.clone())
        .boolean("first_on_host", move |row| first_on_host(of(row)?))
}

fn package(life: &ProcessLife) -> Option<(String, String)> {
    let package = life.executable.iter().find_map(|seen| seen.package.as_ref())?;
    Some((package.name.clone(), package.version.clone()))
}

fn first_on_host(life: &ProcessLife) -> Option<bool> {
    (!life.executable.is_empty()).then(|| life.executable.iter().any(|seen| seen.first_on_host))
}

/// Of the connection that a row is about, if it is about one.
pub(super) fn flow_columns<'a, T: 'a>(
    columns: Columns<'a, T>,
    of: fn(&T) -> Option<&FlowRecord>,
) -> Columns<'a, T> {
    let traffic = move |row: &T, part: fn(Traffic) -> u64| of(row)?.traffic.map(part);
    columns
        .text("connection", move |row| Some(of(row)?.connection.to_string()))
        .text("community_id", move |row| of(row)?.community_id())
        .text("protocol", move |row| Some(of(row)?.protocol.word().to_owned()))
        .text("direction", move |row| Some(of(row)?.direction.word().to_owned()))
        .text("local_address", move |row| Some(of(row)?.local.ip().to_string()))
        .count("local_port", move |row| Some(of(row)?.local.port().into()))
        .text("remote_address", move |row| Some(of(row)?.remote.ip().to_string()))
        .count("remote_port", move |row| Some(of(row)?.remote.port().into()))
        .text("remote_name", move |row| Some(of(row)?.remote_name.as_ref()?.name.clone()))
        .text("name_source", move |row| Some(of(row)?.remote_name.as_ref()?.source.word().to_owned()))
        .time("first", move |row| Some(of(row)?.opened))
        .time("last", move |row| Some(of(row)?.last))
        .text("state", move |row| Some(of(row)?.state.word().to_owned()))
        .integer("errno", move |row| Some(of(row)?.state.errno().into()).filter(|errno| *errno != 0))
        .count("bytes_sent", move |row| traffic(row, |traffic| traffic.bytes_sent))
        .count("bytes_received", move |row| traffic(row, |traffic| traffic.bytes_received))
        .count("retransmitted_packets", move |row| traffic(row, |traffic| traffic.packets_retransmitted))
        .count("round_trip_us", move |row| u64::try_from(of(row)?.round_trip?.as_micros()).ok())
        .text("attribution", move |row| Some(of(row)?.attribution.word().to_owned()))
        .boolean("already_open", move |row| Some(of(row)?.already_open))
}

/// What a file is called, on whichever system.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or(path)
}

/// Gaps, as `who --json` has them.
pub(super) fn gaps(gaps: &[Gap]) -> Value {
    let gap = |gap: &Gap| {
        json!({
            "facet": gap.facet.word(),
            "grade": gap.grade.word(),
            "reason": gap.grade.reason(),
            "from": gap.from,
            "to": gap.to,
            "count": gap.grade.count(),
        })
    };
    gaps.iter().map(gap).collect()
}
