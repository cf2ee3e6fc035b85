//! One connection with an agent: describe, tail, commit, acknowledge, until it ends; and, with one that is dialled, again,
//! for ever.

use std::{sync::Arc, time::Duration};

use alibi_proto::{
    address::Address,
    backoff::Backoff,
    clock::ClockReading,
    convert::ConvertError,
    dial::{self, DialError, Proxy},
    event::Batch,
    host::HostDescription,
    id::{Cursor, Epoch, HostId, Seq},
    time::Timestamp,
    tls::Peer,
    transport::{self, MESSAGE_BYTES_MAX},
    wire::{self, recorder_client::RecorderClient, tail_request},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::{
    Live, Shared,
    clock::{OwnClock, SAMPLES_FIRST, SAMPLES_LATER, Standing, measure},
};
use crate::{
    clock,
    store::{Progress, ResumePoint, StoreError},
};

/// The pause before the first new try, and the longest one.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A connection that lasted this long was a good one: the backoff begins anew after it.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// An agent says something at each look; one that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long an agent may take to describe itself.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an agent is asked again who it is and who uses it.
const DESCRIBE_INTERVAL: Duration = Duration::from_secs(30);
/// Acknowledgements that wait for a slow agent.
const ACKNOWLEDGEMENTS_QUEUED_MAX: usize = 16;

/// Reasons of a chain that is broken.
const REWOUND: &str = "the host's record is not the one that was followed: it was rewound, restored from a copy, or \
    written anew";
const CONTRADICTED: &str =
    "what the host told does not continue what it had told before: its record was changed";

/// An agent that is connected.
pub(super) struct Session {
    /// Under what it is listed.
    pub(super) place: String,
    /// The connection.
    pub(super) channel: Channel,
    /// Who it has proven to be; none on this machine, where nobody proves anything.
    pub(super) proven: Option<HostId>,
    /// Held while something of the host is written: the last write of a session that was ended may be under way still.
    pub(super) turn: Turn,
}

/// Whose turn it is to write of a host.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

/// Follows the agent at `address` until it is aborted.
pub(super) async fn follow(address: Address, turn: Turn, shared: Shared, live: watch::Sender<Live>) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let began = Instant::now();
        let ended = match dial(&address, &shared).await {
            Ok((channel, proven)) => {
                let place = address.to_string();
                Session { place, channel, proven, turn: Arc::clone(&turn) }.run(&shared, &live).await
            }
            Err(error) => Err(error),
        };
        tell_end(&address.to_string(), ended, &live);
        if began.elapsed() >= GOOD_CONNECTION {
            backoff.reset();
        }
        tokio::time::sleep(backoff.pause(fastrand::f64())).await;
    }
}

/// On this machine nobody proves who they are; elsewhere both do.
pub(super) async fn dial(
    address: &Address,
    shared: &Shared,
) -> Result<(Channel, Option<HostId>), FollowError> {
    match address {
        Address::Tcp(remote) if !address.is_local() => {
            let config = shared.keyring.to_agents();
            let (stream, peer) = dial::connect_tls(remote, &Proxy::none(), config).await?;
            let Peer::Host(host) = peer else { return Err(FollowError::NoHost) };
            Ok((transport::channel_over(stream).await?, Some(host)))
        }
        local => Ok((transport::channel(local)?, None)),
    }
}

/// Says why an agent is not followed any more.
pub(super) fn tell_end(place: &str, ended: Result<(), FollowError>, live: &watch::Sender<Live>) {
    let is_ours = matches!(
        ended,
        Err(FollowError::Store(
            StoreError::Full { .. } | StoreError::Unusable { .. } | StoreError::Damaged { .. }
        ))
    );
    let trouble = match ended {
        Ok(()) => "the agent ended the stream".to_owned(),
        Err(error) => error.to_string(),
    };
    if is_ours {
        tracing::error!(place, trouble, "not connected");
    } else {
        tracing::info!(place, trouble, "not connected");
    }
    live.send_modify(|live| {
        live.connected = false;
        live.trouble = Some(trouble);
    });
}

