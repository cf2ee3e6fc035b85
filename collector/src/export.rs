//! What was answered, as other programs read it: rows for tables, and events in the words of ECS and OCSF. Pure, but for what
//! it is told to write into.
//!
//! - Nothing is lost on the way to rows that a verdict rests on: a host without a match is a row too, with its verdict and its
//!   gaps, in each row of it.
//! - What is not known is absent (a null, an empty cell), or what the schema has for unknown; never a guess.
//! - What an answer left out is said beside every format: see [`Listing::notices`].
//! - A cell carries the data as it was recorded. What would steer a terminal or a spreadsheet is the writer's to escape.

use serde_json::Value;

pub mod answer;
pub mod csv;
mod document;
pub mod ecs;
pub mod executables;
pub mod fields;
pub mod flows;
pub mod hosts;
pub mod ocsf;
mod page;
pub mod parquet;
mod prevalence;
pub mod process;
pub mod search;
mod shared;
pub mod table;
pub mod top;

pub use table::Table;

/// How a listing is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One object
    Json,
    /// One object a row, one row a line
    Ndjson,
    /// Comma-separated values with a header (RFC 4180)
    Csv,
    /// A Parquet file, into a file or pipe
    Parquet,
    /// Events in the Elastic Common Schema, one a line
    Ecs,
    /// Events in the Open Cybersecurity Schema Framework, one a line
    Ocsf,
}

impl Format {
    /// The word for it, as after `--format`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Ecs => "ecs",
            Self::Ocsf => "ocsf",
        }
    }
}

/// What every listing can be printed as.
pub const ROWS: &[Format] = &[Format::Table, Format::Json, Format::Ndjson, Format::Csv, Format::Parquet];

/// What a listing can be printed as that tells of events.
pub const ROWS_AND_EVENTS: &[Format] =
    &[Format::Table, Format::Json, Format::Ndjson, Format::Csv, Format::Parquet, Format::Ecs, Format::Ocsf];

/// Something that is listed, and can be printed in more than one way.
pub trait Listing {
    /// The words that list it, after `alibi`.
    const NAME: &'static str;
    /// What it can be printed as: [`ROWS`], or [`ROWS_AND_EVENTS`], and then `ecs` and `ocsf` are its own.
    const FORMATS: &'static [Format];

    /// For people.
    fn text(&self) -> String;

    /// One object, in several lines.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    fn json(&self) -> serde_json::Result<String>;

    /// Typed rows.
    fn table(&self) -> Table;

    /// Events in ECS, in version [`ecs::VERSION`].
    fn ecs(&self) -> Vec<Value> {
        Vec::new()
    }

    /// Events in OCSF, in version [`ocsf::VERSION`].
    fn ocsf(&self) -> Vec<Value> {
        Vec::new()
    }

    /// What of the answer is missing, a sentence each: said beside the rows and events, which have no place for it. Text and
    /// JSON have it in themselves.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }
}
