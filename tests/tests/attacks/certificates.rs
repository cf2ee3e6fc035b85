//! Who cannot prove who they are, or are somebody else, or were somebody: by certificate, at the collector's door and at an
//! agent's.

use std::{net::SocketAddr, process::Command, sync::Arc};

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, now, outcome},
};
use alibi_proto::{
    id::HostId,
    tls::{self, Identity, Peer},
    token::Token,
    transport::channel_over,
    wire::{self, enrolment_client::EnrolmentClient},
};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, NoApplicationProtocol, UnknownCA, UnsupportedCertificate,
    },
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    attacker::{
        Ca, ELSEWHERE, Got, Hello, attack, awaited, certified, dial, ended, enter, got, knock, provider,
        signed_by_a_leaf,
    },
    false_agent::FalseAgent,
    scene::{Scene, TARGET, id, keys},
};

/// A host that nobody knows.
fn stranger() -> HostId {
    HostId::from_bytes([0xee; 16])
}

#[test]
fn who_cannot_prove_who_they_are_is_told_so_and_gets_nothing() {
    let scene = Scene::new();
    let (host, stolen) = scene.stolen_host("stolen");
    let analyst = scene.analyst("viewer", "jdoe");
    let Ok(Peer::Analyst(number)) = Peer::of(&analyst.chain[0]) else { panic!("an analyst") };
    let (ca, foreign) = (scene.stolen_ca(), Ca::foreign());
    let (of_host, of_analyst) = (Peer::Host(host), Peer::Analyst(number));
    let namesake = Ca::namesake(&ca);
    let itself = Identity { chain: vec![foreign.certificate.clone()], key: stolen.key.clone() };
    let other_key = Identity { chain: stolen.chain.clone(), key: analyst.key.clone() };
    let both = ca.sign_odd(&[&of_host.to_string(), &of_analyst.to_string()], |_| {});
    let not_yet = ca.sign_odd(&[&of_host.to_string()], |params| {
        params.not_before = rcgen::date_time_ymd(2150, 1, 1);
        params.not_after = rcgen::date_time_ymd(2151, 1, 1);
    });
    let for_servers = ca.sign_odd(&[&of_host.to_string()], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let large = ca.sign_odd(&[&of_host.to_string()], |params| {
        let extension =
            rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0; tls::CERTIFICATE_BYTES_MAX]);
        params.custom_extensions = vec![extension];
    });
    let upper_case = ca.sign_odd(&[&of_host.to_string().to_uppercase()], |_| {});
    let wildcard = ca.sign_odd(&["*.host.alibi.internal"], |_| {});

    let check = |what: &str, protocol: &[u8], identity: Option<&Identity>, want: Got| {
        let hello = Hello::new(protocol, identity);
        let got = attack(knock(ELSEWHERE, scene.address(), &hello));
        assert_eq!(got, want, "{what} at {}", String::from_utf8_lossy(protocol));
    };
    // Those who may come do, or nothing of what follows says anything.
    check("a host", tls::HOME, Some(&stolen), Got::In);
    check("a host", tls::ENROL, Some(&stolen), Got::In);
    check("nobody", tls::ENROL, None, Got::In);
    check("an analyst", tls::ANALYST, Some(&analyst), Got::In);
    check("nobody", tls::ANALYST, None, Got::In);
    for (what, protocol, identity, alert) in [
        ("nobody", tls::HOME, None, CertificateRequired),
        ("a foreign CA's host", tls::HOME, Some(&foreign.sign(of_host)), UnknownCA),
        ("a foreign CA's host", tls::ENROL, Some(&foreign.sign(of_host)), UnknownCA),
        ("a foreign CA's analyst", tls::ANALYST, Some(&foreign.sign(of_analyst)), UnknownCA),
        ("a CA of the same name", tls::HOME, Some(&namesake.sign(of_host)), DecryptError),
        ("a CA as a host", tls::HOME, Some(&itself), CertificateUnknown),
        (
            "what a host has signed",
            tls::HOME,
            Some(&signed_by_a_leaf(&stolen, Peer::Host(stranger()))),
            CertificateUnknown,
        ),
        (
            "what an analyst has signed",
            tls::ANALYST,
            Some(&signed_by_a_leaf(&analyst, Peer::Analyst(1))),
            CertificateUnknown,
        ),
        ("another's key", tls::HOME, Some(&other_key), DecryptError),
        ("a host long ago", tls::HOME, Some(&ca.sign_expired(of_host)), CertificateExpired),
        ("a host long ago", tls::ENROL, Some(&ca.sign_expired(of_host)), CertificateExpired),
        ("an analyst long ago", tls::ANALYST, Some(&ca.sign_expired(of_analyst)), CertificateExpired),
        ("a host in the future", tls::HOME, Some(&not_yet), CertificateExpired),
        ("a certificate for servers", tls::HOME, Some(&for_servers), UnsupportedCertificate),
        ("a certificate that is too large", tls::HOME, Some(&large), BadCertificate),
        // With the key of the CA itself, all but what only the collector knows can be forged.
        ("a host that never enrolled", tls::HOME, Some(&ca.sign(Peer::Host(stranger()))), CertificateRevoked),
        (
            "an analyst whom nobody knows",
            tls::ANALYST,
            Some(&ca.sign(Peer::Analyst(4711))),
            CertificateRevoked,
        ),
        ("the number of a token", tls::ANALYST, Some(&ca.sign(Peer::Analyst(1))), CertificateRevoked),
        ("an analyst as a host", tls::HOME, Some(&analyst), AccessDenied),
        ("an analyst as a host", tls::ENROL, Some(&analyst), AccessDenied),
        ("a host as an analyst", tls::ANALYST, Some(&stolen), AccessDenied),
        ("the collector as a host", tls::HOME, Some(&ca.sign(Peer::Collector)), AccessDenied),
        ("the collector as an analyst", tls::ANALYST, Some(&ca.sign(Peer::Collector)), AccessDenied),
        ("a host and an analyst in one", tls::HOME, Some(&both), AccessDenied),
        ("a host and an analyst in one", tls::ANALYST, Some(&both), AccessDenied),
        ("a host in other letters", tls::HOME, Some(&upper_case), AccessDenied),
        ("any host", tls::HOME, Some(&wildcard), AccessDenied),
        ("nobody we know of", tls::HOME, Some(&ca.sign_odd(&["host.example"], |_| {})), AccessDenied),
        ("no name", tls::ENROL, Some(&ca.sign_odd(&[], |_| {})), AccessDenied),
    ] {
        check(what, protocol, identity, Got::Alert(alert));
    }
    scene.log_says(&["a connection is refused", "127.0.0.2", "it showed no certificate"]);
    scene.log_says(&["a connection is refused", "its certificate is of a CA that is not known here"]);
    scene.log_says(&["a connection is refused", "its certificate is not for what it wants"]);
    scene.others_are_served("strangers knocked");
}

