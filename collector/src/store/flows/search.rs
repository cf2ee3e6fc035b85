//! The search: over all hosts at once, or some. Of each block the columns tell which rows may be wanted; the records are
//! unpacked of those alone that are.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use alibi_proto::{flow::FlowRecord, wire};

use super::{
    Chunk, Lost, View,
    block::{Columns, Remote, records},
    day::{Block, Reading, Run, Times},
    lookup::{Lookup, Lookups, Unnamed},
    unpack as unpack_columns,
};
use crate::store::{
    ByKey, StoreError,
    codec::{damaged, decode},
};

mod list;

pub(in crate::store) use list::{Listed, Owner};

/// Which of a host's rows are near enough to its window, in nanoseconds of its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Span {
    /// They end no earlier.
    pub(in crate::store) looks_back_to: u64,
    /// The window's beginning: those that end no earlier are in it.
    pub(in crate::store) from: u64,
    /// The window's end: they begin before.
    pub(in crate::store) to: u64,
}

impl Span {
    /// All that there is.
    pub(in crate::store) const EVER: Self = Self { looks_back_to: 0, from: 0, to: u64::MAX };

    const fn and(self, other: Self) -> Self {
        const fn min(one: u64, other: u64) -> u64 {
            if one < other { one } else { other }
        }
        Self {
            looks_back_to: min(self.looks_back_to, other.looks_back_to),
            from: min(self.from, other.from),
            to: if self.to > other.to { self.to } else { other.to },
        }
    }

    /// Whether rows of these times may be among them.
    const fn may_have(&self, times: &Times) -> bool {
        times.until >= self.looks_back_to && times.first < self.to
    }

    const fn has(&self, first: u64, last: u64) -> bool {
        last >= self.looks_back_to && first < self.to
    }
}

/// Which hosts are meant, and of each the rows of which times.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Spans {
    by_host: ByKey<u32, Span>,
    /// All of them together.
    hull: Option<Span>,
}

impl Spans {
    /// Of these hosts.
    pub(in crate::store) fn of(spans: impl IntoIterator<Item = (u32, Span)>) -> Self {
        let by_host: ByKey<u32, Span> = spans.into_iter().collect();
        let hull = by_host.values().copied().reduce(Span::and);
        Self { by_host, hull }
    }

    /// The host, where there is only one.
    fn only(&self) -> Option<u32> {
        (self.by_host.len() == 1).then(|| self.by_host.keys().next().copied()).flatten()
    }

    fn wants(&self, host: u32, first: u64, last: u64) -> Option<&Span> {
        self.by_host.get(&host).filter(|span| span.has(first, last))
    }
}

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Sweep {
    /// Remotes from one to another, both meant; sorted, and none in two.
    pub(in crate::store) remotes: Vec<(Remote, Remote)>,
    /// Remotes of which only the record tells whether it is meant; sorted.
    pub(in crate::store) unsure: Vec<Remote>,
    /// Keys of names from one on and before another.
    pub(in crate::store) names: Option<(Vec<u8>, Vec<u8>)>,
    /// Only this port.
    pub(in crate::store) port: Option<u16>,
    /// Only UDP, or only TCP.
    pub(in crate::store) is_udp: Option<bool>,
}

