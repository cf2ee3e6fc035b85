//! Running programs under the eyes of a test: their output is read all the time, awaited by content and shown when
//! a test fails.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use alibi_proto::time::Timestamp;
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
    lines: Mutex<Vec<String>>,
    more: Condvar,
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
    /// When there is none within a minute.
    pub fn line_with(&self, text: &str, from: usize) -> (String, usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(index) = lines.iter().skip(from).position(|line| line.contains(text)) {
                return (lines[from + index].clone(), from + index + 1);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} did not say `{text}`, but: {lines:#?}", self.name);
            lines = self.output.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives the program a line, and waits for the line that it answers with.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn ask(&mut self, line: &str) -> String {
        let from = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner).len();
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
    pub fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be asked");
        self.child.wait().expect("it stops")
    }

    /// Everything it has said.
    pub fn said(&self) -> Vec<String> {
        self.output.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

fn read_lines(from: Option<impl Read + Send + 'static>, into: &Arc<Lines>) {
    let (from, into) = (from.expect("output is piped"), Arc::clone(into));
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut lines = into.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() < LINES_MAX {
                lines.push(line);
            }
            into.more.notify_all();
        }
    });
}

/// A collector.
#[derive(Debug)]
pub struct Collector {
    /// The program.
    pub running: Running,
    /// Where it serves.
    pub address: String,
}

impl Collector {
    /// Starts one over `data`, at a free port.
    pub fn start(data: &Path) -> Self {
        Self::start_at(data, "127.0.0.1:0")
    }

    /// Starts one over `data` at `listen`.
    pub fn start_at(data: &Path, listen: &str) -> Self {
        let mut command = Command::new(&programs().alibi);
        command.args(["serve", "--listen", listen, "--data"]).arg(data);
        let running = Running::start("the collector", &mut command);
        let address = value_of("address", &running.line_with("serving address=", 0).0);
        Self { running, address }
    }

    /// Runs `alibi` with these words against this collector.
    pub fn alibi<W: AsRef<OsStr>>(&self, words: &[W]) -> Output {
        Command::new(&programs().alibi)
            .args(words)
            .env("ALIBI_COLLECTOR", &self.address)
            .output()
            .expect("alibi can be run")
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

    /// Starts one with a command that ends in the agent's program.
    pub fn start_with(mut command: Command, data: &Path, listen: &str, words: &[&str]) -> Self {
        command.args(["run", "--listen", listen]).args(words).arg("--data").arg(data);
        let running = Running::start("an agent", &mut command);
        let address = value_of("address", &running.line_with("recording address=", 0).0);
        Self { running, address, data: data.to_owned() }
    }
}

/// The value of `name=value` in a line of log.
fn value_of(name: &str, line: &str) -> String {
    let (_, value) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in `{line}`"));
    value.split_whitespace().next().unwrap_or_default().to_owned()
}
