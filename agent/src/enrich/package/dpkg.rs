//! dpkg: `/var/lib/dpkg`.
//!
//! `info/PACKAGE[:ARCHITECTURE].list` has the paths of a package, `status` its version, `updates/` what has changed in
//! `status` while dpkg works, `diversions` which paths of a package are elsewhere (in threes: the path, where it is
//! instead, the package that has the path to itself; `:` for none).
//!
//! A system has some hundred thousand paths, too many to keep. What is kept is 8 bytes for each: 48 bits of a hash, and
//! the number of the package. A path that is found so is then looked for in the list of that package itself, so what is
//! said is exact. Building that takes some tens of milliseconds; when the database has changed, only the lists that have
//! are read again. It is forgotten when it has not been needed for a while.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use alibi_proto::executable::Package;

/// A database with more paths than this is not indexed: 8 MiB.
const PATHS_MAX: usize = 1 << 20;
/// A file of the database that is larger is not read. `status` has about 2 KiB for each package.
const FILE_BYTES_MAX: u64 = 256 << 20;
const DIVERSIONS_MAX: usize = 16_384;

/// Where `/usr` has been merged, the same file has two names.
const MERGED: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

pub(super) struct Dpkg {
    root: PathBuf,
    directory: PathBuf,
    index: Option<Index>,
    hasher: RandomState,
}

#[derive(Default)]
struct Index {
    version: Version,
    /// Sorted: a path's hash in the upper 48 bits, the place of its list below.
    paths: Vec<u64>,
    lists: Vec<List>,
    installed: HashMap<String, Installed>,
    diversions: Vec<Diversion>,
    /// Those of [`MERGED`] that are links into `/usr`.
    merged: Vec<&'static str>,
}

/// When the parts of the database were changed. None: not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Version {
    status: Option<SystemTime>,
    lists: Option<SystemTime>,
    diversions: Option<SystemTime>,
}

/// A list of paths.
struct List {
    /// `bash`, `libc6:amd64`; empty if it is gone.
    name: String,
    modified: SystemTime,
    bytes: u64,
}

struct Diversion {
    from: String,
    to: String,
    /// Who has the path to itself.
    by: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Installed {
    version: String,
    /// Its files are in place.
    is_whole: bool,
}

impl Dpkg {
    pub(super) fn open(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            directory: root.join("var/lib/dpkg"),
            index: None,
            hasher: RandomState::new(),
        }
    }

    pub(super) fn forget(&mut self) {
        self.index = None;
    }

    pub(super) fn owner(&mut self, path: &str) -> Option<Package> {
        self.refresh();
        let index = self.index.as_ref()?;
        let wanted = index.diverted(path);
        let mut names = vec![wanted.path.to_owned()];
        names.extend(index.other_name(wanted.path));
        let list = names.iter().find_map(|name| {
            let mut lists = index.candidates(self.hash(name));
            lists.find(|list| wanted.may_be(list) && self.has(list, name))
        })?;
        let name = without_architecture(list);
        let installed = self.update_of(name).or_else(|| index.installed.get(name).cloned())?;
        installed.is_whole.then(|| Package {
            name: name.to_owned(),
            version: installed.version,
            source: "dpkg".to_owned(),
        })
    }

    #[cfg(test)]
    pub(super) fn figures(&self) -> String {
        let index = self.index.as_ref().unwrap();
        format!("{} paths of {} packages", index.paths.len(), index.lists.len())
    }

    fn hash(&self, path: &str) -> u64 {
        self.hasher.hash_one(path) & !0xffff
    }

    fn refresh(&mut self) {
        let version = self.version();
        if version.status.is_none() {
            self.index = None;
            return;
        }
        let mut index = self.index.take().unwrap_or_default();
        if index.version != version
            && let Err(problem) = self.update(&mut index, version)
        {
            tracing::warn!("cannot tell packages of files by {}: {problem}", self.directory.display());
            // Not tried again until it has changed.
            index = Index { version, ..Index::default() };
        }
        self.index = Some(index);
    }

    fn version(&self) -> Version {
        let modified = |name| fs::metadata(self.directory.join(name)).and_then(|found| found.modified()).ok();
        Version { status: modified("status"), lists: modified("info"), diversions: modified("diversions") }
    }

    fn update(&self, index: &mut Index, version: Version) -> io::Result<()> {
        if index.version.status != version.status {
            index.installed = read_status(&self.directory.join("status"))?;
        }
        if index.version.diversions != version.diversions {
            index.diversions = read_diversions(&self.directory.join("diversions"))?;
        }
        if index.version.lists != version.lists {
            self.update_lists(index)?;
            index.merged = MERGED.into_iter().filter(|name| self.is_merged(name)).collect();
        }
        index.version = version;
        Ok(())
    }

