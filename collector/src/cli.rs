//! The command line: one file per noun, each asking the collector, but for `serve`, which is the collector.

use std::{path::PathBuf, time::Duration};

use alibi_proto::{
    command_line::QuestionArgs,
    configuration::{Configurable, ConfigurationArgs},
    time::parse_duration,
    transport::{self, Address, MESSAGE_BYTES_MAX},
    wire::{self, analyst_client::AnalystClient},
};
use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tonic::{Status, transport::Channel};

mod host;
mod hosts;
mod process;
mod serve;
mod who;

/// Which process, on which host, talked to X during window W, and which hosts can be ruled out?
#[derive(Debug, Parser)]
#[command(name = "alibi", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The collector to ask
    #[arg(long, env = "ALIBI_COLLECTOR", global = true, default_value = "127.0.0.1:8440")]
    collector: Address,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the collector: follow the agents, keep what they record, answer
    Serve(ServeArgs),
    /// The hosts that are followed, and how fresh each is
    Hosts(HostsArgs),
    /// Who talked to TARGET? Exit status 0 talked, 1 all clear, 3 unknown, 2 error
    Who(WhoArgs),
    /// One process: what it is, its ancestors and children, its connections
    Process(ProcessArgs),
    /// Follow an agent, or no longer
    #[command(subcommand)]
    Host(HostCommand),
}

/// `alibi serve`.
#[derive(Debug, clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    /// Where everything is kept
    #[arg(long, env = "ALIBI_DATA")]
    data: PathBuf,
    /// Where analysts are served: a loopback address or unix:/path
    #[arg(long, env = "ALIBI_LISTEN", default_value = "127.0.0.1:8440")]
    listen: Address,
    /// What is older than this is forgotten
    #[arg(long, env = "ALIBI_RETENTION", default_value = "30d", value_parser = parse_duration)]
    retention: Duration,
}

/// Which hosts.
#[derive(Clone, Debug, clap::Args)]
struct ScopeArgs {
    /// Only this host, by name, uuid or address; may be given more than once
    #[arg(long = "host", value_name = "H")]
    hosts: Vec<String>,
    /// Only hosts on which this user has or had processes
    #[arg(long, value_name = "U")]
    user: Option<String>,
}

impl ScopeArgs {
    fn to_wire(&self) -> Option<wire::HostScope> {
        Some(wire::HostScope { hosts: self.hosts.clone(), user: self.user.clone() })
    }
}

/// `alibi hosts`.
#[derive(Debug, clap::Args)]
struct HostsArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `alibi who`.
#[derive(Debug, clap::Args)]
struct WhoArgs {
    #[command(flatten)]
    question: QuestionArgs,
    #[command(flatten)]
    scope: ScopeArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `alibi process`.
#[derive(Debug, clap::Args)]
struct ProcessArgs {
    /// The process uid, as `who` shows it, or the beginning of it
    uid: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `alibi host`.
#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Follow the agent at ADDRESS from now on
    Add {
        /// 127.0.0.1:PORT, [::1]:PORT or unix:/path
        address: Address,
    },
    /// Follow the agent at ADDRESS no longer; what it sent is kept
    Remove {
        /// As it was added
        address: Address,
    },
    /// Read a host's record again and hold it against what was anchored; exit status 0 it holds, 1 it does not, 2 error
    Verify {
        /// Its name, uuid or address
        host: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What can be configured in a file: the flags of `serve`.
pub fn configurable() -> Configurable {
    Configurable { command: "serve", place: default_configuration() }
}

#[cfg(not(windows))]
fn default_configuration() -> PathBuf {
    "/etc/alibi/collector.toml".into()
}

#[cfg(windows)]
fn default_configuration() -> PathBuf {
    let shared = std::env::var_os("ProgramData").map_or_else(|| r"C:\ProgramData".into(), PathBuf::from);
    shared.join("alibi").join("collector.toml")
}

/// Runs the command; the exit status.
///
/// # Errors
/// What a person should read, in one line.
pub fn run(arguments: Arguments) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Serve(serve) => serve::serve(serve).await,
            Command::Hosts(hosts) => hosts::hosts(hosts, &arguments.collector).await,
            Command::Who(who) => who::who(who, &arguments.collector).await,
            Command::Process(process) => process::process(process, &arguments.collector).await,
            Command::Host(host) => host::host(host, &arguments.collector).await,
        }
    })
}

/// A client of the collector.
fn collector(address: &Address) -> Result<AnalystClient<Channel>> {
    let channel = transport::channel(address).context("the collector cannot be dialled")?;
    Ok(AnalystClient::new(channel).max_decoding_message_size(4 * MESSAGE_BYTES_MAX))
}

/// What went wrong, for a person: what the collector says, unless it is no collector that speaks.
fn in_words(address: &Address) -> impl Fn(Status) -> anyhow::Error {
    use tonic::Code::{
        AlreadyExists, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unimplemented,
    };
    move |status| match status.code() {
        Unavailable => anyhow::anyhow!(
            "no collector answers at {address}: start one with `alibi serve`, or name another with --collector"
        ),
        Unimplemented => anyhow::anyhow!(
            "what answers at {address} is no collector that can do this: name another with --collector, or upgrade it"
        ),
        InvalidArgument | NotFound | AlreadyExists | ResourceExhausted if !status.message().is_empty() => {
            anyhow::anyhow!("{}", status.message())
        }
        code => anyhow::anyhow!(
            "what answers at {address} failed ({code:?}): {}: see its log, or name another with --collector",
            status.message()
        ),
    }
}
