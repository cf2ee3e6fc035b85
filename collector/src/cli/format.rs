//! In which format a listing is printed: `--format`, and `--json`, which is `--format json`.
//!
//! A listing is a [`Listing`]: its command asks [`FormatArgs::of`] before it asks anybody, and [`print`] after.

use std::io::{self, IsTerminal as _, Write as _};

use alibi_proto::{
    command_line::{give, say},
    json::line,
    report::printable,
};
use anyhow::{Result, bail};

use crate::export::{Format, Listing, csv, parquet};

/// The format, as flags of every listing.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct FormatArgs {
    /// How it is printed [default: table]
    #[arg(long, value_name = "WORD", value_enum)]
    format: Option<Format>,
    /// Print one JSON object: --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl FormatArgs {
    /// The format that is asked for.
    ///
    /// # Errors
    /// When there is no such format of this listing, or standard output is no place for it.
    pub(super) fn of<L: Listing>(self) -> Result<Format> {
        self.given::<L>(io::stdout().is_terminal())
    }

    fn given<L: Listing>(self, to_terminal: bool) -> Result<Format> {
        let format = if self.json { Format::Json } else { self.format.unwrap_or(Format::Table) };
        if !L::FORMATS.contains(&format) {
            let words: Vec<_> = L::FORMATS.iter().map(|format| format.word()).collect();
            bail!(
                "`alibi {}` lists no events, and --format {} is for events: take one of {}",
                L::NAME,
                format.word(),
                words.join(", ")
            );
        }
        if format == Format::Parquet && to_terminal {
            bail!(
                "--format parquet is not for a terminal: send it into a file, as by `> {}.parquet`",
                file_name(L::NAME)
            );
        }
        Ok(format)
    }
}

fn file_name(listing: &str) -> String {
    listing.replace(" --", "-").replace(' ', "-")
}

/// Prints the listing; what it left out, where the format has no place for that, on standard error.
pub(super) fn print(format: Format, listing: &impl Listing) -> Result<()> {
    match format {
        Format::Table => {
            let text = listing.text();
            return if text.is_empty() { Ok(()) } else { Ok(say(text)?) };
        }
        Format::Json => return Ok(say(listing.json()?)?),
        Format::Ndjson => lines(listing.table().objects().map(|object| line(&object)))?,
        Format::Ecs => lines(listing.ecs().iter().map(line))?,
        Format::Ocsf => lines(listing.ocsf().iter().map(line))?,
        Format::Csv => {
            let reader =
                if io::stdout().is_terminal() { csv::Reader::Terminal } else { csv::Reader::Program };
            let mut bytes = Vec::new();
            csv::write(&listing.table(), reader, &mut bytes)?;
            give(&bytes)?;
        }
        Format::Parquet => {
            let mut bytes = Vec::new();
            parquet::write(&listing.table(), &listing.notices(), &mut bytes)?;
            give(&bytes)?;
        }
    }
    for notice in listing.notices() {
        // Nobody may be there to read it.
        let _ = writeln!(io::stderr(), "alibi: {}", printable(&notice));
    }
    Ok(())
}

/// Each on a line of its own; no line at all where there is none.
fn lines(lines: impl Iterator<Item = serde_json::Result<String>>) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line?);
        text.push('\n');
    }
    Ok(give(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{ROWS, Table, hosts::ListedHosts};

    struct Rows;

    impl Listing for Rows {
        const NAME: &'static str = "token list";
        const FORMATS: &'static [Format] = ROWS;

        fn text(&self) -> String {
            String::new()
        }

        fn json(&self) -> serde_json::Result<String> {
            Ok(String::new())
        }

        fn table(&self) -> Table {
            Table::new::<(), ()>(&Default::default(), [])
        }
    }

    #[test]
    fn a_format_is_refused_where_it_says_nothing_or_nobody_could_read_it() {
        let check = |arguments: FormatArgs, to_terminal, expected: Result<Format, &str>| {
            let given = arguments.given::<Rows>(to_terminal).map_err(|error| error.to_string());
            assert_eq!(given, expected.map_err(str::to_owned), "{arguments:?}");
        };
        let of = |format| FormatArgs { format: Some(format), json: false };
        check(FormatArgs::default(), true, Ok(Format::Table));
        check(FormatArgs { format: None, json: true }, true, Ok(Format::Json));
        check(of(Format::Csv), true, Ok(Format::Csv));
        check(of(Format::Parquet), false, Ok(Format::Parquet));
        check(
            of(Format::Parquet),
            true,
            Err("--format parquet is not for a terminal: send it into a file, as by `> token-list.parquet`"),
        );
        check(
            of(Format::Ocsf),
            false,
            Err(
                "`alibi token list` lists no events, and --format ocsf is for events: take one of table, json, ndjson, csv, \
                 parquet",
            ),
        );
        assert_eq!(of(Format::Ocsf).given::<ListedHosts>(true).ok(), Some(Format::Ocsf));
    }

    /// `--format` takes each word by which a refusal calls a format.
    #[test]
    fn every_format_is_called_as_it_is_written() {
        use clap::ValueEnum as _;
        for format in Format::value_variants() {
            assert_eq!(format.to_possible_value().unwrap().get_name(), format.word());
        }
    }
}
