//! What is told of a clock holds, whatever the clock did.

use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000_000;

fn at(nanos: i64) -> Timestamp {
    Timestamp::from_nanos(u64::try_from(nanos).unwrap())
}

#[test]
fn what_cannot_be_told_from_no_offset_is_none() {
    let check = |least, most, offset, bound| {
        let difference = Difference::between(least, most);
        assert_eq!((difference.offset(), difference.bound()), (offset, bound), "{difference:?}");
        let balanced = difference.balanced();
        assert!(balanced.least() <= least && balanced.most() >= most, "{balanced:?}");
    };
    check(0, 0, 0, 0);
    check(-3, 5, 0, 5);
    check(0, 5, 0, 5);
    check(1, 6, 3, 3);
    check(-10, -4, -7, 3);
    check(i64::MIN, i64::MAX, 0, i64::MIN.unsigned_abs());
}

#[test]
fn readings_that_agree_become_one_and_others_stay() {
    let reading = |second: u64, least: i64| Reading {
        from_boot_ns: second * 1_000_000_000,
        to_boot_ns: second * 1_000_000_000,
        difference: Difference::between(least, least + 1_000_000),
        measured: Timestamp::from_secs(second),
    };
    let mut readings = Readings::default();
    for second in [30, 60, 90] {
        readings.add(reading(second, 5 * SECOND));
    }
    let [one] = readings.all() else { panic!("{readings:?}") };
    assert_eq!((one.from_boot_ns, one.to_boot_ns), (30_000_000_000, 90_000_000_000));
    assert_eq!(one.difference.width(), 31_000_000, "what may drift in half a minute, both ways");
    readings.add(reading(120, 6 * SECOND));
    assert_eq!(readings.all().len(), 2, "the collector's clock was set");
    let between = readings.over(100 * SECOND, 110 * SECOND).unwrap();
    assert!(between.contains(5 * SECOND) && between.contains(6 * SECOND), "{between:?}");
    for second in 5..20 {
        readings.add(reading(second * 1_000, i64::try_from(second).unwrap() * SECOND));
    }
    assert!(readings.all().len() <= 4, "{readings:?}");
    let far = readings.over(500 * SECOND, 500 * SECOND).unwrap();
    assert!(far.contains(5 * SECOND) && far.contains(6 * SECOND), "{far:?}");
}

#[test]
fn how_well_a_clock_is_known_gets_worse_with_time() {
    let mut readings = Readings::default();
    readings.add(Reading {
        from_boot_ns: 0,
        to_boot_ns: 1_000_000_000,
        difference: Difference::between(0, 1_000),
        measured: Timestamp::from_secs(1),
    });
    let bound = |seconds: i64| readings.over(seconds * SECOND, seconds * SECOND).unwrap().width() / 2;
    assert_eq!(bound(1), 500);
    assert_eq!(bound(31), 500 + 15_000_000);
    assert_eq!(bound(1_001), 500 + 2_500_000_000, "it may have slept");
}

fn reading(boot_id: &str, boot: i64, difference: Difference, begins: Vec<BootBegin>) -> ClockReading {
    ClockReading {
        boot_id: boot_id.into(),
        boot_ns: u64::try_from(boot).unwrap(),
        difference,
        measured: Timestamp::ZERO,
        shared: None,
        epoch: Epoch(1),
        begins: Some(begins),
    }
}

fn begin(boot_id: &str, first: u64) -> BootBegin {
    BootBegin { boot_id: boot_id.into(), first: Seq(first) }
}

fn moment(wall: i64, boot: i64) -> Moment {
    Moment { wall: at(wall), boot_ns: u64::try_from(boot).unwrap() }
}

fn window(from: i64, to: i64) -> Window {
    Window::new(at(from * SECOND), at(to * SECOND)).unwrap()
}

/// A laptop that was booted at second 1,000 with its clock an hour ahead, recorded for an hour with nobody connected, was
/// set right at second 5,000, and was measured at second 5,100.
#[test]
fn a_clock_that_was_set_right_before_it_was_measured_is_known_for_what_it_was() {
    let mut history = ClockHistory::default();
    let exact = Difference::exact(1_000 * SECOND);
    history.measured(&reading("boot", 4_100 * SECOND, exact, vec![begin("boot", 1)]));
    for (seq, now) in (1..).zip((1_010..5_100).step_by(10)) {
        let ahead = if now < 5_000 { 3_600 } else { 0 };
        let moment = moment((now + ahead) * SECOND, (now - 1_000) * SECOND);
        history.saw(Epoch(1), Some(Seq(seq)), moment);
    }
    assert_eq!(history.pieces.len(), 2);
    let clock = history.clock(at(5_110 * SECOND));
    let before = clock.over(window(2_000, 2_010));
    let ahead = before.difference.unwrap();
    assert_eq!((before.unmeasured.len(), ahead.offset()), (0, 3_600 * SECOND));
    assert!(ahead.bound() < 4_000_000_000, "{ahead:?}");
    let after = clock.over(window(5_050, 5_060)).difference.unwrap();
    assert_eq!(after.offset(), 0);
    assert!(after.bound() < 100_000_000, "{after:?}");
    let at_the_step = clock.over(window(4_990, 5_010)).difference.unwrap();
    assert!(at_the_step.contains(0) && at_the_step.contains(3_600 * SECOND));

    let lived = |second, window| clock.certainly_overlaps(window, at(second * SECOND), at(second * SECOND));
    assert!(lived(5_605, window(2_000, 2_010)));
    assert!(!lived(5_605, window(5_600, 5_610)));
    assert!(lived(4_900, window(1_290, 1_310)));
    assert!(!lived(5_055, window(5_050, 5_060)), "it may have been at second 1,455 too");
    assert!(!lived(5_055, window(1_450, 1_460)), "it may have been at second 5,055 too");
}

