//! Running programs under the eyes of a test: their output is read all the time, awaited by content and shown when
//! a test fails.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use alibi_collector::store::{SqliteStore, StoredFlow};
use alibi_proto::{
    time::Timestamp,
    tls::Fingerprint,
    token::{Token, TokenKind},
};
use serde_json::Value;

use crate::programs::programs;

/// How long anything may take that a test waits for. Long, since machines are busy; only a failure takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of output that are kept.
const LINES_MAX: usize = 10_000;

/// Now, by the wall clock.
pub fn now() -> Timestamp {
    alibi_collector::clock::now()
}

/// An analyst's token for the collector at an address, which nobody has given out.
///
/// # Panics
/// When it is no address.
pub fn nobodys_token(address: &str) -> String {
    let address = address.parse().expect("it is an address and a port");
    let (kind, authority) = (TokenKind::User, Fingerprint([0; 32]));
    Token { kind, address, authority, secret: [0; 32] }.to_string()
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    said: Vec<String>,
    /// Of its two outputs, those that have ended.
    ended: u8,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for more; false once there will never be any, or when it is too late.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Instant) -> (MutexGuard<'a, State>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || state.ended == 2 {
            return (state, false);
        }
        (self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0, true)
    }
}

impl Running {
    /// Starts a program.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let output = Arc::new(Lines::default());
        let stdin = child.stdin.take();
        read_lines(child.stdout.take(), &output);
        read_lines(child.stderr.take(), &output);
        Self { name: name.to_owned(), child, stdin, output }
    }

    /// Waits for a line of output with `text` in it, at or after line `from`; the line and the number after it.
    ///
    /// # Panics
    /// When there is none within a minute, or it ends without.
    pub fn line_with(&self, text: &str, from: usize) -> (String, usize) {
        self.line(text, from, PATIENCE)
    }

    /// The same, of what may take longer than a minute.
    ///
    /// # Panics
    /// When there is none within `patience`, or it ends without.
    pub fn line_within(&self, text: &str, patience: Duration) {
        self.line(text, 0, patience);
    }

    fn line(&self, text: &str, from: usize, patience: Duration) -> (String, usize) {
        let deadline = Instant::now() + patience;
        let mut state = self.output.lock();
        loop {
            if let Some(index) = state.said.iter().skip(from).position(|line| line.contains(text)) {
                return (state.said[from + index].clone(), from + index + 1);
            }
            let more;
            (state, more) = self.output.wait(state, deadline);
            assert!(more, "{} did not say `{text}`, but: {:#?}", self.name, state.said);
        }
    }

    /// Waits until it says `ready`, or has ended: whether it has said so.
    ///
    /// # Panics
    /// When it does neither within a minute.
    pub fn started(&self, ready: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.output.lock();
        while !state.said.iter().any(|line| line.contains(ready)) {
            let more;
            (state, more) = self.output.wait(state, deadline);
            if !more {
                assert_eq!(state.ended, 2, "{} neither started nor ended, but: {:#?}", self.name, state.said);
                return false;
            }
        }
        true
    }

    /// Gives the program a line, and waits for the line that it answers with.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn ask(&mut self, line: &str) -> String {
        let from = self.output.lock().said.len();
        let stdin = self.stdin.as_mut().expect("standard input is open");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("the program reads");
        self.line_with("", from).0
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as the system would: no chance to clean up.
    pub fn kill(mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("it can be killed");
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn stop(self) -> ExitStatus {
        self.end_by(rustix::process::Signal::TERM)
    }

    /// Asks it to stop as Ctrl-C does, which a Windows program hears too, and waits until it has.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn interrupt(self) -> ExitStatus {
        self.end_by(rustix::process::Signal::INT)
    }

    fn end_by(mut self, signal: rustix::process::Signal) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it can be asked");
        self.child.wait().expect("it stops")
    }

    /// The most memory that it ever had, in bytes: `VmHWM`.
    ///
    /// # Panics
    /// When it has ended, or the system is not Linux.
    pub fn memory_bytes_max(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib * 1024
    }

    /// Everything it has said.
    pub fn said(&self) -> Vec<String> {
        self.output.lock().said.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, self.said().join("\n"));
        }
    }
}

