use nestling::{Message, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct User;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = User)]
struct GetUser;

struct Users;

#[controller]
impl Users {
    #[message_pattern]
    async fn save(&self, user: User) -> Result<User, RpcError> {
        Ok(user)
    }

    #[event_pattern]
    async fn fetched(&self, _: GetUser) -> Result<(), RpcError> {
        Ok(())
    }
}

fn main() {}
