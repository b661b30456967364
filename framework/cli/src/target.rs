//! Where to, and what is called how: [`Target`] and [`Pattern`].

use std::str::FromStr;

use nestling::transport::Address;
use serde_json::{Map, Value};

use crate::outcome::Failure;

/// Where services are reached.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Target {
    /// Where to: tcp://host:port, nats://host:port, redis://host:port or kafka://host:port
    url: String,
    /// Which wire to speak; the same as `?wire=` in the URL, and wins over it
    #[arg(long)]
    wire: Option<Wire>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Wire {
    /// That of NestJS applications
    Nest,
    /// This framework's own
    Native,
}

impl Target {
    /// The URL with all that was said about it.
    pub(crate) fn url(&self) -> Result<String, Failure> {
        self.url.parse::<Address>().map_err(Failure::usage)?;
        Ok(match self.wire {
            None => self.url.clone(),
            Some(Wire::Nest) => with_wire(&self.url, "nest"),
            Some(Wire::Native) => with_wire(&self.url, "native"),
        })
    }
}

/// The URL with this wire among its options and no other.
fn with_wire(url: &str, wire: &str) -> String {
    let (base, options) = url.split_once('?').unwrap_or((url, ""));
    let others = options
        .split('&')
        .filter(|option| !option.is_empty() && option.split('=').next() != Some("wire"));
    others.fold(format!("{base}?wire={wire}"), |url, option| {
        format!("{url}&{option}")
    })
}

/// What a message or an event is called: a name, or the JSON text of an object, as NestJS
/// applications have it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        if text.starts_with('{') {
            let object = serde_json::from_str::<Map<String, Value>>(text);
            object.map_err(|error| format!("it is no JSON object: {error}"))?;
        } else if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("it has white space, and is no JSON object".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// `text` without user names and passwords of URLs in it.
pub(crate) fn without_secrets(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, url) = rest.split_at(start + "://".len());
        shown.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '`'));
        let (url, after) = url.split_at(end.unwrap_or(url.len()));
        match url.rsplit_once('@') {
            Some((_, place)) => {
                shown.push_str("***@");
                shown.push_str(place);
            }
            None => shown.push_str(url),
        }
        rest = after;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_added_or_replaced() {
        let check = |url: &str, expected: &str| assert_eq!(with_wire(url, "nest"), expected);
        check("nats://h", "nats://h?wire=nest");
        check("nats://u:p@h?", "nats://u:p@h?wire=nest");
        check("tcp://h:1?wire=native", "tcp://h:1?wire=nest");
        check(
            "redis://h/3?prefix=a&wire=native&claim_idle=500",
            "redis://h/3?wire=nest&prefix=a&claim_idle=500",
        );
    }

    #[test]
    fn a_pattern_is_a_name_or_an_object() {
        for good in ["ping", "user.get", "time.us.*", "{\"cmd\": \"sum\"}"] {
            assert_eq!(good.parse(), Ok(Pattern(good.to_owned())));
        }
        for bad in ["", "user get", " user.get", "a\nb", "{cmd}", "{} {}"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nothing_before_the_host_is_shown() {
        let check = |text: &str, expected: &str| assert_eq!(without_secrets(text), expected);
        check("no URL: a@b", "no URL: a@b");
        check("bad 'nats://u:p@h:1' here", "bad 'nats://***@h:1' here");
        check(
            "kafka://a,b redis://p@ss@c/3",
            "kafka://a,b redis://***@c/3",
        );
    }
}
