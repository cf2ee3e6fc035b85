//! What an attacker has: sockets from any address of this machine, TLS that shows and believes what it likes, HTTP/2 that
//! says what it likes, and stolen keys.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use alibi_proto::tls::{self, CertificateDer, Fingerprint, Identity, Peer, PrivatePkcs8KeyDer};
use h2::client::SendRequest;
use http::{HeaderValue, Request};
use prost::bytes::Bytes;
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpSocket, TcpStream},
    runtime::Runtime,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Code, Status};

/// How long anything may take; only a failure takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where whoever fails comes from, so that those who do not are not made to wait: everybody else is at 127.0.0.1.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Does what the attacker does.
pub(crate) fn attack<T>(deeds: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(deeds)
}

/// Waits for what has to come.
pub(crate) async fn awaited<T>(what: &str, comes: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, comes).await.unwrap_or_else(|_| panic!("{what}: it never came"))
}

/// A connection from an address of this machine.
pub(crate) async fn dial(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// What is said in a handshake.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hello {
    /// The protocols that are asked for.
    pub(crate) protocols: Vec<Vec<u8>>,
    /// What is shown, whether it fits together or not.
    pub(crate) identity: Option<Identity>,
}

impl Hello {
    pub(crate) fn new(protocol: &[u8], identity: Option<&Identity>) -> Self {
        Self { protocols: vec![protocol.to_vec()], identity: identity.cloned() }
    }

    fn config(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelievesAll));
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(Shows(certified(identity)))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.protocols.clone();
        config
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Key and certificates need not belong together.
pub(crate) fn certified(identity: &Identity) -> Arc<CertifiedKey> {
    let key = ring::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(identity.key.clone_key())).unwrap();
    Arc::new(CertifiedKey::new(identity.chain.clone(), key))
}

#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct BelievesAll;

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// An encrypted connection, as far as this end can tell.
pub(crate) async fn shake(stream: TcpStream, hello: &Hello) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::new(hello.config())).connect(tls::collector_server_name().unwrap(), stream).await
}

/// The same, from an address of this machine. Whether the other end likes what it was shown is not known yet.
pub(crate) async fn enter(from: Ipv4Addr, to: SocketAddr, hello: &Hello) -> io::Result<TlsStream<TcpStream>> {
    shake(dial(from, to).await?, hello).await
}

/// What somebody gets who knocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Got {
    /// The other end speaks its protocol.
    In,
    /// It says what it holds against this end, and no more.
    Alert(AlertDescription),
    /// It hangs up.
    HungUp,
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In => f.write_str("in"),
            Self::Alert(alert) => write!(f, "{alert:?}"),
            Self::HungUp => f.write_str("hung up"),
        }
    }
}

/// What an end of a connection means.
pub(crate) fn got(error: &io::Error) -> Got {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => Got::Alert(*alert),
        _ => Got::HungUp,
    }
}

/// Tries to get in, and waits for the first byte, or for why there is none.
pub(crate) async fn knock(from: Ipv4Addr, to: SocketAddr, hello: &Hello) -> Got {
    awaited("an answer to a knock", async {
        match enter(from, to, hello).await {
            Err(error) => got(&error),
            Ok(mut stream) => match stream.read(&mut [0; 64]).await {
                Ok(0) => Got::HungUp,
                Ok(_) => Got::In,
                Err(error) => got(&error),
            },
        }
    })
    .await
}

/// Reads until the other end hangs up, whatever it says meanwhile.
pub(crate) async fn ended(what: &str, stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 16 << 10];
    awaited(what, async { while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {} }).await;
}

