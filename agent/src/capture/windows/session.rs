//! The trace session: begins it, reads it, writes markers into it, and asks what it had no room for.
//!
//! A session outlives the program that began it. So it carries the program's number and start in its name, and whoever
//! begins one ends those whose program is gone.

use std::{
    collections::HashMap,
    io, mem, ptr, slice,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use alibi_proto::time::Moment;
use ferrisetw::{
    EventRecord, GUID, UserTrace,
    native::EvntraceNativeError,
    provider::{EventFilter, Provider as EtwProvider},
    trace::{LoggingMode, TraceError, TraceProperties, TraceTrait, stop_trace_by_name},
};
use windows_sys::{
    Win32::{
        Foundation::ERROR_SUCCESS,
        System::Diagnostics::Etw::{
            CONTROLTRACE_HANDLE, ControlTraceW, EVENT_DATA_DESCRIPTOR, EVENT_DESCRIPTOR,
            EVENT_HEADER_FLAG_32_BIT_HEADER, EVENT_RECORD, EVENT_TRACE_CONTROL, EVENT_TRACE_CONTROL_FLUSH,
            EVENT_TRACE_CONTROL_QUERY, EVENT_TRACE_PROPERTIES, EventRegister, EventUnregister, EventWrite,
            QueryAllTracesW, REGHANDLE,
        },
    },
    core::GUID as RawGuid,
};

use super::{
    event::{Event, MARKER, Provider, Record, TcpEvent, What},
    tracker::{Batch, Lost, Marker},
};
use crate::{capture::CaptureError, sys};

/// Of one buffer of the trace, in KiB.
const BUFFER_KIB: u32 = 64;
/// Buffers that are there from the beginning, and at most: 8 MiB.
const BUFFERS_MIN: u32 = 16;
const BUFFERS_MAX: u32 = 128;
/// Events that were delivered and not taken; those beyond are counted.
const EVENTS_MAX: usize = 262_144;
/// A marker has come back by then, or another is written.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// A trace that gives back none of so many markers does not work. Counted, since a host that was suspended meanwhile has not
/// waited.
const MARKERS_MAX: u32 = 15;
/// All sessions that Windows can have.
const SESSIONS_MAX: usize = 256;
/// The names of the agent's sessions begin so.
const NAME: &str = "Alibi Agent";
/// `win:Informational`.
const LEVEL: u8 = 4;

/// A session that runs.
pub(super) struct Session {
    name: String,
    /// None once it is being ended.
    trace: Option<UserTrace>,
    reader: Option<JoinHandle<Result<(), TraceError>>>,
    queue: Arc<Queue>,
    own: REGHANDLE,
    /// The last marker, and when each that has not come back was written.
    number: u64,
    written: HashMap<u64, Moment>,
    /// What came before a marker that said nothing.
    carried: Batch,
    /// What the session had no room for when it was last asked.
    lost: Lost,
}

/// What was delivered, between the thread that reads the trace and the one that takes it.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    batch: Batch,
    /// What came before the last marker that came back.
    complete: Option<(Batch, u64, u64)>,
    has_ended: bool,
}

impl Session {
    /// Begins a session.
    ///
    /// # Errors
    /// When Windows refuses it.
    pub(super) fn begin() -> Result<Self, CaptureError> {
        end_those_left_behind();
        let queue = Arc::new(Queue::default());
        let pid = std::process::id();
        let name = name_of(pid, sys::process_start(pid).unwrap_or(0));
        let mut builder = UserTrace::new().named(name.clone()).set_trace_properties(TraceProperties {
            buffer_size: BUFFER_KIB,
            min_buffer: BUFFERS_MIN,
            max_buffer: BUFFERS_MAX,
            flush_timer: Duration::from_secs(1),
            // One buffer for all processors: what was told first is delivered first.
            log_file_mode: LoggingMode::EVENT_TRACE_REAL_TIME_MODE
                | LoggingMode::EVENT_TRACE_NO_PER_PROCESSOR_BUFFERING,
        });
        for provider in Provider::ALL {
            let queue = Arc::clone(&queue);
            let enabled = EtwProvider::by_guid(GUID::from_u128(provider.guid()))
                .any(provider.keywords())
                .level(LEVEL)
                .add_filter(EventFilter::ByEventIds(provider.events().to_vec()))
                .add_callback(move |event: &EventRecord, _: &_| queue.deliver(provider, event))
                .build();
            builder = builder.enable(enabled);
        }
        let own = register().map_err(|problem| refused("register the agent's own events", &problem))?;
        let (trace, handle) = match builder.start() {
            Ok(started) => started,
            Err(problem) => {
                unregister(own);
                return Err(refused("begin a session", &in_words(problem)));
            }
        };
        let reader = thread::Builder::new().name("etw".into()).spawn({
            let queue = Arc::clone(&queue);
            move || {
                let result = UserTrace::process_from_handle(handle);
                queue.end();
                result
            }
        });
        let reader = reader.map_err(CaptureError::Wait)?;
        Ok(Self {
            name,
            trace: Some(trace),
            reader: Some(reader),
            queue,
            own,
            number: 0,
            written: HashMap::new(),
            carried: Batch::default(),
            lost: Lost::default(),
        })
    }

