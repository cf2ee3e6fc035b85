//! What a query in the search language lists: which hosts are meant, what each of them is asked, and what may be missing.
//!
//! A listing proves nothing about what it does not list. All that may have kept something from it is said beside it: hosts that
//! never answered, gaps in what they recorded, records that cannot be read, bounds that were met.

use std::collections::HashMap;

use alibi_proto::{
    clock::Difference, coverage::Facet, id::HostId, time::Timestamp, transport::MESSAGE_BYTES_MAX,
    window::Window, wire,
};
use tonic::Status;

use super::{Answered, Service, about, store_status};
use crate::{
    clock,
    search::{
        advice,
        cursor::{ListingCursor, Place},
        document::{Document, Seen, Truth, by_host},
        fields::{Field, Subject},
        query::{self, Searched},
        time::Stretch,
        tree::{Condition, Test, Tree},
    },
    store::{
        Damage, FollowedAgent, StoreError,
        listing::{FlowOrder, HostStretch},
    },
};

mod rows;

/// Rows of a page.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;
/// Bytes of a page's rows: where there are more, it ends there.
const PAGE_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
/// Reasons that are told of why something may be missing.
const REASONS_MAX: usize = 64;

/// What is asked, of processes or of flow records.
#[derive(Clone, Debug)]
pub(super) struct AskedListing {
    searched: Searched,
    query: String,
    scope: wire::HostScope,
    window: (Option<u64>, Option<u64>),
    limit: u32,
    cursor: Option<String>,
    order: FlowOrder,
}

impl From<wire::SearchRequest> for AskedListing {
    fn from(request: wire::SearchRequest) -> Self {
        Self {
            searched: Searched::Processes,
            query: request.query,
            scope: request.scope.unwrap_or_default(),
            window: (request.from_ns, request.to_ns),
            limit: request.limit,
            cursor: request.cursor,
            order: FlowOrder::Newest,
        }
    }
}

impl From<wire::FlowsRequest> for AskedListing {
    fn from(request: wire::FlowsRequest) -> Self {
        let order = match request.order() {
            wire::FlowOrder::Unspecified | wire::FlowOrder::Newest => FlowOrder::Newest,
            wire::FlowOrder::Oldest => FlowOrder::Oldest,
            wire::FlowOrder::Bytes => FlowOrder::MostBytes,
        };
        Self {
            searched: Searched::Flows,
            query: request.query,
            scope: request.scope.unwrap_or_default(),
            window: (request.from_ns, request.to_ns),
            limit: request.limit,
            cursor: request.cursor,
            order,
        }
    }
}

impl AskedListing {
    /// For the audit log.
    pub(super) fn in_words(&self) -> String {
        let mut words = format!("{:?}", self.query);
        for (flag, time) in [("--from", self.window.0), ("--to", self.window.1)] {
            let time = time.map(|time| format!(" {flag} {}", Timestamp::from_nanos(time)));
            words.push_str(&time.unwrap_or_default());
        }
        words.push_str(&super::scope_in_words(Some(&self.scope)));
        if self.cursor.is_some() {
            words.push_str(" (a further page)");
        }
        words
    }

    /// What a cursor is bound to.
    fn bound_to(&self) -> Vec<&str> {
        let order = match (self.searched, self.order) {
            (Searched::Processes, _) => "processes",
            (Searched::Flows, FlowOrder::Newest) => "flows, newest",
            (Searched::Flows, FlowOrder::Oldest) => "flows, oldest",
            (Searched::Flows, FlowOrder::MostBytes) => "flows, bytes",
        };
        let user = self.scope.user.iter().flat_map(|user| ["user", user]);
        let scope = &self.scope;
        let words = [("host", &scope.hosts), ("tag", &scope.tags), ("system", &scope.systems)];
        let scope =
            words.into_iter().flat_map(|(word, names)| names.iter().flat_map(move |name| [word, name]));
        [order, &self.query].into_iter().chain(user).chain(scope).collect()
    }

    /// Checks it.
    fn check(&self, clock_now: Timestamp) -> Result<Question, Status> {
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let cursor = self.cursor.as_ref().map(|cursor| ListingCursor::read(cursor, &self.bound_to()));
        let cursor = cursor.transpose().map_err(|error| invalid(&error))?;
        let now = cursor.map_or(clock_now, |cursor| cursor.now);
        let window = match (cursor, self.window) {
            (Some(cursor), _) => cursor.window,
            (None, (None, None)) => Stretch::EVER,
            (None, (Some(from), Some(to))) => {
                let [from, to] = [from, to].map(Timestamp::from_nanos);
                let window = Window::new(from, to).map_err(|error| invalid(&error))?;
                window.not_wholly_in_the_future(now).map_err(|error| invalid(&error))?;
                Stretch { from, to: before(to) }
            }
            _ => return Err(Status::invalid_argument("a window has both a beginning and an end: give both")),
        };
        let tree = query::parse(&self.query, self.searched, now).map_err(|error| invalid(&error))?;
        let limit = match self.limit as usize {
            0 => LIMIT_DEFAULT,
            limit if limit <= LIMIT_MAX => limit,
            limit => {
                return Err(Status::invalid_argument(format!(
                    "a page of {limit} rows is asked for, and may have {LIMIT_MAX}: ask for less and go on with --cursor"
                )));
            }
        };
        Ok(Question {
            warnings: advice::warnings(&tree, self.searched, now),
            understood: tree.to_string(),
            tree: within(tree, window, self.searched),
            now,
            window,
            after: cursor.map(|cursor| cursor.place),
            limit,
        })
    }
}

