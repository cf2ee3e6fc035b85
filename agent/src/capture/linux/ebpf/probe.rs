//! The probe in the kernel: loading, attaching, reading.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    thread,
};

use aya::{
    Btf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap as KernelMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, Iter,
        SockOps,
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{capture::CaptureError, sys::linux::give_memory_back};

static PROBE: &[u8] =
    include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/prebuilt/probe.bpf.o"));

/// A program on a tracepoint.
struct Tracepoint {
    program: &'static str,
    name: &'static str,
    /// What is missing without it; nothing for one that the source cannot do without.
    without: &'static str,
    left_out: LeftOut,
}

/// What is lost where the kernel leaves a program out because it is running on the same processor already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Process,
    /// A change of a connection, which another hook sees as well if the connection began while that was there.
    Change,
    Owner,
    Nothing,
}

const TRACEPOINTS: [Tracepoint; 8] = {
    const fn needed(program: &'static str, name: &'static str, left_out: LeftOut) -> Tracepoint {
        Tracepoint { program, name, without: "", left_out }
    }
    [
        needed("on_fork", "sched_process_fork", LeftOut::Process),
        needed("on_exec", "sched_process_exec", LeftOut::Process),
        needed("on_exit", "sched_process_exit", LeftOut::Process),
        needed("on_state", "inet_sock_set_state", LeftOut::Change),
        Tracepoint {
            program: "on_receive",
            name: "tcp_rcv_space_adjust",
            without: "which process reads from a connection that another accepted or opened",
            left_out: LeftOut::Owner,
        },
        Tracepoint {
            program: "on_send",
            name: "sock_send_length",
            without: "which process writes to a connection that another accepted or opened",
            left_out: LeftOut::Owner,
        },
        // A connect asks for its route in its own process. What an interrupt asks for meanwhile is for packets.
        Tracepoint {
            program: "on_route4",
            name: "fib_table_lookup",
            without: "why a connect over IPv4 found no route",
            left_out: LeftOut::Nothing,
        },
        Tracepoint {
            program: "on_route6",
            name: "fib6_table_lookup",
            without: "why a connect over IPv6 found no route",
            left_out: LeftOut::Nothing,
        },
    ]
};

/// Programs on the root of the control groups, and what is missing without them.
const CGROUP_HOOKS: [(&str, Missing); 10] = [
    ("on_connect4", Missing::Attempts),
    ("on_connect6", Missing::Attempts),
    ("on_sendmsg4", Missing::Words("which of several processes sends from a UDP socket")),
    ("on_sendmsg6", Missing::Words("which of several processes sends from a UDP socket")),
    ("on_release", Missing::Attempts),
    (ON_SOCKET, Missing::Changes),
    ("on_bind4", Missing::Words("the owner of UDP sockets that only receive")),
    ("on_bind6", Missing::Words("the owner of UDP sockets that only receive")),
    ("on_leaving", Missing::Udp),
    ("on_arriving", Missing::Udp),
];

/// Sees what happens to the TCP connections that begin while it is there, as a tracepoint does, without being left out.
const ON_SOCKET: &str = "on_socket";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// Attempts that find no route.
    Attempts,
    /// What happens to TCP connections in interrupts in which the kernel leaves out tracepoints.
    Changes,
    /// All of UDP.
    Udp,
    Words(&'static str),
}

/// What this kernel does not offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lacks {
    /// What cannot be seen, in words for the scope.
    pub(super) words: Vec<String>,
    /// Connections of which nothing is seen, so that nothing can be ruled out.
    pub(super) connections: Vec<String>,
}

impl Lacks {
    fn note(&mut self, missing: Missing, why: &str) {
        let (list, what) = match missing {
            Missing::Attempts => (&mut self.connections, "attempts that find no route"),
            Missing::Changes => {
                (&mut self.connections, "TCP in interrupts in which it leaves out tracepoints, if it does")
            }
            Missing::Udp => (&mut self.connections, "UDP"),
            Missing::Words(words) => (&mut self.words, words),
        };
        let line = format!("{what} ({why})");
        if !list.iter().any(|known| known.starts_with(what)) {
            list.push(line);
        }
    }
}

/// Counters that the kernel keeps of a UDP peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// Nanoseconds since boot.
    pub(super) last: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) packets_sent: u32,
    pub(super) packets_received: u32,
}

/// As it lies in the kernel's map: `struct peer_key`.
pub(super) type PeerKey = [u8; 32];
type PeerValue = [u8; 56];

