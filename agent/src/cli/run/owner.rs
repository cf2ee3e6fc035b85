//! What the owner of this machine is told while the agent runs.

use std::{path::Path, time::Duration};

use alibi_proto::{command_line::in_one_line, host::SourceDescription, id::HostId};
use anyhow::Result;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    cli::RunArgs,
    owner::{Facts, Publisher, Seen},
    server::Service,
    sys,
};

/// How long the last word may take.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Tells the owner, until it is ended.
pub(super) struct Telling {
    ended: oneshot::Sender<String>,
    task: JoinHandle<()>,
}

/// Begins to tell, into the data directory and, for the agent of this system, where everybody may read it.
pub(super) fn tell(
    arguments: &RunArgs,
    address: Option<&str>,
    host: HostId,
    source: &SourceDescription,
    service: &Service,
    private: &Path,
) -> Telling {
    let (pid, sys::HostFacts { name, boot_id, .. }) = (std::process::id(), sys::host_facts());
    let facts = Facts {
        host,
        name,
        boot_id,
        pid,
        process_start: sys::process_start(pid),
        started: sys::now().wall,
        serves: address.map(str::to_owned),
        source: source.clone(),
        period: arguments.period,
        ring_bytes_max: arguments.ring_bytes,
        own_rules: arguments.redact.iter().map(ToString::to_string).collect(),
    };
    let is_of_the_system = sys::is_privileged() && arguments.data == sys::default_data_directory();
    let public = is_of_the_system.then(sys::public_directory);
    let seen = Seen {
        progress: service.recorded().progress.clone(),
        view: service.recorded().view.clone(),
        link: service.membership.status(),
        asked: service.who_asked().clone(),
    };
    let publisher = Publisher::new(facts, seen, private, public.as_deref());
    let (ended, hears_of_end) = oneshot::channel();
    Telling { ended, task: tokio::spawn(publisher.run(hears_of_end)) }
}

impl Telling {
    /// The recording has ended so.
    pub(super) async fn end(self, recorded: &Result<()>) {
        let reason = match recorded {
            Ok(()) => "it was stopped".to_owned(),
            Err(problem) => in_one_line(problem.as_ref()),
        };
        // A disk that is stuck keeps nothing from ending.
        if self.ended.send(reason).is_ok() {
            let _ = tokio::time::timeout(LAST_WORD_TIMEOUT, self.task).await;
        }
    }
}
