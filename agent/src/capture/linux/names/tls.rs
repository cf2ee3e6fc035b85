//! The server name in a TLS ClientHello (RFC 8446, RFC 6066), read from the beginning of what a client sends, as far as that
//! has come. Whatever the bytes are, reading them ends and never panics.

use super::text::{self, NAME_BYTES_MAX};

/// What the bytes say so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// The name that it asks for. Of an encrypted ClientHello (ECH) it is the outer name, the only one that can be seen.
    Asks(String),
    /// It ends without having asked for one.
    AsksForNone,
    /// More bytes are needed to tell.
    Unfinished,
    /// It is no ClientHello, or none that can be understood.
    Unreadable,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// The longest record (RFC 5246: 2^14 and what compression and encryption may add).
const RECORD_BYTES_MAX: usize = (1 << 14) + 2048;

/// The first bytes are those of a ClientHello; at least 6 of them are needed to tell.
pub(super) fn begins_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE, 3, _, _, _, CLIENT_HELLO, ..])
}

/// Reads what a client sent from its first byte on.
pub(super) fn read(stream: &[u8]) -> Hello {
    let message = first_message(stream);
    match server_name(&message.bytes) {
        Ok(Some(name)) => Hello::Asks(name),
        Ok(None) => Hello::AsksForNone,
        Err(Stop::End) if !message.is_final => Hello::Unfinished,
        Err(_) => Hello::Unreadable,
    }
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The bytes have ended.
    End,
    /// This cannot be.
    Wrong,
}

/// The first message of a handshake, or as much of it as there is.
struct Message {
    bytes: Vec<u8>,
    /// It is whole, or no more of it can come.
    is_final: bool,
}

/// Takes the message out of the records that it may be spread over.
fn first_message(stream: &[u8]) -> Message {
    let mut records = Reader(stream);
    let mut bytes = Vec::with_capacity(stream.len());
    while !is_final(&mut bytes) {
        let Ok(header) = records.take(5) else { return Message { bytes, is_final: false } };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[..2] != [HANDSHAKE, 3] || !(1..=RECORD_BYTES_MAX).contains(&length) {
            break;
        }
        let there = length.min(records.0.len());
        bytes.extend(records.take(there).unwrap_or_default());
        if there < length {
            let is_final = is_final(&mut bytes);
            return Message { bytes, is_final };
        }
    }
    Message { bytes, is_final: true }
}

/// Whether the message is whole, or none. Cuts off what comes after it.
fn is_final(bytes: &mut Vec<u8>) -> bool {
    match message_bytes(bytes) {
        Ok(Some(length)) if bytes.len() >= length => {
            bytes.truncate(length);
            true
        }
        Ok(_) => false,
        Err(_) => true,
    }
}

/// How long a message is with its header, as soon as the header is there.
fn message_bytes(bytes: &[u8]) -> Result<Option<usize>, Stop> {
    match *bytes {
        [kind, ..] if kind != CLIENT_HELLO => Err(Stop::Wrong),
        [_, high, middle, low, ..] => {
            let body = u32::from_be_bytes([0, high, middle, low]);
            usize::try_from(body).map(|body| Some(body + 4)).map_err(|_| Stop::Wrong)
        }
        _ => Ok(None),
    }
}

/// The first host name that the message asks for.
fn server_name(message: &[u8]) -> Result<Option<String>, Stop> {
    message_bytes(message)?;
    let mut hello = Reader(message);
    hello.take(4)?; // kind, length
    hello.take(2 + 32)?; // version, random
    hello.take_block8()?; // session
    hello.take_block16()?; // cipher suites
    hello.take_block8()?; // compression methods
    if hello.0.is_empty() {
        // Before TLS 1.2, extensions could be left out; but only the end of the message tells.
        return if message_bytes(message)? == Some(message.len()) { Ok(None) } else { Err(Stop::End) };
    }
    let length = usize::from(hello.half()?);
    let has_all = hello.0.len() >= length;
    let mut extensions = Reader(hello.0.get(..length).unwrap_or(hello.0));
    let cut = if has_all { Stop::Wrong } else { Stop::End };
    while !extensions.0.is_empty() {
        let kind = extensions.half().map_err(|_| cut)?;
        let mut extension = Reader(extensions.take_block16().map_err(|_| cut)?);
        if kind == SERVER_NAME {
            return host_name(&mut extension).map_err(|_| Stop::Wrong);
        }
    }
    if has_all { Ok(None) } else { Err(Stop::End) }
}

