//! The one port: whoever comes is asked who they are, and shown to the room that they ask for by ALPN.
//!
//! What a stranger costs is bounded: so many may be at the door, each for so long, and when there are more, the one that
//! has stood there longest goes, since whoever means it is quick. A certificate is looked at before anything is said, and
//! one of the wrong kind, of another CA, run out or revoked is told so in the handshake.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use alibi_proto::{
    dial::handshake_in_words,
    tls::{self, Peer},
};
use rustls::server::Acceptor;
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

mod keys;

pub use keys::{Keyring, Keys, KeysError};

/// How long somebody may take to prove who they are.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Those that have not done so yet.
const AT_THE_DOOR_MAX: usize = if cfg!(test) { 4 } else { 2048 };
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

/// Lets in who comes, until aborted.
pub async fn keep(listener: TcpListener, keyring: Arc<Keyring>, rooms: Arc<dyn Rooms>) {
    let door = Arc::new(Door::default());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection is not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (keys, rooms) = (keyring.current(), Arc::clone(&rooms));
        door.stand(|place| async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(stream, from, &keys)).await;
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

/// Those who have not yet proven who they are, the longest first.
#[derive(Debug, Default)]
struct Door {
    standing: Mutex<Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    next: u64,
    by_number: BTreeMap<u64, Option<AbortHandle>>,
}

/// A place at the door; free again when dropped.
struct Place {
    door: Arc<Door>,
    number: u64,
}

impl Door {
    /// Runs what somebody does at the door, in the place of the longest there, if there are too many.
    fn stand<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, work: impl FnOnce(Place) -> F) {
        let number = {
            let mut standing = self.lock();
            if standing.by_number.len() >= AT_THE_DOOR_MAX
                && let Some((_, Some(longest))) = standing.by_number.pop_first()
            {
                longest.abort();
            }
            standing.next += 1;
            let number = standing.next;
            standing.by_number.insert(number, None);
            number
        };
        let task = tokio::spawn(work(Place { door: Arc::clone(self), number }));
        if let Some(place) = self.lock().by_number.get_mut(&number) {
            *place = Some(task.abort_handle());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        // A panic elsewhere cannot leave the map half changed.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// Says when it is dropped.
    struct Told(u32, mpsc::UnboundedSender<u32>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    #[tokio::test]
    async fn when_there_are_too_many_at_the_door_the_longest_goes() {
        let door = Arc::new(Door::default());
        let (sender, mut gone) = mpsc::unbounded_channel();
        let stand = |number| {
            let told = Told(number, sender.clone());
            door.stand(|place| async move {
                let _both = (place, told);
                std::future::pending::<()>().await;
            });
        };
        let max = u32::try_from(AT_THE_DOOR_MAX).unwrap();
        (0..max + 3).for_each(stand);
        for expected in 0..3 {
            assert_eq!(gone.recv().await, Some(expected));
        }
        assert_eq!(door.lock().by_number.len(), AT_THE_DOOR_MAX);
        assert!(gone.try_recv().is_err(), "nobody else");
    }

    #[tokio::test]
    async fn who_has_come_in_is_not_at_the_door() {
        let door = Arc::new(Door::default());
        let (sender, mut told) = mpsc::unbounded_channel();
        for number in 0..100 {
            let sender = sender.clone();
            door.stand(|place| async move {
                drop(place);
                let _ = sender.send(number);
            });
            assert_eq!(told.recv().await, Some(number));
        }
        assert!(door.lock().by_number.is_empty());
    }
}
