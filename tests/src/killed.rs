//! A writer of a ring that is there to be killed: it appends at full speed, and says of each step what it has begun and
//! much of what is done. Whoever reads that knows what the ring must hold at least whenever the writer ends.

use std::path::Path;

use alibi_agent::ring::{Key, Labels, Options, Record, Recovery, Ring};
use alibi_proto::{
    chain::Head,
    id::{Epoch, HostId, Seq},
    time::{Moment, Timestamp},
};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Whose ring it is.
pub const HOST: HostId = HostId::from_bytes([0xa1; 16]);
/// Which ring.
pub const EPOCH: Epoch = Epoch(0xa11b1);
/// So small that segments are begun and evicted all the time, and that a frame can be larger than a page.
pub const OPTIONS: Options = Options {
    bytes_max: 8 * SEGMENT_BYTES,
    segment_bytes: SEGMENT_BYTES,
    record_bytes_max: RECORD_BYTES_MAX,
};

const SEGMENT_BYTES: u64 = 12 << 10;
const RECORD_BYTES_MAX: usize = 2000;
/// Records of one append.
const RECORDS_MAX: u64 = 8;
/// The first record is recorded then, and each later one a second later.
const BEGINS_SECS: u64 = 1_000_000;

/// What the writer says, a line each: what is begun before it is, and what is done after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// It has opened the ring.
    Opened(Opening),
    /// Everything before this seq is appended.
    Appended(u64),
    /// What is appended is to be made safe, and that everything until then is recorded.
    Syncing(u64),
    /// It is.
    Safe(Safe),
    /// It will be told that everything up to this seq is delivered.
    Acknowledging(u64),
    /// It is to be closed, with everything recorded until then.
    Closing(u64),
    /// It is.
    Closed,
}

/// What was found when the ring was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the ring")]
pub struct Opening {
    pub first_seq: u64,
    pub next_seq: u64,
    pub acknowledged: u64,
    pub is_new: bool,
    pub was_closed_cleanly: bool,
    pub recorded_until_secs: Option<u64>,
    pub recorded_until_boot_ns: Option<u64>,
    pub boot: Option<u64>,
    pub cut_bytes: u64,
    pub lost_at_end: u64,
    pub checkpoint_lost: bool,
}

/// What is safe on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safe {
    /// Everything up to this seq.
    pub seq: u64,
    /// The head of the chain there.
    pub head: [u8; Head::BYTES],
    /// What is acknowledged.
    pub acknowledged: u64,
    /// Until when everything is recorded.
    pub until_secs: u64,
}

/// What record `seq` says if this run writes it.
pub fn record(run: u64, seq: u64) -> Record {
    let mut random = fastrand::Rng::with_seed(run << 32 ^ seq);
    let mut bytes = [run.to_le_bytes(), seq.to_le_bytes()].concat();
    let length = match random.u8(0..8) {
        0 => random.usize(0..RECORD_BYTES_MAX - bytes.len()),
        _ => random.usize(0..60),
    };
    // Some of it can be compressed.
    let alphabet = if random.bool() { 2 } else { u8::MAX };
    bytes.extend(std::iter::repeat_with(|| random.u8(0..alphabet)).take(length));
    let recorded = Timestamp::from_secs(BEGINS_SECS + seq);
    let labels = label(&bytes).expect("it says its seq");
    Record { seq: Seq(seq), speaks_from: labels.from, recorded, bytes, labels }
}

/// What a record can be found by.
pub fn label(bytes: &[u8]) -> Option<Labels> {
    let seq = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    let recorded_secs = BEGINS_SECS + seq;
    Some(Labels {
        kinds: 1 << (seq % 3),
        keys: vec![Key::of(1, &seq.to_le_bytes())],
        from: Timestamp::from_secs(recorded_secs - seq * 7 % 60),
    })
}

/// Opens the ring as an agent does.
///
/// # Errors
/// When it cannot be opened.
pub fn open(dir: &Path) -> Result<(Ring, Opening)> {
    let (ring, recovery) = Ring::open(dir, OPTIONS, HOST, EPOCH, label)?;
    let Recovery {
        is_new,
        was_closed_cleanly,
        recorded_until,
        recorded_at,
        boot,
        cut_bytes,
        lost_at_end,
        checkpoint_lost,
    } = recovery;
    let opening = Opening {
        first_seq: ring.first_seq().0,
        next_seq: ring.next_seq().0,
        acknowledged: ring.acknowledged().0,
        is_new,
        was_closed_cleanly,
        recorded_until_secs: recorded_until.map(|until| until.as_nanos() / 1_000_000_000),
        recorded_until_boot_ns: recorded_at.map(|at| at.boot_ns),
        boot,
        cut_bytes,
        lost_at_end,
        checkpoint_lost,
    };
    Ok((ring, opening))
}

/// The same instant by both clocks of a writer.
pub fn moment(secs: u64) -> Moment {
    Moment { wall: Timestamp::from_secs(secs), boot_ns: secs * 1_000_000_000 }
}

/// Writes until so many steps are done, which end in a clean close, or until it is killed.
///
/// # Errors
/// When the ring does not take what it is given.
pub fn write(dir: &Path, run: u64, steps: u64) -> Result<()> {
    let (mut ring, opening) = open(dir)?;
    let mut until_secs = opening.recorded_until_secs.unwrap_or(BEGINS_SECS);
    let mut random = fastrand::Rng::with_seed(run);
    let busy = random.u32(5..70);
    say(&Said::Opened(opening))?;
    ring.begin_boot(run);
    for _ in 0..steps {
        until_secs = until_secs.max(BEGINS_SECS + ring.next_seq().0) + u64::from(random.bool());
        match random.u32(0..100) {
            step if step < busy => {
                let next = ring.next_seq().0;
                let fresh: Vec<_> =
                    (next..next + random.u64(1..=RECORDS_MAX)).map(|seq| record(run, seq)).collect();
                ring.append(&fresh)?;
                // Most of the time goes into saying things, and a kill is to find it at work.
                if random.u8(0..4) == 0 {
                    say(&Said::Appended(ring.next_seq().0))?;
                }
            }
            step if step % 4 == 0 => {
                let seq = random.u64(0..ring.view().durable_next_seq().0);
                say(&Said::Acknowledging(seq))?;
                ring.acknowledge(Seq(seq))?;
            }
            step if step % 4 == 1 => ring.prepare()?,
            _ => {
                say(&Said::Syncing(until_secs))?;
                ring.sync(moment(until_secs).wall, moment(until_secs))?;
                let anchor = ring.view().anchor();
                let (seq, head) = (anchor.seq.0, *anchor.head.as_bytes());
                say(&Said::Safe(Safe { seq, head, acknowledged: ring.acknowledged().0, until_secs }))?;
            }
        }
    }
    say(&Said::Closing(until_secs))?;
    ring.mark_closed(moment(until_secs).wall, moment(until_secs))?;
    say(&Said::Closed)
}

/// In one piece, so that only the last line can be torn.
fn say(said: &Said) -> Result<()> {
    let line = serde_json::to_string(said)? + "\n";
    Ok(std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes())?)
}
