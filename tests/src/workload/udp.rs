//! Datagrams within this host, sender and receiver in one process.

use std::net::{SocketAddr, UdpSocket};

use alibi_proto::flow::{Direction, Protocol};
use anyhow::{Result, ensure};
use rustix::net::{RecvFlags, recv};

use super::{
    ANSWER, Ground, REQUEST,
    truth::{Connection, Truth},
};

const PEERS: u16 = 100;

/// One socket sends to all.
pub(super) fn unconnected(ground: &Ground) -> Result<()> {
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let local = sender.local_addr()?;
    // Those that are sent to stay open, as servers do.
    let mut receivers = Vec::new();
    for number in 0..PEERS {
        let (receiver, remote) = receiver(ground, number, local)?;
        sender.send_to(&[0; REQUEST], remote)?;
        let answered = receive(&receiver, number, local)?;
        if answered > 0 {
            ensure!(sender.recv_from(&mut [0; ANSWER])? == (ANSWER, remote), "an answer from elsewhere");
        }
        log(ground, local, remote, answered)?;
        receivers.push(receiver);
    }
    Ok(())
}

/// A socket for each, connected.
pub(super) fn connected(ground: &Ground) -> Result<()> {
    for number in 0..PEERS {
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        let local = sender.local_addr()?;
        let (receiver, remote) = receiver(ground, number, local)?;
        sender.connect(remote)?;
        sender.send(&[0; REQUEST])?;
        let answered = receive(&receiver, number, local)?;
        if answered > 0 {
            ensure!(sender.recv(&mut [0; ANSWER])? == ANSWER, "a short answer");
        }
        log(ground, local, remote, answered)?;
    }
    Ok(())
}

fn receiver(ground: &Ground, number: u16, sender: SocketAddr) -> Result<(UdpSocket, SocketAddr)> {
    let mut address = ground.near(number.into());
    address.set_port(address.port() + number);
    let receiver = UdpSocket::bind(address)?;
    if number % 3 == 2 {
        receiver.connect(sender)?;
    }
    Ok((receiver, address))
}

/// Receives with the sender's address, without, or from the one that it is connected to. Answers if it knows whom.
fn receive(receiver: &UdpSocket, number: u16, sender: SocketAddr) -> Result<usize> {
    let mut buffer = [0; REQUEST];
    match number % 3 {
        0 => {
            ensure!(receiver.recv_from(&mut buffer)? == (REQUEST, sender), "a datagram from elsewhere");
            Ok(receiver.send_to(&[0; ANSWER], sender)?)
        }
        1 => {
            // As `read` does; the system is not asked who sent it.
            ensure!(recv(receiver, &mut buffer, RecvFlags::empty())?.1 == REQUEST, "a short datagram");
            Ok(0)
        }
        _ => {
            ensure!(receiver.recv(&mut buffer)? == REQUEST, "a short datagram");
            Ok(receiver.send(&[0; ANSWER])?)
        }
    }
}

fn log(ground: &Ground, sender: SocketAddr, receiver: SocketAddr, answered: usize) -> Result<()> {
    let end = |direction, local, remote, sent: usize, received: usize| {
        Truth::Connection(Connection {
            protocol: Protocol::Udp,
            bytes_sent: Some(sent as u64),
            bytes_received: Some(received as u64),
            ..ground.exchanged(direction, local, remote)
        })
    };
    Ok(ground.log.add_all(&[
        end(Direction::Outbound, sender, receiver, REQUEST, answered),
        end(Direction::Inbound, receiver, sender, answered, REQUEST),
    ])?)
}
