//! Processes.

use super::{ConvertError, Result, optional_process, required, sha256, uid};
use crate::{
    executable::FileIdentity,
    id::ProcessUid,
    process::{ProcessExecution, ProcessExit, ProcessImage, ProcessRecord, User},
    time::Timestamp,
    wire,
};

impl From<User> for wire::User {
    fn from(user: User) -> Self {
        Self { id: user.id, name: user.name }
    }
}

impl From<wire::User> for User {
    fn from(user: wire::User) -> Self {
        Self { id: user.id, name: user.name }
    }
}

impl From<FileIdentity> for wire::FileIdentity {
    fn from(file: FileIdentity) -> Self {
        let FileIdentity { device, inode, modified, size } = file;
        Self { device, inode, modified_ns: modified.as_nanos(), size }
    }
}

impl From<wire::FileIdentity> for FileIdentity {
    fn from(file: wire::FileIdentity) -> Self {
        let wire::FileIdentity { device, inode, modified_ns, size } = file;
        Self { device, inode, modified: Timestamp::from_nanos(modified_ns), size }
    }
}

impl From<ProcessImage> for wire::ProcessImage {
    fn from(image: ProcessImage) -> Self {
        Self {
            path: image.path,
            name: image.name,
            arguments: image.arguments,
            arguments_truncated: image.arguments_truncated,
            working_directory: image.working_directory,
            user: image.user.map(Into::into),
            effective_user: image.effective_user.map(Into::into),
            terminal: image.terminal,
            cgroup: image.cgroup,
            file: image.file.map(Into::into),
            sha256: image.sha256.map(|sha256| sha256.as_bytes().to_vec()),
        }
    }
}

impl TryFrom<wire::ProcessImage> for ProcessImage {
    type Error = ConvertError;

    fn try_from(image: wire::ProcessImage) -> Result<Self> {
        Ok(Self {
            path: image.path,
            name: image.name,
            arguments: image.arguments,
            arguments_truncated: image.arguments_truncated,
            working_directory: image.working_directory,
            user: image.user.map(Into::into),
            effective_user: image.effective_user.map(Into::into),
            terminal: image.terminal,
            cgroup: image.cgroup,
            file: image.file.map(Into::into),
            sha256: sha256("image.sha256", image.sha256.as_ref())?,
        })
    }
}

impl From<ProcessRecord> for wire::ProcessStarted {
    fn from(process: ProcessRecord) -> Self {
        Self {
            uid: process.uid.as_bytes().to_vec(),
            pid: process.pid,
            parent_uid: process.parent.map(|uid| uid.as_bytes().to_vec()),
            parent_pid: process.parent_pid,
            started_ns: process.started.as_nanos(),
            already_running: process.already_running,
            image: Some(process.image.into()),
        }
    }
}

impl TryFrom<wire::ProcessStarted> for ProcessRecord {
    type Error = ConvertError;

    fn try_from(process: wire::ProcessStarted) -> Result<Self> {
        Ok(Self {
            uid: ProcessUid::from_bytes(uid("process.uid", &process.uid)?),
            pid: process.pid,
            parent: optional_process("process.parent_uid", process.parent_uid.as_ref())?,
            parent_pid: process.parent_pid,
            started: Timestamp::from_nanos(process.started_ns),
            already_running: process.already_running,
            image: required("process.image", process.image)?.try_into()?,
        })
    }
}

impl From<ProcessExecution> for wire::ProcessExecuted {
    fn from(execution: ProcessExecution) -> Self {
        Self {
            uid: execution.uid.as_bytes().to_vec(),
            executed_ns: execution.executed.as_nanos(),
            image: Some(execution.image.into()),
        }
    }
}

impl TryFrom<wire::ProcessExecuted> for ProcessExecution {
    type Error = ConvertError;

    fn try_from(execution: wire::ProcessExecuted) -> Result<Self> {
        Ok(Self {
            uid: ProcessUid::from_bytes(uid("process.uid", &execution.uid)?),
            executed: Timestamp::from_nanos(execution.executed_ns),
            image: required("process.image", execution.image)?.try_into()?,
        })
    }
}

impl From<ProcessExit> for wire::ProcessExited {
    fn from(exit: ProcessExit) -> Self {
        Self {
            uid: exit.uid.as_bytes().to_vec(),
            exited_ns: exit.exited.as_nanos(),
            exit_code: exit.exit_code,
        }
    }
}

impl TryFrom<wire::ProcessExited> for ProcessExit {
    type Error = ConvertError;

    fn try_from(exit: wire::ProcessExited) -> Result<Self> {
        Ok(Self {
            uid: ProcessUid::from_bytes(uid("process.uid", &exit.uid)?),
            exited: Timestamp::from_nanos(exit.exited_ns),
            exit_code: exit.exit_code,
        })
    }
}
