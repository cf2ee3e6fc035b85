//! Fuzzing: bytes at random, guided by what of the code they reach, against everything that parses bytes from outside or
//! from disk. The targets are in `tests/fuzz`, a workspace of its own; what they found lies in its `artifacts`, and what
//! reaches more than the rest in its `corpus`.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

/// Each has a file in `tests/fuzz/targets`.
const TARGETS: [&str; 6] = ["frame", "segment", "checkpoint", "event", "tail", "search"];
/// One input takes less.
const INPUT_SECS_MAX: u32 = 20;
const MEMORY_MB_MAX: u32 = 2048;

/// `cargo lab fuzz`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// One of frame, segment, checkpoint, event, tail and search; all, if none is named
    #[arg(long)]
    target: Option<String>,
    /// How long for each
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Builds the targets, and runs them one after another.
///
/// # Errors
/// When one does not build, is not known, or has found something.
pub fn fuzz(options: &Options) -> Result<()> {
    let known = |name: &str| TARGETS.into_iter().find(|target| *target == name);
    let targets = match &options.target {
        None => TARGETS.to_vec(),
        Some(name) => vec![known(name).with_context(|| format!("no target is named `{name}`"))?],
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let built = cargo(&directory).args(["build", "--release", "--locked"]).status()?;
    ensure!(built.success(), "the targets do not build");
    for target in targets {
        fuzz_one(&directory, target, options.seconds)?;
    }
    Ok(())
}

fn fuzz_one(directory: &Path, target: &str, seconds: u64) -> Result<()> {
    let [corpus, artifacts] = ["corpus", "artifacts"].map(|name| directory.join(name).join(target));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&artifacts)?;
    // In memory, where there is such a directory.
    let memory = Path::new("/dev/shm");
    let scratch = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
    let output = cargo(directory)
        .args(["run", "--quiet", "--release", "--locked", "--bin", target, "--"])
        .env("ALIBI_FUZZ_SEEDS", &corpus)
        .env("ALIBI_FUZZ_SCRATCH", scratch.path())
        .arg(&corpus)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .output()
        .context("the target cannot be run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    if !output.status.success() {
        let last = &lines[lines.len().saturating_sub(40)..];
        bail!("{target} has found something: see {}\n{}", artifacts.display(), last.join("\n"));
    }
    let value =
        |name: &str| lines.iter().rev().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim();
    let reached = lines.iter().rev().find_map(|line| line.split_once("cov: "));
    println!(
        "{target}: nothing found by {} inputs in {seconds} s, which reached {} edges",
        value("stat::number_of_executed_units:"),
        reached.and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or("?"),
    );
    Ok(())
}

/// Where the flags for coverage are found, and nothing of this build.
fn cargo(directory: &Path) -> Command {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.current_dir(directory);
    for of_this_build in ["CARGO_TARGET_DIR", "RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(of_this_build);
    }
    cargo
}
