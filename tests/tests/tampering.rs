//! A record that was rewound, written anew or changed on the host is found out, and proves nothing.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{fs, path::Path};

use alibi_lab::system::{Agent, Collector, now};
use alibi_proto::time::Timestamp;
use serde_json::Value;

const REWOUND: &str = "it was rewound";

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn known_until(hosts: &Value) -> Timestamp {
    serde_json::from_value(hosts["hosts"][0]["known_until"].clone()).unwrap_or_default()
}

/// Waits until everything up to this instant is known.
fn await_now(collector: &Collector) -> Timestamp {
    let instant = now();
    collector.json_until(&["hosts"], |hosts| known_until(hosts) >= instant);
    instant
}

fn chain(hosts: &Value) -> &Value {
    &hosts["hosts"][0]["chain"]
}

/// The gaps of connections because the record was rewound.
fn rewound(collector: &Collector, from: Timestamp, to: Timestamp) -> Vec<(Timestamp, Timestamp)> {
    let (status, answer) =
        collector.json(&["who", "203.0.113.99", "--from", &from.to_string(), "--to", &to.to_string()]);
    assert_eq!(status, 3, "polling proves nothing: {answer:#}");
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    let time = |gap: &Value, end: &str| serde_json::from_value(gap[end].clone()).unwrap();
    let of_reason = gaps.iter().filter(|gap| gap["reason"].as_str().unwrap().contains(REWOUND));
    of_reason.map(|gap| (time(gap, "from"), time(gap, "to"))).collect()
}

#[test]
fn a_ring_that_was_restored_from_a_copy_is_shown_and_proves_nothing_of_what_it_forgot() {
    let directory = tempfile::tempdir().unwrap();
    let (data, kept) = (directory.path().join("agent"), directory.path().join("copy"));
    let collector = Collector::start(&directory.path().join("collector"));
    let words = ["--source", "poll"];
    let agent = Agent::start(&data, &words);
    collector.follow(&agent.address);
    let before_copy = await_now(&collector);
    let address = agent.address.clone();
    assert!(agent.running.stop().success());
    copy(&data, &kept);

    // What is told from here on is forgotten by the copy.
    let agent = Agent::start_again(&data, &address, &words);
    let first = await_now(&collector);
    let last = await_now(&collector);
    let hosts = collector.json_until(&["hosts"], |hosts| chain(hosts)["state"] == "whole");
    assert!(chain(&hosts)["seq"].as_u64().unwrap() > 0 && rewound(&collector, before_copy, last).is_empty());
    let (status, verified) = collector.json(&["host", "verify", &address]);
    assert_eq!((status, verified["holds"].as_bool()), (0, Some(true)), "{verified:#}");
    assert!(verified["anchors"].as_u64().unwrap() > 0, "{verified:#}");
    assert!(agent.running.stop().success());
    copy(&kept, &data);

    let agent = Agent::start_again(&data, &address, &words);
    let hosts = collector.json_until(&["hosts"], |hosts| chain(hosts)["state"] == "broken");
    let broken = &chain(&hosts)["breaks"][0];
    assert!(broken["reason"].as_str().unwrap().contains(REWOUND), "{hosts:#}");
    agent.running.line_with("a follower knows another past of this ring", 0);
    let restored = await_now(&collector);
    let gaps = rewound(&collector, before_copy, restored);
    assert!(gaps.iter().any(|(from, to)| *from <= first && *to >= last), "{gaps:?}");
    // It goes on, once it is heard: nobody has to mend it.
    let later = await_now(&collector);
    let after = await_now(&collector);
    assert!(rewound(&collector, later, after).is_empty());
    let table = String::from_utf8(collector.alibi(&["hosts"]).stdout).unwrap();
    assert!(table.contains("rewritten"), "{table}");
    let (status, verified) = collector.json(&["host", "verify", &address]);
    assert_eq!(status, 0, "what it tells now is what it has: {verified:#}");
    assert_eq!(verified["chain"]["state"], "broken", "and what it told once is not forgotten");
}

#[test]
fn what_was_changed_on_the_hosts_disk_does_not_hold() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let agent = Agent::start(&directory.path().join("agent"), &["--source", "poll"]);
    collector.follow(&agent.address);
    await_now(&collector);
    let verify = || collector.json(&["host", "verify", &agent.address]);
    let (status, verified) = verify();
    assert_eq!(status, 0, "{verified:#}");

    let ring = agent.data.join("ring");
    let segment = fs::read_dir(&ring).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.filter(|path| path.extension().is_some_and(|is| is == "segment")).min().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // Within the payload of the first frame, which stands after two headers.
    bytes[88 + 84 + 40] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (status, verified) = verify();
    assert_eq!((status, verified["holds"].as_bool()), (1, Some(false)), "{verified:#}");
    assert!(
        verified["problems"][0].as_str().unwrap().contains("are missing: damaged on disk"),
        "{verified:#}"
    );
    let said = String::from_utf8(collector.alibi(&["host", "verify", &agent.address]).stdout).unwrap();
    assert!(said.contains("DOES NOT HOLD"), "{said}");
    let nobody = collector.alibi(&["host", "verify", "nobody"]);
    assert_eq!((nobody.status.code(), nobody.stdout.is_empty()), (Some(2), true));
}
