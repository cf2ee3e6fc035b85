//! Keeps a timeline within a bound. Whoever can make losses could make it grow without end otherwise.
//!
//! Neighbours become one, which says the worse of both and covers what lies between them. So a reader of the compacted
//! timeline rules out no more than one of the whole, and believes no life for longer. Merged first is what casts doubt
//! on the least time for its age: old time is told in ever larger pieces, and recent time as it was.
//!
//! An interruption ends only where one did: what is open is said anew there. If it ended later, whoever was said to be
//! open shortly before its end would be believed to be gone after it.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use super::{Grade, Loss, Scope, Step, Timeline};
use crate::time::Timestamp;

/// A timeline has at most so many steps and losses together. A laptop that sleeps twenty times a day fills it in a
/// hundred days.
pub const INTERVALS_MAX: usize = 2048;

/// Fewer are not always possible: three steps, and one loss of each kind.
pub(super) const INTERVALS_MIN: usize = 8;

/// Words of a timeline are cut to so many bytes.
pub const WORDS_BYTES_MAX: usize = 1024;

const SEVERAL: &str = "several gaps for several reasons, long past and told as one";
const BETWEEN_SUSPENDS: &str =
    "the host was suspended several times: when exactly is too long past to be kept";
const OR: &str = "; or ";
const SEVERAL_WAYS: &str = "recorded in more ways than are kept of a time so long past";

impl Timeline {
    /// How many steps and losses it is made of.
    pub fn intervals(&self) -> usize {
        self.steps.len() + self.losses.len()
    }

    /// Brings a timeline of more than `intervals_max` intervals below that, and leaves any other as it is. It makes room
    /// for more at once, so that this is seldom done.
    pub fn compact(&mut self, intervals_max: usize) {
        let intervals_max = intervals_max.max(INTERVALS_MIN);
        if self.intervals() <= intervals_max {
            return;
        }
        self.drop_empty_steps();
        self.count_in_losses();
        self.losses.sort_by_key(|loss| (kind(&loss.grade), loss.from, loss.to));
        let wanted = (intervals_max - intervals_max / 4).max(INTERVALS_MIN);
        while self.intervals() > wanted {
            let Some(merger) = self.cheapest() else { return };
            match merger.place {
                Place::Steps(index) => self.merge_steps(index),
                Place::Losses(index) => self.merge_losses(index),
            }
        }
    }

    /// A step of no length says nothing.
    fn drop_empty_steps(&mut self) {
        let begins: Vec<Timestamp> = self.steps.iter().map(|step| step.from).collect();
        let mut next = begins.iter().skip(1);
        self.steps.retain(|step| next.next().is_none_or(|next| step.from < *next));
    }

    /// Steps that become one have one grade: what was counted in them goes on as losses, whose counts are added up.
    fn count_in_losses(&mut self) {
        for index in 1..self.steps.len() {
            let to = self.steps[index].from;
            let step = &mut self.steps[index - 1];
            if let Grade::Lost { count, reason } = &mut step.grade
                && *count > 0
            {
                let grade = Grade::Lost { count: std::mem::take(count), reason: reason.clone() };
                self.losses.push(Loss { from: step.from, to, grade });
            }
        }
    }

    /// The pair of neighbours that is merged next.
    fn cheapest(&self) -> Option<Merger> {
        let latest = self.steps.iter().map(|step| step.from).chain(self.losses.iter().map(|loss| loss.to));
        let latest = latest.max().unwrap_or_default();
        // The newest step is in force: what it says is left to what comes.
        let steps = self.steps.windows(3).enumerate().filter_map(|(index, steps)| {
            let [one, other, next] = steps else { unreachable!("windows of three") };
            if one.grade.interrupts() && !other.grade.interrupts() {
                return None;
            }
            let merged = one.grade.with(&other.grade);
            let doubted = |step: &Step, to| {
                if step.grade == merged { Duration::ZERO } else { doubt(&step.grade, step.from, to) }
            };
            let doubt = doubted(one, other.from) + doubted(other, next.from);
            Some(Merger { place: Place::Steps(index), doubt, age: latest.since(next.from) })
        });
        let losses = self.losses.windows(2).enumerate().filter_map(|(index, losses)| {
            let [one, other] = losses else { unreachable!("windows of two") };
            let same = kind(&one.grade) == kind(&other.grade);
            let to = one.to.max(other.to);
            let between = other.from.since(one.to);
            let doubt = match one.grade {
                Grade::Complete if !between.is_zero() => to.since(one.from),
                _ => between,
            };
            same.then(|| Merger { place: Place::Losses(index), doubt, age: latest.since(to) })
        });
        steps.chain(losses).min_by(Merger::compare)
    }

