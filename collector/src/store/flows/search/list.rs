//! Listings: records of all hosts in one order, a page at a time; whose records some are; and the records of many processes.
//!
//! What is listed by time is read in the order of time, row by row, and no further than the page needs: the columns of a source
//! are read once its time has come, and the record of a row once it is its turn. So where a listing is cut, all that comes before
//! the cut was looked at, and the next page goes on there.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    time::Instant,
};

use super::{
    Columns, Kept, Lost, Place as Where, Run, Source, Span, Spans, StoreError, Sweep, Times, View,
    all_blocks, unpack, unpack_columns,
};
use crate::{
    search::cursor::Place,
    store::listing::{FlowOrder, OWNERS_MAX},
};
use alibi_proto::flow::FlowRecord;

/// What is listed.
pub(in crate::store) struct Listed<'a> {
    pub(in crate::store) sweep: &'a Sweep,
    pub(in crate::store) spans: &'a Spans,
    pub(in crate::store) order: FlowOrder,
    /// Rows after this one alone.
    pub(in crate::store) after: Option<Place>,
    pub(in crate::store) limit: usize,
    /// So many records are read at most, and until then.
    pub(in crate::store) records_max: u64,
    pub(in crate::store) until: Instant,
    /// Whether a record of a host is wanted that all else admits.
    pub(in crate::store) wants: &'a mut dyn FnMut(u32, &FlowRecord) -> Result<bool, StoreError>,
}

/// A page of them.
#[derive(Debug, Default)]
pub(in crate::store) struct Page {
    pub(in crate::store) rows: Vec<(Place, FlowRecord)>,
    /// Where it goes on, if there may be more and that is known.
    pub(in crate::store) next: Option<Place>,
    /// Not everything was looked at that may belong here.
    pub(in crate::store) is_cut: bool,
    pub(in crate::store) looked_at: u64,
    pub(in crate::store) lost: Vec<Lost>,
}

/// Of a process: the number of its host, and its uid.
pub(in crate::store) type Owner = (u32, [u8; 16]);

/// Records that are read together: few first, which is enough where most are wanted.
const TOGETHER_FIRST: usize = if cfg!(test) { 16 } else { 512 };
const TOGETHER_MAX: usize = if cfg!(test) { 100 } else { 64 << 10 };
/// Rows whose turn has not come, of sources whose has. Few under test, so that there are more.
const WAITING_MAX: usize = if cfg!(test) { 600 } else { 1 << 20 };

/// Records of a process, and how many more it has.
type Records = (Vec<FlowRecord>, u64);

/// Sorted by it, least first: the order of a listing.
fn rank(order: FlowOrder, last: u64, bytes: u64) -> u64 {
    match order {
        FlowOrder::Newest => u64::MAX - last,
        FlowOrder::Oldest => last,
        FlowOrder::MostBytes => u64::MAX - bytes,
    }
}

/// The least rank that a row of a source with these times can have.
fn least_rank(order: FlowOrder, times: &Times) -> u64 {
    match order {
        FlowOrder::Newest => u64::MAX - times.until,
        FlowOrder::Oldest => times.last,
        FlowOrder::MostBytes => 0,
    }
}

fn bytes(record: &FlowRecord) -> u64 {
    record.traffic.map_or(0, |traffic| traffic.bytes_sent.saturating_add(traffic.bytes_received))
}

impl View {
    /// A page of a listing.
    pub(in crate::store) fn list(&self, listed: &mut Listed<'_>) -> Result<Page, StoreError> {
        let Some(hull) = listed.spans.hull else { return Ok(Page::default()) };
        let lost = self.lost.iter().filter(|lost| hull.may_have(&lost.times)).cloned().collect();
        let page = Page { lost, ..Page::default() };
        let mut sources = self.sources(listed, &hull);
        sources.sort_by_key(|(times, _)| least_rank(listed.order, times));
        let (times, sources) = sources.into_iter().unzip();
        let mut page = match listed.order {
            FlowOrder::Newest | FlowOrder::Oldest => {
                let merged = Merged {
                    view: self,
                    sources,
                    times,
                    loaded: 0,
                    waiting: BinaryHeap::new(),
                    beyond: None,
                    page,
                };
                merged.list(listed)
            }
            FlowOrder::MostBytes => self.largest(listed, &sources, page),
        }?;
        // One that is read several times is found damaged as often.
        let mut once: Vec<Lost> = Vec::with_capacity(page.lost.len());
        for lost in std::mem::take(&mut page.lost) {
            if !once.contains(&lost) {
                once.push(lost);
            }
        }
        page.lost = once;
        Ok(page)
    }

