//! The service manager of Windows: a service of its own process, as the system's own account.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::Path,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use alibi_proto::{
    command_line::{EXIT_ERROR, in_one_line},
    data_directory::{create_private, make_private},
    time::Timestamp,
};
use tokio::sync::Notify;
use windows_service::{
    define_windows_service,
    service::{
        Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept,
        ServiceErrorControl, ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo,
        ServiceStartType, ServiceState, ServiceStatus as Told, ServiceType,
    },
    service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle},
    service_dispatcher,
    service_manager::{ServiceManager, ServiceManagerAccess},
};

pub(in crate::sys) use super::event_log::SystemLog;
use super::{event_log, folders, process_start};
use crate::sys::service::{NAME, News, ServiceError, ServiceStatus, configure, unconfigure};

const DISPLAY_NAME: &str = "Alibi agent";
const DESCRIPTION: &str = "Records process starts and network connections in a bounded ring on this disk, and serves \
                           that recording. While it does not run, nothing of that is known.";
const ADMINISTRATOR: &str = "an administrator";
/// Starting and stopping take no longer: the manager is told so, and an installation waits no longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether it has started or stopped, which the manager tells nobody.
const LOOK: Duration = Duration::from_millis(100);
/// It is started again so much after the first, the second and each further failure.
const AGAIN: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];
/// After so long without one, the next failure is the first.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

// What the manager says.
const ERROR_ACCESS_DENIED: i32 = 5;
const ERROR_INVALID_LEVEL: i32 = 124;
const ERROR_SERVICE_ALREADY_RUNNING: i32 = 1056;
const ERROR_SERVICE_DOES_NOT_EXIST: i32 = 1060;
const ERROR_SERVICE_NOT_ACTIVE: i32 = 1062;
const ERROR_SERVICE_EXISTS: i32 = 1073;

pub(in crate::sys) fn install(program: &Path, configuration: &Path) -> Result<Vec<String>, ServiceError> {
    refuse_exposed(program)?;
    let wanted = ServiceInfo {
        name: NAME.into(),
        display_name: DISPLAY_NAME.into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program.to_owned(),
        launch_arguments: vec!["run".into(), "--as-service".into()],
        dependencies: Vec::new(),
        // The system's own.
        account_name: None,
        account_password: None,
    };
    let manager = manager(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    let mut done = Vec::new();
    if let Some(directory) = configuration.parent() {
        create_private(directory)
            .and_then(|()| make_private(directory))
            .map_err(ServiceError::file(directory))?;
        done.push(format!("made {} the administrators' and the system's only", directory.display()));
    }
    if configure(configuration)? {
        done.push(format!(
            "wrote the configuration {}, in which nothing is set yet",
            configuration.display()
        ));
    }
    event_log::register().map_err(ServiceError::file(Path::new(event_log::KEY)))?;
    let access = ServiceAccess::ALL_ACCESS;
    let service = match manager.create_service(&wanted, access) {
        Err(error) if code(&error) == Some(ERROR_SERVICE_EXISTS) => {
            let service = manager.open_service(NAME, access).map_err(refused("open the service"))?;
            stop(&service)?;
            service.change_config(&wanted).map_err(refused("change the service"))?;
            done.push("stopped it, and changed it to this program".to_owned());
            service
        }
        made => {
            let service = made.map_err(refused("make the service"))?;
            done.push("made the service".to_owned());
            service
        }
    };
    set_up(&service)?;
    start(&service)?;
    done.push("started it: it records from now on, and from the beginning of each boot".to_owned());
    Ok(done)
}

pub(in crate::sys) fn uninstall(configuration: &Path) -> Result<Vec<String>, ServiceError> {
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let mut done = Vec::new();
    match manager.open_service(NAME, ServiceAccess::ALL_ACCESS) {
        Ok(service) => {
            stop(&service)?;
            service.delete().map_err(refused("remove the service"))?;
            done.push("stopped and removed the service".to_owned());
        }
        Err(error) if code(&error) == Some(ERROR_SERVICE_DOES_NOT_EXIST) => {}
        Err(error) => return Err(refused("open the service")(error)),
    }
    event_log::unregister().map_err(ServiceError::file(Path::new(event_log::KEY)))?;
    done.push(unconfigure(configuration)?);
    Ok(done)
}

pub(in crate::sys) fn status() -> Result<ServiceStatus, ServiceError> {
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let service = match manager.open_service(NAME, ServiceAccess::QUERY_STATUS | ServiceAccess::QUERY_CONFIG)
    {
        Err(error) if code(&error) == Some(ERROR_SERVICE_DOES_NOT_EXIST) => {
            return Ok(ServiceStatus::default());
        }
        opened => opened.map_err(refused("open the service"))?,
    };
    let config = service.query_config().map_err(refused("read the service's configuration"))?;
    let told = service.query_status().map_err(refused("ask the service manager"))?;
    let since = told.process_id.and_then(process_start).map(|secs| Timestamp::from_secs(secs).to_string());
    Ok(ServiceStatus {
        installed: Some(config.executable_path.display().to_string()),
        enabled: config.start_type == ServiceStartType::AutoStart,
        running: told.current_state == ServiceState::Running,
        state: match told.exit_code {
            ServiceExitCode::Win32(0) => format!("{:?}", told.current_state),
            code => format!("{:?} ({code:?})", told.current_state),
        },
        pid: told.process_id,
        since,
        says: None,
        trouble: event_log::trouble(),
    })
}

fn manager(access: ServiceManagerAccess) -> Result<ServiceManager, ServiceError> {
    ServiceManager::local_computer(None::<&OsStr>, access).map_err(refused("use the service manager"))
}

/// Description, recovery, and the time that it has at a shutdown.
fn set_up(service: &Service) -> Result<(), ServiceError> {
    let again = |delay| ServiceAction { action_type: ServiceActionType::Restart, delay };
    let recovery = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(FORGOTTEN),
        reboot_msg: None,
        command: None,
        actions: Some(AGAIN.map(again).to_vec()),
    };
    service
        .set_description(DESCRIPTION)
        .and_then(|()| service.update_failure_actions(recovery))
        // Not only when it crashes: an agent that ends with an error records nothing either.
        .and_then(|()| where_known(service.set_failure_actions_on_non_crash_failures(true)))
        .and_then(|()| where_known(service.set_delayed_auto_start(false)))
        .and_then(|()| where_known(service.set_preshutdown_timeout(PATIENCE)))
        .map_err(refused("set up the service"))
}

