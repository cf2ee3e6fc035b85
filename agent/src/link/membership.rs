//! How the host stands with its collector, as its owner is shown it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use alibi_proto::time::Timestamp;
use tokio::sync::watch;

use crate::{
    enrolment::{self, Enrolment, EnrolmentError, Lease},
    sys,
};

/// How the host stands with its collector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LinkStatus {
    /// It has none.
    #[default]
    NotEnrolled,
    /// It has one.
    Enrolled {
        /// Where the collector is.
        collector: String,
        /// Until when the host's certificate is valid.
        certificate_until: Timestamp,
        /// Whether they speak with each other.
        state: LinkState,
    },
}

/// Whether an enrolled host and its collector speak with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// They do not just now, and why.
    NotConnected {
        /// Why not.
        why: String,
    },
    /// They do.
    Connected {
        /// Since when.
        since: Timestamp,
    },
    /// The collector does not take the host in.
    Refused {
        /// Why not.
        why: String,
    },
}

impl LinkStatus {
    /// Whether they speak with each other, where the host is enrolled.
    pub const fn state(&self) -> Option<&LinkState> {
        match self {
            Self::NotEnrolled => None,
            Self::Enrolled { state, .. } => Some(state),
        }
    }
}

/// What the host shows the collector, and what it is told in return.
#[derive(Debug)]
pub struct Membership {
    directory: PathBuf,
    /// New at each start: two that run have two.
    instance: [u8; 16],
    status: watch::Sender<LinkStatus>,
    /// Connections that the collector has made, where it is the one that dials.
    calls: Mutex<usize>,
}

impl Membership {
    /// Of the host with this data directory.
    pub fn new(directory: PathBuf) -> Self {
        let instance = std::array::from_fn(|_| fastrand::u8(..));
        Self { directory, instance, status: watch::Sender::default(), calls: Mutex::default() }
    }

    /// How the host stands with its collector, now and from now on.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.subscribe()
    }

    /// The collector that this host is enrolled with; empty if there is none that can be read.
    pub fn collector(&self) -> String {
        let enrolment = Enrolment::load(&self.directory).ok().flatten();
        enrolment.map(|enrolment| enrolment.collector.to_string()).unwrap_or_default()
    }

    /// What tells this run of the agent from any other.
    pub fn instance(&self) -> [u8; 16] {
        self.instance
    }

    /// The lease that was given last.
    pub fn lease(&self) -> Option<Lease> {
        enrolment::load_lease(&self.directory)
    }

    /// Keeps a new lease: the collector takes the host in.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn admitted(&self, lease: &Lease) -> Result<(), EnrolmentError> {
        enrolment::store_lease(&self.directory, lease)?;
        let since = sys::now().wall;
        self.status.send_if_modified(|status| {
            let LinkStatus::Enrolled { collector, state, .. } = status else { return false };
            if !matches!(state, LinkState::NotConnected { .. }) {
                return false;
            }
            tracing::info!(collector, "connected with the collector");
            *state = LinkState::Connected { since };
            true
        });
        Ok(())
    }

    /// The collector does not take the host in.
    pub fn refused(&self, why: &str) {
        tracing::error!(why, "the collector refuses this host; it goes on recording");
        self.status.send_if_modified(|status| {
            let LinkStatus::Enrolled { state, .. } = status else { return false };
            *state = LinkState::Refused { why: why.to_owned() };
            true
        });
    }

    pub(super) fn not_enrolled(&self) {
        self.status.send_if_modified(|status| std::mem::take(status) != LinkStatus::NotEnrolled);
    }

    /// Both ends have proven who they are; whether the host is taken in comes next.
    pub(super) fn reached(&self, enrolment: &Enrolment) {
        self.set(
            enrolment,
            LinkState::NotConnected { why: "the collector has not taken it in yet".to_owned() },
        );
    }

    pub(super) fn lost(&self, enrolment: &Enrolment, why: String) {
        // What the collector said of the host says more than that it hung up then.
        if matches!(self.status.borrow().state(), Some(LinkState::Refused { .. })) {
            return;
        }
        tracing::info!(collector = %enrolment.collector, why, "not connected with the collector");
        self.set(enrolment, LinkState::NotConnected { why });
    }

    /// The collector, which dials this host, is waited for.
    pub(super) fn awaited(&self, enrolment: &Enrolment) {
        self.set(
            enrolment,
            LinkState::NotConnected { why: "the collector has not dialled it yet".to_owned() },
        );
    }

    /// The collector has dialled this host. As long as what is returned lives, it is connected.
    pub(super) fn dialled(self: &Arc<Self>, enrolment: Enrolment) -> Dialled {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls += 1;
        if *calls == 1 {
            self.set(&enrolment, LinkState::Connected { since: sys::now().wall });
        }
        Dialled { membership: Arc::clone(self), enrolment }
    }

    pub(super) fn renewed(&self, enrolment: &Enrolment) {
        self.status.send_if_modified(|status| {
            let LinkStatus::Enrolled { certificate_until, .. } = status else { return false };
            *certificate_until = enrolment.expires;
            true
        });
    }

    fn set(&self, enrolment: &Enrolment, state: LinkState) {
        self.status.send_replace(LinkStatus::Enrolled {
            collector: enrolment.collector.to_string(),
            certificate_until: enrolment.expires,
            state,
        });
    }
}

