use nestling::{Context, Event, Headers, Message, Payload, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "user.left")]
struct UserLeft;

struct Users;

#[controller]
impl Users {
    #[message_pattern]
    async fn no_self(_: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern]
    async fn mutable(&mut self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern]
    async fn by_value(self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern]
    async fn no_contract(&self) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern("user.save")]
    async fn generic<T>(&self, _: Payload<T>) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern("user.name")]
    async fn unnamed(&self, _: impl Into<String>) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[message_pattern]
    async fn too_many(
        &self,
        _: CountUsers,
        _: Context,
        _: Context,
        _: Context,
        _: Headers,
        _: Headers,
    ) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[event_pattern]
    async fn answers(&self, _: UserLeft) -> Result<u64, RpcError> {
        Ok(1)
    }

    #[event_pattern]
    async fn silent(&self, _: UserLeft) {}
}

fn main() {}
