//! A response body of several pieces of memory, sent as they are: tensors are not copied behind their JSON part.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Sends its pieces in order. Its length is known from the start, so the answer has a `Content-Length`.
#[derive(Debug)]
pub(super) struct Frames {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl Frames {
    pub(super) fn new(pieces: impl IntoIterator<Item = Bytes>) -> Frames {
        // An empty frame says nothing and would end no stream.
        let pieces: VecDeque<Bytes> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Frames { pieces, left }
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(piece) = self.pieces.pop_front() else { return Poll::Ready(None) };
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn pieces_are_sent_in_order_without_copying() {
        let first = Bytes::from_static(b"{}");
        let tensor = Bytes::from(vec![1u8; 100]);
        let mut frames = Frames::new([first.clone(), Bytes::new(), tensor.clone()]);
        assert_eq!(frames.size_hint().exact(), Some(102));
        let mut sent = Vec::new();
        while let Some(frame) = frames.frame().await {
            sent.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(sent.iter().map(|piece| piece.as_ptr()).collect::<Vec<_>>(), [first.as_ptr(), tensor.as_ptr()]);
        assert!(frames.is_end_stream());
        assert_eq!(frames.size_hint().exact(), Some(0));
    }

    #[test]
    fn nothing_is_an_empty_body() {
        assert!(Frames::new([Bytes::new()]).is_end_stream());
    }
}
