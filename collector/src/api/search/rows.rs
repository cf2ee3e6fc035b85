//! The rows of a listing: what of a process or a record decides, and what of it is told.

use std::{collections::HashMap, rc::Rc};

use alibi_proto::{
    id::{HostId, ProcessUid},
    process::ProcessLife,
    time::Timestamp,
    wire,
};
use prost::Message;
use tonic::Status;

use super::{
    Answered, AskedListing, PAGE_BYTES_MAX, PageEnd, Place, Question, Scene, Searched, Service, Truth, about,
    listing, store_status,
};
use crate::{
    search::{
        document::{Connection, Document, Seen, last_of},
        fields::Field,
        hints::{self, RecordHints},
        time::Stretch,
    },
    store::{
        StoreError,
        listing::{Candidate, FlowListing, ListedFlow, ListedProcess, Page, ProcessListing, RecordSelection},
    },
};

/// Owners of flow records that are kept in memory while a page is made.
const OWNERS_KEPT_MAX: usize = 10_000;

impl Service {
    pub(super) fn list_processes(
        &self,
        asked: &AskedListing,
        question: &Question,
    ) -> Result<Answered<wire::SearchResponse>, Status> {
        let tree = &question.tree;
        let (started, needs) = (hints::started(tree), RecordHints::of_some_connection(tree));
        let times = needs.as_ref().and_then(|needs| needs.times);
        let asked_about = times.or(started).filter(|stretch| stretch.from > Timestamp::ZERO);
        let scene = self.scene(asked, question, asked_about)?;
        let hosts = scene.stretches(started.unwrap_or(Stretch::EVER));
        let record_hosts = scene.stretches(times.unwrap_or(Stretch::EVER));
        let with_parent = tree.mentions(&|about| about.field == Field::ParentName);
        let mut wants = |candidate: &Candidate<'_>| {
            let Some(meant) = scene.hosts.get(&candidate.host) else { return Truth::No };
            tree.holds(&Document {
                process: Seen::Known(Some(candidate.life)),
                parent: Seen::Known(candidate.parent),
                connections: candidate.connections.map_or(Seen::NotYet, Seen::Known),
                ..meant.document(candidate.host, Searched::Processes)
            })
        };
        let mut asking = ProcessListing {
            hosts: &hosts,
            with_record: needs.as_ref().map(|needs| RecordSelection {
                hosts: &record_hosts,
                remotes: needs.remotes.as_deref(),
                port: needs.port,
                protocol: needs.protocol,
            }),
            with_parent,
            after: question.after,
            limit: question.limit,
            wants: &mut wants,
        };
        let Page { rows, next, cut, looked_at, damage } =
            self.store.list_processes(&mut asking).map_err(store_status)?;
        let each = rows.into_iter().map(|row| (row.place, process_row(&scene, row)));
        let (processes, next) = fitting(each, next);
        let hosts = seen(processes.iter().map(|row| row.host.as_ref()));
        let rows = processes.len() as u64;
        let about = about(Some(&asked.scope), hosts);
        let end = PageEnd { next, cut, looked_at, damage };
        let listing = Some(listing(asked, question, scene, end));
        Ok(Answered { response: wire::SearchResponse { processes, listing }, rows, about })
    }

    pub(super) fn list_flows(
        &self,
        asked: &AskedListing,
        question: &Question,
    ) -> Result<Answered<wire::FlowsResponse>, Status> {
        let tree = &question.tree;
        let hints = RecordHints::of_records(tree);
        let asked_about = hints.times.filter(|stretch| stretch.from > Timestamp::ZERO);
        let scene = self.scene(asked, question, asked_about)?;
        let hosts = scene.stretches(hints.times.unwrap_or(Stretch::EVER));
        let mut owners = Owners::new(self, tree.mentions(&|about| about.field == Field::ParentName));
        let mut wants = |host, record: &_| {
            let Some(meant) = scene.hosts.get(&host) else { return Ok(false) };
            let connections = [Connection::of_record(Clone::clone(record))];
            let document =
                Document { connections: Seen::Known(&connections), ..meant.document(host, Searched::Flows) };
            let decided = tree.holds(&document);
            if decided != Truth::Perhaps {
                return Ok(decided == Truth::Yes);
            }
            let (life, parent) = owners.of(host, connections[0].newest.process)?;
            let (process, parent) = (Seen::Known(life.as_deref()), Seen::Known(parent.as_deref()));
            Ok(tree.holds(&Document { process, parent, ..document }) == Truth::Yes)
        };
        let mut asking = FlowListing {
            selection: RecordSelection {
                hosts: &hosts,
                remotes: hints.remotes.as_deref(),
                port: hints.port,
                protocol: hints.protocol,
            },
            order: asked.order,
            after: question.after,
            limit: question.limit,
            wants: &mut wants,
        };
        let Page { rows, next, cut, looked_at, damage } =
            self.store.list_flows(&mut asking).map_err(store_status)?;
        let mut each = Vec::with_capacity(rows.len());
        for row in rows {
            let (life, _) = owners.of(row.host, row.flow.process).map_err(store_status)?;
            each.push((row.place, flow_row(&scene, row, life.as_deref())));
        }
        let (flows, next) = fitting(each.into_iter(), next);
        let damage = [damage, owners.damage].concat();
        let hosts = seen(flows.iter().map(|row| row.host.as_ref()));
        let rows = flows.len() as u64;
        let about = about(Some(&asked.scope), hosts);
        let end = PageEnd { next, cut, looked_at, damage };
        let listing = Some(listing(asked, question, scene, end));
        Ok(Answered { response: wire::FlowsResponse { flows, listing }, rows, about })
    }
}