impl Session {
    /// Follows the agent until the connection ends.
    pub(super) async fn run(self, shared: &Shared, live: &watch::Sender<Live>) -> Result<(), FollowError> {
        let mut client =
            RecorderClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let description = describe(&mut client).await?;
        self.check_host(description.host, shared)?;
        let mut own = OwnClock::new();
        // Before anything that it sends can be believed to be of a time.
        let mut standing = Standing::default();
        let reading = measure(&mut client, SAMPLES_FIRST).await?;
        let mut boot_id = reading.as_ref().map(|reading| reading.boot_id.clone());
        reading.iter().for_each(|reading| standing.measured(reading));
        let progress = self.note(shared, description.clone(), reading).await?;
        let known_until = self.known_until(shared, description.host, progress).await?;

        let (requests, receiver) = mpsc::channel(ACKNOWLEDGEMENTS_QUEUED_MAX);
        let ResumePoint { next, anchors } =
            self.resume_point(shared, description.host, description.epoch).await?;
        let anchors = anchors.into_iter().map(Into::into).collect();
        let start = wire::Start { next: Some(next.into()), anchors };
        send(&requests, tail_request::Request::Start(start)).await?;
        let mut batches = client.tail(ReceiverStream::new(receiver)).await?.into_inner();
        tracing::info!(place = self.place, host = %description.host, "following");
        live.send_modify(|live| {
            live.connected = true;
            live.trouble = None;
            live.known_until = known_until;
        });

        let mut is_first = true;
        // None until the first watermark: by then the agent has seen who uses the host, and is asked again.
        let mut described: Option<Instant> = None;
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, batches.message()).await;
            let Some(mut message) = message.map_err(|_| FollowError::Silent)?? else { return Ok(()) };
            let now = clock::now();
            self.check_host(description.host, shared)?;
            if let Some(resumption) = message.resumption.take().filter(|_| is_first)
                && resumption.standing() == wire::Standing::Other
            {
                // Nothing is passed over on an agent's word: what it leaves out is missed in what it sends.
                let seq = Seq(resumption.from_seq).clamp(Seq::FIRST, next.seq);
                self.diverge(shared, description.host, Cursor { seq, ..next }, REWOUND, now).await?;
            }
            is_first = false;
            if own.was_set(now) {
                // All that was measured was against another time.
                own = OwnClock::new();
                standing = Standing::default();
                let reading = measure(&mut client, SAMPLES_LATER).await?;
                reading.iter().for_each(|reading| standing.measured(reading));
                self.note(shared, description.clone(), reading).await?;
            }
            let batch = standing.credible(Batch::try_from(message)?, now);
            if batch.epoch != description.epoch {
                return Err(FollowError::RingChanged);
            }
            let (settled, caught_up) = (batch.settles(), batch.watermark.is_some());
            let progress = match self.commit(shared, description.host, batch, now).await {
                Err(FollowError::Store(StoreError::Broken { seq })) => {
                    // It is taken for what it is from there on, the next time.
                    let from = Cursor { seq: Seq(seq), ..next };
                    self.diverge(shared, description.host, from, CONTRADICTED, now).await?;
                    return Err(FollowError::Store(StoreError::Broken { seq }));
                }
                committed => committed?,
            };
            let known_until = progress.known_until.map(|until| standing.known_until(until));
            live.send_modify(|live| live.known_until = known_until);
            if let Some(cursor) = settled {
                send(&requests, tail_request::Request::Acknowledge(cursor.into())).await?;
            }
            if caught_up && described.is_none_or(|described| described.elapsed() >= DESCRIBE_INTERVAL) {
                described = Some(Instant::now());
                let again = describe(&mut client).await?;
                if again.host != description.host {
                    return Err(FollowError::HostChanged { was: description.host, is: again.host });
                }
                own = OwnClock::new();
                let reading = measure(&mut client, SAMPLES_LATER).await?;
                if let Some(reading) = &reading {
                    if *boot_id.get_or_insert_with(|| reading.boot_id.clone()) != reading.boot_id {
                        return Err(FollowError::RingChanged);
                    }
                    standing.measured(reading);
                }
                self.note(shared, again, reading).await?;
            }
        }
    }
}

async fn describe(client: &mut RecorderClient<Channel>) -> Result<HostDescription, FollowError> {
    let response = tokio::time::timeout(DESCRIBE_TIMEOUT, client.describe(wire::DescribeRequest {})).await;
    let response = response.map_err(|_| FollowError::Silent)??;
    Ok(response.into_inner().try_into()?)
}

impl Session {
    /// Whether the host may be followed over this connection, still.
    fn check_host(&self, host: HostId, shared: &Shared) -> Result<(), FollowError> {
        match self.proven {
            Some(proven) if proven != host => Err(FollowError::Forged { is: proven, says: host }),
            Some(proven) => shared.check_host(proven, clock::now()).map_err(FollowError::NotWelcome),
            None if shared.access.standing(host) != crate::access::host::Standing::Unknown => {
                Err(FollowError::Unproven(host))
            }
            None => Ok(()),
        }
    }

