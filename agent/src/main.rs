//! `alibi-agent`: parse, trace, run, exit code.

use std::process::ExitCode;

use alibi_agent::{
    cli::{self, Arguments},
    log,
};
use alibi_proto::command_line::{EXIT_ERROR, in_one_line, parse};

fn main() -> ExitCode {
    let arguments = match parse::<Arguments>(&cli::configurable()) {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    log::start(arguments.is_service());
    match cli::run(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("alibi-agent: {}", in_one_line(error.as_ref()));
            ExitCode::from(EXIT_ERROR)
        }
    }
}