    /// Those with the most bytes, which only their records tell: every one that may be meant is read.
    fn largest(
        &self,
        listed: &mut Listed<'_>,
        sources: &[Source<'_>],
        mut page: Page,
    ) -> Result<Page, StoreError> {
        // One more than the page has, which tells that it goes on.
        let mut kept: BTreeMap<Place, FlowRecord> = BTreeMap::new();
        for (number, source) in sources.iter().enumerate() {
            if page.looked_at >= listed.records_max || Instant::now() >= listed.until {
                page.is_cut = true;
                break;
            }
            let chosen = match self.choose(source, listed) {
                Ok(chosen) => chosen,
                Err(error) => {
                    page.lost.push(source.lost(&error));
                    continue;
                }
            };
            page.looked_at += chosen.len() as u64;
            let places = chosen.iter().map(|(_, at)| (number, *at));
            let mut records = unpack(sources, places, &mut page.lost);
            for (place, at) in chosen {
                let Some(record) = records.remove(&(number, at)) else { continue };
                let place = Place { key: rank(listed.order, 0, bytes(&record)), ..place };
                let is_after = listed.after.is_none_or(|after| place > after);
                if is_after && (listed.wants)(place.host, &record)? {
                    kept.insert(place, record);
                    if kept.len() > listed.limit.saturating_add(1) {
                        kept.pop_last();
                    }
                }
            }
        }
        let goes_on = kept.len() > listed.limit;
        page.rows = kept.into_iter().take(listed.limit).collect();
        // After a cut, what was not looked at may belong before what was.
        if goes_on && !page.is_cut {
            page.next = page.rows.last().map(|(place, _)| *place);
        }
        Ok(page)
    }

    /// What may have rows that are meant.
    fn sources<'a>(&'a self, listed: &Listed<'_>, hull: &Span) -> Vec<(Times, Source<'a>)> {
        let is_after = |times: &Times| match (listed.order, listed.after) {
            (_, None) | (FlowOrder::MostBytes, _) => true,
            (FlowOrder::Newest, Some(after)) => u64::MAX - times.last >= after.key,
            (FlowOrder::Oldest, Some(after)) => times.until >= after.key,
        };
        let chunks = self.chunks().filter(|chunk| hull.may_have(&chunk.times) && is_after(&chunk.times));
        let mut sources: Vec<_> = chunks.map(|chunk| (chunk.times, Source::Chunk(chunk))).collect();
        for run in self.runs.iter().filter(|run| hull.may_have(&run.times)) {
            let only = self.blocks_of_one(run, listed.spans);
            for (at, block) in run.blocks.iter().enumerate() {
                let is_of_host = only.as_ref().is_none_or(|blocks| blocks.binary_search(&at).is_ok());
                let may_have =
                    hull.may_have(&block.times) && listed.sweep.may_have(block.lowest, block.highest);
                if is_of_host && may_have && is_after(&block.times) {
                    sources.push((block.times, Source::Block(run, at)));
                }
            }
        }
        sources
    }

    /// Where one host alone is meant: which blocks of a run have rows of it; none where that cannot be told.
    fn blocks_of_one(&self, run: &Run, spans: &Spans) -> Option<Vec<usize>> {
        let host = spans.only()?;
        run.day.read(|reading| reading.blocks_of(run, host)).ok()
    }

