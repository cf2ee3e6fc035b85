//! Sources that see less than they should: a kernel that refuses a hook, and a source that no longer sees what the agent
//! itself does. What is missing is said in exactly those words, and nobody is ruled out by it.
//!
//! `strace` stands between agent and kernel: it lets single system calls fail, or come to nothing.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    os::fd::{FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use alibi_lab::{
    capture::tail::Tail,
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Running, now, outcome},
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    event::EventKind,
    host::SourceDescription,
    time::Timestamp,
};
use serde_json::Value;

const REQUIREMENTS: &[Requirement] = &[Requirement::Bpf, Requirement::Strace];

/// Where everything is kept, and how often an agent was started there.
struct Place {
    directory: tempfile::TempDir,
    agents: u32,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), agents: 0 }
    }

    /// A data directory that nobody has used, and words to start an agent over it.
    fn next(&mut self) -> (PathBuf, String) {
        self.agents += 1;
        let data = self.directory.path().join(self.agents.to_string());
        let listen = format!("unix:{}.sock", data.display());
        (data, listen)
    }

    /// `strace` of an agent's calls of bpf(2), as the parent of its tracer, so that the agent is the one to be stopped.
    fn traced(&self, inject: Option<&str>) -> Command {
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-e", "abbrev=none", "-e", "trace=bpf", "-o"]).arg(self.calls());
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject=bpf:{inject}")]);
        }
        command.arg(&programs().agent);
        command
    }

    fn calls(&self) -> PathBuf {
        self.directory.path().join("calls")
    }

    fn agent(&mut self, inject: Option<&str>) -> Agent {
        let command = self.traced(inject);
        let (data, listen) = self.next();
        Agent::start_with(command, &data, &listen, &["--source", "ebpf"])
    }
}

/// At which of its calls of bpf(2) the agent attaches a program: the one after it has loaded it. Counted from 1, as strace
/// counts them, for each thread of its own.
fn attached_by(calls: &str, program: &str) -> usize {
    let named = format!("prog_name=\"{program}\"");
    let load = calls.lines().find(|line| line.contains(&named)).unwrap_or_else(|| panic!("no {program}"));
    let thread = load.split(' ').next().unwrap();
    let mut own = calls.lines().filter(|line| line.split(' ').next() == Some(thread));
    own.position(|line| line.contains(&named)).unwrap() + 2
}

fn described(agent: &Agent) -> SourceDescription {
    let mut tail = Tail::open(&agent.address).unwrap();
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();
    assert_eq!(tail.host.sources.len(), 1);
    tail.host.sources.remove(0)
}

fn facet(source: &SourceDescription, facet: Facet) -> (Grade, Scope) {
    let found =
        source.facets.iter().find(|found| found.facet == facet).unwrap_or_else(|| panic!("{source:#?}"));
    (found.grade.clone(), found.scope.clone())
}

/// The verdict on an address that nobody talks to, and its gaps.
fn verdict(data: &Path, from: Timestamp, to: Timestamp) -> (String, Vec<Value>) {
    let (from, to) = (from.to_string(), to.to_string());
    let mut command = Command::new(&programs().agent);
    command.args(["query", "203.0.113.99", "--from", &from, "--to", &to, "--json", "--data"]).arg(data);
    let output = command.output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let host = &answer["hosts"][0];
    (host["verdict"].as_str().unwrap().to_owned(), host["gaps"].as_array().unwrap().clone())
}

