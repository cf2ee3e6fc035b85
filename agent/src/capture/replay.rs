//! Replay: reports from a file, one JSON object in a line. For tests, and for looking at somebody else's recording.
//!
//! Order is the file's; times are the recording's own, and nothing is waited for.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _},
    path::{Path, PathBuf},
};

use alibi_proto::{
    coverage::{Facet, Grade, Scope},
    host::{FacetCoverage, SourceDescription},
};

use super::{CaptureError, Outlet, Report, Source};

const NAME: &str = "replay";

/// No report that anybody would write by hand or record is longer; and what is no report at all must not fill memory.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// The source that replays a recording.
pub(super) struct Replay {
    path: PathBuf,
    lines: BufReader<File>,
}

impl Replay {
    /// Replays the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self, CaptureError> {
        let error = |source| CaptureError::Replay { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        if file.metadata().map_err(error)?.is_dir() {
            return Err(error(std::io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self { path: path.to_owned(), lines: BufReader::new(file) })
    }
}

impl Source for Replay {
    fn describe(&self) -> SourceDescription {
        let facet = |facet| FacetCoverage {
            facet,
            grade: Grade::NotRecorded { reason: "until the recording states its own".to_owned() },
            scope: Scope {
                source: NAME.to_owned(),
                covers: "what the recording says".to_owned(),
                cannot_see: "anything else".to_owned(),
            },
        };
        SourceDescription { name: NAME.to_owned(), facets: Facet::ALL.map(facet).to_vec(), caveat: None }
    }

    fn run(mut self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError> {
        for line in 1.. {
            let Some(report) = next_report(&mut self.lines, &self.path, line)? else { break };
            if outlet.report(report).is_err() {
                return Ok(());
            }
        }
        outlet.wait_for_stop();
        Ok(())
    }
}

fn next_report(lines: &mut impl BufRead, path: &Path, line: usize) -> Result<Option<Report>, CaptureError> {
    let mut text = Vec::new();
    let read = lines.take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text);
    let read = read.map_err(|source| CaptureError::Replay { path: path.to_owned(), source })?;
    if read == 0 {
        return Ok(None);
    }
    let problem = |problem| CaptureError::ReplayLine { path: path.to_owned(), line, problem };
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    if text.len() as u64 > LINE_BYTES_MAX {
        return Err(problem(format!("longer than the {LINE_BYTES_MAX} bytes allowed")));
    }
    serde_json::from_slice(text).map(Some).map_err(|error| problem(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc, time::Duration};

    use alibi_proto::{
        coverage::CoverageChange,
        executable::{ExecutableSighting, FileIdentity, Package, Sha256, Signature, VersionInfo},
        flow::{Attribution, Direction, FlowState, Protocol, Traffic},
        link::LinkRecord,
        process::{ProcessImage, User},
        time::{Moment, Timestamp},
    };

    use super::*;
    use crate::capture::{
        Choice, ConnectionChange, Fact, Observation, ObservedConnection, ObservedExecutable, ObservedProcess,
        ObservedResolution, ObservedServerName, Options, ProcessKey, SocketKey, open,
    };

    fn replayed(content: &[u8]) -> (Vec<Report>, Result<(), CaptureError>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording.jsonl");
        fs::write(&path, content).unwrap();
        let source = open(
            &Choice::Replay(path),
            &Options { period: Duration::from_secs(1), buffer_bytes: None, own_network_namespace: false },
        )
        .unwrap();
        let (reports, received) = mpsc::sync_channel(64);
        let (stop, stopped) = mpsc::channel();
        // Told to stop before it begins: it reports everything all the same, and does not wait at the end.
        drop(stop);
        let outcome = source.run(Outlet::new(reports, stopped));
        (received.iter().collect(), outcome)
    }

    fn reports_of_every_kind() -> Vec<Report> {
        let at = |secs| Moment { wall: Timestamp::from_secs(secs), boot_ns: secs * 7 };
        let process = ProcessKey { pid: 7, start: u64::MAX };
        let socket =
            SocketKey { protocol: Protocol::Tcp, remote: "192.0.2.1:443".parse().unwrap(), socket: 99 };
        let local = "[fe80::1]:1".parse().unwrap();
        let traffic = Some(Traffic { bytes_sent: 1, bytes_received: 2, ..Traffic::default() });
        let change = ConnectionChange {
            state: Some(FlowState::Established),
            owner: Some((process, Attribution::InKernel)),
            local: Some(local),
            traffic,
            round_trip: Some(Duration::from_micros(7)),
        };
        let file = FileIdentity { device: 1, inode: 2, modified: Timestamp::from_secs(3), size: 4 };
        let sha256 = Some(Sha256::from_bytes([0xab; 32]));
        let image = ProcessImage {
            file: Some(file),
            sha256,
            path: Some("/bin/ü \"x\"".into()),
            name: "x".into(),
            arguments: vec!["x".into(), "\n\u{0}".into()],
            user: Some(User { id: "0".into(), name: Some("root".into()) }),
            ..ProcessImage::default()
        };
        let facts = vec![
            Fact::ProcessStarted(Box::new(ObservedProcess {
                process,
                parent: Some(ProcessKey { pid: 1, start: 0 }),
                parent_pid: Some(1),
                started: Timestamp::from_secs(5),
                already_running: true,
                image: image.clone(),
            })),
            Fact::ProcessExecuted { process, image: Box::new(image.clone()) },
            Fact::NameResolved(Box::new(ObservedResolution {
                name: "cloud.example.com".into(),
                aliases: vec!["edge.example.net".into()],
                addresses: vec![socket.remote.ip()],
                ttl_s: 60,
                server: local,
                local,
                process: Some(process),
                network_namespace: Some(4),
            })),
            Fact::ServerName(Box::new(ObservedServerName {
                name: Some("cloud.example.com".into()),
                direction: Direction::Outbound,
                socket: Some(socket.socket),
                local,
                remote: socket.remote,
                network_namespace: None,
            })),
            Fact::ExecutableSeen(Box::new(ObservedExecutable {
                path: "/bin/x".into(),
                file: Some(file),
                sha256,
                first_on_host: true,
                package: Some(Package { name: "x".into(), version: "1".into(), source: "dpkg".into() }),
                sighting: ExecutableSighting::Run,
                process: Some(process),
                problem: None,
                signature: Some(Signature::not_checked("it was not looked at")),
                version: Some(VersionInfo { company: Some("c".into()), ..VersionInfo::default() }),
            })),
            Fact::LinkChanged(Box::new(LinkRecord {
                at: Timestamp::from_secs(9),
                interface: "eth0".into(),
                index: 2,
                present: true,
                up: true,
                running: false,
                addresses: vec!["192.0.2.7/24".into()],
                default_gateways: vec!["192.0.2.1".into()],
                network_namespace: Some(4),
            })),
            Fact::ConnectionOpened(Box::new(ObservedConnection {
                socket,
                local,
                owner: Some(process),
                attribution: Attribution::SocketTable,
                direction: Direction::Outbound,
                state: FlowState::Attempted,
                already_open: false,
                traffic: None,
                interface: Some("eth0".into()),
                network_namespace: Some(4),
            })),
            Fact::ConnectionChanged { socket, change },
            Fact::ConnectionClosed {
                socket,
                state: FlowState::Failed(111),
                change: ConnectionChange::default(),
            },
            Fact::Listening {
                owner: None,
                attribution: Attribution::Unknown,
                protocol: Protocol::Udp,
                local,
            },
            Fact::ProcessExited { process, exit_code: Some(-1) },
            Fact::Suspended { from: at(17), to: at(18) },
            Fact::Coverage(CoverageChange {
                facet: Facet::Connections,
                grade: Grade::Lost { count: 3, reason: "queue full".into() },
                from: Timestamp::from_secs(1),
                to: Some(Timestamp::from_secs(2)),
                scope: None,
                announced_from: None,
            }),
        ];
        let observations = facts.into_iter().zip(10..).map(|(fact, secs)| Observation { at: at(secs), fact });
        vec![Report { observations: observations.collect(), seen_until: at(20) }, Report::default()]
    }

    #[test]
    fn what_was_written_is_what_is_replayed() {
        let reports = reports_of_every_kind();
        let lines: Vec<_> = reports.iter().map(|report| serde_json::to_string(report).unwrap()).collect();
        for content in [lines.join("\n"), lines.join("\n") + "\n"] {
            let (replayed, outcome) = replayed(content.as_bytes());
            outcome.unwrap();
            assert_eq!(replayed, reports);
        }
        assert_eq!(replayed(b"").0, []);
    }

    #[test]
    fn a_bad_line_is_named_and_what_came_before_it_is_reported() {
        let good = serde_json::to_string(&Report::default()).unwrap() + "\n";
        let too_long = " ".repeat(usize::try_from(LINE_BYTES_MAX).unwrap() + 1);
        for (bad, problem) in [
            ("{}", "missing field"),
            ("", "EOF"),
            ("no", "expected"),
            ("\u{fffd}", "expected"),
            (too_long.as_str(), "longer than the 1048576 bytes allowed"),
        ] {
            let (replayed, outcome) = replayed(format!("{good}{good}{bad}\n{good}").as_bytes());
            assert_eq!(replayed.len(), 2);
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains("line 3 ") && message.contains(problem), "{message}");
        }
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        for path in ["/nonexistent/recording", "/"] {
            let opened = Replay::open(Path::new(path)).map(|_| ());
            assert!(opened.unwrap_err().to_string().contains(path));
        }
    }
}