    fn update_lists(&self, index: &mut Index) -> io::Result<()> {
        let mut found = self.lists()?;
        let mut changed = HashSet::new();
        for (place, list) in (0..).zip(&mut index.lists) {
            let now = found.remove(&list.name);
            if now != Some((list.modified, list.bytes)) {
                changed.insert(place);
                match now {
                    Some((modified, bytes)) => (list.modified, list.bytes) = (modified, bytes),
                    None => list.name.clear(),
                }
            }
        }
        let mut free: Vec<usize> = (0..index.lists.len()).collect();
        free.retain(|place| index.lists[*place].name.is_empty());
        for (name, (modified, bytes)) in found {
            let list = List { name, modified, bytes };
            match free.pop() {
                Some(place) => {
                    index.lists[place] = list;
                    changed.insert(place);
                }
                None => {
                    changed.insert(index.lists.len());
                    index.lists.push(list);
                }
            }
        }
        index.paths.retain(|path| !changed.contains(&place_of(*path)));
        // Paths are longer than this on the average, so it need not grow.
        let bytes: u64 = changed.iter().map(|place| index.lists[*place].bytes).sum();
        index.paths.reserve(usize::try_from(bytes / 50).unwrap_or(PATHS_MAX).min(PATHS_MAX));
        for place in changed {
            let place = u16::try_from(place).map_err(|_| too_many("65,536 packages"))?;
            let name = &index.lists[usize::from(place)].name;
            if !name.is_empty() {
                self.index_list(name, place, &mut index.paths)?;
            }
        }
        index.paths.sort_unstable();
        index.paths.shrink_to_fit();
        Ok(())
    }

    /// The names of all lists, when they were changed, and their size in bytes.
    fn lists(&self) -> io::Result<HashMap<String, (SystemTime, u64)>> {
        let mut lists = HashMap::new();
        for entry in fs::read_dir(self.directory.join("info"))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(list) = name.to_str().and_then(|name| name.strip_suffix(".list")) else { continue };
            // Gone in between: then it is no list either.
            if let Ok(metadata) = entry.metadata() {
                lists.insert(list.to_owned(), (metadata.modified()?, metadata.len()));
            }
        }
        Ok(lists)
    }

    fn index_list(&self, list: &str, place: u16, paths: &mut Vec<u64>) -> io::Result<()> {
        let mut previous = String::new();
        let mut add = |path: &str| {
            if paths.len() >= PATHS_MAX {
                return Err(too_many("1,048,576 paths"));
            }
            paths.push(self.hash(path) | u64::from(place));
            Ok(())
        };
        self.lines(list, |line| {
            // What something is in is a directory.
            let is_directory = line.strip_prefix(previous.as_str()).is_some_and(|rest| rest.starts_with('/'));
            if !is_directory && !previous.is_empty() {
                add(&previous)?;
            }
            previous.clear();
            previous.push_str(line);
            Ok(true)
        })?;
        if !previous.is_empty() { add(&previous) } else { Ok(()) }
    }

    fn has(&self, list: &str, path: &str) -> bool {
        let mut found = false;
        let read = self.lines(list, |line| {
            found = line == path;
            Ok(!found)
        });
        read.is_ok() && found
    }

    /// Gives the lines of a list to `take` until that is satisfied. A list that is gone has none.
    fn lines(&self, list: &str, mut take: impl FnMut(&str) -> io::Result<bool>) -> io::Result<()> {
        let path = self.directory.join("info").join(format!("{list}.list"));
        let Some(mut lines) = open(&path)? else { return Ok(()) };
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            // A name that is no text is none that is asked for.
            let Ok(text) = str::from_utf8(&line) else { continue };
            if !take(text.trim_end_matches('\n'))? {
                return Ok(());
            }
        }
    }

    fn is_merged(&self, name: &str) -> bool {
        let link = fs::read_link(self.root.join(name.trim_start_matches('/')));
        link.is_ok_and(|target| Path::new("/").join(target) == Path::new("/usr").join(&name[1..]))
    }

    /// What dpkg has noted of a package beside `status` while it works: the last note holds.
    fn update_of(&self, package: &str) -> Option<Installed> {
        let mut notes = BTreeMap::new();
        for entry in fs::read_dir(self.directory.join("updates")).ok()?.flatten() {
            if let Ok(text) = fs::read_to_string(entry.path()) {
                notes.insert(entry.file_name(), text);
            }
        }
        let noted = notes.values().rev().filter_map(|text| {
            let (name, installed) = read_stanza(text.lines())?;
            (name == package).then_some(installed)
        });
        noted.into_iter().next()
    }
}

