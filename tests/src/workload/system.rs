//! What the workloads ask of Linux.

use std::{fs, io, panic};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::truth::Who;

/// The process `pid`, which has not been waited for yet.
///
/// # Errors
/// When there is none.
pub(super) fn who(pid: u32) -> Result<Who> {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    let start_ticks = field(&stat, 22).context("a stat without a start")?;
    Ok(Who { pid, start_ticks })
}

/// This process.
///
/// # Errors
/// When the system does not tell.
pub(super) fn this() -> Result<Who> {
    who(std::process::id())
}

/// Processor time that the children of this process have used that have been waited for, in nanoseconds, in steps of a
/// tick.
///
/// # Errors
/// When the system does not tell.
pub(super) fn children_cpu_ns() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let ticks = field(&stat, 16).zip(field(&stat, 17)).map(|(user, system)| user + system);
    Ok(ticks.context("a stat without times")? * 10_000_000)
}

/// A field of `/proc/PID/stat`, as proc(5) numbers them. The second is a name that may have anything in it.
fn field(stat: &str, number: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

/// Makes a process that does `work`, and exits with what that returns; 101 if it panics or fails. This process must have
/// one thread only.
///
/// # Errors
/// When the system refuses.
#[expect(unsafe_code, reason = "no safe crate forks without exec")]
pub(super) fn fork(work: impl FnOnce() -> Result<u8>) -> Result<u32> {
    // SAFETY: there is one thread, so the child may do whatever its parent may; it never returns from here.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()).context("cannot fork"),
        0 => {
            let code = match panic::catch_unwind(panic::AssertUnwindSafe(work)) {
                Ok(Ok(code)) => code,
                Ok(Err(error)) => {
                    eprintln!("lab: in a forked process: {error:#}");
                    101
                }
                Err(_) => 101,
            };
            // SAFETY: ends the process, and nothing of what its parent would do at its end.
            unsafe { libc::_exit(code.into()) }
        }
        pid => Ok(pid.unsigned_abs()),
    }
}

/// Waits for the end of a child.
///
/// # Errors
/// When it is none.
pub(super) fn wait(pid: u32) -> Result<Option<i32>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no pid")?;
    let ended = waitpid(Some(pid), WaitOptions::empty())?;
    Ok(ended.and_then(|(_, status)| status.exit_status()))
}

/// Asks a child to end, and waits until it has.
///
/// # Errors
/// When it is none.
pub(super) fn end(pid: u32) -> Result<()> {
    let child = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no pid")?;
    rustix::process::kill_process(child, rustix::process::Signal::TERM)?;
    wait(pid)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4 1 2 3 4 5 6 77 88 20 0 1 0 4711 9";
        assert_eq!((field(stat, 4), field(stat, 16), field(stat, 17)), (Some(1), Some(77), Some(88)));
        assert_eq!(field(stat, 22), Some(4711));
        assert_eq!(field("nonsense", 22), None);
        assert_eq!(this().unwrap().pid, std::process::id());
    }
}
