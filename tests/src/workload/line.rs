//! A program with one connection, that notices when the line is cut.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::set_tcp_user_timeout,
};

/// What is sent must be acknowledged by then.
const USER_TIMEOUT_MS: u32 = 1_500;
/// Between two bytes.
const PACE: Duration = Duration::from_millis(50);

/// `lab line ADDRESS`: connects and says `connected LOCAL`, has a byte echoed now and then, and says `failed ERRNO` when
/// that fails. A line of input makes it connect again; the end of its input, or `end`, ends it.
///
/// # Errors
/// When it cannot connect.
pub fn keep(address: SocketAddr) -> Result<()> {
    loop {
        let mut stream = TcpStream::connect(address)?;
        set_tcp_user_timeout(&stream, USER_TIMEOUT_MS)?;
        say(&format!("connected {}", stream.local_addr()?))?;
        loop {
            let echoed = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
            if let Err(error) = echoed {
                say(&format!("failed {}", error.raw_os_error().unwrap_or_default()))?;
                break;
            }
            if is_told_to_end()? {
                return Ok(());
            }
        }
        let mut line = String::new();
        if io::stdin().read_line(&mut line)? == 0 || line.trim() == "end" {
            return Ok(());
        }
    }
}

/// Waits for a moment, for the next byte or for a word.
fn is_told_to_end() -> Result<bool> {
    let timeout = Timespec::try_from(PACE)?;
    let stdin = io::stdin();
    if poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&timeout))? == 0 {
        return Ok(false);
    }
    let mut line = String::new();
    let is_over = stdin.read_line(&mut line)? == 0 || line.trim() == "end";
    ensure!(is_over, "`{}` is not understood while the line holds", line.trim());
    Ok(true)
}

fn say(words: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{words}")?;
    out.flush()
}
