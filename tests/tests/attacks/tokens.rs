//! Tokens: used again, used up, run out, revoked, of the wrong kind, guessed.

use std::{net::Ipv4Addr, process::Command, thread};

use alibi_lab::{
    programs::programs,
    system::{Agent, outcome},
};
use alibi_proto::{
    id::HostId,
    tls,
    token::{Token, TokenKind},
    transport::channel_over,
    wire::{self, enrolment_client::EnrolmentClient},
};
use http::HeaderValue;
use tonic::{Code, Status};

use crate::{
    attacker::{ELSEWHERE, Hello, Line, attack, bearer, enter},
    scene::{Scene, host, login},
};

const WHO_AM_I: &str = "/alibi.v1.Analyst/WhoAmI";
/// What a stranger is told, whatever there is or is not.
const NOT_GOOD: &str = "the token is not good here: ask an admin for another";
const USED_UP: &str = "the token was used as often as it may be: ask an admin for another";

/// Tries to enrol a host of this number with a token's secret.
async fn enrol(scene: &Scene, from: Ipv4Addr, secret: [u8; 32], number: u8) -> Result<(), Status> {
    let key = tls::make_key().unwrap();
    let request = wire::EnrolHostRequest {
        secret: secret.to_vec(),
        certificate_request: tls::certificate_request(&key).unwrap(),
        host: HostId::from_bytes([number; 16]).as_bytes().to_vec(),
        name: format!("host-{number}"),
    };
    let stream = enter(from, scene.address(), &Hello::new(tls::ENROL, None)).await.unwrap();
    EnrolmentClient::new(channel_over(stream).await.unwrap()).enrol_host(request).await.map(drop)
}

/// Asks who asks, once, from an address.
fn who_am_i(scene: &Scene, from: Ipv4Addr, authorization: Option<HeaderValue>) -> Status {
    attack(async {
        let mut line = Line::to_analysts(from, scene.address()).await;
        line.call(WHO_AM_I, authorization, &wire::WhoAmIRequest {}).await
    })
}

