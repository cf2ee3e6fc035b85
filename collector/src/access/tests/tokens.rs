use std::thread;

use super::*;
use crate::access::authority::ANALYST_LIFETIME_MAX;
use crate::access::credential::{CREDENTIALS_MAX, CredentialId, CredentialKind, LISTED_MAX, LOGINS_MAX};

const NOBODYS: Secret = Secret::from_bytes([9; 32]);

#[test]
fn the_first_admin_gets_one_token_once() {
    let house = House::new();
    let token = house.access.bootstrap(NOW).unwrap().unwrap();
    assert_eq!(token.expires, after(DAY));
    assert_eq!(house.access.bootstrap(NOW).unwrap(), None);
    let house = house.reopened();
    assert_eq!(house.access.bootstrap(NOW).unwrap(), None);
    assert_eq!(house.access.credential_by_secret(&token.secret, NOW), Err(Refusal::LoginOnly));
    let admin = house.login(&token.secret, NOW).unwrap();
    assert_eq!((admin.analyst.name.as_str(), admin.analyst.role), ("admin", Role::Admin));
    assert_eq!(
        admin.analyst.expires,
        after(ANALYST_LIFETIME_MAX),
        "the token was for one login, and this is it"
    );
    refused(house.login(&token.secret, NOW), Refusal::UsedUp);
    let house = house.reopened();
    refused(house.login(&token.secret, NOW), Refusal::UsedUp);
    assert_eq!(house.access.credential(admin.analyst.credential, NOW), Ok(admin.analyst));
}

#[test]
fn where_there_is_an_admin_there_is_no_first_one() {
    let house = House::new();
    house.analyst_token("jdoe", Role::Responder);
    house.analyst_token("mroe", Role::Admin);
    assert_eq!(house.access.bootstrap(NOW).unwrap(), None);
}

#[test]
fn a_token_asks_and_logs_in_and_takes_along_what_came_of_it() {
    let house = House::new();
    let token = house.analyst_token("jdoe", Role::Analyst);
    let asks = house.access.credential_by_secret(&token.secret, NOW).unwrap();
    let wanted = (token.id, "jdoe", Role::Analyst, token.expires);
    assert_eq!((asks.credential, asks.name.as_str(), asks.role, asks.expires), wanted);
    let first = house.login(&token.secret, NOW).unwrap();
    assert_eq!(first.analyst.expires, after(90 * DAY), "no longer than it may be");
    let later = house.login(&token.secret, after(50 * DAY)).unwrap();
    assert_eq!(later.analyst.expires, token.expires, "no longer than the token");
    assert_eq!((later.analyst.name.as_str(), later.analyst.role), ("jdoe", Role::Analyst));
    let peer = |certificate: &AnalystCertificate| {
        tls::Peer::of(&tls::CertificateDer::from(certificate.chain[0].as_slice())).unwrap()
    };
    assert_eq!(peer(&first), tls::Peer::Analyst(first.analyst.credential.0));
    assert_ne!(first.analyst.credential, later.analyst.credential);

    let mut worsened = house.access.worsened();
    worsened.mark_unchanged();
    house.access.revoke_credential(first.analyst.credential, NOW).unwrap();
    assert!(worsened.has_changed().unwrap());
    assert_eq!(house.access.credential(first.analyst.credential, NOW), Err(Refusal::Revoked));
    assert_eq!(house.access.credential(later.analyst.credential, NOW), Ok(later.analyst.clone()));
    house.access.revoke_credential(token.id, NOW).unwrap();
    let house = house.reopened();
    assert_eq!(house.access.credential_by_secret(&token.secret, NOW), Err(Refusal::Revoked));
    for certificate in [&first, &later] {
        assert_eq!(house.access.credential(certificate.analyst.credential, NOW), Err(Refusal::Revoked));
    }
    refused(house.login(&token.secret, NOW), Refusal::Revoked);
}

