//! `cargo lab`.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use alibi_lab::{traffic, up};
use clap::{Parser, Subcommand};

/// Runs whole systems on one machine.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quick start: a collector and an agent on this machine, until Ctrl-C
    Up {
        /// Where both keep their data
        #[arg(long, default_value = "alibi-data")]
        data: PathBuf,
    },
    /// A client that connects and closes as the lines of its standard input say
    #[command(hide = true)]
    Client,
    /// A server that accepts, answers each byte, and never closes first
    #[command(hide = true)]
    Server {
        /// Where it listens
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Up { data } => up::up(&data),
        Command::Client => traffic::client(),
        Command::Server { listen } => traffic::server(listen),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
