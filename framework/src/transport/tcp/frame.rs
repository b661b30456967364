//! The native wire on TCP: bytes to frames and back. `docs/wire/tcp.md` is its description.

use std::{fmt, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use bytestring::ByteString;
use tokio::time::Instant;

use super::{
    super::{Expect, Item},
    outbox::Outgoing,
};
use crate::{
    envelope::{Envelope, Headers, MAX_HEADER_BYTES, MAX_HEADERS, MAX_PATTERN},
    error::RpcError,
};

/// What a connection of the native wire starts with, in both directions. No frame of a NestJS
/// application starts with a zero.
pub(super) const MAGIC: [u8; 4] = [0x00, b'N', b'S', b'T'];
/// The only version there is.
pub(super) const VERSION: u8 = 1;
/// Bytes of a preface: the magic, the version and the largest frame its sender accepts.
pub(super) const PREFACE: usize = 9;
/// Nobody may announce less: errors and headers have to fit.
pub(super) const LEAST_FRAME: usize = 64 * 1024;

/// What a frame may hold beside its payload: a payload of `max_frame - OVERHEAD` always fits.
pub(super) const OVERHEAD: usize = 40 * 1024;
/// The same for a reply, which has neither pattern nor headers.
pub(super) const REPLY_OVERHEAD: usize = 16;

/// A deadline further away than this is cut to it, so that adding it to a clock cannot overflow.
const FARTHEST_DEADLINE: u64 = 30 * 24 * 60 * 60 * 1000;

const REQUEST: u8 = 1;
const EVENT: u8 = 2;
const REPLY: u8 = 3;
const CANCEL: u8 = 4;
const CREDIT: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const GOAWAY: u8 = 8;
/// Types from here on are skipped by whoever does not know them.
const OPTIONAL: u8 = 128;

/// A flag of a request: its caller takes more than one value.
const MANY: u8 = 1;

const VALUE: u8 = 0;
const LAST: u8 = 1;
const END: u8 = 2;
const FAIL: u8 = 3;

/// One frame, read.
#[derive(Debug)]
pub(super) enum Frame {
    /// A message; the client chose the id.
    Request { call: u64, envelope: Envelope },
    /// An event.
    Event { envelope: Envelope },
    /// An item for the caller of `call`.
    Reply { call: u64, item: Item },
    /// The caller of `call` no longer waits.
    Cancel { call: u64 },
    /// The caller of `call` has room for more values.
    Credit { call: u64, values: u32 },
    /// Is anybody there?
    Ping,
    /// Yes.
    Pong,
    /// No request or event follows in this direction; from a server: send none in the other.
    Goaway,
}

/// The peer does not keep to the protocol: its connection has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The bytes that open a connection.
pub(super) fn preface(max_frame: usize) -> [u8; PREFACE] {
    let max_frame = u32::try_from(max_frame).unwrap_or(u32::MAX).to_le_bytes();
    let mut preface = [0; PREFACE];
    preface[..4].copy_from_slice(&MAGIC);
    preface[4] = VERSION;
    preface[5..].copy_from_slice(&max_frame);
    preface
}

/// Reads the other end's preface: its version and the largest frame it accepts.
pub(super) fn read_preface(mut bytes: &[u8]) -> Result<(u8, usize), Violation> {
    let Some(rest) = bytes.strip_prefix(&MAGIC) else {
        return Err(Violation("does not speak the native wire"));
    };
    bytes = rest;
    if bytes.len() != PREFACE - MAGIC.len() {
        return Err(Violation("preface has the wrong length"));
    }
    let version = bytes.get_u8();
    let max_frame = bytes.get_u32_le() as usize;
    if version < VERSION {
        return Err(Violation("speaks a version that does not exist"));
    }
    if max_frame < LEAST_FRAME {
        return Err(Violation("announces frames that are too small"));
    }
    Ok((version, max_frame))
}

/// How many bytes are missing until `input` starts with a whole frame, if that is known.
pub(super) fn missing(input: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*input.first_chunk()?) as usize;
    Some((length + 4).saturating_sub(input.len()))
}

/// Takes the next whole frame from `input`; `None` when it has not arrived entirely.
///
/// A payload is a slice of the input, not a copy. A deadline counts from `now`.
pub(super) fn next(
    input: &mut BytesMut,
    max_frame: usize,
    now: Instant,
) -> Result<Option<Frame>, Violation> {
    loop {
        let Some(prefix) = input.first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length == 0 {
            return Err(Violation("empty frame"));
        }
        if length > max_frame {
            return Err(Violation("frame is above the limit"));
        }
        if input.len() < 4 + length {
            return Ok(None);
        }
        input.advance(4);
        let frame = parse(input.split_to(length).freeze(), now)?;
        if frame.is_some() {
            return Ok(frame);
        }
    }
}

