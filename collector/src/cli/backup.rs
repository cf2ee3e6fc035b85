//! `alibi backup` and `alibi restore`: by whoever has the collector's data directory, and not by asking the collector.

use alibi_proto::command_line::say;
use anyhow::Result;
use serde_json::json;

use super::{BackupArgs, RestoreArgs};
use crate::{
    backup::{self, Made, Manifest},
    clock,
};

/// Makes a backup; the exit status: 1 where something is damaged and was left out.
pub(super) fn backup(arguments: &BackupArgs) -> Result<u8> {
    let BackupArgs { backup, data, previous, json } = arguments;
    let Made { manifest, taken_over } = backup::make(data, backup, previous.as_deref(), clock::now())?;
    let Manifest { made, files, left_out, .. } = &manifest;
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    if *json {
        let files = files.len();
        say(format_args!(
            "{:#}",
            json!({"backup": backup.display().to_string(), "made": made.to_string(), "files": files,
                   "bytes": bytes, "taken_over": taken_over, "left_out": left_out})
        ))?;
    } else {
        let (path, files) = (backup.display(), files.len());
        say(format_args!(
            "{path} has {files} files with {bytes} bytes, of which {taken_over} from the previous backup."
        ))?;
        say("It has the keys of the collector's CA: whoever can read it can be the collector.")?;
        for problem in left_out {
            say(format_args!("left out: {problem}"))?;
        }
    }
    Ok(u8::from(!left_out.is_empty()))
}

/// Brings a backup back.
pub(super) fn restore(arguments: &RestoreArgs) -> Result<u8> {
    let RestoreArgs { backup, data } = arguments;
    let Manifest { made, version, left_out, .. } = backup::restore(backup, data, clock::now())?;
    say(format_args!("{} is as it was at {made:.0} (made by {version}).", data.display()))?;
    say(
        "What agents have told since, they are asked for again. What was revoked since is not revoked any more: do that anew.",
    )?;
    for problem in &left_out {
        say(format_args!("not in the backup: {problem}"))?;
    }
    Ok(0)
}
