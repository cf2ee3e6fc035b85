//! The flow records of a fleet, each made of its host and place alone, so that nobody has to keep them: whoever wants to know
//! what is true makes them again.
//!
//! Each host has them in order of time, evenly over all of its history: four of five to sites by Zipf's law, which everybody
//! knows by name, the rest to addresses that hardly anybody else talks to. One of ten lives for minutes, the others for
//! seconds. Every day programs are started anew.

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use alibi_proto::{
    flow::RECORD_SPAN_MAX,
    id::{HostBoot, HostId},
    time::Timestamp,
    window::Window,
};
use fastrand::Rng;

/// Sites that everybody knows by name.
pub const SITES: u32 = 2_048;
/// Networks of 16 bits that these lie in.
const NETWORKS: u32 = 256;
/// Addresses that hardly anybody talks to.
const OTHERS: u32 = 1 << 20;
/// Of so many flows, one is to such an address.
const OTHER_OF: u32 = 5;
/// Of so many flows, one is long.
const LONG_OF: u32 = 10;
/// Programs that talk, on a host at a time.
pub const PROGRAMS: u32 = 8;
/// The boot of every host.
pub const BOOT: &str = "0d5e2a2e-5e0d-4a44-9c3b-8d2f6a1c7b90";

const DAY_NS: u64 = 86_400_000_000_000;

/// How many there are, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Another history for each.
    pub seed: u64,
    /// How many hosts there are.
    pub hosts: u32,
    /// How many flows each has.
    pub flows_of_each: u64,
    /// The first instant of which anything is recorded.
    pub begins: Timestamp,
    /// How long it goes on.
    pub span: Duration,
}

/// A flow: a connection with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its other end.
    pub remote: Ipv4Addr,
    /// The site, if it is one.
    pub site: Option<u32>,
    /// The port of the other end.
    pub port: u16,
    /// Its own.
    pub local_port: u16,
    /// Its beginning.
    pub first: Timestamp,
    /// Its end.
    pub last: Timestamp,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// The day, counted from the first, on which its program was started.
    pub day: u32,
    /// Which of the programs of that day.
    pub program: u32,
}

/// All that can be made of a plan.
#[derive(Debug)]
pub struct Fleet {
    plan: Plan,
    /// Of each site, how often it or one before it is talked to, of all.
    shares: Vec<f64>,
}

impl Fleet {
    /// Of this plan.
    pub fn new(plan: Plan) -> Self {
        let mut all = 0.0;
        let sums: Vec<f64> = (1..=SITES)
            .map(|rank| {
                all += 1.0 / f64::from(rank);
                all
            })
            .collect();
        Self { plan, shares: sums.into_iter().map(|sum| sum / all).collect() }
    }

    /// The plan.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Between the beginnings of two flows of a host, in nanoseconds.
    pub const fn step_ns(&self) -> u64 {
        self.plan.span.as_nanos() as u64 / self.plan.flows_of_each
    }

    /// Until when everything before the flow in this place has begun.
    pub const fn reached(&self, flow: u64) -> Timestamp {
        Timestamp::from_nanos(self.plan.begins.as_nanos() + self.step_ns() * flow)
    }

    /// The flow of a host in this place.
    pub fn flow(&self, host: u32, flow: u64) -> Made {
        let place = u64::from(host) << 40 | flow;
        let mut rng = Rng::with_seed(place.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.plan.seed);
        let site = (rng.u32(0..OTHER_OF) > 0).then(|| {
            let share = rng.f64();
            (self.shares.partition_point(|sum| *sum < share) as u32).min(SITES - 1)
        });
        let remote = site.map_or_else(|| other_address(rng.u32(0..OTHERS)), address_of);
        let first = self.reached(flow).as_nanos() + rng.u64(0..self.step_ns());
        let life_ns = match rng.u32(0..LONG_OF) {
            0 => rng.u64(0..RECORD_SPAN_MAX.as_nanos() as u64),
            _ => rng.u64(0..5_000_000_000),
        };
        Made {
            remote,
            site,
            port: if site.is_none_or(|site| site % 16 > 0) { 443 } else { 80 },
            local_port: rng.u16(32_768..60_999),
            first: Timestamp::from_nanos(first),
            last: Timestamp::from_nanos(first + life_ns),
            sent: rng.u64(100..20_000),
            received: rng.u64(100..2_000_000),
            day: self.day_of(first),
            program: rng.u32(0..PROGRAMS),
        }
    }

    /// The places of the flows of a host that may be alive in a window: no others are.
    pub fn near(&self, window: Window) -> Range<u64> {
        let place = |instant: Timestamp| {
            instant.as_nanos().saturating_sub(self.plan.begins.as_nanos()) / self.step_ns()
        };
        let until = (place(window.to()) + 1).min(self.plan.flows_of_each);
        place(window.from().saturating_sub(RECORD_SPAN_MAX)).min(until)..until
    }

