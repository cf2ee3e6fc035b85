//! File systems that do not answer. Needs root and FUSE.

use std::{
    collections::VecDeque,
    ffi::CString,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use alibi_proto::{executable::FileIdentity, process::ProcessImage, time::Timestamp};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{listener::Listener, mounts::Mount, *};
use crate::{
    capture::{Fact, ObservedExecutable, ProcessKey},
    enrich::executable::{Identifier, Limits, skip},
};

/// A file system whose program never answers, until dropped.
struct Silent {
    path: PathBuf,
    program: Option<File>,
}

impl Silent {
    /// None where there is no such thing to be had.
    fn mount(path: &Path) -> Option<Self> {
        Self::served(path, |_| {})
    }

    /// As long as `serve` answers with what is read from the file.
    fn served(path: &Path, serve: impl FnOnce(File)) -> Option<Self> {
        if !sys::is_privileged() {
            skip("mounting a file system takes root");
            return None;
        }
        let Ok(program) = File::options().read(true).write(true).open("/dev/fuse") else {
            skip("there is no /dev/fuse");
            return None;
        };
        fs::create_dir_all(path).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", program.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("silent", path, "fuse", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        serve(program.try_clone().unwrap());
        Some(Self { path: path.to_owned(), program: Some(program) })
    }

    /// Those who wait are told that it has gone.
    fn end(&mut self) {
        self.program = None;
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end();
        // By force: whoever is asked still is told that nobody will ask.
        unmount(&self.path, UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
    }
}

/// Answers what it takes to run a file called `tool` with `content`, until told to stop; then never again. Structures of
/// `linux/fuse.h`.
fn answer(mut program: File, content: &[u8], is_silent: &AtomicBool) {
    const FILE: u64 = 2;
    let attributes = |node: u64| {
        let (mode, size) = if node == FILE { (0o100_755_u32, content.len() as u64) } else { (0o040_755, 0) };
        let mut bytes: Vec<u8> = [node, size, 0, 7, 7, 7].into_iter().flat_map(u64::to_ne_bytes).collect();
        bytes.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes
    };
    let mut request = vec![0; 1 << 18];
    while let Ok(count) = program.read(&mut request) {
        if is_silent.load(Ordering::Relaxed) {
            return;
        }
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (node, body) = (long(16), 40);
        let answer = match word(4) {
            // Forgotten, interrupted: no answer.
            2 | 36 | 42 => continue,
            26 => {
                let mut answer: Vec<u8> =
                    [7, 31, 1 << 16, 0, 0, 1 << 16, 1].into_iter().flat_map(u32::to_ne_bytes).collect();
                answer.resize(64, 0);
                Ok(answer)
            }
            // Good for no time at all: the next who wants to know asks again.
            1 if request[body..count].starts_with(b"tool\0") => {
                let entry = [FILE, 0, 0, 0, 0].into_iter().flat_map(u64::to_ne_bytes);
                Ok(entry.chain(attributes(FILE)).collect())
            }
            1 => Err(2),
            3 => Ok([0_u64; 2].into_iter().flat_map(u64::to_ne_bytes).chain(attributes(node)).collect()),
            14 => Ok(vec![0; 16]),
            15 => {
                let from = usize::try_from(long(body + 8)).unwrap().min(content.len());
                let to = content.len().min(from + word(body + 16) as usize);
                Ok(content[from..to].to_vec())
            }
            18 | 25 => Ok(Vec::new()),
            _ => Err(38),
        };
        let (error, answer): (i32, Vec<u8>) =
            answer.map_or_else(|error: i32| (-error, Vec::new()), |answer| (0, answer));
        let mut bytes = (16 + answer.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(error.to_ne_bytes());
        bytes.extend(&request[8..16]);
        bytes.extend(answer);
        let _ = program.write_all(&bytes);
    }
}

const LIMITS: Limits = Limits {
    files_max: 8,
    queue_max: 64,
    hashed_bytes_max: 1 << 20,
    held_max: 2,
    read_patience: Duration::from_millis(300),
    signature_patience: Duration::from_secs(30),
};

const GONE: ProcessKey = ProcessKey { pid: u32::MAX, start: 1 };

fn image(path: &Path, file: Option<FileIdentity>) -> ProcessImage {
    ProcessImage { path: Some(path.to_str().unwrap().to_owned()), file, ..ProcessImage::default() }
}

/// What an identifier has found, in order.
struct Findings(Identifier, VecDeque<ObservedExecutable>);

impl Findings {
    /// The next that `is_it`.
    fn wait(&mut self, is_it: impl Fn(&ObservedExecutable) -> bool) -> ObservedExecutable {
        let started = Instant::now();
        loop {
            while let Some(seen) = self.1.pop_front() {
                if is_it(&seen) {
                    return seen;
                }
            }
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was found");
            let mut descriptors = [PollFd::from_borrowed_fd(self.0.descriptor(), PollFlags::IN)];
            poll(&mut descriptors, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            let mut facts = Vec::new();
            self.0.take(&mut facts);
            for observation in facts {
                let Fact::ExecutableSeen(seen) = observation.fact else { panic!("{observation:?}") };
                self.1.push_back(*seen);
            }
        }
    }
}

/// The source asks for a quarter of a second, once; other executables are hashed as ever.
#[test]
fn an_executable_on_a_file_system_that_does_not_answer_keeps_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mut silent) = Silent::mount(&directory.path().join("silent")) else { return };
    let known = directory.path().join("executables");
    let identifier = Identifier::with_limits(&known, directory.path(), LIMITS).unwrap();
    let mut findings = Findings(identifier, VecDeque::new());

    // Whose file the kernel has not named.
    let started = Instant::now();
    for _ in 0..20 {
        let mut unnamed = image(&silent.path.join("bin/tool"), None);
        findings.0.identify(GONE, sys::now(), &mut unnamed);
        assert_eq!(unnamed.file, None);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let found = findings.wait(|seen| seen.path.contains("silent"));
    assert_eq!(found.problem.as_deref(), Some("not read: its file system has not answered for 0.3 s"));
    let found = findings.wait(|seen| seen.path.contains("silent"));
    assert_eq!(found.problem.as_deref(), Some("not read: its file system does not answer"));

    // Whose file it has named: anywhere on that device.
    let file = FileIdentity { device: 77, inode: 1, modified: Timestamp::from_secs(1), size: 1 };
    for path in [silent.path.join("a/tool"), silent.path.join("b/tool")] {
        findings.0.identify(GONE, sys::now(), &mut image(&path, Some(file)));
    }
    let found = findings.wait(|seen| seen.path.ends_with("a/tool"));
    assert_eq!(found.problem.as_deref(), Some("not read: its file system has not answered for 0.3 s"));

    let own = directory.path().join("tool");
    fs::write(&own, "one").unwrap();
    let mut own = image(&own, None);
    findings.0.identify(GONE, sys::now(), &mut own);
    assert!(own.file.is_some());
    let found = findings.wait(|seen| Some(&seen.path) == own.path.as_ref());
    assert!(found.sha256.is_some() && found.problem.is_none(), "{found:?}");
    silent.end();
}

/// Its file system stops to answer while it runs: nothing about it can be asked, not even by way of the process.
#[test]
fn a_process_whose_file_system_stops_to_answer_keeps_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let is_silent = Arc::new(AtomicBool::new(false));
    let serve = {
        let is_silent = Arc::clone(&is_silent);
        move |program| {
            thread::spawn(move || answer(program, &fs::read("/bin/cat").unwrap(), &is_silent));
        }
    };
    let Some(silent) = Silent::served(&directory.path().join("silent"), serve) else { return };
    let tool = silent.path.join("tool");
    let mut command = Command::new(&tool);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It runs, and need not read its file any more.
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let process = ProcessKey { pid: child.id(), start: sys::process_start(child.id()).unwrap() };
    let known = directory.path().join("executables");
    let identifier = Identifier::with_limits(&known, directory.path(), LIMITS).unwrap();
    let mut findings = Findings(identifier, VecDeque::new());
    let mut unnamed = image(&tool, None);
    findings.0.identify(process, sys::now(), &mut unnamed);
    let found = findings.wait(|_| true);
    assert!(found.file.is_some() && found.file == unnamed.file && found.sha256.is_some(), "{found:?}");

    is_silent.store(true, Ordering::Relaxed);
    let started = Instant::now();
    for _ in 0..20 {
        let mut unnamed = image(&tool, None);
        findings.0.identify(process, sys::now(), &mut unnamed);
        assert_eq!(unnamed.file, None);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let found = findings.wait(|_| true);
    assert_eq!(found.problem.as_deref(), Some("not read: its file system has not answered for 0.3 s"));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// One file system lies below another that has stopped to answer: the others are listened to.
#[test]
fn a_file_system_behind_one_that_does_not_answer_is_named_and_the_others_are_heard() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    if !sys::is_privileged() {
        skip("mounting a file system takes root");
        return;
    }
    let mut mounted = Vec::new();
    for name in ["a", "a/behind", "b"] {
        mounted.push(super::tests::FileSystem::mount(&root.join(name)));
    }
    let Some(mut silent) = Silent::mount(&root.join("a")) else { return };
    let known = root.join("executables");
    let identifier = Identifier::with_limits(&known, &root, LIMITS).unwrap();
    let mut findings = Findings(identifier, VecDeque::new());
    let own = {
        let root = root.clone();
        Box::new(move |mount: &Mount| mount.path.starts_with(&root))
    };
    let started = Instant::now();
    let mut written = Written::run(Listener::listen_to(findings.0.writers(), own).unwrap()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let mut facts = Vec::new();
    while facts.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30));
        let mut descriptors = [PollFd::from_borrowed_fd(written.descriptor(), PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        let turn = Instant::now();
        assert!(written.take(sys::now(), &mut facts).unwrap());
        assert!(turn.elapsed() < Duration::from_millis(500), "{:?}", turn.elapsed());
    }
    let Fact::ExecutableSeen(seen) = &facts[0].fact else { panic!("{facts:?}") };
    let behind = root.join("a/behind");
    let problem = format!(
        "what is written is not seen on {}, because its file system has not answered for 1 s",
        behind.display()
    );
    assert_eq!(seen.problem.as_ref(), Some(&problem));

    super::tests::run(&root.join("b"), "printf '#!' > tool").wait().unwrap();
    let seen = findings.wait(|seen| seen.path.ends_with("b/tool"));
    assert!(seen.sha256.is_some(), "{seen:?}");
    silent.end();
    drop(silent);
    drop(written);
    mounted.reverse();
}

/// The thread hangs: it is said once, and the source goes on.
#[test]
fn a_turn_that_does_not_end_is_told_once() {
    let (_sender, facts) = sync_channel(1);
    let (_wake, woken) = UnixStream::pair().unwrap();
    woken.set_nonblocking(true).unwrap();
    let (running, ended) = sync_channel(0);
    drop(running);
    let busy_since = Arc::new(AtomicU64::new(5));
    let mut written = Written { facts, woken, busy_since, told_of: 0, stop: None, ended, thread: None };
    let mut facts = Vec::new();
    for (boot_ns, told) in [(TURN_NS_MAX, 0), (TURN_NS_MAX + 6, 1), (2 * TURN_NS_MAX, 1)] {
        let now = Moment { wall: Timestamp::from_secs(9), boot_ns };
        written.take(now, &mut facts).unwrap();
        assert_eq!(facts.len(), told);
    }
    let Fact::ExecutableSeen(seen) = &facts[0].fact else { panic!("{facts:?}") };
    assert!(seen.problem.as_ref().unwrap().starts_with("of the executables written since 10 s ago none"));
}
