//! The body of a call as it comes: each message has room before it is read, and arrives in time; the messages of a stream end when
//! the server stops.
//!
//! Invariants: a message for which there is no room is refused at its prefix; on a stream that has messages to be answered it waits
//! for those, so that who sends faster than the server answers is slowed down. What comes goes on as it came, in the same order.

use super::error::GrpcError;
use super::messages::Messages;
use crate::entrance::NoRoom;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status};

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A body, what its messages hold, and what ends it early.
pub(super) struct Inbound<B> {
    body: B,
    room: Option<Room>,
    end: End,
}

enum End {
    /// The message is late.
    TooSlow(Pin<Box<Sleep>>),
    /// The server stops, and what has come by then is the last.
    Stopping {
        stopped: Pin<Box<WaitForCancellationFutureOwned>>,
        /// For a message, once its length is known.
        time: Duration,
        late: Pin<Box<Sleep>>,
    },
}

impl<B> Inbound<B> {
    /// Of one message, which has so long.
    pub(super) fn within(body: B, time: Duration, room: Option<Room>) -> Inbound<B> {
        Inbound { body, room, end: End::TooSlow(Box::pin(tokio::time::sleep(time))) }
    }

    /// Of many, each of which has so long once its length is known.
    pub(super) fn until_stop(body: B, stopping: &CancellationToken, time: Duration, room: Option<Room>) -> Inbound<B> {
        let stopped = Box::pin(stopping.clone().cancelled_owned());
        let late = Box::pin(tokio::time::sleep(time));
        Inbound { body, room, end: End::Stopping { stopped, time, late } }
    }
}

/// Which message the bytes belong to, and what it holds.
pub(super) struct Room {
    messages: Messages,
    /// Of one message. What is larger is refused by who reads it, so it holds nothing.
    largest: usize,
    prefix: [u8; PREFIX],
    /// How much of the prefix has come.
    prefixed: usize,
    /// What is to come of the message.
    left: usize,
    /// When its length was known.
    begun: Instant,
    /// What has come, and waits for room.
    waiting: Bytes,
}

impl Room {
    pub(super) fn new(messages: Messages, largest: usize) -> Room {
        Room {
            messages,
            largest,
            prefix: [0; PREFIX],
            prefixed: 0,
            left: 0,
            begun: Instant::now(),
            waiting: Bytes::new(),
        }
    }

    /// When the message began that is not complete.
    fn unfinished(&self) -> Option<Instant> {
        (self.left > 0).then_some(self.begun)
    }

    /// How many of the bytes belong to messages that have room, and why those after them have none.
    fn admit(&mut self, bytes: &[u8]) -> (usize, Option<NoRoom>) {
        let mut rest = bytes;
        while let Some((&next, after)) = rest.split_first() {
            if self.left > 0 {
                let (of_message, after) = rest.split_at(self.left.min(rest.len()));
                self.left -= of_message.len();
                rest = after;
                continue;
            }
            let Some(place) = self.prefix.get_mut(self.prefixed) else { break };
            *place = next;
            if self.prefixed + 1 < PREFIX {
                self.prefixed += 1;
                rest = after;
                continue;
            }
            let [_, length @ ..] = self.prefix;
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if let Err(full) = self.messages.begin(if length > self.largest { 0 } else { length }) {
                return (bytes.len() - rest.len(), Some(full));
            }
            (self.prefixed, self.left, self.begun, rest) = (0, length, Instant::now(), after);
        }
        (bytes.len(), None)
    }
}

impl<B: Body<Data = Bytes, Error: Into<Error>> + Unpin> Inbound<B> {
    /// What comes next, without regard to time.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(room) = &mut self.room else {
            return Pin::new(&mut self.body).poll_frame(context).map_err(Into::into);
        };
        let mut data = std::mem::take(&mut room.waiting);
        if data.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(come) => data = come,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
        let (admitted, full) = room.admit(&data);
        let Some(full) = full else { return Poll::Ready(Some(Ok(Frame::data(data)))) };
        let is_slowed = matches!(self.end, End::Stopping { .. }) && !room.messages.are_none();
        if !is_slowed {
            return Poll::Ready(Some(Err(Status::from(GrpcError::from(full)).into())));
        }
        room.waiting = data.split_off(admitted);
        // Nobody wakes us here: the answer that makes room is awaited by the task that reads on.
        if data.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(data)))) }
    }
}

