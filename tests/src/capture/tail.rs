//! Reads an agent's stream, as a collector does.

use std::time::Duration;

use alibi_proto::{
    coverage::Hole,
    event::{Batch, Event},
    host::HostDescription,
    id::HostBoot,
    time::Timestamp,
    transport::{self, MESSAGE_BYTES_MAX},
    wire::{self, recorder_client::RecorderClient, tail_request},
};
use anyhow::{Context as _, Result, bail, ensure};
use tokio::{runtime::Runtime, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Events that are kept; a stream with more is none of ours.
const EVENTS_MAX: usize = 5_000_000;

/// Everything that an agent has, from its first event on, as it comes.
#[derive(Debug)]
pub struct Tail {
    runtime: Runtime,
    batches: Streaming<wire::TailResponse>,
    /// The stream lives as long as this end of it.
    _requests: mpsc::Sender<wire::TailRequest>,
    /// Who the host is.
    pub host: HostDescription,
    /// What has come, in order.
    pub events: Vec<Event>,
    /// What is missing.
    pub holes: Vec<Hole>,
    /// Everything up to here has come.
    pub watermark: Option<Timestamp>,
}

impl Tail {
    /// Follows the agent at `address`, as it was printed by it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn open(address: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, receiver) = mpsc::channel(1);
        let (host, batches) = runtime.block_on(async {
            let channel = transport::channel(&address.parse()?)?;
            let mut client = RecorderClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let host = client.describe(wire::DescribeRequest {}).await?.into_inner().try_into()?;
            let start = tail_request::Request::Start(wire::Start::default());
            requests.send(wire::TailRequest { request: Some(start) }).await?;
            let batches = client.tail(ReceiverStream::new(receiver)).await?.into_inner();
            anyhow::Ok((host, batches))
        })?;
        let (events, holes, watermark) = (Vec::new(), Vec::new(), None);
        Ok(Self { runtime, batches, _requests: requests, host, events, holes, watermark })
    }

    /// What uids are derived from.
    pub fn boot(&self) -> HostBoot {
        HostBoot::new(self.host.host, &self.host.boot_id)
    }

    /// Reads on until `enough`.
    ///
    /// # Errors
    /// When it is not so within a minute, or the stream breaks.
    pub fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !enough(self) {
            let next = self
                .runtime
                .block_on(async { tokio::time::timeout_at(deadline, self.batches.message()).await });
            let Ok(next) = next else { bail!("{what} did not come within {} s", PATIENCE.as_secs()) };
            self.take(next?.with_context(|| format!("the stream ended before {what}"))?.try_into()?)?;
        }
        Ok(())
    }

    /// Reads on until everything up to `time` has come.
    ///
    /// # Errors
    /// When it has not within a minute, or the stream breaks.
    pub fn until_known(&mut self, time: Timestamp) -> Result<()> {
        self.until(&format!("everything up to {time}"), |tail| {
            tail.watermark.is_some_and(|known| known >= time)
        })
    }

    fn take(&mut self, batch: Batch) -> Result<()> {
        // Holes and events are all that there is: one number follows the other.
        let mut last = self.events.last().map_or(0, |event| event.seq.0);
        if let Some(hole) = &batch.hole {
            last = last.max(hole.last.0);
        }
        for event in &batch.events {
            ensure!(event.seq.0 == last + 1, "event {} follows {last}", event.seq.0);
            last = event.seq.0;
        }
        self.holes.extend(batch.hole);
        self.events.extend(batch.events);
        self.watermark = self.watermark.max(batch.watermark);
        ensure!(self.events.len() <= EVENTS_MAX, "more than {EVENTS_MAX} events");
        Ok(())
    }
}
