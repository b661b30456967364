use nestling::Message;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
struct Bare;

#[derive(Serialize, Deserialize, Message)]
#[message(reply = u64)]
struct NoPattern;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get")]
struct NoReply;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = u64, stream = u64)]
struct BothReplies;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", repyl = u64)]
struct Mistyped;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = u64, timeout = 5)]
struct Unknown;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = u64, idempotent = true)]
struct FlagWithValue;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = u64, pattern = "user.find")]
struct Twice;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = u64)]
#[message(idempotent)]
struct Apart;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = get, reply = u64)]
struct Unquoted;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern, reply = u64)]
struct Valueless;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.seen", reply = u64, best_effort)]
struct LikeAnEvent;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.save", reply = u64)]
struct Generic<T> {
    value: T,
}

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.save", reply = u64)]
struct Borrowed<'a> {
    name: &'a str,
}

#[derive(Message)]
#[message(pattern = "user.get", reply = u64)]
struct NotSerializable;

fn main() {}