fn parse(body: Bytes, now: Instant) -> Result<Option<Frame>, Violation> {
    let mut fields = Fields { rest: body };
    let frame = match fields.byte()? {
        REQUEST => {
            let call = fields.varint()?;
            // Flags; nothing depends on the one there is, and unknown ones are no error.
            fields.byte()?;
            Frame::Request {
                call,
                envelope: fields.envelope(now)?,
            }
        }
        EVENT => Frame::Event {
            envelope: fields.envelope(now)?,
        },
        REPLY => {
            let call = fields.varint()?;
            let item = match fields.byte()? {
                VALUE => Item::Value(fields.rest),
                LAST => Item::Last(fields.rest),
                END => Item::End,
                FAIL => Item::Fail(RpcError::from_bytes(&fields.rest)),
                _ => return Err(Violation("unknown kind of reply")),
            };
            Frame::Reply { call, item }
        }
        CANCEL => Frame::Cancel {
            call: fields.varint()?,
        },
        CREDIT => {
            let call = fields.varint()?;
            let values = u32::try_from(fields.varint()?);
            Frame::Credit {
                call,
                values: values.map_err(|_| Violation("too much credit"))?,
            }
        }
        PING => Frame::Ping,
        PONG => Frame::Pong,
        GOAWAY => Frame::Goaway,
        OPTIONAL.. => return Ok(None),
        _ => return Err(Violation("unknown type of frame")),
    };
    Ok(Some(frame))
}

struct Fields {
    rest: Bytes,
}

impl Fields {
    fn byte(&mut self) -> Result<u8, Violation> {
        match self.rest.has_remaining() {
            true => Ok(self.rest.get_u8()),
            false => Err(Violation("frame ends early")),
        }
    }

    fn varint(&mut self) -> Result<u64, Violation> {
        let mut value = 0;
        for (position, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * position;
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                self.rest.advance(position + 1);
                return Ok(value);
            }
        }
        Err(Violation("bad varint"))
    }

    fn text(&mut self, limit: usize) -> Result<ByteString, Violation> {
        let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if length > limit {
            return Err(Violation("pattern or header is too long"));
        }
        if length > self.rest.len() {
            return Err(Violation("frame ends early"));
        }
        let text = self.rest.split_to(length);
        ByteString::try_from(text).map_err(|_| Violation("pattern or header is not UTF-8"))
    }

    fn envelope(mut self, now: Instant) -> Result<Envelope, Violation> {
        let deadline = match self.varint()? {
            0 => None,
            remaining => Some(now + Duration::from_millis(remaining.min(FARTHEST_DEADLINE))),
        };
        let pattern = self.text(MAX_PATTERN)?;
        let count = self.varint()?;
        if count > MAX_HEADERS as u64 {
            return Err(Violation("too many headers"));
        }
        let mut headers = Headers::new();
        let mut room = MAX_HEADER_BYTES;
        for _ in 0..count {
            let name = self.text(room)?;
            room -= name.len();
            let value = self.text(room)?;
            room -= value.len();
            headers.insert(name, value);
        }
        Ok(Envelope {
            pattern,
            headers,
            payload: self.rest,
            deadline,
        })
    }
}

/// Whether an envelope keeps to the limits of the wire, apart from its payload.
pub(super) fn check(envelope: &Envelope) -> Result<(), &'static str> {
    check_as_written(envelope, str::len)
}

/// The same where the names and values of headers are `written` in so many bytes.
pub(super) fn check_as_written(
    envelope: &Envelope,
    written: impl Fn(&str) -> usize,
) -> Result<(), &'static str> {
    let headers = envelope.headers.iter();
    let header_bytes: usize = headers
        .map(|(name, value)| written(name) + written(value))
        .sum();
    if envelope.pattern.len() > MAX_PATTERN {
        Err("pattern is too long")
    } else if envelope.headers.len() > MAX_HEADERS {
        Err("too many headers")
    } else if header_bytes > MAX_HEADER_BYTES {
        Err("headers are too long")
    } else {
        Ok(())
    }
}

/// Frames, written. Whoever calls has checked the limits.
impl Outgoing {
    pub(super) fn request(&mut self, call: u64, expect: Expect, envelope: &Envelope, now: Instant) {
        self.frame(REQUEST, &envelope.payload, |fields| {
            put_varint(fields, call);
            fields.put_u8(if expect == Expect::Many { MANY } else { 0 });
            put_envelope(fields, envelope, now);
        });
    }

    pub(super) fn event(&mut self, envelope: &Envelope, now: Instant) {
        self.frame(EVENT, &envelope.payload, |fields| {
            put_envelope(fields, envelope, now)
        });
    }

