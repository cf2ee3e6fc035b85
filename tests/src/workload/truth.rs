//! What really happened, as the programs that did it say: one line of JSON for each connection and each process.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
};

use alibi_proto::flow::{Direction, Protocol};
use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truth {
    /// One end of a connection. A connection within this host has two.
    Connection(Connection),
    /// A process from start to end.
    Process(Process),
}

/// A process, as the system names it in this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Who {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

/// One end of a connection. Its other end (outbound) or this end (inbound) has an address and port of its own, by which
/// it is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The workload that it belongs to.
    pub workload: String,
    /// Transport.
    pub protocol: Protocol,
    /// Who asked for it.
    pub direction: Direction,
    /// This end; none where the program cannot know it.
    pub local: Option<SocketAddr>,
    /// The other end; none where the program cannot know it.
    pub remote: Option<SocketAddr>,
    /// Who owns it: of several, who used it last.
    pub owner: Who,
    /// What became of it.
    pub outcome: Outcome,
    /// Payload bytes sent, seen from this end; none where that is not to be known.
    pub bytes_sent: Option<u64>,
    /// Payload bytes received.
    pub bytes_received: Option<u64>,
}

/// What became of a connection, as the program at this end saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ended in order, or this end broke it off.
    Closed,
    /// A call failed with this errno.
    Failed(i32),
    /// The program gave an attempt up that had not been answered.
    GivenUp,
    /// It is still open.
    Open,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The workload that it belongs to.
    pub workload: String,
    /// Which.
    pub who: Who,
    /// Who made it.
    pub parent: Who,
    /// Stands among its arguments; none for a fork without exec.
    pub token: Option<String>,
    /// Its exit code; none where that is not to be known.
    pub exit_code: Option<i32>,
}

/// Where the programs of a run write. All append to the same file, a line at once.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens it; makes it if it is not there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    /// Adds to it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, truth: &Truth) -> io::Result<()> {
        self.add_all(std::slice::from_ref(truth))
    }

    /// Adds many at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_all(&self, truths: &[Truth]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for truth in truths {
            serde_json::to_writer(&mut bytes, truth)?;
            bytes.push(b'\n');
        }
        (&self.0).write_all(&bytes)
    }
}

/// Reads all of it.
///
/// # Errors
/// When it cannot be read, or a line is none of ours.
pub fn read(path: &Path) -> io::Result<Vec<Truth>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("truth.jsonl");
        let owner = Who { pid: 1, start_ticks: 2 };
        let truths = vec![
            Truth::Connection(Connection {
                workload: "refused".into(),
                protocol: Protocol::Tcp,
                direction: Direction::Outbound,
                local: None,
                remote: Some("127.5.0.1:1".parse().unwrap()),
                owner,
                outcome: Outcome::Failed(111),
                bytes_sent: Some(0),
                bytes_received: None,
            }),
            Truth::Process(Process {
                workload: "exec".into(),
                who: Who { pid: 3, start_ticks: 4 },
                parent: owner,
                token: Some("exec-1".into()),
                exit_code: Some(0),
            }),
        ];
        Log::open(&path).unwrap().add(&truths[0]).unwrap();
        Log::open(&path).unwrap().add_all(&truths[1..]).unwrap();
        assert_eq!(read(&path).unwrap(), truths);
    }
}