    /// Writes a marker, and gives what was told before it.
    ///
    /// # Errors
    /// When the session has ended, or does not answer.
    pub(super) fn turn(&mut self) -> Result<(Marker, Batch), CaptureError> {
        for _ in 0..MARKERS_MAX {
            self.write_marker();
            let Some((batch, number, file_time)) = self.queue.wait(ANSWERS_WITHIN)? else { continue };
            let mut batch = joined(mem::take(&mut self.carried), batch);
            let written = self.written.get(&number).copied();
            self.written.retain(|other, _| *other > number);
            let Some(written) = written else {
                // Nobody knows when that one was written: the next one will tell.
                self.carried = batch;
                continue;
            };
            let lost = self.ask_what_was_lost()?;
            batch.lost.events += lost.events.saturating_sub(self.lost.events);
            batch.lost.buffers += lost.buffers.saturating_sub(self.lost.buffers);
            self.lost = lost;
            return Ok((Marker { written, file_time }, batch));
        }
        let waited = ANSWERS_WITHIN * MARKERS_MAX;
        Err(refused("read the session", &format!("it has not answered for {} s", waited.as_secs())))
    }

    fn write_marker(&mut self) {
        self.number += 1;
        let number = self.number;
        self.written.insert(number, sys::now());
        // One that was not written does not come back, and another follows.
        if let Err(problem) = write(self.own, number) {
            tracing::debug!(%problem, "a marker could not be written into the trace");
        }
        if let Err(problem) = control(&self.name, EVENT_TRACE_CONTROL_FLUSH) {
            tracing::debug!(%problem, "the trace could not be flushed");
        }
    }

    fn ask_what_was_lost(&self) -> Result<Lost, CaptureError> {
        let properties = control(&self.name, EVENT_TRACE_CONTROL_QUERY)
            .map_err(|problem| refused("ask what was lost", &problem.to_string()))?;
        let buffers = u64::from(properties.RealTimeBuffersLost) + u64::from(properties.LogBuffersLost);
        Ok(Lost { events: properties.EventsLost.into(), buffers })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(Err(problem)) = self.trace.take().map(UserTrace::stop) {
            tracing::warn!(problem = in_words(problem), "the trace session could not be ended");
        }
        unregister(self.own);
        if let Some(Err(_)) = self.reader.take().map(JoinHandle::join) {
            tracing::error!("the thread that read the trace panicked");
        }
    }
}

impl Queue {
    /// Called by the thread that reads the trace.
    fn deliver(&self, provider: Provider, event: &EventRecord) {
        let decoded = Event::decode(&record(provider, event));
        let mut state = self.lock();
        match decoded {
            Ok(None) => {}
            // Others can write events under any name, but not under this program's number.
            Ok(Some(Event { what: What::Marker(_), .. })) if event.process_id() != std::process::id() => {}
            Ok(Some(Event { what: What::Marker(number), file_time })) => {
                let batch = mem::take(&mut state.batch);
                // One that was not taken yet is of the same report.
                let complete = match state.complete.take() {
                    Some((earlier, _, _)) => joined(earlier, batch),
                    None => batch,
                };
                state.complete = Some((complete, number, file_time));
                self.changed.notify_all();
            }
            Ok(Some(event)) => {
                let waiting = state.complete.as_ref().map_or(0, |(batch, _, _)| batch.events.len());
                if waiting + state.batch.events.len() >= EVENTS_MAX {
                    state.batch.lost.events += 1;
                } else if !state.batch.events.last_mut().is_some_and(|last| is_one_with(last, &event)) {
                    state.batch.events.push(event);
                }
            }
            Err(unreadable) => *state.batch.unreadable.entry(unreadable).or_default() += 1,
        }
    }

