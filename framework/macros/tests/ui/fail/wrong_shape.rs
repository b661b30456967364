use nestling::{Message, RpcError, Streaming, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct User;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = User)]
struct GetUser;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.list", stream = User)]
struct ListUsers;

struct Users;

#[controller]
impl Users {
    #[message_pattern]
    async fn get(&self, _: GetUser) -> Streaming<User> {
        Streaming::of([User])
    }

    #[message_pattern]
    async fn list(&self, _: ListUsers) -> Result<User, RpcError> {
        Ok(User)
    }
}

fn main() {}
