//! The window, as flags of every listing that has one and asks for no target.

use alibi_proto::{
    time::Timestamp,
    window::{Window, WindowError},
};

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