#[test]
fn who_asks_for_less_than_is_spoken_gets_nothing() {
    let scene = Scene::new();
    let (_, stolen) = scene.stolen_host("stolen");
    let analyst = scene.analyst("viewer", "jdoe");
    let check = |what: &str, protocols: &[&[u8]], identity: Option<&Identity>, want: Got| {
        let protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let hello = Hello { protocols, identity: identity.cloned() };
        assert_eq!(attack(knock(ELSEWHERE, scene.address(), &hello)), want, "{what}");
    };
    let none = Got::Alert(NoApplicationProtocol);
    check("no protocol", &[], None, Got::HungUp);
    check("no protocol, and an analyst", &[], Some(&analyst), Got::HungUp);
    check("no protocol, and a host", &[], Some(&stolen), Got::Alert(AccessDenied));
    for wrong in [&b"http/1.1"[..], b"h2c", b"alibi-call-home/2", b"alibi-recorder/1", b"\0", &[b'x'; 255]] {
        check("another protocol", &[wrong], None, none);
        check("another protocol, and an analyst", &[wrong], Some(&analyst), none);
    }
    check("home among others", &[b"x", tls::HOME], None, Got::Alert(CertificateRequired));
    check("two rooms at once", &[tls::HOME, tls::ANALYST], None, Got::Alert(CertificateRequired));
    check("two rooms at once", &[tls::HOME, tls::ANALYST], Some(&analyst), Got::Alert(AccessDenied));
    check("two rooms at once", &[tls::ANALYST, tls::HOME], Some(&stolen), Got::Alert(AccessDenied));

    // No TLS at all.
    for plain in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xa5; 4096],
    ] {
        attack(async {
            let mut stream = dial(ELSEWHERE, scene.address()).await.unwrap();
            let _ = stream.write_all(plain).await;
            let mut said = Vec::new();
            let _ = awaited("the end of what is no TLS", stream.read_to_end(&mut said)).await;
            // A fatal alert at most, which has 7 bytes.
            assert!(said.is_empty() || (said.len() == 7 && said[0] == 21), "{said:?}");
        });
    }
    scene.log_says(&["a connection is refused", "it does not speak TLS"]);
    scene.others_are_served("others asked for less");
}

