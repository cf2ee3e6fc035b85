//! The habits of programs that take a secret in a short option, or a user and a secret in one word.

/// What of a word is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// All of it.
    Whole,
    /// What comes after the user's name and this.
    AfterUser(char),
    /// The value of a header that holds a secret.
    Header,
    /// All of it, if it is a cookie.
    Cookie,
}

/// What a word of a program with habits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    /// An option whose value is the next word.
    Next(Hidden),
    /// An option whose value begins here, in the same word.
    From(usize, Hidden),
}

/// How a program takes a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `-pVALUE` only: `-p` alone asks for it, or means something else.
    Attached,
    /// `-p VALUE` only.
    Apart,
    /// `-p VALUE` or `-pVALUE`.
    Either,
    /// `--option VALUE` or `--option=VALUE`.
    Long,
}

use Form::{Apart, Attached, Either, Long};
use Hidden::{AfterUser, Cookie, Header, Whole};

struct Program {
    names: &'static [&'static str],
    /// Only after this word, where there is one.
    command: Option<&'static str>,
    options: &'static [(&'static str, Form, Hidden)],
}

const PROGRAMS: [Program; 15] = [
    program(
        &["mysql", "mysqldump", "mysqladmin", "mysqlimport", "mariadb", "mariadb-dump", "mariadb-admin"],
        &[("-p", Attached, Whole)],
    ),
    program(
        &["curl"],
        &[
            ("-u", Either, AfterUser(':')),
            ("--user", Long, AfterUser(':')),
            ("-U", Either, AfterUser(':')),
            ("--proxy-user", Long, AfterUser(':')),
            ("-H", Either, Header),
            ("--header", Long, Header),
            ("--proxy-header", Long, Header),
            ("-b", Either, Cookie),
            ("--cookie", Long, Cookie),
            ("-E", Either, AfterUser(':')),
            ("--oauth2-bearer", Long, Whole),
        ],
    ),
    program(
        &["wget"],
        &[("-u", Either, AfterUser(':')), ("--user", Long, AfterUser(':')), ("--header", Long, Header)],
    ),
    program(&["http", "https", "xh"], &[("-a", Either, AfterUser(':')), ("--auth", Long, AfterUser(':'))]),
    program(&["sshpass"], &[("-p", Either, Whole)]),
    program(
        &["ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami", "ldappasswd"],
        &[("-w", Either, Whole)],
    ),
    program(&["redis-cli"], &[("-a", Apart, Whole)]),
    program(
        &["smbclient", "rpcclient", "winexe"],
        &[("-U", Either, AfterUser('%')), ("--user", Long, AfterUser('%'))],
    ),
    program(
        &["7z", "7za", "7zz", "7zr", "rar", "unrar"],
        &[("-p", Attached, Whole), ("-hp", Attached, Whole)],
    ),
    program(&["zip", "unzip"], &[("-P", Either, Whole)]),
    program(&["sqlcmd", "bcp"], &[("-P", Either, Whole)]),
    program(&["psexec", "psexec64", "plink", "pscp"], &[("-p", Apart, Whole), ("-pw", Apart, Whole)]),
    program(&["xfreerdp", "xfreerdp3", "wlfreerdp"], &[("/p:", Attached, Whole)]),
    with_command(
        &["docker", "podman", "nerdctl", "buildah", "az", "oc", "helm"],
        "login",
        &[("-p", Either, Whole)],
    ),
    program(
        &["openssl"],
        &[("-passin", Apart, AfterUser(':')), ("-passout", Apart, AfterUser(':')), ("-k", Apart, Whole)],
    ),
];

const fn program(
    names: &'static [&'static str],
    options: &'static [(&'static str, Form, Hidden)],
) -> Program {
    Program { names, command: None, options }
}

const fn with_command(
    names: &'static [&'static str],
    command: &'static str,
    options: &'static [(&'static str, Form, Hidden)],
) -> Program {
    Program { names, command: Some(command), options }
}

/// The program that the words so far run. It need not be the first word: `sudo`, `env`, `timeout` and `docker exec` run
/// others, so the last word that names one counts.
#[derive(Default)]
pub(super) struct Habits {
    program: Option<&'static Program>,
    command_seen: bool,
}

impl Habits {
    /// Takes in the next word.
    pub(super) fn note(&mut self, word: &str) {
        let name = word.rsplit(['/', '\\']).next().unwrap_or(word).to_ascii_lowercase();
        let name = name.strip_suffix(".exe").unwrap_or(&name);
        if let Some(program) = PROGRAMS.iter().find(|program| program.names.contains(&name)) {
            self.program = Some(program);
            self.command_seen = false;
        } else if self.program.is_some_and(|program| program.command == Some(name)) {
            self.command_seen = true;
        }
    }

    /// What `word` is by the program's habits.
    pub(super) fn find(&self, word: &str) -> Option<Habit> {
        let program = self.program.filter(|program| program.command.is_none() || self.command_seen)?;
        program.options.iter().find_map(|(option, form, hidden)| {
            let rest = word.strip_prefix(option)?;
            match (form, rest.chars().next()) {
                (Apart | Either | Long, None) => Some(Habit::Next(*hidden)),
                (Long, Some('=')) => Some(Habit::From(option.len() + 1, *hidden)),
                (Attached, Some(_)) if is_port_mapping(rest) => None,
                (Attached | Either, Some(_)) => Some(Habit::From(option.len(), *hidden)),
                _ => None,
            }
        })
    }
}

/// `docker run --name mysql -p3306:3306` runs no mysql.
fn is_port_mapping(text: &str) -> bool {
    text.contains(':') && text.bytes().all(|b| b.is_ascii_digit() || b":.-".contains(&b))
}
