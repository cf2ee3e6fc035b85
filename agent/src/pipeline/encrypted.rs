//! The use of encrypted DNS, whose answers nobody can hear: while a connection to such a server is open, names may be
//! resolved that are not told. Known from the connection itself, whichever source saw it and however long it has been
//! open, and from the name that its ClientHello asks for.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    flow::{Direction, FlowState, Protocol},
    time::{Moment, Timestamp},
};

use super::{OpenFlow, Pipeline, SocketKey};
use crate::capture::ObservedServerName;

/// A use is told for so long at once, and not told again before that is over.
const TOLD_FOR: Duration = Duration::from_secs(60);
/// So long before what has been told is over, a connection that is still open has it told anew.
const RENEWED_BEFORE: Duration = Duration::from_secs(15);
/// Servers that are told by name at the same time; the others are told as one.
const SERVERS_MAX: usize = 64;
/// Connections that are looked after.
const CONNECTIONS_MAX: usize = 1_024;

/// Of DNS over TLS (RFC 7858) and over QUIC (RFC 9250).
const PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;

/// Public servers of DNS over HTTPS, as names that browsers and systems are set up with.
const NAMES: &[&str] = &[
    "1dot1dot1dot1.cloudflare-dns.com",
    "chrome.cloudflare-dns.com",
    "cloudflare-dns.com",
    "dns.adguard-dns.com",
    "dns.adguard.com",
    "dns.alidns.com",
    "dns.cloudflare.com",
    "dns.controld.com",
    "dns.google",
    "dns.google.com",
    "dns.mullvad.net",
    "dns.nextdns.io",
    "dns.quad9.net",
    "dns.sb",
    "dns.switch.ch",
    "dns0.eu",
    "dns9.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "doh.cleanbrowsing.org",
    "doh.dns.apple.com",
    "doh.dns.sb",
    "doh.familyshield.opendns.com",
    "doh.opendns.com",
    "doh.pub",
    "doh.umbrella.com",
    "doh.xfinity.com",
    "dns.umbrella.com",
    "firefox.dns.nextdns.io",
    "freedns.controld.com",
    "mozilla.cloudflare-dns.com",
    "odoh.cloudflare-dns.com",
    "one.one.one.one",
    "private.canadianshield.cira.ca",
    "unfiltered.adguard-dns.com",
];

/// Names under which each customer of such a server has one of their own.
const DOMAINS: &[&str] = &[
    ".adguard-dns.com",
    ".cloudflare-gateway.com",
    ".dns.controld.com",
    ".dns.nextdns.io",
    ".doh.opendns.com",
    ".mullvad.net",
];

/// The outer names of encrypted ClientHellos: who asks for one of them asks for another that cannot be heard.
const OUTER_NAMES: &[&str] = &["cloudflare-ech.com", "encryptedsni.com"];

const ADDRESSES: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V4(Ipv4Addr::new(149, 112, 112, 112)),
    IpAddr::V4(Ipv4Addr::new(208, 67, 220, 220)),
    IpAddr::V4(Ipv4Addr::new(208, 67, 222, 222)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1001)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe)),
];

/// What a connection to `remote`, by TCP or UDP, hides: the words for the reason, if it does.
fn hidden_behind(remote: SocketAddr) -> Option<String> {
    let is_known = || remote.port() == HTTPS_PORT && ADDRESSES.contains(&remote.ip().to_canonical());
    (remote.port() == PORT || is_known())
        .then(|| format!("encrypted DNS to {} was used", remote.ip().to_canonical()))
}

/// What a connection hides whose ClientHello asks for `name`.
fn hidden_by(name: &str) -> Option<String> {
    if NAMES.contains(&name) || DOMAINS.iter().any(|domain| name.ends_with(domain)) {
        Some(format!("encrypted DNS to {name} was used"))
    } else if OUTER_NAMES.contains(&name) {
        Some(format!("a server name was encrypted, under the outer name {name}"))
    } else {
        None
    }
}

/// A connection to such a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Connection {
    Socket(SocketKey),
    /// One of which only the system's identity of its socket is known for sure: the other end may be translated.
    Identity(u64),
    /// One that is known by this end and the other only.
    Ends(SocketAddr, SocketAddr),
}

/// A stretch of time in which names may have been resolved unheard.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hidden {
    reason: String,
    from: Timestamp,
    to: Timestamp,
}

/// What is used, and what has been told of it.
#[derive(Debug, Default)]
pub(super) struct Encrypted {
    uses: HashMap<String, Use>,
    /// More connections than can be looked after: the uses are taken to go on until none is left.
    has_more: bool,
    /// What happens now has happened by then.
    seen_until: Timestamp,
}

#[derive(Debug)]
struct Use {
    /// It has been told up to then.
    until: Timestamp,
    /// Known to be open.
    connections: HashSet<Connection>,
}

impl Use {
    /// A clock that was set back would leave it told for a time that does not come for long.
    fn has_told(&self, at: Timestamp, seen_until: Timestamp) -> bool {
        self.until > at && self.until <= seen_until.max(at).saturating_add(TOLD_FOR * 2)
    }
}

impl Encrypted {
    /// A server is used from `at` on. What is to be told, if that has not been told already.
    fn is_used(&mut self, reason: String, at: Timestamp, connection: Connection) -> Option<Hidden> {
        let reason = if self.uses.len() < SERVERS_MAX || self.uses.contains_key(&reason) {
            reason
        } else {
            format!("encrypted DNS to more than {SERVERS_MAX} servers was used")
        };
        let connections: usize = self.uses.values().map(|known| known.connections.len()).sum();
        let known = self
            .uses
            .entry(reason.clone())
            .or_insert(Use { until: Timestamp::ZERO, connections: HashSet::new() });
        if connections < CONNECTIONS_MAX {
            known.connections.insert(connection);
        } else {
            self.has_more |= !known.connections.contains(&connection);
        }
        if known.has_told(at, self.seen_until) {
            return None;
        }
        // It may be over again by the time that is spoken of, and not be there to be told anew.
        known.until = at.max(self.seen_until).saturating_add(TOLD_FOR);
        Some(Hidden { reason, from: at, to: known.until })
    }