#[test]
fn what_was_used_up_is_good_for_nothing() {
    let scene = Scene::new();
    // The first admin's, good for one login.
    let said = scene.collector.running.said();
    let line = said.iter().find(|line| line.contains("alibi login ")).unwrap();
    let first: Token = line.rsplit(' ').next().unwrap().parse().unwrap();
    let replayed = login(&first).unwrap_err();
    assert_eq!((replayed.code(), replayed.message()), (Code::Unauthenticated, USED_UP));
    let output = scene.by_token(&first, &["whoami"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), format!("alibi: {USED_UP}"));

    let one = scene.collector.token(1);
    Agent::enrol(&scene.path("first"), &one);
    let second =
        outcome(Command::new(&programs().agent).args(["enroll", &one, "--data"]).arg(scene.path("second")));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(2) && said.contains(USED_UP), "{said}");

    // Of many who run for the last use, one gets it.
    let last: Token = scene.collector.token(1).parse().unwrap();
    let enrolled: Vec<_> = thread::scope(|scope| {
        let run = |number| {
            scope.spawn({
                let scene = &scene;
                move || attack(enrol(scene, Ipv4Addr::new(127, 0, 1, number), last.secret, number))
            })
        };
        let racers: Vec<_> = (1..=8).map(run).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(enrolled.iter().filter(|one| one.is_ok()).count(), 1, "{enrolled:?}");
    for late in enrolled.into_iter().filter_map(Result::err) {
        assert_eq!((late.code(), late.message()), (Code::Unauthenticated, USED_UP));
    }
    let hosts = scene.collector.json(&["hosts"]).1;
    let came_in = (1..=8).filter(|number| host(&hosts, HostId::from_bytes([*number; 16])).is_some()).count();
    assert_eq!(came_in, 1, "{hosts:#}");
    let refused = scene.audit(&[]);
    let why = |why: &str| refused.iter().any(|entry| entry["action"] == "enrol" && entry["outcome"] == why);
    assert!(why("the credential is used up") && why("ok"), "{refused:#?}");
    scene.others_are_served("tokens were used again");
}

#[test]
fn what_ran_out_or_was_revoked_is_cut_off() {
    let scene = Scene::new();
    let stolen = scene.analyst_token("admin", "stolen");
    let words = ["token", "create", "--role", "viewer", "--name", "short", "--expires", "2s"];
    let short: Token = scene.collector.said(&words).parse().unwrap();
    let late = |token: &Token| {
        let status = who_am_i(&scene, ELSEWHERE, bearer(&token.secret));
        (status.code(), status.message().to_owned())
    };
    attack(async {
        let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
        let asked = line.call(WHO_AM_I, bearer(&short.secret), &wire::WhoAmIRequest {}).await;
        assert_eq!(asked.code(), Code::Ok, "{asked:?}");
        line.ended("a token that runs out").await;
    });
    let expired = "the token has expired: ask an admin for another".to_owned();
    assert_eq!(late(&short), (Code::Unauthenticated, expired.clone()));
    assert_eq!(login(&short).unwrap_err().message(), expired);

    // A certificate that came of a token ends with it.
    let identity = login(&stolen).unwrap();
    attack(async {
        let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
        let by_certificate = Hello::new(tls::ANALYST, Some(&identity));
        let stream = enter(ELSEWHERE, scene.address(), &by_certificate).await.unwrap();
        let mut other = Line::over(stream).await;
        for status in [
            line.call(WHO_AM_I, bearer(&stolen.secret), &wire::WhoAmIRequest {}).await,
            other.call(WHO_AM_I, None, &wire::WhoAmIRequest {}).await,
        ] {
            assert_eq!(status.code(), Code::Ok, "{status:?}");
        }
        let (_, listed) = scene.collector.json(&["token", "list"]);
        let tokens = listed["credentials"].as_array().unwrap();
        let number =
            tokens.iter().find(|token| token["name"] == "stolen" && token["kind"] == "analyst token");
        scene.collector.said(&["token", "revoke", &number.unwrap()["credential"].to_string()]);
        line.ended("a token that is revoked").await;
        other.ended("a certificate that is revoked").await;
    });
    let revoked = "the token was revoked: ask an admin for another".to_owned();
    assert_eq!(late(&stolen), (Code::Unauthenticated, revoked));
    scene.others_are_served("tokens ended");
}

#[test]
fn nobody_learns_from_a_refusal_whether_there_is_such_a_token() {
    let scene = Scene::new();
    let enrolment: Token = scene.collector.token(1).parse().unwrap();
    let analyst = scene.analyst_token("viewer", "jdoe");
    let ascii = |text: &str| Some(HeaderValue::from_bytes(text.as_bytes()).unwrap());
    let good = bearer(&analyst.secret).unwrap().to_str().unwrap().to_owned();
    let cases = [
        ("nothing", None),
        ("an enrolment token", bearer(&enrolment.secret)),
        ("a guess", bearer(&[7; 32])),
        ("zeros", bearer(&[0; 32])),
        ("empty", ascii("")),
        ("no token", ascii("Bearer")),
        ("a short one", ascii("Bearer AAAA")),
        ("a long one", ascii(&format!("{good}AAAA"))),
        ("almost", ascii(&good[..good.len() - 1])),
        ("two", ascii(&format!("{good},{good}"))),
        ("another scheme", ascii(&good.replace("Bearer", "Basic"))),
        ("the whole token", ascii(&format!("Bearer {analyst}"))),
        ("8 KiB", ascii(&format!("Bearer {}", "A".repeat(8 << 10)))),
        ("bytes", Some(HeaderValue::from_bytes(&[b'B', 0xff, 0xfe, b' ', 0x80]).unwrap())),
    ];
    let mut number = 0;
    for (what, authorization) in cases {
        number += 1;
        let status = who_am_i(&scene, Ipv4Addr::new(127, 0, 2, number), authorization);
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, NOT_GOOD), "{what}");
    }
    // The other way round, too.
    for (what, secret) in [("an analyst's token", analyst.secret), ("a guess", [7; 32]), ("zeros", [0; 32])] {
        let refused = attack(enrol(&scene, Ipv4Addr::new(127, 0, 3, 1), secret, 1)).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, NOT_GOOD), "{what}");
    }
    let as_user = Token { kind: TokenKind::User, ..enrolment.clone() };
    assert_eq!(login(&as_user).unwrap_err().message(), NOT_GOOD);
    // Only the audit log knows more.
    let audit = scene.audit(&[]);
    for (from, why) in
        [("127.0.2.2", "the credential is not for this"), ("127.0.2.3", "the credential is not known")]
    {
        let noted = audit.iter().find(|entry| entry["from"] == from).unwrap();
        assert_eq!((&noted["action"], &noted["outcome"]), (&WHO_AM_I.into(), &why.into()), "{noted:#}");
    }
    assert_eq!(who_am_i(&scene, ELSEWHERE, bearer(&analyst.secret)).code(), Code::Ok, "it is still good");
    scene.others_are_served("tokens were guessed");
}

