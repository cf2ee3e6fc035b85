//! What a suspend means for what is open.

use alibi_proto::time::{Moment, Timestamp};

use super::Pipeline;

impl Pipeline {
    /// Nothing ran from `from` until `to`: what was open was not, in that time, open to anybody. So each record ends
    /// where the host fell asleep, the next one begins where it woke up, and coverage says that there is nothing in between.
    pub(super) fn suspended(&mut self, from: Timestamp, to: Timestamp, now: Moment) {
        for socket in self.open() {
            if self.flows.get(&socket).is_some_and(|flow| flow.first <= from) {
                self.report_open(socket, from, from, now);
            }
            // After a clock that was set back, a record may have ended later than the sleep began.
            if let Some(flow) = self.flows.get_mut(&socket) {
                flow.first = flow.first.max(to);
            }
        }
        let changes = self.ledger.suspended(from, to);
        self.push_all(now, changes);
    }
}
