//! What Windows writes in a way of its own: paths, times, ids of files, and what became of a signature. Pure, and tested on
//! every system.

use std::io;

use alibi_proto::executable::SignatureStatus;
use sha2::Digest as _;

/// The path by which a file on a drive or volume of this machine is opened: it means this very file, whatever its name is,
/// and is as long as it may be.
///
/// # Errors
/// When it leads elsewhere. A path on another machine is not even looked at: its server may never answer, or make this
/// machine log in to it.
pub(crate) fn local_path(path: &str) -> io::Result<String> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::Unsupported, why.to_owned()));
    if let Some(verbatim) = path.strip_prefix(r"\\?\") {
        return match verbatim.as_bytes() {
            [drive, b':', b'\\', ..] if drive.is_ascii_alphabetic() => Ok(path.to_owned()),
            _ if begins_with(verbatim, "Volume{") => Ok(path.to_owned()),
            _ if begins_with(verbatim, r"UNC\") => refused(ELSEWHERE),
            _ => refused(DEVICE),
        };
    }
    let path = path.replace('/', r"\");
    match path.as_bytes() {
        [drive, b':', b'\\', ..] if drive.is_ascii_alphabetic() => Ok(format!(r"\\?\{path}")),
        [b'\\', b'\\', b'.' | b'?', b'\\', ..] | [b'\\', b'?', b'?', b'\\', ..] => refused(DEVICE),
        [b'\\', b'\\', ..] => refused(ELSEWHERE),
        _ if begins_with(&path, r"\Device\") => refused(DEVICE),
        _ => refused("its path does not say on which drive it is"),
    }
}

pub(crate) const ELSEWHERE: &str = "it is on another machine, where the agent opens nothing";
const DEVICE: &str = "its path is that of a device, which the agent does not open";

/// The root of the drive or volume of a [`local_path`], as the system wants it: with a backslash at its end.
pub(crate) fn root_of(local: &str) -> &str {
    let from = r"\\?\".len();
    let end = local[from..].find('\\').map_or(local.len(), |end| from + end + 1);
    &local[..end]
}

fn begins_with(text: &str, beginning: &str) -> bool {
    text.get(..beginning.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(beginning))
}

/// A time in steps of 100 ns since 1601 in nanoseconds since 1970; 0 before that.
pub(crate) fn since_1970_ns(time: i64) -> u64 {
    const TICKS_1601_TO_1970: i64 = 116_444_736_000_000_000;
    u64::try_from(time.saturating_sub(TICKS_1601_TO_1970)).unwrap_or(0).saturating_mul(100)
}

/// The id of a file in 64 bits. That of NTFS has no more: the number of its record, and how often that was used. Of a longer
/// one (ReFS) it is the beginning of its SHA-256: nobody can look a file up by it, but two files have two.
pub(crate) fn file_number(id: [u8; 16]) -> u64 {
    let number = u128::from_le_bytes(id);
    u64::try_from(number).unwrap_or_else(|_| {
        sha2::Sha256::digest(id).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    })
}

/// What the answer of WinVerifyTrust means, with the reason in words; `error` is the system's last error after it.
///
/// What is not known here was not checked, as far as anybody can tell.
pub(crate) fn trust(answer: u32, error: u32) -> (SignatureStatus, Option<String>) {
    use SignatureStatus::{Invalid, NotChecked, Trusted, Unsigned, Untrusted};
    let (status, reason) = match answer {
        0 => return (Trusted, None),
        // The answer is the same where it could not be looked for; only the last error tells.
        NO_SIGNATURE if [NO_SIGNATURE, FORM_UNKNOWN, PROVIDER_UNKNOWN].contains(&error) => {
            return (Unsigned, None);
        }
        FORM_UNKNOWN => return (Unsigned, None),
        NO_SIGNATURE => {
            return (NotChecked, Some(format!("the system says 0x{answer:08x}, because of 0x{error:08x}")));
        }
        0x8009_0006 | 0x8009_6004 => (Invalid, "a signature in it is wrong"),
        0x8009_6010 => (Invalid, "its content is not what was signed"),
        0x8009_6002 => (Invalid, "the certificate of who signed is missing"),
        0x8009_6003 | 0x8009_6005 => (Invalid, "the signature of the time is wrong"),
        0x8009_6011 | 0x800b_0108 | 0x8009_3100..=0x8009_31ff => (Invalid, "the signature is malformed"),
        0x800b_0101 => (Untrusted, "a certificate had expired"),
        0x800b_0109 | 0x800b_010d => (
            Untrusted,
            "the certificates lead to a root that the host does not trust, or has not fetched yet",
        ),
        0x800b_010a | 0x800b_0112 => (
            Untrusted,
            "the certificates lead to no root that the host trusts, or one between has not been fetched",
        ),
        0x800b_010c | 0x8009_2010 => (Untrusted, "a certificate was revoked"),
        0x800b_0111 => (Untrusted, "the host is told not to trust who signed"),
        0x800b_0004 => (Untrusted, "the host does not trust it"),
        0x8009_2026 => (Untrusted, "the settings of the host do not allow it"),
        0x800b_0106 | 0x800b_0110 => (Untrusted, "the certificate is not one to sign programs with"),
        0x800b_0102..=0x800b_0114 | 0x8009_6019 | 0x8009_601e => (Untrusted, "a certificate does not hold"),
        _ => (NotChecked, "the system gives an answer that is not known"),
    };
    (status, Some(format!("{reason} (0x{answer:08x})")))
}

/// TRUST_E_NOSIGNATURE.
const NO_SIGNATURE: u32 = 0x800b_0100;
/// TRUST_E_SUBJECT_FORM_UNKNOWN: nothing of this form can have a signature in it.
const FORM_UNKNOWN: u32 = 0x800b_0003;
/// TRUST_E_PROVIDER_UNKNOWN.
const PROVIDER_UNKNOWN: u32 = 0x800b_0001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_known_is_no_verdict() {
        use SignatureStatus::{Invalid, NotChecked, Trusted, Unsigned, Untrusted};
        let check = |answer: u32, error: u32, status| {
            let (told, reason) = trust(answer, error);
            assert_eq!(told, status, "0x{answer:08x} 0x{error:08x}");
            assert_eq!(reason.is_none(), [Trusted, Unsigned].contains(&told), "{reason:?}");
            assert!(reason.is_none_or(|reason| reason.contains(&format!("0x{answer:08x}"))));
        };
        check(0, 5, Trusted);
        check(NO_SIGNATURE, NO_SIGNATURE, Unsigned);
        check(NO_SIGNATURE, FORM_UNKNOWN, Unsigned);
        check(FORM_UNKNOWN, 0, Unsigned);
        // Access denied, or nothing at all: it was not looked for.
        check(NO_SIGNATURE, 5, NotChecked);
        check(NO_SIGNATURE, 0, NotChecked);
        check(PROVIDER_UNKNOWN, PROVIDER_UNKNOWN, NotChecked);
        check(0x8007_0005, 0, NotChecked);
        check(u32::MAX, 0, NotChecked);
        check(0x8009_6010, 0, Invalid);
        check(0x8009_3105, 0, Invalid);
        check(0x800b_0101, 0, Untrusted);
        check(0x800b_0109, 0, Untrusted);
        check(0x800b_010c, 0, Untrusted);
        check(0x800b_0113, 0, Untrusted);
    }

    #[test]
    fn only_what_is_on_this_machine_is_opened() {
        let check = |path: &str, opened: Result<&str, &str>| {
            let found = local_path(path).map_err(|problem| problem.to_string());
            assert_eq!(found.as_deref().map_err(|problem| problem.as_str()), opened, "{path}");
        };
        check(r"C:\Windows\x.exe", Ok(r"\\?\C:\Windows\x.exe"));
        check("c:/Windows/x.exe ", Ok(r"\\?\c:\Windows\x.exe "));
        check(r"\\?\D:\x.exe", Ok(r"\\?\D:\x.exe"));
        check(r"\\?\Volume{00000000-0000-0000-0000-000000000000}\x", {
            Ok(r"\\?\Volume{00000000-0000-0000-0000-000000000000}\x")
        });
        for elsewhere in
            [r"\\server\share\x.exe", "//server/share/x.exe", r"\\?\UNC\server\x", r"\\?\unc\s\x"]
        {
            check(elsewhere, Err(ELSEWHERE));
        }
        for device in [
            r"\\.\pipe\x",
            r"\\.\C:\x",
            r"\\?\GLOBALROOT\Device\Mup\server\share\x",
            r"\\?\pipe\x",
            r"\\?\",
            r"\??\C:\x",
            r"\Device\HarddiskVolume3\x.exe",
            r"\device\Mup\server\share\x",
            "//./pipe/x",
        ] {
            check(device, Err(DEVICE));
        }
        for nowhere in [r"x.exe", r"\x.exe", "", r"C:x.exe", r"C:", r"1:\x", r"\\"] {
            assert!(local_path(nowhere).is_err(), "{nowhere}");
        }
    }

    #[test]
    fn a_path_has_a_root() {
        for (path, root) in [
            (r"\\?\C:\Windows\x.exe", r"\\?\C:\"),
            (r"\\?\Volume{0}\x", r"\\?\Volume{0}\"),
            (r"\\?\Volume{0}", r"\\?\Volume{0}"),
        ] {
            assert_eq!(root_of(path), root);
        }
    }

    #[test]
    fn times_are_told_from_1970_on() {
        // 2026-01-01 00:00:00.0000001.
        assert_eq!(since_1970_ns(134_116_992_000_000_001), 1_767_225_600_000_000_100);
        assert_eq!([since_1970_ns(0), since_1970_ns(-1), since_1970_ns(i64::MIN)], [0; 3]);
        assert_eq!(since_1970_ns(116_444_736_000_000_001), 100);
        assert_eq!(since_1970_ns(i64::MAX), u64::MAX, "in the year 30828");
    }

    #[test]
    fn a_short_id_is_its_own_number_and_long_ones_differ() {
        let id = |low: u64, high: u64| (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
        assert_eq!(file_number(id(0x0005_0000_0000_1234, 0)), 0x0005_0000_0000_1234);
        assert_eq!(file_number(id(u64::MAX, 0)), u64::MAX);
        let long: Vec<u64> = [(7, 1), (1, 7), (7, 2)].map(|(low, high)| file_number(id(low, high))).into();
        assert!(long[0] != long[1] && long[1] != long[2] && long[0] != long[2] && !long.contains(&7));
    }
}
