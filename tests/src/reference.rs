//! A plain model of the truth: what happened on a host, second by second, against which verdicts are held.
//!
//! The model keeps everything, knows nothing of records, rings or timelines, and answers by looking at every second of
//! a window. A verdict may be `unknown` where the model knows better; `clear` where somebody talked, `clear` where a
//! second went unrecorded, and `talked` where nobody did are faults.

use std::{collections::BTreeSet, ops::Range};

/// What truly happened on one host, in whole seconds.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// The life of each connection to the target: first and last second, both included.
    pub connections: Vec<Range<u64>>,
    /// Seconds in which recording was not whole.
    pub unrecorded: Vec<Range<u64>>,
}

impl Truth {
    /// Whether any connection lived in some second of the window.
    pub fn talked(&self, window: Range<u64>) -> bool {
        self.connections.iter().any(|life| (life.start..=life.end).any(|second| window.contains(&second)))
    }

    /// Whether every second of the window was recorded.
    pub fn whole(&self, window: Range<u64>) -> bool {
        window.into_iter().all(|second| !self.unrecorded.iter().any(|lost| lost.contains(&second)))
    }
}

/// What truly happened on one host in each second that its wall clock showed, however often it showed it.
#[derive(Clone, Debug)]
pub struct Seconds {
    /// The first that is told of. Nothing was recorded of those before.
    begins: u64,
    seconds: Vec<Second>,
}

/// One second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    /// A connection to the target lived in it.
    pub talked: bool,
    /// What connections did in it was not, or not wholly, recorded; nor is it proven that nothing ran.
    pub connections_unrecorded: bool,
    /// The same of names.
    pub names_unrecorded: bool,
}

impl Seconds {
    /// Nothing has happened yet.
    pub const fn new(begins: u64) -> Self {
        Self { begins, seconds: Vec::new() }
    }

    /// Something is true of these seconds.
    pub fn mark(&mut self, seconds: Range<u64>, mark: impl Fn(&mut Second)) {
        let index = |second: u64| usize::try_from(second.saturating_sub(self.begins)).unwrap_or(usize::MAX);
        let (from, to) = (index(seconds.start), index(seconds.end));
        if from >= to {
            return;
        }
        if self.seconds.len() < to {
            self.seconds.resize(to, Second::default());
        }
        self.seconds[from..to].iter_mut().for_each(mark);
    }

    /// The first second that nothing is told of.
    pub const fn end(&self) -> u64 {
        self.begins + self.seconds.len() as u64
    }

    /// Whether something is true of some second of the window.
    pub fn any(&self, mut window: Range<u64>, is: impl Fn(&Second) -> bool) -> bool {
        let before = Second { talked: false, connections_unrecorded: true, names_unrecorded: true };
        window.any(|second| match second.checked_sub(self.begins) {
            Some(index) => is(usize::try_from(index)
                .ok()
                .and_then(|at| self.seconds.get(at))
                .unwrap_or(&Second::default())),
            None => is(&before),
        })
    }
}

/// What truly happened on one host when it is asked about by a name, in whole seconds.
///
/// A process that connects by the name uses one of its addresses, which it got from a DNS answer that came while it ran, or
/// was given at its start from one that had come at most `memory` seconds before.
#[derive(Clone, Debug, Default)]
pub struct NamedTruth {
    /// The connections that were truly made by the name.
    pub by_name: Vec<NamedConnection>,
    /// Seconds in which names were not recorded.
    pub names_unrecorded: Vec<Range<u64>>,
    /// Seconds in which connections were not recorded.
    pub connections_unrecorded: Vec<Range<u64>>,
}

/// A connection made by a name.
#[derive(Clone, Debug)]
pub struct NamedConnection {
    /// First and last second, both included.
    pub life: Range<u64>,
    /// When the process started that made it.
    pub started: u64,
    /// When the answer came by which it was made.
    pub resolved: u64,
    /// Its address.
    pub address: u8,
}

impl NamedTruth {
    /// Whether a connection that was made by the name lived in some second of the window.
    pub fn talked(&self, window: &Range<u64>) -> bool {
        self.alive(window).next().is_some()
    }

    /// The addresses of those connections.
    pub fn addresses(&self, window: &Range<u64>) -> BTreeSet<u8> {
        self.alive(window).map(|connection| connection.address).collect()
    }

    fn alive<'a>(&'a self, window: &'a Range<u64>) -> impl Iterator<Item = &'a NamedConnection> {
        self.by_name
            .iter()
            .filter(|connection| connection.life.start < window.end && connection.life.end >= window.start)
    }

    /// Whether every second was recorded, of names and of connections.
    pub fn whole(&self, names: Range<u64>, connections: Range<u64>) -> bool {
        let recorded = |seconds: Range<u64>, lost: &[Range<u64>]| {
            !lost.iter().any(|lost| lost.start < seconds.end && lost.end > seconds.start)
        };
        recorded(names, &self.names_unrecorded) && recorded(connections, &self.connections_unrecorded)
    }
}
