//! The clocks: interrupt time, which counts since the system was started and goes on while the machine sleeps, and the same
//! without the time asleep ("unbiased").
//!
//! Asked for by name, since not every system that programs for Windows run on has the precise form of them: wine has not.
//! What is there instead is as far, but ticks some sixty times in a second.

use std::{
    ffi::CStr,
    sync::LazyLock,
    time::{Duration, Instant},
};

use windows_sys::{
    Win32::System::{
        LibraryLoader::{GetModuleHandleA, GetProcAddress},
        SystemInformation::GetTickCount64,
        WindowsProgramming::QueryUnbiasedInterruptTime,
    },
    core::s,
};

/// Of interrupt time.
const NS_PER_UNIT: u64 = 100;

/// `QueryInterruptTimePrecise` and `QueryUnbiasedInterruptTimePrecise`.
type Query = unsafe extern "system" fn(units: *mut u64);

#[derive(Clone, Copy)]
struct Precise {
    interrupt_time: Query,
    unbiased: Query,
}

/// None where the system lacks one of them.
static PRECISE: LazyLock<Option<Precise>> = LazyLock::new(|| {
    Some(Precise {
        interrupt_time: query(c"QueryInterruptTimePrecise")?,
        unbiased: query(c"QueryUnbiasedInterruptTimePrecise")?,
    })
});

/// Where there is no precise clock: the tick count, made finer by the performance counter. Tied together once.
static TICKS: LazyLock<(Instant, Duration)> = LazyLock::new(|| (Instant::now(), tick_count()));

/// Since the system was started, the time asleep included.
pub(super) fn boot_ns() -> u64 {
    match *PRECISE {
        Some(precise) => ask(precise.interrupt_time),
        None => {
            let (tied, ticks) = *TICKS;
            u64::try_from((ticks + tied.elapsed()).as_nanos()).unwrap_or(u64::MAX)
        }
    }
}

/// Since the system was started, without the time asleep.
pub(in crate::sys) fn awake_ns() -> u64 {
    PRECISE.map_or_else(coarse_awake_ns, |precise| ask(precise.unbiased))
}

#[expect(unsafe_code, reason = "the clocks have no safe form")]
fn ask(query: Query) -> u64 {
    let mut units = 0;
    // SAFETY: the function writes one number to where it is told to, which is there.
    unsafe { query(&raw mut units) };
    units.saturating_mul(NS_PER_UNIT)
}

#[expect(unsafe_code, reason = "the clocks have no safe form")]
fn coarse_awake_ns() -> u64 {
    let mut units = 0;
    // SAFETY: the function writes one number to where it is told to, which is there. It fails for no other reason.
    unsafe { QueryUnbiasedInterruptTime(&raw mut units) };
    units.saturating_mul(NS_PER_UNIT)
}

#[expect(unsafe_code, reason = "the clocks have no safe form")]
fn tick_count() -> Duration {
    // SAFETY: it takes nothing and may be called at any time.
    Duration::from_millis(unsafe { GetTickCount64() })
}

#[expect(unsafe_code, reason = "a function that may not be there is found by its name")]
fn query(name: &CStr) -> Option<Query> {
    // SAFETY: the name ends in a zero. The library is part of every process, and is never unloaded.
    let library = unsafe { GetModuleHandleA(s!("kernelbase.dll")) };
    if library.is_null() {
        return None;
    }
    // SAFETY: the library is there, and the name ends in a zero.
    let function = unsafe { GetProcAddress(library, name.as_ptr().cast()) }?;
    // SAFETY: both functions of these names are documented (realtimeapiset.h) as `void WINAPI (ULONGLONG *)`.
    Some(unsafe { std::mem::transmute::<unsafe extern "system" fn() -> isize, Query>(function) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in every process of this boot, which a clock of its own would not be.
    #[test]
    fn the_boot_clock_is_as_far_as_the_tick_count() {
        let before = tick_count();
        let boot = Duration::from_nanos(boot_ns());
        let after = tick_count();
        let tick = Duration::from_millis(50);
        assert!(before <= boot + tick && boot <= after + tick, "{before:?} {boot:?} {after:?}");
    }

    #[test]
    fn the_coarse_clock_is_as_far_as_the_one_that_is_used() {
        let (used, coarse) = (awake_ns(), coarse_awake_ns());
        assert!(used.abs_diff(coarse) < 50_000_000, "{used} {coarse}");
    }
}