/// Runs a program that is expected to end by itself.
///
/// # Panics
/// When it cannot be run, or has not ended within a minute; it is killed then.
pub fn outcome(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        // Nobody waits for it any more once it has taken too long.
        let _ = sender.send(child.wait_with_output());
    });
    let output = ended.recv_timeout(PATIENCE);
    if output.is_err() {
        // It may end at this very moment; it is not waited for yet, so its number is not another's.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    waiter.join().expect("it only waits");
    output.unwrap_or_else(|_| panic!("{command:?} did not end")).expect("its output can be read")
}

fn read_lines(from: Option<impl Read + Send + 'static>, into: &Arc<Lines>) {
    let (from, into) = (from.expect("output is piped"), Arc::clone(into));
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut state = into.lock();
            if state.said.len() < LINES_MAX {
                state.said.push(line);
            }
            into.more.notify_all();
        }
        into.lock().ended += 1;
        into.more.notify_all();
    });
}

/// A collector.
#[derive(Debug)]
pub struct Collector {
    /// The program.
    pub running: Running,
    /// Where it serves.
    pub address: String,
    /// The logins at it: the first admin's.
    pub credentials: PathBuf,
}

impl Collector {
    /// Starts one over `data`, at a free port.
    pub fn start(data: &Path) -> Self {
        Self::start_at(data, "127.0.0.1:0")
    }

    /// Starts one over `data` at `listen`.
    pub fn start_at(data: &Path, listen: &str) -> Self {
        Self::start_with(Command::new(&programs().alibi), data, listen, &[])
    }

    /// Starts one with a command that ends in `alibi`, at an address that only others reach: here, its socket is asked.
    pub fn start_elsewhere(command: Command, data: &Path, listen: &str, words: &[&str]) -> Self {
        let (running, _) = Self::serve(command, data, listen, words);
        let address = format!("unix:{}", data.join("alibi.sock").display());
        Self { running, address, credentials: data.with_extension("credentials.json") }
    }

    fn serve(mut command: Command, data: &Path, listen: &str, words: &[&str]) -> (Running, String) {
        command.args(["serve", "--listen", listen]).args(words).arg("--data").arg(data);
        let running = Running::start("the collector", &mut command);
        let address = value_of("address", &running.line_with("serving address=", 0).0);
        (running, address)
    }

    /// Starts one with a command that ends in `alibi`, and further words. The first time, the first admin logs in.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(command: Command, data: &Path, listen: &str, words: &[&str]) -> Self {
        let (running, address) = Self::serve(command, data, listen, words);
        let credentials = data.with_extension("credentials.json");
        let collector = Self { running, address, credentials };
        if !collector.credentials.exists() {
            let (line, _) = collector.running.line_with("alibi login ", 0);
            let token = line.rsplit(' ').next().unwrap_or_default();
            let login = collector.alibi(&["login", token]);
            assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
        }
        collector
    }

    /// Runs `alibi` with these words against this collector, as its first admin.
    pub fn alibi<W: AsRef<OsStr>>(&self, words: &[W]) -> Output {
        self.command(words).output().expect("alibi can be run")
    }

    /// The command that does so.
    pub fn command<W: AsRef<OsStr>>(&self, words: &[W]) -> Command {
        let mut command = Command::new(&programs().alibi);
        let variables =
            [("ALIBI_COLLECTOR", self.address.as_ref()), ("ALIBI_CREDENTIALS", self.credentials.as_os_str())];
        command.args(words).envs(variables).env_remove("ALIBI_TOKEN");
        command
    }

    /// What these words print, which must succeed.
    ///
    /// # Panics
    /// When they do not.
    pub fn said<W: AsRef<OsStr>>(&self, words: &[W]) -> String {
        let output = self.alibi(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A token with which so many hosts enrol.
    pub fn token(&self, uses: u32) -> String {
        self.said(&["token", "create", "--uses", &uses.to_string()])
    }

    /// As [`Collector::alibi`] with `--json`; the exit status and the object.
    pub fn json(&self, words: &[&str]) -> (i32, Value) {
        let output = self.alibi(&[words, &["--json"]].concat());
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{words:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
        });
        (output.status.code().expect("alibi exits"), value)
    }

    /// Follows an agent.
    pub fn follow(&self, address: &str) {
        let output = self.alibi(&["host", "add", address]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Asks until the answer is as wanted; the answer. `alibi` itself waits where it can, so this rarely asks twice.
    ///
    /// # Panics
    /// When it is not so within a minute.
    pub fn json_until(&self, words: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, answer) = self.json(words);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{words:?} never answered as wanted, but: {answer:#}");
        }
    }
}

/// Looks until a program that prints JSON tells it as wanted.
///
/// # Panics
/// When it is not so within a minute.
pub fn told_until(look: impl Fn() -> Command, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, told) = told_by(look());
        if wanted(&told) {
            return told;
        }
        assert!(Instant::now() < deadline, "it was never told as wanted, but: {told:#}");
    }
}

