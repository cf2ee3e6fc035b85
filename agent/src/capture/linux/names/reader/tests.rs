use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::capture::linux::names::{
    dns::tests::{a, message, question, record},
    filter::{
        SNAP_BYTES,
        tests::{Aside, ipv4, run, tcp, udp},
    },
    tls::tests::{extension, hello, long_hello, server_name_extension},
};

fn at(ms: u64) -> Moment {
    Moment {
        wall: Timestamp::from_nanos(1_764_000_000_000_000_000 + ms * 1_000_000),
        boot_ns: ms * 1_000_000,
    }
}

fn outbound(ms: u64) -> Sighting {
    Sighting { network_namespace: 1, interface: 2, socket: None, direction: Direction::Outbound, at: at(ms) }
}

/// Reads packets in turn, a millisecond apart, and settles.
fn facts(packets: &[Vec<u8>], seen: Sighting) -> Vec<Fact> {
    let mut reader = Reader::default();
    let mut facts = Vec::new();
    for (ms, packet) in packets.iter().enumerate() {
        let seen = Sighting { at: at(ms as u64), ..seen };
        reader.read(seen, packet, &mut facts);
    }
    give_up(&mut reader, &mut facts);
    facts.into_iter().map(|observation| observation.fact).collect()
}

/// As if nothing more came.
fn give_up(reader: &mut Reader, facts: &mut Vec<Observation>) {
    reader.settle(at(1_500), facts);
    assert!(reader.settle(at(2_000), facts));
}

fn names(facts: &[Fact]) -> Vec<Option<&str>> {
    let names = facts.iter().filter_map(|fact| match fact {
        Fact::ServerName(hello) => Some(hello.name.as_deref()),
        Fact::NameResolved(resolution) => Some(Some(&*resolution.name)),
        _ => None,
    });
    names.collect()
}

fn losses(facts: &[Fact]) -> Vec<(u64, &str, Timestamp, Option<Timestamp>)> {
    let losses = facts.iter().filter_map(|fact| match fact {
        Fact::Coverage(change) => match &change.grade {
            Grade::Lost { count, reason } => Some((*count, &**reason, change.from, change.to)),
            _ => None,
        },
        _ => None,
    });
    losses.collect()
}

fn answer_packet(name: &str) -> Vec<u8> {
    ipv4(17, 0, &udp(53, 4000, &message(name, vec![record(name, 60, a("198.51.100.9"))])))
}

fn segments(sequence: u32, stream: &[u8], segment_bytes: usize) -> Vec<Vec<u8>> {
    let last = stream.chunks(segment_bytes).count() - 1;
    let segment = |(index, chunk): (usize, &[u8])| {
        let flags = if index == last { 0x18 } else { 0x10 };
        let sequence = sequence.wrapping_add((index * segment_bytes) as u32);
        ipv4(6, 0, &tcp(5000, 443, sequence, flags, chunk))
    };
    stream.chunks(segment_bytes).enumerate().map(segment).collect()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend(message);
    framed
}

#[test]
fn an_answer_becomes_a_fact() {
    let facts = facts(&[answer_packet("Cloud.Example.com")], outbound(0));
    let expected = ObservedResolution {
        name: "cloud.example.com".into(),
        aliases: vec![],
        addresses: vec![IpAddr::from(Ipv4Addr::new(198, 51, 100, 9))],
        ttl_s: 60,
        server: "192.0.2.1:53".parse().unwrap(),
        local: "198.51.100.7:4000".parse().unwrap(),
        process: None,
        network_namespace: Some(1),
    };
    assert_eq!(facts, [Fact::NameResolved(Box::new(expected))]);
}

#[test]
fn a_hello_becomes_a_fact_with_this_end_first() {
    let packet = ipv4(6, 0, &tcp(5000, 8000, 1, 0x18, &hello(&[server_name_extension(b"a.example")])));
    for direction in [Direction::Outbound, Direction::Inbound] {
        let facts = facts(std::slice::from_ref(&packet), Sighting { direction, ..outbound(0) });
        let [Fact::ServerName(hello)] = &facts[..] else { panic!("{facts:?}") };
        let client = "192.0.2.1:5000".parse().unwrap();
        let end = if direction == Direction::Outbound { hello.local } else { hello.remote };
        assert_eq!((hello.name.as_deref(), hello.direction, end), (Some("a.example"), direction, client));
    }
    let nameless = ipv4(6, 0, &tcp(5000, 8000, 1, 0x18, &hello(&[extension(43, &[1; 9])])));
    assert_eq!(names(&facts(&[nameless], outbound(0))), [None]);
}

