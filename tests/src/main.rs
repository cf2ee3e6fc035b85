//! `cargo lab`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use alibi_lab::{agents, capture, fleet, fuzz, killed, ring, scale, traffic, up, workload};
use anyhow::{Context as _, Result};
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
        /// Where the collector serves
        #[arg(long, value_name = "HOST:PORT", default_value = up::COLLECTOR)]
        listen: String,
    },
    /// Score table and cost of an agent under every kind of load, held against what really happened; needs root
    Capture(capture::Options),
    /// How many agents a collector carries, and what each costs: on one machine, in steps
    Agents(agents::Options),
    /// A fleet whose answers are held against what truly happened, and how many events a collector takes, in steps
    Fleet(fleet::Options),
    /// How fast a collector with a whole fleet's flow records answers, held against what is true, beside DuckDB
    Scale(scale::Options),
    /// What a full ring costs to write, to open and to ask
    Ring(ring::measure::Options),
    /// Inputs at random against everything that parses bytes from outside or from disk; needs a C++ compiler
    Fuzz(fuzz::Options),
    /// Agents that `agents` simulates, some of them
    #[command(hide = true)]
    Crowd {
        /// Where they keep their data
        directory: PathBuf,
        /// To enrol with
        token: String,
    },
    /// Agents of `fleet`, some of them
    #[command(hide = true)]
    FleetCrowd {
        /// Where they keep their data
        directory: PathBuf,
        /// To enrol with
        token: String,
    },
    /// A workload, as `capture` runs it in a network namespace of its own
    #[command(hide = true)]
    Workload {
        /// Which
        name: String,
        /// Where it writes what happened
        #[arg(long)]
        truth: PathBuf,
    },
    /// One connection
    #[command(hide = true)]
    Touch {
        /// To whom
        address: SocketAddr,
        /// To be told from others by
        token: String,
    },
    /// The same, as what a thread makes of this program
    #[command(hide = true)]
    Turn {
        /// To whom
        address: SocketAddr,
        /// To be told from others by
        token: String,
    },
    /// A client that keeps one connection, and says when it breaks
    #[command(hide = true)]
    Line {
        /// To whom
        address: SocketAddr,
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
    /// A DNS server that answers every question with one address
    #[command(hide = true)]
    NameServer {
        /// Where it listens
        listen: SocketAddr,
        /// The answer
        address: Ipv4Addr,
    },
    /// A writer of a ring that is there to be killed
    #[command(hide = true)]
    WriteRing {
        /// Where the ring is
        directory: PathBuf,
        /// Which run it is: what it writes and when
        run: u64,
        /// After so many, it closes the ring and ends
        steps: u64,
    },
}

/// Says what it has cost in the last line.
fn run_workload(name: &str, truth: &Path) -> Result<()> {
    let workload = workload::named(name).with_context(|| format!("no workload is named `{name}`"))?;
    let cost = workload::run(workload, truth)?;
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Up { data, listen } => up::up(&data, &listen),
        Command::Capture(options) => capture::capture(&options),
        Command::Agents(options) => agents::agents(&options),
        Command::Fleet(options) => fleet::fleet(&options),
        Command::FleetCrowd { directory, token } => fleet::drive::crowd::serve(&directory, &token),
        Command::Scale(options) => scale::scale(&options),
        Command::Ring(options) => ring::measure::measure(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Crowd { directory, token } => agents::crowd::serve(&directory, &token),
        Command::Workload { name, truth } => run_workload(&name, &truth),
        Command::Touch { address, .. } => workload::touch(address),
        Command::Turn { address, token } => workload::threads::turn(address, &token),
        Command::Line { address } => workload::line::keep(address),
        Command::Client => traffic::client(),
        Command::Server { listen } => traffic::server(listen),
        Command::NameServer { listen, address } => traffic::name_server(listen, address),
        Command::WriteRing { directory, run, steps } => killed::write(&directory, run, steps),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