    async fn note(
        &self,
        shared: &Shared,
        description: HostDescription,
        reading: Option<ClockReading>,
    ) -> Result<Progress, FollowError> {
        let (store, place) = (Arc::clone(&shared.store), self.place.clone());
        self.blocking(move || store.describe(&place, &description, reading.as_ref(), clock::now())).await
    }

    /// A backlog waits for its turn among backlogs, so that what happens now elsewhere is not behind it.
    async fn commit(
        &self,
        shared: &Shared,
        host: HostId,
        batch: Batch,
        now: Timestamp,
    ) -> Result<Progress, FollowError> {
        let _turn = match batch.watermark {
            None => Some(shared.backlogs.acquire().await.map_err(|_| FollowError::Interrupted)?),
            Some(_) => None,
        };
        let store = Arc::clone(&shared.store);
        self.blocking(move || store.commit(host, &batch, now)).await
    }

    async fn resume_point(
        &self,
        shared: &Shared,
        host: HostId,
        epoch: Epoch,
    ) -> Result<ResumePoint, FollowError> {
        let store = Arc::clone(&shared.store);
        self.blocking(move || store.resume_point(host, epoch)).await
    }

    /// The host tells another past than it did.
    async fn diverge(
        &self,
        shared: &Shared,
        host: HostId,
        from: Cursor,
        reason: &'static str,
        now: Timestamp,
    ) -> Result<(), FollowError> {
        tracing::error!(%host, from = from.seq.0, reason, "the chain of a host is broken");
        let store = Arc::clone(&shared.store);
        self.blocking(move || store.diverge(host, from, reason, now)).await.map(drop)
    }

    /// How far a host's stream is known, by the collector's clock.
    async fn known_until(
        &self,
        shared: &Shared,
        host: HostId,
        progress: Progress,
    ) -> Result<Option<Timestamp>, FollowError> {
        let Some(until) = progress.known_until else { return Ok(None) };
        let store = Arc::clone(&shared.store);
        self.blocking(move || {
            store.clock(host).map(|history| Some(history.clock(clock::now()).known_until(until)))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, FollowError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let work = move || {
            let done = call();
            drop(turn);
            done
        };
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| FollowError::Interrupted)??)
    }
}

async fn send(
    requests: &mpsc::Sender<wire::TailRequest>,
    request: tail_request::Request,
) -> Result<(), FollowError> {
    let request = wire::TailRequest { request: Some(request) };
    requests.send(request).await.map_err(|_| FollowError::Interrupted)
}

/// Why an agent is not followed just now.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error("cannot be dialled: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("what answers there is not a host")]
    NoHost,
    #[error("it has proven that it is the host {is}, and says that it is {says}")]
    Forged { is: HostId, says: HostId },
    #[error("it says that it is the host {0}, which is enrolled, and does not prove it")]
    Unproven(HostId),
    #[error("{0}")]
    NotWelcome(String),
    #[error("{}", status_in_words(.0))]
    Status(#[from] Status),
    #[error("it sent what no agent sends: {0}")]
    Convert(#[from] ConvertError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("it has been silent for too long")]
    Silent,
    #[error("it says that it is the host {is} now, and was {was}")]
    HostChanged { was: HostId, is: HostId },
    #[error("another agent, or another ring, answers there now")]
    RingChanged,
    #[error("the work on it was interrupted")]
    Interrupted,
}

fn status_in_words(status: &Status) -> String {
    match status.code() {
        tonic::Code::Unavailable => {
            let cause = std::error::Error::source(status).map(deepest).unwrap_or_default();
            format!("it cannot be reached: {}", if cause.is_empty() { status.message() } else { &cause })
        }
        tonic::Code::FailedPrecondition => {
            format!("its ring has been rewound, so it is not believed: {}", status.message())
        }
        tonic::Code::Unimplemented => "what answers there is no agent".to_owned(),
        // Not said by the peer, but by what reads from it.
        _ if std::error::Error::source(status).is_some() => {
            let cause = std::error::Error::source(status).map(deepest).unwrap_or_default();
            format!("the connection with what answers there broke: {cause}")
        }
        code => format!("it answers with an error ({code:?}): {}", status.message()),
    }
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
