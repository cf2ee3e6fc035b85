//! The one port: whoever comes is asked who they are, and shown to the room that they ask for by ALPN.
//!
//! What a stranger costs is bounded: so many may be at the door, each for so long. All of them together get no more of the
//! processors than leaves room for those who are in ([`Turns`]), however many come, as a whole fleet does after the collector
//! was away; those for whom there is no time yet wait in the system's queue, before the door. A certificate is looked at
//! before anything is said, and one of the wrong kind, of another CA, run out or revoked is told so in the handshake.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use alibi_proto::{
    dial::handshake_in_words,
    tls::{self, Peer},
};
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::turns::Turns;

mod door;
mod keys;

use door::Door;
pub use keys::{Keyring, Keys, KeysError};

/// How long somebody may take to prove who they are.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Those that have not done so yet: so many, and no more than this part of what the system lets the collector have open.
const AT_THE_DOOR_MAX: u64 = 2048;
const AT_THE_DOOR_PART: u64 = 8;
/// How long a failed accept is waited after: the cause, such as too many open files, may pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Somebody who has come in.
#[derive(Debug)]
pub struct Arrival {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// Where it comes from.
    pub from: SocketAddr,
    /// Who it is; none where no certificate was shown.
    pub peer: Option<Peer>,
}

/// Where those who have come in go.
pub trait Rooms: Send + Sync + 'static {
    /// A host that calls home.
    fn home(&self, arrival: Arrival);
    /// Somebody who wants a certificate.
    fn enrol(&self, arrival: Arrival);
    /// An analyst.
    fn analyst(&self, arrival: Arrival);
    /// Somebody who was not let in, and why.
    fn refused(&self, from: SocketAddr, why: String);
}

/// Lets in who comes, until aborted. `open_files_max`: what the system lets the collector have open.
pub async fn keep(
    listener: TcpListener,
    keyring: Arc<Keyring>,
    turns: Turns,
    rooms: Arc<dyn Rooms>,
    open_files_max: u64,
) {
    let door = Door::new((open_files_max / AT_THE_DOOR_PART).min(AT_THE_DOOR_MAX));
    loop {
        turns.await_fewer().await;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection is not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (keys, turns, rooms) = (keyring.current(), turns.clone(), Arc::clone(&rooms));
        door.stand(from.ip(), |place| async move {
            let shaking = turns.pace(shake(stream, from, &keys));
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await;
            // In a room it is no longer at the door.
            drop(place);
            match shaken {
                Ok(Ok((tls::HOME, arrival))) => rooms.home(arrival),
                Ok(Ok((tls::ENROL, arrival))) => rooms.enrol(arrival),
                Ok(Ok((_, arrival))) => rooms.analyst(arrival),
                Ok(Err(why)) => rooms.refused(from, why),
                Err(_) => rooms.refused(from, "it took too long over the handshake".to_owned()),
            }
        });
    }
}

/// Both ends prove who they are, as far as the room that is asked for wants it.
async fn shake(stream: TcpStream, from: SocketAddr, keys: &Keys) -> Result<(&'static [u8], Arrival), String> {
    let words = |error: std::io::Error| handshake_in_words(&error);
    stream.set_nodelay(true).map_err(words)?;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(words)?;
    let asked: Vec<Vec<u8>> = hello.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
    let config = keys.config_for(asked.into_iter());
    let stream = hello.into_stream(config).await.map_err(words)?;
    let connection = stream.get_ref().1;
    let room = [tls::HOME, tls::ENROL, tls::ANALYST]
        .into_iter()
        .find(|protocol| connection.alpn_protocol() == Some(protocol))
        .ok_or("it speaks none of our protocols")?;
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let peer = certificate.map(Peer::of).transpose().map_err(|error| error.to_string())?;
    Ok((room, Arrival { stream, from, peer }))
}