const fn before(instant: Timestamp) -> Timestamp {
    Timestamp::from_nanos(instant.as_nanos().saturating_sub(1))
}

/// The query, and that what it finds was there in the window: a record's connection lived, or a process ran.
fn within(tree: Tree, window: Stretch, searched: Searched) -> Tree {
    if window == Stretch::EVER {
        return tree;
    }
    let test = |field, condition| Tree::Test(Test { field, condition, written: String::new() });
    let times = |from, to| Condition::Times(Stretch { from, to });
    let ran = match searched {
        Searched::Flows => vec![test(Field::ConnectionActivity, Condition::Times(window))],
        Searched::Processes => vec![
            test(Field::ProcessStart, times(Timestamp::ZERO, window.to)),
            Tree::Or(vec![
                Tree::Not(Box::new(test(Field::ProcessEnd, Condition::Exists))),
                test(Field::ProcessEnd, times(window.from, Timestamp::MAX)),
            ]),
        ],
    };
    Tree::And([vec![tree], ran].concat())
}

/// A listing that can be made.
struct Question {
    tree: Tree,
    understood: String,
    warnings: Vec<advice::Warning>,
    now: Timestamp,
    window: Stretch,
    after: Option<Place>,
    limit: usize,
}

/// A host that is meant.
struct Meant {
    name: String,
    /// Its clock less the collector's.
    clock: Difference,
    is_measured: bool,
}

impl Meant {
    /// A document of it, of which nothing was looked up.
    fn document(&self, host: HostId, searched: Searched) -> Document<'_> {
        Document {
            searched,
            host,
            host_name: &self.name,
            clock: self.clock,
            process: Seen::NotYet,
            parent: Seen::NotYet,
            connections: Seen::NotYet,
        }
    }

    fn reference(&self, host: HostId) -> wire::HostReference {
        let clock = |value| self.is_measured.then_some(value);
        wire::HostReference {
            host: host.as_bytes().to_vec(),
            name: self.name.clone(),
            clock_offset_ns: clock(self.clock.offset()),
            clock_bound_ns: self.is_measured.then_some(self.clock.bound()),
        }
    }
}

/// The hosts that are meant, and why something of them may be missing.
#[derive(Default)]
struct Scene {
    hosts: HashMap<HostId, Meant>,
    reasons: Vec<String>,
}

impl Scene {
    /// By each host's own clock.
    fn stretches(&self, stretch: Stretch) -> Vec<HostStretch> {
        let of_one = |(host, meant): (&HostId, &Meant)| HostStretch {
            host: *host,
            stretch: if stretch == Stretch::EVER { stretch } else { by_host(stretch, meant.clock) },
        };
        self.hosts.iter().map(of_one).collect()
    }
}

impl Service {
    pub(super) async fn answer_search(
        &self,
        asked: AskedListing,
    ) -> Result<Answered<wire::SearchResponse>, Status> {
        let question = asked.check(clock::now())?;
        self.wait_for_news(&asked, &question).await?;
        self.blocking(move |service| service.list_processes(&asked, &question)).await
    }

    pub(super) async fn answer_flows(
        &self,
        asked: AskedListing,
    ) -> Result<Answered<wire::FlowsResponse>, Status> {
        let question = asked.check(clock::now())?;
        self.wait_for_news(&asked, &question).await?;
        self.blocking(move |service| service.list_flows(&asked, &question)).await
    }

    /// The first page waits a moment for what has just happened, as `who` does.
    async fn wait_for_news(&self, asked: &AskedListing, question: &Question) -> Result<(), Status> {
        if question.after.is_some() {
            return Ok(());
        }
        let until = question.window.to.min(question.now);
        self.await_until(Some(asked.scope.clone()), None, until).await
    }

