//! What the system tells of by itself: that it is about to be suspended, that it was resumed, and that network interfaces
//! have changed.
//!
//! The notifications of suspends do not prove that the host slept once between two looks. A system that wakes up only to
//! hibernate tells nobody (documented of PBT_APMRESUMEAUTOMATIC since Windows 10), and does so some minutes or hours after
//! it fell asleep. So what the kernel says of the last sleep must agree with the notifications, and the caller compares it
//! with the clocks. In "modern standby" a system goes on running, on and off, and says little of it: where it can do that,
//! nothing is said of its sleeps at all.

use std::{
    ffi::c_void,
    io, ptr,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use windows_sys::Win32::{
    Foundation::{HANDLE, NO_ERROR, WIN32_ERROR},
    NetworkManagement::IpHelper::{
        CancelMibChangeNotify2, MIB_IPFORWARD_ROW2, MIB_IPINTERFACE_ROW, MIB_NOTIFICATION_TYPE,
        MIB_UNICASTIPADDRESS_ROW, NotifyIpInterfaceChange, NotifyRouteChange2, NotifyUnicastIpAddressChange,
    },
    Networking::WinSock::AF_UNSPEC,
    System::Power::{
        CallNtPowerInformation, DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS, GetPwrCapabilities, LastSleepTime,
        LastWakeTime, POWER_INFORMATION_LEVEL, PowerRegisterSuspendResumeNotification,
        PowerUnregisterSuspendResumeNotification, SYSTEM_POWER_CAPABILITIES,
    },
    UI::WindowsAndMessaging::{DEVICE_NOTIFY_CALLBACK, PBT_APMRESUMEAUTOMATIC, PBT_APMSUSPEND},
};

/// So long after a resume its notification is waited for. It comes once the system has got round to it; nothing is lost but
/// a proof where it comes later.
const RESUME_IS_TOLD_WITHIN: Duration = Duration::from_secs(2);
/// Of interrupt time.
const NS_PER_UNIT: u64 = 100;

/// Listens until dropped.
pub(crate) struct Watch {
    heard: &'static Heard,
    registrations: Vec<Registration>,
    /// Of the suspends heard of, those that were asked about.
    counted: u64,
}

impl Watch {
    /// Calls `wake`, from any thread, when there is something to look at. What the system does not tell is said in the log.
    pub(crate) fn open(wake: Box<dyn Fn() + Send + Sync>) -> Self {
        // Never freed: whether a call is under way when the last registration ends is not documented. A source is opened
        // once.
        let heard: &'static Heard = Box::leak(Box::new(Heard::new(wake)));
        let mut registrations = Vec::new();
        for (what, registered) in [
            ("suspends", power(heard)),
            ("network interfaces", interfaces(heard)),
            ("addresses", addresses(heard)),
            ("routes", routes(heard)),
        ] {
            match registered {
                Ok(registration) => registrations.push(registration),
                Err(problem) => tracing::warn!(%problem, "the system does not tell of {what} by itself"),
            }
        }
        Self { heard, registrations, counted: 0 }
    }

    /// How long the host slept when it slept last. None where the system does not tell, or anything speaks against it having
    /// slept just once since this was asked last. Waits up to two seconds for the system to tell of a resume.
    pub(crate) fn last_sleep(&mut self) -> Option<Duration> {
        let count = self.heard.suspends_once_resumed();
        let before = std::mem::replace(&mut self.counted, count);
        let is_once = count.checked_sub(before) == Some(1);
        if !is_once || goes_on_in_standby() {
            return None;
        }
        let units = power_time(LastWakeTime)?.checked_sub(power_time(LastSleepTime)?)?;
        units.checked_mul(NS_PER_UNIT).map(Duration::from_nanos)
    }

    /// Whether interfaces may have changed since this was asked last.
    pub(crate) fn interfaces_may_have_changed(&self) -> bool {
        self.heard.interfaces_changed.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.registrations.drain(..).for_each(Registration::end);
    }
}

/// What has been heard; shared with the system's threads.
struct Heard {
    wake: Box<dyn Fn() + Send + Sync>,
    power: Mutex<Power>,
    resumed: Condvar,
    interfaces_changed: AtomicBool,
}

impl Heard {
    fn new(wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            wake,
            power: Mutex::default(),
            resumed: Condvar::new(),
            interfaces_changed: AtomicBool::new(true),
        }
    }

    fn power(&self, event: u32) {
        let mut power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            PBT_APMSUSPEND => power.suspending(),
            PBT_APMRESUMEAUTOMATIC => power.resumed(),
            _ => return,
        }
        drop(power);
        self.resumed.notify_all();
        (self.wake)();
    }

    fn interfaces(&self) {
        self.interfaces_changed.store(true, Ordering::Relaxed);
        (self.wake)();
    }

    /// How many suspends there were, up to the last one that ended.
    fn suspends_once_resumed(&self) -> u64 {
        let power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
        let is_under_way = |power: &mut Power| power.is_announced;
        let waited = self.resumed.wait_timeout_while(power, RESUME_IS_TOLD_WITHIN, is_under_way);
        waited.unwrap_or_else(PoisonError::into_inner).0.suspends
    }
}

