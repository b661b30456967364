//! Patterns as NestJS understands them: an object is a pattern too, and has one normal form, its
//! *route*.
//!
//! A pattern whose text is a JSON object, such as `{"cmd":"sum"}`, counts as that object. Routers
//! keep routes, transports subscribe to routes, and so two ways to write one object meet.
//!
//! The rules are those of `@nestjs/microservices` 12, with two exceptions: keys beyond ASCII are
//! ordered by code point here and by the collation of the runtime's locale there, and a number that
//! no double can hold (`1e400`) is text here and `Infinity` there.

use std::{cmp::Ordering, collections::HashMap, fmt};

use bytestring::ByteString;
use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};

/// Objects nested deeper than this are cut.
const MAX_DEPTH: usize = 5;
/// Objects with more keys than this are cut.
const MAX_KEYS: usize = 20;

/// The normal form of a pattern that was written in this program: that of the object, if the text
/// is a JSON object, and else the text itself.
pub(crate) fn route(pattern: ByteString) -> ByteString {
    match object(&pattern) {
        Some(object) => object.route().into(),
        None => pattern,
    }
}

/// A pattern as JSON: the object it is, its keys in the order in which they were written, or a string.
pub(crate) fn to_json(pattern: &str) -> String {
    let mut json = Vec::new();
    write_json(&mut json, pattern);
    String::from_utf8(json).expect("JSON is text")
}

/// The same, appended.
pub(crate) fn write_json(out: &mut Vec<u8>, pattern: &str) {
    if object(pattern).is_some()
        && let Ok(compact) = serde_json::from_str::<Compact>(pattern)
    {
        return out.extend_from_slice(compact.0.as_bytes());
    }
    write_string(out, pattern);
}

/// Appends a text as a JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing text to memory cannot fail.
    if serde_json::to_writer(&mut *out, text).is_err() {
        out.extend_from_slice(b"\"\"");
    }
}

fn object(pattern: &str) -> Option<Node> {
    if !pattern.starts_with('{') {
        return None;
    }
    serde_json::from_str(pattern).ok()
}

/// The route that a received name leads to: what a server makes of a subject, a channel, a topic or
/// a string in a packet. `None` when there is none, as for `true`: it matches no handler.
///
/// A text that happens to be JSON is taken for what it says: `1.0` leads to `1`.
pub(crate) fn lookup(text: &ByteString) -> Option<ByteString> {
    if !may_be_json(text) {
        return Some(text.clone());
    }
    match serde_json::from_str::<Node>(text) {
        Ok(node) => node.top_level().map(Into::into),
        Err(_) => Some(text.clone()),
    }
}

/// The same for the pattern in a packet, in JSON.
pub(crate) fn lookup_json(json: &str) -> Option<ByteString> {
    match serde_json::from_str::<Node>(json).ok()? {
        Node::Text(text) => lookup(&text.into()),
        other => other.top_level().map(Into::into),
    }
}

/// Whether it is worth while to parse; nearly no pattern is.
fn may_be_json(text: &str) -> bool {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r']);
    match text.as_bytes().first() {
        Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9') => true,
        Some(b't' | b'f' | b'n') => matches!(text.trim_end(), "true" | "false" | "null"),
        _ => false,
    }
}

/// A JSON value as JavaScript holds it: a key occurs once, arrays are objects with numbered keys.
enum Node {
    /// `true`, `false` or `null`.
    Word(&'static str),
    Number(f64),
    Text(String),
    Object(Vec<(String, Self)>),
}

impl Node {
    /// The route of a whole pattern; words are no text and have none.
    fn top_level(self) -> Option<String> {
        match self {
            Self::Word(_) => None,
            Self::Number(number) => Some(number_text(number)),
            Self::Text(text) => Some(text),
            Self::Object(_) => Some(self.route()),
        }
    }

    fn route(&self) -> String {
        let mut out = String::new();
        self.write(0, &mut out);
        out
    }