#[test]
fn what_is_not_good_is_refused_for_its_reason() {
    let house = House::new();
    let (analyst, enrols) = (house.analyst_token("jdoe", Role::Admin), house.enrolment_token(1));
    let certificate = house.login(&analyst.secret, NOW).unwrap().analyst.credential;
    for (secret, now, want) in [
        (&NOBODYS, NOW, Refusal::Unknown),
        (&enrols.secret, NOW, Refusal::OtherKind),
        (&analyst.secret, after(100 * DAY), Refusal::Expired),
    ] {
        assert_eq!(house.access.credential_by_secret(secret, now), Err(want));
        refused(house.login(secret, now), want);
    }
    for (id, now, want) in [
        (CredentialId(99), NOW, Refusal::Unknown),
        (analyst.id, NOW, Refusal::OtherKind),
        (enrols.id, NOW, Refusal::OtherKind),
        (certificate, after(90 * DAY), Refusal::Expired),
    ] {
        assert_eq!(house.access.credential(id, now), Err(want));
    }
    let unknown = house.access.revoke_credential(CredentialId(99), NOW);
    assert!(matches!(unknown, Err(AccessError::UnknownCredential(_))));
    let outward = |result: Result<AnalystCertificate, AccessError>| result.unwrap_err().outward();
    let (unknown, other) = (house.login(&NOBODYS, NOW), house.login(&enrols.secret, NOW));
    assert_eq!(outward(unknown), outward(other), "a stranger learns nothing");
}

/// What a stranger sends reaches nothing that has to make sense of it.
#[test]
fn the_token_comes_before_the_request() {
    let house = House::new();
    refused(house.access.login(&NOBODYS, b"rubbish", NOW), Refusal::Unknown);
    refused(house.access.enrol(&NOBODYS, b"rubbish", host(1), "", "", NOW), Refusal::Unknown);
    let token = house.analyst_token("jdoe", Role::Viewer);
    assert!(matches!(house.access.login(&token.secret, b"rubbish", NOW), Err(AccessError::Request(_))));
}

#[test]
fn what_goes_over_a_bound_is_no_token() {
    let house = House::new();
    let enrols = |uses, lifetime, tags: &[&str]| {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        house.access.create_enrolment_token(uses, lifetime, tags, NOW).map(drop)
    };
    assert!(matches!(enrols(0, DAY, &[]), Err(AccessError::Uses(0))));
    assert!(matches!(enrols(100_001, DAY, &[]), Err(AccessError::Uses(100_001))));
    assert!(matches!(enrols(1, 366 * DAY, &[]), Err(AccessError::Lifetime)));
    assert!(matches!(enrols(1, DAY, &["a\nb"]), Err(AccessError::Tag(_))));
    assert!(matches!(enrols(1, DAY, &["x"; 17]), Err(AccessError::TooManyTags(17))));
    let name = house.access.create_analyst_token("J Doe", Role::Viewer, DAY, NOW);
    assert!(matches!(name, Err(AccessError::Name(_))));
    assert_eq!(house.access.credentials().rows, []);
    enrols(100_000, 365 * DAY, &["a", "b"]).unwrap();
}

#[test]
fn what_was_used_is_shown_at_once_and_kept_after_a_tick() {
    let house = House::new();
    let token = house.analyst_token("jdoe", Role::Analyst);
    let use_of = |house: &House| {
        let listed = house.access.credentials().rows;
        let listed = listed.iter().find(|credential| credential.id == token.id).unwrap();
        (listed.uses, listed.used)
    };
    assert_eq!(use_of(&house), (0, None));
    house.access.credential_by_secret(&token.secret, NOW).unwrap();
    house.access.credential_by_secret(&token.secret, after(MINUTE)).unwrap();
    assert_eq!(use_of(&house), (2, Some(after(MINUTE))));
    house.access.tick(after(MINUTE)).unwrap();
    house.access.credential_by_secret(&token.secret, after(2 * MINUTE)).unwrap();
    assert_eq!(use_of(&house), (3, Some(after(2 * MINUTE))));
    let house = house.crashed();
    assert_eq!(use_of(&house), (2, Some(after(MINUTE))), "the last is lost");
    house.access.credential_by_secret(&token.secret, after(3 * MINUTE)).unwrap();
    assert_eq!(use_of(&house.reopened()), (3, Some(after(3 * MINUTE))), "and not when it ends in peace");
}

