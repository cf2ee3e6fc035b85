//! Blocks: flow records packed together, with what they are looked for by in columns of their own. Pure: bytes in, bytes out.
//!
//! A question reads the columns, which are small, and unpacks the records of the rows that it wants.

use std::{cell::RefCell, net::IpAddr};

use alibi_proto::{
    flow::Protocol,
    frame::{Frame, FrameError, Packer, Records},
    id::Seq,
};

use super::day::Times;

/// Rows of a block.
pub(super) const ROWS_MAX: usize = 1024;
/// Bytes of the records of a block, unpacked, but for one that is larger than that by itself.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 20;
/// Bytes of the columns, unpacked: of each row at most a name and some numbers.
const COLUMNS_BYTES_MAX: usize = 1 << 20;
/// Layout, length of the columns.
const HEADER_BYTES: usize = 1 + 4;
pub(super) const LAYOUT: u8 = 1;
/// Faster levels save no time here, and slower ones little room.
pub(super) const LEVEL: i32 = 1;

thread_local! {
    /// To make one costs as much as to unpack a block.
    static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> =
        RefCell::new(zstd::bulk::Decompressor::new().expect("there is memory for a context"));
}

/// A remote address, in the order in which rows lie: those of IPv4 before those of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::store) struct Remote {
    is_v6: bool,
    address: u128,
}

impl Remote {
    /// Of an address as it is: a wide network of IPv6 may end in one that stands for one of IPv4.
    pub(in crate::store) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { is_v6: false, address: address.to_bits() as u128 },
            IpAddr::V6(address) => Self { is_v6: true, address: address.to_bits() },
        }
    }

    /// In 17 bytes: 4 or 6, and the address, big-endian.
    pub(super) fn to_bytes(self) -> [u8; 17] {
        let mut bytes = [if self.is_v6 { 6 } else { 4 }; 17];
        bytes[1..].copy_from_slice(&self.address.to_be_bytes());
        bytes
    }

    /// From these.
    pub(super) fn from_bytes(bytes: [u8; 17]) -> Option<Self> {
        let [family, address @ ..] = bytes;
        let is_v6 = family == 6;
        (is_v6 || family == 4).then_some(Self { is_v6, address: u128::from_be_bytes(address) })
    }
}

/// A record, and what it is looked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Row {
    pub(in crate::store) remote: Remote,
    /// The number of its host.
    pub(in crate::store) host: u32,
    /// The number of its ring, and its place there: which event of the host it is.
    pub(in crate::store) ring: u32,
    pub(in crate::store) seq: u64,
    /// In nanoseconds.
    pub(in crate::store) first: u64,
    /// Not before `first`.
    pub(in crate::store) last: u64,
    pub(in crate::store) port: u16,
    pub(in crate::store) protocol: Protocol,
    /// The key of its own name.
    pub(in crate::store) name: Option<Vec<u8>>,
    /// What is kept of when its address was learned, where that matters.
    pub(in crate::store) unnamed_since: Option<u64>,
    /// The uid of its owner.
    pub(in crate::store) process: Option<[u8; 16]>,
    /// The message `Flow` of the schema.
    pub(in crate::store) record: Vec<u8>,
}

/// A block as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// The columns. Integers are little-endian.
    ///
    /// ```text
    /// 0   1  layout, 1
    /// 1   4  bytes of what follows, unpacked
    /// 5      as one Zstandard frame (RFC 8878):
    ///        rows (2); stretches of rows with one remote (2), of each: 4 or 6, the address, how many rows (2);
    ///        the least `first` (8); names (2), of each: its length (2) and its key; owners (2), of each: its uid;
    ///        then, of each row: `first` less the least, `last` less `first`, host, ring, seq, port, protocol (0 TCP, 1 UDP), name and
    ///        owner (places in their lists from 1 on, or 0), `unnamed_since` (plus 1, or 0)
    /// ```
    ///
    /// Each of the latter is a byte that tells how many bytes each number has, and then the first byte of each row, the
    /// second of each, and so on.
    pub(super) columns: Vec<u8>,
    /// The records, as the payload of a [`Frame`].
    pub(super) records: Vec<u8>,
}

