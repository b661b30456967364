//! The frames of NestJS's wire on TCP, `length#body`: bytes to bodies.
//!
//! `length` counts UTF-16 code units, while what arrives is UTF-8.

use bytes::{Buf, Bytes, BytesMut};

use super::frame::Violation;

/// The most bytes before the `#`, apart from white space.
const MAX_PREFIX: usize = 1024;

/// The most bytes of one that is read without ceremony: too few digits for an overflow.
const PLAIN_PREFIX: usize = 9;

const NO_NUMBER: Violation = Violation("length is no number");

/// Cuts what arrives into bodies.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    body: Option<Body>,
}

/// A body that has begun.
#[derive(Clone, Copy, Debug)]
struct Body {
    /// Its length in code units…
    wanted: usize,
    /// …how many of them have been seen…
    units: usize,
    /// …and in how many bytes.
    bytes: usize,
}

impl Decoder {
    /// Takes the next whole body from `input`, a slice of it and not a copy; `None` when it has not
    /// arrived entirely.
    ///
    /// However a body arrives, each of its bytes is looked at once.
    pub(super) fn next(
        &mut self,
        input: &mut BytesMut,
        max_frame: usize,
    ) -> Result<Option<Bytes>, Violation> {
        let mut body = match self.body {
            Some(body) => body,
            None => match length(input)? {
                None => return Ok(None),
                Some(0) => return Err(Violation("empty body")),
                Some(wanted) => Body {
                    wanted,
                    units: 0,
                    bytes: 0,
                },
            },
        };
        let is_whole = body.wanted <= max_frame && body.count(input)?;
        if body.wanted > max_frame || body.bytes > max_frame {
            return Err(Violation("frame is above the limit"));
        }
        self.body = (!is_whole).then_some(body);
        Ok(is_whole.then(|| input.split_to(body.bytes).freeze()))
    }

    /// How many bytes are missing at least until a body is whole.
    pub(super) fn missing(&self) -> usize {
        self.body.map_or(0, |body| body.wanted - body.units)
    }
}

impl Body {
    /// Counts what has arrived; true when that is all of it.
    fn count(&mut self, input: &[u8]) -> Result<bool, Violation> {
        while self.units < self.wanted {
            let rest = &input[self.bytes..];
            // No character has more code units than bytes, so these are not too many.
            let safe = &rest[..rest.len().min(self.wanted - self.units)];
            let (bytes, units) = if safe.is_ascii() {
                (safe.len(), safe.len())
            } else {
                let text = valid(safe);
                (text.len(), code_units(text))
            };
            match if bytes > 0 {
                Some((bytes, units))
            } else {
                first(rest)
            } {
                Some((bytes, units)) => self.take(bytes, units),
                None => return Ok(false),
            }
        }
        if self.units > self.wanted {
            return Err(Violation("length that ends inside of a character"));
        }
        Ok(true)
    }

    fn take(&mut self, bytes: usize, units: usize) {
        self.bytes += bytes;
        self.units += units;
    }
}

/// As much of it, from the start, as is UTF-8.
fn valid(bytes: &[u8]) -> &str {
    let chunk = bytes.utf8_chunks().next();
    chunk.map_or("", |chunk| chunk.valid())
}

/// The bytes and code units of the first character, or of what is read as U+FFFD in its place; `None`
/// when more bytes have to say which.
fn first(bytes: &[u8]) -> Option<(usize, usize)> {
    let bytes = &bytes[..bytes.len().min(4)];
    if let Some(c) = valid(bytes).chars().next() {
        return Some((c.len_utf8(), c.len_utf16()));
    }
    let length = std::str::from_utf8(bytes).err()?.error_len()?;
    Some((length, 1))
}

/// How many UTF-16 code units a text has.
fn code_units(text: &str) -> usize {
    let of = |byte: u8| usize::from(byte & 0xc0 != 0x80) + usize::from(byte >= 0xf0);
    text.bytes().map(of).sum()
}

/// Reads a length and its `#`; `None` when it has not arrived entirely.
///
/// White space before it is dropped as it arrives, whatever its number.
fn length(input: &mut BytesMut) -> Result<Option<usize>, Violation> {
    if let Some((length, prefix)) = plain_length(input) {
        input.advance(prefix);
        return Ok(Some(length));
    }
    let blank = |byte: &&u8| matches!(byte, b'\t'..=b'\r' | b' ');
    input.advance(input.iter().take_while(blank).count());
    let prefix = &input[..input.len().min(MAX_PREFIX)];
    match prefix.iter().position(|byte| *byte == b'#') {
        Some(end) => {
            let length = number(&String::from_utf8_lossy(&prefix[..end]))?;
            input.advance(end + 1);
            Ok(Some(length))
        }
        None if prefix.len() == MAX_PREFIX => Err(Violation("length is too long")),
        // What does not begin like a number will not become one.
        None => match unsigned(valid(prefix)) {
            "" => Ok(None),
            begun if begun.starts_with(|c: char| c.is_ascii_digit()) => Ok(None),
            _ => Err(NO_NUMBER),
        },
    }
}

