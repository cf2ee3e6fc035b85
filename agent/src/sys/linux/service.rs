//! systemd: a unit, and telling how the agent is (sd_notify(3)).

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::data_directory::write_whole;

use crate::sys::{
    is_privileged,
    service::{
        NAME, News, ServiceError, ServiceStatus, TROUBLE_LINES_MAX, configure, unconfigure,
        unix::{ROOT, refuse_exposed, run},
    },
};

pub(in crate::sys) use crate::sys::service::unix::be_service;

/// The unit as packages have it.
const UNIT: &str = include_str!("../../../service/alibi-agent.service");
/// The line of it that names the program.
const PROGRAM_LINE: &str = "ExecStart=/usr/bin/alibi-agent run";
/// Begins a unit that an installation wrote, so that no other is taken away.
const MADE: &str =
    "# Written by `alibi-agent service install`, and taken away by `alibi-agent service uninstall`.\n";
const OWN_UNIT: &str = "/etc/systemd/system/alibi-agent.service";
/// Where packages put theirs.
const PACKAGED: [&str; 3] =
    ["/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"];
const UNIT_FILE: &str = "alibi-agent.service";
/// How long telling may take.
const TELLING_MAX: Duration = Duration::from_secs(1);

pub(in crate::sys) fn install(program: &Path, configuration: &Path) -> Result<Vec<String>, ServiceError> {
    may_change()?;
    let unit = match packaged() {
        Some(_) => None,
        None => Some(unit_of(program)?),
    };
    if let Some(directory) = configuration.parent() {
        fs::create_dir_all(directory).map_err(ServiceError::file(directory))?;
    }
    let mut done = Vec::new();
    if configure(configuration)? {
        done.push(format!(
            "wrote the configuration {}, in which nothing is set yet",
            configuration.display()
        ));
    }
    match (unit, packaged()) {
        (Some(unit), _) => {
            let path = Path::new(OWN_UNIT);
            write_whole(path, unit.as_bytes())
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
                .map_err(ServiceError::file(path))?;
            done.push(format!("wrote the unit {OWN_UNIT}"));
        }
        (None, Some(packaged)) => {
            if remove_own_unit()? {
                done.push(format!("removed the unit {OWN_UNIT}, which hid that of the package"));
            }
            done.push(format!("left the unit {} as its package has it", packaged.display()));
        }
        (None, None) => {}
    }
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", NAME])?;
    systemctl(&["restart", NAME])?;
    done.push(
        "enabled and started it: it records from now on, and from the beginning of each boot".to_owned(),
    );
    Ok(done)
}

pub(in crate::sys) fn uninstall(configuration: &Path) -> Result<Vec<String>, ServiceError> {
    may_change()?;
    let mut done = Vec::new();
    if show(&["LoadState"])?.iter().any(|(_, state)| state == "loaded") {
        systemctl(&["disable", "--now", NAME])?;
        done.push("stopped and disabled it".to_owned());
    }
    if remove_own_unit()? {
        done.push(format!("removed the unit {OWN_UNIT}"));
        systemctl(&["daemon-reload"])?;
    }
    // One that has failed would be shown as such still.
    let _ = systemctl(&["reset-failed", NAME]);
    if let Some(packaged) = packaged() {
        done.push(format!("left the unit {}: it goes with its package", packaged.display()));
    } else {
        done.push(unconfigure(configuration)?);
    }
    Ok(done)
}

