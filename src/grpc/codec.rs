//! The outermost form of messages: protobuf, with what is wrong in one said as the client's error.
//!
//! Invariants: a message is looked through before anything is made of it, so that one of nothing but empty fields (two bytes each,
//! three hundred in memory) is refused; a compressed one holds what it is unpacked to; tensors are slices of the message.

use super::error::GrpcError;
use super::messages::Messages;
use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Inputs, outputs, parameters and tensors of one message together. Models have hundreds at most.
const MAX_FIELDS: usize = 16_384;

/// Reads `U` and writes `T`, for the call that is made where it is made.
pub(super) struct Protobuf<T, U> {
    messages: Option<Messages>,
    types: PhantomData<(T, U)>,
}

impl<T, U> Default for Protobuf<T, U> {
    fn default() -> Protobuf<T, U> {
        Protobuf { messages: Messages::own(), types: PhantomData }
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for Protobuf<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Writer<T>;
    type Decoder = Reader<U>;

    fn encoder(&mut self) -> Writer<T> {
        Writer(PhantomData)
    }

    fn decoder(&mut self) -> Reader<U> {
        Reader { messages: self.messages.clone(), types: PhantomData }
    }
}

pub(super) struct Writer<T>(PhantomData<T>);

impl<T: Message> Encoder for Writer<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // Grown step by step it would be copied with each step.
        buffer.reserve(message.encoded_len());
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

pub(super) struct Reader<T> {
    messages: Option<Messages>,
    types: PhantomData<T>,
}

impl<T: Message + Default> Decoder for Reader<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        if let Some(messages) = &self.messages {
            messages.unpacked(buffer.remaining()).map_err(GrpcError::from)?;
        }
        decoded(buffer).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// The message that lies in one piece in `buffer`.
///
/// # Errors
/// `INVALID_ARGUMENT` for what is none, and for one of too many fields.
pub(super) fn decoded<T: Message + Default>(buffer: impl Buf) -> Result<T, Status> {
    check(buffer.chunk())?;
    T::decode(buffer).map_err(|error| malformed(&error.to_string()))
}

fn malformed(problem: &str) -> Status {
    Status::invalid_argument(format!("the message cannot be read: {problem}"))
}

/// Counts the fields of a message without reading them.
fn check(mut message: &[u8]) -> Result<(), Status> {
    let mut fields = 0;
    while message.has_remaining() {
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Status::invalid_argument(format!("the message has more than {MAX_FIELDS} fields")));
        }
        decode_key(&mut message)
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut message, DecodeContext::default()))
            .map_err(|error| malformed(&error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f78_a_message_is_looked_through_before_it_is_read() {
        assert!(check(&[]).is_ok());
        assert!(check(&[0x2a, 0].repeat(MAX_FIELDS)).is_ok());
        for (bad, words) in [
            ([0x2a, 0].repeat(MAX_FIELDS + 1), "more than 16384 fields"),
            // Groups within each other, never closed.
            (vec![0x0b; 100_000], "cannot be read"),
            // A length of 2^63.
            (vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "cannot be read"),
            (vec![0x0a, 5, 1], "cannot be read"),
            (vec![0xff; 32], "cannot be read"),
        ] {
            let status = check(&bad).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(words), "{}", status.message());
        }
    }
}
