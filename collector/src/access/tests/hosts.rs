use std::thread;

use super::*;
use crate::{
    access::{
        Admittance,
        enrolment::Rewound,
        host::{Copied, KeyHash, Standing},
        lease::{Instance, Lease, Place, Presented},
    },
    store::AGENTS_MAX,
};

fn place(name: &str) -> Place {
    Place {
        name: name.into(),
        machine_id: format!("machine of {name}"),
        boot_id: "boot".into(),
        address: "10.0.0.1:4321".into(),
        at: NOW,
    }
}

/// An agent on a disk.
#[derive(Clone)]
struct Agent {
    name: &'static str,
    instance: Instance,
    lease: Option<Lease>,
}

impl Agent {
    fn new(name: &'static str, instance: u8) -> Self {
        Self { name, instance: Instance::from_bytes([instance; 16]), lease: None }
    }

    fn come(&self, house: &House, alive: Option<&Agent>) -> Admittance {
        let presented = Presented { instance: self.instance, lease: self.lease };
        let alive = alive.map(|alive| (alive.instance, place(alive.name)));
        house.access.admit(host(1), &presented, place(self.name), alive).unwrap()
    }

    /// Comes, is admitted, and keeps what it is given.
    #[track_caller]
    fn joins(&mut self, house: &House) -> Option<Rewound> {
        match self.come(house, None) {
            Admittance::Admitted { lease, rewound } => {
                self.lease = Some(lease);
                assert!(house.access.confirm(host(1), lease));
                rewound
            }
            refused => panic!("{refused:?}"),
        }
    }
}

fn house_with_a_host() -> (House, Key) {
    let (house, key) = (House::new(), Key::new());
    house.enrol(&house.enrolment_token(1).secret, &key, host(1)).unwrap();
    (house, key)
}

#[test]
fn a_host_that_enrolled_is_known_by_its_key() {
    let (house, key) = (House::new(), Key::new());
    assert_eq!(house.access.standing(host(1)), Standing::Unknown);
    let certificate = house.enrol(&house.enrolment_token(1).secret, &key, host(1)).unwrap();
    assert_eq!(certificate.host, host(1));
    assert_eq!(certificate.authorities, house.access.authorities(NOW));
    let leaf = tls::CertificateDer::from(certificate.issued.chain[0].as_slice());
    assert_eq!(tls::Peer::of(&leaf).unwrap(), tls::Peer::Host(host(1)));
    let shown = rustls::server::ParsedCertificate::try_from(&leaf).unwrap().subject_public_key_info();
    let standing =
        Standing::Enrolled { key: KeyHash::of(&shown), not_after: after(30 * DAY), is_copied: false };
    assert_eq!(house.access.standing(host(1)), standing);
    let house = house.reopened();
    assert_eq!(house.access.standing(host(1)), standing);
    let known = house.access.host(host(1)).unwrap();
    assert_eq!((known.name.as_str(), &known.tags[..]), ("laptop", &["office".to_owned()][..]));
    assert_eq!((known.from.as_str(), known.enrolled), ("10.0.0.1:1234", NOW));
}

#[test]
fn a_host_comes_back_with_its_key_and_with_no_other() {
    let (house, key) = house_with_a_host();
    let token = house.enrolment_token(3);
    let before = house.access.host(host(1)).unwrap();
    house.access.enrol(&token.secret, &key.request(), host(1), "renamed", "", after(40 * DAY)).unwrap_err();
    house.access.enrol(&token.secret, &key.request(), host(1), "renamed", "", after(MINUTE)).unwrap();
    let again = house.access.host(host(1)).unwrap();
    assert_eq!((again.name.as_str(), again.enrolled, again.key), ("renamed", after(MINUTE), before.key));
    let other = house.enrol(&token.secret, &Key::new(), host(1));
    assert!(matches!(&other, Err(AccessError::OtherKey(_))), "{other:?}");
    assert!(other.unwrap_err().to_string().contains("alibi-agent enroll --reset"));
    house.access.revoke_host(host(1), NOW).unwrap();
    let revoked = house.enrol(&token.secret, &key, host(1));
    assert!(matches!(&revoked, Err(AccessError::Revoked(_))), "{revoked:?}");
    let uses = house.access.credentials().rows.iter().find(|one| one.id == token.id).unwrap().uses;
    assert_eq!(uses, 1, "what is refused costs nothing");
    house.enrol(&token.secret, &key, host(2)).unwrap();
}

