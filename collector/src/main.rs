//! `alibi`: the collector, and the analyst's command line.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use alibi_collector::{
    allocator,
    cli::{self, Arguments},
};
use alibi_proto::command_line::{EXIT_ERROR, in_one_line, parse};

fn main() -> ExitCode {
    allocator::keep_together();
    let arguments = match parse::<Arguments>(&cli::configurable()) {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ALIBI_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match cli::run(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("alibi: {}", in_one_line(error.as_ref()));
            ExitCode::from(EXIT_ERROR)
        }
    }
}
