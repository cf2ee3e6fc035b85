//! The way to the collector. An enrolled agent calls home: it dials, both prove who they are, and from then on it is the
//! server on that connection. So a laptop behind NAT is reached, and none needs an open port.
//!
//! It is tried for ever, with pauses that grow and differ between hosts. Whatever the collector says or fails to say,
//! recording goes on.

use std::{path::PathBuf, sync::Arc, time::Duration};

use alibi_proto::{
    backoff::Backoff,
    dial::{self, Proxy},
    tls,
    transport::serve_connection,
};
use tokio::{net::TcpStream, sync::watch, time::Instant};
use tokio_rustls::client::TlsStream;

use crate::{
    enrolment::Enrolment,
    server::{FromCollector, Service},
    sys,
};

pub mod certificates;
mod listen;
mod membership;

pub use listen::serve_on_port;
pub use membership::{LinkState, LinkStatus, Membership};

/// The pause before the first new try, and the longest one. All of a large fleet are back within the latter after its
/// collector is.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(40);
/// A connection that lasted this long was a good one: the pauses begin anew after it.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How often an agent looks whether it is enrolled, or anew.
const ENROLMENT_INTERVAL: Duration = Duration::from_secs(2);
/// After which part of its lifetime a certificate is renewed, at the earliest, and how much later at the latest.
const RENEWAL_PART: f64 = 0.6;
const RENEWAL_SPREAD: f64 = 0.1;
/// The pause before a renewal that failed is tried again, at the first time and at most.
const RENEWAL_PAUSE_FIRST: Duration = Duration::from_secs(2);
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(600);

/// What calls home.
#[derive(Debug)]
pub struct Link {
    /// Where the enrolment is.
    pub directory: PathBuf,
    /// By which proxy, if by any.
    pub proxy: Proxy,
    /// What is served there.
    pub service: Service,
}

impl Link {
    /// Calls home until `stop` says so, and lets what is under way end.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.call_for_ever(stop) => {}
            () = self.renew_for_ever() => {}
        }
    }

    /// Renews the certificate until `stop` says so: for an agent that is dialled.
    pub async fn renew(self, stop: watch::Receiver<bool>) {
        tokio::select! {
            () = is_stopped(stop) => {}
            () = self.renew_for_ever() => {}
        }
    }

    async fn call_for_ever(&self, stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
        let mut last = None;
        loop {
            let (enrolment, stream) = tokio::select! {
                () = is_stopped(stop.clone()) => return,
                reached = self.reach(&mut backoff, last.take()) => reached,
            };
            let began = Instant::now();
            self.membership().reached(&enrolment);
            let service = self.service.clone().into_server();
            let why = match serve_connection(stream, service, FromCollector, is_stopped(stop.clone())).await {
                Ok(()) => "the collector ended the connection".to_owned(),
                Err(error) => broken(&error),
            };
            // That this host was stopped is nothing that the collector did.
            if *stop.borrow() {
                return;
            }
            self.membership().lost(&enrolment, why);
            if began.elapsed() >= GOOD_CONNECTION {
                backoff.reset();
            }
            last = Some(enrolment);
        }
    }

    /// A connection with the collector, tried for ever; `last` is the enrolment with which one was lost before.
    async fn reach(
        &self,
        backoff: &mut Backoff,
        mut last: Option<Enrolment>,
    ) -> (Enrolment, TlsStream<TcpStream>) {
        loop {
            // Before the first, too: a whole fleet may have been started at once.
            self.pause(backoff, last.as_ref()).await;
            let enrolment = self.enrolment().await;
            match self.dial(&enrolment).await {
                Ok(stream) => return (enrolment, stream),
                Err(why) => self.membership().lost(&enrolment, why),
            }
            last = Some(enrolment);
        }
    }

    /// A pause, over soon when the host is enrolled anew since `last`: somebody may stand there and wait.
    async fn pause(&self, backoff: &mut Backoff, last: Option<&Enrolment>) {
        let pause = backoff.pause(fastrand::f64());
        let Some(last) = last else { return tokio::time::sleep(pause).await };
        if tokio::time::timeout(pause, self.enrolled_anew(last)).await.is_ok() {
            backoff.reset();
        }
    }

    /// Waits until there is another enrolment than `last`, which another program writes.
    async fn enrolled_anew(&self, last: &Enrolment) {
        loop {
            tokio::time::sleep(ENROLMENT_INTERVAL).await;
            if matches!(Enrolment::load(&self.directory), Ok(Some(enrolment)) if enrolment != *last) {
                return;
            }
        }
    }

    async fn dial(&self, enrolment: &Enrolment) -> Result<TlsStream<TcpStream>, String> {
        let connected = async {
            let identity = enrolment.identity(&self.directory).map_err(|error| error.to_string())?;
            let config = tls::to_collector(&enrolment.trust(), Some(&identity), tls::HOME)
                .map_err(|error| error.to_string())?;
            let connected = dial::connect_tls(&enrolment.collector, &self.proxy, config).await;
            connected.map_err(|error| error.to_string())
        };
        connected.await.map(|(stream, _)| stream)
    }

    async fn renew_for_ever(&self) {
        let mut backoff = Backoff::new(RENEWAL_PAUSE_FIRST, RENEWAL_PAUSE_MAX);
        let part = RENEWAL_PART + RENEWAL_SPREAD * fastrand::f64();
        loop {
            let enrolment = self.enrolment().await;
            let due = enrolment.renewal_due(part);
            let now = sys::now().wall;
            if now < due {
                // The clock may be set, and the enrolment made anew, meanwhile.
                tokio::time::sleep(due.since(now).min(RENEWAL_PAUSE_MAX)).await;
                continue;
            }
            match certificates::renew(&self.directory, &enrolment, &self.proxy, now).await {
                Ok(renewed) => {
                    backoff.reset();
                    tracing::info!(until = %renewed.expires, "the certificate is renewed");
                    self.membership().renewed(&renewed);
                }
                Err(error) => {
                    tracing::warn!(%error, until = %enrolment.expires, "the certificate is not renewed yet");
                    self.pause(&mut backoff, Some(&enrolment)).await;
                }
            }
        }
    }

    /// The enrolment, once there is one that can be read.
    async fn enrolment(&self) -> Enrolment {
        let mut told = false;
        loop {
            match Enrolment::load(&self.directory) {
                Ok(Some(enrolment)) => return enrolment,
                Ok(None) => self.membership().not_enrolled(),
                Err(error) if !told => {
                    told = true;
                    tracing::error!(%error, "the collector is not called");
                }
                Err(_) => {}
            }
            tokio::time::sleep(ENROLMENT_INTERVAL).await;
        }
    }

    fn membership(&self) -> &Arc<Membership> {
        &self.service.membership
    }
}

async fn is_stopped(mut stop: watch::Receiver<bool>) {
    // Whoever could say so is gone: that is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Why a connection broke. In TLS 1.3 whoever dials hears only now what was held against its certificate.
fn broken(error: &hyper::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return format!("the connection with the collector broke: {}", dial::handshake_in_words(io));
        }
        source = error.source();
    }
    format!("the connection with the collector broke: {error}")
}
