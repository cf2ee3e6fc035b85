use std::io::Cursor;

use proptest::prelude::*;

use super::*;

const RESOURCES_AT: u32 = 0x200;
const RESOURCES_ADDRESS: u32 = 0x4000;

fn text(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A block of a version, as rc.exe makes them.
fn block(key: &str, is_text: bool, value: Vec<u8>, children: &[Vec<u8>]) -> Vec<u8> {
    let value_length = if is_text { value.len() / 2 } else { value.len() };
    let mut bytes = vec![0; 2];
    bytes.extend((value_length as u16).to_le_bytes());
    bytes.extend(u16::from(is_text).to_le_bytes());
    bytes.extend(text(key));
    bytes = padded(bytes);
    bytes.extend(value);
    for child in children {
        bytes = padded(bytes);
        bytes.extend(child);
    }
    let length = (bytes.len() as u16).to_le_bytes();
    bytes[..2].copy_from_slice(&length);
    bytes
}

fn version(strings: &[(&str, &str)]) -> Vec<u8> {
    let strings: Vec<_> = strings.iter().map(|(key, value)| block(key, true, text(value), &[])).collect();
    let table = block("040904B0", true, vec![], &strings);
    let translation = block("Translation", false, vec![9, 4, 0xb0, 4], &[]);
    let translations = block("VarFileInfo", true, vec![], &[translation]);
    let info = block("StringFileInfo", true, vec![], &[table]);
    // VS_FIXEDFILEINFO has 52 bytes. The order of the two is free.
    block("VS_VERSION_INFO", false, vec![7; 52], &[translations, info])
}

/// A tree of resources: an icon, and `resource` as the version.
fn tree(resource: &[u8]) -> Vec<u8> {
    let mut tree = Vec::new();
    let directory = |ids: &[(u32, u32)]| {
        let mut bytes = vec![0; 14];
        bytes.extend((ids.len() as u16).to_le_bytes());
        for (id, target) in ids {
            bytes.extend(id.to_le_bytes());
            bytes.extend(target.to_le_bytes());
        }
        bytes
    };
    let below = |at: u32| IMAGE_RESOURCE_DATA_IS_DIRECTORY | at;
    // 32, 24 and 24 bytes; then the entry of the version, and the version.
    tree.extend(directory(&[(3, 80), (RT_VERSION.into(), below(32))]));
    tree.extend(directory(&[(1, below(56))]));
    tree.extend(directory(&[(0x409, 80)]));
    for number in [RESOURCES_ADDRESS + 96, resource.len() as u32, 0, 0] {
        tree.extend(number.to_le_bytes());
    }
    tree.extend(resource);
    tree
}

/// A program with nothing in it but resources.
fn program(is_64_bits: bool, resources: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[60] = 64;
    bytes.extend(b"PE\0\0");
    let header_bytes: u16 = if is_64_bits { 112 } else { 96 };
    let optional_bytes = header_bytes + 16 * 8;
    let machine: u16 = if is_64_bits { 0x8664 } else { 0x14c };
    let numbers = [machine, 1, 0, 0, 0, 0, 0, 0, optional_bytes, 0x22];
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    let mut optional = vec![0; usize::from(header_bytes)];
    let magic: u16 = if is_64_bits { 0x20b } else { 0x10b };
    optional[..2].copy_from_slice(&magic.to_le_bytes());
    let last = optional.len() - 4;
    optional[last] = 16;
    optional.resize(usize::from(optional_bytes), 0);
    let directory = usize::from(header_bytes) + 8 * IMAGE_DIRECTORY_ENTRY_RESOURCE;
    let length = resources.len() as u32;
    optional[directory..directory + 4].copy_from_slice(&RESOURCES_ADDRESS.to_le_bytes());
    optional[directory + 4..directory + 8].copy_from_slice(&length.to_le_bytes());
    bytes.extend(optional);
    bytes.extend(b".rsrc\0\0\0");
    let section = [length, RESOURCES_ADDRESS, length, RESOURCES_AT, 0, 0, 0, 0x4000_0040];
    bytes.extend(section.iter().flat_map(|number| number.to_le_bytes()));
    assert!(bytes.len() <= RESOURCES_AT as usize);
    bytes.resize(RESOURCES_AT as usize, 0);
    bytes.extend(resources);
    bytes
}

fn read(program: &[u8]) -> Option<VersionInfo> {
    version_of(Cursor::new(program))
}

const STRINGS: [(&str, &str); 7] = [
    ("CompanyName", "Example Corp."),
    ("FileDescription", "Zoë’s tool"),
    ("FileVersion", "1.2.3.4"),
    ("InternalName", "tool"),
    ("OriginalFilename", "TOOL.EXE"),
    ("ProductName", " Tool Suite "),
    ("Comments", ""),
];

#[test]
fn a_program_tells_its_version() {
    let expected = VersionInfo {
        company: Some("Example Corp.".into()),
        product: Some("Tool Suite".into()),
        description: Some("Zoë’s tool".into()),
        file_version: Some("1.2.3.4".into()),
        original_file_name: Some("TOOL.EXE".into()),
    };
    for is_64_bits in [true, false] {
        let program = program(is_64_bits, &tree(&version(&STRINGS)));
        assert_eq!(read(&program), Some(expected.clone()));
    }
}

#[test]
fn what_is_no_version_is_none() {
    let none = |bytes: &[u8]| assert_eq!(read(bytes), None);
    none(b"");
    none(b"#!/bin/sh\n");
    none(&program(true, &[]));
    none(&program(true, &tree(b"")));
    none(&program(true, &tree(&version(&[]))));
    none(&program(true, &tree(&version(&[("CompanyName", " ")]))));
    let whole = program(true, &tree(&version(&STRINGS)));
    assert!(read(&whole).is_some());
    for length in 0..whole.len() {
        assert_eq!(read(&whole[..length]), None, "cut to {length} bytes");
    }
}

#[test]
fn no_version_is_without_bounds() {
    let long = "ü".repeat(5_000);
    let told = read(&program(true, &tree(&version(&[("CompanyName", &long)])))).unwrap();
    assert_eq!(told.company.map(|company| company.len()), Some(256));
    let mut large = tree(&version(&STRINGS));
    large.resize(RESOURCE_BYTES_MAX as usize + 200, 0);
    let size = RESOURCE_BYTES_MAX + 1;
    large[84..88].copy_from_slice(&size.to_le_bytes());
    assert_eq!(read(&program(true, &large)), None);
    large[84..88].copy_from_slice(&RESOURCE_BYTES_MAX.to_le_bytes());
    assert!(read(&program(true, &large)).is_some());
}

#[test]
fn a_tree_that_leads_into_itself_has_an_end() {
    let mut tree = tree(&version(&STRINGS));
    // Every directory leads to the root.
    for at in [28, 52, 76] {
        tree[at..at + 4].copy_from_slice(&IMAGE_RESOURCE_DATA_IS_DIRECTORY.to_le_bytes());
    }
    assert_eq!(read(&program(true, &tree)), None);
    // Blocks without a length.
    let mut empty = version(&STRINGS);
    let whole = empty.len();
    empty.extend([0; 64]);
    let length = (empty.len() as u16).to_le_bytes();
    empty[..2].copy_from_slice(&length);
    assert!(strings_of(&empty).is_some() && whole < empty.len());
    empty[100..].fill(0);
    assert_eq!(strings_of(&empty), None);
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(
        places in proptest::collection::vec((0..1_400_usize, any::<u8>()), 1..8),
        length in 0..1_600_usize,
    ) {
        let mut program = program(true, &tree(&version(&STRINGS)));
        for (place, byte) in places {
            let place = place % program.len();
            program[place] = byte;
        }
        program.truncate(length);
        let _ = read(&program);
    }
}
