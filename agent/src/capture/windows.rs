//! Windows: events from the kernel and the DNS client, by Event Tracing for Windows (ETW).
//!
//! One trace session carries all of them, in one buffer, so that they come in the order in which they happened. [`event`]
//! reads what the payloads say; [`tracker`] with [`processes`], [`connections`] and [`names`] decides what it means. These are
//! pure, and tested everywhere. Only [`session`] and [`source`] touch the system.

use alibi_proto::time::{Moment, Timestamp};

mod connections;
mod event;
mod names;
mod processes;
#[cfg(target_os = "windows")]
mod session;
#[cfg(target_os = "windows")]
mod source;
mod tracker;

#[cfg(target_os = "windows")]
pub(super) use source::etw;

/// An instant of the boot clock on both clocks, given what both say now.
fn moment(boot_ns: u64, now: Moment) -> Moment {
    let wall = now.wall.as_nanos();
    let wall = match now.boot_ns.checked_sub(boot_ns) {
        Some(ago) => wall.saturating_sub(ago),
        None => wall.saturating_add(boot_ns - now.boot_ns),
    };
    Moment { wall: Timestamp::from_nanos(wall), boot_ns }
}
