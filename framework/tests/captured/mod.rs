//! What the suites of captured conversations have in common: the files, the captured server's handlers, and where every
//! wire of NestJS differs from ours.

#![allow(dead_code, reason = "each suite uses a part of it")]

pub(crate) mod handlers;

use std::time::Duration;

use nestling::{RpcError, Streaming};
use serde_json::Value;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What answers a request whose error no `RpcError` can say, or whose handlers' results we drop.
pub(crate) const OTHER_REPLIES: [(&str, &str); 4] = [
    // An RpcError has a message, and what else there is stands in its details.
    (
        "error_object",
        r#"{"err":{"status":"error","message":"bad","details":{"code":42,"extra":[1,"x"],"message":"bad"}},"isDisposed":true,"id":ID}"#,
    ),
    // It always has a message...
    (
        "error_rpcexception_no_arg",
        r#"{"err":{"status":"error","message":""},"isDisposed":true,"id":ID}"#,
    ),
    // ...which is text.
    (
        "error_rpcexception_number",
        r#"{"err":{"status":"error","message":"5"},"isDisposed":true,"id":ID}"#,
    ),
    // Event handlers have no results here that could be joined.
    (
        "request_to_two_event_handlers",
        r#"{"isDisposed":true,"id":ID}"#,
    ),
];

/// A file of captured vectors.
pub(crate) fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What a table says of a case.
pub(crate) fn other<'a>(table: &[(&'a str, &'a str)], name: &str) -> Option<&'a str> {
    let found = table.iter().find(|(case, _)| *case == name);
    found.map(|(_, packet)| *packet)
}

/// The id of a packet, in JSON.
pub(crate) fn id_of(packet: &str) -> Option<String> {
    let packet: Value = serde_json::from_str(packet).unwrap();
    packet.get("id").map(Value::to_string)
}

/// All values of a stream, and the error that ended it.
pub(crate) async fn read(replies: &mut Streaming<Value>) -> (Vec<Value>, Option<RpcError>) {
    let mut values = Vec::new();
    loop {
        match replies.try_next().await {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return (values, None),
            Err(error) => return (values, Some(error)),
        }
    }
}

/// Everything that is no packet, or no good one.
pub(crate) fn malformed() -> Vec<Vec<u8>> {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let many: Vec<_> = (0..1000).map(|n| format!("\"m{n}\":1")).collect();
    let many = many.join(",");
    let long = "x".repeat(500_000);
    let texts = [
        "",
        " ",
        "{",
        "}",
        "{}",
        "{\"pattern\"",
        "{\"pattern\":1",
        "nul",
        "1 2",
        "\"\\ud800\"",
        "[",
        &deep,
        &format!("{{\"pattern\":{deep},\"data\":1,\"id\":1}}"),
        &format!("{{\"data\":{deep},\"id\":{deep}}}"),
        &format!("{{\"data\":1,\"id\":\"{long}\"}}"),
        &format!("{{\"data\":1,\"metadata\":{{{many}}},\"id\":1}}"),
        "{\"data\":1,\"metadata\":{\"deadline\":\"99999999999999999999999\"},\"id\":1}",
        "{\"data\":1,\"metadata\":{\"deadline\":\"-1\"},\"id\":1}",
        "{\"data\":1,\"metadata\":[],\"id\":{}}",
        "{\"data\":1,\"id\":null}",
        "{\"id\":1,\"id\":2}",
        "{\"response\":1,\"isDisposed\":true,\"id\":\"x\"}",
    ];
    let mut all: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    all.push(b"\xff\xfe\x00".to_vec());
    all.push(b"{\"data\":\"\xff\",\"id\":\"\xc3\"}".to_vec());
    all.push(vec![0; 1 << 20]);
    all
}
