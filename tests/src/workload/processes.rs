//! Processes that come and go.

use std::{
    collections::HashMap,
    env,
    net::{SocketAddr, TcpListener},
    process::Command,
    thread,
};

use alibi_proto::flow::Direction::{Inbound, Outbound};
use anyhow::{Context as _, Result, ensure};

use super::{
    Ground, answer, system,
    truth::{Connection, Process, Truth, Who},
};

const FRESH: usize = 2_000;

/// Each connects once, and ends.
pub(super) fn fresh(ground: &Ground) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ground.port()))?;
    let server = thread::spawn(move || -> Result<HashMap<SocketAddr, SocketAddr>> {
        let mut clients = HashMap::new();
        for stream in listener.incoming().take(FRESH) {
            let stream = stream?;
            clients.insert(stream.local_addr()?, stream.peer_addr()?);
            answer(&stream)?;
        }
        Ok(clients)
    });
    let lab = env::current_exe()?;
    let mut asked = Vec::with_capacity(FRESH);
    for number in 0..FRESH {
        let remote = ground.near(number);
        let process = spawned(ground, number, Command::new(&lab).args(["touch", &remote.to_string()]))?;
        asked.push((remote, process.who));
        ground.log.add(&Truth::Process(process))?;
    }
    let clients = server.join().ok().context("the server panicked")??;
    for (remote, owner) in asked {
        let local = *clients.get(&remote).with_context(|| format!("nobody came to {remote}"))?;
        let client = Connection { owner, ..ground.exchanged(Outbound, local, remote) };
        let server = ground.exchanged(Inbound, remote, local);
        ground.log.add_all(&[Truth::Connection(client), Truth::Connection(server)])?;
    }
    Ok(())
}

pub(super) fn exec(ground: &Ground) -> Result<()> {
    for number in 0..2_000 {
        let process = spawned(ground, number, &mut Command::new("/bin/true"))?;
        ground.log.add(&Truth::Process(process))?;
    }
    Ok(())
}

/// Runs a program with one more argument, its token, to its end.
pub(super) fn spawned(ground: &Ground, number: usize, command: &mut Command) -> Result<Process> {
    let token = format!("{}-{number}-{}", ground.workload.name, ground.this.pid);
    let mut child = command.arg(&token).spawn()?;
    // As long as it has not been waited for, it is there.
    let who = system::who(child.id())?;
    let status = child.wait()?;
    ensure!(status.success(), "{token} failed: {status}");
    Ok(process(ground, who, Some(token), status.code()))
}

pub(super) fn fork(ground: &Ground) -> Result<()> {
    for number in 0..500_u32 {
        let code = u8::try_from(number % 200)?;
        let pid = system::fork(|| Ok(code))?;
        let who = system::who(pid)?;
        let exit_code = system::wait(pid)?;
        ensure!(exit_code == Some(code.into()), "a fork exited with {exit_code:?}");
        ground.log.add(&Truth::Process(process(ground, who, None, exit_code)))?;
    }
    Ok(())
}

pub(super) fn process(ground: &Ground, who: Who, token: Option<String>, exit_code: Option<i32>) -> Process {
    let workload = ground.workload.name.to_owned();
    Process { workload, who, parent: ground.this, token, exit_code }
}
