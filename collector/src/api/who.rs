//! Who talked to X during W, of all hosts in a scope: what each is asked, what is found of all of them, and the verdict of each.

use std::{collections::HashMap, sync::Arc};

use alibi_proto::{
    clock::HostClock,
    coverage::{self, CoverageChange, Facet, Grade, Scope, Timeline},
    flow::FlowRecord,
    host::HostDescription,
    id::HostId,
    question::{
        Answer, Asked, Evidence, HostAnswer, NAME_ADDRESSES_MAX, NameEvidence, NamedRemotes, Question,
        judge_asked,
    },
    time::Timestamp,
    transport::MESSAGE_BYTES_MAX,
    wire,
};
use prost::Message as _;
use tonic::Status;

use super::{
    Service,
    parts::in_parts,
    store_status,
    unanswered::{never_answered, unanswerable},
};
use crate::{
    clock,
    store::{Bounded, Damage, FlowsOfAll, HostQuestion, Progress, StoreError},
};

/// Records of one host that an answer is made of; where many hosts are asked, those of all of them together, but of each so many
/// at least. What is left out is counted, and never rules a host out.
const RECORDS_MAX: usize = 2_000;
const RECORDS_OF_ALL_MAX: usize = 200_000;
const RECORDS_MIN: usize = 16;
/// Connections that a whole answer lists.
const ANSWER_CONNECTIONS_MAX: usize = 10_000;
/// Bytes of a whole answer up to which it is given in full; the rest is given without arguments and in few gaps.
const ANSWER_BYTES_FULL: usize = MESSAGE_BYTES_MAX;
/// Gaps of a host in the rest of a long answer.
const GAPS_IN_SHORT_MAX: usize = 4;

/// A host that is asked.
struct Asking<'a> {
    description: &'a HostDescription,
    known_until: Option<Timestamp>,
    clock: HostClock,
    /// In the host's own time.
    asked: Asked,
    remotes: NamedRemotes,
}

impl Asking<'_> {
    const fn question(&self) -> HostQuestion<'_> {
        HostQuestion { host: self.description.host, question: &self.asked.question, remotes: &self.remotes }
    }
}

/// What was found of one host.
#[derive(Default)]
struct Found {
    flows: Bounded<FlowRecord>,
    unnamed_since: Option<Timestamp>,
    connections: Arc<Timeline>,
    /// Where a name is asked for.
    names: Option<Arc<Timeline>>,
}

impl Service {
    /// What the name in the question stands for in the fleet; nothing if it has none.
    pub(super) fn remotes(&self, question: &Question) -> Result<NamedRemotes, StoreError> {
        let Some(name) = question.target.name() else { return Ok(NamedRemotes::default()) };
        let found = self.store.addresses_of(name, question.window.to(), NAME_ADDRESSES_MAX)?;
        Ok(NamedRemotes {
            addresses: found.rows.into_iter().collect(),
            left_out: found.left_out > 0,
            hellos: Vec::new(),
        })
    }

