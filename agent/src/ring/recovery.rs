//! What a directory holds of a ring. Only looks; the writer acts on it.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
};

use alibi_proto::{
    chain::Head,
    id::{Epoch, HostId, Seq},
    time::Timestamp,
};

use super::{
    Labeller, Labels, Options, RingError, SEQ_MAX, Span, checkpoint, files,
    seal::Seal,
    segment::{self, Scan, SegmentHeader},
    summary,
    view::{Index, Segment},
};

/// What was found of a ring.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) epoch: Epoch,
    /// The host that recorded it, if a segment tells.
    pub(super) host: Option<HostId>,
    /// What can be read of it, without the torn tail.
    pub(super) index: Index,
    /// The generation of its checkpoint, if one holds.
    pub(super) generation: Option<u64>,
    /// Whether records can be added to the newest segment.
    pub(super) newest_goes_on: bool,
    /// What the newest segment's seal would have to say.
    pub(super) newest_seal: Option<Seal>,
    /// Files of which nothing is left to read.
    pub(super) torn: Vec<PathBuf>,
    /// Files that were never finished.
    pub(super) unfinished: Vec<PathBuf>,
    /// Bytes of the torn tail.
    pub(super) cut_bytes: u64,
    /// How many records were safe on disk after the last good one, and are not there any more.
    pub(super) lost_at_end: u64,
}

/// What `dir` holds; none if there is no ring in it. Who goes on writing gives its limits, and how records are labelled.
///
/// # Errors
/// When it cannot be read, was written by a newer version, or has files that are not the ring's own.
pub(super) fn survey(dir: &Path, writer: Option<(&Options, Labeller)>) -> Result<Option<Survey>, RingError> {
    let Some(names) = list(dir)? else { return Ok(None) };
    let newest = checkpoint::read(&dir.join(checkpoint::NAME))?;
    let headers = read_headers(dir, &names.segments)?;
    if newest.is_none() && headers.is_empty() {
        return Ok(None);
    }
    let remembered = newest.map(|(_, checkpoint)| checkpoint);
    let whole = || headers.iter().filter_map(|(header, _)| *header);
    let epoch =
        remembered.map(|checkpoint| checkpoint.epoch).or_else(|| whole().next().map(|header| header.epoch));
    let epoch = epoch.ok_or_else(|| RingError::Unidentifiable { dir: dir.to_owned() })?;
    let host = whole().next().map(|header| header.host);
    let is_foreign = |header: &SegmentHeader| header.epoch != epoch || Some(header.host) != host;
    if let Some((_, segment)) = headers.iter().find(|(header, _)| header.as_ref().is_some_and(is_foreign)) {
        return Err(RingError::Foreign { path: segment.path.clone() });
    }

    let first = headers.front().and_then(|(header, _)| *header);
    let mut segments = VecDeque::new();
    let count = headers.len();
    for (at, (_, mut segment)) in headers.into_iter().enumerate() {
        // The newest is looked through in any case.
        if at + 1 < count {
            read_seal(epoch, &mut segment)?;
        }
        segments.push_back(segment);
    }
    let tail = find_tail(epoch, &mut segments, writer)?;
    let next_seq = tail.end_seq.max(
        remembered.map_or(Seq::FIRST, |checkpoint| checkpoint.next_seq.max(checkpoint.acknowledged.next())),
    );
    let lost_at_end = next_seq.0 - tail.good_end_seq.unwrap_or(next_seq).0;
    let mut recorded_max = tail.recorded_max;
    if lost_at_end > 0 {
        // Nobody knows what they spoke of, and they were recorded until the checkpoint was written.
        if let Some(newest) = segments.back_mut() {
            newest.times = None;
        }
        let known = remembered.and_then(|checkpoint| {
            checkpoint.recorded_until.max(checkpoint.recorded_at.map(|recorded_at| recorded_at.wall))
        });
        recorded_max = recorded_max.max(known.unwrap_or_default());
    }
    // Read by whoever goes on with it; what is newer is refused here, before anything is changed.
    summary::read(dir, epoch, next_seq)?;
    // What is missing at the end is still stood for by the head that was remembered after it.
    let remembered_head =
        remembered.filter(|checkpoint| checkpoint.next_seq == next_seq).map(|checkpoint| checkpoint.head);
    let head = match tail.head {
        Some(head) if tail.good_end_seq == Some(next_seq) => head,
        found => remembered_head.or(found).or(first.map(|first| first.previous)).unwrap_or(Head::UNKNOWN),
    };
    let mut index = Index {
        segments,
        next_seq,
        head,
        durable_next_seq: next_seq,
        durable_head: head,
        acknowledged: remembered.map_or(Seq(0), |checkpoint| checkpoint.acknowledged),
        evicted: None,
        recorded_until: remembered.and_then(|checkpoint| checkpoint.recorded_until),
        recorded_at: remembered.and_then(|checkpoint| checkpoint.recorded_at),
        recorded_max,
        closed_cleanly: remembered.is_some_and(|checkpoint| checkpoint.closed_cleanly),
        boot: remembered.and_then(|checkpoint| checkpoint.boot),
    };
    index.evicted = evicted(&index, remembered.and_then(|checkpoint| checkpoint.evicted));
    Ok(Some(Survey {
        epoch,
        host,
        generation: newest.map(|(generation, _)| generation),
        newest_goes_on: tail.goes_on && next_seq == tail.end_seq,
        newest_seal: tail.seal,
        torn: tail.torn,
        unfinished: names.unfinished,
        cut_bytes: tail.cut_bytes,
        lost_at_end,
        index,
    }))
}

