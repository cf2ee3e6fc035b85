//! A package's header, as rpm keeps it in its database. Nothing in it is believed, and nothing of it is copied.
//!
//! All numbers are big endian. Two counts of four bytes, of the entries and of the bytes in the store; the entries, four
//! numbers of four bytes each: tag, type, offset into the store, count of values; the store.

/// So many at most: what rpm itself reads.
const ENTRIES_MAX: usize = 0xffff;
const ENTRY_BYTES: usize = 16;
/// A longer name, version or release is none.
const WORD_BYTES_MAX: usize = 256;

mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const EPOCH: u32 = 1003;
    pub(super) const FILE_SIZES: u32 = 1028;
    pub(super) const FILE_STATES: u32 = 1029;
    pub(super) const FILE_MTIMES: u32 = 1034;
    pub(super) const DIRECTORY_INDEXES: u32 = 1116;
    pub(super) const BASE_NAMES: u32 = 1117;
    pub(super) const DIRECTORY_NAMES: u32 = 1118;
}

mod kind {
    pub(super) const CHAR: u32 = 1;
    pub(super) const INT32: u32 = 4;
    pub(super) const STRING: u32 = 6;
    pub(super) const STRINGS: u32 = 8;
}

/// A header.
pub(super) struct Header<'a> {
    entries: &'a [u8],
    store: &'a [u8],
}

/// A file of a package.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackageFile<'a> {
    /// With a slash at its end.
    pub(super) directory: &'a [u8],
    pub(super) name: &'a [u8],
    /// None where it has 4 GiB or more.
    pub(super) size: Option<u32>,
    /// In seconds since 1970.
    pub(super) modified_s: Option<u32>,
    /// It was put where it belongs, and no other package has put another there.
    pub(super) is_installed: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u32,
    offset: usize,
    count: usize,
}

impl<'a> Header<'a> {
    /// None if it is none.
    pub(super) fn parse(blob: &'a [u8]) -> Option<Self> {
        let entries = usize::try_from(number_at(blob, 0)?).ok()?;
        let store = usize::try_from(number_at(blob, 4)?).ok()?;
        if entries > ENTRIES_MAX {
            return None;
        }
        let (entries, rest) = blob.get(8..)?.split_at_checked(entries * ENTRY_BYTES)?;
        Some(Self { entries, store: rest.get(..store)? })
    }

    /// The package's name.
    pub(super) fn name(&self) -> Option<&'a str> {
        self.word(tag::NAME)
    }

    /// `[EPOCH:]VERSION-RELEASE`.
    pub(super) fn version(&self) -> Option<String> {
        let version = format!("{}-{}", self.word(tag::VERSION)?, self.word(tag::RELEASE)?);
        Some(match self.number(tag::EPOCH, 0) {
            Some(epoch) => format!("{epoch}:{version}"),
            None => version,
        })
    }

    /// The file with this number.
    pub(super) fn file(&self, index: usize) -> Option<PackageFile<'a>> {
        const NORMAL: u8 = 0;
        /// On a file system that others share: it is there.
        const SHARED: u8 = 3;
        let directory = usize::try_from(self.number(tag::DIRECTORY_INDEXES, index)?).ok()?;
        let state = self.find(tag::FILE_STATES, kind::CHAR).and_then(|entry| {
            let at = (index < entry.count).then(|| entry.offset.checked_add(index))??;
            self.store.get(at).copied()
        });
        Some(PackageFile {
            directory: self.text(tag::DIRECTORY_NAMES, directory)?,
            name: self.text(tag::BASE_NAMES, index)?,
            size: self.number(tag::FILE_SIZES, index),
            modified_s: self.number(tag::FILE_MTIMES, index),
            is_installed: matches!(state, None | Some(NORMAL | SHARED)),
        })
    }

    fn find(&self, tag: u32, kind: u32) -> Option<Entry> {
        let entry = self.entries.chunks_exact(ENTRY_BYTES).find(|entry| number_at(entry, 0) == Some(tag))?;
        let found = Entry {
            kind: number_at(entry, 4)?,
            offset: usize::try_from(number_at(entry, 8)?).ok()?,
            count: usize::try_from(number_at(entry, 12)?).ok()?,
        };
        (found.kind == kind).then_some(found)
    }

    fn word(&self, tag: u32) -> Option<&'a str> {
        let entry = self.find(tag, kind::STRING)?;
        let rest = self.store.get(entry.offset..)?;
        let rest = rest.get(..rest.len().min(WORD_BYTES_MAX + 1))?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        str::from_utf8(&rest[..end]).ok().filter(|word| !word.is_empty())
    }

    fn number(&self, tag: u32, index: usize) -> Option<u32> {
        let entry = self.find(tag, kind::INT32)?;
        let at = (index < entry.count).then(|| entry.offset.checked_add(index.checked_mul(4)?))??;
        number_at(self.store, at)
    }

    fn text(&self, tag: u32, index: usize) -> Option<&'a [u8]> {
        let entry = self.find(tag, kind::STRINGS)?;
        let rest = self.store.get(entry.offset..)?;
        let mut texts = rest.split_inclusive(|byte| *byte == 0);
        let text = (index < entry.count).then(|| texts.nth(index))??;
        // One that the store cuts is none.
        text.strip_suffix(&[0])
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Makes headers.
#[cfg(test)]
pub(super) mod build {
    use super::*;

