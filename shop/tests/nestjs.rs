//! NestJS applications in the running shop: they call its services on each one's transport, and hear its events.
#![allow(
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

#[allow(
    dead_code,
    reason = "shared with other tests, each of which uses a part"
)]
mod buyer;
#[allow(
    dead_code,
    reason = "shared with other tests, each of which uses a part"
)]
mod fleet;

use std::sync::mpsc::{self, Receiver};

use contracts::{Actor, Role, SessionId, UserId, order::OrderStatus, payment::payment_id};
use nestling_testkit::{nestjs::App, or_skip, unique};
use serde_json::{Value, json};
use shop::Staff;

use crate::{
    buyer::{Buyer, GOOD_CARD, PATIENCE, add_product},
    fleet::Fleet,
};

/// A NestJS program, and what it says.
struct NestJs {
    app: App,
    lines: Receiver<Value>,
    calls: u32,
}

impl NestJs {
    /// `None`, with a line that says so, where there is no NestJS.
    fn start(program: &str, url: &str, options: &[&str]) -> Option<Self> {
        let run = unique("shop");
        let arguments = [&[url, "--run", &run], options].concat();
        let (sender, lines) = mpsc::channel();
        let started = App::start(program, &arguments, move |line| {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            // After the test nobody listens.
            sender.send(line).ok();
        });
        let app = or_skip(started)?;
        Some(Self {
            app,
            lines,
            calls: 0,
        })
    }

    fn next_line(&mut self) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("the NestJS application: {error}; {}", self.app.log()),
        }
    }

    /// Sends a message as `client.send(pattern, data)` does; its one value.
    fn send(&mut self, pattern: &str, data: &Value, headers: &Value) -> Value {
        self.calls += 1;
        let call = json!({
            "id": self.calls, "do": "send", "pattern": pattern, "data": data, "headers": headers,
        });
        self.app.say(&call.to_string()).unwrap();
        let answer = self.next_line();
        assert_eq!(answer["is"], "value", "{pattern}: {answer}");
        assert_eq!(self.next_line()["is"], "complete");
        answer["what"].clone()
    }
}

/// Asks once, with a client of its own.
fn ask(url: &str, pattern: &str, data: &Value, actor: Option<&Actor>) -> Option<Value> {
    let replies = json!([pattern]).to_string();
    let mut client = NestJs::start("client.mjs", url, &["--replies", &replies])?;
    let headers = match actor {
        Some(actor) => json!({ "actor": actor.to_header() }),
        None => json!({}),
    };
    Some(client.send(pattern, data, &headers))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nestjs_applications_take_part_in_the_shop() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let url = |service: &str| fleet.url(service).to_owned();
    let (user, product, order, payment) =
        (url("user"), url("product"), url("order"), url("payment"));
    let events = json!(["order.placed"]).to_string();
    let Some(mut listener) = NestJs::start("listener.mjs", &order, &["--events", &events]) else {
        return;
    };

    let staff = Staff::connect(&product).await.unwrap();
    let lamp = add_product(&staff, "lamp", 5).await;
    let buyer = Buyer::new(&fleet.clients, UserId::new());
    let card = buyer.add_card(GOOD_CARD).await;
    let form = buyer.fill_in(lamp, 1, card).await;
    let placed = buyer.place(&form, "only").await;
    let settled = |view: &contracts::order::OrderView| view.status.is_settled();
    let confirmed = buyer.until(placed.id, settled).await;
    assert_eq!(confirmed.status, OrderStatus::Confirmed);

    let actor = Actor {
        user_id: buyer.user_id,
        roles: vec![Role::Customer],
        session: SessionId::new(),
    };
    tokio::task::spawn_blocking(move || {
        let heard = listener.next_line();
        assert_eq!(heard["event"], "order.placed");
        assert_eq!(heard["data"]["order_id"], json!(placed.id), "{heard}");

        let account = json!({
            "email": "nest@example.com", "password": "correct horse battery", "name": "Nest", "locale": "en",
        });
        let registered = ask(&user, "user.register", &account, None).unwrap();
        assert_eq!(registered["email"], "nest@example.com", "{registered}");

        let first = json!({ "sort": "name", "page": { "limit": 10 } });
        let listed = ask(&product, "product.list", &first, None).unwrap();
        assert_eq!(listed["items"][0]["id"], json!(lamp), "{listed}");

        let which = json!({ "order_id": placed.id });
        let shown = ask(&order, "order.get", &which, Some(&actor)).unwrap();
        assert_eq!(shown["status"], "confirmed", "{shown}");

        let which = json!({ "payment_id": payment_id(placed.id, 1) });
        let paid = ask(&payment, "payment.get", &which, Some(&actor)).unwrap();
        assert_eq!(paid["id"], which["payment_id"], "{paid}");
    })
    .await
    .unwrap();
    fleet.assert_all_run();
}
