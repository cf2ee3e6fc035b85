//! The fleet simulator, small: days of some laptops go through the real protocol into a real collector, which is killed in the
//! midst of it; then answers are held against what truly happened. And a truth that is altered is noticed.

use std::{path::Path, sync::Arc, time::Duration};

use alibi_agent::{capture::SocketKey, sys};
use alibi_lab::{
    capture::Stop,
    fleet::{
        Fleet,
        check::{Alive, HostTruth, check, check_against},
        model::{Plan, World},
    },
    system::now,
};

const LAPTOPS: u32 = 10;
const QUESTIONS: usize = 120;

/// A day, over a minute ago.
fn plan(seed: u64) -> Plan {
    let ends = now().saturating_sub(Duration::from_secs(60));
    let begins = ends.saturating_sub(Duration::from_secs(24 * 3_600));
    Plan {
        seed,
        begins_ns: begins.as_nanos(),
        ends_ns: ends.as_nanos(),
        events_per_s: 0.05,
        look_ms: 10_000,
        is_eventful: true,
        sites: 1_000,
    }
}

#[test]
fn answers_are_what_truly_happened_and_an_altered_truth_is_noticed() {
    let lab = Path::new(env!("CARGO_BIN_EXE_lab"));
    let directory = tempfile::tempdir().unwrap();
    let agents_data = directory.path().join("agents");
    std::fs::create_dir(&agents_data).unwrap();
    let stop = Stop::listen();
    let plan = plan(7);
    let mut fleet = Fleet::begin(lab, directory.path(), &agents_data, LAPTOPS, &stop).unwrap();
    let past = fleet.past(&plan, 0..LAPTOPS, QUESTIONS).unwrap();
    let checked = &past.checked;
    assert_eq!(checked.faults, 0, "seed {}: {:#?}", plan.seed, checked.told);
    // What is never asked or never happens proves nothing.
    assert!(past.events > 3_000, "{past}");
    let counts = [checked.talked, checked.clear, checked.unknown, checked.connections];
    assert!(counts.iter().all(|count| *count > 10), "{checked}");

    let world = Arc::new(World::new(plan.seed, plan.sites));
    let (answers, _) = fleet.answers(&plan, 0..LAPTOPS, QUESTIONS).unwrap();
    let boot_id = sys::host_facts().boot_id;
    let faults = |alter: fn(&mut HostTruth)| {
        let checked = check_against(&plan, &world, 0..LAPTOPS, &boot_id, &answers, |_, mut truths| {
            truths.iter_mut().for_each(alter);
            truths
        });
        checked.told.join("\n")
    };
    assert_eq!(check(&plan, &world, 0..LAPTOPS, &boot_id, &answers).faults, 0);
    assert!(faults(|truth| truth.may.clear()).contains("talked, and nobody did"));
    assert!(faults(|truth| truth.is_unrecorded = true).contains("clear, and not all was recorded"));
    assert!(faults(|truth| truth.may_be_unrecorded = false).contains("unknown, and all was recorded"));
    assert!(faults(|truth| truth.may.iter_mut().for_each(another_owner)).contains("as the owner of"));
    assert!(
        faults(|truth| {
            // One more of which nobody has heard.
            let unheard = |alive: &Alive| Alive { socket: unheard(alive), ..alive.clone() };
            let more = truth.must.iter().filter(|alive| alive.is_recorded).map(unheard).next();
            truth.must.extend(more.clone());
            truth.may.extend(more);
        })
        .contains("talked, without")
    );
}

fn unheard(alive: &Alive) -> SocketKey {
    SocketKey { socket: u64::MAX, ..alive.socket }
}

fn another_owner(alive: &mut Alive) {
    alive.owner.pid += 1;
}
