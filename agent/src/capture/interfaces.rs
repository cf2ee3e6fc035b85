//! The network interfaces as they are known, and which of them are no longer as they were told last. Pure.

use std::collections::{BTreeMap, BTreeSet};

use alibi_proto::{link::LinkRecord, time::Timestamp};

/// More interfaces than a host has; those beyond are counted, and the log says so.
const INTERFACES_MAX: usize = 1024;
/// Addresses, and default routes, of one interface that are told.
const TEXTS_MAX: usize = 64;

/// A default route: the interface that it goes through, and the gateway as text.
pub(in crate::capture) type Route = (u32, String);

/// What has become of an interface.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux tells of changes one by one"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::capture) enum Change {
    Link { index: u32, name: String, up: bool, running: bool },
    LinkGone { index: u32 },
    Address { index: u32, address: String },
    AddressGone { index: u32, address: String },
    DefaultRoutes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    /// False for one that has gone, until that has been told.
    present: bool,
    name: String,
    up: bool,
    running: bool,
    addresses: BTreeSet<String>,
    gateways: BTreeSet<String>,
}

/// By index.
#[derive(Debug, Default)]
pub(in crate::capture) struct Table {
    links: BTreeMap<u32, Link>,
    told: BTreeMap<u32, Link>,
    touched: BTreeSet<u32>,
    routes_are_stale: bool,
    beyond_bound: u64,
}

impl Table {
    /// What is not told again from here on has gone.
    pub(in crate::capture) fn begin_anew(&mut self) {
        self.touched.extend(self.links.keys());
        self.links.clear();
    }

    pub(in crate::capture) fn apply(&mut self, change: Change) {
        match change {
            Change::Link { index, name, up, running } => {
                if !self.links.contains_key(&index) && self.links.len() >= INTERFACES_MAX {
                    self.beyond_bound += 1;
                    if self.beyond_bound.is_power_of_two() {
                        let beyond = self.beyond_bound;
                        tracing::warn!(
                            beyond,
                            "more than {INTERFACES_MAX} network interfaces: not all are told"
                        );
                    }
                    return;
                }
                let link = self.links.entry(index).or_default();
                self.routes_are_stale |= (link.up, link.running) != (up, running);
                *link = Link { present: true, name, up, running, ..std::mem::take(link) };
                self.touched.insert(index);
            }
            Change::LinkGone { index } => {
                self.links.remove(&index);
                self.touched.insert(index);
                self.routes_are_stale = true;
            }
            Change::Address { index, address } => {
                let mut is_cut = false;
                self.change_link(index, |link| {
                    is_cut = link.addresses.len() >= TEXTS_MAX && !link.addresses.contains(&address);
                    if !is_cut {
                        link.addresses.insert(address);
                    }
                });
                self.beyond_bound += u64::from(is_cut);
                if is_cut && self.beyond_bound.is_power_of_two() {
                    let beyond = self.beyond_bound;
                    tracing::warn!(beyond, index, "more than {TEXTS_MAX} addresses: not all are told");
                }
            }
            Change::AddressGone { index, address } => {
                self.change_link(index, |link| {
                    link.addresses.remove(&address);
                });
                self.routes_are_stale = true;
            }
            Change::DefaultRoutes => self.routes_are_stale = true,
        }
    }

    /// These are all the default routes.
    pub(in crate::capture) fn set_routes(&mut self, routes: BTreeSet<Route>) {
        self.routes_are_stale = false;
        let mut by_link: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for (index, gateway) in routes {
            let gateways = by_link.entry(index).or_default();
            if gateways.len() < TEXTS_MAX {
                gateways.insert(gateway);
            }
        }
        for (index, link) in &mut self.links {
            let gateways = by_link.remove(index).unwrap_or_default();
            if gateways != link.gateways {
                link.gateways = gateways;
                self.touched.insert(*index);
            }
        }
    }

    /// Something has happened that can have changed the default routes.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "a list of interfaces comes with its routes")
    )]
    pub(in crate::capture) fn take_routes_are_stale(&mut self) -> bool {
        std::mem::take(&mut self.routes_are_stale)
    }

    /// A record of each interface that is no longer as it was told last.
    pub(in crate::capture) fn take_changed(
        &mut self,
        at: Timestamp,
        network_namespace: Option<u64>,
    ) -> Vec<LinkRecord> {
        let mut records = Vec::new();
        for index in std::mem::take(&mut self.touched) {
            let now = self.links.get(&index);
            if now == self.told.get(&index) {
                continue;
            }
            let gone = |told: &Link| Link { name: told.name.clone(), ..Link::default() };
            let Some(link) = now.cloned().or_else(|| self.told.get(&index).map(gone)) else { continue };
            match now {
                Some(link) => self.told.insert(index, link.clone()),
                None => self.told.remove(&index),
            };
            records.push(LinkRecord {
                at,
                interface: link.name,
                index,
                present: link.present,
                up: link.up,
                running: link.running,
                addresses: link.addresses.into_iter().collect(),
                default_gateways: link.gateways.into_iter().collect(),
                network_namespace,
            });
        }
        records
    }

    fn change_link(&mut self, index: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(&index) {
            change(link);
            self.touched.insert(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, up: bool) -> Change {
        Change::Link { index, name: format!("eth{index}"), up, running: up }
    }

    fn changed(table: &mut Table) -> Vec<(u32, bool, bool)> {
        let changed = table.take_changed(Timestamp::ZERO, None);
        changed.into_iter().map(|link| (link.index, link.present, link.up)).collect()
    }

    #[test]
    fn only_what_differs_from_what_was_told_is_told() {
        let mut table = Table::default();
        table.apply(link(1, true));
        table.apply(link(2, false));
        assert_eq!(changed(&mut table), [(1, true, true), (2, true, false)]);
        table.apply(link(1, true));
        table.apply(Change::AddressGone { index: 2, address: "192.0.2.1/24".into() });
        assert_eq!(changed(&mut table), []);
        table.apply(Change::Address { index: 2, address: "192.0.2.1/24".into() });
        assert_eq!(changed(&mut table), [(2, true, false)]);
        table.begin_anew();
        table.apply(link(1, true));
        assert_eq!(changed(&mut table), [(2, false, false)], "what a new dump does not show has gone");
        assert_eq!(changed(&mut table), []);
    }

    #[test]
    fn beyond_the_bound_nothing_is_kept() {
        let mut table = Table::default();
        (0..2000).for_each(|index| table.apply(link(index, true)));
        assert_eq!((table.links.len(), table.beyond_bound), (INTERFACES_MAX, 2000 - INTERFACES_MAX as u64));
    }
}
