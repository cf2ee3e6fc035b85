//! `cargo lab up`: a collector and an agent on this machine, until Ctrl-C.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::programs;

/// Where the collector serves, unless told otherwise.
pub const COLLECTOR: &str = "127.0.0.1:8440";
/// The logins at the collector, in the data directory; `cargo alibi` looks for them there.
const CREDENTIALS: &str = "credentials.json";
/// How long the first recording may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until it is told to stop, or one of the two ends by itself.
///
/// # Errors
/// When either cannot be started, or ends by itself.
pub fn up(data: &Path, listen: &str) -> Result<()> {
    println!("Building…");
    let programs = programs::build()?;
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ended, endings) = mpsc::channel();

    let of_collector = data.join("collector");
    let mut serve = Command::new(&programs.alibi);
    // It tells how the first admin logs in, which is done here.
    serve.args(["serve", "--listen", listen, "--data"]).arg(&of_collector).stdout(Stdio::null());
    let mut collector = start("collector", &mut serve, "serving", &ended)?;
    let alibi =
        Alibi { program: programs.alibi, collector: listen.to_owned(), credentials: data.join(CREDENTIALS) };
    alibi.log_in(&of_collector)?;
    let of_agent = data.join("agent");
    alibi.enrol(&programs.agent, &of_agent)?;
    let mut agent = start(
        "agent",
        Command::new(&programs.agent).args(["run", "--data"]).arg(&of_agent),
        "recording",
        &ended,
    )?;
    introduce(&alibi, data)?;

    let stopped = runtime.block_on(async {
        tokio::select! {
            () = alibi_proto::transport::stop_signal() => Ok(()),
            name = first_ending(endings) => Err(anyhow::anyhow!("the {name} ended by itself")),
        }
    });
    println!("\nStopping…");
    // The agent first, so that its last words still reach the collector.
    agent.stop()?;
    collector.stop()?;
    println!("Stopped. Everything is kept in {}; `cargo lab up` goes on with it.", data.display());
    stopped
}

async fn first_ending(endings: Receiver<String>) -> String {
    let next = tokio::task::spawn_blocking(move || endings.recv());
    match next.await {
        Ok(Ok(name)) => name,
        _ => std::future::pending().await,
    }
}

struct Program {
    name: &'static str,
    child: Child,
}

impl Program {
    fn stop(&mut self) -> Result<()> {
        // At Ctrl-C the terminal has told it already; asking again does no harm.
        let pid = rustix::process::Pid::from_child(&self.child);
        if self.child.try_wait()?.is_none() {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .with_context(|| format!("the {} cannot be stopped", self.name))?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the {} did not stop cleanly: {status}", self.name);
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Only where starting failed half way; after `stop` it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a program and waits until it says `ready`. Warnings, and what it says before it is ready, are passed on.
fn start(name: &'static str, command: &mut Command, ready: &str, ended: &Sender<String>) -> Result<Program> {
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("the {name} cannot be started"))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let mut program = Program { name, child };
    let mut lines = BufReader::new(stderr).lines();
    let mut said = Vec::new();
    loop {
        match lines.next() {
            Some(Ok(line)) if line.contains(ready) => break,
            Some(Ok(line)) => said.push(line),
            _ => {
                program.child.wait()?;
                bail!("the {name} did not start: {}", said.join("\n"));
            }
        }
    }
    let ended = ended.clone();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if line.contains("WARN") || line.contains("ERROR") {
                eprintln!("{name}: {line}");
            }
        }
        // Nobody listens once both are being stopped.
        let _ = ended.send(name.to_owned());
    });
    Ok(program)
}

/// `alibi` as the admin of the collector here.
struct Alibi {
    program: PathBuf,
    collector: String,
    credentials: PathBuf,
}

impl Alibi {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .env("ALIBI_COLLECTOR", &self.collector)
            .env("ALIBI_CREDENTIALS", &self.credentials)
            .env_remove("ALIBI_TOKEN");
        command
    }

    /// Logs in, the first time, with a token that is made on the collector's own socket.
    fn log_in(&self, of_collector: &Path) -> Result<()> {
        if self.command(&["whoami"]).output()?.status.success() {
            return Ok(());
        }
        let socket = std::path::absolute(of_collector.join("alibi.sock"))?;
        let socket = format!("unix:{}", socket.display());
        let create = ["token", "create", "--role", "admin", "--name", "lab", "--expires", "365d"];
        let token = said(self.command(&create).env("ALIBI_COLLECTOR", socket))?;
        said(&mut self.command(&["login", &token])).map(drop)
    }

    /// Enrols the agent, the first time.
    fn enrol(&self, agent: &Path, of_agent: &Path) -> Result<()> {
        if of_agent.join("enrolment.json").exists() {
            return Ok(());
        }
        let token = said(&mut self.command(&["token", "create"]))?;
        said(Command::new(agent).args(["enroll", &token, "--data"]).arg(of_agent)).map(drop)
    }
}

/// What a command prints, which must succeed.
fn said(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits for the first recording, and says what there is to know.
fn introduce(alibi: &Alibi, data: &Path) -> Result<()> {
    let host = first_recording(alibi)?;

    println!(
        "Recording on {} ({}), data in {}:",
        text(&host["name"]),
        text(&host["os_version"]),
        data.display()
    );
    for source in list(&host["sources"]) {
        for facet in list(&source["facets"]) {
            let reason = text(&facet["reason"]);
            let reason = if reason.is_empty() { String::new() } else { format!(", {reason}") };
            println!("  {:<12} {}{reason}", text(&facet["facet"]), text(&facet["grade"]));
            if facet["grade"] != "none" {
                println!("  {:<12}   covers: {}", "", text(&facet["covers"]));
                println!("  {:<12}   cannot see: {}", "", text(&facet["cannot_see"]));
            }
        }
    }
    let is_proof = |facet: &&Value| facet["facet"] == "connections" && facet["grade"] == "complete";
    if list(&host["sources"]).iter().flat_map(|source| list(&source["facets"])).any(|facet| is_proof(&facet))
    {
        println!(
            "  Every connection is recorded: a host without a match is `clear`, for as long as it has been recording."
        );
    } else {
        println!("  Sampling proves no negative: a host without a match is `unknown` here, never `clear`.");
    }
    if !rustix::process::geteuid().is_root() {
        println!("  As root it would see every connection and every process, if the kernel allows it.");
    }
    println!();
    println!("Try, in another terminal:");
    println!("  cargo alibi hosts");
    println!("  cargo alibi who 127.0.0.1 --last 10m");
    println!("  cargo alibi process UID          # with a process uid from the answer of `who`");
    println!();
    println!("Ctrl-C stops both.");
    Ok(())
}

/// The host, once everything up to now is known of it.
fn first_recording(alibi: &Alibi) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A question waits in the collector until the agent's recording has arrived.
        alibi.command(&["who", "127.0.0.1", "--last", "1s"]).output()?;
        let answer: Value = serde_json::from_str(&said(&mut alibi.command(&["hosts", "--json"]))?)?;
        let host = list(&answer["hosts"]).iter().find(|host| !host["known_until"].is_null());
        if let Some(host) = host {
            return Ok(host.clone());
        }
        ensure!(Instant::now() < deadline, "no recording has arrived from the agent: {answer:#}");
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