fn host_name(extension: &mut Reader<'_>) -> Result<Option<String>, Stop> {
    let mut names = Reader(extension.take_block16()?);
    while !names.0.is_empty() {
        let kind = names.byte()?;
        let name = names.take_block16()?;
        if kind == HOST_NAME {
            let name = name.strip_suffix(b".").unwrap_or(name);
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(Stop::Wrong);
            }
            return Ok(Some(text::name(name.split(|byte| *byte == b'.'))));
        }
    }
    Ok(None)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Stop::End)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn half(&mut self) -> Result<u16, Stop> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn take_block8(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.byte()?;
        self.take(length.into())
    }

    fn take_block16(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.half()?;
        self.take(length.into())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn block16(bytes: &[u8]) -> Vec<u8> {
        let mut block = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        block.extend(bytes);
        block
    }

    pub(in super::super) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut extension = kind.to_be_bytes().to_vec();
        extension.extend(block16(body));
        extension
    }

    pub(in super::super) fn server_name_extension(name: &[u8]) -> Vec<u8> {
        let mut entry = vec![HOST_NAME];
        entry.extend(block16(name));
        extension(SERVER_NAME, &block16(&entry))
    }

    fn message(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([8; 32]);
        body.extend(block16(&[0x13, 1, 0x13, 2]));
        body.extend([1, 0]);
        body.extend(extensions.map(|extensions| block16(&extensions.concat())).unwrap_or_default());
        let mut message = vec![CLIENT_HELLO];
        message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    fn records(message: &[u8], record_bytes: usize) -> Vec<u8> {
        let mut stream = Vec::new();
        for chunk in message.chunks(record_bytes) {
            stream.extend([HANDSHAKE, 3, 1]);
            stream.extend(block16(chunk));
        }
        stream
    }

    /// A ClientHello in one record.
    pub(in super::super) fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&message(Some(extensions)), 1 << 14)
    }

    /// As browsers send it since key shares are post-quantum: longer than a segment, the name at its end.
    pub(in super::super) fn long_hello(name: &str) -> Vec<u8> {
        hello(&[
            extension(51, &[9; 1400]),
            extension(0xfe0d, &[1; 200]),
            server_name_extension(name.as_bytes()),
        ])
    }

    #[test]
    fn the_name_is_found_wherever_it_stands() {
        let asks = Hello::Asks("cloud.example.com".to_owned());
        let name = server_name_extension(b"Cloud.Example.COM.");
        assert_eq!(read(&hello(&[name.clone(), extension(43, &[1; 9])])), asks);
        assert_eq!(read(&hello(&[extension(51, &[1; 1400]), name.clone()])), asks);
        let other = [vec![7], block16(b"what")].concat();
        let both = [other, vec![HOST_NAME], block16(b"cloud.example.com")].concat();
        assert_eq!(read(&hello(&[extension(SERVER_NAME, &block16(&both))])), asks);
        for record_bytes in [1, 3, 50, 300] {
            assert_eq!(read(&records(&message(Some(std::slice::from_ref(&name))), record_bytes)), asks);
        }
    }

    #[test]
    fn none_is_said_only_of_a_whole_hello() {
        assert_eq!(read(&records(&message(None), 1 << 14)), Hello::AsksForNone);
        let without = hello(&[extension(43, &[1; 9]), extension(16, &[2; 30])]);
        assert_eq!(read(&without), Hello::AsksForNone);
        for end in 0..without.len() {
            assert_eq!(read(&without[..end]), Hello::Unfinished, "{end}");
        }
    }

    #[test]
    fn a_name_is_told_as_soon_as_it_has_come() {
        let stream = hello(&[
            extension(51, &[1; 1400]),
            server_name_extension(b"a.example"),
            extension(21, &[0; 200]),
        ]);
        let asks = |end: usize| match read(&stream[..end]) {
            Hello::Asks(name) => name == "a.example",
            Hello::Unfinished => false,
            other => panic!("{end}: {other:?}"),
        };
        let first = (0..=stream.len()).find(|end| asks(*end)).unwrap();
        assert!(first < stream.len() - 200 && (first..=stream.len()).all(asks));
    }

    #[test]
    fn what_cannot_be_is_told_from_what_has_not_come() {
        let long = [b'a'; NAME_BYTES_MAX + 2];
        let good = hello(&[server_name_extension(b"a.example")]);
        let mut too_long_inside = good.clone();
        let length_at = good.len() - 9 - 2;
        too_long_inside[length_at] = 0x7f;
        for stream in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[HANDSHAKE, 3, 3, 0, 4, 2, 0, 0, 0],
            &[HANDSHAKE, 3, 3, 0, 0, 1],
            &[HANDSHAKE, 3, 3, 0xff, 0xff, 1],
            &hello(&[server_name_extension(&long)]),
            &hello(&[server_name_extension(b"")]),
            &hello(&[extension(SERVER_NAME, &[0])]),
            &too_long_inside,
        ] {
            assert_eq!(read(stream), Hello::Unreadable, "{stream:x?}");
        }
    }

    #[test]
    fn what_was_said_is_not_taken_back() {
        let good = hello(&[server_name_extension(b"a.example"), extension(43, &[1; 9])]);
        let changed = |at: usize, byte: u8, more: &[u8]| {
            let mut stream = good.clone();
            stream[at] = byte;
            stream.extend(more);
            stream
        };
        // Another kind of message, as soon as that can be told.
        let other = changed(5, 2, &[]);
        assert!((6..=other.len()).all(|end| read(&other[..end]) == Hello::Unreadable));
        // A message that goes on in another record, which is none: the name has been told.
        let broken = changed(6, 1, &[0; 5]);
        assert_eq!(read(&broken), Hello::Asks("a.example".to_owned()));
        // A record that goes on after the message.
        let mut longer = records(&message(None), 20);
        let end = longer.len();
        assert_eq!(std::mem::replace(&mut longer[end - 20], 21), 19);
        assert_eq!(read(&longer), Hello::AsksForNone);
        longer.push(0);
        assert_eq!(read(&longer), Hello::AsksForNone);
    }

    #[test]
    fn strange_bytes_in_a_name_are_escaped() {
        let stream = hello(&[server_name_extension(b"a\x1b\\b.\xffc")]);
        assert_eq!(read(&stream), Hello::Asks(r"a\027\\b.\255c".to_owned()));
    }

    proptest::proptest! {
        #[test]
        fn reading_ends(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = read(&bytes);
            let _ = read(&records(&bytes, 50));
            let _ = read(&hello(&[bytes]));
        }

        #[test]
        fn more_bytes_never_change_what_has_been_said(
            mut stream in proptest::sample::select(vec![
                hello(&[server_name_extension(b"a.example"), extension(43, &[1; 9])]),
                hello(&[extension(43, &[1; 9])]), records(&message(None), 20),
            ]),
            changes in proptest::collection::vec((0usize..150, proptest::num::u8::ANY), 0..4),
            more in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            for (at, byte) in changes {
                if let Some(place) = stream.get_mut(at) {
                    *place = byte;
                }
            }
            stream.extend(more);
            let mut said = Hello::Unfinished;
            for end in 0..=stream.len() {
                let now = read(&stream[..end]);
                proptest::prop_assert!(said == Hello::Unfinished || said == now, "{end}: {said:?}, {now:?}");
                said = now;
            }
        }
    }
}
