//! Pages of a search: whose a row is, and what is to be said of the page.

use alibi_proto::{id::HostId, report::printable, time::Timestamp, wire};
use anyhow::{Context as _, Result};
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use super::table::Columns;
use crate::search::advice::shell;

/// Reasons that are printed of why something may be missing; `--json` has all that are told.
const REASONS_SHOWN: usize = 8;
/// Digits of a uid in a table: enough for `alibi process`.
const UID_DIGITS: usize = 12;
/// What every table ends with.
const PROVES_NOTHING: &str =
    "a search proves nothing about what it does not list; `alibi who` tells which hosts can be ruled out";

/// Whose a row is.
#[derive(Debug)]
pub(super) struct Whose {
    pub(super) host: HostId,
    pub(super) name: String,
    /// Offset and bound, in nanoseconds.
    pub(super) clock: Option<(i64, u64)>,
}

impl TryFrom<Option<wire::HostReference>> for Whose {
    type Error = anyhow::Error;

    fn try_from(reference: Option<wire::HostReference>) -> Result<Self> {
        let reference = reference.context("the host of a row is missing")?;
        Ok(Self {
            host: HostId::from_wire(&reference.host)?,
            name: reference.name,
            clock: reference.clock_offset_ns.zip(reference.clock_bound_ns),
        })
    }
}

/// Whose a row is. All times in the row are the host's own; `clock` is how they stand to the collector's, null where that was
/// not measured.
#[derive(Debug, Serialize)]
pub(super) struct WhoseJson {
    host: HostId,
    host_name: String,
    clock: Option<RowClockJson>,
}

#[derive(Debug, Serialize)]
struct RowClockJson {
    /// The host's less the collector's.
    offset_us: i64,
    /// The truth is no further from it.
    bound_us: u64,
}

impl From<&Whose> for WhoseJson {
    fn from(whose: &Whose) -> Self {
        let clock = |(offset_ns, bound_ns): (i64, u64)| RowClockJson {
            offset_us: offset_ns / 1_000,
            bound_us: bound_ns.div_ceil(1_000),
        };
        Self { host: whose.host, host_name: whose.name.clone(), clock: whose.clock.map(clock) }
    }
}

/// Whose a row is, in columns.
pub(super) fn whose_columns<'a, T: 'a>(of: fn(&T) -> &Whose) -> Columns<'a, T> {
    Columns::default()
        .text("host", move |row| Some(of(row).host.to_string()))
        .text("host_name", move |row| Some(of(row).name.clone()))
        .integer("clock_offset_us", move |row| Some(of(row).clock?.0 / 1_000))
        .count("clock_bound_us", move |row| Some(of(row).clock?.1.div_ceil(1_000)))
}

/// A table without lines.
pub(super) fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// What came from another machine does not steer the terminal.
pub(super) fn cells<const N: usize>(cells: [String; N]) -> [String; N] {
    cells.map(|cell| printable(&cell))
}

/// The beginning of a uid.
pub(super) fn short_uid(uid: &impl ToString) -> String {
    uid.to_string().chars().take(UID_DIGITS).collect()
}

/// A table, with all that is to be said before and after it.
pub(super) fn with_notes(table: &Table, rows: usize, page: &Page) -> String {
    let mut text = String::new();
    let mut line = |content: &str| {
        text.push_str(&printable(content));
        text.push('\n');
    };
    for warning in &page.warnings {
        line(&format!("warning: {}:", warning.message));
        warning.commands.iter().for_each(|command| line(&format!("  {command}")));
        line("");
    }
    match rows {
        0 => line("Nothing is listed."),
        _ => table.lines().for_each(|row| line(row.trim_end())),
    }
    line("");
    for reason in page.may_miss.iter().take(REASONS_SHOWN) {
        line(&format!("may be missing: {reason}"));
    }
    let more = page.may_miss.len().saturating_sub(REASONS_SHOWN) as u64 + page.may_miss_left_out;
    if more > 0 {
        line(&format!("and {more} more reasons why something may be missing (--json has them)"));
    }
    page.goes_on().iter().for_each(|more| line(more));
    line(PROVES_NOTHING);
    text
}

