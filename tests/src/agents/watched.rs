//! What a process costs since it is watched.

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context as _, Result};

use crate::capture::measure::{self, Memory};

/// A process, from now on.
pub struct Watched {
    pid: u32,
    since: Instant,
    cpu_ns: u64,
    threads_ns: BTreeMap<String, u64>,
    written_bytes: u64,
}

impl Watched {
    /// # Errors
    /// When it has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let (cpu_ns, threads_ns) = (measure::cpu_ns(pid)?, measure::threads_ns(pid)?);
        Ok(Self { pid, since: Instant::now(), cpu_ns, threads_ns, written_bytes: written_bytes(pid)? })
    }

    /// Since when it is watched.
    pub fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// Seconds of processor time that it has had since.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_s(&self) -> Result<f64> {
        Ok(measure::cpu_ns(self.pid)?.saturating_sub(self.cpu_ns) as f64 / 1e9)
    }

    /// Of a processor that its threads have had since, by name; those that ran all the time only.
    ///
    /// # Errors
    /// When it has ended.
    pub fn threads_percent(&self) -> Result<BTreeMap<String, f64>> {
        let seconds = self.seconds();
        let of = |(name, spent): (String, u64)| {
            let before = self.threads_ns.get(&name).copied().unwrap_or(0);
            (name, 100.0 * spent.saturating_sub(before) as f64 / 1e9 / seconds)
        };
        Ok(measure::threads_ns(self.pid)?.into_iter().map(of).collect())
    }

    /// Bytes that it has written since, to whatever disk.
    ///
    /// # Errors
    /// When it has ended.
    pub fn written_bytes(&self) -> Result<u64> {
        Ok(written_bytes(self.pid)?.saturating_sub(self.written_bytes))
    }

    /// What memory it has now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory_bytes(&self) -> Result<u64> {
        Ok(Memory::of(self.pid)?.now)
    }
}

fn written_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).context("an io without bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_watched() {
        let watched = Watched::of(std::process::id()).unwrap();
        assert!(watched.memory_bytes().unwrap() > 0);
        assert!(watched.cpu_s().unwrap() >= 0.0 && watched.seconds() >= 0.0);
        assert!(!watched.threads_percent().unwrap().is_empty());
        watched.written_bytes().unwrap();
    }
}
