//! Executable files: what was run, what was written, and what it is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{flow::words, id::ProcessUid, time::Timestamp};

/// A file as it was at one time: one that is written to, or replaced, has another identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device (Windows: volume serial number).
    pub device: u64,
    /// Inode (Windows: file index).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sha256_is_read_as_it_is_printed() {
        let sha256 = Sha256::from_bytes(std::array::from_fn(|index| index as u8 * 7));
        assert_eq!(sha256.to_string().parse(), Ok(sha256));
        for bad in ["", "ab", &"g".repeat(64), &"+1".repeat(32), &"ä".repeat(32)] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
    }
}
