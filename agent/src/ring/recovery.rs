//! What a directory holds of a ring. Only looks; the writer acts on it.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
};

use alibi_proto::{
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{
    RingError, Span, Times, checkpoint, files,
    segment::{self, SegmentHeader},
    view::{Index, Segment},
};

/// What was found of a ring.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) epoch: Epoch,
    /// What can be read of it, without the torn tail.
    pub(super) index: Index,
    /// The generation of its checkpoint, if one holds.
    pub(super) generation: Option<u64>,
    /// Whether records can be added to the newest segment.
    pub(super) newest_goes_on: bool,
    /// Files of which nothing is left to read.
    pub(super) torn: Vec<PathBuf>,
    /// Files that were never finished.
    pub(super) unfinished: Vec<PathBuf>,
    /// Bytes of the torn tail.
    pub(super) cut_bytes: u64,
    /// How many records were safe on disk after the last good one, and are not there any more.
    pub(super) lost_at_end: u64,
}

/// What `dir` holds; none if there is no ring in it.
///
/// # Errors
/// When it cannot be read, was written by a newer version, or has files that are not the ring's own.
pub(super) fn survey(dir: &Path) -> Result<Option<Survey>, RingError> {
    let Some(names) = list(dir)? else { return Ok(None) };
    let newest = checkpoint::read(&dir.join(checkpoint::NAME))?;
    let (mut segments, epochs) = read_headers(dir, &names.segments)?;
    if newest.is_none() && segments.is_empty() {
        return Ok(None);
    }
    let remembered = newest.map(|(_, checkpoint)| checkpoint);
    let epoch =
        remembered.map(|checkpoint| checkpoint.epoch).or_else(|| epochs.iter().find_map(|(epoch, _)| *epoch));
    let epoch = epoch.ok_or_else(|| RingError::Unidentifiable { dir: dir.to_owned() })?;
    if let Some((_, path)) = epochs.iter().find(|(other, _)| other.is_some_and(|other| other != epoch)) {
        return Err(RingError::Foreign { path: (*path).clone() });
    }

    let tail = find_tail(epoch, &mut segments)?;
    let next_seq = tail.end_seq.max(
        remembered.map_or(Seq::FIRST, |checkpoint| checkpoint.next_seq.max(checkpoint.acknowledged.next())),
    );
    let mut index = Index {
        segments,
        next_seq,
        durable_next_seq: next_seq,
        acknowledged: remembered.map_or(Seq(0), |checkpoint| checkpoint.acknowledged),
        evicted: None,
        recorded_until: remembered.and_then(|checkpoint| checkpoint.recorded_until),
        recorded_max: tail.recorded_max,
        closed_cleanly: remembered.is_some_and(|checkpoint| checkpoint.closed_cleanly),
        boot: remembered.and_then(|checkpoint| checkpoint.boot),
    };
    index.evicted = evicted(&index, remembered.and_then(|checkpoint| checkpoint.evicted));
    Ok(Some(Survey {
        epoch,
        generation: newest.map(|(generation, _)| generation),
        newest_goes_on: tail.goes_on && next_seq == tail.end_seq,
        torn: tail.torn,
        unfinished: names.unfinished,
        cut_bytes: tail.cut_bytes,
        lost_at_end: next_seq.0 - tail.good_end_seq.unwrap_or(next_seq).0,
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
        } else if name != checkpoint::NAME {
            return Err(RingError::Foreign { path });
        }
    }
    names.segments.sort_unstable();
    Ok(Some(names))
}

/// The epoch of a segment, if its header is good, and its file.
type Epochs = Vec<(Option<Epoch>, PathBuf)>;

fn read_headers(dir: &Path, first_seqs: &[Seq]) -> Result<(VecDeque<Segment>, Epochs), RingError> {
    let mut segments = VecDeque::new();
    let mut epochs = Vec::new();
    for &first_seq in first_seqs {
        let path = segment::path(dir, first_seq);
        let header = SegmentHeader::read(&path)?;
        if header.is_some_and(|header| header.first_seq != first_seq) {
            return Err(RingError::Foreign { path });
        }
        let metadata = fs::metadata(&path).map_err(|source| RingError::Io { path: path.clone(), source })?;
        epochs.push((header.map(|header| header.epoch), path.clone()));
        let created = header.map(|header| header.created);
        segments.push_back(Segment { first_seq, path, bytes: metadata.len(), created, times: None });
    }
    Ok((segments, epochs))
}

struct Tail {
    /// No position before this one may be given again.
    end_seq: Seq,
    /// Where the last good frame ends, if a segment is left.
    good_end_seq: Option<Seq>,
    goes_on: bool,
    recorded_max: Timestamp,
    torn: Vec<PathBuf>,
    cut_bytes: u64,
}

/// Finds where the last good frame ends, and takes what follows it out of `segments`. A segment without a good header or
/// frame is none; a damaged header with good frames after it is kept, but nothing is added to that file.
fn find_tail(epoch: Epoch, segments: &mut VecDeque<Segment>) -> Result<Tail, RingError> {
    let mut tail = Tail {
        end_seq: Seq::FIRST,
        good_end_seq: None,
        goes_on: false,
        recorded_max: Timestamp::ZERO,
        torn: Vec::new(),
        cut_bytes: 0,
    };
    while let Some(newest) = segments.back_mut() {
        let scan = segment::scan(&newest.path, epoch, newest.first_seq, newest.bytes)
            .map_err(|source| RingError::Io { path: newest.path.clone(), source })?;
        // Its name alone says that the positions before it were given.
        tail.end_seq = tail.end_seq.max(scan.end_seq.unwrap_or(newest.first_seq));
        if newest.created.is_none() && scan.end_seq.is_none() {
            tail.cut_bytes += newest.bytes;
            tail.torn.extend(segments.pop_back().map(|segment| segment.path));
            continue;
        }
        tail.cut_bytes += newest.bytes - scan.good_end;
        tail.recorded_max =
            scan.times.map_or(Timestamp::ZERO, |times| times.to).max(newest.created.unwrap_or_default());
        let end_seq = scan.end_seq.unwrap_or(newest.first_seq);
        tail.good_end_seq = Some(end_seq);
        tail.goes_on = newest.created.is_some() && end_seq == tail.end_seq;
        newest.bytes = scan.good_end;
        newest.times = scan.times.filter(|_| scan.whole);
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
    let to = remembered.map_or(oldest, |span| span.times.to.max(oldest));
    Some(Span { first, last, times: Times { from: Timestamp::ZERO, to } })
}
