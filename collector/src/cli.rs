//! The command line: one file per noun, each asking the collector, but for `serve`, which is the collector.

use std::{path::PathBuf, time::Duration};

use alibi_proto::{
    address::{Address, HostPort},
    command_line::QuestionArgs,
    configuration::{Configurable, ConfigurationArgs},
    time::parse_duration,
    wire,
};
use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use self::{format::FormatArgs, way::Way};

mod audit;
mod backup;
mod ca;
mod credentials;
mod executables;
mod flows;
mod format;
mod host;
mod hosts;
mod login;
mod patience;
mod process;
mod repair;
mod search;
mod serve;
mod size;
mod token;
mod top;
mod way;
mod who;
mod window;

/// Which process, on which host, talked to X during window W, and which hosts can be ruled out?
#[derive(Debug, Parser)]
#[command(name = "alibi", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    to: ToCollectorArgs,
}

/// Which collector is asked, how it is reached, and who asks.
#[derive(Clone, Debug, clap::Args)]
struct ToCollectorArgs {
    /// The collector to ask, HOST:PORT, or unix:DATA/alibi.sock on its own machine [default: where the last login was]
    #[arg(long, env = "ALIBI_COLLECTOR", global = true)]
    collector: Option<Address>,
    /// The file of logins [default: in the user's configuration]
    #[arg(long, env = "ALIBI_CREDENTIALS", value_name = "FILE", global = true)]
    credentials: Option<PathBuf>,
    /// The HTTP proxy on the way to the collector, http://[USER:PASSWORD@]HOST:PORT [default: what HTTPS_PROXY, ALL_PROXY and
    /// NO_PROXY say]
    #[arg(long, env = "ALIBI_PROXY", value_name = "URL", hide_env_values = true, global = true)]
    proxy: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the collector: follow the agents, keep what they record, answer
    Serve(ServeArgs),
    /// The hosts that are followed, and how fresh each is
    Hosts(HostsArgs),
    /// Who talked to TARGET? Exit status 0 talked, 1 all clear, 3 unknown, 2 error
    Who(WhoArgs),
    /// Processes that a query fits, the one that was started last first. It proves nothing about what it does not list
    Search(SearchArgs),
    /// Flow records that a query fits, the newest first
    Flows(FlowsArgs),
    /// One process: what it is, its ancestors and children, how common its executable is, its connections over time
    Process(ProcessArgs),
    /// The executables that hosts saw first in a window: run, or written and not run
    Executables(executables::ExecutablesArgs),
    /// Remotes, processes or hosts by bytes or connections
    #[command(subcommand)]
    Top(top::TopCommand),
    /// Follow an agent, or no longer; end a host's enrolment
    #[command(subcommand)]
    Host(HostCommand),
    /// Log in with a token that `alibi token create --role` has made; `-` reads it from standard input
    Login(LoginArgs),
    /// Forget the login
    Logout,
    /// Who is asking, and what they may do
    Whoami {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Tokens, with which hosts enrol and analysts log in
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who did what, the newest first
    #[command(args_conflicts_with_subcommands = true)]
    Audit(AuditArgs),
    /// The collector's own certificate authorities
    #[command(subcommand)]
    Ca(CaCommand),
    /// Copy all that a collector keeps, while it goes on; by its own user. Exit status 1: something is damaged, and was left out
    Backup(BackupArgs),
    /// Bring a backup back, into a directory that is empty or not there
    Restore(RestoreArgs),
    /// Read all that a collector keeps, while it goes on; by its own user. Exit status 0 it is whole, 1 it is damaged, 2 error
    Check(CheckArgs),
    /// Make a damaged main database anew of what can be read of it; the collector must be stopped. Nothing before is proven then
    Repair {
        /// Where the collector keeps everything
        #[arg(long, env = "ALIBI_DATA")]
        data: PathBuf,
    },
}

/// `alibi check`.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Where the collector keeps everything
    #[arg(long, env = "ALIBI_DATA")]
    data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `alibi backup`.
#[derive(Debug, clap::Args)]
struct BackupArgs {
    /// The backup: a directory that is empty or not there. It will have the keys of the collector's CA in it
    backup: PathBuf,
    /// Where the collector keeps everything
    #[arg(long, env = "ALIBI_DATA")]
    data: PathBuf,
    /// An older backup: what it has already becomes links to it, on the same file system, and is not copied
    #[arg(long, value_name = "BACKUP")]
    previous: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `alibi restore`.
#[derive(Debug, clap::Args)]
struct RestoreArgs {
    /// The backup
    backup: PathBuf,
    /// Where the collector will keep everything
    #[arg(long, env = "ALIBI_DATA")]
    data: PathBuf,
}

/// `alibi login`.
#[derive(Debug, clap::Args)]
struct LoginArgs {
    /// The token
    token: String,
}

/// `alibi token`.
#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token: one that enrols hosts, or, with --role and --name, one of an analyst. It is shown once
    Create(TokenCreateArgs),
    /// Tokens and analysts' certificates, the newest first
    List {
        #[command(flatten)]
        format: FormatArgs,
    },
    /// End a token or certificate at once, and what came of it
    Revoke {
        /// Its number
        credential: u64,
    },
}

/// `alibi token create`.
#[derive(Debug, clap::Args)]
struct TokenCreateArgs {
    /// How many hosts it enrols [default: 1]
    #[arg(long, value_name = "N")]
    uses: Option<u32>,
    /// How long it is good for
    #[arg(long, value_name = "D", default_value = "24h", value_parser = parse_duration)]
    expires: Duration,
    /// What its hosts are marked with; may be given more than once
    #[arg(long = "tag", value_name = "T")]
    tags: Vec<String>,
    /// What the analyst may do, each all that those before it may
    #[arg(long, value_enum)]
    role: Option<RoleWord>,
    /// Whose it is
    #[arg(long)]
    name: Option<String>,
}

/// A role, as a person writes it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleWord {
    /// See the hosts
    Viewer,
    /// Ask who talked to whom
    Analyst,
    /// Act on hosts
    Responder,
    /// Tokens, enrolment, revocation, the audit log
    Admin,
}

