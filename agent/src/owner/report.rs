//! What the owner is told, in words, for a person at a terminal. Pure.

use std::fmt::Write as _;

use alibi_proto::{
    report::{instant, length, printable},
    time::Timestamp,
};

use super::{
    Status,
    link::State,
    status::{AskedStatus, FacetStatus, RedactedStatus},
};

/// The status as of `now`; `not_running` says why it is not of an agent that runs, if it is not.
pub fn in_words(status: &Status, now: Timestamp, not_running: Option<&str>) -> String {
    let mut text = String::new();
    let agent = &status.agent;
    line(
        &mut text,
        0,
        &format!("{}  host {}, alibi-agent {}", status.host.name, status.host.id, agent.version),
    );
    match not_running {
        None => line(&mut text, 0, &format!("running since {}, pid {}", at(agent.started, now), agent.pid)),
        Some(reason) => line(&mut text, 0, &format!("not running: {reason}")),
    }
    line(&mut text, 0, &format!("as of {}", at(status.written, now)));
    for trouble in &status.trouble {
        line(&mut text, 0, &format!("TROUBLE  {trouble}"));
    }
    recording(&mut text, status, now);
    collected(&mut text, status);
    redacted(&mut text, &status.redacted, agent.started);
    asked(&mut text, &status.asked, now);
    text
}

fn recording(text: &mut String, status: &Status, now: Timestamp) {
    heading(text, &format!("Recording by {}", status.source));
    status.facets.iter().for_each(|told| facet(text, told));
    if let Some(caveat) = &status.caveat {
        line(text, 1, &format!("caveat: {caveat}"));
    }
    let room = status.ring.room;
    let since = room.oldest.map_or("nothing yet".to_owned(), |oldest| format!("since {}", at(oldest, now)));
    let (bytes, bytes_max) = (mebibytes(room.bytes), mebibytes(status.ring.bytes_max));
    line(text, 1, &format!("kept on this machine: {since}, {bytes} of at most {bytes_max}"));
    if let Some(until) = status.recorded_until {
        line(text, 1, &format!("recorded until {}", at(until, now)));
    }
    line(text, 1, &format!("collector: {}", link(&status.collector.state, now)));
    if let Some(until) = status.collector.certificate_until {
        line(text, 1, &format!("certificate valid until {}", at(until, now)));
    }
}

fn facet(text: &mut String, told: &FacetStatus) {
    let reason = if told.reason.is_empty() { String::new() } else { format!(": {}", told.reason) };
    line(text, 1, &format!("{} {}{reason}", told.facet, told.grade));
    line(text, 2, &format!("covers: {}", told.covers));
    line(text, 2, &format!("cannot see: {}", told.cannot_see));
}

fn link(state: &State, now: Timestamp) -> String {
    match state {
        State::NotEnrolled => "not enrolled".to_owned(),
        State::Connected { collector, since } => {
            format!("connected to {collector} since {}", at(*since, now))
        }
        State::NotConnected { collector, reason } => format!("not connected to {collector}: {reason}"),
        State::Refused { collector, reason } => format!("refused by {collector}: {reason}"),
    }
}

fn collected(text: &mut String, status: &Status) {
    heading(text, "What is collected");
    for kind in &status.collected {
        line(text, 1, &format!("{}: {}", kind.what, kind.words));
    }
    for never in &status.never_collected {
        line(text, 1, &format!("never: {never}"));
    }
}

fn redacted(text: &mut String, redacted: &RedactedStatus, since: Timestamp) {
    heading(text, &format!("Secrets redacted in arguments since {}: {}", instant(since), redacted.total));
    for rule in redacted.by_rule.iter().filter(|rule| rule.count > 0 || rule.own) {
        let own = if rule.own { " (added here)" } else { "" };
        line(text, 1, &format!("{} by {}{own}", rule.count, rule.rule));
    }
}

fn asked(text: &mut String, asked: &AskedStatus, now: Timestamp) {
    heading(text, &format!("Who asked about this host: {} of {} in all", asked.newest.len(), asked.total));
    for entry in &asked.newest {
        line(text, 1, &format!("{}  {} ({})  {}", at(entry.at, now), entry.who, entry.role, entry.action));
    }
}

/// An instant, and how far it is from now.
fn at(time: Timestamp, now: Timestamp) -> String {
    let (ago, ahead) = (now.since(time).as_secs(), time.since(now).as_secs());
    match ahead {
        0 => format!("{} ({} ago)", instant(time), length(ago)),
        _ => format!("{} (in {})", instant(time), length(ahead)),
    }
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

fn heading(text: &mut String, content: &str) {
    text.push('\n');
    line(text, 0, content);
}

/// What others have said must not steer the terminal.
fn line(text: &mut String, indent: usize, content: &str) {
    let _ = writeln!(text, "{}{}", "  ".repeat(indent), printable(content));
}
