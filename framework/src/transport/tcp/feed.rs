//! The decoders by themselves: what arrives goes in, in pieces, and what it says comes out. For tests
//! and fuzzers.

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{frame, text::Decoder};

/// The bodies of NestJS's wire in these pieces of a connection, or why it has to go.
pub(in crate::transport) fn nest<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_frame: usize,
) -> Result<Vec<Bytes>, &'static str> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let mut bodies = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(body) = decoder.next(&mut input, max_frame).map_err(|it| it.0)? {
            bodies.push(body);
        }
        assert!(decoder.missing() <= max_frame && input.len() <= max_frame + frame::OVERHEAD);
    }
    Ok(bodies)
}

/// How many frames of the native wire are in these pieces of a connection, behind its preface, or
/// why it has to go.
pub(in crate::transport) fn native<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_frame: usize,
) -> Result<usize, &'static str> {
    let (now, mut input) = (Instant::now(), BytesMut::new());
    let mut frames = 0;
    for piece in pieces {
        input.extend_from_slice(piece);
        while frame::next(&mut input, max_frame, now)
            .map_err(|it| it.0)?
            .is_some()
        {
            frames += 1;
        }
        assert!(input.len() <= max_frame + 4);
    }
    Ok(frames)
}
