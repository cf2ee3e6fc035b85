//! `alibi check` and `alibi repair`: by whoever has the collector's data directory, and not by asking the collector.

use std::path::Path;

use alibi_proto::{
    command_line::say,
    data_directory::{DataDirectory, DataDirectoryError, check_marker},
};
use anyhow::{Result, bail};
use serde_json::json;

use super::{CheckArgs, serve::PROGRAM};
use crate::{
    DATA_FORMAT, clock,
    store::{MAIN_DATABASE, Repaired, SqliteStore, access::AccessStore},
};

const ACCESS_DATABASE: &str = "access.db";

/// Reads everything; the exit status.
pub(super) fn check(CheckArgs { data, json }: &CheckArgs) -> Result<u8> {
    check_marker(data, PROGRAM, DATA_FORMAT)?;
    let of_access = AccessStore::check(&data.join(ACCESS_DATABASE))?;
    let of_access = of_access.into_iter().map(|problem| format!("{ACCESS_DATABASE}: {problem}"));
    let problems: Vec<String> =
        SqliteStore::check(&data.join(MAIN_DATABASE))?.into_iter().chain(of_access).collect();
    if *json {
        say(format_args!("{:#}", json!({"whole": problems.is_empty(), "problems": problems})))?;
    } else {
        problems.iter().try_for_each(say)?;
        match problems.len() {
            0 => say("All that is stored can be read, and is what was written.")?,
            count => say(format_args!("{count} parts of what is stored are damaged."))?,
        }
    }
    Ok(u8::from(!problems.is_empty()))
}

/// Makes the main database anew, if it is damaged.
pub(super) fn repair(data: &Path) -> Result<u8> {
    check_marker(data, PROGRAM, DATA_FORMAT)?;
    // Nobody has it open as long as this is held.
    let directory = match DataDirectory::open(data, PROGRAM, DATA_FORMAT) {
        Err(DataDirectoryError::InUse(_)) => bail!("the collector runs: stop it first"),
        opened => opened?,
    };
    let repaired = SqliteStore::repair(&directory.path().join(MAIN_DATABASE), clock::now())?;
    let Some(Repaired { problems, rows, aside }) = repaired else {
        say(
            "Nothing is wrong in the main database, and nothing was done. `alibi check` reads all else, too.",
        )?;
        return Ok(0);
    };
    for problem in problems {
        say(format_args!("damaged: {problem}"))?;
    }
    for (table, rows) in rows {
        say(format_args!("kept: {rows} rows of {table}"))?;
    }
    say(format_args!(
        "What was damaged is in {} now. Nothing before this moment is proven any more.",
        aside.display()
    ))?;
    Ok(0)
}
