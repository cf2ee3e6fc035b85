//! What certificates prove, to who verifies as TLS does.

use std::net::Ipv4Addr;

use alibi_proto::{
    id::HostId,
    tls::{self, PeerVerifier, Trust},
};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, ring},
    pki_types::{ServerName, UnixTime},
    server::WebPkiClientVerifier,
};

use super::*;
use crate::access::credential::CredentialId;

const HOST: Peer = Peer::Host(HostId::from_bytes([7; 16]));
const ANALYST: Peer = Peer::Analyst(42);
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

struct House {
    directory: tempfile::TempDir,
    store: AccessStore,
    authorities: Authorities,
}

impl House {
    fn new() -> Self {
        Self::at(NOW)
    }

    fn at(now: Timestamp) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = AccessStore::open(&directory.path().join("access.db")).unwrap();
        let authorities = Authorities::open(directory.path(), &store, now).unwrap();
        Self { directory, store, authorities }
    }

    fn reopen(&self, now: Timestamp) -> Result<Authorities, AccessError> {
        Authorities::open(self.directory.path(), &self.store, now)
    }

    fn rotate(&mut self, now: Timestamp) -> Result<(), AccessError> {
        self.authorities = self.authorities.rotated(&self.store, now)?;
        Ok(())
    }

    fn retire(&mut self, prefix: &str) -> Result<(), AccessError> {
        self.authorities = self.authorities.retired(prefix, &self.store, NOW)?;
        Ok(())
    }

    fn issue(&self, peer: Peer) -> Vec<Vec<u8>> {
        let issued = self.authorities.issue(peer, &key(), after(HOST_LIFETIME), NOW).unwrap();
        issued.chain
    }

    /// What somebody has who was given a certificate now: TLS asks what time it is itself.
    fn identity(&self, peer: Peer) -> Identity {
        let key = tls::make_key().unwrap();
        let request = RequestedKey::read(&tls::certificate_request(&key).unwrap()).unwrap();
        let now = crate::clock::now();
        let issued = self.authorities.issue(peer, &request, now.saturating_add(DAY), now).unwrap();
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        Identity { chain, key: Arc::new(key) }
    }

    fn certificate(&self, age: usize) -> Vec<u8> {
        self.authorities.all()[age].certificate.clone()
    }

    fn fingerprint(&self, age: usize) -> String {
        self.authorities.all()[age].fingerprint.to_string()
    }
}

fn after(duration: Duration) -> Timestamp {
    NOW.saturating_add(duration)
}

fn request() -> Vec<u8> {
    tls::certificate_request(&tls::make_key().unwrap()).unwrap()
}

fn key() -> RequestedKey {
    RequestedKey::read(&request()).unwrap()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authorities: &[Vec<u8>]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    authorities.iter().for_each(|der| roots.add(CertificateDer::from(der.clone())).unwrap());
    Arc::new(roots)
}

fn parts(chain: &[Vec<u8>]) -> (CertificateDer<'_>, Vec<CertificateDer<'_>>) {
    let mut chain = chain.iter().map(|der| CertificateDer::from(der.as_slice()));
    (chain.next().unwrap(), chain.collect())
}

fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_nanos(at.as_nanos()))
}

/// Whether who knows `authorities` takes `chain` for that of a client.
fn is_client(chain: &[Vec<u8>], authorities: &[Vec<u8>], at: Timestamp) -> bool {
    let builder = WebPkiClientVerifier::builder_with_provider(roots(authorities), provider());
    let (leaf, others) = parts(chain);
    builder.build().unwrap().verify_client_cert(&leaf, &others, unix(at)).is_ok()
}

/// Whether who knows `authorities` takes `chain` for that of the server with this name.
fn is_server(chain: &[Vec<u8>], authorities: &[Vec<u8>], name: &str, at: Timestamp) -> bool {
    let builder = WebPkiServerVerifier::builder_with_provider(roots(authorities), provider());
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (leaf, others) = parts(chain);
    builder.build().unwrap().verify_server_cert(&leaf, &others, &name, &[], unix(at)).is_ok()
}

