//! What a test needs of the machine. A test that cannot run says so and why; with `ALIBI_LAB_SKIP=forbid`, as CI sets
//! it, that is a failure.

use std::io::{self, Write as _};

use crate::systemd::unified;

/// True if the test may run; else it has said why not.
pub fn met(test: &str, requirements: &[Requirement]) -> bool {
    let missing: Vec<_> = requirements.iter().filter_map(Requirement::missing).collect();
    if missing.is_empty() {
        return true;
    }
    let why = missing.join(", ");
    assert!(
        std::env::var("ALIBI_LAB_SKIP").as_deref() != Ok("forbid"),
        "{test} may not be skipped here, and needs {why}"
    );
    // Not by `eprintln!`, whose output is kept back of a test that passes. With no standard error, nobody can be told.
    let _ = writeln!(io::stderr(), "SKIPPED {test}: needs {why}");
    false
}

/// Something that not every machine has.
#[derive(Clone, Copy, Debug)]
pub enum Requirement {
    /// Linux with the rights of root and the `ip` command: network namespaces.
    NetworkNamespaces,
    /// The same, and the `nft` command: a router that translates addresses.
    Nat,
    /// Linux with the rights of root: a small file system of its own.
    Mounts,
    /// Linux with BPF, and the rights of root.
    Bpf,
    /// The rights of root: becoming another user.
    Root,
    /// The `openssl` command: a TLS client and server that are not ours.
    OpenSsl,
    /// The `strace` command: system calls that fail.
    Strace,
    /// systemd, and the rights of root: one of our own.
    Systemd,
    /// The `faketime` command: a wall clock that is wrong.
    FakeTime,
    /// Wine, and the Windows programs in the directory that `ALIBI_WINDOWS_PROGRAMS` names.
    Wine,
}

impl Requirement {
    fn missing(&self) -> Option<&'static str> {
        let root = rustix::process::geteuid().is_root();
        let runs = |program: &str, word: &str| {
            std::process::Command::new(program).arg(word).output().is_ok_and(|output| output.status.success())
        };
        let ip = runs("ip", "-V");
        match self {
            Self::NetworkNamespaces if !(root && ip) => {
                Some("root and the `ip` command, for network namespaces")
            }
            Self::Nat if !(root && ip && runs("nft", "--version")) => {
                Some("root and the commands `ip` and `nft`, for a router")
            }
            Self::Bpf if !(root && std::path::Path::new("/sys/kernel/btf/vmlinux").exists()) => {
                Some("root and a kernel with BPF type information")
            }
            Self::Mounts if !root => Some("root, to mount a small file system"),
            Self::Root if !root => Some("root, to become another user"),
            Self::OpenSsl if !runs("openssl", "version") => Some("the `openssl` command"),
            Self::Systemd if !(root && runs("/lib/systemd/systemd", "--version") && unified().is_some()) => {
                Some("root, systemd and the unified control groups")
            }
            Self::FakeTime if !runs("faketime", "--version") => Some("the `faketime` command"),
            Self::Wine
                if std::env::var_os("ALIBI_WINDOWS_PROGRAMS").is_none() || !runs("wine", "--version") =>
            {
                Some("Wine and the Windows programs, which `.ci/cross` makes and `.ci/run` names")
            }
            Self::Strace if !runs("strace", "-V") => Some("the `strace` command"),
            _ => None,
        }
    }
}
