//! What the body of a request holds of the bytes that all bodies may hold together.
//!
//! Invariants: a declared length is held from the request's head until its answer is made, a body of unknown length as it grows, a
//! compressed one as it is unpacked. The count itself is the entrance's, the same for all doors.

use super::body::BodyError;
use crate::entrance::{Held, InFlightBytes};
use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Holds what the body declares; a length that is not known yet holds nothing.
///
/// # Errors
/// [`BodyError::NoRoom`].
pub(super) fn hold(all: &InFlightBytes, body: &Body) -> Result<Arc<Held>, BodyError> {
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    Ok(Arc::new(all.hold(declared)?))
}

/// The body, which holds what it turns out to have beyond what it declared.
pub(super) fn counting(held: Arc<Held>, body: Body) -> Body {
    Body::new(Counted { body, held, seen: 0 })
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
                return Poll::Ready(Some(Err(axum::Error::new(BodyError::from(full)))));
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
    use crate::entrance::NoRoom;
    use futures_util::stream;
    use http_body_util::BodyExt;
    use std::convert::Infallible;

    fn chunks(chunks: Vec<&'static [u8]>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, Infallible>)))
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_held_as_it_grows_and_given_back_when_it_is_refused() {
        let all = InFlightBytes::new(Some(10), 1);
        let other = hold(&all, &Body::from("1234")).unwrap();
        let body = chunks(vec![b"12", b"345", b"67", b"8"]);
        let own = hold(&all, &body).unwrap();
        let mut body = counting(own.clone(), body);
        for expected in [6, 9] {
            body.frame().await.unwrap().unwrap();
            assert_eq!(all.held(), expected);
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), NoRoom { limit: 10, held: 9, wanted: 2 }.to_string());
        drop((body, own));
        assert_eq!(all.held(), 4);
        drop(other);
        let body = chunks(vec![b"12345", b"67890"]);
        let own = hold(&all, &body).unwrap();
        assert_eq!(counting(own, body).collect().await.unwrap().to_bytes(), "1234567890");
    }

    #[tokio::test]
    async fn what_was_declared_is_not_held_twice() {
        let all = InFlightBytes::new(Some(10), 1);
        let body = Body::from("1234567890");
        let own = hold(&all, &body).unwrap();
        assert_eq!(counting(own.clone(), body).collect().await.unwrap().to_bytes(), "1234567890");
        assert_eq!(all.held(), 10);
    }
}
