//! Network interfaces: what there is, and each change, from rtnetlink (linux/rtnetlink.h).
//!
//! Of the agent's own network namespace. A record is made only when what it tells is no longer so: the kernel repeats
//! itself. It does not tell everything: IPv4 routes go without a word when their interface goes down, and a route can be
//! replaced by another. So the default routes are asked for anew after each change that may have touched them.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use alibi_proto::time::Moment;

use super::{
    Sensor,
    netlink::socket::{Asker, Heard, Listener, ROUTE},
};
use crate::{
    capture::{
        CaptureError, Fact, Observation,
        interfaces::{Change, Table},
    },
    sys,
};

mod messages;
#[cfg(test)]
mod tests;

use messages::{change, default_routes};

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// `RTM_GETLINK`, `RTM_GETADDR`, `RTM_GETROUTE`
const GET_LINKS: u16 = 18;
const GET_ADDRESSES: u16 = 22;
const GET_ROUTES: u16 = 26;
/// `struct rtgenmsg` as long as the longest header of the three; all address families.
const EVERYTHING: [u8; 16] = [0; 16];
/// Room for what has been said and not been taken: some thousands of messages.
const ROOM_BYTES: usize = 1 << 20;
/// In one turn at most so much is taken; the rest waits for the next one.
const DATAGRAMS_PER_TURN: usize = 4096;

/// The sensor of network interfaces.
pub(super) struct Links {
    listener: Listener,
    asker: Asker,
    network_namespace: Option<u64>,
    table: Table,
    /// What is known is not what there is: at first, and after a failure.
    is_stale: bool,
    overruns: u64,
    failures: u64,
}

impl Links {
    /// Listens in the network namespace of this thread.
    ///
    /// # Errors
    /// When the system has no rtnetlink, or does not let the agent use it.
    pub(super) fn open() -> Result<Self, CaptureError> {
        Self::open_with_room(ROOM_BYTES)
    }

    fn open_with_room(room_bytes: usize) -> Result<Self, CaptureError> {
        let problem = |source| CaptureError::Kernel {
            what: "listen to changes of network interfaces (rtnetlink)",
            source,
            way_out: "a sandbox around the agent must allow sockets of AF_NETLINK",
        };
        Ok(Self {
            listener: Listener::open(ROUTE, GROUPS, room_bytes).map_err(problem)?,
            asker: Asker::open(ROUTE).map_err(problem)?,
            network_namespace: sys::network_namespace(),
            table: Table::default(),
            is_stale: true,
            overruns: 0,
            failures: 0,
        })
    }

    /// Takes what there is now; what has gone is told as gone.
    fn resync(&mut self) -> io::Result<()> {
        let links = self.asker.dump(GET_LINKS, &EVERYTHING, change)?;
        let addresses = self.asker.dump(GET_ADDRESSES, &EVERYTHING, change)?;
        self.table.begin_anew();
        links.into_iter().chain(addresses).for_each(|change| self.table.apply(change));
        self.ask_for_routes()
    }

    fn ask_for_routes(&mut self) -> io::Result<()> {
        let routes = self.asker.dump(GET_ROUTES, &EVERYTHING, |message| Some(default_routes(message)))?;
        let routes: BTreeSet<_> = routes.into_iter().flatten().collect();
        self.table.set_routes(routes);
        Ok(())
    }

    fn hear(&mut self, now: Moment, facts: &mut Vec<Observation>) -> io::Result<()> {
        let mut overrun = false;
        for _ in 0..DATAGRAMS_PER_TURN {
            let changes: Vec<Change> = match self.listener.hear()? {
                Heard::Nothing => break,
                Heard::Overrun => {
                    overrun = true;
                    continue;
                }
                Heard::Datagram(datagram) => {
                    super::netlink::message::messages(datagram).filter_map(change).collect()
                }
            };
            for change in changes {
                self.table.apply(change);
                // Each on its own: down and up again between two turns are two changes.
                self.report(now, facts);
            }
        }
        if overrun {
            self.overruns += 1;
            let overruns = self.overruns;
            tracing::warn!(overruns, "changes of network interfaces were missed; all are looked at anew");
            self.resync()?;
        } else if self.table.take_routes_are_stale() {
            self.ask_for_routes()?;
        }
        Ok(())
    }

    fn report(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        let changed = self.table.take_changed(now.wall, self.network_namespace);
        facts.extend(
            changed.into_iter().map(|link| Observation { at: now, fact: Fact::LinkChanged(Box::new(link)) }),
        );
    }
}

impl Sensor for Links {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        let taken = if self.is_stale { self.resync() } else { Ok(()) };
        self.report(now, facts);
        let taken = taken.and_then(|()| self.hear(now, facts));
        self.report(now, facts);
        // No answer about processes or connections depends on an interface: what they do goes on being recorded.
        self.is_stale = taken.is_err();
        if let Err(problem) = taken {
            self.failures += 1;
            if self.failures.is_power_of_two() {
                let failures = self.failures;
                tracing::warn!(%problem, failures, "network interfaces cannot be looked at: trying again");
            }
        }
        // What an interface was at an instant is not promised to anybody, so nothing waits for a burst to be over.
        Ok(true)
    }
}
