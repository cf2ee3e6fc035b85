//! A line: one connection on which this end asks, for whoever has very many of them. What a
//! [`Channel`](tonic::transport::Channel) has besides, to dial anew, to queue and to box, is most of what an idle one costs.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use h2::{
    Ping, PingPong, RecvStream, SendStream,
    client::{Builder, Connection, SendRequest},
};
use http::{
    Request, Response, Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::body::{Body as _, Bytes, Frame};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::body::Body;

use super::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, HEADER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES, unix,
};
use crate::address::{Address, HostPort};

/// A connection. Clones are the same; when the last is gone, and nothing is under way, it ends.
#[derive(Clone, Debug)]
pub struct Line {
    requests: SendRequest<Bytes>,
}

impl Line {
    /// Over a connection that is there already.
    ///
    /// # Errors
    /// When the other end does not speak HTTP/2.
    pub async fn over<S>(stream: S) -> Result<Self, LineError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let is_heard = Arc::new(AtomicBool::new(false));
        let stream = Heard { stream, is_heard: Arc::clone(&is_heard) };
        let (requests, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .handshake(stream)
            .await?;
        let pings = connection.ping_pong();
        tokio::spawn(keep(connection, pings, is_heard));
        Ok(Self { requests })
    }

    /// To a service on this machine, where nobody proves who they are.
    ///
    /// # Errors
    /// When nobody answers there, or does not speak HTTP/2.
    pub async fn to_this_machine(address: &Address) -> Result<Self, LineError> {
        let connected = async {
            match address {
                Address::Tcp(HostPort { host, port }) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Self::over(stream).await
                }
                Address::Unix(path) => Self::over(unix::connect(path).await?).await,
            }
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connected).await;
        connected.map_err(|_| LineError::Unreachable(io::ErrorKind::TimedOut.into()))?
    }

    /// Asks for something to which both ends go on speaking. What is said, and the answer with what comes of it.
    ///
    /// # Errors
    /// When the connection ends before there is an answer.
    pub async fn open(
        &self,
        request: Request<()>,
        first: Bytes,
    ) -> Result<(SendStream<Bytes>, Response<RecvStream>), LineError> {
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut said) = requests.send_request(addressed(request), false)?;
        said.send_data(first, false)?;
        Ok((said, response.await?))
    }

    async fn ask(self, request: Request<Body>) -> Result<Response<Answer>, LineError> {
        let (head, mut body) = request.into_parts();
        let mut requests = self.requests.ready().await?;
        let request = addressed(Request::from_parts(head, ()));
        let (response, mut said) = requests.send_request(request, false)?;
        // A question is small.
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            let frame = frame.map_err(|status| LineError::Unreachable(io::Error::other(status)))?;
            if let Ok(data) = frame.into_data() {
                said.send_data(data, false)?;
            }
        }
        said.send_data(Bytes::new(), true)?;
        Ok(response.await?.map(|stream| Answer { stream, data_ended: false }))
    }
}

impl tower::Service<Request<Body>> for Line {
    type Response = Response<Answer>;
    type Error = LineError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}

/// Moves what is sent and received, until the connection ends, or the other end is found not to be there any more: whoever is
/// not heard for a while is asked.
async fn keep<S>(connection: Connection<Heard<S>, Bytes>, pings: Option<PingPong>, is_heard: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let is_gone = async {
        let Some(mut pings) = pings else { return std::future::pending().await };
        loop {
            tokio::time::sleep(KEEPALIVE_INTERVAL).await;
            if is_heard.swap(false, Ordering::Relaxed) {
                continue;
            }
            let answered = tokio::time::timeout(KEEPALIVE_TIMEOUT, pings.ping(Ping::opaque())).await;
            if !matches!(answered, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        // Whoever asks hears why it ended.
        _ = connection => {}
        () = is_gone => {}
    }
}

/// The path with what HTTP/2 wants before it. Who is asked, the connection has settled.
fn addressed(mut request: Request<()>) -> Request<()> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(Authority::from_static("agent.alibi.internal"));
    let path = request.uri().path_and_query().cloned();
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(parts).expect("it has all three");
    request
}

/// What comes of a question. No more of it comes than was read.
#[derive(Debug)]
pub struct Answer {
    stream: RecvStream,
    data_ended: bool,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = LineError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LineError>>> {
        if !self.data_ended {
            match std::task::ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    self.stream.flow_control().release_capacity(data.len())?;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_ended = true,
            }
        }
        match std::task::ready!(self.stream.poll_trailers(context)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data_ended && self.stream.is_end_stream()
    }
}

/// A connection of which is known whether something came over it.
#[derive(Debug)]
struct Heard<S> {
    stream: S,
    is_heard: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.is_heard.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A line that cannot be had, or broke.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// The other end breaks HTTP/2, or the connection.
    #[error("{0}")]
    Http(#[from] h2::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_asked_of_the_agent() {
        let check = |path: &str, url: &str| {
            let request = Request::get(path).body(()).unwrap();
            assert_eq!(addressed(request).uri().to_string(), url);
        };
        check("/alibi.v1.Recorder/Tail", "https://agent.alibi.internal/alibi.v1.Recorder/Tail");
        check("http://elsewhere/a?b", "https://agent.alibi.internal/a?b");
    }

    #[tokio::test]
    async fn nobody_there_is_said_so() {
        let nowhere = tempfile::tempdir().unwrap().path().join("no.sock");
        let error = Line::to_this_machine(&Address::Unix(nowhere)).await.unwrap_err();
        assert!(matches!(error, LineError::Unreachable(_)));
    }
}