/// What the probe could not tell for want of room, since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) processes: u64,
    pub(super) connections: u64,
    pub(super) names: u64,
    /// The kernel does not run a tracepoint's program that is running on the same processor already: so often it was left
    /// out, for processes, for changes of connections, and for their owners.
    pub(super) skipped: [u64; 3],
}

/// The loaded probe. It is gone from the kernel when this is dropped.
pub(super) struct Probe {
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    peers: KernelMap<MapData, PeerKey, PeerValue>,
    sockets: MapData,
    /// Where the kernel tells how often it left out a program, as in [`Lost::skipped`].
    skips: [Vec<File>; 3],
    /// Whether changes of connections that begin from now on are seen by a second hook.
    pub(super) sees_changes_twice: bool,
    /// Keeps the programs attached.
    programs: aya::Ebpf,
    pub(super) lacks: Lacks,
}

impl Probe {
    /// Loads and attaches. `buffer_bytes` is a power of two, and a multiple of the page.
    ///
    /// # Errors
    /// When the kernel refuses what the source cannot do without, in the kernel's words.
    pub(super) fn load(buffer_bytes: u32) -> Result<Self, CaptureError> {
        let btf = Btf::from_sys_fs()
            .map_err(|problem| refused("the kernel's types (BTF)", with_causes(&problem)))?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .map_max_entries("events", buffer_bytes)
            .load(PROBE)
            .map_err(|problem| refused("the maps", with_causes(&problem)))?;
        let mut lacks = Lacks::default();
        let attached = attach_cgroup_hooks(&mut programs, &mut lacks);
        for Tracepoint { program, name, without, .. } in TRACEPOINTS {
            match attach_tracepoint(&mut programs, program, name, &btf) {
                Ok(()) => {}
                Err(problem) if without.is_empty() => return Err(refused(program, problem)),
                Err(problem) => {
                    tracing::info!(program, %problem, "the kernel lacks an optional hook");
                    lacks.note(Missing::Words(without), &format!("the kernel refuses {name}"));
                }
            }
        }
        for (name, iterator) in
            [("sample", "bpf_sk_storage_map"), ("list", "bpf_sk_storage_map"), ("find", "task_file")]
        {
            let iter: &mut Iter = program(&mut programs, name)?;
            iter.load(iterator, &btf).map_err(|problem| refused(name, problem))?;
        }
        let mut skips = <[Vec<File>; 3]>::default();
        for (files, kind) in skips.iter_mut().zip([LeftOut::Process, LeftOut::Change, LeftOut::Owner]) {
            for tracepoint in TRACEPOINTS.iter().filter(|tracepoint| tracepoint.left_out == kind) {
                files.extend(skips_of(&mut programs, tracepoint.program)?);
            }
        }
        let mut map = |name| programs.take_map(name).ok_or_else(|| refused(name, "it is not in the object"));
        let events = RingBuf::try_from(map("events")?).map_err(|problem| refused("events", problem))?;
        let lost = PerCpuArray::try_from(map("lost")?).map_err(|problem| refused("lost", problem))?;
        let peers = KernelMap::try_from(map("peers")?).map_err(|problem| refused("peers", problem))?;
        let Map::SkStorage(sockets) = map("sockets")? else {
            return Err(refused("sockets", "it is of another type"));
        };
        // They take some 25 MB.
        drop(btf);
        give_memory_back();
        let sees_changes_twice = attached.contains(&ON_SOCKET);
        Ok(Self { events, lost, peers, sockets, skips, sees_changes_twice, programs, lacks })
    }

