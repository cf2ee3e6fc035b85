use std::{fs, time::Duration};

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};

use super::*;
use crate::time::parse_duration;

#[derive(Debug, Parser)]
#[command(name = "program")]
struct Program {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    Run(RunArgs),
    Ask(AskArgs),
    Idle,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    #[arg(long)]
    data: PathBuf,
    // A variable that every machine has.
    #[arg(long, env = "PATH")]
    place: Option<String>,
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    sync_interval: Duration,
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..100))]
    ring_bytes: u64,
    #[arg(long)]
    quiet: bool,
    #[arg(long, value_parser = parse_duration, allow_hyphen_values = true)]
    wait: Vec<Duration>,
    #[arg(long, hide = true)]
    secret: Option<String>,
}

#[derive(Debug, clap::Args)]
struct AskArgs {
    #[command(flatten)]
    configuration: ConfigurationArgs,
    #[arg(long, default_value = "nowhere")]
    data: PathBuf,
    #[arg(long, default_value = "own")]
    ring_byte: String,
}

/// Runs `program` with these words, with `text` in the file at its usual place.
fn parsed(text: Option<&str>, words: &[&str]) -> Result<Commands, String> {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("program.toml");
    if let Some(text) = text {
        fs::write(&place, text).unwrap();
    }
    let words: Vec<OsString> =
        std::iter::once("program").chain(words.iter().copied()).map(Into::into).collect();
    let configurable = Configurable { command: "run", place: place.clone() };
    let command = apply(Program::command(), &words, &configurable)
        .map_err(|error| error.to_string().replace(&place.display().to_string(), "FILE"))?;
    let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
    Ok(Program::from_arg_matches(&matches).unwrap().command)
}

