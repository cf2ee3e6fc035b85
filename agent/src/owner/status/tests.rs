use std::sync::Arc;

use alibi_proto::{
    coverage::{CoverageChange, Scope},
    host::FacetCoverage,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    enrich::redaction::{OwnRule, Redactor},
    owner::{in_words, link::State as Link},
};

const BOOT: &str = "boot";

fn at(secs: u64) -> Moment {
    Moment { wall: Timestamp::from_secs(1_764_000_000 + secs), boot_ns: secs * 1_000_000_000 }
}

fn scope(covers: &str) -> Scope {
    Scope { source: "test".into(), covers: covers.into(), cannot_see: "the rest".into() }
}

fn facts() -> Facts {
    let facet = |facet, grade| FacetCoverage { facet, grade, scope: scope("all") };
    let none = Grade::NotRecorded { reason: "it cannot".into() };
    Facts {
        host: HostId::from_bytes([1; 16]),
        name: "laptop-a".into(),
        boot_id: BOOT.into(),
        pid: 7,
        process_start: Some(70),
        started: at(100).wall,
        serves: Some("127.0.0.1:8441".into()),
        source: SourceDescription {
            name: "test".into(),
            facets: vec![
                facet(Facet::Processes, Grade::Complete),
                facet(Facet::Connections, Grade::Sampled { period: Duration::from_secs(1) }),
                facet(Facet::Names, none),
            ],
            caveat: None,
        },
        period: Duration::from_secs(1),
        ring_bytes_max: 256 << 20,
        own_rules: vec!["--corp-pin".into()],
    }
}

/// All that changes, to be changed by a test.
#[derive(Clone, Default)]
struct State {
    progress: Progress,
    link: CollectorStatus,
    asked: Told,
    ring: RingRoom,
    ended: Option<&'static str>,
}

impl State {
    fn status(&self, now: Moment) -> Status {
        let Self { progress, link, asked, ring, ended } = self;
        Status::of(&facts(), &Now { now, progress, ring: *ring, link, asked, ended: *ended })
    }
}

fn well() -> State {
    let (looked, watermark) = (at(199), Some(at(199).wall));
    State {
        progress: Progress { looked, heard: looked, watermark, ..Progress::default() },
        ..State::default()
    }
}

fn said(facet: Facet, grade: Grade, scope: Option<Scope>) -> CoverageChange {
    CoverageChange { facet, grade, from: at(150).wall, to: None, scope, announced_from: None }
}

fn busy() -> State {
    let own: OwnRule = "--corp-pin".parse().unwrap();
    let mut redactor = Redactor::new(vec![own]).unwrap();
    redactor.redact(&mut ["app", "--corp-pin", "1", "--password", "2"].map(str::to_owned));
    redactor.redact(&mut ["mysql", "-p3"].map(str::to_owned));
    let entry = |seq: u64| Entry {
        collector: "c:1".into(),
        seq,
        at: at(190 + seq).wall,
        who: format!("analyst-{seq}\u{1b}[2J"),
        role: "analyst".into(),
        action: "who".into(),
    };
    let doubtful = Grade::Doubtful { reason: "a question went by another way".into() };
    let grades = [
        said(Facet::Processes, Grade::Complete, Some(scope("all, and as it says now"))),
        said(Facet::Names, doubtful, None),
    ];
    let well = well();
    State {
        progress: Progress { grades: grades.into(), redactions: redactor.redactions(), ..well.progress },
        link: CollectorStatus {
            state: Link::Connected { collector: "collector.example:8443".into(), since: at(120).wall },
            certificate_until: Some(at(86_400).wall),
        },
        asked: Told { total: 30, newest: [entry(9), entry(4)].into() },
        ring: RingRoom { bytes: 3 << 20, oldest: Some(at(20).wall) },
        ended: None,
    }
}

#[test]
fn what_is_told_is_read_again() {
    for state in [State::default(), well(), busy(), State { ended: Some("it was stopped"), ..busy() }] {
        let status = state.status(at(200));
        let text = serde_json::to_vec_pretty(&status).unwrap();
        assert_eq!(Status::parse(&text).unwrap(), status);
    }
    assert!(Status::parse(b"{").is_err());
    assert!(Status::parse(b"{\"format\": 1}").is_err());
    let newer = Status::parse(b"{\"format\": 2, \"anything\": 1}").unwrap_err().to_string();
    assert!(newer.contains("format 2") && newer.contains("up to 1"), "{newer}");
}

