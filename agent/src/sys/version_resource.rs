//! The version resource of a Windows program (VS_VERSIONINFO), read from its file: nothing is loaded, and nothing is asked of
//! the system. Pure, but for reading.
//!
//! Little is read of a file, and it has little room to lead astray: of the tree of resources three levels, a bounded number
//! of entries in each, and one resource of bounded size. What is not as it should be is no version.

use std::io::{Read, Seek};

use alibi_proto::executable::{VersionInfo, cut};
use object::{
    LittleEndian as LE, ReadCache, ReadRef,
    pe::{
        IMAGE_DIRECTORY_ENTRY_RESOURCE, IMAGE_NT_OPTIONAL_HDR64_MAGIC, IMAGE_RESOURCE_DATA_IS_DIRECTORY,
        ImageDosHeader, ImageNtHeaders32, ImageNtHeaders64, ImageResourceDataEntry, ImageResourceDirectory,
        ImageResourceDirectoryEntry, RT_VERSION,
    },
    read::pe::{ImageNtHeaders, SectionTable, optional_header_magic},
};

/// Of one directory of resources so many entries are looked at.
const ENTRIES_MAX: u64 = 4_096;
/// A larger resource is no version; the usual one has about 1 KiB.
const RESOURCE_BYTES_MAX: u32 = 64 * 1024;
/// Blocks in a version that are looked at.
const BLOCKS_MAX: usize = 1_024;

/// What the program in `file` says of itself; none if it says nothing, or is none.
pub(crate) fn version_of(file: impl Read + Seek) -> Option<VersionInfo> {
    let data = ReadCache::new(file);
    let resource = match optional_header_magic(&data).ok()? {
        IMAGE_NT_OPTIONAL_HDR64_MAGIC => version_resource::<ImageNtHeaders64>(&data)?,
        _ => version_resource::<ImageNtHeaders32>(&data)?,
    };
    let version = strings_of(resource)?;
    (version != VersionInfo::default()).then_some(version)
}

/// The bytes of the first version resource.
fn version_resource<'data, Headers: ImageNtHeaders>(data: impl ReadRef<'data>) -> Option<&'data [u8]> {
    let mut at = u64::from(ImageDosHeader::parse(data).ok()?.nt_headers_offset());
    let (headers, directories) = Headers::parse(data, &mut at).ok()?;
    let sections = headers.sections(data, at).ok()?;
    let (resources, _) = directories.get(IMAGE_DIRECTORY_ENTRY_RESOURCE)?.address_range();
    let (root, _) = sections.pe_file_range_at(resources)?;
    let tree = Tree { data, root: root.into() };
    let of_type = tree.entry(0, Some(RT_VERSION.into()))?;
    // Whatever its name, and whatever its language.
    let named = tree.entry(directory(of_type)?, None)?;
    let in_language = tree.entry(directory(named)?, None)?;
    tree.resource(&sections, in_language)
}

/// Where a directory is in the tree, if that is what an entry leads to.
fn directory(target: u32) -> Option<u64> {
    (target & IMAGE_RESOURCE_DATA_IS_DIRECTORY != 0)
        .then_some((target & !IMAGE_RESOURCE_DATA_IS_DIRECTORY).into())
}

/// The tree of resources. Places in it are told from its root.
struct Tree<R> {
    data: R,
    root: u64,
}

impl<'data, R: ReadRef<'data>> Tree<R> {
    /// What the first entry of the directory at `at` leads to; that with the number `id`, if that is asked for.
    fn entry(&self, at: u64, id: Option<u32>) -> Option<u32> {
        let mut at = self.root.checked_add(at)?;
        let directory: &ImageResourceDirectory = self.data.read(&mut at).ok()?;
        let named: u64 = directory.number_of_named_entries.get(LE).into();
        let entries = named + u64::from(directory.number_of_id_entries.get(LE));
        let entries: &[ImageResourceDirectoryEntry] =
            self.data.read_slice_at(at, usize::try_from(entries.min(ENTRIES_MAX)).ok()?).ok()?;
        let is_it = |entry: &&ImageResourceDirectoryEntry| id.is_none_or(|id| entry.name_or_id.get(LE) == id);
        Some(entries.iter().find(is_it)?.offset_to_data_or_directory.get(LE))
    }

    fn resource(&self, sections: &SectionTable<'data>, entry: u32) -> Option<&'data [u8]> {
        let entry: &ImageResourceDataEntry = self.data.read_at(self.root.checked_add(entry.into())?).ok()?;
        let (at, bytes_max) = sections.pe_file_range_at(entry.offset_to_data.get(LE))?;
        let bytes = entry.size.get(LE).min(bytes_max);
        if bytes > RESOURCE_BYTES_MAX {
            return None;
        }
        self.data.read_bytes_at(at.into(), bytes.into()).ok()
    }
}

/// The strings of the first language in a VS_VERSIONINFO.
fn strings_of(resource: &[u8]) -> Option<VersionInfo> {
    let root = Block::first_in(resource)?;
    let info = root.children().find(|block| block.key == "StringFileInfo")?;
    let table = info.children().next()?;
    let mut version = VersionInfo::default();
    for string in table.children() {
        let field = match string.key.as_str() {
            "CompanyName" => &mut version.company,
            "ProductName" => &mut version.product,
            "FileDescription" => &mut version.description,
            "FileVersion" => &mut version.file_version,
            "OriginalFilename" => &mut version.original_file_name,
            _ => continue,
        };
        *field = field.take().or_else(|| string.text());
    }
    Some(version)
}

/// A block of a version: its length, that of its value, its type (2 bytes each), its key as UTF-16 that ends with 0; then, each
/// at a multiple of 4 bytes from the beginning, its value and the blocks in it.
struct Block<'a> {
    key: String,
    is_text: bool,
    value_length: usize,
    /// From the value on.
    content: &'a [u8],
    length: usize,
}

impl<'a> Block<'a> {
    const HEADER_BYTES: usize = 6;

    /// The block that `bytes` begins with. It has at least the length of its header.
    fn first_in(bytes: &'a [u8]) -> Option<Self> {
        let number = |at: usize| Some(usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
        let length = number(0)?;
        let block = bytes.get(..length)?;
        let key: Vec<u16> = characters(block.get(Self::HEADER_BYTES..)?);
        let value_at = aligned(Self::HEADER_BYTES + 2 * (key.len() + 1));
        Some(Self {
            key: String::from_utf16_lossy(&key),
            is_text: number(4)? == 1,
            value_length: number(2)?,
            content: block.get(value_at..).unwrap_or_default(),
            length,
        })
    }

    /// The value of a string, unless it is empty.
    fn text(&self) -> Option<String> {
        // Its length is told in characters, and by some programs wrongly, with bytes.
        let text = cut(&String::from_utf16_lossy(&characters(self.content)));
        (!text.is_empty()).then_some(text)
    }

    fn children(&self) -> impl Iterator<Item = Block<'a>> + use<'a> {
        let value_bytes = if self.is_text { 2 * self.value_length } else { self.value_length };
        let mut rest = self.content.get(aligned(value_bytes)..).unwrap_or_default();
        let next = move || {
            let child = Block::first_in(rest)?;
            rest = rest.get(aligned(child.length)..).unwrap_or_default();
            Some(child)
        };
        std::iter::from_fn(next).take(BLOCKS_MAX)
    }
}

/// UTF-16 up to the first 0.
fn characters(bytes: &[u8]) -> Vec<u16> {
    let characters = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    characters.take_while(|character| *character != 0).collect()
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

#[cfg(test)]
mod tests;
