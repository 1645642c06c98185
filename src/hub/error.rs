//! Why a model could not be got.
//!
//! Texts are safe to show to a client: they name the source, its files and hosts, never a path of this machine, an address
//! behind a name, or a token.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// An address, a file's name or a file's kind that is not allowed.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NotFound(String),
    /// The source wants a token, or another one.
    #[error("{0}")]
    Denied(String),
    /// The other side said to come again later, more often than we try.
    #[error("{0}")]
    RateLimited(String),
    /// It could not be reached, or broke off more often than we try.
    #[error("{0}")]
    Unreachable(String),
    /// What came is not what was announced: size, hash, version.
    #[error("{0}")]
    Corrupt(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    NoSpace(String),
    /// The store's folder cannot be written.
    #[error("{0}")]
    Disk(String),
    #[error(
        "the exporter that turns PyTorch models into ONNX is not set up on the server; run `make exporter`, or set [hub] \
         python to an interpreter that has it"
    )]
    NoExporter,
    /// The exporter said why not.
    #[error("{0}")]
    Export(String),
    /// Somebody else works on the same files.
    #[error("{0}")]
    Busy(String),
    #[error("cancelled")]
    Cancelled,
}
