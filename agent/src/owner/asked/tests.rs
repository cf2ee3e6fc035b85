use std::fs;

use super::*;

const COLLECTOR: &str = "collector.example:8440";

fn entry(seq: u64) -> Entry {
    Entry {
        collector: COLLECTOR.to_owned(),
        seq,
        at: Timestamp::from_secs(1_000 + seq),
        who: format!("analyst {seq}\n\u{1b}[31m"),
        role: "analyst".to_owned(),
        action: "who".to_owned(),
    }
}

fn entries(seqs: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    seqs.into_iter().map(entry).collect()
}

/// What is told of the log: up to where, how many in all, and which are shown.
fn check(asked: &WhoAsked, until: u64, total: u64, shown: &[u64]) {
    let told = asked.told();
    let seqs: Vec<u64> = told.newest.iter().map(|entry| entry.seq).collect();
    assert_eq!((asked.until_seq(COLLECTOR), told.total, seqs.as_slice()), (until, total, shown));
    assert!(told.newest.iter().all(|shown| *shown == entry(shown.seq)));
}

#[test]
fn entries_are_taken_once_and_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("asked.jsonl");
    let asked = WhoAsked::open(&path);
    check(&asked, 0, 0, &[]);
    assert!(!path.exists(), "nobody asked yet");
    asked.take(entries([2, 3]));
    asked.take(entries([2, 3, 7]));
    asked.take(entries([5]));
    check(&asked, 7, 3, &[7, 3, 2]);
    check(&WhoAsked::open(&path), 7, 3, &[7, 3, 2]);
}

#[test]
fn the_oldest_are_forgotten_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("asked.jsonl");
    let asked = WhoAsked::open(&path);
    let mut largest = 0;
    for seq in 1..=100 {
        asked.take(entries([seq]));
        largest = largest.max(fs::metadata(&path).unwrap().len());
    }
    check(&asked, 100, 100, &[100, 99, 98, 97]);
    check(&WhoAsked::open(&path), 100, 100, &[100, 99, 98, 97]);
    let lines_max = largest as usize / (serde_json::to_vec(&entry(10)).unwrap().len() - 2);
    assert!(lines_max <= 2 * KEPT_MAX + 1, "{lines_max}");
    // More at once than are kept.
    asked.take(entries(101..=150));
    check(&WhoAsked::open(&path), 150, 150, &[150, 149, 148, 147]);
}

#[test]
fn a_kill_at_any_byte_costs_no_more_than_what_was_being_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("asked.jsonl");
    WhoAsked::open(&path).take(entries([1, 2]));
    let two = fs::read(&path).unwrap();
    let asked = WhoAsked::open(&path);
    asked.take(entries([3]));
    let three = fs::read(&path).unwrap();
    // Some systems put nothing in the place of a file that somebody else has open.
    drop(asked);
    for cut in two.len()..three.len() {
        fs::write(&path, &three[..cut]).unwrap();
        let asked = WhoAsked::open(&path);
        check(&asked, 2, 2, &[2, 1]);
        asked.take(entries([3]));
        check(&asked, 3, 3, &[3, 2, 1]);
        check(&WhoAsked::open(&path), 3, 3, &[3, 2, 1]);
    }
}

#[test]
fn what_is_damaged_is_begun_anew_and_what_is_newer_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("asked.jsonl");
    let header = "{\"format\":1,\"before\":0}\n";
    let line = |seq| format!("{}\n", serde_json::to_string(&entry(seq)).unwrap());
    for damaged in [
        String::new(),
        "\n".to_owned(),
        "nonsense\n".to_owned(),
        format!("{header}nonsense\n{}", line(1)),
        format!("{header}{}{}", line(2), line(1)),
        format!("{header}{}{}", line(1), line(1)),
        line(1),
    ] {
        fs::write(&path, &damaged).unwrap();
        let asked = WhoAsked::open(&path);
        check(&asked, 0, 0, &[]);
        asked.take(entries([4]));
        check(&WhoAsked::open(&path), 4, 1, &[4]);
    }
    let newer = "{\"format\":2,\"before\":0}\nanything\n";
    fs::write(&path, newer).unwrap();
    let asked = WhoAsked::open(&path);
    asked.take(entries([4]));
    check(&asked, 4, 1, &[4]);
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

#[test]
fn a_disk_that_takes_nothing_costs_nothing_before_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/asked.jsonl");
    let asked = WhoAsked::open(&path);
    asked.take(entries([1]));
    check(&asked, 1, 1, &[1]);
    fs::create_dir(directory.path().join("missing")).unwrap();
    asked.take(entries([2]));
    check(&WhoAsked::open(&path), 2, 2, &[2, 1]);
}

#[test]
fn each_collector_counts_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("asked.jsonl");
    let of_another = |seq| Entry { collector: "another:1".to_owned(), ..entry(seq) };
    let asked = WhoAsked::open(&path);
    asked.take(entries([7, 8]));
    asked.take(vec![of_another(1), of_another(2)]);
    for asked in [asked, WhoAsked::open(&path)] {
        assert_eq!((asked.until_seq("another:1"), asked.until_seq("third:1")), (2, 0));
        assert_eq!((asked.until_seq(COLLECTOR), asked.told().total), (8, 4));
    }
    let asked = WhoAsked::open(&path);
    asked.take(entries([8, 9]));
    assert_eq!((asked.until_seq(COLLECTOR), asked.told().total), (9, 5));
}