    /// What came before a marker that came back, its number, and its time.
    fn wait(&self, patience: Duration) -> Result<Option<(Batch, u64, u64)>, CaptureError> {
        let state = self.lock();
        let is_waiting = |state: &mut State| state.complete.is_none() && !state.has_ended;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, is_waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match state.complete.take() {
            None if state.has_ended => Err(refused("read the session", "somebody has ended it")),
            complete => Ok(complete),
        }
    }

    fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn joined(mut earlier: Batch, later: Batch) -> Batch {
    earlier.events.extend(later.events);
    for (unreadable, count) in later.unreadable {
        *earlier.unreadable.entry(unreadable).or_default() += count;
    }
    earlier.lost.events += later.lost.events;
    earlier
}

/// Whether `next` moves something in the same connection in the same direction as `last` did; then it is counted there.
fn is_one_with(last: &mut Event, next: &Event) -> bool {
    let (What::Tcp { what, pid, bytes, local, remote }, What::Tcp { bytes: more, .. }) =
        (&mut last.what, &next.what)
    else {
        return false;
    };
    let What::Tcp { what: next_what, pid: next_pid, local: next_local, remote: next_remote, .. } = &next.what
    else {
        return false;
    };
    let is_same = what == next_what && pid == next_pid && local == next_local && remote == next_remote;
    let moves = matches!(what, TcpEvent::Sent | TcpEvent::Received);
    let Some(sum) = bytes.checked_add(*more).filter(|_| is_same && moves) else { return false };
    *bytes = sum;
    true
}

#[expect(unsafe_code, reason = "the crate does not show the payload of an event")]
fn record(provider: Provider, event: &EventRecord) -> Record<'_> {
    // SAFETY: `EventRecord` is a transparent wrapper of the `EVENT_RECORD` of another version of the same bindings, which are
    // both generated from the system's own description.
    let raw: &EVENT_RECORD = unsafe { &*ptr::from_ref(event).cast() };
    let payload = if raw.UserData.is_null() {
        &[]
    } else {
        // SAFETY: Windows gives as many bytes, which stay as long as the event does.
        unsafe { slice::from_raw_parts(raw.UserData.cast::<u8>(), raw.UserDataLength.into()) }
    };
    let is_32_bit = u32::from(raw.EventHeader.Flags) & EVENT_HEADER_FLAG_32_BIT_HEADER != 0;
    Record {
        provider,
        id: event.event_id(),
        version: event.version(),
        pid: event.process_id(),
        file_time: u64::try_from(event.raw_timestamp()).unwrap_or(0),
        pointer_bytes: if is_32_bit { 4 } else { 8 },
        payload,
    }
}

#[expect(unsafe_code, reason = "EventRegister has no safe form")]
fn register() -> Result<REGHANDLE, String> {
    let guid = RawGuid::from_u128(Provider::Own.guid());
    let mut own: REGHANDLE = 0;
    // SAFETY: both places are there until it returns, and nothing is to be called.
    let status = unsafe { EventRegister(&guid, None, ptr::null(), &mut own) };
    if status == ERROR_SUCCESS { Ok(own) } else { Err(os_error(status).to_string()) }
}

#[expect(unsafe_code, reason = "EventUnregister has no safe form")]
fn unregister(own: REGHANDLE) {
    // SAFETY: it was given by EventRegister, and is not used any more.
    unsafe { EventUnregister(own) };
}

#[expect(unsafe_code, reason = "EventWrite has no safe form")]
fn write(own: REGHANDLE, number: u64) -> io::Result<()> {
    let descriptor =
        EVENT_DESCRIPTOR { Id: MARKER, Version: 0, Channel: 0, Level: LEVEL, Opcode: 0, Task: 0, Keyword: 0 };
    let bytes = number.to_le_bytes();
    let data =
        EVENT_DATA_DESCRIPTOR { Ptr: bytes.as_ptr() as u64, Size: bytes.len() as u32, ..Default::default() };
    // SAFETY: what is pointed to is there until it returns.
    let status = unsafe { EventWrite(own, &descriptor, 1, &data) };
    if status == ERROR_SUCCESS { Ok(()) } else { Err(os_error(status)) }
}

