//! The event log of Windows: the agent's own log when it runs as a service, and the trouble in it.

use std::{
    ffi::OsStr,
    io, iter,
    os::windows::ffi::OsStrExt as _,
    process::Command,
    ptr::{null, null_mut},
};

use windows_sys::Win32::{
    Foundation::{ERROR_FILE_NOT_FOUND, HANDLE},
    System::{
        EventLog::{
            DeregisterEventSource, EVENTLOG_ERROR_TYPE, EVENTLOG_INFORMATION_TYPE, EVENTLOG_WARNING_TYPE,
            RegisterEventSourceW, ReportEventW,
        },
        Registry::{HKEY_LOCAL_MACHINE, REG_DWORD, REG_EXPAND_SZ, RegDeleteTreeW, RegSetKeyValueW},
    },
};

use crate::sys::service::{NAME, TROUBLE_LINES_MAX};

/// Where the source of events is registered, in the registry's part of this machine.
pub(super) const KEY: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application\alibi-agent";
/// It comes with Windows, and has messages of the numbers 1 to 1000 that are nothing but the text they are given.
const MESSAGES: &str = r"%SystemRoot%\System32\EventCreate.exe";
const MESSAGE: u32 = 1;
/// Errors, warnings and information.
const TYPES: u32 = 7;

/// Registers the agent as a source of events.
///
/// # Errors
/// When the registry cannot be written.
pub(super) fn register() -> io::Result<()> {
    let messages: Vec<u8> = wide(MESSAGES).into_iter().flat_map(u16::to_le_bytes).collect();
    set("EventMessageFile", REG_EXPAND_SZ, &messages)?;
    set("TypesSupported", REG_DWORD, &TYPES.to_le_bytes())
}

/// Takes that back.
///
/// # Errors
/// When the registry cannot be written.
#[expect(unsafe_code, reason = "the standard library does not know the registry")]
pub(super) fn unregister() -> io::Result<()> {
    // SAFETY: the name ends in NUL.
    match unsafe { RegDeleteTreeW(HKEY_LOCAL_MACHINE, wide(KEY).as_ptr()) } {
        0 | ERROR_FILE_NOT_FOUND => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.cast_signed())),
    }
}

#[expect(unsafe_code, reason = "the standard library does not know the registry")]
fn set(name: &str, kind: u32, value: &[u8]) -> io::Result<()> {
    let (key, name, bytes) = (wide(KEY), wide(name), u32::try_from(value.len()).unwrap_or(0));
    // SAFETY: both names end in NUL, and the value has so many bytes.
    let code = unsafe {
        RegSetKeyValueW(HKEY_LOCAL_MACHINE, key.as_ptr(), name.as_ptr(), kind, value.as_ptr().cast(), bytes)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.cast_signed())) }
}

/// The event log, open for writing.
#[derive(Debug)]
pub(in crate::sys) struct SystemLog(HANDLE);

// SAFETY: the system lets any thread use the handle.
#[expect(unsafe_code, reason = "a handle of the system is a pointer to Rust")]
unsafe impl Send for SystemLog {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a handle of the system is a pointer to Rust")]
unsafe impl Sync for SystemLog {}

impl SystemLog {
    #[expect(unsafe_code, reason = "the standard library does not know the event log")]
    pub(in crate::sys) fn of_service(is_service: bool) -> Option<Self> {
        if !is_service {
            return None;
        }
        // SAFETY: the name ends in NUL, and the handle is closed when dropped.
        let log = unsafe { RegisterEventSourceW(null(), wide(NAME).as_ptr()) };
        (!log.is_null()).then_some(Self(log))
    }

    #[expect(unsafe_code, reason = "the standard library does not know the event log")]
    pub(in crate::sys) fn write(&self, level: tracing::Level, line: &str) {
        let kind = match level {
            tracing::Level::ERROR => EVENTLOG_ERROR_TYPE,
            tracing::Level::WARN => EVENTLOG_WARNING_TYPE,
            _ => EVENTLOG_INFORMATION_TYPE,
        };
        let text = wide(line);
        let texts = [text.as_ptr()];
        // SAFETY: the log is open, and there is one text, which ends in NUL. A service has nobody else to tell.
        unsafe { ReportEventW(self.0, kind, 0, MESSAGE, null_mut(), 1, 0, texts.as_ptr(), null()) };
    }
}

impl Drop for SystemLog {
    #[expect(unsafe_code, reason = "the standard library does not know the event log")]
    fn drop(&mut self) {
        // SAFETY: it is open, and nobody else has it.
        unsafe { DeregisterEventSource(self.0) };
    }
}

/// The last errors and warnings of the agent, oldest first, as the system's own tool finds them.
pub(super) fn trouble() -> Vec<String> {
    let query = format!("/q:*[System[Provider[@Name='{NAME}'] and (Level=1 or Level=2 or Level=3)]]");
    let count = format!("/c:{TROUBLE_LINES_MAX}");
    let output =
        Command::new("wevtutil").args(["qe", "Application", &query, &count, "/rd:true", "/f:xml"]).output();
    let events =
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut lines = lines_of(&events);
    lines.truncate(TROUBLE_LINES_MAX);
    lines.reverse();
    lines
}

/// Time and text of each event.
fn lines_of(events: &str) -> Vec<String> {
    let between = |text: &str, begin: &str, end: char| {
        let (_, rest) = text.split_once(begin)?;
        rest.split_once(end).map(|(value, _)| value.to_owned())
    };
    let line = |event: &str| {
        let time = between(event, "SystemTime='", '\'').or_else(|| between(event, "SystemTime=\"", '"'))?;
        let text = between(event, "<Data>", '<')?;
        let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
        Some(format!("{time} {}", text.replace("&apos;", "'").replace("&amp;", "&")))
    };
    events.split("<Event ").filter_map(line).collect()
}

fn wide(text: &str) -> Vec<u16> {
    OsStr::new(text).encode_wide().filter(|unit| *unit != 0).chain(iter::once(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_with_time_and_text() {
        let events = "<Event xmlns='x'><System><Provider Name='alibi-agent'/><Level>2</Level>\
                      <TimeCreated SystemTime='2026-11-28T16:00:00.000Z'/></System>\
                      <EventData><Data>a &lt; b &amp;&amp; c</Data></EventData></Event>\n\
                      <Event xmlns=\"x\"><System><TimeCreated SystemTime=\"2026-11-28T15:00:00.000Z\"/></System>\
                      <EventData><Data>older</Data></EventData></Event>";
        assert_eq!(
            lines_of(events),
            ["2026-11-28T16:00:00.000Z a < b && c", "2026-11-28T15:00:00.000Z older"]
        );
        assert_eq!(lines_of(""), Vec::<String>::new());
        assert_eq!(lines_of("<Event ><System/></Event>"), Vec::<String>::new());
    }

    #[test]
    fn a_program_that_is_no_service_writes_no_events() {
        assert!(SystemLog::of_service(false).is_none());
        assert!(wide("a\0b").ends_with(&[u16::from(b'b'), 0]), "no text ends early");
    }
}
