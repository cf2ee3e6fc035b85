//! `alibi-agent selftest`: does on this very host what a source claims to see, and looks whether it was seen.
//!
//! Everything stays on the loopback. What would take a network to try (a host that does not answer, a route that is
//! missing) is not tried, and that is said.

use std::{
    collections::HashSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use alibi_proto::flow::{Attribution, Direction, FlowState, Protocol};

use crate::{
    capture::{CaptureError, Fact, Outlet, ProcessKey, Report, SocketKey, Source},
    recorder::REPORTS_QUEUED_MAX,
    sys,
};

/// How many of each.
const EACH: usize = 20;
/// What has not been seen by then has been missed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes sent on each connection, there and back.
const BYTES: [usize; 2] = [100, 50];
const CONNECTION_REFUSED: i32 = 111;
/// Where the test's own DNS answers come from.
const NAME_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 77, 53, 53), 53);
/// With what a child of the test ends, so that its exit code is recognised.
pub const CHILD_EXIT: u8 = 7;

/// What was tried, and how much of it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was done.
    pub what: &'static str,
    /// So often.
    pub done: usize,
    /// So often it was seen, with its owner and outcome right.
    pub seen: usize,
}

impl Check {
    /// Everything was seen.
    pub fn is_covered(&self) -> bool {
        self.seen == self.done
    }
}

