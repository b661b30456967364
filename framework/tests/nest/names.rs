//! The patterns of one server: strings behind its run, and a few of another type with the run inside.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nestling_testkit::unique;
use serde_json::json;

/// The handlers of messages with a string pattern, as far as callers use them.
const MESSAGES: &[&str] = &[
    "echo",
    "double",
    "is_even",
    "greet",
    "null",
    "undefined",
    "headers",
    "remaining",
    "note",
    "seen",
    "stream.none",
    "stream.tick",
    "stream.time",
    "stream.late",
    "stream.fails",
    "stream.open",
    "error.string",
    "error.object",
    "error.number",
    "error.empty",
    "error.coded",
    "error.bare",
    "error.plain",
    "error.stream",
    "kafka.record",
    "kafka.keyed",
    "kafka.type",
    "kafka.retriable",
];

/// A pattern, in the two forms in which it is written down.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    /// What nestling is given.
    pub(crate) text: String,
    /// What NestJS is given: JSON.
    pub(crate) json: String,
}

/// The names of one server; another has others.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    run: String,
    number: String,
}

impl Names {
    pub(crate) fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(10);
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let number = format!("{}{counter}", process::id());
        Self {
            run: format!("{}-{number}", unique("nest")),
            number,
        }
    }

    /// What keeps this server's names apart; it ends in its number.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    pub(crate) fn at(&self, name: &str) -> Pattern {
        string(format!("{}.{name}", self.run))
    }

    pub(crate) fn sum(&self) -> Pattern {
        object(format!(r#"{{"cmd":"{}.sum"}}"#, self.run))
    }

    /// An object that is not written in the order of its route.
    pub(crate) fn nested(&self) -> Pattern {
        object(format!(
            r#"{{"z":1,"run":"{}","a":{{"y":"q\"uote\\","b":true,"n":null}},"B":[2,"x"]}}"#,
            self.run
        ))
    }

    /// The same one with its members in another order.
    pub(crate) fn nested_otherwise(&self) -> Pattern {
        object(format!(
            r#"{{"B":[2,"x"],"a":{{"n":null,"y":"q\"uote\\","b":true}},"run":"{}","z":1}}"#,
            self.run
        ))
    }

    pub(crate) fn number(&self) -> Pattern {
        object(self.number.clone())
    }

    pub(crate) fn user_created(&self) -> Pattern {
        object(format!(
            r#"{{"type":"created","kind":"{}.user"}}"#,
            self.run
        ))
    }

    /// The patterns of messages, in JSON, for a client that has to know them before it connects.
    pub(crate) fn messages(&self) -> String {
        let mut all: Vec<String> = MESSAGES.iter().map(|name| self.at(name).text).collect();
        all.push(self.number.clone());
        json!(all).to_string()
    }
}

/// A pattern that is a string.
pub(crate) fn string(text: impl Into<String>) -> Pattern {
    let text = text.into();
    let json = json!(text).to_string();
    Pattern { text, json }
}

/// A pattern of another type, as JSON.
pub(crate) fn object(json: impl Into<String>) -> Pattern {
    let json = json.into();
    Pattern {
        text: json.clone(),
        json,
    }
}
