//! What the kernel tells of sleeps, and the network interfaces.
//!
//! It writes down when it last fell asleep, just before the processors stop, and when it woke up, just after they go on; each
//! time, also when it wakes up in the dark for a moment (`powerChangeDone` in XNU's `IOPMrootDomain.cpp`). Nobody is woken by
//! any of it: a source looks each period.

use std::{io, time::Duration};

use super::{super::bsd, kernel};
use crate::sys::Interface;

/// Looks when asked.
pub(crate) struct Watch;

impl Watch {
    /// `wake` is never called: nothing is told here without being asked for.
    pub(crate) fn open(_wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self
    }

    /// How long the host slept when it slept last. None where the kernel does not tell.
    pub(crate) fn last_sleep(&mut self) -> Option<Duration> {
        kernel::instant(c"kern.waketime")?.checked_sub(kernel::instant(c"kern.sleeptime")?)
    }

    /// They always may.
    pub(crate) fn interfaces_may_have_changed(&self) -> bool {
        true
    }
}

/// All network interfaces.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces = bsd::interfaces()?;
    for (index, gateway) in bsd::default_routes(&kernel::routes()?) {
        if let Some(interface) = interfaces.get_mut(&index) {
            interface.default_gateways.push(gateway);
        }
    }
    Ok(interfaces.into_values().collect())
}
