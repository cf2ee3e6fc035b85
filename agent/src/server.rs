//! The `Recorder` service: what the agent says to whoever follows it.

use std::{sync::Arc, time::Duration};

use alibi_proto::{
    chain::Anchor,
    clock::BootBegin,
    convert::stream::{ANCHORS_MAX, FRAMES_MAX},
    coverage::Hole,
    host::{HostDescription, SourceDescription},
    id::{Cursor, Epoch, HostId, Seq},
    question::Question,
    time::Moment,
    transport::{MESSAGE_BYTES_MAX, MESSAGE_BYTES_TARGET},
    wire::{
        self,
        recorder_server::{Recorder, RecorderServer},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    enrolment::Lease,
    link::Membership,
    owner::WhoAsked,
    query,
    recorder::{Acknowledged, Progress},
    ring::{ChainedFrame, Item, Reader, RingError, Standing, View},
    sys::{self, HostFacts},
};

mod asked;

/// Followers at once.
const TAILS_MAX: usize = 16;
/// Questions at once; each may read the whole ring.
const QUERIES_MAX: usize = 2;
/// How long a follower may take to say where it starts.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of what the collector says why it does not take the host in.
const REFUSAL_BYTES_MAX: usize = 1024;
/// Batches that wait for a slow follower.
const BATCHES_QUEUED_MAX: usize = 4;

/// Among a request's extensions: who asks has proven to be the collector that this host is enrolled with. Else it is
/// somebody on this machine.
#[derive(Clone, Copy, Debug)]
pub struct FromCollector;

/// What is recorded, as it is read while it is written.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The ring.
    pub view: View,
    /// How far the recording is.
    pub progress: watch::Receiver<Progress>,
    /// Where acknowledgements go.
    pub acknowledged: Acknowledged,
    /// Where in the ring each boot begins.
    pub boots: Arc<[BootBegin]>,
}

/// What the service serves from.
#[derive(Clone, Debug)]
pub struct Service {
    host: HostId,
    facts: HostFacts,
    source: SourceDescription,
    recorded: Recorded,
    /// How the host stands with its collector.
    pub membership: Arc<Membership>,
    asked: WhoAsked,
    tails: Arc<Semaphore>,
    queries: Arc<Semaphore>,
    clock: Clock,
}

