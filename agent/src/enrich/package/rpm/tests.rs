use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use alibi_proto::time::Timestamp;
use rusqlite::params;
use tempfile::TempDir;

use super::{
    header::build::{Parts, header},
    *,
};
#[cfg(unix)]
use crate::enrich::executable::skip;

/// A file as packages made here have it.
const AS_PACKAGED: FileIdentity =
    FileIdentity { device: 1, inode: 2, modified: Timestamp::from_secs(7), size: 5 };

/// A system with an rpm database.
struct System {
    root: TempDir,
    database: Connection,
}

impl System {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("usr/lib/sysimage/rpm");
        fs::create_dir_all(&directory).unwrap();
        let database = Connection::open(directory.join(DATABASE)).unwrap();
        let script = "PRAGMA foreign_keys = OFF; CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL);
            CREATE TABLE 'Basenames' (key 'TEXT' NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL,
                FOREIGN KEY (hnum) REFERENCES 'Packages'(hnum));
            CREATE INDEX 'Basenames_key_idx' ON 'Basenames'(key ASC);";
        database.execute_batch(script).unwrap();
        Self { root, database }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("usr/lib/sysimage/rpm").join(DATABASE)
    }

    fn install(&self, parts: &Parts) {
        self.install_header(&header(parts), parts);
    }

    fn install_header(&self, header: &[u8], parts: &Parts) {
        self.database.execute("INSERT INTO Packages (blob) VALUES (?)", [header]).unwrap();
        let package = self.database.last_insert_rowid();
        for (index, file) in (0..).zip(&parts.files) {
            let row: (&str, i64, i64) = (&file.1, package, index);
            self.database.execute("INSERT INTO Basenames VALUES (?, ?, ?)", row).unwrap();
        }
    }

    fn rpm(&self) -> Rpm {
        Rpm::open(self.root.path())
    }

    fn check(&self, path: &str, expected: Option<(&str, &str)>) {
        check(&mut self.rpm(), path, &AS_PACKAGED, expected);
    }
}

fn check(rpm: &mut Rpm, path: &str, file: &FileIdentity, expected: Option<(&str, &str)>) {
    let owner = rpm.owner(path, file).unwrap();
    let found = owner.as_ref().map(|owner| (owner.name.as_str(), owner.version.as_str()));
    assert_eq!(found, expected, "{path}");
    assert!(owner.is_none_or(|owner| owner.source == "rpm"));
}

fn parts(name: &'static str, files: &[&str]) -> Parts {
    let file = |path: &&str| {
        let (directory, name) = path.rsplit_once('/').unwrap();
        (format!("{directory}/"), name.to_owned(), 0)
    };
    Parts { name, files: files.iter().map(file).collect(), size: 5, ..Parts::default() }
}

#[test]
fn a_file_belongs_to_the_package_that_has_it() {
    let system = System::new();
    system.install(&parts("coreutils", &["/usr/bin/env", "/usr/bin/ls"]));
    system.install(&Parts { epoch: Some(4), ..parts("other", &["/opt/other/env", "/usr/lib/ls"]) });
    let mut replaced = parts("replaced", &["/usr/bin/replaced"]);
    replaced.files[0].2 = 1;
    system.install(&replaced);
    system.check("/usr/bin/env", Some(("coreutils", "1-2")));
    system.check("/opt/other/env", Some(("other", "4:1-2")));
    for none in ["/opt/env", "/usr/bin/envy", "/usr/bin", "/usr/bin/replaced", "", "/", "env"] {
        system.check(none, None);
    }
}

#[test]
fn while_a_package_is_replaced_the_one_that_the_file_is_of_has_it() {
    let system = System::new();
    system.install(&parts("new", &["/usr/bin/tool"]));
    system.install(&Parts { size: 6, ..parts("old", &["/usr/bin/tool"]) });
    system.check("/usr/bin/tool", Some(("new", "1-2")));
    let changed = FileIdentity { size: 9, ..AS_PACKAGED };
    check(&mut system.rpm(), "/usr/bin/tool", &changed, Some(("old", "1-2")));
}

