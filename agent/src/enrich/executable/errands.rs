//! Doing what may never return.
//!
//! A file system that comes over a network, or from another program, may stop answering, and then keeps everybody who
//! asks it anything, a path that leads through it included: for ever, and nothing frees them. So what may ask one is done
//! on a thread that is given up when it makes no progress for some time. Where that happened nothing is asked again until
//! the thread has returned, and so many threads at most are given up.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, SendError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A thread without work for so long ends.
const REST: Duration = Duration::from_secs(10);
/// Progress, and whether to stop, is looked at so often while an errand takes its time.
const LOOK: Duration = Duration::from_millis(100);
/// One that has returned too late is held against its place for so long.
const MEMORY: Duration = Duration::from_secs(10);

/// How errands are done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// What the threads are called.
    pub(crate) name: &'static str,
    /// An errand without progress for so long is given up.
    pub(crate) patience: Duration,
    /// So many threads may be given up that have not returned yet.
    pub(crate) given_up_max: usize,
    /// Behind everybody else.
    pub(crate) stands_back: bool,
}

/// Does errands, one after the other.
pub(crate) struct Errands {
    terms: Terms,
    runner: Option<Runner>,
    given_up: Vec<GivenUp>,
}

type Errand = Box<dyn FnOnce() + Send>;

struct Runner {
    errands: SyncSender<Errand>,
    thread: JoinHandle<()>,
}

struct GivenUp {
    place: Place,
    since: Instant,
    thread: JoinHandle<()>,
}

/// Where an errand goes: a device, where that is known, and a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    device: Option<u64>,
    directory: PathBuf,
}

impl Place {
    /// Of a file at `path`.
    pub(crate) fn of(path: &Path, device: Option<u64>) -> Self {
        Self { device, directory: path.parent().unwrap_or(path).to_owned() }
    }

    /// A directory, or a way to it.
    #[allow(dead_code, reason = "not every system tells of files that are written")]
    pub(crate) fn directory(path: &Path) -> Self {
        Self { device: None, directory: path.to_owned() }
    }

    /// What is asked at `other` would be asked of the same file system, or on the way through it.
    fn leads_to(&self, other: &Self) -> bool {
        let is_below = self.directory.parent().is_some() && other.directory.starts_with(&self.directory);
        is_below || self.directory == other.directory || self.device.is_some() && self.device == other.device
    }
}

/// How far an errand has come; what it is of no matter, as long as it changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    pub(crate) fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// There was no progress.
    #[error("its file system has not answered for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// Where it goes, there was no answer before.
    #[error("its file system does not answer")]
    StillSilent,
    /// Too many have not returned.
    #[error("{0} earlier looks at other files have not returned")]
    TooMany(usize),
    /// There is no thread to be had.
    #[error("there is no thread to look at it: {0}")]
    NoThread(#[from] io::Error),
    /// It was time to stop.
    #[error("the agent stops")]
    Stopped,
    /// The errand panicked, and has said so itself.
    #[error("looking at it failed: this is a fault in the agent, please report it")]
    Panicked,
}

impl Errands {
    pub(crate) fn new(terms: Terms) -> Self {
        Self { terms, runner: None, given_up: Vec::new() }
    }