#[test]
fn a_certificate_is_renewed_for_the_same_key() {
    let (house, key) = house_with_a_host();
    let renewed = house.access.renew(host(1), &key.request(), after(20 * DAY)).unwrap();
    assert_eq!(renewed.issued.validity.not_after, after(50 * DAY));
    let house = house.reopened();
    assert_eq!(house.access.host(host(1)).unwrap().certificate, renewed.issued.validity);
    for (host, key, want) in [(host(1), &Key::new(), "another key"), (host(2), &key, "is enrolled: enrol it")]
    {
        let refused = house.access.renew(host, &key.request(), NOW).unwrap_err().to_string();
        assert!(refused.contains(want), "{refused}");
    }
    house.access.revoke_host(host(1), NOW).unwrap();
    assert!(matches!(house.access.renew(host(1), &key.request(), NOW), Err(AccessError::Revoked(_))));
}

#[test]
fn a_revoked_host_is_out_at_once_and_stays_out() {
    let (house, _) = house_with_a_host();
    let mut worsened = house.access.worsened();
    worsened.mark_unchanged();
    house.access.revoke_host(host(1), NOW).unwrap();
    assert!(worsened.has_changed().unwrap());
    house.access.revoke_host(host(1), after(DAY)).unwrap();
    assert_eq!(house.access.host(host(1)).unwrap().revoked, Some(NOW), "since the first time");
    let house = house.reopened();
    assert_eq!(house.access.standing(host(1)), Standing::Revoked);
    let presented = Presented { instance: Instance::from_bytes([1; 16]), lease: None };
    let admitted = house.access.admit(host(1), &presented, place("a"), None);
    assert!(matches!(admitted, Err(AccessError::Revoked(_))));
    for error in [
        house.access.revoke_host(host(2), NOW).unwrap_err(),
        house.access.admit(host(2), &presented, place("a"), None).unwrap_err(),
        house.access.unmark(host(2)).unwrap_err(),
    ] {
        assert!(matches!(error, AccessError::UnknownHost(_)));
    }
}

#[test]
fn hosts_are_bounded_and_a_revoked_one_makes_room() {
    let house = House::new();
    let token = house.enrolment_token(100);
    for number in 1..=AGENTS_MAX as u8 {
        house.enrol(&token.secret, &Key::new(), host(number)).unwrap();
    }
    assert!(matches!(house.enrol(&token.secret, &Key::new(), host(99)), Err(AccessError::TooManyHosts)));
    house.access.revoke_host(host(1), NOW).unwrap();
    house.enrol(&token.secret, &Key::new(), host(99)).unwrap();
}

#[test]
fn one_disk_in_one_place_goes_on() {
    let (mut house, _) = house_with_a_host();
    let mut agent = Agent::new("a", 1);
    for instance in 1..10 {
        agent.instance = Instance::from_bytes([instance; 16]);
        assert_eq!(agent.joins(&house), None);
        house = if instance % 2 == 0 { house.crashed() } else { house.reopened() };
    }
    assert_eq!(house.access.host(host(1)).unwrap().admitted, Some(place("a")));
}

/// Kept, and the answer was lost, with a crash of the collector or without.
#[test]
fn a_lease_that_was_told_is_known_for_ever() {
    let (mut house, _) = house_with_a_host();
    let mut agent = Agent::new("a", 1);
    for crash in [false, true, false, true] {
        let Admittance::Admitted { lease, rewound: None } = agent.come(&house, None) else { panic!() };
        agent.lease = Some(lease);
        if crash {
            house = house.crashed();
        }
    }
    assert_eq!(agent.joins(&house), None);
}