#[test]
fn a_boot_that_was_not_measured_may_have_been_at_any_time_between_those_around_it() {
    let mut history = ClockHistory::default();
    history.measured(&reading("a", 10 * SECOND, Difference::exact(0), vec![begin("a", 1)]));
    history.saw(Epoch(1), Some(Seq(1)), moment(100 * SECOND, 100 * SECOND));
    // Recorded by a clock that may be as wrong as can be, and told after the next boot.
    let begins = vec![begin("a", 1), begin("b", 2), begin("c", 4)];
    history.measured(&reading("c", 10 * SECOND, Difference::exact(5_000 * SECOND), begins));
    history.saw(Epoch(1), Some(Seq(2)), moment(2_000 * SECOND, 10 * SECOND));
    history.saw(Epoch(1), Some(Seq(3)), moment(2_500 * SECOND, 510 * SECOND));
    history.saw(Epoch(1), Some(Seq(4)), moment(5_010 * SECOND, 10 * SECOND));
    let clock = history.clock(at(5_200 * SECOND));
    let unmeasured = |from, to| !clock.over(window(from, to)).unmeasured.is_empty();
    assert!(
        !unmeasured(50, 90) && unmeasured(50, 110) && unmeasured(3_000, 3_010) && unmeasured(4_990, 5_000)
    );
    assert!(!unmeasured(5_100, 5_110));
    let lived = |second, window| clock.certainly_overlaps(window, at(second * SECOND), at(second * SECOND));
    assert!(lived(80, window(70, 90)));
    assert!(!lived(2_100, window(2_090, 2_110)));
    assert!(clock.at(at(5_100 * SECOND)).is_some());
    // Of another ring nothing is known but by its own list.
    history.saw(Epoch(2), Some(Seq(1)), moment(6_000 * SECOND, 1_000 * SECOND));
    assert_eq!(history.steady(), None);
    assert_eq!(history.clock(at(6_000 * SECOND)).at(at(6_000 * SECOND)), None);
}

#[test]
fn what_is_of_no_known_boot_is_of_no_known_time() {
    let mut history = ClockHistory::default();
    assert_eq!(history.clock(at(200 * SECOND)).over(window(1, 2)).unmeasured, [window(1, 2)]);
    history.saw(Epoch(1), Some(Seq(1)), moment(100 * SECOND, 100 * SECOND));
    assert_eq!(history.clock(at(200 * SECOND)).over(window(1, 2)).unmeasured, [window(1, 2)]);
    assert_eq!(history.clock(at(200 * SECOND)).latest(at(SECOND)), at(105 * SECOND));
    history.measured(&reading("a", 10 * SECOND, Difference::exact(0), vec![begin("a", 5)]));
    history.saw(Epoch(1), Some(Seq(4)), moment(110 * SECOND, 110 * SECOND));
    assert_eq!(history.clock(at(200 * SECOND)).at(at(110 * SECOND)), None);
    assert_eq!(HostClock::default().latest(at(SECOND)), Timestamp::MAX);
    assert_eq!(HostClock::own().latest(at(SECOND)), at(SECOND));
}

/// What a host and its collector do.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, in milliseconds, with so much drift of the boot clock, in parts of a million.
    Wait { ms: i64, drift_ppm: i64 },
    /// The wall clock is set, by so many milliseconds.
    Set { ms: i64 },
    /// It is off, and then booted with its wall clock so far ahead.
    Boot { off_ms: i64, ahead_ms: i64 },
    /// The agent records an event.
    Record,
    /// The collector connects: it reads the clock, with these delays in microseconds, and gets what was recorded.
    Connect { there_us: i64, back_us: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let drift = -400..400_i64;
    prop_oneof![
        6 => (1..20_000_i64, drift.clone()).prop_map(|(ms, drift_ppm)| Step::Wait { ms, drift_ppm }),
        1 => (1..10_000_000_i64, drift).prop_map(|(ms, drift_ppm)| Step::Wait { ms, drift_ppm }),
        1 => prop_oneof![-900..900_i64, -4_000_000..4_000_000_i64].prop_map(|ms| Step::Set { ms }),
        1 => (1..1_000_000_i64, -1_000_000..1_000_000_i64)
            .prop_map(|(off_ms, ahead_ms)| Step::Boot { off_ms, ahead_ms }),
        6 => Just(Step::Record),
        3 => (0..50_000_i64, 0..50_000_i64).prop_map(|(there_us, back_us)| Step::Connect { there_us, back_us }),
    ]
}

