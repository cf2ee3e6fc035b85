//! Processes: what Sysmon, ECS and OCSF users expect to know of one.

use serde::{Deserialize, Serialize};

use crate::{
    executable::{ExecutableRecord, ExecutableSighting, FileIdentity, Sha256, Signature, VersionInfo},
    id::ProcessUid,
    time::Timestamp,
};

/// A process as it was when it was first recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Names it for ever.
    pub uid: ProcessUid,
    /// The system's number for it, reused after its end.
    pub pid: u32,
    /// The parent, where it was known at the time.
    pub parent: Option<ProcessUid>,
    /// The parent's number.
    pub parent_pid: Option<u32>,
    /// When it started.
    pub started: Timestamp,
    /// It was running before recording began.
    pub already_running: bool,
    /// What it runs; as long as it is a fork without exec, what its parent runs.
    pub image: ProcessImage,
}

/// What the system tells of a process; absent is what it did not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessImage {
    /// Executable file, with symbolic links resolved.
    pub path: Option<String>,
    /// Short name.
    pub name: String,
    /// Arguments, the program's own name first.
    pub arguments: Vec<String>,
    /// The arguments were cut to the recorder's limit.
    pub arguments_truncated: bool,
    /// Working directory.
    pub working_directory: Option<String>,
    /// Who it runs for.
    pub user: Option<User>,
    /// With whose rights, where they differ.
    pub effective_user: Option<User>,
    /// Controlling terminal.
    pub terminal: Option<String>,
    /// Control group or container.
    pub cgroup: Option<String>,
    /// Which file the executable is.
    pub file: Option<FileIdentity>,
    /// Content of the executable, where it was known at the time.
    pub sha256: Option<Sha256>,
}

/// A user of the system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct User {
    /// Numeric id on Unix, SID on Windows.
    pub id: String,
    /// Absent where the id has no name.
    pub name: Option<String>,
}

impl User {
    /// The name, or else the id.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }

    /// Whether an analyst who writes `word` means this user: by name (also without its domain), or by id.
    pub fn answers_to(&self, word: &str) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        let without_domain = name.rsplit_once('\\').map_or(name, |(_, name)| name);
        self.id == word || name.eq_ignore_ascii_case(word) || without_domain.eq_ignore_ascii_case(word)
    }
}

/// A process that had been recorded became another program (execve), or was found to run another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessExecution {
    /// Which process.
    pub uid: ProcessUid,
    /// When.
    pub executed: Timestamp,
    /// What it runs from then on.
    pub image: ProcessImage,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// Which process.
    pub uid: ProcessUid,
    /// When it left, or was first found gone.
    pub exited: Timestamp,
    /// Its exit code, where known; as a shell has it, 128 and the signal's number where a signal ended it.
    pub exit_code: Option<i32>,
}

/// A process from start to end, as far as known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessLife {
    /// Its start, and what it ran first.
    pub record: ProcessRecord,
    /// Its end, if it has been seen.
    pub exit: Option<ProcessExit>,
    /// What it became later, oldest first.
    pub executions: Vec<ProcessExecution>,
    /// How many executions before the first listed were left out to keep within a bound.
    pub executions_left_out: u64,
    /// What is on record of the executable file in force: that it was run, that it was written, or both.
    pub executable: Vec<ExecutableRecord>,
}

impl ProcessLife {
    /// A life of which only start and end are known.
    pub fn new(record: ProcessRecord, exit: Option<ProcessExit>) -> Self {
        Self { record, exit, executions: Vec::new(), executions_left_out: 0, executable: Vec::new() }
    }

    /// What it runs, as of the last execution that is listed.
    pub fn image(&self) -> &ProcessImage {
        self.executions.last().map_or(&self.record.image, |execution| &execution.image)
    }

    /// The content of its executable in force: as the image has it, or as what is on record of the file has it.
    pub fn sha256(&self) -> Option<Sha256> {
        self.image().sha256.or_else(|| self.executable.iter().find_map(|seen| seen.sha256))
    }

    /// What the host says of the signature of its executable: of a look that told, where there is one.
    pub fn signature(&self) -> Option<&Signature> {
        let mut signatures = self.executable.iter().filter_map(|seen| seen.signature.as_ref());
        signatures.clone().find(|signature| signature.is_checked()).or_else(|| signatures.next())
    }

    /// What its executable says of itself.
    pub fn version(&self) -> Option<&VersionInfo> {
        self.executable.iter().find_map(|seen| seen.version.as_ref())
    }

    /// Who wrote its executable, where it was seen being written.
    pub fn writer(&self) -> Option<ProcessUid> {
        let written = |seen: &&ExecutableRecord| seen.sighting == ExecutableSighting::Written;
        self.executable.iter().find(written).and_then(|seen| seen.process)
    }

    /// Its images, from the first to that in force.
    pub fn images_mut(&mut self) -> impl Iterator<Item = &mut ProcessImage> {
        let executions = self.executions.iter_mut().map(|execution| &mut execution.image);
        std::iter::once(&mut self.record.image).chain(executions)
    }
}
