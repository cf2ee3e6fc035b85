//! A host's clock, measured: four timestamps of a question and its answer, the best of several, as NTP does it.
//!
//! What is measured is the boot clock, which nobody can set; how far the wall clock is from it is told with everything that
//! the host sends. The collector's clock as the question was sent cannot be later than as the host received it, nor its clock
//! as the answer was heard earlier than as the host sent it: so much is certain however the delay is shared out between the
//! two ways. Of several the one with the least delay is the most exact.

use std::{sync::OnceLock, time::Duration};

use alibi_proto::{
    clock::{ClockReading, Difference, Reading, Readings, shifted},
    event::Batch,
    id::Epoch,
    time::{Moment, Timestamp},
    transport::Line,
    wire::{self, recorder_client::RecorderClient},
};
use tokio::time::Instant;
use tonic::Code;

use super::follower::FollowError;
use crate::clock;

/// Samples of the first measurement on a connection, and of each later one.
pub(super) const SAMPLES_FIRST: usize = 8;
pub(super) const SAMPLES_LATER: usize = 4;
/// How long an agent may take to tell its clock.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A clock of the collector's that was set while a sample was taken spoils it.
const SET_MIN: Duration = Duration::from_millis(1);
/// What is believed of an agent's list of boots: so many, with names no longer than this.
const BOOTS_MAX: usize = 64;
const BOOT_ID_BYTES_MAX: usize = 128;
/// The collector's own clock was set if it moved so much more or less than time passed.
const OWN_SET_MIN: Duration = Duration::from_millis(50);

/// One question about the clocks, and its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// As the question was sent, by the collector's clock.
    pub(super) asked: Timestamp,
    /// As it was received, by the host's clocks.
    pub(super) received: Moment,
    /// As the answer was sent, by the host's clocks.
    pub(super) sent: Moment,
    /// As it was heard, by the collector's clock.
    pub(super) heard: Timestamp,
}

impl Sample {
    /// The collector's clock less the host's boot clock; none if the times cannot be true.
    fn difference(&self) -> Option<Difference> {
        let less = |time: Timestamp, boot_ns: u64| {
            time.as_nanos_i64().checked_sub_unsigned(boot_ns).filter(|_| boot_ns <= Timestamp::MAX.as_nanos())
        };
        let least = less(self.asked, self.received.boot_ns)?;
        let most = less(self.heard, self.sent.boot_ns)?;
        let forward = self.sent.boot_ns >= self.received.boot_ns && self.heard >= self.asked;
        (forward && least <= most).then(|| Difference::between(least, most))
    }

    /// Whether the host's wall clock may be the collector's own.
    fn may_be_one_clock(&self) -> bool {
        self.received.wall >= self.asked && self.sent.wall <= self.heard
    }
}

/// The sample with the least delay, and what it tells.
pub(super) fn best(samples: &[Sample]) -> Option<(Sample, Difference)> {
    let told = samples.iter().filter_map(|sample| Some((*sample, sample.difference()?)));
    told.min_by_key(|(_, difference)| difference.width())
}

/// Measures the clock of the host at the other end; none if the agent cannot tell it, or if no sample was of use.
pub(super) async fn measure(
    client: &mut RecorderClient<Line>,
    count: usize,
) -> Result<Option<ClockReading>, FollowError> {
    let mut samples = Vec::new();
    let mut first: Option<wire::ClockResponse> = None;
    for _ in 0..count {
        let request = wire::ClockRequest { boots: first.is_none() };
        let (asked, began) = (clock::now(), Instant::now());
        let answer = tokio::time::timeout(SAMPLE_TIMEOUT, client.clock(request)).await;
        let (heard, took) = (clock::now(), began.elapsed());
        let answer = match answer.map_err(|_| FollowError::Silent)? {
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            answer => answer?.into_inner(),
        };
        let moment = |wall, boot_ns| Moment { wall: Timestamp::from_nanos(wall), boot_ns };
        let received = moment(answer.received_ns, answer.received_boot_ns);
        let sent = moment(answer.sent_ns, answer.sent_boot_ns);
        let by_wall = heard.since(asked);
        if heard >= asked && by_wall.abs_diff(took) < SET_MIN {
            samples.push(Sample { asked, received, sent, heard });
        }
        let first = first.get_or_insert_with(|| answer.clone());
        if (&first.boot_id, first.epoch) != (&answer.boot_id, answer.epoch) {
            return Err(FollowError::RingChanged);
        }
    }
    let Some((first, (sample, difference))) = first.zip(best(&samples)) else { return Ok(None) };
    let is_name = |id: &str| !id.is_empty() && id.len() <= BOOT_ID_BYTES_MAX;
    if !is_name(&first.boot_id) || first.boots.iter().any(|begin| !is_name(&begin.boot_id)) {
        return Ok(None);
    }
    // Of what lies before the first of these, no boot is known.
    let kept = first.boots.len().saturating_sub(BOOTS_MAX);
    let begins = first.boots.into_iter().skip(kept).map(Into::into).collect();
    Ok(Some(ClockReading {
        boot_ns: sample.sent.boot_ns,
        difference,
        measured: sample.heard,
        shared: (own_boot_id() == Some(first.boot_id.as_str()) && sample.may_be_one_clock())
            .then(|| Difference::of(sample.sent).offset()),
        boot_id: first.boot_id,
        epoch: Epoch(first.epoch),
        begins: Some(begins),
    }))
}

