//! What the kernel lets through: a program of classic BPF for a packet socket of type SOCK_DGRAM, which sees a packet from
//! its IP header on.
//!
//! It keeps no state, so it decides by the packet alone. Everything it lets through is looked at again by the agent, which
//! trusts none of it; what it rejects costs nobody a wakeup.

use std::collections::HashMap;

/// Bytes of a packet that are copied to the agent, counted from its IP header; the rest is cut off.
pub(super) const SNAP_BYTES: usize = 16 * 1024 + 512;

/// The longest packet that can be a later piece of a ClientHello. What is longer was not cut into segments yet, and carries
/// a whole one.
const PIECE_BYTES_MAX: u32 = 1_500;

/// One instruction, as in `struct sock_filter`: code, jump if true, jump if false, operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) operand: u32,
}

/// A line of the program. Jumps name the line that they go to, and only ever go forward.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// A place to jump to.
    At(&'static str),
    /// Anything that is no conditional jump.
    Do(u16, u32),
    /// Compare A with the operand; go there if it holds, else there. `NEXT` is the following line.
    If(u16, u32, &'static str, &'static str),
}
use Line::{At, Do, If};

const NEXT: &str = "";

// Codes of linux/bpf_common.h.
const LOAD_BYTE: u16 = 0x30; // A = packet[k]
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_AT_X: u16 = 0x50; // A = packet[X + k]
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_LENGTH: u16 = 0x80; // A = length of the packet
const LOAD_MEMORY: u16 = 0x60; // A = M[k]
const STORE: u16 = 0x02; // M[k] = A
const SET_X: u16 = 0x01; // X = k
const SET_X_TO_HEADER: u16 = 0xb1; // X = 4 * (packet[k] & 0xf)
const AND: u16 = 0x54;
const SHIFT_RIGHT: u16 = 0x74;
const ADD_X: u16 = 0x0c;
const MOVE_TO_X: u16 = 0x07;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// What the kernel knows of a packet, as addresses below zero (SKF_AD_OFF of linux/filter.h).
const PROTOCOL: u32 = 0xffff_f000;
const PACKET_TYPE: u32 = PROTOCOL + 4;
const HARDWARE_TYPE: u32 = PROTOCOL + 28;

const LOOPBACK: u32 = 772; // ARPHRD_LOOPBACK
const OTHER_HOST: u32 = 3; // PACKET_OTHERHOST
const OUTGOING: u32 = 4; // PACKET_OUTGOING

// Places in scratch memory.
const REMOTE_PORT: u32 = 0;
const FLAGS: u32 = 1;