/// Programs that the source can do without, and what it then cannot see: words for the scope, or connections of which it
/// sees nothing.
enum Lack {
    Words(&'static str),
    Connections(&'static str),
}

const OPTIONAL: &[(&str, Lack)] = &[
    (
        "on_send",
        Lack::Words(
            "which process writes to a connection that another accepted or opened (the kernel refuses sock_send_length)",
        ),
    ),
    (
        "on_receive",
        Lack::Words(
            "which process reads from a connection that another accepted or opened (the kernel refuses \
             tcp_rcv_space_adjust)",
        ),
    ),
    (
        "on_route6",
        Lack::Words("why a connect over IPv6 found no route (the kernel refuses fib6_table_lookup)"),
    ),
    (
        "on_route4",
        Lack::Words("why a connect over IPv4 found no route (the kernel refuses fib_table_lookup)"),
    ),
    ("on_bind6", Lack::Words("the owner of UDP sockets that only receive (the kernel refuses on_bind6)")),
    ("on_arriving", Lack::Connections("UDP (the kernel refuses on_arriving)")),
    ("on_connect4", Lack::Connections("attempts that find no route (the kernel refuses on_connect4)")),
    ("on_release", Lack::Connections("attempts that find no route (the kernel refuses on_release)")),
];

#[test]
fn a_hook_that_the_kernel_refuses_is_missed_in_exactly_its_words() {
    if !met("refused hooks", REQUIREMENTS) {
        return;
    }
    let mut place = Place::new();
    let agent = place.agent(None);
    let whole = described(&agent);
    let (grade, whole_scope) = facet(&whole, Facet::Connections);
    assert_eq!(grade, Grade::Complete);
    assert!(agent.running.stop().success());
    let calls = fs::read_to_string(place.calls()).unwrap();

    for (program, lack) in OPTIONAL {
        let inject = format!("error=EINVAL:when={}", attached_by(&calls, program));
        let agent = place.agent(Some(&inject));
        let source = described(&agent);
        let (grade, scope) = facet(&source, Facet::Connections);
        assert_eq!((&source.name, &scope.covers), (&whole.name, &whole_scope.covers), "{program}");
        let is_whole = match lack {
            Lack::Words(words) => {
                assert_eq!(scope.cannot_see, format!("{}; {words}", whole_scope.cannot_see), "{program}");
                assert_eq!(grade, Grade::Complete, "{program}");
                assert_eq!(facet(&source, Facet::Names), facet(&whole, Facet::Names), "{program}");
                true
            }
            Lack::Connections(words) => {
                let reason = format!("this kernel does not show {words}");
                assert_eq!(grade, Grade::Lost { count: 0, reason }, "{program}");
                assert_eq!(scope.cannot_see, whole_scope.cannot_see, "{program}");
                // Others listen for names, and say so.
                assert_ne!(facet(&source, Facet::Names).1, facet(&whole, Facet::Names).1, "{program}");
                false
            }
        };
        assert_eq!(facet(&source, Facet::Processes), facet(&whole, Facet::Processes), "{program}");

        let mut tail = Tail::open(&agent.address).unwrap();
        let (from, to) = (now(), now().saturating_add(Duration::from_millis(100)));
        tail.until_known(to).unwrap();
        let (verdict, gaps) = verdict(&agent.data, from, to);
        if is_whole {
            assert_eq!((verdict.as_str(), gaps), ("clear", vec![]), "{program}");
        } else {
            assert_eq!(verdict, "unknown", "{program}");
            assert!(gaps[0]["reason"].as_str().unwrap().contains("does not show"), "{program}: {gaps:?}");
        }
        assert!(agent.running.stop().success());
    }
}

#[test]
fn a_hook_that_the_source_cannot_do_without_is_named_when_it_is_refused() {
    if !met("refused hooks", REQUIREMENTS) {
        return;
    }
    let mut place = Place::new();
    let agent = place.agent(None);
    described(&agent);
    assert!(agent.running.stop().success());
    let calls = fs::read_to_string(place.calls()).unwrap();
    for program in ["on_fork", "on_exec", "on_exit", "on_state"] {
        let inject = format!("error=EINVAL:when={}", attached_by(&calls, program));
        let (data, listen) = place.next();
        let mut command = place.traced(Some(&inject));
        let output =
            outcome(command.args(["run", "--source", "ebpf", "--listen", &listen, "--data"]).arg(&data));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{program}: {said}");
        assert!(
            said.contains(&format!("the kernel refuses {program} of the BPF probe")),
            "{program}: {said}"
        );
        assert!(!data.exists(), "a refusal leaves nothing behind");
    }
}

/// What is told of the coverage of connections after `from`.
fn changes(tail: &Tail, from: Timestamp) -> Vec<&CoverageChange> {
    let changes = tail.events.iter().filter(|event| event.recorded.wall >= from).filter_map(|event| {
        match &event.kind {
            EventKind::CoverageChanged(change) if change.facet == Facet::Connections => Some(change),
            _ => None,
        }
    });
    changes.collect()
}

/// Waits for a change, longer than for anything else: the canary flies once a minute.
fn await_change(tail: &mut Tail, from: Timestamp, is_it: fn(&Grade) -> bool) -> CoverageChange {
    let deadline = from.saturating_add(Duration::from_secs(90));
    loop {
        if let Some(change) = changes(tail, from).into_iter().rfind(|change| is_it(&change.grade)) {
            return change.clone();
        }
        assert!(now() < deadline, "no such change of coverage: {:#?}", changes(tail, from));
        tail.until_known(now()).unwrap();
    }
}

/// The agent's own connection, of which the source then sees nothing, comes to nothing: to the agent it is as if the probe
/// had been made deaf.
#[test]
fn a_source_that_does_not_see_the_canary_is_not_believed_until_it_does() {
    if !met("a deaf source", REQUIREMENTS) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("agent");
    let listen = format!("unix:{}.sock", data.display());
    let agent = Agent::start_with(Command::new(&programs().agent), &data, &listen, &["--source", "ebpf"]);
    let mut tail = Tail::open(&agent.address).unwrap();
    // Once it answers, its first look need not be over.
    tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();
    let began = now();
    tail.until_known(began.saturating_add(Duration::from_secs(3))).unwrap();
    let (first, gaps) = verdict(&data, began, began.saturating_add(Duration::from_secs(2)));
    assert_eq!(first, "clear", "{gaps:?}");

    let pid = agent.running.pid().to_string();
    let mut command = Command::new("strace");
    command.args(["-f", "-p", &pid, "-e", "trace=connect", "-e", "inject=connect:retval=0"]);
    let deafened = now();
    let between = Running::start("strace", &mut command);
    between.line_with("attached", 0);
    let missed = await_change(&mut tail, deafened, |grade| matches!(grade, Grade::NotRecorded { .. }));
    let Grade::NotRecorded { reason } = &missed.grade else { panic!("{missed:?}") };
    assert!(reason.contains("canary"), "{reason}");
    assert!(missed.from <= deafened, "everything since one was seen last: {missed:?}");
    assert_eq!(missed.to, None);
    let later = now();
    tail.until_known(later).unwrap();
    for (from, to) in [(deafened, later), (missed.from, missed.from.saturating_add(Duration::from_secs(1)))] {
        let (verdict, gaps) = verdict(&data, from, to);
        assert_eq!(verdict, "unknown");
        assert!(gaps[0]["reason"].as_str().unwrap().contains("canary"), "{gaps:?}");
    }

    between.stop();
    let heard = now();
    let again = await_change(&mut tail, heard, |grade| *grade == Grade::Complete);
    assert!(again.from >= heard && again.scope.is_some(), "{again:?}");
    let end = again.from.saturating_add(Duration::from_secs(2));
    tail.until_known(end).unwrap();
    assert_eq!(verdict(&data, again.from, end).0, "clear");
    assert_eq!(verdict(&data, heard, end).0, "unknown", "the time in between is not made good");
    assert!(agent.running.stop().success());
}

/// The ids of the links by which a process has programs attached to control groups, of these attach types
/// (enum bpf_attach_type).
fn links(pid: u32, attach_types: &[u32]) -> Vec<u32> {
    let number = |text: &str, name: &str| -> Option<u32> {
        text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    texts
        .filter(|text| text.contains("link_type:\tcgroup"))
        .filter(|text| number(text, "attach_type:").is_some_and(|kind| attach_types.contains(&kind)))
        .filter_map(|text| number(&text, "link_id:"))
        .collect()
}

/// Detaches a program for good, though whoever attached it still holds its link.
#[expect(unsafe_code, reason = "no safe crate detaches a link that is another's")]
fn detach(link: u32) {
    const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let bpf = |command: libc::c_int, attributes: [u32; 4]| {
        // SAFETY: the kernel reads so many bytes from `attributes`, which live until it returns.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
        assert!(result >= 0, "{command}: {}", std::io::Error::last_os_error());
        u32::try_from(result).unwrap()
    };
    let descriptor = bpf(BPF_LINK_GET_FD_BY_ID, [link, 0, 0, 0]);
    bpf(BPF_LINK_DETACH, [descriptor, 0, 0, 0]);
    // SAFETY: the kernel has made this descriptor for us alone, and nobody else uses it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) });
}

/// The hooks that see datagrams are others than those that see TCP connections.
#[test]
fn hooks_that_are_taken_away_are_noticed() {
    if !met("hooks taken away", &[Requirement::Bpf]) {
        return;
    }
    const CGROUP_INET_INGRESS: u32 = 0;
    const CGROUP_INET_EGRESS: u32 = 1;
    let directory = tempfile::tempdir().unwrap();
    let agents: Vec<(Agent, u32)> = [CGROUP_INET_INGRESS, CGROUP_INET_EGRESS]
        .into_iter()
        .map(|attach_type| {
            let data = directory.path().join(attach_type.to_string());
            let listen = format!("unix:{}.sock", data.display());
            let program = Command::new(&programs().agent);
            (Agent::start_with(program, &data, &listen, &["--source", "ebpf"]), attach_type)
        })
        .collect();
    let mut deaf = Vec::new();
    for (agent, attach_type) in &agents {
        let mut tail = Tail::open(&agent.address).unwrap();
        let began = now();
        tail.until_known(began.saturating_add(Duration::from_secs(3))).unwrap();
        assert_eq!(verdict(&agent.data, began, began.saturating_add(Duration::from_secs(2))).0, "clear");
        let links = links(agent.running.pid(), &[*attach_type]);
        assert_eq!(links.len(), 1, "{links:?}");
        deaf.push(now());
        links.into_iter().for_each(detach);
    }
    for ((agent, attach_type), deafened) in agents.into_iter().zip(deaf) {
        // Anew, since a stream that nobody reads for a minute is ended.
        let mut tail = Tail::open(&agent.address).unwrap();
        let missed = await_change(&mut tail, deafened, |grade| matches!(grade, Grade::NotRecorded { .. }));
        assert!(missed.from <= deafened && missed.to.is_none(), "{attach_type}: {missed:?}");
        let later = now();
        tail.until_known(later).unwrap();
        let (verdict, gaps) = verdict(&agent.data, deafened, later);
        assert_eq!(verdict, "unknown", "{attach_type}");
        assert!(gaps[0]["reason"].as_str().unwrap().contains("canary"), "{attach_type}: {gaps:?}");
        assert!(agent.running.stop().success());
    }
}
