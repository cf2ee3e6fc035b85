//! What a question by name asks of a whole run, apart from its blocks: where which names are, and when the addresses of
//! connections were learned. Without it every block near the window would have to be read.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex},
};

use alibi_proto::flow::Protocol;

use super::block::{BlockError, LAYOUT, LEVEL, Planes, Reader, Row, put_column, unpacked};
use crate::store::lock;

/// Bytes of one, unpacked. Names are bounded, and so are the rows of a run.
const BYTES_MAX: usize = 256 << 20;

/// Packs it, of the rows of each block of a run.
///
/// ```text
/// 0   1  layout, 1
/// 1   4  bytes of what follows, unpacked
/// 5      as one Zstandard frame (RFC 8878):
///        names (4), sorted, of each: its length (2) and its key, how many blocks have it (4) and which (4 each);
///        the instants that rows have as `unnamed_since` (4), sorted, each (8);
///        hosts (4), of each: its number (4) and how many rows with an `unnamed_since` it has (4);
///        the least `first` of these (8); then of each row, in the order of the hosts: `first` less the least, `last` less `first`,
///        port, protocol (0 TCP, 1 UDP) and the place of its instant, in columns as those of a block
/// ```
pub(super) fn pack(blocks: &[&[&Row]]) -> Vec<u8> {
    let mut names: BTreeMap<&[u8], Vec<u32>> = BTreeMap::new();
    for (number, rows) in (0_u32..).zip(blocks) {
        for name in rows.iter().filter_map(|row| row.name.as_deref()) {
            let of_name = names.entry(name).or_default();
            if of_name.last() != Some(&number) {
                of_name.push(number);
            }
        }
    }
    let mut rows: Vec<(&Row, u64)> = blocks
        .iter()
        .flat_map(|rows| rows.iter())
        .filter_map(|row| Some((*row, row.unnamed_since?)))
        .collect();
    rows.sort_by_key(|(row, _)| (row.host, row.first));
    let mut instants: Vec<u64> = rows.iter().map(|(_, since)| *since).collect();
    instants.sort_unstable();
    instants.dedup();

    let mut out = Vec::with_capacity(64 + rows.len() * 16);
    put_u32(&mut out, names.len());
    for (name, blocks) in &names {
        let length = u16::try_from(name.len()).expect("names are bounded");
        out.extend(length.to_le_bytes());
        out.extend_from_slice(name);
        put_u32(&mut out, blocks.len());
        blocks.iter().for_each(|block| out.extend(block.to_le_bytes()));
    }
    put_u32(&mut out, instants.len());
    instants.iter().for_each(|instant| out.extend(instant.to_le_bytes()));
    let hosts = || rows.chunk_by(|(one, _), (other, _)| one.host == other.host);
    put_u32(&mut out, hosts().count());
    for of_host in hosts() {
        out.extend(of_host[0].0.host.to_le_bytes());
        put_u32(&mut out, of_host.len());
    }
    let least = rows.iter().map(|(row, _)| row.first).min().unwrap_or_default();
    out.extend(least.to_le_bytes());
    put_column(&mut out, &rows, |(row, _)| row.first - least);
    put_column(&mut out, &rows, |(row, _)| row.last - row.first);
    put_column(&mut out, &rows, |(row, _)| row.port.into());
    put_column(&mut out, &rows, |(row, _)| u64::from(row.protocol == Protocol::Udp));
    put_column(&mut out, &rows, |(_, since)| instants.binary_search(since).map_or(0, |at| at as u64));

    let mut packed = vec![LAYOUT];
    put_u32(&mut packed, out.len());
    packed.extend(zstd::bulk::compress(&out, LEVEL).expect("there is memory"));
    packed
}

fn put_u32(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("a run has no more than fit");
    out.extend(count.to_le_bytes());
}

/// The same, unpacked. A question is about few of the rows: each is read where it lies.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    unpacked: Vec<u8>,
    /// Of each name, where its key is, and where its blocks are.
    names: Vec<(Range<usize>, Range<usize>)>,
    /// Where the instants are.
    instants: Range<usize>,
    /// Of each host, its rows.
    hosts: Vec<(u32, Range<usize>)>,
    /// The least `first`.
    least: u64,
    first: Planes,
    span: Planes,
    port: Planes,
    is_udp: Planes,
    since: Planes,
}

/// A row with an `unnamed_since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unnamed {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) port: u16,
    pub(super) is_udp: bool,
    pub(super) since: u64,
}

