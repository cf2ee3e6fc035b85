//! Access as a whole, each time also as it is after a restart.

use std::time::Duration;

use alibi_proto::{id::HostId, time::Timestamp, tls};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::{
    Access, AccessError, AnalystCertificate, HostCertificate,
    credential::{CreatedToken, Refusal, Secret},
    role::Role,
};

mod hosts;
mod tokens;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn after(duration: Duration) -> Timestamp {
    NOW.saturating_add(duration)
}

fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

struct House {
    directory: tempfile::TempDir,
    access: Access,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let access = Access::open(directory.path(), NOW).unwrap();
        Self { directory, access }
    }

    /// As after a restart.
    fn reopened(self) -> Self {
        drop(self.access);
        let access = Access::open(self.directory.path(), NOW).unwrap();
        Self { directory: self.directory, access }
    }

    /// As a crash leaves it, and nothing was ticked.
    fn crashed(self) -> Self {
        std::mem::forget(self.access);
        let access = Access::open(self.directory.path(), NOW).unwrap();
        Self { directory: self.directory, access }
    }

    fn enrolment_token(&self, uses: u32) -> CreatedToken {
        self.access.create_enrolment_token(uses, DAY, vec!["office".into()], NOW).unwrap()
    }

    fn analyst_token(&self, name: &str, role: Role) -> CreatedToken {
        self.access.create_analyst_token(name, role, 100 * DAY, NOW).unwrap()
    }

    fn enrol(&self, secret: &Secret, key: &Key, host: HostId) -> Result<HostCertificate, AccessError> {
        self.access.enrol(secret, &key.request(), host, "laptop", "10.0.0.1:1234", NOW)
    }

    fn login(&self, secret: &Secret, now: Timestamp) -> Result<AnalystCertificate, AccessError> {
        self.access.login(secret, &Key::new().request(), now)
    }
}

struct Key(PrivatePkcs8KeyDer<'static>);

impl Key {
    fn new() -> Self {
        Self(tls::make_key().unwrap())
    }

    fn request(&self) -> Vec<u8> {
        tls::certificate_request(&self.0).unwrap()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, AccessError>, want: Refusal) {
    match result {
        Err(AccessError::Refused(refusal)) => assert_eq!(refusal, want),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ca_takes_over_and_the_old_one_is_counted_out() {
    let house = House::new();
    let (token, key) = (house.enrolment_token(9), Key::new());
    house.enrol(&token.secret, &key, host(1)).unwrap();
    house.enrol(&token.secret, &Key::new(), host(2)).unwrap();
    let mut worsened = house.access.worsened();
    worsened.mark_unchanged();
    house.access.rotate_authority(NOW).unwrap();
    assert!(worsened.has_changed().unwrap(), "the collector shows a new certificate");
    let hosts = |house: &House| -> Vec<u64> {
        house.access.list_authorities().iter().map(|status| status.hosts).collect()
    };
    assert_eq!(hosts(&house), [0, 2]);
    let renewed = house.access.renew(host(1), &key.request(), NOW).unwrap();
    assert_eq!((renewed.issued.chain.len(), renewed.authorities.len()), (2, 2));
    assert_eq!(hosts(&house), [1, 1]);
    house.access.revoke_host(host(2), NOW).unwrap();
    assert_eq!(hosts(&house), [1, 0]);

    let house = house.reopened();
    assert_eq!(hosts(&house), [1, 0]);
    let old = house.access.list_authorities()[1].authority.fingerprint.to_string();
    house.access.retire_authority(&old, NOW).unwrap();
    assert_eq!(house.access.authorities(NOW).len(), 1);
    assert_eq!(house.access.own_certificate(NOW).unwrap().identity.chain.len(), 2);
    assert_eq!(house.reopened().access.authorities(NOW).len(), 1);
}

#[test]
fn access_can_be_shared() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Access>();
}
