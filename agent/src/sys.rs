//! The operating system: clocks, names, tables, paths. The front that picks the one it was built for.
//!
//! Everything asked of the system from outside the sources of capture is asked here, so that the rest of the agent
//! is the same everywhere. Nothing here decides anything.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::SystemTime,
};

use alibi_proto::{
    executable::{Signature, VersionInfo},
    process::User,
    time::{Moment, Timestamp},
};
use netstat2::{ProtocolSocketInfo, SocketInfo, TcpState};

use self::users::Names;
use crate::ledger::Restart;

#[cfg(target_os = "linux")]
pub(crate) mod linux;
#[cfg(target_os = "macos")]
mod macos;
pub(crate) mod service;
#[cfg(target_os = "windows")]
mod windows;
#[cfg(target_os = "linux")]
use linux as os;
#[cfg(target_os = "macos")]
use macos as os;
#[cfg(target_os = "windows")]
use windows as os;

#[cfg(target_os = "windows")]
pub(crate) use windows::{file_facts, open_local, open_to_look};

// What belongs to Windows and can be decided anywhere: its tests run everywhere.
#[cfg(any(test, target_os = "windows"))]
mod nt;
#[cfg(any(test, target_os = "windows"))]
mod version_resource;

mod users;

// Linux has cheaper ways of its own; its tests run these too, so that they are run somewhere.
#[cfg(any(target_os = "macos", all(test, target_os = "linux")))]
mod bsd;
#[cfg(any(test, not(target_os = "linux")))]
mod portable;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(not(target_os = "linux"))]
pub(crate) use os::{Watch, interfaces};

/// Who and what this machine is, in this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Host name.
    pub name: String,
    /// linux, macos or windows.
    pub os: &'static str,
    /// Distribution or edition, and version.
    pub os_version: String,
    /// The system's own id of the machine, where it has one.
    pub machine_id: Option<String>,
    /// Changes at each boot.
    pub boot_id: String,
    /// When it was booted, by the wall clock as it is set now.
    pub booted: Timestamp,
}

/// This instant. The boot clock counts while the machine sleeps.
pub fn now() -> Moment {
    os::now()
}

/// How long the host has been awake in this boot, in nanoseconds: by a clock that stands while the machine sleeps, and which
/// is else as far as the boot clock of [`now`].
pub(crate) fn awake_ns() -> u64 {
    os::awake_ns()
}

/// The two clocks are read no further apart than this, if they can be: a thread may be stopped between them.
const APART_MAX_NS: u64 = 20_000;

/// Both clocks as of one instant. `boot_ns` reads the one that counts since boot.
fn moment(boot_ns: impl Fn() -> u64) -> Moment {
    let mut before = boot_ns();
    let mut tries_left = 3;
    loop {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let after = boot_ns();
        tries_left -= 1;
        if after.saturating_sub(before) <= APART_MAX_NS || tries_left == 0 {
            let wall = Timestamp::from_nanos(u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX));
            return Moment { wall, boot_ns: before.midpoint(after) };
        }
        before = after;
    }
}

/// Sets room aside on the disk for the first so many bytes of a file, which stays as long as it is. Where the file system
/// cannot, nothing is done: a full disk is then noticed when it is written to.
///
/// # Errors
/// When there is no room, or the system cannot write.
pub(crate) fn set_room_aside(file: &std::fs::File, bytes: u64) -> io::Result<()> {
    os::set_room_aside(file, bytes)
}

/// Whether the disk cannot read what is on it.
pub(crate) fn is_bad_medium(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| os::BAD_MEDIUM.contains(&code))
}

/// What the system says then.
#[cfg(test)]
pub(crate) fn bad_medium() -> io::Error {
    io::Error::from_raw_os_error(os::BAD_MEDIUM[0])
}

/// Who and what this machine is.
pub fn host_facts() -> HostFacts {
    os::host_facts()
}

/// How this boot came about, by the system's own records, if they prove that nothing ran in between. `now` is this instant.
pub fn last_restart(now: Moment) -> Option<Restart> {
    os::last_restart(now)
}