#[test]
fn an_older_tls_is_refused() {
    if !met("an older TLS", &[Requirement::OpenSsl]) {
        return;
    }
    let scene = Scene::new();
    for (word, is_spoken) in [("-tls1_3", true), ("-tls1_2", false), ("-tls1_1", false), ("-tls1", false)] {
        let mut client = Command::new("openssl");
        // Older versions are off in a usual configuration.
        let words = ["s_client", "-alpn", "h2", "-cipher", "DEFAULT:@SECLEVEL=0", word, "-connect"];
        let output = outcome(client.args(words).arg(scene.address().to_string()));
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert_eq!(said.contains("ALPN protocol: h2"), is_spoken, "{word}: {said}");
        // The oldest do not even say what they can sign with.
        let is_refused = said.contains("alert protocol version") || said.contains("alert handshake failure");
        assert!(is_spoken || is_refused, "{word}: {said}");
    }
    scene.log_says(&["a connection is refused", "it does not speak TLS 1.3"]);
    scene.others_are_served("older versions were tried");
}

#[test]
fn who_is_revoked_is_cut_off_at_once_and_goes_on_recording() {
    let scene = Scene::new();
    let data = scene.path("revoked");
    Agent::enrol(&data, &scene.collector.token(1));
    let agent = Agent::start_calling(&data, &["--source", "poll"]);
    let (host, stolen) = (id(&data), keys(&data));
    scene.host_until(host, |host| host["connected"] == true);
    scene.collector.said(&["host", "revoke", &host.to_string()]);
    let revoked = now();
    // It hears why as it calls again.
    agent.running.line_with("it has revoked our certificate", 0);
    let shown = scene.host(host);
    assert_eq!((&shown["connected"], &shown["trouble"]), (&false.into(), &"its enrolment is revoked".into()));
    assert!(shown["enrolment"]["revoked"].is_string(), "{shown:#}");
    for protocol in [tls::HOME, tls::ENROL] {
        let got = attack(knock(ELSEWHERE, scene.address(), &Hello::new(protocol, Some(&stolen))));
        assert_eq!(got, Got::Alert(CertificateRevoked));
    }

    // Its owner can ask it about the time after that, all of which it has recorded as well as it can.
    let mut query = Command::new(&programs().agent);
    query.args(["query", TARGET, "--json", "--from", &revoked.to_string(), "--data"]).arg(&data);
    let output = outcome(&mut query);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap["grade"] == "sampled"), "{answer:#}");

    // It does not come back by another token, but as another host.
    assert!(agent.running.stop().success());
    let enrol = |words: &[&str]| {
        let token = scene.collector.token(1);
        outcome(Command::new(&programs().agent).args(["enroll", &token]).args(words).arg("--data").arg(&data))
    };
    let again = enrol(&[]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("was revoked: `alibi-agent enroll --reset`"), "{said}");
    assert!(enrol(&["--reset"]).status.success());
    assert_ne!(id(&data), host);
    scene.others_are_served("a host was revoked");
}

