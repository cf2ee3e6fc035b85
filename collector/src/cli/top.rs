//! `alibi top`.

use alibi_proto::{command_line::QuestionArgs, question::Question, time::Timestamp, window::Window, wire};
use anyhow::{Context as _, Result};

use super::{
    ScopeArgs, ToCollectorArgs,
    format::{self, FormatArgs},
    way::{Way, in_words},
    window::WindowArgs,
};
use crate::{clock, export::top::Top};

/// `alibi top`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum TopCommand {
    /// The remotes that a process talked to
    Remotes {
        /// The process uid, as `who` shows it, or the beginning of it
        #[arg(long, value_name = "UID")]
        process: String,
        #[command(flatten)]
        window: WindowArgs,
        #[command(flatten)]
        listing: ListingArgs,
    },
    /// The executables that talked to TARGET, on all hosts together
    Processes {
        #[command(flatten)]
        question: QuestionArgs,
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        listing: ListingArgs,
    },
    /// The hosts
    Hosts {
        #[command(flatten)]
        window: WindowArgs,
        #[command(flatten)]
        scope: ScopeArgs,
        #[command(flatten)]
        listing: ListingArgs,
    },
}

/// How much is listed, and how.
#[derive(Debug, clap::Args)]
pub(super) struct ListingArgs {
    /// By what they are sorted
    #[arg(long, value_enum, default_value = "bytes")]
    by: ByWord,
    /// At most so many, up to 1,000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ByWord {
    /// Bytes both ways
    Bytes,
    /// Different connections
    Connections,
}

impl ByWord {
    const fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Connections => "connections",
        }
    }
}

pub(super) async fn top(command: TopCommand, to: &ToCollectorArgs) -> Result<u8> {
    let now = clock::now();
    // What cannot be meant is said, whoever would be asked.
    let (mut request, listing) = match command {
        TopCommand::Remotes { process, window, listing } => {
            let request =
                wire::TopRequest { of: wire::TopOf::Remotes.into(), process, ..within(&window, None)? };
            (request, listing)
        }
        TopCommand::Hosts { window, scope, listing } => {
            let of = wire::TopOf::Hosts.into();
            (wire::TopRequest { of, ..within(&window, scope.to_wire())? }, listing)
        }
        TopCommand::Processes { question, scope, listing } => {
            let question = Some(question.question(now)?.into());
            let (of, scope) = (wire::TopOf::Processes.into(), scope.to_wire());
            (wire::TopRequest { of, scope, question, ..wire::TopRequest::default() }, listing)
        }
    };
    let format = listing.format.of::<Top>()?;
    request.limit = listing.limit;
    request.by = match listing.by {
        ByWord::Bytes => wire::TopBy::Bytes.into(),
        ByWord::Connections => wire::TopBy::Connections.into(),
    };
    let of = request.of();
    let window = match request.question.clone() {
        Some(question) => Question::try_from(Some(question)).context("the question")?.window,
        None => Window::new(Timestamp::from_nanos(request.from_ns), Timestamp::from_nanos(request.to_ns))?,
    };
    let way = &Way::find(to)?;
    let response = way.client()?.top(request).await.map_err(in_words(way))?.into_inner();
    let shown =
        Top::new(window, of, listing.by.word(), response).context("the collector's answer cannot be read")?;
    format::print(format, &shown)?;
    Ok(0)
}

fn within(window: &WindowArgs, scope: Option<wire::HostScope>) -> Result<wire::TopRequest> {
    let window = window.window(clock::now())?;
    let (from_ns, to_ns) = (window.from().as_nanos(), window.to().as_nanos());
    Ok(wire::TopRequest { scope, from_ns, to_ns, ..wire::TopRequest::default() })
}