/// When process `pid` started, in the unit of [`crate::capture::ProcessKey`]; none when there is no such process.
pub fn process_start(pid: u32) -> Option<u64> {
    os::process_start(pid)
}

/// Where the file that process `pid` runs can be opened, as long as it runs; none where that is not told. Unless the system has
/// a place of its own for it, this is its path of now, and has to be the same after it was opened.
pub(crate) fn executable_of(pid: u32) -> Option<PathBuf> {
    os::executable_of(pid)
}

/// The path of the file that process `pid` runs, where it is not sysinfo that had better be asked: what that asks on Windows, a
/// process can choose itself.
pub(crate) fn image_path(pid: u32) -> Option<PathBuf> {
    os::image_path(pid)
}

/// What is to be said of an executable beyond its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Examined {
    pub(crate) signature: Signature,
    pub(crate) version: Option<VersionInfo>,
}

/// Examines what is open, and was opened at this path. May take seconds, and wait for other programs of the system; asks
/// nobody outside of this machine.
pub(crate) type Examine = fn(&File, &Path) -> Examined;

/// How executables are examined; none where they carry no signature.
pub(crate) fn examine() -> Option<Examine> {
    os::EXAMINE
}

/// Who process `pid` runs for: an SID on Windows, else a number; none when there is no such process, or it is not told.
/// As [`user_name`], it waits a moment at most.
pub fn user_of_process(pid: u32) -> Option<User> {
    let id = os::user_of_process(pid)?;
    Some(User { name: user_name(&id), id })
}

/// The name of the user with this id, with its domain on Windows (`DOMAIN\name`); none if it has none. Waits a quarter of a
/// second at most: a name that the system has to ask others for may come too late, and is told the next time.
pub fn user_name(id: &str) -> Option<String> {
    static NAMES: LazyLock<Names> = LazyLock::new(|| Names::new(os::look_up_user));
    NAMES.name(id)
}

/// Whether the agent has the rights to see everybody's processes and sockets.
pub fn is_privileged() -> bool {
    os::is_privileged()
}

/// Lets this thread, and those that it starts, run before ordinary programs: what waits too long to be recorded is lost. No
/// more than a wish, which the system need not grant.
pub fn run_before_others() {
    os::run_before_others();
}

/// Lets this thread run as ordinary programs do.
pub fn run_as_others() {
    os::run_as_others();
}

/// Gives up every right that recording does not take, for this thread and those that it starts.
///
/// # Errors
/// When the system refuses.
pub fn keep_needed_privileges() -> io::Result<()> {
    os::keep_needed_privileges()
}

/// Gives up every right above those of an ordinary program of the same user, for this thread and those that it starts.
///
/// # Errors
/// When the system refuses.
pub fn give_up_privileges() -> io::Result<()> {
    os::give_up_privileges()
}

/// Lets every other thread go before this one, where the system orders threads one by one.
pub(crate) fn stand_back() {
    os::stand_back();
}

/// Where the agent keeps its data unless told otherwise.
pub fn default_data_directory() -> PathBuf {
    os::default_data_directory()
}

/// Where the agent is configured unless told otherwise: in the system's place by whoever may see everything, else in the
/// user's own.
pub fn default_configuration() -> PathBuf {
    os::default_configuration()
}

/// Where everybody on this machine may read what the agent of the system says of itself.
pub fn public_directory() -> PathBuf {
    os::public_directory()
}

/// Whether process `pid`, which started at `start`, is known to have ended. Where the system hides other users' processes, it
/// is not.
pub fn has_ended(pid: u32, start: u64) -> bool {
    match os::process_start(pid) {
        Some(other) => other != start,
        None => os::shows_all_processes(),
    }
}

