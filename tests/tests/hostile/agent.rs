//! An agent that is none, on a port of this machine.

use std::{net::TcpListener, thread};

use alibi_proto::wire;
use http::{HeaderMap, HeaderValue, Response};

/// The head of a gRPC message that says it is so long.
pub(crate) fn head(length: u32) -> Vec<u8> {
    [&[0], length.to_be_bytes().as_slice()].concat()
}

/// The message with its head.
pub(crate) fn framed(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [head(u32::try_from(body.len()).unwrap()), body].concat()
}

/// An agent that describes itself as it should, and then tails these bytes.
pub(crate) fn false_agent(number: u8, tail: Vec<u8>) -> String {
    let description = wire::DescribeResponse {
        host: vec![number; 16],
        name: format!("false-{number}"),
        os: "linux".into(),
        epoch: 7,
        first_seq: 1,
        next_seq: 1,
        ..wire::DescribeResponse::default()
    };
    let describe = framed(&description);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve_falsely(socket, describe.clone(), tail.clone()));
            }
        });
    });
    address
}

async fn serve_falsely(socket: tokio::net::TcpStream, describe: Vec<u8>, tail: Vec<u8>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    let mut open = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let is_tail = request.uri().path().ends_with("/Tail");
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let Ok(mut body) = respond.send_response(response, false) else { return };
        if is_tail {
            let _ = body.send_data(tail.clone().into(), false);
            // Neither ends, nor says more.
            open.push((body, request));
        } else {
            // It does not tell its clock.
            let is_clock = request.uri().path().ends_with("/Clock");
            let status = if is_clock { tonic::Code::Unimplemented as u16 } else { 0 };
            if !is_clock {
                let _ = body.send_data(describe.clone().into(), false);
            }
            let _ = body.send_trailers(HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                HeaderValue::from(status),
            )]));
        }
    }
}
