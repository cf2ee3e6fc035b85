//! Queries in the search language, and what they are held against.

use alibi_collector::search::fields::FIELDS;
use alibi_proto::{flow::FlowRecord, process::ProcessLife, wire};

/// Sound ones, of every kind of term, and some at the limits. The first byte says what is searched.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let whole = [
        "sensor_id:01010101-* netconn_count:[1 TO *] start:[NOW-10MINUTES TO NOW]",
        "process_name:(win* OR \"a b\"*) AND NOT username:j?oe -ipport:22",
        "ipaddr:IN [10.0.0.1 192.0.2.0/24] OR ipaddr:[10.0.0.1 TO 10.0.0.9}",
        "path:\"C:\\Program Files\\x\" cmdline:a\\*b* cmdline:*wait=-30s*",
        "activity:>=NOW/DAY last_update:[2026-11-28 TO 2026-11-28T10:31:00Z] start:-10m",
        "bytes:>10 +x -\"y\" *",
        "cmdline:IN [] user:(a OR b)",
    ];
    let examples = FIELDS.iter().map(|about| about.example.to_owned());
    let deep =
        ["(".repeat(33) + &")".repeat(33), "(".repeat(32) + "a" + &")".repeat(32), "NOT ".repeat(40) + "a"];
    let queries = whole.map(str::to_owned).into_iter().chain(examples).chain(deep);
    queries.zip([0, 1].into_iter().cycle()).map(|(query, of)| [&[of], query.as_bytes()].concat()).collect()
}

/// A process and a record of it, as they come from an agent.
pub fn searched() -> (ProcessLife, FlowRecord) {
    let (mut process, mut record) = (None, None);
    for event in super::messages::events() {
        match event.kind {
            Some(wire::event::Kind::ProcessStarted(started)) => process = Some(started),
            Some(wire::event::Kind::Flow(flow)) => record = Some(flow),
            _ => {}
        }
    }
    let process = process.expect("there is one").try_into().expect("it is sound");
    (ProcessLife::new(process, None), record.expect("there is one").try_into().expect("it is sound"))
}
