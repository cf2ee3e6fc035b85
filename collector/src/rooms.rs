//! The rooms behind the gate: the fleet, for hosts that call home; the place where certificates are given; and the analysts'.

use std::{net::SocketAddr, sync::Arc};

use alibi_proto::{tls::Peer, transport::serve_connection};
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::{
    access::Access,
    api::{enrolment, guard::Guarded},
    clock,
    fleet::Fleet,
    gate::{Arrival, Rooms},
    visits::Visits,
};

/// Connections of those who want a certificate, at once.
const ENROLLING_MAX: usize = 512;
/// Connections of analysts, at once.
const ANALYSTS_MAX: usize = 1024;

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
}

impl<A> House<A> {
    /// With nobody in them.
    pub fn new(
        access: Arc<Access>,
        fleet: Arc<Fleet>,
        enrolment: enrolment::Service,
        analysts: Guarded<A>,
    ) -> Self {
        let (enrolling, visiting) = (Visits::new(ENROLLING_MAX), Visits::new(ANALYSTS_MAX));
        Self { access, fleet, enrolment, analysts, enrolling, visiting }
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
        tracing::info!(%from, why, "a connection is refused");
        let access = Arc::clone(&self.access);
        tokio::task::spawn_blocking(move || {
            let ip = from.ip().to_canonical();
            if let Err(error) = access.audit().refused(Some(ip), CONNECT, &why, clock::now()) {
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
