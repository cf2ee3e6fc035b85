//! Which host this is: an id that is made once and kept in the data directory.

use std::{fs, io, path::Path};

use alibi_proto::{data_directory::write_whole, id::HostId};
use serde::{Deserialize, Serialize};

const FILE: &str = "host.json";

#[derive(Serialize, Deserialize)]
struct Identity {
    host: HostId,
}

/// The host's id; made if `directory` has none.
///
/// # Errors
/// When it can be neither read nor written.
pub fn load_or_make(directory: &Path) -> Result<HostId, IdentityError> {
    match load(directory)? {
        Some(host) => Ok(host),
        None => make(directory),
    }
}

/// A new id, in the place of the one that is there.
///
/// # Errors
/// When it cannot be written.
pub fn make(directory: &Path) -> Result<HostId, IdentityError> {
    let identity = Identity { host: HostId::random() };
    let path = directory.join(FILE);
    let written = serde_json::to_vec(&identity).map_err(io::Error::from);
    written.and_then(|text| write_whole(&path, &text)).map_err(|source| error(&path, source))?;
    Ok(identity.host)
}

/// The host's id, if `directory` has one.
///
/// # Errors
/// When it cannot be read.
pub fn load(directory: &Path) -> Result<Option<HostId>, IdentityError> {
    let path = directory.join(FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice::<Identity>(&text)
            .map(|identity| Some(identity.host))
            .map_err(|source| error(&path, source.into())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(error(&path, source)),
    }
}

fn error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError { path: path.display().to_string(), source }
}

/// The host's id cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the host's identity {path}: {source}; restore it, or move it elsewhere and be a new host"
)]
pub struct IdentityError {
    path: String,
    source: io::Error,
}
