//! Layers on methods and on the whole controller, and controllers with parameters.
use nestling::{Context, Intercept, Payload, Router, RpcError, controller, guard, intercept};

async fn admin(cx: Context) -> Result<Context, RpcError> {
    Ok(cx)
}

/// Named as the variables that the attribute uses.
fn router() -> Intercept {
    guard(admin)
}

const LIMIT: usize = 8;

struct Users {
    only: Intercept,
}

#[controller]
#[layer(intercept(async |cx, next| next.run(cx).await))]
#[layer(router())]
impl Users {
    #[message_pattern("user.get")]
    #[layer(guard(admin))]
    #[layer(self.only.clone())]
    async fn get(&self, Payload(n): Payload<u64>) -> Result<u64, RpcError> {
        Ok(n)
    }

    #[layer({
        let this = router();
        this
    })]
    #[event_pattern("user.left")]
    async fn left(&self) -> Result<(), RpcError> {
        Ok(())
    }

    #[message_pattern("user.list", max_in_flight = LIMIT / 2)]
    async fn list(&self) -> Result<u64, RpcError> {
        Ok(0)
    }
}

trait Store: Send + Sync + 'static {
    type Row: serde::Serialize + serde::de::DeserializeOwned + Send + 'static;
    fn find(&self) -> impl Future<Output = Result<Self::Row, RpcError>> + Send;
}

struct Rows<S, const N: usize>(S);

#[controller]
impl<S: Store, const N: usize> Rows<S, N>
where
    S::Row: Clone,
{
    #[message_pattern("row.find")]
    async fn find(&self, Payload(row): Payload<S::Row>) -> Result<S::Row, RpcError> {
        drop(row);
        self.0.find().await
    }

    #[message_pattern("row.count")]
    async fn count(&self) -> Result<usize, RpcError> {
        Ok(N)
    }
}

struct Memory;

impl Store for Memory {
    type Row = u8;

    async fn find(&self) -> Result<u8, RpcError> {
        Ok(1)
    }
}

struct Nothing;

#[controller]
impl Nothing {}

fn main() {
    let router = Router::new()
        .controller(Users { only: router() })
        .controller(Rows::<_, 3>(Memory))
        .controller(Nothing);
    drop(router);
}