impl Lookup {
    /// Unpacks it.
    pub(super) fn unpack(packed: &[u8]) -> Result<Self, BlockError> {
        let unpacked = unpacked(packed, BYTES_MAX)?;
        let mut lookup = Self::default();
        lookup.read(&mut Reader::of(&unpacked))?;
        Ok(Self { unpacked, ..lookup })
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), BlockError> {
        for _ in 0..reader.u32()? {
            let bytes = reader.u16()?;
            let key = reader.at(bytes)?;
            let blocks = reader.u32()?.checked_mul(4).ok_or(BlockError::Bounds)?;
            self.names.push((key, reader.at(blocks)?));
        }
        let bytes = reader.u32()?.checked_mul(8).ok_or(BlockError::Bounds)?;
        self.instants = reader.at(bytes)?;
        let mut rows = 0_usize;
        for _ in 0..reader.u32()? {
            let (host, count) = (u32::from_le_bytes(reader.array()?), reader.u32()?);
            let until =
                rows.checked_add(count).filter(|rows| *rows <= BYTES_MAX).ok_or(BlockError::Bounds)?;
            self.hosts.push((host, rows..until));
            rows = until;
        }
        self.least = u64::from_le_bytes(reader.array()?);
        for column in [&mut self.first, &mut self.span, &mut self.port, &mut self.is_udp, &mut self.since] {
            *column = reader.planes(rows)?;
        }
        Ok(())
    }

    fn first(&self, row: usize) -> u64 {
        self.first.of(&self.unpacked, row).saturating_add(self.least)
    }

    /// A place that there is not may have been any.
    fn instant(&self, place: u64) -> u64 {
        let all = self.unpacked[self.instants.clone()].as_chunks().0;
        usize::try_from(place).ok().and_then(|place| all.get(place)).map_or(0, |at| u64::from_le_bytes(*at))
    }

    fn row(&self, row: usize) -> Unnamed {
        let first = self.first(row);
        let of = |column: &Planes| column.of(&self.unpacked, row);
        Unnamed {
            first,
            last: first.saturating_add(of(&self.span)),
            port: of(&self.port) as u16,
            is_udp: of(&self.is_udp) != 0,
            since: self.instant(of(&self.since)),
        }
    }

