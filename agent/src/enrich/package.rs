//! Which package a file belongs to, by the package manager's own database, read without running anything.
//!
//! Known is dpkg. The database of rpm is not read: on systems with rpm no file has a package.
//!
//! Belonging is by path, as for `dpkg -S`: it says that a package has a file of this name, not that the file is still the
//! one that the package came with.

use std::path::Path;

use alibi_proto::executable::Package;

use self::dpkg::Dpkg;

mod dpkg;
#[cfg(test)]
mod tests;

/// The package databases of a system. Read when first asked, and again when they have changed.
pub struct Packages {
    dpkg: Dpkg,
}

impl Packages {
    /// Those of the system under `root`.
    pub fn open(root: &Path) -> Self {
        Self { dpkg: Dpkg::open(root) }
    }

    /// The package that has a file at `path`, which is absolute and without links; none if there is none, or while it
    /// is being installed or taken away. May read the whole database.
    pub fn owner(&mut self, path: &str) -> Option<Package> {
        self.dpkg.owner(path)
    }

    /// Forgets what can be read again.
    pub fn forget(&mut self) {
        self.dpkg.forget();
    }
}