impl Sweep {
    /// For every record.
    pub(in crate::store) fn all() -> Self {
        let whole = |least: IpAddr, most: IpAddr| (Remote::of(least), Remote::of(most));
        let v4 = whole(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
        let v6 = whole(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into());
        Self { remotes: vec![v4, v6], ..Self::default() }
    }

    /// Whether a row may be meant that has this remote and no name: surely, perhaps, or not.
    fn remote(&self, remote: Remote) -> Option<Sure> {
        let at = self.remotes.partition_point(|(_, highest)| *highest < remote);
        if self.remotes.get(at).is_some_and(|(lowest, _)| *lowest <= remote) {
            return Some(Sure::Yes);
        }
        self.unsure.binary_search(&remote).is_ok().then_some(Sure::Perhaps)
    }

    /// Whether a remote between these may be meant.
    fn may_have(&self, lowest: Remote, highest: Remote) -> bool {
        let at = self.remotes.partition_point(|(_, until)| *until < lowest);
        let in_range = self.remotes.get(at).is_some_and(|(from, _)| *from <= highest);
        let at = self.unsure.partition_point(|remote| *remote < lowest);
        in_range || self.unsure.get(at).is_some_and(|remote| *remote <= highest)
    }

    /// Whether this port and protocol are meant.
    fn admits(&self, port: u16, is_udp: bool) -> bool {
        self.port.is_none_or(|meant| meant == port) && self.is_udp.is_none_or(|meant| meant == is_udp)
    }

    /// The blocks of a run in which rows may be meant, by their remote or by their name, in order.
    fn blocks(&self, lookups: &Lookups, reading: &Reading<'_>, run: &Run) -> Vec<usize> {
        let lookup = || lookups.get(run.id, || reading.lookup(run));
        let named = match self.names.as_ref().map(|names| (names, lookup())) {
            None => Vec::new(),
            Some((names, Ok(Some(lookup)))) => lookup.blocks_named(names),
            // Where nobody knows, all blocks are looked at.
            Some((_, Ok(None) | Err(_))) => return all_blocks(run),
        };
        let is_wanted = |at: &usize| {
            let Block { lowest, highest, .. } = run.blocks[*at];
            named.binary_search(at).is_ok() || self.may_have(lowest, highest)
        };
        all_blocks(run).into_iter().filter(is_wanted).collect()
    }

    /// Goes through the rows that may be meant.
    fn rows(
        &self,
        columns: &Columns,
        spans: &Spans,
        shown_from: u64,
        mut take: impl FnMut(usize, &Span, Sure),
    ) {
        let named = self.names.as_ref().map_or(0..0, |(lowest, beyond)| {
            let place = |key: &Vec<u8>| columns.names.partition_point(|name| name < key);
            place(lowest)..place(beyond)
        });
        for (remote, stretch) in columns.stretches() {
            let by_remote = self.remote(remote);
            if by_remote.is_none() && named.is_empty() {
                continue;
            }
            for at in stretch {
                let is_named =
                    columns.name[at].checked_sub(1).is_some_and(|name| named.contains(&usize::from(name)));
                let Some(sure) = (if is_named { Some(Sure::Yes) } else { by_remote }) else { continue };
                let (first, last) = (columns.first[at], columns.last[at]);
                if last < shown_from || !self.admits(columns.port[at], columns.is_udp[at]) {
                    continue;
                }
                if let Some(span) = spans.wants(columns.host[at], first, last) {
                    take(at, span, sure);
                }
            }
        }
    }
}

fn all_blocks(run: &Run) -> Vec<usize> {
    (0..run.blocks.len()).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sure {
    Yes,
    Perhaps,
}

/// The records of a host.
#[derive(Debug, Default)]
pub(in crate::store) struct Found {
    /// Those that overlap the window first, then the newest first.
    pub(in crate::store) rows: Vec<FlowRecord>,
    /// How many more there are.
    pub(in crate::store) left_out: u64,
}

/// What is asked of a host, and how many records of each may be answered.
pub(in crate::store) struct Asked<'a> {
    pub(in crate::store) sweep: &'a Sweep,
    pub(in crate::store) spans: &'a Spans,
    pub(in crate::store) limit: usize,
    /// Whether a record is meant of which the sweep is not sure.
    pub(in crate::store) is_meant: &'a dyn Fn(u32, &FlowRecord) -> bool,
}

/// Where a row is: which source, in the order of the search, and which of its rows.
type Place = (usize, usize);
/// Rows that are kept of a host: by whether they overlap the window, by their end, and by their place; the first is needed least.
type Kept = BTreeMap<(bool, u64, Place), ()>;

/// Some rows with columns.
pub(super) enum Source<'a> {
    Chunk(&'a Chunk),
    Block(&'a Run, usize),
}

impl Source<'_> {
    /// It cannot be read.
    fn lost(&self, error: &StoreError) -> Lost {
        match self {
            Self::Chunk(chunk) => {
                Lost { times: chunk.times, why: format!("what came last: {error}"), file: String::new() }
            }
            Self::Block(run, block) => Lost::of(run.blocks[*block].times, run, error),
        }
    }

    /// The records of some rows, in order.
    pub(super) fn records(&self, rows: &[usize]) -> Result<Vec<FlowRecord>, StoreError> {
        match self {
            Self::Chunk(chunk) => some_records(&chunk.records, chunk.columns.first.len(), rows),
            Self::Block(run, block) => run.day.read(|reading| block_records(reading, run, *block, rows)),
        }
    }
}

fn block_records(
    reading: &Reading<'_>,
    run: &Run,
    block: usize,
    rows: &[usize],
) -> Result<Vec<FlowRecord>, StoreError> {
    reading.records(run, block, |packed| some_records(packed, run.blocks[block].rows as usize, rows))
}

fn some_records(packed: &[u8], count: usize, rows: &[usize]) -> Result<Vec<FlowRecord>, StoreError> {
    let records = records(packed, count).map_err(|error| damaged("block of flow records", error))?;
    let mut wanted = rows.iter().peekable();
    let mut flows = Vec::with_capacity(rows.len());
    for (at, record) in records.iter().enumerate() {
        if wanted.next_if(|wanted| **wanted == at).is_some() {
            flows.push(decode::<wire::Flow, _>("flow record", record)?);
        }
    }
    Ok(flows)
}

impl Lost {
    fn of(times: Times, run: &Run, error: &StoreError) -> Self {
        let file = run.day.name();
        Self { times, why: format!("{file}: {error}"), file }
    }
}

/// Whose records are wanted.
pub(in crate::store) enum Which<'a> {
    /// Those of a process.
    Owner([u8; 16]),
    /// Those that a sweep finds; and whether one is meant of which that is not sure.
    Swept(&'a Sweep, &'a dyn Fn(u32, &FlowRecord) -> bool),
}

