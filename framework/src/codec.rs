//! How a contract becomes bytes: [`Codec`], picked by the `content-type` header.

use std::io;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    envelope::{Headers, header},
    error::RpcError,
};

/// The encoding of a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// `application/json`: the default, and the only one NestJS applications speak.
    #[default]
    Json,
    /// `text/plain`: what NestJS puts into a Kafka record. Objects and arrays are JSON; all else is
    /// text, in which `42` may be a number or a string: whatever the type is that is asked for.
    /// Encodes as JSON.
    Text,
    /// `application/x-bincode`: bincode 2, standard configuration. Small and fast, but both sides
    /// must be built from the same contract.
    #[cfg(feature = "bincode")]
    Bincode,
}

/// What bincode may allocate while decoding, whatever a forged length says.
#[cfg(feature = "bincode")]
const BINCODE_LIMIT: usize = 64 << 20;

impl Codec {
    /// The value of the `content-type` header; none for JSON, which is what its absence means.
    pub fn content_type(self) -> Option<&'static str> {
        match self {
            Self::Json => None,
            Self::Text => Some("text/plain"),
            #[cfg(feature = "bincode")]
            Self::Bincode => Some("application/x-bincode"),
        }
    }

    /// The codec that `headers` ask for.
    ///
    /// # Errors
    /// `InvalidArgument` when it is one this build does not know.
    pub fn of(headers: &Headers) -> Result<Self, RpcError> {
        match headers.get(header::CONTENT_TYPE) {
            None | Some("application/json") => Ok(Self::Json),
            Some("text/plain") => Ok(Self::Text),
            #[cfg(feature = "bincode")]
            Some("application/x-bincode") => Ok(Self::Bincode),
            Some(other) => Err(RpcError::invalid_argument(format!(
                "unknown content-type {other:?}"
            ))),
        }
    }

    /// Encodes one value.
    ///
    /// # Errors
    /// `Internal` when the type cannot be carried by this codec.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Bytes, RpcError> {
        let mut written = Written::new();
        match self {
            Self::Json | Self::Text => {
                serde_json::to_writer(&mut written, value).map_err(RpcError::internal)?;
            }
            #[cfg(feature = "bincode")]
            Self::Bincode => {
                let config = bincode::config::standard();
                bincode::serde::encode_into_std_write(value, &mut written, config)
                    .map_err(RpcError::internal)?;
            }
        }
        Ok(written.take())
    }

    /// Decodes one value; an empty JSON payload reads as `null`.
    ///
    /// # Errors
    /// `InvalidArgument` when the bytes are not such a value, or not only it.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, RpcError> {
        match self {
            Self::Json => {
                let bytes = if bytes.is_empty() { b"null" } else { bytes };
                serde_json::from_slice(bytes)
                    .map_err(|error| undecodable(&error).with_source(error))
            }
            Self::Text => decode_text(bytes),
            #[cfg(feature = "bincode")]
            Self::Bincode => {
                let config = bincode::config::standard().with_limit::<BINCODE_LIMIT>();
                match bincode::serde::decode_from_slice(bytes, config) {
                    Ok((value, read)) if read == bytes.len() => Ok(value),
                    Ok(_) => Err(RpcError::invalid_argument("payload has trailing bytes")),
                    Err(error) => Err(undecodable(&error).with_source(error)),
                }
            }
        }
    }
}

/// What is being encoded. Most payloads are small: they grow on the stack, and then take one allocation
/// of their size.
struct Written {
    start: [u8; Self::SMALL],
    length: usize,
    /// All of it, once it is not small any more.
    long: Vec<u8>,
}

impl Written {
    const SMALL: usize = 256;

    fn new() -> Self {
        Self {
            start: [0; Self::SMALL],
            length: 0,
            long: Vec::new(),
        }
    }

    /// All of it; by reference, as it is large.
    fn take(&mut self) -> Bytes {
        match self.long.is_empty() {
            true => Bytes::copy_from_slice(&self.start[..self.length]),
            false => std::mem::take(&mut self.long).into(),
        }
    }

    #[cold]
    fn outgrow(&mut self, bytes: &[u8]) {
        self.long.reserve(4 * Self::SMALL);
        self.long.extend_from_slice(&self.start[..self.length]);
        self.long.extend_from_slice(bytes);
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.long.is_empty() {
            self.long.extend_from_slice(bytes);
            return Ok(());
        }
        match self.start[self.length..].get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.outgrow(bytes),
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Objects and arrays first, then text, then whatever else JSON knows.
fn decode_text<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RpcError> {
    let as_json = || Codec::Json.decode(bytes);
    if matches!(bytes.first(), None | Some(b'{' | b'['))
        && let Ok(value) = as_json()
    {
        return Ok(value);
    }
    let text = String::from_utf8_lossy(bytes).into_owned();
    serde_json::from_value(text.into()).or_else(|_| as_json())
}

fn undecodable(error: &dyn std::fmt::Display) -> RpcError {
    RpcError::invalid_argument(format!("payload cannot be decoded: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn json_without_payload_is_null() {
        assert_eq!(Codec::Json.decode::<Option<u8>>(b""), Ok(None));
        assert_eq!(
            Codec::Json.decode::<u8>(b"{").unwrap_err().code,
            Code::InvalidArgument
        );
    }

    #[test]
    fn what_is_encoded_is_whole_whatever_its_size() {
        for size in [0, 1, 253, 254, 255, 256, 257, 1000, 100_000] {
            let text = "x".repeat(size);
            let bytes = Codec::Json.encode(&text).unwrap();
            assert_eq!(bytes, format!("\"{text}\""), "{size}");
            let parts = vec![7_u8; size];
            let bytes = Codec::Json.encode(&parts).unwrap();
            assert_eq!(bytes, serde_json::to_vec(&parts).unwrap(), "{size}");
        }
    }

    #[test]
    fn text_is_what_the_type_makes_of_it() {
        let codec = Codec::Text;
        assert_eq!(codec.decode(b"42"), Ok(42));
        assert_eq!(codec.decode(b"42"), Ok("42".to_owned()));
        assert_eq!(codec.decode(b"\"q\""), Ok("\"q\"".to_owned()));
        assert_eq!(codec.decode(b"true"), Ok(true));
        assert_eq!(codec.decode(b"[1,2]"), Ok(vec![1, 2]));
        assert_eq!(codec.decode(b"{bad"), Ok("{bad".to_owned()));
        assert_eq!(codec.decode(b""), Ok(()));
        assert_eq!(codec.decode(b""), Ok(String::new()));
        assert_eq!(codec.decode(b"42"), Ok(serde_json::json!("42")));
        assert_eq!(
            codec.decode::<u8>(b"x").unwrap_err().code,
            Code::InvalidArgument
        );
    }

    #[cfg(feature = "bincode")]
    #[test]
    fn bincode_refuses_forged_lengths_and_trailing_bytes() {
        let codec = Codec::Bincode;
        let bytes = codec.encode(&"hello").unwrap();
        assert_eq!(codec.decode::<String>(&bytes), Ok("hello".to_owned()));
        let forged = [253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert_eq!(
            codec.decode::<String>(&forged).unwrap_err().code,
            Code::InvalidArgument
        );
        let long = [bytes.as_ref(), b"x"].concat();
        assert_eq!(
            codec.decode::<String>(&long).unwrap_err().code,
            Code::InvalidArgument
        );
    }
}
