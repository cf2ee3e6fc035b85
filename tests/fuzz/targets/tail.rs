//! What a collector gets of an agent: the message as it comes, or one that is packed and chained here out of events.
#![no_main]

use alibi_proto::{event::Batch, wire};
use prost::Message as _;

libfuzzer_sys::fuzz_target!(init: alibi_fuzz::seed("tail"), |data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else { return };
    let response = match how & 1 {
        0 => wire::TailResponse::decode(bytes).ok(),
        _ => alibi_fuzz::response(bytes),
    };
    let Some(response) = response else { return };
    let Ok(batch) = Batch::try_from(response.clone()) else { return };
    let counts = response.frames.iter().map(|frame| u64::from(frame.count));
    assert_eq!(batch.events.len() as u64, counts.sum::<u64>());
    let first = response.frames.first().map_or(0, |frame| frame.first_seq);
    assert!(batch.events.iter().zip(first..).all(|(event, seq)| event.seq.0 == seq));
    assert!(batch.events.is_empty() == batch.link.is_none());
});