impl From<RoleWord> for wire::Role {
    fn from(role: RoleWord) -> Self {
        match role {
            RoleWord::Viewer => Self::Viewer,
            RoleWord::Analyst => Self::Analyst,
            RoleWord::Responder => Self::Responder,
            RoleWord::Admin => Self::Admin,
        }
    }
}

fn role_word(role: wire::Role) -> &'static str {
    match role {
        wire::Role::Unspecified => "",
        wire::Role::Viewer => "viewer",
        wire::Role::Analyst => "analyst",
        wire::Role::Responder => "responder",
        wire::Role::Admin => "admin",
    }
}

/// `alibi audit`.
#[derive(Debug, clap::Args)]
struct AuditArgs {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// Only what concerns this host, by name or uuid
    #[arg(long)]
    host: Option<String>,
    /// Only what this analyst did
    #[arg(long)]
    who: Option<String>,
    /// At most so many, up to 1,000
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Only what came before this entry
    #[arg(long, value_name = "SEQ")]
    before: Option<u64>,
    #[command(flatten)]
    format: FormatArgs,
}

/// `alibi audit` with more words.
#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Read all of it and its chain again; exit status 0 it holds, 1 it does not, 2 error
    Verify {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `alibi ca`.
#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Those that are believed, the newest first: it signs
    List {
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Make a new one that signs from now on. The old one is believed until it is retired: hosts learn of the new one as they
    /// renew
    Rotate,
    /// Believe an old one no longer
    Retire {
        /// The beginning of its fingerprint
        fingerprint: String,
    },
}

/// `alibi serve`.
#[derive(Debug, clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    /// Where everything is kept
    #[arg(long, env = "ALIBI_DATA")]
    data: PathBuf,
    /// The one port, for agents and analysts; or unix:/path, for this machine alone
    #[arg(long, env = "ALIBI_LISTEN", default_value = "127.0.0.1:8440")]
    listen: Address,
    /// How agents and analysts reach it, HOST:PORT: what tokens say [default: as --listen]
    #[arg(long, env = "ALIBI_ADVERTISE", value_name = "ADDRESS")]
    advertise: Option<HostPort>,
    /// How long the certificate of a host is good for; hosts renew it by themselves
    #[arg(long, env = "ALIBI_CERTIFICATE_LIFETIME", default_value = "30d", value_parser = parse_duration)]
    certificate_lifetime: Duration,
    /// What of the audit log is older than this is forgotten
    #[arg(long, env = "ALIBI_AUDIT_RETENTION", default_value = "400d", value_parser = parse_duration)]
    audit_retention: Duration,
    /// What is older than this is forgotten
    #[arg(long, env = "ALIBI_RETENTION", default_value = "30d", value_parser = parse_duration)]
    retention: Duration,
    /// If everything takes more than this on the disk, 100GiB for example, the oldest days are forgotten before their time
    #[arg(long, env = "ALIBI_RETENTION_BYTES", value_name = "SIZE", value_parser = size::parse_bytes)]
    retention_bytes: Option<u64>,
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
    /// Only hosts with this tag, which they have from their enrolment; may be given more than once, and any counts
    #[arg(long = "tag", value_name = "T")]
    tags: Vec<String>,
    /// Only hosts with this operating system: linux, windows or macos; may be given more than once, and any counts
    #[arg(long = "system", value_name = "S")]
    systems: Vec<String>,
}

