//! Reads the whole of a host's record again, and holds its chain against the anchors.

use std::collections::BTreeMap;

use alibi_proto::{
    chain::{Anchor, Head},
    coverage::{Hole, OVERWRITTEN},
    event::Batch,
    frame::Frame,
    id::{Cursor, Epoch, Seq},
    transport::Line,
    wire,
};
use tonic::Status;

use super::{
    follower::client,
    tail::{Budget, Tail, TailError},
};

/// Problems that are listed; more are counted only.
const PROBLEMS_MAX: usize = 64;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// The events that were read, and how many.
    pub(crate) from: Seq,
    pub(crate) to: Seq,
    pub(crate) events: u64,
    /// Anchors that hold, and those of which the record has no more.
    pub(crate) anchors: u64,
    pub(crate) anchors_gone: u64,
    /// What does not hold.
    pub(crate) problems: Vec<String>,
    pub(crate) problems_left_out: u64,
}

impl Verified {
    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.problems_left_out += 1;
        }
    }
}

/// Reads what the agent behind `line` has of the ring `epoch`, up to the newest of the anchors.
pub(super) async fn verify(
    line: Line,
    epoch: Epoch,
    anchors: &[Anchor],
    budget: Budget,
) -> Result<Verified, Status> {
    let described = client(&line).describe(wire::DescribeRequest {}).await?.into_inner();
    let mut check = Check::new(anchors);
    if described.epoch != epoch.0 {
        check.verified.problem(format!(
            "the agent has another ring (epoch {}) than the one that was anchored ({})",
            described.epoch, epoch.0
        ));
        return Ok(check.verified);
    }
    let first = Seq(described.first_seq.max(1));
    check.verified.from = first;
    let start = wire::Start { next: Some(Cursor { epoch, seq: first }.into()), anchors: Vec::new() };
    let mut tail = Tail::open(&line, start, budget).await?;
    while !check.is_done(described.next_seq) {
        let Some(received) = tail.next().await? else { break };
        if !check.take(received.message) {
            break;
        }
    }
    Ok(check.finish())
}

impl From<TailError> for Status {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Status(status) => status,
            other => Self::data_loss(other.to_string()),
        }
    }
}

/// The chain as it is read.
struct Check {
    /// By seq: those that are still to come.
    anchors: BTreeMap<Seq, Head>,
    head: Option<Head>,
    verified: Verified,
}

impl Check {
    fn new(anchors: &[Anchor]) -> Self {
        let anchors = anchors.iter().map(|anchor| (anchor.seq, anchor.head)).collect();
        Self { anchors, head: None, verified: Verified::default() }
    }

    /// Whether nothing more has to be read of a ring that has `next_seq`.
    fn is_done(&self, next_seq: u64) -> bool {
        let last = self.anchors.keys().next_back();
        last.is_none_or(|last| self.verified.to >= *last) || self.verified.to.0 + 1 >= next_seq
    }

    /// Holds a message against the chain and the anchors; false if the rest cannot be judged any more.
    fn take(&mut self, message: wire::TailResponse) -> bool {
        let frames: Vec<Frame> = message.frames.iter().cloned().map(Frame::from).collect();
        let batch = match Batch::try_from(message) {
            Ok(batch) => batch,
            Err(error) => {
                self.verified.problem(format!("after event {}: {error}", self.verified.to.0));
                return false;
            }
        };
        if let Some(Hole { first, last, reason, .. }) = &batch.hole {
            // What is overwritten while it is read is no more, and contradicts nothing.
            if reason != OVERWRITTEN {
                self.verified.problem(format!("events {} to {} are missing: {reason}", first.0, last.0));
            }
            self.pass(*last);
            self.head = None;
        }
        let Some(link) = batch.link else { return true };
        if let (Some(known), Some(previous)) = (self.head, link.previous)
            && known != previous
        {
            self.verified.problem(format!("the chain is broken before event {}", frames[0].first_seq.0));
        }
        // Where what was before is not known, nothing tells that these frames lead to the head that is said.
        let mut head = link.previous;
        for frame in &frames {
            head = head.map(|head| head.then(frame));
            self.reach(frame, head);
        }
        self.head = Some(link.head);
        self.verified.events += batch.events.len() as u64;
        true
    }

    /// A frame was read, after which the head is this, as far as it is known.
    fn reach(&mut self, frame: &Frame, head: Option<Head>) {
        let last = Seq(frame.end_seq().0 - 1);
        self.verified.to = last;
        let later = self.anchors.split_off(&frame.end_seq());
        for (seq, anchored) in std::mem::replace(&mut self.anchors, later) {
            match head {
                _ if seq < frame.first_seq => self.verified.anchors_gone += 1,
                Some(head) if seq == last && head == anchored => self.verified.anchors += 1,
                None if seq == last => self.verified.anchors_gone += 1,
                _ => self.verified.problem(format!(
                    "what is recorded up to event {} is not what was anchored after it",
                    seq.0
                )),
            }
        }
    }

    /// What comes up to `last` cannot be had any more.
    fn pass(&mut self, last: Seq) {
        self.verified.to = last;
        let later = self.anchors.split_off(&last.next());
        self.verified.anchors_gone += std::mem::replace(&mut self.anchors, later).len() as u64;
    }

