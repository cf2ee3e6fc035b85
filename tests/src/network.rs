//! Hosts on one machine: network namespaces, joined by virtual cables.
//!
//! A server namespace has the address [`SERVER`]; each laptop has a cable to it. Names carry the process id, so that
//! tests do not meet, and everything is taken away when dropped.

use std::{
    fs::File,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The server that laptops talk to (TEST-NET-2, RFC 5737).
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// The same over IPv6 (RFC 3849), in a network [with IPv6](Network::with_ipv6).
pub const SERVER_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// A server and its laptops.
#[derive(Debug)]
pub struct Network {
    server: Namespace,
    laptops: Vec<Namespace>,
}

mod nat;

pub use nat::{BehindNat, OUTSIDE};

/// A network namespace; removed when dropped.
#[derive(Debug)]
struct Namespace(String);

impl Network {
    /// A network with this many laptops, at most 200.
    ///
    /// # Panics
    /// When the system refuses: the test needs root and `ip`.
    pub fn new(laptops: u8) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("alibi{}n{number}", std::process::id());
        let server = Namespace::new(format!("{prefix}s"));
        server.ip(&["address", "add", &format!("{SERVER}/32"), "dev", "lo"]);
        let laptops = (1..=laptops)
            .map(|laptop| {
                let namespace = Namespace::new(format!("{prefix}l{laptop}"));
                let (name, cable) = (&namespace.0, format!("c{laptop}"));
                server.ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", name]);
                server.ip(&[
                    "address",
                    "add",
                    &format!("192.0.2.{laptop}/32"),
                    "peer",
                    &own(laptop),
                    "dev",
                    &cable,
                ]);
                server.ip(&["link", "set", &cable, "up"]);
                namespace.ip(&[
                    "address",
                    "add",
                    &own(laptop),
                    "peer",
                    &format!("192.0.2.{laptop}/32"),
                    "dev",
                    "eth0",
                ]);
                namespace.ip(&["link", "set", "eth0", "up"]);
                namespace.ip(&["route", "add", "default", "dev", "eth0"]);
                namespace
            })
            .collect();
        Self { server, laptops }
    }

    /// With IPv6 too.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn with_ipv6(self) -> Self {
        self.server.ip(&["address", "add", &format!("{SERVER_IPV6}/128"), "dev", "lo", "nodad"]);
        for (namespace, laptop) in self.laptops.iter().zip(1..) {
            let (near, far) = (format!("2001:db8:{laptop:x}::2"), format!("2001:db8:{laptop:x}::1"));
            let (near_network, far_network) = (format!("{near}/64"), format!("{far}/64"));
            self.server.ip(&["address", "add", &far_network, "dev", &format!("c{laptop}"), "nodad"]);
            namespace.ip(&["address", "add", &near_network, "dev", "eth0", "nodad"]);
            namespace.ip(&["-6", "route", "add", "default", "via", &far, "dev", "eth0"]);
        }
        self
    }

    /// Does `work` on a thread of this program whose sockets are on a laptop (counted from 0).
    ///
    /// # Panics
    /// When the system refuses, or the work panics.
    pub fn inside_laptop<T: Send>(&self, laptop: usize, work: impl FnOnce() -> T + Send) -> T {
        self.laptops[laptop].inside(work)
    }

    /// Does `work` on a thread of this program whose sockets are on the server.
    ///
    /// # Panics
    /// When the system refuses, or the work panics.
    pub fn inside_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.server.inside(work)
    }

    /// A command that runs on the server.
    pub fn on_server(&self, program: &str) -> Command {
        self.server.command(program)
    }

    /// A command that runs on a laptop (counted from 0), which calls itself `name`.
    pub fn on_laptop(&self, laptop: usize, name: &str, program: &str) -> Command {
        let mut command = self.laptops[laptop].command("unshare");
        command.args(["--uts", "sh", "-c", r#"hostname "$0" && exec "$@""#, name, program]);
        command
    }
}

fn own(laptop: u8) -> String {
    format!("203.0.113.{laptop}")
}

impl Namespace {
    fn new(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self(name);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    fn ip(&self, arguments: &[&str]) {
        run(Command::new("ip").args(["-netns", &self.0]).args(arguments));
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.0)).expect("`ip` has made it");
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may move a thread");
            work()
        };
        let done = thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test that fails must not fail again here; what stays has the process id in its name.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("`ip` can be run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
