//! Ends the wait of a source before its time: something has happened that it should look at, or it must stop.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Receiver},
    thread,
    time::Duration,
};

use super::Stopped;

/// Wakes whoever waits, from any thread. A wake that nobody waits for ends the next wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Wake(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_woken: bool,
    is_stopped: bool,
}

impl Wake {
    /// A wake that also ends every wait once the sender of `stop` is dropped. Two channels cannot be waited for at once, so
    /// a thread waits for that one; it ends with the sender.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn with_stop(stop: Receiver<Infallible>) -> io::Result<Self> {
        let wake = Self::default();
        let stopped = wake.clone();
        thread::Builder::new().name("stop".to_owned()).spawn(move || {
            let Err(_) = stop.recv();
            stopped.change(|state| state.is_stopped = true);
        })?;
        Ok(wake)
    }

    /// Something has happened.
    #[cfg_attr(target_os = "linux", allow(dead_code, reason = "its sensors wait for themselves"))]
    pub(super) fn wake(&self) {
        self.change(|state| state.is_woken = true);
    }

    /// Waits for `duration`, or until woken.
    ///
    /// # Errors
    /// As soon as it is time to stop.
    pub(super) fn wait(&self, duration: Duration) -> Result<(), Stopped> {
        let mut state = self.wait_until(duration, |state| state.is_woken);
        state.is_woken = false;
        if state.is_stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Waits for `duration`, woken or not.
    ///
    /// # Errors
    /// As soon as it is time to stop.
    pub(super) fn wait_through(&self, duration: Duration) -> Result<(), Stopped> {
        let state = self.wait_until(duration, |_| false);
        if state.is_stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Waits until it is time to stop.
    pub(super) fn wait_for_stop(&self) -> Stopped {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let _stopped = self.0.changed.wait_while(state, |state| !state.is_stopped);
        Stopped
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.changed.notify_all();
    }

    fn wait_until(&self, duration: Duration, is_over: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |state: &mut State| !state.is_stopped && !is_over(state);
        let waited = self.0.changed.wait_timeout_while(state, duration, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_wait_ends_when_something_happens_and_when_it_is_time_to_stop() {
        let (stop, stopped) = mpsc::channel();
        let wake = Wake::with_stop(stopped).unwrap();
        wake.wake();
        let began = Instant::now();
        wake.wait_through(SHORT).unwrap();
        assert!(began.elapsed() >= SHORT, "this one waits all the same, and takes no wake away");
        wake.wait(LONG).unwrap();
        let began = Instant::now();
        wake.wait(SHORT).unwrap();
        assert!(began.elapsed() >= SHORT, "a wake ends one wait");

        let other = wake.clone();
        let waking = thread::spawn(move || other.wake());
        wake.wait(LONG).unwrap();
        waking.join().unwrap();

        drop(stop);
        wake.wait(LONG).unwrap_err();
        wake.wait_through(LONG).unwrap_err();
        wake.wait(Duration::ZERO).unwrap_err();
        let Stopped = wake.wait_for_stop();
        assert!(began.elapsed() < LONG);
    }
}
