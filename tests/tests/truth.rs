//! Random histories of one host, recorded by the real pipeline and ring, delivered late and with losses, and judged by
//! the real question core: no verdict may say more than the plain model knows to be true.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Mutex, thread};

use proptest::{prelude::*, test_runner::TestRunner};

#[path = "truth/asking.rs"]
mod asking;
#[path = "truth/collector.rs"]
mod collector;
#[path = "truth/steps.rs"]
mod steps;
#[path = "truth/world.rs"]
mod world;

use asking::Tally;
use steps::{Step, step};
use world::World;

/// So many windows are judged at least.
const WINDOWS_MIN: u64 = 1_000_000;
/// One for each processor of the machine that runs all tests.
const THREADS: u32 = 2;
const HISTORIES: u32 = 600;

/// What came of a history. Its ring is in memory where that can be: nothing is lost with it.
fn tally(steps: &[Step]) -> Tally {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let mut world = World::new(directory.path().join("ring"));
    for step in steps {
        world.run(step);
    }
    world.tally
}

fn check(steps: &[Step]) -> BTreeMap<&'static str, u64> {
    tally(steps).verdicts
}

#[test]
fn no_verdict_says_more_than_is_true() {
    let sum = Mutex::new(Tally::default());
    let histories = || {
        let cases = HISTORIES / THREADS;
        let mut runner =
            TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
        let steps = proptest::collection::vec(step(), 50..400);
        let outcome = runner.run(&steps, |steps| {
            let tally = tally(&steps);
            sum.lock().unwrap().add(&tally);
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(histories);
        }
    });
    let sum = sum.into_inner().unwrap();
    print(&sum);
    assert!(sum.judged() >= WINDOWS_MIN, "only {} windows were judged", sum.judged());
    assert!(sum.equal_ledgers > 1_000 && sum.of_the_agent > 1_000 && sum.of_names > 1_000, "{sum:?}");
}

fn print(sum: &Tally) {
    let judged = sum.judged();
    println!("{judged} windows were judged: {:?}", sum.verdicts);
    println!(
        "besides, {} by the agent, {} with few intervals, and {} of names whole; {} ledgers compared",
        sum.of_the_agent, sum.of_few_intervals, sum.of_names, sum.equal_ledgers
    );
    let avoidable: u64 = sum.avoidable.values().sum();
    let is_late = |reason: &&String| reason.contains("received from this host");
    let late: u64 = sum.avoidable.iter().filter(|(reason, _)| is_late(reason)).map(|(_, count)| count).sum();
    println!(
        "of {avoidable} unknown the model knows that nobody talked, and all was recorded: {late} were asked too early, and {} \
         avoidable. They said:",
        avoidable - late
    );
    let mut reasons: Vec<_> = sum.avoidable.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (reason, count) in reasons {
        println!("{count:>9} {reason}");
    }
}

/// The property would hold of a program that always says `unknown`: this one does not.
#[test]
fn histories_meet_every_verdict() {
    let mut steps = Vec::new();
    for round in 0..200_u64 {
        steps.extend([
            Step::Open { target: round % 10 == 0, after: 1 },
            Step::Wait(20),
            Step::Close { after: 1 },
            Step::Sync,
            Step::Deliver,
        ]);
        steps.push(Step::Ask { ago: 0, length: 15 });
        if round % 50 == 49 {
            steps.extend([
                Step::Crash,
                Step::Wait(30),
                Step::Start,
                Step::Wait(40),
                Step::Sync,
                Step::Deliver,
                Step::Ask { ago: 45, length: 20 },
            ]);
        }
    }
    let verdicts = check(&steps);
    for verdict in ["talked", "clear", "unknown"] {
        assert!(verdicts.get(verdict).is_some_and(|count| *count >= 4), "{verdicts:?}");
    }
    assert!(verdicts["clear"] > 100, "{verdicts:?}");
}

/// An idle connection whose only record was overwritten is still not believed away, and belief returns.
#[test]
fn an_overwritten_record_of_an_open_connection_leaves_no_false_clear() {
    let mut steps = vec![Step::Open { target: true, after: 1 }, Step::Wait(3)];
    for _ in 0..150 {
        // The target's connection is the oldest, so closing the newest takes opening and closing at once.
        steps.extend([Step::Short, Step::Wait(1)]);
    }
    steps.extend([Step::Sync, Step::Deliver, Step::Wait(5), Step::Sync, Step::Deliver]);
    steps.extend((0..20).map(|ago| Step::Ask { ago, length: 3 }));
    let verdicts = check(&steps);
    assert!(verdicts.contains_key("talked"), "it is said anew wherever a reader can begin: {verdicts:?}");
}

