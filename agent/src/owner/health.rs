//! What is not as it should be. Pure.

use std::time::Duration;

use alibi_proto::coverage::Grade;

use super::{Facts, Now, link::State};

/// How long the source may be silent, beside its period, before that is said.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// In words, each in a line; none if all is well.
pub(super) fn trouble(facts: &Facts, now: &Now<'_>) -> Vec<String> {
    let mut trouble = Vec::new();
    for described in &facts.source.facets {
        let said = now.progress.grades.iter().find(|said| said.facet == described.facet);
        if let Some(said) = said.filter(|said| badness(&said.grade) > badness(&described.grade)) {
            let (facet, grade) = (described.facet, said.grade.word());
            trouble.push(format!(
                "{facet} are {grade}, and should be {}: {}",
                described.grade.word(),
                said.grade.reason()
            ));
        }
    }
    if let Some(problem) = &now.progress.trouble {
        trouble.push(format!("nothing can be written to the disk: {problem}"));
    }
    let heard = now.progress.heard;
    let silence = Duration::from_nanos(now.now.boot_ns.saturating_sub(heard.boot_ns));
    if heard.boot_ns > 0 && now.ended.is_none() && silence > facts.period + SILENCE_MAX {
        trouble.push(format!("nothing was recorded since {:.0}: the source is silent", heard.wall));
    }
    trouble.extend(of_the_link(now));
    trouble
}

fn of_the_link(now: &Now<'_>) -> Vec<String> {
    let state = match &now.link.state {
        State::NotEnrolled | State::Connected { .. } => None,
        State::NotConnected { collector, reason } => Some(format!("not connected to {collector}: {reason}")),
        State::Refused { collector, reason } => Some(format!("refused by {collector}: {reason}")),
    };
    let ended = now.link.certificate_until.filter(|until| *until <= now.now.wall);
    let ended = ended.map(|until| format!("the certificate of this host was valid until {until:.0}"));
    state.into_iter().chain(ended).collect()
}

fn badness(grade: &Grade) -> u8 {
    match grade {
        Grade::Complete => 0,
        Grade::Sampled { .. } => 1,
        Grade::Doubtful { .. } => 2,
        Grade::Lost { .. } => 3,
        Grade::NotRecorded { .. } => 4,
    }
}
