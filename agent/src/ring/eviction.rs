//! Eviction: the oldest segments make room for new ones, and what nobody had acknowledged is counted.

use alibi_proto::id::Seq;

use super::{
    Options, Ring, RingError, Span, Times, checkpoint::Checkpoint, files, io_error, segment, view::Segment,
    writer::Plan,
};

impl Ring {
    /// Evicts the oldest segments until there is room for what is planned, and for the segment that is set aside.
    pub(super) fn make_room(&mut self, plan: &Plan) -> Result<(), RingError> {
        let Options { bytes_max, segment_bytes, .. } = self.options;
        loop {
            // Room for a whole segment is set aside when it is begun; one that is begun takes what was set aside for it.
            let spare_bytes = if self.spare.is_some() { segment_bytes } else { 0 };
            let new_bytes = match plan.new.len() as u64 {
                0 => spare_bytes,
                count => count * segment_bytes,
            };
            let actives = usize::from(self.active.is_some());
            let evictable = self.view.index().segments.len() - actives;
            if evictable == 0 || self.claimed_bytes() + new_bytes <= bytes_max {
                return Ok(());
            }
            self.evict_oldest()?;
        }
    }

    /// Evicts what was acknowledged until a segment can be set aside within the budget; false if that would cost more: what
    /// is not acknowledged is worth more than room for what comes, and makes it when that is there.
    pub(super) fn make_room_for_spare(&mut self) -> Result<bool, RingError> {
        let Options { bytes_max, segment_bytes, .. } = self.options;
        while self.claimed_bytes() + segment_bytes > bytes_max {
            if !self.evict_acknowledged()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the segments have, and what the newest may still get.
    fn claimed_bytes(&self) -> u64 {
        let kept_bytes: u64 = self.view.index().segments.iter().map(|segment| segment.file_bytes).sum();
        let segment_bytes = self.options.segment_bytes;
        kept_bytes + self.active_bytes().map_or(0, |bytes| segment_bytes.saturating_sub(bytes))
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
                let fresh =
                    Span { first, last: Seq(end.0 - 1), from: times.speaks_from, to: times.recorded_to };
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
        match segment::scan(&segment.path, self.epoch(), segment.first_seq, segment.bytes, end, |_, _| {}) {
            Ok(scan) if scan.whole && scan.end_seq == Some(end) => scan.times.unwrap_or(bounds),
            Ok(scan) => scan.times.map_or(bounds, |times| times.and(bounds)),
            Err(_) => bounds,
        }
    }

    /// Evicts the oldest segment if that costs nothing: everything in it was acknowledged, and nothing more comes into it.
    pub(super) fn evict_acknowledged(&mut self) -> Result<bool, RingError> {
        let costs_nothing = {
            let index = self.view.index();
            let actives = usize::from(self.active.is_some());
            index.segments.len() > actives && index.acknowledged.next() >= index.end_of(0)
        };
        if costs_nothing {
            self.evict_oldest()?;
        }
        Ok(costs_nothing)
    }
}

impl Span {
    /// This and what follows on it.
    fn and(self, next: Self) -> Self {
        let (from, to) = (self.from.min(next.from), self.to.max(next.to));
        Self { first: self.first, last: next.last, from, to }
    }
}
