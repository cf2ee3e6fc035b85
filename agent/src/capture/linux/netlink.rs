//! Netlink: what the kernel tells without a program loaded into it. The fallback where BPF cannot be used.

use std::time::Duration;

use super::Sensor;
use crate::capture::CaptureError;

mod connections;
pub(super) mod message;
mod namespaces;
mod processes;
pub(super) mod socket;
#[cfg(test)]
pub(super) mod testing;

pub(super) const NAME: &str = "netlink";

/// The sensors.
///
/// # Errors
/// When the agent lacks the right, or the kernel the feature; the error says which.
pub(super) fn open(period: Duration) -> Result<Vec<Box<dyn Sensor>>, CaptureError> {
    let processes = processes::Processes::open()?;
    let connections = connections::Connections::open(period)?;
    Ok(vec![Box::new(processes), Box::new(connections)])
}
