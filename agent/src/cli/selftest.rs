//! `alibi-agent selftest`.

use alibi_proto::command_line::say;
use anyhow::Result;
use serde_json::json;

use super::SelftestArgs;
use crate::{
    capture,
    selftest::{self, CHILD_EXIT},
};

/// Something that the source claims to see was not seen.
const EXIT_MISSED: u8 = 1;

pub(super) fn selftest(arguments: &SelftestArgs) -> Result<u8> {
    if arguments.child {
        return Ok(CHILD_EXIT);
    }
    let options =
        capture::Options { period: arguments.period, buffer_bytes: None, own_network_namespace: false };
    let source = capture::open(&arguments.source, &options)?;
    let description = source.describe();
    let checks = selftest::run(source)?;
    let missed = checks.iter().filter(|check| !check.is_covered()).count();
    if arguments.json {
        let rows: Vec<_> = checks
            .iter()
            .map(|check| json!({"what": check.what, "done": check.done, "seen": check.seen}))
            .collect();
        let facets: Vec<_> = description
            .facets
            .iter()
            .map(|facet| json!({"facet": facet.facet.word(), "grade": facet.grade.word(), "scope": facet.scope}))
            .collect();
        say(json!({"source": description.name, "checks": rows, "facets": facets}))?;
    } else {
        say(format_args!("source {}", description.name))?;
        for check in &checks {
            let mark = if check.is_covered() { "seen  " } else { "MISSED" };
            say(format_args!("  {mark}  {:>3} of {:>3}  {}", check.seen, check.done, check.what))?;
        }
        say("  not tried: what takes a network (a host that does not answer, a route that is missing)")?;
        for facet in &description.facets {
            say(format_args!("{} {}", facet.facet, facet.grade))?;
            say(format_args!("  covers      {}", facet.scope.covers))?;
            say(format_args!("  cannot see  {}", facet.scope.cannot_see))?;
        }
    }
    Ok(if missed == 0 { 0 } else { EXIT_MISSED })
}
