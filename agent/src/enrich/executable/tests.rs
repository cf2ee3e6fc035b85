use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use alibi_proto::{
    executable::{Package, Signature, SignatureStatus, VersionInfo},
    time::Timestamp,
};
use tempfile::TempDir;

use super::*;
use crate::sys::{Examined, testing::set_modified};

const LIMITS: Limits = Limits {
    files_max: 8,
    queue_max: 4,
    hashed_bytes_max: 1 << 20,
    held_max: 2,
    read_patience: Duration::from_secs(10),
    signature_patience: Duration::from_secs(30),
};

/// A directory with executables, and what an agent remembers of them.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        fs::create_dir(host.path("bin")).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, limits: Limits) -> Identifier {
        Identifier::with_limits(&self.path("executables"), &self.path("system"), limits).unwrap()
    }

    fn examining(&self, limits: Limits, examine: Examine) -> Identifier {
        let (known, system) = (self.path("executables"), self.path("system"));
        Identifier::examining(&known, &system, limits, Some(examine)).unwrap()
    }

    fn program(&self, name: &str, content: &str) -> ProcessImage {
        let path = self.path("bin").join(name);
        fs::write(&path, content).unwrap();
        let file = Some(FileState::at(&path).unwrap().identity);
        ProcessImage { path: Some(text(&path)), file, ..ProcessImage::default() }
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A process that is not running.
const GONE: ProcessKey = ProcessKey { pid: u32::MAX, start: 1 };

fn now() -> Moment {
    Moment { wall: Timestamp::from_secs(1), boot_ns: 1 }
}

fn seen(observation: Observation) -> ObservedExecutable {
    let Fact::ExecutableSeen(seen) = observation.fact else { panic!("{observation:?}") };
    *seen
}

/// Waits for `count` results.
fn wait(identifier: &mut Identifier, count: usize) -> Vec<ObservedExecutable> {
    let mut facts = Vec::new();
    let started = Instant::now();
    while facts.len() < count {
        assert!(started.elapsed() < Duration::from_secs(30), "only {facts:?}");
        #[cfg(unix)]
        wait_for(identifier);
        identifier.take(&mut facts);
    }
    assert_eq!(facts.len(), count, "{facts:?}");
    facts.into_iter().map(seen).collect()
}

#[cfg(unix)]
fn wait_for(identifier: &Identifier) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let descriptor = identifier.descriptor();
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut descriptors, Some(&timeout)).unwrap(), 1, "nothing was found");
}

fn sha256_of(content: &str) -> Sha256 {
    Sha256::from_bytes(<sha2::Sha256 as sha2::Digest>::digest(content).into())
}

#[test]
fn a_hash_follows_and_is_filled_in_from_then_on() {
    let host = Host::new();
    let mut identifier = host.open(LIMITS);
    let mut image = host.program("tool", "one");
    identifier.identify(GONE, now(), &mut image);
    assert_eq!(image.sha256, None);
    // While it is being found out, and after: it is told once.
    identifier.identify(GONE, now(), &mut image);
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!(found.sha256, Some(sha256_of("one")));
    assert_eq!((found.file, Some(&found.path)), (image.file, image.path.as_ref()));
    assert!(found.first_on_host && found.problem.is_none());
    assert_eq!((found.process, found.sighting), (Some(GONE), ExecutableSighting::Run));
    identifier.identify(GONE, now(), &mut image);
    assert_eq!(image.sha256, Some(sha256_of("one")));
    let mut copy = host.program("copy", "one");
    identifier.identify(GONE, now(), &mut copy);
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!((found.sha256, found.first_on_host), (image.sha256, false), "the same content");
}

#[test]
fn what_has_been_seen_in_another_run_is_not_new() {
    let host = Host::new();
    let mut image = host.program("tool", "one");
    for is_first in [true, false] {
        let mut identifier = host.open(LIMITS);
        identifier.identify(GONE, now(), &mut image);
        let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
        assert_eq!(found.first_on_host, is_first);
    }
    // The same in every respect that can be forged.
    let path = image.path.clone().unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "two").unwrap();
    set_modified(Path::new(&path), modified);
    let mut identifier = host.open(LIMITS);
    identifier.identify(GONE, now(), &mut image);
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!((found.file, found.sha256), (image.file, Some(sha256_of("two"))));
    assert!(found.first_on_host);
}

