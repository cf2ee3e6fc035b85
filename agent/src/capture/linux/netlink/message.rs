//! Netlink messages as bytes: a header of 16, then what its kind says, then attributes, all in the byte order of the
//! machine and aligned to 4 (linux/netlink.h). Pure.
//!
//! A kernel newer than this code adds attributes and lengthens structures. So what is read is looked for by its number and
//! its offset, and everything else is left alone.

/// `NLMSG_ERROR`
pub(in crate::capture::linux) const ERROR: u16 = 2;
/// `NLMSG_DONE`
pub(in crate::capture::linux) const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`
pub(in crate::capture::linux) const DUMP: u16 = 0x301;
/// `NLM_F_DUMP_INTR`
pub(in crate::capture::linux) const INTERRUPTED: u16 = 0x10;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: without the bits that say how an attribute is encoded.
const ATTRIBUTE_KIND: u16 = 0x3fff;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::linux) struct Message<'a> {
    pub(in crate::capture::linux) kind: u16,
    pub(in crate::capture::linux) flags: u16,
    pub(in crate::capture::linux) sequence: u32,
    pub(in crate::capture::linux) body: &'a [u8],
}

/// The messages in a datagram. One that does not fit in it ends the walk.
pub(in crate::capture::linux) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let body = datagram.get(HEADER..length)?;
        let (kind, flags, sequence) = (u16_at(datagram, 4)?, u16_at(datagram, 6)?, u32_at(datagram, 8)?);
        let message = Message { kind, flags, sequence, body };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes that follow a fixed structure of `after` bytes: kind and value.
pub(in crate::capture::linux) fn attributes(body: &[u8], after: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(after.next_multiple_of(4)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        let kind = u16_at(rest, 2)? & ATTRIBUTE_KIND;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A request of `kind` that the kernel answers.
pub(in crate::capture::linux) fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

pub(in crate::capture::linux) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_ne_bytes)
}

pub(in crate::capture::linux) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_ne_bytes)
}

pub(in crate::capture::linux) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_ne_bytes)
}

pub(in crate::capture::linux) fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_and_attributes_are_found_behind_each_other() {
        let body =
            [vec![9; 8], attribute(1, b"abc"), attribute(0x8002, b""), attribute(3, b"12345")].concat();
        let datagram = [request(16, DUMP, 7, &body), request(DONE, 0, 8, &[1, 2, 3, 4])].concat();
        let found: Vec<_> = messages(&datagram).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].flags, found[0].sequence), (16, DUMP, 7));
        assert_eq!((found[1].kind, found[1].body), (DONE, &[1, 2, 3, 4][..]));
        let values: Vec<_> = attributes(found[0].body, 8).collect();
        assert_eq!(values, [(1, &b"abc"[..]), (2, b""), (3, b"12345")]);
    }

    #[test]
    fn what_is_cut_short_ends_the_walk_and_nothing_else() {
        let body = [vec![0; 4], attribute(1, b"abcd"), attribute(2, b"efgh")].concat();
        let whole = [request(1, 0, 1, &body), request(2, 0, 2, &body)].concat();
        for length in 0..whole.len() {
            let cut = &whole[..length];
            let found: Vec<_> = messages(cut).collect();
            assert_eq!(found.len(), length / (HEADER + body.len()), "{length}");
            for message in found {
                assert_eq!(attributes(message.body, 4).count(), 2);
            }
        }
        for length in 0..body.len() {
            assert!(attributes(&body[..length], 4).count() <= 1);
        }
        // A length of nothing must not be walked for ever.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64], 0).count(), 0);
    }
}
