//! `alibi executables`.

use std::time::Duration;

use alibi_proto::{
    time::{Timestamp, parse_duration},
    window::{Window, WindowError},
    wire,
};
use anyhow::{Context as _, Result};

use super::{
    ScopeArgs, ToCollectorArgs,
    format::{self, FormatArgs},
    way::{Way, in_words},
};
use crate::{clock, export::executables::ListedExecutables};

/// The window.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct WindowArgs {
    /// The window: this long, until now (90s, 10m, 2h, 1d)
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    last: Option<String>,
    /// The window's beginning: RFC 3339, 10:31 (UTC) or -15m
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    from: Option<String>,
    /// The window's end, not included [default: now]
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    to: Option<String>,
}

impl WindowArgs {
    /// The window.
    pub(super) fn window(&self, now: Timestamp) -> Result<Window, WindowError> {
        let word = Option::as_deref;
        Window::from_words(word(&self.last), word(&self.from), word(&self.to), now)
    }

    /// The same, where it may be left out.
    pub(super) fn window_if_any(&self, now: Timestamp) -> Result<Option<Window>, WindowError> {
        let is_given = self.last.is_some() || self.from.is_some() || self.to.is_some();
        is_given.then(|| self.window(now)).transpose()
    }
}

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
