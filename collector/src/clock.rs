//! The one place where the collector asks what time it is.

use std::time::SystemTime;

use alibi_proto::time::Timestamp;

/// Now, by the wall clock.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
}