/// A connection that the collector has made.
#[derive(Debug)]
pub(super) struct Dialled {
    membership: Arc<Membership>,
    enrolment: Enrolment,
}

impl Drop for Dialled {
    fn drop(&mut self) {
        let mut calls = self.membership.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls -= 1;
        if *calls == 0 {
            self.membership.lost(&self.enrolment, "the collector ended the connection".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrolment() -> Enrolment {
        Enrolment {
            collector: "collector.example:8440".parse().unwrap(),
            chain: Vec::new(),
            authorities: Vec::new(),
            issued: Timestamp::from_secs(1),
            expires: Timestamp::from_secs(9),
        }
    }

    #[test]
    fn the_owner_is_shown_how_it_stands_and_why() {
        let directory = tempfile::tempdir().unwrap();
        let membership = Membership::new(directory.path().to_owned());
        let status = membership.status();
        assert_eq!(*status.borrow(), LinkStatus::NotEnrolled);

        membership.reached(&enrolment());
        let is_connected = || matches!(status.borrow().state(), Some(LinkState::Connected { .. }));
        assert!(!is_connected());
        membership.admitted(&[3; 16]).unwrap();
        assert_eq!(membership.lease(), Some([3; 16]));
        assert!(is_connected());

        membership.renewed(&Enrolment { expires: Timestamp::from_secs(99), ..enrolment() });
        let LinkStatus::Enrolled { collector, certificate_until, .. } = status.borrow().clone() else {
            panic!("it is enrolled")
        };
        assert_eq!((&*collector, certificate_until), ("collector.example:8440", Timestamp::from_secs(99)));

        let why = |why: &str| LinkState::NotConnected { why: why.to_owned() };
        membership.lost(&enrolment(), "the cable is out".to_owned());
        assert_eq!(status.borrow().state(), Some(&why("the cable is out")));

        // The refusal is what stays, and not that the collector hung up after it.
        membership.refused("a copy");
        membership.lost(&enrolment(), "it hung up".to_owned());
        assert_eq!(status.borrow().state(), Some(&LinkState::Refused { why: "a copy".to_owned() }));
        membership.reached(&enrolment());
        assert_eq!(status.borrow().state(), Some(&why("the collector has not taken it in yet")));
    }

    #[test]
    fn who_is_dialled_is_connected_as_long_as_somebody_is_there() {
        let membership = Arc::new(Membership::new(PathBuf::new()));
        let status = membership.status();
        let is_connected = || matches!(status.borrow().state(), Some(LinkState::Connected { .. }));
        membership.awaited(&enrolment());
        assert!(!is_connected());
        let one = membership.dialled(enrolment());
        let other = membership.dialled(enrolment());
        drop(one);
        assert!(is_connected());
        drop(other);
        assert!(!is_connected());
    }

    #[test]
    fn two_runs_differ() {
        let run = || Membership::new(PathBuf::new()).instance();
        assert_ne!(run(), run());
    }
}
