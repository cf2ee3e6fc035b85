//! Who an id is, as the system's list of users has it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use alibi_proto::process::User;

/// The list is read again for an unknown id, but not more often.
const USERS_INTERVAL: Duration = Duration::from_secs(60);

/// Names of users by their ids.
#[derive(Default)]
pub(super) struct Users {
    names: HashMap<u32, String>,
    read: Option<Instant>,
}

impl Users {
    pub(super) fn user(&mut self, id: u32) -> User {
        if !self.names.contains_key(&id) && self.read.is_none_or(|read| read.elapsed() >= USERS_INTERVAL) {
            self.read = Some(Instant::now());
            if let Ok(users) = sysinfo::Users::new_with_refreshed_list() {
                self.names = users.iter().map(|user| (**user.id(), user.name().to_owned())).collect();
            }
        }
        User { id: id.to_string(), name: self.names.get(&id).cloned() }
    }
}
