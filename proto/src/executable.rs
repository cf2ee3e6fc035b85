//! Executable files: what was run, what was written, and what it is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{flow::words, id::ProcessUid, time::Timestamp};

/// A file as it was at one time: one that is written to, or replaced, has another identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device (Windows: volume serial number).
    pub device: u64,
    /// Inode (Windows: the file's id; of one that is longer than 64 bits, as on ReFS, the first 8 bytes of its SHA-256).
    pub inode: u64,
    /// When its content was last changed.
    pub modified: Timestamp,
    /// In bytes.
    pub size: u64,
}

/// A SHA-256, printed in lowercase hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        let digits = || format!("`{text}` is not a SHA-256: it has 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(digits());
        }
        for (byte, number) in bytes.iter_mut().zip(0..) {
            *byte = u8::from_str_radix(&text[2 * number..2 * number + 2], 16).map_err(|_| digits())?;
        }
        Ok(Self(bytes))
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// An executable file was run for the first time since recording began, or was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutableRecord {
    /// When.
    pub at: Timestamp,
    /// Where it was then.
    pub path: String,
    /// Which file; none if it had gone before it could be looked at.
    pub file: Option<FileIdentity>,
    /// Its content; none where `problem` says why.
    pub sha256: Option<Sha256>,
    /// No file with this content has been seen on this host before.
    pub first_on_host: bool,
    /// The package that it belongs to, where a package database names one.
    pub package: Option<Package>,
    /// Run or written.
    pub sighting: ExecutableSighting,
    /// Who ran it first, or wrote it; where known.
    pub process: Option<ProcessUid>,
    /// Why there is no hash.
    pub problem: Option<String>,
    /// What the system says of its signature; none where executables carry none, and where there is no hash.
    pub signature: Option<Signature>,
    /// What it says of itself, where it does.
    pub version: Option<VersionInfo>,
}

words! {
    /// Why an executable was looked at.
    ExecutableSighting {
        /// It was run.
        Run = "run",
        /// It was written.
        Written = "written",
    }
}

/// A package of the system's package manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version, as the database has it.
    pub version: String,
    /// dpkg or rpm.
    pub source: String,
}

words! {
    /// What a signature is worth.
    SignatureStatus {
        /// The content is what was signed, and the host trusts who signed. Whether that was revoked since is not asked.
        Trusted = "trusted",
        /// There is a signature of the content, but the host does not trust it.
        Untrusted = "untrusted",
        /// The signature is damaged, or of another content.
        Invalid = "invalid",
        /// There is none.
        Unsigned = "unsigned",
        /// It could not be told whether there is one, or what it is worth.
        NotChecked = "not_checked",
    }
}

/// Each text of a [`Signature`] and a [`VersionInfo`] has so many bytes at most.
pub const TEXT_BYTES_MAX: usize = 256;

/// What the system of a host says of the signature of an executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// What it is worth.
    pub status: SignatureStatus,
    /// Why it is invalid, untrusted, or was not checked.
    pub reason: Option<String>,
    /// Who signed.
    pub subject: Option<String>,
    /// Who issued the signer's certificate.
    pub issuer: Option<String>,
    /// The signer's certificate.
    pub certificate_sha256: Option<Sha256>,
    /// The identifier that was signed (macOS).
    pub identifier: Option<String>,
    /// The team of the developer (macOS).
    pub team: Option<String>,
}

impl Signature {
    /// One of which nothing else is known.
    pub const fn of_status(status: SignatureStatus, reason: Option<String>) -> Self {
        Self {
            status,
            reason,
            subject: None,
            issuer: None,
            certificate_sha256: None,
            identifier: None,
            team: None,
        }
    }

    /// One that was not looked at, and why.
    pub fn not_checked(reason: &str) -> Self {
        Self::of_status(SignatureStatus::NotChecked, Some(cut(reason)))
    }

    /// It was looked at.
    pub fn is_checked(&self) -> bool {
        self.status != SignatureStatus::NotChecked
    }
}