/// A process as the process table shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningProcess {
    pub(crate) pid: u32,
    pub(crate) parent_pid: Option<u32>,
    /// In the unit of [`crate::capture::ProcessKey`].
    pub(crate) start: u64,
    pub(crate) started: Timestamp,
    pub(crate) name: String,
    /// It has ended, and its parent has not taken note yet.
    pub(crate) ended: bool,
    pub(crate) terminal: Option<String>,
}

/// A TCP socket as the socket table shows it. IPv4 addresses mapped into IPv6 are shown as IPv4.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TcpSocket {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) state: TcpState,
    /// The system's identity of it; 0 where it has none, as after the owner has let go of it.
    pub(crate) identity: u64,
    /// The processes that hold it; empty where that cannot be seen.
    pub(crate) pids: Vec<u32>,
}

/// A network interface as it is now.
#[cfg(any(test, not(target_os = "linux")))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// An administrator has set it up.
    pub(crate) up: bool,
    /// It can carry traffic.
    pub(crate) running: bool,
    /// With their prefix lengths, as text.
    pub(crate) addresses: Vec<String>,
    /// The gateways of default routes through it, as text; `on-link` for one without a gateway.
    pub(crate) default_gateways: Vec<String>,
}

/// Of a default route without a gateway.
#[cfg(any(test, not(target_os = "linux")))]
const ON_LINK: &str = "on-link";

/// The process table, read again and again.
#[derive(Debug)]
pub(crate) struct ProcessTable(os::ProcessTable);

impl ProcessTable {
    pub(crate) fn open() -> io::Result<Self> {
        os::ProcessTable::open().map(Self)
    }

    /// All processes, without their threads. One that ends during the walk may or may not be among them.
    pub(crate) fn read(&mut self) -> io::Result<Vec<RunningProcess>> {
        self.0.read()
    }
}

/// The table of TCP sockets in this network namespace, read again and again.
#[derive(Debug, Default)]
pub(crate) struct SocketTable(os::SocketTable);

impl SocketTable {
    /// All TCP sockets with their owners.
    pub(crate) fn read(&mut self) -> Result<Vec<TcpSocket>, netstat2::error::Error> {
        self.0.read()
    }

    /// A process has ended: what is remembered of its sockets must be looked up anew.
    pub(crate) fn forget_owner(&mut self, pid: u32) {
        self.0.forget_owner(pid);
    }
}

/// The control group of process `pid`, where the system has such a thing.
pub(crate) fn control_group(pid: u32) -> Option<String> {
    os::control_group(pid)
}

/// The network namespace of this thread, where the system has such a thing.
pub(crate) fn network_namespace() -> Option<u64> {
    os::network_namespace()
}

/// `info` as a [`TcpSocket`], unless it is not one.
fn tcp_socket(info: SocketInfo, identity: u64) -> Option<TcpSocket> {
    let ProtocolSocketInfo::Tcp(tcp) = info.protocol_socket_info else { return None };
    Some(TcpSocket {
        local: SocketAddr::new(tcp.local_addr.to_canonical(), tcp.local_port),
        remote: SocketAddr::new(tcp.remote_addr.to_canonical(), tcp.remote_port),
        state: tcp.state,
        identity,
        pids: info.associated_pids,
    })
}

