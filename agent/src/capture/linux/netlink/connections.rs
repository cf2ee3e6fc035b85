//! Connections, from sock_diag: a look at the sockets each period, and the kernel's word on each socket that goes.
//!
//! So a connection between two looks is not missed, but known from its end alone. In every network namespace that can be
//! reached; both the looks and the words are of one each.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    flow::{Protocol, Traffic},
    host::FacetCoverage,
    time::Moment,
};
use rustix::{
    event::epoll,
    net::netlink::SOCK_DIAG,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::{
    message::messages,
    socket::{Asker, Heard, Listener},
};
use crate::{
    capture::{
        CaptureError, Fact, Observation, ProcessKey,
        linux::{Sensor, namespaces},
    },
    sys::{self, linux::SocketOwners},
};

mod diag;
#[cfg(test)]
mod tests;
mod tracker;

use diag::Row;
use tracker::Tracker;

/// Looking more often than this costs more than it shows.
const PERIOD_MIN: Duration = Duration::from_millis(100);
/// Room for ends of sockets that have not been taken yet: some four thousand, in each network namespace.
const ROOM_BYTES: usize = 4 << 20;
/// Network namespaces that are watched. Each takes two sockets.
const NAMESPACES_MAX: usize = 256;
/// Ends that are taken from one network namespace in one turn; the rest waits for the next one.
const ENDS_PER_TURN: usize = 16_384;

/// The sensor of connections.
pub(super) struct Connections {
    period: Duration,
    only_own: bool,
    room_bytes: usize,
    timer: OwnedFd,
    /// Readable when a socket has gone or it is time for a look.
    ready: OwnedFd,
    watches: BTreeMap<u64, Watch>,
    owners: SocketOwners,
    looked: Option<Moment>,
    /// Why less is seen than promised.
    shortcoming: Option<String>,
}

/// A TCP connection that is open.
#[derive(Clone, Copy, Debug)]
pub(in crate::capture::linux) struct OpenConnection {
    pub(in crate::capture::linux) network_namespace: u64,
    pub(in crate::capture::linux) local: SocketAddr,
    pub(in crate::capture::linux) remote: SocketAddr,
    pub(in crate::capture::linux) cookie: u64,
    pub(in crate::capture::linux) is_established: bool,
    /// Somebody listens here at its port: so it most likely came in.
    pub(in crate::capture::linux) is_at_listener: bool,
    pub(in crate::capture::linux) traffic: Option<Traffic>,
}

/// Every TCP connection that is open now, whoever holds it, if anybody does; and the number of network namespaces in which
/// that could not be seen.
///
/// # Errors
/// When the network namespaces cannot be listed.
pub(in crate::capture::linux) fn open_now(only_own: bool) -> io::Result<(Vec<OpenConnection>, usize)> {
    let namespaces::Found { paths, beyond: mut unseen } = reachable(only_own)?;
    let mut open = Vec::new();
    for (network_namespace, path) in paths {
        let rows = namespaces::inside(network_namespace, &path, || {
            let mut asker = Asker::open(Some(SOCK_DIAG))?;
            let mut rows = Vec::new();
            for (protocol, request) in diag::requests() {
                if protocol == Protocol::Tcp {
                    let row =
                        |message: super::message::Message<'_>| diag::parse(message.body, Some(protocol));
                    rows.extend(asker.dump(diag::BY_FAMILY, &request, row)?);
                }
            }
            Ok(rows)
        });
        match rows {
            Ok(rows) => {
                let listening = rows.iter().filter(|row| row.state == diag::tcp_state::LISTEN);
                let listening: BTreeSet<u16> = listening.map(|row| row.local.port()).collect();
                open.extend(rows.iter().filter(|row| row.is_open()).map(|row| OpenConnection {
                    network_namespace,
                    local: row.local,
                    remote: row.remote,
                    cookie: row.cookie,
                    is_established: row.state != diag::tcp_state::SYN_SENT,
                    is_at_listener: listening.contains(&row.local.port()),
                    traffic: row.tcp.as_ref().map(|tcp| tcp.traffic),
                }));
            }
            // Gone again already.
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => {}
            Err(_) => unseen += 1,
        }
    }
    Ok((open, unseen))
}

fn reachable(only_own: bool) -> io::Result<namespaces::Found> {
    if only_own { Ok(namespaces::own()) } else { namespaces::find(NAMESPACES_MAX) }
}

/// A network namespace.
struct Watch {
    listener: Listener,
    asker: Asker,
    tracker: Tracker,
    rows: Vec<Row>,
    /// When there was last nothing more to hear.
    heard_all: Moment,
}

impl Connections {
    /// Looks each `period`, but not more often than each 100 ms; only at the agent's own network namespace if
    /// `only_own`.
    ///
    /// # Errors
    /// When the kernel does not show sockets.
    pub(super) fn open(period: Duration, only_own: bool) -> Result<Self, CaptureError> {
        Self::open_with_room(period, only_own, ROOM_BYTES)
    }

    fn open_with_room(period: Duration, only_own: bool, room_bytes: usize) -> Result<Self, CaptureError> {
        // The kernel loads what it takes to show sockets, and to tell of their ends, when it is asked for the first time.
        let first = || -> io::Result<()> {
            Listener::open(Some(SOCK_DIAG), diag::DESTROYED, room_bytes)?;
            let mut asker = Asker::open(Some(SOCK_DIAG))?;
            diag::requests()
                .iter()
                .try_for_each(|(_, request)| asker.dump(diag::BY_FAMILY, request, |_| Some(())).map(drop))
        };
        first().map_err(|source| CaptureError::Kernel {
            what: "look at sockets (sock_diag)",
            source,
            way_out: "it takes a kernel with CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG",
        })?;
        let wait = |problem: rustix::io::Errno| CaptureError::Wait(problem.into());
        let period = period.max(PERIOD_MIN);
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(wait)?;
        let every =
            Timespec::try_from(period).map_err(|problem| CaptureError::Wait(io::Error::other(problem)))?;
        let times = Itimerspec { it_interval: every, it_value: every };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times).map_err(wait)?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(wait)?;
        epoll::add(&ready, &timer, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(wait)?;
        Ok(Self {
            period,
            only_own,
            room_bytes,
            timer,
            ready,
            watches: BTreeMap::new(),
            owners: SocketOwners::default(),
            looked: None,
            shortcoming: None,
        })
    }

    fn is_look_due(&self, now: Moment) -> bool {
        let since = |looked: Moment| Duration::from_nanos(now.boot_ns.saturating_sub(looked.boot_ns));
        // The timer goes by another clock, and is a little late at times.
        self.looked.is_none_or(|looked| since(looked) >= self.period.mul_f32(0.9))
    }

    /// Looks at every network namespace. A problem is what could not be looked at.
    fn look(&mut self, now: Moment, facts: &mut Vec<Observation>) -> io::Result<Option<String>> {
        let unwatched = self.find_namespaces(now, facts)?;
        let mut problem = (unwatched > 0).then(|| {
            format!("{unwatched} network namespaces are not watched: there are more than {NAMESPACES_MAX}, or they cannot be entered")
        });
        for watch in self.watches.values_mut() {
            watch.rows.clear();
            for (protocol, request) in diag::requests() {
                let row = |message: super::message::Message<'_>| diag::parse(message.body, Some(protocol));
                watch.rows.extend(watch.asker.dump(diag::BY_FAMILY, &request, row)?);
            }
        }
        let inodes = self.watches.values().flat_map(|watch| &watch.rows).map(|row| row.inode);
        let is_fresh = self.owners.look_up(inodes)?;
        let starts: RefCell<HashMap<u32, Option<u64>>> = RefCell::default();
        let key = |pid: &u32| {
            let start = *starts.borrow_mut().entry(*pid).or_insert_with(|| sys::process_start(*pid));
            Some(ProcessKey { pid: *pid, start: start? })
        };
        let owners = &self.owners;
        let holders = |inode: u64| owners.pids(inode).iter().filter_map(key).collect();
        for watch in self.watches.values_mut() {
            watch.tracker.look(&watch.rows, &holders, is_fresh, now, facts);
            watch.rows = Vec::new();
            let unfollowed = watch.tracker.unfollowed;
            if unfollowed > 0 {
                problem = Some(format!(
                    "{unfollowed} connections of a network namespace are not followed: more than {} are open",
                    tracker::OPEN_MAX
                ));
            }
        }
        Ok(problem)
    }

    /// Watches those that are new, and no longer those that are gone; how many more there are.
    fn find_namespaces(&mut self, now: Moment, facts: &mut Vec<Observation>) -> io::Result<usize> {
        let namespaces::Found { paths: reachable, beyond: mut unwatched } = reachable(self.only_own)?;
        let is_gone = |inode: &u64, watch: &Watch| !reachable.contains_key(inode) && !watch.tracker.is_used;
        let gone: Vec<u64> = self
            .watches
            .iter()
            .filter(|(inode, watch)| is_gone(inode, watch))
            .map(|(inode, _)| *inode)
            .collect();
        for inode in gone {
            // To hold it any longer would keep the namespace alive.
            if let Some(mut watch) = self.watches.remove(&inode) {
                watch.hear(now, facts)?;
                watch.tracker.end(now, facts);
            }
        }
        for (inode, path) in reachable {
            if self.watches.contains_key(&inode) {
                continue;
            }
            let watch = Watch::open(inode, &path, self.room_bytes, now).and_then(|watch| {
                let data = epoll::EventData::new_u64(inode);
                epoll::add(&self.ready, &watch.listener, data, epoll::EventFlags::IN)?;
                Ok(watch)
            });
            match watch {
                Ok(watch) => drop(self.watches.insert(inode, watch)),
                // Gone again already.
                Err(problem) if problem.kind() == io::ErrorKind::NotFound => {}
                Err(_) => unwatched += 1,
            }
        }
        Ok(unwatched)
    }

    /// Says so when less is seen than promised, or all again.
    fn note_shortcoming(&mut self, shortcoming: Option<String>, now: Moment, facts: &mut Vec<Observation>) {
        if shortcoming == self.shortcoming {
            return;
        }
        let since = self.looked.unwrap_or(now);
        let (grade, from) = match &shortcoming {
            Some(reason) => (Grade::Lost { count: 0, reason: reason.clone() }, since.wall.min(now.wall)),
            None => (Grade::Sampled { period: self.period }, now.wall),
        };
        let change = CoverageChange {
            facet: Facet::Connections,
            grade,
            from,
            to: None,
            scope: Some(scope(self.only_own)),
            announced_from: None,
        };
        facts.push(Observation { at: now, fact: Fact::Coverage(change) });
        self.shortcoming = shortcoming;
    }
}

impl Sensor for Connections {
    fn facets(&self) -> Vec<FacetCoverage> {
        let grade = Grade::Sampled { period: self.period };
        vec![FacetCoverage { facet: Facet::Connections, grade, scope: scope(self.only_own) }]
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]); // not yet due is no fault
        let has_looked = self.is_look_due(now);
        if has_looked {
            let shortcoming = self
                .look(now, facts)
                .unwrap_or_else(|problem| Some(format!("sockets cannot be looked at: {problem}")));
            self.note_shortcoming(shortcoming, now, facts);
            self.looked = Some(now);
        }
        let mut has_all = true;
        for watch in self.watches.values_mut() {
            let has_heard_all = watch.hear(now, facts).map_err(|source| CaptureError::Kernel {
                what: "hear of sockets that go (sock_diag)",
                source,
                way_out: "restart the agent",
            })?;
            if has_looked && has_heard_all {
                watch.tracker.settle(now, facts);
            }
            has_all &= has_heard_all;
        }
        Ok(has_all)
    }
}

