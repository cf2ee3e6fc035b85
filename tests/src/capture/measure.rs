//! What an agent costs, as the system counts it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::Stop;

/// Whoever works this little for so long is at rest, and is waited for so many times.
const REST: Duration = Duration::from_millis(500);
const RESTS_MAX: u32 = 120;

/// Processor time of all threads of a process, in nanoseconds; of those that have ended, in ticks of 10 ms.
///
/// # Errors
/// When it has ended.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let running = threads_ns(pid)?.values().sum();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let all = ticks(&stat).context("a stat without times")? * 10_000_000;
    Ok(all.max(running))
}

/// Waits until a process has done what it had to do and works no more than an idle one: under 1 % of a processor for as long as
/// [`REST`].
///
/// # Errors
/// When it has ended, or never rests, or when the measurement is to end.
pub fn until_at_rest(pid: u32, stop: &Stop) -> Result<()> {
    let mut before = cpu_ns(pid)?;
    for _ in 0..RESTS_MAX {
        stop.wait(REST)?;
        let after = cpu_ns(pid)?;
        if after.saturating_sub(before) < REST.as_nanos() as u64 / 100 {
            return Ok(());
        }
        before = after;
    }
    bail!("process {pid} does not come to rest")
}

/// User and system time in ticks. The program's name may have anything in it but ends at the last bracket.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map_while(|word| word.parse::<u64>().ok());
    Some(times.next()? + times.next()?)
}

/// Seconds of processor time that the process has had in the kernel.
///
/// # Errors
/// When it has ended.
pub fn system_s(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name, which may have anything in it, the state is the first, and this the thirteenth.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().nth(12).and_then(|ticks| ticks.parse::<f64>().ok());
    Ok(ticks.context("a stat without times")? / 100.0)
}

/// Processor time of a process' threads that are running, in nanoseconds by name; those of one name are one.
///
/// # Errors
/// When it has ended.
pub fn threads_ns(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut threads = BTreeMap::new();
    for (name, spent) in each_thread_ns(pid)?.into_values() {
        *threads.entry(name).or_default() += spent;
    }
    Ok(threads)
}

/// The same of each thread, by its id, with its name.
///
/// # Errors
/// When the process has ended.
pub fn each_thread_ns(pid: u32) -> Result<BTreeMap<u32, (String, u64)>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("it has ended")? {
        let task = task?;
        let Ok(id) = task.file_name().to_string_lossy().parse() else { continue };
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let spent = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        threads.insert(id, (name.trim_end().to_owned(), spent));
    }
    Ok(threads)
}

/// The process of this name that is a thread of the kernel, if there is one.
///
/// # Errors
/// When the system does not tell.
pub fn kernel_thread(name: &str) -> Result<Option<u32>> {
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let of_kernel = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.is_empty());
        let is_it = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
        if of_kernel && is_it {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// The most that it ever had: `VmHWM`.
    pub most: u64,
    /// What it has: `VmRSS`.
    pub now: u64,
    /// Of that, its own: `RssAnon`.
    pub anonymous: u64,
    /// Of that, pages of files, its program's above all, which the system can drop: `RssFile`.
    pub file: u64,
}

impl Memory {
    /// Of this process, now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let memory = || {
            let (most, now) = (field("VmHWM:")?, field("VmRSS:")?);
            Some(Self { most, now, anonymous: field("RssAnon:")?, file: field("RssFile:")? })
        };
        memory().context("a status without memory")
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { most, now, anonymous, file } = *self;
        write!(
            f,
            "{:.1} MiB ({:.1} its own, {:.1} of files), {:.1} MiB at most",
            mib(now),
            mib(anonymous),
            mib(file),
            mib(most)
        )
    }
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
/// Processor time that this thread has had.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

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

    /// Each of them divided by this.
    #[must_use]
    pub fn over(self, divisor: f64) -> Self {
        Self { median: self.median / divisor, least: self.least / divisor, most: self.most / divisor }
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
        assert_eq!(spread.over(2.0), Spread { median: 1.0, least: 0.5, most: 1.5 });
        assert!(Spread::of(vec![]).is_none());
    }

    #[test]
    fn idle_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  1 2 3 1000 1000 4 5 6 7 8\ncpu0 1"), Some(21));
        assert_eq!(busy_ticks("nonsense"), None);
    }

    #[test]
    fn the_times_stand_behind_a_name_with_anything_in_it() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 30 12 5 5 20 0 3 0 9";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a) S 1 7"), None);
    }

    #[test]
    fn this_process_has_used_some_of_each() {
        let own = std::process::id();
        assert!(cpu_ns(own).unwrap() > 0);
        assert!(threads_ns(own).unwrap().values().sum::<u64>() > 0);
        let memory = Memory::of(own).unwrap();
        assert!(memory.most >= memory.now && memory.now >= memory.anonymous && memory.anonymous > 0);
        assert_eq!(kernel_thread("no such thread").unwrap(), None);
        assert!(machine_busy_ticks().unwrap() > 0);
        assert!(cpu_ns(u32::MAX).is_err());
    }
}
