//! A query: what is read of it reads the same when it is written again, holds of the same, is decided by no more than was
//! looked up, and by what is hinted nothing is passed over that it holds of.
#![no_main]

use std::sync::OnceLock;

use alibi_collector::search::{
    advice,
    document::{Connection, Document, Seen, Truth},
    hints::{self, RecordHints},
    query::{QUERY_BYTES_MAX, Searched, parse},
};
use alibi_proto::{clock::Difference, flow::FlowRecord, id::HostId, process::ProcessLife, time::Timestamp};

const NOW: Timestamp = Timestamp::from_secs(1_764_000_000);

fn searched() -> &'static (ProcessLife, FlowRecord, [Connection; 1]) {
    static SEARCHED: OnceLock<(ProcessLife, FlowRecord, [Connection; 1])> = OnceLock::new();
    SEARCHED.get_or_init(|| {
        let (life, record) = alibi_fuzz::searched();
        let connections = [Connection::of_record(record.clone())];
        (life, record, connections)
    })
}

libfuzzer_sys::fuzz_target!(init: alibi_fuzz::seed("search"), |data: &[u8]| {
    let Some((&of, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let searched_for = if of & 1 == 0 { Searched::Processes } else { Searched::Flows };
    let tree = match parse(text, searched_for, NOW) {
        Ok(tree) => tree,
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 1_000, "what is wrong is told in few words: {said}");
            return;
        }
    };
    assert!(text.len() <= QUERY_BYTES_MAX);
    let (life, record, connections) = searched();
    let whole = Document {
        searched: searched_for,
        host: HostId::from_bytes([1; 16]),
        host_name: "laptop-a",
        clock: Difference::ZERO,
        process: Seen::Known(Some(life)),
        parent: Seen::Known(None),
        connections: Seen::Known(connections),
    };
    let holds = tree.holds(&whole);
    assert_ne!(holds, Truth::Perhaps, "all was looked up");
    for partly in [
        Document { connections: Seen::NotYet, ..whole },
        Document { process: Seen::NotYet, parent: Seen::NotYet, ..whole },
    ] {
        let truth = tree.holds(&partly);
        assert!(truth == Truth::Perhaps || truth == holds);
    }
    if holds == Truth::Yes {
        let narrowed = match searched_for {
            Searched::Flows => Some(RecordHints::of_records(&tree)),
            Searched::Processes => RecordHints::of_some_connection(&tree),
        };
        assert!(narrowed.is_none_or(|hints| admits(&hints, record)));
        let started = life.record.started;
        assert!(hints::started(&tree).is_none_or(|hint| hint.from <= started && started <= hint.to));
    }
    let _ = advice::warnings(&tree, searched_for, NOW);

    // Written by the fields' own names it may have become too long, and is then refused as anything is that is.
    let written = tree.to_string();
    match parse(&written, searched_for, NOW) {
        Ok(again) => assert_eq!(again.holds(&whole), holds, "{text:?} became {written:?}"),
        Err(error) => assert!(is_a_limit(&error.to_string()), "{text:?} became {written:?}: {error}"),
    }
});

fn is_a_limit(said: &str) -> bool {
    ["bytes, and may have", "more than 256 terms", "brackets and NOTs"]
        .iter()
        .any(|limit| said.contains(limit))
}

fn admits(hints: &RecordHints, record: &FlowRecord) -> bool {
    let remote = record.remote.ip();
    hints.times.is_none_or(|times| record.first <= times.to && record.last >= times.from)
        && hints.remotes.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&remote)))
        && hints.port.is_none_or(|port| port == record.remote.port())
        && hints.protocol.is_none_or(|protocol| protocol == record.protocol)
}
