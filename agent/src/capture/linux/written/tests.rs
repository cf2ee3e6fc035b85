//! On file systems of their own, which are mounted for it, so that nobody else writes there. Needs root.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use alibi_proto::{
    executable::{ExecutableSighting, Sha256},
    process::ProcessImage,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use super::{
    listener::{Listener, PERIOD_NS, PERIOD_NS_MAX, begins_as_program, period_ns},
    mounts::Mount,
    *,
};
use crate::{
    capture::{Fact, ObservedExecutable, ProcessKey},
    enrich::executable::{FileState, Identifier, Limits},
};

/// A file system, until dropped.
pub(super) struct FileSystem {
    path: PathBuf,
}

impl FileSystem {
    pub(super) fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        mount("none", path, "tmpfs", MountFlags::empty(), None).unwrap();
        Self { path: path.to_owned() }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        unmount(&self.path, UnmountFlags::DETACH).unwrap();
    }
}

struct Stage {
    written: Listener,
    identifier: Identifier,
    // Last, so that what is mounted in it is gone by then.
    directory: TempDir,
}

impl Stage {
    /// Listens to nothing but what is mounted in its own directory.
    fn open(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let known = path.join("executables");
        let identifier = Identifier::with_limits(&known, &path.join("system"), limits).unwrap();
        let own = Box::new(move |mount: &Mount| mount.path.starts_with(&path));
        let mut written = Listener::listen_to(identifier.writers(), own).unwrap();
        written.take(sys::now(), &mut Vec::new());
        Self { written, identifier, directory }
    }

    fn mount(&mut self, name: &str) -> FileSystem {
        let mounted = FileSystem::mount(&self.directory.path().join(name));
        self.take_until(|listener| !listener.written.has_new_mounts(), "hears of the mount");
        mounted
    }

    fn take(&mut self) -> Vec<ObservedExecutable> {
        let mut facts = Vec::new();
        self.written.take(sys::now(), &mut facts);
        self.identifier.take(&mut facts);
        let seen = |observation: Observation| match observation.fact {
            Fact::ExecutableSeen(seen) => *seen,
            other => panic!("{other:?}"),
        };
        facts.into_iter().map(seen).collect()
    }

    fn take_until(&mut self, is_done: impl Fn(&mut Self) -> bool, what: &str) -> Vec<ObservedExecutable> {
        let started = Instant::now();
        let mut seen = Vec::new();
        loop {
            seen.extend(self.take());
            if is_done(self) {
                return seen;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "waits until it {what}");
        }
    }

    /// Waits for `count` executables, as the source does.
    fn wait(&mut self, count: usize) -> Vec<ObservedExecutable> {
        let started = Instant::now();
        let mut seen = self.take();
        while seen.len() < count {
            assert!(started.elapsed() < Duration::from_secs(30), "only {seen:?}");
            let mut descriptors = [
                PollFd::from_borrowed_fd(self.written.descriptor(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.identifier.descriptor(), PollFlags::IN),
            ];
            // As often as the source, at least.
            poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 500_000_000 })).unwrap();
            seen.extend(self.take());
        }
        assert_eq!(seen.len(), count, "{seen:?}");
        seen
    }
}

/// Runs a script in `directory`. It is not waited for, so that it can be found in the process table.
pub(super) fn run(directory: &Path, script: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Ends when the script has.
    std::io::copy(child.stdout.as_mut().unwrap(), &mut io::sink()).unwrap();
    child
}

fn is_root() -> bool {
    let is_root = sys::is_privileged();
    if !is_root {
        eprintln!("skipped: mounting a file system takes root");
    }
    is_root
}

fn sha256_of(content: &[u8]) -> Sha256 {
    Sha256::from_bytes(<sha2::Sha256 as sha2::Digest>::digest(content).into())
}

