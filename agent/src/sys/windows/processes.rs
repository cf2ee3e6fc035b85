//! The process table, as the kernel keeps it: with the exact instant of each start, and without opening any process.

use std::{io, mem};

use alibi_proto::time::Timestamp;
use windows_sys::{
    Wdk::System::SystemInformation::{NtQuerySystemInformation, SystemProcessInformation},
    Win32::{
        Foundation::{CloseHandle, FILETIME, HANDLE, STATUS_INFO_LENGTH_MISMATCH},
        System::Threading::{GetProcessTimes, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION},
    },
};

use crate::sys::RunningProcess;

/// Of a table: more than any machine has room for.
const TABLE_BYTES_MAX: usize = 256 << 20;
/// What a table takes at first; a process takes some hundreds of bytes, and each of its threads 80.
const TABLE_BYTES: usize = 512 << 10;

/// Offsets in `SYSTEM_PROCESS_INFORMATION` of a 64-bit system.
mod offset {
    pub(super) const NEXT: usize = 0;
    pub(super) const CREATED: usize = 32;
    pub(super) const NAME_BYTES: usize = 56;
    pub(super) const NAME: usize = 64;
    pub(super) const PID: usize = 80;
    pub(super) const PARENT: usize = 88;
    pub(super) const END: usize = 96;
}

/// Read again and again.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    /// In units that are aligned as the kernel wants it.
    buffer: Vec<u64>,
}

impl ProcessTable {
    pub(crate) fn open() -> io::Result<Self> {
        let mut table = Self { buffer: vec![0; TABLE_BYTES / mem::size_of::<u64>()] };
        table.read()?;
        Ok(table)
    }

    pub(crate) fn read(&mut self) -> io::Result<Vec<RunningProcess>> {
        loop {
            let (status, bytes) = self.query();
            if status == STATUS_INFO_LENGTH_MISMATCH {
                // Room for those that start meanwhile.
                let wanted = bytes.max(self.buffer.len() * mem::size_of::<u64>()).saturating_mul(5) / 4;
                if wanted > TABLE_BYTES_MAX {
                    return Err(io::Error::other(format!(
                        "the process table takes more than {TABLE_BYTES_MAX} bytes"
                    )));
                }
                self.buffer.resize(wanted.div_ceil(mem::size_of::<u64>()), 0);
                continue;
            }
            if status < 0 {
                return Err(io::Error::other(format!(
                    "the kernel does not tell the process table: {status:#x}"
                )));
            }
            let at = self.buffer.as_ptr() as usize;
            let table: Vec<u8> = self.buffer.iter().flat_map(|unit| unit.to_ne_bytes()).take(bytes).collect();
            let processes = parse(&table, at);
            if processes.is_empty() {
                return Err(io::Error::other("the process table is empty"));
            }
            return Ok(processes);
        }
    }

    /// The status, and the bytes that were written or that it takes.
    #[expect(unsafe_code, reason = "NtQuerySystemInformation has no safe form")]
    fn query(&mut self) -> (i32, usize) {
        let room = self.buffer.len() * mem::size_of::<u64>();
        let mut bytes = 0;
        // SAFETY: the buffer has as much room as is said, and is aligned for any of what is written there.
        let status = unsafe {
            NtQuerySystemInformation(
                SystemProcessInformation,
                self.buffer.as_mut_ptr().cast(),
                u32::try_from(room).unwrap_or(u32::MAX),
                &mut bytes,
            )
        };
        (status, (bytes as usize).min(if status < 0 { usize::MAX } else { room }))
    }
}

