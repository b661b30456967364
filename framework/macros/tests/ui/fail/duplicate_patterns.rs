use nestling::{Message, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountOthers;

struct Literal;

#[controller]
impl Literal {
    #[message_pattern]
    async fn count(&self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern("user.count")]
    async fn count_again(&self) -> Result<u64, RpcError> {
        Ok(2)
    }
}

struct Contracts;

#[controller]
impl Contracts {
    #[message_pattern]
    async fn count(&self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern]
    async fn count_again(&self, _: CountOthers) -> Result<u64, RpcError> {
        Ok(2)
    }
}

fn main() {}