/// Runs `source`, and says how much it sees of what this process does meanwhile.
///
/// # Errors
/// When the source fails, or this host does not let the test be made.
pub fn run(source: Box<dyn Source>) -> Result<Vec<Check>, SelfTestError> {
    let (reports, received) = mpsc::sync_channel(REPORTS_QUEUED_MAX);
    let (stop, stopped) = mpsc::channel();
    let outlet = Outlet::new(reports, stopped);
    let running = thread::Builder::new().name("source".to_owned()).spawn(move || source.run(outlet))?;

    // The first report is what was there before: the source looks from then on.
    let mut own = HashSet::new();
    let first = received.recv_timeout(PATIENCE).map_err(|_| SelfTestError::Silent)?;
    let mut facts = facts(first, &mut own);
    let tried = try_everything()?;
    let deadline = Instant::now() + PATIENCE;
    while !tried.iter().all(|tried| tried.check(&facts).is_covered())
        && let Some(left) = deadline.checked_duration_since(Instant::now())
    {
        match received.recv_timeout(left) {
            Ok(report) => facts.extend(self::facts(report, &mut own)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    drop((stop, received));
    running.join().map_err(|_| CaptureError::Panicked)??;
    Ok(tried.iter().map(|tried| tried.check(&facts)).collect())
}

/// The test could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] CaptureError),
    /// It did not begin.
    #[error("the source has not reported within {} s", PATIENCE.as_secs())]
    Silent,
    /// What the test does itself failed.
    #[error("this host does not let the test be made: {0}")]
    Io(#[from] io::Error),
}

/// What a report says of this process, or of what has no process.
fn facts(report: Report, own: &mut HashSet<SocketKey>) -> Vec<Fact> {
    let facts = report.observations.into_iter().map(|observation| observation.fact);
    let own_key = own_key();
    let is_ours = |fact: &Fact| match fact {
        Fact::ConnectionOpened(opened) => {
            let is_own = opened.owner == own_key;
            if is_own {
                own.insert(opened.socket);
            }
            is_own
        }
        Fact::ConnectionChanged { socket, .. } | Fact::ConnectionClosed { socket, .. } => {
            own.contains(socket)
        }
        Fact::ProcessStarted(started) => started.parent == own_key,
        _ => true,
    };
    facts.filter(is_ours).collect()
}

/// Something that was done, and how it is recognised.
enum Tried {
    Connections { what: &'static str, made: Vec<Made> },
    Processes { what: &'static str, pids: Vec<u32> },
    Listener { what: &'static str, local: SocketAddr },
    Names { what: &'static str, names: Vec<String> },
}

/// A connection that was made.
struct Made {
    protocol: Protocol,
    direction: Direction,
    remote: SocketAddr,
    /// None: whatever it was.
    local: Option<SocketAddr>,
    outcome: FlowState,
    /// Bytes sent and received, where they are known.
    bytes: Option<[u64; 2]>,
}

impl Tried {
    fn check(&self, facts: &[Fact]) -> Check {
        let (what, done, seen) = match self {
            Self::Connections { what, made } => {
                (*what, made.len(), made.iter().filter(|made| made.was_seen(facts)).count())
            }
            Self::Processes { what, pids } => (*what, pids.len(), seen_whole(pids, facts)),
            Self::Listener { what, local } => {
                let is_it = |fact: &Fact| matches!(fact, Fact::Listening { owner, local: at, .. } if at == local && *owner == own_key());
                (*what, 1, usize::from(facts.iter().any(is_it)))
            }
            Self::Names { what, names } => {
                let seen: HashSet<&String> = facts
                    .iter()
                    .filter_map(|fact| match fact {
                        Fact::NameResolved(resolution) => Some(&resolution.name),
                        Fact::ServerName(hello) => hello.name.as_ref(),
                        _ => None,
                    })
                    .collect();
                (*what, names.len(), names.iter().filter(|name| seen.contains(name)).count())
            }
        };
        Check { what, done, seen }
    }
}

impl Made {
    fn was_seen(&self, facts: &[Fact]) -> bool {
        facts.iter().any(|fact| {
            let Fact::ConnectionOpened(opened) = fact else { return false };
            let socket = opened.socket;
            let is_it = (socket.protocol, opened.direction, socket.remote)
                == (self.protocol, self.direction, self.remote)
                && opened.owner == own_key()
                && opened.attribution != Attribution::Unknown;
            let mut local = opened.local;
            let (mut state, mut traffic) = (opened.state, opened.traffic);
            for fact in facts {
                let change = match fact {
                    Fact::ConnectionChanged { socket: key, change } if *key == socket => change,
                    Fact::ConnectionClosed { socket: key, change, state: last } if *key == socket => {
                        state = *last;
                        change
                    }
                    _ => continue,
                };
                local = change.local.unwrap_or(local);
                traffic = change.traffic.or(traffic);
            }
            let moved = traffic.map(|traffic| [traffic.bytes_sent, traffic.bytes_received]);
            is_it
                && state == self.outcome
                && self.local.is_none_or(|expected| expected == local)
                && self.bytes.is_none_or(|bytes| moved == Some(bytes))
        })
    }
}

/// Of these processes, how many were seen to start from this one and to end with the right code.
fn seen_whole(pids: &[u32], facts: &[Fact]) -> usize {
    let started: HashSet<ProcessKey> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::ProcessStarted(started) if started.parent == own_key() && !started.already_running => {
                Some(started.process)
            }
            _ => None,
        })
        .collect();
    let ended: HashSet<ProcessKey> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::ProcessExited { process, exit_code } if *exit_code == Some(CHILD_EXIT.into()) => {
                Some(*process)
            }
            _ => None,
        })
        .collect();
    started.intersection(&ended).filter(|process| pids.contains(&process.pid)).count()
}

fn own_key() -> Option<ProcessKey> {
    let pid = std::process::id();
    Some(ProcessKey { pid, start: sys::process_start(pid)? })
}

fn try_everything() -> io::Result<Vec<Tried>> {
    let mut tried = Vec::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    tried.push(Tried::Listener { what: "a listener", local: listener.local_addr()? });
    let (outbound, inbound) = converse(&listener, listener.local_addr()?)?;
    tried.push(Tried::Connections { what: "TCP connections made, with their bytes", made: outbound });
    tried.push(Tried::Connections { what: "TCP connections accepted, with their bytes", made: inbound });
    tried.push(Tried::Connections { what: "TCP connections refused, with the error", made: refused()? });
    // A host without IPv6 has nothing to be seen there.
    if let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        let (outbound, _) = converse(&listener, listener.local_addr()?)?;
        tried.push(Tried::Connections { what: "TCP over IPv6", made: outbound });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mapped =
            SocketAddr::new(IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()), listener.local_addr()?.port());
        let (outbound, _) = converse(&listener, mapped)?;
        tried.push(Tried::Connections { what: "TCP to IPv4 through an IPv6 socket", made: outbound });
    }
    let (unconnected, received) = datagrams(false)?;
    tried.push(Tried::Connections { what: "UDP to a peer, unconnected", made: unconnected });
    tried.push(Tried::Connections { what: "UDP received, with its bytes", made: received });
    tried.push(Tried::Connections { what: "UDP to a peer, connected", made: datagrams(true)?.0 });
    // Not every system lets an answer be given on the loopback.
    if let Ok(server) = UdpSocket::bind(NAME_SERVER) {
        tried.push(Tried::Names { what: "DNS answers", names: answers(&server)? });
    }
    tried.push(Tried::Names { what: "TLS server names", names: hellos(&listener)? });
    tried.push(Tried::Processes { what: "processes, from start to exit code", pids: children()? });
    Ok(tried)
}

/// Conversations with `listener`, asked for at `target`; as this end and as the other has them.
fn converse(listener: &TcpListener, target: SocketAddr) -> io::Result<(Vec<Made>, Vec<Made>)> {
    let (mut outbound, mut inbound) = (Vec::new(), Vec::new());
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    for _ in 0..EACH {
        let mut near = TcpStream::connect(target)?;
        let (mut far, _) = listener.accept()?;
        near.write_all(&vec![b'x'; BYTES[0]])?;
        far.read_exact(&mut vec![0; BYTES[0]])?;
        far.write_all(&vec![b'y'; BYTES[1]])?;
        near.read_exact(&mut vec![0; BYTES[1]])?;
        let (local, remote) = (canonical(near.local_addr()?), canonical(target));
        let [sent, received] = BYTES.map(|bytes| bytes as u64);
        let (protocol, outcome) = (Protocol::Tcp, FlowState::Closed);
        let direction = Direction::Outbound;
        let bytes = Some([sent, received]);
        outbound.push(Made { protocol, direction, remote, local: Some(local), outcome, bytes });
        let direction = Direction::Inbound;
        let bytes = Some([received, sent]);
        inbound.push(Made { protocol, direction, remote: local, local: Some(remote), outcome, bytes });
    }
    Ok((outbound, inbound))
}

fn refused() -> io::Result<Vec<Made>> {
    // Bound and not listening: nobody else can be there.
    let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let remote = held.local_addr()?;
    drop(held);
    let mut made = Vec::new();
    for _ in 0..EACH {
        if TcpStream::connect(remote).is_err_and(|problem| problem.kind() == io::ErrorKind::ConnectionRefused)
        {
            let (protocol, direction) = (Protocol::Tcp, Direction::Outbound);
            let outcome = FlowState::Failed(CONNECTION_REFUSED);
            made.push(Made { protocol, direction, remote, local: None, outcome, bytes: Some([0, 0]) });
        }
    }
    Ok(made)
}

/// Datagrams from one socket each to one that receives them all; as they are sent, and as they are received.
fn datagrams(is_connected: bool) -> io::Result<(Vec<Made>, Vec<Made>)> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let remote = receiver.local_addr()?;
    let (mut outbound, mut inbound) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let message = vec![b'x'; BYTES[0]];
        if is_connected {
            sender.connect(remote)?;
            sender.send(&message)?;
        } else {
            sender.send_to(&message, remote)?;
        }
        // Without asking who it is from, which is the harder case to see.
        receiver.recv(&mut vec![0; BYTES[0]])?;
        let local = sender.local_addr()?;
        let (protocol, outcome, bytes) = (Protocol::Udp, FlowState::Closed, BYTES[0] as u64);
        let direction = Direction::Outbound;
        outbound.push(Made {
            protocol,
            direction,
            remote,
            local: Some(local),
            outcome,
            bytes: Some([bytes, 0]),
        });
        let direction = Direction::Inbound;
        inbound.push(Made {
            protocol,
            direction,
            remote: local,
            local: Some(remote),
            outcome,
            bytes: Some([0, bytes]),
        });
    }
    Ok((outbound, inbound))
}

