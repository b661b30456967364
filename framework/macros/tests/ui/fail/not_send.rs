use std::{rc::Rc, sync::Mutex};

use nestling::{Message, RpcError, controller};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.count", reply = u64)]
struct CountUsers;

struct Users {
    count: Mutex<u64>,
}

#[controller]
impl Users {
    #[message_pattern]
    async fn count(&self, _: CountUsers) -> Result<u64, RpcError> {
        let mut count = self.count.lock().unwrap();
        tick().await;
        *count += 1;
        Ok(*count)
    }
}

async fn tick() {}

struct Local {
    count: Rc<u64>,
}

#[controller]
impl Local {
    #[message_pattern]
    async fn count(&self, _: CountUsers) -> Result<u64, RpcError> {
        Ok(*self.count)
    }
}

fn main() {}
