//! Netlink: what the kernel tells without a program loaded into it. The fallback where BPF cannot be used.

use std::io;

use rustix::thread::{CapabilitySet, capabilities};

use super::Sensor;
use crate::capture::{CaptureError, Options};

mod connections;

pub(super) use connections::{OpenConnection, open_now};
pub(super) mod message;
mod processes;
pub(super) mod socket;
#[cfg(test)]
pub(super) mod testing;

pub(super) const NAME: &str = "netlink";

/// The sensors.
///
/// # Errors
/// When the agent lacks the right, or the kernel the feature; the error says which.
pub(super) fn open(options: &Options) -> Result<Vec<Box<dyn Sensor>>, CaptureError> {
    check_rights()?;
    let processes = processes::Processes::open()?;
    let connections = connections::Connections::open(options.period, options.own_network_namespace)?;
    Ok(vec![Box::new(processes), Box::new(connections)])
}

/// Some of it works without, and would show the agent's own user and nothing else: then another source is better.
fn check_rights() -> Result<(), CaptureError> {
    let rights = [
        (CapabilitySet::NET_ADMIN, "be told of processes"),
        (CapabilitySet::SYS_ADMIN, "look into network namespaces"),
        (CapabilitySet::SYS_PTRACE, "see who holds a socket"),
        (CapabilitySet::DAC_READ_SEARCH, "see the open files of other users"),
    ];
    let refused = |what: &'static str, source: io::Error| CaptureError::Kernel {
        what,
        source,
        way_out: "it takes root, or the capabilities CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE and \
                  CAP_DAC_READ_SEARCH",
    };
    let held =
        capabilities(None).map_err(|problem| refused("see the agent's rights", problem.into()))?.effective;
    match rights.into_iter().find(|(right, _)| !held.contains(*right)) {
        Some((_, what)) => Err(refused(what, io::ErrorKind::PermissionDenied.into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use crate::{
        capture::{Choice, Fact, Options, Outlet, open},
        sys,
    };

    #[test]
    fn the_source_reports_what_there_is_and_then_goes_on() {
        let options = Options {
            period: std::time::Duration::from_millis(100),
            buffer_bytes: None,
            own_network_namespace: false,
        };
        let source = open(&Choice::Netlink, &options).unwrap();
        assert_eq!(source.describe().name, "netlink");
        let (reports, received) = mpsc::sync_channel(64);
        let (stop, stopped) = mpsc::channel();
        let running = std::thread::spawn(move || source.run(Outlet::new(reports, stopped)));
        let first = received.recv().unwrap();
        let is_own = |fact: &Fact| matches!(fact, Fact::ProcessStarted(process) if process.process.pid == std::process::id());
        assert!(first.observations.iter().any(|observation| is_own(&observation.fact)));
        let is_loopback = |fact: &Fact| matches!(fact, Fact::LinkChanged(link) if link.interface == "lo");
        assert!(first.observations.iter().any(|observation| is_loopback(&observation.fact)));
        let mut seen_until = first.seen_until;
        for _ in 0..5 {
            let report = received.recv().unwrap();
            let times: Vec<u64> =
                report.observations.iter().map(|observation| observation.at.boot_ns).collect();
            assert!(times.is_sorted() && times.iter().all(|at| *at <= report.seen_until.boot_ns));
            assert!(report.seen_until.boot_ns > seen_until.boot_ns);
            seen_until = report.seen_until;
        }
        assert!(seen_until.boot_ns <= sys::now().boot_ns);
        drop(stop);
        drop(received);
        running.join().unwrap().unwrap();
    }
}
