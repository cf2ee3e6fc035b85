//! `alibi executables`.

use std::time::Duration;

use alibi_proto::{time::parse_duration, wire};
use anyhow::{Context as _, Result};

use super::{
    ScopeArgs, ToCollectorArgs,
    format::{self, FormatArgs},
    way::{Way, in_words},
    window::WindowArgs,
};
use crate::{clock, export::executables::ListedExecutables};

/// `alibi executables`.
#[derive(Debug, clap::Args)]
pub(super) struct ExecutablesArgs {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    scope: ScopeArgs,
    /// Only what is proven to be new on its host
    #[arg(long)]
    new: bool,
    /// What was not seen before is new if so much before the window is recorded completely [default: all since recording
    /// began, and a day at least]
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    recorded_for: Option<Duration>,
    /// At most so many, up to 1,000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    format: FormatArgs,
}

pub(super) async fn executables(arguments: ExecutablesArgs, to: &ToCollectorArgs) -> Result<u8> {
    let format = arguments.format.of::<ListedExecutables>()?;
    let window = arguments.window.window(clock::now())?;
    let way = &Way::find(to)?;
    let request = wire::ExecutablesRequest {
        scope: arguments.scope.to_wire(),
        from_ns: window.from().as_nanos(),
        to_ns: window.to().as_nanos(),
        only_new: arguments.new,
        recorded_for_ns: arguments.recorded_for.map(nanos),
        limit: arguments.limit,
    };
    let response = way.client()?.executables(request).await.map_err(in_words(way))?.into_inner();
    let shown = ListedExecutables::new(window, response).context("the collector's answer cannot be read")?;
    format::print(format, &shown)?;
    Ok(0)
}

pub(super) fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}
