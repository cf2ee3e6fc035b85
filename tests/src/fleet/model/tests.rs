use std::collections::HashSet;

use alibi_agent::capture::Fact;

use super::*;

const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;

fn plan(is_eventful: bool) -> Plan {
    let begins_ns = 1_760_000_000_000_000_000;
    Plan {
        seed: 7,
        begins_ns,
        ends_ns: begins_ns + DAY_NS,
        events_per_s: 0.1,
        look_ms: 5_000,
        is_eventful,
        sites: 500,
    }
}

fn history(plan: &Plan, number: u32) -> Vec<Step> {
    let mut laptop = plan.laptop(&Arc::new(World::new(plan.seed, plan.sites)), number);
    std::iter::from_fn(|| laptop.step()).collect()
}

#[test]
fn the_same_seed_makes_the_same_history() {
    let of = |plan: &Plan, number| format!("{:?}", history(plan, number));
    let plan = plan(true);
    assert_eq!(of(&plan, 3), of(&plan, 3));
    assert_ne!(of(&plan, 3), of(&plan, 4));
    assert_ne!(of(&plan, 3), of(&Plan { seed: 8, ..plan }, 3));
}

#[test]
fn what_is_told_is_in_order_and_in_its_step() {
    for number in 0..8 {
        let mut before = plan(true).begins();
        for step in history(&plan(true), number) {
            assert!(step.until >= before);
            let times: Vec<_> = step.told.iter().map(|told| told.at.wall).collect();
            assert!(times.is_sorted(), "{times:?}");
            let within = |at: &Timestamp| *at >= before && *at <= step.until;
            assert!(times.iter().all(within), "{before} {times:?} {}", step.until);
            before = step.until;
        }
        assert_eq!(before, plan(true).ends());
    }
}

#[test]
fn everything_that_can_happen_does() {
    let steps: Vec<Step> = (0..20).flat_map(|number| history(&plan(true), number)).collect();
    let any = |is: fn(&Fact) -> bool| steps.iter().any(|step| step.told.iter().any(|told| is(&told.fact)));
    for began in [Began::First, Began::GoingOn, Began::Stopped, Began::Killed] {
        assert!(steps.iter().any(|step| step.began == began), "{began:?}");
    }
    assert!(any(|fact| matches!(fact, Fact::Suspended { .. })));
    assert!(any(|fact| matches!(fact, Fact::Coverage(_))));
    assert!(any(|fact| matches!(fact, Fact::NameResolved(_))));
    assert!(any(|fact| matches!(fact, Fact::ServerName(_))));
    assert!(any(|fact| matches!(fact, Fact::ProcessExited { .. })));
    let lived = || steps.iter().flat_map(|step| &step.lived);
    assert!(lived().any(|lived| lived.last.since(lived.first) > Duration::from_secs(3_600)));
    assert!(lived().any(|lived| lived.direction == Direction::Inbound));
    assert!(lived().any(|lived| lived.told_last > lived.last), "an end was missed");
}

#[test]
fn as_many_events_are_made_as_are_wanted() {
    let plan = Plan {
        events_per_s: 20.0,
        ends_ns: plan(false).begins_ns + 600_000_000_000,
        look_ms: 1_000,
        ..plan(false)
    };
    let facts: usize = history(&plan, 1).iter().map(|step| step.told.len()).sum();
    let flows = history(&plan, 1).iter().map(|step| step.lived.len()).sum::<usize>();
    // What opens and closes within a second is one event, and two facts.
    assert!((6_000..30_000).contains(&facts), "{facts} facts");
    assert!((3_000..12_000).contains(&flows), "{flows} connections");
}

#[test]
fn few_sites_are_asked_for_often_and_many_share_addresses() {
    let world = World::new(7, 1_000);
    let mut rng = fastrand::Rng::with_seed(1);
    let asked: Vec<u32> = (0..10_000).map(|_| world.some_site(&mut rng)).collect();
    let of_first = asked.iter().filter(|rank| **rank == 0).count();
    assert!((1_000..1_800).contains(&of_first), "{of_first}");
    assert!(asked.iter().collect::<HashSet<_>>().len() > 500);
    let addresses = || (0..world.len()).flat_map(|rank| world.site(rank).addresses.clone());
    assert!(addresses().collect::<HashSet<_>>().len() < addresses().count());
}
