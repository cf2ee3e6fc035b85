//! Handshakes over a pipe, each end with what it should have or should not.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{CertificateError, pki_types::PrivatePkcs8KeyDer};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// A CA with a name of its own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn trust(&self) -> Trust {
        Trust::Authorities(vec![self.certificate()])
    }

    /// For somebody, from this many days from now until that many.
    fn identity(&self, names: &[String], days: std::ops::Range<i64>) -> Identity {
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::days(days.start);
        params.not_after = now + time::Duration::days(days.end);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity {
            chain: vec![certificate.der().clone(), self.certificate()],
            key: Arc::new(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }

    fn for_peer(&self, peer: Peer) -> Identity {
        self.identity(&[peer.to_string()], -1..1)
    }
}

/// Lets in one, and says of another that it is revoked.
#[derive(Debug)]
struct Only {
    admitted: Peer,
    revoked: Option<Peer>,
}

impl Admission for Only {
    fn admit(&self, peer: Peer) -> Result<(), CertificateError> {
        match peer {
            peer if Some(peer) == self.revoked => Err(CertificateError::Revoked),
            peer if peer == self.admitted => Ok(()),
            _ => Err(CertificateError::ApplicationVerificationFailure),
        }
    }
}

/// What each end makes of the other: whom the server let in, and what the client reads or why it cannot.
async fn meet(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Result<Option<Peer>, String>, Result<(), String>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let words = |error: std::io::Error| crate::dial::handshake_in_words(&error);
    let (near, far) = tokio::io::duplex(64 << 10);
    let serving = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await.map_err(words)?;
        stream.write_all(b"!").await.map_err(words)?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        Ok(shown.map(|certificate| Peer::of(certificate).unwrap()))
    };
    let dialling = async {
        let name = collector_server_name().unwrap();
        let mut stream = TlsConnector::from(client).connect(name, near).await.map_err(words)?;
        // Only now does a client of TLS 1.3 hear what was held against its certificate.
        stream.read_u8().await.map_err(words)?;
        Ok(())
    };
    tokio::join!(serving, dialling)
}

fn host() -> Peer {
    Peer::Host(HostId::from_bytes([1; 16]))
}

#[test]
fn names_are_read_as_they_are_written_and_in_no_other_way() {
    let id = "01010101-0101-0101-0101-010101010101";
    for peer in [Peer::Collector, host(), Peer::Analyst(17)] {
        assert_eq!(Peer::named(&peer.to_string()), Some(peer));
    }
    assert_eq!(host().to_string(), format!("{id}.host.alibi.internal"));
    for name in [
        "",
        "alibi.internal",
        "x.collector.alibi.internal",
        "0101010101010101010101010101010101.host.alibi.internal",
        "01010101010101010101010101010101.host.alibi.internal",
        "017.analyst.alibi.internal",
        "+17.analyst.alibi.internal",
        "-1.analyst.alibi.internal",
        ".analyst.alibi.internal",
        "*.host.alibi.internal",
    ] {
        assert_eq!(Peer::named(name), None, "{name}");
    }
}

#[tokio::test]
async fn who_shows_the_right_certificate_is_let_in_and_nobody_else() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let other = Peer::Host(HostId::from_bytes([2; 16]));
    let admission = Arc::new(Only { admitted: host(), revoked: Some(other) });
    let collector = ours.for_peer(Peer::Collector);
    let verifier = PeerVerifier::new(&[ours.certificate()], true, admission).unwrap();
    let server = server(&collector, verifier, HOME).unwrap();
    let check = |identity: Option<Identity>, at_server: &str, at_client: &str| {
        let client = to_collector(&ours.trust(), identity.as_ref(), HOME).unwrap();
        let (server, at_server, at_client) =
            (Arc::clone(&server), at_server.to_owned(), at_client.to_owned());
        async move {
            let (served, dialled) = meet(client, server).await;
            assert_eq!(served.err().unwrap_or_default(), at_server);
            assert_eq!(dialled.err().unwrap_or_default(), at_client);
        }
    };
    check(Some(ours.for_peer(host())), "", "").await;
    check(None, "it showed no certificate", "it asks for a certificate, and we have none").await;
    check(
        Some(foreign.for_peer(host())),
        "its certificate is of a CA that is not known here",
        "it does not know the CA of our certificate",
    )
    .await;
    check(Some(ours.for_peer(other)), "its enrolment is revoked", "it has revoked our certificate").await;
    check(
        Some(ours.for_peer(Peer::Analyst(1))),
        "its certificate is not for what it wants",
        "our certificate is for something else",
    )
    .await;
    check(
        Some(ours.identity(&[host().to_string()], -2..-1)),
        "its certificate has run out, by this machine's clock",
        "our certificate has run out, or is not valid yet by its clock",
    )
    .await;
    check(
        Some(ours.identity(&[host().to_string()], 1..2)),
        "its certificate is not valid yet: is this machine's clock right?",
        "our certificate has run out, or is not valid yet by its clock",
    )
    .await;
    check(
        Some(ours.identity(&[host().to_string(), other.to_string()], -1..1)),
        "its certificate is not for what it wants",
        "our certificate is for something else",
    )
    .await;
    check(
        Some(ours.identity(&["laptop.example".to_owned()], -1..1)),
        "its certificate is not for what it wants",
        "our certificate is for something else",
    )
    .await;
    // The key must be that of the certificate.
    let stolen = Identity { key: ours.for_peer(host()).key, ..ours.for_peer(host()) };
    assert!(to_collector(&ours.trust(), Some(&stolen), HOME).is_err());
}

