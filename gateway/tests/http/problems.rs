//! What goes wrong, and how it is told.

use contracts::Role;
use serde_json::json;

use crate::shop::Shop;

#[tokio::test]
async fn what_http_refuses_is_a_problem_too() {
    let shop = Shop::open().await;
    shop.get("/v1/nothing")
        .answer()
        .await
        .is_problem(404, "not_found");
    let answer = shop.ask("DELETE", "/v1/products").answer().await;
    answer.is_problem(405, "method_not_allowed");
    assert!(answer.header("allow").contains("GET"));
    let login = || shop.post("/v1/auth/login");
    login().answer().await.is_problem(415, "unsupported_media");
    login()
        .text("a=b")
        .header("content-type", "text/plain")
        .answer()
        .await
        .is_problem(415, "unsupported_media");
    let json = |text: String| {
        login()
            .text(text)
            .header("content-type", "application/json; charset=utf-8")
    };
    json("{".to_owned())
        .answer()
        .await
        .is_problem(400, "malformed");
    json(format!("\"{}\"", "x".repeat(300 * 1024)))
        .answer()
        .await
        .is_problem(413, "payload_too_large");
}

#[tokio::test]
async fn a_field_that_is_missing_or_of_another_type_is_named_without_its_value() {
    let shop = Shop::open().await;
    let answer = shop
        .post("/v1/auth/login")
        .json(&json!({"email": "a@b.c"}))
        .answer()
        .await;
    answer.is_problem(422, "validation");
    assert_eq!(answer.body["errors"][0]["pointer"], "/password");

    let card =
        json!({"pan": 4_242_424_242_424_242_u64, "exp": "12/34", "cvc": "123", "holder": "Ada"});
    let add = shop
        .post("/v1/me/payment-methods")
        .signed_in(&[Role::Customer]);
    let answer = add.json(&card).answer().await;
    answer.is_problem(422, "validation");
    assert!(!answer.body.to_string().contains("4242"), "{}", answer.body);
}

#[tokio::test]
async fn fields_a_service_refuses_are_named_as_in_the_body() {
    let shop = Shop::open().await;
    let card = json!({"pan": "1", "exp": "x", "cvc": "123", "holder": "Ada"});
    let add = shop
        .post("/v1/me/payment-methods")
        .signed_in(&[Role::Customer]);
    let answer = add.json(&card).answer().await;
    answer.is_problem(422, "validation");
    let pointers: Vec<_> = answer.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["pointer"])
        .collect();
    assert_eq!(pointers, ["/pan", "/exp"]);

    let draft =
        json!({"sku": "", "name": "Lamp", "net": {"amount": 1}, "tax": 0, "fulfilment": "digital"});
    let create = shop.post("/v1/admin/products").signed_in(&[Role::Admin]);
    let answer = create.json(&draft).answer().await;
    assert_eq!(answer.body["errors"][0]["pointer"], "/sku");
}

#[tokio::test]
async fn reasons_of_services_have_their_status() {
    let shop = Shop::open().await;
    let register = json!({"email": "taken@example.org", "password": "correct horse", "name": "T"});
    let answer = shop
        .post("/v1/auth/register")
        .json(&register)
        .answer()
        .await;
    answer.is_problem(409, "email_taken");
    let login = json!({"email": "ada@example.org", "password": "wrong"});
    let answer = shop.post("/v1/auth/login").json(&login).answer().await;
    answer.is_problem(401, "unauthenticated");
    let list = shop.get("/v1/products?limit=1000").answer().await;
    list.is_problem(422, "validation");
    assert_eq!(list.body["errors"][0]["pointer"], "/limit");
    shop.get("/v1/products?limit=many")
        .answer()
        .await
        .is_problem(422, "validation");
    shop.get("/v1/products?category_id=prd_1")
        .answer()
        .await
        .is_problem(422, "validation");
}

#[tokio::test]
async fn the_inside_stays_inside() {
    let mut shop = Shop::open().await;
    let answer = shop.get("/v1/products/broken").answer().await;
    answer.is_problem(500, "internal");
    assert!(!answer.body.to_string().contains("secret"));
    shop.stop("product").await;
    shop.get("/v1/products")
        .answer()
        .await
        .is_problem(503, "unavailable");
}
