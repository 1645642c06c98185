//! Bounds the bytes that the bodies of all requests hold together: what does not fit is refused at once, before it is read.
//!
//! Invariants: a declared length is held from the request's head until its answer is made, a body of unknown length as it
//! grows, a compressed one as it is unpacked; what is held is given back when its request ends, however it ends; nothing
//! waits for room. One body of `max_body_bytes` fits whenever nothing else is held. Knows no model and no queue.

use super::HttpSettings;
use super::body::BodyError;
use crate::telemetry::process;
use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// The share of the memory that is free at the start which bodies may hold where the settings name no number.
const SHARE: u64 = 4;
/// What they may hold where the system does not tell what is free.
const UNKNOWN: usize = 1 << 30;

/// What all bodies hold together. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct InFlightBytes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    held: AtomicUsize,
}

/// What one body holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    all: InFlightBytes,
    bytes: AtomicUsize,
}

impl InFlightBytes {
    pub(super) fn new(settings: &HttpSettings) -> InFlightBytes {
        let own = settings.limits.max_inflight_bytes.unwrap_or_else(|| {
            process::available_bytes().map_or(UNKNOWN, |free| usize::try_from(free / SHARE).unwrap_or(usize::MAX))
        });
        InFlightBytes::of(own.max(settings.max_body_bytes))
    }

    fn of(limit: usize) -> InFlightBytes {
        InFlightBytes(Arc::new(Inner { limit, held: AtomicUsize::new(0) }))
    }

    /// Holds what the body declares; a length that is not known yet holds nothing.
    ///
    /// # Errors
    /// [`BodyError::NoRoom`].
    pub(super) fn hold(&self, body: &Body) -> Result<Arc<Held>, BodyError> {
        let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        self.take(declared)?;
        Ok(Arc::new(Held { all: self.clone(), bytes: AtomicUsize::new(declared) }))
    }

    fn take(&self, bytes: usize) -> Result<(), BodyError> {
        let Inner { limit, held } = &*self.0;
        if bytes == 0 {
            return Ok(());
        }
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| sum <= limit);
        match held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(held) => Err(BodyError::NoRoom { limit: *limit, held, wanted: bytes }),
        }
    }
}

impl Held {
    /// The body, which holds what it turns out to have beyond what it declared.
    pub(super) fn counting(self: Arc<Held>, body: Body) -> Body {
        Body::new(Counted { body, held: self, seen: 0 })
    }

    /// # Errors
    /// [`BodyError::NoRoom`].
    fn grow_to(&self, bytes: usize) -> Result<(), BodyError> {
        // One body is read by one task: nobody else changes it meanwhile.
        let more = bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        self.all.take(more)?;
        self.bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.all.0.held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// A body whose bytes are held as they come.
struct Counted {
    body: Body,
    held: Arc<Held>,
    seen: usize,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.seen = self.seen.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if let Err(full) = self.held.grow_to(self.seen) {
                return Poll::Ready(Some(Err(axum::Error::new(full))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpLimits;
    use futures_util::stream;
    use http_body_util::BodyExt;
    use std::convert::Infallible;

    fn chunks(chunks: Vec<&'static [u8]>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, Infallible>)))
    }

    fn held(all: &InFlightBytes) -> usize {
        all.0.held.load(Ordering::Relaxed)
    }

    #[test]
    fn declared_lengths_are_held_until_their_requests_end() {
        let all = InFlightBytes::of(10);
        let first = all.hold(&Body::from("123456")).unwrap();
        let full = BodyError::NoRoom { limit: 10, held: 6, wanted: 5 };
        assert_eq!(all.hold(&Body::from("12345")).unwrap_err(), full);
        let second = all.hold(&Body::from("1234")).unwrap();
        assert_eq!(held(&all), 10);
        assert!(all.hold(&Body::empty()).is_ok(), "nothing is asked of who sends nothing");
        drop(first);
        assert_eq!(held(&all), 4);
        drop(second);
        assert_eq!(held(&all), 0);
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_held_as_it_grows_and_given_back_when_it_is_refused() {
        let all = InFlightBytes::of(10);
        let other = all.hold(&Body::from("1234")).unwrap();
        let body = chunks(vec![b"12", b"345", b"67", b"8"]);
        let own = all.hold(&body).unwrap();
        let mut body = own.clone().counting(body);
        for expected in [6, 9] {
            body.frame().await.unwrap().unwrap();
            assert_eq!(held(&all), expected);
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), BodyError::NoRoom { limit: 10, held: 9, wanted: 2 }.to_string());
        drop((body, own));
        assert_eq!(held(&all), 4);
        drop(other);
        let body = chunks(vec![b"12345", b"67890"]);
        let own = all.hold(&body).unwrap();
        assert_eq!(own.clone().counting(body).collect().await.unwrap().to_bytes(), "1234567890");
    }

    #[tokio::test]
    async fn what_was_declared_is_not_held_twice() {
        let all = InFlightBytes::of(10);
        let body = Body::from("1234567890");
        let own = all.hold(&body).unwrap();
        assert_eq!(own.clone().counting(body).collect().await.unwrap().to_bytes(), "1234567890");
        assert_eq!(held(&all), 10);
    }

    #[test]
    fn one_largest_body_always_fits() {
        let limits = HttpLimits { max_inflight_bytes: Some(5), ..HttpSettings::default().limits };
        let settings = HttpSettings { max_body_bytes: 8, limits, ..HttpSettings::default() };
        let all = InFlightBytes::new(&settings);
        let own = all.hold(&Body::from("12345678")).unwrap();
        assert_eq!(all.hold(&Body::from("1")).unwrap_err(), BodyError::NoRoom { limit: 8, held: 8, wanted: 1 });
        drop(own);
        let measured = InFlightBytes::new(&HttpSettings::default());
        assert!(measured.0.limit >= HttpSettings::default().max_body_bytes);
    }
}
