//! The agent as a service of the system: installed there, and known to whoever runs services.
//!
//! Installing the service of one version over another, or over itself, changes the program and nothing else: data and
//! configuration stay, and are used by the next.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::os::service as os;

#[cfg(unix)]
pub(super) mod unix;

/// What the service is called.
pub(crate) const NAME: &str = "alibi-agent";
/// Written by an installation where there is no configuration.
pub(crate) const CONFIGURATION: &str = include_str!("../../service/agent.toml");

/// Installs the service, or installs it anew with this `program`, and starts it. `configuration` is where it is
/// configured, and written if it is not there. What was done, line by line, for a person.
///
/// # Errors
/// When the system has no such services, refuses, or the service does not start.
pub(crate) fn install(program: &Path, configuration: &Path) -> Result<Vec<String>, ServiceError> {
    os::install(program, configuration)
}

/// Stops the service, and takes away what [`install`] made, but for data, and a configuration that was changed. What was
/// done, line by line, for a person.
///
/// # Errors
/// When the system has no such services, or refuses.
pub(crate) fn uninstall(configuration: &Path) -> Result<Vec<String>, ServiceError> {
    os::uninstall(configuration)
}

/// How the service is; takes no rights.
///
/// # Errors
/// When the system cannot be asked.
pub(crate) fn status() -> Result<ServiceStatus, ServiceError> {
    os::status()
}

/// How a service is. Words are the system's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ServiceStatus {
    /// Where that is written; none if it is not installed.
    pub(crate) installed: Option<String>,
    /// It starts at boot.
    pub(crate) enabled: bool,
    /// It runs and is ready.
    pub(crate) running: bool,
    /// Its state, as the system calls it.
    pub(crate) state: String,
    /// Its process.
    pub(crate) pid: Option<u32>,
    /// Since when it is so.
    pub(crate) since: Option<String>,
    /// What it says of itself.
    pub(crate) says: Option<String>,
    /// The last lines of trouble that this user may see, oldest first.
    pub(crate) trouble: Vec<String>,
}

/// So many lines of trouble are shown.
#[cfg_attr(target_os = "macos", expect(dead_code, reason = "launchd tells the last exit code alone"))]
pub(crate) const TROUBLE_LINES_MAX: usize = 5;

/// Whoever started the agent as a service and wants to hear of it; nobody, where it was started by hand.
#[derive(Debug)]
pub(crate) struct Supervisor(os::Supervisor);

/// What a supervisor is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News<'a> {
    /// It records and serves; in words, how.
    Ready(&'a str),
    /// The recording goes on.
    Well,
    /// It was asked to stop, and does.
    Stopping,
}

impl Supervisor {
    /// That of this process.
    pub(crate) fn of_this_process() -> Self {
        Self(os::Supervisor::of_this_process())
    }

    /// Within this time it must hear that the agent is well, or it starts it anew.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.0.watchdog()
    }

    /// Tells it. One that does not listen misses it.
    pub(crate) fn tell(&self, news: News<'_>) {
        if let Err(problem) = self.0.tell(news) {
            tracing::debug!(%problem, ?news, "whoever runs the service could not be told");
        }
    }

    /// Resolves when it asks the agent to stop by another way than a signal.
    pub(crate) async fn stop(&self) {
        self.0.stop().await;
    }
}

/// Runs `agent` as the service that the system has just started this process for; its exit status.
///
/// # Errors
/// When the system has not.
pub(crate) fn be_service(
    agent: Box<dyn FnOnce() -> anyhow::Result<u8> + Send>,
) -> Result<anyhow::Result<u8>, ServiceError> {
    os::be_service(agent)
}

/// The log of the system, where it takes lines with their severity better than by standard error.
#[derive(Debug)]
pub(crate) struct SystemLog(os::SystemLog);

impl SystemLog {
    /// That of a service; none if this process is none.
    pub(crate) fn of_service(is_service: bool) -> Option<Self> {
        os::SystemLog::of_service(is_service).map(Self)
    }