    /// Readable when there are events.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Hands every event in the buffer to `take`. False if there is more, that has been begun and not yet been written, or
    /// was written meanwhile: at most `bytes_max` are taken.
    pub(super) fn drain(&mut self, bytes_max: usize, mut take: impl FnMut(&[u8])) -> bool {
        let mut taken = 0;
        // An event that is being written on another processor hides all that follow. The kernel calls the buffer
        // readable as long as there is any such.
        for _ in 0..ROUNDS_MAX {
            while let Some(event) = self.events.next() {
                taken += event.len();
                take(&event);
                if taken >= bytes_max {
                    return false;
                }
            }
            let mut descriptor = [PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            if let Ok(0) = poll(&mut descriptor, Some(&at_once)) {
                return true;
            }
        }
        false
    }

    /// What could not be told so far.
    pub(super) fn lost(&self) -> Lost {
        let sum = |index| self.lost.get(&index, 0).map_or(0, |counts| counts.iter().sum());
        let skipped = self.skips.each_ref().map(|files| files.iter().map(skipped).sum());
        Lost { processes: sum(0), connections: sum(1), names: sum(2), skipped }
    }

    /// What a UDP peer has moved in all; none if the kernel does not have it.
    pub(super) fn peer(&self, key: &PeerKey) -> Option<Peer> {
        let value = self.peers.get(key, 0).ok()?;
        let long =
            |at: usize| value[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).unwrap_or_default();
        let short =
            |at: usize| value[at..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).unwrap_or_default();
        Some(Peer {
            last: long(8),
            sent: long(16),
            received: long(24),
            packets_sent: short(32),
            packets_received: short(36),
        })
    }

    /// Forgets a UDP peer.
    pub(super) fn forget_peer(&mut self, key: &PeerKey) {
        // One that is gone is forgotten already.
        let _ = self.peers.remove(key);
    }

    /// The TCP connections that have moved something since they were looked at last, as events; or all of them.
    pub(super) fn sample(&mut self, all: bool) -> Result<Vec<u8>, CaptureError> {
        let name = if all { "list" } else { "sample" };
        let iter: &mut Iter = program(&mut self.programs, name)?;
        let run = |iter: &mut Iter| {
            let program = iter.fd().map_err(io::Error::other)?.as_fd();
            read_all(iterate(program, self.sockets.fd().as_fd())?)
        };
        run(iter).map_err(|problem| refused(name, problem))
    }

    /// The sockets that were open before the probe was there, as events.
    pub(super) fn find(&mut self) -> Result<Vec<u8>, CaptureError> {
        let iter: &mut Iter = program(&mut self.programs, "find")?;
        let run = |iter: &mut Iter| {
            let link = iter.attach().map_err(io::Error::other)?;
            let link = iter.take_link(link).map_err(io::Error::other)?;
            read_all(link.into_file().map_err(io::Error::other)?)
        };
        run(iter).map_err(|problem| refused("find", problem))
    }
}

/// So often the buffer is looked at again for an event that is being written.
const ROUNDS_MAX: u32 = 1_000;

fn refused(what: &str, problem: impl std::fmt::Display) -> CaptureError {
    CaptureError::Ebpf { what: what.to_owned(), problem: problem.to_string() }
}

fn program<'a, T>(programs: &'a mut aya::Ebpf, name: &str) -> Result<&'a mut T, CaptureError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = programs.program_mut(name).ok_or_else(|| refused(name, "it is not in the object"))?;
    program.try_into().map_err(|problem| refused(name, problem))
}

/// Where the kernel tells how often it left a program out, if there is such a program.
fn skips_of(programs: &mut aya::Ebpf, name: &str) -> Result<Option<File>, CaptureError> {
    let program: &mut BtfTracePoint = program(programs, name)?;
    let Ok(descriptor) = program.fd() else { return Ok(None) };
    let descriptor = descriptor.as_fd().as_raw_fd();
    File::open(format!("/proc/self/fdinfo/{descriptor}")).map(Some).map_err(|problem| refused(name, problem))
}

/// How often the kernel has left out the program that `file` tells of; kernels before 5.12 do not tell, and do not.
fn skipped(file: &File) -> u64 {
    let mut text = [0; 1024];
    let Ok(length) = file.read_at(&mut text, 0) else { return 0 };
    let text = String::from_utf8_lossy(&text[..length]);
    let count = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

fn attach_tracepoint(
    programs: &mut aya::Ebpf,
    name: &str,
    tracepoint: &str,
    btf: &Btf,
) -> Result<(), CaptureError> {
    let program: &mut BtfTracePoint = program(programs, name)?;
    program
        .load(tracepoint, btf)
        .and_then(|()| program.attach())
        .map(drop)
        .map_err(|problem| refused(name, with_causes(&problem)))
}

/// The names of those that are attached.
fn attach_cgroup_hooks(programs: &mut aya::Ebpf, lacks: &mut Lacks) -> Vec<&'static str> {
    let root = match control_groups() {
        Ok(root) => root,
        Err(problem) => {
            tracing::warn!(%problem, "the unified control groups cannot be reached");
            let why = format!("the unified control groups (cgroup v2) cannot be reached: {problem}");
            CGROUP_HOOKS.iter().for_each(|(_, missing)| lacks.note(*missing, &why));
            return Vec::new();
        }
    };
    let mut attached = Vec::new();
    for (name, missing) in CGROUP_HOOKS {
        match attach_cgroup_hook(programs, name, &root) {
            Ok(()) => attached.push(name),
            Err(problem) => {
                tracing::warn!(program = name, %problem, "the kernel refuses a hook");
                lacks.note(missing, &format!("the kernel refuses {name}"));
            }
        }
    }
    attached
}