/// Counts suspends by what is told of them.
#[derive(Debug, Default)]
struct Power {
    /// A suspend was told and not yet its end.
    is_announced: bool,
    suspends: u64,
}

impl Power {
    fn suspending(&mut self) {
        // The end of the one before was not told.
        self.suspends += u64::from(std::mem::replace(&mut self.is_announced, true));
    }

    fn resumed(&mut self) {
        // One that was not announced counts twice: what else was not told is not known.
        self.suspends += if std::mem::take(&mut self.is_announced) { 1 } else { 2 };
    }
}

/// A wish to be told, until it is ended. Handles are kept as numbers, since any thread may give them back.
#[derive(Debug)]
enum Registration {
    Power(isize),
    Network(usize),
}

impl Registration {
    #[expect(unsafe_code, reason = "the system's registrations have no safe form")]
    fn end(self) {
        // SAFETY: each is ended once, by the function for its kind. The second waits for calls that are under way, and is
        // called by none of them.
        let outcome = unsafe {
            match self {
                Self::Power(handle) => PowerUnregisterSuspendResumeNotification(handle),
                Self::Network(handle) => CancelMibChangeNotify2(ptr::with_exposed_provenance_mut(handle)),
            }
        };
        if outcome != NO_ERROR {
            tracing::debug!(outcome, "a registration could not be ended");
        }
    }
}

#[expect(unsafe_code, reason = "the system's registrations have no safe form")]
fn power(heard: &'static Heard) -> io::Result<Registration> {
    // Kept for ever, like what it points to: that it is copied is not documented.
    let parameters = Box::leak(Box::new(DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS {
        Callback: Some(on_power),
        Context: ptr::from_ref(heard).cast_mut().cast(),
    }));
    let mut handle = ptr::null_mut();
    // SAFETY: by these flags the recipient is such a structure, which lives as long as the process.
    let outcome = unsafe {
        PowerRegisterSuspendResumeNotification(
            DEVICE_NOTIFY_CALLBACK,
            ptr::from_mut(parameters).cast(),
            &raw mut handle,
        )
    };
    succeeded(outcome).map(|()| Registration::Power(handle as isize))
}

#[expect(unsafe_code, reason = "the system's registrations have no safe form")]
fn interfaces(heard: &'static Heard) -> io::Result<Registration> {
    let mut handle = ptr::null_mut();
    // SAFETY: what the callback is given lives as long as the process.
    let outcome = unsafe {
        NotifyIpInterfaceChange(AF_UNSPEC, Some(on_interface), context(heard), false, &raw mut handle)
    };
    succeeded(outcome).map(|()| network(handle))
}

#[expect(unsafe_code, reason = "the system's registrations have no safe form")]
fn addresses(heard: &'static Heard) -> io::Result<Registration> {
    let mut handle = ptr::null_mut();
    // SAFETY: what the callback is given lives as long as the process.
    let outcome = unsafe {
        NotifyUnicastIpAddressChange(AF_UNSPEC, Some(on_address), context(heard), false, &raw mut handle)
    };
    succeeded(outcome).map(|()| network(handle))
}

#[expect(unsafe_code, reason = "the system's registrations have no safe form")]
fn routes(heard: &'static Heard) -> io::Result<Registration> {
    let mut handle = ptr::null_mut();
    // SAFETY: what the callback is given lives as long as the process.
    let outcome =
        unsafe { NotifyRouteChange2(AF_UNSPEC, Some(on_route), context(heard), false, &raw mut handle) };
    succeeded(outcome).map(|()| network(handle))
}

fn context(heard: &'static Heard) -> *const c_void {
    ptr::from_ref(heard).cast()
}

fn network(handle: HANDLE) -> Registration {
    Registration::Network(handle.expose_provenance())
}

fn succeeded(outcome: WIN32_ERROR) -> io::Result<()> {
    if outcome == NO_ERROR { Ok(()) } else { Err(io::Error::from_raw_os_error(outcome.cast_signed())) }
}

#[expect(unsafe_code, reason = "called by the system")]
unsafe extern "system" fn on_power(context: *const c_void, event: u32, _setting: *const c_void) -> u32 {
    // SAFETY: it was registered with a `Heard` that lives as long as the process.
    unsafe { &*context.cast::<Heard>() }.power(event);
    NO_ERROR
}

#[expect(unsafe_code, reason = "called by the system")]
unsafe extern "system" fn on_interface(
    context: *const c_void,
    _row: *const MIB_IPINTERFACE_ROW,
    _kind: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: it was registered with a `Heard` that lives as long as the process.
    unsafe { &*context.cast::<Heard>() }.interfaces();
}

