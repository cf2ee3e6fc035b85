use alibi_agent::capture::{ProcessKey, SocketKey};
use alibi_proto::{
    flow::Protocol,
    id::HostId,
    question::{HostAnswer, Verdict},
    time::Timestamp,
    window::Window,
};

use super::*;

const BOOT: &str = "boot";
const HOST: HostId = HostId::from_bytes([7; 16]);

fn asked(what: What) -> Asked {
    let window = Window::new(Timestamp::from_secs(100), Timestamp::from_secs(200)).unwrap();
    Asked { what, port: None, window, hosts: Vec::new() }
}

fn by_address() -> Asked {
    asked(What::Address([198, 51, 100, 7].into()))
}

fn by_name() -> Asked {
    asked(What::Name("site.example".to_owned(), None, Vec::new()))
}

fn answer(verdict: Verdict) -> HostAnswer {
    HostAnswer {
        host: Some(HOST),
        name: "laptop-00001".to_owned(),
        verdict,
        gaps: Vec::new(),
        processes: Vec::new(),
        scopes: Vec::new(),
        known_until: None,
        records_left_out: 0,
        clock: None,
    }
}

fn alive() -> Alive {
    Alive {
        socket: SocketKey { protocol: Protocol::Tcp, remote: ([198, 51, 100, 7], 443).into(), socket: 1 },
        owner: ProcessKey { pid: 7, start: 1 },
        path: "/usr/bin/ssh",
        first: Timestamp::from_secs(50),
        last: Timestamp::from_secs(150),
        is_recorded: true,
    }
}

fn talked() -> HostTruth {
    HostTruth { must: vec![alive()], may: vec![alive()], ..HostTruth::default() }
}

fn gap() -> HostTruth {
    HostTruth { is_unrecorded: true, may_be_unrecorded: true, ..HostTruth::default() }
}

fn judged(asked: &Asked, answer: &HostAnswer, truth: &HostTruth) -> Checked {
    let mut checked = Checked::default();
    judge(&mut checked, asked, answer, BOOT, truth);
    checked
}

#[test]
fn what_is_false_is_a_fault() {
    let faults = |asked: &Asked, verdict, truth: &HostTruth| judged(asked, &answer(verdict), truth).told;
    let is_one =
        |told: Vec<String>, what: &str| assert!(told.iter().any(|fault| fault.contains(what)), "{told:?}");
    is_one(faults(&by_address(), Verdict::Clear, &talked()), "clear, and there was tcp connection 1");
    is_one(faults(&by_address(), Verdict::Clear, &gap()), "clear, and not all was recorded");
    is_one(faults(&by_address(), Verdict::Talked, &HostTruth::default()), "talked, and nobody did");
    is_one(faults(&by_address(), Verdict::Talked, &talked()), "talked, without tcp connection 1");
    is_one(faults(&by_address(), Verdict::Unknown, &HostTruth::default()), "unknown, and all was recorded");
    is_one(faults(&by_name(), Verdict::Clear, &talked()), "clear, and there was");
}

#[test]
fn what_is_true_is_none() {
    for (asked, verdict, truth) in [
        (by_address(), Verdict::Clear, HostTruth::default()),
        (by_address(), Verdict::Unknown, gap()),
        (by_name(), Verdict::Unknown, HostTruth::default()),
    ] {
        assert_eq!(judged(&asked, &answer(verdict), &truth).told, Vec::<String>::new());
    }
    // What was not recorded need not be shown, but it rules out a `clear`.
    let unseen = HostTruth { must: vec![Alive { is_recorded: false, ..alive() }], ..gap() };
    assert_eq!(judged(&by_address(), &answer(Verdict::Unknown), &unseen).faults, 0);
    assert_eq!(judged(&by_address(), &answer(Verdict::Clear), &unseen).faults, 1);
}

#[test]
fn what_is_recorded_before_or_after_a_gap_must_be_shown() {
    let plan = Plan {
        seed: 3,
        begins_ns: 1_760_000_000_000_000_000,
        ends_ns: 1_760_086_400_000_000_000,
        events_per_s: 0.1,
        look_ms: 10_000,
        is_eventful: true,
        sites: 200,
    };
    let world = Arc::new(World::new(plan.seed, plan.sites));
    let from = plan.begins();
    let asked: Vec<Asked> = Questions::new(&world, 1, 0..3, from, plan.ends()).take(300).collect();
    let asked: Vec<&Asked> = asked.iter().collect();
    let mut concerned = truth::Concerned::new(&world, &asked);
    let truths = truth::of(&plan, &world, 1, &mut concerned);
    let any = |is: &dyn Fn(&HostTruth) -> bool| truths.iter().any(is);
    assert!(any(&|truth| truth.must.iter().any(|alive| alive.is_recorded) && truth.is_unrecorded));
    assert!(
        any(&|truth| truth.must.is_empty() && !truth.may.is_empty()),
        "an address that is another's, too"
    );
    assert!(any(&|truth| truth.may.is_empty() && !truth.may_be_unrecorded));
    for truth in &truths {
        assert!(truth.must.len() <= truth.may.len());
        assert!(truth.may_be_unrecorded || !truth.is_unrecorded);
    }
}

#[test]
fn questions_are_of_every_kind() {
    let world = World::new(1, 500);
    let (from, until) = (Timestamp::from_secs(1_000_000), Timestamp::from_secs(1_200_000));
    let asked: Vec<Asked> = Questions::new(&world, 1, 0..20, from, until).take(500).collect();
    let kinds: [fn(&What) -> bool; 6] = [
        |what| matches!(what, What::Address(_)),
        |what| matches!(what, What::Network(..)),
        |what| matches!(what, What::Name(_, Some(_), given) if given.is_empty()),
        |what| matches!(what, What::Name(_, Some(_), given) if !given.is_empty()),
        |what| matches!(what, What::Name(_, None, _)),
        |what| matches!(what, What::Below(_)),
    ];
    for is in kinds {
        assert!(asked.iter().filter(|asked| is(&asked.what)).count() > 10);
    }
    let lengths = || asked.iter().map(|asked| asked.window.to().since(asked.window.from()).as_secs());
    assert!(lengths().any(|length| length < 120) && lengths().any(|length| length > 86_400));
    assert!(asked.iter().all(|asked| asked.window.to() <= until));
    assert!(
        asked.iter().any(|asked| asked.hosts.is_empty()) && asked.iter().any(|asked| asked.hosts.len() > 1)
    );
}
