//! TCP connections within this host, both ends in one process.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use alibi_proto::flow::Direction::{Inbound, Outbound};
use anyhow::{Context as _, Result};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt::set_socket_linger,
};

use super::{
    ANSWER, Ground, answer, ask,
    truth::{Connection, Outcome, Truth},
};

const BULK_BYTES: usize = 100 << 20;

pub(super) fn many(ground: &Ground) -> Result<()> {
    exchange(
        ground,
        TcpListener::bind(("0.0.0.0", ground.port()))?,
        (0..20_000).map(|number| ground.near(number)),
    )
}

pub(super) fn ipv6(ground: &Ground) -> Result<()> {
    exchange(
        ground,
        TcpListener::bind(("::", ground.port()))?,
        (0..100).map(|number| ground.near_ipv6(number)),
    )
}

pub(super) fn mapped(ground: &Ground) -> Result<()> {
    let remotes = (0..100).map(|number| match ground.near(number) {
        SocketAddr::V4(address) => (address.ip().to_ipv6_mapped(), ground.port()).into(),
        address @ SocketAddr::V6(_) => address,
    });
    exchange(ground, TcpListener::bind((Ipv6Addr::UNSPECIFIED, ground.port()))?, remotes)
}

/// Connects to each, asks, and is answered, one after the other.
fn exchange(
    ground: &Ground,
    listener: TcpListener,
    remotes: impl ExactSizeIterator<Item = SocketAddr>,
) -> Result<()> {
    let count = remotes.len();
    let server = thread::spawn(move || -> Result<()> {
        for stream in listener.incoming().take(count) {
            answer(&stream?)?;
        }
        Ok(())
    });
    let mut truths = Vec::with_capacity(count * 2);
    for remote in remotes {
        let stream = TcpStream::connect(remote)?;
        let local = stream.local_addr()?;
        ask(stream)?;
        truths.push(Truth::Connection(ground.exchanged(Outbound, local, remote)));
        truths.push(Truth::Connection(ground.exchanged(Inbound, remote, local)));
    }
    server.join().ok().context("the server panicked")??;
    Ok(ground.log.add_all(&truths)?)
}

/// A socket that connects to itself: both ends ask, and nobody accepts.
pub(super) fn to_itself(ground: &Ground) -> Result<()> {
    for number in 0..20 {
        let address = ground.near(number);
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &address)?;
        connect(&socket, &address)?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(&[0; ANSWER])?;
        stream.read_exact(&mut [0; ANSWER])?;
        drop(stream);
        let bytes = Some(u64::try_from(ANSWER)?);
        let connection = ground.exchanged(Outbound, address, address);
        ground.log.add(&Truth::Connection(Connection {
            bytes_sent: bytes,
            bytes_received: bytes,
            ..connection
        }))?;
    }
    Ok(())
}

/// The client breaks off: the server's read fails.
pub(super) fn reset(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    for number in 0..50 {
        let remote = ground.near(number);
        let mut client = TcpStream::connect(remote)?;
        let (mut server, local) = listener.accept()?;
        client.write_all(&[0; ANSWER])?;
        server.read_exact(&mut [0; ANSWER])?;
        set_socket_linger(&client, Some(Duration::ZERO))?;
        drop(client);
        let error = server.read(&mut [0]).err().context("the reset was not noticed")?;
        let errno = error.raw_os_error().context("no errno")?;
        let moved = Some(ANSWER as u64);
        let client = Connection {
            bytes_sent: moved,
            bytes_received: Some(0),
            ..ground.exchanged(Outbound, local, remote)
        };
        let server = Connection {
            bytes_sent: Some(0),
            bytes_received: moved,
            outcome: Outcome::Failed(errno),
            ..ground.exchanged(Inbound, remote, local)
        };
        ground.log.add_all(&[Truth::Connection(client), Truth::Connection(server)])?;
    }
    Ok(())
}

pub(super) fn bulk(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    let server = thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(total),
                read => total += read,
            }
        }
    });
    let remote = ground.near(0);
    let mut stream = TcpStream::connect(remote)?;
    let local = stream.local_addr()?;
    let piece = vec![b'b'; 1 << 16];
    for _ in 0..BULK_BYTES / piece.len() {
        stream.write_all(&piece)?;
    }
    drop(stream);
    let received = server.join().ok().context("the server panicked")??;
    let client = Connection {
        bytes_sent: Some(BULK_BYTES as u64),
        bytes_received: Some(0),
        ..ground.exchanged(Outbound, local, remote)
    };
    let server = Connection {
        bytes_sent: Some(0),
        bytes_received: Some(received as u64),
        ..ground.exchanged(Inbound, remote, local)
    };
    Ok(ground.log.add_all(&[Truth::Connection(client), Truth::Connection(server)])?)
}