/// Somebody who signs certificates.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Ca {
    /// One that nobody believes.
    pub(crate) fn foreign() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Alibi CA");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// One that has the name of another, and not its key.
    pub(crate) fn namesake(of: &Self) -> Self {
        let issuer = Issuer::from_ca_cert_der(&of.certificate, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, certificate: of.certificate.clone() }
    }

    /// A collector's own: its key was stolen out of the data directory.
    pub(crate) fn stolen(collector: SocketAddr, data: &Path) -> Self {
        let shown = attack(async {
            let stream = enter(ELSEWHERE, collector, &Hello::new(tls::ENROL, None)).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap().to_vec()
        });
        let certificate = shown.last().unwrap().clone().into_owned();
        let name = format!("{}.key", Fingerprint::of(&certificate));
        let pem = fs::read(data.join("authority").join(name)).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self { issuer: Issuer::from_ca_cert_der(&certificate, key).unwrap(), certificate }
    }

    /// A certificate for somebody, as the collector's CA makes them.
    pub(crate) fn sign(&self, peer: Peer) -> Identity {
        self.sign_odd(&[&peer.to_string()], |_| {})
    }

    /// A certificate with these names, and with something that is odd.
    pub(crate) fn sign_odd(&self, names: &[&str], odd: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        odd(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Identity { chain: vec![certificate], key: key.into() }
    }

    /// As [`Ca::sign`], but it ran out long ago.
    pub(crate) fn sign_expired(&self, peer: Peer) -> Identity {
        self.sign_odd(&[&peer.to_string()], |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 2);
        })
    }
}

/// Somebody who has a certificate signs another with its key.
pub(crate) fn signed_by_a_leaf(leaf: &Identity, peer: Peer) -> Identity {
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&leaf.key, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let issuer = Issuer::from_ca_cert_der(&leaf.chain[0], key).unwrap();
    let forged = Ca { issuer, certificate: leaf.chain[0].clone() }.sign(peer);
    Identity { chain: [&forged.chain[..], &leaf.chain[..]].concat(), key: forged.key }
}

/// A connection on which requests are made by hand.
pub(crate) struct Line {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Line {
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(async {
            // How it ended does not matter, but that it did.
            let _ = connection.await;
        });
        Self { requests, connection }
    }

    /// To the collector's analysts' room, from an address, with nothing shown.
    pub(crate) async fn to_analysts(from: Ipv4Addr, to: SocketAddr) -> Self {
        Self::over(enter(from, to, &Hello::new(tls::ANALYST, None)).await.unwrap()).await
    }

    /// Calls a method; what is said in the end.
    pub(crate) async fn call(
        &mut self,
        path: &str,
        authorization: Option<HeaderValue>,
        message: &impl prost::Message,
    ) -> Status {
        let body = message.encode_to_vec();
        let head = head(u32::try_from(body.len()).unwrap());
        self.send(path, authorization, [head, body].concat()).await
    }

    /// Posts these bytes.
    pub(crate) async fn send(
        &mut self,
        path: &str,
        authorization: Option<HeaderValue>,
        body: Vec<u8>,
    ) -> Status {
        let called = async {
            let mut request = Request::post(format!("https://{}{path}", tls::COLLECTOR_NAME))
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let mut requests = self.requests.clone().ready().await?;
            let (response, mut stream) = requests.send_request(request.body(()).unwrap(), false)?;
            // Whoever is refused may have been hung up on already.
            let _ = stream.send_data(body.into(), true);
            let mut response = response.await?;
            if let Some(status) = Status::from_header_map(response.headers()) {
                return Ok(status);
            }
            let body = response.body_mut();
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data?.len())?;
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            Ok(Status::from_header_map(&trailers).unwrap_or_else(|| Status::unknown("no status")))
        };
        let gone = |error: h2::Error| Status::new(Code::Unavailable, error.to_string());
        awaited(path, called).await.unwrap_or_else(gone)
    }

    /// Begins a request that never ends, and waits until the other end has had enough.
    pub(crate) async fn never_ending(self, path: &str) {
        let request = Request::post(format!("https://{}{path}", tls::COLLECTOR_NAME))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut requests = self.requests.clone().ready().await.unwrap();
        let (_response, mut stream) = requests.send_request(request, false).unwrap();
        stream.send_data(head(100).into(), false).unwrap();
        self.ended(path).await;
    }

    /// Waits until the other end has ended it.
    pub(crate) async fn ended(self, what: &str) {
        awaited(what, self.connection).await.unwrap();
        drop(self.requests);
    }
}

/// The head of a gRPC message that says it is so long.
pub(crate) fn head(length: u32) -> Vec<u8> {
    [&[0], length.to_be_bytes().as_slice()].concat()
}

/// A token as it comes with a request.
pub(crate) fn bearer(secret: &[u8; 32]) -> Option<HeaderValue> {
    Some(alibi_collector::access::bearer::write(secret).parse().unwrap())
}