/// The columns of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// Stretches of rows with one remote: it, and the row after the last.
    pub(super) remotes: Vec<(Remote, usize)>,
    pub(super) names: Vec<Vec<u8>>,
    pub(super) owners: Vec<[u8; 16]>,
    pub(super) first: Vec<u64>,
    pub(super) last: Vec<u64>,
    pub(super) host: Vec<u32>,
    pub(super) ring: Vec<u32>,
    pub(super) seq: Vec<u64>,
    pub(super) port: Vec<u16>,
    /// Whether it is UDP, and else TCP.
    pub(super) is_udp: Vec<bool>,
    /// A place in `names`, from 1 on, or 0.
    pub(super) name: Vec<u16>,
    /// A place in `owners`, from 1 on, or 0.
    pub(super) owner: Vec<u16>,
    /// Plus 1, or 0.
    pub(super) unnamed_since: Vec<u64>,
}

/// Packs rows, and keeps what that takes for the next.
pub(super) struct BlockPacker {
    records: Packer,
    compressor: zstd::bulk::Compressor<'static>,
}

impl Default for BlockPacker {
    fn default() -> Self {
        let compressor = zstd::bulk::Compressor::new(LEVEL).expect("the level is one of Zstandard's");
        Self { records: Packer::default(), compressor }
    }
}

impl BlockPacker {
    /// These rows, in their order, in as many blocks as they take.
    pub(super) fn pack<'a>(&mut self, rows: &'a [&'a Row]) -> impl Iterator<Item = PackedRows<'a>> {
        let mut left = rows;
        std::iter::from_fn(move || {
            let (block, rest) = left.split_at(of_one_block(left));
            left = rest;
            (!block.is_empty()).then(|| self.pack_one(block))
        })
    }

    fn pack_one<'a>(&mut self, rows: &'a [&'a Row]) -> PackedRows<'a> {
        let records: Vec<&[u8]> = rows.iter().map(|row| row.record.as_slice()).collect();
        let unpacked = columns_of(rows);
        let mut columns = vec![LAYOUT];
        columns.extend((unpacked.len() as u32).to_le_bytes());
        columns.extend(self.compressor.compress(&unpacked).expect("there is memory"));
        PackedRows { packed: Packed { columns, records: self.records.pack(&records) }, rows, unpacked }
    }
}

/// Rows that were packed, as a block.
pub(super) struct PackedRows<'a> {
    pub(super) packed: Packed,
    pub(super) rows: &'a [&'a Row],
    unpacked: Vec<u8>,
}

impl PackedRows<'_> {
    /// The columns of the block.
    pub(super) fn columns(&self) -> Columns {
        Columns::read(&mut Reader::of(&self.unpacked)).expect("they were just written")
    }
}

/// How many of the first of these rows one block takes.
fn of_one_block(rows: &[&Row]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take(ROWS_MAX).take_while(|row| {
        bytes += row.record.len();
        bytes <= RECORD_BYTES_MAX
    });
    fits.count().max(usize::from(!rows.is_empty()))
}

fn columns_of(rows: &[&Row]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + rows.len() * 32);
    put_u16(&mut out, rows.len());
    let stretches = || rows.chunk_by(|one, other| one.remote == other.remote);
    put_u16(&mut out, stretches().count());
    for stretch in stretches() {
        let Remote { is_v6, address } = stretch[0].remote;
        match is_v6 {
            false => out.extend([&[4][..], &(address as u32).to_be_bytes()].concat()),
            true => out.extend([&[6][..], &address.to_be_bytes()].concat()),
        }
        put_u16(&mut out, stretch.len());
    }
    let least = rows.iter().map(|row| row.first).min().unwrap_or_default();
    out.extend(least.to_le_bytes());
    let (names, name_of) = listed(rows, |row| row.name.as_deref());
    put_u16(&mut out, names.len());
    for name in &names {
        put_u16(&mut out, name.len());
        out.extend_from_slice(name);
    }
    let (owners, owner_of) = listed(rows, |row| row.process.as_ref());
    put_u16(&mut out, owners.len());
    owners.iter().for_each(|owner| out.extend_from_slice(*owner));
    put_column(&mut out, rows, |row| row.first - least);
    put_column(&mut out, rows, |row| row.last - row.first);
    put_column(&mut out, rows, |row| row.host.into());
    put_column(&mut out, rows, |row| row.ring.into());
    put_column(&mut out, rows, |row| row.seq);
    put_column(&mut out, rows, |row| row.port.into());
    put_column(&mut out, rows, |row| u64::from(row.protocol == Protocol::Udp));
    put_column(&mut out, &name_of, |place| (*place).into());
    put_column(&mut out, &owner_of, |place| (*place).into());
    put_column(&mut out, rows, |row| row.unnamed_since.map_or(0, |since| since.saturating_add(1)));
    out
}

