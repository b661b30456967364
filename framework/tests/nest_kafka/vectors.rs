//! The captured records, read from their files.

use std::{collections::BTreeMap, fmt, fs, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::Value;

/// `kafka.json`: what applications sent each other, and what the callers saw.
#[derive(Deserialize)]
pub(crate) struct Conversations {
    pub(crate) vectors: Vec<Captured>,
    pub(crate) calls: BTreeMap<String, Call>,
}

#[derive(Deserialize)]
pub(crate) struct Captured {
    pub(crate) name: String,
    pub(crate) direction: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    key_hex: Option<String>,
    value_hex: Option<String>,
    headers: InOrder<Hex>,
}

#[derive(Deserialize)]
struct Hex {
    hex: String,
}

#[derive(Deserialize)]
pub(crate) struct Call {
    pub(crate) api: String,
    pub(crate) data: Option<Value>,
    pub(crate) observed_by_caller: Observed,
    #[serde(default)]
    pub(crate) event_handler_calls: Vec<Value>,
}

#[derive(Deserialize)]
pub(crate) struct Observed {
    pub(crate) values: Vec<Value>,
    pub(crate) error: Option<Value>,
    pub(crate) completed: bool,
}

/// `kafka_edge.json`: records made by hand, and what a NestJS service replied.
#[derive(Deserialize)]
pub(crate) struct Edges {
    pub(crate) cases: Vec<Edge>,
}

#[derive(Deserialize)]
pub(crate) struct Edge {
    pub(crate) name: String,
    pub(crate) record: EdgeRecord,
    pub(crate) replies_on_reply_topic: Vec<EdgeReply>,
    pub(crate) handler_calls: Vec<Value>,
}

#[derive(Deserialize)]
pub(crate) struct EdgeRecord {
    pub(crate) value: Value,
    pub(crate) headers: InOrder<String>,
}

#[derive(Deserialize)]
pub(crate) struct EdgeReply {
    pub(crate) partition: i32,
    pub(crate) value: Option<String>,
    pub(crate) headers: InOrder<String>,
}

/// `kafka_assigner.json`: how NestJS clients share reply partitions.
#[derive(Deserialize)]
pub(crate) struct Assigner {
    pub(crate) data: AssignerData,
}

#[derive(Deserialize)]
pub(crate) struct AssignerData {
    pub(crate) cases: Vec<AssignerCase>,
}

#[derive(Deserialize)]
pub(crate) struct AssignerCase {
    pub(crate) name: String,
    pub(crate) topics: BTreeMap<String, i32>,
    pub(crate) result: Vec<Assigned>,
}

#[derive(Deserialize)]
pub(crate) struct Assigned {
    pub(crate) assignment: BTreeMap<String, Vec<i32>>,
}

pub(crate) fn read<T: DeserializeOwned>(name: &str) -> T {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors");
    let text = fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

impl Conversations {
    /// What a client sent in a case, if it got as far as that.
    pub(crate) fn request(&self, name: &str) -> Option<&Captured> {
        self.of(name, "client->broker").first().copied()
    }

    /// What a server replied.
    pub(crate) fn replies(&self, name: &str) -> Vec<&Captured> {
        self.of(name, "server->broker")
    }

    fn of(&self, name: &str, direction: &str) -> Vec<&Captured> {
        let is_of = |captured: &&Captured| captured.name == name && captured.direction == direction;
        self.vectors.iter().filter(is_of).collect()
    }
}

impl Captured {
    pub(crate) fn key(&self) -> Option<Vec<u8>> {
        self.key_hex.as_deref().map(bytes)
    }

    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        self.value_hex.as_deref().map(bytes)
    }

    pub(crate) fn headers(&self) -> Vec<(String, Vec<u8>)> {
        let entries = self.headers.0.iter();
        entries
            .map(|(name, value)| (name.clone(), bytes(&value.hex)))
            .collect()
    }

    /// The id of the call, if it is one.
    pub(crate) fn correlation(&self) -> Option<Vec<u8>> {
        let mut headers = self.headers().into_iter();
        let id = headers.find(|(name, _)| name == "kafka_correlationId");
        id.map(|(_, value)| value)
    }
}

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// The members of an object in the order of the file, which is theirs on the wire.
pub(crate) struct InOrder<T>(pub(crate) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = InOrder<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }

        deserializer.deserialize_map(Members(PhantomData))
    }
}
