//! Where a service listens and how it is dialled. Until both ends can prove who they are, only addresses that do not
//! leave the machine are accepted: loopback and Unix sockets.

use std::{fmt, io, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use tonic::transport::{Channel, Endpoint};

/// The largest message that either end takes, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// What a sender keeps a message of many records under, in bytes, leaving room for one that overshoots.
pub const MESSAGE_BYTES_TARGET: usize = 1 << 20;
/// How long a dial may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a quiet connection is asked whether it is still there, and how long it may take to say so.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that one connection may have under way.
const STREAMS_MAX: u32 = 64;
/// Bytes of headers that a request may have.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// An address that does not leave the machine: `127.0.0.1:8440`, `[::1]:8440`, `localhost:8440` or `unix:/path`,
/// optionally behind `http://`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A loopback address and port.
    Loopback(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            // Not `is_absolute`, which takes a drive on Windows: analysts there read the same instructions.
            return if path.has_root() {
                Ok(Self::Unix(path))
            } else {
                Err(AddressError::Nonsense(text.into()))
            };
        }
        let address = match bare.parse::<SocketAddr>() {
            Ok(address) => address,
            Err(_) => match bare.rsplit_once(':') {
                Some(("localhost", port)) => {
                    let port = port.parse().map_err(|_| AddressError::Nonsense(text.into()))?;
                    SocketAddr::from(([127, 0, 0, 1], port))
                }
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    return Err(AddressError::NotLoopback(text.into()));
                }
                _ => return Err(AddressError::Nonsense(text.into())),
            },
        };
        if address.ip().to_canonical().is_loopback() {
            Ok(Self::Loopback(address))
        } else {
            Err(AddressError::NotLoopback(text.into()))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address that is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// It leaves the machine.
    #[error(
        "`{0}` leaves this machine, and connections are not yet encrypted or authenticated: use a loopback address such as 127.0.0.1:8440, or unix:/path"
    )]
    NotLoopback(String),
    /// It is no address.
    #[error("`{0}` is not an address: write 127.0.0.1:8440, [::1]:8440 or unix:/path")]
    Nonsense(String),
}

/// A channel to a service, not yet connected: it dials when it is first used.
///
/// # Errors
/// When the address makes no URI.
pub fn channel(address: &Address) -> Result<Channel, tonic::transport::Error> {
    let configure = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
    };
    match address {
        Address::Loopback(address) => {
            Ok(configure(Endpoint::from_shared(format!("http://{address}"))?).connect_lazy())
        }
        Address::Unix(path) => Ok(unix::channel(configure(Endpoint::from_static("http://localhost")), path)),
    }
}

/// A service's own limits, so that no peer costs more than a bounded amount.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Resolves when a program is asked to stop: at Ctrl-C, and on Unix also at SIGTERM. Heard from this call on, so that a
/// program that calls it before it says that it is ready ends in order whenever it is asked. Must be called in a runtime.
pub fn stop_signal() -> impl Future<Output = ()> {
    signals::stop()
}

/// A socket that is bound and listens.
#[derive(Debug)]
pub enum Listener {
    /// On a loopback address.
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
            Address::Loopback(socket) => {
                tokio::net::TcpListener::bind(socket).await.map(Self::Tcp).map_err(error)
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
            Self::Tcp(listener) => listener.local_addr().map(Address::Loopback),
            #[cfg(unix)]
            Self::Unix(bound) => Ok(Address::Unix(bound.file.0.clone())),
            #[cfg(not(unix))]
            Self::Unix(never) => match *never {},
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
    };

    use hyper_util::rt::TokioIo;
    use tokio::net::{UnixListener, UnixStream};
    use tonic::transport::{Channel, Endpoint, Uri};

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

    pub(super) async fn bind(_path: &Path) -> io::Result<Bound> {
        Err(unsupported())
    }

    fn unsupported() -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets: use 127.0.0.1:PORT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_stay_on_the_machine_are_taken() {
        for (text, want) in [
            ("127.0.0.1:8440", "127.0.0.1:8440"),
            ("http://127.0.0.1:8440/", "127.0.0.1:8440"),
            ("127.9.9.9:1", "127.9.9.9:1"),
            ("[::1]:8440", "[::1]:8440"),
            ("localhost:8440", "127.0.0.1:8440"),
            ("unix:/run/alibi.sock", "unix:/run/alibi.sock"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), want);
        }
        for text in
            ["10.0.0.1:8440", "0.0.0.0:8440", "[::]:8440", "[2001:db8::1]:1", "collector.example:8440"]
        {
            assert_eq!(text.parse::<Address>(), Err(AddressError::NotLoopback(text.into())), "{text}");
        }
        for text in ["", "8440", ":8440", "127.0.0.1", "127.0.0.1:99999", "unix:relative", "https://x"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError::Nonsense(text.into())), "{text}");
        }
    }
}
