//! Names as text: lowercase, without the final dot, and so that whatever bytes a name was made of, two different names
//! never look the same, and none can do anything to a terminal.

use std::fmt::Write as _;

/// The longest name in DNS, in bytes (RFC 1035). As text it is longer only where bytes are escaped.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// A name from its labels, in the notation of zone files (RFC 1035, 5.1): a dot or backslash inside a label as `\.` and
/// `\\`, whatever is not a printable character of ASCII as `\DDD`. The root is `.`.
pub(super) fn name<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for (index, label) in labels.into_iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        for byte in label.iter().map(u8::to_ascii_lowercase) {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                0x21..=0x7e => text.push(char::from(byte)),
                // Writing to a string does not fail.
                _ => drop(write!(text, "\\{byte:03}")),
            }
        }
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lowercase_and_unmistakable() {
        for (labels, expected) in [
            (&[&b"Cloud"[..], b"EXAMPLE", b"com"][..], "cloud.example.com"),
            (&[b"a.b", b"c"], r"a\.b.c"),
            (&[b"a\\", b"c"], r"a\\.c"),
            (&[b"\x1b[2J", b"\xff\0 "], r"\027[2j.\255\000\032"),
            (&[b"_dmarc", b"xn--bcher-kva"], "_dmarc.xn--bcher-kva"),
            (&[], "."),
        ] {
            assert_eq!(name(labels.iter().copied()), expected);
        }
    }
}
