//! Who asked about this host: the newest entries that the collector has sent of its audit log, kept in a file.
//!
//! One JSON object in a line: a header ([`Header`]), then the entries, in order. Entries are appended; once there are twice
//! as many as are kept, the file is written anew with those that are. What a kill cut off is an entry without the end of its
//! line: it is cut away, and the collector sends it again, since it is told up to where this log goes.
//!
//! Nothing is refused because of it: a file that is damaged is begun anew, and one that cannot be written is done without.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use alibi_proto::{data_directory::write_whole, time::Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Entries that are kept. Few under test, so that the bound is met.
pub const KEPT_MAX: usize = if cfg!(test) { 8 } else { 1_000 };
/// Entries that the owner is shown.
pub const SHOWN_MAX: usize = if cfg!(test) { 4 } else { 20 };
/// No file of ours is larger: twice the entries, with every character escaped.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The format that is written; one that is newer is left alone.
const FORMAT: u32 = 1;

/// An entry of the collector's audit log about this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of which collector.
    pub collector: String,
    /// Which one it is in that collector's log.
    pub seq: u64,
    /// When, by the collector's clock.
    pub at: Timestamp,
    /// Who.
    pub who: String,
    /// In which role.
    pub role: String,
    /// What was done.
    pub action: String,
}

/// The first line of the file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    /// Entries that came before these, and are not kept any more.
    before: u64,
}

/// What the log comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How many there were in all.
    pub total: u64,
    /// The newest of them, newest first.
    pub newest: Arc<[Entry]>,
}

/// Who asked. Clones are the same log.
#[derive(Clone, Debug)]
pub struct WhoAsked {
    log: Arc<Mutex<Log>>,
    told: Arc<watch::Sender<Told>>,
}

impl WhoAsked {
    /// The log in this file, which need not be there yet.
    pub fn open(path: &Path) -> Self {
        Self::of(Log::open(path))
    }

    /// One that is kept nowhere.
    pub fn in_memory() -> Self {
        Self::of(Log::default())
    }

    fn of(log: Log) -> Self {
        let told = Arc::new(watch::Sender::new(log.told()));
        Self { log: Arc::new(Mutex::new(log)), told }
    }

    /// Takes in entries of one collector, in order of `seq`; those that are known already are passed over. Waits for the disk.
    pub fn take(&self, entries: Vec<Entry>) {
        // Every change to it leaves a log: there is no half of one to be found.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.take(entries) {
            self.told.send_replace(log.told());
        }
    }

    /// The newest entry of this collector that is here, of which it is told; 0 before the first.
    pub fn until_seq(&self, collector: &str) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).until_seq(collector)
    }

    /// What the log comes to now.
    pub fn told(&self) -> Told {
        self.told.borrow().clone()
    }
}

#[derive(Debug, Default)]
struct Log {
    /// None: it is kept in memory alone.
    path: Option<PathBuf>,
    /// Open at its end; none if it has to be written anew first.
    file: Option<File>,
    entries: VecDeque<Entry>,
    before: u64,
    /// Entries in the file, those included that are not kept any more.
    written: usize,
    is_in_trouble: bool,
}

impl Log {
    fn open(path: &Path) -> Self {
        let begun_anew = Self { path: Some(path.to_owned()), ..Self::default() };
        match read(path) {
            Ok((header, entries)) => {
                let mut log = Self { entries: entries.into(), before: header.before, ..begun_anew };
                log.forget_oldest();
                log
            }
            Err(Unreadable::Absent) => begun_anew,
            Err(Unreadable::Newer(format)) => {
                tracing::warn!(
                    path = %path.display(),
                    format,
                    "who asked was kept by a newer version, whose file is left alone: what comes is not kept beyond this run"
                );
                Self::default()
            }
            Err(Unreadable::Damaged(problem)) => {
                tracing::warn!(path = %path.display(), %problem, "who asked before cannot be read; it is begun anew");
                begun_anew
            }
        }
    }

