//! The agent's own test of itself, on this host.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::process::Command;

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
};
use serde_json::Value;

fn selftest(source: &str) -> (Option<i32>, Value) {
    let output =
        Command::new(&programs().agent).args(["selftest", "--json", "--source", source]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}")),
    )
}

#[test]
fn everything_that_is_tried_is_seen_with_its_owner() {
    if !met("the self test", &[Requirement::Bpf]) {
        return;
    }
    let (status, report) = selftest("ebpf");
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 10, "{report:#}");
    for check in checks {
        assert_eq!(check["seen"], check["done"], "{report:#}");
        assert!(check["done"].as_u64().unwrap() > 0, "{report:#}");
    }
    assert_eq!(status, Some(0));
}

#[test]
fn what_a_source_misses_is_said() {
    let (status, report) = selftest("poll");
    assert_eq!((status, &report["source"]), (Some(1), &"poll".into()), "{report:#}");
}