    /// Whether there are connections that are known by a ClientHello.
    fn has_hellos(&self) -> bool {
        let mut known = self.uses.values().flat_map(|known| &known.connections);
        known.any(|one| !matches!(one, Connection::Socket(_)))
    }

    /// Whether anything is to be told anew.
    fn is_due(&self, now: Timestamp) -> bool {
        let is_told = |known: &Use| known.has_told(now.saturating_add(RENEWED_BEFORE), now);
        !self.uses.values().all(is_told)
    }

    /// What is to be told at `now` of the uses that go on; at least each [`RENEWED_BEFORE`].
    fn renew(&mut self, now: Timestamp, is_open: impl Fn(&Connection) -> bool) -> Vec<Hidden> {
        let mut told = Vec::new();
        for known in self.uses.values_mut() {
            known.connections.retain(&is_open);
        }
        self.has_more &= self.uses.values().any(|known| !known.connections.is_empty());
        for (reason, known) in &mut self.uses {
            let goes_on = self.has_more || !known.connections.is_empty();
            if goes_on && !known.has_told(now.saturating_add(RENEWED_BEFORE), now) {
                let from = known.until.min(now);
                known.until = now.saturating_add(TOLD_FOR);
                told.push(Hidden { reason: reason.clone(), from, to: known.until });
            }
        }
        self.uses.retain(|_, known| known.until > now || !known.connections.is_empty());
        told.sort_by(|one, other| one.reason.cmp(&other.reason));
        told
    }

    /// What has been told of the time after `now`.
    fn standing(&self, now: Timestamp) -> Vec<Hidden> {
        let told = self.uses.iter().filter(|(_, known)| known.until > now);
        let mut told: Vec<_> = told
            .map(|(reason, known)| Hidden { reason: reason.clone(), from: now, to: known.until })
            .collect();
        told.sort_by(|one, other| one.reason.cmp(&other.reason));
        told
    }
}

impl Pipeline {
    /// A connection is there in this state. One that is only asked for resolves nothing yet.
    pub(super) fn heed_server(
        &mut self,
        socket: SocketKey,
        direction: Direction,
        state: FlowState,
        at: Timestamp,
        now: Moment,
    ) {
        let is_used = direction == Direction::Outbound
            && (socket.protocol == Protocol::Udp
                || matches!(state, FlowState::Established | FlowState::Closed));
        if let Some(reason) = is_used.then(|| hidden_behind(socket.remote)).flatten() {
            self.hide(reason, at, Connection::Socket(socket), now);
        }
    }

    /// A ClientHello tells a name by which a server of encrypted DNS is known.
    pub(super) fn heed_hello(&mut self, observed: &ObservedServerName, at: Timestamp, now: Moment) {
        let reason = || hidden_behind(observed.remote).or_else(|| hidden_by(observed.name.as_deref()?));
        if let Some(reason) = (observed.direction == Direction::Outbound).then(reason).flatten() {
            let ends = Connection::Ends(observed.local, observed.remote);
            let connection = observed.socket.map_or(ends, Connection::Identity);
            self.hide(reason, at, connection, now);
        }
    }

    /// Encrypted DNS that goes on is told anew, before anything in a report that reaches until `seen_until` can end it.
    pub(super) fn renew_encrypted(&mut self, seen_until: Timestamp, now: Moment) {
        self.encrypted.seen_until = seen_until;
        if self.encrypted.uses.is_empty() || !self.encrypted.is_due(seen_until) {
            return;
        }
        let flows = self.flows.iter();
        let others: HashSet<Connection> = if self.encrypted.has_hellos() {
            let ways = |(socket, flow): (&SocketKey, &OpenFlow)| {
                [Connection::Identity(socket.socket), Connection::Ends(flow.local, socket.remote)]
            };
            flows.flat_map(ways).collect()
        } else {
            HashSet::new()
        };
        // One of those that there was no room for may be among them.
        let (flows, has_unfollowed) = (&self.flows, self.unfollowed > 0);
        let is_open = |connection: &Connection| match connection {
            Connection::Socket(socket) => has_unfollowed || flows.contains_key(socket),
            other => has_unfollowed || others.contains(other),
        };
        let hidden = self.encrypted.renew(seen_until, is_open);
        self.tell_hidden(hidden, now);
    }

    /// What has been told ahead is told again, where what was told may not have been kept.
    pub(super) fn restate_encrypted(&mut self, now: Moment) {
        let hidden = self.encrypted.standing(self.encrypted.seen_until);
        self.tell_hidden(hidden, now);
    }

    fn hide(&mut self, reason: String, at: Timestamp, connection: Connection, now: Moment) {
        let hidden = self.encrypted.is_used(reason, at, connection);
        self.tell_hidden(hidden, now);
    }

    fn tell_hidden(&mut self, hidden: impl IntoIterator<Item = Hidden>, now: Moment) {
        for Hidden { reason, from, to } in hidden {
            // How many names were not heard is not known.
            let grade = Grade::Lost { count: 0, reason };
            let (facet, to) = (Facet::Names, Some(to));
            let change = CoverageChange { facet, grade, from, to, scope: None, announced_from: None };
            self.state(change, now);
        }
    }
}

#[cfg(test)]
mod tests;