/// The processes of a table that lies at address `at`.
fn parse(table: &[u8], at: usize) -> Vec<RunningProcess> {
    let mut processes = Vec::new();
    let mut rest = table;
    let number = |entry: &[u8], from: usize| {
        entry.get(from..from + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    while rest.len() >= offset::END {
        let name_bytes =
            usize::from(u16::from_le_bytes([rest[offset::NAME_BYTES], rest[offset::NAME_BYTES + 1]]));
        let name = usize::try_from(number(rest, offset::NAME)).ok().and_then(|name| {
            let from = name.checked_sub(at)?;
            let units = table.get(from..from.checked_add(name_bytes)?)?.chunks_exact(2);
            Some(String::from_utf16_lossy(
                &units.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect::<Vec<_>>(),
            ))
        });
        let pid = number(rest, offset::PID) as u32;
        let start = since_1970(number(rest, offset::CREATED));
        let parent = number(rest, offset::PARENT) as u32;
        processes.push(RunningProcess {
            pid,
            parent_pid: Some(parent).filter(|parent| *parent != 0),
            start,
            started: Timestamp::from_nanos(start.saturating_mul(100)),
            name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| "System Idle Process".to_owned()),
            // One that has ended is not in the table any more.
            ended: false,
            terminal: None,
        });
        let next = u32::from_le_bytes([rest[offset::NEXT], rest[1], rest[2], rest[3]]) as usize;
        if next < offset::END || next > rest.len() {
            break;
        }
        rest = &rest[next..];
    }
    processes
}

/// 100 ns since 1601 as 100 ns since 1970.
fn since_1970(file_time: u64) -> u64 {
    file_time.saturating_sub(116_444_736_000_000_000)
}

/// When process `pid` started, in 100 ns since 1970.
pub(in crate::sys) fn process_start(pid: u32) -> Option<u64> {
    asked(pid).or_else(|| {
        // One that nobody may open is in the table all the same.
        let table = ProcessTable::open().ok()?.read().ok()?;
        table.into_iter().find(|process| process.pid == pid).map(|process| process.start)
    })
}

#[expect(unsafe_code, reason = "GetProcessTimes has no safe form")]
fn asked(pid: u32) -> Option<u64> {
    // SAFETY: takes no memory of ours.
    let process: HANDLE = unsafe { OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid) };
    if process.is_null() {
        return None;
    }
    let nothing = FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 };
    let [mut created, mut exited, mut kernel, mut user] = [nothing; 4];
    // SAFETY: the handle is open, and each time is written to a place of its own.
    let is_told = unsafe { GetProcessTimes(process, &mut created, &mut exited, &mut kernel, &mut user) };
    // SAFETY: it was opened above, and is not used any more.
    unsafe { CloseHandle(process) };
    let file_time = u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime);
    (is_told != 0).then(|| since_1970(file_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of so many bytes, whose name lies at its end.
    fn entry(
        at: usize,
        bytes: usize,
        pid: u64,
        parent: u64,
        created: u64,
        name: &str,
        is_last: bool,
    ) -> Vec<u8> {
        let mut entry = vec![0; bytes];
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let from = bytes - name.len();
        let next = if is_last { 0 } else { bytes as u32 };
        entry[..4].copy_from_slice(&next.to_le_bytes());
        entry[offset::CREATED..][..8].copy_from_slice(&created.to_le_bytes());
        entry[offset::NAME_BYTES..][..2].copy_from_slice(&(name.len() as u16).to_le_bytes());
        entry[offset::NAME..][..8].copy_from_slice(&((at + from) as u64).to_le_bytes());
        entry[offset::PID..][..8].copy_from_slice(&pid.to_le_bytes());
        entry[offset::PARENT..][..8].copy_from_slice(&parent.to_le_bytes());
        entry[from..].copy_from_slice(&name);
        entry
    }

    #[test]
    fn a_table_is_read_entry_by_entry() {
        let at = 0x1000;
        let mut table = entry(at, 200, 4, 0, 116_444_736_000_000_005, "System", false);
        table.extend(entry(at + 200, 160, 4_711, 4, 133_000_000_000_000_000, "ä.exe", true));
        let processes = parse(&table, at);
        let got: Vec<_> = processes
            .iter()
            .map(|process| (process.pid, process.parent_pid, process.start, &*process.name))
            .collect();
        assert_eq!(got, [(4, None, 5, "System"), (4_711, Some(4), 16_555_264_000_000_000, "ä.exe")]);
        assert_eq!(processes[0].started, Timestamp::from_nanos(500));
    }

    #[test]
    fn whatever_is_in_a_table_it_is_read_to_its_end() {
        let at = 0x1000;
        let whole = entry(at, 200, 4, 0, 1, "System", false);
        for length in 0..whole.len() {
            assert!(parse(&whole[..length], at).len() <= 1);
        }
        let mut wrong = whole.clone();
        wrong[offset::NAME..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&wrong, at)[0].name, "System Idle Process");
        wrong[..4].copy_from_slice(&1_u32.to_le_bytes());
        assert_eq!(parse(&wrong, at).len(), 1, "the next one would be in this one");
    }

    #[test]
    fn a_process_that_is_asked_for_its_start_says_what_the_table_says() {
        let pid = std::process::id();
        let table = ProcessTable::open().unwrap().read().unwrap();
        let own = table.iter().find(|process| process.pid == pid).unwrap();
        assert_eq!(asked(pid), Some(own.start));
        assert_eq!(process_start(pid), Some(own.start));
        assert_eq!(process_start(u32::MAX), None);
    }
}
