//! Eviction: the oldest segments make room for new ones, and what nobody had acknowledged is counted.

use alibi_proto::{flow::RECORD_SPAN_MAX, id::Seq};

use super::{
    Options, Ring, RingError, Span, Times, checkpoint::Checkpoint, files, io_error, segment, view::Segment,
    writer::Plan,
};

impl Ring {
    /// Evicts the oldest segments until there is room for what is planned.
    pub(super) fn make_room(&mut self, plan: &Plan) -> Result<(), RingError> {
        let Options { bytes_max, segment_bytes, .. } = self.options;
        let actives = usize::from(self.active.is_some());
        loop {
            let (kept_bytes, evictable) = {
                let index = self.view.index();
                let bytes: u64 = index.segments.iter().map(|segment| segment.bytes).sum();
                (bytes, index.segments.len() - actives)
            };
            // Room for a whole segment is set aside when it is begun.
            let claimed_bytes = match (plan.new.len() as u64, self.active_bytes()) {
                (0, active_bytes) => active_bytes.map_or(0, |bytes| segment_bytes.saturating_sub(bytes)),
                (count, _) => plan.active_bytes + count * segment_bytes,
            };
            if evictable == 0 || kept_bytes + claimed_bytes <= bytes_max {
                return Ok(());
            }
            self.evict_oldest()?;
        }
    }

    /// The checkpoint knows of an eviction before it happens, so that it is accounted for whatever comes between.
    fn evict_oldest(&mut self) -> Result<(), RingError> {
        let (segment, evicted, count) = {
            let index = self.view.index();
            let Some(segment) = index.segments.front().cloned() else { return Ok(()) };
            let (end, bounds) = (index.end_of(0), index.bounds_of(0));
            let (acknowledged, evicted) = (index.acknowledged, index.evicted);
            drop(index);
            let first = segment.first_seq.max(acknowledged.next());
            if first < end {
                let times = segment.times.unwrap_or_else(|| self.read_times(&segment, end, bounds));
                let fresh = Span { first, last: Seq(end.0 - 1), times };
                (segment, Some(evicted.map_or(fresh, |span| span.and(fresh))), end.0 - first.0)
            } else {
                (segment, evicted, 0)
            }
        };
        self.checkpoint.write(&Checkpoint { evicted, ..self.remembered() })?;
        let mut index = self.view.index();
        files::remove(&segment.path).map_err(|source| io_error(&segment.path, source))?;
        index.segments.pop_front();
        index.evicted = evicted;
        drop(index);
        self.evicted_unreported += count;
        Ok(())
    }

    /// What the records of a segment speak of, from the segment itself; where it is damaged, at most.
    fn read_times(&self, segment: &Segment, end: Seq, bounds: Times) -> Times {
        let widest = Times { from: bounds.from.saturating_sub(RECORD_SPAN_MAX), to: bounds.to };
        match segment::scan(&segment.path, self.epoch(), segment.first_seq, segment.bytes) {
            Ok(scan) if scan.whole && scan.end_seq == Some(end) => scan.times.unwrap_or(widest),
            Ok(scan) => scan.times.map_or(widest, |times| times.and(widest)),
            Err(_) => widest,
        }
    }
}

impl Span {
    /// This and what follows on it.
    fn and(self, next: Self) -> Self {
        Self { first: self.first, last: next.last, times: self.times.and(next.times) }
    }
}
