//! Where a measurement keeps what it makes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Measures in new directories: where they are chosen to be, or below a temporary one by their names. They are taken away after
/// it, however it ended: where they were chosen to be, they would be in the way of the next run.
///
/// # Errors
/// When one is there already, or cannot be made or taken away; and those of the measurement.
pub fn in_places<const N: usize, T>(
    chosen: [(&Option<PathBuf>, &str); N],
    measure: impl FnOnce([&Path; N]) -> Result<T>,
) -> Result<T> {
    let temporary = tempfile::tempdir()?;
    let places = chosen.map(|(chosen, name)| chosen.clone().unwrap_or_else(|| temporary.path().join(name)));
    for place in &places {
        ensure!(!place.exists(), "{} is there already", place.display());
    }
    for place in &places {
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    }
    let measured = measure(places.each_ref().map(PathBuf::as_path));
    for place in &places {
        fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    measured
}
