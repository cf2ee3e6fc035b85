//! Questions at random, as analysts ask them: by address, by network, by name; about whom everybody talks to, about whom hardly
//! anybody does, and about whom nobody can have.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use alibi_proto::{flow::Protocol, time::Timestamp, window::Window, wire};
use fastrand::Rng;

use crate::fleet::model::{Lived, World, name_of};

const SHORTEST_S: f64 = 30.0;
/// How many windows may begin before anybody recorded.
const EARLY: f64 = 0.1;
/// Hosts of a question that is not about all of them.
const HOSTS_MAX: usize = 8;

/// A question.
#[derive(Clone, Debug)]
pub struct Asked {
    /// About whom.
    pub what: What,
    /// At which port, if not any.
    pub port: Option<u16>,
    /// When.
    pub window: Window,
    /// Of the laptops of these numbers; of all if there is none.
    pub hosts: Vec<u32>,
}

/// Who may have been talked to.
#[derive(Clone, Debug)]
pub enum What {
    /// This address.
    Address(IpAddr),
    /// Addresses that begin with so many bits of this one.
    Network(Ipv4Addr, u8),
    /// The name of a site, in this place of the world if there is one; with the addresses to take for it, or without.
    Name(String, Option<u32>, Vec<IpAddr>),
    /// All sites below a name: those of this group.
    Below(u32),
}

impl What {
    /// Whether an answer can be proven: what is asked about by name is found by addresses that were learned somehow.
    pub const fn is_provable(&self) -> bool {
        match self {
            Self::Address(_) | Self::Network(..) => true,
            Self::Name(_, _, given) => !given.is_empty(),
            Self::Below(_) => false,
        }
    }

    /// Whether this connection is one that was asked about.
    pub fn is_meant(&self, world: &World, lived: &Lived) -> bool {
        match self {
            Self::Name(_, rank, given) if given.is_empty() => rank.is_some() && lived.site == *rank,
            Self::Below(group) => lived.site.is_some_and(|rank| World::below(*group).contains(&rank)),
            _ => self.may_be_meant(world, lived),
        }
    }

    /// Whether it can be taken for one: it went to an address of one.
    pub fn may_be_meant(&self, world: &World, lived: &Lived) -> bool {
        let remote = lived.remote();
        match self {
            Self::Address(address) => remote == *address,
            Self::Network(network, bits) => match remote {
                IpAddr::V4(remote) => {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                    u32::from(remote) & mask == u32::from(*network) & mask
                }
                IpAddr::V6(_) => false,
            },
            Self::Name(_, rank, given) => {
                let of_site = rank.is_some_and(|rank| world.site(rank).addresses.contains(&remote));
                given.contains(&remote) || of_site
            }
            Self::Below(group) => World::below(*group)
                .filter(|rank| *rank < world.len())
                .map(|rank| world.site(rank))
                .any(|site| site.name.is_some() && site.addresses.contains(&remote)),
        }
    }
}

impl Asked {
    /// As it is sent.
    pub fn to_wire(&self) -> wire::WhoRequest {
        let (target, addresses) = match &self.what {
            What::Address(address) => (address.to_string(), Vec::new()),
            What::Network(address, bits) => (format!("{address}/{bits}"), Vec::new()),
            What::Name(name, _, given) => (name.clone(), given.iter().map(ToString::to_string).collect()),
            What::Below(group) => (format!("*.{}", World::suffix(*group)), Vec::new()),
        };
        let question = wire::Question {
            target,
            from_ns: self.window.from().as_nanos(),
            to_ns: self.window.to().as_nanos(),
            port: self.port.map(Into::into),
            protocol: wire::Protocol::Unspecified.into(),
            addresses,
        };
        let hosts = self.hosts.iter().map(|number| name_of(*number)).collect();
        wire::WhoRequest {
            question: Some(question),
            scope: Some(wire::HostScope { hosts, ..Default::default() }),
        }
    }

