//! A laptop behind NAT: whoever is outside sees the router's address, and reaches nothing inside.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Namespace, SERVER};

/// The router, from outside (TEST-NET-2, RFC 5737).
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// What leaves the inside leaves it as the router's.
const RULES: &str = "\
table ip alibi {
    chain out { type nat hook postrouting priority 100; oifname \"out\" masquerade; }
    chain through { type filter hook forward priority 0; iifname \"out\" ct state new drop; }
}
";

/// A packet is dropped (2) if a random number is not below four fifths of 2^32 (BPF).
const LOSE_SOME: &str = "4,32 0 0 4294963256,53 0 1 3435973837,6 0 0 2,6 0 0 0";

/// A laptop, a router and a server.
#[derive(Debug)]
pub struct BehindNat {
    server: Namespace,
    router: Namespace,
    laptop: Namespace,
}

impl BehindNat {
    /// A network of these three.
    ///
    /// # Panics
    /// When the system refuses: it takes root, `ip` and `nft`.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = |what| Namespace::new(format!("alibi{}t{number}{what}", std::process::id()));
        let (server, router, laptop) = (namespace("s"), namespace("r"), namespace("l"));
        router.ip(&["link", "add", "out", "type", "veth", "peer", "name", "eth0", "netns", &server.0]);
        router.ip(&["link", "add", "in", "type", "veth", "peer", "name", "eth0", "netns", &laptop.0]);
        let (outside, serving) = (format!("{OUTSIDE}/24"), format!("{SERVER}/24"));
        for (namespace, device, address) in [
            (&router, "out", &*outside),
            (&server, "eth0", &*serving),
            (&router, "in", "10.0.0.1/24"),
            (&laptop, "eth0", "10.0.0.2/24"),
        ] {
            namespace.ip(&["address", "add", address, "dev", device]);
            namespace.ip(&["link", "set", device, "up"]);
        }
        laptop.ip(&["route", "add", "default", "via", "10.0.0.1"]);
        let network = Self { server, router, laptop };
        let mut forward = network.router.command("sh");
        super::run(forward.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
        network.rules(RULES);
        network
    }

    fn rules(&self, rules: &str) {
        let mut nft = self.router.command("nft");
        let mut child = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("`nft` can be run");
        child.stdin.take().expect("it is piped").write_all(rules.as_bytes()).expect("`nft` reads");
        assert!(child.wait().expect("`nft` ends").success(), "nft refuses {rules}");
    }

    /// A command that runs on the server.
    pub fn on_server(&self, program: &str) -> Command {
        self.server.command(program)
    }

    /// A command that runs on the laptop.
    pub fn on_laptop(&self, program: &str) -> Command {
        self.laptop.command(program)
    }

    /// Pulls the router's cable to the outside.
    pub fn cut(&self) {
        self.router.ip(&["link", "set", "out", "down"]);
    }

    /// Puts it back in.
    pub fn mend(&self) {
        self.router.ip(&["link", "set", "out", "up"]);
    }

    /// The router forgets who has spoken to whom, as one that was started anew.
    pub fn forget(&self) {
        self.rules("flush table ip alibi\ndelete table ip alibi\n");
        self.rules(RULES);
    }

    /// Whether one in five of the packets that come from outside is lost, at random.
    pub fn lose(&self, some: bool) {
        let tc = |words: &[&str]| {
            let mut tc = self.router.command("tc");
            super::run(tc.args(words));
        };
        if some {
            tc(&["qdisc", "add", "dev", "out", "ingress"]);
            let filter = [
                "filter",
                "add",
                "dev",
                "out",
                "ingress",
                "protocol",
                "ip",
                "bpf",
                "direct-action",
                "bytecode",
            ];
            tc(&[&filter[..], &[LOSE_SOME]].concat());
        } else {
            tc(&["qdisc", "del", "dev", "out", "ingress"]);
        }
    }

    /// Lets no more through to the outside than so much, such as `256kbit`.
    pub fn throttle(&self, rate: &str) {
        let mut tc = self.router.command("tc");
        let words = [
            "qdisc", "replace", "dev", "out", "root", "tbf", "rate", rate, "burst", "16k", "latency", "400ms",
        ];
        super::run(tc.args(words));
    }

    /// Does `work` on a thread of this program whose sockets are on the laptop.
    ///
    /// # Panics
    /// When the system refuses, or the work panics.
    pub fn inside_laptop<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.laptop.inside(work)
    }

    /// Does `work` on a thread of this program whose sockets are on the server.
    ///
    /// # Panics
    /// When the system refuses, or the work panics.
    pub fn inside_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.server.inside(work)
    }
}

impl Default for BehindNat {
    fn default() -> Self {
        Self::new()
    }
}