    fn finish(mut self) -> Verified {
        for seq in std::mem::take(&mut self.anchors).into_keys() {
            if seq.0 + 1 < self.verified.from.0 {
                self.verified.anchors_gone += 1;
            } else if seq > self.verified.to {
                self.verified.problem(format!(
                    "event {} was anchored, and the record ends with {}: it was rewound",
                    seq.0, self.verified.to.0
                ));
            }
        }
        self.verified
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::frame::Packer;
    use prost::Message as _;

    use super::*;

    fn frame(first: u64, count: u64) -> Frame {
        let events: Vec<Vec<u8>> = (first..first + count)
            .map(|seq| wire::Event { seq, ..wire::Event::default() }.encode_to_vec())
            .collect();
        let payload = Packer::default().pack(&events.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Frame { first_seq: Seq(first), count: count as u32, payload }
    }

    fn message(previous: Option<Head>, frames: &[Frame]) -> (wire::TailResponse, Head) {
        let head = frames.iter().fold(previous.unwrap_or(Head::UNKNOWN), |head, frame| head.then(frame));
        let message = wire::TailResponse {
            epoch: 1,
            previous_head: previous.map(|head| head.as_bytes().to_vec()),
            head: Some(head.as_bytes().to_vec()),
            frames: frames.iter().cloned().map(Into::into).collect(),
            ..Default::default()
        };
        (message, head)
    }

    /// A record of three frames, with an anchor after each; then the check of what is read instead.
    fn check(read: impl FnOnce(&[Frame; 3], Head) -> Vec<wire::TailResponse>) -> Verified {
        let frames = [frame(1, 2), frame(3, 1), frame(4, 3)];
        let before = Head::from_bytes([7; 32]);
        let mut head = before;
        let anchors = frames.each_ref().map(|frame| {
            head = head.then(frame);
            Anchor { seq: Seq(frame.end_seq().0 - 1), head }
        });
        let mut check = Check::new(&anchors);
        check.verified.from = Seq(1);
        read(&frames, before).into_iter().all(|message| check.take(message));
        check.finish()
    }

    #[test]
    fn a_record_that_is_what_was_anchored_holds() {
        let verified = check(|frames, before| vec![message(Some(before), frames).0]);
        assert_eq!((verified.anchors, verified.events, verified.to), (3, 6, Seq(6)));
        assert!(verified.problems.is_empty(), "{verified:?}");
        let in_two = check(|frames, before| {
            let (first, head) = message(Some(before), &frames[..1]);
            vec![first, message(Some(head), &frames[1..]).0]
        });
        assert_eq!(in_two, verified);
    }

    #[test]
    fn what_was_changed_or_cut_off_is_told() {
        let problems = |verified: Verified| verified.problems.join("; ");
        let changed = check(|frames, before| {
            let (first, head) = message(Some(before), &frames[..1]);
            // Two events where there was one and three.
            vec![first, message(Some(head), &[frame(3, 4)]).0]
        });
        assert!(problems(changed).contains("up to event 3 is not what was anchored"));
        let cut = check(|frames, before| vec![message(Some(before), &frames[..2]).0]);
        assert_eq!(cut.anchors, 2);
        assert!(problems(cut).contains("event 6 was anchored, and the record ends with 3"));
        let broken = check(|frames, before| {
            let (first, _) = message(Some(before), &frames[..1]);
            vec![first, message(Some(Head::UNKNOWN), &frames[1..]).0]
        });
        assert!(problems(broken).contains("the chain is broken before event 3"));
        let without_the_second = |reason: &str| {
            check(|frames, before| {
                let (first, _) = message(Some(before), &frames[..1]);
                let reason = reason.to_owned();
                let hole = wire::Hole { first_seq: 3, last_seq: 3, reason, ..Default::default() };
                vec![first, wire::TailResponse { hole: Some(hole), ..message(None, &frames[2..]).0 }]
            })
        };
        let damaged = without_the_second("damaged");
        // Nothing tells what the third goes on from.
        assert_eq!((damaged.anchors, damaged.anchors_gone), (1, 2));
        assert!(problems(damaged).contains("events 3 to 3 are missing: damaged"));
        // What was overwritten meanwhile is no more: that takes nothing away from what is there.
        let overwritten = without_the_second(OVERWRITTEN);
        assert_eq!((overwritten.anchors, overwritten.anchors_gone), (1, 2));
        assert!(!problems(overwritten).contains("are missing"));
    }

    #[test]
    fn heads_that_are_only_claimed_prove_nothing() {
        let verified = check(|frames, before| {
            let mut head = before;
            let claim = |frame: &Frame| {
                head = head.then(frame);
                // Another event under the same seqs, with the head that was anchored.
                let last = frame.end_seq().0 - 1;
                let forged: Vec<Vec<u8>> = (frame.first_seq.0..=last)
                    .map(|seq| wire::Event { seq, time_ns: 99, ..wire::Event::default() }.encode_to_vec())
                    .collect();
                let payload = Packer::default().pack(&forged.iter().map(Vec::as_slice).collect::<Vec<_>>());
                wire::TailResponse {
                    epoch: 1,
                    head: Some(head.as_bytes().to_vec()),
                    frames: vec![Frame { payload, ..frame.clone() }.into()],
                    ..Default::default()
                }
            };
            frames.iter().map(claim).collect()
        });
        assert_eq!((verified.anchors, verified.anchors_gone), (0, 3), "{verified:?}");
    }
}
