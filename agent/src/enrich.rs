//! What is done to an observation before it is written down.

/// Secrets in command lines.
pub mod redaction;