/// A host's certificate is good for as long as can be, the same for whoever renews it and for whoever cannot.
#[test]
fn who_outlives_a_certificate_is_cut_off() {
    let scene = Scene::with(Command::new(&programs().alibi), &["--certificate-lifetime", "10s"]);
    let (host, stolen) = scene.stolen_host("stolen");
    let hello = Hello::new(tls::HOME, Some(&stolen));
    attack(async {
        let stream = enter(ELSEWHERE, scene.address(), &hello).await.unwrap();
        awaited("the end of a certificate", FalseAgent::new(host).serve(stream)).await;
        assert_eq!(knock(ELSEWHERE, scene.address(), &hello).await, Got::Alert(CertificateExpired));
    });
    let shown = scene.host(host);
    assert_eq!(
        (&shown["connected"], &shown["trouble"]),
        (&false.into(), &"its certificate has run out".into())
    );
    scene.log_says(&["a connection is refused", "its certificate has run out"]);
    // Meanwhile the other one has renewed its own, and its connection lasted.
    scene.honest.running.line_with("the certificate is renewed", 0);
    scene.others_are_served("a certificate ran out");
}

#[test]
fn of_a_request_for_a_certificate_only_the_key_counts() {
    let scene = Scene::new();
    let honest = keys(&scene.honest.data);
    let token: Token = scene.collector.token(9).parse().unwrap();
    let key = KeyPair::generate().unwrap();
    let request = |change: fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        change(&mut params);
        params.serialize_request(&key).unwrap().der().to_vec()
    };
    let enrol = |host: HostId, certificate_request: Vec<u8>, identity: Option<&Identity>| {
        let request = wire::EnrolHostRequest {
            secret: token.secret.to_vec(),
            certificate_request,
            host: host.as_bytes().to_vec(),
            name: "x".into(),
        };
        attack(async {
            let hello = Hello::new(tls::ENROL, identity);
            let stream = enter(ELSEWHERE, scene.address(), &hello).await.unwrap();
            let mut client = EnrolmentClient::new(channel_over(stream).await.unwrap());
            client.enrol_host(request).await.map(tonic::Response::into_inner)
        })
    };
    type Ask = fn(&mut CertificateParams);
    let asks: [(&str, Ask); 3] = [
        ("nothing", |_| {}),
        ("the collector's name", |params| {
            params.subject_alt_names = vec![SanType::DnsName(tls::COLLECTOR_NAME.try_into().unwrap())];
        }),
        ("to be a CA", |params| {
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        }),
    ];
    for (what, ask) in asks {
        match enrol(stranger(), request(ask), None) {
            Ok(given) => {
                let chain: Vec<_> = given.chain.into_iter().map(tls::CertificateDer::from).collect();
                assert_eq!(Peer::of(&chain[0]).unwrap(), Peer::Host(stranger()), "{what}");
                let identity =
                    Identity { chain, key: tls::PrivatePkcs8KeyDer::from(key.serialize_der()).into() };
                let forged = signed_by_a_leaf(&identity, Peer::Collector);
                let got = attack(knock(ELSEWHERE, scene.address(), &Hello::new(tls::HOME, Some(&forged))));
                assert_eq!(got, Got::Alert(CertificateUnknown), "{what}");
            }
            Err(status) => assert!(
                status.message().contains("the certificate request cannot be used"),
                "{what}: {status:?}"
            ),
        }
    }
    // The name of another, with a good token, and even when coming as that other.
    for identity in [None, Some(&honest)] {
        let taken = enrol(scene.honest_id(), request(|_| {}), identity).unwrap_err();
        assert!(taken.message().contains("is enrolled with another key"), "{taken:?}");
    }
    // A certificate is renewed for the key that it has, and for no other.
    let renewed = attack(async {
        let hello = Hello::new(tls::ENROL, Some(&honest));
        let stream = enter(ELSEWHERE, scene.address(), &hello).await.unwrap();
        let mut client = EnrolmentClient::new(channel_over(stream).await.unwrap());
        client.renew_host(wire::RenewHostRequest { certificate_request: request(|_| {}) }).await
    });
    assert!(renewed.unwrap_err().message().contains("is enrolled with another key"));
    for garbage in [vec![], vec![0x30; 4000], vec![0; 5000]] {
        let status = enrol(HostId::from_bytes([0xdd; 16]), garbage, None).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    }
    scene.others_are_served("somebody asked for too much");
}

/// Shows one certificate to all.
#[derive(Debug)]
struct ShowsAll(Arc<CertifiedKey>);

