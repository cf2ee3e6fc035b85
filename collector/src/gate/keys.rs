//! What the collector shows and whom it believes, as TLS needs it; made anew when a CA takes over, and long before the
//! collector's own certificate runs out.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use alibi_proto::{
    time::Timestamp,
    tls::{self, Admission, CertificateDer, Peer, PeerVerifier, TlsError},
};
use rustls::{CertificateError, ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::{
    access::{Access, AccessError, credential::CredentialId, host::Standing},
    clock,
};

/// How often the collector's own certificate is made anew.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(86_400);

/// What is shown at the door, and who is let in, room by room; and what is shown to agents that are dialled.
#[derive(Clone, Debug)]
pub struct Keys {
    home: Arc<ServerConfig>,
    enrol: Arc<ServerConfig>,
    analyst: Arc<ServerConfig>,
    to_agents: Arc<ClientConfig>,
}

impl Keys {
    fn of(access: &Arc<Access>, now: Timestamp) -> Result<Self, KeysError> {
        let identity = access.own_certificate(now)?.identity;
        let authorities: Vec<_> = access.authorities(now).into_iter().map(CertificateDer::from).collect();
        let hosts: Arc<dyn Admission> = Arc::new(Hosts(Arc::clone(access)));
        let analysts: Arc<dyn Admission> = Arc::new(Analysts(Arc::clone(access)));
        let config = |protocol, is_mandatory, admission: &Arc<dyn Admission>| {
            let verifier = PeerVerifier::new(&authorities, is_mandatory, Arc::clone(admission))?;
            tls::server(&identity, verifier, protocol)
        };
        Ok(Self {
            home: config(tls::HOME, true, &hosts)?,
            enrol: config(tls::ENROL, false, &hosts)?,
            analyst: config(tls::ANALYST, false, &analysts)?,
            to_agents: tls::to_agent(&authorities, &identity, hosts)?,
        })
    }

    /// By what somebody asks for. Whoever asks for nothing that there is hears so from the last.
    pub(super) fn config_for(&self, asked: impl Iterator<Item = Vec<u8>>) -> Arc<ServerConfig> {
        for protocol in asked {
            for config in [&self.home, &self.enrol, &self.analyst] {
                if config.alpn_protocols.contains(&protocol) {
                    return Arc::clone(config);
                }
            }
        }
        Arc::clone(&self.analyst)
    }
}

/// The keys that count now.
#[derive(Debug)]
pub struct Keyring {
    access: Arc<Access>,
    keys: RwLock<Arc<Keys>>,
}

impl Keyring {
    /// The first.
    ///
    /// # Errors
    /// When there can be none.
    pub fn new(access: Arc<Access>) -> Result<Arc<Self>, KeysError> {
        let keys = RwLock::new(Arc::new(Keys::of(&access, clock::now())?));
        Ok(Arc::new(Self { access, keys }))
    }

    /// Makes them anew whenever that is due, until aborted.
    pub async fn keep(self: Arc<Self>, mut changed: watch::Receiver<u64>) {
        loop {
            // Its sender is in `access`, which is here: it does not end.
            let _ = tokio::time::timeout(RENEWAL_INTERVAL, changed.changed()).await;
            match Keys::of(&self.access, clock::now()) {
                Ok(keys) => *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys),
                Err(error) => {
                    tracing::error!(%error, "the collector goes on with the certificate that it had")
                }
            }
        }
    }

    pub(super) fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// For dialling agents that are enrolled.
    pub fn to_agents(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current().to_agents)
    }
}

/// Lets in hosts that are enrolled.
#[derive(Debug)]
struct Hosts(Arc<Access>);

impl Admission for Hosts {
    fn admit(&self, peer: Peer) -> Result<(), CertificateError> {
        let Peer::Host(host) = peer else { return Err(CertificateError::ApplicationVerificationFailure) };
        match self.0.standing(host) {
            // To the moment, as of those who are connected; certificates tell seconds.
            Standing::Enrolled { not_after, .. } if not_after < clock::now() => {
                Err(CertificateError::Expired)
            }
            Standing::Enrolled { .. } => Ok(()),
            Standing::Revoked | Standing::Unknown => Err(CertificateError::Revoked),
        }
    }
}

/// Lets in analysts whose certificate is good.
#[derive(Debug)]
struct Analysts(Arc<Access>);

impl Admission for Analysts {
    fn admit(&self, peer: Peer) -> Result<(), CertificateError> {
        let Peer::Analyst(number) = peer else {
            return Err(CertificateError::ApplicationVerificationFailure);
        };
        let known = self.0.credential(CredentialId(number), clock::now());
        known.map(drop).map_err(|_| CertificateError::Revoked)
    }
}

/// There can be no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The CA cannot be used.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// rustls cannot use them.
    #[error("{0}")]
    Tls(#[from] TlsError),
}
