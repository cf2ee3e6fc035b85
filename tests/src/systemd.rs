//! systemd over a copy-on-write view of this machine, so that services are tried for real and nothing of it stays.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    programs::programs,
    system::{Running, outcome},
};

/// How long it may take to start, or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
const SCRIPT: &str = include_str!("systemd.sh");
/// Goes into a control group, and on as something else.
const ENTER: &str = r#"echo $$ > "$0/cgroup.procs"; exec "$@""#;

/// A running systemd; everything below it ends when dropped.
#[derive(Debug)]
pub struct Systemd {
    kind: Kind,
    pid: u32,
    _group: ControlGroup,
    // Only once all below it have ended.
    _running: Running,
}

/// What systemd is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first process of a system, in a process namespace of its own.
    First,
    /// A service manager of root's own, in the same process namespace as everything else.
    Beside,
}

impl Systemd {
    /// Starts it with the agent's program in `/usr/local/bin`, and waits until it says that it has started. `directory` is
    /// empty, and stays so for everybody else.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(kind: Kind, directory: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("alibi{}systemd{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let socket = UnixDatagram::bind_addr(&address).expect("nobody else has it");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time to wait");
        let group = ControlGroup::make(&name);

        let (word, namespace) = match kind {
            Kind::First => ("first", &["--pid", "--fork", "--kill-child"][..]),
            Kind::Beside => ("beside", &[][..]),
        };
        let mut command = Command::new("sh");
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("NOTIFY_SOCKET", format!("@{name}"));
        command.args(["-ec", ENTER]).arg(&group.0);
        command.args(["unshare", "--mount", "--propagation", "private", "--uts"]).args(namespace);
        command.args(["sh", "-ec", SCRIPT, "systemd", word]).arg(directory).arg(&programs().agent);
        let running = Running::start("systemd", &mut command);

        let mut words = [0; 4096];
        loop {
            let heard =
                socket.recv(&mut words).unwrap_or_else(|problem| panic!("{problem}: {:?}", running.said()));
            if String::from_utf8_lossy(&words[..heard]).lines().any(|line| line == "READY=1") {
                break;
            }
        }
        let pid = if kind == Kind::First { child_of(running.pid()) } else { running.pid() };
        Self { kind, pid, _group: group, _running: running }
    }

    /// Runs a program there that ends by itself.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--uts", "--target", &self.pid.to_string()]);
        if self.kind == Kind::First {
            command.arg("--pid");
        }
        outcome(command.args(words).env("XDG_RUNTIME_DIR", "/run/user/0").env_remove("NOTIFY_SOCKET"))
    }

    /// The same, of a program that must succeed; what it says.
    ///
    /// # Panics
    /// When it does not succeed.
    pub fn said(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {} {error}", output.status);
        String::from_utf8(output.stdout).expect("words")
    }

    /// From here, the way to a path there.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Writes a file there, and the directories above it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it is in a directory")).expect("root may make it");
        fs::write(path, text).expect("root may write it");
    }
}

fn child_of(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("Linux says so");
    children.trim().parse().expect("it has one")
}

/// A control group below the root; with everything in it, it ends when dropped.
#[derive(Debug)]
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn make(name: &str) -> Self {
        let root = unified().expect("it was asked for");
        let group = root.join(name);
        fs::create_dir(&group).expect("root may make it");
        Self(group)
    }

    /// Ends everything in it.
    fn end(&self) -> std::io::Result<()> {
        let events = fs::File::open(self.0.join("cgroup.events"))?;
        fs::write(self.0.join("cgroup.kill"), "1")?;
        let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
        while fs::read_to_string(self.0.join("cgroup.events"))?.contains("populated 1") {
            if poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout))? == 0 {
                break;
            }
        }
        remove(&self.0)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A test that fails must not fail again here; what stays has the process id in its name.
        let _ = self.end();
    }
}

fn remove(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Where the unified control groups are mounted, if they can be ended as a whole there.
pub fn unified() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    roots.into_iter().find(|root| root.join("cgroup.controllers").exists())
}
