//! What all responses have, readiness, and the end.

use std::time::Duration;

use contracts::{QuoteId, Role, order::OrderStatus};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use crate::shop::Shop;

#[tokio::test]
async fn all_responses_are_named_timed_and_secured() {
    let shop = Shop::open().await;
    for path in ["/v1/products", "/v1/nothing"] {
        let answer = shop
            .get(path)
            .header("x-request-id", "abc-1")
            .answer()
            .await;
        assert_eq!(answer.header("x-request-id"), "abc-1");
        assert_eq!(answer.header("traceparent").len(), 55);
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert!(
            answer
                .header("content-security-policy")
                .contains("default-src 'none'")
        );
    }
    let answer = shop
        .get("/v1/products")
        .header("x-request-id", "<script>")
        .answer()
        .await;
    assert_eq!(answer.header("x-request-id").len(), 36);
    let timing = answer.header("server-timing");
    assert!(
        timing.starts_with("product.list;dur=") && timing.ends_with(";desc=\"memory\""),
        "{timing}"
    );
    assert_eq!(answer.header("cache-control"), "public, max-age=30");
    assert_eq!(
        shop.get("/v1/cart").answer().await.header("cache-control"),
        "private, no-store"
    );
}

#[tokio::test]
async fn the_gateway_is_ready_when_all_services_are() {
    let mut shop = Shop::open().await;
    let answer = shop.get("/readyz").answer().await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["ready"]),
        (200, &json!(true))
    );
    shop.stop("review").await;
    let answer = shop.get("/readyz").answer().await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["ready"]),
        (503, &json!(false))
    );
    assert_eq!(answer.body["services"]["user"]["ready"], true);
    assert_eq!(answer.body["services"]["review"]["error"], "UNAVAILABLE");
    assert_eq!(shop.get("/healthz").answer().await.status, 200);
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_answers_what_it_has_begun() {
    let shop = Shop::open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = gateway::serve(
        listener,
        shop.app.clone(),
        async {
            stopped.await.ok();
        },
        Duration::from_secs(60),
    );
    let visit = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body =
            json!({"quote_id": QuoteId::derive("one"), "email": "ada@example.org"}).to_string();
        let token = shop.token(&[Role::Customer]);
        let request = format!(
            "POST /v1/orders HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nprefer: wait=10\r\n\
             idempotency-key: k1\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        while shop.world.placed.lock().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        shop.set_order(|order| order.status = OrderStatus::Confirmed);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (served, answer) = tokio::join!(served, visit);
    served.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    TcpStream::connect(address).await.unwrap_err();
}