#[derive(Default)]
struct Names {
    segments: Vec<Seq>,
    unfinished: Vec<PathBuf>,
}

fn list(dir: &Path) -> Result<Option<Names>, RingError> {
    let error = |source| RingError::Io { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(error)?,
    };
    let mut names = Names::default();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == files::UNFINISHED) {
            names.unfinished.push(path);
        } else if let Some(first_seq) = segment::first_seq_of(&name) {
            names.segments.push(first_seq);
        } else if name != checkpoint::NAME && name != summary::NAME {
            return Err(RingError::Foreign { path });
        }
    }
    names.segments.sort_unstable();
    Ok(Some(names))
}

/// The segments, each with its header, if that is good.
type Headers = VecDeque<(Option<SegmentHeader>, Segment)>;

fn read_headers(dir: &Path, first_seqs: &[Seq]) -> Result<Headers, RingError> {
    let mut headers = VecDeque::new();
    for &first_seq in first_seqs {
        let path = segment::path(dir, first_seq);
        let header = SegmentHeader::read(&path)?;
        if header.is_some_and(|header| header.first_seq != first_seq) {
            return Err(RingError::Foreign { path });
        }
        let metadata = fs::metadata(&path).map_err(|source| RingError::Io { path: path.clone(), source })?;
        let segment = Segment {
            first_seq,
            path,
            bytes: metadata.len(),
            file_bytes: metadata.len(),
            created: header.map(|header| header.created),
            times: None,
        };
        headers.push_back((header, segment));
    }
    Ok(headers)
}

/// Takes over what the segment's seal says, if it has one.
fn read_seal(epoch: Epoch, segment: &mut Segment) -> Result<(), RingError> {
    let seal = segment::read_seal(&segment.path, epoch);
    let seal = seal.map_err(|source| RingError::Io { path: segment.path.clone(), source })?;
    if let Some((seal, begins)) = seal {
        segment.bytes = begins;
        segment.times = Some(seal.times);
    }
    Ok(())
}

struct Tail {
    /// No position before this one may be given again.
    end_seq: Seq,
    /// Where the last good frame ends, if a segment is left.
    good_end_seq: Option<Seq>,
    /// The head of the chain there, if it is known.
    head: Option<Head>,
    goes_on: bool,
    seal: Option<Seal>,
    recorded_max: Timestamp,
    torn: Vec<PathBuf>,
    cut_bytes: u64,
}

