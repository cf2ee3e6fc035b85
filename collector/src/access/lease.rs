//! Whether a host's identity is in one place only: leases, pure.
//!
//! Each time that a host is admitted it gets a new lease, a random number that it keeps on its disk before it answers. So a
//! disk that was copied, and went on in two places, has two histories of leases, and the second that comes shows one that
//! the first has left behind. What is decided of whoever comes ([`Leases::decide`]):
//!
//! - While somebody else with that identity is connected and answers, it is a copy. Who that is tells the instance, a number
//!   that an agent draws when it is started.
//! - With the lease that it must have, it is the host.
//! - With an older one, and nobody else there, the host's disk was restored from a copy ("rewind"): it is admitted, and what
//!   it was before is abandoned. Whoever comes with an abandoned lease was not restored away, and is a copy.
//! - A host that was found in two places is marked, and the mark stays until an admin takes it away: from then on only who
//!   has the right lease is admitted.
//!
//! What two copies share in their memories, as two that were made of one running machine do, is not told apart by the
//! instance, but by the leases alone, as soon as the machine was started anew in one place.

use std::fmt;

use alibi_proto::time::Timestamp;

/// Leases that are remembered of each kind. An older one is as good as one of them.
pub const LEASES_KEPT_MAX: usize = if cfg!(test) { 3 } else { 16 };

/// Characters of what a host says of itself.
pub(super) const TEXT_CHARS_MAX: usize = 255;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:02x}{:02x}…)"), self.0[0], self.0[1])
            }
        }
    };
}

number! {
    /// What an agent was given when it was admitted.
    Lease
}

number! {
    /// What an agent drew when it was started.
    Instance
}

/// Where an agent is, as far as it says so itself, for whoever has to tell two apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What the machine is called.
    pub name: String,
    /// The system's own id of it.
    pub machine_id: String,
    /// Its boot.
    pub boot_id: String,
    /// Where it came from.
    pub address: String,
    /// When.
    pub at: Timestamp,
}

impl Place {
    /// What a host says of itself may be of any length.
    pub(super) fn bounded(self) -> Self {
        let cut = |text: String| text.chars().take(TEXT_CHARS_MAX).collect();
        Self {
            name: cut(self.name),
            machine_id: cut(self.machine_id),
            boot_id: cut(self.boot_id),
            address: cut(self.address),
            at: self.at,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, machine_id, address, at, .. } = self;
        write!(f, "{name} (machine {machine_id}) at {address}, seen {at:.0}")
    }
}

/// What somebody shows who comes as the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Which run of an agent it is.
    pub instance: Instance,
    /// The lease that it has.
    pub lease: Option<Lease>,
}

/// What is decided of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host.
    Admit,
    /// It is the host, restored from an older copy of itself.
    Rewind,
    /// The host is in two places.
    Copy,
}

/// The leases of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    /// The one that it is known to have; none before the first.
    pub current: Option<Lease>,
    /// The one that it was given, and may have.
    pub offered: Option<Lease>,
    /// Those that it had before, and offers that were withdrawn; the newest first.
    pub superseded: Vec<Lease>,
    /// Those that are on a disk which was restored away; the newest first.
    pub abandoned: Vec<Lease>,
}

impl Leases {
    /// What to do with whoever presents this. `alive`: who else is connected as this host and has just answered. `marked`: it
    /// was found in two places before.
    pub fn decide(&self, presented: &Presented, alive: Option<Instance>, marked: bool) -> Verdict {
        if alive.is_some_and(|instance| instance != presented.instance) {
            return Verdict::Copy;
        }
        if self.is_expected(presented.lease) {
            return Verdict::Admit;
        }
        let is_abandoned = presented.lease.is_some_and(|lease| self.abandoned.contains(&lease));
        match (marked, alive) {
            (true, _) => Verdict::Copy,
            // It comes anew, and has not noticed yet what it was given.
            (false, Some(_)) => Verdict::Admit,
            (false, None) if is_abandoned => Verdict::Copy,
            (false, None) => Verdict::Rewind,
        }
    }

    /// Gives `fresh` to whoever presented `lease` and was admitted so.
    pub fn offer(&mut self, lease: Option<Lease>, verdict: Verdict, fresh: Lease) {
        if verdict == Verdict::Rewind {
            self.offered.take().into_iter().for_each(|withdrawn| self.supersede(withdrawn));
            self.current.take().into_iter().for_each(|left| self.abandon(left));
            self.superseded.retain(|superseded| Some(*superseded) != lease);
            self.current = lease;
        } else if lease.is_some() && lease == self.offered {
            self.confirm_offered();
        }
        // Whoever did not present it may get to know it late: it is none of another past.
        if let Some(withdrawn) = self.offered.replace(fresh) {
            self.supersede(withdrawn);
        }
    }

