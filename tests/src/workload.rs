//! Programs that make connections and processes of every kind, and write down what really happened.
//!
//! Each workload has addresses of its own below 127.N.0.0/16, 10.N.0.0/16 and fd00:a11b::N:0/112, and each connection
//! one of these (all of them are local once [`prepare`] has been run), so that a record can be told from every other by
//! one of its ends. Must run in a network namespace that [`prepare`] has been run in.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Instant,
};

use alibi_proto::flow::{Direction, Protocol};
use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

mod early;
mod failures;
pub mod line;
mod processes;
mod servers;
mod system;
mod tcp;
pub mod threads;
pub mod truth;
mod udp;

use truth::{Connection, Log, Outcome, Truth, Who};

/// A kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// The second byte of its addresses.
    number: u8,
    run: fn(&Ground) -> Result<()>,
}

/// All of them, in the order in which they run. The first is begun before the agent is.
pub const ALL: &[Workload] = &[
    Workload { name: EARLY, about: "sockets opened before the agent starts", number: 1, run: early::run },
    Workload { name: "fresh", about: "2,000 processes, a connection each", number: 2, run: processes::fresh },
    Workload { name: "many", about: "20,000 connections of one process", number: 3, run: tcp::many },
    Workload { name: "exec", about: "2,000 times fork and exec", number: 4, run: processes::exec },
    Workload { name: "fork", about: "500 forks without exec", number: 5, run: processes::fork },
    Workload { name: "refused", about: "500 refused", number: 6, run: failures::refused },
    Workload {
        name: "unreachable",
        about: "500 to hosts that no route reaches",
        number: 7,
        run: failures::unreachable,
    },
    Workload {
        name: "no_route",
        about: "500 to networks without a route",
        number: 8,
        run: failures::no_route,
    },
    Workload {
        name: "unanswered",
        about: "10 to neighbours that do not answer",
        number: 9,
        run: failures::unanswered,
    },
    Workload { name: "dropped", about: "50 whose SYN is lost, given up", number: 10, run: failures::dropped },
    Workload {
        name: "timeout",
        about: "one whose SYNs are lost, to the end",
        number: 11,
        run: failures::timeout,
    },
    Workload {
        name: "given_up",
        about: "50 closed at once after the SYN",
        number: 12,
        run: failures::given_up,
    },
    Workload { name: "reset", about: "50 reset by the client", number: 13, run: tcp::reset },
    Workload { name: "bulk", about: "100 MB over one connection", number: 14, run: tcp::bulk },
    Workload { name: "ipv6", about: "100 over IPv6", number: 15, run: tcp::ipv6 },
    Workload { name: "mapped", about: "100 over IPv4 by IPv6 sockets", number: 16, run: tcp::mapped },
    Workload { name: "prefork", about: "a server of 4 forks, 200 times", number: 17, run: servers::prefork },
    Workload {
        name: "reuseport",
        about: "4 servers at one port, 200 times",
        number: 18,
        run: servers::reuseport,
    },
    Workload { name: "passed", about: "20 handed to another process", number: 19, run: servers::passed },
    Workload { name: "udp", about: "UDP to 100 ports, not connected", number: 20, run: udp::unconnected },
    Workload { name: "udp_connected", about: "UDP to 100 ports, connected", number: 21, run: udp::connected },
    Workload {
        name: "threads",
        about: "50 threads, and 50 times exec by a thread",
        number: 22,
        run: threads::run,
    },
    Workload {
        name: "udp_prefork",
        about: "200 UDP sockets of 4 forks",
        number: 23,
        run: servers::udp_prefork,
    },
    Workload {
        name: "reread",
        about: "20 whose last bytes a child reads after their end",
        number: 24,
        run: servers::reread,
    },
    Workload {
        name: "relisten",
        about: "100 refused, then the socket listens",
        number: 25,
        run: failures::relisten,
    },
    Workload {
        name: "interrupts",
        about: "300 times 3 to neighbours that do not answer",
        number: 26,
        run: failures::interrupts,
    },
    Workload {
        name: "to_itself",
        about: "20 sockets that connect to themselves",
        number: 27,
        run: tcp::to_itself,
    },
];

/// The workload that begins before the agent: says `ready` and waits for a line.
pub const EARLY: &str = "early";

/// What a workload has cost itself, its children included.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Processor time; that of children in steps of 10 ms.
    pub cpu_ns: u64,
    /// From start to end.
    pub wall_ns: u64,
}

/// The workload of this name.
pub fn named(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}

/// The workload that has this address among its own.
pub fn of_address(address: IpAddr) -> Option<&'static Workload> {
    let number = match address.to_canonical() {
        IpAddr::V4(address) => match address.octets() {
            [127 | 10, number, ..] => number,
            _ => return None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0xfd00, 0xa11b, .., number, _] => u8::try_from(number).ok()?,
            _ => return None,
        },
    };
    ALL.iter().find(|workload| workload.number == number)
}