/// What is done, or cannot be asked for: Windows knows all of it, Wine does not.
fn where_known(done: windows_service::Result<()>) -> windows_service::Result<()> {
    match done {
        Err(error) if code(&error) == Some(ERROR_INVALID_LEVEL) => Ok(()),
        done => done,
    }
}

fn start(service: &Service) -> Result<(), ServiceError> {
    match service.start::<&OsStr>(&[]) {
        Err(error) if code(&error) != Some(ERROR_SERVICE_ALREADY_RUNNING) => {
            return Err(refused("start the service")(error));
        }
        _ => {}
    }
    wait_until(service, ServiceState::Running)
}

fn stop(service: &Service) -> Result<(), ServiceError> {
    match service.stop() {
        Err(error) if code(&error) == Some(ERROR_SERVICE_NOT_ACTIVE) => return Ok(()),
        stopped => stopped.map_err(refused("stop the service"))?,
    };
    wait_until(service, ServiceState::Stopped)
}

fn wait_until(service: &Service, wanted: ServiceState) -> Result<(), ServiceError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = service.query_status().map_err(refused("ask the service manager"))?;
        let ended = told.current_state == ServiceState::Stopped;
        if told.current_state == wanted {
            return Ok(());
        }
        if ended || Instant::now() >= deadline {
            let said = format!("it is {:?} ({:?}); see the event log", told.current_state, told.exit_code);
            return Err(ServiceError::Refused { what: format!("bring the service to be {wanted:?}"), said });
        }
        thread::park_timeout(LOOK);
    }
}

/// In the system's directory of programs, only administrators can replace one.
fn refuse_exposed(program: &Path) -> Result<(), ServiceError> {
    let place = folders::program_files();
    let lower = |path: &Path| path.to_string_lossy().to_lowercase();
    if Path::new(&lower(program)).starts_with(lower(&place)) {
        return Ok(());
    }
    Err(ServiceError::Exposed {
        path: program.to_owned(),
        owner: ADMINISTRATOR,
        place: r"C:\Program Files\Alibi",
    })
}

fn code(error: &windows_service::Error) -> Option<i32> {
    match error {
        windows_service::Error::Winapi(error) => error.raw_os_error(),
        _ => None,
    }
}

fn refused(what: &'static str) -> impl FnOnce(windows_service::Error) -> ServiceError {
    move |error| match code(&error) {
        Some(ERROR_ACCESS_DENIED) => ServiceError::Rights(ADMINISTRATOR),
        _ => ServiceError::Refused { what: what.to_owned(), said: in_one_line(&error) },
    }
}