impl<B: Body<Data = Bytes, Error: Into<Error>> + Unpin> Body for Inbound<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = self.poll_bytes(context) {
            return Poll::Ready(frame);
        }
        let unfinished = self.room.as_ref().and_then(Room::unfinished);
        match &mut self.end {
            End::TooSlow(sleep) => sleep.as_mut().poll(context).map(|()| Some(Err(too_slow()))),
            End::Stopping { stopped, time, late } => {
                if stopped.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                let Some(begun) = unfinished else { return Poll::Pending };
                if late.deadline() != begun + *time {
                    late.as_mut().reset(begun + *time);
                }
                late.as_mut().poll(context).map(|()| Some(Err(too_slow())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_waiting = self.room.as_ref().is_some_and(|room| !room.waiting.is_empty());
        !is_waiting && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What waits here has left the body.
        SizeHint::default()
    }
}

fn too_slow() -> Error {
    let text = "the message did not arrive within body_read_timeout_ms";
    Status::from(GrpcError::new(Code::DeadlineExceeded, 408, "body_too_slow", text)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrance::InFlightBytes;
    use futures_util::{FutureExt, Stream, StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;

    const TIME: Duration = Duration::from_secs(30);

    fn message(length: usize) -> Vec<u8> {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [&[0], &prefix[..], &vec![7; length]].concat()
    }

    fn body(
        pieces: impl Stream<Item = Vec<u8>> + Send + 'static,
    ) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece.into()))).boxed())
    }

    async fn read<B: Body<Data = Bytes, Error: Into<Error>> + Unpin>(mut body: Inbound<B>) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            bytes.extend(frame.map_err(|error| error.to_string())?.into_data().unwrap());
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn what_comes_goes_on_as_it_came_wherever_it_is_cut() {
        let whole = [message(3), message(0), message(0), message(11), message(1)].concat();
        for size in 1..=whole.len() {
            let all = InFlightBytes::new(Some(15), 1);
            let messages = Messages::of(&all);
            let pieces: Vec<Vec<u8>> = whole.chunks(size).map(<[u8]>::to_vec).collect();
            let room = Room::new(messages.clone(), 11);
            let inbound = Inbound::within(body(stream::iter(pieces)), TIME, Some(room));
            assert_eq!(read(inbound).await.unwrap(), whole, "pieces of {size}");
            assert_eq!(all.held(), 15);
            assert_eq!(std::iter::from_fn(|| messages.take()).count(), 5);
            assert_eq!(all.held(), 0);
        }
    }

    #[tokio::test]
    async fn a_message_without_room_is_refused_at_its_prefix() {
        let all = InFlightBytes::new(Some(10), 1);
        let other = all.hold(4).unwrap();
        let ask = || {
            let room = Room::new(Messages::of(&all), 10);
            read(Inbound::within(body(stream::iter([message(7)[..PREFIX].to_vec()])), TIME, Some(room)))
        };
        assert!(ask().await.unwrap_err().contains("limits.max_inflight_bytes = 10: 7 bytes more"));
        assert_eq!(all.held(), 4);
        drop(other);
        assert_eq!(ask().await.unwrap().len(), PREFIX);
        // Who reads it refuses what is larger than a message may be.
        let room = Room::new(Messages::of(&all), 6);
        let body = Inbound::within(body(stream::iter([message(7)])), TIME, Some(room));
        assert_eq!((read(body).await.unwrap().len(), all.held()), (PREFIX + 7, 0));
    }

    #[tokio::test]
    async fn a_message_of_a_stream_waits_for_those_before_it_and_for_nobody_else() {
        let all = InFlightBytes::new(Some(10), 1);
        let messages = Messages::of(&all);
        let (first, second) = (message(6), message(8));
        let pieces = stream::iter([[&first[..], &second].concat()]);
        let room = Room::new(messages.clone(), 10);
        let mut inbound = Inbound::until_stop(body(pieces), &CancellationToken::new(), TIME, Some(room));
        let mut next = || inbound.frame().now_or_never().map(|frame| frame.unwrap().map_err(|error| error.to_string()));
        let came = next().unwrap().unwrap().into_data().unwrap();
        // All but the byte by which the length is known.
        assert_eq!(came.len(), first.len() + PREFIX - 1);
        assert!(next().is_none() && next().is_none());
        let taken = messages.take().unwrap();
        assert!(next().is_none());
        drop(taken);
        let other = all.hold(3).unwrap();
        assert!(next().unwrap().unwrap_err().contains("8 bytes more do not fit"));
        drop(other);
    }

    #[tokio::test]
    async fn a_message_that_waited_goes_on_where_it_was_cut() {
        let all = InFlightBytes::new(Some(10), 1);
        let messages = Messages::of(&all);
        let whole = [message(6), message(8), message(2)].concat();
        let room = Room::new(messages.clone(), 10);
        let pieces = stream::iter([whole.clone()]);
        let mut inbound = Inbound::until_stop(body(pieces), &CancellationToken::new(), TIME, Some(room));
        let mut bytes = Vec::new();
        while bytes.len() < whole.len() {
            match inbound.frame().now_or_never() {
                Some(frame) => bytes.extend(frame.unwrap().unwrap().into_data().unwrap()),
                None => drop(messages.take().unwrap()),
            }
        }
        assert_eq!(bytes, whole);
        assert!(!inbound.is_end_stream() || inbound.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_message_of_a_stream_has_a_time_and_a_stream_has_none() {
        let all = InFlightBytes::new(Some(10), 1);
        let (send, pieces) = tokio::sync::mpsc::unbounded_channel();
        let pieces = tokio_stream::wrappers::UnboundedReceiverStream::new(pieces);
        let room = Room::new(Messages::of(&all), 10);
        let mut inbound = Inbound::until_stop(body(pieces), &CancellationToken::new(), Duration::ZERO, Some(room));
        assert!(inbound.frame().now_or_never().is_none());
        for piece in [message(2), message(4)[..3].to_vec()] {
            send.send(piece).unwrap();
            inbound.frame().await.unwrap().unwrap();
            assert!(inbound.frame().now_or_never().is_none(), "there is no message that is late");
        }
        send.send(message(4)[3..7].to_vec()).unwrap();
        inbound.frame().await.unwrap().unwrap();
        let late = inbound.frame().await.unwrap().unwrap_err();
        assert!(late.to_string().contains("body_read_timeout_ms"), "{late}");
    }

    #[test]
    fn the_time_of_a_message_is_that_of_the_whole() {
        let mut room = Room::new(Messages::of(&InFlightBytes::new(Some(10), 1)), 10);
        assert_eq!(room.unfinished(), None);
        room.admit(&message(3)[..6]);
        let begun = room.unfinished().unwrap();
        room.admit(&[7]);
        assert_eq!(room.unfinished(), Some(begun));
        room.admit(&[7]);
        assert_eq!(room.unfinished(), None);
    }

    #[tokio::test]
    async fn a_stream_that_waits_ends_when_the_server_stops() {
        let all = InFlightBytes::new(Some(10), 1);
        let (messages, stopping) = (Messages::of(&all), CancellationToken::new());
        let room = Room::new(messages.clone(), 10);
        let pieces = stream::iter([[message(6), message(8)].concat()]).chain(stream::pending());
        let mut inbound = Inbound::until_stop(body(pieces), &stopping, TIME, Some(room));
        assert!(inbound.frame().now_or_never().is_some() && inbound.frame().now_or_never().is_none());
        stopping.cancel();
        assert!(inbound.frame().await.is_none());
    }
}
