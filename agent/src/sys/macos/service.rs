//! launchd: a daemon, by its property list. Written after launchd.plist(5) and launchctl(1), and never run.

use std::{
    env,
    ffi::CString,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use alibi_proto::data_directory::write_whole;

use crate::sys::{
    is_privileged,
    service::{
        NAME, News, ServiceError, ServiceStatus, configure, unconfigure,
        unix::{ROOT, refuse_exposed, run},
    },
};

pub(in crate::sys) use crate::sys::service::unix::be_service;

/// The property list as packages have it.
const LIST: &str = include_str!("../../../service/alibi-agent.plist");
/// What of it names the program.
const PROGRAM: &str = "<string>/usr/local/bin/alibi-agent</string>";
const PLACE: &str = "/Library/LaunchDaemons/alibi-agent.plist";
const DOMAIN: &str = "system";
const SERVICE: &str = "system/alibi-agent";

pub(in crate::sys) fn install(program: &Path, configuration: &Path) -> Result<Vec<String>, ServiceError> {
    is_root()?;
    refuse_exposed(program)?;
    let list = list_of(program).ok_or_else(|| ServiceError::Unspeakable(program.to_owned()))?;
    if let Some(directory) = configuration.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(ServiceError::file(directory))?;
    }
    let mut done = Vec::new();
    if configure(configuration)? {
        done.push(format!(
            "wrote the configuration {}, in which nothing is set yet",
            configuration.display()
        ));
    }
    // One that is loaded already would go on as it was.
    let _ = run("launchctl", &["bootout", SERVICE]);
    let path = Path::new(PLACE);
    write_whole(path, list.as_bytes())
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(ServiceError::file(path))?;
    done.push(format!("wrote {PLACE}"));
    run("launchctl", &["enable", SERVICE])?;
    run("launchctl", &["bootstrap", DOMAIN, PLACE])?;
    done.push(
        "enabled and started it: it records from now on, and from the beginning of each boot".to_owned(),
    );
    Ok(done)
}

pub(in crate::sys) fn uninstall(configuration: &Path) -> Result<Vec<String>, ServiceError> {
    is_root()?;
    let mut done = Vec::new();
    if run("launchctl", &["print", SERVICE]).is_ok() {
        run("launchctl", &["bootout", SERVICE])?;
        done.push("stopped it".to_owned());
    }
    match fs::remove_file(PLACE) {
        Ok(()) => done.push(format!("removed {PLACE}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ServiceError::file(Path::new(PLACE))(error)),
    }
    done.push(unconfigure(configuration)?);
    Ok(done)
}

pub(in crate::sys) fn status() -> Result<ServiceStatus, ServiceError> {
    let installed = Path::new(PLACE).exists().then(|| PLACE.to_owned());
    let printed = run("launchctl", &["print", SERVICE]).unwrap_or_default();
    let value = |name: &str| value_of(&printed, name);
    let state = value("state").unwrap_or_else(|| "not loaded".to_owned());
    Ok(ServiceStatus {
        enabled: installed.is_some() && !printed.is_empty(),
        running: state == "running",
        pid: value("pid").and_then(|pid| pid.parse().ok()),
        trouble: value("last exit code").map(|code| format!("last exit code {code}")).into_iter().collect(),
        installed,
        state,
        ..ServiceStatus::default()
    })
}

fn is_root() -> Result<(), ServiceError> {
    if is_privileged() { Ok(()) } else { Err(ServiceError::Rights(ROOT)) }
}

/// The property list that starts `program`.
fn list_of(program: &Path) -> Option<String> {
    let program = program.to_str().filter(|path| !path.chars().any(char::is_control))?;
    let escaped = program.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Some(LIST.replace(PROGRAM, &format!("<string>{escaped}</string>")))
}

/// The first `name = value` of what launchctl prints; what comes further in is not the service's own.
fn value_of(printed: &str, name: &str) -> Option<String> {
    let value = |line: &str| line.trim().strip_prefix(name)?.strip_prefix(" = ").map(str::to_owned);
    printed.lines().find_map(value)
}

/// launchd is told nothing: it looks whether the process runs.
#[derive(Debug)]
pub(in crate::sys) struct Supervisor;

impl Supervisor {
    pub(in crate::sys) fn of_this_process() -> Self {
        Self
    }

    pub(in crate::sys) fn watchdog(&self) -> Option<Duration> {
        None
    }

    pub(in crate::sys) fn tell(&self, _: News<'_>) -> io::Result<()> {
        Ok(())
    }

    /// It asks by a signal.
    pub(in crate::sys) async fn stop(&self) {
        std::future::pending().await
    }
}

/// The log of the system, by syslog(3).
#[derive(Debug)]
pub(in crate::sys) struct SystemLog;

impl SystemLog {
    /// launchd says whose service it starts.
    pub(in crate::sys) fn of_service(_: bool) -> Option<Self> {
        env::var("XPC_SERVICE_NAME").is_ok_and(|name| name == NAME).then_some(Self)
    }

    #[expect(unsafe_code, reason = "syslog(3) has no safe form")]
    pub(in crate::sys) fn write(&self, level: tracing::Level, line: &str) {
        let priority = match level {
            tracing::Level::ERROR => libc::LOG_ERR,
            tracing::Level::WARN => libc::LOG_WARNING,
            // What is only informational is not kept there.
            tracing::Level::INFO => libc::LOG_NOTICE,
            _ => libc::LOG_DEBUG,
        };
        let Ok(line) = CString::new(line) else { return };
        // SAFETY: both are strings that end in NUL, and the first takes exactly the second.
        unsafe { libc::syslog(libc::LOG_DAEMON | priority, c"%s".as_ptr(), line.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_starts_the_program_that_was_installed() {
        assert_eq!(LIST.matches(PROGRAM).count(), 1);
        let list = list_of(Path::new("/opt/a&b/<x>")).unwrap();
        assert!(list.contains("<string>/opt/a&amp;b/&lt;x&gt;</string>"), "{list}");
        assert_eq!(list_of(Path::new("/a\nb")), None);
    }

    #[test]
    fn what_launchctl_prints_is_read() {
        let printed = "system/alibi-agent = {\n\tactive count = 1\n\tstate = running\n\n\tpid = 123\n\tlast exit code = (never exited)\n\tspawn = {\n\t\tstate = x\n";
        assert_eq!(value_of(printed, "state").as_deref(), Some("running"));
        assert_eq!(value_of(printed, "pid").as_deref(), Some("123"));
        assert_eq!(value_of(printed, "exit"), None);
    }
}
