//! Names: what DNS answered and what TLS clients asked for, heard by packet sockets in every network namespace.
//!
//! [`filter`] lets the kernel pass only packets that matter, and each at one place; [`socket`] takes them, [`namespaces`]
//! knows where to listen, [`reader`] understands. All that is heard is bytes that anybody may have sent.
//!
//! A socket keeps its namespace alive. So a namespace that no process is in any more is let go at the next search.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    flow::Direction,
    host::FacetCoverage,
    time::{Moment, Timestamp},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

use super::{Sensor, namespaces};
use crate::{
    capture::{CaptureError, Observation},
    sys,
};

mod copies;
mod dns;
mod filter;
mod packet;
mod pieces;
mod questions;
mod reader;
mod socket;
mod text;
mod tls;

use reader::lost;
pub(in crate::capture::linux) use reader::{Reader, Sighting};
use socket::{Buffer, Ear, Received};

/// Namespaces are searched for so often.
const SEARCH_INTERVAL: Duration = Duration::from_secs(5);
/// Namespaces that are listened in at the same time.
const NAMESPACES_MAX: usize = 256;
/// Namespaces, of those shown by other sensors between two searches, that are remembered as tried.
const TRIED_MAX: usize = 1_024;
/// Packets that are read in a turn, shared by the ears that have some; the rest is let go, and told as lost. More come only
/// from who wants to keep the agent busy.
const PACKETS_PER_TURN_MAX: usize = if cfg!(test) { 512 } else { 8_192 };
/// An ear's share of them at least.
const PACKETS_PER_EAR_MIN: usize = 64;
/// How late the search after that may be.
const TURN_LATE_MAX: Duration = Duration::from_secs(1);
/// How far ahead a packet's time may be of the turn's: it may have come since.
const AHEAD_MAX: Duration = Duration::from_secs(1);

/// Why some are let go.
const FLOODED: &str = "more packets with names came than are read in a turn: the rest was let go";

const SOURCE: &str = "packets";
const COVERS: &str = "DNS answers over UDP and TCP port 53 that this host asked for, and server names in TLS ClientHellos over TCP, on every interface";
const CANNOT_SEE: &str = "names known before recording began (caches, open connections); hosts files, mDNS and other name services; names that a proxy looks up; \
     DNS on other ports; encrypted DNS, whose use is a gap where its server is known by port 853, name or address; QUIC; \
     the inner name of an encrypted ClientHello (ECH); ClientHellos to this host in pieces; packets with IPv6 extension \
     headers, or inside tunnels and VLANs that no interface here unwraps; virtual machines; network namespaces that come and \
     go within 5 s without a connection, or that only a thread or an open file leads to";

/// The sensor.
pub(in crate::capture) struct Names {
    epoll: OwnedFd,
    reader: Reader,
    buffer: Buffer,
    ears: BTreeMap<u64, Listening>,
    /// Where else it can get a socket.
    reach: Reach,
    /// It was told to keep to the agent's own namespace.
    own_only: bool,
    /// Why there is none in the agent's own namespace.
    deaf: Option<String>,
    /// Everything that came before this has been taken, or told as lost.
    heard_until: Moment,
    /// When namespaces were searched for last.
    searched: Moment,
    /// Shown since, and not there any more.
    tried: HashSet<u64>,
    /// To be told at the next turn.
    untold: Vec<Observation>,
}

/// An ear, and what has become of what it heard.
struct Listening {
    ear: Ear,
    /// Put by for it and not taken yet, as the kernel counted last; negative for what was taken since.
    waiting: i64,
    /// Of those that wait, the first so many have been told as lost already.
    let_go: u64,
}

/// Which namespaces it can get a socket in.
#[derive(Debug)]
enum Reach {
    All,
    /// Only the agent's own, and why.
    Own(String),
}

