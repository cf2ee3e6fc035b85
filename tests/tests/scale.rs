//! `cargo lab scale`, small: every kind of question about a fleet's history, in a store with some runs, is answered as the history
//! truly was, at two sizes. And an answer that is altered is noticed.

use std::{path::PathBuf, sync::Arc, time::Duration};

use alibi_collector::store::{MAIN_DATABASE, SqliteStore};
use alibi_lab::{
    fleet::check::Asker,
    scale::{
        Options,
        ask::{Case, Kind, Truth},
        fill::Filler,
        made::{Fleet, Plan},
        measure_all,
    },
    system::{Collector, now},
};
use alibi_proto::question::{Answer, Verdict};

const HOSTS: u32 = 40;
const FLOWS: u64 = 60_000;

fn options() -> Options {
    Options {
        flows: FLOWS,
        hosts: HOSTS,
        span: Duration::from_secs(4 * 86_400),
        sizes: vec![FLOWS / 4],
        questions: 6,
        cold: 1,
        together: 100,
        tellers: 8,
        seed: 5,
        data: None,
        python: PathBuf::new(),
        no_duckdb: true,
        json: true,
    }
}

#[test]
fn every_answer_is_true_of_a_history_that_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let report = measure_all(&options(), directory.path()).unwrap();
    let told = serde_json::to_value(&report).unwrap();
    assert_eq!(report.faults(), 0, "{told:#}");
    let sizes = told["sizes"].as_array().unwrap();
    assert_eq!(
        sizes.iter().map(|size| size["flows"].as_u64().unwrap()).collect::<Vec<_>>(),
        [FLOWS / 4, FLOWS]
    );
    for asked in sizes.iter().flat_map(|size| size["asked"].as_array().unwrap()) {
        let found = asked["flows"].as_u64().unwrap() > 0;
        // What is never found proves nothing. The others may have none at this size.
        assert!(found || asked["kind"] != "network", "{asked:#}");
    }
}

#[test]
fn an_answer_that_is_altered_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("collector");
    Collector::start(&data).running.interrupt();
    let span = Duration::from_secs(86_400);
    let begins = now().saturating_sub(span * 2);
    let plan = Plan { seed: 6, hosts: 8, flows_of_each: 1_000, begins, span };
    let fleet = Arc::new(Fleet::new(plan));
    let mut filler = Filler::new(&fleet);
    let store = SqliteStore::open(&data.join(MAIN_DATABASE)).unwrap();
    filler.until(&store, &fleet, 1_000, 100, 2).unwrap();
    drop(store);
    let _collector = Collector::start(&data);
    let asker = Asker::at(&data.join("alibi.sock")).unwrap();
    let cases = Case::some(&fleet, Kind::Network, fleet.reached(1_000), 20).unwrap();
    let mut altered = 0;
    for case in &cases {
        let truth = Truth::of(&fleet, case).unwrap();
        let (answer, _) = asker.who(case.to_wire(), case).unwrap();
        let faults = |answer: &Answer| truth.faults(&fleet, case, answer);
        assert_eq!(faults(&answer), Vec::<String>::new());
        let mut fewer = answer.clone();
        fewer.hosts.pop();
        assert!(faults(&fewer)[0].contains("7 hosts of 8"));
        let Some(talker) = answer.hosts.iter().position(|host| host.verdict == Verdict::Talked) else {
            continue;
        };
        altered += 1;
        let with = |alter: &dyn Fn(&mut Answer)| {
            let mut answer = answer.clone();
            alter(&mut answer);
            faults(&answer).join("\n")
        };
        assert!(with(&|answer| answer.hosts[talker].verdict = Verdict::Clear).contains("clear where"));
        assert!(with(&|answer| answer.hosts[talker].processes.clear()).contains("connections are missing"));
        assert!(with(&|answer| answer.hosts[talker].processes[0].life = None).contains("None as the owner"));
        let another = |answer: &mut Answer| {
            let process = &mut answer.hosts[talker].processes[0];
            let twice = process.connections[0].clone();
            process.connections.push(twice);
        };
        assert!(with(&another).contains("not there, or twice"));
        let nobody = answer.hosts.iter().position(|host| host.verdict == Verdict::Clear);
        if let Some(nobody) = nobody {
            assert!(with(&|answer| answer.hosts[nobody].verdict = Verdict::Talked).contains("talked where"));
        }
    }
    assert!(altered > 3, "{altered}");
}