#[test]
fn executables_that_are_written_are_told_with_their_writer() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    let script = "
        printf '#!/bin/sh\\n' > script
        printf 'something' > with-a-right.part && chmod +x with-a-right.part && printf '!' >> with-a-right.part
        printf 'something else' > data
        : > empty && chmod +x empty
        mkfifo pipe && (cat pipe > /dev/null & printf x > pipe; wait)
        mknod null c 1 3 && printf x > null
        cp /bin/true program && mv program program-that-was-moved
        printf 'MZ' > windows.exe
    ";
    let mut child = run(&mounted.path, script);
    let writer = ProcessKey { pid: child.id(), start: sys::process_start(child.id()).unwrap() };
    let seen = listener.wait(4);
    child.wait().unwrap();
    let by_name: HashMap<_, _> = seen
        .iter()
        .map(|seen| (Path::new(&seen.path).file_name().unwrap().to_str().unwrap(), seen))
        .collect();
    let contents = [
        ("script", b"#!/bin/sh\n".to_vec(), true),
        ("with-a-right.part", b"something!".to_vec(), true),
        // Another process wrote it, which is gone.
        ("program-that-was-moved", fs::read("/bin/true").unwrap(), false),
        ("windows.exe", b"MZ".to_vec(), true),
    ];
    for (name, content, is_by_script) in contents {
        let seen = by_name[name];
        assert_eq!(seen.sha256, Some(sha256_of(&content)), "{seen:?}");
        assert_eq!((seen.sighting, &seen.problem), (ExecutableSighting::Written, &None));
        assert!(seen.first_on_host);
        assert_eq!(seen.path, mounted.path.join(name).to_str().unwrap());
        assert_eq!(seen.file, Some(FileState::at(&mounted.path.join(name)).unwrap().identity));
        assert_eq!(seen.process, is_by_script.then_some(writer), "{seen:?}");
    }
}

#[test]
fn what_is_mounted_later_is_listened_to_and_what_is_unchanged_is_told_once() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let _first = listener.mount("first");
    let second = listener.mount("a second one");
    run(&second.path, "printf '#!' > a; printf '#!' > b; : >> a; : >> a").wait().unwrap();
    let names = |seen: Vec<ObservedExecutable>| {
        let mut names: Vec<_> =
            seen.iter().map(|seen| seen.path.rsplit('/').next().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(listener.wait(2)), ["a", "b"]);
    run(&second.path, ": >> a; printf x >> b; printf '#!' > c").wait().unwrap();
    assert_eq!(names(listener.wait(2)), ["b", "c"]);
}

#[test]
fn what_is_written_again_and_again_is_told_as_it_is_in_the_end() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    run(&mounted.path, "printf '#!0' > log").wait().unwrap();
    assert_eq!(listener.wait(1)[0].sha256, Some(sha256_of(b"#!0")));
    let writing = Instant::now();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do printf \"#!$i\" > log; done; mv log moved";
    let mut child = run(&mounted.path, script);
    let seen = listener.wait(1);
    assert!(writing.elapsed() > Duration::from_millis(500), "{:?}", writing.elapsed());
    assert_eq!(seen[0].sha256, Some(sha256_of(b"#!9")), "{seen:?}");
    assert_eq!(seen[0].path, mounted.path.join("moved").to_str().unwrap());
    assert_eq!(seen[0].process.map(|process| process.pid), Some(child.id()));
    child.wait().unwrap();
    assert!(listener.written.postponed.is_empty());
}

#[test]
fn a_path_that_is_none_here_is_not_taken_for_one() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    for name in ["lower", "upper", "work"] {
        fs::create_dir(mounted.path.join(name)).unwrap();
    }
    let merged = listener.directory.path().join("merged");
    let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", mounted.path.display());
    fs::create_dir(&merged).unwrap();
    let options = std::ffi::CString::new(options).unwrap();
    mount("none", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str())).unwrap();
    let merged = FileSystem { path: merged };
    listener.take_until(|listener| !listener.written.has_new_mounts(), "hears of the mount");
    run(&merged.path, "printf '#!' > tool; mkdir gone; printf '#!x' > gone/tool; rm -r gone").wait().unwrap();
    let mut paths: Vec<_> = listener.wait(4).into_iter().map(|seen| seen.path).collect();
    paths.sort();
    let here = |name: &str| merged.path.join(name).to_str().unwrap().to_owned();
    assert_eq!(paths[0], "(unreachable)/tool");
    assert!(paths.contains(&here("tool")) && paths.contains(&here("gone/tool")), "{paths:?}");
}

#[test]
fn a_large_file_is_told_more_seldom() {
    assert_eq!(period_ns(0), PERIOD_NS);
    let second = 1_000_000_000;
    assert_eq!(period_ns(100 << 20) / second, 10);
    assert_eq!(period_ns(u64::MAX), PERIOD_NS_MAX);
}

#[test]
fn the_agent_does_not_hear_itself() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    fs::write(mounted.path.join("own"), "#!").unwrap();
    run(&mounted.path, "printf '#!' > others").wait().unwrap();
    assert!(listener.wait(1)[0].path.ends_with("/others"));
}

