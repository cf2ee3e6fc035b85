//! Servers of several processes, and a connection that changes hands.

use std::{
    io::{ErrorKind, IoSlice, IoSliceMut, PipeReader, PipeWriter, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use alibi_proto::flow::{
    Direction::{Inbound, Outbound},
    Protocol,
};
use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, bind, listen, recvmsg, sendmsg, socket,
    sockopt::set_socket_reuseport,
};

use super::{
    ANSWER, Ground, REQUEST, answer, ask,
    processes::process,
    system,
    truth::{Connection, Log, Truth, Who},
};

const WORKERS: usize = 4;
const CONNECTIONS: usize = 200;

/// One listener, opened before the forks; whichever worker accepts a connection owns it.
pub(super) fn prefork(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    serve_with_forks(ground, || Ok(listener.try_clone()?))
}

/// A listener for each worker, all at the same port.
pub(super) fn reuseport(ground: &Ground) -> Result<()> {
    serve_with_forks(ground, || {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_socket_reuseport(&socket, true)?;
        bind(&socket, &SocketAddr::from(([0, 0, 0, 0], ground.port())))?;
        listen(&socket, 128)?;
        Ok(TcpListener::from(socket))
    })
}

/// UDP sockets that are bound before the forks; whichever worker answers on one owns what is exchanged there.
pub(super) fn udp_prefork(ground: &Ground) -> Result<()> {
    let bound = (0..CONNECTIONS).map(|number| UdpSocket::bind(ground.near(number)));
    let servers = bound.collect::<Result<Vec<_>, _>>()?;
    servers.iter().try_for_each(|server| server.set_nonblocking(true))?;
    let (mut ready, is_ready) = std::io::pipe()?;
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let pid = system::fork(|| serve_datagrams(&servers, u8::try_from(number)?, &is_ready))?;
        let who = system::who(pid)?;
        workers.push((pid, who));
        ground.log.add(&Truth::Process(process(ground, who, None, None)))?;
    }
    drop(is_ready);
    let owners: Vec<Who> = workers.iter().map(|(_, who)| *who).collect();
    let served = wait_for_workers(&mut ready).and_then(|()| send_to(ground, &servers, &owners));
    for (pid, _) in workers {
        system::end(pid)?;
    }
    served
}

fn send_to(ground: &Ground, servers: &[UdpSocket], workers: &[Who]) -> Result<()> {
    let client = UdpSocket::bind("127.0.0.1:0")?;
    let local = client.local_addr()?;
    for server in servers {
        let remote = server.local_addr()?;
        client.send_to(&[b'q'; REQUEST], remote)?;
        let mut answer = [0; ANSWER];
        ensure!(client.recv_from(&mut answer)? == (ANSWER, remote), "an answer from elsewhere");
        let owner = *workers.get(usize::from(answer[0])).context("an answer from nobody")?;
        let protocol = Protocol::Udp;
        ground.log.add_all(&[
            Truth::Connection(Connection { protocol, ..ground.exchanged(Outbound, local, remote) }),
            Truth::Connection(Connection { protocol, owner, ..ground.exchanged(Inbound, remote, local) }),
        ])?;
    }
    Ok(())
}

/// A worker: answers with its number, until it is ended. All workers hear of a datagram, one gets it.
fn serve_datagrams(servers: &[UdpSocket], number: u8, mut is_ready: &PipeWriter) -> Result<u8> {
    is_ready.write_all(b".")?;
    loop {
        let mut waiting: Vec<_> = servers.iter().map(|server| PollFd::new(server, PollFlags::IN)).collect();
        poll(&mut waiting, None)?;
        for (server, waiting) in servers.iter().zip(&waiting) {
            if waiting.revents().is_empty() {
                continue;
            }
            match server.recv_from(&mut [0; REQUEST]) {
                Ok((length, client)) => {
                    ensure!(length == REQUEST, "a short datagram");
                    server.send_to(&[number; ANSWER], client)?;
                }
                Err(problem) if problem.kind() == ErrorKind::WouldBlock => {}
                Err(problem) => return Err(problem.into()),
            }
        }
    }
}

fn serve_with_forks(ground: &Ground, listener: impl Fn() -> Result<TcpListener>) -> Result<()> {
    let (mut ready, is_ready) = std::io::pipe()?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let pid = system::fork(|| serve(ground, &listener()?, &is_ready))?;
        workers.push(pid);
        let worker = process(ground, system::who(pid)?, None, None);
        ground.log.add(&Truth::Process(worker))?;
    }
    drop(is_ready);
    let served = wait_for_workers(&mut ready).and_then(|()| visit(ground));
    for pid in workers {
        system::end(pid)?;
    }
    served
}

