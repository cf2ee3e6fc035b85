//! Attempts to connect that come to nothing.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    ops::Range,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, listen, socket_with, sockopt::socket_error},
};

use super::{
    Ground,
    truth::{Outcome, Truth},
};

pub(super) fn refused(ground: &Ground) -> Result<()> {
    fail_at_once(ground, |number| ground.near(number), Errno::CONNREFUSED)
}

pub(super) fn unreachable(ground: &Ground) -> Result<()> {
    fail_at_once(ground, |number| ground.far(number), Errno::HOSTUNREACH)
}

pub(super) fn no_route(ground: &Ground) -> Result<()> {
    fail_at_once(ground, |number| ground.far(number), Errno::NETUNREACH)
}

/// A socket that was refused a connection, before or after it asked the network, is used to listen, and closed at once:
/// before anybody has looked at it.
pub(super) fn relisten(ground: &Ground) -> Result<()> {
    let far = (0..50).map(|number| (ground.far(number), Errno::HOSTUNREACH));
    let near = (0..50).map(|number| (ground.near(number), Errno::CONNREFUSED));
    for (remote, want) in far.chain(near) {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::empty(), None)?;
        let refused = connect(&socket, &remote);
        ensure!(refused == Err(want), "{remote}: {refused:?}");
        listen(&socket, 1)?;
        drop(socket);
        ground.log.add(&ground.failed(remote, Outcome::Failed(want.raw_os_error())))?;
    }
    Ok(())
}

fn fail_at_once(ground: &Ground, remote: impl Fn(usize) -> SocketAddr, want: Errno) -> Result<()> {
    let mut truths = Vec::new();
    for number in 0..500 {
        let remote = remote(number);
        let error = TcpStream::connect(remote).err().with_context(|| format!("{remote} answers"))?;
        let errno = error.raw_os_error().context("no errno")?;
        ensure!(errno == want.raw_os_error(), "{remote}: {error}");
        truths.push(ground.failed(remote, Outcome::Failed(errno)));
    }
    Ok(ground.log.add_all(&truths)?)
}

/// Neighbours that nobody is: the system gives up after some seconds.
pub(super) fn unanswered(ground: &Ground) -> Result<()> {
    fail_late(ground, 10, Errno::HOSTUNREACH)
}

/// The same so often that some are over in an interrupt while the recorder's own programs are at work, and some in one that
/// comes to an idle processor, where there are kernels that leave out tracepoints.
pub(super) fn interrupts(ground: &Ground) -> Result<()> {
    (0..300).try_for_each(|round| {
        let numbers = round * 3..round * 3 + 3;
        expect(ground, asked(ground, numbers)?, Errno::HOSTUNREACH)
    })
}

/// SYNs that nobody answers, until the system gives up.
pub(super) fn timeout(ground: &Ground) -> Result<()> {
    fail_late(ground, 1, Errno::TIMEDOUT)
}

fn fail_late(ground: &Ground, count: usize, want: Errno) -> Result<()> {
    expect(ground, asked(ground, 0..count)?, want)
}

/// Waits for each to fail.
fn expect(ground: &Ground, asked: Vec<(SocketAddr, OwnedFd)>, want: Errno) -> Result<()> {
    for (remote, socket) in asked {
        let error =
            outcome(&socket, Duration::from_secs(60))?.with_context(|| format!("{remote} is silent"))?;
        ensure!(error == want, "{remote}: {error}");
        ground.log.add(&ground.failed(remote, Outcome::Failed(error.raw_os_error())))?;
    }
    Ok(())
}

/// SYNs that nobody answers; the program waits for a moment only.
pub(super) fn dropped(ground: &Ground) -> Result<()> {
    let sockets = asked(ground, 0..50)?;
    let patience = Instant::now() + Duration::from_millis(500);
    for (remote, socket) in sockets {
        let answered = outcome(&socket, patience.saturating_duration_since(Instant::now()))?;
        ensure!(answered.is_none(), "{remote}: {answered:?}");
        ground.log.add(&ground.failed(remote, Outcome::GivenUp))?;
    }
    Ok(())
}

/// As a program does that asks several addresses, and takes the first that answers.
pub(super) fn given_up(ground: &Ground) -> Result<()> {
    let truths = asked(ground, 0..50)?.into_iter().map(|(remote, socket)| {
        drop(socket);
        ground.failed(remote, Outcome::GivenUp)
    });
    let truths: Vec<Truth> = truths.collect();
    Ok(ground.log.add_all(&truths)?)
}

/// Sockets that have sent their first SYN, to the addresses with these numbers.
fn asked(ground: &Ground, numbers: Range<usize>) -> Result<Vec<(SocketAddr, OwnedFd)>> {
    numbers
        .map(|number| {
            let remote = ground.far(number);
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            match connect(&socket, &remote) {
                Err(Errno::INPROGRESS) => Ok((remote, socket)),
                other => anyhow::bail!("{remote}: {other:?}"),
            }
        })
        .collect()
}

/// How an attempt ended, if it does within `patience`.
fn outcome(socket: &OwnedFd, patience: Duration) -> io::Result<Option<Errno>> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout))? == 0 {
        return Ok(None);
    }
    Ok(socket_error(socket)?.err())
}
