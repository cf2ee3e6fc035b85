//! The agents that are followed: those that call home, and those that are dialled, one task each, for ever.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use alibi_proto::{
    address::Address,
    chain::Anchor,
    id::{Epoch, HostId},
    time::Timestamp,
    transport::Line,
};
use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinHandle},
};
use tonic::Status;

use crate::{
    access::{
        Access,
        host::Standing,
        lease::{Instance, Place as Whereabouts},
    },
    gate::Keyring,
    store::{Store, StoreError},
    turns::Turns,
};

mod arrival;
mod asked;
mod clock;
mod follower;
mod tail;
mod verify;

use follower::Turn;
use tail::Budget;
pub(crate) use verify::Verified;

/// Backlogs that are taken in at once. The store has one writer: more would only stand before what happens now.
const BACKLOGS_MAX: usize = 2;
/// What happens now, of so many agents at once: they are written together.
const LIVE_MAX: usize = 64;
/// Agents of which is written at once what they say of themselves.
const DESCRIBING_MAX: usize = 32;

/// What a follower knows of its agent just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The agent is being tailed.
    pub connected: bool,
    /// Why it is not, or why it cannot go on.
    pub trouble: Option<String>,
    /// Everything up to here is stored, by the collector's clock.
    pub known_until: Option<Timestamp>,
    /// Where it calls from.
    pub from: Option<String>,
}

/// The followers. Dropping it ends them all.
pub struct Fleet {
    shared: Shared,
    followers: Mutex<HashMap<String, Follower>>,
    /// Hosts that have called, and of which is decided just now whether they are taken in.
    deciding: Mutex<HashSet<HostId>>,
    /// Counts the connections of those that call home.
    connections: AtomicU64,
    /// Held while the list and the followers are changed, so that they never come to differ.
    changing: Mutex<()>,
}

/// What every follower has.
#[derive(Clone)]
struct Shared {
    store: Arc<dyn Store>,
    access: Arc<Access>,
    keyring: Arc<Keyring>,
    /// Of those who come.
    turns: Turns,
    /// Room for what they send.
    budget: Budget,
    backlogs: Arc<Semaphore>,
    /// There to be counted: each follower has one.
    each: Arc<()>,
    live: Arc<Semaphore>,
    describing: Arc<Semaphore>,
}

impl Shared {
    /// Whether a host that has proven who it is may be followed, still; else why not.
    fn check_host(&self, host: HostId, now: Timestamp) -> Result<(), String> {
        match self.access.standing(host) {
            Standing::Enrolled { not_after, .. } if not_after < now => {
                Err("its certificate has run out".to_owned())
            }
            Standing::Enrolled { .. } => Ok(()),
            Standing::Revoked => Err("its enrolment is revoked".to_owned()),
            Standing::Unknown => Err("it is not enrolled".to_owned()),
        }
    }
}

/// One agent of the list.
struct Follower {
    live: watch::Sender<Live>,
    turn: Turn,
    /// Who is there: of those that call home, as long as they are connected.
    connection: Option<Connection>,
    /// Ends when dropped.
    task: Option<Task>,
}

/// An agent that has called home.
#[derive(Clone)]
struct Connection {
    number: u64,
    line: Line,
    instance: Instance,
    whereabouts: Whereabouts,
    /// The newest entry of the audit log that its owner was told.
    asked_until: u64,
}

/// A task that ends when this is dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where an agent of the list is.
enum Place {
    /// It is dialled there.
    Dialled(Address),
    /// It calls home.
    Home(HostId),
}

impl Place {
    /// As the list has it.
    fn parse(text: &str) -> Option<Self> {
        let home = text.parse().ok().map(Self::Home);
        home.or_else(|| text.parse().ok().map(Self::Dialled))
    }
}

