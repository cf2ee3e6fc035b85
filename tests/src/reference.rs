//! A plain model of the truth: what happened on a host, second by second, against which verdicts are held.
//!
//! The model keeps everything, knows nothing of records, rings or timelines, and answers by looking at every second of
//! a window. A verdict may be `unknown` where the model knows better; `clear` where somebody talked, `clear` where a
//! second went unrecorded, and `talked` where nobody did are faults.

use std::ops::Range;

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