    /// The rows of a source that its columns admit, and that come after the page before.
    fn choose(&self, source: &Source<'_>, listed: &Listed<'_>) -> Result<Vec<(Place, usize)>, StoreError> {
        let by_time = listed.order != FlowOrder::MostBytes;
        let choose = |columns: &Columns| {
            let mut chosen = Vec::new();
            listed.sweep.rows(columns, listed.spans, self.shown_from, |at, _, _| {
                let place = Place {
                    key: if by_time { rank(listed.order, columns.last[at], 0) } else { 0 },
                    host: columns.host[at],
                    ring: columns.ring[at],
                    seq: columns.seq[at],
                    uid: [0; 16],
                };
                if !by_time || listed.after.is_none_or(|after| place > after) {
                    chosen.push((place, at));
                }
            });
            chosen
        };
        match source {
            Source::Chunk(chunk) => Ok(choose(&chunk.columns)),
            Source::Block(run, block) => {
                run.day.read(|reading| Ok(choose(&reading.columns(run, *block, unpack_columns)?)))
            }
        }
    }

    /// Whose the rows are that a sweep admits, with the end of the newest of each; and whether some are left out: those whose
    /// newest is the oldest.
    pub(in crate::store) fn owners(
        &self,
        sweep: &Sweep,
        spans: &Spans,
    ) -> (HashMap<Owner, u64>, bool, Vec<Lost>) {
        let mut owners: HashMap<Owner, u64> = HashMap::new();
        let mut is_cut = false;
        let lost = self.each(
            spans,
            |reading, run| sweep.blocks(&self.lookups, reading, run),
            |_, columns| {
                sweep.rows(columns, spans, self.shown_from, |at, _, _| {
                    let Some(owner) = columns.owner[at].checked_sub(1) else { return };
                    let owner = (columns.host[at], columns.owners[usize::from(owner)]);
                    let last = columns.last[at];
                    owners.entry(owner).and_modify(|newest| *newest = last.max(*newest)).or_insert(last);
                });
                if owners.len() > 2 * OWNERS_MAX {
                    is_cut = true;
                    keep_newest(&mut owners);
                }
                Ok(())
            },
        );
        if owners.len() > OWNERS_MAX {
            is_cut = true;
            keep_newest(&mut owners);
        }
        (owners, is_cut, lost)
    }

    /// The records of processes, of each the newest, at most `each`, and at most `all` of all; how many of each are left out;
    /// and what could not be read that may have some.
    pub(in crate::store) fn of_processes(
        &self,
        owners: &[Owner],
        each: usize,
        all: usize,
    ) -> (HashMap<Owner, Records>, Vec<Lost>) {
        let spans = Spans::of(owners.iter().map(|(host, _)| (*host, Span::EVER)));
        let mut kept: HashMap<Owner, (Kept, u64)> =
            owners.iter().map(|owner| (*owner, Default::default())).collect();
        let mut uids: Vec<[u8; 16]> = owners.iter().map(|(_, uid)| *uid).collect();
        uids.sort_unstable();
        let mut sources: Vec<Source<'_>> = Vec::new();
        let mut count = 0_usize;
        let mut lost = self.each(
            &spans,
            |_, run| all_blocks(run),
            |source, columns| {
                let is_meant: Vec<bool> =
                    columns.owners.iter().map(|owner| uids.binary_search(owner).is_ok()).collect();
                if !is_meant.contains(&true) {
                    return Ok(());
                }
                let number = sources.len();
                for at in 0..columns.rows() {
                    let Some(owner) = columns.owner[at].checked_sub(1).map(usize::from) else { continue };
                    if !is_meant[owner] || columns.last[at] < self.shown_from {
                        continue;
                    }
                    let owner = (columns.host[at], columns.owners[owner]);
                    let Some((kept, found)) = kept.get_mut(&owner) else { continue };
                    *found += 1;
                    // Where there is no room for more of all, each keeps its newest.
                    let is_full = kept.len() >= each || (count >= all && !kept.is_empty());
                    if count >= all && kept.is_empty() {
                        continue;
                    }
                    kept.insert((true, columns.last[at], (number, at)), ());
                    if is_full {
                        kept.pop_first();
                    } else {
                        count += 1;
                    }
                }
                sources.push(source);
                Ok(())
            },
        );
        let places: Vec<Where> =
            kept.values().flat_map(|(kept, _)| kept.keys().map(|(.., place)| *place)).collect();
        let mut records = unpack(&sources, places.into_iter(), &mut lost);
        let of_one = |(owner, (kept, found)): (Owner, (Kept, u64))| {
            let rows: Vec<FlowRecord> =
                kept.keys().rev().filter_map(|(.., place)| records.remove(place)).collect();
            let left_out = found.saturating_sub(rows.len() as u64);
            (owner, (rows, left_out))
        };
        (kept.into_iter().map(of_one).collect(), lost)
    }
}

