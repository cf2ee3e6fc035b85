//! The command line.

use std::{path::PathBuf, time::Duration};

use alibi_proto::{
    address::Address,
    command_line::QuestionArgs,
    configuration::{Configurable, ConfigurationArgs},
    dial::{Proxy, ProxyError},
    time::parse_duration,
};
use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{capture::Choice, enrich::redaction::OwnRule, sys};

mod enroll;
mod query;
mod run;
mod selftest;
mod service;
mod status;

/// Records process starts and network connections on this host, and proves what it recorded.
#[derive(Debug, Parser)]
#[command(name = "alibi-agent", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record, and serve the recording, until stopped
    Run(RunArgs),
    /// Enrol this host with a collector, by a token that `alibi token create` has made; a running agent notices
    Enroll(EnrollArgs),
    /// Who on this host talked to TARGET? Answered from the ring; exit status 0 talked, 1 clear, 3 unknown, 2 error
    Query(QueryArgs),
    /// Do what the source claims to see, and look whether it is seen; exit status 0 all of it, 1 not all, 2 error
    Selftest(SelftestArgs),
    /// What this machine's owner can see of its agent, without rights: what is collected, how well, what was redacted, and who
    /// asked; exit status 0 it runs and is well, 1 it runs with trouble, 3 it does not run, 2 error
    Status(StatusArgs),
    /// Run as a service of this system: started at boot, watched, and stopped cleanly
    #[command(subcommand)]
    Service(ServiceCommand),
}

/// `alibi-agent service`.
#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// Install the service with this very program, or install it anew, and start it
    Install,
    /// Stop the service and take it away; data are kept
    Uninstall,
    /// How the service is; exit status 0 it runs, 3 it does not, 2 error
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `alibi-agent run`.
#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    /// Where identity and ring are kept
    #[arg(long, env = "ALIBI_DATA", default_value_os_t = sys::default_data_directory())]
    data: PathBuf,
    /// Where to serve, too: a loopback address or unix:/path for this machine, any other for the collector alone, which is
    /// then not called
    #[arg(long, env = "ALIBI_LISTEN")]
    listen: Option<Address>,
    #[command(flatten)]
    proxy: ProxyArgs,
    /// How to capture: auto, ebpf or netlink (Linux), etw (Windows), poll or replay:FILE
    #[arg(long, env = "ALIBI_SOURCE", default_value = "auto")]
    source: Choice,
    /// Time between two looks of the poll source
    #[arg(long, env = "ALIBI_PERIOD", default_value = "1s", value_parser = parse_duration)]
    period: Duration,
    /// Bytes of the buffer between kernel and agent: a power of two
    #[arg(long, env = "ALIBI_BPF_BUFFER_BYTES", hide = true, value_parser = parse_buffer_bytes)]
    bpf_buffer_bytes: Option<u32>,
    /// Record connections of the agent's own network namespace only, for several agents on one kernel
    #[arg(long, env = "ALIBI_OWN_NETWORK_NAMESPACE", hide = true)]
    own_network_namespace: bool,
    /// What a power cut may cost: events are safe on disk, and told, at the latest after this; 0s to 60s
    #[arg(long, env = "ALIBI_SYNC_INTERVAL", default_value = "1s", value_parser = parse_sync_interval)]
    sync_interval: Duration,
    /// Bytes that the ring may take on disk
    #[arg(long, env = "ALIBI_RING_BYTES", default_value_t = crate::ring::Options::default().bytes_max)]
    ring_bytes: u64,
    /// Redact in arguments, beside what is built in, the value of this: an option (`--corp-pin`), a variable (`CORP_PIN=`), or an
    /// option of one program (`corptool -k`); may be given more than once
    #[arg(
        long,
        env = "ALIBI_REDACT",
        value_name = "RULE",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    redact: Vec<OwnRule>,
    /// Be the service that the system has started this program for (Windows)
    #[arg(long, hide = true)]
    as_service: bool,
}

/// `alibi-agent enroll`.
#[derive(Debug, clap::Args)]
struct EnrollArgs {
    /// The token; `-` reads it from standard input
    token: String,
    /// Be a new host from now on: for a copy of another one, or one that was revoked. What was recorded before is put aside
    #[arg(long)]
    reset: bool,
    /// Where identity and ring are kept
    #[arg(long, env = "ALIBI_DATA", default_value_os_t = sys::default_data_directory())]
    data: PathBuf,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// How the collector is reached.
#[derive(Clone, Debug, clap::Args)]
struct ProxyArgs {
    /// The HTTP proxy on the way to the collector, http://[USER:PASSWORD@]HOST:PORT [default: what HTTPS_PROXY, ALL_PROXY and
    /// NO_PROXY say]
    #[arg(long, env = "ALIBI_PROXY", value_name = "URL", hide_env_values = true)]
    proxy: Option<String>,
}

impl ProxyArgs {
    fn proxy(&self) -> Result<Proxy, ProxyError> {
        self.proxy.as_deref().map_or_else(|| Ok(Proxy::from_environment()), Proxy::through)
    }
}

impl Arguments {
    /// Whether the system has started this program as a service.
    pub fn is_service(&self) -> bool {
        matches!(self.command, Command::Run(RunArgs { as_service: true, .. }))
    }
}

/// `alibi-agent selftest`.
#[derive(Debug, clap::Args)]
struct SelftestArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    /// How to capture: auto, ebpf, etw or poll
    #[arg(long, env = "ALIBI_SOURCE", default_value = "auto")]
    source: Choice,
    /// Time between two looks of the poll source
    #[arg(long, env = "ALIBI_PERIOD", default_value = "1s", value_parser = parse_duration)]
    period: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Be one of the processes that the test starts
    #[arg(long, hide = true)]
    child: bool,
}