#[test]
fn a_hello_in_pieces_is_put_together() {
    let stream = long_hello("cloud.example.com");
    let mut pieces = segments(u32::MAX - 700, &stream, 1448);
    assert_eq!(pieces.len(), 2);
    for piece in &pieces {
        assert_eq!(run(piece, Aside::IPV4_OUT), SNAP_BYTES as u32);
    }
    let whole = facts(&pieces, outbound(0));
    assert_eq!((names(&whole), losses(&whole)), (vec![Some("cloud.example.com")], vec![]));
    // One that is sent again changes nothing.
    pieces.insert(1, pieces[0].clone());
    pieces.push(pieces[1].clone());
    assert_eq!(names(&facts(&pieces, outbound(0))), [Some("cloud.example.com")]);
}

#[test]
fn a_hello_is_told_before_its_end_if_its_name_is() {
    let stream = hello(&[server_name_extension(b"a.example"), extension(51, &[1; 1400])]);
    let pieces = segments(1, &stream, 1000);
    let facts = facts(&pieces, outbound(0));
    assert_eq!((names(&facts), losses(&facts)), (vec![Some("a.example")], vec![]));
}

#[test]
fn the_rest_of_a_hello_is_waited_for_and_then_it_is_lost() {
    let pieces = segments(1, &long_hello("cloud.example.com"), 1448);
    let mut reader = Reader::default();
    let mut facts = Vec::new();
    reader.read(outbound(10), &pieces[0], &mut facts);
    assert_eq!(reader.wants_turn_within(), None);
    assert!(!reader.settle(at(1_000), &mut facts) && !reader.settle(at(1_499), &mut facts));
    assert_eq!((reader.wants_turn_within(), &facts[..]), (Some(WAIT_MAX / 2), &[][..]));
    assert!(reader.settle(at(1_500), &mut facts));
    assert_eq!(reader.wants_turn_within(), None);
    let facts: Vec<_> = facts.into_iter().map(|observation| observation.fact).collect();
    assert_eq!(losses(&facts), [(1, LATE_PIECES, at(10).wall, Some(at(1_500).wall))]);
    let mut facts = Vec::new();
    reader.read(outbound(1_600), &pieces[1], &mut facts);
    assert!(reader.settle(at(1_700), &mut facts) && facts.is_empty());
}

#[test]
fn nobody_outside_can_have_it_wait_or_lose() {
    let inbound = Sighting { direction: Direction::Inbound, ..outbound(0) };
    let pieces = segments(1, &long_hello("cloud.example.com"), 1448);
    let strange = ipv4(6, 0, &tcp(5000, 443, 1, 0x18, &[0x16, 3, 1, 0, 0, 1, 0]));
    let mut reader = Reader::default();
    let mut facts = Vec::new();
    for packet in [&pieces[0], &strange] {
        reader.read(inbound, packet, &mut facts);
        assert!(reader.settle(at(1), &mut facts));
    }
    assert_eq!(facts, []);
}

#[test]
fn what_cannot_be_read_is_counted() {
    let fragment = ipv4(17, 0x2000, &udp(53, 4000, &[0, 1, 0x81, 0x80, 0, 0]));
    let strange = |id| ipv4(17, 0, &udp(53, 4000, &[id, 1, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 0xff]));
    let hello = ipv4(6, 0, &tcp(5000, 443, 1, 0x18, &[0x16, 3, 1, 0, 0, 1, 0]));
    let facts = facts(&[strange(1), fragment, strange(2), hello], outbound(0));
    let instant = |ms, until_ms| (at(ms).wall, Some(after(at(until_ms))));
    let (first, second, third) = (instant(0, 2), instant(1, 1), instant(3, 3));
    assert_eq!(
        losses(&facts),
        [
            (1, CUT_ANSWER, second.0, second.1),
            (2, STRANGE_ANSWER, first.0, first.1),
            (1, STRANGE_HELLO, third.0, third.1)
        ]
    );
}

