use nestling::Event;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
struct Bare;

#[derive(Serialize, Deserialize, Event)]
#[event(best_effort)]
struct NoPattern;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", reply = u64)]
struct LikeAMessage;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", key = ordr)]
struct MistypedKey {
    order: u64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", key = user)]
struct NoSuchKey {
    order: u64,
    total: u64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", key = "order")]
struct QuotedKey {
    order: u64,
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", key = lines)]
struct KeyWithoutText {
    lines: Vec<u64>,
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.changed", key = order)]
enum KeyOfAnEnum {
    Placed { order: u64 },
    Paid { order: u64 },
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", besteffort)]
struct Mistyped;

fn main() {}
