//! The rooms behind the gate: the fleet, for hosts that call home; the place where certificates are given; and the analysts'.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use alibi_proto::{tls::Peer, transport::serve_connection};
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::{
    access::{
        Access,
        audit::Refusal,
        rate::{Limiter, Rate},
    },
    api::{enrolment, guard::Guarded},
    clock,
    fleet::Fleet,
    gate::{Arrival, Rooms},
    store::lock,
    visits::Visits,
};

/// Connections of those who want a certificate, at once, and which part they may be of what the system lets the collector
/// have open.
const ENROLLING_MAX: u64 = 512;
const ENROLLING_PART: u64 = 8;
/// Connections of analysts, likewise.
const ANALYSTS_MAX: u64 = 1024;
const ANALYSTS_PART: u64 = 4;
/// Refused connections of which the log tells one by one; of the others, how many they were.
const TOLD: Rate = Rate { burst: 100, per_second: 5 };

/// What somebody wanted who was refused at the gate, in the audit log.
const CONNECT: &str = "connect";

/// All rooms.
pub struct House<A> {
    access: Arc<Access>,
    fleet: Arc<Fleet>,
    enrolment: enrolment::Service,
    analysts: Guarded<A>,
    enrolling: Arc<Visits>,
    visiting: Arc<Visits>,
    began: Instant,
    told: Mutex<Limiter<()>>,
    untold: AtomicU64,
}

impl<A> House<A> {
    /// With nobody in them. `open_files_max`: what the system lets the collector have open.
    pub fn new(
        access: Arc<Access>,
        fleet: Arc<Fleet>,
        enrolment: enrolment::Service,
        analysts: Guarded<A>,
        open_files_max: u64,
    ) -> Self {
        let places = |part: u64, max: u64| Visits::new((open_files_max / part).min(max) as usize);
        Self {
            access,
            fleet,
            enrolment,
            analysts,
            enrolling: places(ENROLLING_PART, ENROLLING_MAX),
            visiting: places(ANALYSTS_PART, ANALYSTS_MAX),
            began: Instant::now(),
            told: Mutex::new(Limiter::new(TOLD)),
            untold: AtomicU64::new(0),
        }
    }

    /// Tells the log of a refused connection, or counts it, if there are too many.
    fn tell_of(&self, from: SocketAddr, why: &str) {
        if lock(&self.told).take(&(), self.began.elapsed()).is_err() {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.untold.swap(0, Ordering::Relaxed) {
            0 => tracing::info!(%from, why, "a connection is refused"),
            untold => tracing::info!(%from, why, untold, "a connection is refused, and others before it"),
        }
    }

    /// The connections of analysts.
    pub fn visiting(&self) -> &Arc<Visits> {
        &self.visiting
    }
}

impl<A> Rooms for House<A>
where
    A: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    A::Future: Send + 'static,
    A::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    fn home(&self, arrival: Arrival) {
        // The handshake has asked for it.
        if let Some(Peer::Host(host)) = arrival.peer {
            tokio::spawn(Arc::clone(&self.fleet).arrive(host, arrival));
        }
    }

    fn enrol(&self, arrival: Arrival) {
        serve(arrival, &self.enrolling, self.enrolment.clone().into_server());
    }

    fn analyst(&self, arrival: Arrival) {
        serve(arrival, &self.visiting, self.analysts.clone());
    }

    fn refused(&self, from: SocketAddr, why: String) {
        self.tell_of(from, &why);
        let access = Arc::clone(&self.access);
        tokio::task::spawn_blocking(move || {
            let refusal =
                Refusal { from: Some(from.ip()), action: CONNECT, outcome: &why, ..Refusal::default() };
            if let Err(error) = access.audit().refused(&refusal, clock::now()) {
                tracing::error!(%error, "a refusal could not be noted");
            }
        });
    }
}

/// Serves somebody for as long as they may stay.
fn serve<S>(arrival: Arrival, visits: &Arc<Visits>, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let Arrival { stream, from, peer } = arrival;
    let Some(seat) = visits.enter(from, peer) else {
        tracing::warn!(%from, "a connection is refused: all places are taken");
        return;
    };
    tokio::spawn(async move {
        let visit = Arc::clone(&seat.visit);
        let served = serve_connection(stream, service, Arc::clone(&visit), std::future::pending());
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(%from, %error, "a connection broke");
                }
            }
            () = visit.ended() => {}
        }
        drop(seat);
    });
}
