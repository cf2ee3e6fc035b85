//! The addresses in a DNS answer, and what a DNS question asks. Whatever the bytes are, reading them ends and never panics.
//!
//! Only the question and the answer section are read: resolvers take addresses from there. Of those sections, every
//! address counts for the name that was asked for, whoever's it is said to be: some resolvers take it so.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use simple_dns::{
    CLASS, Name, Packet,
    rdata::{RData, SVCB, SVCParam},
};

use super::text;

/// An answer with addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Of the question.
    pub(super) number: u16,
    /// What was asked for: lowercase, without the final dot.
    pub(super) name: String,
    /// What it is an alias of, in order.
    pub(super) aliases: Vec<String>,
    /// Canonical, in the order of the answer, each once.
    pub(super) addresses: Vec<IpAddr>,
    /// The shortest, in seconds.
    pub(super) ttl_s: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its number, which the answer repeats.
    pub(super) number: u16,
    /// Lowercase, without the final dot.
    pub(super) name: String,
}

/// It is no DNS answer, or none that can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

pub(super) const HEADER_BYTES: usize = 12;
/// The bit QR of the third byte: an answer.
const IS_ANSWER: u8 = 0x80;
const OPERATION: u8 = 0x78;
/// The bit Z of the fourth byte. RFC 1035 says that it is to be ignored; the parser does not.
const RESERVED: u8 = 0x40;
const OUTCOME: u8 = 0x0f;
/// A question takes at least a byte for its name, its type and its class.
const QUESTION_BYTES_MIN: usize = 5;
/// A record takes at least a byte for its name, and its type, class, time to live and length.
const RECORD_BYTES_MIN: usize = 11;
/// Longer messages are not read: few answers with addresses are, and a hostile one takes time with the square of its length.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// Longer chains of aliases are cut; resolvers follow no more than half as many.
const ALIASES_MAX: usize = 32;

/// Whether a message says of itself that it is an answer.
pub(super) fn is_answer(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & IS_ANSWER != 0)
}

/// Reads a question. None if it is none that an answer with addresses can belong to.
pub(super) fn read_question(message: &[u8]) -> Option<Asked> {
    let &[_, _, flags, ..] = message.get(..HEADER_BYTES)? else { return None };
    if flags & (IS_ANSWER | OPERATION) != 0 || message.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let mut message = message.to_vec();
    // Only the question itself is read, and the first of several, as resolvers do.
    message[3] &= !RESERVED;
    message[4..6].copy_from_slice(&1u16.to_be_bytes());
    message[6..HEADER_BYTES].fill(0);
    let packet = Packet::parse(&message).ok()?;
    Some(Asked { number: packet.id(), name: text_of(&packet.questions.first()?.qname) })
}

/// The questions in a segment of a stream (RFC 1035, 4.2.2): whole messages with their lengths before them, or one whose
/// length came in a segment of its own.
pub(super) fn read_questions(segment: &[u8]) -> Vec<Asked> {
    let mut asked = Vec::new();
    let mut rest = segment;
    while let &[high, low, ref after @ ..] = rest
        && let Some(message) = after.get(..usize::from(u16::from_be_bytes([high, low])))
        && let Some(question) = read_question(message)
    {
        asked.push(question);
        rest = &after[message.len()..];
    }
    if asked.is_empty() {
        asked.extend(read_question(segment));
    }
    asked
}

/// Reads a message. None if it is no answer, or one without addresses.
pub(super) fn read(message: &[u8]) -> Result<Option<Answer>, Unreadable> {
    let &[_, _, flags, outcome, ref counts @ ..] = message.get(..HEADER_BYTES).ok_or(Unreadable)? else {
        return Err(Unreadable);
    };
    let &[questions_high, questions_low, answers_high, answers_low, ..] = counts else {
        return Err(Unreadable);
    };
    let questions = usize::from(u16::from_be_bytes([questions_high, questions_low]));
    let answers = usize::from(u16::from_be_bytes([answers_high, answers_low]));
    if flags & IS_ANSWER == 0 || flags & OPERATION != 0 || outcome & OUTCOME != 0 || answers == 0 {
        return Ok(None);
    }
    // The parser makes room for as many as are announced: they must at least fit.
    if message.len() > MESSAGE_BYTES_MAX
        || questions * QUESTION_BYTES_MIN + answers * RECORD_BYTES_MIN > message.len() - HEADER_BYTES
    {
        return Err(Unreadable);
    }
    // What is not needed is not parsed, so that it cannot fail either.
    let mut message = message.to_vec();
    message[3] &= !RESERVED;
    message[8..HEADER_BYTES].fill(0);
    let packet = Packet::parse(&message).map_err(|_| Unreadable)?;
    Ok(answer(&packet))
}

