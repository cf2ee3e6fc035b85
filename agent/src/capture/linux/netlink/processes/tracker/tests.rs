use super::*;

const SECOND: u64 = 1_000_000_000;

fn at_ms(ms: u64) -> Moment {
    let boot_ns = ms * 1_000_000;
    Moment { wall: Timestamp::from_nanos(1_764_000_000 * SECOND + boot_ns), boot_ns }
}

/// What /proc shows, by pid.
#[derive(Default)]
struct System {
    starts: HashMap<u32, u64>,
    programs: HashMap<u32, &'static str>,
    lives: HashMap<u32, Life>,
}

impl Look for System {
    fn start(&mut self, pid: u32) -> Option<u64> {
        self.starts.get(&pid).copied()
    }

    fn image(&mut self, pid: u32) -> Option<(u64, ProcessImage)> {
        Some((self.start(pid)?, image(self.programs.get(&pid).copied())))
    }

    fn life(&mut self, pid: u32) -> Life {
        self.lives.get(&pid).copied().unwrap_or(Life::Ended)
    }
}

fn image(path: Option<&str>) -> ProcessImage {
    ProcessImage { path: path.map(str::to_owned), name: "name".into(), ..ProcessImage::default() }
}

fn observed(pid: u32, start: u64, path: &str) -> ObservedProcess {
    ObservedProcess {
        process: ProcessKey { pid, start },
        parent: None,
        parent_pid: None,
        started: at_ms(start * 10).wall,
        already_running: true,
        image: image(Some(path)),
    }
}

/// The facts as `ms: pid@start what`.
fn texts(facts: &[Observation]) -> Vec<String> {
    let what = |fact: &Fact| match fact {
        Fact::ProcessStarted(process) => {
            let ProcessKey { pid, start } = process.process;
            let parent = process.parent.map_or("?".into(), |parent| parent.pid.to_string());
            format!("{pid}@{start} of {parent} starts {}", process.image.path.as_deref().unwrap_or("?"))
        }
        Fact::ProcessExecuted { process, image } => {
            format!("{}@{} becomes {}", process.pid, process.start, image.path.as_deref().unwrap_or("?"))
        }
        Fact::ProcessExited { process, exit_code } => {
            format!("{}@{} exits {exit_code:?}", process.pid, process.start)
        }
        other => panic!("{other:?}"),
    };
    facts.iter().map(|fact| format!("{}: {}", fact.at.boot_ns / 1_000_000, what(&fact.fact))).collect()
}

fn fork(parent: u32, process: u32) -> Kind {
    Kind::Fork { parent, process, is_thread: false }
}

fn exit(process: u32, status: u32) -> Kind {
    Kind::Exit { process, is_first_thread: true, status }
}

struct Test {
    tracker: Tracker,
    system: System,
    facts: Vec<Observation>,
}

impl Test {
    /// Process 40 runs `sh` since tick 100.
    fn new() -> Self {
        let mut tracker = Tracker::default();
        assert!(tracker.found(&observed(40, 100, "sh")));
        Self { tracker, system: System::default(), facts: Vec::new() }
    }

    fn take(&mut self, ms: u64, kind: Kind) {
        self.tracker.take(kind, at_ms(ms), false, &mut self.system, &mut self.facts);
    }

    fn settle(&mut self, ms: u64) {
        self.tracker.settle(at_ms(ms), &mut self.system, &mut self.facts);
    }

    #[track_caller]
    fn told(&mut self, want: &[&str]) {
        assert_eq!(texts(&std::mem::take(&mut self.facts)), want);
    }
}

#[test]
fn a_fork_and_its_exec_are_one_record() {
    let mut test = Test::new();
    test.system.starts.insert(50, 199);
    test.system.programs.insert(50, "curl");
    test.take(2000, fork(40, 50));
    test.told(&[]);
    test.take(2001, Kind::Exec { process: 50 });
    test.take(2500, exit(50, 256));
    test.told(&["2001: 50@199 of 40 starts curl", "2500: 50@199 exits Some(1)"]);
    assert_eq!(test.tracker.take_unseen().count, 0);
}

#[test]
fn a_fork_without_exec_runs_what_its_parent_runs() {
    let mut test = Test::new();
    test.system.starts.insert(50, 200);
    test.take(2000, fork(40, 50));
    test.settle(2099);
    test.told(&[]);
    test.settle(2100);
    test.told(&["2100: 50@200 of 40 starts sh"]);
    // One that is over before it has waited is told at its end.
    test.take(2200, fork(50, 51));
    test.take(2201, exit(51, 9));
    test.told(&["2201: 51@220 of 50 starts sh", "2201: 51@220 exits Some(137)"]);
}