#[test]
fn a_certificate_is_for_whom_it_is_for_and_for_nothing_else() {
    let house = House::new();
    let (known, foreign) = (house.authorities.believed(NOW), House::new().authorities.believed(NOW));
    let own = house.authorities.own(NOW).unwrap();
    let own: Vec<Vec<u8>> = own.identity.chain.iter().map(|der| der.to_vec()).collect();
    for (peer, chain, as_client, as_server) in [
        (HOST, house.issue(HOST), true, true),
        (ANALYST, house.issue(ANALYST), true, false),
        (Peer::Collector, own, true, true),
    ] {
        assert_eq!(Peer::of(&CertificateDer::from(chain[0].as_slice())).unwrap(), peer);
        let name = peer.to_string();
        assert_eq!(is_client(&chain, &known, NOW), as_client, "{name}");
        assert_eq!(is_server(&chain, &known, &name, NOW), as_server, "{name}");
        for other in [HOST, ANALYST, Peer::Collector, Peer::Host(HostId::from_bytes([8; 16]))] {
            let is_it = is_server(&chain, &known, &other.to_string(), NOW);
            assert_eq!(is_it, as_server && other == peer, "{name} as {other}");
        }
        assert!(!is_client(&chain, &foreign, NOW) && !is_server(&chain, &foreign, &name, NOW), "{name}");
        let (before, late) = (NOW.saturating_sub(DAY), after(HOST_LIFETIME));
        assert!(is_client(&chain, &known, before), "a clock that is behind");
        assert!(!is_client(&chain, &known, before.saturating_sub(Duration::from_secs(1))), "{name}");
        assert!(is_client(&chain, &known, late), "{name}");
        assert!(!is_client(&chain, &known, late.saturating_add(Duration::from_secs(1))), "{name}");
    }
}

/// Nobody who was given a certificate can give one to others.
#[test]
fn a_certificate_signs_no_other() {
    let house = House::new();
    let host = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&host).unwrap();
    let key = RequestedKey::read(request.der()).unwrap();
    let chain = house.authorities.issue(HOST, &key, after(DAY), NOW).unwrap().chain;
    let forger = Issuer::from_ca_cert_der(&CertificateDer::from(chain[0].as_slice()), &host).unwrap();
    let mut params = params("forged", NOW, after(DAY)).unwrap();
    params.subject_alt_names = vec![SanType::DnsName(tls::COLLECTOR_NAME.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let forged = params.signed_by(&KeyPair::generate().unwrap(), &forger).unwrap().der().to_vec();
    let chain = [vec![forged], chain].concat();
    assert!(!is_server(&chain, &house.authorities.believed(NOW), tls::COLLECTOR_NAME, NOW));
}

#[test]
fn what_is_told_is_what_the_certificate_says() {
    let house = House::new();
    let nanos = Timestamp::from_nanos(NOW.as_nanos() + 999_999_999);
    let issued = house.authorities.issue(HOST, &key(), nanos.saturating_add(DAY), nanos).unwrap();
    let validity = Validity {
        not_before: NOW.saturating_sub(DAY),
        not_after: after(DAY),
        authority: house.authorities.newest().fingerprint,
    };
    assert_eq!(issued.validity, validity);
    let late = house.authorities.newest().not_after.saturating_sub(DAY);
    let issued = house.authorities.issue(HOST, &key(), late.saturating_add(HOST_LIFETIME), late).unwrap();
    assert_eq!(issued.validity.not_after, house.authorities.newest().not_after, "no longer than the CA");
    let too_late = late.saturating_add(DAY + Duration::from_secs(1));
    let refused = house.authorities.issue(HOST, &key(), too_late, too_late);
    assert!(matches!(refused, Err(AccessError::AuthorityExpired(_))));
}

#[test]
fn whoever_knows_an_old_ca_believes_the_new_ones() {
    let mut house = House::new();
    let first = house.certificate(0);
    let before = house.issue(HOST);
    for _ in 1..AUTHORITIES_MAX {
        house.rotate(NOW).unwrap();
        let chain = house.issue(HOST);
        assert_eq!(chain.len(), house.authorities.all().len());
        for known in house.authorities.all() {
            assert!(is_client(&chain, std::slice::from_ref(&known.certificate), NOW));
        }
        assert!(
            !is_client(&chain[..1], std::slice::from_ref(&first), NOW),
            "not without its cross-certificate"
        );
    }
    assert!(is_client(&before, &house.authorities.believed(NOW), NOW), "and the other way round");
    assert!(!is_client(&before, &[house.certificate(0)], NOW), "a new CA says nothing about an old one's");
    assert!(matches!(house.rotate(NOW), Err(AccessError::TooManyAuthorities)));

    let own = house.authorities.own(NOW).unwrap().identity.chain;
    assert!(own.len() <= CHAIN_MAX, "whoever is connected to takes no more");
    let fingerprints: Vec<String> = own.iter().map(|der| Fingerprint::of(der).to_string()).collect();
    assert!((0..AUTHORITIES_MAX).all(|age| fingerprints.contains(&house.fingerprint(age))));
}

/// As TLS itself has it, with what both programs use.
#[test]
fn both_ends_find_each_other_across_cas() {
    let now = crate::clock::now();
    let mut house = House::at(now);
    let host_of_old = house.identity(HOST);
    for _ in 1..AUTHORITIES_MAX {
        house.rotate(now).unwrap();
    }
    let host = house.identity(HOST);
    let analyst = house.identity(ANALYST);
    let own = house.authorities.own(now).unwrap().identity;
    let all: Vec<_> =
        house.authorities.all().iter().map(|ca| CertificateDer::from(ca.certificate.clone())).collect();
    let verifier = PeerVerifier::new(&all, false, Arc::new(Everybody)).unwrap();
    let server = tls::server(&own, verifier, tls::HOME).unwrap();
    for ca in house.authorities.all() {
        let certificate = CertificateDer::from(ca.certificate.clone());
        for trust in [Trust::Pinned(ca.fingerprint), Trust::Authorities(vec![certificate])] {
            for identity in [None, Some(&host), Some(&host_of_old), Some(&analyst)] {
                let client = tls::to_collector(&trust, identity, tls::HOME).unwrap();
                assert_eq!(handshake(client, Arc::clone(&server)), Ok(()), "{trust:?}");
            }
        }
    }
    let stranger = House::at(now);
    let client =
        tls::to_collector(&Trust::Pinned(stranger.authorities.newest().fingerprint), None, tls::HOME);
    assert!(handshake(client.unwrap(), Arc::clone(&server)).is_err());
    let known = Trust::Authorities(all);
    let client = tls::to_collector(&known, Some(&stranger.identity(HOST)), tls::HOME).unwrap();
    assert!(handshake(client, server).is_err());
}

#[derive(Debug)]
struct Everybody;

impl tls::Admission for Everybody {
    fn admit(&self, _: Peer) -> Result<(), CertificateError> {
        Ok(())
    }
}

/// Lets both speak until neither has anything to say.
fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
    let mut client = ClientConnection::new(client, tls::collector_server_name().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    loop {
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).unwrap();
        }
        let answered = hear(&mut server, &said);
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        hear(&mut client, &answer)?;
        answered?;
        if said.is_empty() && answer.is_empty() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(());
        }
    }
}