impl Fleet {
    /// Follows every agent that the store lists. Must be called in a runtime.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn start(
        store: Arc<dyn Store>,
        access: Arc<Access>,
        keyring: Arc<Keyring>,
        turns: Turns,
    ) -> Result<Self, StoreError> {
        let places = |max| Arc::new(Semaphore::new(max));
        let shared = Shared {
            store,
            access,
            keyring,
            turns,
            budget: Budget::default(),
            backlogs: places(BACKLOGS_MAX),
            live: places(LIVE_MAX),
            describing: places(DESCRIBING_MAX),
            each: Arc::new(()),
        };
        let fleet = Self {
            shared,
            followers: Mutex::default(),
            deciding: Mutex::default(),
            connections: AtomicU64::new(0),
            changing: Mutex::default(),
        };
        for agent in fleet.shared.store.agents()? {
            match Place::parse(&agent.address) {
                Some(place) => fleet.follow(&place),
                None => tracing::error!(address = agent.address, "an agent is not followed: where is that?"),
            }
        }
        Ok(fleet)
    }

    /// Follows an agent from now on; false if it is followed already. Blocks.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn add(&self, address: &Address, runtime: &tokio::runtime::Handle) -> Result<bool, StoreError> {
        self.enter(&address.to_string(), Place::Dialled(address.clone()), runtime)
    }

    /// Lists a host that will call home. Blocks.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn expect(&self, host: HostId, runtime: &tokio::runtime::Handle) -> Result<(), StoreError> {
        self.enter(&host.to_string(), Place::Home(host), runtime).map(drop)
    }

    fn enter(
        &self,
        listed: &str,
        place: Place,
        runtime: &tokio::runtime::Handle,
    ) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let added = self.shared.store.add_agent(listed)?;
        if added {
            let _in_runtime = runtime.enter();
            self.follow(&place);
        }
        Ok(added)
    }

    /// Follows an agent no longer; false if it was not followed. Blocks.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn remove(&self, listed: &str) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.shared.store.remove_agent(listed)?;
        self.followers().remove(listed);
        Ok(removed)
    }

    /// Ends the connections of hosts that may have none any more.
    pub fn look_again(&self, now: Timestamp) {
        for (listed, follower) in
            self.followers().iter_mut().filter(|(_, follower)| follower.connection.is_some())
        {
            let Some(Place::Home(host)) = Place::parse(listed) else { continue };
            if let Err(reason) = self.shared.check_host(host, now) {
                tracing::info!(%host, reason, "the connection with a host is ended");
                (follower.task, follower.connection) = (None, None);
                follower.live.send_modify(|live| (live.connected, live.trouble) = (false, Some(reason)));
            }
        }
    }

    /// What is known of an agent just now.
    pub fn live(&self, listed: &str) -> Live {
        self.followers().get(listed).map(|follower| follower.live.borrow().clone()).unwrap_or_default()
    }

    /// Reads the whole of an agent's ring again, and holds it against the anchors.
    ///
    /// # Errors
    /// When it cannot be reached just now, or does not answer.
    pub(crate) async fn verify(
        &self,
        listed: &str,
        epoch: Epoch,
        anchors: &[Anchor],
    ) -> Result<Verified, Status> {
        verify::verify(self.line(listed).await?, epoch, anchors, self.shared.budget.clone()).await
    }

    /// A way to ask an agent that is listed.
    async fn line(&self, listed: &str) -> Result<Line, Status> {
        let unavailable = |why: String| Status::unavailable(format!("{listed} cannot be asked: {why}"));
        match Place::parse(listed) {
            Some(Place::Dialled(address)) => {
                let dialled = follower::dial(&address, &self.shared).await;
                dialled.map(|(line, _)| line).map_err(|error| unavailable(error.to_string()))
            }
            _ => {
                let line = |follower: &Follower| Some(follower.connection.as_ref()?.line.clone());
                let line = self.followers().get(listed).and_then(line);
                line.ok_or_else(|| unavailable("it is not connected".to_owned()))
            }
        }
    }

    /// Waits until everything up to `instant` is stored of each of these agents that is connected, or has had its
    /// first chance to be, but no longer than `timeout`.
    pub async fn await_known(&self, listed: &[String], instant: Timestamp, timeout: Duration) {
        let receivers: Vec<_> = {
            let followers = self.followers();
            let followed = listed.iter().filter_map(|listed| followers.get(listed));
            followed.map(|follower| follower.live.subscribe()).collect()
        };
        let all = async {
            for mut receiver in receivers {
                // An error means that the follower has ended; there is nothing to wait for.
                let _ = receiver
                    .wait_for(|live| live.trouble.is_some() || live.known_until >= Some(instant))
                    .await;
            }
        };
        // Whoever has not arrived by then is shown as a gap.
        let _ = tokio::time::timeout(timeout, all).await;
    }

    fn follow(&self, place: &Place) {
        let (live, turn) = (watch::Sender::new(Live::default()), Turn::default());
        let (listed, task) = match place {
            Place::Dialled(address) => {
                let follower =
                    follower::follow(address.clone(), Arc::clone(&turn), self.shared.clone(), live.clone());
                (address.to_string(), Some(tokio::spawn(follower)))
            }
            Place::Home(host) => {
                live.send_modify(|live| live.trouble = Some(NOT_CALLED.to_owned()));
                (host.to_string(), None)
            }
        };
        let task = task.map(|task: JoinHandle<()>| Task(task.abort_handle()));
        self.followers().insert(listed, Follower { live, turn, connection: None, task });
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<String, Follower>> {
        // A panic elsewhere cannot leave the map half changed.
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a host is not connected that calls home.
const NOT_CALLED: &str = "it has not called since the collector was started";