    /// The answer for every host in the scope. It may take long, and waits for nobody to report.
    ///
    /// # Errors
    /// When a host that is named is not followed, or the store cannot be read.
    pub fn who(&self, question: Question, scope: Option<wire::HostScope>) -> Result<Answer, Status> {
        // How far each host is known is read with the hosts, and so before the names, the clocks and the records; coverage
        // comes last.
        let agents = self.in_scope(scope, Some(question.window))?;
        let remotes = self.remotes(&question).map_err(store_status)?;
        let mut asking = self.ask(&question, &remotes, agents.iter().filter_map(|agent| agent.host.as_ref()));
        self.ask_for_hellos(&question, &mut asking).map_err(store_status)?;
        let (found, damage) = self.find(&question, &asking).map_err(store_status)?;
        for Damage { from, to, reason } in &damage {
            tracing::error!(%from, %to, reason, "flow records are damaged");
        }
        let answers = in_parts(asking.into_iter().zip(found).collect(), |(asking, found)| {
            self.answer_for(&asking?, found?, &damage)
        });

        let mut answers = answers.into_iter();
        let mut hosts = Vec::with_capacity(agents.len());
        let mut connections_left = ANSWER_CONNECTIONS_MAX;
        let mut bytes = 0;
        for agent in &agents {
            let answer = match &agent.host {
                Some(_) => answers.next(),
                None => Some(Ok(never_answered(&question, agent.address.clone()))),
            };
            let mut answer = match answer.expect("each that answered was asked") {
                // What is damaged of one host keeps nobody from an answer about the others.
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!(%error, agent = agent.address, "what is stored of a host is damaged");
                    unanswerable(&question, agent.clone(), &error)
                }
                answer => answer.map_err(store_status)?,
            };
            keep_within(&mut answer, &mut connections_left);
            bytes += bytes_of(&answer);
            if bytes > ANSWER_BYTES_FULL {
                shorten(&mut answer);
            }
            hosts.push(answer);
        }
        hosts.sort_unstable_by(|a, b| {
            (a.verdict as u8, &a.name, a.host).cmp(&(b.verdict as u8, &b.name, b.host))
        });
        Ok(Answer { addresses: remotes.used(&question), question, hosts })
    }

    /// What is asked of each host: the question in its own time, and what the name in it stands for.
    fn ask<'a>(
        &self,
        question: &Question,
        remotes: &NamedRemotes,
        hosts: impl Iterator<Item = &'a (Arc<HostDescription>, Progress)>,
    ) -> Vec<Result<Asking<'a>, StoreError>> {
        let hosts: Vec<_> = hosts.collect();
        let ids: Vec<HostId> = hosts.iter().map(|(description, _)| description.host).collect();
        let clocks = self.store.host_clocks(&ids, clock::now());
        in_parts(hosts.into_iter().zip(clocks).collect(), |((description, progress), clock)| {
            let clock = clock?;
            let asked = question.asked_of(&clock);
            let known_until = progress.known_until;
            Ok(Asking { description, known_until, clock, asked, remotes: remotes.clone() })
        })
    }

    /// Tells each of the hosts its own ClientHellos that asked for the name.
    fn ask_for_hellos(
        &self,
        question: &Question,
        asking: &mut [Result<Asking<'_>, StoreError>],
    ) -> Result<(), StoreError> {
        let Some(name) = question.target.name() else { return Ok(()) };
        let before = |asking: &Asking<'_>| (asking.description.host, asking.asked.question.window.to());
        let asked: Vec<(HostId, Timestamp)> = asking.iter().flatten().map(before).collect();
        let mut found = self.store.server_names(&asked, name, NAME_ADDRESSES_MAX)?;
        for host in asking {
            let Ok(asking) = host else { continue };
            match found.remove(&asking.description.host) {
                Some(Ok(hellos)) => {
                    asking.remotes.left_out |= hellos.left_out > 0;
                    asking.remotes.hellos = hellos.rows;
                }
                Some(Err(error)) => *host = Err(error),
                None => {}
            }
        }
        Ok(())
    }

    /// What is found of each host, and what is damaged of all.
    #[expect(clippy::type_complexity, reason = "one of each host, and what they have in common")]
    fn find(
        &self,
        question: &Question,
        asking: &[Result<Asking<'_>, StoreError>],
    ) -> Result<(Vec<Result<Found, StoreError>>, Vec<Damage>), StoreError> {
        let asked: Vec<HostQuestion<'_>> = asking.iter().flatten().map(Asking::question).collect();
        let FlowsOfAll { by_host: mut flows, mut damage } =
            self.store.flows_of_all(&asked, records_of_each(asked.len()))?;
        let mut unnamed_since = HashMap::new();
        let is_named = question.target.name().is_some();
        if is_named {
            let (of_hosts, lost) = self.store.oldest_unnamed(&asked)?;
            unnamed_since = of_hosts;
            damage.extend(lost);
        }
        // Last, as the store asks for.
        let hosts: Vec<HostId> = asked.iter().map(|asked| asked.host).collect();
        let connections = self.store.coverages(&hosts, Facet::Connections);
        let names = is_named.then(|| self.store.coverages(&hosts, Facet::Names));
        let mut covered = of_each(connections, names);
        let found = asking.iter().map(|asking| {
            let Ok(asking) = asking else { return Ok(Found::default()) };
            let (connections, names) = covered.next().expect("each that is asked is looked up")?;
            let host = asking.description.host;
            Ok(Found {
                flows: flows.remove(&host).unwrap_or_default(),
                unnamed_since: unnamed_since.get(&host).copied(),
                connections,
                names,
            })
        });
        Ok((found.collect(), damage))
    }

    fn answer_for(
        &self,
        asking: &Asking<'_>,
        found: Found,
        damage: &[Damage],
    ) -> Result<HostAnswer, StoreError> {
        let Asking { description, known_until, clock, asked, remotes } = asking;
        let (host, until) = (description.host, asked.question.window.to());
        let Found { flows, unnamed_since, connections, names } = found;
        let evidence = Evidence {
            host: Some(host),
            name: description.name.clone(),
            clock,
            connections: &without(connections, damage),
            known_until: *known_until,
            names: names.as_deref().map(|coverage| NameEvidence { coverage, remotes, unnamed_since }),
            flows: flows.rows,
            flows_left_out: flows.left_out,
        };
        let mut failed = None;
        let answer = judge_asked(asked, evidence, |uid| match self.store.process(host, uid, until) {
            Ok(life) => life,
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        failed.map_or(Ok(answer), Err)
    }
}

/// What is covered of each host. Where one of a host's cannot be read, that is of this host alone: the others keep their own.
fn of_each(
    connections: Vec<Result<Arc<Timeline>, StoreError>>,
    names: Option<Vec<Result<Arc<Timeline>, StoreError>>>,
) -> impl Iterator<Item = Result<(Arc<Timeline>, Option<Arc<Timeline>>), StoreError>> {
    let mut names = names.map(Vec::into_iter);
    connections.into_iter().map(move |connections| {
        let names = names.as_mut().and_then(Iterator::next).transpose();
        Ok((connections?, names?))
    })
}

fn records_of_each(hosts: usize) -> usize {
    (RECORDS_OF_ALL_MAX / hosts.max(1)).clamp(RECORDS_MIN, RECORDS_MAX)
}

/// The coverage, where some records may be missing that are damaged.
fn without(coverage: Arc<Timeline>, damage: &[Damage]) -> Arc<Timeline> {
    if damage.is_empty() {
        return coverage;
    }
    let mut coverage = Timeline::clone(&coverage);
    for Damage { from, to, reason } in damage {
        coverage.apply(&CoverageChange {
            facet: Facet::Connections,
            grade: Grade::NotRecorded { reason: reason.clone() },
            from: *from,
            to: Some(*to),
            scope: None,
            announced_from: None,
        });
    }
    Arc::new(coverage)
}

/// Keeps what a whole answer lists within its bound; what is left out is counted, and the verdict stands.
fn keep_within(answer: &mut HostAnswer, connections_left: &mut usize) {
    for process in &mut answer.processes {
        let kept = process.connections.len().min(*connections_left);
        *connections_left -= kept;
        answer.records_left_out += (process.connections.len() - kept) as u64;
        process.connections.truncate(kept);
    }
}

/// How many bytes an answer takes in a message; of one in which there is nothing to leave out, no fewer than it may take.
fn bytes_of(answer: &HostAnswer) -> usize {
    const OF_FEW: usize = 256;
    if !answer.processes.is_empty() {
        return wire::HostAnswer::from(answer.clone()).encoded_len();
    }
    let gaps = answer.gaps.iter().map(|gap| OF_FEW + gap.grade.reason().len());
    let words =
        |scope: &Arc<Scope>| OF_FEW + scope.source.len() + scope.covers.len() + scope.cannot_see.len();
    let scopes = answer.scopes.iter().map(words);
    OF_FEW + answer.name.len() + gaps.chain(scopes).sum::<usize>()
}

/// Leaves out what an analyst can ask for in a narrower question. The verdict stands, and every gap is still covered.
fn shorten(answer: &mut HostAnswer) {
    for life in answer.processes.iter_mut().filter_map(|process| process.life.as_mut()) {
        let before_last = life.executions.len().saturating_sub(1);
        life.executions.drain(..before_last);
        life.executions_left_out += before_last as u64;
        for image in life.images_mut() {
            image.arguments_truncated |= !image.arguments.is_empty();
            image.arguments.clear();
        }
    }
    answer.gaps = coverage::at_most(std::mem::take(&mut answer.gaps), GAPS_IN_SHORT_MAX);
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        coverage::Gap,
        id::ProcessUid,
        process::{ProcessImage, ProcessLife, ProcessRecord},
        question::{ProcessActivity, Verdict},
    };

    use super::*;

    /// Otherwise a host could be cleared by what was recorded of another one.
    #[test]
    fn a_host_that_cannot_be_read_leaves_the_others_what_is_theirs() {
        let timeline = |from: u64| {
            let mut timeline = Timeline::default();
            timeline.apply(&CoverageChange {
                facet: Facet::Names,
                grade: Grade::Complete,
                from: Timestamp::from_secs(from),
                to: None,
                scope: None,
                announced_from: None,
            });
            Arc::new(timeline)
        };
        let damaged = || Err(StoreError::Damaged { what: "coverage record", problem: String::new() });
        let connections = || vec![Ok(timeline(1)), damaged(), Ok(timeline(3)), Ok(timeline(4))];
        let names = vec![Ok(timeline(11)), Ok(timeline(12)), damaged(), Ok(timeline(14))];
        let found: Vec<_> = of_each(connections(), Some(names)).map(Result::ok).collect();
        let own = |first, second| Some((timeline(first), Some(timeline(second))));
        assert_eq!(found, [own(1, 11), None, None, own(4, 14)]);
        let found: Vec<_> = of_each(connections(), None).map(Result::ok).collect();
        let alone = |first| Some((timeline(first), None));
        assert_eq!(found, [alone(1), None, alone(3), alone(4)]);
    }

    #[test]
    fn what_an_answer_is_made_of_is_bounded() {
        for (hosts, want) in [(0, 2_000), (1, 2_000), (100, 2_000), (5_000, 40), (10_000, 20), (100_000, 16)]
        {
            assert_eq!(records_of_each(hosts), want, "{hosts}");
        }
    }

    #[test]
    fn a_long_answer_is_shortened_and_stays_true() {
        let record = ProcessRecord {
            uid: ProcessUid::from_bytes([1; 16]),
            pid: 1,
            parent: None,
            parent_pid: None,
            started: Timestamp::ZERO,
            already_running: false,
            image: ProcessImage { arguments: vec!["x".repeat(60_000)], ..ProcessImage::default() },
        };
        let life = ProcessLife::new(record, None);
        let process = ProcessActivity { uid: Some(life.record.uid), life: Some(life), connections: vec![] };
        let gap = |second: u64| Gap {
            facet: Facet::Connections,
            grade: Grade::Lost { count: 1, reason: "test".into() },
            from: Timestamp::from_secs(second * 2),
            to: Timestamp::from_secs(second * 2 + 1),
        };
        let mut answer = HostAnswer {
            host: None,
            name: "h".into(),
            verdict: Verdict::Talked,
            gaps: (0..100).map(gap).collect(),
            processes: vec![process; 100],
            scopes: vec![],
            known_until: None,
            records_left_out: 0,
            clock: None,
        };
        assert!(wire::HostAnswer::from(answer.clone()).encoded_len() > 6_000_000);
        shorten(&mut answer);
        assert!(wire::HostAnswer::from(answer.clone()).encoded_len() < 20_000);
        let image = &answer.processes[0].life.as_ref().unwrap().record.image;
        assert!(image.arguments.is_empty() && image.arguments_truncated);
        assert_eq!(answer.gaps.len(), GAPS_IN_SHORT_MAX);
        assert_eq!(answer.gaps.iter().map(|gap| gap.grade.count()).sum::<u64>(), 100);
        assert_eq!(answer.gaps.last().unwrap().to, Timestamp::from_secs(199));
    }
}
