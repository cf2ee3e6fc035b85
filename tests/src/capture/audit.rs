//! auditd, to compare with: what everybody has who records connections and processes on Linux.
//!
//! There is one audit in a system, so it is refused where one is at work already. At the end its rules are taken away, and
//! one stays, which keeps every process that is started later out of it: once it has been on, the kernel would otherwise
//! go on to make ready for it at every system call of new processes until the next boot.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{measure, watch::Watch};
use crate::system::{Running, outcome};

/// What is recorded: both ends of a connection, and the life of a process.
const RULES: [&[&str]; 3] = [
    &["-S", "connect", "-S", "accept", "-S", "accept4"],
    &["-S", "execve", "-S", "execveat"],
    &["-S", "exit", "-S", "exit_group"],
];
/// Keeps out who is started later.
const NOBODY: [&str; 2] = ["-a", "never,task"];
/// Records that may wait for auditd; what goes beyond is lost, and counted.
const BACKLOG: &str = "65536";
/// Written at once would be slow; so it is in the distribution.
const CONFIGURATION: &str = "local_events = yes\nwrite_logs = yes\nlog_format = RAW\nflush = INCREMENTAL_ASYNC\nfreq = 50\n\
    max_log_file = 4000\nnum_logs = 2\nmax_log_file_action = IGNORE\npriority_boost = 4\nname_format = NONE\n\
    space_left = 75\nspace_left_action = IGNORE\nadmin_space_left = 50\nadmin_space_left_action = IGNORE\n\
    disk_full_action = SUSPEND\ndisk_error_action = SUSPEND\nq_depth = 2000\n";

/// An auditd of our own, with rules for connections and processes. Ended, with its rules, when dropped.
#[derive(Debug)]
pub struct Auditd {
    /// None only once it is ended.
    running: Option<Running>,
    /// Its process.
    pid: u32,
    log: PathBuf,
    /// The kernel's thread that hands records to auditd.
    kernel_thread: Option<u32>,
    lost_before: u64,
    backlog_before: u64,
}

impl Auditd {
    /// Starts one that writes below `directory`.
    ///
    /// # Errors
    /// When there is none, the kernel has no audit, or one is at work already.
    pub fn start(directory: &Path) -> Result<Self> {
        refuse_if_in_use()?;
        fs::create_dir_all(directory.join("plugins"))?;
        let log = directory.join("audit.log");
        let (plugins, file) = (directory.join("plugins"), log.display());
        let configuration = format!("{CONFIGURATION}log_file = {file}\nplugin_dir = {}\n", plugins.display());
        fs::write(directory.join("auditd.conf"), configuration)?;
        let watch = Watch::on(directory)?;
        let (lost_before, backlog_before) = (status("lost")?, status("backlog_limit")?);
        let running = Running::start("auditd", Command::new("auditd").arg("-n").arg("-c").arg(directory));
        let (pid, kernel_thread) = (running.pid(), measure::kernel_thread("kauditd")?);
        let auditd = Self { running: Some(running), pid, log, kernel_thread, lost_before, backlog_before };
        watch.until("the start of auditd", || auditd.finds("type=DAEMON_START"))?;
        auditctl(&["-D"])?;
        auditctl(&["-b", BACKLOG])?;
        auditctl(&["-e", "1"])?;
        for rule in RULES {
            auditctl(&[&["-a", "always,exit", "-F", "arch=b64"], rule].concat())?;
        }
        Ok(auditd)
    }

    /// Waits until all that has happened so far is in its log.
    ///
    /// # Errors
    /// When it is not within a minute.
    pub fn until_recorded(&self) -> Result<()> {
        let token = format!("alibi-lab-{}", fastrand::u64(..));
        let watch = Watch::on(self.log.parent().context("a log in a directory")?)?;
        auditctl(&["-m", &token])?;
        watch.until("the end of what auditd records", || self.finds(&token))
    }

    /// Processor time of auditd, and of the kernel's thread that hands it the records.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_ns(&self) -> Result<u64> {
        let kernel_ns = self.kernel_thread.map_or(Ok(0), measure::cpu_ns)?;
        Ok(measure::cpu_ns(self.pid)? + kernel_ns)
    }

    /// Its memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self) -> Result<measure::Memory> {
        measure::Memory::of(self.pid)
    }

    /// Bytes of its log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(fs::metadata(&self.log)?.len())
    }

    /// Records that the kernel has lost since it was started.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn lost(&self) -> Result<u64> {
        Ok(status("lost")?.saturating_sub(self.lost_before))
    }

    /// Whether `text` stands in the log. What is looked for is at its end, or all of it is little.
    fn finds(&self, text: &str) -> Result<Option<()>> {
        let Ok(log) = fs::read(&self.log) else { return Ok(None) };
        let end = &log[log.len().saturating_sub(1 << 16)..];
        Ok(end.windows(text.len()).any(|window| window == text.as_bytes()).then_some(()))
    }
}

impl Drop for Auditd {
    fn drop(&mut self) {
        // Whatever fails here, the rest must be tried.
        let backlog = self.backlog_before.to_string();
        let words: [&[&str]; 4] = [&["-e", "0"], &["-D"], &NOBODY, &["-b", &backlog]];
        let undone = words.map(auditctl);
        for problem in undone.into_iter().filter_map(Result::err) {
            eprintln!("audit is not as it was: {problem:#}");
        }
        // Asked, it tells the kernel that it is gone.
        self.running.take().map(Running::stop);
    }
}

fn refuse_if_in_use() -> Result<()> {
    let [enabled, pid] = [status("enabled")?, status("pid")?];
    ensure!(
        enabled == 0 && pid == 0,
        "audit is in use (enabled {enabled}, auditd {pid}): stop it, with `systemctl stop auditd` and `auditctl -e 0`"
    );
    let rules = auditctl(&["-l"])?;
    let are_ours =
        |line: &str| line.trim().is_empty() || line == "No rules" || line.trim() == NOBODY.join(" ");
    ensure!(rules.lines().all(are_ours), "audit has rules, which would be lost: {rules}");
    Ok(())
}

/// A number of what `auditctl -s` says.
fn status(name: &str) -> Result<u64> {
    let status = auditctl(&["-s"])?;
    number_of(&status, name).with_context(|| format!("audit does not tell `{name}`: {status}"))
}

fn number_of(status: &str, name: &str) -> Option<u64> {
    let mut words = status.lines().map(str::split_whitespace);
    words.find_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok())?)
}

fn auditctl(words: &[&str]) -> Result<String> {
    let found = Command::new("auditctl").arg("-v").output();
    found.context("no auditctl: install auditd (Debian: `apt-get install auditd`)")?;
    let output = outcome(Command::new("auditctl").args(words));
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`auditctl {}`: {complaint}", words.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let status = "enabled 0\nfailure 1\npid 17\nlost 3\nbacklog_limit 64\nbacklog 0\n";
        assert_eq!(number_of(status, "pid"), Some(17));
        assert_eq!(number_of(status, "backlog"), Some(0));
        assert_eq!(number_of(status, "back"), None);
    }
}