/// Sources that are gone through together, row by row in the order of the listing.
struct Merged<'a> {
    view: &'a View,
    sources: Vec<Source<'a>>,
    times: Vec<Times>,
    /// How many of them have been opened.
    loaded: usize,
    /// Their rows that are still to come, the next one on top.
    waiting: BinaryHeap<Reverse<(Place, Where)>>,
    /// From here on, rows are missing for which there was no room.
    beyond: Option<Place>,
    page: Page,
}

impl Merged<'_> {
    fn list(mut self, listed: &mut Listed<'_>) -> Result<Page, StoreError> {
        let mut together = TOGETHER_FIRST;
        let mut at = None;
        loop {
            let batch = self.next(listed, together);
            let Some((last, _)) = batch.last().copied() else {
                self.page.is_cut = self.beyond.is_some();
                self.page.next = at.filter(|_| self.page.is_cut);
                break;
            };
            self.page.looked_at += batch.len() as u64;
            let places = batch.iter().map(|(_, place)| *place);
            let mut records = unpack(&self.sources, places, &mut self.page.lost);
            for (place, row) in batch {
                let Some(record) = records.remove(&row) else { continue };
                if !(listed.wants)(place.host, &record)? {
                    continue;
                }
                if self.page.rows.len() == listed.limit {
                    self.page.next = self.page.rows.last().map(|(place, _)| *place);
                    return Ok(self.page);
                }
                self.page.rows.push((place, record));
            }
            at = Some(last);
            if self.page.looked_at >= listed.records_max || Instant::now() >= listed.until {
                self.page.is_cut = true;
                self.page.next = at;
                break;
            }
            together = (together * 2).min(TOGETHER_MAX);
        }
        Ok(self.page)
    }

    /// The next rows, at most so many, before which there are no others.
    fn next(&mut self, listed: &Listed<'_>, count: usize) -> Vec<(Place, Where)> {
        let mut batch = Vec::new();
        while batch.len() < count {
            let best = self.times.get(self.loaded).map(|times| least_rank(listed.order, times));
            let next = self.waiting.peek().map(|Reverse((place, _))| *place);
            match (best, next) {
                (Some(best), next) if next.is_none_or(|next| best <= next.key) => self.load(listed),
                (_, Some(next)) if self.beyond.is_none_or(|beyond| next < beyond) => {
                    batch.extend(self.waiting.pop().map(|Reverse(row)| row));
                }
                _ => break,
            }
        }
        batch
    }

    fn load(&mut self, listed: &Listed<'_>) {
        let number = self.loaded;
        self.loaded += 1;
        let source = &self.sources[number];
        match self.view.choose(source, listed) {
            Ok(chosen) => {
                let rows = chosen.into_iter().map(|(place, at)| Reverse((place, (number, at))));
                self.waiting.extend(rows);
            }
            Err(error) => self.page.lost.push(source.lost(&error)),
        }
        if self.waiting.len() > 2 * WAITING_MAX {
            let mut rows = std::mem::take(&mut self.waiting).into_vec();
            let (_, Reverse((first, _)), _) =
                rows.select_nth_unstable_by(WAITING_MAX, |one, other| other.cmp(one));
            self.beyond = Some(self.beyond.map_or(*first, |beyond| beyond.min(*first)));
            rows.truncate(WAITING_MAX);
            self.waiting = rows.into();
        }
    }
}

fn keep_newest(owners: &mut HashMap<Owner, u64>) {
    let mut by_end: Vec<u64> = owners.values().copied().collect();
    let at = by_end.len() - OWNERS_MAX;
    let (_, oldest, _) = by_end.select_nth_unstable(at);
    let oldest = *oldest;
    owners.retain(|_, last| *last >= oldest);
}