/// Or a crash could let it be claimed once more.
#[test]
fn what_is_claimed_to_be_new_is_on_the_disk_by_then() {
    let host = Host::new();
    let mut image = host.program("tool", "one");
    let mut identifier = host.open(LIMITS);
    identifier.identify(GONE, now(), &mut image);
    assert!(wait(&mut identifier, 1)[0].first_on_host);
    let after_a_crash = Host::new();
    fs::copy(host.path("executables"), after_a_crash.path("executables")).unwrap();
    let mut other = after_a_crash.open(LIMITS);
    other.identify(GONE, now(), &mut image);
    let found = wait(&mut other, 1);
    assert_eq!((found[0].sha256, found[0].first_on_host), (Some(sha256_of("one")), false));
}

#[test]
fn a_file_that_cannot_be_meant_has_a_problem_instead_of_a_hash() {
    let host = Host::new();
    let mut identifier = host.open(LIMITS);
    let mut check = |image: &ProcessImage, problem: &str| {
        let mut image = image.clone();
        identifier.identify(GONE, now(), &mut image);
        let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
        assert_eq!((found.sha256, found.first_on_host, found.file), (None, false, image.file));
        assert_eq!(found.problem.as_deref(), Some(problem));
    };
    let image = host.program("tool", "one");
    host.program("tool", "other");
    check(&image, "cannot be told from another file at its path");
    fs::remove_file(image.path.as_ref().unwrap()).unwrap();
    check(&image, "vanished before it could be read");
    let unnamed = ProcessImage { file: None, ..image };
    check(&unnamed, "vanished before it could be read");
    let large = host.program("large", &"x".repeat((1 << 20) + 1));
    check(&large, "larger than 1048576 bytes, the most that is hashed");
    let mut again = large;
    identifier.identify(GONE, now(), &mut again);
    let fine = host.program("tool", "one");
    identifier.identify(GONE, now(), &mut fine.clone());
    assert_eq!(wait(&mut identifier, 1)[0].sha256, Some(sha256_of("one")), "what stays so is told once");
}

#[test]
#[cfg(unix)]
fn a_running_process_is_read_wherever_its_file_is_now() {
    let host = Host::new();
    let mut identifier = host.open(LIMITS);
    let path = host.path("bin").join("cat");
    fs::copy("/bin/cat", &path).unwrap();
    let file = FileState::at(&path).unwrap().identity;
    let content = fs::read(&path).unwrap();
    let mut command = std::process::Command::new(&path);
    let mut child =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    fs::remove_file(&path).unwrap();
    let process = ProcessKey { pid: child.id(), start: crate::sys::process_start(child.id()).unwrap() };
    let named = ProcessImage { path: Some(text(&path)), file: Some(file), ..ProcessImage::default() };
    let mut unnamed = ProcessImage { file: None, ..named.clone() };
    // On some file systems the kernel knows the device by another number.
    let elsewhere = FileIdentity { device: file.device + 1, ..file };
    let mut of_another_device = ProcessImage { file: Some(elsewhere), ..named.clone() };
    identifier.identify(process, now(), &mut unnamed);
    assert_eq!(unnamed.file, Some(file));
    identifier.identify(process, now(), &mut named.clone());
    identifier.identify(process, now(), &mut of_another_device);
    let found = wait(&mut identifier, 2);
    drop(child.stdin.take());
    child.wait().unwrap();
    let sha256 = Sha256::from_bytes(<sha2::Sha256 as sha2::Digest>::digest(content).into());
    assert!(found.iter().all(|found| found.sha256 == Some(sha256)), "{found:?}");
    assert_eq!(found.iter().map(|found| found.file).collect::<Vec<_>>(), [Some(file), Some(elsewhere)]);

    // Another process has the pid by now.
    let other = ProcessKey { pid: std::process::id(), start: 1 };
    identifier.identify(other, now(), &mut ProcessImage { file: Some(elsewhere), ..named });
    assert!(wait_is_quiet(&mut identifier), "told already");
}

