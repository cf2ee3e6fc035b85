//! What the store tells of executables over the fleet, and within which bounds it keeps that.

use std::time::Duration;

use alibi_proto::{
    id::HostId,
    prevalence::{About, Identity, Sighting},
};

/// Sightings are kept for so long after the last, besides as long as all else is kept: what was seen long ago is not new.
pub const SIGHTINGS_KEPT: Duration = Duration::from_secs(400 * 86_400);

/// Executables that are remembered of one host, those that were seen last. Few under test, so that the limit is met.
pub const SIGHTINGS_OF_HOST_MAX: usize = if cfg!(test) { 64 } else { 100_000 };

/// Paths that are kept of an executable on one host, the first.
pub const SIGHTING_PATHS_MAX: usize = 8;

/// The last time of a sighting may be late by less than so much; the first is exact.
pub const LAST_WITHIN: Duration = Duration::from_secs(3_600);

/// What a host saw of an executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstSeen {
    /// Which.
    pub identity: Identity,
    /// When.
    pub sighting: Sighting,
    /// What it was called there, the first [`SIGHTING_PATHS_MAX`], sorted.
    pub paths: Vec<String>,
    /// It was called by others, too.
    pub more_paths: bool,
    /// What it is, as the host told it.
    pub about: About,
}

/// What one host saw of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SightingOn {
    /// The host.
    pub host: HostId,
    /// When, by its own clock.
    pub sighting: Sighting,
}
