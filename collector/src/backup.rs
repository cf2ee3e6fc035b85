//! Backups of a data directory, and how it is brought back.
//!
//! A backup is made beside the collector, by whoever may read its data directory, and not by asking the collector: nobody whom
//! it answers can make it write files or read it whole. It is a directory that is there whole or not at all: `backup.json`, the
//! manifest, and in `data` what it tells of, each file with its length and BLAKE3. It is made under another name, and gets its
//! own once all of it is on the disk. It is never changed after that: the next one is another directory, in which files of days
//! that are the same are links to the older one's, or copies of them.
//!
//! It has all that the directory has: the CA's keys, the hashes of tokens, the audit log, and what was recorded. What is not
//! copied is named; what has nothing in it for another start (the lock, sockets, what was put aside) is left where it is.
//!
//! Nothing is brought back but into a directory that is empty or not there, and not before every byte was held against the
//! manifest.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Component, Path, PathBuf},
};

use alibi_proto::{
    data_directory::{check_marker, create_private, write_secret},
    time::Timestamp,
};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    access::audit::{Actor, Note, Scope},
    store::{
        FLOWS, MAIN_DATABASE,
        access::AccessStore,
        backup::{CopiedDay, copy_database, copy_flows, is_database},
    },
};

const MANIFEST: &str = "backup.json";
const DATA: &str = "data";
const PROGRAM: &str = "alibi";
/// What the manifest means, and how the files lie.
const FORMAT: u32 = 1;
/// Files of one backup.
const FILES_MAX: usize = 100_000;
/// A manifest has about 200 bytes of each.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Directories in one another.
const DEPTH_MAX: usize = 4;
/// What stands behind the name of a backup, and of what is brought back, until it is whole.
const UNFINISHED: &str = ".unfinished";
const ACCESS_DATABASE: &str = "access.db";

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    program: String,
    format: u32,
    /// Of the program that made it.
    pub version: String,
    /// When it was begun.
    pub made: Timestamp,
    /// The files below `data`.
    pub files: Vec<FileEntry>,
    /// What could not be copied, and why.
    pub left_out: Vec<String>,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where it is below `data`, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3, in hexadecimal.
    pub blake3: String,
    /// What tells the runs in a file of a day from any others, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<String>,
}

/// What came of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// What is in it.
    pub manifest: Manifest,
    /// Files of days that were taken from the older one.
    pub taken_over: usize,
}

/// Makes the backup `to` of the data directory `data`; files of days that `previous` has just so are taken from there.
///
/// # Errors
/// When `data` is none of ours, `to` has something in it, or something that is needed cannot be read or written. Nothing is left
/// of it then.
pub fn make(data: &Path, to: &Path, previous: Option<&Path>, now: Timestamp) -> Result<Made> {
    check_marker(data, PROGRAM, crate::DATA_FORMAT)?;
    check_empty(to)?;
    let previous = previous.map(|path| Ok::<_, anyhow::Error>((path, read_manifest(path)?))).transpose()?;
    let unfinished = begin(to)?;
    let made = fill(data, &unfinished, previous.as_ref().map(|(path, manifest)| (*path, manifest)), now)
        .and_then(|made| finish(&unfinished, to).map(|()| made));
    if made.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&unfinished);
    }
    made
}

/// Brings a backup back as the data directory `data`, and notes that in its audit log. What the backup has.
///
/// # Errors
/// When the backup is not whole, or not as it was made, or `data` has something in it. Nothing is left of it then.
pub fn restore(backup: &Path, data: &Path, now: Timestamp) -> Result<Manifest> {
    let manifest = read_manifest(backup)?;
    check_empty(data)?;
    let unfinished = begin(data)?;
    let restored = bring_back(backup, &manifest, &unfinished, now).and_then(|()| finish(&unfinished, data));
    if restored.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    restored.map(|()| manifest)
}

fn check_empty(directory: &Path) -> Result<()> {
    let is_empty = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| directory.display().to_string()),
    };
    ensure!(
        is_empty,
        "{} has something in it already: name a directory that is empty or not there",
        directory.display()
    );
    Ok(())
}