/// What rows have, sorted, each once; and where in that list what each row has is, from 1 on, or 0.
fn listed<'a, T: Ord + ?Sized>(
    rows: &[&'a Row],
    of: impl Fn(&'a Row) -> Option<&'a T>,
) -> (Vec<&'a T>, Vec<u16>) {
    let mut sorted: Vec<(&T, u16)> =
        rows.iter().zip(0..).filter_map(|(row, at)| Some((of(row)?, at))).collect();
    sorted.sort_unstable();
    let (mut list, mut places): (Vec<&T>, _) = (Vec::new(), vec![0; rows.len()]);
    for (item, at) in sorted {
        if list.last().is_none_or(|last| *last != item) {
            list.push(item);
        }
        places[usize::from(at)] = list.len() as u16;
    }
    (list, places)
}

fn put_u16(out: &mut Vec<u8>, value: usize) {
    let value = u16::try_from(value).expect("a block has no more than fit");
    out.extend(value.to_le_bytes());
}

pub(super) fn put_column<T>(out: &mut Vec<u8>, rows: &[T], of: impl Fn(&T) -> u64) {
    let most = rows.iter().map(&of).max().unwrap_or_default();
    let bytes = (u64::BITS - most.leading_zeros()).div_ceil(8);
    out.push(bytes as u8);
    for nth in 0..bytes {
        out.extend(rows.iter().map(|row| (of(row) >> (8 * nth)) as u8));
    }
}

impl Columns {
    /// Within which times the rows are; none where there is none.
    pub(super) fn times(&self) -> Option<Times> {
        Some(Times {
            first: *self.first.iter().min()?,
            last: *self.last.iter().min()?,
            until: *self.last.iter().max()?,
        })
    }

    /// The row at a place, with its record.
    pub(super) fn row(&self, remote: Remote, at: usize, record: &[u8]) -> Row {
        Row {
            remote,
            host: self.host[at],
            ring: self.ring[at],
            seq: self.seq[at],
            first: self.first[at],
            last: self.last[at],
            port: self.port[at],
            protocol: if self.is_udp[at] { Protocol::Udp } else { Protocol::Tcp },
            name: self.name[at].checked_sub(1).map(|at| self.names[usize::from(at)].clone()),
            unnamed_since: self.unnamed_since[at].checked_sub(1),
            process: self.owner[at].checked_sub(1).map(|at| self.owners[usize::from(at)]),
            record: record.to_vec(),
        }
    }

    /// Unpacks them.
    pub(super) fn unpack(packed: &[u8]) -> Result<Self, BlockError> {
        Self::read(&mut Reader::of(&unpacked(packed, COLUMNS_BYTES_MAX)?))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, BlockError> {
        let rows = reader.u16()?;
        if rows > ROWS_MAX {
            return Err(BlockError::Bounds);
        }
        let mut remotes = Vec::new();
        let mut end = 0;
        for _ in 0..reader.u16()? {
            let remote = match reader.bytes(1)? {
                [4] => Remote { is_v6: false, address: u32::from_be_bytes(reader.array()?).into() },
                [6] => Remote { is_v6: true, address: u128::from_be_bytes(reader.array()?) },
                _ => return Err(BlockError::Bounds),
            };
            end += reader.u16()?;
            remotes.push((remote, end));
        }
        let least = u64::from_le_bytes(reader.array()?);
        let names = reader.list(|reader| {
            let bytes = reader.u16()?;
            Ok(reader.bytes(bytes)?.to_vec())
        })?;
        let owners = reader.list(Reader::array)?;
        let first: Vec<u64> = reader.column(rows)?.iter().map(|first| first.saturating_add(least)).collect();
        let spans = reader.column(rows)?;
        let last = spans.iter().zip(&first).map(|(span, first)| first.saturating_add(*span)).collect();
        let (host, ring) = (reader.narrow(rows)?, reader.narrow(rows)?);
        let seq = reader.column(rows)?;
        let port = reader.narrow(rows)?;
        let is_udp = reader.column(rows)?.iter().map(|protocol| *protocol != 0).collect();
        let (name, owner): (Vec<u16>, Vec<u16>) = (reader.narrow(rows)?, reader.narrow(rows)?);
        let unnamed_since = reader.column(rows)?;
        let is_within = |places: &[u16], list: usize| places.iter().all(|place| usize::from(*place) <= list);
        if end != rows || !is_within(&name, names.len()) || !is_within(&owner, owners.len()) {
            return Err(BlockError::Bounds);
        }
        Ok(Self {
            remotes,
            names,
            owners,
            first,
            last,
            host,
            ring,
            seq,
            port,
            is_udp,
            name,
            owner,
            unnamed_since,
        })
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.first.len()
    }

    /// The stretches of rows, each with its remote.
    pub(super) fn stretches(&self) -> impl Iterator<Item = (Remote, std::ops::Range<usize>)> {
        let mut start = 0;
        self.remotes.iter().map(move |(remote, end)| (*remote, std::mem::replace(&mut start, *end)..*end))
    }
}

/// What stands behind a layout and a length, unpacked: no more than so many bytes.
pub(super) fn unpacked(packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, BlockError> {
    let (header, compressed) = packed.split_first_chunk::<HEADER_BYTES>().ok_or(BlockError::Cut)?;
    let [layout, bytes @ ..] = *header;
    let bytes = u32::from_le_bytes(bytes) as usize;
    if layout != LAYOUT {
        return Err(BlockError::Layout(layout));
    }
    if bytes > bytes_max {
        return Err(BlockError::Bounds);
    }
    let unpacked = DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.decompress(compressed, bytes))
        .map_err(|_| BlockError::Compression)?;
    if unpacked.len() == bytes { Ok(unpacked) } else { Err(BlockError::Compression) }
}

/// The records of a block, in the order of its rows.
pub(super) fn records(packed: &[u8], rows: usize) -> Result<Records, BlockError> {
    let count = u32::try_from(rows).map_err(|_| BlockError::Bounds)?;
    Ok(Frame { first_seq: Seq::FIRST, count, payload: packed.to_vec() }.unpack()?)
}

pub(super) struct Reader<'a> {
    left: &'a [u8],
    bytes: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn of(bytes: &'a [u8]) -> Self {
        Self { left: bytes, bytes: bytes.len() }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], BlockError> {
        let (taken, rest) = self.left.split_at_checked(count).ok_or(BlockError::Cut)?;
        self.left = rest;
        Ok(taken)
    }

    /// The same, as the place where they are.
    pub(super) fn at(&mut self, count: usize) -> Result<std::ops::Range<usize>, BlockError> {
        let from = self.bytes - self.left.len();
        self.bytes(count).map(|taken| from..from + taken.len())
    }

    pub(super) fn array<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], BlockError> {
        self.bytes(BYTES)?.try_into().map_err(|_| BlockError::Cut)
    }

    pub(super) fn u16(&mut self) -> Result<usize, BlockError> {
        Ok(u16::from_le_bytes(self.array()?).into())
    }

    pub(super) fn u32(&mut self) -> Result<usize, BlockError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, BlockError>,
    ) -> Result<Vec<T>, BlockError> {
        (0..self.u16()?).map(|_| read(self)).collect()
    }

    /// Where a column lies.
    pub(super) fn planes(&mut self, rows: usize) -> Result<Planes, BlockError> {
        let [bytes] = self.array()?;
        if bytes > 8 {
            return Err(BlockError::Bounds);
        }
        let all = rows.checked_mul(bytes.into()).ok_or(BlockError::Bounds)?;
        Ok(Planes { bytes: bytes.into(), from: self.at(all)?.start, rows })
    }

    pub(super) fn column(&mut self, rows: usize) -> Result<Vec<u64>, BlockError> {
        let [bytes] = self.array()?;
        if bytes > 8 {
            return Err(BlockError::Bounds);
        }
        // Where each row has a byte, there are no more rows than bytes; where none has, all are 0.
        if bytes > 0 && rows > self.left.len() {
            return Err(BlockError::Cut);
        }
        let mut values = vec![0; rows];
        for nth in 0..bytes {
            let plane = self.bytes(rows)?;
            values.iter_mut().zip(plane).for_each(|(value, byte)| *value |= u64::from(*byte) << (8 * nth));
        }
        Ok(values)
    }

    pub(super) fn narrow<T: TryFrom<u64>>(&mut self, rows: usize) -> Result<Vec<T>, BlockError> {
        let narrow = |value: u64| T::try_from(value).map_err(|_| BlockError::Bounds);
        self.column(rows)?.into_iter().map(narrow).collect()
    }
}

