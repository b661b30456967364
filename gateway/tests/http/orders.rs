//! Placing and paying orders.

use contracts::{
    MethodId, OrderId, ProductId, QuoteId, Role,
    order::{OrderStatus, OrderView, PaymentStatus},
    product::ShortLine,
};
use serde_json::{Value, json};

use crate::shop::{Answer, Ask, Shop};

const CUSTOMER: [Role; 1] = [Role::Customer];

fn place(shop: &Shop) -> Ask<'_> {
    let body = json!({"quote_id": QuoteId::derive("one"), "method_id": MethodId::derive("card")});
    shop.post("/v1/orders").signed_in(&CUSTOMER).json(&body)
}

async fn waited(change: impl FnOnce(&mut OrderView)) -> Answer {
    let shop = Shop::open().await;
    shop.set_order(change);
    place(&shop)
        .header("idempotency-key", "k1")
        .header("prefer", "wait=5")
        .answer()
        .await
}

#[tokio::test]
async fn an_order_is_accepted_and_says_where_to_look() {
    let shop = Shop::open().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = place(&shop)
        .header("idempotency-key", "k1")
        .header("traceparent", trace);
    let answer = ask.answer().await;
    assert_eq!(answer.status, 202);
    let id = OrderId::derive("one");
    assert_eq!(
        (answer.header("location"), &answer.body["id"]),
        (&*format!("/v1/orders/{id}"), &json!(id))
    );
    assert_eq!(answer.header("traceparent"), trace);
    let (placed, key, seen) = shop.world.placed.lock().unwrap().take().unwrap();
    assert_eq!((&*key, &*seen), ("k1", trace));
    // Without an address for mail it is the account's.
    assert_eq!(
        (placed.user_id, &*placed.email),
        (shop.world.user, "ada@example.org")
    );
}

#[tokio::test]
async fn placing_and_paying_need_a_key() {
    let shop = Shop::open().await;
    place(&shop)
        .answer()
        .await
        .is_problem(400, "idempotency_key_missing");
    place(&shop)
        .header("idempotency-key", "")
        .answer()
        .await
        .is_problem(400, "malformed");
    let pay = shop
        .post("/v1/orders/x/pay")
        .signed_in(&CUSTOMER)
        .json(&json!({"method_id": "x"}));
    pay.answer()
        .await
        .is_problem(400, "idempotency_key_missing");
}

#[tokio::test]
async fn who_waits_learns_that_the_order_is_confirmed() {
    let answer = waited(|order| order.status = OrderStatus::Confirmed).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["status"]),
        (201, &json!("confirmed"))
    );
    assert_eq!(answer.header("preference-applied"), "wait=5");
    assert!(answer.header("location").starts_with("/v1/orders/ord_"));
    assert!(
        answer.header("server-timing").contains("order.get;dur="),
        "{}",
        answer.header("server-timing")
    );
}

#[tokio::test]
async fn who_waits_learns_that_the_payment_was_declined() {
    let answer = waited(|order| {
        order.status = OrderStatus::AwaitingPayment;
        order.payment = PaymentStatus::Failed;
        order.reason = Some("card_declined".to_owned());
    })
    .await;
    answer.is_problem(402, "payment_declined");
    assert_eq!(
        (&answer.body["reason"], &answer.body["order"]["attempts"]),
        (&json!("card_declined"), &json!(1))
    );
    assert!(answer.header("location").starts_with("/v1/orders/ord_"));
}

#[tokio::test]
async fn who_waits_learns_what_is_out_of_stock() {
    let short = ShortLine {
        product_id: ProductId::derive("lamp"),
        requested: 2,
        available: 1,
    };
    let answer = waited(|order| {
        order.status = OrderStatus::Rejected;
        order.reason = Some("out_of_stock".to_owned());
        order.short = vec![short];
    })
    .await;
    answer.is_problem(409, "out_of_stock");
    assert_eq!(answer.body["short"], json!([short]));
}

#[tokio::test]
async fn who_has_waited_long_enough_is_told_to_look_later() {
    let shop = Shop::open().await;
    shop.set_order(|order| order.status = OrderStatus::AwaitingPayment);
    let ask = place(&shop).header("idempotency-key", "k1");
    let answer = ask.header("prefer", "wait=1").answer().await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.body["status"], "awaiting_payment");
}

#[tokio::test]
async fn another_payment_is_waited_for_likewise() {
    let shop = Shop::open().await;
    let path = format!("/v1/orders/{}/pay", OrderId::derive("one"));
    let pay = || {
        let body = json!({"method_id": MethodId::derive("card")});
        let ask = shop.post(&path).signed_in(&CUSTOMER).json(&body);
        ask.header("idempotency-key", "k2")
            .header("prefer", "wait=1")
    };
    shop.set_order(|order| order.status = OrderStatus::Confirmed);
    assert_eq!(pay().answer().await.status, 200);
    shop.set_order(|order| {
        order.status = OrderStatus::AwaitingPayment;
        order.payment = PaymentStatus::Failed;
    });
    let declined = pay().answer().await;
    declined.is_problem(402, "payment_declined");
    // The order does not say why, its payment does.
    assert_eq!(declined.body["reason"], "insufficient_funds");
}

#[tokio::test]
async fn an_order_is_shown_with_its_payment_and_its_history() {
    let shop = Shop::open().await;
    let path = format!("/v1/orders/{}", OrderId::derive("one"));
    let answer = shop.get(&path).signed_in(&CUSTOMER).answer().await;
    assert_eq!(answer.body["payment"], "none");
    assert_eq!(answer.body["payment_detail"]["state"], "captured");
    assert_eq!(answer.header("etag"), "\"5\"");
    let history = shop
        .get(&format!("{path}/timeline"))
        .signed_in(&CUSTOMER)
        .answer()
        .await;
    let kinds: Vec<_> = history
        .body
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["type"])
        .collect();
    assert_eq!(kinds, ["placed", "confirmed"]);
    let other = format!("/v1/orders/{}", OrderId::derive("other"));
    shop.get(&other)
        .signed_in(&CUSTOMER)
        .answer()
        .await
        .is_problem(404, "not_found");
    shop.get("/v1/orders/prd_1")
        .signed_in(&CUSTOMER)
        .answer()
        .await
        .is_problem(422, "validation");
}

#[tokio::test]
async fn a_customer_lists_own_orders_and_staff_any() {
    let shop = Shop::open().await;
    let query = format!(
        "?user_id={}&status=confirmed&from=2026-01-01T00:00:00Z",
        contracts::UserId::derive("bob")
    );
    let asked = async |path: &str, roles: &[Role]| -> Value {
        let answer = shop
            .get(&format!("{path}{query}"))
            .signed_in(roles)
            .answer()
            .await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        json!(shop.world.orders_listed.lock().unwrap().take().unwrap())
    };
    let own = asked("/v1/orders", &CUSTOMER).await;
    assert_eq!(
        (&own["user_id"], &own["status"]),
        (&json!(shop.world.user), &json!("confirmed"))
    );
    let any = asked("/v1/admin/orders", &[Role::Support]).await;
    assert_eq!(any["user_id"], json!(contracts::UserId::derive("bob")));
}
