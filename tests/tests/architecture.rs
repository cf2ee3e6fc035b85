//! The house has rooms, and some things never enter some rooms. These are the rules, as data, held against the source
//! files as text.
//!
//! Comments are not looked at, nor are `#[cfg(test)]` modules at the end of a file; imports are looked at name by name,
//! however they are grouped.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What never enters where, and why.
struct Rule {
    /// Beginnings of paths of the files that it holds for, from the root of the project; empty: all.
    paths: &'static [&'static str],
    /// Beginnings of paths that it does not hold for.
    except_paths: &'static [&'static str],
    /// What must not be named there: whole words, where they begin and end as words.
    words: &'static [&'static str],
    /// What may be named though it begins with such a word.
    except_words: &'static [&'static str],
    /// Why not.
    reason: &'static str,
}

/// The files that are looked at as code.
const CODE: &str = ".rs";
/// Generated, and nobody's to read.
const GENERATED: &str = "proto/src/gen/";
const LINES_MAX: usize = 700;
/// Longer all the same.
const LONG: &[(&str, &str)] =
    &[("proto/src/convert.rs", "wire types become words in one place alone, type after type")];

const OUTSIDE_WORLD: &[&str] = &[
    "tokio",
    "tonic",
    "std::*",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "fs::File",
    "thread::spawn",
    "process::Command",
    "time::Instant",
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "rustix",
    "sysinfo",
];

const SQL: &[&str] = &[
    "rusqlite",
    "SELECT",
    "INSERT INTO",
    "INSERT OR",
    "UPDATE",
    "DELETE FROM",
    "CREATE TABLE",
    "CREATE INDEX",
    "PRAGMA",
];