/// What a page says of itself, whatever it lists.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    query: String,
    /// The query as it was understood, by the fields' own names.
    understood: String,
    /// What NOW meant in it.
    now: Timestamp,
    warnings: Vec<WarningJson>,
    /// All that the collector keeps was looked at, and the hosts recorded all of the time that is asked about: nothing that
    /// fits is missing but what is on further pages. It is no verdict.
    complete: bool,
    /// Why it is not, and how many more reasons there are.
    may_miss: Vec<String>,
    may_miss_left_out: u64,
    /// Not everything was read that may belong on this page.
    cut: bool,
    looked_at: u64,
    /// Where the next page begins; null where there is none.
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct WarningJson {
    /// `start_is_not_activity`, …
    kind: String,
    message: String,
    instead: Option<String>,
    commands: Vec<String>,
}

impl Page {
    pub(super) fn new(query: &str, end: wire::Listing) -> Self {
        let warning = |warning: wire::SearchWarning| WarningJson {
            kind: warning.kind,
            message: warning.message,
            instead: warning.instead,
            commands: warning.commands,
        };
        Self {
            query: query.to_owned(),
            understood: end.understood,
            now: Timestamp::from_nanos(end.now_ns),
            warnings: end.warnings.into_iter().map(warning).collect(),
            complete: end.may_miss.is_empty() && end.may_miss_left_out == 0 && !end.cut,
            may_miss: end.may_miss,
            may_miss_left_out: end.may_miss_left_out,
            cut: end.cut,
            looked_at: end.looked_at,
            cursor: end.cursor,
        }
    }

    /// What may be missing, and where more is, a sentence each.
    pub(super) fn notices(&self) -> Vec<String> {
        let warnings = self.warnings.iter().map(|warning| match warning.commands.first() {
            Some(command) => format!("{}: {command}", warning.message),
            None => warning.message.clone(),
        });
        let reasons = self.may_miss.iter().map(|reason| format!("may be missing: {reason}"));
        let mut notices: Vec<String> = warnings.chain(reasons).collect();
        if self.may_miss_left_out > 0 {
            notices.push(format!("and {} more reasons why something may be missing", self.may_miss_left_out));
        }
        notices.extend(self.goes_on());
        notices
    }

    /// Where there is more.
    fn goes_on(&self) -> Option<String> {
        let looked_at = self.looked_at;
        match (&self.cursor, self.cut) {
            (Some(cursor), true) => {
                Some(format!("cut after {looked_at} were read: go on with --cursor {}", shell(cursor)))
            }
            (Some(cursor), false) => Some(format!("there are more: --cursor {}", shell(cursor))),
            (None, true) => Some(format!("cut after {looked_at} were read: ask for less, or a shorter time")),
            (None, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end() -> wire::Listing {
        wire::Listing {
            warnings: vec![wire::SearchWarning {
                kind: "k".into(),
                message: "start tests \u{1b}[2J something".into(),
                instead: None,
                commands: vec!["alibi search x".into()],
            }],
            may_miss: (0..10).map(|number| format!("laptop-{number} has never answered")).collect(),
            may_miss_left_out: 5,
            cursor: Some("abc".into()),
            cut: true,
            looked_at: 7,
            ..wire::Listing::default()
        }
    }

    #[test]
    fn what_may_be_missing_is_said_and_that_nothing_is_proven() {
        let text = with_notes(&plain_table(&["A"]), 0, &Page::new("", end()));
        for wanted in [
            "warning: start tests ?[2J something:",
            "  alibi search x",
            "Nothing is listed.",
            "may be missing: laptop-7 has never answered",
            "and 7 more reasons",
            "cut after 7 were read: go on with --cursor abc",
            PROVES_NOTHING,
        ] {
            assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("laptop-8"));
        let nothing = with_notes(&plain_table(&["A"]), 0, &Page::new("", wire::Listing::default()));
        assert_eq!(nothing, format!("Nothing is listed.\n\n{PROVES_NOTHING}\n"));
    }

    #[test]
    fn a_listing_is_complete_only_if_nothing_may_be_missing() {
        let complete = |end| Page::new("", end).complete;
        assert!(!complete(end()));
        assert!(!complete(wire::Listing { may_miss: vec!["x".into()], ..wire::Listing::default() }));
        assert!(!complete(wire::Listing { cut: true, ..wire::Listing::default() }));
        assert!(complete(wire::Listing { cursor: Some("x".into()), ..wire::Listing::default() }));
    }
}