    /// Directory, name, state.
    pub(in super::super) type BuiltFile = (String, String, u8);

    /// What a header is made of.
    #[derive(Clone, Default)]
    pub(in super::super) struct Parts {
        pub(in super::super) name: &'static str,
        pub(in super::super) epoch: Option<u32>,
        pub(in super::super) files: Vec<BuiltFile>,
        pub(in super::super) size: u32,
    }

    /// A header of version 1, release 2.
    pub(in super::super) fn header(parts: &Parts) -> Vec<u8> {
        let mut entries: Vec<u8> = Vec::new();
        let mut store: Vec<u8> = Vec::new();
        let mut add = |tag: u32, kind: u32, count: usize, bytes: &[u8]| {
            while kind == kind::INT32 && !store.len().is_multiple_of(4) {
                store.push(0);
            }
            for number in [tag, kind, store.len() as u32, count as u32] {
                entries.extend(number.to_be_bytes());
            }
            store.extend(bytes);
        };
        let zeroed = |text: &str| [text.as_bytes(), &[0]].concat();
        add(tag::NAME, kind::STRING, 1, &zeroed(parts.name));
        add(tag::VERSION, kind::STRING, 1, b"1\0");
        add(tag::RELEASE, kind::STRING, 1, b"2\0");
        if let Some(epoch) = parts.epoch {
            add(tag::EPOCH, kind::INT32, 1, &epoch.to_be_bytes());
        }
        let count = parts.files.len();
        let numbers = |number: &dyn Fn(u32) -> u32| -> Vec<u8> {
            (0..count as u32).flat_map(|index| number(index).to_be_bytes()).collect()
        };
        let texts =
            |text: &dyn Fn(&BuiltFile) -> Vec<u8>| -> Vec<u8> { parts.files.iter().flat_map(text).collect() };
        add(tag::FILE_SIZES, kind::INT32, count, &numbers(&|_| parts.size));
        add(tag::FILE_STATES, kind::CHAR, count, &texts(&|file| vec![file.2]));
        add(tag::FILE_MTIMES, kind::INT32, count, &numbers(&|_| 7));
        add(tag::DIRECTORY_INDEXES, kind::INT32, count, &numbers(&|index| index));
        add(tag::BASE_NAMES, kind::STRINGS, count, &texts(&|file| zeroed(&file.1)));
        add(tag::DIRECTORY_NAMES, kind::STRINGS, count, &texts(&|file| zeroed(&file.0)));
        let counts = [(entries.len() / ENTRY_BYTES) as u32, store.len() as u32];
        let mut header: Vec<u8> = counts.into_iter().flat_map(u32::to_be_bytes).collect();
        header.extend(entries);
        header.extend(store);
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        build::{Parts, header},
        *,
    };

    fn parts() -> Parts {
        let file = |directory: &str, name: &str, state| (directory.to_owned(), name.to_owned(), state);
        let files = vec![file("/usr/bin/", "tool", 0), file("/usr/lib/x/", "other", 1)];
        Parts { name: "tools", epoch: Some(3), files, size: 5 }
    }

    #[test]
    fn a_header_says_what_the_package_is_and_which_files_it_has() {
        let blob = header(&parts());
        let header = Header::parse(&blob).unwrap();
        assert_eq!((header.name(), header.version().as_deref()), (Some("tools"), Some("3:1-2")));
        let tool = PackageFile {
            directory: b"/usr/bin/",
            name: b"tool",
            size: Some(5),
            modified_s: Some(7),
            is_installed: true,
        };
        assert_eq!(header.file(0), Some(tool));
        let other = header.file(1).unwrap();
        assert_eq!(
            (other.directory, other.name, other.is_installed),
            (&b"/usr/lib/x/"[..], &b"other"[..], false)
        );
        assert_eq!(header.file(2), None);
        assert_eq!(header.file(usize::MAX), None);
    }

    #[test]
    fn a_header_that_is_cut_anywhere_is_none() {
        let blob = header(&parts());
        for length in 0..blob.len() {
            assert!(Header::parse(&blob[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_harm(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            file in prop_oneof![0..4usize, any::<usize>()],
        ) {
            let mut blob = header(&parts());
            for (at, byte) in changes {
                let at = at.index(blob.len());
                blob[at] = byte;
            }
            if let Some(header) = Header::parse(&blob) {
                let words = header.name().map(str::len).into_iter().chain(header.version().map(|version| version.len()));
                for length in words {
                    prop_assert!(length <= 2 * WORD_BYTES_MAX + 16);
                }
                header.file(file);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(blob in prop::collection::vec(any::<u8>(), 0..200), file in 0..9usize) {
            if let Some(header) = Header::parse(&blob) {
                header.name();
                header.version();
                header.file(file);
            }
        }
    }
}