/// The boot that this very machine is in, where it has a number that no other machine's has.
fn own_boot_id() -> Option<&'static str> {
    static OWN: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    OWN.get_or_init(|| read().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty())).as_deref()
}

/// Whether the collector's own clock was set since.
#[derive(Debug)]
pub(super) struct OwnClock {
    wall: Timestamp,
    since: Instant,
}

impl OwnClock {
    /// Since now.
    pub(super) fn new() -> Self {
        Self { wall: clock::now(), since: Instant::now() }
    }

    /// Whether it was, if it shows `now`; being steered is not.
    pub(super) fn was_set(&self, now: Timestamp) -> bool {
        let passed = self.since.elapsed();
        let steered = OWN_SET_MIN.max(passed / 1_000);
        now.since(self.wall).abs_diff(passed) > steered || now < self.wall
    }
}

/// How the host's wall clock stands while it is followed.
#[derive(Debug, Default)]
pub(super) struct Standing {
    readings: Readings,
    shared: bool,
    offset: Option<Difference>,
}

impl Standing {
    /// Takes in a measurement.
    pub(super) fn measured(&mut self, reading: &ClockReading) {
        self.shared = reading.shared.is_some() && (self.shared || self.readings.all().is_empty());
        self.readings.add(Reading {
            from_boot_ns: reading.boot_ns,
            to_boot_ns: reading.boot_ns,
            difference: reading.difference,
            measured: reading.measured,
        });
    }

    /// Nobody knows what is yet to come: a watermark from a clock that is ahead, or was once, would stand for all the time
    /// until then, in which the host may be silent. So none is believed beyond the latest that the host's clock may show now.
    pub(super) fn credible(&mut self, batch: Batch, now: Timestamp) -> Batch {
        let measured = !self.readings.all().is_empty();
        let watermark = if measured && !self.shared {
            if let Some(moment) = batch.clock {
                let boot = i64::try_from(moment.boot_ns).unwrap_or(i64::MAX);
                let wall = Difference::of(moment);
                self.offset = self.readings.over(boot, boot).map(|reading| wall.less(reading));
            }
            // Where it does not tell its clock, it does not tell of which time it speaks.
            let latest =
                self.offset.filter(|_| batch.clock.is_some()).map(|offset| shifted(now, offset.most()));
            batch.watermark.zip(latest).map(|(watermark, latest)| watermark.min(latest))
        } else {
            batch.watermark.map(|watermark| watermark.min(now))
        };
        Batch { watermark, ..batch }
    }

