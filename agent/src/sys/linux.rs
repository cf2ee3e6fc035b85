//! Linux: /proc, netlink, and the clocks.
//!
//! The tables are read here rather than by sysinfo and netstat2 throughout, because they are read each second: one
//! small file per process instead of several, and the open files of all processes only when there is a socket whose
//! owner is not known yet.

use std::{
    env, fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use alibi_proto::time::{Moment, Timestamp};
use rustix::{
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
    time::{ClockId, Timespec, clock_gettime},
};

mod boots;
mod glimpse;
pub(super) mod service;
mod sockets;

pub(super) use boots::last_restart;
pub(crate) use glimpse::{Glimpse, Life, glimpse, life};
pub(crate) use sockets::SocketOwners;
pub(super) use sockets::SocketTable;

pub(super) use super::users::{look_up_user, user_of_process};
use super::{Examine, HostFacts, RunningProcess, boot_id_from, moment};

/// A clock tick (USER_HZ), in nanoseconds: a part of the kernel's interface, 100 in a second wherever Rust runs.
pub(crate) const TICK_NS: u64 = 10_000_000;

pub(super) fn now() -> Moment {
    moment(|| nanos(clock_gettime(ClockId::Boottime)))
}

pub(super) fn awake_ns() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

fn nanos(time: Timespec) -> u64 {
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

fn booted() -> Timestamp {
    let now = now();
    Timestamp::from_nanos(now.wall.as_nanos().saturating_sub(now.boot_ns))
}

/// Room that is set aside beyond the end of a file is a Linux speciality, and not every file system's.
pub(super) fn set_room_aside(file: &std::fs::File, bytes: u64) -> io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        done => Ok(done?),
    }
}

/// EIO.
pub(super) const BAD_MEDIUM: [i32; 1] = [libc::EIO];

pub(super) fn host_facts() -> HostFacts {
    let booted = booted();
    HostFacts {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        os: "linux",
        os_version: os_version(),
        machine_id: line_of("/etc/machine-id"),
        boot_id: line_of("/proc/sys/kernel/random/boot_id").unwrap_or_else(|| boot_id_from(booted)),
        booted,
    }
}

fn os_version() -> String {
    let release =
        fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let pretty = release.ok().and_then(|text| {
        let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
    });
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    format!("{}, kernel {kernel}", pretty.as_deref().unwrap_or("Linux"))
}

fn line_of(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|line| !line.is_empty())
}

pub(super) fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// What recording takes: BPF (BPF, PERFMON, NET_ADMIN), packets (NET_RAW), other processes' files and namespaces
/// (SYS_PTRACE, DAC_READ_SEARCH, SYS_ADMIN).
const NEEDED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_ADMIN);

pub(super) fn run_before_others() {
    // Refused without the right, and then as before.
    let _ = rustix::process::setpriority_process(None, -10);
}

pub(super) fn run_as_others() {
    let _ = rustix::process::setpriority_process(None, 0);
}

pub(super) fn keep_needed_privileges() -> io::Result<()> {
    // None of its children needs more either: it has none.
    rustix::thread::set_no_new_privs(true)?;
    limit_capabilities(NEEDED)
}

pub(super) fn give_up_privileges() -> io::Result<()> {
    limit_capabilities(CapabilitySet::empty())
}

/// Does `work` on this thread as somebody who does not administrate the network.
///
/// # Errors
/// When the system does not let this thread put the right aside, or take it up again; and those of `work`.
pub(crate) fn without_network_administration<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let held = capabilities(None)?;
    let effective = held.effective - CapabilitySet::NET_ADMIN;
    set_capabilities(None, CapabilitySets { effective, ..held })?;
    let done = work();
    set_capabilities(None, held)?;
    done
}

