//! What services of Unix systems have in common.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use super::ServiceError;

/// Who may install services.
pub(in crate::sys) const ROOT: &str = "root";

/// Whoever can replace the program, or a directory above it, can make root run something else.
pub(in crate::sys) fn refuse_exposed(program: &Path) -> Result<(), ServiceError> {
    for path in program.ancestors() {
        let state = fs::metadata(path).map_err(ServiceError::file(path))?;
        let others_may_write = state.mode() & 0o022 != 0;
        // In a sticky directory nobody else can rename what is root's.
        let is_sticky = state.is_dir() && state.mode() & 0o1000 != 0;
        if state.uid() != 0 || others_may_write && !is_sticky {
            return Err(ServiceError::Exposed {
                path: path.to_owned(),
                owner: ROOT,
                place: "/usr/local/bin",
            });
        }
    }
    Ok(())
}

/// A service is started like any other program here.
pub(in crate::sys) fn be_service(
    _: Box<dyn FnOnce() -> anyhow::Result<u8> + Send>,
) -> Result<anyhow::Result<u8>, ServiceError> {
    Err(ServiceError::NotHere("only Windows starts services in a way of their own"))
}

/// What `program` says on its standard output.
pub(in crate::sys) fn run(program: &str, words: &[&str]) -> Result<String, ServiceError> {
    let what = format!("do `{program} {}`", words.join(" "));
    let output = Command::new(program).args(words).env("LC_ALL", "C").output();
    let said = match output {
        Ok(output) if output.status.success() => {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(problem) => problem.to_string(),
    };
    Err(ServiceError::Refused { what, said })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_others_can_replace_is_not_installed() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
        let problem = refuse_exposed(&program).unwrap_err().to_string();
        assert!(problem.starts_with(&program.display().to_string()), "{problem}");
        assert!(problem.contains("/usr/local/bin"), "{problem}");
        assert!(refuse_exposed(Path::new("/usr/bin/env")).is_ok());
    }

    #[test]
    fn a_program_that_refuses_is_quoted() {
        assert_eq!(run("echo", &["a", "b"]).unwrap(), "a b\n");
        let problem = run("ls", &["/there/is/no/such/thing"]).unwrap_err().to_string();
        assert!(
            problem.contains("`ls /there/is/no/such/thing`") && problem.contains("No such file"),
            "{problem}"
        );
        assert!(run("there-is-no-such-program", &[]).is_err());
    }
}
