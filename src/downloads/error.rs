//! Why a download was not taken, or failed. Texts are safe to show to a client.

use crate::hub::HubError;
use crate::models::{LoadError, ModelError};

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("there is no such download")]
    NotFound,
    #[error(
        "{limit} downloads wait or run already, as many as max_downloads allows; wait for one to end, or cancel one"
    )]
    TooMany { limit: usize },
    #[error("it took longer than total_timeout_s = {seconds}")]
    TooSlow { seconds: u64 },
    #[error("the server is stopping")]
    Stopping,
    #[error("cancelled")]
    Cancelled,
    #[error("the work ended abnormally")]
    Panicked,
}

impl DownloadError {
    /// Whether the same order may succeed later without anybody changing it.
    pub fn may_pass(&self) -> bool {
        match self {
            DownloadError::Hub(error) => match error {
                HubError::Invalid(_)
                | HubError::Refused(_)
                | HubError::NotFound(_)
                | HubError::Denied(_)
                | HubError::TooLarge(_)
                | HubError::NoExporter
                | HubError::Export(_) => false,
                HubError::RateLimited(_)
                | HubError::Unreachable(_)
                | HubError::Corrupt(_)
                | HubError::NoSpace(_)
                | HubError::Disk(_)
                | HubError::Busy(_)
                | HubError::Cancelled => true,
            },
            DownloadError::Model(error) => matches!(
                error,
                ModelError::Conflict { .. }
                    | ModelError::NoSpace { .. }
                    | ModelError::Load { source: LoadError::NoMemory { .. } | LoadError::MemoryBusy { .. }, .. }
            ),
            DownloadError::NotFound
            | DownloadError::TooMany { .. }
            | DownloadError::TooSlow { .. }
            | DownloadError::Stopping
            | DownloadError::Cancelled => true,
            DownloadError::Panicked => false,
        }
    }

    /// The stable word for what went wrong.
    pub fn code(&self) -> &'static str {
        match self {
            DownloadError::Hub(error) => match error {
                HubError::Invalid(_) => "invalid_input",
                HubError::Refused(_) => "refused",
                HubError::NotFound(_) => "not_found",
                HubError::Denied(_) => "access_denied",
                HubError::RateLimited(_) => "rate_limited",
                HubError::Unreachable(_) => "unreachable",
                HubError::Corrupt(_) => "checksum",
                HubError::TooLarge(_) => "too_large",
                HubError::NoSpace(_) => "no_space",
                HubError::Disk(_) => "disk",
                HubError::NoExporter => "no_exporter",
                HubError::Export(_) => "export_failed",
                HubError::Busy(_) => "busy",
                HubError::Cancelled => "cancelled",
            },
            DownloadError::Model(_) => "model_failed",
            DownloadError::NotFound => "not_found",
            DownloadError::TooMany { .. } => "too_many",
            DownloadError::TooSlow { .. } => "timeout",
            DownloadError::Stopping => "stopping",
            DownloadError::Cancelled => "cancelled",
            DownloadError::Panicked => "internal_error",
        }
    }
}
