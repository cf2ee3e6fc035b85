//! The answer in words, for a person at a terminal. Pure.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use crate::{
    clock::shifted,
    coverage::{Gap, Scope},
    executable::{Signature, SignatureStatus, VersionInfo},
    flow::{Direction, FlowRecord},
    process::{ProcessImage, ProcessLife},
    question::{
        Answer, AnswerClock, ConnectionActivity, HostAnswer, InWindow, ProcessActivity, Summary, Verdict,
    },
    time::Timestamp,
};

/// Gaps and connections that are shown of each host and process; `--json` has all.
const LINES_MAX: usize = 8;

/// Hosts of one verdict that are shown one by one.
const HOSTS_MAX: usize = 20;

/// The answer, talkers first, ending in a sentence that can be quoted.
pub fn answer(answer: &Answer) -> String {
    let window = answer.question.window;
    let mut text = format!(
        "Who talked to {} from {} until {} ({})?\n",
        answer.question.target,
        instant(window.from()),
        instant(window.to()),
        length(window.to().since(window.from()).as_secs())
    );
    if answer.question.target.name().is_some() {
        let shown: Vec<&str> = answer.addresses.iter().take(LINES_MAX).map(String::as_str).collect();
        let more = match answer.addresses.len().saturating_sub(LINES_MAX) {
            0 => String::new(),
            more => format!(" and {more} more (--json has all)"),
        };
        let none = if shown.is_empty() { "none is known" } else { "" };
        line(&mut text, 0, &format!("addresses used: {none}{}{more}", shown.join(", ")));
    }
    let Summary { talked, clear, unknown } = answer.summary();
    for host in talked {
        text.push('\n');
        host_answer(&mut text, host);
    }
    // Of many, what they have in common.
    let is_many = |hosts: usize| hosts > HOSTS_MAX;
    if is_many(unknown.iter().map(|unproven| unproven.hosts.len()).sum()) {
        for unproven in &unknown {
            text.push('\n');
            named(&mut text, Verdict::Unknown, &unproven.hosts);
            line(&mut text, 1, &format!("because: {}", unproven.reason()));
        }
    } else {
        for host in answer.hosts.iter().filter(|host| host.verdict == Verdict::Unknown) {
            text.push('\n');
            host_answer(&mut text, host);
        }
    }
    if is_many(clear.len()) {
        let mut by_scopes: BTreeMap<&[Arc<Scope>], Vec<&HostAnswer>> = BTreeMap::new();
        clear.iter().for_each(|host| by_scopes.entry(&host.scopes).or_default().push(host));
        for (scopes, hosts) in by_scopes {
            text.push('\n');
            named(&mut text, Verdict::Clear, &hosts);
            covered(&mut text, scopes);
        }
    } else {
        for host in clear {
            text.push('\n');
            host_answer(&mut text, host);
        }
    }
    text.push('\n');
    text.push_str(&sentence(answer));
    text.push('\n');
    text
}

/// Hosts that have their verdict in common, by their names.
fn named(text: &mut String, verdict: Verdict, hosts: &[&HostAnswer]) {
    let shown: Vec<&str> = hosts.iter().take(HOSTS_MAX).map(|host| host.name.as_str()).collect();
    let more = match hosts.len().saturating_sub(HOSTS_MAX) {
        0 => String::new(),
        more => format!(" and {more} more (--json has all)"),
    };
    let count = if hosts.len() == 1 { "1 host".to_owned() } else { format!("{} hosts", hosts.len()) };
    let verdict = verdict.word().to_uppercase();
    line(text, 0, &format!("{verdict:<8} {count}: {}{more}", shown.join(", ")));
}

fn covered(text: &mut String, scopes: &[Arc<Scope>]) {
    for scope in scopes {
        line(text, 1, &format!("covers: {}", scope.covers));
        line(text, 1, &format!("cannot see: {}", scope.cannot_see));
    }
}

