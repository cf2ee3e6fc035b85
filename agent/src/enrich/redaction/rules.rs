//! The rules by name, and how often each has hidden something.

use super::OWN_RULES_MAX;

/// A kind of rule that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What an option is called: `--password x`.
    SecretOption,
    /// What a variable is called: `PGPASSWORD=x`.
    SecretVariable,
    /// What is written before it in a text: `{"password": "x"}`, `?token=x`.
    SecretField,
    /// Where a program takes its secrets: `mysql -px`.
    ProgramHabit,
    /// A header: `Authorization: Bearer x`, a cookie.
    Header,
    /// In an address: `https://user:x@host`.
    UrlPassword,
    /// By its own looks: `ghp_…`, `AKIA…`.
    TokenShape,
    /// Between its BEGIN and END.
    PrivateKey,
    /// Given to a program that reads one: `echo x | sudo -S`.
    PipedSecret,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SecretOption,
        Self::SecretVariable,
        Self::SecretField,
        Self::ProgramHabit,
        Self::Header,
        Self::UrlPassword,
        Self::TokenShape,
        Self::PrivateKey,
        Self::PipedSecret,
    ];

    /// What it is called.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SecretOption => "secret-option",
            Self::SecretVariable => "secret-variable",
            Self::SecretField => "secret-field",
            Self::ProgramHabit => "program-habit",
            Self::Header => "header",
            Self::UrlPassword => "url-password",
            Self::TokenShape => "token-shape",
            Self::PrivateKey => "private-key",
            Self::PipedSecret => "piped-secret",
        }
    }

    /// What it hides, by example.
    pub const fn example(self) -> &'static str {
        match self {
            Self::SecretOption => "--password …, --api-key=…",
            Self::SecretVariable => "PGPASSWORD=…, GITHUB_TOKEN=…",
            Self::SecretField => "{\"password\": \"…\"}, ?access_token=…",
            Self::ProgramHabit => "mysql -p…, curl -u user:…, net user name …",
            Self::Header => "Authorization: Bearer …, Cookie: …",
            Self::UrlPassword => "https://user:…@host",
            Self::TokenShape => "ghp_…, AKIA…, xoxb-…, a JWT",
            Self::PrivateKey => "-----BEGIN PRIVATE KEY-----",
            Self::PipedSecret => "echo … | sudo -S",
        }
    }
}

/// Which rule has hidden something: one that is built in, or the one of one's own that stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Rule(Rule),
    Own(usize),
}

/// How many secrets each rule has hidden. Small and of a fixed size, so that handing it on costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redactions {
    by_rule: [u64; Rule::ALL.len()],
    by_own: [u64; OWN_RULES_MAX],
}

impl Redactions {
    /// By a rule that is built in.
    pub const fn by(&self, rule: Rule) -> u64 {
        self.by_rule[rule as usize]
    }

    /// By the rule of one's own that was added at this place.
    pub fn own(&self, index: usize) -> u64 {
        self.by_own.get(index).copied().unwrap_or(0)
    }

    /// By all of them.
    pub fn total(&self) -> u64 {
        self.by_rule.iter().chain(&self.by_own).sum()
    }

    pub(super) fn note(&mut self, by: By) {
        let count = match by {
            By::Rule(rule) => Some(&mut self.by_rule[rule as usize]),
            By::Own(index) => self.by_own.get_mut(index),
        };
        if let Some(count) = count {
            *count += 1;
        }
    }
}
