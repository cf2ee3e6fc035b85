//! What an agent costs, as the system counts it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Processor time of all threads of a process, in nanoseconds.
///
/// # Errors
/// When it has ended.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("it has ended")? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// The most memory that a process ever had, and what it has, in bytes: `VmHWM` and `VmRSS`.
///
/// # Errors
/// When it has ended.
pub fn memory_bytes(pid: u32) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
    };
    field("VmHWM:").zip(field("VmRSS:")).context("a status without memory")
}

/// Bytes of the files in a directory and below.
///
/// # Errors
/// When it cannot be read.
pub fn disk_bytes(directory: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A file may be evicted meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        total += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}

/// How busy the machine is: processor time since boot that was not idle, in clock ticks of 10 ms.
///
/// # Errors
/// When the system does not tell.
pub fn machine_busy_ticks() -> Result<u64> {
    busy_ticks(&fs::read_to_string("/proc/stat")?).context("no line of all processors")
}

fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; the guests' time is in user already.
    Some(
        ticks
            .iter()
            .take(8)
            .enumerate()
            .filter(|(index, _)| ![3, 4].contains(index))
            .map(|(_, ticks)| ticks)
            .sum(),
    )
}

/// The load average of the last minute.
///
/// # Errors
/// When the system does not tell.
pub fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).context("no load average")
}

/// The middle of some figures, and the least and the most of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), least, most })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_one_or_between_two() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert!((Spread::of(vec![1.0, 2.0]).unwrap().median - 1.5).abs() < 1e-9);
        assert_eq!(spread.to_string(), "2.00 (1.00 to 3.00)");
        assert!(Spread::of(vec![]).is_none());
    }

    #[test]
    fn idle_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  1 2 3 1000 1000 4 5 6 7 8\ncpu0 1"), Some(21));
        assert_eq!(busy_ticks("nonsense"), None);
    }

    #[test]
    fn this_process_has_used_some_of_each() {
        let own = std::process::id();
        assert!(cpu_ns(own).unwrap() > 0);
        let (most, now) = memory_bytes(own).unwrap();
        assert!(most >= now && now > 0);
        assert!(machine_busy_ticks().unwrap() > 0);
        assert!(cpu_ns(u32::MAX).is_err());
    }
}
