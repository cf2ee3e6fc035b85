//! The words that every command line has in common.

use std::{
    error::Error,
    ffi::OsString,
    fmt,
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use clap::{Args, Parser, error::ErrorKind};

use crate::{
    configuration::{self, Configurable},
    flow::Protocol,
    question::{Question, Verdict},
    report::printable,
    target::{Target, TargetError},
    time::Timestamp,
    token::{Token, TokenError},
    window::{Window, WindowError},
};

/// Prints a line, or several. Whoever reads may have read enough and be gone (`alibi who … | head`), and wants no more then: the
/// answer, and the exit status with it, is what it was.
///
/// # Errors
/// When standard output cannot be written for another reason, such as a full disk.
pub fn say(text: impl fmt::Display) -> io::Result<()> {
    let mut text = text.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    give(text.as_bytes())
}

/// Prints bytes as they are, as [`say`] does text.
///
/// # Errors
/// When standard output cannot be written for another reason than that nobody reads it.
pub fn give(bytes: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Bytes of standard input that may be a token.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The token that `word` is; `-` stands for one on standard input, since whoever is on the machine may see arguments.
///
/// # Errors
/// When it is none, or standard input cannot be read.
pub fn token(word: &str) -> Result<Token, TokenArgError> {
    if word != "-" {
        return Ok(word.parse()?);
    }
    let mut text = String::new();
    io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.parse()?)
}

/// No token was given.
#[derive(Debug, thiserror::Error)]
pub enum TokenArgError {
    /// What was given is none.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// It was to be read.
    #[error("standard input cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The question, as flags.
#[derive(Args, Clone, Debug)]
pub struct QuestionArgs {
    /// Whom they talked to: an address, address:port, a network such as 203.0.113.0/24, a name, or *.example.com for
    /// all names below it
    pub target: String,
    /// With a name: an address or network that it stands for; may be given more than once
    #[arg(long = "address", value_name = "A")]
    pub addresses: Vec<String>,
    /// The window: this long, until now (90s, 10m, 2h, 1d)
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub last: Option<String>,
    /// The window's beginning: RFC 3339, 10:31 (UTC) or -15m
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// The window's end, not included [default: now]
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// Only connections with this remote port
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
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
        let target =
            Target::parse(&self.target, self.port, self.protocol)?.with_addresses(&self.addresses)?;
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

/// Reads the command line, and the file that sets what it leaves open. A value that cannot be taken is an error in one
/// line, as any other; only where the words themselves are not understood, usage is shown.
///
/// # Errors
/// The exit status, when there is nothing to run: it has been said why, or help was given.
pub fn parse<P: Parser>(configurable: &Configurable) -> Result<P, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let program = P::command();
    let name = program.get_name().to_owned();
    let program = configuration::apply(program, &words, configurable).map_err(|error| {
        eprintln!("{name}: {}", in_one_line(&error));
        ExitCode::from(EXIT_ERROR)
    })?;
    program.try_get_matches_from(words).and_then(|matches| P::from_arg_matches(&matches)).map_err(|error| {
        if matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
            eprintln!("{name}: {}", words_of(&error));
        } else {
            // Without a standard output or error, there is nobody to tell.
            let _ = error.print();
        }
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_ERROR))
    })
}

/// What is wrong with a value, without usage, in one line.
pub(crate) fn words_of(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    unbroken(paragraph.strip_prefix("error: ").unwrap_or(paragraph))
}

/// An error and what caused it, for a person, in one line. A cause that was named already is not named again, and a
/// full disk, which can be anybody's, has its way out said here.
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = unbroken(&error.to_string());
    let is_full = |error: &(dyn Error + 'static)| {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    };
    let mut no_room = is_full(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        no_room |= is_full(error);
        let text = unbroken(&error.to_string());
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    if no_room {
        line.push_str("; make room there");
    }
    line
}

/// Some of it may have come from another machine.
fn unbroken(text: &str) -> String {
    printable(&text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read {path}: {source}")]
        struct Says {
            path: &'static str,
            source: io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("no answer")]
        struct Hides(#[source] Says);

        let error = Says { path: "x", source: io::Error::other("disk\n  on fire") };
        assert_eq!(in_one_line(&error), "cannot read x: disk on fire");
        assert_eq!(in_one_line(&Hides(error)), "no answer: cannot read x: disk on fire");
        let hostile = Says { path: "x", source: io::Error::other("\u{1b}[2J\rall is well\u{202e}") };
        assert_eq!(in_one_line(&hostile), "cannot read x: ?[2J?all is well?");
        let full = Says { path: "x", source: io::ErrorKind::StorageFull.into() };
        assert!(in_one_line(&full).ends_with("; make room there"), "{}", in_one_line(&full));
    }
}
