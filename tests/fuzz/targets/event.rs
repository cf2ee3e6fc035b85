//! An event, as it is kept and sent: what is one says the same after every way there and back, and is labelled alike.
#![no_main]

use alibi_agent::{labels, recorder::labels_of};
use alibi_proto::{
    event::{Event, EventKind},
    wire,
};
use prost::Message as _;

libfuzzer_sys::fuzz_target!(init: alibi_fuzz::seed("event"), |data: &[u8]| {
    let labels = labels_of(data);
    let event = wire::Event::decode(data).ok().and_then(|event| Event::try_from(event).ok());
    let Some(event) = event else {
        assert_eq!(labels, None);
        return;
    };
    let is_known = event.kind != EventKind::Unrecognised;
    assert_eq!(labels, is_known.then(|| labels::of(&event)));
    let _ = (event.speaks_from(), event.speaks_until());
    if is_known {
        let again = wire::Event::from(event.clone()).encode_to_vec();
        let again = Event::try_from(wire::Event::decode(again.as_slice()).expect("it was encoded"));
        assert_eq!(again.as_ref(), Ok(&event));
    }
});
