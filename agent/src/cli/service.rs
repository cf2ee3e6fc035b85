//! `alibi-agent service`.

use alibi_proto::command_line::say;
use anyhow::{Context as _, Result};

use super::ServiceCommand;
use crate::sys::{
    self,
    service::{self, ServiceStatus},
};

/// The service does not run, as the conventions of init scripts (LSB) have it.
const EXIT_NOT_RUNNING: u8 = 3;

pub(super) fn service(command: &ServiceCommand) -> Result<u8> {
    let configuration = sys::default_configuration();
    match command {
        ServiceCommand::Install => {
            let program = std::env::current_exe().context("where is this program?")?;
            for line in service::install(&program, &configuration)? {
                say(line)?;
            }
            say(format_args!("its data are in {}", sys::default_data_directory().display()))?;
            Ok(0)
        }
        ServiceCommand::Uninstall => {
            for line in service::uninstall(&configuration)? {
                say(line)?;
            }
            say(format_args!(
                "kept the data in {}, if there are any",
                sys::default_data_directory().display()
            ))?;
            Ok(0)
        }
        ServiceCommand::Status { json } => {
            let status = service::status()?;
            if *json {
                say(serde_json::to_string(&status)?)?;
            } else {
                say(in_words(&status))?;
            }
            Ok(if status.running { 0 } else { EXIT_NOT_RUNNING })
        }
    }
}

fn in_words(status: &ServiceStatus) -> String {
    let Some(place) = &status.installed else {
        return "not installed: `alibi-agent service install` does it\n".to_owned();
    };
    let mut text = format!("installed  {place}\n");
    text += if status.enabled { "at boot    starts\n" } else { "at boot    does not start\n" };
    text += if status.running { "running    yes" } else { "running    no" };
    text += &format!(", {}", status.state);
    if let Some(since) = &status.since {
        text += &format!(", since {since}");
    }
    if let Some(pid) = status.pid {
        text += &format!(", pid {pid}");
    }
    text += "\n";
    if let Some(says) = &status.says {
        text += &format!("says       {says}\n");
    }
    for line in &status.trouble {
        text += &format!("trouble    {line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_line_by_line() {
        assert!(in_words(&ServiceStatus::default()).starts_with("not installed"));
        let running = ServiceStatus {
            installed: Some("/etc/x.service".to_owned()),
            enabled: true,
            running: true,
            state: "active (running)".to_owned(),
            pid: Some(7),
            since: Some("today".to_owned()),
            says: Some("recording by ebpf".to_owned()),
            trouble: vec!["it was slow".to_owned()],
        };
        let told = "\
installed  /etc/x.service
at boot    starts
running    yes, active (running), since today, pid 7
says       recording by ebpf
trouble    it was slow
";
        assert_eq!(in_words(&running), told);
        let stopped = ServiceStatus {
            installed: running.installed,
            state: "failed (Result: exit-code)".to_owned(),
            ..ServiceStatus::default()
        };
        assert!(in_words(&stopped).contains("running    no, failed"));
    }
}