/// Nothing is found, even after something else was.
fn wait_is_quiet(identifier: &mut Identifier) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = Some(text(file.path()));
    identifier.identify(GONE, now(), &mut ProcessImage { path, ..ProcessImage::default() });
    wait(identifier, 1).len() == 1
}

#[test]
fn what_there_is_no_room_for_is_said_and_asked_again() {
    let host = Host::new();
    let mut identifier = host.open(LIMITS);
    let contents: HashMap<String, String> =
        (0..200).map(|number| (format!("tool{number}"), format!("{number}").repeat(10_000))).collect();
    let images: Vec<_> = contents.iter().map(|(name, content)| host.program(name, content)).collect();
    for image in &images {
        identifier.identify(GONE, now(), &mut image.clone());
    }
    let mut facts = Vec::new();
    let mut found = 0;
    let mut refused = 0;
    // All that were taken are told; the worker may still be at work on at most what waits and what it has in hand.
    let started = Instant::now();
    while found < 4 {
        assert!(started.elapsed() < Duration::from_secs(30));
        identifier.take(&mut facts);
        for seen in facts.drain(..).map(seen) {
            match seen.problem {
                None => found += 1,
                Some(problem) => {
                    assert_eq!(problem, "not looked at, because 4 other executables were waiting");
                    assert_eq!((seen.sha256, seen.first_on_host), (None, false));
                    refused += 1;
                }
            }
        }
    }
    assert!((1..=REFUSED_MAX).contains(&refused), "{refused}");
    assert!(identifier.files.len() <= LIMITS.files_max);
    drop(identifier);

    let mut identifier = host.open(LIMITS);
    for image in &images {
        identifier.identify(GONE, now(), &mut image.clone());
        let [seen] = &wait(&mut identifier, 1)[..] else { panic!() };
        assert_eq!(seen.problem, None);
    }
}

#[test]
#[cfg(unix)]
fn a_written_file_is_read_whatever_it_is_called_by_then() {
    let host = Host::new();
    let mut identifier = host.open(LIMITS);
    let writers = identifier.writers();
    let written = |name: &str, content: &str| {
        let path = host.path("bin").join(name);
        fs::write(&path, content).unwrap();
        let file = fs::File::open(&path).unwrap();
        let state = FileState::of(&file).unwrap();
        (path, file, state)
    };
    let (path, file, state) = written("tool.part", "one");
    let final_path = host.path("bin").join("tool");
    fs::rename(&path, &final_path).unwrap();
    writers.written(&file, &state, text(&path), Some(GONE), now()).unwrap();
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!((found.sha256, found.first_on_host), (Some(sha256_of("one")), true));
    assert_eq!((&found.path, found.process), (&text(&final_path), Some(GONE)));
    assert_eq!((found.sighting, found.file), (ExecutableSighting::Written, Some(state.identity)));

    // The hash is known when it is run; that it is run is told as well, once.
    let mut image =
        ProcessImage { path: Some(text(&final_path)), file: Some(state.identity), ..ProcessImage::default() };
    identifier.identify(GONE, now(), &mut image);
    assert_eq!(image.sha256, Some(sha256_of("one")));
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!((found.sighting, found.sha256), (ExecutableSighting::Run, Some(sha256_of("one"))));
    assert!(!found.first_on_host);
    identifier.identify(GONE, now(), &mut image);
    assert!(wait_is_quiet(&mut identifier));

    // In place, and everything that can be forged is forged: the hash is the new one all the same.
    let modified = fs::metadata(&final_path).unwrap().modified().unwrap();
    fs::write(&final_path, "two").unwrap();
    let file = fs::File::open(&final_path).unwrap();
    file.set_modified(modified).unwrap();
    let forged = FileState::of(&file).unwrap();
    assert_eq!(forged.identity, state.identity);
    writers.written(&file, &forged, text(&final_path), None, now()).unwrap();
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!((found.sha256, found.first_on_host), (Some(sha256_of("two")), true));
    identifier.identify(GONE, now(), &mut image);
    assert_eq!(image.sha256, Some(sha256_of("two")));
}

