//! Reads a request's body into memory, bounded in bytes and time, in one copy and aligned where it matters.

use super::HttpSettings;
use crate::entrance::NoRoom;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError};
use std::error::Error;
use tokio::time::Instant;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than max_body_bytes = {limit}")]
    TooLarge { limit: usize },
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("the body did not arrive within body_read_timeout_ms")]
    TooSlow,
    #[error(
        "the upload brought less than min_upload_bytes_per_s = {least} on average after body_read_timeout_ms; send it faster"
    )]
    Dripping { least: u64 },
    #[error("the connection ended before the body was complete, or its chunks are malformed")]
    Incomplete,
    #[error("the body is not what its Content-Encoding says: it could not be decompressed")]
    Encoding,
}

/// Alignment that suits every element type and vector load.
const ALIGNMENT: usize = 64;
/// A declared length up to this is believed at once (untouched pages cost nothing).
const BELIEVED: usize = 16 << 20;
/// A larger one once so much of it has come: what is copied when room is made for all of it.
const PROOF: usize = 1 << 20;

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
    // A declared length is only a promise.
    let declared = exact.map_or(0, |length| usize::try_from(length).unwrap_or(limit).min(limit));
    let (mut buffer, mut padding) = aligned(if declared <= BELIEVED { declared } else { PROOF }, align_at);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| read_error(&error, limit))?.into_data() else { continue };
        let length = buffer.len() - padding;
        if data.len() > limit - length {
            return Err(BodyError::TooLarge { limit });
        }
        if buffer.capacity() - buffer.len() < data.len() {
            // Growing in place would move the bytes to an address of another alignment.
            let (mut larger, larger_padding) = {
                let wanted =
                    if length + data.len() <= declared { declared } else { (length + data.len()).max(2 * length) };
                aligned(wanted.min(limit), align_at)
            };
            larger.extend_from_slice(buffer.get(padding..).unwrap_or_default());
            (buffer, padding) = (larger, larger_padding);
        }
        buffer.extend_from_slice(&data);
    }
    let mut bytes = buffer.freeze();
    Ok(bytes.split_off(padding))
}

/// A buffer for `capacity` bytes after some padding, which puts the byte at `align_at` on an aligned address.
fn aligned(capacity: usize, align_at: usize) -> (BytesMut, usize) {
    let mut buffer = BytesMut::with_capacity(capacity + 2 * ALIGNMENT);
    let at = (buffer.as_ptr() as usize).wrapping_add(align_at);
    let padding = at.wrapping_neg() % ALIGNMENT;
    buffer.resize(padding, 0);
    (buffer, padding)
}

/// Tells the limits on bytes, the connection and the decompression apart by what caused the error.
fn read_error(error: &axum::Error, limit: usize) -> BodyError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return BodyError::TooLarge { limit };
        }
        if let Some(error) = error.downcast_ref::<BodyError>() {
            return error.clone();
        }
        if error.is::<hyper::Error>() {
            return BodyError::Incomplete;
        }
        cause = match error.downcast_ref::<std::io::Error>() {
            // An I/O error shows the cause of what it wraps as its own, not what it wraps.
            Some(io) => match io.get_ref() {
                Some(inner) => Some(inner),
                None => return BodyError::Encoding,
            },
            None => error.source(),
        };
    }
    BodyError::Encoding
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use std::convert::Infallible;

    fn settings(max_body_bytes: usize) -> HttpSettings {
        HttpSettings { max_body_bytes, ..HttpSettings::default() }
    }

    fn chunks(chunks: Vec<&'static [u8]>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, Infallible>)))
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
        let too_large = Err(BodyError::TooLarge { limit: 4 });
        assert_eq!(read(Body::from("12345"), &settings(4), 0).await, too_large);
        assert_eq!(read(chunks(vec![b"123", b"45"]), &settings(4), 0).await, too_large);
        assert_eq!(read(chunks(vec![b"12", b"34"]), &settings(4), 0).await.unwrap(), "1234");
    }

    #[tokio::test]
    async fn the_asked_byte_is_aligned_also_where_the_length_is_unknown() {
        for align_at in [0, 1, 17, 64, 129] {
            let body = chunks(vec![&[7; 1000]; 9]);
            let bytes = read(body, &settings(1 << 20), align_at).await.unwrap();
            assert_eq!(bytes.len(), 9000);
            assert_eq!((bytes.as_ptr() as usize + align_at) % ALIGNMENT, 0);
            assert!(bytes.iter().all(|&byte| byte == 7));
        }
    }

    #[tokio::test]
    async fn a_large_body_of_known_length_moves_once() {
        let (length, chunk) = (BELIEVED + 5, vec![3u8; 1 << 16]);
        let whole: Vec<u8> = chunk.iter().copied().cycle().take(length).collect();
        for align_at in [0, 13] {
            let bytes = read(Body::from(whole.clone()), &settings(length), align_at).await.unwrap();
            assert!(bytes == whole && (bytes.as_ptr() as usize + align_at).is_multiple_of(ALIGNMENT));
        }
        let pieces: Vec<_> =
            whole.chunks(chunk.len()).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        let bytes = collect(Body::from_stream(stream::iter(pieces)), length, 13, Some(length as u64)).await.unwrap();
        assert!(bytes == whole && (bytes.as_ptr() as usize + 13).is_multiple_of(ALIGNMENT));
    }

    #[tokio::test]
    async fn a_dripping_body_is_given_up() {
        let mut settings = settings(10);
        settings.limits.body_read_timeout = std::time::Duration::from_millis(20);
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(read(body, &settings, 0).await, Err(BodyError::TooSlow));
    }
}