/// Makes the routes that the workloads need, by a command that runs `sh` in a network namespace with an `eth0`.
///
/// # Errors
/// When the system refuses.
pub fn prepare(mut shell: Command) -> Result<()> {
    let script = "
        ip -6 route add local fd00:a11b::/64 dev lo
        for n in 7 25; do ip route add unreachable 10.$n.0.0/16; done
        ip route add throw 10.8.0.0/16
        for n in 9 26; do ip route add 10.$n.0.0/16 dev eth0; done
        ip neighbour add 192.0.2.200 lladdr 02:00:00:00:00:99 nud permanent dev eth0
        for n in 10 11 12; do ip route add 10.$n.0.0/16 via 192.0.2.200 dev eth0 onlink; done
        # So that neither of the two below takes long, and a silent neighbour is noticed first.
        echo 1 > /proc/sys/net/ipv4/neigh/eth0/mcast_solicit
        echo 20 > /proc/sys/net/ipv4/neigh/eth0/retrans_time_ms
        echo 1 > /proc/sys/net/ipv4/tcp_syn_retries";
    let output = shell.args(["-ec", script]).output().context("`sh` can be run")?;
    ensure!(output.status.success(), "no routes: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a workload, and writes what happened to `log`.
///
/// # Errors
/// When the system does not do what the workload is about.
pub fn run(workload: &Workload, log: &Path) -> Result<Cost> {
    let ground = Ground { workload: *workload, log: Log::open(log)?, this: system::this()? };
    let (began, cpu) = (Instant::now(), cpu_ns()?);
    (workload.run)(&ground).with_context(|| workload.name)?;
    let wall_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(Cost { cpu_ns: cpu_ns()? - cpu, wall_ns })
}

fn cpu_ns() -> Result<u64> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let own = u64::try_from(own.tv_sec)? * 1_000_000_000 + u64::try_from(own.tv_nsec)?;
    Ok(own + system::children_cpu_ns()?)
}

/// What one process of a workload stands on.
struct Ground {
    workload: Workload,
    log: Log,
    this: Who,
}

/// The ports of servers. Each workload has so many; where it needs one, that is its first. Clients are given ports above.
pub(crate) const PORTS: std::ops::Range<u16> = 7000..7000 + 100 * PORTS_EACH;
const PORTS_EACH: u16 = 100;
/// What a client says, and what it is answered, in bytes.
const REQUEST: usize = 100;
const ANSWER: usize = 50;

impl Ground {
    fn port(&self) -> u16 {
        PORTS.start + u16::from(self.workload.number) * PORTS_EACH
    }

    /// The address with this number, on this machine.
    fn near(&self, number: usize) -> SocketAddr {
        self.ipv4(127, number)
    }

    /// The address with this number, elsewhere.
    fn far(&self, number: usize) -> SocketAddr {
        self.ipv4(10, number)
    }

    fn ipv4(&self, first: u8, number: usize) -> SocketAddr {
        // Not 0, and not the last of the network.
        let [.., high, low] = (number + 1).to_be_bytes();
        (Ipv4Addr::new(first, self.workload.number, high, low), self.port()).into()
    }

    /// The address with this number, on this machine, in IPv6.
    fn near_ipv6(&self, number: usize) -> SocketAddr {
        let [.., high, low] = (number + 1).to_be_bytes();
        let number = u16::from_be_bytes([high, low]);
        let address = Ipv6Addr::new(0xfd00, 0xa11b, 0, 0, 0, 0, self.workload.number.into(), number);
        (address, self.port()).into()
    }

    /// An end of a TCP connection that has moved what a client asks and is answered, closed.
    fn exchanged(&self, direction: Direction, local: SocketAddr, remote: SocketAddr) -> Connection {
        let (request, answer) = (Some(REQUEST as u64), Some(ANSWER as u64));
        let (bytes_sent, bytes_received) = match direction {
            Direction::Outbound => (request, answer),
            Direction::Inbound => (answer, request),
        };
        Connection {
            workload: self.workload.name.to_owned(),
            protocol: Protocol::Tcp,
            direction,
            local: Some(local),
            remote: Some(remote),
            owner: self.this,
            outcome: Outcome::Closed,
            bytes_sent,
            bytes_received,
        }
    }

    /// An attempt to connect that came to nothing.
    fn failed(&self, remote: SocketAddr, outcome: Outcome) -> Truth {
        let ends = (SocketAddr::from(([0, 0, 0, 0], 0)), remote);
        let connection = self.exchanged(Direction::Outbound, ends.0, ends.1);
        Truth::Connection(Connection {
            local: None,
            outcome,
            bytes_sent: Some(0),
            bytes_received: Some(0),
            ..connection
        })
    }
}

/// The client's part: asks, is answered, and closes first.
fn ask(mut stream: impl std::io::Read + std::io::Write) -> Result<()> {
    stream.write_all(&[b'q'; REQUEST])?;
    stream.read_exact(&mut [0; ANSWER])?;
    Ok(())
}

/// The server's part: reads, answers, and waits until the client closes.
fn answer(mut stream: impl std::io::Read + std::io::Write) -> Result<()> {
    stream.read_exact(&mut [0; REQUEST])?;
    stream.write_all(&[b'a'; ANSWER])?;
    ensure!(stream.read(&mut [0])? == 0, "the client says more than it should");
    Ok(())
}

/// `lab touch ADDRESS TOKEN`: one connection, from a process of its own.
///
/// # Errors
/// When the server is not there.
pub fn touch(address: SocketAddr) -> Result<()> {
    ask(std::net::TcpStream::connect(address)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_knows_its_addresses() {
        for (index, workload) in ALL.iter().enumerate() {
            assert_eq!(usize::from(workload.number), index + 1, "numbers are distinct");
            let this = Who { pid: 1, start_ticks: 1 };
            let log = Log::open(Path::new("/dev/null")).unwrap();
            let ground = Ground { workload: *workload, log, this };
            for number in [0, 255, 19_999] {
                for address in [ground.near(number), ground.far(number), ground.near_ipv6(number)] {
                    assert_eq!(of_address(address.ip()).map(|found| found.name), Some(workload.name));
                }
            }
        }
        assert!(of_address([127, 0, 0, 1].into()).is_none());
        assert!(of_address([192, 0, 2, 1].into()).is_none());
        assert!(named("nonsense").is_none());
    }
}
