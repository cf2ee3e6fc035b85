//! Tells a host who asked about it, for its owner to see. Not what was looked for: whoever has the host would hear it, too.

use std::{sync::Arc, time::Duration};

use alibi_proto::{id::HostId, transport::Line, wire};

use super::{Shared, follower::client};
use crate::{access::audit::Entry, store::StoreError};

/// Entries of one message.
const ENTRIES_MAX: usize = 256;
/// After something was asked, hosts are told over so long for each that is connected: a question about all of a large fleet is
/// followed by no flood.
const SPREAD_PER_HOST: Duration = Duration::from_millis(3);
const SPREAD_MAX: Duration = Duration::from_secs(30);
/// How long a host may take to hear it.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Tells the host behind `line`, which has heard all up to the entry `told`, whatever comes after that, until it does not
/// listen any more.
pub(super) async fn tell(shared: &Shared, host: HostId, line: Line, mut told: u64) {
    let mut client = client(&line);
    let mut newest = shared.access.audit().newest();
    loop {
        let known = *newest.borrow_and_update();
        while told < known {
            let entries = match entries_about(shared, host, told).await {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::error!(%error, "a host's owner is not told who asked");
                    break;
                }
            };
            let Some(last) = entries.last() else {
                told = known;
                break;
            };
            told = last.seq;
            let request =
                wire::AskedRequest { entries: entries.iter().map(|entry| in_short(entry)).collect() };
            match tokio::time::timeout(TOLD_WITHIN, client.asked(request)).await {
                Ok(Ok(_)) => {}
                // An older agent has no place for it; another says it again when it connects anew.
                Ok(Err(_)) | Err(_) => return,
            }
        }
        if newest.changed().await.is_err() {
            return;
        }
        let connected = u32::try_from(Arc::strong_count(&shared.each)).unwrap_or(u32::MAX);
        let spread = SPREAD_PER_HOST.saturating_mul(connected).min(SPREAD_MAX);
        tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
    }
}

async fn entries_about(shared: &Shared, host: HostId, after: u64) -> Result<Vec<Arc<Entry>>, StoreError> {
    if let Some(recent) = shared.access.audit().recent_about(host, after, ENTRIES_MAX) {
        return Ok(recent);
    }
    let access = Arc::clone(&shared.access);
    let read = move || access.audit().entries_about(host, after, ENTRIES_MAX);
    // One that panicked has been told of, and nothing was read.
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Ok(Vec::new()))
}

fn in_short(entry: &Entry) -> wire::Asked {
    wire::Asked {
        seq: entry.seq,
        at_ns: entry.at.as_nanos(),
        who: entry.who.clone(),
        role: entry.role.clone(),
        action: entry.action.clone(),
    }
}
