use nestling::{Event, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "user.left")]
struct UserLeft;

type Counted = Result<u64, RpcError>;

struct Users;

#[controller]
impl Users {
    #[event_pattern]
    async fn left(&self, _: UserLeft) -> Counted {
        Ok(1)
    }
}

fn main() {}