/// A host as it truly is; all in nanoseconds.
struct World {
    now: i64,
    boot: i64,
    wall: i64,
    boots: Vec<BootBegin>,
    recorded: Vec<Moment>,
    sent: usize,
    history: ClockHistory,
    /// What time it was, by each clock, in which boot.
    truth: Vec<(i64, i64, usize)>,
    measured: std::collections::BTreeSet<usize>,
}

impl World {
    fn new() -> Self {
        let start = 10_000_000 * SECOND;
        let (boots, recorded) = (vec![begin("0", 1)], Vec::new());
        let (history, truth, measured) = Default::default();
        Self { now: start, boot: 5 * SECOND, wall: start, boots, recorded, sent: 0, history, truth, measured }
    }

    fn note(&mut self) {
        self.truth.push((self.now, self.wall, self.boots.len() - 1));
    }

    fn pass(&mut self, nanos: i64, drift_ppm: i64) {
        let counted = nanos + nanos / 1_000_000 * drift_ppm;
        self.now += nanos;
        self.boot += counted;
        self.wall += counted;
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Wait { ms, drift_ppm } => {
                for _ in 0..4 {
                    self.pass(ms * 250_000, drift_ppm);
                    self.note();
                }
            }
            Step::Set { ms } => {
                // Between two settings something is recorded: else there is nothing that the time between them matters to.
                self.record();
                self.wall += ms * 1_000_000;
                self.note();
            }
            Step::Boot { off_ms, ahead_ms } => {
                self.record();
                self.now += off_ms * 1_000_000;
                self.boot = 0;
                self.wall = self.now + ahead_ms * 1_000_000;
                let first = self.recorded.len() as u64 + 1;
                self.boots.retain(|begin| begin.first.0 != first);
                let name = self.truth.len().to_string();
                self.boots.push(begin(&name, first));
                self.record();
            }
            Step::Record => self.record(),
            Step::Connect { there_us, back_us } => self.connect(there_us * 1_000, back_us * 1_000),
        }
    }

    fn record(&mut self) {
        self.note();
        self.recorded.push(moment(self.wall, self.boot));
    }

    fn connect(&mut self, there: i64, back: i64) {
        let asked = self.now;
        self.pass(there, 0);
        let boot = self.boot;
        self.pass(back, 0);
        self.note();
        let current = self.boots.last().unwrap().boot_id.clone();
        let difference = Difference::between(asked - boot, self.now - boot);
        let reading = reading(&current, boot, difference, self.boots.clone());
        self.history.measured(&reading);
        self.measured.insert(self.boots.len() - 1);
        for (seq, moment) in (1..).zip(&self.recorded).skip(self.sent) {
            self.history.saw(Epoch(1), Some(Seq(seq)), *moment);
        }
        self.sent = self.recorded.len();
        self.history.saw(Epoch(1), None, moment(self.wall, self.boot));
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let clock = self.history.clock(at(self.now));
        let told_until = self.history.pieces.last().map_or(0, |last| last.last.wall.as_nanos_i64());
        let known = self.truth.iter().rposition(|(_, wall, _)| *wall == told_until).unwrap_or(0);
        for (now, wall, boot) in &self.truth[..known] {
            // By the millisecond around it.
            let around = Window::new(at(now - 500_000), at(now + 500_000)).unwrap();
            let over = clock.over(around);
            if over.unmeasured.is_empty() {
                let offset = over.difference.unwrap().balanced();
                prop_assert!(
                    offset.contains(wall - now),
                    "in boot {boot} at {now} it was {}, told {offset:?}: {:#?}",
                    wall - now,
                    self.history
                );
                // No other window has it for certain.
                for beside in [-SECOND, -1_000_000, 1_000_000, SECOND, 3_600 * SECOND] {
                    let other = Window::new(at(now + beside - 400_000), at(now + beside + 400_000)).unwrap();
                    prop_assert!(!clock.certainly_overlaps(other, at(*wall), at(*wall)), "{beside} beside");
                }
            }
            // Of what nobody recorded there is nothing to find.
            let recorded = self.recorded.iter().any(|moment| moment.wall == at(*wall));
            prop_assert!(!recorded || clock.latest(at(*now)) >= at(*wall), "{now} {wall}: {clock:#?}");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is told of the host's clock at any time is true, however it drifted, was set, booted, and was measured; and
    /// merging what is kept makes nothing of it wrong.
    #[test]
    fn the_true_offset_is_within_what_is_told(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        world.record();
        for step in &steps {
            world.run(step);
        }
        world.connect(1_000, 1_000);
        world.check()?;
    }
}