#[test]
fn programs_are_told_by_these_names() {
    let value = serde_json::to_value(busy().status(at(200))).unwrap();
    assert_eq!(value["host"]["name"], "laptop-a");
    assert_eq!(value["agent"]["ended"], Value::Null);
    let processes = json!({
        "facet": "processes", "grade": "complete", "reason": "", "source": "test",
        "covers": "all, and as it says now", "cannot_see": "the rest"
    });
    assert_eq!(value["facets"][0], processes);
    assert_eq!(value["facets"][1]["grade"], "sampled");
    assert_eq!(value["facets"][2]["reason"], "a question went by another way");
    assert_eq!(value["facets"][2]["covers"], "all", "as it was described");
    assert_eq!(value["ring"], json!({"bytes": 3 << 20, "bytes_max": 256 << 20, "oldest": at(20).wall}));
    assert_eq!(value["recorded_until"], json!(at(199).wall));
    let collector = json!({
        "state": "connected", "collector": "collector.example:8443",
        "since": at(120).wall, "certificate_until": at(86_400).wall
    });
    assert_eq!(value["collector"], collector);
    assert_eq!(value["redacted"]["total"], 3);
    let count = |rule: &str, own: bool, count: u64| json!({"rule": rule, "own": own, "count": count});
    let by_rule = value["redacted"]["by_rule"].as_array().unwrap();
    assert_eq!(by_rule.len(), Rule::ALL.len() + 1, "those that have hidden nothing, too");
    for wanted in [
        count("secret-option", false, 1),
        count("program-habit", false, 1),
        count("header", false, 0),
        count("--corp-pin", true, 1),
    ] {
        assert!(by_rule.contains(&wanted), "{wanted} {by_rule:#?}");
    }
    assert_eq!(value["asked"]["total"], 30);
    assert_eq!(value["asked"]["newest"][0]["seq"], 9);
    let kinds: Vec<_> =
        value["collected"].as_array().unwrap().iter().map(|kind| kind["what"].clone()).collect();
    assert_eq!(kinds, ["processes", "connections", "names", "executables", "links", "host"]);
    let default = serde_json::to_value(State::default().status(at(200))).unwrap();
    assert_eq!(default["collector"], json!({"state": "not_enrolled", "certificate_until": null}));
    let kinds = default["collected"].as_array().unwrap().iter().map(|kind| kind["what"].clone());
    assert!(!kinds.collect::<Vec<_>>().contains(&json!("names")), "they are not recorded");
}

#[test]
fn a_person_reads_it_and_nothing_steers_the_terminal() {
    let status = busy().status(at(200));
    let words = in_words(&status, at(210).wall, None);
    for wanted in [
        "laptop-a  host 01010101-0101-0101-0101-010101010101, alibi-agent ",
        "running since 2025-11-24T16:01:40.000Z (110 s ago), pid 7\n",
        "as of 2025-11-24T16:03:20.000Z (10 s ago)\n",
        "\nRecording by test\n  processes complete\n    covers: all, and as it says now\n    cannot see: the rest\n",
        "  names doubtful: a question went by another way\n",
        "  kept on this machine: since 2025-11-24T16:00:20.000Z (3 min ago), 3.0 MiB of at most 256.0 MiB\n",
        "  recorded until 2025-11-24T16:03:19.000Z (11 s ago)\n",
        "  collector: connected to collector.example:8443 since 2025-11-24T16:02:00.000Z (90 s ago)\n",
        "  certificate valid until 2025-11-25T16:00:00.000Z (in 23 h 56 min)\n",
        "\nWhat is collected\n  processes: of each program",
        "  never: what is in files\n",
        "\nSecrets redacted in arguments since 2025-11-24T16:01:40.000Z: 3\n",
        "  1 by secret-option\n  1 by program-habit\n  1 by --corp-pin (added here)\n",
        "\nWho asked about this host: 2 of 30 in all\n",
        "  2025-11-24T16:03:19.000Z (11 s ago)  analyst-9?[2J (analyst)  who\n",
    ] {
        assert!(words.contains(wanted), "no `{wanted}` in:\n{words}");
    }
    assert!(!words.contains("TROUBLE") && !words.contains("header"), "{words}");
    let gone = in_words(&status, at(210).wall, Some("it has told nothing for 900 s"));
    assert!(gone.contains("\nnot running: it has told nothing for 900 s\n"), "{gone}");
}

