//! gRPC over connections of every kind: where a service listens, how it is dialled, and the limits of both ends.

use std::{io, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::ServiceExt as _;

use crate::{
    address::{Address, HostPort},
    dial::{self, DialError, Proxy},
};

mod line;

pub use line::{Line, LineError};

/// The largest message that either end takes, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// What a sender keeps a message of many records under, in bytes, leaving room for one that overshoots.
pub const MESSAGE_BYTES_TARGET: usize = 1 << 20;
/// How long a dial may take, with the proof of who is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a quiet connection is asked whether it is still there, and how long it may take to say so.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that one connection may have under way.
const STREAMS_MAX: u32 = 64;
/// Bytes of headers that a request may have.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes that may come of one request, or one answer, before anybody has read them; and on one connection. This is what
/// another end can make this one keep without its having asked for it, and how much is on the way of a backlog.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 128 << 10;
/// The same of the answers to an analyst, who has one connection, and asks for more.
const ANSWER_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes that wait to be sent on one stream; a message that is longer waits itself.
const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;

/// A channel to a service on this machine, where nobody proves who they are; not yet connected: it dials when it is first
/// used.
///
/// # Errors
/// When the address makes no URI.
pub fn channel(address: &Address) -> Result<Channel, tonic::transport::Error> {
    match address {
        Address::Tcp(address) => {
            Ok(with_limits(Endpoint::from_shared(format!("http://{address}"))?).connect_lazy())
        }
        Address::Unix(path) => {
            Ok(unix::channel(with_limits(Endpoint::from_static("http://localhost")), path))
        }
    }
}

/// A channel to the collector at `address`, which dials, and proves who it is, when it is first used, and again when the
/// connection is lost.
pub fn channel_to_collector(address: HostPort, proxy: Proxy, config: Arc<ClientConfig>) -> Channel {
    with_limits(over_tls()).connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, proxy, config) = (address.clone(), proxy.clone(), Arc::clone(&config));
        async move {
            let (stream, _) = dial::connect_tls(&address, &proxy, config).await?;
            Ok::<_, DialError>(TokioIo::new(stream))
        }
    }))
}

/// A channel over a connection that is there already. When it is lost, so is the channel.
///
/// # Errors
/// When the other end does not speak HTTP/2.
pub async fn channel_over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async move { stream.map_err(io::Error::from) }
    });
    with_limits(over_tls()).connect_with_connector(once).await
}

fn over_tls() -> Endpoint {
    Endpoint::from_static("https://collector.alibi.internal")
}

fn with_limits(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(ANSWER_WINDOW_BYTES)
        .initial_connection_window_size(ANSWER_WINDOW_BYTES)
}

/// A service's own limits, so that no peer costs more than a bounded amount.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

/// Serves one connection, with the same limits, until it ends; or until `stop` resolves, after which the requests under way
/// are let end. Each request carries `about` among its extensions.
///
/// # Errors
/// When the other end breaks HTTP/2, or the connection.
pub async fn serve_connection<S, R, I>(
    stream: S,
    service: R,
    about: I,
    stop: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    R::Future: Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    I: Clone + Send + Sync + 'static,
{
    let service = service.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(about.clone());
        request.map(Body::new)
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX);
    let mut connection =
        std::pin::pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    tokio::select! {
        served = &mut connection => return served,
        () = stop => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Resolves when a program is asked to stop: at Ctrl-C, and on Unix also at SIGTERM. Heard from this call on, so that a
/// program that calls it before it says that it is ready ends in order whenever it is asked. Must be called in a runtime.
pub fn stop_signal() -> impl Future<Output = ()> {
    signals::stop()
}

/// A socket that is bound and listens.
#[derive(Debug)]
pub enum Listener {
    /// On a port.
    Tcp(tokio::net::TcpListener),
    /// In the file system.
    Unix(unix::Bound),
}

impl Listener {
    /// Binds. A Unix socket is readable and writable by its user only; a stale one is replaced, a live one is not.
    ///
    /// # Errors
    /// When the address is in use or may not be bound.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        let error = |source| ListenError { address: address.to_string(), source };
        match address {
            Address::Tcp(HostPort { host, port }) => {
                tokio::net::TcpListener::bind((host.as_str(), *port)).await.map(Self::Tcp).map_err(error)
            }
            Address::Unix(path) => unix::bind(path).await.map(Self::Unix).map_err(error),
        }
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|address| Address::Tcp(address.into())),
            #[cfg(unix)]
            Self::Unix(bound) => Ok(Address::Unix(bound.file.0.clone())),
            #[cfg(not(unix))]
            Self::Unix(never) => match *never {},
        }
    }

    /// Serves who is on this machine, until aborted. Each request carries the [`LocalUser`] that the system says asks.
    pub async fn serve_users<R>(self, service: R)
    where
        R: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
        R::Future: Send + 'static,
        R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        match self {
            // A port does not tell who asks.
            Self::Tcp(_) => drop(service),
            #[cfg(unix)]
            Self::Unix(bound) => unix::serve_users(bound, service).await,
            #[cfg(not(unix))]
            Self::Unix(never) => match never {},
        }
    }

    /// Serves until `stop` resolves, then lets the requests under way end, but streams no longer than they like: the
    /// caller ends those itself.
    ///
    /// # Errors
    /// When the transport fails.
    pub async fn serve(
        self,
        router: tonic::transport::server::Router,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        match self {
            Self::Tcp(listener) => {
                let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
                router.serve_with_incoming_shutdown(incoming, stop).await
            }
            #[cfg(unix)]
            Self::Unix(unix::Bound { listener, file }) => {
                let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
                let served = router.serve_with_incoming_shutdown(incoming, stop).await;
                drop(file);
                served
            }
            #[cfg(not(unix))]
            Self::Unix(never) => match never {},
        }
    }
}