    /// The blocks with a name from the one key on and before the other, sorted.
    pub(super) fn blocks_named(&self, (lowest, beyond): &(Vec<u8>, Vec<u8>)) -> Vec<usize> {
        let key = |(key, _): &(Range<usize>, Range<usize>)| &self.unpacked[key.clone()];
        let from = self.names.partition_point(|name| key(name) < lowest.as_slice());
        let named = self.names[from..].iter().take_while(|name| key(name) < beyond.as_slice());
        let blocks = named.flat_map(|(_, blocks)| self.unpacked[blocks.clone()].as_chunks().0);
        let mut blocks: Vec<usize> = blocks.map(|block| u32::from_le_bytes(*block) as usize).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// Each host that has rows. `near` tells those that matter of one: that end at or after the first instant, and begin before
    /// the second.
    pub(super) fn unnamed(
        &self,
        near: impl Fn(u32) -> Option<(u64, u64)>,
    ) -> impl Iterator<Item = (u32, impl Iterator<Item = Unnamed>)> {
        let longest = self.span.most();
        self.hosts.iter().filter_map(move |(host, rows)| {
            let (from, to) = near(*host)?;
            // They are in order of their beginning.
            let begin = partition_point(rows.clone(), |row| self.first(row).saturating_add(longest) < from);
            let end = partition_point(begin..rows.end, |row| self.first(row) < to);
            let near = (begin..end).map(|row| self.row(row)).filter(move |row| row.last >= from);
            Some((*host, near))
        })
    }
}

/// The first of a stretch for which that does not hold.
fn partition_point(stretch: Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (stretch.start, stretch.end);
    while from < to {
        let middle = from.midpoint(to);
        if holds(middle) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from
}

/// How many are kept, each of some megabytes: questions in an incident are about the same time, and ask each twice, one after
/// the other. Where agents tell rarely, a window of minutes is in more than a dozen runs.
const KEPT_MAX: usize = 32;

/// Those that were unpacked last, by the numbers of their runs.
#[derive(Default)]
pub(super) struct Lookups(Mutex<VecDeque<(i64, Arc<Lookup>)>>);

impl Lookups {
    /// That of a run; `read` reads it, and there may be none.
    pub(super) fn get<E>(
        &self,
        run: i64,
        read: impl FnOnce() -> Result<Option<Lookup>, E>,
    ) -> Result<Option<Arc<Lookup>>, E> {
        {
            let mut kept = lock(&self.0);
            if let Some(at) = kept.iter().position(|(of, _)| *of == run)
                && let Some((_, lookup)) = kept.remove(at)
            {
                kept.push_back((run, Arc::clone(&lookup)));
                return Ok(Some(lookup));
            }
        }
        let Some(lookup) = read()?.map(Arc::new) else { return Ok(None) };
        let mut kept = lock(&self.0);
        kept.push_back((run, Arc::clone(&lookup)));
        while kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        Ok(Some(lookup))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::block::tests::row, *};

    fn rows() -> Vec<Row> {
        let mut random = fastrand::Rng::with_seed(3);
        (0..2_000).map(|_| row(&mut random)).collect()
    }

    #[test]
    fn every_name_and_every_instant_is_found_again() {
        let rows = rows();
        let rows: Vec<&Row> = rows.iter().collect();
        let blocks: Vec<&[&Row]> = rows.chunks(700).collect();
        let lookup = Lookup::unpack(&pack(&blocks)).unwrap();
        for (lowest, beyond) in
            [("com.example.1", "com.example.1\0"), ("com.example.", "com.example/"), ("x", "y")]
        {
            let range = (lowest.as_bytes().to_vec(), beyond.as_bytes().to_vec());
            let has = |row: &&&Row| row.name.as_ref().is_some_and(|name| *name >= range.0 && *name < range.1);
            let want: Vec<usize> =
                (0..blocks.len()).filter(|at| blocks[*at].iter().any(|row| has(&row))).collect();
            assert_eq!(lookup.blocks_named(&range), want, "{lowest}");
        }
        let told = |row: &&Row| {
            let is_udp = row.protocol == Protocol::Udp;
            Some((row.host, row.first, row.last, row.port, is_udp, row.unnamed_since?))
        };
        let all: Vec<_> = rows.iter().filter_map(told).collect();
        let instants = |nth: usize| all.iter().map(|(_, first, ..)| *first).nth(nth).unwrap();
        for (from, to) in
            [(0, u64::MAX), (0, instants(3)), (instants(5), u64::MAX), (instants(7), instants(8))]
        {
            let mut found: Vec<_> = lookup
                .unnamed(|host| (host != 3).then_some((from, to)))
                .flat_map(|(host, rows)| {
                    rows.map(move |row| (host, row.first, row.last, row.port, row.is_udp, row.since))
                })
                .collect();
            let is_near = |(host, first, last, ..): &&(u32, u64, u64, u16, bool, u64)| {
                *host != 3 && *last >= from && *first < to
            };
            let mut want: Vec<_> = all.iter().filter(is_near).copied().collect();
            found.sort_unstable();
            want.sort_unstable();
            assert_eq!(found, want, "{from} {to}");
        }
        assert!(Lookup::unpack(&pack(&[])).unwrap().unnamed(|_| Some((0, u64::MAX))).next().is_none());
    }

    #[test]
    fn the_last_ones_are_kept() {
        let lookups = Lookups::default();
        let get = |run| {
            let mut is_read = false;
            let read = || {
                is_read = true;
                Ok::<_, BlockError>(Some(Lookup::default()))
            };
            lookups.get(run, read).unwrap().unwrap();
            is_read
        };
        let runs = KEPT_MAX as i64;
        assert!((0..runs).all(get) && !(0..runs).any(get));
        assert!(!get(0) && get(runs) && get(1) && !get(0), "the one that was asked for longest ago goes");
        let none = lookups.get(99, || Ok::<_, BlockError>(None)).unwrap();
        assert!(none.is_none() && get(99));
    }

    #[test]
    fn what_is_damaged_is_an_error_or_something_else_and_never_a_panic() {
        let rows = rows();
        let rows: Vec<&Row> = rows.iter().take(50).collect();
        let packed = pack(&[&rows]);
        for at in 0..packed.len() {
            let mut flipped = packed.clone();
            flipped[at] ^= 0x55;
            if let Ok(lookup) = Lookup::unpack(&flipped) {
                lookup.blocks_named(&(Vec::new(), vec![0xFF]));
                let all = lookup.unnamed(|_| Some((0, u64::MAX)));
                assert!(all.map(|(_, rows)| rows.count()).all(|rows| rows < 1_000));
            }
            assert!(Lookup::unpack(&packed[..at]).is_err());
        }
    }
}