#[test]
fn a_packet_that_crosses_two_interfaces_counts_once() {
    let mut reader = Reader::default();
    let mut facts = Vec::new();
    for interface in [2, 3] {
        reader.read(Sighting { interface, ..outbound(0) }, &answer_packet("a.example"), &mut facts);
    }
    reader.read(outbound(1), &answer_packet("a.example"), &mut facts);
    assert_eq!(facts.len(), 2);
}

#[test]
fn answers_over_tcp_are_cut_out_of_the_stream() {
    let stream = ["a.example", "b.example"]
        .map(|name| framed(&message(name, vec![record(name, 60, a("198.51.100.9"))])))
        .concat();
    for segment_bytes in [1, 2, 7, 40, stream.len()] {
        let packets: Vec<_> = stream
            .chunks(segment_bytes)
            .enumerate()
            .map(|(index, chunk)| ipv4(6, 0, &tcp(53, 4000, 9 + (index * segment_bytes) as u32, 0x18, chunk)))
            .collect();
        let facts = facts(&packets, outbound(0));
        assert_eq!((names(&facts), losses(&facts)), (vec![Some("a.example"), Some("b.example")], vec![]));
    }
    let middle = ipv4(6, 0, &tcp(53, 4000, 9, 0x18, &[0, 3, 1, 2, 3]));
    assert_eq!(losses(&facts(&[middle], outbound(0))).len(), 1);
}

#[test]
fn only_answers_that_were_asked_for_are_believed() {
    const NUMBER: u16 = 7; // as the answers have it
    let asks = |port, number, name: &str| ipv4(17, 0, &udp(port, 53, &question(number, name)));
    let check = |question: Option<Vec<u8>>, seen: Sighting, waited_ms: u64, answer: Sighting, want: bool| {
        let mut reader = Reader::that_hears_questions();
        let mut facts = Vec::new();
        if let Some(question) = question {
            reader.read(seen, &question, &mut facts);
        }
        let answer = Sighting { at: at(waited_ms), direction: Direction::Inbound, ..answer };
        reader.read(answer, &answer_packet("cloud.example.com"), &mut facts);
        reader.settle(at(waited_ms), &mut facts);
        let facts: Vec<_> = facts.into_iter().map(|observation| observation.fact).collect();
        let forged = (1, UNASKED, at(waited_ms).wall, Some(after(at(waited_ms))));
        let (heard, lost) =
            if want { (vec![Some("cloud.example.com")], vec![]) } else { (vec![], vec![forged]) };
        assert_eq!((names(&facts), losses(&facts)), (heard, lost));
    };
    let name = "CLOUD.example.com";
    let (here, there) = (outbound(0), Sighting { network_namespace: 2, ..outbound(0) });
    check(Some(asks(4000, NUMBER, name)), here, 9, here, true);
    check(Some(asks(4000, NUMBER, name)), here, 31_000, here, false);
    check(Some(asks(4000, NUMBER, name)), there, 9, here, false);
    check(Some(asks(4001, NUMBER, name)), here, 9, here, false);
    check(Some(asks(4000, NUMBER + 1, name)), here, 9, here, false);
    check(Some(asks(4000, NUMBER, "other.example.com")), here, 9, here, false);
    check(None, here, 9, here, false);
    // What others ask is no question of this host, and an answer is none either.
    check(Some(asks(4000, NUMBER, name)), Sighting { direction: Direction::Inbound, ..here }, 9, here, false);
    check(Some(ipv4(17, 0, &udp(4000, 53, &message(name, vec![])))), here, 9, here, false);
    // A translated resolver asks and answers at different ends.
    let translated = ipv4(17, 0, &udp(4000, 39_999, &question(NUMBER, name)));
    check(Some(translated), here, 9, here, true);
    // At a socket, it is the socket that counts: its port may have been translated.
    let at_socket = |socket| Sighting { socket: Some(socket), ..here };
    check(Some(asks(1024, NUMBER, name)), at_socket(5), 9, at_socket(5), true);
    check(Some(asks(4000, NUMBER, name)), at_socket(5), 9, at_socket(6), false);
}