    /// Whether the port is one that was asked about.
    pub fn admits(&self, lived: &Lived) -> bool {
        self.port.is_none_or(|port| {
            lived.socket.remote.port() == port
                && matches!(lived.socket.protocol, Protocol::Tcp | Protocol::Udp)
        })
    }
}

/// As one would type it.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire::WhoRequest { question, scope } = self.to_wire();
        let question = question.unwrap_or_default();
        write!(f, "`who {} --from {} --to {}", question.target, self.window.from(), self.window.to())?;
        if let Some(port) = self.port {
            write!(f, " --port {port}")?;
        }
        question.addresses.iter().try_for_each(|address| write!(f, " --address {address}"))?;
        scope.unwrap_or_default().hosts.iter().try_for_each(|host| write!(f, " --host {host}"))?;
        f.write_str("`")
    }
}

/// Questions without end; the same of the same seed.
pub struct Questions<'a> {
    world: &'a World,
    rng: Rng,
    /// The numbers of the laptops.
    laptops: std::ops::Range<u32>,
    /// All windows end before that.
    until: Timestamp,
    /// And most begin after this.
    from: Timestamp,
}

impl<'a> Questions<'a> {
    /// About what these laptops did between two instants.
    pub fn new(
        world: &'a World,
        seed: u64,
        laptops: std::ops::Range<u32>,
        from: Timestamp,
        until: Timestamp,
    ) -> Self {
        Self { world, rng: Rng::with_seed(seed), laptops, until, from }
    }

    fn window(&mut self) -> Window {
        let span_s = self.until.since(self.from).as_secs_f64().max(1.0);
        // As many of minutes as of hours and of days.
        let length_s = SHORTEST_S * (span_s / SHORTEST_S).max(1.0).powf(self.rng.f64());
        let end_s = span_s * self.rng.f64();
        let to = self.until.saturating_sub(Duration::from_secs_f64(end_s));
        let length = Duration::from_secs_f64(length_s.min(span_s));
        let from = to.saturating_sub(length);
        // Now and then about a time in which nobody recorded yet.
        let is_early = self.rng.f64() < EARLY;
        let from = if is_early { from } else { from.max(self.from) };
        Window::new(from.min(to.saturating_sub(Duration::from_secs(1))), to)
            .unwrap_or_else(|_| unreachable!("it has a length"))
    }

    fn what(&mut self) -> What {
        let rank = if self.rng.bool() {
            self.world.some_site(&mut self.rng)
        } else {
            self.rng.u32(0..self.world.len())
        };
        let site = self.world.site(rank);
        let address = site.addresses[self.rng.usize(0..site.addresses.len())];
        match (self.rng.u32(0..100), &site.name, address) {
            (0..8, ..) => What::Address(World::absent_address(&mut self.rng)),
            (8..14, ..) => What::Name(World::absent_name(&mut self.rng), None, Vec::new()),
            (14..30, _, IpAddr::V4(address)) => What::Network(address, self.rng.u8(22..31)),
            (30..48, Some(name), _) => What::Name(name.clone(), Some(rank), Vec::new()),
            (48..58, Some(name), _) => What::Name(name.clone(), Some(rank), site.addresses.clone()),
            (58..66, ..) => What::Below(World::group(rank)),
            _ => What::Address(address),
        }
    }
}

impl Iterator for Questions<'_> {
    type Item = Asked;

    fn next(&mut self) -> Option<Asked> {
        let (what, window) = (self.what(), self.window());
        let port = (self.rng.f64() < 0.15).then(|| [443, 22, 80][self.rng.usize(0..3)]);
        let mut hosts = Vec::new();
        if self.rng.f64() < 0.3 {
            hosts.extend((0..self.rng.usize(1..=HOSTS_MAX)).map(|_| self.rng.u32(self.laptops.clone())));
            hosts.sort_unstable();
            hosts.dedup();
        }
        Some(Asked { what, port, window, hosts })
    }
}
