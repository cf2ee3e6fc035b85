//! `cargo lab up`, as the README has it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{net::TcpListener, process::Command};

use alibi_lab::{
    programs::programs,
    system::{Running, outcome},
};

#[test]
fn the_quick_start_starts_and_goes_on_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    // However long they take to build, that is not the quick start's.
    programs();
    // As in a checkout: a relative path, below the current directory.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut events = 0;
    for _ in 0..2 {
        let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
        lab.args(["up", "--data", "alibi-data", "--listen", &address]).current_dir(directory.path());
        let up = Running::start("the quick start", &mut lab);
        up.line_with("Ctrl-C stops both.", 0);

        let mut hosts = Command::new(&programs().alibi);
        hosts.args(["hosts", "--json"]).current_dir(directory.path()).env_remove("ALIBI_COLLECTOR");
        hosts.env("ALIBI_CREDENTIALS", "alibi-data/credentials.json").env_remove("ALIBI_TOKEN");
        let output = outcome(&mut hosts);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(answer["hosts"].as_array().unwrap().len(), 1, "{answer:#}");
        assert!(answer["hosts"][0]["enrolment"]["enrolled"].is_string(), "{answer:#}");
        let now = answer["hosts"][0]["events"].as_u64().unwrap();
        assert!(now > events, "it goes on with what there was: {now} after {events}");
        events = now;
        assert!(up.interrupt().success());
    }
}