#[test]
fn credentials_are_listed_the_newest_first() {
    let house = House::new();
    let few: Vec<CredentialId> = (0..3).map(|_| house.enrolment_token(2).id).collect();
    let listed = |house: &House| {
        let listed = house.access.credentials();
        (listed.rows.iter().map(|credential| credential.id).collect::<Vec<_>>(), listed.left_out)
    };
    assert_eq!(listed(&house), (few.iter().rev().copied().collect(), 0));
    for _ in 0..LISTED_MAX {
        house.enrolment_token(1);
    }
    assert_eq!((listed(&house).0.len(), listed(&house).1), (LISTED_MAX, 3));
    let newest = house.access.credentials().rows.swap_remove(0);
    assert_eq!((newest.kind, newest.uses_max, newest.tags.len()), (CredentialKind::EnrolmentToken, 1, 1));
    let before = house.access.credentials();
    assert_eq!(house.reopened().access.credentials(), before);
}

#[test]
fn what_expired_long_ago_goes_and_its_number_is_never_given_again() {
    let house = House::new();
    let (old, young) = (house.enrolment_token(1), house.analyst_token("jdoe", Role::Viewer));
    house.access.tick(after(366 * DAY)).unwrap();
    assert_eq!(house.access.credentials().rows.len(), 2, "not yet");
    house.access.tick(after(366 * DAY + 2 * MINUTE)).unwrap();
    house.access.tick(after(367 * DAY)).unwrap();
    let listed = house.access.credentials().rows;
    assert_eq!(listed.iter().map(|credential| credential.id).collect::<Vec<_>>(), [young.id]);
    refused(house.enrol(&old.secret, &Key::new(), host(1)), Refusal::Unknown);
    house.access.tick(after(500 * DAY)).unwrap();
    assert_eq!(house.access.credentials().rows, []);
    let house = house.reopened();
    assert_eq!(house.access.credentials().rows, []);
    assert_eq!(house.enrolment_token(1).id, CredentialId(young.id.0 + 1));
}

#[test]
fn credentials_are_bounded_and_what_expired_makes_room() {
    let house = House::new();
    for _ in 0..CREDENTIALS_MAX {
        house.enrolment_token(1);
    }
    let more = |now| house.access.create_enrolment_token(1, DAY, vec![], now);
    assert!(matches!(more(NOW), Err(AccessError::TooManyCredentials)));
    more(after(2 * DAY)).unwrap();
    assert_eq!(house.access.credentials().rows.len(), 1);
}

#[test]
fn logins_of_one_token_are_bounded() {
    let house = House::new();
    let token = house.analyst_token("jdoe", Role::Analyst);
    let last = (0..LOGINS_MAX).map(|_| house.login(&token.secret, NOW).unwrap()).last().unwrap();
    assert!(matches!(house.login(&token.secret, NOW), Err(AccessError::TooManyLogins)));
    house.access.revoke_credential(last.analyst.credential, NOW).unwrap();
    house.login(&token.secret, NOW).unwrap();
}

/// Two want the last use of a token: one gets it.
#[test]
fn a_token_is_used_no_more_often_than_it_may_be() {
    for _ in 0..5 {
        let house = House::new();
        let token = house.enrolment_token(3);
        let enrolled = thread::scope(|scope| {
            let house = &house;
            let enrol = |number| {
                let secret = token.secret.clone();
                scope.spawn(move || house.enrol(&secret, &Key::new(), host(number)).is_ok())
            };
            let threads: Vec<_> = (1..=6).map(enrol).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|is| *is).count()
        });
        assert_eq!(enrolled, 3);
        let house = house.reopened();
        assert_eq!(house.access.hosts().len(), 3);
        refused(house.enrol(&token.secret, &Key::new(), host(9)), Refusal::UsedUp);
    }
}
