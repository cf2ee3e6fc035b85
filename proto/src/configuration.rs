//! The file that sets what flags set: one key per flag, under the name of the flag.
//!
//! A flag that may be given more than once takes a list. What it says becomes the default of the flag, so a flag goes over a variable, that over the file, and that over the
//! program's own default. Each value is read by the very parser of its flag. A key that is no flag is refused, because
//! whoever wrote it believes that it does something.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Args, Command};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::command_line::{in_one_line, words_of};

/// No file is larger; a longer one is none that a person wrote.
pub const BYTES_MAX: u64 = 64 << 10;
/// A key that is no flag is taken for a misspelled one from this similarity on (Jaro, 0 to 1).
const NEAR: f64 = 0.7;
/// The id of the argument that names the file.
const ARGUMENT: &str = "config";

/// Which file, as a flag of every command that reads one.
#[derive(Args, Clone, Debug)]
pub struct ConfigurationArgs {
    /// The file that sets the same as the flags, under their names [default: where the system keeps such files, if it is
    /// there]
    #[arg(long, env = "ALIBI_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What of a program can be configured, and where that is done.
#[derive(Clone, Debug)]
pub struct Configurable {
    /// The command whose public flags are the keys. The same flag of another command is set, too.
    pub command: &'static str,
    /// The file that is read where none is named. It need not exist.
    pub place: PathBuf,
}

/// What the file says of one flag, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    flag: String,
    /// One, or as many as a flag that may be given more than once takes.
    values: Vec<String>,
    line: usize,
}

/// The program's command line with what the file says as its defaults. `words` are those of this run, which name the
/// command and perhaps the file.
///
/// # Errors
/// When the file cannot be read, or something in it cannot be meant.
pub(crate) fn apply(
    program: Command,
    words: &[OsString],
    configurable: &Configurable,
) -> Result<Command, ConfigurationError> {
    let Some((chosen, named)) = chosen(&program, words) else { return Ok(program) };
    let path = named.as_deref().unwrap_or(&configurable.place);
    // Nobody named it: what this user may not even look at is none of its own.
    let is_no_matter = |problem: &io::Error| {
        named.is_none() && matches!(problem.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
    };
    let text = match read(path) {
        Err(ConfigurationError::Unreadable { source, .. }) if is_no_matter(&source) => return Ok(program),
        text => text?,
    };
    let Some(command) = program.find_subcommand(configurable.command) else { return Ok(program) };
    let settings = settings(path, &text, command)?;
    Ok(program.mut_subcommand(chosen, |chosen| with_defaults(chosen, &settings)))
}

/// The command that these words choose, if it reads a file, and the file that they or the variable name. What else is
/// wrong with them is found when they are read in earnest.
fn chosen(program: &Command, words: &[OsString]) -> Option<(String, Option<PathBuf>)> {
    let matches = program.clone().ignore_errors(true).try_get_matches_from(words).ok()?;
    let (chosen, matches) = matches.subcommand()?;
    let reads_one =
        program.find_subcommand(chosen)?.get_arguments().any(|argument| argument.get_id() == ARGUMENT);
    let named = || matches.try_get_one::<PathBuf>(ARGUMENT).ok().flatten().cloned();
    reads_one.then(|| (chosen.to_owned(), named()))
}

fn read(path: &Path) -> Result<String, ConfigurationError> {
    let unreadable = |source| ConfigurationError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(ConfigurationError::TooLarge(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        let problem = "it is no text in UTF-8".to_owned();
        ConfigurationError::NotToml { path: path.to_owned(), line, problem }
    })
}

/// What `text` says, each value tried on the flags of `command`.
fn settings(path: &Path, text: &str, command: &Command) -> Result<Vec<Setting>, ConfigurationError> {
    let line_of =
        |span: Range<usize>| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| ConfigurationError::NotToml {
        path: path.to_owned(),
        line: error.span().map_or(1, line_of),
        problem: in_one_line(&io::Error::other(error.message().to_owned())),
    })?;
    let mut settings = Vec::new();
    for (key, value) in table.get_ref() {
        let (flag, line) = (key.get_ref().to_string(), line_of(key.span()));
        let Some(argument) = public_flags(command).find(|argument| argument.get_long() == Some(&flag)) else {
            let near = near(&flag, command);
            return Err(ConfigurationError::UnknownKey { path: path.to_owned(), line, key: flag, near });
        };
        let refused = |problem| {
            let (path, key) = (path.to_owned(), flag.clone());
            ConfigurationError::Value { path, line, key, problem }
        };
        let values = values_of(argument, value).map_err(refused)?;
        values.iter().try_for_each(|value| try_on(command, argument, value)).map_err(refused)?;
        settings.push(Setting { flag, values, line });
    }
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

/// What can be set: flags that are for everybody, but not the one that names the file.
fn public_flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| {
        let acts = matches!(argument.get_action(), ArgAction::Set | ArgAction::SetTrue | ArgAction::Append);
        acts && argument.get_long().is_some() && !argument.is_hide_set() && argument.get_id() != ARGUMENT
    })
}