    /// The host has kept `lease`. False if it was withdrawn meanwhile: whoever has it came another time since.
    pub fn confirm(&mut self, lease: Lease) -> bool {
        if self.offered == Some(lease) {
            self.confirm_offered();
        }
        self.current == Some(lease)
    }

    fn is_expected(&self, lease: Option<Lease>) -> bool {
        lease == self.current || (lease.is_some() && lease == self.offered)
    }

    fn confirm_offered(&mut self) {
        let before = std::mem::replace(&mut self.current, self.offered.take());
        before.into_iter().for_each(|before| self.supersede(before));
    }

    fn supersede(&mut self, lease: Lease) {
        self.superseded.insert(0, lease);
        self.superseded.truncate(LEASES_KEPT_MAX);
    }

    fn abandon(&mut self, lease: Lease) {
        self.abandoned.insert(0, lease);
        self.abandoned.truncate(LEASES_KEPT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(number: u8) -> Lease {
        Lease([number; 16])
    }

    fn leases(current: u8, offered: u8, superseded: &[u8], abandoned: &[u8]) -> Leases {
        let one = |number: u8| (number != 0).then(|| lease(number));
        let all = |numbers: &[u8]| numbers.iter().copied().map(lease).collect();
        Leases {
            current: one(current),
            offered: one(offered),
            superseded: all(superseded),
            abandoned: all(abandoned),
        }
    }

    #[test]
    fn whoever_comes_is_the_host_a_rewind_or_a_copy() {
        use Verdict::{Admit, Copy, Rewind};
        const SAME: Option<u8> = Some(1);
        const OTHER: Option<u8> = Some(2);
        let never = leases(0, 0, &[], &[]);
        let offered_once = leases(0, 5, &[], &[]);
        let held = leases(5, 6, &[4, 3], &[9]);
        for (what, leases, presented, alive, marked, want) in [
            ("the first time", &never, 0, None, false, Admit),
            ("a lease that nobody knows of", &never, 5, None, false, Rewind),
            ("the first time, in two places", &never, 0, OTHER, false, Copy),
            ("the first one was not kept", &offered_once, 0, None, false, Admit),
            ("the first one was kept", &offered_once, 5, None, false, Admit),
            ("as it must be", &held, 5, None, false, Admit),
            ("kept, and the answer was lost", &held, 6, None, false, Admit),
            ("as it must be, and again", &held, 5, SAME, false, Admit),
            ("as it must be, in two places", &held, 5, OTHER, false, Copy),
            ("the offer, in two places", &held, 6, OTHER, false, Copy),
            ("an older one", &held, 4, None, false, Rewind),
            ("a much older one", &held, 1, None, false, Rewind),
            ("none any more", &held, 0, None, false, Rewind),
            ("an older one, and again", &held, 4, SAME, false, Admit),
            ("none any more, and again", &held, 0, SAME, false, Admit),
            ("an older one, in two places", &held, 4, OTHER, false, Copy),
            ("an abandoned one", &held, 9, None, false, Copy),
            ("an abandoned one, in two places", &held, 9, OTHER, false, Copy),
            ("marked, as it must be", &held, 5, None, true, Admit),
            ("marked, the offer", &held, 6, None, true, Admit),
            ("marked, as it must be, and again", &held, 5, SAME, true, Admit),
            ("marked, in two places", &held, 5, OTHER, true, Copy),
            ("marked, an older one", &held, 4, None, true, Copy),
            ("marked, an older one, and again", &held, 4, SAME, true, Copy),
            ("marked, none any more", &held, 0, None, true, Copy),
            ("marked, an abandoned one", &held, 9, None, true, Copy),
        ] {
            let presented =
                Presented { instance: Instance([1; 16]), lease: (presented != 0).then(|| lease(presented)) };
            let alive = alive.map(|number| Instance([number; 16]));
            assert_eq!(leases.decide(&presented, alive, marked), want, "{what}");
        }
    }

    #[test]
    fn leases_follow_on_each_other() {
        use Verdict::{Admit, Rewind};
        for (what, mut before, presented, verdict, want) in [
            ("the first", leases(0, 0, &[], &[]), 0, Admit, leases(0, 7, &[], &[])),
            ("the first was not kept", leases(0, 6, &[], &[]), 0, Admit, leases(0, 7, &[6], &[])),
            ("the first was kept", leases(0, 6, &[], &[]), 6, Admit, leases(6, 7, &[], &[])),
            ("the next", leases(5, 0, &[4], &[]), 5, Admit, leases(5, 7, &[4], &[])),
            ("the offer was not kept", leases(5, 6, &[4], &[]), 5, Admit, leases(5, 7, &[6, 4], &[])),
            ("the offer was kept", leases(5, 6, &[4], &[]), 6, Admit, leases(6, 7, &[5, 4], &[])),
            ("an older one, and again", leases(5, 6, &[4], &[]), 4, Admit, leases(5, 7, &[6, 4], &[])),
            ("restored", leases(5, 6, &[4, 3], &[]), 4, Rewind, leases(4, 7, &[6, 3], &[5])),
            ("from long ago", leases(5, 0, &[4, 3], &[9, 8]), 1, Rewind, leases(1, 7, &[4, 3], &[5, 9, 8])),
            ("restored from before the first", leases(5, 0, &[4], &[]), 0, Rewind, leases(0, 7, &[4], &[5])),
            ("many before", leases(5, 6, &[4, 3, 2], &[]), 6, Admit, leases(6, 7, &[5, 4, 3], &[])),
        ] {
            before.offer((presented != 0).then(|| lease(presented)), verdict, lease(7));
            assert_eq!(before, want, "{what}");
            assert!(before.confirm(lease(7)) && before.confirm(lease(7)), "{what}");
            assert!(!before.confirm(lease(99)), "{what}");
            assert_eq!((before.current, before.offered), (Some(lease(7)), None), "{what}");
        }
    }

    /// A machine with a disk; what it was given reaches the disk at once, late or never, and so does its answer.
    #[derive(Clone)]
    struct Machine {
        instance: Instance,
        disk: Option<Lease>,
    }

    struct Collector {
        leases: Leases,
        random: fastrand::Rng,
    }

    impl Collector {
        fn draw(&mut self) -> [u8; 16] {
            self.random.u128(..).to_le_bytes()
        }

        fn come(&mut self, machine: &Machine, alive: Option<Instance>) -> (Verdict, Option<Lease>) {
            let presented = Presented { instance: machine.instance, lease: machine.disk };
            let verdict = self.leases.decide(&presented, alive, false);
            if verdict == Verdict::Copy {
                return (verdict, None);
            }
            let fresh = Lease(self.draw());
            self.leases.offer(presented.lease, verdict, fresh);
            (verdict, Some(fresh))
        }
    }

    /// Whatever is lost on the way, one machine is itself: never a copy, and a rewind only where it kept what it was given on
    /// an earlier connection last.
    #[test]
    fn one_machine_is_never_a_copy() {
        for seed in 0..500 {
            let mut collector =
                Collector { leases: Leases::default(), random: fastrand::Rng::with_seed(seed) };
            let mut machine = Machine { instance: Instance(collector.draw()), disk: None };
            let mut late: Option<Lease> = None;
            let mut kept_late = false;
            for _ in 0..200 {
                if collector.random.u8(..4) == 0 {
                    machine.instance = Instance(collector.draw());
                    late = None;
                }
                let alive = collector.random.bool().then_some(machine.instance);
                let (verdict, fresh) = collector.come(&machine, alive);
                assert!(verdict != Verdict::Copy, "seed {seed}");
                assert!(verdict != Verdict::Rewind || kept_late, "seed {seed}");
                kept_late &= verdict != Verdict::Rewind;
                match collector.random.u8(..4) {
                    // It never arrived.
                    0 => {}
                    // It arrives after what comes next.
                    1 => late = fresh,
                    // It was kept, and the answer did not arrive.
                    2 => (machine.disk, kept_late) = (fresh, false),
                    _ => {
                        (machine.disk, kept_late) = (fresh, false);
                        assert!(fresh.is_some_and(|fresh| collector.leases.confirm(fresh)));
                    }
                }
                if collector.random.u8(..8) == 0
                    && let Some(lease) = late.take()
                {
                    machine.disk = Some(lease);
                    kept_late = true;
                }
            }
        }
    }

    /// Two that were one disk are found out by the third time that one of them comes after the other, though they are never
    /// there at once.
    #[test]
    fn two_that_go_on_from_one_disk_are_found_out() {
        for seed in 0..500 {
            let mut collector =
                Collector { leases: Leases::default(), random: fastrand::Rng::with_seed(seed) };
            let mut one = Machine { instance: Instance(collector.draw()), disk: None };
            for _ in 0..collector.random.usize(0..5) {
                let (_, fresh) = collector.come(&one, None);
                one.disk = fresh;
                assert!(fresh.is_some_and(|fresh| collector.leases.confirm(fresh)));
            }
            let mut machines = [one.clone(), Machine { instance: Instance(collector.draw()), ..one }];
            let found = (0..4).position(|turn| {
                let machine = &mut machines[turn % 2];
                for _ in 0..collector.random.usize(1..5) {
                    let (verdict, fresh) = collector.come(machine, None);
                    if verdict == Verdict::Copy {
                        return true;
                    }
                    machine.disk = fresh;
                    assert!(fresh.is_some_and(|fresh| collector.leases.confirm(fresh)));
                }
                false
            });
            assert!(found.is_some_and(|turn| turn <= 2), "seed {seed}: {found:?}");
        }
    }
}
