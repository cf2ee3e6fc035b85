//! What surrounds processes and connections: when the host was suspended, and its network interfaces. For a source on a
//! system where nobody else tells of that (on Linux, sensors do).
//!
//! A source opens it with a [`Wake`] that ends its own wait, and looks around once per turn, before it looks at anything
//! else:
//!
//! ```text
//! let (outlet, wake) = outlet.with_wake()?;
//! let mut surroundings = Surroundings::open(&wake);
//! loop {
//!     let (at, observations) = surroundings.look();
//!     // Look at all else, and report it with these up to `at`.
//!     outlet.wait_or_wake(period)?;
//! }
//! ```
//!
//! Nothing that is missed here makes an answer about connections wrong: a suspend that is not told leaves what was open
//! open, and the time in which nobody looked a gap.

use std::{io, time::Duration};

use alibi_proto::time::Moment;

#[cfg(not(target_os = "linux"))]
use super::Wake;
use super::{
    Fact, Observation,
    interfaces::{Change, Table},
    suspends::{self, Suspends},
};
use crate::sys::Interface;

/// So often the interfaces are looked at though nobody said that they changed.
const LISTING_INTERVAL: Duration = Duration::from_secs(10);

/// What is asked of the system.
pub(super) trait System: Send {
    /// This instant.
    fn now(&self) -> Moment;

    /// How long the host has been awake in this boot, in nanoseconds.
    fn awake_ns(&self) -> u64;

    /// How long the host slept when it slept last. None where the system does not tell, or anything speaks against it having
    /// slept just once since this was asked last.
    fn last_sleep(&mut self) -> Option<Duration>;

    /// Whether interfaces may have changed since this was asked last.
    fn interfaces_may_have_changed(&mut self) -> bool;

    /// All network interfaces.
    ///
    /// # Errors
    /// When the system does not tell.
    fn interfaces(&mut self) -> io::Result<Vec<Interface>>;
}

/// Looks around.
pub(super) struct Surroundings {
    system: Box<dyn System>,
    suspends: Suspends,
    table: Table,
    /// When the interfaces are looked at though nobody says that they changed, in nanoseconds since boot.
    listing_is_due_ns: u64,
    failures: u64,
}

impl Surroundings {
    /// The surroundings of this host. `wake` is woken when the host is about to be suspended, when it was resumed, and when
    /// its interfaces change, where the system tells. What it does not tell is said in the log, and looked for.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn open(wake: &Wake) -> Self {
        let wake = wake.clone();
        Self::of(Box::new(crate::sys::Watch::open(Box::new(move || wake.wake()))))
    }

    fn of(system: Box<dyn System>) -> Self {
        Self {
            system,
            suspends: Suspends::default(),
            table: Table::default(),
            listing_is_due_ns: 0,
            failures: 0,
        }
    }

    /// What has happened since the last look, of interfaces the first time also what there is; and an instant that none of
    /// it is younger than. Takes up to two seconds just after a suspend, while the system has not told of its end yet, and
    /// some milliseconds otherwise.
    pub(super) fn look(&mut self) -> (Moment, Vec<Observation>) {
        let mut observations = Vec::new();
        observations.extend(self.look_at_clocks());
        self.look_at_interfaces(&mut observations);
        (self.system.now(), observations)
    }

    fn look_at_clocks(&mut self) -> Option<Observation> {
        let (now, awake_ns) = (self.system.now(), self.system.awake_ns());
        let after = self.system.now();
        let system = &mut self.system;
        let unbroken = |slept_ns| suspends::unbroken_ns(slept_ns, system.last_sleep()?);
        self.suspends.look(now, awake_ns, after, unbroken)
    }

    fn look_at_interfaces(&mut self, observations: &mut Vec<Observation>) {
        let now = self.system.now();
        // Asked in any case: what was said before this listing is in it.
        let may_have_changed = self.system.interfaces_may_have_changed();
        if !may_have_changed && now.boot_ns < self.listing_is_due_ns {
            return;
        }
        let interval_ns = u64::try_from(LISTING_INTERVAL.as_nanos()).unwrap_or(u64::MAX);
        match self.system.interfaces() {
            Ok(interfaces) => {
                self.listing_is_due_ns = now.boot_ns.saturating_add(interval_ns);
                list(&mut self.table, interfaces);
            }
            Err(problem) => {
                // What was told stays so, and it is tried again at the next look.
                self.listing_is_due_ns = 0;
                self.failures += 1;
                if self.failures.is_power_of_two() {
                    let failures = self.failures;
                    tracing::warn!(%problem, failures, "network interfaces cannot be looked at: trying again");
                }
            }
        }
        let changed = self.table.take_changed(now.wall, None).into_iter();
        observations
            .extend(changed.map(|link| Observation { at: now, fact: Fact::LinkChanged(Box::new(link)) }));
    }
}

/// Takes a listing over: what is not in it has gone.
fn list(table: &mut Table, interfaces: Vec<Interface>) {
    table.begin_anew();
    let mut routes = Vec::new();
    for Interface { index, name, up, running, addresses, default_gateways } in interfaces {
        table.apply(Change::Link { index, name, up, running });
        addresses.into_iter().for_each(|address| table.apply(Change::Address { index, address }));
        routes.extend(default_gateways.into_iter().map(|gateway| (index, gateway)));
    }
    table.set_routes(routes.into_iter().collect());
}

#[cfg(not(target_os = "linux"))]
impl System for crate::sys::Watch {
    fn now(&self) -> Moment {
        crate::sys::now()
    }

    fn awake_ns(&self) -> u64 {
        crate::sys::awake_ns()
    }

    fn last_sleep(&mut self) -> Option<Duration> {
        Self::last_sleep(self)
    }

    fn interfaces_may_have_changed(&mut self) -> bool {
        Self::interfaces_may_have_changed(self)
    }

    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        crate::sys::interfaces()
    }
}

#[cfg(test)]
mod tests;
