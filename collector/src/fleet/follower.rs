//! One agent's follower: dial, describe, tail, commit, acknowledge; and again, for ever.

use std::{sync::Arc, time::Duration};

use alibi_proto::{
    clock::ClockReading,
    convert::ConvertError,
    event::Batch,
    host::HostDescription,
    id::{Cursor, Epoch, HostId, Seq},
    time::Timestamp,
    transport::{self, Address, MESSAGE_BYTES_MAX},
    wire::{self, recorder_client::RecorderClient, tail_request},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::{
    Live,
    clock::{OwnClock, SAMPLES_FIRST, SAMPLES_LATER, Standing, measure},
};
use crate::{
    clock,
    store::{Progress, ResumePoint, Store, StoreError},
};

/// The pause before the first new try, and the longest one. Each try doubles it; the pause taken is anywhere between
/// half of it and all of it, so that many followers do not come back at once.
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

/// Follows the agent at `address` until it is aborted.
pub(super) async fn follow(address: Address, store: Arc<dyn Store>, live: watch::Sender<Live>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let began = Instant::now();
        let ended = follow_once(&address, &store, &live).await;
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
            tracing::error!(%address, trouble, "not connected");
        } else {
            tracing::info!(%address, trouble, "not connected");
        }
        live.send_modify(|live| {
            live.connected = false;
            live.trouble = Some(trouble);
        });
        if began.elapsed() >= GOOD_CONNECTION {
            backoff = BACKOFF_FIRST;
        }
        tokio::time::sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

async fn follow_once(
    address: &Address,
    store: &Arc<dyn Store>,
    live: &watch::Sender<Live>,
) -> Result<(), FollowError> {
    let channel = transport::channel(address)?;
    let mut client = RecorderClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let description = describe(&mut client).await?;
    let mut own = OwnClock::new();
    // Before anything that it sends can be believed to be of a time.
    let mut standing = Standing::default();
    let reading = measure(&mut client, SAMPLES_FIRST).await?;
    let mut boot_id = reading.as_ref().map(|reading| reading.boot_id.clone());
    reading.iter().for_each(|reading| standing.measured(reading));
    let progress = note(address, store, description.clone(), reading).await?;
    let known_until = known_until(store, description.host, progress).await?;

    let (requests, receiver) = mpsc::channel(ACKNOWLEDGEMENTS_QUEUED_MAX);
    let ResumePoint { next, anchors } = resume_point(store, description.host, description.epoch).await?;
    let anchors = anchors.into_iter().map(Into::into).collect();
    let start = wire::Start { next: Some(next.into()), anchors };
    send(&requests, tail_request::Request::Start(start)).await?;
    let mut batches = client.tail(ReceiverStream::new(receiver)).await?.into_inner();
    tracing::info!(%address, host = %description.host, "following");
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
        if let Some(resumption) = message.resumption.take().filter(|_| is_first)
            && resumption.standing() == wire::Standing::Other
        {
            // Nothing is passed over on an agent's word: what it leaves out is missed in what it sends.
            let seq = Seq(resumption.from_seq).clamp(Seq::FIRST, next.seq);
            diverge(store, description.host, Cursor { seq, ..next }, REWOUND, now).await?;
        }
        is_first = false;
        if own.was_set(now) {
            // All that was measured was against another time.
            own = OwnClock::new();
            standing = Standing::default();
            let reading = measure(&mut client, SAMPLES_LATER).await?;
            reading.iter().for_each(|reading| standing.measured(reading));
            note(address, store, description.clone(), reading).await?;
        }
        let batch = standing.credible(Batch::try_from(message)?, now);
        if batch.epoch != description.epoch {
            return Err(FollowError::RingChanged);
        }
        let (settled, caught_up) = (batch.settles(), batch.watermark.is_some());
        let progress = match commit(store, description.host, batch, now).await {
            Err(FollowError::Store(StoreError::Broken { seq })) => {
                // It is taken for what it is from there on, the next time.
                let from = Cursor { seq: Seq(seq), ..next };
                diverge(store, description.host, from, CONTRADICTED, now).await?;
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
            note(address, store, again, reading).await?;
        }
    }
}

async fn describe(client: &mut RecorderClient<Channel>) -> Result<HostDescription, FollowError> {
    let response = tokio::time::timeout(DESCRIBE_TIMEOUT, client.describe(wire::DescribeRequest {})).await;
    let response = response.map_err(|_| FollowError::Silent)??;
    Ok(response.into_inner().try_into()?)
}

async fn note(
    address: &Address,
    store: &Arc<dyn Store>,
    description: HostDescription,
    reading: Option<ClockReading>,
) -> Result<Progress, FollowError> {
    let (store, address) = (Arc::clone(store), address.to_string());
    blocking(move || store.describe(&address, &description, reading.as_ref(), clock::now())).await
}

async fn commit(
    store: &Arc<dyn Store>,
    host: HostId,
    batch: Batch,
    now: Timestamp,
) -> Result<Progress, FollowError> {
    let store = Arc::clone(store);
    blocking(move || store.commit(host, &batch, now)).await
}

async fn resume_point(
    store: &Arc<dyn Store>,
    host: HostId,
    epoch: Epoch,
) -> Result<ResumePoint, FollowError> {
    let store = Arc::clone(store);
    blocking(move || store.resume_point(host, epoch)).await
}

/// The host tells another past than it did.
async fn diverge(
    store: &Arc<dyn Store>,
    host: HostId,
    from: Cursor,
    reason: &'static str,
    now: Timestamp,
) -> Result<(), FollowError> {
    tracing::error!(%host, from = from.seq.0, reason, "the chain of a host is broken");
    let store = Arc::clone(store);
    blocking(move || store.diverge(host, from, reason, now)).await.map(drop)
}

/// How far a host's stream is known, by the collector's clock.
async fn known_until(
    store: &Arc<dyn Store>,
    host: HostId,
    progress: Progress,
) -> Result<Option<Timestamp>, FollowError> {
    let Some(until) = progress.known_until else { return Ok(None) };
    let store = Arc::clone(store);
    blocking(move || store.clock(host).map(|history| Some(history.clock(clock::now()).known_until(until))))
        .await
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FollowError> {
    Ok(tokio::task::spawn_blocking(call).await.map_err(|_| FollowError::Interrupted)??)
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