fn answer(packet: &Packet<'_>) -> Option<Answer> {
    let records = || packet.answers.iter().filter(|record| record.class == CLASS::IN);
    let asked = packet.questions.first().map(|question| &question.qname);
    let mut name = text_of(asked.or(records().next().map(|record| &record.name))?);
    let mut addresses = Vec::new();
    let mut ttl_s = u32::MAX;
    let mut alias_of = Vec::new();
    for record in records() {
        let before = addresses.len();
        match &record.rdata {
            RData::A(a) => addresses.push(IpAddr::from(Ipv4Addr::from(a.address))),
            RData::AAAA(aaaa) => addresses.push(IpAddr::from(Ipv6Addr::from(aaaa.address)).to_canonical()),
            RData::HTTPS(https) => hints(&https.0, &mut addresses),
            RData::SVCB(svcb) => hints(svcb, &mut addresses),
            RData::CNAME(target) => {
                ttl_s = ttl_s.min(record.ttl);
                if alias_of.len() < ALIASES_MAX {
                    alias_of.push((text_of(&record.name), text_of(&target.0)));
                }
            }
            _ => {}
        }
        if addresses.len() > before {
            ttl_s = ttl_s.min(record.ttl);
        }
    }
    let mut seen = HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    if addresses.is_empty() {
        return None;
    }
    let asked = name.clone();
    let mut aliases = Vec::new();
    while let Some(at) = alias_of.iter().position(|(alias, _)| *alias == name) {
        name = alias_of.swap_remove(at).1;
        aliases.push(name.clone());
    }
    Some(Answer { number: packet.id(), name: asked, aliases, addresses, ttl_s })
}

/// The addresses that a service binding (RFC 9460) hints at.
fn hints(binding: &SVCB<'_>, addresses: &mut Vec<IpAddr>) {
    for parameter in binding.iter_params() {
        match parameter {
            SVCParam::Ipv4Hint(hints) => {
                addresses.extend(hints.iter().map(|bits| IpAddr::from(Ipv4Addr::from(*bits))))
            }
            SVCParam::Ipv6Hint(hints) => {
                addresses.extend(hints.iter().map(|bits| IpAddr::from(Ipv6Addr::from(*bits)).to_canonical()));
            }
            _ => {}
        }
    }
}

fn text_of(name: &Name<'_>) -> String {
    text::name(name.as_bytes())
}

/// What a stream over TCP (RFC 1035, 4.2.2) begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Framed<'a> {
    /// A message, and how many bytes of the stream it takes.
    Message(&'a [u8], usize),
    /// Not all of a message yet.
    Unfinished,
    /// No answer begins here.
    Unreadable,
}

