//! Queries that are meant to cost whoever reads them: refused, and at once. What each takes is printed (`--nocapture`).

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{fmt::Write as _, time::Instant};

use alibi_collector::search::query::{Searched, parse};
use alibi_proto::time::Timestamp;

/// What anybody may send, and what it is refused with; where there is nothing to refuse, it is read.
#[test]
fn hostile_queries_are_refused_at_once() {
    let terms = |count: usize| (0..count).map(|n| format!("pid:{n}")).collect::<Vec<_>>().join(" OR ");
    let nested = |deep: usize, inner: &str| format!("{}{inner}{}", "(".repeat(deep), ")".repeat(deep));
    let hostile: Vec<(&str, String, Option<&str>)> = vec![
        ("a million terms", "a ".repeat(1_000_000), Some("bytes")),
        ("100,000 brackets", "(".repeat(100_000), Some("bytes")),
        ("16,000 brackets", "(".repeat(16_000), Some("brackets")),
        ("33 brackets", nested(33, "a"), Some("brackets")),
        ("32 brackets", nested(32, "pid:1"), None),
        ("brackets after a field", "cmdline:(".repeat(1_800), Some("brackets")),
        ("NOT NOT NOT", "NOT ".repeat(4_000) + "a", Some("brackets")),
        ("NOTs and brackets", "NOT (".repeat(3_000), Some("brackets")),
        ("4,000 short terms", "a ".repeat(4_000), Some("terms")),
        ("257 terms", terms(257), Some("terms")),
        ("256 terms", terms(256), None),
        ("2,000 quotes", "\"a\"".repeat(2_000), Some("terms")),
        ("a set of 2,000", format!("pid:IN [{}]", "1 ".repeat(2_000)), Some("terms")),
        ("7,000 minuses", "-".repeat(7_000), Some("is not a query")),
        ("terms in brackets in terms", "(a b ".repeat(32) + "a" + &" b c)".repeat(32), None),
        ("the same, not closed", "(a b ".repeat(32), Some("not closed")),
        ("slashes", "/a ".repeat(256), None),
        ("a huge range", "pid:[-9223372036854775808 TO 9223372036854775807]".into(), None),
        (
            "a huger range",
            format!("pid:[0 TO {}]", "9".repeat(1_000)),
            Some("is nothing that process.pid can be"),
        ),
        (
            "a long time",
            format!("start:NOW{}", "-1s".repeat(1_000)),
            Some("is nothing that process.start can be"),
        ),
        ("a wide network", "ipaddr:\"::/0\" ipaddr:0.0.0.0/0".into(), None),
        ("many stars", format!("cmdline:{}", "a*".repeat(500)), None),
        ("a long value", format!("cmdline:{}", "a".repeat(2_000)), Some("1,024 characters")),
        ("a long field", format!("{}:a", "a".repeat(16_000)), Some("there is no field")),
        ("a huge weight", format!("a^{}", "9".repeat(10_000)), Some("weight")),
        ("letters of Unicode", "é".repeat(8_000), Some("1,024 characters")),
    ];
    // Threads that answer have small stacks.
    let refused = std::thread::Builder::new().stack_size(512 << 10).spawn(move || {
        let mut times = String::new();
        for (name, query, want) in &hostile {
            let began = Instant::now();
            let read = parse(query, Searched::Processes, Timestamp::from_secs(1_000_000));
            let took = began.elapsed();
            let _ = writeln!(times, "{name}: {} bytes, {took:?}", query.len());
            match (read, want) {
                (Ok(_), None) => {}
                (Err(error), Some(want)) => {
                    let said = error.to_string();
                    assert!(said.contains(want) && said.len() < 400, "{name}: {said}");
                }
                (read, _) => panic!("{name}: {:?}", read.map(|_| "was read")),
            }
        }
        times
    });
    println!("{}", refused.unwrap().join().unwrap());
}