#[test]
fn who_guesses_has_to_wait_and_nobody_else_has() {
    const TRIES: usize = 400;
    let scene = Scene::new();
    let (jane, admin) = (scene.analyst_token("viewer", "jane"), scene.analyst("admin", "root"));
    let guesses = attack(async {
        let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
        for tried in 0..TRIES {
            let status = line.call(WHO_AM_I, bearer(&[tried as u8; 32]), &wire::WhoAmIRequest {}).await;
            if status.code() == Code::ResourceExhausted {
                assert!(status.message().contains("that is too often: try again in"), "{status:?}");
                return tried;
            }
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        }
        TRIES
    });
    assert!((20..TRIES).contains(&guesses), "{guesses}");
    // From there, no token is looked at any more, and nobody enrols; from elsewhere all is as ever.
    let good = |from| who_am_i(&scene, from, bearer(&jane.secret)).code();
    assert_eq!(good(ELSEWHERE), Code::ResourceExhausted);
    let enrolment: Token = scene.collector.token(1).parse().unwrap();
    assert_eq!(
        attack(enrol(&scene, ELSEWHERE, enrolment.secret, 1)).unwrap_err().code(),
        Code::ResourceExhausted
    );
    assert_eq!(good(Ipv4Addr::LOCALHOST), Code::Ok);
    // Who proves it by a certificate guesses nothing: behind the same address, it is let in.
    let status = attack(async {
        let stream =
            enter(ELSEWHERE, scene.address(), &Hello::new(tls::ANALYST, Some(&admin))).await.unwrap();
        Line::over(stream).await.call(WHO_AM_I, None, &wire::WhoAmIRequest {}).await
    });
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    // However many there were, the audit log has a few entries of them.
    let noted = scene
        .audit(&[])
        .iter()
        .filter(|entry| entry["from"] == "127.0.0.2" && entry["outcome"] != "ok")
        .count();
    assert!((1..=4).contains(&noted), "{noted}");
    scene.others_are_served("somebody guessed");
}

/// Places are many, and not without end: who takes more and more of them takes them from nobody else.
#[test]
fn who_takes_all_places_loses_their_own() {
    // Of what may be open, analysts have a quarter.
    const PLACES: usize = 256;
    let scene = Scene::with_files(4 * PLACES as u32);
    let (greedy, other) = (scene.analyst_token("viewer", "greedy"), scene.analyst_token("viewer", "other"));
    attack(async {
        let line = |token: Token| {
            let scene = &scene;
            async move {
                let mut line = Line::to_analysts(ELSEWHERE, scene.address()).await;
                let status = line.call(WHO_AM_I, bearer(&token.secret), &wire::WhoAmIRequest {}).await;
                // Questions are counted, too: whoever asks too often has shown who they are all the same.
                assert!(matches!(status.code(), Code::Ok | Code::ResourceExhausted), "{status:?}");
                line
            }
        };
        let mut others = line(other.clone()).await;
        let first = line(greedy.clone()).await;
        let mut rest = Vec::new();
        for _ in 0..PLACES {
            rest.push(line(greedy.clone()).await);
        }
        first.ended("the first of too many").await;
        let status = others.call(WHO_AM_I, bearer(&other.secret), &wire::WhoAmIRequest {}).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
        tokio::task::block_in_place(|| scene.others_are_served("one analyst has all places"));
    });
}