    /// The hosts that the scope and the query mean. `stretch` is when something may be that is listed, in the collector's
    /// time.
    fn scene(
        &self,
        asked: &AskedListing,
        question: &Question,
        stretch: Option<Stretch>,
    ) -> Result<Scene, Status> {
        let window = Window::new(question.window.from, question.window.to).ok();
        let window = window.filter(|_| question.window != Stretch::EVER);
        let agents = self.in_scope(Some(asked.scope.clone()), window)?;
        let mut scene = Scene::default();
        for FollowedAgent { address, host } in agents {
            let Some((description, progress)) = host else {
                scene.reasons.push(format!("{address} has never answered"));
                continue;
            };
            let host = description.host;
            let clocks = self.store.host_clock(host, clock::now()).map_err(store_status)?;
            let over = stretch.and_then(|stretch| Window::new(stretch.from, after(stretch.to)).ok());
            let over = over.map(|window| clocks.over(window));
            let measured = match &over {
                Some(over) => over.difference.map(Difference::balanced),
                None => clocks.at(question.now),
            };
            let meant = Meant {
                name: description.name.clone(),
                clock: measured.unwrap_or_default(),
                is_measured: measured.is_some(),
            };
            if question.tree.holds(&meant.document(host, asked.searched)) == Truth::No {
                continue;
            }
            if over.is_some_and(|over| !over.unmeasured.is_empty()) || !meant.is_measured {
                scene.reasons.push(format!(
                    "{}: its clock was not measured in all of that time, so its times may be others",
                    meant.name
                ));
            }
            for facet in facets(&question.tree, asked.searched) {
                let gap = match stretch {
                    Some(stretch) => {
                        let own =
                            by_host(Stretch { to: stretch.to.min(question.now), ..stretch }, meant.clock);
                        self.gap(host, facet, own, progress.known_until).map_err(store_status)?
                    }
                    None => None,
                };
                scene.reasons.extend(gap.map(|gap| format!("{}: {gap}", meant.name)));
            }
            scene.hosts.insert(host, meant);
        }
        if stretch.is_none() {
            scene.reasons.push(
                "no time is asked about: what happened in gaps of the recording, or is no longer kept, is not listed"
                    .to_owned(),
            );
        }
        Ok(scene)
    }

    /// That a host did not record all of a stretch of its own time, in words; none where it did.
    fn gap(
        &self,
        host: HostId,
        facet: Facet,
        stretch: Stretch,
        known_until: Option<Timestamp>,
    ) -> Result<Option<String>, StoreError> {
        let Ok(window) = Window::new(stretch.from, after(stretch.to)) else { return Ok(None) };
        let coverage = match self.store.coverage(host, facet) {
            Ok(coverage) => coverage,
            Err(StoreError::Damaged { what, problem }) => {
                return Ok(Some(format!("a stored {what} is damaged: {problem}")));
            }
            Err(error) => return Err(error),
        };
        let gaps = coverage.gaps(facet, window, known_until);
        let Some(first) = gaps.first() else { return Ok(None) };
        let more = match gaps.len() {
            1 => String::new(),
            count => format!(", and {} more gaps", count - 1),
        };
        Ok(Some(format!(
            "{facet} were not recorded completely in that time: {} from {:.3} until {:.3}{more}",
            first.grade, first.from, first.to
        )))
    }
}

const fn after(instant: Timestamp) -> Timestamp {
    Timestamp::from_nanos(instant.as_nanos().saturating_add(1))
}

/// What the listing needs to have been recorded.
fn facets(tree: &Tree, searched: Searched) -> Vec<Facet> {
    let of_connections =
        searched == Searched::Flows || tree.mentions(&|about| about.subject == Subject::Connection);
    let of_processes =
        searched == Searched::Processes || tree.mentions(&|about| about.subject == Subject::Process);
    let names = tree.mentions(&|about| about.field == Field::RemoteName);
    [(of_processes, Facet::Processes), (of_connections, Facet::Connections), (names, Facet::Names)]
        .into_iter()
        .filter_map(|(is_needed, facet)| is_needed.then_some(facet))
        .collect()
}

/// What is said beside a page.
fn listing(asked: &AskedListing, question: &Question, scene: Scene, page: PageEnd) -> wire::Listing {
    let PageEnd { next, cut, looked_at, damage } = page;
    let mut reasons: Vec<String> = cut.iter().map(|cut| (*cut).to_owned()).collect();
    for Damage { from, to, reason } in &damage {
        tracing::error!(%from, %to, reason, "records are damaged");
    }
    reasons.extend(damage.into_iter().map(|damage| damage.reason));
    reasons.extend(scene.reasons);
    let left_out = reasons.len().saturating_sub(REASONS_MAX) as u64;
    reasons.truncate(REASONS_MAX);
    let cursor = next.map(|place| {
        ListingCursor { now: question.now, window: question.window, place }.write(&asked.bound_to())
    });
    let warning = |warning: &advice::Warning| wire::SearchWarning {
        kind: warning.kind.to_owned(),
        message: warning.message.clone(),
        instead: warning.instead.clone(),
        commands: warning.commands.clone(),
    };
    wire::Listing {
        understood: question.understood.clone(),
        now_ns: question.now.as_nanos(),
        warnings: question.warnings.iter().map(warning).collect(),
        may_miss: reasons,
        may_miss_left_out: left_out,
        cursor,
        cut: cut.is_some(),
        looked_at,
    }
}

/// How a page ended.
struct PageEnd {
    next: Option<Place>,
    cut: Option<&'static str>,
    looked_at: u64,
    damage: Vec<Damage>,
}