#[test]
fn a_package_is_named() {
    let host = Host::new();
    let image = host.program("tool", "one");
    let database = host.path("system/var/lib/dpkg");
    fs::create_dir_all(database.join("info")).unwrap();
    let list = format!("/.\n{}\n", image.path.as_ref().unwrap());
    fs::write(database.join("info/tools:amd64.list"), list).unwrap();
    fs::write(database.join("status"), "Package: tools\nStatus: install ok installed\nVersion: 7\n").unwrap();
    let mut identifier = host.open(LIMITS);
    identifier.identify(GONE, now(), &mut image.clone());
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    let package = Package { name: "tools".to_owned(), version: "7".to_owned(), source: "dpkg".to_owned() };
    assert_eq!(found.package, Some(package));

    // A process in a container runs another file of that path.
    let file = image.file.map(|file| FileIdentity { inode: file.inode + 1, ..file });
    identifier.identify(GONE, now(), &mut ProcessImage { file, ..image });
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert_eq!(found.package, None);
}

/// While its package is being installed: it is told together with its package, or, in the end, without.
#[test]
#[cfg(unix)]
fn what_a_package_manager_works_on_is_told_a_little_later() {
    let host = Host::new();
    let image = host.program("tool", "one");
    let other = host.program("other", "two");
    // With a log that cannot be read, as long as it is there.
    let database = host.path("system/var/lib/rpm/rpmdb.sqlite");
    fs::create_dir_all(database.parent().unwrap()).unwrap();
    fs::write(&database, "").unwrap();
    let log = database.with_extension("sqlite-wal");
    fs::write(&log, "log").unwrap();
    let mut identifier = host.open(LIMITS);
    identifier.identify(GONE, now(), &mut image.clone());
    identifier.identify(GONE, now(), &mut other.clone());
    let descriptor = identifier.descriptor();
    let mut descriptors = [rustix::event::PollFd::from_borrowed_fd(descriptor, rustix::event::PollFlags::IN)];
    let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 600_000_000 };
    assert_eq!(rustix::event::poll(&mut descriptors, Some(&moment)).unwrap(), 0, "something was told");
    fs::remove_file(&log).unwrap();
    let found = wait(&mut identifier, 2);
    assert_eq!((found[0].sha256, found[1].sha256), (Some(sha256_of("one")), Some(sha256_of("two"))));
}

fn trusted() -> Signature {
    Signature {
        subject: Some("Example Corp.".into()),
        ..Signature::of_status(SignatureStatus::Trusted, None)
    }
}

#[test]
fn a_signature_is_told_with_the_hash_in_each_run() {
    let host = Host::new();
    let mut image = host.program("tool", "one");
    let version = VersionInfo { company: Some("Example Corp.".into()), ..VersionInfo::default() };
    let examine: Examine = |file, path| {
        let company =
            (file.metadata().unwrap().len() == 3 && path.ends_with("tool")).then(|| "Example Corp.".into());
        Examined { signature: trusted(), version: Some(VersionInfo { company, ..VersionInfo::default() }) }
    };
    for _ in 0..2 {
        let mut identifier = host.examining(LIMITS, examine);
        identifier.identify(GONE, now(), &mut image);
        let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
        assert_eq!(found.sha256, Some(sha256_of("one")));
        assert_eq!((&found.signature, &found.version), (&Some(trusted()), &Some(version.clone())));
    }
}

