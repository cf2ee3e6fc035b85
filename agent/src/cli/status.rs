//! `alibi-agent status`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use alibi_proto::{command_line::say, data_directory::check_marker};
use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{DATA_FORMAT, PROGRAM, StatusArgs};
use crate::{
    owner::{self, FILE, Status},
    sys,
};

/// It runs, and something is not as it should be.
const EXIT_TROUBLE: u8 = 1;
/// It does not run, as the conventions of init scripts (LSB) have it.
const EXIT_NOT_RUNNING: u8 = 3;

pub(super) fn status(arguments: &StatusArgs) -> Result<u8> {
    let Some((path, text)) = find(arguments.data.as_deref())? else {
        if arguments.json {
            say(serde_json::json!({"running": false}))?;
        } else {
            say("not running: no agent of this system has told anything since it was started")?;
        }
        return Ok(EXIT_NOT_RUNNING);
    };
    let nonsense = || format!("{} cannot be understood: is it of another version?", path.display());
    let status = Status::parse(&text).with_context(nonsense)?;
    let now = sys::now();
    let not_running = status.why_not_running(now, &sys::host_facts().boot_id, sys::has_ended);
    if arguments.json {
        let mut value: Value = serde_json::from_slice(&text).with_context(nonsense)?;
        value["running"] = not_running.is_none().into();
        say(alibi_proto::json::pretty(&value)?)?;
    } else {
        say(owner::in_words(&status, now.wall, not_running.as_deref()))?;
    }
    Ok(match not_running {
        Some(_) => EXIT_NOT_RUNNING,
        None if status.is_in_trouble() => EXIT_TROUBLE,
        None => 0,
    })
}

/// The file, of the agent over this data; else of the agent of this system, or of this user's own. None where none has ever
/// written one.
fn find(data: Option<&Path>) -> Result<Option<(PathBuf, Vec<u8>)>> {
    if let Some(data) = data {
        check_marker(data, PROGRAM, DATA_FORMAT)?;
        return read(data.join(FILE));
    }
    match read(sys::public_directory().join(FILE))? {
        Some(found) => Ok(Some(found)),
        None => read(sys::default_data_directory().join(FILE)),
    }
}

fn read(path: PathBuf) -> Result<Option<(PathBuf, Vec<u8>)>> {
    match fs::read(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(problem).with_context(|| format!("cannot read {}", path.display())),
    }
}
