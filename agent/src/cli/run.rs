//! `alibi-agent run`.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use alibi_proto::{
    data_directory::{DataDirectory, write_whole},
    id::{Epoch, HostBoot, HostId},
    transport,
};
use anyhow::{Context as _, Result};

use self::{doors::Doors, watch::keep_told};
use super::{ADDRESS, ASKED, DATA_FORMAT, EXECUTABLES, PROGRAM, RING, RunArgs, SOCKET};
use crate::{
    boots,
    capture::{self, CaptureError, Choice, Outlet, Source},
    enrich::{executable::Identifier, redaction::Redactor},
    identity,
    ledger::Past,
    link::{Link, Membership},
    owner::WhoAsked,
    pipeline::{Limits, Pipeline},
    recorder::{self, Acknowledged, Progress, REPORTS_QUEUED_MAX, Recorder},
    ring::{Options, Recovery, Ring},
    server::{Recorded, Service},
    sys::{
        self,
        service::{News, Supervisor},
    },
};

mod doors;
mod owner;
mod watch;

/// How long followers may take to fetch the last events when the agent stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(arguments: RunArgs) -> Result<u8> {
    // Everything that can be refused is asked first, so that a refusal leaves nothing behind.
    let how = capture::Options {
        period: arguments.period,
        buffer_bytes: arguments.bpf_buffer_bytes,
        own_network_namespace: arguments.own_network_namespace,
    };
    let source = capture::open(&arguments.source, &how)?;
    let stop = transport::stop_signal();
    let supervisor = Arc::new(Supervisor::of_this_process());
    let options = Options::within(arguments.ring_bytes);
    let redactor = Redactor::new(arguments.redact.clone()).context("--redact cannot be followed")?;
    options.check().with_context(|| format!("--ring-bytes {} is too little", arguments.ring_bytes))?;
    let proxy = arguments.proxy.proxy()?;
    let doors = Doors::open(arguments.listen.as_ref()).await?;
    let mut directory = DataDirectory::open(&arguments.data, PROGRAM, DATA_FORMAT)?;
    let host = identity::load_or_make(directory.path())?;
    let doors = doors.or_socket(&directory.path().join(SOCKET)).await;
    doors.check(directory.path())?;
    // Before the ring, which does not count as closed cleanly once it is open.
    let address = doors.address()?;
    let address_file = AddressFile::write(directory.path().join(ADDRESS), doors.local_address()?)?;
    let new_epoch = Epoch(sys::now().wall.as_nanos());
    let (ring, recovery) =
        Ring::open(&directory.path().join(RING), options, host, new_epoch, recorder::labels_of)?;

    directory.keep();
    let description = source.describe();
    // Nowhere where the system has no sockets.
    let shown = address.as_deref().map(tracing::field::display);
    tracing::info!(address = shown, %host, source = description.name, "recording");

    // A recording is of another host, or of another time: its executables are not here.
    let identifier = match arguments.source {
        Choice::Replay(_) => None,
        _ => identifier(&directory.path().join(EXECUTABLES)),
    };
    let how = How { identifier, redactor, sync_interval: arguments.sync_interval };
    let (recording, service) = start(host, source, how, ring, &recovery, directory.path())?;
    let service = service.with_asked(WhoAsked::open(&directory.path().join(ASKED)));
    let owner = owner::tell(&arguments, address.as_deref(), host, &description, &service, directory.path());
    let (stop_serving, stopped) = tokio::sync::watch::channel(false);
    let link = Link { directory: directory.path().to_owned(), proxy, service };
    let mut server = tokio::spawn(doors.serve(link, stopped));

    let mut recording = recording;
    let told = match address {
        Some(address) => format!("recording by {}, serving at {address}", description.name),
        None => format!("recording by {}", description.name),
    };
    let telling =
        tokio::spawn(keep_told(Arc::clone(&supervisor), recording.progress.clone(), arguments.period, told));
    tokio::select! {
        () = stop => tracing::info!("stopping"),
        () = supervisor.stop() => tracing::info!("stopping"),
        () = recording.ended() => {}
        served = &mut server => served.context("the server failed")?.context("cannot serve")?,
    }
    telling.abort();
    supervisor.tell(News::Stopping);
    let recorded = recording.stop();
    // Nobody hears it any more where the server has failed.
    let _ = stop_serving.send(true);
    owner.end(&recorded).await;
    // Followers fetch what is left, then their streams end; one that does not read is not waited for.
    if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        server.abort();
    }
    drop(address_file);
    recorded.map(|()| 0)
}