    /// Makes the step at `index` and the one after it one.
    fn merge_steps(&mut self, index: usize) {
        let other = self.steps.remove(index + 1);
        let one = &mut self.steps[index];
        one.grade = one.grade.with(&other.grade);
        one.scope = match (one.scope.take(), other.scope) {
            (Some(one), Some(other)) => Some(Arc::new(one.with(&other))),
            (one, other) => one.or(other),
        };
    }

    /// Makes the loss at `index` and the one after it one, and keeps them in order.
    fn merge_losses(&mut self, index: usize) {
        let other = self.losses.remove(index + 1);
        let one = self.losses.remove(index);
        let (from, to) = (one.from.min(other.from), one.to.max(other.to));
        let grade = match (one.grade, other.grade) {
            (Grade::Complete, Grade::Complete) if other.from > one.to => {
                Grade::Lost { count: 0, reason: BETWEEN_SUSPENDS.to_owned() }
            }
            (one, other) => one.with(&other),
        };
        let key = (kind(&grade), from, to);
        let at = self.losses.partition_point(|loss| (kind(&loss.grade), loss.from, loss.to) <= key);
        self.losses.insert(at, Loss { from, to, grade });
    }
}

/// Two neighbours that may become one.
struct Merger {
    place: Place,
    /// So much time becomes doubtful by it.
    doubt: Duration,
    /// So long it ended before the latest that is known.
    age: Duration,
}

enum Place {
    Steps(usize),
    Losses(usize),
}

impl Merger {
    /// By doubt in relation to age.
    fn compare(&self, other: &Self) -> Ordering {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let share = |doubt: Duration, age: Duration| u128::from(nanos(doubt)) * (u128::from(nanos(age)) + 1);
        share(self.doubt, other.age).cmp(&share(other.doubt, self.age)).then(other.age.cmp(&self.age))
    }
}

/// Losses of one kind are merged with each other, so that none hides another's count.
fn kind(grade: &Grade) -> u8 {
    match grade {
        Grade::Complete => 0,
        Grade::Sampled { .. } => 1,
        Grade::Doubtful { .. } => 2,
        Grade::Lost { .. } => 3,
        Grade::NotRecorded { .. } => 4,
    }
}

/// How much time becomes doubtful if a stretch of this grade gets a worse one.
fn doubt(grade: &Grade, from: Timestamp, to: Timestamp) -> Duration {
    if *grade == Grade::Complete { to.since(from) } else { Duration::ZERO }
}

impl Grade {
    /// What is true of two stretches that have one grade each.
    fn with(&self, other: &Self) -> Self {
        let one_reason =
            |one: &String, other: &String| if one == other { one.clone() } else { SEVERAL.to_owned() };
        match (self, other) {
            (Self::Lost { count, reason }, Self::Lost { count: more, reason: other }) => {
                Self::Lost { count: count.saturating_add(*more), reason: one_reason(reason, other) }
            }
            (Self::Doubtful { reason }, Self::Doubtful { reason: other }) => {
                Self::Doubtful { reason: one_reason(reason, other) }
            }
            (Self::NotRecorded { reason }, Self::NotRecorded { reason: other }) => {
                Self::NotRecorded { reason: one_reason(reason, other) }
            }
            (one, other) => one.worse(other).clone(),
        }
    }

    /// As a timeline keeps it.
    pub(super) fn bounded(&self) -> Self {
        let mut grade = self.clone();
        if let Self::Doubtful { reason } | Self::Lost { reason, .. } | Self::NotRecorded { reason } =
            &mut grade
        {
            cut(reason);
        }
        grade
    }
}

impl Scope {
    /// What two recordings covered, of which it is not known any more which was when.
    fn with(&self, other: &Self) -> Self {
        Self {
            source: both(&self.source, &other.source),
            covers: both(&self.covers, &other.covers),
            cannot_see: both(&self.cannot_see, &other.cannot_see),
        }
    }

    /// As a timeline keeps it.
    pub(super) fn bounded(&self) -> Self {
        let mut scope = self.clone();
        [&mut scope.source, &mut scope.covers, &mut scope.cannot_see].into_iter().for_each(cut);
        scope
    }
}

/// Both words, each once.
fn both(one: &str, other: &str) -> String {
    let known: Vec<&str> = one.split(OR).collect();
    let more = other.split(OR).filter(|word| !known.contains(word));
    let words = known.iter().copied().chain(more).collect::<Vec<_>>().join(OR);
    if words.len() > WORDS_BYTES_MAX || known.contains(&SEVERAL_WAYS) {
        SEVERAL_WAYS.to_owned()
    } else {
        words
    }
}

fn cut(words: &mut String) {
    words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
}

#[cfg(test)]
mod tests;
