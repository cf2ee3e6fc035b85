//! One identity in two places, at once and one after the other, and a record that was set back.

use std::{fs, path::Path, process::Command};

use alibi_lab::{
    programs::programs,
    system::{Agent, Collector, now, outcome},
};
use alibi_proto::time::Timestamp;
use serde_json::Value;

use crate::scene::{Scene, TARGET, host, id, known_until};

const WORDS: [&str; 2] = ["--source", "poll"];
const COPIED: &str = "this host's identity is in two places";

/// Copies a data directory as whoever has stolen a disk does, or a backup; what is no file is left out.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Everything up to now is known of a host; when that was.
fn await_now(scene: &Scene, data: &Path) -> Timestamp {
    let instant = now();
    scene.host_until(id(data), |host| known_until(host) >= instant);
    instant
}

#[test]
fn a_copy_beside_the_original_is_refused_and_becomes_a_host_of_its_own() {
    let scene = Scene::new();
    let (original, data) = (&scene.honest, scene.path("copy"));
    copy(&original.data, &data);
    let twin = Agent::start_calling(&data, &WORDS);
    let (refused, next) = twin.running.line_with("the collector refuses this host", 0);
    assert!(refused.contains(COPIED) && refused.contains("alibi-agent enroll --reset"), "{refused}");
    // Both are named: by machine, address and time, as far as that tells two on one machine apart.
    let places = |text: &str| text.matches(" at 127.0.0.1:").count();
    assert_eq!(places(&refused), 2, "{refused}");
    let shown = scene.host_until(scene.honest_id(), |host| host["enrolment"]["copied"].is_string());
    let copied = shown["enrolment"]["copied"].as_str().unwrap();
    assert!(copied.contains(COPIED) && places(copied) == 2, "{copied}");
    assert_eq!(shown["connected"], true, "{shown:#}");
    let table = scene.collector.said(&["hosts"]);
    assert!(table.split_whitespace().collect::<Vec<_>>().join(" ").contains("identity is in two"), "{table}");
    scene.others_are_served("a copy has come, and the original is the other");
    // However often it calls, the audit log tells it once, and counts.
    let (_, next) = twin.running.line_with("the collector refuses this host", next);
    twin.running.line_with("the collector refuses this host", next);
    let audit = scene.audit(&["--host", &scene.honest_id().to_string()]);
    let calls: Vec<_> = audit.iter().filter(|entry| entry["action"] == "call home").collect();
    let [call] = calls[..] else { panic!("{calls:#?}") };
    assert_eq!((&call["who"], &call["role"]), (&scene.honest_id().to_string().into(), &"host".into()));
    assert_eq!(places(call["detail"].as_str().unwrap()), 2, "{call:#}");

    // It is mended where it is, with nothing lost: what it had recorded is put aside, and is not said to be its own.
    let token = scene.collector.token(1);
    let reset =
        || outcome(Command::new(&programs().agent).args(["enroll", "--reset", &token, "--data"]).arg(&data));
    let running = reset();
    let said = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(running.status.code() == Some(2) && said.contains("stop it first"), "{said}");
    assert!(twin.running.stop().success());
    let done = reset();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_ne!(id(&data), scene.honest_id());
    assert!(data.join(format!("ring-of-{}", scene.honest_id())).is_dir());
    let _mended = Agent::start_calling(&data, &WORDS);
    await_now(&scene, &data);
    assert_eq!(scene.host(id(&data))["chain"]["state"], "whole");
    // The mark stays until an admin takes it away.
    let copied = || scene.host(scene.honest_id())["enrolment"]["copied"].clone();
    assert!(copied().is_string());
    scene.collector.said(&["host", "unmark", &scene.honest_id().to_string()]);
    assert!(copied().is_null());
    scene.others_are_served("the copy is a host of its own");
}

