use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alibi_proto::time::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::sys::testing::set_modified;

/// dpkg does not say what a file must be like.
const ANY: FileIdentity = FileIdentity { device: 0, inode: 0, modified: Timestamp::from_secs(0), size: 0 };

/// A system with a dpkg database.
struct System(TempDir);

impl System {
    fn new() -> Self {
        let system = Self(tempfile::tempdir().unwrap());
        system.write("status", "");
        fs::create_dir_all(system.path("info")).unwrap();
        fs::create_dir_all(system.path("updates")).unwrap();
        system
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("var/lib/dpkg").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn install(&self, package: &str, version: &str, paths: &[&str]) {
        self.write(&format!("info/{package}.list"), &format!("/.\n{}\n", paths.join("\n")));
        let name = package.split(':').next().unwrap();
        self.add_status(name, "install ok installed", version);
    }

    fn add_status(&self, name: &str, status: &str, version: &str) {
        let status = format!(
            "Package: {name}\nStatus: {status}\nPriority: optional\nDescription: x\n Package: not-a-field\nVersion: {version}\n\n"
        );
        let old = fs::read_to_string(self.path("status")).unwrap();
        fs::write(self.path("status"), old + &status).unwrap();
    }

    fn packages(&self) -> Packages {
        Packages::open(self.0.path())
    }
}

fn check(packages: &mut Packages, path: &str, expected: Option<(&str, &str)>) {
    let owner = packages.owner(path, &ANY).unwrap();
    let found = owner.as_ref().map(|owner| (owner.name.as_str(), owner.version.as_str()));
    assert_eq!(found, expected, "{path}");
    assert!(owner.is_none_or(|owner| owner.source == "dpkg"));
}

#[test]
fn a_file_belongs_to_the_package_that_lists_it() {
    let system = System::new();
    system.install("coreutils", "9.1-1", &["/usr", "/usr/bin", "/usr/bin/env", "/usr/bin/envy"]);
    system.install("libc6:amd64", "2.36", &["/lib/x86_64-linux-gnu/libc.so.6"]);
    let mut packages = system.packages();
    check(&mut packages, "/usr/bin/env", Some(("coreutils", "9.1-1")));
    check(&mut packages, "/usr/bin/envy", Some(("coreutils", "9.1-1")));
    check(&mut packages, "/lib/x86_64-linux-gnu/libc.so.6", Some(("libc6", "2.36")));
    for none in ["/usr/bin/en", "/usr/bin", "/usr/bin/env.dpkg-new", "/bin/env", "", "/"] {
        check(&mut packages, none, None);
    }
}

#[test]
fn a_system_without_dpkg_has_no_packages() {
    let empty = tempfile::tempdir().unwrap();
    check(&mut Packages::open(empty.path()), "/usr/bin/env", None);
}

#[test]
#[cfg(unix)]
fn where_usr_is_merged_a_file_has_two_names() {
    let system = System::new();
    system.install("bash", "5.2", &["/bin/bash", "/usr/share/x/run"]);
    system.install("env", "9.1", &["/usr/bin/env"]);
    fs::create_dir_all(system.0.path().join("sbin")).unwrap();
    system.install("ip", "6", &["/sbin/ip"]);
    std::os::unix::fs::symlink("usr/bin", system.0.path().join("bin")).unwrap();
    let mut packages = system.packages();
    check(&mut packages, "/usr/bin/bash", Some(("bash", "5.2")));
    check(&mut packages, "/bin/bash", Some(("bash", "5.2")));
    check(&mut packages, "/bin/env", Some(("env", "9.1")));
    check(&mut packages, "/share/x/run", None);
    check(&mut packages, "/usr/sbin/ip", None);
}

#[test]
fn a_diverted_file_belongs_to_those_who_put_it_there() {
    let system = System::new();
    system.install("dash", "0.5", &["/usr/bin/sh"]);
    system.install("perf", "6.1", &["/usr/bin/perf"]);
    system.install("wrapper", "1", &["/usr/bin/perf"]);
    system.write(
        "diversions",
        "/usr/bin/perf\n/usr/bin/perf.distrib\nwrapper\n/usr/bin/sh\n/usr/bin/sh.distrib\n:\n",
    );
    let mut packages = system.packages();
    check(&mut packages, "/usr/bin/perf", Some(("wrapper", "1")));
    check(&mut packages, "/usr/bin/perf.distrib", Some(("perf", "6.1")));
    check(&mut packages, "/usr/bin/sh.distrib", Some(("dash", "0.5")));
    check(&mut packages, "/usr/bin/sh", None);
}

#[test]
fn a_package_at_work_is_as_dpkg_notes_it() {
    let system = System::new();
    system.install("tool", "1", &["/usr/bin/tool"]);
    let mut packages = system.packages();
    check(&mut packages, "/usr/bin/tool", Some(("tool", "1")));
    system.write("updates/0000", "Package: tool\nStatus: install ok half-installed\nVersion: 1\n");
    system.write("updates/0001", "Package: other\nStatus: install ok installed\nVersion: 9\n");
    check(&mut packages, "/usr/bin/tool", None);
    system.write("updates/0002", "Package: tool\nStatus: install ok unpacked\nVersion: 2\n");
    check(&mut packages, "/usr/bin/tool", Some(("tool", "2")));
}

#[test]
fn a_package_that_is_gone_has_nothing_but_its_configuration() {
    let system = System::new();
    system.install("gone", "1", &["/etc/init.d/gone"]);
    let status = fs::read_to_string(system.path("status")).unwrap().replace("installed", "config-files");
    system.write("status", &status);
    system.write("info/half.list", "/.\n/usr/bin/half\n");
    system.add_status("half", "install reinstreq half-installed", "3");
    let mut packages = system.packages();
    check(&mut packages, "/etc/init.d/gone", Some(("gone", "1")));
    check(&mut packages, "/usr/bin/half", None);
}

#[test]
fn what_has_changed_in_the_database_is_read_again() {
    let system = System::new();
    system.install("tool", "1", &["/usr/bin/tool", "/usr/bin/dropped"]);
    system.install("other", "1", &["/usr/bin/other"]);
    let mut packages = system.packages();
    check(&mut packages, "/usr/bin/tool", Some(("tool", "1")));
    check(&mut packages, "/usr/bin/new", None);
    let mut later = SystemTime::now();
    let mut change = |name: &str| {
        later += Duration::from_secs(60);
        set_modified(&system.path(name), later);
    };

    system.install("new", "1", &["/usr/bin/new"]);
    change("info");
    change("status");
    check(&mut packages, "/usr/bin/new", Some(("new", "1")));

    system.write("info/tool.list", "/.\n/usr/bin/tool\n/usr/bin/added\n");
    fs::remove_file(system.path("info/other.list")).unwrap();
    change("info");
    let status = fs::read_to_string(system.path("status")).unwrap().replacen("Version: 1", "Version: 2", 1);
    system.write("status", &status);
    change("status");
    check(&mut packages, "/usr/bin/tool", Some(("tool", "2")));
    check(&mut packages, "/usr/bin/added", Some(("tool", "2")));
    check(&mut packages, "/usr/bin/new", Some(("new", "1")));
    check(&mut packages, "/usr/bin/dropped", None);
    check(&mut packages, "/usr/bin/other", None);

    system.install("last", "3", &["/usr/bin/other"]);
    change("info");
    change("status");
    check(&mut packages, "/usr/bin/other", Some(("last", "3")));
    packages.forget();
    check(&mut packages, "/usr/bin/other", Some(("last", "3")));
}

/// On a system with dpkg: everything that bash came with belongs to it, and the figures are shown.
#[test]
fn the_database_of_this_system_is_read() {
    let Ok(list) = fs::read_to_string("/var/lib/dpkg/info/bash.list") else {
        eprintln!("skipped: there is no dpkg here");
        return;
    };
    let mut packages = Packages::open(Path::new("/"));
    let started = std::time::Instant::now();
    packages.owner("/nonexistent", &ANY).unwrap();
    eprintln!("index built in {:?}: {}", started.elapsed(), packages.dpkg.figures());
    let started = std::time::Instant::now();
    let mut count = 0;
    for path in list.lines().filter(|path| Path::new(path).is_file()) {
        let owner = packages.owner(path, &ANY).unwrap().unwrap_or_else(|| panic!("{path} belongs to bash"));
        assert_eq!(owner.name, "bash", "{path}");
        count += 1;
    }
    eprintln!("{count} look-ups in {:?}", started.elapsed());
    assert!(count > 0);
}
