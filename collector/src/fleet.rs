//! The agents that are followed: one task each, for ever, until it is removed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use alibi_proto::{time::Timestamp, transport::Address};
use tokio::{sync::watch, task::AbortHandle};

use crate::store::{Store, StoreError};

mod clock;
mod follower;
pub(crate) mod verify;

/// What a follower knows of its agent just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The agent is being tailed.
    pub connected: bool,
    /// Why it is not, or why it cannot go on.
    pub trouble: Option<String>,
    /// Everything up to here is stored, by the collector's clock.
    pub known_until: Option<Timestamp>,
}

/// The followers. Dropping it ends them all.
pub struct Fleet {
    store: Arc<dyn Store>,
    followers: Mutex<HashMap<String, Follower>>,
    /// Held while the list and the followers are changed, so that they never come to differ.
    changing: Mutex<()>,
}

struct Follower {
    live: watch::Receiver<Live>,
    task: AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fleet {
    /// Follows every agent that the store lists. Must be called in a runtime.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn start(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let fleet = Self { store, followers: Mutex::default(), changing: Mutex::default() };
        for agent in fleet.store.agents()? {
            match agent.address.parse() {
                Ok(address) => fleet.follow(&address),
                Err(error) => tracing::error!(address = agent.address, %error, "an agent is not followed"),
            }
        }
        Ok(fleet)
    }

    /// Follows an agent from now on; false if it is followed already. Blocks.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn add(&self, address: &Address, runtime: &tokio::runtime::Handle) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let added = self.store.add_agent(&address.to_string())?;
        if added {
            let _in_runtime = runtime.enter();
            self.follow(address);
        }
        Ok(added)
    }

    /// Follows an agent no longer; false if it was not followed. Blocks.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn remove(&self, address: &str) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.store.remove_agent(address)?;
        self.followers().remove(address);
        Ok(removed)
    }

    /// What is known of the agent at `address` just now.
    pub fn live(&self, address: &str) -> Live {
        self.followers().get(address).map(|follower| follower.live.borrow().clone()).unwrap_or_default()
    }

    /// Waits until everything up to `instant` is stored of each of these agents that is connected, or has had its
    /// first chance to be, but no longer than `timeout`.
    pub async fn await_known(&self, addresses: &[String], instant: Timestamp, timeout: Duration) {
        let receivers: Vec<_> = {
            let followers = self.followers();
            addresses
                .iter()
                .filter_map(|address| followers.get(address))
                .map(|follower| follower.live.clone())
                .collect()
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

    fn follow(&self, address: &Address) {
        let (sender, live) = watch::channel(Live::default());
        let follower = follower::follow(address.clone(), Arc::clone(&self.store), sender);
        let task = tokio::spawn(follower).abort_handle();
        self.followers().insert(address.to_string(), Follower { live, task });
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<String, Follower>> {
        // A panic elsewhere cannot leave the map half changed.
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