    /// What `work` at `place` returns, if it does so in time. It may note its progress.
    ///
    /// # Errors
    /// When it does not, or it need not be tried. What is given up goes on in the thread, and is lost.
    pub(crate) fn run<T: Send + 'static>(
        &mut self,
        place: Place,
        stop: Option<&AtomicBool>,
        work: impl FnOnce(&Progress) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        self.given_up.retain(|given_up| !given_up.thread.is_finished() || given_up.since.elapsed() < MEMORY);
        if self.given_up.iter().any(|given_up| given_up.place.leads_to(&place)) {
            return Err(NoAnswer::StillSilent);
        }
        if self.given_up.len() >= self.terms.given_up_max {
            return Err(NoAnswer::TooMany(self.given_up.len()));
        }
        let progress = Progress::default();
        let (answer, answers) = sync_channel(1);
        let noted = progress.clone();
        self.hand_over(Box::new(move || {
            // Nobody waits any more for what comes too late.
            let _ = answer.send(work(&noted));
        }))?;
        let mut steps = progress.steps();
        let mut since = Instant::now();
        let look = LOOK.min(self.terms.patience);
        loop {
            match answers.recv_timeout(look) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(NoAnswer::Panicked),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = progress.steps();
            if now != steps {
                (steps, since) = (now, Instant::now());
            } else if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                self.runner = None;
                return Err(NoAnswer::Stopped);
            } else if since.elapsed() >= self.terms.patience {
                self.give_up(place);
                return Err(NoAnswer::Silent(self.terms.patience));
            }
        }
    }

    fn hand_over(&mut self, errand: Errand) -> io::Result<()> {
        let errand = match &self.runner {
            None => errand,
            Some(runner) => match runner.errands.send(errand) {
                Ok(()) => return Ok(()),
                // It had nothing to do, and has ended.
                Err(SendError(errand)) => errand,
            },
        };
        // Taken or refused: one that were left in a queue, when the thread ends, would be lost.
        let (errands, waiting) = sync_channel::<Errand>(0);
        let stands_back = self.terms.stands_back;
        let thread = thread::Builder::new().name(self.terms.name.to_owned()).spawn(move || {
            if stands_back {
                crate::sys::stand_back();
            }
            while let Ok(errand) = waiting.recv_timeout(REST) {
                errand();
            }
        })?;
        let sent = errands.send(errand);
        debug_assert!(sent.is_ok(), "it waits for one");
        self.runner = Some(Runner { errands, thread });
        Ok(())
    }

    fn give_up(&mut self, place: Place) {
        // It ends by itself when it returns, if ever: nobody gives it another errand.
        if let Some(Runner { thread, .. }) = self.runner.take() {
            self.given_up.push(GivenUp { place, since: Instant::now(), thread });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TERMS: Terms =
        Terms { name: "errands", patience: Duration::from_millis(50), given_up_max: 2, stands_back: false };

    fn place(directory: &str) -> Place {
        Place::of(&Path::new(directory).join("file"), None)
    }

    #[test]
    fn what_does_not_return_is_given_up_and_others_are_done() {
        let mut errands = Errands::new(TERMS);
        assert_eq!(errands.run(place("/a"), None, |_| 1).unwrap(), 1);
        let (free, held) = mpsc::channel::<()>();
        let stuck = errands.run(place("/dead"), None, move |_| held.recv().is_ok());
        assert!(matches!(stuck, Err(NoAnswer::Silent(_))));
        for below in ["/dead", "/dead/and/gone"] {
            assert!(matches!(errands.run(place(below), None, |_| 1), Err(NoAnswer::StillSilent)), "{below}");
        }
        assert_eq!(errands.run(place("/deadline"), None, |_| 2).unwrap(), 2);
        let (_never, held) = mpsc::channel::<()>();
        let stuck = errands.run(place("/also"), None, move |_| held.recv().is_ok());
        assert!(matches!(stuck, Err(NoAnswer::Silent(_))));
        assert!(matches!(errands.run(place("/a"), None, |_| 3), Err(NoAnswer::TooMany(2))));
        drop(free);
        let mut returned = errands.given_up.remove(0);
        returned.since = Instant::now().checked_sub(MEMORY).unwrap();
        while !returned.thread.is_finished() {
            thread::yield_now();
        }
        errands.given_up.push(returned);
        assert_eq!(errands.run(place("/dead"), None, |_| 4).unwrap(), 4, "it answers again");
    }

    #[test]
    fn what_makes_progress_is_waited_for_and_a_stop_is_not() {
        let mut errands = Errands::new(TERMS);
        let waited = errands.run(place("/a"), None, |progress| {
            let started = Instant::now();
            while started.elapsed() < 4 * TERMS.patience {
                progress.step();
                thread::yield_now();
            }
            5
        });
        assert_eq!(waited.unwrap(), 5);
        let (_never, held) = mpsc::channel::<()>();
        let stop = AtomicBool::new(true);
        let stopped = errands.run(place("/b"), Some(&stop), move |_| held.recv().is_ok());
        assert!(matches!(stopped, Err(NoAnswer::Stopped)));
    }

    #[test]
    fn a_device_is_a_place_wherever_it_is_mounted() {
        let one = Place::of(Path::new("/mnt/a/tool"), Some(7));
        assert!(one.leads_to(&Place::of(Path::new("/srv/tool"), Some(7))));
        assert!(!one.leads_to(&Place::of(Path::new("/srv/tool"), Some(8))));
        assert!(!one.leads_to(&Place::of(Path::new("/mnt/tool"), None)));
        let root = Place::of(Path::new("/tool"), None);
        assert!(root.leads_to(&root) && !root.leads_to(&one));
    }
}
