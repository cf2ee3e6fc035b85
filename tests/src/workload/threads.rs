//! Threads, which are no processes: what they do is their process's doing.

use std::{
    collections::HashMap,
    env,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::Command,
    sync::Barrier,
    thread,
};

use alibi_proto::flow::Direction::{Inbound, Outbound};
use anyhow::{Context as _, Result, bail};

use super::{
    Ground, answer, ask,
    processes::spawned,
    truth::{Connection, Truth},
};

const THREADS: usize = 50;
const TURNS: usize = 50;

/// Threads of one process that are there all at once and connect once each; then processes that each become another
/// program by a thread that is not their first, and connect as that.
pub(super) fn run(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    let server = thread::spawn(move || -> Result<HashMap<SocketAddr, SocketAddr>> {
        let mut clients = HashMap::new();
        for stream in listener.incoming().take(THREADS + TURNS) {
            let stream = stream?;
            clients.insert(stream.local_addr()?, stream.peer_addr()?);
            answer(&stream)?;
        }
        Ok(clients)
    });
    let mut owners = HashMap::new();
    let all_there = Barrier::new(THREADS);
    thread::scope(|scope| {
        let visits: Vec<_> = (0..THREADS)
            .map(|number| {
                let (remote, all_there) = (ground.near(number), &all_there);
                scope.spawn(move || {
                    all_there.wait();
                    ask(TcpStream::connect(remote)?)
                })
            })
            .collect();
        visits.into_iter().try_for_each(|visit| visit.join().ok().context("a thread panicked")?)
    })?;
    for number in 0..THREADS {
        owners.insert(ground.near(number), ground.this);
    }
    let lab = env::current_exe()?;
    for number in THREADS..THREADS + TURNS {
        let remote = ground.near(number);
        let process = spawned(ground, number, Command::new(&lab).args(["turn", &remote.to_string()]))?;
        owners.insert(remote, process.who);
        ground.log.add(&Truth::Process(process))?;
    }
    let clients = server.join().ok().context("the server panicked")??;
    for (remote, owner) in owners {
        let local = *clients.get(&remote).with_context(|| format!("nobody came to {remote}"))?;
        let client = Connection { owner, ..ground.exchanged(Outbound, local, remote) };
        let server = ground.exchanged(Inbound, remote, local);
        ground.log.add_all(&[Truth::Connection(client), Truth::Connection(server)])?;
    }
    Ok(())
}

/// `lab turn ADDRESS TOKEN`: becomes `lab touch ADDRESS TOKEN`, by a thread that is not the first.
///
/// # Errors
/// When the system refuses.
pub fn turn(address: SocketAddr, token: &str) -> Result<()> {
    let lab = env::current_exe()?;
    let become_another = || Command::new(lab).args(["touch", &address.to_string(), token]).exec();
    match thread::scope(|scope| scope.spawn(become_another).join()) {
        Ok(error) => Err(error).context("cannot become another program"),
        Err(_) => bail!("the thread panicked"),
    }
}
