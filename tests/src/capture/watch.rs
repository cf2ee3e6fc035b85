//! Waits for what a program writes, without asking it: whoever is asked, works.

use std::{
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use alibi_agent::ring::View;
use alibi_proto::time::Timestamp;
use anyhow::{Context as _, Result, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Changes that are taken at once; how many there were does not matter.
const CHANGES_BYTES: usize = 4096;

/// Hears of writes to the files of a directory.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Of the files in `directory`, from here on.
    ///
    /// # Errors
    /// When it is not there.
    pub fn on(directory: &Path) -> Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let written = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, directory, written)
            .with_context(|| format!("{} cannot be watched", directory.display()))?;
        Ok(Self(watch))
    }

    /// Waits until `found` finds something, looking once now and once after each write.
    ///
    /// # Errors
    /// When it has not within a minute, or fails itself.
    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found()? {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{what} did not come within {} s", PATIENCE.as_secs());
            self.wait(left)?;
        }
    }

    /// Waits for a write, and takes all that have come.
    fn wait(&self, at_most: Duration) -> Result<()> {
        let seconds = i64::try_from(at_most.as_secs())?;
        let timeout = Timespec { tv_sec: seconds, tv_nsec: at_most.subsec_nanos().into() };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout))?;
        let mut buffer = [MaybeUninit::uninit(); CHANGES_BYTES];
        let mut changes = inotify::Reader::new(&self.0, &mut buffer);
        loop {
            match changes.next() {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(problem) => return Err(problem.into()),
            }
        }
    }
}

/// Waits until everything up to `time` is recorded, as the ring of the agent with this data says.
///
/// # Errors
/// When it is not within a minute.
pub fn until_recorded(agent_data: &Path, time: Timestamp) -> Result<()> {
    let ring = agent_data.join("ring");
    let watch = Watch::on(&ring)?;
    watch.until(&format!("the recording up to {time}"), || {
        // Its writer is at work: what is torn at this instant is whole at the next.
        let known = View::open_read_only(&ring).ok().and_then(|view| view.recorded_until());
        Ok(known.filter(|known| *known >= time).map(drop))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, thread};

    #[test]
    fn what_is_written_is_heard() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("log");
        fs::write(&path, "").unwrap();
        let watch = Watch::on(temporary.path()).unwrap();
        let mut looked = 0;
        let writer = thread::scope(|scope| {
            scope.spawn(|| (0..50).try_for_each(|size| fs::write(&path, vec![b'a'; size])));
            watch.until("enough", || {
                looked += 1;
                let length = fs::metadata(&path)?.len();
                Ok((length >= 49).then_some(length))
            })
        });
        assert_eq!(writer.unwrap(), 49);
        assert!(looked >= 1);
        assert!(Watch::on(&temporary.path().join("absent")).is_err());
    }
}
