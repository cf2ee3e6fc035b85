//! The words that every command line has in common.

use clap::{Args, Parser};

use crate::{
    flow::Protocol,
    question::{Question, Verdict},
    target::{Target, TargetError},
    time::Timestamp,
    window::{Window, WindowError},
};

/// The question, as flags.
#[derive(Args, Clone, Debug)]
pub struct QuestionArgs {
    /// Whom they talked to: an address, address:port, or a network such as 203.0.113.0/24
    pub target: String,
    /// The window: this long, until now (90s, 10m, 2h, 1d)
    #[arg(long, value_name = "D")]
    pub last: Option<String>,
    /// The window's beginning: RFC 3339, 10:31 (UTC) or -15m
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// The window's end, not included [default: now]
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// Only connections with this remote port
    #[arg(long, value_name = "P")]
    pub port: Option<u16>,
    /// Only this protocol: tcp or udp
    #[arg(long)]
    pub protocol: Option<Protocol>,
}

impl QuestionArgs {
    /// The question.
    ///
    /// # Errors
    /// When target or window cannot be asked about.
    pub fn question(&self, now: Timestamp) -> Result<Question, QuestionError> {
        let target = Target::parse(&self.target, self.port, self.protocol)?;
        let word = Option::as_deref;
        let window = Window::from_words(word(&self.last), word(&self.from), word(&self.to), now)?;
        Ok(Question { target, window })
    }
}

/// A question that cannot be put.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// Whom is it about?
    #[error(transparent)]
    Target(#[from] TargetError),
    /// When?
    #[error(transparent)]
    Window(#[from] WindowError),
}

/// The arguments of this program. Help and version are printed; a mistake is one line on stderr.
///
/// # Errors
/// The exit status, where there is nothing more to do.
pub fn parse<A: Parser>(program: &str) -> Result<A, u8> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            print!("{error}");
            return 0;
        }
        let text = error.to_string();
        let what = text.split("\n\n").next().unwrap_or_default();
        let what = what.strip_prefix("error: ").unwrap_or(what);
        let what: Vec<&str> = what.split_whitespace().collect();
        eprintln!("{program}: {} (see {program} --help)", what.join(" "));
        EXIT_ERROR
    })
}

/// Exit status of an error, a message being on stderr and nothing on stdout.
pub const EXIT_ERROR: u8 = 2;

/// Exit status of an answer, after `grep`: 0 somebody talked; 1 nobody did, proven; 3 nobody is known to have.
pub const fn exit_status(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Talked => 0,
        Verdict::Clear => 1,
        Verdict::Unknown => 3,
    }
}
