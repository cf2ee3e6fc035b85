//! Who proves to be one host, and says that it is another; or proves nothing, and says that it is one.

use std::process::Command;

use alibi_lab::system::{Running, now};
use alibi_proto::{
    tls::{self, Identity},
    wire,
};
use serde_json::Value;
use tokio::net::TcpListener;
use tonic::Status;

use crate::{
    attacker::{ELSEWHERE, Hello, attack, awaited, enter},
    false_agent::{Answer, FalseAgent, batch, flow, framed},
    scene::{Scene, TARGET},
};

/// Calls home as a host, and serves as the false agent until the other end hangs up.
async fn call_home(scene: &Scene, identity: &Identity, agent: FalseAgent) {
    let stream = enter(ELSEWHERE, scene.address(), &Hello::new(tls::HOME, Some(identity))).await.unwrap();
    awaited("the end of a false agent", agent.serve(stream)).await;
}

/// Nothing that was forged is in the record of the honest host.
fn nothing_is_forged(scene: &Scene, meanwhile: &str) {
    scene.others_are_served(meanwhile);
    let honest = scene.honest_id().to_string();
    let (_, answer) = scene.collector.json(&["who", TARGET, "--host", &honest, "--last", "1h"]);
    assert_eq!(answer["hosts"][0]["processes"], Value::Array(vec![]), "{meanwhile}: {answer:#}");
    let shown = scene.host(scene.honest_id());
    assert_eq!((&shown["chain"]["state"], &shown["enrolment"]["copied"]), (&"whole".into(), &Value::Null));
    assert_ne!(shown["name"], "false", "{meanwhile}: {shown:#}");
}

#[test]
fn who_proves_to_be_one_host_cannot_speak_for_another() {
    let scene = Scene::new();
    let (own, stolen) = scene.stolen_host("stolen");
    let honest = scene.honest_id();
    let forged = || FalseAgent::new(honest).with("Tail", batch(vec![flow(vec![])]));
    attack(call_home(&scene, &stolen, forged()));
    let shown = scene.host(own);
    let trouble = format!("it has proven that it is the host {own}, and says that it is {honest}");
    assert_eq!((&shown["connected"], &shown["trouble"]), (&false.into(), &trouble.into()));
    assert_eq!((&shown["host"], &shown["events"]), (&Value::Null, &0.into()), "nothing of it is believed");
    nothing_is_forged(&scene, "a host said that it is another");

    // Later is no better: it is asked again, and by then says so.
    let changed = Answer::Done(framed(&wire::DescribeResponse { host: vec![1; 5], ..Default::default() }));
    attack(call_home(&scene, &stolen, FalseAgent::new(own).with("Describe", changed)));
    assert!(scene.host(own)["trouble"].as_str().unwrap().contains("it sent what no agent sends"));

    // Neither is what is no lease, or no instance, or who does not take what it is given.
    for (method, answer, why) in [
        (
            "Present",
            Answer::Done(framed(&wire::PresentResponse::default())),
            "what it presents is no instance",
        ),
        (
            "Present",
            Answer::Done(framed(&wire::PresentResponse {
                instance: vec![1; 16],
                lease: Some(vec![1; 17]),
                ..Default::default()
            })),
            "what it presents is no lease",
        ),
        ("Admit", Answer::Failed(Status::internal("no")), "no"),
    ] {
        attack(call_home(&scene, &stolen, FalseAgent::new(own).with(method, answer)));
        let shown =
            scene.host_until(own, |host| host["trouble"].as_str().is_some_and(|said| said.contains(why)));
        assert_eq!(shown["connected"], false, "{why}: {shown:#}");
    }
    nothing_is_forged(&scene, "a host was no host");
}

#[test]
fn who_proves_nothing_cannot_speak_for_a_host_that_does() {
    let scene = Scene::new();
    let honest = scene.honest_id();
    let address = attack(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = &scene.collector;
        tokio::task::block_in_place(|| collector.follow(&address.to_string()));
        let (stream, _) = awaited("the collector dials", listener.accept()).await.unwrap();
        let forged = FalseAgent::new(honest).with("Tail", batch(vec![flow(vec![])]));
        awaited("the end of a false agent", forged.serve(stream)).await;
        address.to_string()
    });
    let is_it = |host: &&Value| host["address"] == *address;
    let hosts = scene.collector.json_until(&["hosts"], |hosts| {
        hosts["hosts"].as_array().unwrap().iter().find(is_it).is_some_and(|host| host["trouble"].is_string())
    });
    let shown = hosts["hosts"].as_array().unwrap().iter().find(is_it).unwrap();
    assert_eq!((&shown["host"], &shown["events"]), (&Value::Null, &0.into()), "{shown:#}");
    scene.collector.running.line_with(&format!("{honest}, which is enrolled, and does not prove it"), 0);
    nothing_is_forged(&scene, "somebody on this machine said that it is an enrolled host");
}

/// A process is known by its uid, which is a number that a host tells.
#[test]
fn who_tells_of_anothers_process_changes_nothing_there() {
    let scene = Scene::new();
    let (own, stolen) = scene.stolen_host("stolen");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let began = now().to_string();
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read line")]);
    let _talker = Running::start("a talker", &mut shell);
    let honest = scene.honest_id().to_string();
    let words = ["who", "127.0.0.1", "--port", &port, "--host", &honest, "--from", &began];
    let talked = |answer: &Value| answer["hosts"][0]["verdict"] == "talked";
    let answer = scene.collector.json_until(&words, talked);
    let process = answer["hosts"][0]["processes"][0].clone();
    let uid = process["process"].as_str().unwrap();
    let bytes =
        (0..16).map(|at| u8::from_str_radix(&uid[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<_>>();

    let started = wire::event::Kind::ProcessStarted(wire::ProcessStarted {
        uid: bytes.clone(),
        pid: 1,
        image: Some(wire::ProcessImage { name: "innocent".into(), ..Default::default() }),
        started_ns: now().as_nanos(),
        ..Default::default()
    });
    let told = FalseAgent::new(own).with("Tail", batch(vec![started, flow(bytes)]));
    attack(async {
        let stream = enter(ELSEWHERE, scene.address(), &Hello::new(tls::HOME, Some(&stolen))).await.unwrap();
        let serving = tokio::spawn(told.serve(stream));
        tokio::task::block_in_place(|| {
            scene.host_until(own, |host| host["events"] == 2);
            let again = scene.collector.json_until(&words, talked);
            let after = &again["hosts"][0]["processes"][0];
            assert_eq!((&after["path"], &after["arguments"]), (&process["path"], &process["arguments"]));
            // What two hosts tell of is not taken for one: it is said that there are two.
            let shown = scene.collector.alibi(&["process", uid]);
            let said = String::from_utf8_lossy(&shown.stderr).into_owned();
            assert!(shown.status.success() || said.contains("more than one"), "{said}");
            scene.others_are_served("a host told of another's process");
        });
        serving.abort();
    });
}
