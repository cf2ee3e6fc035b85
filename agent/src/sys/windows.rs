//! Windows.

use std::{env, io, path::PathBuf};

use alibi_proto::{
    data_directory::is_elevated,
    time::{Moment, Timestamp},
};
use sysinfo::{Product, System};

mod accounts;
mod adapters;
mod clocks;
mod event_log;
mod file;
mod folders;
mod image;
mod processes;
mod room;
pub(super) mod service;
mod signature;
mod text;
mod watch;

pub(super) use accounts::{look_up_user, user_of_process};
pub(crate) use adapters::interfaces;
pub(super) use clocks::awake_ns;
pub(crate) use file::{file_facts, open_local, open_to_look};
pub(super) use image::{executable_of, executable_of as image_path};
pub(super) use processes::{ProcessTable, process_start};
pub(super) use room::set_room_aside;
pub(crate) use watch::Watch;

pub(super) use super::portable::SocketTable;
use super::{Examine, HostFacts, boot_id_from, moment};
use crate::ledger::Restart;

pub(super) fn now() -> Moment {
    moment(clocks::boot_ns)
}

/// The event log tells of shutdowns and starts. What exactly it tells has not been seen on Windows itself, so nothing is taken
/// for proven by it: a time in which this host was off is one in which nothing was recorded.
pub(super) fn last_restart(_: Moment) -> Option<Restart> {
    None
}

/// ERROR_CRC, ERROR_SECTOR_NOT_FOUND and ERROR_IO_DEVICE.
pub(super) const BAD_MEDIUM: [i32; 3] = [23, 27, 1117];

pub(super) fn host_facts() -> HostFacts {
    let booted = System::boot_time().map_or(Timestamp::ZERO, Timestamp::from_secs);
    HostFacts {
        name: System::host_name().unwrap_or_else(|_| env::var("COMPUTERNAME").unwrap_or_default()),
        os: "windows",
        os_version: System::long_os_version().unwrap_or_else(|_| "unknown version".to_owned()),
        machine_id: Product::uuid().ok().filter(|id| !id.is_empty()),
        boot_id: boot_id_from(booted),
        booted,
    }
}

pub(super) fn is_privileged() -> bool {
    is_elevated()
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

/// In a directory that is not, but whoever names it passes through that one.
pub(super) fn public_directory() -> PathBuf {
    folders::program_data().join("alibi-agent").join("public")
}

/// What cannot be opened may be another user's.
pub(super) fn shows_all_processes() -> bool {
    false
}

pub(super) fn default_configuration() -> PathBuf {
    own_directory().join("agent.toml")
}

/// The agent's own: of the system, or of a user without rights.
fn own_directory() -> PathBuf {
    let own = if is_privileged() { None } else { folders::local_data() };
    own.unwrap_or_else(folders::program_data).join("alibi-agent")
}

pub(super) const EXAMINE: Option<Examine> = Some(signature::examine);

pub(super) fn control_group(_pid: u32) -> Option<String> {
    None
}

pub(super) fn network_namespace() -> Option<u64> {
    None
}