/// Among a request's extensions: the user of this machine who asks, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalUser(pub u32);

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", in_words(.source))]
pub struct ListenError {
    address: String,
    source: io::Error,
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "it is in use; stop what listens there, or choose another with --listen".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(unix)]
mod signals {
    use tokio::signal::unix::{SignalKind, signal};

    pub(super) fn stop() -> impl Future<Output = ()> {
        let heard = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        async move {
            let [interrupted, terminated] = heard.map(|heard| async {
                match heard {
                    Ok(mut signals) => {
                        signals.recv().await;
                    }
                    // Cannot be heard; the program can still be stopped by the other signal.
                    Err(_) => std::future::pending().await,
                }
            });
            tokio::select! {
                () = interrupted => {}
                () = terminated => {}
            }
        }
    }
}

#[cfg(windows)]
mod signals {
    pub(super) fn stop() -> impl Future<Output = ()> {
        let heard = tokio::signal::windows::ctrl_c();
        async move {
            match heard {
                Ok(mut signals) => {
                    signals.recv().await;
                }
                // Cannot be heard; the system can still end the program.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        io,
        os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
        path::{Path, PathBuf},
        sync::Arc,
        time::Duration,
    };

    use hyper_util::rt::TokioIo;
    use tokio::{
        net::{UnixListener, UnixStream},
        sync::Semaphore,
    };
    use tonic::{
        body::Body,
        transport::{Channel, Endpoint, Uri},
    };

    use super::{LocalUser, serve_connection};

    /// Connections at once.
    const CONNECTIONS_MAX: usize = 64;
    /// How long a failed accept is waited after: the cause, such as too many open files, may pass.
    const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

    /// A Unix listener whose file goes when it does.
    #[derive(Debug)]
    pub struct Bound {
        pub(super) listener: UnixListener,
        pub(super) file: SocketFile,
    }

    /// The file of a socket; removed when dropped.
    #[derive(Debug)]
    pub(super) struct SocketFile(pub(super) PathBuf);

    impl Drop for SocketFile {
        fn drop(&mut self) {
            // Best effort: a file that stays is replaced by the next bind.
            let _ = std::fs::remove_file(&self.0);
        }
    }

    pub(super) fn channel(endpoint: Endpoint, path: &Path) -> Channel {
        let path = path.to_owned();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
    }

    pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(path).await
    }

    pub(super) async fn serve_users<R>(bound: Bound, service: R)
    where
        R: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
        R::Future: Send + 'static,
        R::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = bound.listener.accept().await;
            let Ok((stream, user)) =
                accepted.and_then(|(stream, _)| stream.peer_cred().map(|user| (stream, user)))
            else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let service = service.clone();
            tokio::spawn(async move {
                // Whoever breaks the connection knows that.
                let _ =
                    serve_connection(stream, service, LocalUser(user.uid()), std::future::pending()).await;
                drop(place);
            });
        }
    }

    pub(super) async fn bind(path: &Path) -> io::Result<Bound> {
        let is_socket = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
        if is_socket {
            match UnixStream::connect(path).await {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(_) => std::fs::remove_file(path)?,
            }
        }
        let listener = UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Bound { listener, file })
    }
}

#[cfg(not(unix))]
mod unix {
    use std::{io, path::Path};

    use tonic::transport::{Channel, Endpoint};

    /// Never made: this system has no Unix sockets.
    #[derive(Debug)]
    pub enum Bound {}

    pub(super) fn channel(endpoint: Endpoint, _path: &Path) -> Channel {
        endpoint.connect_with_connector_lazy(tower::service_fn(|_: tonic::transport::Uri| async {
            Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(unsupported())
        }))
    }

    pub(super) async fn connect(_path: &Path) -> io::Result<tokio::net::TcpStream> {
        Err(unsupported())
    }

    pub(super) async fn bind(_path: &Path) -> io::Result<Bound> {
        Err(unsupported())
    }

    fn unsupported() -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets: use 127.0.0.1:PORT")
    }
}
