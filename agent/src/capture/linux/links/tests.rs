//! In network namespaces of their own; they need root.

use alibi_proto::link::LinkRecord;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::capture::linux::netlink::testing::{in_fresh_namespace, ip};

fn take(links: &mut Links) -> Vec<LinkRecord> {
    let mut facts = Vec::new();
    links.take(sys::now(), &mut facts).unwrap();
    let link = |observation: Observation| match observation.fact {
        Fact::LinkChanged(link) => *link,
        other => panic!("{other:?}"),
    };
    facts.into_iter().map(link).collect()
}

/// As `name present up running addresses gateways`, those of IPv6 left out: they come when they like.
fn text(link: &LinkRecord) -> String {
    let yes = |is: bool, word: &str| if is { format!(" {word}") } else { String::new() };
    let v4 = |texts: &[String]| {
        texts.iter().filter(|text| !text.contains(':')).cloned().collect::<Vec<_>>().join(",")
    };
    format!(
        "{}{}{}{} [{}] [{}]",
        link.interface,
        yes(link.present, "present"),
        yes(link.up, "up"),
        yes(link.running, "running"),
        v4(&link.addresses),
        v4(&link.default_gateways)
    )
}

/// Takes until `link` has been told to be as `last`; fails after 10 s. What was told of it, without repeats.
#[track_caller]
fn until(links: &mut Links, link: &str, last: &str) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for _ in 0..100 {
        for record in take(links).iter().filter(|record| record.interface == link) {
            let text = text(record);
            if told.last() != Some(&text) {
                told.push(text);
            }
        }
        if told.last().is_some_and(|text| text == last) {
            return told;
        }
        let mut descriptors = [PollFd::from_borrowed_fd(links.descriptor(), PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap();
    }
    panic!("{link} never became `{last}`: {told:#?}");
}

#[test]
fn the_life_of_a_cable_is_told_in_order() {
    in_fresh_namespace(|| {
        let mut links = Links::open().unwrap();
        let found = take(&mut links);
        assert_eq!(found.iter().map(text).collect::<Vec<_>>(), ["lo present [] []"]);
        assert_eq!(found[0].network_namespace, sys::network_namespace());
        assert_eq!(take(&mut links), []);

        ip("link add c0 type veth peer name c1");
        until(&mut links, "c0", "c0 present [] []");
        ip("link set c0 up");
        until(&mut links, "c0", "c0 present up [] []");
        ip("link set c1 up");
        until(&mut links, "c0", "c0 present up running [] []");
        ip("address add 192.0.2.7/24 dev c0");
        until(&mut links, "c0", "c0 present up running [192.0.2.7/24] []");
        ip("route add default via 192.0.2.1");
        until(&mut links, "c0", "c0 present up running [192.0.2.7/24] [192.0.2.1]");
        ip("route replace default via 192.0.2.2");
        until(&mut links, "c0", "c0 present up running [192.0.2.7/24] [192.0.2.2]");

        // The cable is pulled: the addresses stay.
        ip("link set c1 down");
        until(&mut links, "c0", "c0 present up [192.0.2.7/24] [192.0.2.2]");
        ip("link set c1 up");
        until(&mut links, "c0", "c0 present up running [192.0.2.7/24] [192.0.2.2]");

        // The kernel says nothing of the route that goes with this.
        ip("link set c0 down");
        until(&mut links, "c0", "c0 present [192.0.2.7/24] []");
        ip("link set c0 up");
        until(&mut links, "c0", "c0 present up running [192.0.2.7/24] []");
        ip("address del 192.0.2.7/24 dev c0");
        until(&mut links, "c0", "c0 present up running [] []");
        ip("link del c0");
        let told = until(&mut links, "c0", "c0 [] []");
        assert_eq!(told.last().unwrap(), "c0 [] []", "gone");
    });
}

#[test]
fn changes_between_two_turns_are_told_one_by_one() {
    in_fresh_namespace(|| {
        let mut links = Links::open().unwrap();
        take(&mut links);
        ip("link add c0 type veth peer name c1");
        ip("link set c1 up");
        ip("link set c0 up");
        ip("link set c0 down");
        ip("link set c0 up");
        ip("link del c0");
        let told = until(&mut links, "c0", "c0 [] []");
        assert_eq!(told[0], "c0 present [] []", "{told:#?}");
        let ups = told.iter().filter(|text| text.starts_with("c0 present up")).count();
        assert!(ups >= 2, "{told:#?}");
    });
}

#[test]
fn what_an_overrun_hides_is_found_by_a_new_look() {
    in_fresh_namespace(|| {
        let mut links = Links::open_with_room(1).unwrap();
        take(&mut links);
        ip("link add c0 type veth peer name c1");
        for address in 1..100 {
            ip(&format!("address add 192.0.2.{address}/32 dev c0"));
        }
        ip("link set c0 up");
        let told = take(&mut links);
        assert_eq!(links.overruns, 1);
        let c0 = told.iter().rfind(|link| link.interface == "c0").unwrap();
        assert!(c0.up);
        assert_eq!(c0.addresses.len(), 64, "as many as there is room for");
        assert_eq!(take(&mut links), []);
    });
}