fn hear<D>(connection: &mut rustls::ConnectionCommon<D>, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes).unwrap();
        connection.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn a_retired_ca_is_believed_no_longer() {
    let mut house = House::new();
    let old = house.certificate(0);
    let of_old = house.issue(HOST);
    house.rotate(NOW).unwrap();
    let path = key_path(&house.authorities.directory, house.authorities.all()[1].fingerprint);
    assert!(path.exists());
    house.retire(&house.fingerprint(1)[..12]).unwrap();
    assert!(!path.exists(), "nobody needs its key");

    let chain = house.issue(HOST);
    assert_eq!(chain.len(), 1);
    assert!(!is_client(&chain, &[old], NOW));
    assert!(!is_client(&of_old, &house.authorities.believed(NOW), NOW));
    assert_eq!(house.reopen(NOW).unwrap().all(), house.authorities.all());
}

#[test]
fn whom_to_retire_must_be_clear() {
    let mut house = House::new();
    assert!(matches!(house.retire(&house.fingerprint(0)), Err(AccessError::NewestAuthority)));
    house.rotate(NOW).unwrap();
    let all = house.retire("");
    assert!(matches!(all, Err(AccessError::AmbiguousAuthority { count: 2, .. })), "{all:?}");
    for unknown in ["x", &format!("{}0", house.fingerprint(1))] {
        assert!(matches!(house.retire(unknown), Err(AccessError::UnknownAuthority(_))), "{unknown}");
    }
    house.retire(&house.fingerprint(1)).unwrap();
    assert!(matches!(house.retire(&house.fingerprint(1)), Err(AccessError::UnknownAuthority(_))));
}

#[test]
fn a_ca_that_ran_out_takes_no_part_in_what_follows() {
    let mut house = House::new();
    let late = after(AUTHORITY_LIFETIME + DAY);
    house.rotate(late).unwrap();
    assert_eq!(house.authorities.newest().crosses, []);
    assert_eq!(house.authorities.believed(late).len(), 1);
    assert!(house.authorities.issue(HOST, &key(), late.saturating_add(DAY), late).is_ok());
}

#[test]
fn a_ca_outlives_the_program() {
    let mut house = House::new();
    house.rotate(NOW).unwrap();
    let before = house.issue(HOST);
    let again = house.reopen(NOW).unwrap();
    assert_eq!(again.all(), house.authorities.all());
    let after = again.issue(HOST, &key(), after(DAY), NOW).unwrap().chain;
    for known in again.all() {
        let known = std::slice::from_ref(&known.certificate);
        assert!(is_client(&before, known, NOW) && is_client(&after, known, NOW));
    }
    assert_ne!(House::new().fingerprint(0), House::new().fingerprint(0));
}