#[test]
fn a_program_that_was_gone_before_it_could_be_looked_at_is_counted() {
    let mut test = Test::new();
    test.take(2000, fork(40, 50));
    test.take(2001, Kind::Exec { process: 50 });
    test.take(2002, exit(50, 0));
    test.told(&["2001: 50@200 of 40 starts ?", "2002: 50@200 exits Some(0)"]);
    // Listed still, but only by name.
    test.system.starts.insert(51, 300);
    test.take(3000, fork(40, 51));
    test.take(3001, Kind::Exec { process: 51 });
    test.told(&["3001: 51@300 of 40 starts ?"]);
    // Became yet another meanwhile; and a pid that somebody else has by now.
    test.tracker.take(Kind::Exec { process: 51 }, at_ms(3002), true, &mut test.system, &mut test.facts);
    test.system.starts.insert(51, 9000);
    test.system.programs.insert(51, "other");
    test.take(3003, Kind::Exec { process: 51 });
    test.told(&["3003: 51@300 becomes ?"]);
    let unseen = test.tracker.take_unseen();
    assert_eq!((unseen.count, unseen.from, unseen.to), (4, at_ms(2001).wall, at_ms(3003).wall));
    assert_eq!(test.tracker.take_unseen(), Stretch::default());
}

#[test]
fn a_process_ends_with_its_last_thread() {
    let mut test = Test::new();
    test.system.starts.insert(50, 200);
    test.take(2000, fork(40, 50));
    test.take(2000, Kind::Fork { parent: 40, process: 50, is_thread: true });
    test.settle(2100);
    test.facts.clear();
    test.system.lives.insert(50, Life::FirstThreadLeft);
    test.take(2200, exit(50, 512));
    test.settle(2300);
    test.told(&[]);
    test.take(2400, Kind::Exit { process: 50, is_first_thread: false, status: 0 });
    test.told(&[]);
    test.system.lives.insert(50, Life::Ended);
    test.settle(2500);
    test.told(&["2400: 50@200 exits Some(2)"]);
}

#[test]
fn a_process_whose_other_thread_became_a_program_has_not_ended() {
    let mut test = Test::new();
    test.system.starts.insert(40, 100);
    test.system.programs.insert(40, "java");
    test.system.lives.insert(40, Life::FirstThreadLeft);
    test.take(2000, exit(40, 0));
    test.take(2001, Kind::Exec { process: 40 });
    test.system.lives.insert(40, Life::Ended);
    test.settle(2100);
    test.told(&["2001: 40@100 becomes java"]);
}

#[test]
fn a_pid_that_comes_round_is_somebody_else() {
    let mut test = Test::new();
    test.system.starts.insert(40, 500);
    test.take(5000, fork(1, 40));
    test.settle(5100);
    test.told(&["5000: 40@100 exits None", "5100: 40@500 of ? starts ?"]);
}

#[test]
fn an_event_of_a_process_that_was_found_already_tells_nothing_new() {
    let mut test = Test::new();
    test.system.starts.insert(40, 100);
    test.system.programs.insert(40, "sh");
    test.take(1003, fork(1, 40));
    test.take(1004, Kind::Exec { process: 40 });
    test.settle(2000);
    test.told(&[]);
    test.take(3000, exit(99, 0));
    test.told(&[]);
}

#[test]
fn after_a_loss_what_runs_is_compared_with_what_was_known() {
    let mut test = Test::new();
    test.tracker.found(&observed(41, 100, "cron"));
    test.tracker.found(&observed(42, 100, "ssh"));
    let running = vec![observed(40, 100, "python"), observed(42, 700, "scp"), observed(43, 701, "curl")];
    test.tracker.reconcile(running, at_ms(8000), &mut test.facts);
    let mut told = texts(&test.facts);
    told.sort();
    assert_eq!(
        told,
        [
            "8000: 40@100 becomes python",
            "8000: 41@100 exits None",
            "8000: 42@100 exits None",
            "8000: 42@700 of ? starts scp",
            "8000: 43@701 of ? starts curl",
        ]
    );
}

#[test]
fn beyond_the_bound_processes_are_counted() {
    let mut test = Test::new();
    for pid in 100..100 + u32::try_from(RUNNING_MAX).unwrap() {
        test.take(2000, fork(40, pid));
    }
    assert_eq!(test.tracker.take_unfollowed().count, 1);
}