/// Questions of a socket of this process to `server`, and their answers, each with a name of its own.
fn answers(server: &UdpSocket) -> io::Result<Vec<String>> {
    let asker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    [&asker, server].into_iter().try_for_each(|socket| socket.set_read_timeout(Some(PATIENCE)))?;
    let mut names = Vec::new();
    for number in 0..EACH {
        let name = format!("answer{number}.selftest.alibi.example");
        let mut asked = Vec::new();
        for label in name.split('.') {
            asked.push(u8::try_from(label.len()).map_err(io::Error::other)?);
            asked.extend(label.as_bytes());
        }
        // For an address in the Internet.
        asked.extend([0, 0, 1, 0, 1]);
        // A query (RFC 1035) with one question, and a response with one answer, which holds for a minute.
        let query = [&[0, number as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &asked].concat();
        let response = [
            &[0, number as u8, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..],
            &asked,
            &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1],
        ]
        .concat();
        asker.send_to(&query, server.local_addr()?)?;
        server.recv(&mut [0; 512])?;
        server.send_to(&response, asker.local_addr()?)?;
        asker.recv(&mut [0; 512])?;
        names.push(name);
    }
    Ok(names)
}

/// ClientHellos (RFC 8446) to `listener`, each with a name of its own.
fn hellos(listener: &TcpListener) -> io::Result<Vec<String>> {
    // Whatever contains it, preceded by its length in so many bytes.
    fn within(length_bytes: usize, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - length_bytes..], content].concat()
    }
    let mut names = Vec::new();
    for number in 0..EACH {
        let name = format!("hello{number}.selftest.alibi.example");
        let host_name = [&[0][..], &within(2, name.as_bytes())].concat();
        let server_name = [&[0, 0][..], &within(2, &within(2, &host_name))].concat();
        let version_and_random = [&[3, 3][..], &[7; 32]].concat();
        let suites_and_compression = [within(2, &[0x13, 1]), within(1, &[0])].concat();
        let body =
            [version_and_random, within(1, &[]), suites_and_compression, within(2, &server_name)].concat();
        let handshake = [&[1][..], &within(3, &body)].concat();
        let record = [&[22, 3, 1][..], &within(2, &handshake)].concat();
        let mut near = TcpStream::connect(listener.local_addr()?)?;
        let (mut far, _) = listener.accept()?;
        near.write_all(&record)?;
        far.read_exact(&mut vec![0; record.len()])?;
        names.push(name);
    }
    Ok(names)
}

/// Children that run this very program and end at once with [`CHILD_EXIT`].
fn children() -> io::Result<Vec<u32>> {
    let program = std::env::current_exe()?;
    let mut pids = Vec::new();
    for _ in 0..EACH {
        let mut child = Command::new(&program)
            .args(["selftest", "--child"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        pids.push(child.id());
        child.wait()?;
    }
    Ok(pids)
}
