//! The stream of an agent's events, read message by message, so that no agent takes more memory than there is for it.
//!
//! Each may always have a small message here. A larger one is not read on before there is room for all of it in a budget that
//! all agents share; until then HTTP/2's flow control holds the sender back. Whoever has been given room has to fill it
//! soon, or is let go. So what happens now elsewhere, which is small, waits for nobody's backlog.

use std::{sync::Arc, time::Duration};

use alibi_proto::{
    transport::{Line, LineError, MESSAGE_BYTES_MAX},
    wire::{self, tail_request},
};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE};
use hyper::body::Bytes;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Bytes of a message that any agent may have here at any time.
pub(super) const FREE_BYTES: usize = 64 << 10;
/// Bytes of all larger messages together. Little under test, so that the limit is met.
const BUDGET_BYTES: usize = if cfg!(test) { MESSAGE_BYTES_MAX } else { 256 << 20 };
/// An agent says something at each look; one that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long an agent may take to send a message, of which it has sent the beginning, once there is room for it.
const MESSAGE_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(30) };
/// Before each message: whether it is compressed, and how long it is (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;

/// Room for large messages, shared by all.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_BYTES)))
    }
}

impl Budget {
    /// Room for a message, once there is some; none is needed where it is small.
    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= FREE_BYTES {
            return None;
        }
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // It is never closed.
        Arc::clone(&self.0).acquire_many_owned(permits).await.ok()
    }
}

/// A message, and the room that it takes until that is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) message: wire::TailResponse,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// An agent's stream.
#[derive(Debug)]
pub(super) struct Tail {
    said: SendStream<Bytes>,
    stream: RecvStream,
    /// What has come, and was not taken yet.
    come: Bytes,
    budget: Budget,
}

impl Tail {
    /// Asks for the stream from `start` on.
    pub(super) async fn open(line: &Line, start: wire::Start, budget: Budget) -> Result<Self, TailError> {
        let request = http::Request::post("/alibi.v1.Recorder/Tail")
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(())
            .map_err(|error| Status::internal(error.to_string()))?;
        let start = prefixed(tail_request::Request::Start(start));
        let opened = tokio::time::timeout(SILENCE_MAX, line.open(request, start)).await;
        let (said, answer) = opened.map_err(|_| TailError::Silent)?.map_err(broken)?;
        let (head, stream) = answer.into_parts();
        match Status::from_header_map(&head.headers) {
            Some(status) if status.code() != tonic::Code::Ok => return Err(status.into()),
            _ if head.status != http::StatusCode::OK => {
                let status = format!("it answers with HTTP status {}", head.status);
                return Err(Status::unimplemented(status).into());
            }
            _ => {}
        }
        Ok(Self { said, stream, come: Bytes::new(), budget })
    }

    /// Tells the agent what is stored. One that does not read it is let go.
    pub(super) async fn acknowledge(&mut self, stored: wire::Cursor) -> Result<(), TailError> {
        let message = prefixed(tail_request::Request::Acknowledge(stored));
        self.said.reserve_capacity(message.len());
        let room = async {
            while self.said.capacity() < message.len() {
                match std::future::poll_fn(|context| self.said.poll_capacity(context)).await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(reset(error).into()),
                    None => return Err(TailError::CutOff),
                }
            }
            Ok(())
        };
        tokio::time::timeout(SILENCE_MAX, room).await.map_err(|_| TailError::Silent)??;
        self.said.send_data(message, false).map_err(reset)?;
        Ok(())
    }

    /// The next message; none where the agent has ended the stream. What was given up half way cannot be gone on with.
    pub(super) async fn next(&mut self) -> Result<Option<Received>, TailError> {
        let prefix = tokio::time::timeout(SILENCE_MAX, self.prefix()).await;
        let Some(bytes) = prefix.map_err(|_| TailError::Silent)?? else { return Ok(None) };
        if bytes > MESSAGE_BYTES_MAX {
            return Err(TailError::TooLarge(bytes));
        }
        let room = self.budget.room(bytes).await;
        let message = tokio::time::timeout(MESSAGE_TIMEOUT, self.message(bytes)).await;
        let message = message.map_err(|_| TailError::TooSlow(bytes))??;
        let message = wire::TailResponse::decode(message).map_err(|_| TailError::Nonsense)?;
        Ok(Some(Received { message, room }))
    }

    /// How long the next message is; none at the end.
    async fn prefix(&mut self) -> Result<Option<usize>, TailError> {
        while self.come.len() < PREFIX_BYTES {
            match self.part().await? {
                Some(more) => self.come = joined(&self.come, more),
                None if self.come.is_empty() => return Ok(None),
                None => return Err(TailError::CutOff),
            }
        }
        let prefix = self.come.split_to(PREFIX_BYTES);
        match *prefix {
            [0, a, b, c, d] => Ok(Some(u32::from_be_bytes([a, b, c, d]) as usize)),
            // Compression was not agreed on.
            _ => Err(TailError::Nonsense),
        }
    }

    /// So many bytes.
    async fn message(&mut self, bytes: usize) -> Result<Bytes, TailError> {
        if self.come.len() >= bytes {
            return Ok(self.come.split_to(bytes));
        }
        let mut message = Vec::with_capacity(bytes);
        loop {
            let part = self.come.len().min(bytes - message.len());
            message.extend_from_slice(&self.come.split_to(part));
            if message.len() == bytes {
                return Ok(message.into());
            }
            self.come = self.part().await?.ok_or(TailError::CutOff)?;
        }
    }

    /// What comes next; none at the end.
    async fn part(&mut self) -> Result<Option<Bytes>, TailError> {
        loop {
            match self.stream.data().await {
                Some(Ok(part)) => {
                    self.stream.flow_control().release_capacity(part.len()).map_err(reset)?;
                    if !part.is_empty() {
                        return Ok(Some(part));
                    }
                }
                Some(Err(error)) => return Err(reset(error).into()),
                None => break,
            }
        }
        let trailers = self.stream.trailers().await.map_err(reset)?.unwrap_or_default();
        match Status::from_header_map(&trailers) {
            Some(status) if status.code() != tonic::Code::Ok => Err(status.into()),
            _ => Ok(None),
        }
    }
}

fn joined(one: &[u8], other: Bytes) -> Bytes {
    if one.is_empty() { other } else { [one, &other].concat().into() }
}

fn broken(error: LineError) -> Status {
    Status::from_error(error.into())
}

fn reset(error: h2::Error) -> Status {
    Status::from_error(error.into())
}

/// A message as it is sent.
fn prefixed(request: tail_request::Request) -> Bytes {
    let request = wire::TailRequest { request: Some(request) };
    let bytes = request.encoded_len();
    let mut message = Vec::with_capacity(PREFIX_BYTES + bytes);
    message.push(0);
    // The most that is said are some anchors.
    message.extend(u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes());
    request.encode_raw(&mut message);
    message.into()
}

/// There is no next message.
#[derive(Debug, thiserror::Error)]
pub(super) enum TailError {
    #[error("it has been silent for too long")]
    Silent,
    #[error("it took too long over a message of {0} bytes")]
    TooSlow(usize),
    #[error("a message of {0} bytes is larger than the {MESSAGE_BYTES_MAX} that one may have")]
    TooLarge(usize),
    #[error("a message is not what a message looks like")]
    Nonsense,
    #[error("it ended the stream within a message")]
    CutOff,
    #[error("{0}")]
    Status(#[from] Status),
}

#[cfg(test)]
mod tests;