const RULES: &[Rule] = &[
    Rule {
        paths: &["agent/"],
        except_paths: &[],
        words: &["alibi_collector", "alibi-collector"],
        except_words: &[],
        reason: "agent and collector meet in proto alone",
    },
    Rule {
        paths: &["collector/"],
        except_paths: &[],
        words: &["alibi_agent", "alibi-agent"],
        // What a person is told to run.
        except_words: &["alibi-agent enroll"],
        reason: "agent and collector meet in proto alone",
    },
    Rule {
        paths: &["proto/"],
        except_paths: &[],
        words: &["alibi_agent", "alibi_collector", "alibi-agent.workspace", "alibi-collector.workspace"],
        except_words: &[],
        reason: "proto knows neither of those who use it",
    },
    Rule {
        paths: &[
            "agent/src/pipeline",
            "agent/src/ledger",
            "agent/src/labels",
            "agent/src/enrich/redaction",
            "agent/src/owner/health",
            "agent/src/owner/report",
            "agent/src/owner/status",
            "agent/src/enrich/package/rpm/header",
            "agent/src/capture/poll/differ",
            "agent/src/capture/windows/connections",
            "agent/src/capture/windows/event",
            "agent/src/capture/windows/names",
            "agent/src/capture/windows/processes",
            "agent/src/capture/windows/tracker",
            "agent/src/capture/interfaces",
            "agent/src/capture/suspends",
            "collector/src/access/audit/refusals",
            "collector/src/access/lease",
            "collector/src/access/policy",
            "collector/src/access/rate",
            "collector/src/access/role",
            "collector/src/export",
            "collector/src/search",
            "collector/src/totals",
            "proto/src/community.rs",
            "proto/src/question.rs",
            "proto/src/coverage",
            "proto/src/flow.rs",
            "proto/src/frame.rs",
            "proto/src/chain.rs",
            "proto/src/prevalence",
            "proto/src/process.rs",
            "proto/src/executable.rs",
            "proto/src/name.rs",
            "proto/src/link.rs",
            "proto/src/target.rs",
            "proto/src/window.rs",
            "proto/src/time.rs",
            "proto/src/clock",
            "proto/src/id.rs",
            "proto/src/event.rs",
            "proto/src/host.rs",
            "proto/src/json.rs",
            "proto/src/report.rs",
            "tests/src/fleet/model",
            "tests/src/fleet/check/truth",
            "tests/src/fleet/check/questions",
        ],
        except_paths: &[],
        words: OUTSIDE_WORLD,
        except_words: &[],
        reason: "a pure room decides and touches nothing: what it needs to know, `now` too, is an argument",
    },
    Rule {
        paths: &["agent/src/ring"],
        except_paths: &[],
        words: &["alibi_proto"],
        except_words: &[
            "alibi_proto::chain::",
            "alibi_proto::frame::",
            "alibi_proto::id::",
            "alibi_proto::time::",
            "alibi_proto::coverage::Hole",
            "alibi_proto::coverage::CHANGED_ON_DISK",
            "alibi_proto::coverage::OVERWRITTEN",
            "alibi_proto::flow::RECORD_SPAN_MAX",
            "alibi_proto::data_directory::",
        ],
        reason: "the ring keeps opaque records: seq, times, labels, bytes",
    },
    Rule {
        paths: &["agent/src/capture"],
        except_paths: &[],
        words: &["crate::ring", "crate::recorder", "crate::server", "tonic"],
        except_words: &[],
        reason: "a source says what it saw, and knows neither where that is kept nor who is told",
    },
    Rule {
        paths: &["agent/", "collector/", "proto/src", "tests/src"],
        except_paths: &[
            "collector/src/store/",
            "collector/src/store.rs",
            "collector/Cargo.toml",
            "agent/src/enrich/package/rpm",
            "agent/Cargo.toml",
            "tests/src/scale/duckdb.py",
        ],
        words: SQL,
        except_words: &[],
        reason: "SQL stays below the store, and where rpm's own database is read, or another is asked",
    },
    Rule {
        paths: &["collector/src/store.rs"],
        except_paths: &[],
        words: SQL,
        except_words: &["rusqlite::Error"],
        reason: "the front of the store shows no more of SQLite than its error",
    },
    Rule {
        paths: &["agent/src/", "collector/src/"],
        except_paths: &[
            "agent/src/server",
            "agent/src/recorder",
            "agent/src/query",
            "agent/src/cli",
            "agent/src/link",
            "collector/src/fleet",
            "collector/src/api",
            "collector/src/cli",
            "collector/src/export",
            "collector/src/store",
        ],
        words: &["wire::", "alibi_proto::wire"],
        except_words: &[],
        reason: "generated types stay at the edges, where messages come in, go out or are kept",
    },
    Rule {
        paths: &["agent/src/", "collector/src/", "proto/src/", "tests/src/"],
        except_paths: &["agent/src/capture.rs", "agent/src/capture/", "agent/src/sys.rs", "agent/src/sys/"],
        words: &["target_os"],
        except_words: &[],
        reason: "one front chooses the system, so that all else is the same everywhere",
    },
    Rule {
        paths: &["agent/src/", "collector/src/", "proto/", "tests/src/", "tests/tests/"],
        except_paths: &["tests/tests/architecture.rs"],
        words: &["thread::sleep"],
        except_words: &[],
        reason: "await the event itself: a sleep is too long or too short",
    },
    Rule {
        paths: &[],
        except_paths: &[],
        words: &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")],
        except_words: &[concat!("/ho", "me/jdoe")],
        reason: "a path of somebody's machine means nothing on another (jdoe is nobody)",
    },
    Rule {
        paths: &[],
        except_paths: &["tests/tests/architecture.rs"],
        words: &["registry+", "sparse+", "replace-with", "[registries", "[source."],
        except_words: &["registry+https://github.com/rust-lang/crates.io-index"],
        reason: "the project builds from crates.io, by whichever way a machine reaches that",
    },
];

/// A file and what is in it.
struct Source {
    /// From the root of the project, with `/`.
    path: String,
    text: String,
}