pub(in crate::sys) fn status() -> Result<ServiceStatus, ServiceError> {
    const WANTED: [&str; 8] = [
        "LoadState",
        "FragmentPath",
        "UnitFileState",
        "ActiveState",
        "SubState",
        "MainPID",
        "StateChangeTimestamp",
        "StatusText",
    ];
    let shown = show(&WANTED)?;
    let value = |name: &str| {
        let value = shown.iter().find(|(shown, _)| shown == name).map(|(_, value)| value.clone());
        value.filter(|value| !value.is_empty())
    };
    let is = |name: &str, wanted: &str| value(name).as_deref() == Some(wanted);
    let installed = is("LoadState", "loaded").then(|| value("FragmentPath").unwrap_or_default());
    let (active, sub) = (value("ActiveState").unwrap_or_default(), value("SubState").unwrap_or_default());
    Ok(ServiceStatus {
        enabled: is("UnitFileState", "enabled"),
        running: is("ActiveState", "active"),
        state: format!("{active} ({sub})"),
        pid: value("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0),
        since: value("StateChangeTimestamp"),
        says: value("StatusText").filter(|_| is("ActiveState", "active")),
        trouble: if installed.is_some() { trouble() } else { Vec::new() },
        installed,
    })
}

fn may_change() -> Result<(), ServiceError> {
    // What sd_booted(3) looks for.
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(ServiceError::NotHere("systemd does not run here"));
    }
    if is_privileged() { Ok(()) } else { Err(ServiceError::Rights(ROOT)) }
}

fn packaged() -> Option<PathBuf> {
    PACKAGED.iter().map(|directory| Path::new(directory).join(UNIT_FILE)).find(|unit| unit.exists())
}

/// The unit that starts `program`.
fn unit_of(program: &Path) -> Result<String, ServiceError> {
    refuse_exposed(program)?;
    let word =
        program.to_str().and_then(quoted).ok_or_else(|| ServiceError::Unspeakable(program.to_owned()))?;
    Ok(format!("{MADE}{}", UNIT.replace(PROGRAM_LINE, &format!("ExecStart={word} run"))))
}

/// A word of a command line in a unit (systemd.service(5)): `%` and `$` are its own.
fn quoted(path: &str) -> Option<String> {
    if path.chars().any(char::is_control) {
        return None;
    }
    let escaped = path.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Some(if escaped == path && !path.contains([' ', '\'', ';']) { escaped } else { format!("\"{escaped}\"") })
}

/// Takes away the unit that an installation wrote; whether there was one.
fn remove_own_unit() -> Result<bool, ServiceError> {
    let path = Path::new(OWN_UNIT);
    match fs::read(path) {
        Ok(unit) if unit.starts_with(MADE.as_bytes()) => {
            fs::remove_file(path).map(|()| true).map_err(ServiceError::file(path))
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ServiceError::file(path)(error)),
    }
}

fn systemctl(words: &[&str]) -> Result<String, ServiceError> {
    run("systemctl", words)
}

/// Properties of the service, by name.
fn show(properties: &[&str]) -> Result<Vec<(String, String)>, ServiceError> {
    let shown = systemctl(&["show", NAME, "--property", &properties.join(",")])?;
    let property = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(shown.lines().filter_map(property).collect())
}

/// What the journal has of it, as far as this user may see that.
fn trouble() -> Vec<String> {
    let lines = TROUBLE_LINES_MAX.to_string();
    let words = [
        "--unit",
        NAME,
        "--priority",
        "warning",
        "--lines",
        &lines,
        "--quiet",
        "--no-pager",
        "--output",
        "short-iso",
    ];
    run("journalctl", &words).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// systemd, by the socket that it names.
#[derive(Debug)]
pub(in crate::sys) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    pub(in crate::sys) fn of_this_process() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            open(name).inspect_err(|problem| tracing::warn!(%problem, "systemd cannot be told anything")).ok()
        });
        let watchdog = if socket.is_some() { watchdog_of(|name| env::var(name).ok()) } else { None };
        Self { socket, watchdog }
    }

    pub(in crate::sys) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    pub(in crate::sys) fn tell(&self, news: News<'_>) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else { return Ok(()) };
        let words = match news {
            News::Ready(how) => format!("READY=1\nSTATUS={}", how.replace('\n', " ")),
            News::Well => "WATCHDOG=1".to_owned(),
            News::Stopping => "STOPPING=1\nSTATUS=stopping".to_owned(),
        };
        socket.send_to_addr(words.as_bytes(), address).map(drop)
    }

    /// It asks by a signal.
    pub(in crate::sys) async fn stop(&self) {
        std::future::pending().await
    }
}

