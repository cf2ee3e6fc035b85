//! Sockets that are opened before the agent starts, and used and closed after.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use alibi_proto::flow::{
    Direction::{Inbound, Outbound},
    Protocol,
};
use anyhow::{Context as _, Result, ensure};

use super::{
    ANSWER, Ground, REQUEST, answer, ask,
    truth::{Connection, Truth},
};

const COUNT: usize = 10;

/// Says `ready` when they are open, and goes on when it is given a line.
pub(super) fn run(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    let mut streams = Vec::new();
    for number in 0..COUNT {
        let remote = ground.near(number);
        let client = TcpStream::connect(remote)?;
        let (server, local) = listener.accept()?;
        streams.push((client, server, local, remote));
    }
    let mut datagrams = Vec::new();
    for number in COUNT..COUNT * 2 {
        let remote = ground.near(number);
        let (client, server) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind(remote)?);
        client.connect(remote)?;
        datagrams.push((client, server, remote));
    }
    println!("ready");
    ensure!(io::stdin().read_line(&mut String::new())? > 0, "nobody said to go on");

    for (client, server, local, remote) in streams {
        let asked = std::thread::spawn(move || ask(client));
        answer(server)?;
        asked.join().ok().context("the client panicked")??;
        log(ground, Protocol::Tcp, local, remote)?;
    }
    for (client, server, remote) in datagrams {
        let local = client.local_addr()?;
        client.send(&[0; REQUEST])?;
        server.recv_from(&mut [0; REQUEST])?;
        server.send_to(&[0; ANSWER], local)?;
        client.recv(&mut [0; ANSWER])?;
        log(ground, Protocol::Udp, local, remote)?;
    }
    Ok(())
}

fn log(ground: &Ground, protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Result<()> {
    let end = |connection| Truth::Connection(Connection { protocol, ..connection });
    let outbound = end(ground.exchanged(Outbound, local, remote));
    Ok(ground.log.add_all(&[outbound, end(ground.exchanged(Inbound, remote, local))])?)
}
