//! The newest entries, in memory: after a question about a whole fleet each host is told of it, and reads nothing for that.

use std::{collections::BTreeMap, sync::Arc};

use alibi_proto::id::HostId;

use super::Entry;

/// Entries that are kept. Few under test, so that the limit is met.
pub(super) const RECENT_MAX: usize = if cfg!(test) { 4 } else { 1024 };

/// The newest entries. What is noted at once by several may come in any order.
#[derive(Debug, Default)]
pub(super) struct Recent {
    entries: BTreeMap<u64, Arc<Entry>>,
}

impl Recent {
    pub(super) fn add(&mut self, entry: Arc<Entry>) {
        self.entries.insert(entry.seq, entry);
        if self.entries.len() > RECENT_MAX {
            self.entries.pop_first();
        }
    }

    /// What analysts did about a host after `after` and up to `newest`, in order, at most `limit`; none where not every entry
    /// between them is here.
    pub(super) fn about(
        &self,
        host: HostId,
        after: u64,
        newest: u64,
        limit: usize,
    ) -> Option<Vec<Arc<Entry>>> {
        if after >= newest {
            return Some(Vec::new());
        }
        let between = self.entries.range(after + 1..=newest);
        let is_whole = between.clone().count() as u64 == newest - after;
        let is_about = |entry: &&Arc<Entry>| {
            entry.is_analysts() && (entry.all_hosts || entry.hosts.binary_search(&host).is_ok())
        };
        is_whole.then(|| between.map(|(_, entry)| entry).filter(is_about).take(limit).cloned().collect())
    }
}
