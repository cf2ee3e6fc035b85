//! Whether what is stored can be read, and is what was written.
//!
//! - As the store is opened: how the tables lie that a `clear` rests on, which are small. Where one of them is damaged nobody
//!   knows which rows are missing, so that the store is not opened; what to do then a person decides.
//! - Each row of these tables, and each block of flow records, whenever it is read: by its checksum.
//! - All else beside the work, in a thread of its own: how the other tables lie, where damage makes everything a gap, and every
//!   block of flow records, so that a disk that fails is told of before somebody asks for what it had.

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use alibi_proto::time::Timestamp;
use rusqlite::{ErrorCode, InterruptHandle};

use crate::store::{Damage, StoreError, database::Database, flows::Flows, lock};

/// Tables of which every row must be there for a `clear` to be true.
const PROOF: [&str; 8] = ["agent", "arrived", "clock", "coverage", "flow_run", "forgotten", "host", "ring"];
/// Blocks of flow records are read no faster than that, so that whoever asks has the disk.
const BYTES_EACH_SECOND: u64 = 32 << 20;
/// How long a question that is to end is left alone.
const STOPPED_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// What is told of at most.
const PROBLEMS_MAX: usize = 64;

/// What was found beside the work.
#[derive(Default)]
pub(super) struct Integrity {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    thread: Option<JoinHandle<()>>,
    /// Ends what the thread asks the database.
    asking: Option<InterruptHandle>,
    /// Of tables that everything may rest on.
    damage: Vec<Damage>,
}

impl Integrity {
    /// What may be missing from everything.
    pub(super) fn damage(&self) -> Vec<Damage> {
        lock(&self.state).damage.clone()
    }

    /// Ends the check that is under way.
    pub(super) fn stop(&self) {
        let mut state = lock(&self.state);
        state.is_stopped = true;
        self.stopped.notify_all();
        let Some(thread) = state.thread.take() else { return };
        while !thread.is_finished() {
            // What is only just being asked is not ended by that: once more, then.
            state.asking.iter().for_each(InterruptHandle::interrupt);
            state = self
                .stopped
                .wait_timeout(state, STOPPED_AGAIN_AFTER)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(state);
        // One that panicked has been told of.
        let _ = thread.join();
    }

    fn found(&self, problem: &str) {
        tracing::error!(problem, "the main database is damaged: {WAYS_OUT}");
        let reason = format!("the collector's main database is damaged: {problem}");
        let mut state = lock(&self.state);
        if state.damage.len() < PROBLEMS_MAX {
            state.damage.push(Damage { from: Timestamp::ZERO, to: Timestamp::MAX, reason });
        }
    }

    /// Waits for so long; false once it is to stop.
    fn waits(&self, pause: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.stopped.wait_timeout_while(state, pause, |state| !state.is_stopped);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped
    }
}

/// What somebody can do whose main database is damaged.
pub(in crate::store) const WAYS_OUT: &str = "stop the collector, and bring back a backup with `alibi restore`, or keep what can be read with `alibi repair`";

/// Whether the tables can be read that a `clear` rests on.
pub(super) fn check_proof(database: &Database) -> Result<(), StoreError> {
    for table in PROOF {
        if let Some(problem) = database.check_table(table, drop)?.first() {
            return Err(StoreError::Damaged { what: "table", problem: format!("{table}: {problem}") });
        }
    }
    Ok(())
}

/// Says what can be done where the file itself is what is wrong.
pub(super) fn with_ways_out(path: &Path, error: StoreError) -> StoreError {
    let is_damage = match &error {
        StoreError::Damaged { .. } => true,
        StoreError::Unusable { source, .. } | StoreError::Sqlite(source) => {
            source.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
        }
        _ => false,
    };
    if !is_damage {
        return error;
    }
    StoreError::Foreign {
        path: path.display().to_string(),
        problem: format!("is damaged ({error}): {WAYS_OUT}"),
    }
}

/// Checks all else in a thread of its own, which ends with the store.
pub(super) fn check_beside(integrity: &Arc<Integrity>, database: &Arc<Database>, flows: &Arc<Flows>) {
    let started = std::thread::Builder::new().name("integrity".to_owned()).spawn({
        let (integrity, database, flows) = (Arc::clone(integrity), Arc::clone(database), Arc::clone(flows));
        move || check_all(&integrity, &database, &flows)
    });
    match started {
        Ok(thread) => lock(&integrity.state).thread = Some(thread),
        Err(error) => tracing::error!(%error, "what is stored is not checked"),
    }
}

fn check_all(integrity: &Integrity, database: &Database, flows: &Flows) {
    let tables = database.tables().inspect_err(|error| tracing::error!(%error, "no table is checked"));
    for table in tables.unwrap_or_default() {
        // One at a time, so that the write-ahead log can be cut between them.
        if !integrity.waits(Duration::ZERO) {
            return;
        }
        match database.check_table(&table, |asking| lock(&integrity.state).asking = Some(asking)) {
            Ok(problems) => {
                problems.iter().for_each(|problem| integrity.found(&format!("{table}: {problem}")))
            }
            Err(_) if !integrity.waits(Duration::ZERO) => return,
            Err(error) => tracing::error!(%error, table, "a table could not be checked"),
        }
    }
    let rows = database.read(super::repair::check_rows);
    let rows = rows.inspect_err(|error| tracing::error!(%error, "what hosts have told could not be checked"));
    // Of these the host is a gap, and no other.
    for problem in rows.into_iter().flatten().take(PROBLEMS_MAX) {
        tracing::error!(problem, "what is stored of a host is damaged: {WAYS_OUT}");
    }
    let go_on = || integrity.waits(Duration::ZERO);
    match database.read(|connection| super::names::check_rows(connection, go_on)) {
        Err(error @ StoreError::Damaged { .. }) => integrity.found(&error.to_string()),
        Err(error) => tracing::error!(%error, "the names that hosts have told could not be checked"),
        Ok(()) => {}
    }
    let (mut damaged, mut bytes_read) = (0_usize, 0_u64);
    let go_on = |bytes: u64| {
        bytes_read += bytes;
        integrity.waits(Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / BYTES_EACH_SECOND))
    };
    flows.check(go_on, |problem| {
        damaged += 1;
        if damaged <= PROBLEMS_MAX {
            tracing::error!(problem, "flow records are damaged: their time is a gap");
        }
    });
    if integrity.waits(Duration::ZERO) {
        tracing::info!(bytes_read, damaged, "everything that is stored was read again");
    }
}