fn host_answer(text: &mut String, host: &HostAnswer) {
    let verdict = host.verdict.word().to_uppercase();
    line(text, 0, &format!("{verdict:<8} {}", host.name));
    if let Some(AnswerClock { offset_ns, bound_ns, window }) = host.clock
        && (offset_ns, bound_ns) != (0, 0)
    {
        let asked = format!("so it was asked from {} until {}", instant(window.from()), instant(window.to()));
        let own = if offset_ns == 0 { "" } else { " by its own; times here are the collector's" };
        line(text, 1, &format!("clock: {}, {asked}{own}", clock(offset_ns, bound_ns)));
    }
    let offset_ns = host.clock.map_or(0, |clock| clock.offset_ns);
    for process in &host.processes {
        process_activity(text, process, offset_ns);
    }
    if host.records_left_out > 0 {
        line(text, 1, &format!("{} more records matched and are not shown", host.records_left_out));
    }
    listed(text, 1, &host.gaps, "gaps", gap);
    if host.verdict == Verdict::Clear {
        covered(text, &host.scopes);
    }
}

/// How a host's clock stands to the collector's.
pub fn clock(offset_ns: i64, bound_ns: u64) -> String {
    let bound = short(Duration::from_nanos(bound_ns));
    let offset = short(Duration::from_nanos(offset_ns.unsigned_abs()));
    match (offset_ns, bound_ns) {
        (0, 0) => "the collector's own".to_owned(),
        (0, _) => format!("within {bound} of the collector's"),
        (1.., _) => format!("{offset} ahead of the collector's (to {bound})"),
        _ => format!("{offset} behind the collector's (to {bound})"),
    }
}

/// A length of time, rounded up to a millisecond.
pub fn short(length: Duration) -> String {
    let milliseconds = length.as_nanos().div_ceil(1_000_000);
    match milliseconds {
        0..10_000 => format!("{milliseconds} ms"),
        _ => format!("{}.{:03} s", milliseconds / 1_000, milliseconds % 1_000),
    }
}

fn process_activity(text: &mut String, activity: &ProcessActivity, offset_ns: i64) {
    match (&activity.life, activity.uid) {
        (Some(life), _) => process(text, 1, life),
        (None, Some(uid)) => line(text, 1, &format!("a process that is not on record ({uid})")),
        (None, None) => line(text, 1, "owner unknown"),
    }
    listed(text, 2, &activity.connections, "connections", |activity| connection(activity, offset_ns));
}

/// A process in a few lines, indented.
pub fn process(text: &mut String, indent: usize, life: &ProcessLife) {
    let record = &life.record;
    let image = life.image();
    let user = image.user.as_ref().map_or("unknown user", |user| user.label());
    line(text, indent, &format!("{}  pid {}  {user}", title(image), record.pid));
    let since =
        if record.already_running { "already running when recording began, since" } else { "started" };
    let mut times = format!("{since} {}", instant(record.started));
    if let Some(exit) = life.exit {
        let _ = write!(times, ", ended {}", instant(exit.exited));
        if let Some(code) = exit.exit_code {
            let _ = write!(times, " with code {code}");
        }
    }
    line(text, indent + 1, &times);
    if !image.arguments.is_empty() {
        let more = if image.arguments_truncated { " …" } else { "" };
        line(text, indent + 1, &format!("$ {}{more}", shortened(&image.arguments.join(" "), 160)));
    }
    executable(text, indent + 1, life);
    line(text, indent + 1, &format!("process {}", record.uid));
}

fn title(image: &ProcessImage) -> &str {
    image.path.as_deref().unwrap_or(&image.name)
}