/// What an executable says of itself (Windows). No proof of anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Who made it.
    pub company: Option<String>,
    /// What it is a part of.
    pub product: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Its version.
    pub file_version: Option<String>,
    /// What its file was called when it was made.
    pub original_file_name: Option<String>,
}

/// As much of a text as is kept ([`TEXT_BYTES_MAX`]), without blanks around it.
pub fn cut(text: &str) -> String {
    let text = text.trim();
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

impl ExecutableRecord {
    /// Takes over what `later`, another look at the same file, found out and this one did not: the hash, the signature, the
    /// version. True if it was anything.
    pub fn completed_by(&mut self, later: &Self) -> bool {
        if self.sha256.is_none() && later.sha256.is_some() {
            *self = later.clone();
            return true;
        }
        if self.sha256 != later.sha256 {
            return false;
        }
        let is_checked =
            |signature: &Option<Signature>| signature.as_ref().is_some_and(Signature::is_checked);
        let has_better = !is_checked(&self.signature)
            && (is_checked(&later.signature) || self.signature.is_none() && later.signature.is_some());
        if has_better {
            self.signature.clone_from(&later.signature);
        }
        let has_version = self.version.is_none() && later.version.is_some();
        if has_version {
            self.version.clone_from(&later.version);
        }
        has_better || has_version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_at(sha256: Option<u8>, signature: Option<SignatureStatus>) -> ExecutableRecord {
        ExecutableRecord {
            at: Timestamp::from_secs(1),
            path: "x".into(),
            file: None,
            sha256: sha256.map(|byte| Sha256::from_bytes([byte; 32])),
            first_on_host: false,
            package: None,
            sighting: ExecutableSighting::Run,
            process: None,
            problem: None,
            signature: signature.map(|status| Signature::of_status(status, None)),
            version: None,
        }
    }

    #[test]
    fn another_look_completes_and_never_contradicts() {
        use SignatureStatus::{NotChecked, Trusted, Untrusted};
        type Known = (Option<u8>, Option<SignatureStatus>);
        let check = |before: Known, later: Known, after: Known| {
            let mut record = looked_at(before.0, before.1);
            let is_changed = record.completed_by(&looked_at(later.0, later.1));
            assert_eq!(record, looked_at(after.0, after.1), "{before:?} {later:?}");
            assert_eq!(is_changed, before != after, "{before:?} {later:?}");
        };
        check((None, None), (Some(1), None), (Some(1), None));
        check((Some(1), None), (None, None), (Some(1), None));
        check((Some(1), None), (Some(1), Some(NotChecked)), (Some(1), Some(NotChecked)));
        check((Some(1), Some(NotChecked)), (Some(1), Some(Untrusted)), (Some(1), Some(Untrusted)));
        check((Some(1), Some(Untrusted)), (Some(1), Some(Trusted)), (Some(1), Some(Untrusted)));
        check((Some(1), Some(Trusted)), (Some(1), None), (Some(1), Some(Trusted)));
        check((Some(1), None), (Some(2), Some(Trusted)), (Some(1), None));
        let version = VersionInfo { company: Some("c".into()), ..VersionInfo::default() };
        let later = ExecutableRecord { version: Some(version), ..looked_at(Some(1), None) };
        let mut record = ExecutableRecord { first_on_host: true, ..looked_at(Some(1), Some(Trusted)) };
        assert!(record.completed_by(&later) && !record.completed_by(&later));
        assert!(record.first_on_host && record.version == later.version && record.signature.is_some());
    }

    #[test]
    fn texts_are_bounded() {
        assert_eq!(cut("  Example Corp.\n"), "Example Corp.");
        let long = "ü".repeat(TEXT_BYTES_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), TEXT_BYTES_MAX - 1);
        assert!(Signature::not_checked(&long).reason.is_some_and(|reason| reason.len() == TEXT_BYTES_MAX));
    }

    #[test]
    fn a_sha256_is_read_as_it_is_printed() {
        let sha256 = Sha256::from_bytes(std::array::from_fn(|index| index as u8 * 7));
        assert_eq!(sha256.to_string().parse(), Ok(sha256));
        for bad in ["", "ab", &"g".repeat(64), &"+1".repeat(32), &"ä".repeat(32)] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
    }
}