    /// Up to which instant by the collector's clock everything is known, if it is so up to `known_until` by the host's.
    pub(super) fn known_until(&self, known_until: Timestamp) -> Timestamp {
        match self.offset {
            Some(offset) if !self.shared => shifted(known_until, offset.most().saturating_neg()),
            _ => known_until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn moment(wall: u64, boot_ns: u64) -> Moment {
        Moment { wall: Timestamp::from_nanos(wall), boot_ns }
    }

    /// However long each way takes, the truth is within the bound; and the best sample is that with the least delay.
    #[test]
    fn the_true_difference_is_within_the_bound_whatever_the_delays() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let booted = random.u64(SECOND..1_000 * SECOND);
            let mut now = 2_000 * SECOND;
            let mut least = u64::MAX;
            let samples: Vec<Sample> = (0..random.usize(1..9))
                .map(|_| {
                    let longest = [SECOND / 1_000, 10 * SECOND][random.usize(0..2)];
                    let (there, back) = (random.u64(0..longest), random.u64(0..longest));
                    let received = now + there;
                    let sent = received + random.u64(0..SECOND);
                    let asked = std::mem::replace(&mut now, sent + back);
                    least = least.min(there + back);
                    Sample {
                        asked: Timestamp::from_nanos(asked),
                        received: moment(0, received - booted),
                        sent: moment(0, sent - booted),
                        heard: Timestamp::from_nanos(now),
                    }
                })
                .collect();
            let (_, best) = best(&samples).unwrap();
            assert!(best.contains(i64::try_from(booted).unwrap()), "{samples:?}");
            assert_eq!(best.width(), least);
        }
    }

    #[test]
    fn times_that_cannot_be_true_tell_nothing() {
        let at = Timestamp::from_nanos;
        let sample =
            Sample { asked: at(1_000), received: moment(0, 10), sent: moment(0, 20), heard: at(1_100) };
        assert_eq!(sample.difference(), Some(Difference::between(990, 1_080)));
        for broken in [
            Sample { heard: at(999), ..sample },
            Sample { sent: moment(0, 9), ..sample },
            Sample { sent: moment(0, 200), ..sample },
            Sample { received: moment(0, u64::MAX), sent: moment(0, u64::MAX), ..sample },
        ] {
            assert_eq!(broken.difference(), None, "{broken:?}");
        }
        assert!(best(&[]).is_none());
    }

    #[test]
    fn one_machine_has_one_clock() {
        let at = Timestamp::from_nanos;
        let sample = |wall| Sample {
            asked: at(1_000),
            received: moment(wall, 1),
            sent: moment(wall, 2),
            heard: at(1_100),
        };
        assert!(sample(1_050).may_be_one_clock());
        assert!(!sample(999).may_be_one_clock() && !sample(1_101).may_be_one_clock());
    }

    fn believed(standing: &mut Standing, said: Option<u64>, clock: Option<u64>) -> Option<Timestamp> {
        // Booted 100 seconds ago.
        let clock = clock.map(|wall| moment(wall * SECOND, 100 * SECOND));
        let watermark = said.map(Timestamp::from_secs);
        let batch = Batch { epoch: Epoch(1), hole: None, events: vec![], link: None, watermark, clock };
        standing.credible(batch, Timestamp::from_secs(1_000)).watermark
    }

    fn measured(shared: bool) -> Standing {
        let mut standing = Standing::default();
        standing.measured(&ClockReading {
            boot_id: "boot".into(),
            boot_ns: 100 * SECOND,
            difference: Difference::between(899_900_000_000, 900_100_000_000),
            measured: Timestamp::from_secs(1_000),
            shared: shared.then_some(900_000_000_000),
            epoch: Epoch(1),
            begins: None,
        });
        standing
    }

    #[test]
    fn no_watermark_is_believed_beyond_now() {
        for (said, want) in [(None, None), (Some(999), Some(999)), (Some(1_000_000_000), Some(1_000))] {
            for standing in [&mut Standing::default(), &mut measured(true)] {
                assert_eq!(believed(standing, said, Some(1_000)), want.map(Timestamp::from_secs));
                assert_eq!(believed(standing, said, None), want.map(Timestamp::from_secs));
            }
        }
    }

    #[test]
    fn no_watermark_is_believed_beyond_now_by_the_hosts_clock() {
        let ahead = &mut measured(false);
        assert_eq!(believed(ahead, Some(4_599), Some(4_600)), Some(Timestamp::from_secs(4_599)));
        let latest = Timestamp::from_nanos(4_600_100_000_000);
        assert_eq!(believed(ahead, Some(1_000_000_000), Some(4_600)), Some(latest));
        assert_eq!(ahead.known_until(latest), Timestamp::from_secs(1_000));
        assert_eq!(believed(ahead, Some(4_599), None), None, "of which time does it speak?");
        let behind = &mut measured(false);
        assert_eq!(believed(behind, Some(999), Some(400)), Some(Timestamp::from_nanos(400_100_000_000)));
        assert_eq!(behind.known_until(Timestamp::from_secs(399)), Timestamp::from_nanos(998_900_000_000));
    }
}