/// A load past the end of the packet rejects it, so nothing here checks lengths.
const PROGRAM: &[Line] = &[
    // Not what others say to others, on a card that hears everything (a bridge's).
    Do(LOAD_BYTE, PACKET_TYPE),
    If(EQUAL, OTHER_HOST, "reject", NEXT),
    If(EQUAL, OUTGOING, NEXT, "protocol"),
    // Loopback shows each packet twice: as it leaves, and as it arrives. The second is taken.
    Do(LOAD_HALF, HARDWARE_TYPE),
    If(EQUAL, LOOPBACK, "reject", "protocol"),
    At("protocol"),
    Do(LOAD_HALF, PROTOCOL),
    If(EQUAL, 0x0800, "ipv4", NEXT),
    If(EQUAL, 0x86dd, "ipv6", "reject"),
    At("ipv4"),
    // Of a packet in fragments the first, which tells that there is one that cannot be read.
    Do(LOAD_HALF, 6),
    If(ANY_BIT, 0x1fff, "reject", NEXT),
    Do(SET_X_TO_HEADER, 0),
    Do(LOAD_BYTE, 9),
    If(EQUAL, 17, "udp", NEXT),
    If(EQUAL, 6, "tcp", "reject"),
    At("ipv6"),
    Do(SET_X, 40),
    Do(LOAD_BYTE, 6),
    If(EQUAL, 17, "udp", NEXT),
    If(EQUAL, 6, "tcp", NEXT),
    If(EQUAL, 44, NEXT, "reject"),
    Do(LOAD_HALF, 42),
    If(ANY_BIT, 0xfff8, "reject", NEXT),
    Do(SET_X, 48),
    Do(LOAD_BYTE, 40),
    If(EQUAL, 17, "udp", "reject"),
    // From here on, X is where the transport header begins.
    At("udp"),
    Do(LOAD_HALF_AT_X, 0),
    If(EQUAL, 53, NEXT, "asks"),
    // An answer: the bit QR. Not one that this host gives, or passes on: it is heard where it arrives.
    Do(LOAD_BYTE_AT_X, 10),
    If(ANY_BIT, 0x80, "arrives", "asks"),
    At("asks"),
    Do(LOAD_HALF_AT_X, 2),
    If(EQUAL, 53, "leaves", NEXT),
    // On loopback the port may have been translated already (a container's resolver): whatever looks like a question.
    Do(LOAD_HALF, HARDWARE_TYPE),
    If(EQUAL, LOOPBACK, NEXT, "reject"),
    Do(LOAD_BYTE_AT_X, 10),
    If(ANY_BIT, 0xfe, "reject", NEXT),
    Do(LOAD_BYTE_AT_X, 11),
    If(ANY_BIT, 0x8f, "reject", NEXT),
    Do(LOAD_HALF_AT_X, 12),
    If(EQUAL, 1, NEXT, "reject"),
    Do(LOAD_HALF_AT_X, 14),
    If(EQUAL, 0, "accept", "reject"),
    At("tcp"),
    Do(LOAD_HALF_AT_X, 2),
    Do(STORE, REMOTE_PORT),
    Do(LOAD_BYTE_AT_X, 13),
    Do(STORE, FLAGS),
    Do(LOAD_HALF_AT_X, 0),
    If(EQUAL, 53, "answers", NEXT),
    Do(LOAD_MEMORY, REMOTE_PORT),
    If(EQUAL, 53, "questions", NEXT),
    // X becomes where the payload begins. There is none in most packets, and the next load rejects them.
    Do(LOAD_BYTE_AT_X, 12),
    Do(AND, 0xf0),
    Do(SHIFT_RIGHT, 2),
    Do(ADD_X, 0),
    Do(MOVE_TO_X, 0),
    Do(LOAD_BYTE_AT_X, 0),
    If(AT_LEAST, 0x14, NEXT, "piece"),
    If(GREATER, 0x17, "piece", NEXT),
    // Perhaps a TLS record: then it is a handshake's first, ClientHello, or nothing.
    Do(LOAD_BYTE_AT_X, 1),
    If(EQUAL, 3, NEXT, "piece"),
    Do(LOAD_BYTE_AT_X, 0),
    If(EQUAL, 0x16, NEXT, "reject"),
    Do(LOAD_BYTE_AT_X, 5),
    If(EQUAL, 1, "accept", "reject"),
    // Perhaps the last piece of a ClientHello that was cut in two before it got here, as where the network card does not
    // segment by itself. Only the end of something sent (PSH), on the ports where this happens daily, no longer than a
    // segment: of a bulk transfer, only few packets are so.
    At("piece"),
    Do(LOAD_BYTE, PACKET_TYPE),
    If(EQUAL, OUTGOING, "sent", NEXT),
    Do(LOAD_HALF, HARDWARE_TYPE),
    If(EQUAL, LOOPBACK, "sent", "reject"),
    At("sent"),
    Do(LOAD_MEMORY, REMOTE_PORT),
    If(EQUAL, 443, "pushed", NEXT),
    If(EQUAL, 853, "pushed", NEXT),
    If(EQUAL, 8443, "pushed", "reject"),
    At("pushed"),
    Do(LOAD_MEMORY, FLAGS),
    If(ANY_BIT, 0x08, NEXT, "reject"),
    Do(LOAD_LENGTH, 0),
    If(GREATER, PIECE_BYTES_MAX, "reject", "accept"),
    // Of DNS over TCP whatever it carries, if it carries anything.
    At("answers"),
    Do(LOAD_BYTE_AT_X, 12),
    Do(AND, 0xf0),
    Do(SHIFT_RIGHT, 2),
    Do(ADD_X, 0),
    Do(MOVE_TO_X, 0),
    Do(LOAD_BYTE_AT_X, 0),
    At("arrives"),
    Do(LOAD_BYTE, PACKET_TYPE),
    If(EQUAL, OUTGOING, "reject", "accept"),
    At("questions"),
    Do(LOAD_BYTE_AT_X, 12),
    Do(AND, 0xf0),
    Do(SHIFT_RIGHT, 2),
    Do(ADD_X, 0),
    Do(MOVE_TO_X, 0),
    Do(LOAD_BYTE_AT_X, 0),
    At("leaves"),
    Do(LOAD_BYTE, PACKET_TYPE),
    If(EQUAL, OUTGOING, "accept", NEXT),
    Do(LOAD_HALF, HARDWARE_TYPE),
    If(EQUAL, LOOPBACK, "accept", "reject"),
    At("accept"),
    Do(RETURN, SNAP_BYTES as u32),
    At("reject"),
    Do(RETURN, 0),
];

