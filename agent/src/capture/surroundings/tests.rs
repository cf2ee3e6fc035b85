use std::sync::{Arc, Mutex};

use alibi_proto::{link::LinkRecord, time::Timestamp};

use super::*;

const S: u64 = 1_000_000_000;

/// A system that says what a test has it say.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    boot_ns: u64,
    awake_ns: u64,
    last_sleep: Option<Duration>,
    changed: bool,
    interfaces: Option<Vec<Interface>>,
    listings: u32,
}

impl Made {
    fn say(&self, what: impl FnOnce(&mut Said)) {
        what(&mut self.0.lock().unwrap());
    }

    fn awake_for(&self, secs: u64) {
        self.say(|said| (said.boot_ns, said.awake_ns) = (said.boot_ns + secs * S, said.awake_ns + secs * S));
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings::of(Box::new(self.clone()))
    }
}

impl System for Made {
    fn now(&self) -> Moment {
        let boot_ns = self.0.lock().unwrap().boot_ns;
        Moment { wall: Timestamp::from_nanos(1_764_000_000 * S + boot_ns), boot_ns }
    }

    fn awake_ns(&self) -> u64 {
        self.0.lock().unwrap().awake_ns
    }

    fn last_sleep(&mut self) -> Option<Duration> {
        self.0.lock().unwrap().last_sleep
    }

    fn interfaces_may_have_changed(&mut self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap().changed)
    }

    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let mut said = self.0.lock().unwrap();
        said.listings += 1;
        said.interfaces.clone().ok_or_else(|| io::Error::other("no room"))
    }
}

fn ethernet(up: bool) -> Interface {
    Interface {
        index: 7,
        name: "Ethernet".into(),
        up,
        running: up,
        addresses: vec!["192.0.2.7/24".into(), "fe80::7/64".into()],
        default_gateways: vec!["192.0.2.1".into()],
    }
}

fn links(observations: Vec<Observation>) -> Vec<LinkRecord> {
    let link = |observation: Observation| match observation.fact {
        Fact::LinkChanged(link) => *link,
        other => panic!("{other:?}"),
    };
    observations.into_iter().map(link).collect()
}

#[test]
fn the_first_look_tells_all_interfaces_and_the_others_what_changed() {
    let made = Made::default();
    made.say(|said| said.interfaces = Some(vec![ethernet(true)]));
    let mut surroundings = made.surroundings();
    let (at, observations) = surroundings.look();
    let first = links(observations);
    let expected = LinkRecord {
        at: at.wall,
        interface: "Ethernet".into(),
        index: 7,
        present: true,
        up: true,
        running: true,
        addresses: vec!["192.0.2.7/24".into(), "fe80::7/64".into()],
        default_gateways: vec!["192.0.2.1".into()],
        network_namespace: None,
    };
    assert_eq!(first, [expected]);

    let other = Interface {
        index: 9,
        name: "Wi-Fi".into(),
        default_gateways: vec!["on-link".into()],
        ..ethernet(true)
    };
    made.say(|said| {
        said.changed = true;
        said.interfaces = Some(vec![ethernet(true), other]);
    });
    let found = links(surroundings.look().1);
    assert_eq!(found.iter().map(|link| link.index).collect::<Vec<_>>(), [9]);
    assert_eq!(found[0].default_gateways, ["on-link"]);

    made.say(|said| {
        said.changed = true;
        said.interfaces = Some(vec![ethernet(false)]);
    });
    let found = links(surroundings.look().1);
    let found: Vec<_> = found.iter().map(|link| (link.index, link.present, link.up)).collect();
    assert_eq!(found, [(7, true, false), (9, false, false)]);
}

#[test]
fn interfaces_are_looked_at_when_they_changed_and_now_and_then() {
    let made = Made::default();
    let listings = || made.0.lock().unwrap().listings;
    let mut surroundings = made.surroundings();
    surroundings.look();
    assert_eq!(surroundings.look().1, [], "they cannot be looked at");
    assert_eq!(listings(), 2, "and so it is tried again");

    made.say(|said| said.interfaces = Some(vec![ethernet(true)]));
    assert_eq!(links(surroundings.look().1).len(), 1);
    surroundings.look();
    assert_eq!(listings(), 3, "nobody said that anything changed");
    made.say(|said| said.interfaces = Some(vec![ethernet(false)]));
    made.awake_for(LISTING_INTERVAL.as_secs() - 1);
    assert_eq!(surroundings.look().1, []);
    made.awake_for(1);
    assert_eq!(links(surroundings.look().1).len(), 1, "what nobody said is found all the same");
}

#[test]
fn a_suspend_is_told_if_the_system_says_that_it_was_one() {
    let made = Made::default();
    made.say(|said| said.interfaces = Some(Vec::new()));
    let mut surroundings = made.surroundings();
    surroundings.look();
    let mut sleep = |last_s: Option<u64>| {
        made.awake_for(1);
        made.say(|said| {
            said.boot_ns += 3_600 * S;
            said.last_sleep = last_s.map(Duration::from_secs);
        });
        surroundings.look()
    };
    let (at, observations) = sleep(Some(3_600));
    let [Observation { at: told_at, fact: Fact::Suspended { from, to } }] = observations[..] else {
        panic!("{observations:?}")
    };
    assert_eq!(told_at, to, "it is dated to its end");
    // Up to a second awake, and the error of the word for how long it slept, on each side.
    assert_eq!((at.boot_ns - from.boot_ns, at.boot_ns - to.boot_ns), (3_596 * S, 5 * S));
    assert_eq!(sleep(None).1, []);
    assert_eq!(sleep(Some(1_800)).1, [], "it slept before, too");
}
