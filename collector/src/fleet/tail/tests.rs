use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use alibi_proto::transport::serve_connection;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

/// What an agent sends: parts of its stream, as they are, and how it ends; and what it is told meanwhile.
struct Sent {
    frames: UnboundedReceiver<Frame<Bytes>>,
    _asked: tonic::body::Body,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.frames.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// A stream, and the agent's end of it.
async fn stream(budget: &Budget) -> (Tail, UnboundedSender<Frame<Bytes>>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (sender, frames) = unbounded_channel();
    let frames = Arc::new(Mutex::new(Some(frames)));
    let service = tower::service_fn(move |request: Request<tonic::body::Body>| {
        assert_eq!(request.uri().path(), "/alibi.v1.Recorder/Tail");
        let frames = frames.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap();
        let sent = Sent { frames, _asked: request.into_body() };
        async move { Ok::<_, Infallible>(Response::new(tonic::body::Body::new(sent))) }
    });
    tokio::spawn(serve_connection(theirs, service, (), std::future::pending()));
    let line = Line::over(ours).await.unwrap();
    (Tail::open(&line, wire::Start::default(), budget.clone()).await.unwrap(), sender)
}

/// A message that takes about so many bytes.
fn message(epoch: u64, bytes: usize) -> Bytes {
    let frames = vec![wire::Frame { first_seq: 1, count: 1, payload: vec![7; bytes] }];
    let message = wire::TailResponse { epoch, frames, ..Default::default() }.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
}

async fn epoch(tail: &mut Tail) -> Result<Option<u64>, TailError> {
    Ok(tail.next().await?.map(|received| received.message.epoch))
}

const SMALL: usize = 100;

#[tokio::test]
async fn messages_come_whole_however_they_are_cut() {
    let (mut tail, agent) = stream(&Budget::default()).await;
    for (number, part) in [1, 3, 4, 7, 1_000, 100_000].into_iter().enumerate() {
        let number = number as u64;
        // Nobody sends a large one in such small parts.
        let large = if part < 1_000 { SMALL } else { FREE_BYTES + SMALL };
        for bytes in [message(number, SMALL), message(number, large)].concat().chunks(part) {
            agent.send(Frame::data(Bytes::copy_from_slice(bytes))).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(epoch(&mut tail).await.unwrap(), Some(number), "in parts of {part}");
        }
    }
    drop(agent);
    assert!(epoch(&mut tail).await.unwrap().is_none());
}

#[tokio::test]
async fn a_small_message_waits_for_nobody_and_a_large_one_for_room() {
    let budget = Budget::default();
    let (mut holder, hostile) = stream(&budget).await;
    hostile.send(Frame::data(message(1, BUDGET_BYTES - 1_000))).unwrap();
    let held = holder.next().await.unwrap().unwrap();
    let (mut tail, agent) = stream(&budget).await;
    agent.send(Frame::data(message(2, SMALL))).unwrap();
    agent.send(Frame::data(message(3, FREE_BYTES + SMALL))).unwrap();
    assert_eq!(epoch(&mut tail).await.unwrap(), Some(2));
    let mut large = std::pin::pin!(epoch(&mut tail));
    // Longer than a message may take once there is room: waiting for that is nobody's fault.
    assert!(tokio::time::timeout(2 * MESSAGE_TIMEOUT, &mut large).await.is_err());
    drop(held);
    assert_eq!(large.await.unwrap(), Some(3));
}

#[tokio::test]
async fn who_was_given_room_and_does_not_fill_it_is_let_go() {
    let budget = Budget::default();
    let (mut tail, agent) = stream(&budget).await;
    let whole = message(1, 1 << 20);
    agent.send(Frame::data(whole.slice(..whole.len() - 1))).unwrap();
    assert!(matches!(tail.next().await, Err(TailError::TooSlow(bytes)) if bytes > 1 << 20));
    assert_eq!(budget.0.available_permits(), BUDGET_BYTES);
}

#[tokio::test]
async fn what_no_agent_sends_ends_the_stream() {
    let budget = Budget::default();
    let cut = message(1, SMALL);
    type Case = (Bytes, fn(TailError) -> bool);
    let cases: [Case; 5] = [
        (Bytes::from_static(&[1, 0, 0, 0, 0]), |error| matches!(error, TailError::Nonsense)),
        (Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]), |error| matches!(error, TailError::Nonsense)),
        (Bytes::from_static(&[0, 0xff, 0, 0, 0]), |error| matches!(error, TailError::TooLarge(_))),
        (cut.slice(..3), |error| matches!(error, TailError::CutOff)),
        (cut.slice(..cut.len() - 1), |error| matches!(error, TailError::CutOff)),
    ];
    for (sent, is_meant) in cases {
        let (mut tail, agent) = stream(&budget).await;
        agent.send(Frame::data(sent.clone())).unwrap();
        drop(agent);
        let error = tail.next().await.unwrap_err();
        assert!(is_meant(error), "{sent:?}");
    }
}

#[tokio::test]
async fn why_the_agent_ends_it_is_heard() {
    let (mut tail, agent) = stream(&Budget::default()).await;
    let mut trailers = HeaderMap::new();
    Status::data_loss("the ring is short").add_header(&mut trailers).unwrap();
    agent.send(Frame::trailers(trailers)).unwrap();
    assert!(
        matches!(tail.next().await, Err(TailError::Status(status)) if status.message() == "the ring is short")
    );
}
