//! Words that are meant to be more than words: paths in names, and what steers a terminal or a page. They are refused, or
//! they are shown as text.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Running, now, outcome},
};
use alibi_proto::{
    id::HostId,
    tls,
    token::Token,
    transport::channel_over,
    wire::{self, enrolment_client::EnrolmentClient},
};
use serde_json::Value;
use tonic::{Code, Status};

use crate::{
    attacker::{ELSEWHERE, Hello, Line, attack, bearer, enter},
    false_agent::{Answer, FalseAgent, batch, flow, framed},
    scene::{Scene, TARGET},
};

/// Sets the window's title, clears the screen, reddens, goes back to the line's beginning, writes from right to left, and is
/// a page's script.
const HOSTILE: &str = "a\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\r\n\u{202e}txt.exe\u{2066}\u{7f}\u{85}<script>alert(1)</script>&\"'";
/// The same as a name of a file.
const HOSTILE_FILE: &str = "a\u{1b}]0;owned\u{7}\u{9b}31m\r\n\u{202e}txt.exe<script>alert(1)&\"'";
/// The same as a name of a host, which may have 64 bytes.
const HOSTILE_HOST: &str = "h\u{1b}[2J\u{9b}31m\r\u{202e}<script>alert(1)</script>../../x";

/// The bounds of files that data directories have, whatever happens.
fn files_below(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.path().display().to_string();
        // SQLite's own beside a database come and go.
        if !["-wal", "-shm", "-journal"].iter().any(|end| name.ends_with(end)) {
            if entry.file_type().unwrap().is_dir() {
                names.extend(files_below(&entry.path()));
            }
            names.insert(name);
        }
    }
    names
}

#[test]
fn a_path_in_a_name_leads_nowhere() {
    let scene = Scene::new();
    let admin = scene.analyst_token("admin", "root");
    let enrolment: Token = scene.collector.token(100).parse().unwrap();
    let outside = format!("alibi-attack-{}", std::process::id());
    let paths = [
        format!("../../{outside}"),
        format!("../{outside}"),
        format!("/tmp/{outside}"),
        format!("..\\..\\{outside}"),
        format!("{outside}\0.txt"),
        "C:\\CON".into(),
        "..".into(),
        ".".into(),
        "%2e%2e%2f".into(),
        "x".repeat(10_000),
        "jd\u{43e}e".into(),
        "\u{202e}eodj".into(),
        HOSTILE.into(),
    ];
    let scope = scene.path("");
    let before = files_below(&scope);
    attack(async {
        let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
        for name in &paths {
            let named = wire::CreateAnalystTokenRequest {
                name: name.clone(),
                role: wire::Role::Viewer.into(),
                lifetime_ns: 1_000_000_000,
            };
            let status =
                line.call("/alibi.v1.Analyst/CreateAnalystToken", bearer(&admin.secret), &named).await;
            let is_word = name == "." || name == "..";
            assert_eq!(
                status.code(),
                if is_word { Code::Ok } else { Code::InvalidArgument },
                "{name}: {status:?}"
            );
            assert!(is_word || status.message().contains("cannot be an analyst's name"), "{status:?}");
            let tagged = wire::CreateEnrolmentTokenRequest {
                uses: 1,
                lifetime_ns: 1_000_000_000,
                tags: vec![name.clone()],
            };
            let status =
                line.call("/alibi.v1.Analyst/CreateEnrolmentToken", bearer(&admin.secret), &tagged).await;
            // A tag is text, and is never more; what cannot be seen in it is refused.
            let is_seen = name.len() < 64 && name.chars().all(|c| !c.is_control() && c != '\u{202e}');
            assert_eq!(
                status.code(),
                if is_seen { Code::Ok } else { Code::InvalidArgument },
                "{name}: {status:?}"
            );
        }
    });
    for (name, number) in paths.iter().zip(1..) {
        let key = tls::make_key().unwrap();
        let request = wire::EnrolHostRequest {
            secret: enrolment.secret.to_vec(),
            certificate_request: tls::certificate_request(&key).unwrap(),
            host: vec![number; 16],
            name: name.clone(),
        };
        attack(async {
            let stream = enter(ELSEWHERE, scene.address(), &Hello::new(tls::ENROL, None)).await.unwrap();
            EnrolmentClient::new(channel_over(stream).await.unwrap()).enrol_host(request).await.unwrap();
        });
        let shown = scene.host(HostId::from_bytes([number; 16]));
        let known: String = name.chars().take(255).collect();
        assert_eq!(shown["enrolment"]["name"], known, "as it was, if not as long");
    }
    for path in [&paths[0], &paths[1], HOSTILE, &"x".repeat(10_000)] {
        for words in [
            &["who", path, "--last", "1m"][..],
            &["who", TARGET, "--last", "1m", "--host", path],
            &["process", path],
            &["host", "verify", path],
            &["host", "revoke", path],
            &["host", "remove", path],
            &["hosts", "--user", path],
            &["audit", "--host", path],
            &["ca", "retire", path],
        ] {
            let output = scene.collector.alibi(words);
            // A host that is called so may be asked about, and is not there.
            assert!(matches!(output.status.code(), Some(2 | 3)), "{words:?}: {output:?}");
            is_text(&output.stdout, &format!("{words:?}"));
            is_text(&output.stderr, &format!("{words:?}"));
            assert!(
                output.stderr.is_empty() || output.stderr.iter().filter(|byte| **byte == b'\n').count() == 1
            );
        }
    }
    assert_eq!(files_below(&scope), before, "nothing was made");
    let parent = scope.parent().unwrap();
    let is_outside = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains(&outside);
    assert!(!fs::read_dir(parent).unwrap().map_while(Result::ok).any(is_outside));
    shows_text(&scene, &["hosts"]);
    shows_text(&scene, &["token", "list"]);
    shows_text(&scene, &["audit", "--limit", "1000"]);
    scene.others_are_served("names were paths");
}