    /// Writes one line.
    pub(crate) fn write(&self, level: tracing::Level, line: &str) {
        self.0.write(level, line);
    }
}

/// Writes the configuration, in which nothing is set yet, unless there is one; whether it did.
pub(super) fn configure(configuration: &Path) -> Result<bool, ServiceError> {
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(configuration).and_then(|mut file| {
        io::Write::write_all(&mut file, CONFIGURATION.as_bytes())?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(ServiceError::file(configuration)(error)),
    }
}

/// Takes the configuration away if it is as [`configure`] wrote it; what is to be said of it.
pub(super) fn unconfigure(configuration: &Path) -> Result<String, ServiceError> {
    let path = configuration.display();
    match fs::read(configuration) {
        Ok(text) if text == CONFIGURATION.as_bytes() => {
            fs::remove_file(configuration).map_err(ServiceError::file(configuration))?;
            Ok(format!("removed the configuration {path}, in which nothing was set"))
        }
        Ok(_) => Ok(format!("kept the configuration {path}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(format!("there is no configuration {path}"))
        }
        Err(error) => Err(ServiceError::file(configuration)(error)),
    }
}

/// What cannot be done about a service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    /// The system is not of the kind.
    #[cfg_attr(windows, expect(dead_code, reason = "every Windows has services"))]
    #[error("{0}: start `alibi-agent run` by what starts programs here")]
    NotHere(&'static str),
    /// It takes rights.
    #[error("a service is installed and removed with the rights of {0}: run this with them")]
    Rights(&'static str),
    /// A file cannot be read, written or removed.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody without rights could make the service run something else.
    #[error(
        "{} can be replaced by others than {owner}, who would have the service's rights then: copy the program to {place} and install it from there",
        path.display()
    )]
    Exposed {
        /// What can be replaced.
        path: PathBuf,
        /// Who alone should be able to.
        owner: &'static str,
        /// A better place.
        place: &'static str,
    },
    /// The path cannot be written where the system wants it.
    #[cfg_attr(windows, expect(dead_code, reason = "every path can be named to Windows"))]
    #[error("the path {} cannot be named to the system: move the program to another", .0.display())]
    Unspeakable(PathBuf),
    /// What runs services refuses.
    #[error("cannot {what}: {said}")]
    Refused {
        /// What was to be done.
        what: String,
        /// What it says.
        said: String,
    },
}

impl ServiceError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_property_list_of_macos_is_one() {
        let list = include_str!("../../service/alibi-agent.plist");
        let list = plist::Value::from_reader_xml(list.as_bytes()).unwrap();
        let daemon = list.as_dictionary().unwrap();
        assert_eq!(daemon["Label"].as_string(), Some(NAME));
        let words = daemon["ProgramArguments"].as_array().unwrap();
        assert_eq!(words.iter().filter_map(plist::Value::as_string).collect::<Vec<_>>()[1..], ["run"]);
        assert_eq!(daemon["RunAtLoad"].as_boolean(), Some(true));
        assert_eq!(daemon["Umask"].as_unsigned_integer(), Some(0o077));
        let again = daemon["KeepAlive"].as_dictionary().unwrap();
        assert_eq!(again["SuccessfulExit"].as_boolean(), Some(false));
    }

    #[test]
    fn a_configuration_is_written_once_and_taken_away_unless_it_was_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        assert!(configure(&path).unwrap());
        assert!(!configure(&path).unwrap(), "what is there stays");
        assert!(unconfigure(&path).unwrap().starts_with("removed"));
        assert!(unconfigure(&path).unwrap().starts_with("there is no"));
        fs::write(&path, "period = '2s'\n").unwrap();
        assert!(!configure(&path).unwrap());
        assert!(unconfigure(&path).unwrap().starts_with("kept"));
        assert_eq!(fs::read(&path).unwrap(), b"period = '2s'\n");
        assert!(configure(&directory.path().join("none/agent.toml")).is_err());
    }
}
