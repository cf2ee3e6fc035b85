//! The question, answered from the ring alone.

use std::collections::{BTreeMap, HashMap};

use alibi_proto::{
    convert::ConvertError,
    coverage::{Facet, Timeline},
    event::{Event, EventKind},
    flow::FlowRecord,
    id::{HostId, ProcessUid, Seq},
    process::{ProcessExit, ProcessLife, ProcessRecord},
    question::{Evidence, HostAnswer, Question, judge},
    time::Timestamp,
    wire,
};
use prost::Message as _;

use crate::ring::{Item, Reader, Record, RingError, View};

/// Records that one answer is made of. Few under test, so that the bound is met.
const RECORDS_MAX: usize = if cfg!(test) { 8 } else { 10_000 };
/// Read from the ring at once, in bytes and records.
const READ_BYTES: usize = 1 << 20;
const READ_RECORDS: usize = 4096;

/// The answer of this host, from everything that the ring holds.
///
/// # Errors
/// When the ring cannot be read.
pub fn answer(
    view: &View,
    question: &Question,
    host: HostId,
    name: String,
    known_until: Option<Timestamp>,
) -> Result<HostAnswer, QueryError> {
    let found = find(view, question)?;
    let flows: Vec<FlowRecord> = found.flows.into_values().collect();
    let lives = lives(view, &flows)?;
    let evidence = Evidence {
        host: Some(host),
        name,
        connections: &found.connections,
        known_until,
        flows,
        flows_left_out: found.flows_left_out,
    };
    Ok(judge(question, evidence, |uid| lives.get(&uid).cloned()))
}

#[derive(Default)]
struct Found {
    connections: Timeline,
    /// By whether they overlap the window, and by their end: the first are those that are needed least. What is left out
    /// is then never what came after a record that is kept, and ended its connection.
    flows: BTreeMap<(bool, Timestamp, Seq), FlowRecord>,
    flows_left_out: u64,
}

fn find(view: &View, question: &Question) -> Result<Found, QueryError> {
    let mut found = Found::default();
    read_all(view, |item| match item {
        Read::Hole(hole) => found.connections.apply_hole(&hole),
        Read::Event(event) => match event.kind {
            EventKind::CoverageChanged(change) if change.facet == Facet::Connections => {
                found.connections.apply(&change);
            }
            EventKind::Flow(flow)
                if question.target.matches(flow.protocol, flow.remote)
                    && flow.first < question.window.to()
                    && flow.last >= question.looks_back_to() =>
            {
                let overlaps = question.window.overlaps(flow.first, flow.last);
                found.flows.insert((overlaps, flow.last, event.seq), *flow);
                if found.flows.len() > RECORDS_MAX {
                    found.flows.pop_first();
                    found.flows_left_out += 1;
                }
            }
            _ => {}
        },
    })?;
    Ok(found)
}

/// The lives of the flows' owners.
fn lives(view: &View, flows: &[FlowRecord]) -> Result<HashMap<ProcessUid, ProcessLife>, QueryError> {
    let mut starts: HashMap<ProcessUid, Option<ProcessRecord>> =
        flows.iter().filter_map(|flow| flow.process).map(|uid| (uid, None)).collect();
    if starts.is_empty() {
        return Ok(HashMap::new());
    }
    let mut exits: HashMap<ProcessUid, ProcessExit> = HashMap::new();
    read_all(view, |item| match item {
        Read::Event(Event { kind: EventKind::ProcessStarted(process), .. }) => {
            if let Some(start) = starts.get_mut(&process.uid) {
                // The first record of a process is from nearest its start.
                start.get_or_insert(*process);
            }
        }
        Read::Event(Event { kind: EventKind::ProcessExited(exit), .. }) if starts.contains_key(&exit.uid) => {
            exits.insert(exit.uid, exit);
        }
        _ => {}
    })?;
    Ok(starts
        .into_iter()
        .filter_map(|(uid, record)| {
            Some((uid, ProcessLife { record: record?, exit: exits.get(&uid).copied() }))
        })
        .collect())
}

enum Read {
    Event(Event),
    Hole(alibi_proto::coverage::Hole),
}

fn read_all(view: &View, mut take: impl FnMut(Read)) -> Result<(), QueryError> {
    let mut reader = Reader::new(view.clone(), Seq::FIRST);
    loop {
        match reader.next_batch(READ_BYTES, READ_RECORDS)? {
            Item::Records(records) => {
                for record in records {
                    take(Read::Event(decode(&record)?));
                }
            }
            Item::Hole(hole) => take(Read::Hole(hole)),
            Item::CaughtUp => return Ok(()),
        }
    }
}

fn decode(record: &Record) -> Result<Event, QueryError> {
    Ok(Event::try_from(wire::Event::decode(record.bytes.as_slice())?)?)
}

/// The ring cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It cannot be read.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A record is no event.
    #[error("a recorded event cannot be read: {0}")]
    Decode(#[from] prost::DecodeError),
    /// An event breaks the contract.
    #[error("a recorded event cannot be read: {0}")]
    Convert(#[from] ConvertError),
}