fn steers(c: char) -> bool {
    matches!(c, '\0'..='\u{9}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Nothing of it steers a terminal.
fn is_text(bytes: &[u8], what: &str) -> String {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(!text.contains(steers), "{what}: {text:?}");
    text
}

fn shown(output: &Output, what: &str) -> (String, String) {
    (is_text(&output.stdout, what), is_text(&output.stderr, what))
}

/// What these words print is text, for people and, as JSON that can be read, for programs; the latter, in which nothing is
/// lost, if it is wanted.
fn shows_text(scene: &Scene, words: &[&str]) -> (String, Value) {
    let (text, said) = shown(&scene.collector.alibi(words), &format!("{words:?}"));
    let (json, _) =
        shown(&scene.collector.alibi(&[words, &["--json"]].concat()), &format!("{words:?} --json"));
    let json = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{words:?}: {error}: {said}"));
    (text, json)
}

/// A shell that is called what no program should be, with a connection to this port.
fn hostile_process(scene: &Scene, port: u16) -> Running {
    let program = scene.path(HOSTILE_FILE);
    fs::copy("/bin/bash", &program).unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read line");
    Running::start("a hostile process", Command::new(program).args(["-c", &script, HOSTILE, HOSTILE]))
}

#[test]
fn what_a_process_is_called_is_shown_as_text() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let began = now().to_string();
    let _process = hostile_process(&scene, port);
    let (honest, port) = (scene.honest_id().to_string(), port.to_string());
    let words = ["who", "127.0.0.1", "--port", &port, "--host", &honest, "--from", &began];
    scene.collector.json_until(&words, |answer| answer["hosts"][0]["verdict"] == "talked");
    let (text, answer) = shows_text(&scene, &words);
    assert!(text.contains("<script>alert(1)&") && text.contains("a?]0;owned??[2J"), "{text}");
    let process = &answer["hosts"][0]["processes"][0];
    assert!(process["path"].as_str().unwrap().ends_with(HOSTILE_FILE), "{process:#}");
    assert_eq!(process["arguments"][3], HOSTILE, "as it was");
    let (text, shown_process) = shows_text(&scene, &["process", process["process"].as_str().unwrap()]);
    assert!(text.contains("<script>alert(1)&"), "{text}");
    assert_eq!(shown_process["arguments"], process["arguments"]);

    // The same where it was recorded.
    for more in [&[][..], &["--json"]] {
        let mut query = Command::new(&programs().agent);
        query
            .args(["query", "127.0.0.1", "--port", &port, "--from", &began, "--data"])
            .arg(&scene.honest.data);
        let (text, _) = shown(&outcome(query.args(more)), "query");
        assert!(text.contains("<script>alert(1)&"), "{text}");
    }
    scene.others_are_served("a process was called what none should be");
}

#[test]
fn what_a_host_and_a_question_say_is_shown_as_text() {
    if !met("a host with a hostile name", &[Requirement::Root]) {
        return;
    }
    let scene = Scene::new();
    let data = scene.path("named");
    let named = || {
        let mut command = Command::new("unshare");
        let script = r#"printf %s "$0" > /proc/sys/kernel/hostname && exec "$@""#;
        command.args(["--uts", "sh", "-c", script, HOSTILE_HOST]).arg(&programs().agent);
        command
    };
    let enrolled = outcome(named().args(["enroll", &scene.collector.token(1), "--data"]).arg(&data));
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let agent = Agent::start_with(named(), &data, "", &["--source", "poll"]);
    let host = crate::scene::id(&data);
    let shown_host = scene.host_until(host, |host| host["host"].is_string());
    assert_eq!(shown_host["name"], HOSTILE_HOST);
    assert_eq!(shown_host["enrolment"]["name"], HOSTILE_HOST);

    // Another one says such things wherever it can.
    let (own, stolen) = scene.stolen_host("stolen");
    let word = || HOSTILE.to_owned();
    let user = || wire::User { id: word(), name: Some(word()) };
    let image = wire::ProcessImage {
        path: Some(word()),
        name: word(),
        arguments: vec![word(); 3],
        working_directory: Some(word()),
        user: Some(user()),
        effective_user: Some(user()),
        terminal: Some(word()),
        cgroup: Some(word()),
        ..Default::default()
    };
    let uid = vec![0xab; 16];
    let started = wire::event::Kind::ProcessStarted(wire::ProcessStarted {
        uid: uid.clone(),
        pid: 1,
        started_ns: now().as_nanos(),
        image: Some(image),
        ..Default::default()
    });
    let description = wire::DescribeResponse {
        host: own.as_bytes().to_vec(),
        name: word(),
        os: "linux".into(),
        os_version: word(),
        machine_id: Some(word()),
        boot_id: word(),
        agent_version: word(),
        users: vec![wire::UserPresence { user: Some(user()), processes: 1 }],
        sources: vec![wire::Source { name: word(), facets: vec![], caveat: Some(word()) }],
        epoch: 7,
        first_seq: 1,
        next_seq: 1,
        ..Default::default()
    };
    let hostile = FalseAgent::new(own)
        .with("Describe", Answer::Done(framed(&description)))
        .with("Tail", batch(vec![started, flow(uid)]));
    attack(async {
        let home =
            async || enter(ELSEWHERE, scene.address(), &Hello::new(tls::HOME, Some(&stolen))).await.unwrap();
        let serving = tokio::spawn(hostile.serve(home().await));
        tokio::task::block_in_place(|| {
            scene.host_until(own, |host| host["events"] == 2);
            let (text, _) = shows_text(&scene, &["hosts"]);
            assert!(text.contains("<script>"), "{text}");
            let words = ["who", TARGET, "--host", &own.to_string(), "--last", "1h"];
            let (text, answer) = shows_text(&scene, &words);
            assert!(text.contains("<script>"), "{text}");
            assert_eq!(answer["hosts"][0]["name"], HOSTILE);
            shows_text(&scene, &["process", "abababab"]);
        });
        serving.abort();
        // The connection may end before its words are heard: then it is that which is told, and they are said again.
        let is_heard =
            || scene.host(own)["trouble"].as_str().is_some_and(|trouble| trouble.contains("<script>"));
        for _ in 0..8 {
            let refusing = FalseAgent::new(own).with("Tail", Answer::Failed(Status::internal(HOSTILE)));
            crate::attacker::awaited("its end", refusing.serve(home().await)).await;
            if tokio::task::block_in_place(is_heard) {
                break;
            }
        }
    });
    let trouble = scene.host(own)["trouble"].clone();
    assert!(trouble.as_str().unwrap().contains("<script>alert(1)"), "{trouble}");

    // Whoever asks such a thing gets an answer that is text, and it is noted so.
    for words in [
        &["hosts", "--host", HOSTILE][..],
        &["hosts", "--user", HOSTILE_FILE],
        &["who", HOSTILE, "--last", "1m"],
        &["who", TARGET, "--last", HOSTILE],
        &["process", HOSTILE],
        &["host", "verify", HOSTILE],
        &["host", "add", HOSTILE],
        &["host", "revoke", HOSTILE],
        &["token", "create", "--role", "viewer", "--name", HOSTILE],
        &["token", "create", "--tag", HOSTILE],
        &["login", HOSTILE],
        &["ca", "retire", HOSTILE],
        &["audit", "--host", HOSTILE],
    ] {
        let output = scene.collector.alibi(words);
        let (_, said) = shown(&output, &format!("{words:?}"));
        assert!(output.status.code() == Some(2) && !said.is_empty(), "{words:?}: {output:?}");
    }
    for words in
        [&["hosts"][..], &["audit", "--limit", "1000"], &["token", "list"], &["ca", "list"], &["whoami"]]
    {
        shows_text(&scene, words);
    }
    let (audit, _) = shows_text(&scene, &["audit", "--limit", "1000"]);
    assert!(audit.contains("enrol h?[2J?31m??<script>alert(1)</script>../../x"), "{audit}");

    // Neither do the programs' own logs do anything but be read.
    for running in [&scene.collector.running, &scene.honest.running, &agent.running] {
        running.said().iter().for_each(|line| drop(is_text(line.as_bytes(), "a log")));
    }
    scene.others_are_served("a host and an analyst said what steers");
}