#[test]
fn a_copy_beside_the_host_is_refused_and_the_host_stays() {
    let (house, key) = house_with_a_host();
    let mut agent = Agent::new("a", 1);
    agent.joins(&house);
    let copy = Agent { name: "b", instance: Instance::from_bytes([2; 16]), ..agent.clone() };
    let copied = Copied { there: Some(place("a")), here: place("b") };
    assert_eq!(copy.come(&house, Some(&agent)), Admittance::Refused(copied.clone()));
    let late = Agent { name: "c", ..copy };
    assert!(matches!(late.come(&house, Some(&agent)), Admittance::Refused(_)));

    let house = house.crashed();
    assert_eq!(house.access.host(host(1)).unwrap().copied, Some(copied), "the first two");
    assert!(matches!(house.access.standing(host(1)), Standing::Enrolled { is_copied: true, .. }));
    assert_eq!(agent.joins(&house), None, "with the right lease, and nobody else there");
    assert!(matches!(late.come(&house, None), Admittance::Refused(_)), "with an older one");
    let renewed = house.access.renew(host(1), &key.request(), NOW);
    assert!(matches!(renewed, Err(AccessError::Copied(_))));
    let again = house.enrol(&house.enrolment_token(1).secret, &key, host(1));
    assert!(matches!(again, Err(AccessError::Copied(_))));

    house.access.unmark(host(1)).unwrap();
    let house = house.reopened();
    assert_eq!(house.access.host(host(1)).unwrap().copied, None);
    house.access.renew(host(1), &key.request(), NOW).unwrap();
}

#[test]
fn a_disk_that_was_restored_is_the_host_and_what_it_was_before_is_a_copy() {
    let (house, _) = house_with_a_host();
    let mut agent = Agent::new("a", 1);
    agent.joins(&house);
    let mut restored = Agent { name: "b", instance: Instance::from_bytes([2; 16]), ..agent.clone() };
    agent.joins(&house);
    agent.joins(&house);
    house.access.tick(NOW).unwrap();
    let house = house.crashed();
    assert_eq!(restored.joins(&house), Some(Rewound { before: Some(place("a")) }));
    assert_eq!(restored.joins(&house), None);
    let house = house.crashed();
    let copied = Copied { there: Some(place("b")), here: place("a") };
    assert_eq!(agent.come(&house, None), Admittance::Refused(copied));
    assert_eq!(restored.joins(&house), None, "it goes on");
}

#[test]
fn a_lease_that_was_withdrawn_is_not_confirmed() {
    let (house, _) = house_with_a_host();
    let agent = Agent::new("a", 1);
    let Admittance::Admitted { lease: first, .. } = agent.come(&house, None) else { panic!() };
    let Admittance::Admitted { lease: second, .. } = agent.come(&house, Some(&agent)) else { panic!() };
    assert!(!house.access.confirm(host(1), first));
    assert!(house.access.confirm(host(1), second));
    assert!(!house.access.confirm(host(2), second));
}

#[test]
fn hosts_come_in_crowds() {
    let house = House::new();
    let token = house.enrolment_token(100);
    let hosts: Vec<HostId> = (1..=10).map(host).collect();
    for host in &hosts {
        house.enrol(&token.secret, &Key::new(), *host).unwrap();
    }
    let leases: Vec<Lease> = thread::scope(|scope| {
        let access = &house.access;
        let come = |host: &HostId| {
            let host = *host;
            scope.spawn(move || {
                let mut lease = None;
                for _ in 0..10 {
                    let presented = Presented { instance: Instance::from_bytes([1; 16]), lease };
                    let Ok(Admittance::Admitted { lease: fresh, rewound: None }) =
                        access.admit(host, &presented, place("a"), None)
                    else {
                        panic!("refused")
                    };
                    lease = Some(fresh);
                    assert!(access.confirm(host, fresh));
                }
                lease.unwrap()
            })
        };
        let threads: Vec<_> = hosts.iter().map(come).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let house = house.crashed();
    for (host, lease) in hosts.iter().zip(leases) {
        let known = house.access.host(*host).unwrap().leases;
        assert!(known.current == Some(lease) || known.offered == Some(lease), "{known:?}");
    }
}

#[test]
fn what_a_host_says_of_itself_is_bounded() {
    let (house, key) = house_with_a_host();
    let token = house.enrolment_token(1);
    let long = "ä".repeat(100_000);
    house.access.enrol(&token.secret, &key.request(), host(1), &long, &long, NOW).unwrap();
    let presented = Presented { instance: Instance::from_bytes([1; 16]), lease: None };
    let here =
        Place { name: long.clone(), machine_id: long.clone(), boot_id: long.clone(), address: long, at: NOW };
    house.access.admit(host(1), &presented, here, None).unwrap();
    let known = house.reopened().access.host(host(1)).unwrap();
    let admitted = known.admitted.unwrap();
    for text in
        [known.name, known.from, admitted.name, admitted.machine_id, admitted.boot_id, admitted.address]
    {
        assert_eq!(text.chars().count(), 255);
    }
}
