//! Streams of TCP whose beginning has been seen and whose first message is not whole yet.

use std::{collections::HashMap, net::SocketAddr};

use alibi_proto::time::Moment;

/// Streams that are waited for at the same time; for more, the oldest is given up.
const STREAMS_MAX: usize = 256;
/// Bytes that are kept of one.
pub(super) const STREAM_BYTES_MAX: usize = 16 * 1024;
/// Pieces of one that are kept although one before them is missing.
const AHEAD_MAX: usize = 8;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) network_namespace: u64,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// Streams that are waited for.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    streams: HashMap<Way, Stream>,
}

/// What is there of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Sequence number of the first byte of `bytes`.
    first: u32,
    bytes: Vec<u8>,
    /// What came before its turn, and its sequence number.
    ahead: Vec<(u32, Vec<u8>)>,
    began: Moment,
}

/// A stream that holds more than may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Stream {
    pub(super) fn new(sequence: u32, bytes: &[u8], began: Moment) -> Self {
        Self { first: sequence, bytes: bytes.to_vec(), ahead: Vec::new(), began }
    }

    /// From its first byte, without a gap.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// When its first piece was seen.
    pub(super) fn began(&self) -> Moment {
        self.began
    }

    /// Adds a segment, wherever its place is.
    pub(super) fn add(&mut self, sequence: u32, segment: &[u8]) -> Result<(), TooLong> {
        self.ahead.push((sequence, segment.to_vec()));
        while let Some(at) = self.ahead.iter().position(|(sequence, _)| self.fits(*sequence)) {
            let (sequence, segment) = self.ahead.swap_remove(at);
            // A segment that was sent again begins before the end of what is there; one from before all of it is old.
            let known = self.end().wrapping_sub(sequence) as usize;
            self.bytes.extend(segment.get(known..).unwrap_or_default());
        }
        let kept = self.bytes.len() + self.ahead.iter().map(|(_, segment)| segment.len()).sum::<usize>();
        if kept > STREAM_BYTES_MAX || self.ahead.len() > AHEAD_MAX { Err(TooLong) } else { Ok(()) }
    }

    /// Leaves out the first `count` bytes: they have been read.
    pub(super) fn advance(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count);
        self.first = self.first.wrapping_add(count as u32);
    }

    /// The sequence number after the last byte.
    fn end(&self) -> u32 {
        self.first.wrapping_add(self.bytes.len() as u32)
    }

    /// Whether a segment that begins there leaves no gap.
    fn fits(&self, sequence: u32) -> bool {
        // Numbers wrap around: what is less than half of them behind is before.
        self.end().wrapping_sub(sequence) < 1 << 31
    }
}

impl Pieces {
    /// Takes a stream out, to be read on.
    pub(super) fn take(&mut self, way: &Way) -> Option<Stream> {
        self.streams.remove(way)
    }

    /// Puts a stream in, to be waited for. The one that has to go for it, if one has to.
    pub(super) fn put(&mut self, way: Way, stream: Stream) -> Option<(Way, Stream)> {
        let oldest = (self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&way))
            .then(|| self.streams.iter().min_by_key(|(_, stream)| stream.began.boot_ns).map(|(way, _)| *way))
            .flatten()
            .and_then(|way| Some((way, self.streams.remove(&way)?)));
        self.streams.insert(way, stream);
        oldest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Gives all of them up.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = (Way, Stream)> {
        std::mem::take(&mut self.streams).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;

    use super::*;

    fn at(boot_ns: u64) -> Moment {
        Moment { wall: Timestamp::from_secs(1_764_000_000), boot_ns }
    }

    fn way(port: u16) -> Way {
        let source = SocketAddr::from(([192, 0, 2, 1], port));
        Way { network_namespace: 1, source, destination: SocketAddr::from(([198, 51, 100, 7], 443)) }
    }

    #[test]
    fn segments_find_their_places() {
        let start = u32::MAX - 2;
        let mut stream = Stream::new(start, b"abc", at(0));
        stream.add(start.wrapping_add(9), b"jkl").unwrap();
        stream.add(start.wrapping_add(6), b"ghi").unwrap();
        assert_eq!(stream.bytes(), b"abc");
        stream.add(start, b"abc").unwrap();
        stream.add(start.wrapping_add(1), b"bcdef").unwrap();
        assert_eq!(stream.bytes(), b"abcdefghijkl");
        stream.advance(10);
        stream.add(start.wrapping_add(12), b"m").unwrap();
        assert_eq!(stream.bytes(), b"klm");
    }

    #[test]
    fn no_more_is_kept_than_the_bounds() {
        let mut stream = Stream::new(0, b"", at(0));
        assert_eq!(stream.add(0, &[0; STREAM_BYTES_MAX]), Ok(()));
        assert_eq!(stream.add(STREAM_BYTES_MAX as u32, &[0]), Err(TooLong));
        let mut gapped = Stream::new(0, b"", at(0));
        let outcomes: Vec<_> = (1..=20).map(|at| gapped.add(at * 2, b"x")).collect();
        assert_eq!(outcomes.iter().position(Result::is_err), Some(AHEAD_MAX));

        let mut pieces = Pieces::default();
        for port in 0..STREAMS_MAX as u16 {
            assert!(pieces.put(way(port), Stream::new(0, b"", at(u64::from(port) + 1))).is_none());
        }
        assert!(pieces.put(way(5), Stream::new(0, b"", at(999))).is_none());
        let gone = pieces.put(way(5_000), Stream::new(0, b"", at(1_000))).map(|(way, _)| way);
        assert_eq!(gone, Some(way(0)));
        assert_eq!(pieces.give_up().count(), STREAMS_MAX);
        assert!(pieces.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_segments_in_any_order_are_taken(
            segments in proptest::collection::vec((proptest::num::u32::ANY, 0usize..3_000), 0..30),
        ) {
            let mut stream = Stream::new(7, b"first", at(0));
            for (sequence, length) in segments {
                if stream.add(sequence, &vec![0; length]).is_err() {
                    break;
                }
                proptest::prop_assert!(stream.bytes().len() <= STREAM_BYTES_MAX);
            }
        }
    }
}