/// A length as everybody writes it, digits and the `#`, and how many bytes that takes.
fn plain_length(input: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (position, byte) in input.iter().take(PLAIN_PREFIX).enumerate() {
        match byte {
            b'0'..=b'9' => length = 10 * length + usize::from(byte - b'0'),
            b'#' if position > 0 => return Some((length, position + 1)),
            _ => return None,
        }
    }
    None
}

/// The number a text begins with, as JavaScript's `parseInt` reads it. What is negative counts as
/// zero: the body ends before it begins.
fn number(text: &str) -> Result<usize, Violation> {
    let digits = unsigned(text);
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    if count == 0 {
        return Err(NO_NUMBER);
    }
    if text.trim_start_matches(is_blank).starts_with('-') {
        return Ok(0);
    }
    Ok(digits[..count].parse().unwrap_or(usize::MAX))
}

/// Without white space and a sign at its start.
fn unsigned(text: &str) -> &str {
    let text = text.trim_start_matches(is_blank);
    text.strip_prefix(['+', '-']).unwrap_or(text)
}

/// Whether JavaScript takes it for white space.
fn is_blank(c: char) -> bool {
    c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}')
}

/// How many UTF-16 code units bytes have when they are read as UTF-8.
pub(super) fn units(bytes: &[u8]) -> usize {
    if bytes.is_ascii() {
        return bytes.len();
    }
    let of = |chunk: std::str::Utf8Chunk<'_>| {
        code_units(chunk.valid()) + usize::from(!chunk.invalid().is_empty())
    };
    bytes.utf8_chunks().map(of).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{super::feed::nest as feed, *};

    const LIMIT: usize = 1 << 20;
    const ABOVE: &str = "frame is above the limit";

    fn read(bytes: impl AsRef<[u8]>) -> Result<Vec<Bytes>, &'static str> {
        feed([bytes.as_ref()], LIMIT)
    }

    fn vectors(name: &str) -> Vec<Value> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors");
        let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
        let mut vectors: Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value(vectors["vectors"].take()).unwrap()
    }

    #[test]
    fn the_frames_of_nestjs_are_cut_and_counted_as_it_does() {
        let vectors = vectors("tcp");
        assert_eq!(vectors.len(), 85);
        let mut all = Vec::new();
        let mut bodies = Vec::new();
        for vector in &vectors {
            let frame = vector["bytes_utf8"].as_str().unwrap();
            let (_, body) = frame.split_once('#').unwrap();
            assert_eq!(read(frame), Ok(vec![body.to_owned().into()]), "{vector}");
            assert_eq!(frame, format!("{}#{body}", units(body.as_bytes())));
            all.extend_from_slice(frame.as_bytes());
            bodies.push(Bytes::from(body.to_owned()));
        }
        assert_eq!(feed(all.chunks(1), LIMIT).as_ref(), Ok(&bodies));
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..50 {
            let mut rest = &all[..];
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(random.usize(1..=rest.len().min(300)));
                pieces.push(piece);
                rest = later;
            }
            assert_eq!(feed(pieces, LIMIT).as_ref(), Ok(&bodies));
        }
    }

    /// What a server whose limit is 100 does with the cases of one whose buffer holds 100 units.
    #[test]
    fn a_body_above_the_limit_is_refused_as_soon_as_it_is_announced() {
        let mut checked = 0;
        for vector in vectors("tcp_server_edge") {
            let name = vector["name"].as_str().unwrap();
            let bytes = vector["sent_chunks_utf8"][0].as_str().unwrap();
            let result = feed([bytes.as_bytes()], 100).map(|bodies| bodies.len());
            match name {
                "max_exceeded_single" => assert_eq!(result, Err(ABOVE)),
                "max_exact" => assert_eq!(result, Ok(1)),
                // NestJS limits what it buffers, and we each frame.
                "max_exceeded_pipelined" => assert_eq!(result, Ok(4)),
                // NestJS waits for what it will not take.
                "declared_bigger_than_max_no_data" => assert_eq!(result, Err(ABOVE)),
                _ => continue,
            }
            checked += 1;
        }
        assert_eq!(checked, 4);
        // 40 code units in 120 bytes, of which the first hundred are enough to know.
        let wide = format!("40#{}", "\u{20ac}".repeat(40));
        assert_eq!(feed([wide.as_bytes()], 119), Err(ABOVE));
        assert_eq!(feed([&wide.as_bytes()[..110]], 100), Err(ABOVE));
        assert_eq!(
            feed([wide.as_bytes()], 120).map(|bodies| bodies.len()),
            Ok(1)
        );
        assert_eq!(
            feed([&b"99999999999999999999999999999999#"[..]], LIMIT),
            Err(ABOVE)
        );
    }

    #[test]
    fn lengths_are_read_as_javascript_reads_them() {
        let accepted = [
            "2",
            "2zz",
            " 2",
            "\r\n2",
            "+2",
            "2.9",
            "0002",
            "\u{feff}2",
            "\u{feff} \u{a0}\u{2003}\u{2028}+2e5",
            "\t\u{b}\u{c}2",
            "2\u{fffd}",
        ];
        for length in accepted {
            let frame = format!("{length}#{{}}{length}#[]");
            let expected = Ok(vec!["{}".into(), "[]".into()]);
            assert_eq!(read(&frame), expected, "{length:?}");
            assert_eq!(
                feed(frame.as_bytes().chunks(1), LIMIT),
                expected,
                "{length:?}"
            );
        }
        for length in ["0x22", "0", "-5", "-2", "+0", "-0"] {
            assert_eq!(
                read(format!("{length}#{{}}")),
                Err("empty body"),
                "{length:?}"
            );
        }
        for length in [
            "abc", "", "\u{85}2", "+ 2", "--2", "+", "x2", "\u{feff}", "\u{661}",
        ] {
            let refused = read(format!("{length}#{{}}"));
            assert_eq!(refused, Err("length is no number"), "{length:?}");
        }
    }

    #[test]
    fn what_will_not_become_a_length_is_refused_before_its_end() {
        for begun in [
            "GET / HTTP/1.1\r\n\r\n",
            "\n{",
            "+x",
            "\u{feff}a",
            "SSH-2.0-x",
        ] {
            assert_eq!(read(begun), Err("length is no number"), "{begun:?}");
        }
        for begun in ["", " ", "+", "-", "1", "1x", "\u{feff}", "\u{feff}-"] {
            assert_eq!(read(begun), Ok(vec![]), "{begun:?}");
        }
        assert_eq!(read(&"\u{feff}".as_bytes()[..2]), Ok(vec![]));
        let long = format!("1{}", "x".repeat(MAX_PREFIX));
        assert_eq!(read(long), Err("length is too long"));
        let patient = format!("{}2#{{}}", "\r\n".repeat(MAX_PREFIX));
        assert_eq!(read(patient), Ok(vec!["{}".into()]));
    }

    /// A decoder that is simple and slow: what NestJS does, word for word.
    fn simple(bytes: &[u8]) -> Vec<String> {
        let text: Vec<u16> = String::from_utf8_lossy(bytes).encode_utf16().collect();
        let mut rest = &text[..];
        let mut bodies = Vec::new();
        while let Some(end) = rest.iter().position(|unit| *unit == u16::from(b'#')) {
            let length = number(&String::from_utf16_lossy(&rest[..end])).unwrap();
            rest = &rest[end + 1..];
            let Some(body) = rest.get(..length) else {
                break;
            };
            bodies.push(String::from_utf16_lossy(body));
            rest = &rest[length..];
        }
        bodies
    }

    #[test]
    fn broken_text_is_counted_as_a_lossy_reader_counts_it() {
        let mut random = fastrand::Rng::with_seed(5);
        let pieces: [&[u8]; 12] = [
            b"a",
            b"#",
            b"12",
            "ż".as_bytes(),
            "€".as_bytes(),
            "😀".as_bytes(),
            b"\xff",
            b"\xf0\x9f",
            b"\xe2\x82",
            b"\xed\xa0\x80",
            b"\xc0\x80",
            b"\x80",
        ];
        for _ in 0..5000 {
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..4) {
                let body: Vec<u8> = (0..random.usize(1..12))
                    .flat_map(|_| pieces[random.usize(..pieces.len())])
                    .copied()
                    .collect();
                bytes.extend(format!("{}#", units(&body)).bytes());
                bytes.extend(body);
            }
            // So that what is incomplete at the end is decided.
            bytes.extend(b" ");
            let whole: Vec<_> = read(&bytes).unwrap();
            let lossy: Vec<_> = whole
                .iter()
                .map(|body| String::from_utf8_lossy(body))
                .collect();
            assert_eq!(lossy, simple(&bytes), "{bytes:02x?}");
            assert_eq!(feed(bytes.chunks(1), LIMIT), Ok(whole));
        }
    }

    #[test]
    fn a_length_cannot_end_inside_of_a_character() {
        let inside = Err("length that ends inside of a character");
        assert_eq!(read("3#\"😀"), Ok(vec!["\"😀".into()]));
        assert_eq!(read("2#\"😀\""), inside);
        assert_eq!(read("4#\"😀\""), Ok(vec!["\"😀\"".into()]));
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut random = fastrand::Rng::with_seed(6);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random.usize(1..60)).map(|_| random.u8(..)).collect();
            bytes.splice(0..0, format!("{}#", random.usize(..80)).bytes());
            let whole = read(&bytes);
            assert_eq!(
                feed(bytes.chunks(1), LIMIT).ok(),
                whole.ok(),
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn a_body_that_comes_byte_by_byte_is_looked_at_once() {
        let body = "żó😀".repeat(40_000);
        let frame = format!("{}#{body}", code_units(&body));
        assert_eq!(
            feed(frame.as_bytes().chunks(1), LIMIT),
            Ok(vec![body.into()])
        );
    }
}
