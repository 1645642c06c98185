//! Reads a request's body into memory, bounded in bytes and time, in one copy and aligned where it matters.

use super::HttpSettings;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::Instant;

/// Why a body could not be read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than max_body_bytes = {limit}")]
    TooLarge { limit: usize },
    #[error("the body did not arrive within body_read_timeout_ms")]
    TooSlow,
    #[error("the connection ended before the body was complete")]
    Incomplete,
}

/// Alignment that suits every element type and vector load.
const ALIGNMENT: usize = 64;

/// The whole body. The byte at `align_at` (such as the first after a JSON part) is aligned for every element type, so
/// that tensors there need no further copy.
///
/// # Errors
/// A declared length over the limit is refused before a byte is read; see [`BodyError`].
pub(super) async fn read(body: Body, settings: &HttpSettings, align_at: usize) -> Result<Bytes, BodyError> {
    let limit = settings.max_body_bytes;
    let deadline = Instant::now() + settings.limits.body_read_timeout;
    let hint = body.size_hint();
    if hint.lower() > limit as u64 {
        return Err(BodyError::TooLarge { limit });
    }
    match tokio::time::timeout_at(deadline, collect(body, limit, align_at, hint.exact())).await {
        Ok(result) => result,
        Err(_) => Err(BodyError::TooSlow),
    }
}

async fn collect(mut body: Body, limit: usize, align_at: usize, exact: Option<u64>) -> Result<Bytes, BodyError> {
    // A declared length is only a promise: reserve 16 MiB at most (untouched pages cost nothing).
    let ahead = exact.map_or(0, |length| usize::try_from(length).unwrap_or(limit).min(16 << 20));
    let mut buffer = BytesMut::with_capacity(ahead + 2 * ALIGNMENT);
    let address = buffer.as_ptr() as usize;
    let padding = (address + align_at).next_multiple_of(ALIGNMENT) - (address + align_at);
    buffer.resize(padding, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Incomplete)?.into_data() else { continue };
        if buffer.len() - padding + data.len() > limit {
            return Err(BodyError::TooLarge { limit });
        }
        buffer.extend_from_slice(&data);
    }
    let mut bytes = buffer.freeze();
    Ok(bytes.split_off(padding))
}