impl Names {
    /// Listens in all network namespaces, or in the agent's own only. What it has no right to is a grade, or words of its
    /// scope.
    ///
    /// # Errors
    /// When there is not even a way to wait for something.
    pub(in crate::capture) fn open(own_only: bool) -> Result<Self, CaptureError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|problem| CaptureError::Wait(problem.into()))?;
        let now = sys::now();
        let mut names = Self {
            epoll,
            reader: Reader::that_hears_questions(),
            buffer: Buffer::default(),
            ears: BTreeMap::new(),
            reach: Reach::All,
            own_only,
            deaf: None,
            heard_until: now,
            searched: now,
            tried: HashSet::new(),
            untold: Vec::new(),
        };
        let own = sys::network_namespace().unwrap_or(0);
        if let Err(problem) = Ear::open().and_then(|ear| names.follow(own, ear)) {
            names.deaf = Some(format!(
                "no packet socket could be opened: {problem} (it takes root or the capability CAP_NET_RAW)"
            ));
            names.reach = Reach::Own("no packet socket could be opened".to_owned());
            return Ok(names);
        }
        if own_only {
            names.reach = Reach::Own("the agent was told to keep to its own".to_owned());
            return Ok(names);
        }
        match namespaces::find(NAMESPACES_MAX) {
            Ok(found) => names.begin(&found, now),
            Err(problem) => names.reach = Reach::Own(format!("/proc cannot be read: {problem}")),
        }
        Ok(names)
    }

    /// The first search: what is found now has not been missed.
    fn begin(&mut self, found: &namespaces::Found, now: Moment) {
        let mut unheard = found.beyond;
        for (namespace, path) in &found.paths {
            if self.ears.contains_key(namespace) {
                continue;
            }
            match self.listen_in(*namespace, path) {
                Ok(()) => {}
                Err(problem) if problem.kind() == io::ErrorKind::PermissionDenied => {
                    self.reach = Reach::Own(format!("entering them takes root or CAP_SYS_ADMIN: {problem}"));
                    return;
                }
                // It may have ended meanwhile; the next search tells.
                Err(_) => unheard += 1,
            }
        }
        if !sys::is_privileged() {
            self.reach = Reach::Own("without root, those of others cannot be found".to_owned());
        } else if unheard > 0 {
            let reason = format!("{unheard} network namespaces could not be listened in at the start");
            self.untold.push(lost(0, reason, now.wall, after_next_search(now), now));
        }
    }

    /// Another sensor has seen process `pid` in a network namespace: it is listened in from now on.
    pub(in crate::capture) fn meet(&mut self, network_namespace: u64, pid: u32) {
        let is_known = self.ears.contains_key(&network_namespace) || self.tried.contains(&network_namespace);
        if is_known || matches!(self.reach, Reach::Own(_)) || self.tried.len() > TRIED_MAX {
            return;
        }
        let now = sys::now();
        self.tried.insert(network_namespace);
        let has_room = self.tried.len() <= TRIED_MAX && self.ears.len() < NAMESPACES_MAX;
        let outcome = has_room.then(|| self.listen_in(network_namespace, &namespaces::of_process(pid)));
        // What was said in it before there was an ear is lost; without one, also what is said until the next search.
        let (reason, until) = match outcome {
            Some(Ok(())) => ("was not known before".to_owned(), sys::now().wall),
            Some(Err(problem)) => (format!("could not be listened in: {problem}"), after_next_search(now)),
            None if self.tried.len() > TRIED_MAX => (
                format!("and others came, after {TRIED_MAX} within {SEARCH_INTERVAL:?}"),
                after_next_search(now),
            ),
            None => (format!("is beyond the {NAMESPACES_MAX} that are listened in"), after_next_search(now)),
        };
        let reason = format!("the network namespace {network_namespace} {reason}");
        self.untold.push(lost(0, reason, self.searched.wall, until, now));
    }

    fn listen_in(&mut self, namespace: u64, path: &Path) -> io::Result<()> {
        let ear = namespaces::inside(namespace, path, Ear::open)?;
        self.follow(namespace, ear)
    }

    /// Adds an ear to those that are waited for.
    fn follow(&mut self, namespace: u64, ear: Ear) -> io::Result<()> {
        let data = epoll::EventData::new_u64(namespace);
        epoll::add(&self.epoll, &ear, data, epoll::EventFlags::IN)?;
        self.ears.insert(namespace, Listening { ear, waiting: 0, let_go: 0 });
        Ok(())
    }

    /// Takes what all ears have heard.
    fn hear(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<(), CaptureError> {
        let mut ready = Vec::with_capacity(NAMESPACES_MAX);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&at_once)) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(problem) => return Err(CaptureError::Wait(problem.into())),
            }
        }
        // An ear that is never silent does not silence the others.
        let share = (PACKETS_PER_TURN_MAX / ready.len().max(1)).max(PACKETS_PER_EAR_MIN);
        for event in ready {
            let namespace = event.data.u64();
            if let Err(problem) = self.hear_one(namespace, share, now, facts) {
                // It is opened anew by the next search, and until then nothing of this namespace is heard.
                self.ears.remove(&namespace);
                let reason =
                    format!("the network namespace {namespace} could not be heard any more: {problem}");
                facts.push(lost(0, reason, self.heard_until.wall, after_next_search(now), now));
            }
        }
        Ok(())
    }

    /// Reads so many packets at most. What still waits then is told as lost, by the kernel's count, and left unread when it
    /// is taken: it holds nothing back.
    fn hear_one(
        &mut self,
        namespace: u64,
        mut share: usize,
        now: Moment,
        facts: &mut Vec<Observation>,
    ) -> io::Result<()> {
        let Some(listening) = self.ears.get_mut(&namespace) else { return Ok(()) };
        while share > 0 {
            let Some(received) = listening.ear.receive(&mut self.buffer)? else { break };
            listening.waiting -= 1;
            if listening.let_go > 0 {
                listening.let_go -= 1;
                continue;
            }
            share -= 1;
            let seen = Sighting {
                network_namespace: namespace,
                interface: received.interface,
                socket: None,
                direction: direction(&received),
                at: moment(received.wall, self.heard_until, now),
            };
            self.reader.read(seen, received.bytes, facts);
        }
        let (put_by, dropped) = listening.ear.counted()?;
        listening.waiting += i64::from(put_by);
        let mut left = 0;
        if share == 0 {
            let waiting = u64::try_from(listening.waiting).unwrap_or(0);
            left = waiting.saturating_sub(listening.let_go);
            listening.let_go = waiting;
        }
        // Where there was no room, there is something to take, so that an ear that has nothing has lost nothing.
        let counted = sys::now();
        for (count, reason) in
            [(dropped.into(), "packets with names came faster than they were taken"), (left, FLOODED)]
        {
            if count > 0 {
                facts.push(lost(count, reason.to_owned(), self.heard_until.wall, counted.wall, now));
            }
        }
        Ok(())
    }

    /// Looks for namespaces that came or went.
    fn search(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        if matches!(self.reach, Reach::Own(_)) {
            self.searched = now;
            return;
        }
        let found = match namespaces::find(NAMESPACES_MAX) {
            Ok(found) => found,
            Err(problem) => {
                let reason = format!("network namespaces could not be searched for: {problem}");
                facts.push(lost(0, reason, self.searched.wall, after_next_search(now), now));
                self.searched = now;
                return;
            }
        };
        self.ears.retain(|namespace, _| found.paths.contains_key(namespace));
        self.listen_in_new(&found, now, facts);
        self.tried.clear();
        self.searched = now;
    }

    fn listen_in_new(&mut self, found: &namespaces::Found, now: Moment, facts: &mut Vec<Observation>) {
        let new: Vec<(u64, &PathBuf)> = found
            .paths
            .iter()
            .filter(|(namespace, _)| !self.ears.contains_key(namespace))
            .map(|(namespace, path)| (*namespace, path))
            .collect();
        // Those that are gone have been let go, so there is room for all that are found but for what was shown since.
        let room = NAMESPACES_MAX.saturating_sub(self.ears.len()).min(new.len());
        let mut heard = BTreeSet::new();
        let mut problems = BTreeMap::new();
        for (namespace, path) in &new[..room] {
            match self.listen_in(*namespace, path) {
                Ok(()) => drop(heard.insert(*namespace)),
                Err(problem) => drop(problems.insert(*namespace, problem.to_string())),
            }
        }
        let until = sys::now();
        if let Some(first) = heard.first() {
            let reason = format!("{} not known before", these(*first, heard.len(), "was", "were"));
            facts.push(lost(0, reason, self.searched.wall, until.wall, now));
        }
        if let Some((first, problem)) = problems.first_key_value() {
            let these = these(*first, problems.len(), "could", "could");
            let reason = format!("{these} not be listened in: {problem}");
            facts.push(lost(0, reason, self.searched.wall, after_next_search(now), now));
        }
        let beyond = found.beyond + new.len() - room;
        if beyond > 0 {
            let reason =
                format!("{beyond} network namespaces are beyond the {NAMESPACES_MAX} that are listened in");
            facts.push(lost(0, reason, self.searched.wall, after_next_search(now), now));
        }
    }
}