#[test]
fn the_rights_that_the_agent_keeps_are_enough() {
    if !is_root() {
        return;
    }
    let (mounted, path) = std::sync::mpsc::channel();
    let agent = std::thread::spawn(move || {
        sys::keep_needed_privileges().unwrap();
        let mut listener = Stage::open(Limits::default());
        let file_system = listener.mount("files");
        mounted.send(file_system.path.clone()).unwrap();
        let seen = listener.wait(2);
        let contents: Vec<_> = seen.iter().map(|seen| (seen.sha256, seen.process.is_some())).collect();
        let own = sha256_of(b"#!own");
        assert_eq!(contents, [(Some(sha256_of(b"#!")), true), (Some(own), true)], "{seen:?}");
    });
    // Files of somebody else, which nobody but that one may read. Where everybody may write, the kernel may keep root from them
    // (fs.protected_regular).
    let script = "chmod 755 .; : > f; chown 12345 f; chmod 700 f; printf '#!' > f
        exec 3> g; chown 12345 g; chmod 400 g; printf '#!own' >&3";
    let mut child = run(&path.recv().unwrap(), script);
    agent.join().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_was_missed_is_said() {
    if !is_root() {
        return;
    }
    let limit = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 50_000 {
        eprintln!("skipped: the kernel's queue is longer than is filled in a moment");
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    let script = format!("i=0; while [ $i -lt {} ]; do : > $i; i=$((i+1)); done", limit + 100);
    run(&mounted.path, &script).wait().unwrap();
    let [missed] = &listener.wait(1)[..] else { panic!() };
    let problem = missed.problem.as_ref().unwrap();
    assert!(problem.starts_with("files were written faster than they could be looked at"), "{problem}");
    assert_eq!((missed.path.as_str(), missed.sha256, missed.file), ("", None, None));
    run(&mounted.path, "printf '#!' > afterwards").wait().unwrap();
    assert!(listener.wait(1)[0].path.ends_with("/afterwards"));
}

#[test]
fn what_the_identifier_has_no_room_for_is_counted() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits { queue_max: 2, ..Limits::default() });
    let mounted = listener.mount("files");
    run(
        &mounted.path,
        "for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6 7 8 9; do printf '#!' > $i$j; done; done",
    )
    .wait()
    .unwrap();
    let mut told = 0;
    let started = Instant::now();
    let missed = loop {
        let seen = listener.take();
        told += seen.iter().filter(|seen| seen.problem.is_none()).count();
        if let Some(missed) = seen.into_iter().find_map(|seen| seen.problem) {
            break missed;
        }
        assert!(started.elapsed() < Duration::from_secs(30));
    };
    let count: usize = missed.split(' ').next().unwrap().parse().unwrap();
    assert!(missed.ends_with("because too many were waiting or they could not be opened"), "{missed}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while told + count < 81 && Instant::now() < deadline {
        told += listener.take().len();
    }
    assert_eq!(told + count, 81);
}

#[test]
fn every_local_file_system_of_this_machine_can_be_listened_to() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let identifier =
        Identifier::with_limits(&directory.path().join("x"), directory.path(), Limits::default()).unwrap();
    drop(Written::open(identifier.writers()).unwrap());
}

