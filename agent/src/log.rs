//! Where the agent's own log goes: to standard error, or, from a service, to the log of the system.

use std::io::{self, IsTerminal as _, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::sys::service::SystemLog;

/// A longer line is cut.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Begins to log, as `ALIBI_LOG` wants it.
pub fn start(is_service: bool) {
    let filter = EnvFilter::try_from_env("ALIBI_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match SystemLog::of_service(is_service) {
        // It notes time and severity itself.
        Some(system) => {
            log.without_time().with_level(false).with_ansi(false).with_writer(Lines(system)).init();
        }
        None => log.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).init(),
    }
}

struct Lines(SystemLog);

/// A line on its way; goes to the log when it is dropped.
struct Line<'a> {
    log: &'a SystemLog,
    level: Level,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { log: &self.0, level: Level::INFO, text: Vec::new() }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Line { log: &self.0, level: *metadata.level(), text: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LINE_BYTES_MAX.saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = one_line(&self.text);
        if !line.is_empty() {
            self.log.write(self.level, &line);
        }
    }
}

/// The text in one line, so that none of it is taken for a line of its own.
fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim().replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_line_can_pass_for_another_line() {
        assert_eq!(one_line(b" lost\r\n<0>all is well\x1b[31m\n"), "lost  <0>all is well [31m");
        assert_eq!(one_line("zw\u{f6}lf".as_bytes()), "zw\u{f6}lf");
        assert_eq!(one_line(b"\n"), "");
    }
}