#[test]
fn answers_over_tcp_need_a_question_and_are_not_waited_for_without() {
    let whole = framed(&message("a.example", vec![record("a.example", 60, a("198.51.100.9"))]));
    let answer = |sequence, bytes: &[u8]| ipv4(6, 0, &tcp(53, 4000, sequence, 0x18, bytes));
    let inbound = Sighting { direction: Direction::Inbound, ..outbound(1) };
    let mut reader = Reader::that_hears_questions();
    let mut facts = Vec::new();
    reader.read(inbound, &answer(9, &whole[..8]), &mut facts);
    assert!(reader.settle(at(1), &mut facts), "nobody outside can have it wait");
    reader.read(
        outbound(2),
        &ipv4(6, 0, &tcp(4000, 53, 1, 0x18, &framed(&question(7, "a.example")))),
        &mut facts,
    );
    let (first, rest) = whole.split_at(8);
    reader.read(inbound, &answer(100, first), &mut facts);
    assert!(!reader.settle(at(3), &mut facts));
    reader.read(inbound, &answer(108, rest), &mut facts);
    assert!(reader.settle(at(4), &mut facts));
    let other = framed(&message("b.example", vec![record("b.example", 60, a("198.51.100.9"))]));
    reader.read(inbound, &answer(100 + whole.len() as u32, &other), &mut facts);
    reader.settle(at(5), &mut facts);
    let facts: Vec<_> = facts.into_iter().map(|observation| observation.fact).collect();
    assert_eq!(names(&facts), [Some("a.example")]);
    assert_eq!(
        losses(&facts).iter().map(|(count, reason, ..)| (*count, *reason)).collect::<Vec<_>>(),
        [(1, UNASKED), (1, UNASKED)]
    );
}

#[test]
fn whoever_begins_message_after_message_holds_back_nothing_for_long() {
    let pieces = segments(1, &long_hello("cloud.example.com"), 1448);
    let mut reader = Reader::default();
    let mut facts = Vec::new();
    let mut held_since = 0;
    for step in 0..200u64 {
        let ms = step * 50;
        let mut piece = pieces[0].clone();
        piece[24..26].copy_from_slice(&(5_000 + step as u16).to_be_bytes()); // the port
        reader.read(outbound(ms), &piece, &mut facts);
        if reader.settle(at(ms), &mut facts) {
            held_since = ms;
        }
        assert!(ms - held_since <= 600, "held back since {held_since} at {ms}");
    }
    assert!(held_since > 9_000);
}

proptest::proptest! {
    #[test]
    fn whatever_comes_is_read(
        packets in proptest::collection::vec(
            (proptest::collection::vec(proptest::num::u8::ANY, 0..80), 0u8..5, 0u32..200), 0..30,
        ),
        hears in proptest::bool::ANY,
    ) {
        let mut reader = if hears { Reader::that_hears_questions() } else { Reader::default() };
        let mut facts = Vec::new();
        let stream = long_hello("cloud.example.com");
        for (ms, (bytes, kind, sequence)) in packets.into_iter().enumerate() {
            let rest = stream.get(sequence as usize..).unwrap_or_default();
            let packet = match kind {
                0 => bytes,
                1 => ipv4(17, 0, &udp(53, 4000, &bytes)),
                4 => ipv4(17, 0, &udp(4000, 53, &bytes)),
                2 => ipv4(6, 0, &tcp(53, 4000, sequence, 0x18, &bytes)),
                _ => ipv4(6, 0, &tcp(5000, 443, sequence, 0x18, &rest[..rest.len().min(300)])),
            };
            reader.read(outbound(ms as u64), &packet, &mut facts);
            reader.settle(at(ms as u64), &mut facts);
        }
        reader.settle(at(9_000), &mut facts);
        proptest::prop_assert!(reader.settle(at(9_999), &mut facts));
    }

    #[test]
    fn a_hello_cut_anywhere_in_any_order_has_its_name(
        cuts in proptest::collection::btree_set(7usize..1_700, 0..5),
        seed in proptest::num::u64::ANY,
    ) {
        let stream = long_hello("cloud.example.com");
        let mut from = 0;
        let mut packets = Vec::new();
        for to in cuts.into_iter().chain([stream.len()]) {
            packets.push(ipv4(6, 0, &tcp(5000, 443, from as u32, 0x18, &stream[from..to])));
            from = to;
        }
        // The first comes first: it is what tells that this is a hello.
        fastrand::Rng::with_seed(seed).shuffle(&mut packets[1..]);
        let facts = facts(&packets, outbound(0));
        proptest::prop_assert_eq!(names(&facts), [Some("cloud.example.com")]);
    }
}