/// The exit status of a program, and what it tells with `--json`.
///
/// # Panics
/// When it tells something else.
pub fn told_by(mut command: Command) -> (i32, Value) {
    let output = outcome(command.arg("--json"));
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().expect("it ended by itself"), told)
}

/// The flow records in a collector's data directory, whether it runs or not.
///
/// # Panics
/// When they cannot be read.
pub fn stored_flows(collector_data: &Path) -> Vec<StoredFlow> {
    SqliteStore::every_flow(&collector_data.join("alibi.db")).expect("what is stored can be read")
}

/// How many there are.
///
/// # Panics
/// When they cannot be counted.
pub fn count_flows(collector_data: &Path) -> u64 {
    SqliteStore::count_flows(&collector_data.join("alibi.db")).expect("what is stored can be counted")
}

/// Of how many processes records are.
pub fn owners(flows: &[StoredFlow]) -> usize {
    flows.iter().map(|stored| stored.flow.process).collect::<BTreeSet<_>>().len()
}

/// An agent.
#[derive(Debug)]
pub struct Agent {
    /// The program.
    pub running: Running,
    /// Where it serves.
    pub address: String,
    /// Its data directory.
    pub data: PathBuf,
}

impl Agent {
    /// Starts one on this very machine, at a free port, with further words.
    pub fn start(data: &Path, words: &[&str]) -> Self {
        Self::start_with(Command::new(&programs().agent), data, "127.0.0.1:0", words)
    }

    /// Starts one over the data of one that has ended, at the same address.
    pub fn start_again(data: &Path, address: &str, words: &[&str]) -> Self {
        Self::start_with(Command::new(&programs().agent), data, address, words)
    }

    /// Enrols the host of `data`.
    ///
    /// # Panics
    /// When that fails.
    pub fn enrol(data: &Path, token: &str) {
        let output = outcome(Command::new(&programs().agent).args(["enroll", token, "--data"]).arg(data));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts one that calls home, if it is enrolled.
    pub fn start_calling(data: &Path, words: &[&str]) -> Self {
        Self::start_with(Command::new(&programs().agent), data, "", words)
    }

    /// Starts one with a command that ends in the agent's program. Where it listens may be empty: nowhere but at its socket.
    pub fn start_with(mut command: Command, data: &Path, listen: &str, words: &[&str]) -> Self {
        command.arg("run").args(words).arg("--data").arg(data);
        if !listen.is_empty() {
            command.args(["--listen", listen]);
        }
        let running = Running::start("an agent", &mut command);
        let address = value_of("address", &running.line_with("recording address=", 0).0);
        Self { running, address, data: data.to_owned() }
    }
}

/// The value of `name=value` in a line of log.
fn value_of(name: &str, line: &str) -> String {
    let (_, value) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in `{line}`"));
    value.split_whitespace().next().unwrap_or_default().trim_matches('"').to_owned()
}
