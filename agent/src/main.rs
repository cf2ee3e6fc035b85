//! `alibi-agent`: parse, trace, run, exit code.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use alibi_agent::cli::{self, Arguments};
use alibi_proto::command_line::{self, EXIT_ERROR};

fn main() -> ExitCode {
    let arguments = match command_line::parse::<Arguments>("alibi-agent") {
        Ok(arguments) => arguments,
        Err(status) => return ExitCode::from(status),
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
            eprintln!("alibi-agent: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}