/// What the executable is, and what the process ran before it.
fn executable(text: &mut String, indent: usize, life: &ProcessLife) {
    if let Some(sha256) = life.sha256() {
        line(text, indent, &format!("sha256 {sha256}"));
    } else if let Some(problem) = life.executable.iter().find_map(|seen| seen.problem.as_deref()) {
        line(text, indent, &format!("no sha256: {problem}"));
    }
    if let Some(signature) = life.signature() {
        line(text, indent, &signed(signature));
    }
    if let Some(version) = life.version() {
        line(text, indent, &said_of_itself(version));
    }
    if let Some(package) = life.executable.iter().find_map(|seen| seen.package.as_ref()) {
        line(text, indent, &format!("package {} {} ({})", package.name, package.version, package.source));
    }
    if life.executable.iter().any(|seen| seen.first_on_host) {
        line(text, indent, "its content had not been seen on this host before");
    }
    if let Some(writer) = life.writer() {
        line(text, indent, &format!("written by process {writer}"));
    }
    if let Some((_, before)) = life.executions.split_last() {
        let ran = before.iter().map(|execution| (execution.executed, &execution.image));
        let ran: Vec<_> = std::iter::once((life.record.started, &life.record.image)).chain(ran).collect();
        listed(text, indent, &ran, "executions", |(at, image)| {
            format!("ran {} from {}", title(image), instant(*at))
        });
        if life.executions_left_out > 0 {
            line(text, indent, &format!("and {} executions that are not kept", life.executions_left_out));
        }
    }
}

/// What the host says of a signature, in one line.
fn signed(signature: &Signature) -> String {
    let by = signature.subject.as_deref().or(signature.identifier.as_deref());
    let mut text = match (signature.status, by) {
        (SignatureStatus::Unsigned, _) => "not signed".to_owned(),
        (SignatureStatus::NotChecked, _) => "signature not checked".to_owned(),
        (status, None) => format!("signature {status}"),
        (status, Some(by)) => format!("signature {status}, by {by}"),
    };
    for (what, which) in [("issued by", &signature.issuer), ("team", &signature.team)] {
        if let Some(which) = which {
            let _ = write!(text, ", {what} {which}");
        }
    }
    if let Some(reason) = &signature.reason {
        let _ = write!(text, ": {reason}");
    }
    text
}

/// What an executable says of itself, in one line.
fn said_of_itself(version: &VersionInfo) -> String {
    let VersionInfo { company, product, description, file_version, original_file_name } = version;
    let said = [description, product, file_version, company, original_file_name];
    let mut said: Vec<&str> = said.into_iter().filter_map(Option::as_deref).collect();
    said.dedup();
    format!("says of itself: {}", said.join(", "))
}

/// A connection that matched, in one line; where the host's clock is another, with its own times.
fn connection(activity: &ConnectionActivity, offset_ns: i64) -> String {
    let does = match activity.in_window {
        _ if activity.in_margin => "may have been in the window, or just beside it",
        InWindow::Bytes => "moved bytes in the window",
        InWindow::Attempt => "began or failed in the window",
        InWindow::Idle => "was open in the window",
    };
    let by_its_own = |time| instant(shifted(time, offset_ns));
    let own = match offset_ns {
        0 => String::new(),
        _ => format!(
            " [by its own clock {} to {}]",
            by_its_own(activity.flow.opened),
            by_its_own(activity.flow.last)
        ),
    };
    format!("{}{own}; {does}", connection_life(&activity.flow))
}

/// A connection in one line.
pub fn connection_life(flow: &FlowRecord) -> String {
    let arrow = match flow.direction {
        Direction::Outbound => "→",
        Direction::Inbound => "←",
    };
    let opened = if flow.already_open { "open since before" } else { "opened" };
    format!(
        "{} {} {arrow} {}  {opened} {}, {}{}",
        flow.protocol,
        flow.local,
        remote(flow),
        instant(flow.opened),
        ending(flow),
        bytes(flow)
    )
}

fn remote(flow: &FlowRecord) -> String {
    match &flow.remote_name {
        Some(remote) => format!("{} ({})", printable(&remote.name), flow.remote),
        None => flow.remote.to_string(),
    }
}

fn ending(flow: &FlowRecord) -> String {
    let last = instant(flow.last);
    match flow.state.errno() {
        0 if flow.leaves_open() => format!("open as of {last}"),
        0 => format!("{} {last}", flow.state.word()),
        errno => format!("failed {last} with errno {errno}"),
    }
}

fn bytes(flow: &FlowRecord) -> String {
    flow.traffic.map_or_else(String::new, |traffic| {
        format!(" ({} B sent, {} B received)", traffic.bytes_sent, traffic.bytes_received)
    })
}

