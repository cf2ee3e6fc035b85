//! Who can be talked to: sites, the few of them that everybody asks and the many that hardly anybody does (Zipf's law), a
//! third of them behind addresses that they share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

/// How much less is asked for what is asked for less: Zipf's law with this exponent.
const EXPONENT: f64 = 1.0;
/// Addresses that shared sites lie behind.
const SHARED: u32 = 64;
/// Sites below one name.
const BELOW: u32 = 8;

/// All sites.
#[derive(Debug)]
pub struct World {
    sites: Vec<Site>,
    /// Of each, how often it or one before it is asked for, of all.
    shares: Vec<f64>,
}

/// Somebody who can be talked to.
#[derive(Clone, Debug)]
pub struct Site {
    /// None for one that is known by its address alone.
    pub name: Option<String>,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
    /// How it is talked to.
    pub by: By,
}

/// How a site is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// TCP 443, with a ClientHello that has the name.
    Tls,
    /// UDP 443, which tells no name.
    Quic,
    /// TCP 80, which tells no name here.
    Plain,
}

impl World {
    /// So many sites, of this seed.
    pub fn new(seed: u64, sites: u32) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x5EED_0F51_7E5A_11AB);
        let sites: Vec<Site> = (0..sites.max(1)).map(|rank| site(rank, &mut rng)).collect();
        let mut all = 0.0;
        let weights = (1..=sites.len()).map(|place| (place as f64).powf(-EXPONENT));
        let sums: Vec<f64> = weights
            .map(|weight| {
                all += weight;
                all
            })
            .collect();
        Self { sites, shares: sums.into_iter().map(|sum| sum / all).collect() }
    }

    /// How many.
    pub fn len(&self) -> u32 {
        u32::try_from(self.sites.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is nobody; there always is.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The site in this place.
    ///
    /// # Panics
    /// When there is none.
    pub fn site(&self, rank: u32) -> &Site {
        &self.sites[rank as usize]
    }

    /// One, as often as it is asked for.
    pub fn some_site(&self, rng: &mut Rng) -> u32 {
        let share = rng.f64();
        let place = self.shares.partition_point(|sum| *sum < share).min(self.sites.len() - 1);
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    /// The group that the site in this place is in, with its neighbours.
    pub const fn group(rank: u32) -> u32 {
        rank / BELOW
    }

    /// The sites of a group.
    pub const fn below(group: u32) -> std::ops::Range<u32> {
        group * BELOW..(group + 1) * BELOW
    }

    /// What the names of a group are below.
    pub fn suffix(group: u32) -> String {
        format!("group-{group}.example")
    }

    /// Nobody has this name.
    pub fn absent_name(rng: &mut Rng) -> String {
        format!("nobody-{}.absent.example", rng.u32(..))
    }

    /// Nobody has this address (TEST-NET-1).
    pub fn absent_address(rng: &mut Rng) -> IpAddr {
        IpAddr::from(Ipv4Addr::from(0xC000_0200 | rng.u32(0..256)))
    }
}

fn site(rank: u32, rng: &mut Rng) -> Site {
    let name = (rng.f64() > 0.1).then(|| format!("site-{rank}.{}", World::suffix(World::group(rank))));
    let is_shared = name.is_some() && rng.f64() < 0.35;
    let addresses = if is_shared {
        let one = rng.u32(0..SHARED);
        vec![shared(one), shared((one + 1) % SHARED)]
    } else {
        (0..rng.u32(1..=3)).map(|index| own(rank, index, rng)).collect()
    };
    let by = match rng.f64() {
        share if is_shared || share < 0.75 => By::Tls,
        share if share < 0.9 => By::Quic,
        _ => By::Plain,
    };
    Site { name, addresses, by }
}

/// TEST-NET-3.
fn shared(number: u32) -> IpAddr {
    IpAddr::from(Ipv4Addr::from(0xCB00_7100 | number))
}

/// Of the networks for benchmarks (RFC 2544) and for documentation (RFC 3849).
fn own(rank: u32, index: u32, rng: &mut Rng) -> IpAddr {
    if rng.f64() < 0.15 {
        return IpAddr::from(Ipv6Addr::from(
            0x2001_0DB8_u128 << 96 | u128::from(rank) << 16 | u128::from(index),
        ));
    }
    IpAddr::from(Ipv4Addr::from(0xC612_0000 | (rank * 4 + index) & 0x0001_FFFF))
}
