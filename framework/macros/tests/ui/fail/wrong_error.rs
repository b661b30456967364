use nestling::{Message, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

struct NoDatabase;

struct Users;

#[controller]
impl Users {
    #[message_pattern]
    async fn count(&self, _: CountUsers) -> Result<u64, NoDatabase> {
        Err(NoDatabase)
    }

    #[message_pattern("user.ping")]
    async fn ping(&self) {}
}

fn main() {}
