use nestling::{Message, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

struct Users;

#[controller]
impl Users {
    #[message_pattern]
    async fn count(&self, _: CountUsers, since: u64) -> Result<u64, RpcError> {
        Ok(since)
    }

    #[message_pattern("user.rename")]
    async fn rename(&self, name: String) -> Result<String, RpcError> {
        Ok(name)
    }
}

fn main() {}