#[test]
fn nothing_enters_a_room_where_it_must_not_be() {
    let sources = sources();
    let breaches: Vec<String> =
        RULES.iter().flat_map(|rule| sources.iter().flat_map(|source| breaches(rule, source))).collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn no_file_is_too_long_to_read() {
    let long: Vec<String> = sources().iter().filter_map(too_long).collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// A rule whose room was renamed would hold for nothing from then on.
#[test]
fn every_rule_has_a_room() {
    let sources = sources();
    let exists = |path: &str| sources.iter().any(|source| source.path.starts_with(path));
    for rule in RULES {
        for path in rule.paths.iter().chain(rule.except_paths) {
            assert!(exists(path), "nothing begins with {path} ({})", rule.reason);
        }
    }
    assert!(LONG.iter().all(|(path, _)| exists(path)));
}

/// Every word of every rule, planted into its room, is found, and named with its line and the reason.
#[test]
fn planted_breaches_are_found() {
    for rule in RULES {
        for word in rule.words {
            let path = format!("{}x.rs", rule.paths.first().unwrap_or(&"agent/src/"));
            let path = if path.ends_with(".rsx.rs") { rule.paths[0].to_owned() } else { path };
            let source = Source { path, text: format!("// {word}\nfn f() {{\n    {word} \n}}\n") };
            let found = breaches(rule, &source);
            let line = format!("{}:3: `{word}`", source.path);
            let shown = found.iter().find(|breach| breach.starts_with(&line));
            let shown = shown.unwrap_or_else(|| panic!("{line} is not in {found:?}"));
            assert!(shown.ends_with(rule.reason));
        }
    }
}

#[test]
fn imports_are_read_name_by_name_and_comments_and_tests_not_at_all() {
    let text = "\
//! tokio, std::fs
use std::{
    collections::{BTreeMap, HashMap}, /* std::env */
    fs,
    net::SocketAddr,
    time::{Duration, Instant as Then},
};
pub(crate) use tonic as wires;
let url = \"http://x\"; std::thread::spawn(f); // std::process
let tokio_like = not_tokio;
#[cfg(test)]
mod tests {
    use std::env;
}
";
    let check = |path: &str, rule: &Rule| -> Vec<String> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        breaches(rule, &source)
            .iter()
            .filter_map(|found| Some(found.split_once(" is")?.0.to_owned()))
            .collect()
    };
    let pure = RULES.iter().find(|rule| rule.words == OUTSIDE_WORLD).unwrap();
    assert_eq!(
        check("agent/src/ledger.rs", pure),
        [
            "agent/src/ledger.rs:4: `std::fs`",
            "agent/src/ledger.rs:6: `time::Instant`",
            "agent/src/ledger.rs:8: `tonic`",
            "agent/src/ledger.rs:9: `std::thread`",
            "agent/src/ledger.rs:9: `thread::spawn`",
        ]
    );
    assert_eq!(check("agent/src/server.rs", pure), Vec::<String>::new(), "another room");
}

#[test]
fn what_is_excepted_is_no_breach() {
    let check = |path: &str, text: &str| {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        RULES.iter().flat_map(|rule| breaches(rule, &source)).count()
    };
    assert_eq!(check("agent/src/ring/x.rs", "use alibi_proto::{coverage::Hole, id::Seq};\n"), 0);
    assert_eq!(check("agent/src/ring/x.rs", "use alibi_proto::{coverage::{Gap, Hole}, id::Seq};\n"), 1);
    assert_eq!(check("agent/src/ring/x.rs", "alibi_proto::data_directory::create_private(dir)\n"), 0);
    assert_eq!(check("collector/src/store.rs", "Sqlite(#[from] rusqlite::Error),\n"), 0);
    assert_eq!(check("collector/src/store.rs", "use rusqlite::Connection;\n"), 1);
    assert_eq!(check("collector/src/api.rs", "Sqlite(#[from] rusqlite::Error),\n"), 1);
    assert_eq!(check("agent/Cargo.toml", "alibi-collector.workspace = true\n"), 1);
    assert_eq!(
        check("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n"),
        0
    );
    assert_eq!(check("Cargo.lock", "source = \"registry+https://crates.example/index\"\n"), 1);
}

#[test]
fn a_long_file_is_found() {
    let of = |path: &str, lines: usize| Source { path: path.to_owned(), text: "x\n".repeat(lines) };
    assert_eq!(too_long(&of("agent/src/x.rs", LINES_MAX)), None);
    assert!(too_long(&of("agent/src/x.rs", LINES_MAX + 1)).unwrap().starts_with("agent/src/x.rs: "));
    assert_eq!(too_long(&of("proto/src/gen/x.rs", 9_999)), None);
    assert_eq!(too_long(&of("Cargo.lock", 9_999)), None);
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    let excused = !source.path.ends_with(CODE)
        || source.path.starts_with(GENERATED)
        || LONG.iter().any(|(path, _)| source.path == *path);
    (lines > LINES_MAX && !excused).then(|| {
        format!("{}: {lines} lines, and more than {LINES_MAX} is more than one subject", source.path)
    })
}

/// Every place in the file where the rule is broken, as `file:line: word is …: reason`.
fn breaches(rule: &Rule, source: &Source) -> Vec<String> {
    let begins = |path: &&str| source.path.starts_with(path);
    let holds = rule.paths.is_empty() || rule.paths.iter().any(begins);
    if !holds || rule.except_paths.iter().any(begins) {
        return Vec::new();
    }
    let named = if source.path.ends_with(CODE) && !source.path.starts_with(GENERATED) {
        names(&source.text)
    } else {
        source.text.lines().map(str::to_owned).enumerate().map(|(index, line)| (index + 1, line)).collect()
    };
    let mut found = Vec::new();
    for (line, text) in named {
        for word in rule.words.iter().filter(|word| is_named(&text, word, rule.except_words)) {
            let (path, reason) = (&source.path, rule.reason);
            found.push(format!("{path}:{line}: `{word}` is named in `{}`: {reason}", text.trim()));
        }
    }
    found
}

/// Whether `word` stands in `text` as a word, other than as the beginning of what is excepted.
fn is_named(text: &str, word: &str, excepted: &[&str]) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let begins = !is_part(word.chars().next()) || !is_part(before.chars().next_back());
        let ends = !is_part(word.chars().next_back()) || !is_part(after.chars().next());
        begins && ends && !excepted.iter().any(|excepted| text[at..].starts_with(excepted))
    })
}