/// A crash between the key and the store leaves a key that belongs to nothing.
#[test]
fn a_key_without_a_ca_is_no_harm() {
    let house = House::new();
    let spare = key_path(&house.authorities.directory, Fingerprint([9; 32]));
    write_secret(&spare, pem(&KeyPair::generate().unwrap()).as_bytes()).unwrap();
    assert_eq!(house.reopen(NOW).unwrap().all(), house.authorities.all());
}

#[test]
fn a_key_that_is_not_the_cas_is_refused() {
    let house = House::new();
    let path = key_path(&house.authorities.directory, house.authorities.newest().fingerprint);
    let good = fs::read(&path).unwrap();
    let other = pem(&KeyPair::generate().unwrap());
    let larger = pem(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
    for (text, want) in [
        ("", "is no PKCS #8 in PEM"),
        ("hello", "is no PKCS #8 in PEM"),
        (&larger, "is no key of ECDSA with P-256"),
        (&other, "is the key of another CA"),
    ] {
        write_secret(&path, text.as_bytes()).unwrap();
        let refused = house.reopen(NOW).err().unwrap().to_string();
        assert!(refused.contains(want) && refused.contains(".key"), "{refused}");
    }
    write_secret(&path, &good).unwrap();
    assert!(house.reopen(NOW).is_ok());
    fs::remove_file(&path).unwrap();
    assert!(house.reopen(NOW).err().unwrap().to_string().contains("is gone: put it back from a backup"));
}

#[test]
#[cfg(unix)]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let house = House::new();
    let path = key_path(&house.authorities.directory, house.authorities.newest().fingerprint);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = house.reopen(NOW).err().unwrap().to_string();
    let path = path.display().to_string();
    assert!(refused.contains(&path) && refused.contains(&format!("`chmod 600 {path}`")), "{refused}");
}

#[test]
fn of_a_request_only_its_key_counts() {
    let house = House::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::DnsName(tls::COLLECTOR_NAME.try_into().unwrap()),
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let request = params.serialize_request(&key).unwrap();
    let read = RequestedKey::read(request.der()).unwrap();
    assert_eq!(read.hash(), KeyHash::of(&key.subject_public_key_info()));
    let chain = house.authorities.issue(ANALYST, &read, after(DAY), NOW).unwrap().chain;
    let leaf = CertificateDer::from(chain[0].as_slice());
    assert_eq!(Peer::of(&leaf).unwrap(), ANALYST);
    let shown = ParsedCertificate::try_from(&leaf).unwrap();
    assert_eq!(KeyHash::of(&shown.subject_public_key_info()), read.hash());
    assert!(!is_server(&chain, &house.authorities.believed(NOW), tls::COLLECTOR_NAME, NOW));
}

#[test]
fn a_request_that_cannot_be_used_is_refused() {
    let of = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    };
    let good = request();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    for (request, want) in [
        (vec![], "is not a request"),
        (b"hello".to_vec(), "is not a request"),
        (good[..good.len() - 1].to_vec(), "is not a request"),
        (forged, "is not signed with the key"),
        (of(&rcgen::PKCS_ECDSA_P384_SHA384), "another kind than ECDSA with P-256"),
        (of(&rcgen::PKCS_ED25519), "another kind than ECDSA with P-256"),
        (vec![0x30; REQUEST_BYTES_MAX + 1], "has 4097 bytes, and up to 4096 are read"),
    ] {
        let refused = RequestedKey::read(&request).err().unwrap().to_string();
        assert!(refused.contains(want), "{refused}");
    }
    assert!(RequestedKey::read(&good).is_ok());
}

/// Whatever is changed in a request, it is refused or asks for the same: what is read was signed.
#[test]
fn a_request_that_was_changed_is_refused() {
    let good = request();
    let hash = RequestedKey::read(&good).unwrap().hash();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2_000 {
        let mut changed = good.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..changed.len());
            changed[at] = random.u8(..);
        }
        if let Ok(read) = RequestedKey::read(&changed) {
            assert_eq!(read.hash(), hash);
        }
    }
}

#[test]
fn an_analysts_certificate_has_its_number() {
    let house = House::new();
    let peer = Peer::Analyst(CredentialId(9).0);
    let leaf = house.issue(peer).swap_remove(0);
    assert_eq!(Peer::of(&CertificateDer::from(leaf)).unwrap(), peer);
}