/// For systems that do not number their boots: the minute in which this one began, since the exact instant moves with
/// each correction of the clock.
fn boot_id_from(booted: Timestamp) -> String {
    const MINUTE_NS: u64 = 60_000_000_000;
    format!("boot-{}", (booted.as_nanos() + MINUTE_NS / 2) / MINUTE_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forward() {
        let first = now();
        let second = now();
        assert!(second.boot_ns >= first.boot_ns && first.boot_ns > 0);
        assert!(first.wall > Timestamp::from_secs(1_500_000_000));
    }

    #[test]
    fn nobody_is_awake_for_longer_than_the_boot() {
        let (before, after) = (awake_ns(), awake_ns());
        assert!(after >= before && before > 0);
        // Two clocks, one of which may tick coarsely.
        assert!(after <= now().boot_ns + 100_000_000, "{after} {}", now().boot_ns);
        let (began, awake) = (now().boot_ns, awake_ns());
        let both_go_on = || now().boot_ns > began && awake_ns() > awake;
        while !both_go_on() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_host_has_a_name_and_a_boot() {
        let facts = host_facts();
        assert_eq!(facts.os, std::env::consts::OS);
        for text in [&facts.name, &facts.os_version, &facts.boot_id] {
            assert!(!text.trim().is_empty() && text.trim() == text, "{facts:?}");
        }
        assert_eq!(facts.boot_id, host_facts().boot_id);
        assert!(facts.booted < now().wall);
        assert_ne!(facts.machine_id.as_deref(), Some(""));
    }

    #[test]
    fn a_process_keeps_its_start() {
        let start = process_start(std::process::id());
        assert!(start.is_some());
        assert_eq!(start, process_start(std::process::id()));
        assert_eq!(process_start(u32::MAX), None);
    }

    #[test]
    fn a_process_that_runs_has_not_ended() {
        let pid = std::process::id();
        let start = process_start(pid).unwrap();
        assert!(!has_ended(pid, start));
        assert!(has_ended(pid, start + 1), "another one has its number now");
        assert_eq!(has_ended(u32::MAX, start), os::shows_all_processes());
    }

    #[test]
    fn both_process_tables_show_this_process() {
        let pid = std::process::id();
        let own = ProcessTable::open().unwrap().read().unwrap();
        let own = own.iter().find(|process| process.pid == pid).unwrap();
        assert_eq!(Some(own.start), process_start(pid));
        let other = portable::ProcessTable::open().unwrap().read().unwrap();
        let other = other.iter().find(|process| process.pid == pid).unwrap();
        assert_eq!(own.parent_pid, other.parent_pid);
        let apart = own.started.since(other.started).max(other.started.since(own.started));
        assert!(apart.as_secs() <= 2, "{own:?} {other:?}");
        assert!(!own.ended && !own.name.is_empty());
    }

    #[test]
    fn both_socket_tables_show_a_listener_of_this_process() {
        let listener =
            std::net::TcpListener::bind("[::1]:0").or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let local = listener.local_addr().unwrap();
        for sockets in [SocketTable::default().read(), portable::SocketTable.read()] {
            let sockets = sockets.unwrap();
            let socket = sockets.iter().find(|socket| socket.local == local).unwrap();
            assert_eq!(socket.state, TcpState::Listen);
            if socket.pids.is_empty() && testing::wine_cannot("tell whose a listener is") {
                continue;
            }
            assert_eq!(socket.pids, [std::process::id()]);
            assert_ne!(socket.identity, 0);
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_process_runs_for_a_user() {
        let user = user_of_process(std::process::id()).unwrap();
        assert_eq!(user.id, rustix::process::getuid().as_raw().to_string());
        assert_eq!(os::look_up_user("0").as_deref(), Some("root"));
    }

    #[test]
    fn nobody_has_no_name() {
        assert_eq!(user_of_process(u32::MAX), None);
        assert_eq!(user_name("nobody has such an id"), None);
    }

    #[test]
    fn the_executable_of_a_process_is_where_it_is_told() {
        let told = executable_of(std::process::id()).unwrap();
        assert_eq!(told.canonicalize().unwrap(), std::env::current_exe().unwrap().canonicalize().unwrap());
        assert!(executable_of(u32::MAX).is_none_or(|told| !told.exists()));
    }

    #[test]
    fn a_boot_keeps_its_id_through_small_corrections_of_the_clock() {
        let booted = Timestamp::from_secs(1_764_000_000);
        let corrected = Timestamp::from_secs(1_764_000_003);
        assert_eq!(boot_id_from(booted), boot_id_from(corrected));
        assert_ne!(boot_id_from(booted), boot_id_from(Timestamp::from_secs(1_764_000_120)));
    }

    #[test]
    fn the_data_directory_is_absolute() {
        assert!(default_data_directory().is_absolute());
        assert!(public_directory().is_absolute());
    }
}