/// The code of a file, line by line with its number: imports flattened to one full name each, all else as it stands.
fn names(text: &str) -> Vec<(usize, String)> {
    let code = without_comments(text);
    let code = code.split_once("\n#[cfg(test)]\nmod tests {").map_or(code.as_str(), |(code, _)| code);
    let mut names = Vec::new();
    let mut lines = code.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let trimmed = line.trim_start();
        let import = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "]
            .iter()
            .find_map(|beginning| trimmed.strip_prefix(beginning));
        let Some(first) = import else {
            names.push((index + 1, line.to_owned()));
            continue;
        };
        let mut import = vec![(index + 1, first.to_owned())];
        while !import.last().unwrap().1.contains(';') {
            let Some((index, line)) = lines.next() else { break };
            import.push((index + 1, line.to_owned()));
        }
        flatten(&import, &mut names);
    }
    names
}

/// `a::{b, c::{d, e}};` as `a::b`, `a::c::d` and `a::c::e`, each with the line that it ends on.
fn flatten(import: &[(usize, String)], names: &mut Vec<(usize, String)>) {
    let mut outer: Vec<usize> = Vec::new();
    let mut name = String::new();
    for (line, text) in import {
        for c in text.chars() {
            match c {
                '{' => outer.push(name.len()),
                ',' | '}' | ';' => {
                    let base = outer.last().copied().unwrap_or(0);
                    if name.len() > base {
                        names.push((*line, name.trim().to_owned()));
                    }
                    if c == '}' {
                        let base = outer.pop().unwrap_or(0);
                        name.truncate(base);
                        // The group itself was named part by part.
                        name.truncate(outer.last().copied().unwrap_or(0));
                    } else {
                        name.truncate(base);
                    }
                }
                c if c.is_whitespace() && (name.is_empty() || name.ends_with([':', ' '])) => {}
                c => name.push(c),
            }
        }
    }
}

/// The same lines without what is commented. A `//` after a colon is that of a URL.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut in_block = false;
    for line in text.lines() {
        let mut rest = line;
        loop {
            if in_block {
                let Some((_, after)) = rest.split_once("*/") else { break };
                (in_block, rest) = (false, after);
            }
            let comment = rest.match_indices("//").map(|(at, _)| at).find(|at| !rest[..*at].ends_with(':'));
            let block = rest.find("/*").filter(|at| comment.is_none_or(|comment| *at < comment));
            match block {
                Some(at) => {
                    code.push_str(&rest[..at]);
                    (in_block, rest) = (true, &rest[at + 2..]);
                }
                None => {
                    code.push_str(&rest[..comment.unwrap_or(rest.len())]);
                    break;
                }
            }
        }
        code.push('\n');
    }
    code
}

/// Every text file of the project.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = Vec::new();
    let mut waiting: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            let made_here = ["target", "alibi-data", ".git", "corpus", "artifacts"].contains(&name.as_ref());
            if made_here {
                continue;
            }
            if path.is_dir() {
                waiting.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                sources.push(Source { path, text });
            }
        }
    }
    assert!(sources.len() > 50, "the project is not at {}", root.display());
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}