impl View {
    /// The records of these hosts that overlap their windows, each with the number of its host, in no order; and what could not
    /// be read that may have some. One block of them is in memory at a time.
    pub(in crate::store) fn visit(
        &self,
        which: &Which<'_>,
        spans: &Spans,
        take: &mut dyn FnMut(u32, &FlowRecord),
    ) -> Vec<Lost> {
        let pick = |reading: &Reading<'_>, run: &Run| match which {
            Which::Owner(_) => all_blocks(run),
            Which::Swept(sweep, _) => sweep.blocks(&self.lookups, reading, run),
        };
        self.each(spans, pick, |source, columns| {
            let mut rows: Vec<(usize, Sure)> = Vec::new();
            match which {
                Which::Owner(owner) => {
                    let Ok(owner) = columns.owners.binary_search(owner) else { return Ok(()) };
                    let is_wanted = |at: &usize| {
                        let (first, last) = (columns.first[*at], columns.last[*at]);
                        usize::from(columns.owner[*at]) == owner + 1
                            && last >= self.shown_from
                            && spans.wants(columns.host[*at], first, last).is_some()
                    };
                    rows.extend((0..columns.rows()).filter(is_wanted).map(|at| (at, Sure::Yes)));
                }
                Which::Swept(sweep, _) => {
                    sweep.rows(columns, spans, self.shown_from, |at, _, sure| rows.push((at, sure)));
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
            let places: Vec<usize> = rows.iter().map(|(at, _)| *at).collect();
            for ((at, sure), flow) in rows.into_iter().zip(source.records(&places)?) {
                let host = columns.host[at];
                let is_meant = match which {
                    Which::Swept(_, is_meant) if sure == Sure::Perhaps => is_meant(host, &flow),
                    _ => true,
                };
                if is_meant {
                    take(host, &flow);
                }
            }
            Ok(())
        })
    }

    /// The records that are asked for, by host; and what could not be read that may have some.
    pub(in crate::store) fn search(&self, asked: &Asked<'_>) -> (HashMap<u32, Found>, Vec<Lost>) {
        let Asked { sweep, spans, limit, is_meant } = asked;
        let mut sources: Vec<Source<'_>> = Vec::new();
        let mut kept: HashMap<u32, (Kept, u64)> = HashMap::new();
        let mut lost = self.each(
            spans,
            |reading, run| sweep.blocks(&self.lookups, reading, run),
            |source, columns| {
                let number = sources.len();
                let mut candidates = Vec::new();
                sweep.rows(columns, spans, self.shown_from, |at, span, sure| {
                    candidates.push((at, columns.last[at] >= span.from, sure));
                });
                if candidates.is_empty() {
                    return Ok(());
                }
                let unsure: Vec<usize> = candidates
                    .iter()
                    .filter(|(.., sure)| *sure == Sure::Perhaps)
                    .map(|(at, ..)| *at)
                    .collect();
                let mut meant = HashMap::new();
                if !unsure.is_empty() {
                    let records = source.records(&unsure)?;
                    meant.extend(
                        unsure
                            .into_iter()
                            .zip(records)
                            .map(|(at, record)| (at, is_meant(columns.host[at], &record))),
                    );
                }
                for (at, overlaps, sure) in candidates {
                    if sure == Sure::Perhaps && !meant.get(&at).copied().unwrap_or_default() {
                        continue;
                    }
                    let (kept, found) = kept.entry(columns.host[at]).or_default();
                    *found += 1;
                    kept.insert((overlaps, columns.last[at], (number, at)), ());
                    if kept.len() > *limit {
                        kept.pop_first();
                    }
                }
                sources.push(source);
                Ok(())
            },
        );
        let places = kept.values().flat_map(|(kept, _)| kept.keys().map(|(.., place)| *place));
        let mut records = unpack(&sources, places, &mut lost);
        let of_host = |(host, (kept, found)): (u32, (Kept, u64))| {
            let rows = kept.keys().rev().filter_map(|(.., place)| records.remove(place));
            let rows: Vec<FlowRecord> = rows.collect();
            (host, Found { left_out: found.saturating_sub(rows.len() as u64), rows })
        };
        (kept.into_iter().map(of_host).collect(), lost)
    }

    /// The least `unnamed_since` of the rows of each host; and what could not be read that may have a lesser one.
    pub(in crate::store) fn oldest_unnamed(
        &self,
        sweep: &Sweep,
        spans: &Spans,
    ) -> (HashMap<u32, u64>, Vec<Lost>) {
        let mut oldest: HashMap<u32, u64> = HashMap::new();
        let mut of_runs: HashMap<u32, u64> = HashMap::new();
        let lost = self.each(
            spans,
            |reading, run| match self.lookups.get(run.id, || reading.lookup(run)) {
                Ok(Some(lookup)) => {
                    self.oldest_of(&lookup, sweep, spans, &mut of_runs);
                    Vec::new()
                }
                // Its blocks tell the same.
                Ok(None) | Err(_) => all_blocks(run),
            },
            |_, columns| {
                for at in 0..columns.rows() {
                    let Some(since) = columns.unnamed_since[at].checked_sub(1) else { continue };
                    let (host, first, last) = (columns.host[at], columns.first[at], columns.last[at]);
                    let is_wanted =
                        last >= self.shown_from && sweep.admits(columns.port[at], columns.is_udp[at]);
                    if is_wanted && spans.wants(host, first, last).is_some() {
                        oldest.entry(host).and_modify(|oldest| *oldest = since.min(*oldest)).or_insert(since);
                    }
                }
                Ok(())
            },
        );
        for (host, since) in of_runs {
            oldest.entry(host).and_modify(|oldest| *oldest = since.min(*oldest)).or_insert(since);
        }
        (oldest, lost)
    }

    fn oldest_of(&self, lookup: &Lookup, sweep: &Sweep, spans: &Spans, oldest: &mut HashMap<u32, u64>) {
        let near = |host| spans.by_host.get(&host).map(|span| (span.looks_back_to, span.to));
        for (host, rows) in lookup.unnamed(near) {
            let is_wanted = |row: &Unnamed| row.last >= self.shown_from && sweep.admits(row.port, row.is_udp);
            if let Some(since) = rows.filter(is_wanted).map(|row| row.since).min() {
                oldest.entry(host).and_modify(|oldest| *oldest = since.min(*oldest)).or_insert(since);
            }
        }
    }

    /// The records of a process, newest first; and what could not be read that may have some.
    pub(in crate::store) fn of_process(
        &self,
        host: u32,
        process: &[u8; 16],
        limit: usize,
    ) -> (Found, Vec<Lost>) {
        let spans = Spans::of([(host, Span::EVER)]);
        let mut sources: Vec<Source<'_>> = Vec::new();
        let (mut kept, mut found) = (Kept::new(), 0_u64);
        let mut lost = self.each(
            &spans,
            |_, run| all_blocks(run),
            |source, columns| {
                let Ok(owner) = columns.owners.binary_search(process) else { return Ok(()) };
                let number = sources.len();
                for at in (0..columns.rows()).filter(|at| usize::from(columns.owner[*at]) == owner + 1) {
                    if columns.host[at] != host || columns.last[at] < self.shown_from {
                        continue;
                    }
                    found += 1;
                    kept.insert((true, columns.last[at], (number, at)), ());
                    if kept.len() > limit {
                        kept.pop_first();
                    }
                }
                sources.push(source);
                Ok(())
            },
        );
        let mut records = unpack(&sources, kept.keys().map(|(.., place)| *place), &mut lost);
        let rows: Vec<FlowRecord> =
            kept.keys().rev().filter_map(|(.., place)| records.remove(place)).collect();
        (Found { left_out: found.saturating_sub(rows.len() as u64), rows }, lost)
    }

    /// Goes through what may have rows of these times: of each run in the blocks that `pick` names, in order. What cannot be read
    /// is told, and all else goes on.
    pub(super) fn each<'a>(
        &'a self,
        spans: &Spans,
        mut pick: impl FnMut(&Reading<'_>, &Run) -> Vec<usize>,
        mut take: impl FnMut(Source<'a>, &Columns) -> Result<(), StoreError>,
    ) -> Vec<Lost> {
        let Some(hull) = spans.hull else { return Vec::new() };
        let mut lost: Vec<Lost> =
            self.lost.iter().filter(|lost| hull.may_have(&lost.times)).cloned().collect();
        for chunk in self.chunks().filter(|chunk| hull.may_have(&chunk.times)) {
            let source = Source::Chunk(chunk);
            let taken = take(Source::Chunk(chunk), &chunk.columns);
            lost.extend(taken.err().map(|error| source.lost(&error)));
        }
        // Those of one file together.
        for runs in self.runs.chunk_by(|one, other| one.day.path == other.day.path) {
            let wanted: Vec<&Arc<Run>> = runs.iter().filter(|run| hull.may_have(&run.times)).collect();
            let Some(first) = wanted.first() else { continue };
            let read = first.day.read(|reading| {
                for run in &wanted {
                    let mut blocks = pick(reading, run);
                    blocks.retain(|block| hull.may_have(&run.blocks[*block].times));
                    if let Some(host) = spans.only().filter(|_| blocks.len() > LOOKED_UP_FROM)
                        // Where that is damaged, all blocks are looked at.
                        && let Ok(has_host) = reading.blocks_of(run, host)
                    {
                        blocks.retain(|block| has_host.binary_search(block).is_ok());
                    }
                    for block in blocks {
                        let columns = reading.columns(run, block, unpack_columns);
                        let taken = columns.and_then(|columns| take(Source::Block(run, block), &columns));
                        lost.extend(taken.err().map(|error| Source::Block(run, block).lost(&error)));
                    }
                }
                Ok(())
            });
            if let Err(error) = read {
                lost.extend(wanted.iter().map(|run| Lost::of(run.times, run, &error)));
            }
        }
        lost
    }
}

/// Where more blocks may be wanted of one host, it is looked up which have rows of it.
const LOOKED_UP_FROM: usize = 2;

/// The records at these places; what cannot be read is told.
fn unpack(
    sources: &[Source<'_>],
    places: impl Iterator<Item = Place>,
    lost: &mut Vec<Lost>,
) -> HashMap<Place, FlowRecord> {
    let mut places: Vec<Place> = places.collect();
    places.sort_unstable();
    let mut records = HashMap::with_capacity(places.len());
    for of_source in places.chunk_by(|one, other| one.0 == other.0) {
        let rows: Vec<usize> = of_source.iter().map(|(_, row)| *row).collect();
        let source = &sources[of_source[0].0];
        match source.records(&rows) {
            Ok(found) => records.extend(of_source.iter().copied().zip(found)),
            Err(error) => lost.push(source.lost(&error)),
        }
    }
    records
}