impl ScopeArgs {
    fn to_wire(&self) -> Option<wire::HostScope> {
        Some(wire::HostScope {
            hosts: self.hosts.clone(),
            user: self.user.clone(),
            tags: self.tags.clone(),
            systems: self.systems.clone(),
        })
    }
}

/// `alibi hosts`.
#[derive(Debug, clap::Args)]
struct HostsArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// `alibi who`.
#[derive(Debug, clap::Args)]
struct WhoArgs {
    #[command(flatten)]
    question: QuestionArgs,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// What is listed, of what time, and how much of it.
#[derive(Debug, clap::Args)]
struct ListingArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Only what was there in this window
    #[command(flatten)]
    window: window::WindowArgs,
    /// At most so many rows, up to 10,000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Go on where the page before ended, with the same query, --host, --user and --sort; the window is that page's
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// `alibi search`.
#[derive(Debug, clap::Args)]
struct SearchArgs {
    /// In the language of Carbon Black, Elastic and Kibana, such as `process_name:winscp* ipport:22
    /// activity:[NOW-10MINUTES TO NOW]`; terms side by side are joined by AND, and `*` is everything
    #[arg(required_unless_present = "fields")]
    query: Option<String>,
    /// List the fields that a query may name
    #[arg(long, conflicts_with_all = ["query", "last", "from", "to", "hosts", "user", "tags", "systems", "cursor"])]
    fields: bool,
    #[command(flatten)]
    listing: ListingArgs,
}

/// `alibi flows`.
#[derive(Debug, clap::Args)]
struct FlowsArgs {
    /// As of `alibi search` [default: everything]
    query: Option<String>,
    /// What comes first: the newest, the oldest, or what moved the most bytes
    #[arg(long, value_enum, default_value_t = FlowSort::Time)]
    sort: FlowSort,
    #[command(flatten)]
    listing: ListingArgs,
}

/// An order of flow records.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FlowSort {
    /// The newest first, by the end of the record
    Time,
    /// The oldest first
    Oldest,
    /// The most bytes first, both ways
    Bytes,
}

/// `alibi process`.
#[derive(Debug, clap::Args)]
struct ProcessArgs {
    /// The process uid, as `who` shows it, or the beginning of it
    uid: String,
    /// Only its connections in this window; and whether its executable was new in it
    #[command(flatten)]
    window: window::WindowArgs,
    /// What was not seen before is new if so much before the window is recorded completely [default: all since recording
    /// began, and a day at least]
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    recorded_for: Option<Duration>,
    #[command(flatten)]
    format: FormatArgs,
}

/// `alibi host`.
#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Follow the agent at ADDRESS from now on
    Add {
        /// 127.0.0.1:PORT or unix:/path on this machine; HOST:PORT elsewhere, where an enrolled agent listens
        address: Address,
    },
    /// Follow the agent at ADDRESS no longer; what it sent is kept
    Remove {
        /// Its address as it was added, or its uuid
        address: String,
    },
    /// End the enrolment of a host, and its connection at once; what it sent is kept
    Revoke {
        /// Its name or uuid
        host: String,
    },
    /// Take the mark from a host that was found in two places, once the copy is gone or a host of its own
    Unmark {
        /// Its name or uuid
        host: String,
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
    let to = arguments.to;
    runtime.block_on(async {
        match arguments.command {
            Command::Serve(serve) => serve::serve(serve).await,
            Command::Login(arguments) => login::login(arguments, &to).await,
            Command::Logout => login::logout(&to),
            Command::Hosts(hosts) => hosts::hosts(hosts, &Way::find(&to)?).await,
            Command::Who(who) => who::who(who, &to).await,
            Command::Search(search) => search::search(search, &to).await,
            Command::Flows(flows) => flows::flows(flows, &to).await,
            Command::Process(process) => process::process(process, &to).await,
            Command::Executables(arguments) => executables::executables(arguments, &to).await,
            Command::Top(command) => top::top(command, &to).await,
            Command::Host(host) => host::host(host, &Way::find(&to)?).await,
            Command::Whoami { json } => token::who_am_i(json, &Way::find(&to)?).await,
            Command::Token(command) => token::token(command, &Way::find(&to)?).await,
            Command::Audit(arguments) => audit::audit(arguments, &Way::find(&to)?).await,
            Command::Ca(command) => ca::ca(command, &Way::find(&to)?).await,
            Command::Backup(arguments) => backup::backup(&arguments),
            Command::Restore(arguments) => backup::restore(&arguments),
            Command::Check(arguments) => repair::check(&arguments),
            Command::Repair { data } => repair::repair(&data),
        }
    })
}