fn near(key: &str, command: &Command) -> Option<String> {
    let likeness = |flag: &&str| strsim::jaro(key, flag);
    let near = public_flags(command)
        .filter_map(Arg::get_long)
        .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(&near) >= NEAR).then(|| near.to_owned())
}

/// The values of a flag: of a list, where it may be given more than once.
fn values_of(argument: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    match value.get_ref() {
        DeValue::Array(values) if matches!(argument.get_action(), ArgAction::Append) => {
            values.iter().map(in_words).collect()
        }
        _ => Ok(vec![in_words(value)?]),
    }
}

/// A value as it would be written on the command line.
fn in_words(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "it is no number that fits".to_owned()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        other => Err(format!("write one value in quotes, as the flag takes it, and no {}", other.type_str())),
    }
}

/// Lets the parser of the flag itself read the value; in its words, why it does not take it.
fn try_on(command: &Command, argument: &Arg, value: &str) -> Result<(), String> {
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        let is_boolean = matches!(value, "true" | "false");
        return if is_boolean { Ok(()) } else { Err(format!("`{value}` is neither true nor false")) };
    }
    let flag = argument.get_long().unwrap_or_default();
    let mut word = OsString::from(format!("--{flag}="));
    word.push(value);
    let alone = command.clone().no_binary_name(true).mut_args(|argument| argument.required(false));
    alone.try_get_matches_from([word]).map(drop).map_err(|error| {
        let problem = std::error::Error::source(&error).map_or_else(|| words_of(&error), in_one_line);
        if problem.contains(value) { problem } else { format!("`{value}`: {problem}") }
    })
}

/// A command whose flags have these values unless something else is said.
fn with_defaults(command: Command, settings: &[Setting]) -> Command {
    settings.iter().fold(command, |command, Setting { flag, values, .. }| {
        let id = command.get_arguments().find(|argument| argument.get_long() == Some(flag));
        let Some(id) = id.map(|argument| argument.get_id().to_string()) else { return command };
        command.mut_arg(id, |argument| argument.required(false).default_values(values.clone()))
    })
}

/// A configuration file that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It cannot be read.
    #[error("cannot read the configuration {}: {source}; mend that, or name another with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is longer than [`BYTES_MAX`].
    #[error("the configuration {} is larger than {BYTES_MAX} bytes: name another with --config", .0.display())]
    TooLarge(PathBuf),
    /// It is not TOML.
    #[error("the configuration {} cannot be understood: line {line}: {problem}; write lines such as `listen = \"127.0.0.1:8441\"`", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such flag.
    #[error("the configuration {} cannot be followed: line {line}: `{key}` is no flag that can be set there{}", path.display(), meant(near.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is written there.
        key: String,
        /// What may be meant.
        near: Option<String>,
    },
    /// The flag does not take this value.
    #[error("the configuration {} cannot be followed: line {line}: `{key}`: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The flag.
        key: String,
        /// Why not.
        problem: String,
    },
}

fn meant(near: Option<&str>) -> String {
    near.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