#[test]
fn programs_are_told_by_their_beginning() {
    let elf = |order: u8, kind: [u8; 2]| {
        let mut elf = b"\x7fELF\x02".to_vec();
        elf.extend([order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        elf.extend(kind);
        elf
    };
    for program in [elf(1, [2, 0]), elf(1, [3, 0]), elf(2, [0, 3]), b"#!/bin/sh".to_vec(), b"MZ".to_vec()] {
        assert!(begins_as_program(&program), "{program:?}");
    }
    let object_and_core = [elf(1, [1, 0]), elf(1, [4, 0]), elf(2, [0, 1])];
    for other in [&b""[..], b"#", b"M", b"\x7fELF\x02\x01", b"text"] {
        assert!(!begins_as_program(other), "{other:?}");
    }
    assert!(object_and_core.iter().all(|other| !begins_as_program(other)));
}

/// A real package, by the real dpkg, into a file system and a database of its own. Never is another version named than
/// the one that a file is of.
#[test]
fn what_dpkg_installs_has_its_package() {
    let has_dpkg = Command::new("dpkg-deb").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_root() || !has_dpkg {
        eprintln!("skipped: there is no dpkg here");
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    let directory = listener.directory.path().to_owned();
    let database = directory.join("system/var/lib/dpkg");
    for name in ["info", "updates"] {
        fs::create_dir_all(database.join(name)).unwrap();
    }
    fs::write(database.join("status"), "").unwrap();
    let tool = mounted.path.join("bin/tool");
    for version in ["1", "2"] {
        let content = format!("#!/bin/sh\necho {version}\n");
        let package = package(&directory, &tool, version, &content);
        let script = format!(
            "exec dpkg --admindir={} --log=/dev/null --force-unsafe-io -i {} > log 2>&1",
            database.display(),
            package.display()
        );
        let mut child = run(&directory, &script);
        let writer = ProcessKey { pid: child.id(), start: sys::process_start(child.id()).unwrap() };
        let installed = child.wait().unwrap().success();
        assert!(installed, "{}", fs::read_to_string(directory.join("log")).unwrap());

        let file = FileState::at(&tool).unwrap().identity;
        let path = Some(tool.to_str().unwrap().to_owned());
        let mut image = ProcessImage { path, file: Some(file), ..ProcessImage::default() };
        let mut seen = Vec::new();
        let started = Instant::now();
        // Written is told at least once, with the times that it was unpacked with or those that it was given then.
        while seen.is_empty() {
            assert!(started.elapsed() < Duration::from_secs(30));
            seen.extend(listener.take());
        }
        for seen in &seen {
            assert_eq!(
                (seen.sha256, seen.sighting),
                (Some(sha256_of(content.as_bytes())), ExecutableSighting::Written)
            );
            assert!(seen.process.is_none_or(|process| process == writer), "{seen:?}");
            assert!(seen.package.as_ref().is_none_or(|package| package.version == version), "{seen:?}");
        }
        listener.identifier.identify(writer, sys::now(), &mut image);
        let run = loop {
            assert!(started.elapsed() < Duration::from_secs(30));
            if let Some(run) =
                listener.take().into_iter().find(|seen| seen.sighting == ExecutableSighting::Run)
            {
                break run;
            }
        };
        let package = run.package.as_ref().map(|package| (package.name.as_str(), package.version.as_str()));
        assert_eq!(
            (package, run.sha256),
            (Some(("alibi-tool", version)), Some(sha256_of(content.as_bytes())))
        );
    }
}

/// Builds a package with one file.
fn package(directory: &Path, tool: &Path, version: &str, content: &str) -> PathBuf {
    let tree = directory.join(format!("tree{version}"));
    let inside = tree.join(tool.strip_prefix("/").unwrap());
    fs::create_dir_all(inside.parent().unwrap()).unwrap();
    fs::write(&inside, content).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(tree.join("DEBIAN")).unwrap();
    let control = format!(
        "Package: alibi-tool\nVersion: {version}\nArchitecture: all\nMaintainer: Alibi <alibi@example.com>\nDescription: a tool\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let package = directory.join(format!("{version}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.arg("--root-owner-group").arg("--build").arg(&tree).arg(&package).stdout(Stdio::null());
    assert!(build.status().unwrap().success());
    package
}

/// As a package manager does: many files, few of them programs. Shown, not judged.
#[test]
fn the_figures_are_shown() {
    if !is_root() {
        return;
    }
    let mut listener = Stage::open(Limits::default());
    let mounted = listener.mount("files");
    let program = mounted.path.join("true");
    fs::copy("/bin/true", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let script = "mkdir d; i=0; while [ $i -lt 4000 ]; do echo text > d/$i; i=$((i+1)); done
        i=0; while [ $i -lt 100 ]; do cp true d/p$i; i=$((i+1)); done";
    let mut child = run(&mounted.path, script);
    let started = Instant::now();
    let mut facts = Vec::new();
    let mut turns = 0;
    let mut longest = Duration::ZERO;
    while listener.written.read_until.is_none_or(|until| until.boot_ns < 1) || turns < 4 {
        let turn = Instant::now();
        listener.written.take(sys::now(), &mut facts);
        longest = longest.max(turn.elapsed());
        turns += 1;
    }
    eprintln!(
        "4,100 written files, 100 of them programs: {:?}, the longest turn {longest:?}",
        started.elapsed()
    );
    child.wait().unwrap();
    assert_eq!(listener.wait(100).len(), 100);
}
