//! Of what a history is made.

use proptest::prelude::*;

/// One step of a history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Time passes, this many seconds.
    Wait(u64),
    Open {
        target: bool,
        after: u64,
    },
    Close {
        after: u64,
    },
    Move,
    /// A connection to somewhere else, over within an instant.
    Short,
    /// So many of them at one instant.
    Burst(u16),
    /// The agent syncs, so that what it recorded can be read.
    Sync,
    /// The source loses something of connections, in the last seconds.
    Lose(u64),
    /// The same of names.
    LoseNames(u64),
    /// The source has not seen what it did itself for so many seconds.
    Miss(u64),
    /// It sees it again.
    See,
    Deliver,
    /// So many of the next events are of a kind that the collector does not know.
    Newer(u8),
    /// The ring is lost, and made anew by the next start.
    LoseRing,
    /// The ring is copied as it is on the disk, and that copy is put in its place.
    Copy,
    Restore,
    Stop,
    Crash,
    Start,
    /// The host sleeps for so many seconds, and its clocks prove it.
    Suspend(u64),
    /// The wall clock is set, by so many seconds.
    SetForward(u64),
    SetBack(u64),
    /// The power is cut, and comes back after `off` seconds.
    PowerCut {
        off: u64,
        clock: i64,
        starting: u64,
    },
    /// The host is shut down and started again.
    PowerOff(PowerOff),
    /// A question about a window that ends this long ago and is this long.
    Ask {
        ago: u64,
        length: u64,
    },
    /// Many questions, about windows that begin and end near where something happened, or anywhere.
    AskMany {
        seed: u64,
    },
}

/// How a host is off for a while.
#[derive(Clone, Debug)]
pub(crate) struct PowerOff {
    /// What goes on for so many seconds after the agent was stopped, until the system records that it was shut down.
    pub(crate) stopping: u64,
    /// It does record it.
    pub(crate) is_recorded: bool,
    /// What is still not stopped then ends after so many more.
    pub(crate) lingering: u64,
    pub(crate) off: u64,
    /// By so many seconds the clock is set meanwhile.
    pub(crate) clock: i64,
    /// The host is on for so many seconds before anything else.
    pub(crate) starting: u64,
}

/// By how much the clock is set while the host is off; mostly not at all.
fn clock() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0), 1 => -3_000..0_i64, 1 => 0..3_000_i64]
}

fn power_off() -> impl Strategy<Value = PowerOff> {
    let stopping = prop_oneof![6 => 0..100_u64, 1 => 0..3_000_u64];
    let lingering = prop_oneof![6 => 0..100_u64, 1 => 0..1_980_u64];
    let off = prop_oneof![1 => 0..1_000_u64, 3 => 1_900..8_000_u64];
    let starting = prop_oneof![6 => 1..60_u64, 1 => 1..1_000_u64];
    (stopping, proptest::bool::weighted(0.7), lingering, off, clock(), starting).prop_map(
        |(stopping, is_recorded, lingering, off, clock, starting)| PowerOff {
            stopping,
            is_recorded,
            lingering,
            off,
            clock,
            starting,
        },
    )
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        80 => (1..5_u64).prop_map(Step::Wait),
        10 => (100..2_000_u64).prop_map(Step::Wait),
        60 => (proptest::bool::weighted(0.4), 0..2_u64).prop_map(|(target, after)| Step::Open { target, after }),
        50 => (0..2_u64).prop_map(|after| Step::Close { after }),
        30 => Just(Step::Move),
        20 => Just(Step::Short),
        8 => (5..40_u16).prop_map(Step::Burst),
        60 => Just(Step::Sync),
        10 => (1..5_u64).prop_map(Step::Lose),
        5 => (1..5_u64).prop_map(Step::LoseNames),
        4 => (1..20_u64).prop_map(Step::Miss),
        8 => Just(Step::See),
        50 => Just(Step::Deliver),
        3 => (1..4_u8).prop_map(Step::Newer),
        2 => Just(Step::LoseRing),
        3 => Just(Step::Copy),
        2 => Just(Step::Restore),
        7 => Just(Step::Stop),
        7 => Just(Step::Crash),
        30 => Just(Step::Start),
        8 => (1..2_000_u64).prop_map(Step::Suspend),
        5 => (2..2_000_u64).prop_map(Step::SetForward),
        4 => (2..60_u64).prop_map(Step::SetForward),
        6 => (2..300_u64).prop_map(Step::SetBack),
        3 => (0..3_000_u64, clock(), 1..60_u64)
            .prop_map(|(off, clock, starting)| Step::PowerCut { off, clock, starting }),
        6 => power_off().prop_map(Step::PowerOff),
        60 => any::<u64>().prop_map(|seed| Step::AskMany { seed }),
    ]
}
