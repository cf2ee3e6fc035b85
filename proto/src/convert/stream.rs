//! The stream of an agent's events.

use prost::Message as _;

use super::{Result, bad, optional_time};
use crate::{
    chain::{Anchor, Anchored, ChainBreak, ChainStatus, Head},
    coverage::Hole,
    event::{Batch, Event, Link},
    frame::{Frame, FrameError},
    id::{Epoch, Seq},
    time::{Moment, Timestamp},
    wire,
};

/// Anchors that a client tells at most.
pub const ANCHORS_MAX: usize = 1024;
/// Frames that one message has at most.
pub const FRAMES_MAX: usize = 4096;
/// What the events of one message take together at most, unpacked.
pub const UNPACKED_BYTES_MAX: usize = 2 * crate::frame::UNPACKED_BYTES_MAX;

impl From<Frame> for wire::Frame {
    fn from(frame: Frame) -> Self {
        Self { first_seq: frame.first_seq.0, count: frame.count, payload: frame.payload }
    }
}

impl From<wire::Frame> for Frame {
    fn from(frame: wire::Frame) -> Self {
        Self { first_seq: Seq(frame.first_seq), count: frame.count, payload: frame.payload }
    }
}

impl From<Anchor> for wire::Anchor {
    fn from(anchor: Anchor) -> Self {
        Self { seq: anchor.seq.0, head: anchor.head.as_bytes().to_vec() }
    }
}

impl TryFrom<wire::Anchor> for Anchor {
    type Error = super::ConvertError;

    fn try_from(anchor: wire::Anchor) -> Result<Self> {
        Ok(Self { seq: Seq(anchor.seq), head: head("anchor.head", &anchor.head)? })
    }
}

impl From<ChainStatus> for wire::ChainStatus {
    fn from(status: ChainStatus) -> Self {
        let anchored = status.anchored;
        Self {
            anchor: anchored.map(|anchored| anchored.anchor.into()),
            epoch: anchored.map_or(0, |anchored| anchored.epoch.0),
            anchored_ns: anchored.map_or(0, |anchored| anchored.at.as_nanos()),
            breaks: status
                .breaks
                .into_iter()
                .map(|ChainBreak { at, epoch, seq, reason }| wire::ChainBreak {
                    at_ns: at.as_nanos(),
                    epoch: epoch.0,
                    seq: seq.0,
                    reason,
                })
                .collect(),
        }
    }
}

impl TryFrom<wire::ChainStatus> for ChainStatus {
    type Error = super::ConvertError;

    fn try_from(status: wire::ChainStatus) -> Result<Self> {
        let (epoch, at) = (Epoch(status.epoch), Timestamp::from_nanos(status.anchored_ns));
        let anchor = status.anchor.map(Anchor::try_from).transpose()?;
        let breaks = status.breaks.into_iter().map(|one| ChainBreak {
            at: Timestamp::from_nanos(one.at_ns),
            epoch: Epoch(one.epoch),
            seq: Seq(one.seq),
            reason: one.reason,
        });
        Ok(Self { anchored: anchor.map(|anchor| Anchored { epoch, anchor, at }), breaks: breaks.collect() })
    }
}

impl TryFrom<wire::TailResponse> for Batch {
    type Error = super::ConvertError;

    fn try_from(response: wire::TailResponse) -> Result<Self> {
        let hole = response.hole.map(Hole::try_from).transpose()?;
        let previous = response.previous_head.map(|bytes| head("previous_head", &bytes)).transpose()?;
        let claimed = response.head.map(|bytes| head("head", &bytes)).transpose()?;
        if response.frames.len() > FRAMES_MAX {
            return bad("frames", format!("are {}: {FRAMES_MAX} may come at once", response.frames.len()));
        }
        let frames: Vec<Frame> = response.frames.into_iter().map(Frame::from).collect();
        let unpacked_bytes: usize = frames.iter().map(Frame::unpacked_bytes).sum();
        if unpacked_bytes > UNPACKED_BYTES_MAX {
            return bad(
                "frames",
                format!("are {unpacked_bytes} bytes: {UNPACKED_BYTES_MAX} may come at once"),
            );
        }

        let mut expected = hole.as_ref().map(|hole| hole.last.next());
        let mut head = previous;
        let mut events = Vec::new();
        for frame in &frames {
            if frame.first_seq < Seq::FIRST || expected.is_some_and(|expected| expected != frame.first_seq) {
                return bad("frames", format!("jump to seq {} without a hole", frame.first_seq.0));
            }
            if frame.first_seq.0.checked_add(frame.count.into()).is_none() {
                return bad("frames", format!("end beyond every seq, from {} on", frame.first_seq.0));
            }
            unpack(frame, &mut events)?;
            expected = Some(frame.end_seq());
            head = head.map(|head| head.then(frame));
        }
        let link = match (events.is_empty(), head, claimed) {
            (true, ..) => None,
            (false, _, None) => return bad("head", "is missing"),
            (false, Some(head), Some(claimed)) if head != claimed => {
                return bad("head", format!("is {claimed}, and {head} by its frames"));
            }
            (false, _, Some(head)) => Some(Link { previous, head }),
        };
        let watermark = optional_time(response.watermark_ns);
        let clock = optional_time(response.clock_ns)
            .zip(response.clock_boot_ns)
            .map(|(wall, boot_ns)| Moment { wall, boot_ns });
        Ok(Self { epoch: Epoch(response.epoch), hole, events, link, watermark, clock })
    }
}

