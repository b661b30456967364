use nestling::{Event, Message, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "", reply = u64)]
struct Empty;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user get", reply = u64)]
struct Space;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.*", reply = u64)]
struct Wildcard;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.Placed")]
struct Capital;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "placed")]
struct OneWord;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order..placed")]
struct TwoDots;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed-late")]
struct Hyphen;

struct Users;

#[controller]
impl Users {
    #[message_pattern("user get")]
    async fn space(&self) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[event_pattern(" {\"kind\":\"user\"}")]
    async fn space_first(&self) -> Result<(), RpcError> {
        Ok(())
    }

    #[event_pattern("")]
    async fn empty(&self) -> Result<(), RpcError> {
        Ok(())
    }

    #[message_pattern(user.get)]
    async fn unquoted(&self) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern = "user.get"]
    async fn assigned(&self) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern()]
    async fn nothing(&self) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern("user.find", max_inflight = 4)]
    async fn misspelt(&self) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[event_pattern("user.left", max_in_flight)]
    async fn no_number(&self) -> Result<(), RpcError> {
        Ok(())
    }

    #[message_pattern(max_in_flight = 0)]
    async fn never(&self, _: Space) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern("user.list" max_in_flight = 4)]
    async fn no_comma(&self) -> Result<u64, RpcError> {
        Ok(1)
    }
}

fn main() {}
