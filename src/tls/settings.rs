//! Settings of this room: of `[server]` the two files.

use std::path::PathBuf;

/// Where certificate and key are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate first, then those that signed it.
    pub cert: PathBuf,
    pub key: PathBuf,
}
