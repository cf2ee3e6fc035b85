//! What is done to an observation before it is written down.

/// Which file an executable is, and what is in it.
pub mod executable;
/// Which package a file belongs to.
pub mod package;
/// Secrets in command lines.
pub mod redaction;
