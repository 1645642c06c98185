//! The body of a call as it comes: the message of a call arrives in time, and the messages of a stream end when the server stops.

use super::error::GrpcError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status};

/// A body and what ends it early.
pub(super) struct Inbound {
    body: Incoming,
    end: End,
}

enum End {
    /// The message is late.
    TooSlow(Pin<Box<Sleep>>),
    /// The server stops, and what has come by then is the last.
    Stopping(Pin<Box<WaitForCancellationFutureOwned>>),
}

impl Inbound {
    /// Of one message, which has so long.
    pub(super) fn within(body: Incoming, time: Duration) -> Inbound {
        Inbound { body, end: End::TooSlow(Box::pin(tokio::time::sleep(time))) }
    }

    pub(super) fn until_stop(body: Incoming, stopping: &CancellationToken) -> Inbound {
        Inbound { body, end: End::Stopping(Box::pin(stopping.clone().cancelled_owned())) }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match &mut self.end {
            End::TooSlow(sleep) => sleep.as_mut().poll(context).map(|()| {
                let text = "the message did not arrive within body_read_timeout_ms";
                let error = GrpcError::new(Code::DeadlineExceeded, 408, "body_too_slow", text);
                Some(Err(Status::from(error).into()))
            }),
            End::Stopping(stopped) => stopped.as_mut().poll(context).map(|()| None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