/// `EVENT_TRACE_PROPERTIES`, and room for the two names that follow it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    properties: EVENT_TRACE_PROPERTIES,
    session: [u16; 1024],
    file: [u16; 1024],
}

impl Properties {
    fn new() -> Self {
        let mut properties = EVENT_TRACE_PROPERTIES::default();
        properties.Wnode.BufferSize = mem::size_of::<Self>() as u32;
        properties.LoggerNameOffset = mem::offset_of!(Self, session) as u32;
        properties.LogFileNameOffset = mem::offset_of!(Self, file) as u32;
        Self { properties, session: [0; 1024], file: [0; 1024] }
    }

    fn name(&self) -> String {
        let length = self.session.iter().position(|unit| *unit == 0).unwrap_or(self.session.len());
        String::from_utf16_lossy(&self.session[..length])
    }
}

#[expect(unsafe_code, reason = "ControlTraceW has no safe form")]
fn control(name: &str, code: EVENT_TRACE_CONTROL) -> io::Result<EVENT_TRACE_PROPERTIES> {
    let name: Vec<u16> = name.encode_utf16().chain([0]).collect();
    let mut properties = Properties::new();
    let by_name = CONTROLTRACE_HANDLE { Value: 0 };
    // SAFETY: the name ends with a zero, and the properties have the room that they say.
    let status =
        unsafe { ControlTraceW(by_name, name.as_ptr(), ptr::from_mut(&mut properties).cast(), code) };
    if status == ERROR_SUCCESS { Ok(properties.properties) } else { Err(os_error(status)) }
}

fn name_of(pid: u32, start: u64) -> String {
    format!("{NAME} {pid} {start}")
}

/// Ends the sessions of agents that do not run any more.
fn end_those_left_behind() {
    for name in sessions() {
        let numbers = name.strip_prefix(NAME).and_then(|rest| rest.trim_start().split_once(' '));
        let Some((Ok(pid), Ok(start))) = numbers.map(|(pid, start)| (pid.parse(), start.parse())) else {
            continue;
        };
        if sys::process_start(pid) == Some(start) {
            continue;
        }
        match stop_trace_by_name(&name) {
            Ok(()) => tracing::info!(name, "ended a trace session that an earlier run had left behind"),
            Err(problem) => {
                tracing::warn!(name, problem = in_words(problem), "a trace session was left behind");
            }
        }
    }
}

/// The names of all sessions that this user may see.
#[expect(unsafe_code, reason = "QueryAllTracesW has no safe form")]
fn sessions() -> Vec<String> {
    let mut found = vec![Properties::new(); SESSIONS_MAX];
    let mut places: Vec<*mut EVENT_TRACE_PROPERTIES> =
        found.iter_mut().map(|properties| ptr::from_mut(properties).cast()).collect();
    let mut count = 0;
    // SAFETY: as many places are given as is said, and each has the room that it says.
    let status = unsafe { QueryAllTracesW(places.as_mut_ptr(), places.len() as u32, &mut count) };
    if status != ERROR_SUCCESS {
        tracing::debug!(problem = %os_error(status), "trace sessions cannot be listed");
        return Vec::new();
    }
    found.iter().take(count as usize).map(Properties::name).collect()
}

fn refused(what: &'static str, problem: &str) -> CaptureError {
    CaptureError::Etw { what, problem: problem.to_owned() }
}

fn os_error(status: u32) -> io::Error {
    io::Error::from_raw_os_error(status.cast_signed())
}

fn in_words(problem: TraceError) -> String {
    match problem {
        TraceError::InvalidTraceName => "the name of the session is not valid".to_owned(),
        TraceError::EtwNativeError(EvntraceNativeError::InvalidHandle) => "no session was given".to_owned(),
        TraceError::EtwNativeError(EvntraceNativeError::AlreadyExist) => {
            "there is one of the same name".to_owned()
        }
        // The crate gives a Windows error as an HRESULT of FACILITY_WIN32.
        TraceError::EtwNativeError(EvntraceNativeError::IoError(error)) => match error.raw_os_error() {
            Some(code) if code.cast_unsigned() >> 16 == 0x8007 => {
                os_error(code.cast_unsigned() & 0xffff).to_string()
            }
            _ => error.to_string(),
        },
    }
}
