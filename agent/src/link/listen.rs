//! An agent that listens on a port that others can reach: for the collector alone, which proves that it is.

use std::{path::Path, sync::Arc, time::Duration};

use alibi_proto::{
    tls::{self, Admission, Peer, PeerVerifier, TlsError},
    transport::serve_connection,
};
use rustls::{CertificateError, ServerConfig};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

use super::is_stopped;
use crate::{
    enrolment::{Enrolment, EnrolmentError},
    server::{FromCollector, Service},
};

/// Connections at once, those that have proven nothing yet included.
const CONNECTIONS_MAX: usize = 64;
/// How long one may take to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a failed accept is waited after: the cause, such as too many open files, may pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves the collector on a port, until `stop` says so.
pub async fn serve_on_port(
    listener: TcpListener,
    directory: &Path,
    service: Service,
    stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    if let Ok(Some(enrolment)) = Enrolment::load(directory) {
        service.membership.awaited(&enrolment);
    }
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection is not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Anew each time: a renewed certificate counts from the next connection on.
            let (enrolment, config) = match config(directory) {
                Ok(both) => both,
                Err(error) => {
                    tracing::error!(%error, "the collector is not served");
                    continue;
                }
            };
            let (service, stop) = (service.clone(), stop.clone());
            tokio::spawn(async move {
                if let Err(problem) = serve(stream, enrolment, config, service, stop).await {
                    tracing::debug!(problem, "a connection has ended");
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = is_stopped(stop.clone()) => {}
    }
    // Whoever is served still is let end.
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}

async fn serve(
    stream: TcpStream,
    enrolment: Enrolment,
    config: Arc<ServerConfig>,
    service: Service,
    stop: watch::Receiver<bool>,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream));
    let stream = handshake
        .await
        .map_err(|_| "it took too long over the handshake".to_owned())?
        .map_err(|error| alibi_proto::dial::handshake_in_words(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::RECORDER) {
        return Err("it speaks none of our protocols".to_owned());
    }
    let _dialled = service.membership.dialled(enrolment);
    let served = serve_connection(stream, service.into_server(), FromCollector, is_stopped(stop));
    served.await.map_err(|error| error.to_string())
}

fn config(directory: &Path) -> Result<(Enrolment, Arc<ServerConfig>), ListenError> {
    let enrolment = Enrolment::load(directory)?.ok_or(ListenError::NotEnrolled)?;
    let verifier = PeerVerifier::new(&enrolment.authorities, true, Arc::new(CollectorAlone))?;
    let config = tls::server(&enrolment.identity(directory)?, verifier, tls::RECORDER)?;
    Ok((enrolment, config))
}

#[derive(Debug)]
struct CollectorAlone;

impl Admission for CollectorAlone {
    fn admit(&self, peer: Peer) -> Result<(), CertificateError> {
        match peer {
            Peer::Collector => Ok(()),
            Peer::Host(_) | Peer::Analyst(_) => Err(CertificateError::ApplicationVerificationFailure),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("this host is not enrolled, and serves strangers nothing: `alibi-agent enroll TOKEN`")]
    NotEnrolled,
    #[error("{0}")]
    Enrolment(#[from] EnrolmentError),
    #[error("{0}")]
    Tls(#[from] TlsError),
}