fn gap(gap: &Gap) -> String {
    let count = match gap.grade.count() {
        0 => String::new(),
        count => format!(" {count} lost:"),
    };
    format!(
        "{} {} {} … {}:{count} {}",
        gap.facet,
        gap.grade.word(),
        instant(gap.from),
        instant(gap.to),
        gap.grade.reason()
    )
}

/// The sentence that can be quoted.
fn sentence(answer: &Answer) -> String {
    let count = |verdict| answer.hosts.iter().filter(|host| host.verdict == verdict).count();
    let (talked, clear, unknown) = (count(Verdict::Talked), count(Verdict::Clear), count(Verdict::Unknown));
    if answer.hosts.is_empty() {
        return "No host is followed, so nothing is known. Add one with `alibi host add ADDRESS`.".to_owned();
    }
    let hosts = |count: usize| if count == 1 { "1 host".to_owned() } else { format!("{count} hosts") };
    format!(
        "{} talked to {}; {} can be ruled out; {} {} unknown.",
        hosts(talked),
        answer.question.target,
        hosts(clear),
        hosts(unknown),
        if unknown == 1 { "is" } else { "are" }
    )
}

/// At most [`LINES_MAX`] lines, and how many more there are.
fn listed<T>(text: &mut String, indent: usize, items: &[T], what: &str, print: impl Fn(&T) -> String) {
    for item in items.iter().take(LINES_MAX) {
        line(text, indent, &print(item));
    }
    if items.len() > LINES_MAX {
        line(text, indent, &format!("and {} more {what} (--json has all)", items.len() - LINES_MAX));
    }
}

/// One line.
fn line(text: &mut String, indent: usize, content: &str) {
    let _ = writeln!(text, "{}{}", "  ".repeat(indent), printable(content));
}

/// What came from another machine must not steer the terminal, nor show a name in another order than it has: control
/// characters, line separators and those that set the direction of writing become `?`.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if steers(c) { '?' } else { c }).collect()
}

/// Whether a terminal would do something else with it than to show it.
pub(crate) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// To the millisecond: what a person compares with other logs.
pub fn instant(instant: Timestamp) -> String {
    format!("{instant:.3}")
}

/// A length of time in its largest two units.
pub fn length(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// At most `chars` characters, the last being an ellipsis if something was cut.
pub fn shortened(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_told_with_its_reason() {
        let check = |signature: &Signature, line: &str| assert_eq!(signed(signature), line);
        let signature = |status| Signature::of_status(status, None);
        check(&signature(SignatureStatus::Unsigned), "not signed");
        check(&Signature::not_checked("too many waited"), "signature not checked: too many waited");
        check(&signature(SignatureStatus::Trusted), "signature trusted");
        let signature = Signature {
            reason: Some("the certificate has expired".into()),
            subject: Some("Example Corp.".into()),
            issuer: Some("Example CA".into()),
            identifier: Some("com.example.x".into()),
            team: Some("ABCDE12345".into()),
            ..signature(SignatureStatus::Untrusted)
        };
        check(
            &signature,
            "signature untrusted, by Example Corp., issued by Example CA, team ABCDE12345: the certificate has expired",
        );
        let version = VersionInfo {
            company: Some("Example Corp.".into()),
            product: Some("Tool".into()),
            description: Some("Tool".into()),
            file_version: Some("1.2".into()),
            original_file_name: None,
        };
        assert_eq!(said_of_itself(&version), "says of itself: Tool, 1.2, Example Corp.");
    }

    #[test]
    fn nothing_printed_steers_the_terminal() {
        let hostile = "a\u{1b}]0;owned\u{7}\u{9b}2J\r\nTALKED x\u{202e}exe.txt\u{2066}\u{2028}\u{7f}";
        assert_eq!(printable(hostile), "a?]0;owned??2J??TALKED x?exe.txt???");
        assert_eq!(printable("Zoë’s laptop — 東京"), "Zoë’s laptop — 東京");
    }
}