/// Makes the directory in which it is put together.
fn begin(to: &Path) -> Result<PathBuf> {
    let mut name = to.as_os_str().to_owned();
    name.push(UNFINISHED);
    let unfinished = PathBuf::from(name);
    let named = || unfinished.display().to_string();
    // What an earlier try left behind is worth nothing; whatever else has that name is not ours.
    match fs::read_dir(&unfinished) {
        Ok(entries) => {
            let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
            let is_ours = |name: &std::ffi::OsString| name == DATA || name == UNFINISHED;
            let names = names.with_context(named)?;
            ensure!(
                names.iter().all(is_ours) && names.iter().any(|name| name == UNFINISHED),
                "{} is in the way, and was not left behind by an earlier try: move it elsewhere",
                named()
            );
            fs::remove_dir_all(&unfinished).with_context(named)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(named),
    }
    create_private(&unfinished).with_context(named)?;
    write_secret(&unfinished.join(UNFINISHED), b"").with_context(named)?;
    create_private(&unfinished.join(DATA)).with_context(named)?;
    Ok(unfinished)
}

/// Puts it in its place, all or nothing.
fn finish(unfinished: &Path, to: &Path) -> Result<()> {
    let named = || to.display().to_string();
    fs::remove_file(unfinished.join(UNFINISHED)).with_context(named)?;
    let is_backup = unfinished.join(MANIFEST).exists();
    let whole = if is_backup { unfinished.to_owned() } else { unfinished.join(DATA) };
    sync_directory(&whole).with_context(named)?;
    match fs::remove_dir(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(named),
        _ => {}
    }
    fs::rename(&whole, to).with_context(named)?;
    if !is_backup {
        let _ = fs::remove_dir(unfinished);
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_directory(parent).with_context(named)
}

fn fill(
    data: &Path,
    unfinished: &Path,
    previous: Option<(&Path, &Manifest)>,
    now: Timestamp,
) -> Result<Made> {
    let copy = unfinished.join(DATA);
    let mut left_out = Vec::new();
    // A key is on the disk before its CA is in the database, and goes after it: those that were there before it or after.
    copy_files(data, &copy, 0, &mut left_out)?;
    for name in databases(data)? {
        copy_database(&data.join(&name), &copy.join(&name))?;
    }
    copy_files(data, &copy, 0, &mut Vec::new())?;
    let days = copy_days(data, &copy, previous, &mut left_out)?;
    let mut files = Vec::new();
    list(&copy, "", 0, &mut files)?;
    let taken_over = days.iter().filter(|day| !day.is_new && day.runs.is_some()).count();
    let mut entries = Vec::with_capacity(files.len());
    for path in files {
        let day = path.strip_prefix(FLOWS).and_then(|name| name.strip_prefix('/'));
        let day = day.and_then(|name| days.iter().find(|day| day.name == name));
        let (bytes, blake3) = hash(&copy.join(&path))?;
        entries.push(FileEntry { path, bytes, blake3, runs: day.and_then(|day| day.runs.clone()) });
    }
    let manifest = Manifest {
        program: PROGRAM.to_owned(),
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made: now,
        files: entries,
        left_out,
    };
    let text = serde_json::to_vec_pretty(&manifest)?;
    write_secret(&unfinished.join(MANIFEST), &text).context("the manifest")?;
    Ok(Made { manifest, taken_over })
}

/// The databases that lie in a data directory itself.
fn databases(data: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !is_left(&name) && is_database(&entry.path())? {
            names.push(name);
        }
    }
    names.sort();
    ensure!(
        names.iter().any(|name| name == MAIN_DATABASE),
        "there is no {MAIN_DATABASE} in {}",
        data.display()
    );
    Ok(names)
}

/// What means nothing to another start, or has its own way.
fn is_left(name: &str) -> bool {
    let ends = ["-wal", "-shm", "-journal", UNFINISHED];
    name == "lock" || name.contains(".damaged-") || ends.iter().any(|end| name.ends_with(end))
}

/// Copies all files that are no databases and are not there yet.
fn copy_files(from: &Path, to: &Path, depth: usize, left_out: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (name, kind) = (entry.file_name().to_string_lossy().into_owned(), entry.file_type()?);
        let (path, there) = (entry.path(), to.join(entry.file_name()));
        if is_left(&name) || (depth == 0 && name == FLOWS) {
            continue;
        }
        if kind.is_dir() && depth < DEPTH_MAX {
            create_private(&there)?;
            copy_files(&path, &there, depth + 1, left_out)?;
        } else if !kind.is_file() {
            if !is_socket(kind) {
                left_out.push(format!("{}: it is no file", path.display()));
            }
        } else if !there.exists() && (depth > 0 || !is_database(&path)?) {
            copy_file(&path, &there).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn is_socket(kind: fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&kind)
}

#[cfg(not(unix))]
fn is_socket(_: fs::FileType) -> bool {
    false
}

fn copy_days(
    data: &Path,
    copy: &Path,
    previous: Option<(&Path, &Manifest)>,
    left_out: &mut Vec<String>,
) -> Result<Vec<CopiedDay>> {
    let (from, to) = (data.join(FLOWS), copy.join(FLOWS));
    create_private(&to)?;
    let mut days = copy_flows(&copy.join(MAIN_DATABASE), &from, &to, |name, runs| {
        let Some((older, manifest)) = previous else { return false };
        let path = format!("{FLOWS}/{name}");
        let is_same = |entry: &&FileEntry| entry.path == path && entry.runs.as_deref() == Some(runs);
        let Some(entry) = manifest.files.iter().find(is_same) else { return false };
        let (older, there) = (older.join(DATA).join(FLOWS).join(name), to.join(name));
        // One that was changed since is worth nothing here either.
        let is_as_made =
            hash(&older).is_ok_and(|(bytes, blake3)| (bytes, &blake3) == (entry.bytes, &entry.blake3));
        is_as_made && (fs::hard_link(&older, &there).is_ok() || copy_file(&older, &there).is_ok())
    })?;
    left_out.extend(days.iter_mut().flat_map(|day| std::mem::take(&mut day.left_out)));
    Ok(days)
}

/// Copies a file for its user alone.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    io::copy(&mut File::open(from)?, &mut options.open(to)?).map(drop)
}

/// The files below a directory, by their ways from there.
fn list(directory: &Path, way: &str, depth: usize, files: &mut Vec<String>) -> Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name =
            name.to_str().with_context(|| format!("the name of {} is not UTF-8", entry.path().display()))?;
        let way = if way.is_empty() { name.to_owned() } else { format!("{way}/{name}") };
        if entry.file_type()?.is_dir() {
            ensure!(depth <= DEPTH_MAX, "{way} lies too deep");
            list(&entry.path(), &way, depth + 1, files)?;
            sync_directory(&entry.path())?;
        } else {
            files.push(way);
        }
        ensure!(files.len() <= FILES_MAX, "there are more than {FILES_MAX} files");
    }
    sync_directory(directory)?;
    Ok(())
}

