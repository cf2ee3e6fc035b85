//! Writes the manual pages of both programs, one for each command: what `--help` says. Each program's go into a directory
//! of its own, in the one that is named.

use std::{env, fs, io, path::PathBuf};

use clap::{Command, CommandFactory as _};

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| io::Error::other("name the directory to write to"))?;
    for program in [alibi_agent::cli::Arguments::command(), alibi_collector::cli::Arguments::command()] {
        let pages = directory.join(program.get_name());
        fs::create_dir_all(&pages)?;
        clap_mangen::generate_to(without_own_defaults(program), pages)?;
    }
    Ok(())
}

/// Where data is kept by default depends on who asks, and the reader is another user than the one who builds.
fn without_own_defaults(command: Command) -> Command {
    let is_own = |argument: &clap::Arg| argument.get_id() == "data";
    command
        .mut_args(|argument| if is_own(&argument) { argument.hide_default_value(true) } else { argument })
        .mut_subcommands(without_own_defaults)
}
