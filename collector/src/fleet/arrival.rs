//! An agent that calls home: is it the one host that it proves to be, and the only one?

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    Connection, Fleet, Task, asked,
    follower::{Session, client, tell_end},
};
use crate::{
    access::{
        Admittance,
        audit::Refusal,
        lease::{Instance, Lease, Place, Presented},
    },
    clock,
    gate::Arrival,
};
use alibi_proto::{
    id::HostId,
    transport::Line,
    wire::{self, admit_request::Verdict},
};

/// How long an agent may take over each step until it is taken in.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one that is connected may take to show that it still is, when another comes as the same host.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of what an agent calls its machine.
const WORD_BYTES_MAX: usize = 256;

impl Fleet {
    /// Takes in the host `host`, which has proven that it is, or not.
    pub(crate) async fn arrive(self: Arc<Self>, host: HostId, arrival: Arrival) {
        let from = arrival.from;
        if !self.deciding().insert(host) {
            tracing::info!(%host, %from, "a host calls while another call of it is being answered");
            return;
        }
        let decided = self.shared.turns.pace(self.admit(host, arrival)).await;
        match decided {
            Ok(connection) => self.take_in(host, connection).await,
            Err(why) => {
                tracing::info!(%host, %from, why, "a host that calls is not taken in");
                if let Some(follower) = self.followers().get(&host.to_string()) {
                    follower.live.send_if_modified(|live| {
                        live.trouble = Some(why).filter(|_| !live.connected).or(live.trouble.take());
                        !live.connected
                    });
                }
            }
        }
        self.deciding().remove(&host);
    }

    async fn admit(&self, host: HostId, arrival: Arrival) -> Result<Connection, String> {
        let from = arrival.from;
        let line = in_time(Line::over(arrival.stream)).await?;
        let mut client = client(&line);
        let shown = in_time(client.present(wire::PresentRequest {})).await?.into_inner();
        let instance = shown.instance.try_into().map_err(|_| "what it presents is no instance")?;
        let lease =
            shown.lease.map(TryInto::try_into).transpose().map_err(|_| "what it presents is no lease")?;
        let presented =
            Presented { instance: Instance::from_bytes(instance), lease: lease.map(Lease::from_bytes) };
        let here = Place {
            name: bounded(shown.name),
            machine_id: bounded(shown.machine_id),
            boot_id: bounded(shown.boot_id),
            address: from.to_string(),
            at: clock::now(),
        };
        let alive = self.alive(host, presented.instance).await;
        let (access, whereabouts) = (Arc::clone(&self.shared.access), here.clone());
        let decided = tokio::task::spawn_blocking(move || access.admit(host, &presented, here, alive)).await;
        match decided.map_err(|_| "the work was interrupted")?.map_err(|error| error.to_string())? {
            Admittance::Admitted { lease, rewound } => {
                if let Some(rewound) = rewound {
                    tracing::warn!(%host, before = ?rewound.before, "a host was restored from an older copy of itself");
                }
                let verdict = Some(Verdict::Lease(lease.as_bytes().to_vec()));
                in_time(client.admit(wire::AdmitRequest { verdict })).await?;
                if !self.shared.access.confirm(host, lease) {
                    return Err("it has called another time since".to_owned());
                }
                let number = self.connections.fetch_add(1, Ordering::Relaxed);
                let asked_until = shown.asked_until_seq;
                Ok(Connection { number, line, instance: presented.instance, whereabouts, asked_until })
            }
            Admittance::Refused(copied) => {
                let why = copied.to_string();
                self.note_refusal(host, from.ip(), why.clone()).await;
                let verdict = Some(Verdict::Refusal(why.clone()));
                // Whether it hears it or not, it is not taken in.
                let _ = in_time(client.admit(wire::AdmitRequest { verdict })).await;
                Err(why)
            }
        }
    }

    /// A copy may call as often as it likes.
    async fn note_refusal(&self, host: HostId, from: IpAddr, why: String) {
        let access = Arc::clone(&self.shared.access);
        let noted = tokio::task::spawn_blocking(move || {
            let (action, outcome) = ("call home", "its identity is in two places");
            let refusal = Refusal { host: Some(host), from: Some(from), action, outcome, detail: &why };
            access.audit().refused(&refusal, clock::now())
        });
        if let Ok(Err(error)) = noted.await {
            tracing::error!(%error, "a refusal could not be noted");
        }
    }

    /// Who else is connected as this host, and has just answered.
    async fn alive(&self, host: HostId, instance: Instance) -> Option<(Instance, Place)> {
        let connection = self.followers().get(&host.to_string())?.connection.clone()?;
        if connection.instance == instance {
            return None;
        }
        let mut client = client(&connection.line);
        let answered =
            tokio::time::timeout(ALIVE_TIMEOUT, client.clock(wire::ClockRequest { boots: false })).await;
        matches!(answered, Ok(Ok(_))).then_some((connection.instance, connection.whereabouts))
    }

    /// Follows the host over this connection from now on, and over no other.
    async fn take_in(self: &Arc<Self>, host: HostId, connection: Connection) {
        let place = host.to_string();
        if !self.followers().contains_key(&place) {
            let (fleet, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
            let expected = tokio::task::spawn_blocking(move || fleet.expect(host, &runtime)).await;
            if let Ok(Err(error)) = expected {
                tracing::error!(%host, %error, "a host that calls cannot be listed");
                return;
            }
        }
        let mut followers = self.followers();
        let Some(follower) = followers.get_mut(&place) else { return };
        // Ends the one before it, if there is one, of which nothing is begun to be written from here on.
        follower.task = None;
        let from = connection.whereabouts.address.clone();
        follower.live.send_modify(|live| live.from = Some(from));
        let number = connection.number;
        let (line, asked_until) = (connection.line.clone(), connection.asked_until);
        follower.connection = Some(connection);
        let session =
            Session { place: place.clone(), line, proven: Some(host), turn: Arc::clone(&follower.turn) };
        let (shared, live) = (self.shared.clone(), follower.live.clone());
        let fleet = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let telling = asked::tell(&shared, host, session.line.clone(), asked_until);
            let ended = tokio::select! {
                ended = session.run(&shared, &live) => ended,
                ended = async { telling.await; std::future::pending().await } => ended,
            };
            tell_end(&place, ended, &live);
            if let Some(fleet) = fleet.upgrade() {
                fleet.left(&place, number);
            }
        });
        follower.task = Some(Task(task.abort_handle()));
    }

    /// The connection has ended: nobody can be asked over it.
    fn left(&self, listed: &str, number: u64) {
        if let Some(follower) = self.followers().get_mut(listed) {
            follower.connection.take_if(|connection| connection.number == number);
        }
    }

    fn deciding(&self) -> MutexGuard<'_, HashSet<HostId>> {
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn in_time<T, E: std::fmt::Display>(step: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    let done = tokio::time::timeout(STEP_TIMEOUT, step).await;
    done.map_err(|_| "it does not answer".to_owned())?.map_err(|error| error.to_string())
}

fn bounded(mut word: String) -> String {
    word.truncate(word.floor_char_boundary(WORD_BYTES_MAX));
    word
}
