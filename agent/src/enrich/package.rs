//! Which package a file belongs to, by the package manager's own database, read without running anything.
//!
//! Known are dpkg and, where its database is SQLite (since 4.16: Fedora 33, RHEL 9), rpm.
//!
//! Belonging is by path, as for `dpkg -S` and `rpm -qf`: it says that a package has a file of this name, not that the file is still the
//! one that the package came with.

use std::path::Path;

use alibi_proto::executable::{FileIdentity, Package};

use self::{dpkg::Dpkg, rpm::Rpm};

mod dpkg;
mod rpm;
#[cfg(test)]
mod tests;

/// The package databases of a system. Read when first asked, and again when they have changed.
pub struct Packages {
    dpkg: Dpkg,
    rpm: Rpm,
}

/// A package database is being worked on, and cannot tell just now: to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Packages {
    /// Those of the system under `root`.
    pub fn open(root: &Path) -> Self {
        Self { dpkg: Dpkg::open(root), rpm: Rpm::open(root) }
    }

    /// The package that has `file` at `path`, which is absolute and without links; none if there is none, or while dpkg
    /// installs it or takes it away. May read the whole database.
    ///
    /// # Errors
    /// While rpm works on it.
    pub fn owner(&mut self, path: &str, file: &FileIdentity) -> Result<Option<Package>, Busy> {
        match self.dpkg.owner(path) {
            Some(package) => Ok(Some(package)),
            None => self.rpm.owner(path, file),
        }
    }

    /// Forgets what can be read again.
    pub fn forget(&mut self) {
        self.dpkg.forget();
    }
}