    fn told(&self) -> Told {
        Told {
            total: self.before + self.entries.len() as u64,
            newest: self.entries.iter().rev().take(SHOWN_MAX).cloned().collect(),
        }
    }

    fn until_seq(&self, collector: &str) -> u64 {
        self.entries.iter().rev().find(|entry| entry.collector == collector).map_or(0, |entry| entry.seq)
    }

    /// Whether anything was new.
    fn take(&mut self, entries: Vec<Entry>) -> bool {
        let Some(collector) = entries.first().map(|entry| entry.collector.clone()) else { return false };
        let known = self.until_seq(&collector);
        let new: Vec<Entry> = entries.into_iter().filter(|entry| entry.seq > known).collect();
        if new.is_empty() {
            return false;
        }
        let kept = self.keep(&new);
        self.entries.extend(new);
        self.forget_oldest();
        match kept {
            Ok(()) if self.file.is_some() => self.is_in_trouble = false,
            Ok(()) => self.write_anew(),
            Err(problem) => self.failed(&problem),
        }
        true
    }

    /// Appends, where that can be done; else the whole has to be written.
    fn keep(&mut self, new: &[Entry]) -> io::Result<()> {
        if self.written + new.len() > 2 * KEPT_MAX {
            self.file = None;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut lines = Vec::new();
        for entry in new {
            lines.extend(line(entry)?);
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        self.written += new.len();
        Ok(())
    }

    fn forget_oldest(&mut self) {
        while self.entries.len() > KEPT_MAX {
            self.entries.pop_front();
            self.before += 1;
        }
    }

    fn write_anew(&mut self) {
        let Some(path) = &self.path else { return };
        let written = (|| {
            let mut lines = line(&Header { format: FORMAT, before: self.before })?;
            for entry in &self.entries {
                lines.extend(line(entry)?);
            }
            write_whole(path, &lines)?;
            File::options().append(true).open(path)
        })();
        match written {
            Ok(file) => {
                (self.file, self.written, self.is_in_trouble) = (Some(file), self.entries.len(), false)
            }
            Err(problem) => self.failed(&problem),
        }
    }

    /// What was written last may be there in part: the whole is written with what comes next.
    fn failed(&mut self, problem: &io::Error) {
        self.file = None;
        if !std::mem::replace(&mut self.is_in_trouble, true) {
            tracing::warn!(%problem, "who asked cannot be kept; the collector is asked for it again after a restart");
        }
    }
}

fn line(of: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(of)?;
    line.push(b'\n');
    Ok(line)
}

enum Unreadable {
    Absent,
    Newer(u32),
    Damaged(String),
}

fn read(path: &Path) -> Result<(Header, Vec<Entry>), Unreadable> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)) {
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
            return Err(Unreadable::Damaged(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        Ok(_) => {}
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Err(Unreadable::Absent),
        Err(problem) => return Err(Unreadable::Damaged(problem.to_string())),
    }
    // What has no end of line was cut off by a kill.
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut lines =
        text[..whole].strip_suffix(b"\n").into_iter().flat_map(|lines| lines.split(|byte| *byte == b'\n'));
    let damaged = |problem: &dyn std::fmt::Display| Unreadable::Damaged(problem.to_string());
    let header = lines.next().ok_or_else(|| damaged(&"it has no header"))?;
    let header: Header = serde_json::from_slice(header).map_err(|problem| damaged(&problem))?;
    if header.format > FORMAT {
        return Err(Unreadable::Newer(header.format));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for line in lines {
        let entry: Entry = serde_json::from_slice(line).map_err(|problem| damaged(&problem))?;
        if entries.last().is_some_and(|last| last.collector == entry.collector && last.seq >= entry.seq) {
            return Err(damaged(&format!("entry {} is not in its order", entry.seq)));
        }
        entries.push(entry);
    }
    Ok((header, entries))
}

#[cfg(test)]
mod tests;
