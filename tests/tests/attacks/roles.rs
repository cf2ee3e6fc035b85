//! Who may call what: every role against every method, by real calls with real tokens.

use alibi_proto::{token::Token, wire};
use prost::Message as _;
use tonic::Code;

use crate::{
    attacker::{ELSEWHERE, Line, attack, bearer, head},
    scene::Scene,
};

const SCHEMA: &str = include_str!("../../../proto/schema/alibi/v1/analyst.proto");
const ROLES: [&str; 4] = ["viewer", "analyst", "responder", "admin"];

/// Each method, the least role that may call it, and a request that changes little, whoever makes it.
fn methods() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let nobody = || "nobody".to_owned();
    let process = wire::ProcessRequest { process: "0123".into(), ..wire::ProcessRequest::default() };
    vec![
        ("Hosts", "viewer", Vec::new()),
        ("WhoAmI", "viewer", Vec::new()),
        ("Who", "analyst", Vec::new()),
        ("Process", "analyst", process.encode_to_vec()),
        ("Executables", "analyst", Vec::new()),
        ("Top", "analyst", Vec::new()),
        (
            "Search",
            "analyst",
            wire::SearchRequest { query: "*".into(), ..Default::default() }.encode_to_vec(),
        ),
        ("Flows", "analyst", wire::FlowsRequest { query: "*".into(), ..Default::default() }.encode_to_vec()),
        ("VerifyHost", "analyst", wire::VerifyHostRequest { host: nobody() }.encode_to_vec()),
        ("AddAgent", "admin", wire::AddAgentRequest { address: nobody() }.encode_to_vec()),
        ("RemoveAgent", "admin", wire::RemoveAgentRequest { address: nobody() }.encode_to_vec()),
        ("RevokeHost", "admin", wire::RevokeHostRequest { host: nobody() }.encode_to_vec()),
        ("UnmarkHost", "admin", wire::UnmarkHostRequest { host: nobody() }.encode_to_vec()),
        ("CreateEnrolmentToken", "admin", Vec::new()),
        ("CreateAnalystToken", "admin", Vec::new()),
        ("Credentials", "admin", Vec::new()),
        ("RevokeCredential", "admin", wire::RevokeCredentialRequest { credential: 4711 }.encode_to_vec()),
        ("Audit", "admin", Vec::new()),
        ("VerifyAudit", "admin", Vec::new()),
        ("Authorities", "admin", Vec::new()),
        ("RotateAuthority", "admin", Vec::new()),
        ("RetireAuthority", "admin", wire::RetireAuthorityRequest { fingerprint: nobody() }.encode_to_vec()),
    ]
}

fn path(method: &str) -> String {
    format!("/alibi.v1.Analyst/{method}")
}

fn rank(role: &str) -> usize {
    ROLES.iter().position(|one| *one == role).unwrap()
}

#[test]
fn each_role_may_what_it_may_and_what_it_may_not_is_noted() {
    let scene = Scene::new();
    let service = SCHEMA.split_once("service Analyst {").unwrap().1.split_once("\n}").unwrap().0;
    let rpcs = service.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    let (mut in_schema, methods) = (rpcs.collect::<Vec<_>>(), methods());
    let mut known: Vec<_> = methods.iter().map(|(name, ..)| *name).collect();
    in_schema.sort_unstable();
    known.sort_unstable();
    assert_eq!(known, in_schema, "every method, and no other");

    for role in ROLES {
        let name = format!("a-{role}");
        let token = scene.analyst_token(role, &name);
        attack(async {
            let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
            for (method, least, request) in &methods {
                let body = [head(u32::try_from(request.len()).unwrap()), request.clone()].concat();
                let status = line.send(&path(method), bearer(&token.secret), body).await;
                let denied = rank(role) < rank(least);
                assert_eq!(status.code() == Code::PermissionDenied, denied, "{role} {method}: {status:?}");
                assert_ne!(status.code(), Code::Unauthenticated, "{role} {method}: {status:?}");
                if denied {
                    let why = format!("{method} takes the role {least}, and yours is {role}");
                    assert!(status.message().starts_with(&why), "{status:?}");
                }
            }
        });
        let noted = scene.audit(&["--who", &name]);
        assert_eq!(noted.len(), methods.len(), "all that was done, and all that was not: {noted:#?}");
        for (method, least, _) in methods.iter().filter(|(_, least, _)| rank(role) < rank(least)) {
            let entry = noted.iter().find(|entry| entry["action"] == path(method)).unwrap();
            let outcome = entry["outcome"].as_str().unwrap();
            assert!(outcome.contains(&format!("takes the role {least}")), "{entry:#}");
            assert_eq!(entry["role"], role);
            assert!(entry["from"].as_str().unwrap().starts_with("127.0.0.2:"), "{entry:#}");
        }
    }
    assert_eq!(scene.collector.json(&["audit", "verify"]).1["holds"], true);
    scene.others_are_served("every role tried everything");
}

#[test]
fn a_path_that_is_none_leads_nowhere() {
    let scene = Scene::new();
    let token = scene.analyst_token("admin", "root");
    attack(async {
        let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
        for path in [
            "/",
            "/alibi.v1.Analyst",
            "/alibi.v1.Analyst/",
            "/alibi.v1.Analyst/hosts",
            "/alibi.v1.Analyst/Hosts/",
            "//alibi.v1.Analyst/Hosts",
            "/alibi.v1.Analyst/../alibi.v1.Analyst/Hosts",
            "/alibi.v1.Analyst/%48osts",
            "/alibi.v1.Analyst/Hosts%00",
            "/alibi.v1.Enrolment/EnrolHost",
            "/alibi.v1.Recorder/Tail",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/../../etc/passwd",
        ] {
            let status = line.call(path, bearer(&token.secret), &()).await;
            assert_eq!(status.code(), Code::PermissionDenied, "{path}: {status:?}");
            assert!(status.message().contains("that anybody may call"), "{path}: {status:?}");
        }
    });
    scene.others_are_served("somebody looked for a way in");
}

/// What is denied is noted, and each note takes room: so nobody may be denied as often as they like.
#[test]
fn who_is_denied_is_not_denied_for_ever() {
    const TRIES: usize = 2_000;
    let scene = Scene::new();
    let token: Token = scene.analyst_token("viewer", "eager");
    let denied = attack(async {
        let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
        let mut denied = 0;
        for _ in 0..TRIES {
            let status = line.call(&path("Audit"), bearer(&token.secret), &()).await;
            if status.code() == Code::ResourceExhausted {
                assert!(status.message().contains("too often"), "{status:?}");
                return denied;
            }
            assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
            denied += 1;
        }
        denied
    });
    assert!((200..TRIES).contains(&denied), "{denied}");
    scene.others_are_served("somebody was denied all the time");
}
