use nestling::{Context, Message, Router, RpcError, controller};
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
    async fn get(&self, _: GetUser, _: Context) -> Result<String, RpcError> {
        Ok(String::new())
    }
}

fn main() {
    drop(Router::new().controller(Users));
}