impl Watch {
    fn open(inode: u64, path: &std::path::Path, room_bytes: usize, now: Moment) -> io::Result<Self> {
        let there = || {
            Ok((Listener::open(Some(SOCK_DIAG), diag::DESTROYED, room_bytes)?, Asker::open(Some(SOCK_DIAG))?))
        };
        let (listener, asker) = namespaces::inside(inode, path, there)?;
        Ok(Self { listener, asker, tracker: Tracker::new(inode), rows: Vec::new(), heard_all: now })
    }

    /// Takes the ends that have been told; false if there are more.
    fn hear(&mut self, now: Moment, facts: &mut Vec<Observation>) -> io::Result<bool> {
        for _ in 0..ENDS_PER_TURN {
            match self.listener.hear()? {
                Heard::Datagram(datagram) => {
                    let rows = messages(datagram).filter_map(|message| diag::parse(message.body, None));
                    rows.for_each(|row| self.tracker.destroyed(&row, now, facts));
                }
                Heard::Overrun => facts.push(Observation { at: now, fact: overrun(self.heard_all, now) }),
                Heard::Nothing => {
                    self.heard_all = now;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// How many is not told.
fn overrun(since: Moment, now: Moment) -> Fact {
    let reason = "the kernel's buffer for ends of connections was full: short ones were missed".to_owned();
    Fact::Coverage(CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Lost { count: 0, reason },
        from: since.wall.min(now.wall),
        to: Some(now.wall),
        scope: None,
        announced_from: None,
    })
}

fn scope(only_own: bool) -> Scope {
    let place = if only_own {
        "the agent's own network namespace"
    } else {
        "every network namespace that a process is in or that has a name"
    };
    Scope {
        source: super::NAME.to_owned(),
        covers: format!(
            "TCP and connected UDP sockets over IPv4 and IPv6 by sock_diag, at each look and at their end, in {place}"
        ),
        cannot_see: "the owner of a connection that is over before the next look, and when it began; the remote port of \
                     one that failed, or that this host reset, between two looks; why an attempt failed; one byte of \
                     what was received, at times; UDP sent without connect, and bytes over UDP; connections in a \
                     network namespace before its first look, or that only a thread or an open file leads to; raw and \
                     packet sockets; other protocols; the own traffic of virtual machines; tunnels made by the kernel"
            .to_owned(),
    }
}