/// As many rows as a page has bytes for, one at least; it goes on after the last of them.
fn fitting<T: Message>(
    rows: impl Iterator<Item = (Place, T)>,
    next: Option<Place>,
) -> (Vec<T>, Option<Place>) {
    let (mut fitting, mut bytes, mut last) = (Vec::new(), 0, None);
    for (place, row) in rows {
        bytes += row.encoded_len();
        if bytes > PAGE_BYTES_MAX && !fitting.is_empty() {
            return (fitting, last);
        }
        fitting.push(row);
        last = Some(place);
    }
    (fitting, next)
}

/// Each host once.
fn seen<'a>(hosts: impl Iterator<Item = Option<&'a wire::HostReference>>) -> Vec<HostId> {
    let mut hosts: Vec<HostId> =
        hosts.flatten().filter_map(|host| super::super::host_of(&host.host)).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

fn process_row(scene: &Scene, row: ListedProcess) -> wire::FoundProcess {
    let ListedProcess { host, life, parent, connections, records_left_out, .. } = row;
    let found = connections.as_deref().unwrap_or_default();
    let last = last_of(Some(&life), found).unwrap_or(life.record.started);
    wire::FoundProcess {
        host: scene.hosts.get(&host).map(|meant| meant.reference(host)),
        parent_name: parent.map(|parent| called(&parent)),
        connections: connections.as_ref().map(|connections| connections.len() as u64),
        records_left_out,
        last_activity_ns: last.as_nanos(),
        process: Some(life.into()),
    }
}

fn flow_row(scene: &Scene, row: ListedFlow, life: Option<&ProcessLife>) -> wire::FlowRow {
    let ListedFlow { host, flow, .. } = row;
    let image = life.map(ProcessLife::image);
    wire::FlowRow {
        host: scene.hosts.get(&host).map(|meant| meant.reference(host)),
        flow: Some(flow.into()),
        process_name: life.map(called),
        process_path: image.and_then(|image| image.path.clone()),
        pid: life.map(|life| life.record.pid),
        user: image.and_then(|image| image.user.as_ref()).map(|user| user.label().to_owned()),
    }
}

/// The short name of a process, or that of its file.
fn called(life: &ProcessLife) -> String {
    let image = life.image();
    let file = || image.path.as_deref().and_then(|path| path.rsplit(['/', '\\']).next());
    Some(image.name.as_str()).filter(|name| !name.is_empty()).or_else(file).unwrap_or_default().to_owned()
}

/// A process, if it is on record.
type Life = Option<Rc<ProcessLife>>;

/// Whose flow records are, as far as that was looked up for this page.
struct Owners<'a> {
    service: &'a Service,
    with_parent: bool,
    known: HashMap<(HostId, ProcessUid), (Life, Life)>,
    damage: Vec<crate::store::Damage>,
}

impl<'a> Owners<'a> {
    fn new(service: &'a Service, with_parent: bool) -> Self {
        Self { service, with_parent, known: HashMap::new(), damage: Vec::new() }
    }

    /// A process and its parent.
    fn of(&mut self, host: HostId, uid: Option<ProcessUid>) -> Result<(Life, Life), StoreError> {
        let Some(uid) = uid else { return Ok((None, None)) };
        if let Some(known) = self.known.get(&(host, uid)) {
            return Ok(known.clone());
        }
        let life = self.look_up(host, uid)?;
        let parent = life.as_ref().and_then(|life| life.record.parent).filter(|_| self.with_parent);
        let parent = match parent {
            Some(parent) => self.look_up(host, parent)?,
            None => None,
        };
        if self.known.len() >= OWNERS_KEPT_MAX {
            self.known.clear();
        }
        self.known.insert((host, uid), (life.clone(), parent.clone()));
        Ok((life, parent))
    }

    /// One that is damaged is as one that is not on record, and told.
    fn look_up(&mut self, host: HostId, uid: ProcessUid) -> Result<Life, StoreError> {
        match self.service.store.process(host, uid, Timestamp::MAX) {
            Ok(life) => Ok(life.map(Rc::new)),
            Err(error @ StoreError::Damaged { .. }) => {
                self.damage.push(crate::store::Damage {
                    from: Timestamp::ZERO,
                    to: Timestamp::MAX,
                    reason: format!("the process {uid} cannot be read: {error}"),
                });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
