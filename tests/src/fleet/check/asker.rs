//! Puts questions to the collector, on its own socket, and takes the time.

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use alibi_proto::{
    address::Address,
    question::Answer,
    time::Timestamp,
    transport::{self, MESSAGE_BYTES_MAX},
    wire::{self, analyst_client::AnalystClient},
};
use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::Asked;
use crate::fleet::model::number_of;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks how far the hosts are known.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// An analyst.
pub struct Asker {
    runtime: Runtime,
    client: AnalystClient<Channel>,
}

impl Asker {
    /// At the collector whose own socket is this.
    ///
    /// # Errors
    /// When there is no way to it.
    pub fn at(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = {
            let _in_runtime = runtime.enter();
            transport::channel(&Address::Unix(socket.to_owned()))?
        };
        let client = AnalystClient::new(channel).max_decoding_message_size(4 * MESSAGE_BYTES_MAX);
        Ok(Self { runtime, client })
    }

    /// The answer, and how long it took to come.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&self, asked: &Asked) -> Result<(Answer, Duration)> {
        self.who(asked.to_wire(), asked)
    }

    /// The same of any question, which is called `asked`.
    ///
    /// # Errors
    /// When there is none.
    pub fn who(&self, request: wire::WhoRequest, asked: &impl fmt::Display) -> Result<(Answer, Duration)> {
        let mut client = self.client.clone();
        let began = Instant::now();
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(ANSWER_TIMEOUT, client.who(request)).await });
        let took = began.elapsed();
        let answer = answer.with_context(|| format!("no answer to {asked} within {ANSWER_TIMEOUT:?}"))?;
        let answer = answer.with_context(|| format!("{asked} was not answered"))?;
        Ok((Answer::try_from(answer.into_inner()).context("the answer cannot be read")?, took))
    }

    /// Waits until of each of these laptops everything up to `instant` is known.
    ///
    /// # Errors
    /// When that takes longer than `patience`.
    pub fn await_known(
        &self,
        laptops: std::ops::Range<u32>,
        instant: Timestamp,
        patience: Duration,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut client = self.client.clone();
            let hosts =
                self.runtime.block_on(client.hosts(wire::HostsRequest { scope: None }))?.into_inner().hosts;
            let is_known = |host: &&wire::HostStatus| {
                let name = host.description.as_ref().map_or("", |description| description.name.as_str());
                number_of(name).is_some_and(|number| laptops.contains(&number))
                    && host.known_until_ns.is_some_and(|until| until >= instant.as_nanos())
            };
            let known = hosts.iter().filter(is_known).count();
            if known == laptops.len() {
                return Ok(());
            }
            ensure!(
                began.elapsed() < patience,
                "after {patience:?}, {known} of {} hosts are known until {instant}",
                laptops.len()
            );
            self.runtime.block_on(async { tokio::time::sleep(LOOK_INTERVAL).await });
        }
    }
}