impl ResolvesServerCert for ShowsAll {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// What whoever plays the collector gets of the next one that calls.
async fn play_the_collector(listener: &TcpListener, identity: &Identity, protocol: &[u8]) -> Got {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ShowsAll(certified(identity))));
    config.alpn_protocols = vec![protocol.to_vec()];
    let (stream, _) = awaited("a call", listener.accept()).await.unwrap();
    match TlsAcceptor::from(Arc::new(config)).accept(stream).await {
        Err(error) => got(&error),
        Ok(mut stream) => match stream.read(&mut [0; 64]).await {
            Ok(0) => Got::HungUp,
            Ok(_) => Got::In,
            Err(error) => got(&error),
        },
    }
}

#[test]
fn who_plays_the_collector_is_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let (data, agent) = (directory.path().join("collector"), directory.path().join("agent"));
    let collector = Collector::start(&data);
    let address: SocketAddr = collector.address.parse().unwrap();
    Agent::enrol(&agent, &collector.token(1));
    let ca = Ca::stolen(address, &data);
    let thief = directory.path().join("thief");
    Agent::enrol(&thief, &collector.token(1));
    let host = keys(&thief);
    assert!(collector.running.stop().success());

    // It is at the collector's own address.
    let agent = attack(async {
        let listener = TcpListener::bind(address).await.unwrap();
        let agent = Agent::start_calling(&agent, &["--source", "poll"]);
        for (what, identity, protocol, want) in [
            ("a host", &host, tls::HOME, BadCertificate),
            ("a foreign CA's collector", &Ca::foreign().sign(Peer::Collector), tls::HOME, UnknownCA),
            ("a collector long ago", &ca.sign_expired(Peer::Collector), tls::HOME, CertificateExpired),
        ] {
            assert_eq!(play_the_collector(&listener, identity, protocol).await, Got::Alert(want), "{what}");
        }
        agent
    });
    for why in [
        "its certificate is for somebody else",
        "of a CA that is not known here",
        "its certificate has run out",
    ] {
        agent.running.line_with(why, 0);
    }
    // The true one is served as soon as it is back.
    let collector = Collector::start_at(&data, &address.to_string());
    collector.json_until(&["hosts"], |hosts| {
        hosts["hosts"].as_array().unwrap().iter().any(|host| host["connected"] == true)
    });
}

#[test]
fn an_agent_that_listens_serves_the_collector_alone() {
    let scene = Scene::new();
    let data = scene.path("listening");
    Agent::enrol(&data, &scene.collector.token(1));
    let agent = Agent::start_again(&data, "0.0.0.0:0", &["--source", "poll"]);
    let port = agent.address.trim_matches('"').rsplit(':').next().unwrap().parse().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (_, host) = scene.stolen_host("stolen");
    let (ca, analyst) = (scene.stolen_ca(), scene.analyst("admin", "jdoe"));
    let check = |what: &str, protocol: &[u8], identity: Option<&Identity>, want: Got| {
        let got = attack(knock(ELSEWHERE, address, &Hello::new(protocol, identity)));
        assert_eq!(got, want, "{what}");
    };
    check("the collector", tls::RECORDER, Some(&ca.sign(Peer::Collector)), Got::In);
    for (what, protocol, identity, alert) in [
        ("nobody", tls::RECORDER, None, CertificateRequired),
        ("a host", tls::RECORDER, Some(&host), AccessDenied),
        ("itself", tls::RECORDER, Some(&keys(&data)), AccessDenied),
        ("an admin", tls::RECORDER, Some(&analyst), AccessDenied),
        ("a foreign collector", tls::RECORDER, Some(&Ca::foreign().sign(Peer::Collector)), UnknownCA),
        ("a collector long ago", tls::RECORDER, Some(&ca.sign_expired(Peer::Collector)), CertificateExpired),
        ("another protocol", tls::ANALYST, Some(&ca.sign(Peer::Collector)), NoApplicationProtocol),
    ] {
        check(what, protocol, identity, Got::Alert(alert));
    }
    attack(async {
        let mut stream = dial(ELSEWHERE, address).await.unwrap();
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        ended("what is no TLS", &mut stream).await;
    });
    scene.others_are_served("an agent was dialled by strangers");
}