impl Sensor for Names {
    fn facets(&self) -> Vec<FacetCoverage> {
        if let Some(reason) = &self.deaf {
            let grade = Grade::NotRecorded { reason: reason.clone() };
            let scope = Scope {
                source: SOURCE.to_owned(),
                covers: "nothing".to_owned(),
                cannot_see: CANNOT_SEE.to_owned(),
            };
            return vec![FacetCoverage { facet: Facet::Names, grade, scope }];
        }
        let (covers, cannot_see) = match &self.reach {
            Reach::All => (format!("{COVERS} of all network namespaces"), CANNOT_SEE.to_owned()),
            Reach::Own(why) => (
                format!("{COVERS} of the agent's network namespace"),
                format!("other network namespaces ({why}); {CANNOT_SEE}"),
            ),
        };
        let grade = match &self.reach {
            Reach::Own(why) if !self.own_only => {
                let reason = format!("only names of the agent's own network namespace are heard: {why}");
                Grade::Lost { count: 0, reason }
            }
            // Told to keep to its own, it tells only connections of its own, too.
            Reach::All | Reach::Own(_) => Grade::Complete,
        };
        let scope = Scope { source: SOURCE.to_owned(), covers, cannot_see };
        vec![FacetCoverage { facet: Facet::Names, grade, scope }]
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn wants_turn_within(&self) -> Option<Duration> {
        self.reader.wants_turn_within()
    }

    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        facts.extend(self.untold.drain(..).map(|observation| Observation { at: now, ..observation }));
        self.hear(now, facts)?;
        let is_settled = self.reader.settle(now, facts);
        if since(self.searched, now) >= SEARCH_INTERVAL && self.deaf.is_none() {
            self.search(now, facts);
        }
        if is_settled {
            self.heard_until = now;
        }
        Ok(is_settled)
    }
}

