//! Whom a scope means, how they are, and what it takes to answer about one host or process.

use std::{sync::Arc, time::Duration};

use alibi_proto::{
    chain::{Anchor, ChainStatus},
    clock::{HostClock, shifted},
    coverage::{Facet, Grade, Timeline},
    host::{ClockStatus, HostEnrolment, HostStatus},
    id::{HostId, ProcessUid},
    process::ProcessLife,
    time::Timestamp,
    window::Window,
    wire,
};
use tonic::Status;

use super::{Service, scope, store_status};
use crate::{
    access::host::EnrolledHost,
    clock,
    store::{FollowedAgent, StoreError},
};

/// How long an answer waits for hosts to report up to the window's end.
const KNOWN_UNTIL_WAIT: Duration = Duration::from_secs(3);
/// How long it may take to read a host's whole record again.
pub(super) const VERIFY_TIMEOUT: Duration = Duration::from_secs(300);
/// Ancestors, children and connections that a process is shown with.
const ANCESTORS_MAX: usize = 64;
pub(super) const CHILDREN_MAX: usize = 256;
pub(super) const CONNECTIONS_MAX: usize = 256;

impl Service {
    /// The hosts that are meant. For a question about a `window`, also those on which a user who is meant may have gone
    /// unseen in it.
    pub(super) fn in_scope(
        &self,
        scope: Option<wire::HostScope>,
        window: Option<Window>,
    ) -> Result<Vec<FollowedAgent>, Status> {
        let scope = scope.unwrap_or_default();
        let agents = self.store.agents().map_err(store_status)?;
        for wanted in &scope.hosts {
            if !agents.iter().any(|agent| is_called(agent, wanted)) {
                return Err(Status::not_found(format!(
                    "no host `{wanted}` is followed: `alibi hosts` lists those that are"
                )));
            }
        }
        let mut hosts: Vec<_> = agents
            .into_iter()
            .filter(|agent| {
                scope.hosts.is_empty() || scope.hosts.iter().any(|wanted| is_called(agent, wanted))
            })
            .collect();
        hosts = scope::with_system(hosts, &scope.systems)?;
        hosts = scope::tagged(hosts, &scope.tags, |agent| {
            let host = agent.host.as_ref().map(|(description, _)| description.host);
            let enrolled =
                host.or_else(|| agent.address.parse().ok()).and_then(|host| self.access.host(host));
            enrolled.map(|enrolled| enrolled.tags).unwrap_or_default()
        })?;
        if let Some(user) = &scope.user {
            hosts = self.used_by(hosts, user, window)?;
        }
        Ok(hosts)
    }

    /// The hosts on which the user has, or had, processes; those that never answered, of which nobody knows; and those
    /// that did not see every process in the window. A process that changes its user and runs no other program after it is
    /// known by the user that it had.
    fn used_by(
        &self,
        hosts: Vec<FollowedAgent>,
        user: &str,
        window: Option<Window>,
    ) -> Result<Vec<FollowedAgent>, Status> {
        let mut used = Vec::new();
        let mut known = false;
        for agent in hosts {
            let Some((description, progress)) = &agent.host else {
                used.push(agent);
                continue;
            };
            let now = description.users.iter().any(|presence| presence.user.answers_to(user));
            if now || self.store.had_user(description.host, user).map_err(store_status)? {
                known = true;
                used.push(agent);
                continue;
            }
            if let Some(window) = window {
                let host = description.host;
                let clock = self.store.host_clock(host, clock::now()).map_err(store_status)?;
                let saw_all = match self.store.coverage(host, Facet::Processes) {
                    Ok(processes) => saw_every_process(&processes, window, &clock, progress.known_until),
                    Err(StoreError::Damaged { .. }) => false,
                    Err(error) => return Err(store_status(error)),
                };
                if !saw_all {
                    used.push(agent);
                }
            }
        }
        if known {
            Ok(used)
        } else {
            Err(Status::not_found(format!(
                "no host has or had processes of a user `{user}`: `alibi hosts` lists those who use each"
            )))
        }
    }