fn open(name: OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(TELLING_MAX))?;
    Ok((socket, address))
}

/// As sd_watchdog_enabled(3): the time may be meant for another process.
fn watchdog_of(variable: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let micros = variable("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 0)?;
    is_ours.then(|| Duration::from_micros(micros))
}

/// The journal, when standard error leads there: it takes a line's severity from its beginning (sd-daemon(3)), and
/// notes the time itself.
#[derive(Debug)]
pub(in crate::sys) struct SystemLog;

impl SystemLog {
    pub(in crate::sys) fn of_service(_: bool) -> Option<Self> {
        let stderr = rustix::fs::fstat(io::stderr()).ok()?;
        let names = env::var("JOURNAL_STREAM").ok()?;
        (names == format!("{}:{}", stderr.st_dev, stderr.st_ino)).then_some(Self)
    }

    pub(in crate::sys) fn write(&self, level: tracing::Level, line: &str) {
        let priority = match level {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            _ => 7,
        };
        // In one piece. There is nobody else to tell.
        let _ = io::stderr().lock().write_all(format!("<{priority}>{line}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_the_program_that_was_installed() {
        assert_eq!(UNIT.matches(PROGRAM_LINE).count(), 1);
        let line = |path: &str| quoted(path).map(|word| format!("ExecStart={word} run"));
        assert_eq!(line("/usr/local/bin/alibi-agent").unwrap(), "ExecStart=/usr/local/bin/alibi-agent run");
        assert_eq!(line("/opt/a b/100%/$x").unwrap(), r#"ExecStart="/opt/a b/100%%/$$x" run"#);
        assert_eq!(line(r#"/a"b\c"#).unwrap(), r#"ExecStart="/a\"b\\c" run"#);
        assert_eq!(line("/a\nb"), None);
    }

    #[test]
    fn the_unit_leaves_the_rights_that_the_agent_keeps_and_no_others() {
        let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        let mut kept: Vec<_> = super::super::NEEDED.iter_names().map(|(name, _)| name).collect();
        let mut left: Vec<_> = line.split(' ').map(|name| name.strip_prefix("CAP_").unwrap()).collect();
        kept.sort_unstable();
        left.sort_unstable();
        assert_eq!(left, kept);
    }

    #[test]
    fn systemd_is_told_by_its_socket_whatever_kind_of_name_that_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("alibi{}notify", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ] {
            let supervisor = Supervisor { socket: Some(open(name).unwrap()), watchdog: None };
            let mut heard = [0; 64];
            for (news, wanted) in [
                (News::Ready("recording\nby x"), &b"READY=1\nSTATUS=recording by x"[..]),
                (News::Well, b"WATCHDOG=1"),
                (News::Stopping, b"STOPPING=1\nSTATUS=stopping"),
            ] {
                supervisor.tell(news).unwrap();
                let bytes = socket.recv(&mut heard).unwrap();
                assert_eq!(&heard[..bytes], wanted);
            }
            drop(socket);
            assert!(supervisor.tell(News::Well).is_err());
        }
        assert!(Supervisor { socket: None, watchdog: None }.tell(News::Well).is_ok());
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let own = std::process::id().to_string();
        let watchdog = |usec: Option<&str>, pid: Option<&str>| {
            watchdog_of(|name| match name {
                "WATCHDOG_USEC" => usec.map(str::to_owned),
                "WATCHDOG_PID" => pid.map(str::to_owned),
                _ => None,
            })
        };
        assert_eq!(watchdog(Some("2000000"), None), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(Some("2000000"), Some(&own)), Some(Duration::from_secs(2)));
        assert_eq!(watchdog(Some("2000000"), Some("1")), None);
        for usec in [None, Some("0"), Some("soon"), Some("-1")] {
            assert_eq!(watchdog(usec, None), None);
        }
    }
}
