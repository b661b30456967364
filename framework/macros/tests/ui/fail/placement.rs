use nestling::{Context, Message, RpcError, controller, guard};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

async fn admin(cx: Context) -> Result<Context, RpcError> {
    Ok(cx)
}

struct Users;

#[controller]
impl Users {
    #[layer(guard(admin))]
    fn helper(&self) {}

    #[message_pattern]
    #[event_pattern("user.counted")]
    async fn count(&self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern("user.ping")]
    #[layer]
    async fn ping(&self) -> Result<u64, RpcError> {
        Ok(1)
    }
}

struct Others;

#[controller("others")]
#[message_pattern]
impl Others {}

#[controller]
impl Default for Others {
    fn default() -> Self {
        Self
    }
}

fn main() {}
