//! macOS.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use alibi_proto::time::{Moment, Timestamp};
use nix::time::{ClockId, clock_gettime};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, Product, System, UpdateKind};

mod kernel;
mod room;
pub(super) mod service;
mod signature;
mod watch;

pub(super) use room::set_room_aside;
pub(crate) use watch::{Watch, interfaces};

use super::{Examine, HostFacts, boot_id_from, moment};
pub(super) use super::{
    portable::{ProcessTable, SocketTable, process_start},
    users::{look_up_user, user_of_process},
};
use crate::ledger::Restart;

/// Counts since boot, and goes on while the machine sleeps (`mach_continuous_time`). CLOCK_MONOTONIC does so too, but is made
/// from the wall clock, and steered with it.
const BOOT: ClockId = ClockId::from_raw(libc::CLOCK_MONOTONIC_RAW);
/// The same counter, less the time asleep (`mach_absolute_time`).
const AWAKE: ClockId = ClockId::from_raw(libc::CLOCK_UPTIME_RAW);

pub(super) fn now() -> Moment {
    moment(|| nanos(BOOT))
}

pub(super) fn awake_ns() -> u64 {
    nanos(AWAKE)
}

/// Neither clock can be missing.
fn nanos(clock: ClockId) -> u64 {
    let since = clock_gettime(clock).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What is kept of shutdowns here beyond the next boot has not been seen on a Mac, so nothing is taken for proven by it: a time
/// in which this host was off is one in which nothing was recorded.
pub(super) fn last_restart(_: Moment) -> Option<Restart> {
    None
}

/// EIO.
pub(super) const BAD_MEDIUM: [i32; 1] = [5];

pub(super) fn host_facts() -> HostFacts {
    let booted = System::boot_time().map_or(Timestamp::ZERO, Timestamp::from_secs);
    HostFacts {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        os: "macos",
        os_version: System::long_os_version().unwrap_or_else(|_| "unknown version".to_owned()),
        machine_id: Product::uuid().ok().filter(|id| !id.is_empty()),
        boot_id: boot_id_from(booted),
        booted,
    }
}

pub(super) fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Nothing that is captured here is lost by waiting.
pub(super) fn run_before_others() {}

/// All threads do.
pub(super) fn run_as_others() {}

/// Rights are not held one by one here.
pub(super) fn keep_needed_privileges() -> io::Result<()> {
    Ok(())
}

/// Rights are not held one by one here.
pub(super) fn give_up_privileges() -> io::Result<()> {
    Ok(())
}

pub(super) fn stand_back() {}

pub(super) fn default_data_directory() -> PathBuf {
    own_directory().join("data")
}

/// Not beside the data, which is for root alone.
pub(super) fn public_directory() -> PathBuf {
    "/var/run/alibi-agent".into()
}

/// What cannot be seen may be another user's.
pub(super) fn shows_all_processes() -> bool {
    false
}

pub(super) fn default_configuration() -> PathBuf {
    own_directory().join("agent.toml")
}

/// The agent's own: of the system, or of a user without rights.
fn own_directory() -> PathBuf {
    let own = "Library/Application Support/alibi-agent";
    match env::home_dir() {
        Some(home) if !is_privileged() && home.is_absolute() => home.join(own),
        _ => Path::new("/").join(own),
    }
}

/// By the path that it has now.
pub(super) fn executable_of(pid: u32) -> Option<PathBuf> {
    let mut system = System::new().ok()?;
    let pid = sysinfo::Pid::from_u32(pid);
    let what = ProcessRefreshKind::nothing().without_tasks().with_exe(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
    system.process(pid)?.exe().map(Path::to_owned)
}

pub(super) fn image_path(_pid: u32) -> Option<PathBuf> {
    None
}

pub(super) const EXAMINE: Option<Examine> = Some(signature::examine);

pub(super) fn control_group(_pid: u32) -> Option<String> {
    None
}

pub(super) fn network_namespace() -> Option<u64> {
    None
}