/// The root of the unified control groups. What is attached below it sees only its own part.
fn control_groups() -> io::Result<File> {
    // Where both hierarchies are mounted, the unified one is below. Not mounted here, or a part of it, as in many containers:
    // it need not be anywhere to be opened.
    for directory in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        if Path::new(directory).join("cgroup.controllers").exists()
            && let Some(root) = File::open(directory).ok().filter(is_root)
        {
            return Ok(root);
        }
    }
    if let Some(root) = mounted_for_us().ok().filter(is_root) {
        return Ok(root);
    }
    // In a namespace of control groups the root is only that of the namespace. The first process is in the whole.
    let first = || {
        let namespace = File::open("/proc/1/ns/cgroup")?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
        mounted_for_us()
    };
    let found =
        thread::scope(|scope| scope.spawn(first).join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
    let is_part =
        || io::Error::other("the agent is in a part of the control groups, and their root is out of reach");
    found.ok().filter(is_root).ok_or_else(is_part)
}

/// Whether this is the root of the whole hierarchy, and not of a part: the kernel numbers it 1.
fn is_root(group: &File) -> bool {
    rustix::fs::fstat(group).is_ok_and(|stat| stat.st_ino == 1)
}

/// The root, as this thread's namespace of control groups has it.
fn mounted_for_us() -> io::Result<File> {
    let hierarchy = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(hierarchy.as_fd())?;
    let root =
        rustix::mount::fsmount(hierarchy.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(File::from(rustix::fs::openat(
        root,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?))
}

fn attach_cgroup_hook(programs: &mut aya::Ebpf, name: &str, root: &File) -> Result<(), CaptureError> {
    // As a link, which every kernel with this flag of old attaches beside others.
    let mode = CgroupAttachMode::Single;
    let attached = match name {
        "on_leaving" | "on_arriving" => {
            let program: &mut CgroupSkb = program(programs, name)?;
            let way =
                if name == "on_leaving" { CgroupSkbAttachType::Egress } else { CgroupSkbAttachType::Ingress };
            program.load().and_then(|()| program.attach(root, way, mode)).map(drop)
        }
        "on_connect4" | "on_connect6" | "on_sendmsg4" | "on_sendmsg6" => {
            let program: &mut CgroupSockAddr = program(programs, name)?;
            program.load().and_then(|()| program.attach(root, mode)).map(drop)
        }
        ON_SOCKET => {
            let program: &mut SockOps = program(programs, name)?;
            program.load().and_then(|()| program.attach(root, mode)).map(drop)
        }
        _ => {
            let program: &mut CgroupSock = program(programs, name)?;
            program.load().and_then(|()| program.attach(root, mode)).map(drop)
        }
    };
    attached.map_err(|problem| refused(name, with_causes(&problem)))
}

/// An error and what caused it, in one line.
fn with_causes(problem: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(problem.source(), |cause| cause.source());
    causes.fold(problem.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

fn read_all(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Runs an iterator over the sockets that have something stored in `map`; aya cannot name a map to an iterator.
#[expect(unsafe_code, reason = "bpf(2) has no safe form for a link of an iterator with a map")]
fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const BPF_ITER_CREATE: libc::c_int = 33;
    const BPF_TRACE_ITER: u32 = 28;

    /// `union bpf_iter_link_info`, of which a map's descriptor is the first field.
    #[repr(C, align(8))]
    struct LinkInfo {
        map: u32,
        rest: [u32; 3],
    }
    /// The fields of `union bpf_attr` for BPF_LINK_CREATE.
    #[repr(C, align(8))]
    struct LinkCreate {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        info: u64,
        info_length: u32,
        padding: u32,
    }
    /// The same for BPF_ITER_CREATE.
    #[repr(C, align(8))]
    struct IterCreate {
        link: u32,
        flags: u32,
    }

    fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
        // SAFETY: the kernel reads `size_of::<T>()` bytes from `attributes`, which lives until it returns.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
        let descriptor = libc::c_int::try_from(result).map_err(io::Error::other)?;
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    let number = |descriptor: BorrowedFd<'_>| descriptor.as_raw_fd().cast_unsigned();
    let info = LinkInfo { map: number(map), rest: [0; 3] };
    let link = bpf(
        BPF_LINK_CREATE,
        &LinkCreate {
            program: number(program),
            target: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            info: std::ptr::from_ref(&info) as u64,
            info_length: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
            padding: 0,
        },
    )?;
    let iterator = bpf(BPF_ITER_CREATE, &IterCreate { link: number(link.as_fd()), flags: 0 })?;
    Ok(File::from(iterator))
}