/// A column where it lies: the first byte of each row, then the second of each, and so on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planes {
    bytes: usize,
    from: usize,
    rows: usize,
}

impl Planes {
    /// The number of a row; of those of the column, which lies in `unpacked`.
    pub(super) fn of(&self, unpacked: &[u8], row: usize) -> u64 {
        let byte = |nth: usize| u64::from(unpacked[self.from + nth * self.rows + row]) << (8 * nth);
        (0..self.bytes).map(byte).sum()
    }

    /// No number in it is greater.
    pub(super) fn most(&self) -> u64 {
        u64::MAX >> (u64::BITS - 8 * self.bytes as u32).clamp(0, u64::BITS - 1)
    }
}

/// A block that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlockError {
    #[error("it is cut short")]
    Cut,
    #[error("it has layout {0}, which is not known here")]
    Layout(u8),
    #[error("it goes beyond a bound")]
    Bounds,
    #[error("it cannot be decompressed")]
    Compression,
    #[error("{0}")]
    Records(#[from] FrameError),
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::store::flows) fn row(random: &mut fastrand::Rng) -> Row {
        let address = match random.bool() {
            true => IpAddr::from([10, 0, random.u8(0..2), random.u8(0..4)]),
            false => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, random.u16(0..2), random.u16(0..4)]),
        };
        let first = random.u64(0..1 << 40);
        let record_bytes = random.usize(0..60);
        Row {
            remote: Remote::of(address),
            host: random.u32(0..5),
            ring: random.u32(..),
            seq: random.u64(..),
            first,
            last: first + random.u64(0..1 << 30),
            port: random.u16(..),
            protocol: if random.bool() { Protocol::Tcp } else { Protocol::Udp },
            name: random.bool().then(|| format!("com.example.{}", random.u8(0..3)).into_bytes()),
            unnamed_since: [None, Some(0), Some(random.u64(..u64::MAX - 1))][random.usize(0..3)],
            process: random.bool().then(|| [random.u8(0..3); 16]),
            record: std::iter::repeat_with(|| random.u8(..4)).take(record_bytes).collect(),
        }
    }

    /// What a block says of its rows.
    fn rows_of(packed: &Packed) -> Vec<Row> {
        let columns = Columns::unpack(&packed.columns).unwrap();
        let records = records(&packed.records, columns.rows()).unwrap();
        let records: Vec<&[u8]> = records.iter().collect();
        let mut rows = Vec::new();
        for (remote, stretch) in columns.stretches() {
            rows.extend(stretch.map(|at| columns.row(remote, at, records[at])));
        }
        rows
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut packer = BlockPacker::default();
        for count in [0_usize, 1, 2, 10, 1_000, 1_024, 1_025, 3_000] {
            let mut rows: Vec<Row> = (0..count).map(|_| row(&mut random)).collect();
            if count > 1_000 {
                rows.sort_by_key(|row| row.remote);
            }
            let all: Vec<&Row> = rows.iter().collect();
            let blocks: Vec<Packed> = packer.pack(&all).map(|block| block.packed).collect();
            assert_eq!(blocks.len(), count.div_ceil(ROWS_MAX));
            assert_eq!(blocks.iter().flat_map(rows_of).collect::<Vec<_>>(), rows);
        }
    }

    #[test]
    fn large_records_are_in_blocks_of_few() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut large = row(&mut random);
        large.record = vec![1; RECORD_BYTES_MAX / 2];
        let rows = [&large, &large, &large];
        let mut packer = BlockPacker::default();
        let counts: Vec<usize> = packer.pack(&rows).map(|block| block.rows.len()).collect();
        assert_eq!(counts, [2, 1]);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let mut random = fastrand::Rng::with_seed(3);
        let rows: Vec<Row> = (0..50).map(|_| row(&mut random)).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let packed = BlockPacker::default().pack(&rows).next().unwrap().packed;
        for at in 0..packed.columns.len() {
            assert!(Columns::unpack(&packed.columns[..at]).is_err());
        }
        let unpacked = columns_of(&rows);
        for _ in 0..20_000 {
            let mut damaged = unpacked.clone();
            let at = random.usize(..damaged.len());
            damaged[at] ^= 1 << random.u8(..8);
            damaged.truncate(if random.bool() { random.usize(..damaged.len()) } else { damaged.len() });
            if let Ok(columns) = Columns::read(&mut Reader::of(&damaged)) {
                assert_eq!(columns.stretches().last().map_or(0, |(_, stretch)| stretch.end), columns.rows());
                assert!(columns.owner.iter().all(|at| usize::from(*at) <= columns.owners.len()));
            }
        }
    }
}