#[expect(unsafe_code, reason = "called by the system")]
unsafe extern "system" fn on_address(
    context: *const c_void,
    _row: *const MIB_UNICASTIPADDRESS_ROW,
    _kind: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: it was registered with a `Heard` that lives as long as the process.
    unsafe { &*context.cast::<Heard>() }.interfaces();
}

#[expect(unsafe_code, reason = "called by the system")]
unsafe extern "system" fn on_route(
    context: *const c_void,
    _row: *const MIB_IPFORWARD_ROW2,
    _kind: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: it was registered with a `Heard` that lives as long as the process.
    unsafe { &*context.cast::<Heard>() }.interfaces();
}

/// Whether the system has "modern standby", or does not say.
#[expect(unsafe_code, reason = "the power functions have no safe form")]
fn goes_on_in_standby() -> bool {
    let mut capabilities = SYSTEM_POWER_CAPABILITIES::default();
    // SAFETY: it writes such a structure to where it is told to.
    let is_told = unsafe { GetPwrCapabilities(&raw mut capabilities) };
    !is_told || capabilities.AoAc
}

/// By interrupt time, in its units. None where the system does not tell.
#[expect(unsafe_code, reason = "the power functions have no safe form")]
fn power_time(level: POWER_INFORMATION_LEVEL) -> Option<u64> {
    let mut units = 0_u64;
    // SAFETY: at these levels it takes nothing, and writes one number of 8 bytes to where it is told to.
    let status = unsafe { CallNtPowerInformation(level, ptr::null(), 0, (&raw mut units).cast(), 8) };
    (status == 0 && units != 0).then_some(units)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicU32};

    use super::*;

    fn heard() -> (&'static Heard, Arc<AtomicU32>) {
        let woken = Arc::new(AtomicU32::new(0));
        let wakes = Arc::clone(&woken);
        let wake = move || {
            wakes.fetch_add(1, Ordering::Relaxed);
        };
        (Box::leak(Box::new(Heard::new(Box::new(wake)))), woken)
    }

    #[expect(unsafe_code, reason = "does what the system does")]
    fn tell(heard: &'static Heard, events: &[u32]) {
        for event in events {
            // SAFETY: the context is what it was registered with.
            assert_eq!(unsafe { on_power(context(heard), *event, ptr::null()) }, NO_ERROR);
        }
    }

    #[test]
    fn a_suspend_is_counted_once_if_both_its_ends_are_told() {
        const RESUME_BY_USER: u32 = 7;
        let check = |events: &[u32], suspends: u64| {
            let (heard, woken) = heard();
            tell(heard, events);
            assert_eq!(heard.power.lock().unwrap().suspends, suspends, "{events:?}");
            let wakes = events.iter().filter(|event| **event != RESUME_BY_USER).count();
            assert_eq!(woken.load(Ordering::Relaxed) as usize, wakes);
        };
        let (asleep, awake) = (PBT_APMSUSPEND, PBT_APMRESUMEAUTOMATIC);
        check(&[], 0);
        check(&[asleep], 0);
        check(&[asleep, awake], 1);
        check(&[asleep, awake, RESUME_BY_USER], 1);
        check(&[asleep, awake, asleep, awake], 2);
        // Something was not told: more than one, so that nothing is taken for proven.
        check(&[awake], 2);
        check(&[asleep, asleep, awake], 2);
    }

    #[test]
    fn the_end_of_a_suspend_that_was_announced_is_waited_for() {
        let (heard, _) = heard();
        assert_eq!(heard.suspends_once_resumed(), 0);
        tell(heard, &[PBT_APMSUSPEND]);
        let resuming = std::thread::spawn(|| tell(heard, &[PBT_APMRESUMEAUTOMATIC]));
        assert_eq!(heard.suspends_once_resumed(), 1);
        resuming.join().unwrap();
    }

    #[test]
    fn the_system_takes_the_registrations_and_this_one_says_nothing_of_a_sleep() {
        let mut watch = Watch::open(Box::new(|| {}));
        assert_eq!(watch.registrations.len(), 4, "{:?}", watch.registrations);
        assert!(watch.interfaces_may_have_changed(), "at first they are not known");
        assert_eq!(watch.last_sleep(), None);
        tell(watch.heard, &[PBT_APMRESUMEAUTOMATIC]);
        assert_eq!(watch.last_sleep(), None, "it was not announced");
    }

    #[test]
    #[expect(unsafe_code, reason = "does what the system does")]
    fn a_change_of_an_interface_wakes() {
        let (heard, woken) = heard();
        heard.interfaces_changed.store(false, Ordering::Relaxed);
        // SAFETY: the context is what it was registered with; nobody looks at the rows.
        unsafe {
            on_interface(context(heard), ptr::null(), 0);
            on_address(context(heard), ptr::null(), 0);
            on_route(context(heard), ptr::null(), 0);
        }
        assert!(heard.interfaces_changed.load(Ordering::Relaxed));
        assert_eq!(woken.load(Ordering::Relaxed), 3);
    }
}