    fn day_of(&self, nanos: u64) -> u32 {
        (nanos.saturating_sub(self.plan.begins.as_nanos()) / DAY_NS) as u32
    }

    /// When the programs of a day are started.
    pub const fn day(&self, day: u32) -> Timestamp {
        Timestamp::from_nanos(self.plan.begins.as_nanos() + DAY_NS * day as u64)
    }

    /// When all hosts were started.
    pub const fn booted(&self) -> Timestamp {
        Timestamp::from_nanos(self.plan.begins.as_nanos().saturating_sub(DAY_NS))
    }

    /// One of the sites, as often as they are talked to.
    pub fn some_site(&self, rng: &mut Rng) -> u32 {
        let share = rng.f64();
        (self.shares.partition_point(|sum| *sum < share) as u32).min(SITES - 1)
    }
}

/// The host with this number.
pub fn host_of(number: u32) -> HostId {
    let mut bytes = [0x5C; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    HostId::from_bytes(bytes)
}

/// The number of a host.
pub fn number_of(host: HostId) -> u32 {
    let [a, b, c, d, ..] = *host.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Its boot.
pub fn boot_of(number: u32) -> HostBoot {
    HostBoot::new(host_of(number), BOOT)
}

/// The process id of a program.
pub const fn pid_of(day: u32, program: u32) -> u32 {
    1_000 + day * PROGRAMS + program
}

/// What names a connection in its host's boot: no other has it.
pub const fn cookie_of(flow: u64) -> u64 {
    flow + 1
}

/// Where a site is: many of them in each network.
pub fn address_of(site: u32) -> Ipv4Addr {
    let network = (site % NETWORKS).wrapping_mul(40_503) & 0x3FFF;
    Ipv4Addr::from(0x2000_0000 | network << 16 | (site / NETWORKS) << 8 | 7)
}

/// What a site is called.
pub fn name_of(site: u32) -> String {
    format!("www.site-{site}.example")
}

/// An address that is no site's.
fn other_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x8000_0000 | number.wrapping_mul(2_654_435_761) >> 2)
}

/// What the one at such an address is called. Nobody was seen to ask for it.
pub fn name_at(address: Ipv4Addr) -> String {
    format!("h{:08x}.example", u32::from(address))
}

/// An address that nobody talks to (TEST-NET-1).
pub fn nobodys_address(rng: &mut Rng) -> Ipv4Addr {
    Ipv4Addr::from(0xC000_0200 | rng.u32(0..256))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> Fleet {
        Fleet::new(Plan {
            seed: 1,
            hosts: 3,
            flows_of_each: 5_000,
            begins: Timestamp::from_secs(1_700_000_000),
            span: Duration::from_secs(3 * 86_400),
        })
    }

    #[test]
    fn what_is_made_again_is_the_same_and_in_order() {
        let fleet = fleet();
        let made: Vec<Made> = (0..5_000).map(|flow| fleet.flow(2, flow)).collect();
        assert!(made.is_sorted_by_key(|made| made.first));
        assert_eq!(made[77], fleet.flow(2, 77));
        assert_ne!(made[77], fleet.flow(1, 77));
        let to_sites = made.iter().filter(|made| made.site.is_some()).count();
        assert!((3_900..4_100).contains(&to_sites), "{to_sites}");
        let to_the_first = made.iter().filter(|made| made.site == Some(0)).count();
        assert!((400..600).contains(&to_the_first), "{to_the_first}");
        assert_eq!((made[0].day, made[4_999].day), (0, 2));
        assert_eq!(number_of(host_of(2)), 2);
    }

    #[test]
    fn whatever_is_alive_in_a_window_is_near_it() {
        let fleet = fleet();
        let mut rng = Rng::with_seed(7);
        for _ in 0..50 {
            let from = fleet.plan().begins.as_nanos() + rng.u64(0..3 * DAY_NS);
            let to = from + rng.u64(1..DAY_NS / 4);
            let window = Window::new(Timestamp::from_nanos(from), Timestamp::from_nanos(to)).unwrap();
            let near = fleet.near(window);
            let alive = |flow: &u64| {
                let made = fleet.flow(0, *flow);
                window.overlaps(made.first, made.last)
            };
            assert_eq!((0..5_000).filter(alive).count(), near.clone().filter(alive).count(), "{near:?}");
            assert!((near.end - near.start) < 2_000);
        }
    }

    #[test]
    fn no_two_sites_have_one_address() {
        let mut addresses: Vec<Ipv4Addr> = (0..SITES).map(address_of).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), SITES as usize);
    }
}