/// The length and BLAKE3 of a file, which is on the disk after that, and its user's alone.
fn hash(path: &Path) -> Result<(u64, String)> {
    let named = || path.display().to_string();
    let mut file = File::options().read(true).write(true).open(path).with_context(named)?;
    let (bytes, blake3) = hash_of(&mut file, &mut io::sink()).with_context(named)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).with_context(named)?;
    file.sync_all().with_context(named)?;
    Ok((bytes, blake3))
}

/// The same of what is read, which is also written.
fn hash_of(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<(u64, String)> {
    let (mut hasher, mut bytes, mut buffer) = (blake3::Hasher::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hasher.finalize().to_hex().to_string()));
        }
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
}

/// Elsewhere a directory cannot be opened to be synced, nor need be.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn read_manifest(backup: &Path) -> Result<Manifest> {
    let path = backup.join(MANIFEST);
    let named = || format!("{} is no backup: {MANIFEST} cannot be read", backup.display());
    let mut text = Vec::new();
    File::open(&path)
        .with_context(named)?
        .take(MANIFEST_BYTES_MAX)
        .read_to_end(&mut text)
        .with_context(named)?;
    let manifest: Manifest = serde_json::from_slice(&text).with_context(named)?;
    let Manifest { program, format, version, files, .. } = &manifest;
    ensure!(program == PROGRAM, "{} is a backup of {program}", backup.display());
    ensure!(
        *format <= FORMAT,
        "{} was made by a newer version ({version}, format {format}; this one knows up to {FORMAT}): upgrade",
        backup.display()
    );
    for FileEntry { path, .. } in files {
        let is_below = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(
            !path.is_empty() && is_below(Path::new(path)),
            "{MANIFEST} names {path:?}, which is no file of a backup"
        );
    }
    Ok(manifest)
}

fn bring_back(backup: &Path, manifest: &Manifest, unfinished: &Path, now: Timestamp) -> Result<()> {
    let data = unfinished.join(DATA);
    for FileEntry { path, bytes, blake3, .. } in &manifest.files {
        let (from, to) = (backup.join(DATA).join(path), data.join(path));
        let named = || from.display().to_string();
        create_private(to.parent().unwrap_or(&data)).with_context(named)?;
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut there = options.open(&to).with_context(named)?;
        let read = hash_of(&mut File::open(&from).with_context(named)?, &mut there).with_context(named)?;
        if read != (*bytes, blake3.clone()) {
            bail!("{} is not what was backed up: use another backup", from.display());
        }
        there.flush().and_then(|()| there.sync_all()).with_context(named)?;
    }
    check_marker(&data, PROGRAM, crate::DATA_FORMAT).context("what is in the backup is no data directory")?;
    note(&data.join(ACCESS_DATABASE), manifest, now)?;
    list(&data, "", 0, &mut Vec::new())
}

/// What the log tells after the backup was made is gone, and it goes on with this.
fn note(access: &Path, manifest: &Manifest, now: Timestamp) -> Result<()> {
    let store = AccessStore::open(access)?;
    let note = Note {
        actor: Actor::Nobody,
        from: "the collector's own machine".to_owned(),
        action: "restore".to_owned(),
        detail: format!("the backup of {:.0}, made by {}", manifest.made, manifest.version),
        outcome: "ok".to_owned(),
        rows: manifest.files.len() as u64,
        scope: Scope::All,
    };
    store.append_entry(note, now, 0)?;
    Ok(())
}