    fn write(&self, depth: usize, out: &mut String) {
        let entries = match self {
            Self::Word(word) => return out.push_str(word),
            Self::Number(number) => return out.push_str(&number_text(*number)),
            Self::Text(text) => return quote(text, out),
            Self::Object(entries) => entries,
        };
        if depth > MAX_DEPTH {
            return out.push_str("[MAX_DEPTH_REACHED]");
        }
        if entries.len() > MAX_KEYS {
            return out.push_str("[TOO_MANY_KEYS]");
        }
        let mut sorted: Vec<_> = entries.iter().collect();
        sorted.sort_by(|(one, _), (other, _)| compare(one, other));
        for (position, (key, value)) in sorted.into_iter().enumerate() {
            out.push(if position == 0 { '{' } else { ',' });
            quote(key, out);
            out.push(':');
            value.write(depth + 1, out);
        }
        if entries.is_empty() {
            out.push('{');
        }
        out.push('}');
    }
}

/// Nothing but backslashes and quotes is escaped, so a route need not be valid JSON.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '\\' | '"') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// A number as ECMAScript prints it (ECMA-262, Number::toString): the shortest digits that read back
/// as the same number, with an exponent from 1e21 on and below 1e-6.
pub(crate) fn number_text(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    if !number.is_finite() {
        let name = if number < 0.0 {
            "-Infinity"
        } else {
            "Infinity"
        };
        return name.to_owned();
    }
    let shortest = format!("{:e}", number.abs());
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let digits = mantissa.replace('.', "");
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let sign = if number < 0.0 { "-" } else { "" };
    let point = exponent + 1;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    match point {
        1..=21 if count <= point => format!("{sign}{digits}{}", zeros(point - count)),
        1..=21 => {
            let (whole, rest) = digits.split_at(usize::try_from(point).unwrap_or_default());
            format!("{sign}{whole}.{rest}")
        }
        -5..=0 => format!("{sign}0.{}{digits}", zeros(-point)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            let plus = if exponent < 0 { "" } else { "+" };
            format!("{sign}{first}{dot}{rest}e{plus}{exponent}")
        }
    }
}

/// The order of keys: that of ICU's root collation, as far as ASCII goes.
fn compare(one: &str, other: &str) -> Ordering {
    let weights = |text: &str| text.chars().filter_map(weight).collect::<Vec<_>>();
    let (one, other) = (weights(one), weights(other));
    let primary = one
        .iter()
        .map(|weight| weight.0)
        .cmp(other.iter().map(|weight| weight.0));
    let cases = || {
        one.iter()
            .map(|weight| weight.1)
            .cmp(other.iter().map(|weight| weight.1))
    };
    primary.then_with(cases)
}

/// A character's place in the order, and among those of one place, upper case last. Control
/// characters other than white space have none.
fn weight(c: char) -> Option<(u32, bool)> {
    const SYMBOLS: &str = "\t\n\u{b}\u{c}\r _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$";
    /// More than there are symbols.
    const DIGITS: u32 = 0x40;
    const LETTERS: u32 = 0x50;
    match c {
        '0'..='9' => Some((DIGITS + u32::from(c) - u32::from('0'), false)),
        'a'..='z' => Some((LETTERS + u32::from(c) - u32::from('a'), false)),
        'A'..='Z' => Some((LETTERS + u32::from(c) - u32::from('A'), true)),
        c if c.is_ascii() => {
            let place = SYMBOLS.chars().position(|symbol| symbol == c)?;
            Some((u32::try_from(place).unwrap_or_default(), false))
        }
        c => Some((u32::from(c), false)),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Word(if value { "true" } else { "false" }))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Word("null"))
    }

    #[expect(clippy::cast_precision_loss, reason = "JavaScript's numbers are such")]
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "JavaScript's numbers are such")]
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(item) = items.next_element()? {
            entries.push((entries.len().to_string(), item));
        }
        Ok(Node::Object(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut places = HashMap::new();
        let mut entries: Vec<(String, Node)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Node>()? {
            match places.get(&key) {
                Some(&place) => entries[place] = (key, value),
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
        }
        Ok(Node::Object(entries))
    }
}

/// JSON without white space, its numbers and its order untouched.
struct Compact(String);

impl<'de> Deserialize<'de> for Compact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?;
        let mut compact = String::with_capacity(raw.get().len());
        let (mut in_string, mut escaped) = (false, false);
        for c in raw.get().chars() {
            if !in_string && c.is_ascii_whitespace() {
                continue;
            }
            in_string ^= c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            compact.push(c);
        }
        Ok(Self(compact))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors(name: &str) -> Value {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors");
        let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Its keys are beyond ASCII and come in another order here.
    const OTHER_COLLATION: &str = "accented";
    /// A number for NestJS and a text for us.
    const TOO_LARGE: &str = "1e400";

    #[test]
    fn patterns_have_the_routes_that_nestjs_gives_them() {
        let vectors = vectors("patterns");
        let cases = vectors["patterns"].as_array().unwrap();
        assert_eq!(cases.len(), 38);
        for case in cases {
            let text = |member: &str| case[member].as_str().unwrap();
            let (name, json) = (text("name"), text("pattern_json"));
            let found = lookup_json(json);
            let expected = text("server_lookup_route_from_incoming");
            assert_eq!(
                found.as_deref() == Some(expected),
                name != OTHER_COLLATION,
                "{name}: {found:?}, {expected:?}"
            );
            if name == OTHER_COLLATION {
                continue;
            }
            let string = ByteString::from(text("route"));
            let expected = text("server_lookup_route_from_route_string");
            assert_eq!(lookup(&string).as_deref(), Some(expected), "{name}");
            // What an application writes is an object, or a string that does not look like one.
            if json.starts_with('{') {
                assert_eq!(route(json.into()), text("route"), "{name}");
            }
        }
    }

    #[test]
    fn received_names_lead_where_nestjs_would_take_them() {
        let vectors = vectors("patterns");
        let cases = vectors["incoming_strings"]["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 23);
        for case in cases {
            let name = case["incoming_pattern_string"].as_str().unwrap();
            let expected = match name {
                TOO_LARGE => Some(TOO_LARGE),
                _ => case["route"].as_str(),
            };
            assert_eq!(lookup(&name.into()).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn numbers_are_printed_as_in_javascript() {
        let vectors = vectors("json_stringify");
        let mut checked = 0;
        for case in vectors["vectors"].as_array().unwrap() {
            let text = |member: &str| case[member].as_str().unwrap();
            let Ok(number) = text("js").parse::<f64>() else {
                continue;
            };
            if number.is_finite() {
                assert_eq!(number_text(number), text("json"), "{}", text("js"));
                checked += 1;
            }
        }
        assert!(checked >= 10, "{checked}");
        assert_eq!(number_text(-1234.5), "-1234.5");
        assert_eq!(number_text(-1.5e-9), "-1.5e-9");
    }

    #[test]
    fn keys_are_in_the_order_of_the_collation() {
        let check = |sorted: &[&str]| {
            for pair in sorted.windows(2) {
                assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            }
        };
        check(&["_", "-", "0", "9", "a", "A", "b", "B"]);
        check(&["k1", "k10", "k2"]);
        check(&["a b", "a_b", "a-b", "ab", "ac"]);
        check(&["aa", "aA", "Aa", "AA", "ab"]);
        assert_eq!(compare("a\u{1}", "a"), Ordering::Equal);
    }

    #[test]
    fn a_pattern_is_an_object_only_if_it_reads_as_one() {
        assert_eq!(
            to_json(r#"{ "b" : "x \" y", "a": 1.0 }"#),
            r#"{"b":"x \" y","a":1.0}"#
        );
        assert_eq!(to_json("{bad"), r#""{bad""#);
        assert_eq!(to_json("user.get"), r#""user.get""#);
        assert_eq!(route("{bad".into()), "{bad");
        assert_eq!(route("true".into()), "true");
    }

    #[test]
    fn deep_and_long_patterns_are_no_trouble() {
        let deep = format!("{}1{}", r#"{"d":"#.repeat(20_000), "}".repeat(20_000));
        assert_eq!(lookup_json(&deep), None);
        assert_eq!(lookup(&deep.clone().into()).as_deref(), Some(&*deep));
        let many: Vec<_> = (0..100_000).map(|key| format!("\"{key}\":1")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert_eq!(lookup_json(&many).as_deref(), Some("[TOO_MANY_KEYS]"));
    }
}