fn limit_capabilities(to: CapabilitySet) -> io::Result<()> {
    let held = capabilities(None)?;
    let sets = CapabilitySets {
        effective: held.effective & to,
        permitted: held.permitted & to,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

pub(super) fn stand_back() {
    // Of this thread alone on Linux. To be less nice is a right; to be nicer is none, so it does not fail.
    let _ = rustix::process::setpriority_process(None, 10);
}

/// Gives what the program has freed back to the system. The allocator keeps it for ever otherwise.
#[expect(unsafe_code, reason = "malloc_trim(3) has no safe form")]
pub(crate) fn give_memory_back() {
    // SAFETY: it touches nothing but memory that nobody uses, and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

pub(super) fn default_data_directory() -> PathBuf {
    own_or_shared("XDG_DATA_HOME", ".local/share", "alibi-agent", "/var/lib/alibi-agent")
}

pub(super) fn default_configuration() -> PathBuf {
    own_or_shared("XDG_CONFIG_HOME", ".config", "alibi/agent.toml", "/etc/alibi/agent.toml")
}

pub(super) fn public_directory() -> PathBuf {
    "/run/alibi-agent".into()
}

/// The first process is root's.
pub(super) fn shows_all_processes() -> bool {
    process_start(1).is_some()
}

/// `name` in the user's own directory of a kind, which a variable may set; or `shared`, for root and where there is none.
fn own_or_shared(variable: &str, usual: &str, name: &str, shared: &str) -> PathBuf {
    if is_privileged() {
        return shared.into();
    }
    let chosen = env::var_os(variable).map(PathBuf::from);
    let usual = || env::home_dir().map(|home| home.join(usual));
    let absolute = |directory: &PathBuf| directory.is_absolute();
    chosen.filter(absolute).or_else(usual).filter(absolute).map_or(shared.into(), |home| home.join(name))
}

pub(super) fn process_start(pid: u32) -> Option<u64> {
    let stat = read_small(&format!("/proc/{pid}/stat")).ok()?;
    Some(parse_stat(&stat)?.start_ticks)
}

/// The kernel's own way to it, whatever has become of its path.
pub(super) fn executable_of(pid: u32) -> Option<PathBuf> {
    Some(format!("/proc/{pid}/exe").into())
}

pub(super) fn image_path(_pid: u32) -> Option<PathBuf> {
    None
}

/// What its package says has to do.
pub(super) const EXAMINE: Option<Examine> = None;

/// A file that does not know its size, in two reads where it is small: without room it would be read piece by piece.
fn read_small(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2048);
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The control group: of the unified hierarchy, or else the first that is not the root.
pub(super) fn control_group(pid: u32) -> Option<String> {
    let text = String::from_utf8(read_small(&format!("/proc/{pid}/cgroup")).ok()?).ok()?;
    let group = |line: &str| line.splitn(3, ':').nth(2).filter(|path| *path != "/").map(str::to_owned);
    let unified = text.lines().filter(|line| line.starts_with("0::")).find_map(group);
    unified.or_else(|| text.lines().find_map(group))
}

pub(super) fn network_namespace() -> Option<u64> {
    fs::metadata("/proc/thread-self/ns/net").ok().map(|namespace| namespace.ino())
}

#[derive(Debug)]
pub(super) struct ProcessTable {
    buffer: Vec<u8>,
}

impl ProcessTable {
    pub(super) fn open() -> io::Result<Self> {
        fs::metadata("/proc/self/stat")?;
        Ok(Self { buffer: Vec::with_capacity(1024) })
    }

    pub(super) fn read(&mut self) -> io::Result<Vec<RunningProcess>> {
        let booted = booted();
        let mut processes = Vec::new();
        for pid in pids()? {
            self.buffer.clear();
            let path = format!("/proc/{pid}/stat");
            match fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut self.buffer)) {
                Ok(_) => {}
                Err(problem) if cannot_be_seen(&problem) => continue,
                Err(problem) => return Err(io::Error::new(problem.kind(), format!("{path}: {problem}"))),
            }
            processes.extend(parse_stat(&self.buffer).map(|stat| stat.into_process(pid, booted)));
        }
        Ok(processes)
    }
}

fn pids() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

/// It has ended, or is somebody else's and hidden.
fn cannot_be_seen(problem: &io::Error) -> bool {
    let ended = rustix::io::Errno::SRCH.raw_os_error();
    problem.raw_os_error() == Some(ended)
        || matches!(problem.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

/// What is used of /proc/PID/stat (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    ended: bool,
    first_thread_left: bool,
    parent_pid: u32,
    terminal: u32,
    start_ticks: u64,
}

impl Stat {
    fn into_process(self, pid: u32, booted: Timestamp) -> RunningProcess {
        let since_boot_ns = self.start_ticks.saturating_mul(TICK_NS);
        RunningProcess {
            pid,
            parent_pid: Some(self.parent_pid).filter(|parent| *parent != 0),
            start: self.start_ticks,
            started: Timestamp::from_nanos(booted.as_nanos().saturating_add(since_boot_ns)),
            name: self.name,
            ended: self.ended,
            terminal: terminal_name(self.terminal),
        }
    }
}

/// The second field is the program's name in parentheses, and may itself contain spaces, parentheses and newlines:
/// only the last closing one counts.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let rest = str::from_utf8(&stat[close + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(20).collect();
    // Numbered from 1 in the manual, and the first of these is the third.
    let field = |number: usize| fields.get(number - 3).copied();
    let threads: u32 = field(20)?.parse().ok()?;
    // A process whose first thread has left and whose others run looks like a zombie too.
    let first_thread_left = matches!(field(3)?, "Z" | "X");
    Some(Stat {
        name,
        ended: first_thread_left && threads <= 1,
        first_thread_left,
        parent_pid: field(4)?.parse().ok()?,
        terminal: field(7)?.parse::<i32>().ok()?.cast_unsigned(),
        start_ticks: field(22)?.parse().ok()?,
    })
}

/// The device number as the kernel packs it: minor in bits 31 to 20 and 7 to 0, major in bits 15 to 8.
fn terminal_name(device: u32) -> Option<String> {
    terminal((device >> 8) & 0xff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// The usual name of the terminal with a device number.
pub(crate) fn terminal(major: u32, minor: u32) -> Option<String> {
    match (major, minor) {
        (0, _) => None,
        (4, 0..64) => Some(format!("tty{minor}")),
        (4, _) => Some(format!("ttyS{}", minor - 64)),
        (136, 256..) => Some(format!("pts/{minor}")),
        (136..=143, _) => Some(format!("pts/{}", (major - 136) * 256 + minor)),
        _ => Some(format!("{major}:{minor}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_can_contain_anything() {
        let rest = " S 41 7 7 34817 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 987654 1000 2 18446744073709551615";
        for name in ["bash", "tmux: server", "a) R 1 (b", ")", "", "zwölf\n"] {
            let stat = parse_stat(format!("42 ({name}){rest}").as_bytes()).unwrap();
            let expected = Stat {
                name: name.into(),
                ended: false,
                first_thread_left: false,
                parent_pid: 41,
                terminal: 34817,
                start_ticks: 987_654,
            };
            assert_eq!(stat, expected);
        }
        for bad in ["", "42", "42 (bash", "42 (bash) S 1", ") 42 ("] {
            assert_eq!(parse_stat(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_zombie_has_ended_but_a_leader_that_left_its_threads_has_not() {
        let stat = |threads: u32| format!("42 (x) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 5 0 0");
        assert!(parse_stat(stat(1).as_bytes()).unwrap().ended);
        assert!(!parse_stat(stat(3).as_bytes()).unwrap().ended);
    }

    #[test]
    fn a_thread_gives_up_what_it_does_not_need_and_then_everything() {
        // Capabilities belong to a thread: the others of this test keep theirs.
        std::thread::spawn(|| {
            keep_needed_privileges().unwrap();
            let held = capabilities(None).unwrap();
            assert!(NEEDED.contains(held.permitted) && NEEDED.contains(held.effective), "{held:?}");
            give_up_privileges().unwrap();
            let held = capabilities(None).unwrap();
            assert!(held.permitted.is_empty() && held.effective.is_empty(), "{held:?}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn terminals_have_their_usual_names() {
        let names = [(0, None), (34817, Some("pts/1")), (1025, Some("tty1")), (1088, Some("ttyS0"))];
        for (device, name) in names {
            assert_eq!(terminal_name(device).as_deref(), name);
        }
        assert_eq!(terminal_name((136 << 8) | 0x10_0000 | 0x2c).as_deref(), Some("pts/300"));
    }
}