/// Who sent a packet. On loopback, where it is seen only as it arrives, this host did.
fn direction(received: &Received<'_>) -> Direction {
    if received.is_outgoing || received.is_loopback { Direction::Outbound } else { Direction::Inbound }
}

/// A packet's time on both clocks: by the wall clock's distance from the boot clock at `now`. If the wall clock was set since
/// the packet came, that distance is wrong; but the packet came after `earliest`, and not long after `now`.
fn moment(wall: Option<Timestamp>, earliest: Moment, now: Moment) -> Moment {
    let Some(wall) = wall else { return now };
    let before_ns = nanos(now.wall.since(wall));
    let after_ns = nanos(wall.since(now.wall).min(AHEAD_MAX));
    let boot_ns = now.boot_ns.saturating_sub(before_ns).saturating_add(after_ns).max(earliest.boot_ns);
    let wall = if boot_ns <= now.boot_ns {
        now.wall.saturating_sub(Duration::from_nanos(now.boot_ns - boot_ns))
    } else {
        now.wall.saturating_add(Duration::from_nanos(boot_ns - now.boot_ns))
    };
    Moment { wall, boot_ns }
}

fn since(earlier: Moment, now: Moment) -> Duration {
    Duration::from_nanos(now.boot_ns.saturating_sub(earlier.boot_ns))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is not heard now is told as lost until the next search can have said otherwise.
fn after_next_search(now: Moment) -> Timestamp {
    now.wall.saturating_add(SEARCH_INTERVAL + TURN_LATE_MAX)
}

/// Network namespaces as the subject of a sentence.
fn these(first: u64, count: usize, is: &str, are: &str) -> String {
    match count {
        1 => format!("the network namespace {first} {is}"),
        _ => format!("the network namespace {first} and {} others {are}", count - 1),
    }
}

/// DNS messages, for the tests of other sensors.
#[cfg(test)]
pub(in crate::capture::linux) mod testing {
    pub(in crate::capture::linux) use super::dns::tests::question;
    use super::dns::tests::{a, message, record};

    /// The answer to a question for a name.
    pub(in crate::capture::linux) fn answer(number: u16, name: &str) -> Vec<u8> {
        let mut answer = message(name, vec![record(name, 60, a("198.51.100.9"))]);
        answer[..2].copy_from_slice(&number.to_be_bytes());
        answer
    }
}

#[cfg(test)]
mod tests;
