//! Answers, held against what truly happened.
//!
//! A `clear` where somebody talked, or of a time that was not recorded; a `talked` where nobody did; a process or a connection
//! that is missed, or that never was; and an `unknown` where all was recorded and received, are faults. Only where a name is
//! asked about may `unknown` stand where the truth knows better, since a name is no proof: it is counted.
//!
//! The truth is not kept: the history of each laptop is made again, once for all questions. Pure but for the [`Asker`].

mod asker;
mod questions;
mod truth;

use std::{collections::BTreeMap, fmt, sync::Arc};

use alibi_proto::{
    id::HostBoot,
    question::{Answer, HostAnswer, Verdict},
};
use serde::Serialize;

pub use asker::Asker;
pub use questions::{Asked, Questions, What};
pub use truth::{Alive, HostTruth};

use super::model::{Plan, World, number_of};

/// Faults that are told in full; the others are counted.
const FAULTS_TOLD: usize = 20;

/// What came of some questions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// Questions.
    pub questions: usize,
    /// Answers for a host each.
    pub verdicts: usize,
    /// Of these, `talked`.
    pub talked: usize,
    /// `clear`.
    pub clear: usize,
    /// `unknown`, where something went unrecorded.
    pub unknown: usize,
    /// `unknown`, where all was recorded, but a name is no proof.
    pub unproven: usize,
    /// Answers that were too long to be given whole: their connections were not compared.
    pub cut: usize,
    /// Connections that an answer showed, each of them true.
    pub connections: usize,
    /// How many faults.
    pub faults: usize,
    /// The first of them, in words.
    pub told: Vec<String>,
}

impl Checked {
    /// Both together.
    pub fn join(&mut self, other: Self) {
        self.questions += other.questions;
        self.verdicts += other.verdicts;
        self.talked += other.talked;
        self.clear += other.clear;
        self.unknown += other.unknown;
        self.unproven += other.unproven;
        self.cut += other.cut;
        self.connections += other.connections;
        self.faults += other.faults;
        self.told.extend(other.told);
        self.told.truncate(FAULTS_TOLD);
    }

    fn fault(&mut self, of: &Asked, laptop: &str, what: &str) {
        self.faults += 1;
        if self.told.len() < FAULTS_TOLD {
            self.told.push(format!("{laptop}: {what}, asked {of}"));
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { questions, verdicts, talked, clear, unknown, unproven, cut, connections, .. } = self;
        writeln!(
            f,
            "  {questions} questions, {verdicts} verdicts: {talked} talked, {clear} clear, {unknown} unknown and rightly so, \
             {unproven} unknown by name"
        )?;
        writeln!(
            f,
            "  {connections} connections compared; {cut} answers too long to compare theirs; {} faults",
            self.faults
        )?;
        self.told.iter().try_for_each(|fault| writeln!(f, "  FAULT {fault}"))
    }
}

/// A question that was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The question.
    pub asked: Asked,
    /// The answer.
    pub answer: Answer,
}

/// Holds answers against the truth of the laptops of these numbers. `boot_id` is that of all of them.
pub fn check(
    plan: &Plan,
    world: &Arc<World>,
    laptops: std::ops::Range<u32>,
    boot_id: &str,
    answers: &[Answered],
) -> Checked {
    check_against(plan, world, laptops, boot_id, answers, |_, truths| truths)
}

/// The same against an altered truth: what a laptop of this number truly did is what `alter` makes of it.
pub fn check_against(
    plan: &Plan,
    world: &Arc<World>,
    laptops: std::ops::Range<u32>,
    boot_id: &str,
    answers: &[Answered],
    alter: impl Fn(u32, Vec<HostTruth>) -> Vec<HostTruth>,
) -> Checked {
    let mut checked = Checked { questions: answers.len(), ..Checked::default() };
    let by_number: Vec<BTreeMap<u32, &HostAnswer>> = answers
        .iter()
        .map(|Answered { answer, .. }| {
            answer.hosts.iter().filter_map(|host| Some((number_of(&host.name)?, host))).collect()
        })
        .collect();
    let asked: Vec<&Asked> = answers.iter().map(|answered| &answered.asked).collect();
    let mut concerned = truth::Concerned::new(world, &asked);
    for number in laptops {
        let truths = alter(number, truth::of(plan, world, number, &mut concerned));
        for ((Answered { asked, .. }, hosts), truth) in answers.iter().zip(&by_number).zip(truths) {
            let is_asked = asked.hosts.is_empty() || asked.hosts.contains(&number);
            match hosts.get(&number) {
                Some(host) => judge(&mut checked, asked, host, boot_id, &truth),
                None if is_asked => {
                    checked.fault(asked, &super::model::name_of(number), "it is not in the answer");
                }
                None => {}
            }
        }
    }
    checked
}

fn judge(checked: &mut Checked, asked: &Asked, answer: &HostAnswer, boot_id: &str, truth: &HostTruth) {
    checked.verdicts += 1;
    let name = answer.name.as_str();
    match answer.verdict {
        Verdict::Talked => {
            checked.talked += 1;
            if truth.may.is_empty() {
                checked.fault(asked, name, "talked, and nobody did");
            }
        }
        Verdict::Clear => {
            checked.clear += 1;
            if let Some(alive) = truth.must.first() {
                checked.fault(asked, name, &format!("clear, and there was {alive}"));
            } else if truth.is_unrecorded {
                checked.fault(asked, name, "clear, and not all was recorded");
            }
        }
        Verdict::Unknown if truth.may_be_unrecorded => checked.unknown += 1,
        Verdict::Unknown if asked.what.is_provable() => {
            let why = answer.gaps.first().map_or_else(String::new, |gap| format!(": {:?}", gap.grade));
            checked.fault(asked, name, &format!("unknown, and all was recorded and received{why}"));
        }
        Verdict::Unknown => checked.unproven += 1,
    }
    if answer.records_left_out > 0 {
        checked.cut += 1;
    } else {
        compare(checked, asked, answer, boot_id, truth);
    }
}

/// Whether the connections that the answer shows are those that there were, and their processes, too.
fn compare(checked: &mut Checked, asked: &Asked, answer: &HostAnswer, boot_id: &str, truth: &HostTruth) {
    let Some(host) = answer.host else { return };
    let (boot, name) = (HostBoot::new(host, boot_id), answer.name.as_str());
    let uid = |alive: &Alive| {
        let socket = alive.socket;
        boot.connection(socket.protocol, socket.remote, socket.socket)
    };
    let mut may: BTreeMap<_, &Alive> = truth.may.iter().map(|alive| (uid(alive), alive)).collect();
    for process in &answer.processes {
        for connection in &process.connections {
            checked.connections += 1;
            let flow = &connection.flow;
            match may.remove(&flow.connection) {
                None => {
                    let what =
                        format!("a connection {} → {} that never was, or twice", flow.local, flow.remote);
                    checked.fault(asked, name, &what);
                }
                Some(alive) => {
                    let is_owner = process.uid == Some(boot.process(alive.owner.pid, alive.owner.start));
                    let path = process.life.as_ref().and_then(|life| life.record.image.path.as_deref());
                    if !is_owner || path != Some(alive.path) {
                        checked.fault(asked, name, &format!("{path:?} as the owner of {alive}"));
                    }
                }
            }
        }
    }
    // What is left was not shown.
    if asked.what.is_provable() {
        for alive in truth.must.iter().filter(|alive| alive.is_recorded && may.contains_key(&uid(alive))) {
            checked.fault(asked, name, &format!("{}, without {alive}", answer.verdict.word()));
        }
    }
}

#[cfg(test)]
mod tests;