#[test]
#[cfg(unix)]
fn a_directory_has_all_its_names() {
    let system = System::new();
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("usr/sbin", "bin"), ("lib", "elsewhere")]
    {
        std::os::unix::fs::symlink(target, system.root.path().join(link)).unwrap();
    }
    system.install(&parts("a", &["/bin/a"]));
    system.install(&parts("b", &["/usr/bin/b"]));
    system.install(&parts("c", &["/sbin/c"]));
    system.install(&parts("d", &["/lib/d"]));
    for (path, package) in [("/usr/bin/a", "a"), ("/bin/b", "b"), ("/usr/sbin/b", "b"), ("/usr/bin/c", "c")] {
        system.check(path, Some((package, "1-2")));
    }
    for none in ["/usr/lib/d", "/elsewhere/d", "/binary/a"] {
        system.check(none, None);
    }
}

#[test]
fn a_system_without_a_database_has_no_packages() {
    let root = tempfile::tempdir().unwrap();
    check(&mut Rpm::open(root.path()), "/usr/bin/env", &AS_PACKAGED, None);
    let directory = root.path().join("var/lib/rpm");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Packages"), "berkeley").unwrap();
    let mut rpm = Rpm::open(root.path());
    check(&mut rpm, "/usr/bin/env", &AS_PACKAGED, None);
    assert!(rpm.has_complained);
}