/// Adds the events of a frame.
fn unpack(frame: &Frame, events: &mut Vec<Event>) -> Result<()> {
    let problem = |error: FrameError| super::ConvertError {
        field: "frames",
        problem: format!("have one that cannot be read: {error}"),
    };
    for (record, seq) in frame.unpack().map_err(problem)?.iter().zip(frame.first_seq.0..) {
        let event = wire::Event::decode(record)
            .or_else(|error| bad("frames", format!("have an event that cannot be read: {error}")))?;
        let event = Event::try_from(event)?;
        if event.seq.0 != seq {
            return bad(
                "frames",
                format!("jump to seq {} without a hole, at the place of {seq}", event.seq.0),
            );
        }
        events.push(event);
    }
    Ok(())
}

fn head(field: &'static str, bytes: &[u8]) -> Result<Head> {
    let bytes = bytes.try_into().or_else(|_| bad(field, format!("has {} bytes, not 32", bytes.len())))?;
    Ok(Head::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Packer;

    fn frame(seqs: &[u64]) -> Frame {
        let events: Vec<Vec<u8>> =
            seqs.iter().map(|&seq| wire::Event { seq, ..wire::Event::default() }.encode_to_vec()).collect();
        let payload = Packer::default().pack(&events.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Frame { first_seq: Seq(seqs[0]), count: seqs.len() as u32, payload }
    }

    fn response(frames: &[&[u64]], hole: Option<(u64, u64)>) -> wire::TailResponse {
        let before = Head::UNKNOWN;
        let frames: Vec<Frame> = frames.iter().map(|seqs| frame(seqs)).collect();
        let head = frames.iter().fold(before, |head, frame| head.then(frame));
        wire::TailResponse {
            epoch: 1,
            hole: hole.map(|(first_seq, last_seq)| wire::Hole {
                first_seq,
                last_seq,
                ..wire::Hole::default()
            }),
            previous_head: Some(before.as_bytes().to_vec()),
            head: Some(head.as_bytes().to_vec()),
            frames: frames.into_iter().map(Into::into).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_batch_with_a_silent_hole_is_refused() {
        let batch = |frames: &[&[u64]], hole| Batch::try_from(response(frames, hole));
        assert_eq!(batch(&[&[5, 6], &[7]], None).unwrap().events.len(), 3);
        assert!(batch(&[&[8, 9]], Some((5, 7))).is_ok());
        assert!(batch(&[&[5], &[7]], None).is_err());
        assert!(batch(&[&[7], &[6]], None).is_err());
        assert!(batch(&[&[9]], Some((5, 7))).is_err());
        assert!(batch(&[&[0]], None).is_err());
        assert!(batch(&[&[5, 7]], None).is_err(), "within a frame");
        assert!(batch(&[], Some((7, 5))).is_err());
        assert!(batch(&[&[u64::MAX]], None).is_err(), "no event can follow it");
    }

    #[test]
    fn a_chain_that_does_not_hold_is_refused() {
        let good = response(&[&[5, 6], &[7]], None);
        let link = Batch::try_from(good.clone()).unwrap().link.unwrap();
        assert_eq!(link.previous, Some(Head::UNKNOWN));
        let check = |change: fn(&mut wire::TailResponse), problem: &str| {
            let mut changed = good.clone();
            change(&mut changed);
            let error = Batch::try_from(changed).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        };
        check(|response| response.head = None, "`head` is missing");
        check(|response| response.head = Some(vec![1; 32]), "by its frames");
        check(|response| response.head = Some(vec![1; 31]), "has 31 bytes, not 32");
        check(|response| response.previous_head = Some(vec![1; 32]), "by its frames");
        check(|response| response.frames[1].payload[8] ^= 1, "`frames` have one that cannot be read");
        check(|response| response.frames[1].count = 2, "`frames` have one that cannot be read");

        // After a hole nobody knows what was before, and the head is believed.
        let unknown = wire::TailResponse { previous_head: None, head: Some(vec![1; 32]), ..good.clone() };
        let link = Batch::try_from(unknown).unwrap().link.unwrap();
        assert_eq!(link, Link { previous: None, head: Head::from_bytes([1; 32]) });
    }

    #[test]
    fn a_message_is_bounded_before_it_is_unpacked() {
        let one = frame(&[1]);
        let many: Vec<wire::Frame> = vec![one.clone().into(); FRAMES_MAX + 1];
        let response = wire::TailResponse { frames: many, ..Default::default() };
        assert!(Batch::try_from(response).unwrap_err().to_string().contains("may come at once"));
        let mut large = one;
        large.payload[1..5].copy_from_slice(&(UNPACKED_BYTES_MAX as u32).to_le_bytes());
        let frames = vec![large.clone().into(), large.into()];
        let response = wire::TailResponse { frames, ..Default::default() };
        assert!(Batch::try_from(response).unwrap_err().to_string().contains("bytes: "));
    }
}
