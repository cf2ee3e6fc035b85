//! How the host stands with its collector, as its owner is shown it.

use std::path::PathBuf;

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
    /// It has one, which it is not connected with just now.
    NotConnected {
        /// Where the collector is.
        collector: String,
        /// Why not.
        why: String,
        /// Until when the host's certificate is valid.
        certificate_until: Timestamp,
    },
    /// It is connected.
    Connected {
        /// Where the collector is.
        collector: String,
        /// Since when.
        since: Timestamp,
        /// Until when the host's certificate is valid.
        certificate_until: Timestamp,
    },
    /// The collector does not take it in.
    Refused {
        /// Where the collector is.
        collector: String,
        /// Why not.
        why: String,
    },
}

/// What the host shows the collector, and what it is told in return.
#[derive(Debug)]
pub struct Membership {
    directory: PathBuf,
    /// New at each start: two that run have two.
    instance: [u8; 16],
    status: watch::Sender<LinkStatus>,
}

impl Membership {
    /// Of the host with this data directory.
    pub fn new(directory: PathBuf) -> Self {
        let instance = std::array::from_fn(|_| fastrand::u8(..));
        Self { directory, instance, status: watch::Sender::default() }
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
            let LinkStatus::NotConnected { collector, certificate_until, .. } = status else { return false };
            let (collector, certificate_until) = (std::mem::take(collector), *certificate_until);
            tracing::info!(collector, "connected with the collector");
            *status = LinkStatus::Connected { collector, since, certificate_until };
            true
        });
        Ok(())
    }

    /// The collector does not take the host in.
    pub fn refused(&self, why: &str) {
        tracing::error!(why, "the collector refuses this host; it goes on recording");
        self.status.send_modify(|status| {
            let collector = match std::mem::take(status) {
                LinkStatus::NotEnrolled => String::new(),
                LinkStatus::NotConnected { collector, .. }
                | LinkStatus::Connected { collector, .. }
                | LinkStatus::Refused { collector, .. } => collector,
            };
            *status = LinkStatus::Refused { collector, why: why.to_owned() };
        });
    }

    pub(super) fn not_enrolled(&self) {
        self.status.send_if_modified(|status| std::mem::take(status) != LinkStatus::NotEnrolled);
    }

    /// Both ends have proven who they are; whether the host is taken in comes next.
    pub(super) fn reached(&self, enrolment: &Enrolment) {
        self.set(enrolment, "the collector has not taken it in yet".to_owned());
    }

    pub(super) fn lost(&self, enrolment: &Enrolment, why: String) {
        // What the collector said of the host says more than that it hung up then.
        if matches!(*self.status.borrow(), LinkStatus::Refused { .. }) {
            return;
        }
        tracing::info!(collector = %enrolment.collector, why, "not connected with the collector");
        self.set(enrolment, why);
    }

    pub(super) fn renewed(&self, enrolment: &Enrolment) {
        self.status.send_modify(|status| match status {
            LinkStatus::NotConnected { certificate_until, .. }
            | LinkStatus::Connected { certificate_until, .. } => {
                *certificate_until = enrolment.expires;
            }
            LinkStatus::NotEnrolled | LinkStatus::Refused { .. } => {}
        });
    }

    fn set(&self, enrolment: &Enrolment, why: String) {
        self.status.send_replace(LinkStatus::NotConnected {
            collector: enrolment.collector.to_string(),
            why,
            certificate_until: enrolment.expires,
        });
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
        assert!(matches!(&*status.borrow(), LinkStatus::NotConnected { .. }));
        membership.admitted(&[3; 16]).unwrap();
        assert_eq!(membership.lease(), Some([3; 16]));
        assert!(
            matches!(&*status.borrow(), LinkStatus::Connected { collector, .. } if collector == "collector.example:8440")
        );

        membership.renewed(&Enrolment { expires: Timestamp::from_secs(99), ..enrolment() });
        let until = Timestamp::from_secs(99);
        assert!(
            matches!(&*status.borrow(), LinkStatus::Connected { certificate_until, .. } if *certificate_until == until)
        );

        membership.lost(&enrolment(), "the cable is out".to_owned());
        assert!(
            matches!(&*status.borrow(), LinkStatus::NotConnected { why, .. } if why == "the cable is out")
        );

        // The refusal is what stays, and not that the collector hung up after it.
        membership.refused("a copy");
        membership.lost(&enrolment(), "it hung up".to_owned());
        assert!(matches!(&*status.borrow(), LinkStatus::Refused { why, .. } if why == "a copy"));
        membership.reached(&enrolment());
        assert!(matches!(&*status.borrow(), LinkStatus::NotConnected { .. }));
    }

    #[test]
    fn two_runs_differ() {
        let run = || Membership::new(PathBuf::new()).instance();
        assert_ne!(run(), run());
    }
}
