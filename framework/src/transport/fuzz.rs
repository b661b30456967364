//! What fuzzers run: the decoders that read bytes from the wire, with the properties they must keep.
//!
//! Built for the tests, which replay the corpus, and for the targets in `framework/fuzz`.

use bytes::Bytes;
use bytestring::ByteString;
use serde::de::IgnoredAny;

#[cfg(feature = "tcp")]
use super::tcp;
use super::{
    Item,
    nest::{Answer, Incoming, read_answer, read_packet, text, write_item},
};
use crate::pattern;

/// A target: takes any bytes, and panics when a property does not hold.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("pattern", pattern),
    ("packet", packet),
    ("answer", answer),
    #[cfg(feature = "tcp")]
    ("native_frame", native_frame),
    #[cfg(feature = "tcp")]
    ("nest_frame", nest_frame),
];

/// A pattern that an application wrote, or a name that was received.
pub fn pattern(bytes: &[u8]) {
    let Ok(written) = std::str::from_utf8(bytes) else {
        return;
    };
    let written = ByteString::from(written);
    let route = pattern::route(written.clone());
    assert_eq!(pattern::route(route.clone()), route, "a route is its own");

    let json = pattern::to_json(&written);
    assert!(is_json(json.as_bytes()), "{json}");
    let found = pattern::lookup_json(&json);
    if json.starts_with('{') {
        assert_eq!(found, Some(route), "both ends agree on an object");
    } else {
        assert_eq!(found, pattern::lookup(&written), "a string is its text");
    }
    // Whatever it leads to, it must not depend on having been sent as JSON itself.
    drop(pattern::lookup_json(&written));
}

/// A request or an event that a server received.
pub fn packet(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    assert!(is_json(&text(&bytes)), "any bytes can be a text");
    match read_packet(&bytes) {
        Ok(Incoming::Packet(packet)) => {
            let parts = [&packet.pattern, &packet.data, &packet.id];
            for part in parts.into_iter().flatten() {
                assert!(is_json(part), "{part:?}");
            }
            if let Some(id) = packet.id {
                let mut reply = Vec::new();
                write_item(&mut reply, Some(&id), &Item::End);
                let Answer { id: echoed, item } =
                    read_answer(&reply.into()).expect("a reply is JSON");
                assert_eq!((echoed, item), (Some(id), Item::End));
            }
        }
        Ok(Incoming::Foreign(json)) => assert!(is_json(&json), "{json:?}"),
        Err(_) => {}
    }
}

/// A reply that a client received.
pub fn answer(bytes: &[u8]) {
    let Ok(Answer { id, item }) = read_answer(&Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let item = match item {
        // Without anything to say it is no packet.
        Item::Value(payload) if payload.is_empty() && id.is_none() => return,
        Item::Value(payload) => Item::Value(trimmed(&payload)),
        Item::Last(payload) => Item::Last(trimmed(&payload)),
        other => other,
    };
    let mut written = Vec::new();
    write_item(&mut written, id.as_deref(), &item);
    let again = read_answer(&written.into()).expect("a reply is JSON");
    assert_eq!(again, Answer { id, item });
}

/// What a connection of the native wire brings, behind its preface. The first byte says how it is cut.
#[cfg(feature = "tcp")]
pub fn native_frame(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else {
        return;
    };
    let whole = tcp::feed::native([stream], MAX_FRAME);
    let pieces = tcp::feed::native(stream.chunks(piece(cut)), MAX_FRAME);
    assert_eq!(pieces, whole, "cut into pieces of {}", piece(cut));
}

/// What a connection of NestJS's wire brings, cut likewise.
#[cfg(feature = "tcp")]
pub fn nest_frame(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else {
        return;
    };
    let whole = tcp::feed::nest([stream], MAX_FRAME);
    let pieces = tcp::feed::nest(stream.chunks(piece(cut)), MAX_FRAME);
    assert_eq!(pieces, whole, "cut into pieces of {}", piece(cut));
    for body in whole.unwrap_or_default() {
        // Whoever reads it takes broken UTF-8 for U+FFFD, each of which is one unit.
        let text = String::from_utf8_lossy(&body);
        assert!(text.encode_utf16().count() <= MAX_FRAME, "{text:?}");
    }
}

/// Small, so that fuzzers find the limit.
#[cfg(feature = "tcp")]
const MAX_FRAME: usize = 64 * 1024;

#[cfg(feature = "tcp")]
fn piece(cut: u8) -> usize {
    usize::from(cut).max(1)
}

fn trimmed(json: &Bytes) -> Bytes {
    json.slice_ref(json.trim_ascii())
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_corpus_finds_nothing() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let corpora = fs::read_dir(&corpus).unwrap().count();
        assert!(TARGETS.len() == corpora || !cfg!(feature = "tcp"));
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for entry in fs::read_dir(corpus.join(name)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                let ran = std::panic::catch_unwind(|| target(&bytes));
                assert!(ran.is_ok(), "{name} fails on {}", path.display());
                inputs += 1;
            }
            assert!(
                inputs >= 20,
                "the corpus of {name} has only {inputs} inputs"
            );
        }
    }
}
