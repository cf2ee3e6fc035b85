//! Names of users by their ids, without ever waiting long for one.
//!
//! The system may ask a domain controller or a directory for a name, which may be away: a laptop often is. So one thread
//! asks, and whoever wants a name waits for it a moment at most. What comes later is known the next time. What is told of
//! a user is kept for some time, and nothing is kept for ever.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

#[cfg(unix)]
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// So many users are remembered; beyond that all are forgotten, and asked for again.
const USERS_MAX: usize = 4_096;
/// So many wait to be asked for.
const QUEUE_MAX: usize = 64;

/// How long what takes.
#[derive(Clone, Copy, Debug)]
struct Terms {
    /// Who wants a name waits so long; once nobody answers, not at all.
    patience: Duration,
    /// A name is asked for again after so long: users are renamed, rarely.
    named: Duration,
    /// As is that of somebody without one: it may have been given meanwhile, or who knows it may be reached again.
    nameless: Duration,
}

const TERMS: Terms = Terms {
    patience: Duration::from_millis(250),
    named: Duration::from_secs(3600),
    nameless: Duration::from_secs(60),
};

/// Asks the system for the name of a user: none if it has none, or that cannot be told.
pub(super) type LookUp = fn(&str) -> Option<String>;

/// Names of users.
pub(super) struct Names {
    known: Arc<Mutex<HashMap<String, Known>>>,
    // None where there is no thread to be had: then there are no names.
    asked: Option<SyncSender<Question>>,
    /// Somebody has waited in vain since the last answer.
    is_silent: Arc<AtomicBool>,
    terms: Terms,
}

#[derive(Clone, Debug)]
struct Known {
    name: Option<String>,
    /// None while it is being asked for.
    since: Option<Instant>,
}

struct Question {
    id: String,
    /// Who asks, if anybody still waits.
    answer: SyncSender<Option<String>>,
}

impl Names {
    pub(super) fn new(look_up: LookUp) -> Self {
        Self::with_terms(look_up, TERMS)
    }

    fn with_terms(look_up: LookUp, terms: Terms) -> Self {
        let known: Arc<Mutex<HashMap<String, Known>>> = Arc::default();
        let (asked, questions) = sync_channel(QUEUE_MAX);
        let is_silent: Arc<AtomicBool> = Arc::default();
        let (answered, speaks) = (Arc::clone(&known), Arc::clone(&is_silent));
        let thread = thread::Builder::new()
            .name("user-names".to_owned())
            .spawn(move || answer_all(&questions, &answered, &speaks, look_up));
        Self { known, asked: thread.is_ok().then_some(asked), is_silent, terms }
    }

    /// The name of the user with this id; none if there is none, or it is not told in time.
    pub(super) fn name(&self, id: &str) -> Option<String> {
        let before = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let before = known.get(id).cloned();
            match &before {
                Some(Known { name, since: Some(since) }) => {
                    let kept = if name.is_some() { self.terms.named } else { self.terms.nameless };
                    if since.elapsed() < kept {
                        return name.clone();
                    }
                }
                // Somebody asks already, and will know before this one would.
                Some(Known { name, since: None }) => return name.clone(),
                None => {}
            }
            if known.len() >= USERS_MAX {
                known.clear();
            }
            let name = before.and_then(|known| known.name);
            known.insert(id.to_owned(), Known { name: name.clone(), since: None });
            name
        };
        let (answer, answers) = sync_channel(1);
        let question = Question { id: id.to_owned(), answer };
        let is_asked = self.asked.as_ref().is_some_and(|asked| asked.try_send(question).is_ok());
        if !is_asked {
            // Too many wait: to be asked for the next time.
            self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            return before;
        }
        let is_silent = self.is_silent.load(Ordering::Relaxed);
        let patience = if is_silent { Duration::ZERO } else { self.terms.patience };
        answers.recv_timeout(patience).unwrap_or_else(|_| {
            self.is_silent.store(true, Ordering::Relaxed);
            before
        })
    }
}

/// Until nobody can ask any more.
fn answer_all(
    questions: &Receiver<Question>,
    known: &Mutex<HashMap<String, Known>>,
    is_silent: &AtomicBool,
    look_up: LookUp,
) {
    while let Ok(Question { id, answer }) = questions.recv() {
        let name = look_up(&id).filter(|name| !name.is_empty());
        is_silent.store(false, Ordering::Relaxed);
        let told = Known { name: name.clone(), since: Some(Instant::now()) };
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(id, told);
        // Nobody waits any more for what comes too late.
        let _ = answer.try_send(name);
    }
}

/// Who process `pid` runs for.
#[cfg(unix)]
pub(super) fn user_of_process(pid: u32) -> Option<String> {
    let mut system = System::new().ok()?;
    let pid = sysinfo::Pid::from_u32(pid);
    let what = ProcessRefreshKind::nothing().without_tasks().with_user(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
    Some(system.process(pid)?.user_id()?.to_string())
}

/// The name of a user in the system's list.
#[cfg(unix)]
pub(super) fn look_up_user(id: &str) -> Option<String> {
    let users = sysinfo::Users::new_with_refreshed_list().ok()?;
    users.iter().find(|user| user.id().to_string() == id).map(|user| user.name().to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const IMPATIENT: Terms = Terms { patience: Duration::from_millis(1), ..TERMS };

    #[test]
    fn a_name_is_asked_for_once() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let look_up: LookUp = |id| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            (id == "7").then(|| "jdoe".to_owned())
        };
        let names = Names::with_terms(look_up, Terms { patience: LONG, nameless: LONG, ..TERMS });
        for _ in 0..3 {
            assert_eq!(names.name("7").as_deref(), Some("jdoe"));
            assert_eq!(names.name("8"), None);
        }
        assert_eq!(ASKED.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_directory_that_does_not_answer_keeps_nobody() {
        static GATE: Mutex<()> = Mutex::new(());
        let closed = GATE.lock().unwrap();
        let look_up: LookUp = |id| {
            drop(GATE.lock());
            Some(format!("user {id}"))
        };
        let patience = Duration::from_millis(500);
        let names = Names::with_terms(look_up, Terms { patience, ..TERMS });
        let began = Instant::now();
        // One is being asked for, others wait, and for the rest there is no room. Only the first is waited for.
        for id in 0..QUEUE_MAX + 10 {
            assert_eq!(names.name(&id.to_string()), None);
            assert_eq!(names.name(&id.to_string()), None, "it is asked for only once meanwhile");
        }
        assert!(began.elapsed() < LONG);
        drop(closed);
        let last = (QUEUE_MAX + 20).to_string();
        let mut told = None;
        while told.is_none() {
            assert!(began.elapsed() < LONG);
            told = names.name(&last);
            thread::yield_now();
        }
        assert_eq!(told, Some(format!("user {last}")));
        assert_eq!(names.name("0").as_deref(), Some("user 0"), "what came too late is known from then on");
    }

    #[test]
    fn a_name_that_is_asked_for_again_is_told_until_then() {
        static GATE: Mutex<()> = Mutex::new(());
        let look_up: LookUp = |id| {
            drop(GATE.lock());
            Some(format!("user {id}"))
        };
        let terms = Terms { patience: LONG, named: Duration::ZERO, ..TERMS };
        let names = Names::with_terms(look_up, terms);
        assert_eq!(names.name("1").as_deref(), Some("user 1"));
        let closed = GATE.lock().unwrap();
        let names = Names { terms: IMPATIENT, ..names };
        assert_eq!(names.name("1").as_deref(), Some("user 1"));
        drop(closed);
    }
}
