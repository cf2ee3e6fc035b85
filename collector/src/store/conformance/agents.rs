//! Which agents are followed.

use super::{Home, samples::*};
use crate::store::{AGENTS_MAX, Progress, Store, StoreError};
use alibi_proto::id::HostId;

fn addresses(store: &impl Store) -> Vec<String> {
    store.agents().unwrap().into_iter().map(|agent| agent.address).collect()
}

pub(in crate::store) fn are_listed_in_the_order_in_which_they_were_added<H: Home>() {
    let home = H::new();
    let store = home.open();
    for address in ["b:1", "a:1", "c:1"] {
        assert!(store.add_agent(address).unwrap());
    }
    assert!(!store.add_agent("a:1").unwrap(), "followed already");
    assert!(store.remove_agent("b:1").unwrap());
    assert!(!store.remove_agent("b:1").unwrap());
    assert!(store.add_agent("b:1").unwrap());
    assert_eq!(addresses(&store), ["a:1", "c:1", "b:1"]);
    assert!(store.agents().unwrap().iter().all(|agent| agent.host.is_none()));

    drop(store);
    assert_eq!(addresses(&home.open()), ["a:1", "c:1", "b:1"]);
}

pub(in crate::store) fn are_refused_beyond_the_limit<H: Home>() {
    let home = H::new();
    let store = home.open();
    for number in 0..AGENTS_MAX {
        assert!(store.add_agent(&format!("agent:{number}")).unwrap());
    }
    assert!(matches!(store.add_agent("one:1"), Err(StoreError::TooManyAgents)));
    assert!(!store.add_agent("agent:0").unwrap(), "followed already is not one more");
    assert!(store.remove_agent("agent:0").unwrap());
    assert!(store.add_agent("one:1").unwrap());
}

pub(in crate::store) fn keep_one_host_each<H: Home>() {
    let home = H::new();
    let store = home.open();
    let unknown = store.describe("one:1", &description(HOST), None, at(1));
    assert!(matches!(unknown, Err(StoreError::UnknownAgent(address)) if address == "one:1"));

    follow(&store);
    store.commit(HOST, &batch(EPOCH, 1, some_flows(2)), at(2)).unwrap();
    assert!(store.add_agent("two:1").unwrap());
    let taken = store.describe("two:1", &description(HOST), None, at(2));
    assert!(matches!(taken, Err(StoreError::HostTaken { host: HOST, address }) if address == "one:1"));

    assert!(store.remove_agent("one:1").unwrap());
    let progress = store.describe("two:1", &description(HOST), None, at(3)).unwrap();
    assert_eq!((progress.next.seq.0, progress.events), (3, 2), "what it sent is kept, and goes on");

    let other = HostId::from_bytes([8; 16]);
    assert_eq!(
        store.describe("two:1", &description(other), None, at(4)).unwrap().events,
        0,
        "installed anew"
    );
    assert!(store.add_agent("one:1").unwrap());
    assert!(store.describe("one:1", &description(HOST), None, at(5)).is_ok(), "free again");
}

pub(in crate::store) fn are_described_anew_each_time<H: Home>() {
    let home = H::new();
    let store = home.open();
    assert!(store.add_agent("one:1").unwrap());
    let first = store.describe("one:1", &description(HOST), None, at(1)).unwrap();
    assert_eq!(first, Progress { heard: Some(at(1)), ..Progress::default() });

    let mut renamed = description(HOST);
    renamed.name = "other".into();
    renamed.agent_version = "0.2.0".into();
    let second = store.describe("one:1", &renamed, None, at(9)).unwrap();
    assert_eq!(second.heard, Some(at(9)));
    assert_eq!(store.agents().unwrap()[0].host, Some((renamed.clone().into(), second)));
    drop(store);
    assert_eq!(home.open().agents().unwrap()[0].host, Some((renamed.into(), second)));
}