/// The program, its jumps as distances.
pub(super) fn program() -> Vec<Instruction> {
    let mut places = HashMap::new();
    let mut length = 0usize;
    for line in PROGRAM {
        if let At(label) = line {
            places.insert(*label, length);
        } else {
            length += 1;
        }
    }
    // A label that is missing, or too far, goes to the end, which rejects. A test proves that there is none.
    let distance = |label: &str, from: usize| -> u8 {
        let to = if label == NEXT { from + 1 } else { places.get(label).copied().unwrap_or(length) };
        u8::try_from(to.saturating_sub(from + 1)).unwrap_or(u8::MAX)
    };
    let mut instructions = Vec::with_capacity(length);
    for line in PROGRAM {
        let at = instructions.len();
        match *line {
            At(_) => {}
            Do(code, operand) => {
                instructions.push(Instruction { code, jump_true: 0, jump_false: 0, operand });
            }
            If(code, operand, yes, no) => instructions.push(Instruction {
                code,
                jump_true: distance(yes, at),
                jump_false: distance(no, at),
                operand,
            }),
        }
    }
    instructions
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the kernel knows beside the bytes.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Aside {
        pub(in super::super) protocol: u16,
        pub(in super::super) packet_type: u8,
        pub(in super::super) hardware_type: u16,
    }

    impl Aside {
        pub(in super::super) const IPV4_OUT: Self =
            Self { protocol: 0x0800, packet_type: 4, hardware_type: 1 };
        const IPV4_IN: Self = Self { packet_type: 0, ..Self::IPV4_OUT };
        const IPV6_OUT: Self = Self { protocol: 0x86dd, ..Self::IPV4_OUT };
        const LOOPBACK_OUT: Self = Self { hardware_type: 772, ..Self::IPV4_OUT };
        const LOOPBACK_IN: Self = Self { hardware_type: 772, ..Self::IPV4_IN };
        const OTHERS: Self = Self { packet_type: 3, ..Self::IPV4_OUT };
    }

    /// Runs the program as the kernel would: the number of bytes that it lets through.
    pub(in super::super) fn run(packet: &[u8], aside: Aside) -> u32 {
        let program = program();
        let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
        loop {
            let Instruction { code, jump_true, jump_false, operand: k } = program[at];
            at += 1;
            let load = |place: u32, bytes: usize| {
                let known = match place {
                    PROTOCOL => Some(u32::from(aside.protocol)),
                    PACKET_TYPE => Some(u32::from(aside.packet_type)),
                    HARDWARE_TYPE => Some(u32::from(aside.hardware_type)),
                    _ => None,
                };
                let bytes = packet.get(place as usize..(place as usize).checked_add(bytes)?);
                known.or(bytes.map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))))
            };
            let loaded = match code {
                LOAD_BYTE => load(k, 1),
                LOAD_HALF => load(k, 2),
                LOAD_BYTE_AT_X => load(x + k, 1),
                LOAD_HALF_AT_X => load(x + k, 2),
                SET_X_TO_HEADER => load(k, 1).map(|byte| 4 * (byte & 0xf)),
                _ => Some(0),
            };
            let Some(loaded) = loaded else { return 0 };
            let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
            match code {
                LOAD_BYTE | LOAD_HALF | LOAD_BYTE_AT_X | LOAD_HALF_AT_X => a = loaded,
                SET_X_TO_HEADER => x = loaded,
                LOAD_LENGTH => a = packet.len() as u32,
                LOAD_MEMORY => a = memory[k as usize],
                STORE => memory[k as usize] = a,
                SET_X => x = k,
                AND => a &= k,
                SHIFT_RIGHT => a >>= k,
                ADD_X => a = a.wrapping_add(x),
                MOVE_TO_X => x = a,
                EQUAL => at += jump(a == k),
                GREATER => at += jump(a > k),
                AT_LEAST => at += jump(a >= k),
                ANY_BIT => at += jump(a & k != 0),
                RETURN => return k,
                code => panic!("no such instruction: {code:#x}"),
            }
        }
    }

    pub(in super::super) fn ipv4(protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x46, 0];
        packet.extend(u16::try_from(24 + transport.len()).unwrap().to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7]);
        packet.extend([1, 1, 1, 1]); // an option, so that the header is not the usual 20 bytes
        packet.extend(transport);
        packet
    }

    pub(in super::super) fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        packet.extend([next, 64]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend(rest);
        packet
    }

    pub(in super::super) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = source.to_be_bytes().to_vec();
        datagram.extend(destination.to_be_bytes());
        datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }

    pub(in super::super) fn tcp(
        source: u16,
        destination: u16,
        sequence: u32,
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut segment = source.to_be_bytes().to_vec();
        segment.extend(destination.to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0x80, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]); // timestamps
        segment.extend(payload);
        segment
    }

    const ANSWER: &[u8] = &[0, 1, 0x81, 0x80, 0, 0];
    const QUESTION: &[u8] = &[0, 1, 0x01, 0x00, 0, 0];
    const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1];

    #[test]
    fn every_jump_has_its_place() {
        let labels: Vec<_> = PROGRAM
            .iter()
            .filter_map(|line| if let At(label) = line { Some(*label) } else { None })
            .collect();
        let mut at = 0;
        for line in PROGRAM {
            if let If(_, _, yes, no) = line {
                for label in [yes, no].into_iter().filter(|label| **label != NEXT) {
                    assert!(labels.contains(label), "{label}");
                }
            }
            if !matches!(line, At(_)) {
                at += 1;
            }
        }
        let program = program();
        assert_eq!(program.len(), at);
        for (at, instruction) in program.iter().enumerate() {
            for jump in [instruction.jump_true, instruction.jump_false] {
                assert!(jump < u8::MAX && at + 1 + usize::from(jump) <= program.len(), "{at}");
            }
        }
        assert_eq!(program.last().map(|last| (last.code, last.operand)), Some((RETURN, 0)));
    }

    #[test]
    fn dns_answers_pass_once() {
        let answer = ipv4(17, 0, &udp(53, 4000, ANSWER));
        assert_eq!(run(&answer, Aside::IPV4_IN), SNAP_BYTES as u32);
        assert_eq!(run(&answer, Aside::IPV4_OUT), 0, "it is heard where it arrives");
        assert_ne!(run(&answer, Aside::LOOPBACK_IN), 0);
        assert_eq!(run(&answer, Aside::LOOPBACK_OUT), 0);
        assert_eq!(run(&answer, Aside::OTHERS), 0);
        let ipv6_in = Aside { packet_type: 0, ..Aside::IPV6_OUT };
        assert_ne!(run(&ipv6(17, &udp(53, 4000, ANSWER)), ipv6_in), 0);
        assert_ne!(run(&ipv4(6, 0, &tcp(53, 4000, 1, 0x10, b"\0")), Aside::IPV4_IN), 0);
        for other in [
            ipv4(17, 0, &udp(53, 4000, QUESTION)),
            ipv4(17, 0, &udp(4000, 53, QUESTION)),
            ipv4(17, 0, &udp(5353, 5353, ANSWER)),
            ipv4(6, 0, &tcp(53, 4000, 1, 0x10, b"")),
            ipv4(6, 0, &tcp(4000, 53, 1, 0x18, QUESTION)),
            ipv4(47, 0, &udp(53, 4000, ANSWER)),
        ] {
            assert_eq!(run(&other, Aside::IPV4_IN), 0, "{other:x?}");
        }
    }

    #[test]
    fn of_a_fragmented_answer_the_first_fragment_passes() {
        let answer = udp(53, 4000, ANSWER);
        let ipv6_in = Aside { packet_type: 0, ..Aside::IPV6_OUT };
        assert_ne!(run(&ipv4(17, 0x2000, &answer), Aside::IPV4_IN), 0);
        assert_eq!(run(&ipv4(17, 0x0010, &answer), Aside::IPV4_IN), 0);
        let fragment = |offset: u16| {
            let mut rest = vec![17, 0];
            rest.extend(offset.to_be_bytes());
            rest.extend([0, 0, 0, 1]);
            rest.extend(&answer);
            ipv6(44, &rest)
        };
        assert_ne!(run(&fragment(1), ipv6_in), 0);
        assert_eq!(run(&fragment(8), ipv6_in), 0);
    }

    #[test]
    fn client_hellos_pass_on_any_port_and_nothing_else_of_tls() {
        for aside in [Aside::IPV4_IN, Aside::IPV4_OUT, Aside::LOOPBACK_IN] {
            assert_ne!(run(&ipv4(6, 0, &tcp(5000, 9999, 1, 0x10, HELLO)), aside), 0);
        }
        assert_ne!(run(&ipv6(6, &tcp(5000, 443, 1, 0x18, HELLO)), Aside::IPV6_OUT), 0);
        for payload in [
            &[0x16, 3, 3, 0, 9, 2, 0, 0][..], // ServerHello
            &[0x17, 3, 3, 0, 9, 1, 0, 0][..], // data
            &[0x15, 3, 3, 0, 2, 1, 0][..],    // alert
            &[0x16, 3, 1, 2, 0][..],          // too short to tell
            &[][..],
        ] {
            for port in [443, 9999] {
                let packet = ipv4(6, 0, &tcp(5000, port, 1, 0x18, payload));
                assert_eq!(run(&packet, Aside::IPV4_OUT), 0, "{payload:x?} {port}");
            }
        }
    }

    #[test]
    fn later_pieces_pass_only_where_they_can_be_one() {
        let piece = vec![0xab; 700];
        let passes = |port, flags, payload: &[u8], aside| {
            run(&ipv4(6, 0, &tcp(5000, port, 1, flags, payload)), aside) != 0
        };
        for port in [443, 853, 8443] {
            assert!(passes(port, 0x18, &piece, Aside::IPV4_OUT), "{port}");
        }
        assert!(passes(443, 0x18, &[0x16, 0xab, 1, 2, 3, 4], Aside::IPV4_OUT));
        assert!(passes(443, 0x18, &piece, Aside::LOOPBACK_IN));
        assert!(!passes(443, 0x10, &piece, Aside::IPV4_OUT));
        assert!(!passes(443, 0x18, &piece, Aside::IPV4_IN));
        assert!(!passes(444, 0x18, &piece, Aside::IPV4_OUT));
        assert!(!passes(443, 0x18, &vec![0xab; 4000], Aside::IPV4_OUT));
        assert!(!passes(443, 0x18, &[0x17, 3, 3, 0, 1, 2], Aside::IPV4_OUT));
    }

    #[test]
    fn questions_pass_where_this_host_asks_them() {
        let mut question = QUESTION.to_vec();
        question.resize(20, 0);
        question[4..8].copy_from_slice(&[0, 1, 0, 0]);
        let passes = |packet: &[u8], aside| run(packet, aside) != 0;
        for (source, destination) in [(4000, 53), (53, 53)] {
            let asked = ipv4(17, 0, &udp(source, destination, &question));
            assert!(passes(&asked, Aside::IPV4_OUT) && passes(&asked, Aside::LOOPBACK_IN));
            assert!(!passes(&asked, Aside::IPV4_IN), "somebody else asks");
            assert!(!passes(&asked, Aside::LOOPBACK_OUT));
        }
        assert!(passes(&ipv6(17, &udp(4000, 53, &question)), Aside::IPV6_OUT));
        let translated = ipv4(17, 0, &udp(4000, 39_999, &question));
        assert!(passes(&translated, Aside::LOOPBACK_IN));
        assert!(!passes(&translated, Aside::IPV4_OUT));
        let mut other = question.clone();
        other[7] = 1;
        assert!(!passes(&ipv4(17, 0, &udp(4000, 39_999, &other)), Aside::LOOPBACK_IN));
        let stream = |payload: &[u8]| ipv4(6, 0, &tcp(4000, 53, 1, 0x18, payload));
        assert!(
            passes(&stream(&question), Aside::IPV4_OUT) && passes(&stream(&question), Aside::LOOPBACK_IN)
        );
        assert!(!passes(&stream(&question), Aside::IPV4_IN));
        assert!(!passes(&stream(&[]), Aside::IPV4_OUT));
    }

    proptest::proptest! {
        #[test]
        fn it_ends_on_every_packet(
            packet in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            protocol in proptest::sample::select(vec![0x0800u16, 0x86dd, 0x0806]),
            packet_type in 0u8..6,
        ) {
            let passed = run(&packet, Aside { protocol, packet_type, hardware_type: 1 });
            proptest::prop_assert!(passed == 0 || passed == SNAP_BYTES as u32);
        }
    }
}