/// They are never there at once: the leases tell, and the chain does.
#[test]
fn a_copy_that_takes_turns_with_the_original_is_found_out() {
    let scene = Scene::new();
    let (data, twin) = (scene.path("original"), scene.path("twin"));
    Agent::enrol(&data, &scene.collector.token(1));
    let agent = Agent::start_calling(&data, &WORDS);
    await_now(&scene, &data);
    assert!(agent.running.stop().success());
    copy(&data, &twin);

    // The copy goes on where the original was; nobody can know yet.
    let agent = Agent::start_calling(&twin, &WORDS);
    await_now(&scene, &twin);
    assert!(agent.running.stop().success());
    assert_eq!(scene.host(id(&data))["chain"]["state"], "whole");

    // The original comes back, and looks as a host that was restored from a copy: its record is not what was told.
    let agent = Agent::start_calling(&data, &WORDS);
    scene.collector.running.line_with("a host was restored from an older copy of itself", 0);
    await_now(&scene, &data);
    assert_eq!(scene.host(id(&data))["chain"]["state"], "broken");
    assert!(agent.running.stop().success());

    // What was restored away comes back: so it was not.
    let agent = Agent::start_calling(&twin, &WORDS);
    let (refused, _) = agent.running.line_with("the collector refuses this host", 0);
    assert!(refused.contains(COPIED), "{refused}");
    let shown = scene.host_until(id(&data), |host| host["enrolment"]["copied"].is_string());
    assert_eq!(shown["connected"], false, "{shown:#}");
    drop(agent);
    // Who has the newest lease is let in, marked as it is.
    let _original = Agent::start_calling(&data, &WORDS);
    await_now(&scene, &data);
    scene.others_are_served("two hosts were one");
}

/// The gaps of a host's connections because its record was rewound.
fn rewound(
    collector: &Collector,
    data: &Path,
    from: Timestamp,
    to: Timestamp,
) -> Vec<(Timestamp, Timestamp)> {
    let (host, from, to) = (id(data).to_string(), from.to_string(), to.to_string());
    let (_, answer) = collector.json(&["who", TARGET, "--host", &host, "--from", &from, "--to", &to]);
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    let time = |gap: &Value, end: &str| serde_json::from_value(gap[end].clone()).unwrap();
    let of_reason = gaps.iter().filter(|gap| gap["reason"].as_str().unwrap().contains("it was rewound"));
    of_reason.map(|gap| (time(gap, "from"), time(gap, "to"))).collect()
}

#[test]
fn a_host_whose_record_is_set_back_proves_nothing_of_what_it_forgot() {
    let scene = Scene::new();
    let (data, kept) = (scene.path("rewound"), scene.path("kept"));
    Agent::enrol(&data, &scene.collector.token(1));
    let agent = Agent::start_calling(&data, &WORDS);
    let before = await_now(&scene, &data);
    assert!(agent.running.stop().success());
    copy(&data, &kept);

    let agent = Agent::start_calling(&data, &WORDS);
    let first = await_now(&scene, &data);
    let last = await_now(&scene, &data);
    assert_eq!(scene.host(id(&data))["chain"]["state"], "whole");
    assert!(rewound(&scene.collector, &data, before, last).is_empty());
    assert!(agent.running.stop().success());
    // Record and lease are what they were then.
    copy(&kept, &data);

    let agent = Agent::start_calling(&data, &WORDS);
    agent.running.line_with("a follower knows another past of this ring", 0);
    scene.collector.running.line_with("a host was restored from an older copy of itself", 0);
    scene.collector.running.line_with("the chain of a host is broken", 0);
    let restored = await_now(&scene, &data);
    let shown = scene.host(id(&data));
    assert_eq!(shown["chain"]["state"], "broken", "{shown:#}");
    let gaps = rewound(&scene.collector, &data, before, restored);
    assert!(gaps.iter().any(|(from, to)| *from <= first && *to >= last), "{gaps:?}");
    assert!(shown["enrolment"]["copied"].is_null(), "a restored disk is no copy: {shown:#}");
    assert!(
        host(&scene.collector.json(&["hosts"]).1, scene.honest_id()).unwrap()["chain"]["state"] == "whole"
    );
    scene.others_are_served("a host was set back");
}