#[test]
fn what_is_still_in_the_log_is_read_and_nothing_is_written() {
    let system = System::new();
    system.install(&parts("tools", &["/usr/bin/tool"]));
    let (path, System { root, database }) = (system.path(), system);
    drop(database);
    // In the middle of a transaction, what was there before it holds; that is partly in the log.
    let mut writer = Command::new(std::env::current_exe().unwrap());
    writer.args(["--exact", "enrich::package::rpm::tests::a_writer_in_another_process", "--nocapture"]);
    writer.env(WRITER, &path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let is_ready = lines.map_while(Result::ok).any(|line| line.ends_with("is ready"));
    let before = listing(&path);
    // With the rights that the agent keeps; they are those of a thread.
    let mut rpm = Rpm::open(root.path());
    let agent = std::thread::spawn(move || {
        let _ = crate::sys::keep_needed_privileges();
        rpm.owner("/usr/bin/tool", &AS_PACKAGED)
    });
    let found = agent.join().unwrap();
    let after = listing(&path);

    let other = tempfile::tempdir().unwrap();
    let directory = other.path().join("var/lib/rpm");
    fs::create_dir_all(&directory).unwrap();
    let copy = |suffix: &str| {
        let name = format!("{DATABASE}{suffix}");
        fs::copy(path.with_file_name(&name), directory.join(&name)).unwrap();
        listing(&directory.join(DATABASE))
    };
    copy("");
    let without_index = copy("-wal");
    let of_nobody = Rpm::open(other.path()).owner("/usr/bin/tool", &AS_PACKAGED);
    assert_eq!(listing(&directory.join(DATABASE)), without_index);
    let with_index = copy("-shm");
    writer.kill().unwrap();
    writer.wait().unwrap();

    assert!(is_ready);
    assert_eq!(before.len(), 3, "{before:?}");
    assert!(before[2].1 > 0, "{before:?}");
    assert_eq!(after, before);
    assert_eq!(found.unwrap().unwrap().name, "changed");
    // Its index would have to be made.
    assert_eq!(of_nobody, Err(Busy));
    // Whoever had it open has died, and has left everything.
    check(&mut Rpm::open(other.path()), "/usr/bin/tool", &AS_PACKAGED, Some(("changed", "1-2")));
    assert_eq!(listing(&directory.join(DATABASE)), with_index);
}

const WRITER: &str = "ALIBI_TEST_RPM_WRITER";

/// Not a test of its own: what another process does to a database.
#[test]
fn a_writer_in_another_process() {
    let Some(path) = std::env::var_os(WRITER) else { return };
    let database = Connection::open(path).unwrap();
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = OFF").unwrap();
    let changed = header(&parts("changed", &["/usr/bin/tool"]));
    database.execute("UPDATE Packages SET blob = ?", [changed]).unwrap();
    database.execute_batch("BEGIN IMMEDIATE; DELETE FROM Basenames").unwrap();
    println!("\nthe writer is ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// What is in the directory of a database: names, sizes, times.
fn listing(database: &Path) -> Vec<(String, u64, SystemTime, u32)> {
    let mut found: Vec<_> = fs::read_dir(database.parent().unwrap())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            // Readers note in the index that they are there, if they may.
            let content = crc32c::crc32c(&fs::read(entry.path()).unwrap());
            (name, metadata.len(), metadata.modified().unwrap(), content)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_database_that_is_locked_is_asked_again() {
    let system = System::new();
    system.install(&parts("tools", &["/usr/bin/tool"]));
    let wal = "PRAGMA journal_mode = WAL; PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE;
        DELETE FROM Basenames; COMMIT";
    system.database.execute_batch(wal).unwrap();
    assert_eq!(system.rpm().owner("/usr/bin/tool", &AS_PACKAGED), Err(Busy));
}

#[test]
fn a_hostile_database_has_no_packages() {
    let check_none = |script: &str| {
        let system = System::new();
        system.install(&parts("tools", &["/usr/bin/tool"]));
        system.database.execute_batch(script).unwrap();
        system.check("/usr/bin/tool", None);
    };
    check_none("DROP TABLE Basenames");
    check_none("UPDATE Packages SET blob = 'text'");
    check_none("UPDATE Packages SET blob = zeroblob(70000000)");
    check_none("UPDATE Basenames SET idx = -1");
    check_none("UPDATE Basenames SET idx = 9223372036854775807");
    check_none("UPDATE Basenames SET hnum = 99");
    check_none("UPDATE Basenames SET hnum = 'x'");
    check_none(
        "DROP TABLE Basenames; CREATE VIEW Basenames AS WITH RECURSIVE n(i) AS
            (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'tool' AS key, i AS hnum, 0 AS idx FROM n",
    );
    let system = System::new();
    let file = parts("tools", &["/usr/bin/tool"]);
    system.install(&file);
    for number in 0..2 * CANDIDATES_MAX {
        let row = params!["tool", i64::from(number) + 100, 0];
        system.database.execute("INSERT INTO Basenames VALUES (?, ?, ?)", row).unwrap();
    }
    let mut rpm = system.rpm();
    check(&mut rpm, "/usr/bin/tool", &AS_PACKAGED, None);
    assert!(rpm.has_complained);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn a_damaged_database_does_no_harm(
        damage in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0..=255u8), 1..60),
        cut in proptest::option::of(proptest::prelude::any::<proptest::sample::Index>()),
    ) {
        let system = System::new();
        for name in ["a", "b", "c"] {
            system.install(&parts(name, &["/usr/bin/tool", "/usr/bin/other"]));
        }
        let mut bytes = fs::read(system.path()).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let other = tempfile::tempdir().unwrap();
        let directory = other.path().join("var/lib/rpm");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(DATABASE), bytes).unwrap();
        let _ = Rpm::open(other.path()).owner("/usr/bin/tool", &AS_PACKAGED);
    }
}

/// A package that rpm itself has built, in a database that it has written.
#[test]
#[cfg(unix)]
fn what_rpm_installs_has_its_package() {
    let has_rpm = ["rpm", "rpmbuild"].iter().all(|tool| {
        let mut command = Command::new(tool);
        command.arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if !has_rpm {
        skip("it takes rpm and rpmbuild (Debian: apt install rpm)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let database = root.join("usr/lib/sysimage/rpm");
    fs::create_dir_all(&database).unwrap();
    let tool = root.join("opt/alibi/tool");
    for version in ["1", "2"] {
        let package = build(directory.path(), version);
        let mut install = Command::new("rpm");
        install.arg("--root").arg(&root).args([
            "--dbpath",
            "/usr/lib/sysimage/rpm",
            "--nodeps",
            "--noscripts",
        ]);
        let installed = install.arg("-U").arg(&package).output().unwrap();
        assert!(installed.status.success(), "{installed:?}");
        assert!(tool.is_file(), "{installed:?}");

        let before = listing(&database.join(DATABASE));
        let file = file_at(&tool);
        let mut rpm = Rpm::open(&root);
        check(&mut rpm, "/opt/alibi/tool", &file, Some(("alibi-tool", &format!("7:{version}-3"))));
        let found = rpm.look_up(
            &database.join(DATABASE),
            State::of(&database.join(DATABASE)).unwrap(),
            "/opt/alibi/tool",
            &file,
        );
        assert!(found.unwrap().unwrap().is_it, "its size and time are those of the package");
        check(&mut rpm, "/opt/alibi/ghost", &file, None);
        assert_eq!(listing(&database.join(DATABASE)), before, "nothing is made or changed there");
    }
    check_lock(&root, &file_at(&tool));
}

/// rpm says with a lock that it works; then a file that is not as its package has it may be of one that is not yet there.
#[cfg(unix)]
fn check_lock(root: &Path, file: &FileIdentity) {
    let lock = root.join("usr/lib/sysimage/rpm/.rpm.lock");
    // As rpm does it (fcntl), by a program that every system with rpmbuild has.
    let script = "open(my $f, '+>', $ARGV[0]); my $l = pack('s s x4 q q l x4', 1, 0, 0, 0, 0);
        fcntl($f, 6, $l) or die $!;
        syswrite(STDOUT, 'x'); <STDIN>";
    let mut command = Command::new("perl");
    command.args(["-e", script]).arg(&lock).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let mut rpm = Rpm::open(root);
    assert!(rpm.owner("/opt/alibi/tool", file).unwrap().is_some(), "it is as it was packaged");
    let other = FileIdentity { size: 1, ..*file };
    assert_eq!(rpm.owner("/opt/alibi/tool", &other), Err(Busy));
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(rpm.owner("/opt/alibi/tool", &other).unwrap().is_some(), "it was changed since");
}

#[cfg(unix)]
fn file_at(path: &Path) -> FileIdentity {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::metadata(path).unwrap();
    let modified = u64::try_from(found.mtime()).unwrap();
    FileIdentity {
        device: found.dev(),
        inode: found.ino(),
        modified: Timestamp::from_secs(modified),
        size: found.len(),
    }
}

#[cfg(unix)]
fn build(directory: &Path, version: &str) -> PathBuf {
    let specification = format!(
        "Name: alibi-tool\nEpoch: 7\nVersion: {version}\nRelease: 3\nSummary: a tool\nLicense: MIT\n\
         BuildArch: noarch\n%description\na tool\n%install\nmkdir -p %{{buildroot}}/opt/alibi\n\
         echo '#!/bin/sh {version}' > %{{buildroot}}/opt/alibi/tool\nchmod 755 %{{buildroot}}/opt/alibi/tool\n\
         %files\n/opt/alibi/tool\n"
    );
    let path = directory.join("tool.spec");
    fs::write(&path, specification).unwrap();
    let top = directory.join("top");
    let mut command = Command::new("rpmbuild");
    command.args(["-bb", "--quiet", "--define"]).arg(format!("_topdir {}", top.display())).arg(&path);
    let built = command.output().unwrap();
    assert!(built.status.success(), "{built:?}");
    top.join(format!("RPMS/noarch/alibi-tool-{version}-3.noarch.rpm"))
}

/// Some hundred packages with some hundred files each. Shown, not judged.
#[test]
fn the_figures_are_shown() {
    const PACKAGES: usize = 600;
    let system = System::new();
    system.database.execute_batch("PRAGMA synchronous = OFF; BEGIN").unwrap();
    for package in 0..PACKAGES {
        let paths: Vec<_> =
            (0..300).map(|file| format!("/usr/share/package-{package}/file-{file}")).collect();
        let mut paths: Vec<_> = paths.iter().map(String::as_str).collect();
        let tool = format!("/usr/bin/tool-{package}");
        paths.push(&tool);
        system.install(&parts("package", &paths));
    }
    system.database.execute_batch("COMMIT").unwrap();
    let mut rpm = system.rpm();
    for (what, prefix) in [("a file of one package", "/usr/bin/tool-"), ("a file of none", "/usr/bin/none-")]
    {
        let started = Instant::now();
        let mut found = 0;
        for package in 0..PACKAGES {
            found += usize::from(rpm.owner(&format!("{prefix}{package}"), &AS_PACKAGED).unwrap().is_some());
        }
        eprintln!("{what}: {:?} for each look-up, {found} found", started.elapsed() / PACKAGES as u32);
    }
}
