//! A writer at full speed is killed at random moments, over and over, and each time the ring holds what it said.
//!
//! `ALIBI_LAB_SEED` and `ALIBI_LAB_ROUNDS` set which moments, and how many. A round that fails names its seed.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use alibi_agent::ring::{ChainedFrame, Item, Read, Reader, Selection, Standing, View};
use alibi_lab::killed::{self, OPTIONS, Opening, Said};
use alibi_proto::{
    chain::{Anchor, Head},
    coverage::Hole,
    id::Seq,
    time::Timestamp,
};

const ROUNDS: u64 = 500;
/// Then another ring is begun, so that some are killed while they are made.
const ROUNDS_OF_A_RING: u64 = 25;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap())
}

#[test]
fn whatever_a_killed_writer_said_is_true() {
    let seed = number("ALIBI_LAB_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = number("ALIBI_LAB_ROUNDS").unwrap_or(ROUNDS);
    // Shown if it fails.
    eprintln!("ALIBI_LAB_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let begun = Instant::now();
    let mut all = Counts::default();
    let mut round = 0;
    while round < rounds {
        let temporary = tempfile::tempdir().unwrap();
        let mut witness = Witness::new(&temporary.path().join("ring"));
        for _ in 0..ROUNDS_OF_A_RING.min(rounds - round) {
            round += 1;
            eprintln!("round {round}");
            witness.round(round, &mut random);
        }
        all.add(&witness.counts);
    }
    eprintln!("{rounds} rounds in {:?}: {all:?}", begun.elapsed());
    if rounds >= ROUNDS {
        assert!(all.kills > rounds / 2 && all.closes > 0, "{all:?}");
        assert!(all.overwritten > 0 && all.unheard > 0 && all.heads > rounds, "{all:?}");
    }
}

/// What was met, so that a test that tests nothing is seen.
#[derive(Debug, Default)]
struct Counts {
    kills: u64,
    closes: u64,
    /// Kills before the writer had said anything.
    early: u64,
    /// Kills after which there was more than had been said.
    unheard: u64,
    /// Kills that tore an append.
    torn: u64,
    /// Kills that left a segment that was set aside.
    unfinished: u64,
    records: u64,
    overwritten: u64,
    /// Heads that were compared.
    heads: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.closes += other.closes;
        self.early += other.early;
        self.unheard += other.unheard;
        self.torn += other.torn;
        self.unfinished += other.unfinished;
        self.records += other.records;
        self.overwritten += other.overwritten;
        self.heads += other.heads;
    }
}

/// Knows what a ring must hold: all that was said of it.
struct Witness {
    ring: PathBuf,
    /// Which run wrote from which seq on.
    runs: BTreeMap<u64, u64>,
    /// The next seq is at least this.
    next_seq: u64,
    /// Each of these has been the head after the record before it.
    heads: BTreeMap<u64, Head>,
    acknowledged: RangeInclusive<u64>,
    until_secs: (Option<u64>, Option<u64>),
    boots: Vec<Option<u64>>,
    /// Whether it was closed in order, if that is sure.
    is_closed: Option<bool>,
    /// Whether there is one, if that is sure.
    exists: Option<bool>,
    first_seq: u64,
    counts: Counts,
}

impl Witness {
    fn new(ring: &Path) -> Self {
        Self {
            ring: ring.to_owned(),
            runs: BTreeMap::new(),
            next_seq: 1,
            heads: BTreeMap::new(),
            acknowledged: 0..=0,
            until_secs: (None, None),
            boots: vec![None],
            is_closed: Some(false),
            exists: Some(false),
            first_seq: 1,
            counts: Counts::default(),
        }
    }

    /// A writer runs and ends somehow; what it leaves is held against what it said.
    fn round(&mut self, run: u64, random: &mut fastrand::Rng) {
        let said = self.run(run, random);
        let next_seq = self.next_seq;
        self.runs.insert(next_seq, run);
        self.exists = self.exists.filter(|exists| *exists);
        self.is_closed = self.is_closed.filter(|closed| !*closed);
        self.boots.push(Some(run));
        for said in &said {
            self.hear(said, run);
        }
        let unfinished = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "unfinished");
        self.counts.unfinished += u64::from(self.files().iter().any(unfinished));

        let view = match View::open_read_only(&self.ring) {
            Ok(view) => view,
            Err(error) => {
                assert!(self.exists != Some(true) && said.is_empty(), "{error}");
                return;
            }
        };
        self.exists = Some(true);
        self.check_view(&view, random);
        self.counts.unheard += u64::from(self.next_seq < view.next_seq().0);
        self.next_seq = view.next_seq().0;
        self.runs.retain(|_, by| *by != run);
        self.runs.insert(next_seq, run);
        // The next writer recovers what is here, or it is done here.
        if random.bool() {
            let (mut ring, opening) = killed::open(&self.ring).unwrap();
            self.check_opening(&opening);
            assert_eq!((ring.next_seq(), ring.first_seq()), (view.next_seq(), view.first_seq()));
            assert!(!self.files().iter().any(unfinished));
            self.check_view(&ring.view(), random);
            if random.u8(0..4) == 0 {
                let until_secs = self.until_secs.0.unwrap_or_default() + 5;
                ring.mark_closed(killed::moment(until_secs).wall, killed::moment(until_secs)).unwrap();
                self.until_secs = (Some(until_secs), Some(until_secs));
                self.is_closed = Some(true);
            }
        }
    }

    /// Runs a writer, kills it sometime, and returns all that it said.
    fn run(&mut self, run: u64, random: &mut fastrand::Rng) -> Vec<Said> {
        let is_spared = random.u8(0..8) == 0;
        let steps = if is_spared { random.u64(0..200) } else { u64::MAX };
        let mut writer = Command::new(env!("CARGO_BIN_EXE_lab"))
            .arg("write-ring")
            .arg(&self.ring)
            .args([run.to_string(), steps.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap());
        let mut said = Vec::new();
        let mut hear = |lines: &mut BufReader<_>| {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let whole = line.strip_suffix('\n');
            said.extend(whole.map(|line| serde_json::from_str::<Said>(line).unwrap()));
            whole.is_some()
        };
        if !is_spared {
            // Some before it has said anything, most in the midst of its work.
            let heard_max = if random.u8(0..6) == 0 { 0 } else { 1 << random.u32(0..9) };
            for _ in 0..random.u64(0..=heard_max) {
                assert!(hear(&mut lines), "the writer ended by itself");
            }
            let moment = Duration::from_micros(random.u64(0..if heard_max == 0 { 20_000 } else { 2_000 }));
            let begun = Instant::now();
            while begun.elapsed() < moment {
                std::thread::yield_now();
            }
            writer.kill().unwrap();
        }
        while hear(&mut lines) {}
        let status = writer.wait().unwrap();
        assert_eq!(status.success(), is_spared, "{status}");
        if is_spared {
            self.counts.closes += 1;
            assert_eq!(said.last(), Some(&Said::Closed));
        } else {
            self.counts.kills += 1;
            self.counts.early += u64::from(said.is_empty());
        }
        said
    }

    fn hear(&mut self, said: &Said, run: u64) {
        match said {
            Said::Opened(opening) => {
                self.check_opening(opening);
                self.is_closed = Some(false);
                self.exists = Some(true);
                self.boots.push(Some(run));
            }
            Said::Appended(next_seq) => self.next_seq = *next_seq,
            Said::Syncing(until_secs) => self.until_secs.1 = Some(*until_secs),
            Said::Safe(safe) => {
                assert!(self.acknowledged.contains(&safe.acknowledged));
                self.next_seq = self.next_seq.max(safe.seq + 1);
                self.heads.insert(safe.seq + 1, Head::from_bytes(safe.head));
                self.acknowledged = safe.acknowledged..=*self.acknowledged.end();
                self.until_secs.0 = Some(safe.until_secs);
                self.boots = vec![Some(run)];
            }
            Said::Acknowledging(seq) => {
                self.acknowledged = *self.acknowledged.start()..=*self.acknowledged.end().max(seq);
            }
            Said::Closing(until_secs) => {
                self.until_secs.1 = Some(*until_secs);
                self.is_closed = None;
            }
            Said::Closed => {
                self.until_secs.0 = self.until_secs.1;
                self.is_closed = Some(true);
            }
        }
    }

    /// What was found as the ring was opened for writing, after which there is no doubt.
    fn check_opening(&mut self, opening: &Opening) {
        assert_eq!((opening.lost_at_end, opening.checkpoint_lost), (0, false));
        assert!(self.exists.is_none_or(|exists| exists != opening.is_new));
        if opening.is_new {
            assert_eq!(opening.next_seq, 1);
            return;
        }
        assert_eq!((opening.first_seq, opening.next_seq), (self.first_seq, self.next_seq));
        assert!(self.acknowledged.contains(&opening.acknowledged), "{opening:?}: {:?}", self.acknowledged);
        self.acknowledged = opening.acknowledged..=opening.acknowledged;
        let is_told = self.until_secs.0 <= opening.recorded_until_secs
            && opening.recorded_until_secs <= self.until_secs.1;
        assert!(is_told, "{opening:?}: {:?}", self.until_secs);
        assert_eq!(
            opening.recorded_until_boot_ns,
            opening.recorded_until_secs.map(|secs| secs * 1_000_000_000)
        );
        self.until_secs = (opening.recorded_until_secs, opening.recorded_until_secs);
        assert!(self.boots.contains(&opening.boot), "{opening:?}: {:?}", self.boots);
        self.boots = vec![opening.boot];
        assert!(
            self.is_closed.is_none_or(|closed| closed == opening.was_closed_cleanly),
            "{opening:?}: {:?}",
            self.is_closed
        );
        assert!(!opening.was_closed_cleanly || opening.cut_bytes == 0, "{opening:?}");
        self.is_closed = Some(false);
        self.counts.torn += u64::from(opening.cut_bytes > 0);
    }

    fn check_view(&mut self, view: &View, random: &mut fastrand::Rng) {
        let (first_seq, next_seq) = (view.first_seq().0, view.next_seq().0);
        assert!(next_seq >= self.next_seq, "{next_seq}: up to {} was appended", self.next_seq);
        assert!(first_seq >= self.first_seq);
        self.first_seq = first_seq;
        assert!(self.acknowledged.contains(&view.acknowledged().0));
        assert!(self.is_closed.is_none_or(|closed| closed == view.is_closed_cleanly()));
        let bytes: u64 = self.files().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(bytes <= OPTIONS.bytes_max + 2 * 4096, "{bytes} bytes");

        self.counts.records += next_seq - first_seq;
        self.counts.overwritten += u64::from(first_seq > 1);
        self.check_records(view, 1);
        self.check_records(view, random.u64(1..=next_seq));
        self.check_records(view, view.acknowledged().0 + 1);
        for _ in 0..3 {
            if first_seq < next_seq {
                self.check_found(view, random.u64(first_seq..next_seq));
            }
        }
        self.check_heads(view, random);
    }

    /// What the record is that must be there.
    fn record(&self, seq: u64) -> alibi_agent::ring::Record {
        let (_, run) = self.runs.range(..=seq).next_back().unwrap();
        killed::record(*run, seq)
    }

    /// Everything is there from `from` on, but what was overwritten, of which a hole tells; and the chain holds.
    fn check_records(&self, view: &View, from: u64) {
        let mut reader = Reader::new(view.clone(), Seq(from));
        let mut expected = from;
        let mut head = None;
        loop {
            match reader.next_item().unwrap() {
                Item::Frame(ChainedFrame { frame, previous, head: after }) => {
                    assert!(head.is_none() || previous == head, "the chain breaks before {expected}");
                    assert!(previous.is_some_and(|previous| previous.then(&frame) == after));
                    head = Some(after);
                    let records = frame.unpack().unwrap();
                    for (bytes, seq) in records.iter().zip(frame.first_seq.0..) {
                        assert_eq!(bytes, self.record(seq).bytes, "record {seq}");
                        expected = expected.max(seq + 1);
                    }
                    assert_eq!(frame.end_seq().0, expected);
                }
                Item::Hole(hole) => {
                    assert_eq!((hole.first.0, hole.last.next()), (from, view.first_seq()));
                    self.check_hole(&hole);
                    expected = hole.last.0 + 1;
                }
                Item::CaughtUp => break,
            }
        }
        assert_eq!(expected, view.next_seq().0);
    }

    /// It is as wide as what is missing.
    fn check_hole(&self, hole: &Hole) {
        for seq in [hole.first.0, hole.first.0.midpoint(hole.last.0), hole.last.0] {
            let record = self.record(seq);
            assert!(hole.from <= record.speaks_from && record.recorded <= hole.to, "{hole:?}");
        }
    }

    /// Who looks for this record alone finds it.
    fn check_found(&self, view: &View, seq: u64) {
        let record = self.record(seq);
        let times = record.recorded..=Timestamp::MAX;
        let selection = Selection { kinds: record.labels.kinds, keys: Some(record.labels.keys), times };
        let mut reader = Reader::selecting(view.clone(), Seq::FIRST, selection);
        loop {
            match reader.next_records().unwrap() {
                Read::Records(first, records)
                    if (first.0..first.0 + records.rows().len() as u64).contains(&seq) =>
                {
                    return;
                }
                Read::Records(..) | Read::Hole(_) => {}
                Read::CaughtUp => panic!("record {seq} is not found"),
            }
        }
    }

    /// Every head that was ever told stands for the same past, or for one that is gone.
    fn check_heads(&mut self, view: &View, random: &mut fastrand::Rng) {
        self.heads.insert(view.next_seq().0, view.anchor().head);
        let (old, kept): (Vec<_>, Vec<_>) =
            self.heads.iter().partition(|(next_seq, _)| **next_seq < view.first_seq().0);
        let compare =
            |next_seq: u64, head: Head| view.compare(&Anchor { seq: Seq(next_seq - 1), head }).unwrap();
        for (next_seq, head) in &kept {
            assert_eq!(compare(**next_seq, **head), Standing::Same, "before {next_seq}");
        }
        if let Some((next_seq, head)) = random.choice(&old) {
            assert_eq!(compare(**next_seq, **head), Standing::Gone, "before {next_seq}");
        }
        if let Some((next_seq, _)) = random.choice(&kept) {
            assert_eq!(compare(**next_seq, Head::UNKNOWN), Standing::Other, "before {next_seq}");
        }
        assert_eq!(compare(view.next_seq().0 + 1, Head::UNKNOWN), Standing::Ahead);
        self.counts.heads += kept.len() as u64;
    }

    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.ring) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}