    pub(super) fn status(&self, agent: FollowedAgent) -> Result<HostStatus, StoreError> {
        let live = self.fleet.live(&agent.address);
        let (description, progress) = agent.host.unzip();
        let host =
            description.as_ref().map(|description| description.host).or_else(|| agent.address.parse().ok());
        let enrolment = host.and_then(|host| self.access.host(host)).map(enrolment);
        let progress = progress.unwrap_or_default();
        let (clock, chain) = match &description {
            Some(description) => {
                (self.store.host_clock(description.host, clock::now())?, self.store.chain(description.host)?)
            }
            None => (HostClock::default(), ChainStatus::default()),
        };
        Ok(HostStatus {
            chain,
            address: agent.address,
            description: description.map(Arc::unwrap_or_clone),
            connected: live.connected,
            heard: progress.heard,
            known_until: progress.known_until.map(|until| clock.known_until(until)),
            trouble: live.trouble,
            events: progress.events,
            clock: clock_status(&clock),
            from: live.from,
            enrolment,
        })
    }

    /// Waits for the hosts in scope to report up to the window's end, for as long as an answer may wait.
    pub(super) async fn await_window(
        &self,
        scope: Option<wire::HostScope>,
        window: Window,
    ) -> Result<(), Status> {
        self.await_until(scope, Some(window), window.to().min(clock::now())).await
    }

    /// The same, up to an instant.
    pub(super) async fn await_until(
        &self,
        scope: Option<wire::HostScope>,
        window: Option<Window>,
        until: Timestamp,
    ) -> Result<(), Status> {
        let agents = self.blocking(move |service| service.in_scope(scope, window)).await?;
        let is_known = |agent: &FollowedAgent| {
            agent.host.as_ref().is_some_and(|(_, progress)| progress.known_until >= Some(until))
        };
        let awaited = agents.into_iter().filter(|agent| !is_known(agent)).map(|agent| agent.address);
        self.fleet.await_known(&awaited.collect::<Vec<_>>(), until, KNOWN_UNTIL_WAIT).await;
        Ok(())
    }

    /// The one host that goes by this name, and all that it takes to verify it.
    pub(super) fn to_verify(
        &self,
        word: &str,
    ) -> Result<(String, String, HostId, Vec<Anchor>, ChainStatus), Status> {
        let scope = wire::HostScope { hosts: vec![word.to_owned()], ..wire::HostScope::default() };
        let mut found = self.in_scope(Some(scope), None)?;
        let (Some(agent), true) = (found.pop(), found.is_empty()) else {
            return Err(Status::invalid_argument(format!(
                "`{word}` names more than one host: write its uuid"
            )));
        };
        let Some((description, progress)) = agent.host else {
            return Err(Status::failed_precondition(format!("`{word}` has never answered")));
        };
        let resume_point = self.store.resume_point(description.host, progress.next.epoch);
        let anchors = resume_point.map_err(store_status)?.anchors;
        let chain = self.store.chain(description.host).map_err(store_status)?;
        Ok((agent.address, description.name.clone(), description.host, anchors, chain))
    }

    pub(super) fn find_process(&self, word: &str) -> Result<(HostId, ProcessUid), Status> {
        let prefix = word.to_ascii_lowercase();
        let is_hexadecimal = prefix.chars().all(|c| c.is_ascii_hexdigit());
        if !is_hexadecimal || !(4..=32).contains(&prefix.len()) {
            return Err(Status::invalid_argument(format!(
                "`{word}` is not a process uid: write its 32 hexadecimal digits, or at least the first 4"
            )));
        }
        let found = self.store.processes_by_prefix(&prefix, 2).map_err(store_status)?;
        match *found.as_slice() {
            [one] => Ok(one),
            [] => Err(Status::not_found(format!(
                "no process `{word}` is on record: `alibi who` shows the uids"
            ))),
            _ => Err(Status::invalid_argument(format!(
                "`{word}` begins more than one process uid: write more of it"
            ))),
        }
    }