    pub(super) fn reply(&mut self, call: u64, item: &Item) {
        let error;
        let (kind, payload) = match item {
            Item::Value(payload) => (VALUE, payload),
            Item::Last(payload) => (LAST, payload),
            Item::End => (END, &Bytes::new()),
            Item::Fail(failure) => {
                error = failure.to_bytes();
                (FAIL, &error)
            }
        };
        self.frame(REPLY, payload, |fields| {
            put_varint(fields, call);
            fields.put_u8(kind);
        });
    }

    pub(super) fn cancel(&mut self, call: u64) {
        self.frame(CANCEL, &Bytes::new(), |fields| put_varint(fields, call));
    }

    pub(super) fn credit(&mut self, call: u64, values: u32) {
        self.frame(CREDIT, &Bytes::new(), |fields| {
            put_varint(fields, call);
            put_varint(fields, values.into());
        });
    }

    pub(super) fn ping(&mut self) {
        self.frame(PING, &Bytes::new(), |_| {});
    }

    pub(super) fn pong(&mut self) {
        self.frame(PONG, &Bytes::new(), |_| {});
    }

    pub(super) fn goaway(&mut self) {
        self.frame(GOAWAY, &Bytes::new(), |_| {});
    }

    fn frame(&mut self, kind: u8, payload: &Bytes, put: impl FnOnce(&mut Vec<u8>)) {
        self.append(payload, |tail| {
            let start = tail.len();
            tail.put_u32_le(0);
            tail.put_u8(kind);
            put(tail);
            let length = tail.len() - start - 4 + payload.len();
            let length = u32::try_from(length).expect("callers keep to limits below 1 GiB");
            tail[start..start + 4].copy_from_slice(&length.to_le_bytes());
        });
    }
}

fn put_envelope(fields: &mut Vec<u8>, envelope: &Envelope, now: Instant) {
    let remaining = envelope.deadline.map_or(0, |deadline| {
        // Rounded up, and never the zero that means "no deadline".
        let left = deadline.saturating_duration_since(now).as_millis() + 1;
        u64::try_from(left).unwrap_or(u64::MAX)
    });
    put_varint(fields, remaining);
    put_text(fields, &envelope.pattern);
    put_varint(fields, envelope.headers.len() as u64);
    for (name, value) in envelope.headers.iter() {
        put_text(fields, name);
        put_text(fields, value);
    }
}

fn put_text(fields: &mut Vec<u8>, text: &str) {
    put_varint(fields, text.len() as u64);
    fields.extend_from_slice(text.as_bytes());
}

