//! The real programs, built from this checkout.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, ensure};

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// The collector and command line.
    pub alibi: PathBuf,
}

/// Names a directory with programs that were built otherwise: those are taken, as they are.
const BUILT: &str = "ALIBI_LAB_PROGRAMS";

/// Builds the programs, if they are not fresh, into the directory that this very program was built into.
///
/// # Errors
/// When they do not build.
pub fn build() -> Result<Programs> {
    if let Some(directory) = env::var_os(BUILT) {
        return Ok(Programs::in_directory(Path::new(&directory)));
    }
    let own = env::current_exe().context("where is this program?")?;
    // target/debug/lab, or target/debug/deps/story-0123456789abcdef
    let mut directory = own.parent().context("no directory")?;
    if directory.ends_with("deps") {
        directory = directory.parent().context("no directory")?;
    }
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo
        .args(["build", "--quiet", "--package", "alibi-agent", "--package", "alibi-collector", "--bins"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?)
        .env("CARGO_TARGET_DIR", directory.parent().context("no target directory")?);
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    ensure!(cargo.status().context("cargo cannot be run")?.success(), "the programs do not build");
    Ok(Programs::in_directory(directory))
}

impl Programs {
    fn in_directory(directory: &Path) -> Self {
        let program = |name: &str| directory.join(name).with_extension(env::consts::EXE_EXTENSION);
        Self { agent: program("alibi-agent"), alibi: program("alibi") }
    }
}

/// As [`build`], once in each test program.
///
/// # Panics
/// When they do not build.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| build().expect("the programs build"))
}
