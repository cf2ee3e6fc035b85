//! The door: those who have not proven who they are yet. There are so many places; when they are taken, the longest of the
//! network that has the most of them goes. So a crowd from one place displaces itself, and nobody from elsewhere; of a crowd
//! from everywhere the longest goes, since whoever means it is quick.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;

use crate::access::rate::network_of;

/// Those who stand there.
#[derive(Debug)]
pub(super) struct Door {
    places: usize,
    standing: Mutex<Standing>,
}

/// A place at the door; free again when dropped.
pub(super) struct Place {
    door: Arc<Door>,
    number: u64,
}

impl Door {
    /// With so many places.
    pub(super) fn new(places: u64) -> Arc<Self> {
        let places = usize::try_from(places).unwrap_or(usize::MAX);
        Arc::new(Self { places, standing: Mutex::default() })
    }

    /// Runs what somebody does at the door, in the place of another, if there are too many.
    pub(super) fn stand<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        from: IpAddr,
        work: impl FnOnce(Place) -> F,
    ) {
        let number = {
            let mut standing = self.lock();
            if standing.by_number.len() >= self.places
                && let Some(goes) = standing.goes()
            {
                standing.leave(goes).into_iter().for_each(|task| task.abort());
            }
            standing.come(network_of(from))
        };
        let task = tokio::spawn(work(Place { door: Arc::clone(self), number }));
        if let Some((_, place)) = self.lock().by_number.get_mut(&number) {
            *place = Some(task.abort_handle());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        // A panic elsewhere cannot leave the maps half changed.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.lock().leave(self.number);
    }
}

#[derive(Debug, Default)]
struct Standing {
    next: u64,
    by_number: BTreeMap<u64, (IpAddr, Option<AbortHandle>)>,
    by_network: HashMap<IpAddr, BTreeSet<u64>>,
    /// How many come from each network; among as many, the one with the longest comes last.
    crowds: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
}

impl Standing {
    fn come(&mut self, network: IpAddr) -> u64 {
        self.next += 1;
        let number = self.next;
        self.by_number.insert(number, (network, None));
        self.change(network, |numbers| {
            numbers.insert(number);
        });
        number
    }

    fn leave(&mut self, number: u64) -> Option<AbortHandle> {
        let (network, task) = self.by_number.remove(&number)?;
        self.change(network, |numbers| {
            numbers.remove(&number);
        });
        task
    }

    /// Whose turn it is to go.
    fn goes(&self) -> Option<u64> {
        self.crowds.last().map(|(_, Reverse(longest), _)| *longest)
    }

    fn change(&mut self, network: IpAddr, change: impl FnOnce(&mut BTreeSet<u64>)) {
        let crowd = |numbers: &BTreeSet<u64>| Some((numbers.len(), Reverse(*numbers.first()?), network));
        let numbers = self.by_network.entry(network).or_default();
        if let Some(before) = crowd(numbers) {
            self.crowds.remove(&before);
        }
        change(numbers);
        match crowd(numbers) {
            Some(after) => {
                self.crowds.insert(after);
            }
            None => {
                self.by_network.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    const PLACES: usize = 4;

    /// Says when it is dropped.
    struct Told(u8, mpsc::UnboundedSender<u8>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    /// Those come from these networks, in turn, and stay; those who had to go, by when they came.
    async fn gone(networks: &[u8]) -> Vec<u8> {
        let door = Door::new(PLACES as u64);
        let (sender, mut gone) = mpsc::unbounded_channel();
        for (number, network) in (0..).zip(networks) {
            let told = Told(number, sender.clone());
            door.stand(IpAddr::from([10, 0, 0, *network]), |place| async move {
                let _both = (place, told);
                std::future::pending::<()>().await;
            });
        }
        let mut numbers = Vec::new();
        for _ in PLACES..networks.len() {
            numbers.push(gone.recv().await.unwrap());
        }
        assert_eq!(door.lock().by_number.len(), PLACES);
        assert!(gone.try_recv().is_err(), "nobody else");
        numbers.sort_unstable();
        numbers
    }

    #[tokio::test]
    async fn when_there_are_too_many_the_longest_of_the_largest_crowd_goes() {
        // A crowd from one place, and one from everywhere.
        assert_eq!(gone(&[1; 7]).await, [0, 1, 2]);
        assert_eq!(gone(&[1, 2, 3, 4, 5, 6, 7]).await, [0, 1, 2]);
        // Whoever comes alone stays, before the crowd and after it.
        assert_eq!(gone(&[9, 1, 1, 1, 1, 1, 1]).await, [1, 2, 3]);
        assert_eq!(gone(&[1, 1, 1, 1, 9, 1, 1]).await, [0, 1, 2]);
        assert_eq!(gone(&[1, 2, 2, 1, 9, 8, 7]).await, [0, 1, 2]);
    }

    #[tokio::test]
    async fn who_has_come_in_is_not_at_the_door() {
        let door = Door::new(PLACES as u64);
        let (sender, mut told) = mpsc::unbounded_channel();
        for number in 0..100 {
            let sender = sender.clone();
            door.stand(IpAddr::from([10, 0, 0, number]), |place| async move {
                drop(place);
                let _ = sender.send(number);
            });
            assert_eq!(told.recv().await, Some(number));
        }
        let standing = door.lock();
        assert!(
            standing.by_number.is_empty() && standing.by_network.is_empty() && standing.crowds.is_empty()
        );
    }
}