fn put_varint(fields: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        fields.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    fields.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1024 * 1024;

    fn written(write: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
        let mut outgoing = Outgoing::default();
        write(&mut outgoing);
        outgoing.to_vec()
    }

    fn read(bytes: &[u8]) -> Result<Option<Frame>, Violation> {
        next(&mut BytesMut::from(bytes), LIMIT, Instant::now())
    }

    fn envelope(random: &mut fastrand::Rng) -> Envelope {
        let size = if random.u8(..) < 8 {
            40_000
        } else {
            random.usize(..200)
        };
        let mut envelope = Envelope::new("order.place", vec![b'p'; size]);
        for number in 0..random.usize(..6) {
            envelope
                .headers
                .insert(format!("header-{number}"), "v".repeat(random.usize(..50)));
        }
        envelope.deadline = random
            .bool()
            .then(|| Instant::now() + Duration::from_secs(5));
        envelope
    }

    fn some_frame(out: &mut Outgoing, random: &mut fastrand::Rng) {
        let call = random.u64(..) >> random.u32(..64);
        let envelope = envelope(random);
        let now = Instant::now();
        match random.u8(..11) {
            0 => out.request(call, Expect::Single, &envelope, now),
            1 => out.request(call, Expect::Many, &envelope, now),
            2 => out.event(&envelope, now),
            3 => out.reply(call, &Item::Value(envelope.payload)),
            4 => out.reply(call, &Item::Last(envelope.payload)),
            5 => out.reply(call, &Item::End),
            6 => out.reply(call, &Item::Fail(RpcError::not_found("nothing"))),
            7 => out.cancel(call),
            8 => out.credit(call, random.u32(..)),
            9 => out.ping(),
            _ => out.goaway(),
        }
    }

    #[test]
    fn a_request_survives_the_wire() {
        let now = Instant::now();
        let mut sent = Envelope::new("user.get", "payload");
        sent.headers.set("actor", "ada");
        sent.deadline = Some(now + Duration::from_millis(250));
        let bytes = written(|out| out.request(u64::MAX, Expect::Many, &sent, now));
        let received = next(&mut BytesMut::from(&bytes[..]), LIMIT, now);
        let Ok(Some(Frame::Request { call, envelope })) = received else {
            panic!("{received:?}")
        };
        assert_eq!(call, u64::MAX);
        assert_eq!(envelope.pattern, "user.get");
        assert_eq!(envelope.headers, sent.headers);
        assert_eq!(envelope.payload, sent.payload);
        assert_eq!(envelope.deadline, Some(now + Duration::from_millis(251)));
    }

    #[test]
    fn the_example_of_the_description_is_what_is_written() {
        let bytes = written(|out| {
            out.request(
                1,
                Expect::Single,
                &Envelope::new("a.b", "{}"),
                Instant::now(),
            );
        });
        assert_eq!(bytes, b"\x0b\0\0\0\x01\x01\0\0\x03a.b\0{}");
        assert_eq!(preface(16 << 20), *b"\0NST\x01\0\0\0\x01");
    }

    #[test]
    fn unknown_optional_frames_are_skipped_and_others_refused() {
        let bytes = [&[1, 0, 0, 0, 200][..], &written(Outgoing::ping)].concat();
        assert!(matches!(read(&bytes), Ok(Some(Frame::Ping))));
        assert_eq!(
            read(&[1, 0, 0, 0, 100]).unwrap_err(),
            Violation("unknown type of frame")
        );
    }

    #[test]
    fn limits_are_kept_before_the_frame_has_arrived() {
        let above = u32::try_from(LIMIT + 1).unwrap().to_le_bytes();
        assert!(read(&above).is_err());
        assert!(read(&[0; 4]).is_err());
        assert!(read(&[255; 3]).unwrap().is_none());
        let mut long = Envelope::new("p".repeat(MAX_PATTERN + 1), "");
        assert!(check(&long).is_err());
        assert!(read(&written(|out| out.event(&long, Instant::now()))).is_err());
        long.pattern = "p".into();
        long.headers.set("h", "v".repeat(MAX_HEADER_BYTES));
        assert!(check(&long).is_err());
        assert!(read(&written(|out| out.event(&long, Instant::now()))).is_err());
        let many = (0..=MAX_HEADERS)
            .map(|number| (number.to_string(), ""))
            .collect();
        let many = Envelope {
            headers: many,
            ..Envelope::default()
        };
        assert!(check(&many).is_err());
        assert!(read(&written(|out| out.event(&many, Instant::now()))).is_err());
    }

    #[test]
    fn a_distant_deadline_does_not_overflow_the_clock() {
        let bytes = b"\x0e\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01a\0";
        assert!(matches!(read(bytes), Ok(Some(Frame::Event { .. }))));
    }

    #[test]
    fn prefaces_are_checked() {
        assert_eq!(read_preface(&preface(LIMIT)), Ok((VERSION, LIMIT)));
        assert!(read_preface(b"\0NSX\x01\0\0\0\x01").is_err());
        assert!(read_preface(b"\0NST\x00\0\0\0\x01").is_err());
        assert!(read_preface(b"\0NST\x01\x01\0\0\0").is_err());
        assert!(read_preface(b"\0NST").is_err());
    }

    /// Feeds `bytes` in random pieces and returns how many frames came out before a violation.
    fn feed(bytes: &[u8], random: &mut fastrand::Rng) -> Result<usize, &'static str> {
        let mut rest = bytes;
        let pieces = std::iter::from_fn(|| {
            let end = random.usize(1..=rest.len().clamp(1, 3000));
            let (piece, later) = rest.split_at_checked(end)?;
            rest = later;
            Some(piece)
        });
        super::super::feed::native(pieces, LIMIT)
    }

    #[test]
    fn frames_come_out_however_they_are_cut() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let mut out = Outgoing::default();
            let count = random.usize(1..20);
            for _ in 0..count {
                some_frame(&mut out, &mut random);
            }
            assert_eq!(feed(&out.to_vec(), &mut random), Ok(count));
        }
    }

    #[test]
    fn mutated_and_random_bytes_never_panic() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut refused = 0;
        for _ in 0..3000 {
            let mut out = Outgoing::default();
            for _ in 0..random.usize(1..8) {
                some_frame(&mut out, &mut random);
            }
            let mut bytes = out.to_vec();
            for _ in 0..random.usize(1..12) {
                let position = random.usize(..bytes.len().min(400));
                bytes[position] = random.u8(..);
            }
            refused += usize::from(feed(&bytes, &mut random).is_err());
        }
        for _ in 0..3000 {
            let mut bytes: Vec<u8> = (0..random.usize(1..300)).map(|_| random.u8(..)).collect();
            // A plausible length, so that more than the length is tried.
            let length = u32::try_from(bytes.len()).unwrap();
            bytes.splice(0..0, length.to_le_bytes());
            bytes[4] %= 9;
            refused += usize::from(feed(&bytes, &mut random).is_err());
        }
        assert!(refused > 1000, "only {refused} were refused");
    }
}
