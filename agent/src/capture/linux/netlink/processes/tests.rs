//! With the kernel's own events; they need root outside of any container.

use std::{
    collections::{BTreeMap, HashSet},
    process::Command,
    time::Instant,
};

use super::*;
use crate::capture::ProcessKey;

/// Takes until `enough`, and all that came; fails after 20 s.
#[track_caller]
fn until(sensor: &mut Processes, enough: impl Fn(&[Observation]) -> bool) -> Vec<Observation> {
    let began = Instant::now();
    let mut facts = Vec::new();
    while !enough(&facts) {
        assert!(began.elapsed() < Duration::from_secs(20), "{} facts are not enough", facts.len());
        let mut descriptors = [PollFd::from_borrowed_fd(sensor.descriptor(), PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).unwrap();
        sensor.take(sys::now(), &mut facts).unwrap();
    }
    facts
}

fn exits(facts: &[Observation], pids: &HashSet<u32>) -> usize {
    let is_exit = |fact: &&Observation| matches!(fact.fact, Fact::ProcessExited { process, .. } if pids.contains(&process.pid));
    facts.iter().filter(is_exit).count()
}

fn started<'a>(facts: &'a [Observation], pids: &HashSet<u32>) -> BTreeMap<u32, &'a ObservedProcess> {
    let process = |fact: &'a Observation| match &fact.fact {
        Fact::ProcessStarted(process) if pids.contains(&process.process.pid) => {
            Some((process.process.pid, &**process))
        }
        _ => None,
    };
    facts.iter().filter_map(process).collect()
}

fn losses(facts: &[Observation]) -> Vec<(u64, String)> {
    let loss = |fact: &Observation| match &fact.fact {
        Fact::Coverage(CoverageChange { grade: Grade::Lost { count, reason }, .. }) => {
            Some((*count, reason.clone()))
        }
        _ => None,
    };
    facts.iter().filter_map(loss).collect()
}

fn run(program: &str, arguments: &[&str]) -> (u32, i32) {
    let mut child = Command::new(program).args(arguments).spawn().unwrap();
    (child.id(), child.wait().unwrap().code().unwrap())
}

#[test]
fn a_child_is_told_from_start_to_end() {
    let mut sensor = Processes::open().unwrap();
    let mut inventory = Vec::new();
    sensor.take(sys::now(), &mut inventory).unwrap();
    let own = HashSet::from([std::process::id()]);
    assert!(started(&inventory, &own)[&std::process::id()].already_running);

    let before = sys::now();
    // Lives for as long as it takes to be looked at.
    let mut child = Command::new("cat").arg("-").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let pids = HashSet::from([pid]);
    let mut facts = until(&mut sensor, |facts| !started(facts, &pids).is_empty());
    let start = sys::process_start(pid).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    facts.extend(until(&mut sensor, |facts| exits(facts, &pids) == 1));
    let after = sys::now();

    let process = started(&facts, &pids)[&pid];
    assert_eq!(process.process, ProcessKey { pid, start });
    assert_eq!(process.parent_pid, Some(std::process::id()));
    assert_eq!(process.parent.unwrap().pid, std::process::id());
    assert!(!process.already_running);
    assert_eq!(process.image.arguments, ["cat", "-"]);
    assert!(process.image.path.as_ref().unwrap().ends_with("cat"), "{process:?}");
    let uid = rustix::process::getuid().as_raw().to_string();
    assert_eq!(process.image.user.as_ref().unwrap().id, uid);
    assert!(process.started >= before.wall.saturating_sub(Duration::from_millis(1)));
    let exit = facts
        .iter()
        .find(|fact| matches!(fact.fact, Fact::ProcessExited { process, .. } if process.pid == pid));
    let exit = exit.unwrap();
    assert_eq!(exit.fact, Fact::ProcessExited { process: ProcessKey { pid, start }, exit_code: Some(0) });
    assert!((before.boot_ns..=after.boot_ns).contains(&exit.at.boot_ns));
}

#[test]
fn threads_are_no_processes() {
    let mut sensor = Processes::open().unwrap();
    sensor.take(sys::now(), &mut Vec::new()).unwrap();
    for _ in 0..20 {
        thread::spawn(|| {}).join().unwrap();
    }
    let (pid, _) = run("true", &[]);
    let facts = until(&mut sensor, |facts| exits(facts, &HashSet::from([pid])) == 1);
    let own = |fact: &&Observation| match &fact.fact {
        Fact::ProcessStarted(process) => process.process.pid == std::process::id(),
        Fact::ProcessExited { process, .. } => process.pid == std::process::id(),
        _ => false,
    };
    assert_eq!(facts.iter().find(own), None);
}

#[test]
fn what_the_buffer_could_not_hold_is_counted_and_what_runs_is_looked_at() {
    // Room for a few events, and nobody takes them until the first turn is over.
    let mut sensor = Processes::open_with_room(1).unwrap();
    let pids: HashSet<u32> = (0..200).map(|_| run("true", &[]).0).collect();
    let mut stays = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut facts = Vec::new();
    sensor.take(sys::now(), &mut facts).unwrap();
    // The holes in the numbers show with the next event of each CPU. Three events of each process, and most were lost.
    let lost = |facts: &[Observation]| losses(facts).iter().map(|(count, _)| count).sum::<u64>();
    let began = Instant::now();
    while lost(&facts) < 200 {
        assert!(began.elapsed() < Duration::from_secs(20), "only {} are counted", lost(&facts));
        run("true", &[]);
        sensor.take(sys::now(), &mut facts).unwrap();
    }
    assert!(exits(&facts, &pids) < 200, "nothing was lost");
    let stays_pid = HashSet::from([stays.id()]);
    assert_eq!(started(&facts, &stays_pid).len(), 1);
    drop(stays.stdin.take());
    stays.wait().unwrap();
}