/// Finds where the last good frame ends, and takes what follows it out of `segments`. A segment without a good header or
/// frame is none. Nothing is added to a file with a damaged header and good frames after it, nor to one in which something
/// is missing, of which a seal could not tell, nor to one that is sealed.
fn find_tail(
    epoch: Epoch,
    segments: &mut VecDeque<Segment>,
    writer: Option<(&Options, Labeller)>,
) -> Result<Tail, RingError> {
    let mut tail = Tail {
        end_seq: Seq::FIRST,
        good_end_seq: None,
        head: None,
        goes_on: false,
        seal: None,
        recorded_max: Timestamp::ZERO,
        torn: Vec::new(),
        cut_bytes: 0,
    };
    while let Some(newest) = segments.back_mut() {
        let error = |source| RingError::Io { path: newest.path.clone(), source };
        let sealed = segment::read_seal(&newest.path, epoch).map_err(error)?;
        let end = sealed.as_ref().map_or(newest.file_bytes, |(_, begins)| *begins);
        let mut seal = writer.map(|(options, _)| Seal::begin(options.segment_bytes));
        let scan = segment::scan(&newest.path, epoch, newest.first_seq, end, SEQ_MAX, |header, frame| {
            if let (Some(seal), Some((_, labeller)), None) = (&mut seal, writer, &sealed) {
                let labels: Option<Vec<Labels>> =
                    frame.unpack().ok().and_then(|records| records.iter().map(labeller).collect());
                match labels {
                    Some(labels) => seal.add(header, labels.iter()),
                    None => seal.add_unlabelled(header),
                }
            }
        })
        .map_err(error)?;
        // Its name alone says that the positions before it were given, and its seal those in it.
        let sealed_end = sealed.as_ref().map(|(seal, _)| seal.last_seq.next());
        let end_seq = scan.end_seq.max(sealed_end).unwrap_or(newest.first_seq);
        tail.end_seq = tail.end_seq.max(end_seq);
        if newest.created.is_none() && scan.end_seq.is_none() && sealed.is_none() {
            tail.cut_bytes += newest.file_bytes;
            tail.torn.extend(segments.pop_back().map(|segment| segment.path));
            continue;
        }
        let Scan { good_end, times, whole, .. } = scan;
        tail.recorded_max =
            times.map_or(Timestamp::ZERO, |times| times.recorded_to).max(newest.created.unwrap_or_default());
        tail.good_end_seq = Some(scan.end_seq.unwrap_or(newest.first_seq));
        tail.head = match (&sealed, scan.head) {
            (Some((seal, _)), _) => Some(seal.head),
            (None, None) => segment::previous_head(&newest.path)?,
            (None, head) => head,
        };
        match sealed {
            Some((seal, begins)) => {
                (newest.bytes, newest.times) = (begins, Some(seal.times));
                // Readers find what is missing before the seal.
                tail.good_end_seq = Some(seal.last_seq.next());
                tail.recorded_max = tail.recorded_max.max(seal.times.recorded_to);
            }
            None => {
                tail.cut_bytes += newest.file_bytes - good_end;
                tail.goes_on = newest.created.is_some() && end_seq == tail.end_seq && whole;
                (newest.bytes, newest.file_bytes) = (good_end, good_end);
                newest.times = times.filter(|_| whole);
                tail.seal = seal;
            }
        }
        break;
    }
    Ok(tail)
}

/// What was evicted without acknowledgement: what the checkpoint remembers, less what is still there, and more, if
/// something is missing at the start that it does not know of.
fn evicted(index: &Index, remembered: Option<Span>) -> Option<Span> {
    let last = Seq(index.first_seq().0 - 1);
    let remembered = remembered.filter(|span| span.first <= last);
    let known = remembered.map_or(Seq(0), |span| span.last);
    if known >= last {
        return remembered.map(|span| Span { last, ..span });
    }
    if index.acknowledged >= last {
        return None;
    }
    let first = remembered.map_or(index.acknowledged.next(), |span| span.first);
    let oldest = index.segments.iter().find_map(|segment| segment.created).unwrap_or_else(|| index.latest());
    let to = remembered.map_or(oldest, |span| span.to.max(oldest));
    Some(Span { first, last, from: Timestamp::ZERO, to })
}
