//! What is told of a process when it becomes another program, held against what the test made it be: where it stood, at
//! which terminal, in which group, with whose rights, with which arguments, and which file it ran.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use alibi_lab::{
    capture::tail::Tail,
    requirements::{Requirement, met},
    system::Agent,
};
use alibi_proto::{event::EventKind, executable::ExecutableRecord, process::ProcessImage};
use rustix::fs::{MemfdFlags, memfd_create};

struct Host {
    agent: Agent,
    tail: Tail,
    directory: tempfile::TempDir,
}

impl Host {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("agent");
        let listen = format!("unix:{}", directory.path().join("agent.sock").display());
        let program = Command::new(&alibi_lab::programs::programs().agent);
        let agent = Agent::start_with(program, &data, &listen, &["--source", "ebpf"]);
        let mut tail = Tail::open(&agent.address).unwrap();
        tail.until("a watermark", |tail| tail.watermark.is_some()).unwrap();
        Self { agent, tail, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// A program of its own, whose file is nobody else's.
    fn copy(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy("/bin/sleep", &path).unwrap();
        path
    }

    /// The last image that is told of with `token` among its arguments, but for those who only hand it on.
    fn image(&mut self, token: &str) -> ProcessImage {
        let find = |tail: &Tail| {
            let images = tail.events.iter().rev().filter_map(|event| match &event.kind {
                EventKind::ProcessStarted(process) => Some(&process.image),
                EventKind::ProcessExecuted(execution) => Some(&execution.image),
                _ => None,
            });
            let is_it = |image: &ProcessImage| {
                image.arguments.iter().any(|word| word == token)
                    && !["sh", "setsid"].contains(&image.name.as_str())
            };
            images.into_iter().find(|image| is_it(image)).cloned()
        };
        self.tail.until(token, |tail| find(tail).is_some()).unwrap();
        find(&self.tail).unwrap()
    }

    fn seen(&mut self, path: &str) -> ExecutableRecord {
        let find = |tail: &Tail| {
            tail.events.iter().find_map(|event| match &event.kind {
                EventKind::ExecutableSeen(seen) if seen.path == path => Some((**seen).clone()),
                _ => None,
            })
        };
        self.tail.until(path, |tail| find(tail).is_some()).unwrap();
        find(&self.tail).unwrap()
    }
}

/// Runs a program to its end. `sleep` of no time, told from others by how that is written.
fn run(command: &mut Command, token: &str) {
    let output = command.arg(token).output().unwrap();
    assert!(output.status.success(), "{token}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An argument that is 0 to `sleep`, and that nobody else writes this way.
fn token(number: u32) -> String {
    format!("0.{:0>20}{number}e-99", std::process::id())
}

#[test]
fn an_image_is_told_as_the_process_was() {
    if !met("images", &[Requirement::Bpf, Requirement::Root]) {
        return;
    }
    let mut host = Host::begin();
    let pid = std::process::id();

    // Where it stands, however that was reached; also where nobody else can go.
    let place = host.path("a place with spaces");
    fs::create_dir(&place).unwrap();
    let link = host.path("link");
    std::os::unix::fs::symlink(&place, &link).unwrap();
    run(Command::new("/bin/sleep").current_dir(&link), &token(1));
    let image = host.image(&token(1));
    assert_eq!(image.working_directory.as_deref(), place.to_str());
    assert_eq!(image.path, fs::canonicalize("/bin/sleep").unwrap().to_str().map(str::to_owned));
    assert_eq!((image.name.as_str(), image.arguments_truncated), ("sleep", false));
    assert_eq!(image.arguments, ["/bin/sleep", &token(1)]);
    let user = image.user.clone().unwrap();
    assert_eq!((user.id.as_str(), user.name.as_deref(), image.effective_user), ("0", Some("root"), None));

    // At a terminal of its own, which says what it is.
    let says = host.path("terminal");
    let script = format!("tty > '{}' && exec /bin/sleep {}", says.display(), token(2));
    let output = Command::new("script").args(["-qec", &script, "/dev/null"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let terminal = fs::read_to_string(&says).unwrap();
    let image = host.image(&token(2));
    assert_eq!(image.terminal.as_deref(), terminal.trim().strip_prefix("/dev/"), "{image:#?}");
    // And without one.
    run(Command::new("setsid").args(["--fork", "--wait", "/bin/sleep"]), &token(3));
    assert_eq!(host.image(&token(3)).terminal, None);

    // In a control group of its own.
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let root = root.into_iter().find(|root| root.join("cgroup.controllers").exists()).unwrap();
    let group = Group::new(root.join(format!("alibi-{pid}")));
    let script = r#"echo $$ > "$0/cgroup.procs" && exec /bin/sleep "$@""#;
    let mut child =
        Command::new("sh").args(["-c", script]).arg(&group.0).args(["60", &token(4)]).spawn().unwrap();
    let image = host.image(&token(4));
    assert_eq!(image.cgroup.as_deref(), Some(format!("/alibi-{pid}").as_str()), "{image:#?}");
    // Once the group is known, also of whom is gone at once.
    run(Command::new("sh").args(["-c", script]).arg(&group.0), &token(40));
    let image = host.image(&token(40));
    assert_eq!(image.cgroup.as_deref(), Some(format!("/alibi-{pid}").as_str()), "{image:#?}");
    child.kill().and_then(|()| child.wait()).unwrap();

    // With another's rights.
    let setuid = host.copy("setuid");
    std::os::unix::fs::chown(&setuid, Some(65534), None).unwrap();
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    run(&mut Command::new(&setuid), &token(5));
    let image = host.image(&token(5));
    let id = |user: &Option<alibi_proto::process::User>| user.as_ref().map(|user| user.id.clone());
    assert_eq!((id(&image.user), id(&image.effective_user)), (Some("0".into()), Some("65534".into())));

    // With more arguments than are kept: the first are there, and that the rest is not is said.
    let mut many = vec![token(6)];
    many.extend((0..2_000).map(|_| "0.000".to_owned()));
    let output = Command::new("/bin/sleep").args(&many).output().unwrap();
    assert!(output.status.success());
    let image = host.image(&token(6));
    assert!(image.arguments_truncated && image.arguments.len() > 500, "{}", image.arguments.len());
    assert!(image.arguments.len() < many.len());

    // From deeper than can be told: the end of the path is there, and that its beginning is not is said.
    let mut deep = host.path("deep");
    while deep.as_os_str().len() < 1_500 {
        deep.push("d".repeat(150));
    }
    fs::create_dir_all(&deep).unwrap();
    let program = deep.join("program");
    fs::copy("/bin/sleep", &program).unwrap();
    run(Command::new(&program).current_dir(&deep), &token(7));
    let image = host.image(&token(7));
    for (told, whole) in [(image.path.unwrap(), &program), (image.working_directory.unwrap(), &deep)] {
        let end = told.strip_prefix("...").unwrap_or_else(|| panic!("not said to be cut: {told}"));
        assert!(whole.to_str().unwrap().ends_with(end) && end.len() > 700, "{told}");
    }

    // A file that is removed while it runs.
    let removed = host.copy("removed");
    let mut child = Command::new(&removed).args(["60", &token(8)]).spawn().unwrap();
    fs::remove_file(&removed).unwrap();
    let image = host.image(&token(8));
    assert_eq!(image.path.as_deref(), removed.to_str(), "as it was when it was run");
    let seen = host.seen(removed.to_str().unwrap());
    assert!(seen.sha256.is_some() || seen.problem.is_some(), "{seen:#?}");
    eprintln!("of a file that was removed: {:?} {:?}", seen.sha256, seen.problem);

    // A file that never had a name.
    let nameless = memfd_create("payload", MemfdFlags::empty()).unwrap();
    std::io::copy(
        &mut fs::File::open("/bin/sleep").unwrap(),
        &mut fs::File::from(nameless.try_clone().unwrap()),
    )
    .unwrap();
    run(&mut Command::new(format!("/proc/self/fd/{}", nameless.as_raw_fd())), &token(9));
    let image = host.image(&token(9));
    eprintln!("of a file without a name: {:?} {:?}", image.path, image.file);
    assert!(image.path.as_deref().is_some_and(|path| path.contains("memfd:payload")), "{image:#?}");

    // An agent that comes later finds the removed file's process by the table.
    let Host { agent, directory, .. } = host;
    assert!(agent.running.stop().success());
    let listen = format!("unix:{}", directory.path().join("second.sock").display());
    let program = Command::new(&alibi_lab::programs::programs().agent);
    let second = Agent::start_with(program, &directory.path().join("second"), &listen, &["--source", "ebpf"]);
    let mut later = Host { tail: Tail::open(&second.address).unwrap(), agent: second, directory };
    let image = later.image(&token(8));
    eprintln!("found later: {:?}", image.path);
    assert!(
        image.path.as_deref().is_some_and(|path| path.starts_with(removed.to_str().unwrap())),
        "{image:#?}"
    );
    child.kill().and_then(|()| child.wait()).unwrap();
    assert!(later.agent.running.stop().success());
}

/// A control group; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever is in it still, in a test that has failed, is its own. The next moment it is empty, or it stays.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let _ = fs::remove_dir(&self.0);
    }
}
