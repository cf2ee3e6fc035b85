//! A collector, and a host that everybody wishes well: whatever is done to the one, the other is served.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use alibi_agent::{enrolment::Enrolment, identity};
use alibi_lab::{
    programs::programs,
    system::{Agent, Collector, now},
};
use alibi_proto::{
    id::HostId,
    time::Timestamp,
    tls::{self, Identity, Peer},
    token::Token,
    transport::channel_over,
    wire::{self, enrolment_client::EnrolmentClient},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::attacker::{Ca, ELSEWHERE, Hello, attack, enter};

/// Whom nobody has ever talked to (TEST-NET-3, RFC 5737).
pub(crate) const TARGET: &str = "203.0.113.99";

/// The collector, the host, and where their data are.
pub(crate) struct Scene {
    // Ended in this order.
    pub(crate) honest: Agent,
    pub(crate) collector: Collector,
    directory: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(Command::new(&programs().alibi), &[])
    }

    /// With a collector that may have so many files and connections open, and begins with fewer.
    pub(crate) fn with_files(files: u32) -> Self {
        let mut limited = Command::new("sh");
        let script = format!(r#"ulimit -Sn 256 && ulimit -Hn {files} && exec "$0" "$@""#);
        limited.args(["-c", &script]).arg(&programs().alibi);
        Self::with(limited, &[])
    }

    /// With a collector that is started by a command which ends in `alibi`, and further words.
    pub(crate) fn with(alibi: Command, words: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let collector =
            Collector::start_with(alibi, &directory.path().join("collector"), "127.0.0.1:0", words);
        let honest = directory.path().join("honest");
        Agent::enrol(&honest, &collector.token(1));
        // It looks and tells often, so that nobody waits for it.
        let words = ["--source", "poll", "--period", "300ms", "--sync-interval", "100ms"];
        let honest = Agent::start_calling(&honest, &words);
        let scene = Self { honest, collector, directory };
        scene.host_until(scene.honest_id(), |honest| honest["known_until"].is_string());
        scene
    }

    /// Where the collector is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.collector.address.parse().unwrap()
    }

    /// Somewhere in the scene's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn honest_id(&self) -> HostId {
        id(&self.honest.data)
    }

    /// The honest host is followed, up to now; questions are answered, and it is in the answers.
    pub(crate) fn others_are_served(&self, meanwhile: &str) {
        let (instant, id) = (now(), self.honest_id());
        let hosts = self.collector.json_until(&["hosts"], |hosts| {
            host(hosts, id).is_some_and(|honest| known_until(honest) >= instant)
        });
        let honest = host(&hosts, id).unwrap();
        assert_eq!(honest["connected"], true, "{meanwhile}: {hosts:#}");
        let (status, answer) = self.collector.json(&["who", TARGET, "--last", "1s"]);
        assert_eq!(status, 3, "{meanwhile}: {answer:#}");
        let answers = answer["hosts"].as_array().unwrap();
        assert!(answers.iter().any(|answer| answer["host"] == id.to_string()), "{meanwhile}: {answer:#}");
    }

    /// The host as `hosts` shows it.
    pub(crate) fn host(&self, id: HostId) -> Value {
        host(&self.collector.json(&["hosts"]).1, id).unwrap().clone()
    }

    /// Waits until the host is as wanted.
    pub(crate) fn host_until(&self, id: HostId, wanted: impl Fn(&Value) -> bool) -> Value {
        let hosts = self.collector.json_until(&["hosts"], |hosts| host(hosts, id).is_some_and(&wanted));
        host(&hosts, id).unwrap().clone()
    }

    /// Another host that is enrolled, with its keys, which somebody has stolen.
    pub(crate) fn stolen_host(&self, name: &str) -> (HostId, Identity) {
        let data = self.path(name);
        Agent::enrol(&data, &self.collector.token(1));
        (id(&data), keys(&data))
    }

    /// An analyst's certificate.
    pub(crate) fn analyst(&self, role: &str, name: &str) -> Identity {
        login(&self.analyst_token(role, name)).unwrap()
    }

    /// An analyst's token.
    pub(crate) fn analyst_token(&self, role: &str, name: &str) -> Token {
        self.collector.said(&["token", "create", "--role", role, "--name", name]).parse().unwrap()
    }

    /// The collector's CA, stolen.
    pub(crate) fn stolen_ca(&self) -> Ca {
        Ca::stolen(self.address(), &self.path("collector"))
    }

    /// Runs `alibi` by a token, against what the token says.
    pub(crate) fn by_token(&self, token: &Token, words: &[&str]) -> Output {
        let mut command = Command::new(&programs().alibi);
        command.args(words).env("ALIBI_TOKEN", token.to_string()).env("ALIBI_CREDENTIALS", self.path("none"));
        command.env_remove("ALIBI_COLLECTOR").output().unwrap()
    }

    /// The newest entries of the audit log.
    pub(crate) fn audit(&self, words: &[&str]) -> Vec<Value> {
        let (_, audit) = self.collector.json(&[&["audit", "--limit", "1000"], words].concat());
        audit["entries"].as_array().unwrap().clone()
    }

    /// What the collector has said about refused connections has all of these words in one line.
    pub(crate) fn log_says(&self, words: &[&str]) {
        let said = self.collector.running.said();
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        assert!(said.iter().any(has_all), "no line with {words:?} in {said:#?}");
    }
}

/// The host in what `hosts` prints, whether it has ever answered or not.
pub(crate) fn host(hosts: &Value, id: HostId) -> Option<&Value> {
    let id = Value::from(id.to_string());
    hosts["hosts"].as_array().unwrap().iter().find(|host| host["host"] == id || host["address"] == id)
}

pub(crate) fn known_until(host: &Value) -> Timestamp {
    serde_json::from_value(host["known_until"].clone()).unwrap_or_default()
}

/// The host of a data directory.
pub(crate) fn id(data: &Path) -> HostId {
    identity::load(data).unwrap().unwrap()
}

/// The keys in a data directory.
pub(crate) fn keys(data: &Path) -> Identity {
    Enrolment::load(data).unwrap().unwrap().identity(data).unwrap()
}

/// Logs in; a certificate, or what is said instead.
pub(crate) fn login(token: &Token) -> Result<Identity, tonic::Status> {
    let key = tls::make_key().unwrap();
    let request = wire::LoginRequest {
        secret: token.secret.to_vec(),
        certificate_request: tls::certificate_request(&key).unwrap(),
    };
    let given = attack(async {
        let to = token.address.to_string().parse().unwrap();
        let stream = enter(ELSEWHERE, to, &Hello::new(tls::ENROL, None)).await.unwrap();
        EnrolmentClient::new(channel_over(stream).await.unwrap()).login(request).await
    })?
    .into_inner();
    let chain: Vec<_> = given.chain.into_iter().map(tls::CertificateDer::from).collect();
    assert!(matches!(Peer::of(&chain[0]), Ok(Peer::Analyst(_))));
    Ok(Identity { chain, key: key.into() })
}