    pub(super) fn ancestors(&self, host: HostId, life: &ProcessLife) -> Result<Vec<ProcessLife>, Status> {
        let mut ancestors: Vec<ProcessLife> = Vec::new();
        let mut parent = life.record.parent;
        while let Some(uid) = parent
            && ancestors.len() < ANCESTORS_MAX
            && let Some(ancestor) = self.store.process(host, uid, Timestamp::MAX).map_err(store_status)?
        {
            parent = ancestor.record.parent;
            ancestors.push(ancestor);
        }
        Ok(ancestors)
    }
}

/// Whether every process that ran in the window is on record. An agent that begins to record lists what runs, so a time that
/// was not recorded before the window takes away nothing; but what was lost at any time may have been the start of a process
/// that runs still.
fn saw_every_process(
    processes: &Timeline,
    window: Window,
    clock: &HostClock,
    known_until: Option<Timestamp>,
) -> bool {
    let over = clock.over(window);
    let Some(difference) = over.difference.filter(|_| over.unmeasured.is_empty()) else { return false };
    let Ok(window) =
        Window::new(shifted(window.from(), difference.least()), shifted(window.to(), difference.most()))
    else {
        return false;
    };
    let Ok(ever) = Window::new(Timestamp::ZERO, window.to()) else { return false };
    processes
        .gaps(Facet::Processes, ever, known_until)
        .iter()
        .all(|gap| matches!(gap.grade, Grade::NotRecorded { .. }) && gap.to <= window.from())
}

fn enrolment(host: EnrolledHost) -> HostEnrolment {
    HostEnrolment {
        host: host.id,
        name: host.name,
        enrolled: host.enrolled,
        certificate_until: host.certificate.not_after,
        tags: host.tags,
        revoked: host.revoked,
        copied: host.copied.map(|copied| copied.to_string()),
    }
}

/// How a host's clock stands now.
pub(super) fn clock_status(clock: &HostClock) -> Option<ClockStatus> {
    let (difference, measured) = (clock.at(clock::now())?, clock.measured()?);
    Some(ClockStatus { offset_ns: difference.offset(), bound_ns: difference.bound(), measured })
}

/// Whether the agent's host goes by this name, uuid or address.
fn is_called(agent: &FollowedAgent, word: &str) -> bool {
    let uuid = word.parse::<HostId>().ok();
    agent.address == word
        || agent.host.as_ref().is_some_and(|(description, _)| {
            description.name.eq_ignore_ascii_case(word) || uuid == Some(description.host)
        })
}

#[cfg(test)]
mod tests {
    use alibi_proto::{
        clock::{BootBegin, ClockReading, Difference},
        coverage::CoverageChange,
        event::{Batch, Event, EventKind},
        host::HostDescription,
        id::{Epoch, Seq},
        process::{ProcessImage, ProcessRecord, User},
        time::Moment,
    };

    use super::*;
    use crate::{
        access::Access,
        fleet::Fleet,
        gate::Keyring,
        store::{SqliteStore, Store},
        turns::Turns,
    };

    fn second(second: u64) -> Timestamp {
        Timestamp::from_secs(second)
    }

    fn same_clock() -> ClockReading {
        ClockReading {
            boot_id: "boot".into(),
            boot_ns: 1,
            difference: Difference::ZERO,
            measured: second(100),
            shared: Some(90_000_000_000),
            epoch: Epoch(1),
            begins: Some(vec![BootBegin { boot_id: "boot".into(), first: Seq(1) }]),
        }
    }

