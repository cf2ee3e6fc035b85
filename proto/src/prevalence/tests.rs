//! What proves that something was new, and what does not.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use super::*;
use crate::coverage::CoverageChange;

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn window(from: u64, to: u64) -> Window {
    Window::new(at(from), at(to)).unwrap()
}

const DAY: u64 = 86_400;

fn timeline(changes: &[(Grade, u64, Option<u64>)]) -> Timeline {
    let mut timeline = Timeline::default();
    for (grade, from, to) in changes {
        timeline.apply(&CoverageChange {
            facet: Facet::Processes,
            grade: grade.clone(),
            from: at(*from),
            to: to.map(at),
            scope: None,
            announced_from: None,
        });
    }
    timeline
}

fn lost() -> Grade {
    Grade::Lost { count: 3, reason: "no room".into() }
}

#[test]
fn only_a_complete_past_that_is_long_enough_proves_that_nothing_was_there() {
    let complete = (Grade::Complete, 100, None);
    let check =
        |changes: &[(Grade, u64, Option<u64>)], from, recorded_for: Option<u64>, want: Result<(), &str>| {
            let recorded_for = recorded_for.map(Duration::from_secs);
            let (clock, window) = (HostClock::own(), window(from, from + 10));
            let before =
                recorded_before(&timeline(changes), &clock, window, recorded_for, Some(at(from + 10)));
            match want {
                Ok(()) => assert_eq!(before, RecordedBefore { since: Some(at(100)), problem: None }),
                Err(want) => assert!(before.problem.as_deref().unwrap().contains(want), "{before:?}"),
            }
        };
    let one = std::slice::from_ref(&complete);
    check(one, 2 * DAY, None, Ok(()));
    check(one, 2 * DAY, Some(DAY), Ok(()));
    check(one, DAY, None, Err("recorded for 23 h only"));
    check(one, DAY, Some(3_600), Ok(()));
    check(one, 3_600, Some(3_600), Err("recorded for 58 min only"));
    check(one, 100, None, Err("nothing was recorded before"));
    check(&[], 2 * DAY, None, Err("nothing was recorded before"));
    let with_loss = [complete.clone(), (lost(), 5_000, Some(5_001))];
    check(
        &with_loss,
        2 * DAY,
        None,
        Err("1 gap from 1970-01-01T01:23:20Z until 1970-01-01T01:23:21Z, lost: no room"),
    );
    check(&with_loss, 2 * DAY, Some(DAY), Ok(()));
    check(&with_loss, 2 * DAY, Some(2 * DAY - 5_001), Ok(()));
    check(&with_loss, 2 * DAY, Some(2 * DAY - 5_000), Err("1 gap"));
    let sampled = (Grade::Sampled { period: Duration::from_secs(1) }, 100, None);
    check(&[sampled], 2 * DAY, None, Err("sampled"));
    let stopped = Grade::NotRecorded { reason: "stopped".into() };
    let again = [complete.clone(), (stopped, 200, None), (Grade::Complete, 300, None)];
    check(&again, 2 * DAY, None, Err("stopped"));
}

#[test]
fn what_has_not_been_received_proves_nothing() {
    let complete = timeline(&[(Grade::Complete, 100, None)]);
    let before = |known_until| {
        let window = window(2 * DAY, 2 * DAY + 10);
        recorded_before(&complete, &HostClock::own(), window, None, known_until).problem
    };
    assert_eq!(before(Some(at(2 * DAY))), None);
    assert!(before(Some(at(2 * DAY - 1))).unwrap().contains("not received"));
    assert!(before(None).is_some());
    let unmeasured = recorded_before(&complete, &HostClock::default(), window(9, 10), None, None);
    assert!(unmeasured.problem.unwrap().contains("not measured"));
}

#[test]
fn what_the_clock_leaves_open_is_neither_new_nor_seen_before() {
    let instant = |earliest, latest| Instant { earliest: at(earliest), latest: at(latest) };
    let of =
        |earliest, latest, problem| Novelty::of(instant(earliest, latest), window(100, 200), problem).word();
    assert_eq!(of(100, 100, None), "new");
    assert_eq!(of(99, 99, Some("a gap")), "seen_before");
    assert_eq!(of(99, 100, None), "unknown");
    assert_eq!(of(150, 160, Some("a gap")), "unknown");
    assert_eq!(of(200, 200, None), "unknown", "it came later");
    let any = Instant::of(&HostClock::default(), at(150));
    assert!(!any.is_measured() && any.told(at(150)) == at(150));
    assert_eq!(Novelty::of(any, window(100, 200), None).word(), "unknown");
    assert_eq!(instant(10, 20).told(at(5)), at(15));
}

#[test]
fn what_is_known_of_an_executable_is_completed_and_not_contradicted() {
    use crate::executable::SignatureStatus::{Trusted, Untrusted};
    let signed = |signature| About { signature: Some(signature), ..About::default() };
    let check = |before: &About, other: &About, after: &About| {
        let mut about = before.clone();
        about.completed_by(other);
        assert_eq!(about, *after);
    };
    let (busy, trusted) = (Signature::not_checked("busy"), Signature::of_status(Trusted, None));
    let untrusted = Signature::of_status(Untrusted, None);
    check(&About::default(), &signed(busy.clone()), &signed(busy.clone()));
    check(&signed(busy.clone()), &About::default(), &signed(busy.clone()));
    check(&signed(busy.clone()), &signed(trusted.clone()), &signed(trusted.clone()));
    check(&signed(trusted.clone()), &signed(busy), &signed(trusted.clone()));
    check(&signed(trusted.clone()), &signed(untrusted), &signed(trusted));
    let package = Package { name: "a".into(), version: "1".into(), source: "dpkg".into() };
    let packaged = About { package: Some(package), ..About::default() };
    check(&About::default(), &packaged, &packaged);
    assert!(About::default().is_empty() && !packaged.is_empty());
}

#[test]
fn only_its_content_tells_an_executable_wherever_it_is() {
    let file = FileIdentity { device: 1, inode: 2, modified: at(3), size: 4 };
    let sha256 = Sha256::from_bytes([1; 32]);
    let of = |sha256, file, path| Identity::of(sha256, file, path);
    assert_eq!(of(Some(sha256), Some(file), Some("/a")), Some(Identity::Sha256(sha256)));
    assert_eq!(of(None, Some(file), Some("/a")), Some(Identity::File(file)));
    assert_eq!(of(None, None, Some("/a")), Some(Identity::Path("/a".into())));
    assert_eq!((of(None, None, Some("")), of(None, None, None)), (None, None));
    assert_eq!(Identity::Sha256(sha256).problem(), None);
    assert!(Identity::File(file).problem().is_some() && Identity::Path("/a".into()).problem().is_some());
    let long = "ü".repeat(PATH_BYTES_MAX);
    assert_eq!(path_kept(&long).len(), PATH_BYTES_MAX);
}
