//! What an agent has recorded, read from its ring.

pub mod measure;

use std::path::Path;

use alibi_agent::ring::{Read, Reader, View};
use alibi_proto::{event::Event, id::Seq, wire};
use anyhow::{Result, bail};
use prost::Message as _;

/// All events of the agent whose data is in `agent_data`, running or not.
///
/// # Errors
/// When the ring cannot be read, or has lost its beginning.
pub fn events(agent_data: &Path) -> Result<Vec<Event>> {
    let view = View::open_read_only(&agent_data.join("ring"))?;
    let mut reader = Reader::new(view, Seq::FIRST);
    let mut events = Vec::new();
    loop {
        match reader.next_records()? {
            Read::Records(_, columns) => {
                let records = columns.records();
                for record in records.iter() {
                    events.push(Event::try_from(wire::Event::decode(record)?)?);
                }
            }
            Read::Hole(hole) => bail!("the ring has lost events: {hole:?}"),
            Read::CaughtUp => return Ok(events),
        }
    }
}