/// More is open than the ring can hold: saying it anew at each segment begins further segments, and must come to rest.
#[test]
fn more_open_connections_than_the_ring_holds_leave_no_false_clear() {
    let mut steps = vec![Step::Open { target: true, after: 1 }, Step::Wait(3)];
    for _ in 0..300 {
        steps.extend([Step::Open { target: false, after: 1 }, Step::Wait(1)]);
    }
    steps.extend([Step::Sync, Step::Deliver]);
    for _ in 0..50 {
        steps.extend([Step::Wait(1), Step::Sync, Step::Deliver, Step::Ask { ago: 0, length: 3 }]);
    }
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path().join("ring"));
    steps.iter().for_each(|step| world.run(step));
    // 300 connections, each recorded at its opening, and all said anew no oftener than as many other events came.
    let next = world.collector.summary.next.0;
    assert!(next < 3_000, "{next}");
}

/// What a question about each ten seconds of `ago` is answered, after a history and its delivery.
fn asked_after(history: &[Step], ago: Range<u64>) -> BTreeMap<&'static str, u64> {
    let mut steps = history.to_vec();
    steps.extend([Step::Wait(3), Step::Sync, Step::Deliver]);
    steps.extend(ago.step_by(10).map(|ago| Step::Ask { ago, length: 10 }));
    check(&steps)
}

#[test]
fn a_suspend_is_covered_and_nothing_was_open_in_it() {
    let history = [Step::Open { target: true, after: 1 }, Step::Wait(5), Step::Suspend(500)];
    assert_eq!(asked_after(&history, 13..480).get("clear"), Some(&47));
}

#[test]
fn a_suspend_after_the_clock_was_set_back_is_covered_too() {
    let history = [Step::Open { target: true, after: 1 }, Step::SetBack(4), Step::Suspend(500)];
    assert_eq!(asked_after(&history, 13..490).get("talked"), None);
}

#[test]
fn time_that_a_clock_skipped_is_nobodys_and_not_clear() {
    let history = [Step::Open { target: true, after: 1 }, Step::Wait(5), Step::SetForward(500)];
    assert_eq!(asked_after(&history, 13..490).get("unknown"), Some(&48));
}

#[test]
fn time_that_a_clock_skipped_after_it_was_set_back_is_nobodys_either() {
    let history = [Step::Open { target: true, after: 1 }, Step::SetBack(10), Step::SetForward(500)];
    assert_eq!(asked_after(&history, 13..470).get("talked"), None);
}

#[test]
fn time_that_happens_twice_is_never_clear() {
    let history = [Step::Wait(300), Step::SetBack(200), Step::Wait(150)];
    let verdicts = asked_after(&history, 3..150);
    assert_eq!((verdicts.get("unknown"), verdicts.get("clear")), (Some(&15), None), "{verdicts:?}");
}

/// Its predecessor has told how far that time reaches, and no life of what is open is believed past the end of a gap.
#[test]
fn an_agent_that_starts_in_a_time_that_happens_twice_says_anew_what_is_open_when_it_is_over() {
    let mut steps =
        vec![Step::Wait(5), Step::SetBack(200), Step::Open { target: true, after: 1 }, Step::Stop];
    steps.extend([Step::Start, Step::Wait(194), Step::Wait(2), Step::Wait(1), Step::Wait(300)]);
    steps.extend([Step::Sync, Step::Deliver, Step::Ask { ago: 0, length: 1 }]);
    assert_eq!(check(&steps).get("talked"), Some(&1));
}

/// By a clock that is set back, the host may have been started earlier than was said: in a time in which, where the clock was
/// set forward before, something was recorded. That is no interruption, and what was open then stays open.
#[test]
fn a_doubt_about_when_the_host_was_started_ends_no_connection() {
    let mut history = vec![Step::Open { target: true, after: 1 }, Step::SetForward(4), Step::Wait(109)];
    history.extend([Step::Crash, Step::Start, Step::SetForward(1_007), Step::SetBack(2)]);
    let verdicts = asked_after(&history, 1_020..1_110);
    assert_eq!(verdicts.get("talked"), Some(&9), "{verdicts:?}");
}

/// The host slept between what happened and its being recorded.
#[test]
fn an_event_of_a_newer_kind_may_tell_of_a_time_long_before_it_was_recorded() {
    let mut steps = vec![Step::Open { target: true, after: 1 }, Step::Newer(2), Step::Suspend(901)];
    steps.extend([Step::Wait(901), Step::Sync, Step::Deliver]);
    steps.extend((1_790..1_803).map(|ago| Step::Ask { ago, length: 1 }));
    let verdicts = check(&steps);
    assert_eq!(verdicts.get("clear"), None, "{verdicts:?}");
}

/// What is said anew in the same report as an event that is not known, as it begins a segment, is told as of an earlier instant
/// than that was recorded at.
#[test]
fn what_is_said_anew_beside_an_event_of_a_newer_kind_is_doubted() {
    let mut steps = vec![Step::Open { target: true, after: 1 }, Step::Wait(2)];
    for _ in 0..100 {
        let opened = [Step::Newer(1), Step::Open { target: false, after: 0 }, Step::Wait(1), Step::Wait(5)];
        steps.extend(opened.into_iter().chain([Step::Sync, Step::Deliver]));
        steps.extend((0..5).map(|ago| Step::Ask { ago, length: 1 }));
    }
    let verdicts = check(&steps);
    assert_eq!(verdicts.get("clear"), None, "{verdicts:?}");
}