fn run(text: Option<&str>, words: &[&str]) -> Result<RunArgs, String> {
    match parsed(text, &[&["run"], words].concat())? {
        Commands::Run(run) => Ok(run),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flag_goes_over_a_variable_over_the_file_over_the_default() {
    let none = run(None, &["--data", "d"]).unwrap();
    assert_eq!((none.sync_interval, none.ring_bytes, none.quiet), (Duration::from_secs(1), 7, false));

    let text = "\u{23} a comment\ndata = 'f'\nsync-interval = \"5s\"\nring-bytes = 0x10\nquiet = true\nplace = 'file'\n";
    let file = run(Some(text), &[]).unwrap();
    assert_eq!(file.data, Path::new("f"), "it is not missing when the file has it");
    assert_eq!((file.sync_interval, file.ring_bytes, file.quiet), (Duration::from_secs(5), 16, true));
    assert_eq!(file.place, std::env::var("PATH").ok(), "the variable goes over the file");

    let flags = run(Some(text), &["--data", "d", "--sync-interval=2s", "--place", "flag"]).unwrap();
    assert_eq!((flags.data.as_path(), flags.sync_interval), (Path::new("d"), Duration::from_secs(2)));
    assert_eq!((flags.place.as_deref(), flags.ring_bytes), (Some("flag"), 16));
    assert!(run(None, &[]).unwrap_err().contains("--data"), "still required");
}

#[test]
fn a_flag_that_may_be_given_more_than_once_takes_a_list() {
    let secs = |secs: &[u64]| secs.iter().copied().map(Duration::from_secs).collect::<Vec<_>>();
    let check = |text: Option<&str>, words: &[&str], wanted: &[u64]| {
        let run = run(text, &[&["--data", "d"], words].concat()).unwrap();
        assert_eq!(run.wait, secs(wanted), "{text:?} {words:?}");
    };
    check(None, &[], &[]);
    check(None, &["--wait", "1s", "--wait=2s"], &[1, 2]);
    check(Some("wait = []"), &[], &[]);
    check(Some("wait = '3s'"), &[], &[3]);
    check(Some("wait = ['3s', \"4s\"]"), &[], &[3, 4]);
    check(Some("wait = [\n  '3s', # why\n  '4s',\n]"), &[], &[3, 4]);
    check(Some("wait = ['3s', '4s']"), &["--wait", "1s"], &[1]);
}

#[test]
fn the_same_flag_of_another_command_is_set_too_and_no_other() {
    let text = "data = 'f'\nring-bytes = 9\n";
    let Commands::Ask(ask) = parsed(Some(text), &["ask"]).unwrap() else { panic!() };
    assert_eq!((ask.data.as_path(), ask.ring_byte.as_str()), (Path::new("f"), "own"));
    assert!(matches!(parsed(Some("nonsense"), &["idle"]), Ok(Commands::Idle)), "it reads no file");
}

#[test]
fn a_named_file_must_exist_and_goes_over_the_usual_one() {
    let directory = tempfile::tempdir().unwrap();
    let named = directory.path().join("named.toml");
    let named_word = named.to_str().unwrap();
    let missing = run(Some("data = 'f'"), &["--config", named_word]).unwrap_err();
    assert!(missing.contains(named_word) && missing.contains("--config"), "{missing}");
    fs::write(&named, "data = 'n'\n").unwrap();
    assert_eq!(run(Some("data = 'f'"), &["--config", named_word]).unwrap().data, Path::new("n"));
    assert!(run(None, &["--config", directory.path().to_str().unwrap()]).is_err(), "a directory");
}

#[test]
fn what_cannot_be_meant_is_refused_with_line_and_key() {
    for (text, wanted) in [
        (
            "\ndata = 'f'\nsync-intervall = '5s'\n",
            &["FILE", "line 3", "`sync-intervall`", "`sync-interval`?"][..],
        ),
        ("colour = 'red'\n", &["line 1", "`colour`", "no flag"]),
        ("secret = 'x'\n", &["`secret`", "no flag"]),
        ("config = 'x'\n", &["`config`", "no flag"]),
        ("[run]\ndata = 'f'\n", &["`run`", "no flag"]),
        ("data = 'f'\nsync-interval = 'soon'\n", &["line 2", "`sync-interval`", "`soon`"]),
        ("data = 'f'\nsync-interval = 5\n", &["line 2", "`sync-interval`", "`5`"]),
        ("ring-bytes = 100\n", &["line 1", "`ring-bytes`", "100 is not in 1..100"]),
        ("ring-bytes = -1\n", &["`ring-bytes`", "-1"]),
        ("ring-bytes = 1.5\n", &["`ring-bytes`", "invalid digit"]),
        ("ring-bytes = 99999999999999999999999999999999999999999\n", &["ring-bytes"]),
        ("quiet = 'loud'\n", &["`quiet`", "`loud`", "true nor false"]),
        ("data = ['a', 'b']\n", &["`data`", "one value", "array"]),
        ("data = 1979-05-27\n", &["`data`", "one value", "datetime"]),
        ("data = 'f'\ndata = 'g'\n", &["line 2", "duplicate key"]),
        ("data = f\n", &["line 1", "write lines such as"]),
        ("data = 'f'\n\n\u{7f}\n", &["line 3"]),
        ("[[data]]\n", &["`data`", "one value", "array"]),
        ("\nwait = ['1s', 'soon']\n", &["line 2", "`wait`", "`soon`"]),
        ("wait = [['1s']]\n", &["`wait`", "one value", "array"]),
        ("wait = [{ a = '1s' }]\n", &["`wait`", "one value", "table"]),
    ] {
        let error = run(Some(text), &["--data", "d"]).unwrap_err();
        for wanted in wanted {
            assert!(error.contains(wanted), "no `{wanted}` in: {error}");
        }
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains("did you mean `secret`"), "what is hidden stays hidden: {error}");
    }
}

#[test]
fn a_file_that_no_person_wrote_is_refused() {
    let long = format!("data = 'f'{}", "\n".repeat(usize::try_from(BYTES_MAX).unwrap()));
    let error = run(Some(&long), &[]).unwrap_err();
    assert!(error.contains("FILE is larger than 65536 bytes") && error.contains("--config"), "{error}");
    assert!(run(Some(&long[..usize::try_from(BYTES_MAX).unwrap()]), &[]).is_ok(), "just so large");

    let directory = tempfile::tempdir().unwrap();
    let named = directory.path().join("named.toml");
    fs::write(&named, b"data = 'f'\n\xff").unwrap();
    let error = run(None, &["--config", named.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("line 2") && error.contains("UTF-8"), "{error}");
}

#[test]
fn help_and_words_that_are_wrong_are_told_as_ever() {
    assert!(run(Some("data = 'f'"), &["--help"]).unwrap_err().contains("Usage"));
    let error = run(Some("data = 'f'"), &["--bogus"]).unwrap_err();
    assert!(error.contains("--bogus"), "{error}");
}

proptest::proptest! {
    #[test]
    fn any_text_is_followed_or_refused_in_one_line(text in "(data|ring-bytes|x|\"a\\.b\")? ?=? ?('[a-z]*'|[0-9]{1,3}|[ -~\n\t]{0,12})\n?[ -~]{0,8}") {
        if let Err(error) = run(Some(&text), &["--data", "d"]) {
            proptest::prop_assert_eq!(error.lines().count(), 1, "{}", error);
        }
    }
}
