use nestling::{Context, RpcError, controller};

async fn admin(cx: Context) -> Result<Context, RpcError> {
    Ok(cx)
}

struct Users;

#[controller]
impl Users {
    #[message_pattern("user.ping")]
    #[layer(admin)]
    async fn ping(&self) -> Result<u64, RpcError> {
        Ok(1)
    }
}

fn main() {}