/// Both clocks of this host, as they are read when they are asked for.
#[derive(Clone)]
struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Clock {
    fn now(&self) -> Moment {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Service {
    /// A service of this host, of which the system tells `facts`, over what `source` captures and the recorder has recorded.
    pub fn new(
        host: HostId,
        facts: HostFacts,
        source: SourceDescription,
        recorded: Recorded,
        membership: Arc<Membership>,
    ) -> Self {
        let (tails, queries) = (Arc::new(Semaphore::new(TAILS_MAX)), Arc::new(Semaphore::new(QUERIES_MAX)));
        let asked = WhoAsked::in_memory();
        let clock = Clock(Arc::new(sys::now));
        Self { host, facts, source, recorded, membership, asked, tails, queries, clock }
    }

    /// The same, of a host that is not this machine: its clocks are others.
    #[must_use]
    pub fn with_clock(self, now: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self { clock: Clock(Arc::new(now)), ..self }
    }

    /// The same, which keeps in `asked` who asked about this host.
    #[must_use]
    pub fn with_asked(self, asked: WhoAsked) -> Self {
        Self { asked, ..self }
    }

    /// What is recorded.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// Who asked about this host.
    pub fn who_asked(&self) -> &WhoAsked {
        &self.asked
    }

    /// As a gRPC service with its limits.
    pub fn into_server(self) -> RecorderServer<Self> {
        RecorderServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn description(&self) -> HostDescription {
        let progress = self.recorded.progress.borrow().clone();
        let facts = self.facts.clone();
        HostDescription {
            host: self.host,
            name: facts.name,
            os: facts.os.to_owned(),
            os_version: facts.os_version,
            machine_id: facts.machine_id,
            boot_id: facts.boot_id,
            booted: facts.booted,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            users: progress.users.to_vec(),
            sources: vec![self.source.clone()],
            epoch: self.recorded.view.epoch(),
            first_seq: self.recorded.view.first_seq(),
            next_seq: progress.next_seq,
        }
    }
}

#[tonic::async_trait]
impl Recorder for Service {
    async fn describe(
        &self,
        _request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        Ok(Response::new(self.description().into()))
    }

    async fn clock(
        &self,
        request: Request<wire::ClockRequest>,
    ) -> Result<Response<wire::ClockResponse>, Status> {
        let received = self.clock.now();
        let boots = match request.into_inner().boots {
            true => self.recorded.boots.iter().cloned().map(Into::into).collect(),
            false => Vec::new(),
        };
        let (boot_id, epoch) = (self.facts.boot_id.clone(), self.recorded.view.epoch().0);
        // Last, so that the time it took is not taken for time on the way.
        let sent = self.clock.now();
        Ok(Response::new(wire::ClockResponse {
            boot_id,
            received_ns: received.wall.as_nanos(),
            received_boot_ns: received.boot_ns,
            sent_ns: sent.wall.as_nanos(),
            sent_boot_ns: sent.boot_ns,
            epoch,
            boots,
        }))
    }

    type TailStream = ReceiverStream<Result<wire::TailResponse, Status>>;

    async fn tail(
        &self,
        request: Request<Streaming<wire::TailRequest>>,
    ) -> Result<Response<Self::TailStream>, Status> {
        let permit = Arc::clone(&self.tails)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{TAILS_MAX} followers are served already")))?;
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(START_TIMEOUT, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("`start` did not come in time"))??;
        let start = match first.and_then(|first| first.request) {
            Some(wire::tail_request::Request::Start(start)) => start,
            _ => return Err(Status::invalid_argument("the first message of Tail must be `start`")),
        };
        let epoch = self.recorded.view.epoch();
        let (view, recorded) = (self.recorded.view.clone(), self.recorded.progress.borrow().next_seq);
        let wanted = Cursor::from(start.next.unwrap_or_default());
        let (from, resumption) = tokio::task::spawn_blocking(move || resume(&view, start, recorded))
            .await
            .map_err(|_| Status::internal("a read was interrupted"))??;
        // Whoever goes on from there has stored what is before it, whether its acknowledgement was heard or not.
        if wanted.epoch == epoch && wanted.seq == from {
            self.recorded.acknowledged.up_to(Seq(from.0 - 1));
        }
        let reader = Reader::new(self.recorded.view.clone(), from);

        let (batches, receiver) = mpsc::channel(BATCHES_QUEUED_MAX);
        let tail = Tail {
            epoch,
            next: from,
            reading: Some(Reading { reader, hole: None }),
            resumption,
            progress: self.recorded.progress.clone(),
            batches,
            clock: self.clock.clone(),
            _permit: permit,
        };
        let (acknowledged, progress) = (self.recorded.acknowledged.clone(), self.recorded.progress.clone());
        let failures = tail.batches.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = tail.run() => ended,
                ended = acknowledge(requests, epoch, acknowledged, progress) => ended,
            };
            if let Err(status) = ended {
                tracing::info!(%status, "a follower is gone");
                // It may still hear why; if it has hung up, there is nobody to tell.
                let _ = failures.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn present(
        &self,
        request: Request<wire::PresentRequest>,
    ) -> Result<Response<wire::PresentResponse>, Status> {
        collector_alone(&request)?;
        let membership = &self.membership;
        Ok(Response::new(wire::PresentResponse {
            instance: membership.instance().to_vec(),
            lease: membership.lease().map(|lease| lease.to_vec()),
            name: self.facts.name.clone(),
            machine_id: self.facts.machine_id.clone().unwrap_or_default(),
            boot_id: self.facts.boot_id.clone(),
            asked_until_seq: self.asked.until_seq(&membership.collector()),
        }))
    }

    async fn admit(
        &self,
        request: Request<wire::AdmitRequest>,
    ) -> Result<Response<wire::AdmitResponse>, Status> {
        collector_alone(&request)?;
        match request.into_inner().verdict {
            Some(wire::admit_request::Verdict::Lease(lease)) => {
                let lease: Lease =
                    lease.try_into().map_err(|_| Status::invalid_argument("a lease has 16 bytes"))?;
                let membership = Arc::clone(&self.membership);
                tokio::task::spawn_blocking(move || membership.admitted(&lease))
                    .await
                    .map_err(|_| Status::internal("the work was interrupted"))?
                    .map_err(|error| Status::internal(error.to_string()))?;
            }
            Some(wire::admit_request::Verdict::Refusal(why)) => {
                self.membership.refused(&why[..why.floor_char_boundary(REFUSAL_BYTES_MAX)]);
            }
            None => return Err(Status::invalid_argument("a verdict that this version does not know")),
        }
        Ok(Response::new(wire::AdmitResponse {}))
    }

    async fn asked(
        &self,
        request: Request<wire::AskedRequest>,
    ) -> Result<Response<wire::AskedResponse>, Status> {
        collector_alone(&request)?;
        let (entries, log) =
            (asked::entries(request.into_inner(), &self.membership.collector())?, self.asked.clone());
        tokio::task::spawn_blocking(move || log.take(entries))
            .await
            .map_err(|_| Status::internal("the work was interrupted"))?;
        Ok(Response::new(wire::AskedResponse {}))
    }

    async fn query(
        &self,
        request: Request<wire::QueryRequest>,
    ) -> Result<Response<wire::QueryResponse>, Status> {
        let _permit = self.queries.acquire().await.map_err(|_| Status::unavailable("stopping"))?;
        let question = Question::try_from(request.into_inner().question)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (view, host, name) = (self.recorded.view.clone(), self.host, self.facts.name.clone());
        // Taken before the ring is read: what it vouches for is in the ring already.
        let known_until = known_until(self.recorded.progress.clone(), &question, &self.clock).await;
        let (answer, addresses) =
            tokio::task::spawn_blocking(move || query::answer(&view, &question, host, name, known_until))
                .await
                .map_err(|_| Status::internal("the query was interrupted"))?
                .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::QueryResponse { answer: Some(answer.into()), addresses }))
    }
}

/// What only the collector may say.
fn collector_alone<T>(request: &Request<T>) -> Result<(), Status> {
    match request.extensions().get::<FromCollector>() {
        Some(FromCollector) => Ok(()),
        None => {
            Err(Status::permission_denied("only the collector may, on a connection that proves that it is"))
        }
    }
}

/// How long a question may wait for the recording to reach the end of its window.
const KNOWN_UNTIL_WAIT: Duration = Duration::from_secs(3);

/// How far the recording is, once it has reached the end of the window or a little time has passed.
async fn known_until(
    mut progress: watch::Receiver<Progress>,
    question: &Question,
    clock: &Clock,
) -> Option<alibi_proto::time::Timestamp> {
    let reached = progress.wait_for(|progress| progress.watermark >= Some(question.window.to()));
    // A window that ends in the future is answered as far as it goes; a stopped recorder, with what it left.
    let _ = tokio::time::timeout(KNOWN_UNTIL_WAIT, reached).await;
    progress.borrow().known_until(clock.now())
}

/// Where in this ring a follower goes on, and what it is told of its past. One that comes from another ring, or from none,
/// gets everything; one whose past is not that of this ring, what comes after what they have in common.
fn resume(view: &View, start: wire::Start, recorded: Seq) -> Result<(Seq, Option<wire::Resumption>), Status> {
    let next = Cursor::from(start.next.unwrap_or_default());
    if next.epoch != view.epoch() || next.seq < Seq::FIRST {
        return Ok((Seq::FIRST, None));
    }
    if start.anchors.len() > ANCHORS_MAX {
        return Err(Status::invalid_argument(format!("more than {ANCHORS_MAX} anchors")));
    }
    // Whoever has more of this ring than there is has seen a past that is not this one: what is safe on disk was told, and
    // nothing beyond it.
    let mut is_other = next.seq > recorded;
    for anchor in start.anchors {
        let anchor = Anchor::try_from(anchor).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let standing = view.compare(&anchor).map_err(|error| Status::internal(error.to_string()))?;
        match standing {
            Standing::Same | Standing::Gone if anchor.seq >= recorded => is_other = true,
            // It lies in what is damaged, and an older one may tell.
            Standing::Gone if anchor.seq >= view.first_seq() => {}
            Standing::Same | Standing::Gone if is_other => {
                return Ok(told(wire::Standing::Other, anchor.seq.next()));
            }
            Standing::Same => return Ok(told(wire::Standing::Same, next.seq)),
            Standing::Gone => return Ok(told(wire::Standing::Gone, next.seq)),
            Standing::Other | Standing::Ahead => is_other = true,
        }
    }
    Ok(if is_other { told(wire::Standing::Other, Seq::FIRST) } else { (next.seq, None) })
}

fn told(standing: wire::Standing, from: Seq) -> (Seq, Option<wire::Resumption>) {
    if standing == wire::Standing::Other {
        tracing::error!(
            from = from.0,
            "a follower knows another past of this ring: it is an older copy, or was changed"
        );
    }
    (from, Some(wire::Resumption { standing: standing.into(), from_seq: from.0 }))
}

/// Hears what a follower has stored, until it is gone.
async fn acknowledge(
    mut requests: Streaming<wire::TailRequest>,
    epoch: Epoch,
    acknowledged: Acknowledged,
    progress: watch::Receiver<Progress>,
) -> Result<(), Status> {
    while let Some(request) = requests.message().await? {
        match request.request {
            Some(wire::tail_request::Request::Acknowledge(cursor)) if cursor.epoch == epoch.0 => {
                if Seq(cursor.seq) >= progress.borrow().next_seq {
                    return Err(Status::invalid_argument(format!("event {} does not exist yet", cursor.seq)));
                }
                acknowledged.up_to(Seq(cursor.seq));
            }
            Some(wire::tail_request::Request::Acknowledge(_)) => {}
            _ => return Err(Status::invalid_argument("after `start`, only `acknowledge` may be sent")),
        }
    }
    Ok(())
}

/// One follower's way through the ring.
struct Tail {
    epoch: Epoch,
    next: Seq,
    /// None only while a read is under way on another thread.
    reading: Option<Reading>,
    /// What the follower is told first.
    resumption: Option<wire::Resumption>,
    progress: watch::Receiver<Progress>,
    batches: mpsc::Sender<Result<wire::TailResponse, Status>>,
    clock: Clock,
    _permit: OwnedSemaphorePermit,
}

impl Tail {
    async fn run(mut self) -> Result<(), Status> {
        if let Some(resumption) = self.resumption.take() {
            let resumption = Some(resumption);
            self.send(wire::TailResponse { epoch: self.epoch.0, resumption, ..Default::default() }).await?;
        }
        loop {
            // What this vouches for is in the ring already, so once it is read, so is everything up to the watermark.
            let progress = self.progress.borrow_and_update().clone();
            while self.next < progress.next_seq {
                let response = self.read(progress.next_seq).await?;
                self.send(response).await?;
            }
            if let Some(watermark) = progress.watermark {
                let clock = self.clock.now();
                self.send(wire::TailResponse {
                    epoch: self.epoch.0,
                    watermark_ns: Some(watermark.as_nanos()),
                    clock_ns: Some(clock.wall.as_nanos()),
                    clock_boot_ns: Some(clock.boot_ns),
                    ..Default::default()
                })
                .await?;
            }
            if self.progress.changed().await.is_err() {
                return Ok(()); // the recorder has stopped, and all it left has been sent
            }
        }
    }

    /// What comes next, before `end`: what comes after that is not safe on disk yet.
    async fn read(&mut self, end: Seq) -> Result<wire::TailResponse, Status> {
        let mut reading = self.reading.take().ok_or_else(|| Status::internal("a read was interrupted"))?;
        let (reading, message) = tokio::task::spawn_blocking(move || {
            let message = reading.message(end);
            (reading, message)
        })
        .await
        .map_err(|_| Status::internal("a read was interrupted"))?;
        self.next = reading.position();
        self.reading = Some(reading);
        match message {
            Ok(Some(message)) => Ok(wire::TailResponse { epoch: self.epoch.0, ..message }),
            Ok(None) => Err(Status::data_loss("the ring is shorter than what was recorded")),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn send(&self, response: wire::TailResponse) -> Result<(), Status> {
        self.batches.send(Ok(response)).await.map_err(|_| Status::cancelled("the follower hung up"))
    }
}

/// The ring as it is read for a follower.
#[derive(Debug)]
struct Reading {
    reader: Reader,
    /// What comes before what the reader finds next.
    hole: Option<Hole>,
}

impl Reading {
    fn position(&self) -> Seq {
        self.hole.as_ref().map_or_else(|| self.reader.position(), |hole| hole.first)
    }

    /// The next hole or frames, or both, before `end`; none if there is nothing.
    fn message(&mut self, end: Seq) -> Result<Option<wire::TailResponse>, RingError> {
        let mut message = wire::TailResponse::default();
        let mut bytes = 0;
        message.hole = self.hole.take().map(Into::into);
        while bytes < MESSAGE_BYTES_TARGET && message.frames.len() < FRAMES_MAX && self.position() < end {
            match self.reader.next_item() {
                Ok(Item::Frame(ChainedFrame { frame, previous, head })) => {
                    if message.frames.is_empty() {
                        message.previous_head = previous.map(|head| head.as_bytes().to_vec());
                    }
                    bytes += frame.unpacked_bytes();
                    message.head = Some(head.as_bytes().to_vec());
                    message.frames.push(frame.into());
                }
                Ok(Item::Hole(hole)) if message.hole.is_none() && message.frames.is_empty() => {
                    message.hole = Some(hole.into());
                }
                Ok(Item::Hole(hole)) => {
                    self.hole = Some(hole);
                    break;
                }
                Ok(Item::CaughtUp) => break,
                // An error stays until the next call.
                Err(error) if message.hole.is_none() && message.frames.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        let is_empty = message.hole.is_none() && message.frames.is_empty();
        Ok((!is_empty).then_some(message))
    }
}