/// `alibi-agent query`.
#[derive(Debug, clap::Args)]
struct QueryArgs {
    #[command(flatten)]
    question: QuestionArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
    /// The data directory of the agent, running or not
    #[arg(long, env = "ALIBI_DATA", default_value_os_t = sys::default_data_directory())]
    data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `alibi-agent status`.
#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    /// The data directory of the agent [default: the agent of this system, as everybody may see it]
    #[arg(long, env = "ALIBI_DATA")]
    data: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The longest that events may be unsafe: who asks waits as long for an answer.
const SYNC_INTERVAL_MAX: Duration = Duration::from_secs(60);

fn parse_sync_interval(text: &str) -> Result<Duration, String> {
    let interval = if matches!(text, "0" | "0s" | "0ms") {
        Duration::ZERO
    } else {
        parse_duration(text).map_err(|error| error.to_string())?
    };
    if interval > SYNC_INTERVAL_MAX {
        return Err(format!(
            "`{text}` is too long to be without: write at most {} s",
            SYNC_INTERVAL_MAX.as_secs()
        ));
    }
    Ok(interval)
}

fn parse_buffer_bytes(text: &str) -> Result<u32, String> {
    let bytes = text.parse().ok().filter(|bytes: &u32| bytes.is_power_of_two() && *bytes >= 4096);
    bytes.ok_or_else(|| format!("`{text}` is no size for a buffer: write a power of two, from 4096"))
}

/// What can be configured in a file: the flags of `run`.
pub fn configurable() -> Configurable {
    Configurable { command: "run", place: sys::default_configuration() }
}

/// Runs the command; the exit status.
///
/// # Errors
/// What a person should read, in one line.
pub fn run(arguments: Arguments) -> Result<u8> {
    if arguments.is_service() {
        return sys::service::be_service(Box::new(|| run_command(arguments)))?;
    }
    run_command(arguments)
}

fn run_command(arguments: Arguments) -> Result<u8> {
    // It is for an administrator, and starts programs of the system.
    if let Command::Service(service) = arguments.command {
        return service::service(&service);
    }
    // It looks at a file, and talks to nobody.
    if let Command::Status(arguments) = arguments.command {
        return status::status(&arguments);
    }
    if matches!(arguments.command, Command::Run(_)) {
        sys::run_before_others();
    }
    // The test answers DNS questions itself, for which it takes one more.
    if !matches!(arguments.command, Command::Selftest(_)) {
        sys::keep_needed_privileges()?;
    }
    // Whoever speaks to the agent speaks to a thread without rights.
    let without_rights = || {
        sys::run_as_others();
        if let Err(problem) = sys::give_up_privileges() {
            tracing::warn!(%problem, "a thread that serves keeps the agent's rights");
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(without_rights)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Run(arguments) => run::run(arguments).await,
            Command::Enroll(arguments) => enroll::enroll(arguments).await,
            Command::Query(arguments) => query::query(arguments).await,
            Command::Selftest(arguments) => selftest::selftest(&arguments),
            Command::Service(service) => service::service(&service),
            Command::Status(arguments) => status::status(&arguments),
        }
    })
}

/// Names the directory that this program marks as its own, and the newest format of it that this version knows.
const PROGRAM: &str = "alibi-agent";
const DATA_FORMAT: u32 = 1;
/// The ring's directory in the data directory.
const RING: &str = "ring";
/// What is known of executables from earlier runs, in the data directory.
const EXECUTABLES: &str = "executables";
/// Who asked about this host, in the data directory.
const ASKED: &str = "asked.jsonl";
/// Holds the address on which a running agent serves this machine.
const ADDRESS: &str = "address";
/// Where it does so unless told otherwise, on systems that have such sockets.
const SOCKET: &str = "agent.sock";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Every line of the configuration that an installation writes is a flag with its own default, put into a comment.
    #[test]
    fn the_configuration_that_is_installed_says_what_holds_without_it() {
        let program = Arguments::command();
        let run = program.find_subcommand(configurable().command).unwrap();
        let is_key = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase());
        let lines: Vec<_> = sys::service::CONFIGURATION
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(is_key)
            .collect();
        assert!(lines.len() >= 5, "{lines:?}");
        for line in lines {
            let (key, value) = line.split_once(" = ").unwrap();
            let flag = run.get_arguments().find(|argument| argument.get_long() == Some(key));
            let flag = flag.unwrap_or_else(|| panic!("{key} is no flag"));
            assert!(!flag.is_hide_set(), "{key}");
            // What has no default has an example.
            if !flag.get_default_values().is_empty() {
                assert_eq!(flag.get_default_values(), [value.trim_matches('"')], "{key}");
            }
        }
        let set = |line: &&str| !line.is_empty() && !line.starts_with('#');
        assert_eq!(sys::service::CONFIGURATION.lines().find(set), None, "nothing is set");
    }
}