fn wait_for_workers(ready: &mut PipeReader) -> Result<()> {
    ready.read_exact(&mut [0; WORKERS]).context("a worker does not listen")
}

/// The odd ones speak second: their servers write first.
fn visit(ground: &Ground) -> Result<()> {
    for number in 0..CONNECTIONS {
        let remote = ground.near(number);
        let mut stream = TcpStream::connect(remote)?;
        let local = stream.local_addr()?;
        if speaks_first(remote) {
            ask(stream)?;
        } else {
            stream.read_exact(&mut [0; ANSWER])?;
            stream.write_all(&[b'q'; REQUEST])?;
        }
        ground.log.add(&Truth::Connection(ground.exchanged(Outbound, local, remote)))?;
    }
    Ok(())
}

fn speaks_first(server: SocketAddr) -> bool {
    match server {
        SocketAddr::V4(address) => address.ip().octets()[3] % 2 == 0,
        SocketAddr::V6(_) => true,
    }
}

/// A worker: until it is ended. What it accepts is written down before anything is said on it, so that all is written
/// when the last client has been answered.
fn serve(ground: &Ground, listener: &TcpListener, mut is_ready: &PipeWriter) -> Result<u8> {
    let owner = system::this()?;
    is_ready.write_all(b".")?;
    loop {
        let (mut stream, remote) = listener.accept()?;
        let local = stream.local_addr()?;
        let end = Connection { owner, ..ground.exchanged(Inbound, local, remote) };
        ground.log.add(&Truth::Connection(end))?;
        if speaks_first(local) {
            answer(stream)?;
        } else {
            stream.write_all(&[b'a'; ANSWER])?;
            stream.read_exact(&mut [0; REQUEST])?;
            ensure!(stream.read(&mut [0])? == 0, "the client says more than it should");
        }
    }
}

/// What has arrived can be read after the end of a connection, by a process that never used it.
pub(super) fn reread(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    for number in 0..20 {
        let remote = ground.near(number);
        let mut client = TcpStream::connect(remote)?;
        let local = client.local_addr()?;
        client.write_all(&[b'q'; REQUEST])?;
        client.shutdown(Shutdown::Write)?;
        let (mut server, _) = listener.accept()?;
        server.read_exact(&mut [0; REQUEST])?;
        server.write_all(&[b'a'; ANSWER])?;
        drop(server);
        // Both ends have been closed.
        let mut over = [PollFd::new(&client, PollFlags::HUP)];
        while !over[0].revents().contains(PollFlags::HUP) {
            poll(&mut over, None)?;
        }
        let reader = system::fork(|| {
            (&client).read_exact(&mut [0; ANSWER])?;
            Ok(0)
        })?;
        let who = system::who(reader)?;
        let exit_code = system::wait(reader)?;
        ensure!(exit_code == Some(0), "the reader failed: {exit_code:?}");
        ground.log.add_all(&[
            Truth::Connection(ground.exchanged(Outbound, local, remote)),
            Truth::Connection(ground.exchanged(Inbound, remote, local)),
            Truth::Process(process(ground, who, None, exit_code)),
        ])?;
    }
    Ok(())
}

/// One process connects, another one uses the connection.
pub(super) fn passed(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    for number in 0..20 {
        let remote = ground.near(number);
        let (ours, theirs) = UnixStream::pair()?;
        let user = system::fork(|| {
            ask(TcpStream::from(received(&theirs)?))?;
            Ok(0)
        })?;
        drop(theirs);
        let owner = system::who(user)?;
        let client = TcpStream::connect(remote)?;
        let local = client.local_addr()?;
        let (server, _) = listener.accept()?;
        pass(&ours, client)?;
        answer(server)?;
        let exit_code = system::wait(user)?;
        ensure!(exit_code == Some(0), "the other process failed: {exit_code:?}");
        say(&ground.log, ground, (owner, exit_code), local, remote)?;
    }
    Ok(())
}

fn say(
    log: &Log,
    ground: &Ground,
    (owner, exit_code): (Who, Option<i32>),
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<()> {
    let client = Connection { owner, ..ground.exchanged(Outbound, local, remote) };
    let server = ground.exchanged(Inbound, remote, local);
    let user = process(ground, owner, None, exit_code);
    Ok(log.add_all(&[Truth::Connection(client), Truth::Connection(server), Truth::Process(user)])?)
}

/// Hands a connection over; it is closed here.
fn pass(to: &UnixStream, connection: TcpStream) -> Result<()> {
    let handed = [connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(ancillary.push(SendAncillaryMessage::ScmRights(&handed)), "no space for a descriptor");
    sendmsg(to, &[IoSlice::new(b".")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn received(from: &UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.next().and_then(|mut descriptors| descriptors.next()).context("nothing was handed over")
}