#[test]
fn what_is_not_as_it_should_be_is_trouble() {
    let check = |change: &dyn Fn(&mut State), wanted: &[&str]| {
        let mut state = well();
        change(&mut state);
        let status = state.status(at(200));
        assert_eq!(status.trouble, wanted);
        assert_eq!(status.is_in_trouble(), !wanted.is_empty());
        let words = in_words(&status, at(200).wall, None);
        assert!(wanted.iter().all(|wanted| words.contains(&format!("TROUBLE  {wanted}\n"))), "{words}");
    };
    let grade = |facet, grade: Grade| {
        move |state: &mut State| state.progress.grades = [said(facet, grade.clone(), None)].into()
    };
    let sampled = |secs| Grade::Sampled { period: Duration::from_secs(secs) };
    let blind = || Grade::NotRecorded { reason: "canary".into() };
    check(&|_| {}, &[]);
    check(&grade(Facet::Processes, Grade::Complete), &[]);
    check(&grade(Facet::Connections, sampled(1)), &[]);
    check(&grade(Facet::Connections, Grade::Complete), &[]);
    check(&grade(Facet::Names, blind()), &[]);
    check(&grade(Facet::Processes, blind()), &["processes are none, and should be complete: canary"]);
    check(&grade(Facet::Connections, blind()), &["connections are none, and should be sampled: canary"]);
    let full = |state: &mut State| state.progress.trouble = Some(Arc::from("no space"));
    check(&full, &["nothing can be written to the disk: no space"]);
    let silent = |state: &mut State| state.progress.heard = at(130);
    check(&silent, &["nothing was recorded since 2025-11-24T16:02:10Z: the source is silent"]);
    check(&|state| state.progress.heard = at(150), &[]);
    check(&|state| state.progress.heard = Moment::default(), &[]);
    let link = |link: Link| move |state: &mut State| state.link.state = link.clone();
    let (collector, reason) = (|| "c:1".to_owned(), || "why".to_owned());
    check(&link(Link::Connected { collector: collector(), since: at(1).wall }), &[]);
    let not_connected = link(Link::NotConnected { collector: collector(), reason: reason() });
    check(&not_connected, &["not connected to c:1: why"]);
    let refused = link(Link::Refused { collector: collector(), reason: reason() });
    check(&refused, &["refused by c:1: why"]);
    let ended = |state: &mut State| state.link.certificate_until = Some(at(200).wall);
    check(&ended, &["the certificate of this host was valid until 2025-11-24T16:03:20Z"]);
    check(&|state| state.link.certificate_until = Some(at(201).wall), &[]);
}

#[test]
fn an_agent_runs_as_long_as_it_says_so() {
    let check = |state: &State, now: Moment, boot: &str, has_ended: bool, wanted: Option<&str>| {
        let status = state.status(at(200));
        let told = status.why_not_running(now, boot, |pid, start| {
            assert_eq!((pid, start), (7, 70));
            has_ended
        });
        assert_eq!(told.as_deref(), wanted);
    };
    let killed = Some("it ended without saying so (crash, kill or power loss)");
    check(&well(), at(201), BOOT, false, None);
    check(&well(), at(350), BOOT, false, None);
    check(&well(), at(351), BOOT, false, Some("it has told nothing for 151 s"));
    check(&well(), at(201), BOOT, true, killed);
    let stopped = State { ended: Some("it was stopped"), ..well() };
    check(&stopped, at(201), BOOT, false, Some("it ended at 2025-11-24T16:03:20Z: it was stopped"));
    // The wall clock was set, which changes no age.
    let set_back = Moment { wall: at(0).wall, ..at(400) };
    check(&well(), set_back, BOOT, false, Some("it has told nothing for 200 s"));
    check(&well(), Moment { wall: at(9_000).wall, ..at(201) }, BOOT, false, None);
    // Another boot: another clock, other processes.
    let rebooted = Moment { boot_ns: 5, ..at(9_000) };
    check(&well(), rebooted, "another", true, Some("it has told nothing for 8800 s"));
}

#[test]
fn only_what_lasts_is_news() {
    let first = busy().status(at(200));
    let mut later = busy();
    later.progress.watermark = Some(at(260).wall);
    later.ring.bytes += 1;
    assert!(later.status(at(260)).says_the_same(&first));
    for change in [
        (|state: &mut State| state.asked.total += 1) as fn(&mut State),
        |state| state.progress.redactions = Redactions::default(),
        |state| state.link = CollectorStatus::default(),
        |state| state.progress.grades = [].into(),
        |state| state.progress.watermark = None,
        |state| state.progress.trouble = Some("full".into()),
        |state| state.ended = Some("it was stopped"),
    ] {
        let mut other = busy();
        change(&mut other);
        assert!(!other.status(at(201)).says_the_same(&first));
    }
}