    /// Follows a host that recorded every process since second 10, but for `loss`, until second 100.
    fn follow(store: &SqliteStore, name: &str, user: &str, loss: Option<(u64, u64)>) {
        let host = HostId::from_bytes([name.as_bytes()[0]; 16]);
        let description = HostDescription {
            host,
            name: name.into(),
            os: "linux".into(),
            os_version: "12".into(),
            machine_id: None,
            boot_id: "boot".into(),
            booted: second(1),
            agent_version: "0.1.0".into(),
            users: vec![],
            sources: vec![],
            epoch: Epoch(1),
            first_seq: Seq(1),
            next_seq: Seq(1),
        };
        store.add_agent(name).unwrap();
        store.describe(name, &description, Some(&same_clock()), second(100)).unwrap();
        let change = |grade, from, to: Option<u64>| {
            let (facet, from, to) = (Facet::Processes, second(from), to.map(second));
            EventKind::CoverageChanged(CoverageChange {
                facet,
                grade,
                from,
                to,
                scope: None,
                announced_from: None,
            })
        };
        let user = User { id: "1000".into(), name: Some(user.into()) };
        let process = ProcessRecord {
            uid: ProcessUid::from_bytes([1; 16]),
            pid: 1,
            parent: None,
            parent_pid: None,
            started: second(5),
            already_running: true,
            image: ProcessImage { user: Some(user), ..ProcessImage::default() },
        };
        let mut kinds = vec![change(Grade::Complete, 10, None), EventKind::ProcessStarted(Box::new(process))];
        if let Some((from, to)) = loss {
            kinds.push(change(Grade::Lost { count: 1, reason: "full".into() }, from, Some(to)));
        }
        let recorded = Moment { wall: second(90), boot_ns: 1 };
        let events = (1..).zip(kinds).map(|(seq, kind)| Event { seq: Seq(seq), recorded, kind }).collect();
        let watermark = Some(second(100));
        let batch = Batch { epoch: Epoch(1), hole: None, events, link: None, watermark, clock: None };
        store.commit(host, &batch, second(100)).unwrap();
    }

    #[tokio::test]
    async fn a_host_is_left_out_for_a_user_only_if_it_saw_every_process() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&directory.path().join("alibi.db")).unwrap());
        let access = Arc::new(Access::open(directory.path(), clock::now()).unwrap());
        let keyring = Keyring::new(Arc::clone(&access)).unwrap();
        let (listed, turns) = (Arc::clone(&store) as Arc<dyn Store>, Turns::default());
        let fleet = Fleet::start(listed, Arc::clone(&access), keyring, turns);
        let fleet = Arc::new(fleet.unwrap());
        follow(&store, "his", "jdoe", None);
        follow(&store, "lost some while asked about", "other", Some((50, 51)));
        follow(&store, "missed a start before", "other", Some((20, 21)));
        follow(&store, "whole", "other", None);
        store.add_agent("never answered").unwrap();
        let service = Service::new(store, fleet, access, None);
        let scope = |window: Option<(u64, u64)>| {
            let scope = wire::HostScope { user: Some("jdoe".into()), ..wire::HostScope::default() };
            let window = window.map(|(from, to)| Window::new(second(from), second(to)).unwrap());
            let agents = service.in_scope(Some(scope), window).unwrap();
            agents.into_iter().map(|agent| agent.address).collect::<Vec<_>>()
        };
        let (his, lost, missed) = ("his", "lost some while asked about", "missed a start before");
        let (whole, never) = ("whole", "never answered");
        assert_eq!(scope(None), [his, never], "a list shows who was seen");
        assert_eq!(scope(Some((40, 60))), [his, lost, missed, never]);
        assert_eq!(scope(Some((30, 40))), [his, missed, never], "what comes after takes nothing away");
        assert_eq!(scope(Some((5, 40))), [his, lost, missed, whole, never], "recording had not begun");
        assert_eq!(scope(Some((90, 110))), [his, lost, missed, whole, never], "not received yet");
    }
}