#[test]
fn what_changes_while_its_signature_is_looked_at_was_not_checked() {
    let host = Host::new();
    let (mut image, mut moved) = (host.program("tool", "one"), host.program("moved", "two"));
    let mut identifier = host.examining(LIMITS, |_, path| {
        if path.ends_with("tool") {
            fs::write(path, "another").unwrap();
        } else {
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::write(path, "another").unwrap();
        }
        Examined { signature: trusted(), version: Some(VersionInfo::default()) }
    });
    identifier.identify(GONE, now(), &mut image);
    identifier.identify(GONE, now(), &mut moved);
    let found = wait(&mut identifier, 2);
    assert_eq!((found[0].sha256, found[1].sha256), (Some(sha256_of("one")), Some(sha256_of("two"))));
    for found in found {
        let not_checked = Signature::not_checked("it was changed or moved meanwhile");
        assert_eq!((found.signature, found.version), (Some(not_checked), None));
    }
}

#[test]
fn a_system_that_does_not_tell_keeps_no_hash_from_being_told() {
    static GATE: Mutex<()> = Mutex::new(());
    let closed = GATE.lock().unwrap();
    let host = Host::new();
    let mut images = [host.program("tool", "one"), host.program("other", "two")];
    let limits = Limits { signature_patience: Duration::from_millis(50), ..LIMITS };
    let mut identifier = host.examining(limits, |_, _| {
        drop(GATE.lock());
        Examined { signature: trusted(), version: None }
    });
    for image in &mut images {
        identifier.identify(GONE, now(), image);
    }
    let found = wait(&mut identifier, 2);
    assert_eq!((found[0].sha256, found[1].sha256), (Some(sha256_of("one")), Some(sha256_of("two"))));
    let reasons: Vec<_> = found.into_iter().map(|found| found.signature.unwrap()).collect();
    let not_checked =
        ["the system has not told within 0.05 s", "the system has not told of another file there"];
    assert_eq!(reasons, not_checked.map(Signature::not_checked));
    drop(closed);
}

#[test]
fn what_has_no_hash_has_no_signature() {
    let host = Host::new();
    let mut image = host.program("tool", "three");
    let limits = Limits { hashed_bytes_max: 2, ..LIMITS };
    let mut identifier = host.examining(limits, |_, _| panic!("it is not asked for"));
    identifier.identify(GONE, now(), &mut image);
    let [found] = &wait(&mut identifier, 1)[..] else { panic!() };
    assert!(found.problem.is_some() && found.signature.is_none());
}

#[test]
fn a_kernel_thread_has_no_executable() {
    let host = Host::new();
    let mut identifier = host.open(LIMITS);
    let mut image = ProcessImage { name: "kworker".to_owned(), ..ProcessImage::default() };
    identifier.identify(GONE, now(), &mut image);
    assert_eq!(image, ProcessImage { name: "kworker".to_owned(), ..ProcessImage::default() });
    assert!(wait_is_quiet(&mut identifier));
}

#[test]
fn it_stops_in_the_middle_of_its_work() {
    let host = Host::new();
    let mut identifier = host.open(Limits::default());
    let path = host.path("bin").join("huge");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    identifier.identify(
        GONE,
        now(),
        &mut ProcessImage { path: Some(text(&path)), ..ProcessImage::default() },
    );
    let started = Instant::now();
    drop(identifier);
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
}

/// What a known file costs where processes are recorded, and how fast a file is read. Shown, not judged.
#[test]
fn the_figures_are_shown() {
    let host = Host::new();
    let mut identifier = host.open(Limits::default());
    let mut images: Vec<_> =
        (0..100).map(|number| host.program(&format!("tool{number}"), &format!("{number}"))).collect();
    for image in &mut images {
        identifier.identify(GONE, now(), image);
    }
    wait(&mut identifier, images.len());
    let started = Instant::now();
    const ROUNDS: u32 = 1_000;
    for _ in 0..ROUNDS {
        for image in &mut images {
            identifier.identify(GONE, now(), image);
        }
    }
    eprintln!("a known file: {:?}", started.elapsed() / ROUNDS / 100);
    assert!(images.iter().all(|image| image.sha256.is_some()));

    let mib = 64;
    let large = host.program("large", &"x".repeat(mib << 20));
    let started = Instant::now();
    identifier.identify(GONE, now(), &mut large.clone());
    wait(&mut identifier, 1);
    eprintln!("an unknown file: {:.0} MiB/s", mib as f64 / started.elapsed().as_secs_f64());
}
