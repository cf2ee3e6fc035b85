//! Those who are in: connections of analysts, and of whoever wants a certificate. There are so many places; when they are
//! taken, one goes of those who have not shown who they are, as [at the door](crate::gate): the longest of the network that
//! has the most of them. Where all have, the longest of whoever has the most places goes, so that nobody keeps others out by
//! taking many; and where each has one, nobody more comes in.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use alibi_proto::tls::Peer;
use tokio::sync::Notify;

use crate::access::rate::network_of;

/// How long somebody may be there before showing who they are.
pub const STRANGER_TIMEOUT: Duration = Duration::from_secs(20);

/// One of the connections.
#[derive(Debug)]
pub struct Visit {
    /// Where it comes from.
    pub from: SocketAddr,
    /// Who it has proven to be by a certificate.
    pub peer: Option<Peer>,
    /// The number of the credential that was good last; 0 before.
    known_by: AtomicU64,
    ended: Notify,
}

impl Visit {
    /// The number of the analyst's certificate that it has shown.
    pub fn certificate(&self) -> Option<u64> {
        match self.peer {
            Some(Peer::Analyst(number)) => Some(number),
            _ => None,
        }
    }

    /// Somebody has shown who they are.
    pub fn known_by(&self, credential: u64) {
        self.known_by.store(credential, Ordering::Relaxed);
    }

    /// By which credential.
    pub fn credential(&self) -> Option<u64> {
        Some(self.known_by.load(Ordering::Relaxed)).filter(|number| *number != 0)
    }

    /// Resolves when the connection has to end.
    pub async fn ended(&self) {
        let stranger_goes = async {
            tokio::time::sleep(STRANGER_TIMEOUT).await;
            if self.credential().is_some() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.ended.notified() => {}
            () = stranger_goes => {}
        }
    }

    fn end(&self) {
        // Kept for whoever waits for it later.
        self.ended.notify_one();
    }
}

/// The places.
#[derive(Debug)]
pub struct Visits {
    places: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    by_number: BTreeMap<u64, Arc<Visit>>,
}

impl Taken {
    /// Whose place another takes.
    fn goes(&self) -> Option<u64> {
        let strangers = |visit: &Visit| visit.credential().is_none().then(|| network_of(visit.from.ip()));
        self.longest_of_the_most(strangers, 1).or_else(|| self.longest_of_the_most(Visit::credential, 2))
    }

    /// Of those who have the most places together, `least` at least.
    fn longest_of_the_most<K: Eq + Hash>(
        &self,
        who: impl Fn(&Visit) -> Option<K>,
        least: usize,
    ) -> Option<u64> {
        let mut longest_and_count: HashMap<K, (u64, usize)> = HashMap::new();
        for (number, visit) in &self.by_number {
            if let Some(who) = who(visit) {
                longest_and_count.entry(who).or_insert((*number, 0)).1 += 1;
            }
        }
        let most = longest_and_count.into_values().max_by_key(|(longest, count)| (*count, Reverse(*longest)));
        most.filter(|(_, count)| *count >= least).map(|(longest, _)| longest)
    }
}

/// A place that is taken; free again when dropped.
#[derive(Debug)]
pub struct Seat {
    visits: Arc<Visits>,
    number: u64,
    /// Who has it.
    pub visit: Arc<Visit>,
}

impl Visits {
    /// So many places.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, taken: Mutex::default() })
    }

    /// A place; none if all are taken, each by somebody else who has shown who they are.
    pub fn enter(self: &Arc<Self>, from: SocketAddr, peer: Option<Peer>) -> Option<Seat> {
        let mut taken = self.lock();
        if taken.by_number.len() >= self.places {
            let goes = taken.goes()?;
            taken.by_number.remove(&goes).iter().for_each(|visit| visit.end());
        }
        taken.next += 1;
        let number = taken.next;
        let visit = Visit { from, peer, known_by: AtomicU64::new(0), ended: Notify::new() };
        visit.known_by(visit.certificate().unwrap_or(0));
        let visit = Arc::new(visit);
        taken.by_number.insert(number, Arc::clone(&visit));
        Some(Seat { visits: Arc::clone(self), number, visit })
    }

    /// Ends the connections of those whose credential is not good any more.
    pub fn end_unless(&self, is_good: impl Fn(u64) -> bool) {
        for visit in self.lock().by_number.values() {
            if visit.credential().is_some_and(|credential| !is_good(credential)) {
                visit.end();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // A panic elsewhere cannot leave the map half changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.visits.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[tokio::test]
    async fn strangers_make_room_and_nobody_else_does() {
        let visits = Visits::new(3);
        let known = visits.enter(FROM, Some(Peer::Analyst(7))).unwrap();
        let (first, second) = (visits.enter(FROM, None).unwrap(), visits.enter(FROM, None).unwrap());
        let third = visits.enter(FROM, None).unwrap();
        first.visit.ended().await;
        second.visit.known_by(8);
        third.visit.known_by(9);
        assert!(visits.enter(FROM, Some(Peer::Analyst(10))).is_none(), "all have shown who they are");
        drop(known);
        assert!(visits.enter(FROM, None).is_some());
    }

    #[tokio::test]
    async fn who_has_the_most_places_makes_room() {
        let visits = Visits::new(4);
        let enter = |credential| visits.enter(FROM, Some(Peer::Analyst(credential)));
        let one = enter(1).unwrap();
        let many: Vec<_> = (0..3).map(|_| enter(2).unwrap()).collect();
        let _other = enter(3).unwrap();
        many[0].visit.ended().await;
        let _again = enter(2).unwrap();
        many[1].visit.ended().await;
        let _one_more = enter(4).unwrap();
        many[2].visit.ended().await;
        assert!(enter(5).is_none(), "each has one");
        assert!(tokio::time::timeout(Duration::from_millis(1), one.visit.ended()).await.is_err());
    }

    #[tokio::test]
    async fn who_is_not_good_any_more_has_to_go() {
        let visits = Visits::new(3);
        let (good, bad) =
            (visits.enter(FROM, Some(Peer::Analyst(1))).unwrap(), visits.enter(FROM, None).unwrap());
        bad.visit.known_by(2);
        visits.end_unless(|credential| credential == 1);
        bad.visit.ended().await;
        assert!(tokio::time::timeout(Duration::from_millis(1), good.visit.ended()).await.is_err());
    }
}
