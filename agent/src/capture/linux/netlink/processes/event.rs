//! Events of the proc connector, as bytes (linux/cn_proc.h). Pure.

use crate::capture::linux::netlink::message::{self, bytes_at, u32_at, u64_at};

/// `CN_IDX_PROC`, `CN_VAL_PROC`
const CHANNEL: [u32; 2] = [1, 1];
/// `PROC_CN_MCAST_LISTEN`
const LISTEN: u32 = 1;
/// `NLMSG_DONE`: the connector says nothing else.
const KIND: u16 = 3;
/// `struct cn_msg`: channel, sequence at 8, acknowledgement, length, flags.
const HEADER: usize = 20;

/// What happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The answer to the request to be told; 0 or an errno.
    Answer(u32),
    /// A process or, if so, only a thread of it came into being.
    Fork { parent: u32, process: u32, is_thread: bool },
    /// It became another program.
    Exec { process: u32 },
    /// Its first thread, or another, left; with a status as wait(2) has it.
    Exit { process: u32, is_first_thread: bool, status: u32 },
    /// Anything else.
    Other,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Events of each CPU are counted on their own, without a hole unless one was lost.
    pub(super) cpu: u32,
    pub(super) sequence: u32,
    /// By the monotonic clock.
    pub(super) at_ns: u64,
    pub(super) kind: Kind,
}

/// The request to be told of events.
pub(super) fn listen() -> Vec<u8> {
    let words = [CHANNEL[0], CHANNEL[1], 0, 0];
    let mut body: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    body.extend(4_u16.to_ne_bytes()); // the length of what follows the flags
    body.extend(0_u16.to_ne_bytes());
    body.extend(LISTEN.to_ne_bytes());
    message::request(KIND, 0, 0, &body)
}

/// None if it is none.
pub(super) fn parse(message: &[u8]) -> Option<Event> {
    if [u32_at(message, 0)?, u32_at(message, 4)?] != CHANNEL {
        return None;
    }
    let sequence = u32_at(message, 8)?;
    let event = message.get(HEADER..)?;
    let (what, cpu, at_ns) = (u32_at(event, 0)?, u32_at(event, 4)?, u64_at(event, 8)?);
    let words: [u8; 16] = bytes_at(event, 16)?;
    let word = |index: usize| u32_at(&words, index * 4);
    let kind = match what {
        0 => Kind::Answer(word(0)?),
        1 => Kind::Fork { parent: word(1)?, process: word(3)?, is_thread: word(2)? != word(3)? },
        2 => Kind::Exec { process: word(1)? },
        0x8000_0000 => {
            Kind::Exit { process: word(1)?, is_first_thread: word(0)? == word(1)?, status: word(2)? }
        }
        _ => Kind::Other,
    };
    Some(Event { cpu, sequence, at_ns, kind })
}

/// As a shell has it: 128 and the signal's number where a signal ended it.
pub(super) const fn exit_code(status: u32) -> i32 {
    let code = if status & 0x7f == 0 { (status >> 8) & 0xff } else { 128 + (status & 0x7f) };
    code.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event with these words, as the kernel lays it out.
    fn message(what: u32, words: [u32; 4]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [1, 1, 7, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend([40, 0, 0, 0]);
        bytes.extend([what, 3].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(1_000_000_007_u64.to_ne_bytes());
        bytes.extend(words.into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend([0; 8]);
        bytes
    }

    #[track_caller]
    fn check(what: u32, words: [u32; 4], want: Kind) {
        let message = message(what, words);
        let event = Event { cpu: 3, sequence: 7, at_ns: 1_000_000_007, kind: want };
        assert_eq!(parse(&message), Some(event));
        for length in 0..HEADER + 32 {
            assert_eq!(parse(&message[..length]), None, "{length}");
        }
    }

    #[test]
    fn events_are_understood_and_threads_told_from_processes() {
        check(0, [1, 0, 0, 0], Kind::Answer(1));
        check(1, [41, 40, 50, 50], Kind::Fork { parent: 40, process: 50, is_thread: false });
        check(1, [41, 40, 51, 50], Kind::Fork { parent: 40, process: 50, is_thread: true });
        check(2, [50, 50, 0, 0], Kind::Exec { process: 50 });
        check(0x8000_0000, [50, 50, 256, 17], Kind::Exit { process: 50, is_first_thread: true, status: 256 });
        check(0x8000_0000, [51, 50, 9, 17], Kind::Exit { process: 50, is_first_thread: false, status: 9 });
        check(0x200, [50, 50, 0, 0], Kind::Other);
        let mut other = message(1, [41, 40, 50, 50]);
        other[0] = 9;
        assert_eq!(parse(&other), None, "of another channel");
    }

    #[test]
    fn a_status_becomes_the_code_that_a_shell_shows() {
        for (status, code) in [(0, 0), (256, 1), (255 << 8, 255), (9, 137), (0x80 | 11, 139)] {
            assert_eq!(exit_code(status), code, "{status}");
        }
    }
}
