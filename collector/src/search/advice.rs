//! Questions that miss what they seem to ask for.
//!
//! The trap of the classic search: *processes that were started in the window and have connections* says nothing of a process
//! that was started before and connected in it.

use alibi_proto::{question::Question, target::Target, time::Timestamp, window::Window};

use super::{
    fields::{Field, Subject},
    query::Searched,
    time::Stretch,
    tree::{Condition, Test, Tree},
};

/// A warning, and what to ask instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Names its kind for programs.
    pub kind: &'static str,
    /// What is wrong.
    pub message: String,
    /// The query to ask instead.
    pub instead: Option<String>,
    /// Commands that ask it, the one that proves most last.
    pub commands: Vec<String>,
}

/// What to say of a search of processes.
pub fn warnings(tree: &Tree, searched: Searched, now: Timestamp) -> Vec<Warning> {
    let tests_start = tree.mentions(&|about| about.field == Field::ProcessStart);
    let tests_connections = tree.mentions(&|about| {
        about.subject == Subject::Connection
            && !matches!(about.field, Field::ConnectionActivity | Field::LastUpdate)
    });
    if !tests_start || !(tests_connections || searched == Searched::Flows) {
        return Vec::new();
    }
    let instead = tree.replaced(&|test| match (test.field, &test.condition) {
        (Field::ProcessStart, Condition::Times(_)) => {
            Test { field: Field::ConnectionActivity, ..test.clone() }
        }
        _ => test.clone(),
    });
    let instead = instead.to_string();
    let word = match searched {
        Searched::Processes => "search",
        Searched::Flows => "flows",
    };
    let mut commands = vec![format!("alibi {word} {}", shell(&instead))];
    commands.extend(who(tree, now));
    vec![Warning {
        kind: "start_is_not_activity",
        message: "start tests when the process was started: one that was started earlier and connected in that time is not \
                  found. To find it, test when connections lived"
            .to_owned(),
        instead: Some(instead),
        commands,
    }]
}

/// The question that is judged host by host, where the query names a remote and a window.
fn who(tree: &Tree, now: Timestamp) -> Option<String> {
    let required = tree.required();
    let target = required.iter().find_map(|test| match (test.field, &test.condition) {
        (Field::RemoteAddress, Condition::Network(network)) => Some(match network.prefix_len() {
            length if length == network.max_prefix_len() => network.addr().to_string(),
            _ => network.to_string(),
        }),
        (Field::RemoteName, Condition::Text(_)) => Some(test.written.trim_matches('"').to_owned()),
        _ => None,
    })?;
    let target = Target::parse(&target, None, None).ok()?;
    let stretch = required.iter().find_map(|test| match (test.field, &test.condition) {
        (Field::ProcessStart, Condition::Times(stretch)) => Some(*stretch),
        _ => None,
    })?;
    let Stretch { from, to } = stretch;
    let question = Question { target, window: Window::new(from, to.min(now)).ok()? };
    let Question { target, window } = question;
    Some(format!("alibi who {} --from {} --to {}", shell(&target.to_string()), window.from(), window.to()))
}

/// As one word of a shell.
pub fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
