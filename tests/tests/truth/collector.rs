//! What a collector makes of what it hears of the host.

use std::collections::BTreeSet;

use alibi_agent::{
    recorder::Progress,
    ring::{ChainedFrame, Item, Reader, Standing, View},
};
use alibi_lab::history::TARGET;
use alibi_proto::{
    chain::Anchor,
    coverage::{Hole, Summary, another_past},
    event::{Event, EventKind},
    flow::FlowRecord,
    id::{Epoch, Seq},
    time::Timestamp,
    wire,
};
use prost::Message as _;

/// A collector of little memory keeps so many intervals.
const FEW_INTERVALS: usize = 8;

#[derive(Default)]
pub(crate) struct Collector {
    /// The ring that is followed.
    epoch: Epoch,
    pub(crate) summary: Summary,
    /// The same, but for what is long past.
    pub(crate) coarse: Summary,
    /// Those of the target.
    pub(crate) flows: Vec<FlowRecord>,
    pub(crate) known_until: Option<Timestamp>,
    /// The chain of the ring, and how far it was known then.
    anchors: Vec<(Anchor, Option<Timestamp>)>,
    /// Events of a kind that is not known here.
    unknown: BTreeSet<(Epoch, Seq)>,
    /// The agent knows more, or less.
    pub(crate) knows_other: bool,
}

impl Collector {
    /// So many events from `next` on are of a newer kind, unless they tell of coverage, which no newer kind does.
    pub(crate) fn does_not_know(&mut self, epoch: Epoch, next: Seq, count: u64) {
        self.unknown.extend((next.0..next.0 + count).map(|seq| (epoch, Seq(seq))));
    }

    pub(crate) fn take(&mut self, view: &View, progress: &Progress) {
        let epoch = view.epoch();
        let mut is_entered = self.epoch == epoch || self.epoch == Epoch::default();
        if !is_entered {
            self.anchors.clear();
            self.knows_other = true;
            (self.summary.next, self.coarse.next) = (Seq::FIRST, Seq::FIRST);
        }
        self.epoch = epoch;
        self.compare(view, progress.next_seq);

        let anchor = read(view, self.summary.next, progress.next_seq, |item| {
            if !std::mem::replace(&mut is_entered, true) {
                let begins = match &item {
                    Read::Event(event) => event.recorded.wall.min(event.speaks_from()),
                    Read::Hole(hole) => hole.from,
                };
                self.each(|summary, known_until| {
                    summary.enter_ring(Seq::FIRST, known_until, Some(begins));
                });
            }
            match item {
                Read::Event(mut event) => {
                    let tells_of_coverage = matches!(event.kind, EventKind::CoverageChanged(_));
                    if self.unknown.contains(&(epoch, event.seq)) && !tells_of_coverage {
                        event.kind = EventKind::Unrecognised;
                        self.knows_other = true;
                    }
                    self.each(|summary, known_until| summary.apply(&event, known_until));
                    if let EventKind::Flow(flow) = event.kind
                        && flow.remote.ip() == std::net::IpAddr::from(TARGET)
                    {
                        self.flows.push(*flow);
                    }
                }
                Read::Hole(hole) => {
                    self.knows_other = true;
                    self.each(|summary, _| summary.apply_hole(&hole));
                }
            }
        });
        self.coarse.compact(FEW_INTERVALS);
        self.known_until = self.known_until.max(progress.watermark);
        self.anchors.extend(anchor.map(|anchor| (anchor, self.known_until)));
    }

    /// What was told before is compared with what the ring is now.
    fn compare(&mut self, view: &View, recorded: Seq) {
        let is_same = |anchor: &Anchor| {
            anchor.seq < recorded && matches!(view.compare(anchor).unwrap(), Standing::Same | Standing::Gone)
        };
        let common = self.anchors.iter().rposition(|(anchor, _)| is_same(anchor)).map_or(0, |at| at + 1);
        if common == self.anchors.len() && self.summary.next <= recorded {
            return;
        }
        self.anchors.truncate(common);
        let common = self.anchors.last();
        let from = common.map_or(Seq::FIRST, |(anchor, _)| anchor.seq.next());
        let begins = common.and_then(|(_, known_until)| *known_until).unwrap_or_default();
        self.knows_other = true;
        self.each(|summary, known_until| {
            let until = known_until.unwrap_or(begins).max(begins);
            another_past("rewound", begins, until).for_each(|change| summary.change(&change));
            summary.next = from;
        });
    }

    fn each(&mut self, change: impl Fn(&mut Summary, Option<Timestamp>)) {
        change(&mut self.summary, self.known_until);
        change(&mut self.coarse, self.known_until);
    }
}

pub(crate) enum Read {
    Event(Event),
    Hole(Hole),
}

/// All from `from` up to `until`, in order. The head of the chain there, unless the last was a hole.
pub(crate) fn read(view: &View, from: Seq, until: Seq, mut take: impl FnMut(Read)) -> Option<Anchor> {
    let mut reader = Reader::new(view.clone(), from);
    let (mut next, mut anchor) = (from, None);
    while next < until {
        match reader.next_item().unwrap() {
            Item::Frame(ChainedFrame { frame, head, .. }) => {
                // A frame may begin before what is wanted of it.
                assert!(frame.first_seq <= next);
                for record in frame.unpack().unwrap().iter().skip((next.0 - frame.first_seq.0) as usize) {
                    next = next.next();
                    take(Read::Event(Event::try_from(wire::Event::decode(record).unwrap()).unwrap()));
                }
                assert!(next <= until, "what is told of is whole frames");
                anchor = Some(Anchor { seq: Seq(next.0 - 1), head });
            }
            Item::Hole(hole) => {
                assert_eq!(hole.first, next);
                next = hole.last.next();
                anchor = None;
                take(Read::Hole(hole));
            }
            Item::CaughtUp => break,
        }
    }
    anchor
}