/// A path as a package would have it.
struct Wanted<'a> {
    path: &'a str,
    /// Only this package can have it.
    only: Option<&'a str>,
    /// This one cannot.
    not: Option<&'a str>,
}

impl Wanted<'_> {
    fn may_be(&self, list: &str) -> bool {
        let name = without_architecture(list);
        self.only.is_none_or(|only| only == name) && self.not.is_none_or(|not| not != name)
    }
}

impl Index {
    /// The lists that may have a path with this hash.
    fn candidates(&self, hash: u64) -> impl Iterator<Item = &str> {
        let from = self.paths.partition_point(|path| *path < hash);
        let found = self.paths[from..].iter().take_while(move |path| **path & !0xffff == hash);
        found.filter_map(|path| self.lists.get(place_of(*path)).map(|list| list.name.as_str()))
    }

    fn diverted<'a>(&'a self, path: &'a str) -> Wanted<'a> {
        let other = self.other_name(path);
        let is_it = |name: &str| name == path || other.as_deref() == Some(name);
        for diversion in &self.diversions {
            if is_it(&diversion.to) {
                return Wanted { path: &diversion.from, only: None, not: Some(&diversion.by) };
            }
            if is_it(&diversion.from) {
                return Wanted { path, only: Some(&diversion.by), not: None };
            }
        }
        Wanted { path, only: None, not: None }
    }

    /// The same file by its other name, where `/usr` is merged.
    fn other_name(&self, path: &str) -> Option<String> {
        let is_in = |directory: &str, path: &str| {
            path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
        };
        if let Some(short) = path.strip_prefix("/usr") {
            return self.merged.iter().any(|name| is_in(name, short)).then(|| short.to_owned());
        }
        self.merged.iter().any(|name| is_in(name, path)).then(|| format!("/usr{path}"))
    }
}

/// The place of the list that an indexed path is in.
fn place_of(path: u64) -> usize {
    usize::from(path as u16)
}

fn without_architecture(list: &str) -> &str {
    list.split_once(':').map_or(list, |(name, _)| name)
}

fn too_many(what: &str) -> io::Error {
    io::Error::other(format!("it has more than {what}"))
}

fn open(path: &Path) -> io::Result<Option<BufReader<io::Take<File>>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file.take(FILE_BYTES_MAX)))),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

fn read_diversions(path: &Path) -> io::Result<Vec<Diversion>> {
    let Some(lines) = open(path)? else { return Ok(Vec::new()) };
    let mut lines = lines.lines();
    let mut diversions = Vec::new();
    while let (Some(from), Some(to), Some(by)) = (lines.next(), lines.next(), lines.next()) {
        if diversions.len() == DIVERSIONS_MAX {
            return Err(too_many("16,384 diversions"));
        }
        diversions.push(Diversion { from: from?, to: to?, by: by? });
    }
    Ok(diversions)
}

fn read_status(path: &Path) -> io::Result<HashMap<String, Installed>> {
    let mut versions: HashMap<String, Installed> = HashMap::new();
    let Some(mut lines) = open(path)? else { return Ok(versions) };
    let mut stanza = String::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let is_end = lines.read_until(b'\n', &mut line)? == 0;
        if is_end || line == b"\n" {
            if let Some((name, installed)) = read_stanza(stanza.lines()) {
                // One architecture may be installed, and another gone.
                let is_better = versions.get(name).is_none_or(|other| !other.is_whole);
                if is_better {
                    versions.insert(name.to_owned(), installed);
                }
            }
            stanza.clear();
        }
        if is_end {
            return Ok(versions);
        }
        if FIELDS.iter().any(|field| line.starts_with(field.as_bytes())) {
            stanza.push_str(&String::from_utf8_lossy(&line));
        }
    }
}

const FIELDS: [&str; 3] = ["Package: ", "Status: ", "Version: "];

/// The package's name, and what is there of it; none if it has no version.
fn read_stanza<'a>(lines: impl Iterator<Item = &'a str>) -> Option<(&'a str, Installed)> {
    let mut values = [None; FIELDS.len()];
    for line in lines {
        for (value, field) in values.iter_mut().zip(FIELDS) {
            if let Some(found) = line.strip_prefix(field) {
                *value = Some(found.trim());
            }
        }
    }
    let [name, status, version] = values;
    // Of a package that was removed the configuration may have stayed, and that is still its own.
    let is_whole = status
        .and_then(|status| status.split_whitespace().next_back())
        .is_some_and(|state| state != "half-installed" && state != "not-installed");
    Some((name?, Installed { version: version?.to_owned(), is_whole }))
}
