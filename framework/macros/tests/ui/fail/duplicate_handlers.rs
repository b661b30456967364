use nestling::{Context, Message, Router, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

struct Users;

#[controller]
impl Users {
    #[message_pattern]
    async fn count(&self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern]
    async fn count_again(&self, _: CountUsers, _: Context) -> Result<u64, RpcError> {
        Ok(2)
    }

    #[message_pattern("user.ping")]
    async fn ping(&self) -> Result<u64, RpcError> {
        Ok(3)
    }

    #[message_pattern("user.ping")]
    async fn ping_again(&self) -> Result<u64, RpcError> {
        Ok(4)
    }
}

fn main() {
    drop(Router::new().controller(Users));
}
