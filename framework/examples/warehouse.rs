//! A NestJS service moved to nestling: `docs/nestjs.md` shows both side by side.
//!
//! `cargo run -p nestling --example warehouse -- tcp://127.0.0.1:3000`

use std::{collections::BTreeMap, sync::Mutex};

use nestling::{
    Event, Message, Payload, Router, RpcError, Server, StartError, Streaming, controller,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Takes some of an article out of the stock.
#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "stock.reserve", reply = Level)]
struct Reserve {
    sku: String,
    count: u32,
}

/// More of an article has come.
#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "stock.delivered", best_effort)]
struct Delivered {
    sku: String,
    count: u32,
}

/// How much of an article is left.
#[derive(Serialize, Deserialize)]
struct Level {
    sku: String,
    left: u32,
}

/// The service.
struct Warehouse {
    stock: Mutex<BTreeMap<String, u32>>,
}

#[controller]
impl Warehouse {
    #[message_pattern(r#"{"cmd":"stock"}"#)]
    async fn available(&self, Payload(sku): Payload<String>) -> Result<u32, RpcError> {
        let stock = self.stock.lock().expect("nothing panics with the lock");
        stock.get(&sku).copied().ok_or_else(unknown_article)
    }

    #[message_pattern]
    async fn reserve(&self, Reserve { sku, count }: Reserve) -> Result<Level, RpcError> {
        let mut stock = self.stock.lock().expect("nothing panics with the lock");
        let left = stock.get_mut(&sku).ok_or_else(unknown_article)?;
        let missing = count.saturating_sub(*left);
        if missing > 0 {
            let error = RpcError::failed_precondition("not enough");
            return Err(error.with_details(json!({ "missing": missing })));
        }
        *left -= count;
        let left = *left;
        Ok(Level { sku, left })
    }

    #[message_pattern("stock.list")]
    fn list(&self) -> Streaming<Level> {
        let stock = self.stock.lock().expect("nothing panics with the lock");
        let levels: Vec<_> = stock
            .iter()
            .map(|(sku, &left)| Level {
                sku: sku.clone(),
                left,
            })
            .collect();
        Streaming::of(levels)
    }

    #[event_pattern]
    async fn delivered(&self, Delivered { sku, count }: Delivered) -> Result<(), RpcError> {
        let mut stock = self.stock.lock().expect("nothing panics with the lock");
        *stock.entry(sku).or_default() += count;
        Ok(())
    }
}

fn unknown_article() -> RpcError {
    RpcError::not_found("no such article")
}

/// The handlers, over a small stock.
pub(crate) fn router() -> Router {
    let stock = [("mug".to_owned(), 10), ("tea".to_owned(), 3)];
    Router::new().controller(Warehouse {
        stock: Mutex::new(stock.into()),
    })
}

#[tokio::main]
async fn main() -> Result<(), StartError> {
    let url = std::env::args().nth(1);
    let url = url.unwrap_or_else(|| "tcp://127.0.0.1:3000".to_owned());
    Server::new("warehouse", router()).listen(url).run().await
}