/// Recording goes on without hashes where they cannot be had: no answer about connections depends on them.
fn identifier(known: &Path) -> Option<Identifier> {
    Identifier::open(known)
        .inspect_err(|problem| tracing::warn!(%problem, "recording without hashes of executables"))
        .ok()
}

/// What is done to what is seen before it is safe.
struct How {
    identifier: Option<Identifier>,
    redactor: Redactor,
    sync_interval: Duration,
}

/// The two threads behind the service: source and recorder.
struct Recording {
    stop_source: Option<mpsc::Sender<Infallible>>,
    recorder: Option<JoinHandle<Result<()>>>,
    recorder_ended: tokio::sync::oneshot::Receiver<Infallible>,
    progress: tokio::sync::watch::Receiver<Progress>,
}

fn start(
    host: HostId,
    source: Box<dyn Source>,
    how: How,
    mut ring: Ring,
    recovery: &Recovery,
    directory: &Path,
) -> Result<(Recording, Service)> {
    let facts = sys::host_facts();
    let boot = HostBoot::new(host, &facts.boot_id);
    let this_boot = boots::number(&facts.boot_id);
    // Before anything is recorded in it.
    let epoch = ring.view().epoch();
    let begins = boots::enter(directory, &facts.boot_id, epoch, ring.next_seq(), recovery.boot);
    ring.begin_boot(this_boot);
    let description = source.describe();
    let now = sys::now();
    let mut pipeline = Pipeline::new(
        boot,
        Limits::default(),
        description.clone(),
        ring.next_seq(),
        Past::of(recovery, this_boot, sys::last_restart(now)),
        now,
    )
    .with_redactor(how.redactor);

    recorder::remember(pipeline.ledger(), &ring)?;

    let acknowledged = Acknowledged::default();
    let membership = Arc::new(Membership::new(directory.to_owned()));
    let first = Progress { next_seq: ring.next_seq(), ..Progress::default() };
    let (progress_sender, progress) = tokio::sync::watch::channel(first);
    let recorded = Recorded {
        view: ring.view(),
        progress: progress.clone(),
        acknowledged: acknowledged.clone(),
        boots: begins.into(),
    };
    let service = Service::new(host, facts, description, recorded, membership);
    let recorder = Recorder::new(pipeline, ring, recovery.recorded_until, acknowledged, progress_sender)
        .with_sync_interval(how.sync_interval);

    let (reports, queue) = mpsc::sync_channel(REPORTS_QUEUED_MAX);
    let (stop_source, stop) = mpsc::channel();
    let mut outlet = Outlet::new(reports, stop);
    if let Some(identifier) = how.identifier {
        outlet = outlet.with_identifier(identifier);
    }
    let source_thread = thread::Builder::new()
        .name("source".into())
        .spawn(move || source.run(outlet))
        .context("no thread")?;
    let (ended, recorder_ended) = tokio::sync::oneshot::channel::<Infallible>();
    let recorder = thread::Builder::new()
        .name("recorder".into())
        .spawn(move || {
            let _ended = ended;
            let mut failure = None;
            let why = || match source_thread.join() {
                Ok(Ok(())) => "the agent was stopped".to_owned(),
                Ok(Err(error)) => {
                    let reason = error.to_string();
                    failure = Some(error);
                    reason
                }
                Err(_) => {
                    failure = Some(CaptureError::Panicked);
                    CaptureError::Panicked.to_string()
                }
            };
            recorder.run(&queue, sys::now, why)?;
            failure.map_or(Ok(()), |error| Err(error.into()))
        })
        .context("no thread")?;
    let recording =
        Recording { stop_source: Some(stop_source), recorder: Some(recorder), recorder_ended, progress };
    Ok((recording, service))
}

impl Recording {
    /// Resolves when recording has ended by itself: the source can look no longer.
    async fn ended(&mut self) {
        let _ = (&mut self.recorder_ended).await;
    }

    /// Stops the source, and waits until all that it reported is in the ring, with the stop.
    fn stop(mut self) -> Result<()> {
        drop(self.stop_source.take());
        match self.recorder.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("recording ended"),
            Some(Err(_)) => anyhow::bail!("the recorder panicked"),
            None => Ok(()),
        }
    }
}

/// The file that tells local commands where the running agent serves; gone when dropped.
struct AddressFile(PathBuf);

impl AddressFile {
    fn write(path: PathBuf, address: Option<String>) -> Result<Self> {
        if let Some(address) = address {
            write_whole(&path, address.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Self(path))
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        // One that stays does no harm: a command that gets no answer there reads the ring itself.
        let _ = fs::remove_file(&self.0);
    }
}
