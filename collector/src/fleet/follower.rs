//! One connection with an agent: describe, tail, commit, acknowledge, until it ends; and, with one that is dialled, again,
//! for ever.

use std::{sync::Arc, time::Duration};

use alibi_proto::{
    address::Address,
    backoff::Backoff,
    convert::ConvertError,
    dial::{self, DialError, Proxy},
    event::Batch,
    frame,
    host::HostDescription,
    id::{Cursor, Epoch, HostId, Seq},
    time::Timestamp,
    tls::Peer,
    transport::{Line, LineError},
    wire::{self, recorder_client::RecorderClient},
};
use tokio::{
    sync::{AcquireError, watch},
    time::Instant,
};
use tonic::Status;

use super::{
    Live, Shared,
    clock::{OwnClock, SAMPLES_FIRST, SAMPLES_LATER, Standing, measure},
    tail::{FREE_BYTES, Received, Tail, TailError},
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
/// How long an agent may take to describe itself.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an agent is asked again who it is and who uses it.
const DESCRIBE_INTERVAL: Duration = Duration::from_secs(30);
/// An agent that was heard just now is not asked for its clock again as it catches up.
const MEASURED_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// What comes at once of what happens now is no more than this, unpacked. More is a backlog.
const LIVE_BYTES_MAX: usize = 256 << 10;

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
    pub(super) line: Line,
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
            Ok((line, proven)) => {
                let place = address.to_string();
                Session { place, line, proven, turn: Arc::clone(&turn) }.run(&shared, &live).await
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
pub(super) async fn dial(address: &Address, shared: &Shared) -> Result<(Line, Option<HostId>), FollowError> {
    match address {
        Address::Tcp(remote) if !address.is_local() => {
            let config = shared.keyring.to_agents();
            let (stream, peer) = dial::connect_tls(remote, &Proxy::none(), config).await?;
            let Peer::Host(host) = peer else { return Err(FollowError::NoHost) };
            Ok((Line::over(stream).await?, Some(host)))
        }
        local => Ok((Line::to_this_machine(local).await?, None)),
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

/// What a follower knows as it follows. There are many of them: what is needed only now and then is asked for again.
struct Following {
    host: HostId,
    epoch: Epoch,
    /// Where the stream was wanted from.
    next: Cursor,
    tail: Tail,
    own: OwnClock,
    standing: Standing,
    /// The boot that the host is in, once its clock was measured.
    boot_id: Option<String>,
    measured: Instant,
    /// None until the first watermark: by then the agent has seen who uses the host, and is asked again.
    described: Option<Instant>,
    /// What came last was a watermark: what comes now has happened since.
    caught_up: bool,
}

impl Session {
    /// Follows the agent until the connection ends.
    pub(super) async fn run(self, shared: &Shared, live: &watch::Sender<Live>) -> Result<(), FollowError> {
        // Of many that come at once, each is given its turn. The rare steps are kept out of what each has in memory.
        let mut following = Box::pin(shared.turns.pace(self.begin(shared, live))).await?;
        let mut is_first = true;
        while let Some(Received { mut message, room }) = following.tail.next().await? {
            let now = clock::now();
            self.check_host(following.host, shared)?;
            if let Some(resumption) = message.resumption.take().filter(|_| is_first)
                && resumption.standing() == wire::Standing::Other
            {
                // Nothing is passed over on an agent's word: what it leaves out is missed in what it sends.
                let next = following.next;
                let seq = Seq(resumption.from_seq).clamp(Seq::FIRST, next.seq);
                let from = Cursor { seq, ..next };
                Box::pin(self.diverge(shared, following.host, from, REWOUND, now)).await?;
            }
            is_first = false;
            if following.own.was_set(now) {
                // All that was measured was against another time.
                following.standing = Standing::default();
                Box::pin(self.look_again(shared, &mut following, true)).await?;
            }
            if message.epoch != following.epoch.0 {
                return Err(FollowError::RingChanged);
            }
            let settled = self.take(shared, &mut following, message, now, live).await?;
            drop(room);
            if let Some(cursor) = settled {
                following.tail.acknowledge(cursor.into()).await?;
            }
            let is_due = following.described.is_none_or(|described| described.elapsed() >= DESCRIBE_INTERVAL);
            if following.caught_up && is_due {
                following.described = Some(Instant::now());
                let measure = following.measured.elapsed() >= MEASURED_AGAIN_AFTER;
                Box::pin(self.look_again(shared, &mut following, measure)).await?;
            }
        }
        Ok(())
    }

    /// All until the stream is open.
    async fn begin(&self, shared: &Shared, live: &watch::Sender<Live>) -> Result<Following, FollowError> {
        let mut client = client(&self.line);
        let description = describe(&mut client).await?;
        let (host, epoch) = (description.host, description.epoch);
        self.check_host(host, shared)?;
        let own = OwnClock::new();
        // Before anything that it sends can be believed to be of a time.
        let mut standing = Standing::default();
        let reading = measure(&mut client, SAMPLES_FIRST).await?;
        let boot_id = reading.as_ref().map(|reading| reading.boot_id.clone());
        reading.iter().for_each(|reading| standing.measured(reading));
        let describing = shared.describing.acquire().await?;
        let (store, place) = (Arc::clone(&shared.store), self.place.clone());
        let begun = self.blocking(move || {
            let progress = store.describe(&place, &description, reading.as_ref(), clock::now())?;
            let clock = progress.known_until.map(|_| store.host_clock(host, clock::now())).transpose()?;
            let known_until = progress.known_until.zip(clock);
            let known_until = known_until.map(|(until, clock)| clock.known_until(until));
            Ok((known_until, store.resume_point(host, epoch)?))
        });
        let (known_until, ResumePoint { next, anchors }) = begun.await?;
        drop(describing);
        let anchors = anchors.into_iter().map(Into::into).collect();
        let start = wire::Start { next: Some(next.into()), anchors };
        let tail = Tail::open(&self.line, start, shared.budget.clone()).await?;
        tracing::info!(place = self.place, %host, "following");
        live.send_modify(|live| {
            live.connected = true;
            live.trouble = None;
            live.known_until = known_until;
        });
        let measured = Instant::now();
        let (described, caught_up) = (None, false);
        Ok(Following { host, epoch, next, tail, own, standing, boot_id, measured, described, caught_up })
    }

    /// Takes in what came. Up to where everything is stored, if that is further than before.
    async fn take(
        &self,
        shared: &Shared,
        following: &mut Following,
        message: wire::TailResponse,
        now: Timestamp,
        live: &watch::Sender<Live>,
    ) -> Result<Option<Cursor>, FollowError> {
        let was_caught_up = std::mem::replace(&mut following.caught_up, message.watermark_ns.is_some());
        let host = following.host;
        let (progress, settled) = if message.frames.is_empty() && message.hole.is_none() {
            let batch = following.standing.credible(Batch::try_from(message)?, now);
            match shared.store.note(host, &batch, now) {
                Some(progress) => (progress, None),
                None => (Box::pin(self.take_watermark(shared, following, batch, now)).await?, None),
            }
        } else {
            let is_live = was_caught_up && unpacked_bytes(&message) <= LIVE_BYTES_MAX;
            Box::pin(self.take_events(shared, following, message, is_live, now)).await?
        };
        let known_until = progress.known_until.map(|until| following.standing.known_until(until));
        live.send_modify(|live| live.known_until = known_until);
        Ok(settled)
    }

    /// Writes a watermark.
    async fn take_watermark(
        &self,
        shared: &Shared,
        following: &Following,
        batch: Batch,
        now: Timestamp,
    ) -> Result<Progress, FollowError> {
        let _place = shared.live.acquire().await?;
        self.commit(shared, following, batch, now).await
    }

    /// A backlog waits for its turn among backlogs, so that what happens now elsewhere is not behind it. What was sent is unpacked
    /// only then, since that takes many times the memory.
    async fn take_events(
        &self,
        shared: &Shared,
        following: &mut Following,
        message: wire::TailResponse,
        is_live: bool,
        now: Timestamp,
    ) -> Result<(Progress, Option<Cursor>), FollowError> {
        let places = if is_live { &shared.live } else { &shared.backlogs };
        let _place = places.acquire().await?;
        let unpack = move || Batch::try_from(message);
        let batch = match is_live {
            true => unpack(),
            false => tokio::task::spawn_blocking(unpack).await.map_err(|_| FollowError::Interrupted)?,
        };
        let batch = following.standing.credible(batch?, now);
        let settled = batch.settles();
        Ok((self.commit(shared, following, batch, now).await?, settled))
    }

    async fn commit(
        &self,
        shared: &Shared,
        following: &Following,
        batch: Batch,
        now: Timestamp,
    ) -> Result<Progress, FollowError> {
        let (store, host) = (Arc::clone(&shared.store), following.host);
        match self.blocking(move || store.commit(host, &batch, now)).await {
            Err(FollowError::Store(StoreError::Broken { seq })) => {
                // It is taken for what it is from there on, the next time.
                let from = Cursor { seq: Seq(seq), ..following.next };
                self.diverge(shared, host, from, CONTRADICTED, now).await?;
                Err(FollowError::Store(StoreError::Broken { seq }))
            }
            committed => committed,
        }
    }

    /// Asks the agent again who it is and who uses it, and, unless that was just now, for its clock.
    async fn look_again(
        &self,
        shared: &Shared,
        following: &mut Following,
        measured: bool,
    ) -> Result<(), FollowError> {
        let mut client = client(&self.line);
        let again = describe(&mut client).await?;
        if again.host != following.host {
            return Err(FollowError::HostChanged { was: following.host, is: again.host });
        }
        let reading = if measured {
            following.own = OwnClock::new();
            following.measured = Instant::now();
            measure(&mut client, SAMPLES_LATER).await?
        } else {
            None
        };
        if let Some(reading) = &reading {
            let boot_id = following.boot_id.get_or_insert_with(|| reading.boot_id.clone());
            if *boot_id != reading.boot_id {
                return Err(FollowError::RingChanged);
            }
            following.standing.measured(reading);
        }
        let _describing = shared.describing.acquire().await?;
        let (store, place) = (Arc::clone(&shared.store), self.place.clone());
        let told = move || store.describe(&place, &again, reading.as_ref(), clock::now());
        self.blocking(told).await.map(drop)
    }
}

/// Asks what has short answers.
pub(super) fn client(line: &Line) -> RecorderClient<Line> {
    RecorderClient::new(line.clone()).max_decoding_message_size(FREE_BYTES)
}

async fn describe(client: &mut RecorderClient<Line>) -> Result<HostDescription, FollowError> {
    let response = tokio::time::timeout(DESCRIBE_TIMEOUT, client.describe(wire::DescribeRequest {})).await;
    let response = response.map_err(|_| FollowError::Silent)??;
    Ok(response.into_inner().try_into()?)
}

/// What the events of a message take, as it says itself; one that takes more is refused as it is unpacked.
fn unpacked_bytes(message: &wire::TailResponse) -> usize {
    message.frames.iter().map(|frame| frame::unpacked_bytes(&frame.payload)).sum()
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

/// Why an agent is not followed just now.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error("it cannot be reached: {0}")]
    Line(#[from] LineError),
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
    Tail(TailError),
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

impl From<TailError> for FollowError {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Silent => Self::Silent,
            TailError::Status(status) => Self::Status(status),
            other => Self::Tail(other),
        }
    }
}

impl From<AcquireError> for FollowError {
    fn from(_: AcquireError) -> Self {
        Self::Interrupted
    }
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