#[tokio::test]
async fn a_dialler_believes_the_collector_alone() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let anybody = || {
        let admission = Arc::new(Only { admitted: host(), revoked: None });
        PeerVerifier::new(&[ours.certificate()], false, admission).unwrap()
    };
    let pinned = |authority: &Authority| Trust::Pinned(Fingerprint::of(&authority.certificate()));
    for (trust, identity, expected) in [
        (ours.trust(), ours.for_peer(Peer::Collector), ""),
        (pinned(&ours), ours.for_peer(Peer::Collector), ""),
        (
            foreign.trust(),
            ours.for_peer(Peer::Collector),
            "its certificate is of a CA that is not known here",
        ),
        (
            pinned(&foreign),
            ours.for_peer(Peer::Collector),
            "its certificate is of a CA that is not known here",
        ),
        // A host that plays the collector.
        (ours.trust(), ours.for_peer(host()), "its certificate is for somebody else"),
        (pinned(&ours), ours.for_peer(host()), "its certificate is for somebody else"),
        (
            ours.trust(),
            ours.identity(&[Peer::Collector.to_string()], -2..-1),
            "its certificate has run out, by this machine's clock",
        ),
    ] {
        let server = server(&identity, anybody(), ENROL).unwrap();
        let client = to_collector(&trust, None, ENROL).unwrap();
        assert_eq!(meet(client, server).await.1.err().unwrap_or_default(), expected);
    }
    // The right CA beside a certificate that is not its own.
    let mut forged = foreign.for_peer(Peer::Collector);
    forged.chain.push(ours.certificate());
    let server = server(&forged, anybody(), ENROL).unwrap();
    let client = to_collector(&pinned(&ours), None, ENROL).unwrap();
    assert!(meet(client, server).await.1.is_err());
}

#[tokio::test]
async fn an_agent_that_is_dialled_is_the_host_of_its_certificate() {
    let ours = Authority::new("ours");
    let collector = ours.for_peer(Peer::Collector);
    let revoked = Peer::Host(HostId::from_bytes([2; 16]));
    let admission = || Arc::new(Only { admitted: host(), revoked: Some(revoked) });
    for (peer, expected) in [
        (host(), ""),
        (revoked, "its enrolment is revoked"),
        (Peer::Collector, "its certificate is not for what it wants"),
        (Peer::Analyst(1), "its certificate is not for what it wants"),
    ] {
        let of_collector = Arc::new(Only { admitted: Peer::Collector, revoked: None });
        let verifier = PeerVerifier::new(&[ours.certificate()], true, of_collector).unwrap();
        let server = server(&ours.for_peer(peer), verifier, RECORDER).unwrap();
        let client = to_agent(&[ours.certificate()], &collector, admission()).unwrap();
        let (served, dialled) = meet(client, server).await;
        assert_eq!(dialled.err().unwrap_or_default(), expected);
        assert_eq!(served.is_ok(), expected.is_empty());
    }
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_spoken() {
    let ours = Authority::new("ours");
    let admission = Arc::new(Only { admitted: host(), revoked: None });
    let verifier = PeerVerifier::new(&[ours.certificate()], false, admission).unwrap();
    let server = server(&ours.for_peer(Peer::Collector), verifier, ENROL).unwrap();
    let client = to_collector(&ours.trust(), None, HOME).unwrap();
    let (served, dialled) = meet(client, Arc::clone(&server)).await;
    assert_eq!(served, Err("it speaks none of our protocols".to_owned()));
    assert_eq!(dialled, Err("it does not speak our protocol".to_owned()));
}

#[test]
fn a_key_is_not_told() {
    let identity = Authority::new("ours").for_peer(Peer::Collector);
    assert_eq!(format!("{identity:?}"), "Identity { chain: 2, .. }");
}

#[test]
fn a_fingerprint_is_written_in_one_way() {
    let fingerprint = Fingerprint::of(b"x");
    assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
    for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"A".repeat(64), &"+1".repeat(32)] {
        assert!(text.parse::<Fingerprint>().is_err(), "{text}");
    }
}