/// The first message of a stream.
pub(super) fn first_message(stream: &[u8]) -> Framed<'_> {
    let &[high, low, ref rest @ ..] = stream else { return Framed::Unfinished };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < HEADER_BYTES || rest.get(2).is_some_and(|flags| flags & IS_ANSWER == 0) {
        return Framed::Unreadable;
    }
    match rest.get(..length) {
        Some(message) => Framed::Message(message, length + 2),
        None => Framed::Unfinished,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use simple_dns::{Label, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE, rdata};

    use super::*;

    pub(in super::super) fn record<'a>(name: &'a str, ttl: u32, data: RData<'a>) -> ResourceRecord<'a> {
        ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, data)
    }

    pub(in super::super) fn a(address: &str) -> RData<'static> {
        RData::A(rdata::A::from(address.parse::<Ipv4Addr>().unwrap()))
    }

    fn aaaa(address: &str) -> RData<'static> {
        RData::AAAA(rdata::AAAA::from(address.parse::<Ipv6Addr>().unwrap()))
    }

    fn cname(name: &str) -> RData<'_> {
        RData::CNAME(rdata::CNAME(Name::new_unchecked(name)))
    }

    fn packet<'a>(asked: &'a str, kind: TYPE, records: Vec<ResourceRecord<'a>>) -> Packet<'a> {
        let mut packet = Packet::new_reply(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::AUTHENTIC_DATA);
        packet.questions.push(Question::new(
            Name::new_unchecked(asked),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.answers = records;
        packet
    }

    /// An answer on the wire.
    pub(in super::super) fn message(asked: &str, records: Vec<ResourceRecord<'_>>) -> Vec<u8> {
        packet(asked, TYPE::A, records).build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn addresses_come_with_their_chain_and_shortest_life() {
        let message = message(
            "Cloud.Example.COM",
            vec![
                record("edge.example.net", 300, cname("pop.example.org")),
                record("cloud.example.com", 20, cname("edge.example.net")),
                record("pop.example.org", 60, a("198.51.100.7")),
                record("pop.example.org", 60, a("198.51.100.8")),
                record("pop.example.org", 60, a("198.51.100.7")),
            ],
        );
        let expected = Answer {
            number: 7,
            name: "cloud.example.com".into(),
            aliases: vec!["edge.example.net".into(), "pop.example.org".into()],
            addresses: vec!["198.51.100.7".parse().unwrap(), "198.51.100.8".parse().unwrap()],
            ttl_s: 20,
        };
        assert_eq!(read(&message), Ok(Some(expected)));
    }

    #[test]
    fn addresses_are_canonical_and_hints_count() {
        let mut binding = SVCB::new(1, Name::new_unchecked("."));
        binding.set_ipv4hint(&[u32::from(Ipv4Addr::new(192, 0, 2, 1))]);
        binding.set_ipv6hint(&[u128::from("2001:db8::1".parse::<Ipv6Addr>().unwrap())]);
        let records = vec![
            record("a.example", 9, aaaa("::ffff:192.0.2.7")),
            record("a.example", 8, aaaa("2001:db8::7")),
            record("a.example", 7, RData::HTTPS(rdata::HTTPS(binding))),
        ];
        let message = packet("a.example", TYPE::AAAA, records).build_bytes_vec().unwrap();
        let answer = read(&message).unwrap().unwrap();
        let expected: Vec<IpAddr> = ["192.0.2.7", "2001:db8::7", "192.0.2.1", "2001:db8::1"]
            .into_iter()
            .map(|address| address.parse().unwrap())
            .collect();
        assert_eq!((answer.addresses, answer.ttl_s), (expected, 7));
    }

    /// A question on the wire.
    pub(in crate::capture::linux) fn question(number: u16, name: &str) -> Vec<u8> {
        let mut packet = Packet::new_query(number);
        packet.questions.push(Question::new(
            Name::new_unchecked(name),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn questions_are_read() {
        let asked = |number, name: &str| Asked { number, name: name.into() };
        let one = question(7, "Cloud.Example.com");
        assert_eq!(read_question(&one), Some(asked(7, "cloud.example.com")));
        let mut extended = one.clone();
        extended[10..12].copy_from_slice(&[0, 1]);
        extended.extend([0xff; 5]);
        assert_eq!(read_question(&extended), Some(asked(7, "cloud.example.com")));
        let answer = message("a.example", vec![record("a.example", 5, a("192.0.2.1"))]);
        assert!(read_question(&answer).is_none() && is_answer(&answer) && !is_answer(&one));
        for length in 0..one.len() {
            assert_eq!(read_question(&one[..length]), None, "{length}");
        }
        let framed = |message: &[u8]| {
            let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
            framed.extend(message);
            framed
        };
        let two = question(8, "b.example");
        let both = [framed(&one), framed(&two)].concat();
        assert_eq!(read_questions(&both), [asked(7, "cloud.example.com"), asked(8, "b.example")]);
        assert_eq!(read_questions(&two), [asked(8, "b.example")]);
        assert_eq!(read_questions(&[0, 9]), []);
    }

    #[test]
    fn what_has_no_addresses_gives_nothing() {
        let mut refused = packet("a.example", TYPE::A, vec![record("a.example", 1, a("192.0.2.1"))]);
        *refused.rcode_mut() = RCODE::NameError;
        let mut question = packet("a.example", TYPE::A, vec![record("a.example", 1, a("192.0.2.1"))]);
        question.remove_flags(PacketFlag::RESPONSE);
        for packet in [
            refused,
            question,
            packet("a.example", TYPE::A, vec![]),
            packet("a.example", TYPE::CNAME, vec![record("a.example", 1, cname("b.example"))]),
        ] {
            assert_eq!(read(&packet.build_bytes_vec().unwrap()), Ok(None), "{packet:?}");
        }
    }

    #[test]
    fn what_is_not_needed_cannot_fail() {
        let mut message = message("a.example", vec![record("a.example", 5, a("192.0.2.1"))]);
        message[3] |= RESERVED;
        message[8..12].copy_from_slice(&[0, 1, 0, 2]);
        message.extend([0xff; 30]);
        assert_eq!(read(&message).unwrap().unwrap().ttl_s, 5);
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let records = vec![
            record("a.example", 5, cname("b.example")),
            record("b.example", 5, cname("a.example")),
            record("b.example", 5, a("192.0.2.1")),
        ];
        let answer = read(&message("a.example", records)).unwrap().unwrap();
        assert_eq!(answer.aliases, ["b.example", "a.example"]);
    }

    #[test]
    fn strange_labels_are_escaped() {
        let labels = [Label::new_unchecked(&b"a.\x07"[..]), Label::new_unchecked(&b"EXAMPLE"[..])];
        let mut packet = packet("x", TYPE::A, vec![record("y", 5, a("192.0.2.1"))]);
        packet.questions[0].qname = Name::new_with_labels(&labels);
        let answer = read(&packet.build_bytes_vec().unwrap()).unwrap().unwrap();
        assert_eq!(answer.name, r"a\.\007.example");
    }

    #[test]
    fn what_cannot_be_is_unreadable() {
        let good = message("a.example", vec![record("a.example", 5, a("192.0.2.1"))]);
        for length in (0..HEADER_BYTES).chain(HEADER_BYTES + 1..good.len()) {
            assert_eq!(read(&good[..length]), Err(Unreadable), "{length}");
        }
        let mut greedy = good.clone();
        greedy[6..8].fill(0xff);
        assert_eq!(read(&greedy), Err(Unreadable));
        let mut circular = good;
        let at = HEADER_BYTES as u8;
        circular[12..14].copy_from_slice(&[0xc0, at]);
        assert_eq!(read(&circular), Err(Unreadable));
    }

    #[test]
    fn a_stream_is_cut_into_messages() {
        let message = message("a.example", vec![record("a.example", 5, a("192.0.2.1"))]);
        let mut stream = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
        stream.extend(&message);
        for end in 0..stream.len() {
            assert_eq!(first_message(&stream[..end]), Framed::Unfinished, "{end}");
        }
        stream.extend([0, 50, 1]);
        assert_eq!(first_message(&stream), Framed::Message(&message[..], message.len() + 2));
        assert_eq!(first_message(&[0, 11]), Framed::Unreadable);
        assert_eq!(first_message(&[0, 50, 0, 1, 0x01]), Framed::Unreadable);
    }

    #[test]
    fn a_message_made_to_take_long_takes_not_long() {
        // Names that point back from pointer to pointer, as often as fits.
        let mut count = 1u16;
        let mut bytes = vec![0, 1, 0x81, 0x80, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([0, 0, 10, 0, 1, 0, 0, 0, 9, 0x07, 0xd0]);
        let hops_from = bytes.len();
        bytes.push(0);
        bytes.push(0);
        while bytes.len() < hops_from + 2_000 {
            let before = u16::try_from(bytes.len() - 2).unwrap() | 0xc000;
            bytes.extend(before.to_be_bytes());
        }
        let last = u16::try_from(bytes.len() - 2).unwrap() | 0xc000;
        while bytes.len() + 16 <= MESSAGE_BYTES_MAX {
            bytes.extend(last.to_be_bytes());
            bytes.extend([0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
            count += 1;
        }
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        let began = std::time::Instant::now();
        let answer = read(&bytes).unwrap().unwrap();
        println!("{count} records of {} bytes read in {:?}", bytes.len(), began.elapsed());
        assert_eq!(answer.addresses.len(), 1);
        assert!(began.elapsed() < std::time::Duration::from_secs(1));
    }

    proptest::proptest! {
        #[test]
        fn reading_ends(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = read(&bytes);
            // So that something is parsed at all.
            if let Some(header) = bytes.get_mut(2..10) {
                header.copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2, 0, 0]);
                let _ = read(&bytes);
            }
            let _ = first_message(&bytes);
        }

        #[test]
        fn reading_any_kind_of_record_ends(
            kind in 0u16..300,
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
            length_is_wrong_by in -3i32..4,
        ) {
            let mut bytes = vec![0, 1, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1, 0xc0, 12];
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 9]);
            let length = (data.len() as i32 + length_is_wrong_by).max(0) as u16;
            bytes.extend(length.to_be_bytes());
            bytes.extend(&data);
            let _ = read(&bytes);
        }

        #[test]
        fn reading_what_is_nearly_right_ends(
            changes in proptest::collection::vec((0usize..120, proptest::num::u8::ANY), 1..6),
            length in 12usize..140,
        ) {
            let mut bytes = message("a.example.com", vec![
                record("a.example.com", 5, cname("b.example.net")),
                record("b.example.net", 5, a("192.0.2.1")),
                record("b.example.net", 5, aaaa("2001:db8::7")),
            ]);
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(length);
            if let Ok(Some(answer)) = read(&bytes) {
                proptest::prop_assert!(!answer.addresses.is_empty() && answer.aliases.len() <= ALIASES_MAX);
            }
        }
    }
}