type Agent = Box<dyn FnOnce() -> anyhow::Result<u8> + Send>;

/// What runs as the service, and how it ended. The manager calls a function of ours that it hands nothing over to.
static AGENT: Mutex<Option<Agent>> = Mutex::new(None);
static ENDED: Mutex<Option<anyhow::Result<u8>>> = Mutex::new(None);
/// By which the manager is told; only in a service.
static MANAGER: OnceLock<ServiceStatusHandle> = OnceLock::new();
static CHECKPOINT: AtomicU32 = AtomicU32::new(0);
static STOP: Notify = Notify::const_new();

define_windows_service!(called_by_manager, be_called);

pub(in crate::sys) fn be_service(agent: Agent) -> Result<anyhow::Result<u8>, ServiceError> {
    *AGENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(agent);
    service_dispatcher::start(NAME, called_by_manager)
        .map_err(refused("be a service, which only the service manager can start"))?;
    let ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(ended.unwrap_or_else(|| Err(anyhow::anyhow!("the service manager cannot be told anything"))))
}

fn be_called(_: Vec<OsString>) {
    let Some(agent) = AGENT.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // It holds nothing: it may be called once more after the library has let go of it.
    let registered = service_control_handler::register(NAME, |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown | ServiceControl::Preshutdown => {
            report(ServiceState::StopPending, ServiceExitCode::NO_ERROR);
            STOP.notify_one();
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    });
    match registered {
        Ok(manager) => {
            let _ = MANAGER.set(manager);
        }
        Err(problem) => {
            tracing::error!("the service manager cannot be told anything: {problem}");
            return;
        }
    }
    report(ServiceState::StartPending, ServiceExitCode::NO_ERROR);
    let ended = agent();
    let code = match &ended {
        Ok(0) => ServiceExitCode::NO_ERROR,
        Ok(status) => ServiceExitCode::ServiceSpecific((*status).into()),
        Err(problem) => {
            tracing::error!("{}", in_one_line(problem.as_ref()));
            ServiceExitCode::ServiceSpecific(EXIT_ERROR.into())
        }
    };
    *ENDED.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
    report(ServiceState::Stopped, code);
}

/// Tells the manager, if it has started us.
fn report(state: ServiceState, exit_code: ServiceExitCode) {
    let Some(manager) = MANAGER.get() else { return };
    let is_pending = matches!(state, ServiceState::StartPending | ServiceState::StopPending);
    let told = Told {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: match state {
            // Before everything else is stopped, so that what is said last is still recorded.
            ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN,
            _ => ServiceControlAccept::empty(),
        },
        exit_code,
        checkpoint: if is_pending { CHECKPOINT.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 },
        wait_hint: if is_pending { PATIENCE } else { Duration::ZERO },
        process_id: None,
    };
    if let Err(problem) = manager.set_service_status(told) {
        tracing::warn!("the service manager could not be told: {problem}");
    }
}

/// The service manager, which looks whether the process runs, and is told of starting and stopping.
#[derive(Debug)]
pub(in crate::sys) struct Supervisor;

impl Supervisor {
    pub(in crate::sys) fn of_this_process() -> Self {
        Self
    }

    pub(in crate::sys) fn watchdog(&self) -> Option<Duration> {
        None
    }

    pub(in crate::sys) fn tell(&self, news: News<'_>) -> io::Result<()> {
        match news {
            News::Ready(_) => report(ServiceState::Running, ServiceExitCode::NO_ERROR),
            News::Stopping => report(ServiceState::StopPending, ServiceExitCode::NO_ERROR),
            News::Well => {}
        }
        Ok(())
    }

    pub(in crate::sys) async fn stop(&self) {
        STOP.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_administrators_alone_can_replace_is_installed() {
        assert!(refuse_exposed(Path::new(r"C:\program files\Alibi\alibi-agent.exe")).is_ok());
        for exposed in [r"C:\Program Files (x86)x\a.exe", r"C:\alibi-agent.exe", r"D:\Program Files\a.exe"] {
            let problem = refuse_exposed(Path::new(exposed)).unwrap_err().to_string();
            assert!(problem.contains(exposed) && problem.contains(r"C:\Program Files\Alibi"), "{problem}");
        }
    }

    #[test]
    fn a_program_that_the_manager_has_not_started_is_no_service() {
        let problem = be_service(Box::new(|| Ok(0))).unwrap_err().to_string();
        assert!(problem.contains("only the service manager"), "{problem}");
    }
}
