//! Recordings for the agent's replay source, in which is known what there is to find.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use alibi_agent::capture::{
    Fact, Observation, ObservedConnection, ObservedProcess, ProcessKey, Report, SocketKey,
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    process::ProcessImage,
    time::{Moment, Timestamp},
};

/// The process that owns every connection of a recording.
pub const OWNER: ProcessKey = ProcessKey { pid: 4711, start: 99 };
/// Between two reports.
pub const STEP: Duration = Duration::from_millis(10);

/// What to record.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// The time of the first report.
    pub begins: Timestamp,
    /// How many reports follow on it.
    pub reports: u32,
    /// Short connections in each of them, each to an address of its own.
    pub connections: u32,
}

impl Recording {
    /// The remote end of a connection, counted over the whole recording: below 10.0.0.0/8.
    pub fn remote(number: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from(0x0a00_0000 | (number & 0x00ff_ffff)), 443))
    }

    /// The time of the last report: everything before it is covered completely.
    pub fn ends(&self) -> Timestamp {
        self.begins.saturating_add(STEP * self.reports)
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut report = |observations, at| -> io::Result<()> {
            serde_json::to_writer(&mut file, &Report { observations, seen_until: at })?;
            file.write_all(b"\n")
        };
        let first = moment(self.begins);
        let owner = Fact::ProcessStarted(Box::new(owner(self.begins)));
        report([grade(self.begins), owner].map(|fact| Observation { at: first, fact }).to_vec(), first)?;
        for number in 0..self.reports {
            let at = moment(self.begins.saturating_add(STEP * (number + 1)));
            let connections = number * self.connections..(number + 1) * self.connections;
            report(connections.map(|number| Observation { at, fact: connection(number) }).collect(), at)?;
        }
        file.flush()
    }
}

fn moment(wall: Timestamp) -> Moment {
    Moment { wall, boot_ns: wall.as_nanos() }
}

fn grade(from: Timestamp) -> Fact {
    let scope = Scope {
        source: "replay".into(),
        covers: "what the recording says".into(),
        cannot_see: "what it does not say".into(),
    };
    let (facet, grade) = (Facet::Connections, Grade::Complete);
    Fact::Coverage(CoverageChange { facet, grade, from, to: None, scope: Some(scope), announced_from: None })
}

fn owner(started: Timestamp) -> ObservedProcess {
    ObservedProcess {
        process: OWNER,
        parent: None,
        parent_pid: None,
        started,
        already_running: false,
        image: ProcessImage { name: "replayed".into(), ..ProcessImage::default() },
    }
}

fn connection(number: u32) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: SocketKey {
            protocol: Protocol::Tcp,
            remote: Recording::remote(number),
            socket: number.into(),
        },
        local: ([192, 0, 2, 1], 5000).into(),
        owner: Some(OWNER),
        attribution: Attribution::InKernel,
        direction: Direction::Outbound,
        state: FlowState::Closed,
        already_open: false,
        traffic: Some(Traffic {
            bytes_sent: 1,
            bytes_received: 2,
            packets_sent: 3,
            packets_received: 4,
            packets_retransmitted: 0,
        }),
        interface: None,
        network_namespace: None,
    }))
}
