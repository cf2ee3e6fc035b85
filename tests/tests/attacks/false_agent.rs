//! An agent that is none: it proves to be a host, and then says what it likes.

use std::collections::HashMap;

use alibi_lab::system::now;
use alibi_proto::{frame::Packer, id::HostId, wire};
use http::{HeaderMap, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Code, Status};

use crate::attacker::head;

/// What is answered to a call.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// These bytes, and the end.
    Done(Vec<u8>),
    /// These bytes, and no end.
    Open(Vec<u8>),
    /// A failure.
    Failed(Status),
}

/// What is answered to which method.
#[derive(Clone, Debug)]
pub(crate) struct FalseAgent(HashMap<&'static str, Answer>);

impl FalseAgent {
    /// One that says it is the host `says`, and has nothing to tell.
    pub(crate) fn new(says: HostId) -> Self {
        let description = wire::DescribeResponse {
            host: says.as_bytes().to_vec(),
            name: "false".into(),
            os: "linux".into(),
            epoch: 7,
            first_seq: 1,
            next_seq: 1,
            ..wire::DescribeResponse::default()
        };
        let present = wire::PresentResponse { instance: vec![9; 16], ..wire::PresentResponse::default() };
        Self(HashMap::from([
            ("Present", Answer::Done(framed(&present))),
            ("Admit", Answer::Done(framed(&wire::AdmitResponse {}))),
            ("Describe", Answer::Done(framed(&description))),
            ("Clock", Answer::Failed(Status::unimplemented(""))),
            ("Tail", Answer::Open(Vec::new())),
        ]))
    }

    /// Answers otherwise.
    pub(crate) fn with(mut self, method: &'static str, answer: Answer) -> Self {
        self.0.insert(method, answer);
        self
    }

    /// Serves until the other end hangs up.
    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut open = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(mut body) = respond.send_response(response, false) else { continue };
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            let unknown = || Answer::Failed(Status::unimplemented(""));
            let (bytes, status) = match self.0.get(method).cloned().unwrap_or_else(unknown) {
                Answer::Done(bytes) => (bytes, Status::new(Code::Ok, "")),
                Answer::Failed(status) => (Vec::new(), status),
                Answer::Open(bytes) => {
                    let _ = body.send_data(bytes.into(), false);
                    open.push((body, request));
                    continue;
                }
            };
            let _ = body.send_data(bytes.into(), false);
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            let _ = body.send_trailers(trailers);
        }
    }
}

pub(crate) fn framed(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [head(u32::try_from(body.len()).unwrap()), body].concat()
}

/// A batch of these events, the first being the first that there is, as the agent's [`Answer`] to `Tail`.
pub(crate) fn batch(kinds: Vec<wire::event::Kind>) -> Answer {
    let events = kinds.into_iter().zip(1..).map(|(kind, seq)| wire::Event {
        seq,
        time_ns: now().as_nanos(),
        boot_time_ns: 1,
        kind: Some(kind),
    });
    let packed: Vec<Vec<u8>> = events.map(|event| prost::Message::encode_to_vec(&event)).collect();
    let payload = Packer::default().pack(&packed.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let frames = vec![wire::Frame { first_seq: 1, count: packed.len() as u32, payload }];
    Answer::Open(framed(&wire::TailResponse {
        epoch: 7,
        frames,
        head: Some(vec![1; 32]),
        watermark_ns: Some(now().as_nanos()),
        ..wire::TailResponse::default()
    }))
}

/// A connection to the target of all questions, which never was.
pub(crate) fn flow(process_uid: Vec<u8>) -> wire::event::Kind {
    let end = || Some(wire::Endpoint { address: vec![203, 0, 113, 99], port: 443 });
    let at = now().as_nanos();
    wire::event::Kind::Flow(wire::Flow {
        connection_uid: vec![9; 16],
        process_uid: Some(process_uid).filter(|uid| !uid.is_empty()),
        attribution: 2,
        protocol: 1,
        direction: 1,
        local: end(),
        remote: end(),
        first_ns: at,
        last_ns: at,
        state: 3,
        end_reason: 3,
        ..wire::Flow::default()
    })
}
