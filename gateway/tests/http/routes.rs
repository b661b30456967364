//! Every route, for everybody: what the role table says, and what the document says.

use std::collections::BTreeSet;

use contracts::{MethodId, OrderId, QuoteId, Role};
use serde_json::{Value, json};

use crate::{fakes::product_id, shop::Shop};

/// A route, a request it accepts, and what anonymous, customer and manager get.
struct Row {
    method: &'static str,
    /// As the document has it.
    path: &'static str,
    url: String,
    body: Value,
    expected: [u16; 3],
}

fn row(method: &'static str, path: &'static str, body: Value, expected: [u16; 3]) -> Row {
    let id = if path.contains("orders") {
        OrderId::derive("one").to_string()
    } else {
        product_id().to_string()
    };
    let url = path.replace("{id}", &id).replace("{product_id}", &id);
    Row {
        method,
        path,
        url,
        body,
        expected,
    }
}

fn table() -> Vec<Row> {
    let none = || Value::Null;
    let draft = json!({
        "sku": "L1", "name": "Lamp", "net": {"amount": 1000}, "tax": 1900,
        "fulfilment": "physical", "on_hand": 3, "expected_version": 1,
    });
    let order = json!({
        "quote_id": QuoteId::derive("one"), "method_id": MethodId::derive("card"), "use_credit": false,
        "address": {"name": "Ada", "street": ["Lane 1"], "postcode": "1", "city": "B", "country": "DE"},
    });
    let card = json!({"pan": "4242424242424242", "exp": "12/34", "cvc": "123", "holder": "Ada"});
    let mut rows = vec![
        row(
            "POST",
            "/v1/auth/register",
            json!({"email": "ada@example.org", "password": "correct horse", "name": "Ada"}),
            [201; 3],
        ),
        row(
            "POST",
            "/v1/auth/login",
            json!({"email": "ada@example.org", "password": "correct horse"}),
            [200; 3],
        ),
        row("GET", "/v1/me", none(), [401, 200, 200]),
        row(
            "PATCH",
            "/v1/me",
            json!({"name": "Ada", "expected_version": 3}),
            [401, 200, 200],
        ),
        row("GET", "/v1/me/payment-methods", none(), [401, 200, 200]),
        row("POST", "/v1/me/payment-methods", card, [401, 201, 201]),
        row("GET", "/v1/products", none(), [200; 3]),
        row("GET", "/v1/products/{id}", none(), [200; 3]),
        row("GET", "/v1/categories", none(), [200; 3]),
        row("GET", "/v1/products/{id}/reviews", none(), [200; 3]),
        row(
            "POST",
            "/v1/products/{id}/reviews",
            json!({"rating": 5, "title": "Bright"}),
            [401, 201, 201],
        ),
        row("GET", "/v1/cart", none(), [200; 3]),
        row("DELETE", "/v1/cart", none(), [200; 3]),
        row(
            "PUT",
            "/v1/cart/lines/{product_id}",
            json!({"qty": 2}),
            [200; 3],
        ),
        row("DELETE", "/v1/cart/lines/{product_id}", none(), [200; 3]),
        row("GET", "/v1/recommendations", none(), [200; 3]),
        row(
            "POST",
            "/v1/checkout/quote",
            json!({"ship_to": {"country": "DE", "postcode": "1"}}),
            [200; 3],
        ),
        row("POST", "/v1/orders", order, [401, 202, 202]),
        row("GET", "/v1/orders", none(), [401, 200, 200]),
        row("GET", "/v1/orders/{id}", none(), [401, 200, 200]),
        row("GET", "/v1/orders/{id}/timeline", none(), [401, 200, 200]),
        row(
            "POST",
            "/v1/orders/{id}/pay",
            json!({"method_id": MethodId::derive("card")}),
            [401, 202, 202],
        ),
        row(
            "POST",
            "/v1/orders/{id}/cancel",
            json!({"reason": "changed my mind"}),
            [401, 200, 200],
        ),
        row("POST", "/v1/admin/products", draft.clone(), [401, 403, 201]),
        row("PUT", "/v1/admin/products/{id}", draft, [401, 403, 200]),
        row(
            "POST",
            "/v1/admin/categories",
            json!({"name": "Light"}),
            [401, 403, 201],
        ),
        row("GET", "/v1/admin/orders", none(), [401, 403, 200]),
        row("GET", "/", none(), [200; 3]),
        row("GET", "/healthz", none(), [200; 3]),
        row("GET", "/readyz", none(), [200; 3]),
        row("GET", "/openapi.json", none(), [200; 3]),
    ];
    for row in &mut rows {
        if row.path == "/v1/recommendations" {
            row.url = format!("{}?for=product&id={}", row.url, product_id());
        }
    }
    rows
}

async fn document(shop: &Shop) -> Value {
    shop.get("/openapi.json").answer().await.body
}

/// The method and path of every operation of the document.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .keys()
            .map(move |method| (method.to_uppercase(), path.clone()))
    });
    operations.collect()
}

#[tokio::test]
async fn each_role_gets_what_the_table_says_and_what_the_document_describes() {
    let shop = Shop::open().await;
    let document = document(&shop).await;
    for row in table() {
        let roles: [&[Role]; 3] = [&[], &[Role::Customer], &[Role::Manager]];
        for (roles, expected) in roles.into_iter().zip(row.expected) {
            let mut ask = shop
                .ask(row.method, &row.url)
                .header("idempotency-key", "k1");
            if !roles.is_empty() {
                ask = ask.signed_in(roles);
            }
            if !row.body.is_null() {
                ask = ask.json(&row.body);
            }
            let answer = ask.answer().await;
            let what = format!("{} {} as {roles:?}", row.method, row.path);
            assert_eq!(answer.status, expected, "{what}: {}", answer.body);
            if answer.status.is_success() {
                let operation = &document["paths"][row.path][row.method.to_lowercase()];
                check_shape(
                    &document,
                    operation,
                    answer.status.as_str(),
                    &answer.body,
                    &what,
                );
            } else {
                let code = if expected == 401 {
                    "unauthenticated"
                } else {
                    "forbidden"
                };
                answer.is_problem(expected, code);
            }
        }
    }
}

/// That the status is documented, and that an object has the members its schema has.
fn check_shape(document: &Value, operation: &Value, status: &str, body: &Value, what: &str) {
    let response = &operation["responses"][status];
    assert!(response.is_object(), "{what}: {status} is not documented");
    check_schema(
        document,
        &response["content"]["application/json"]["schema"],
        body,
        what,
    );
}

fn check_schema(document: &Value, schema: &Value, value: &Value, what: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(reference.strip_prefix('#').unwrap());
        return check_schema(document, schema.unwrap(), value, what);
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let object = options.iter().find(|option| option["$ref"].is_string());
        if let Some(object) = object.filter(|_| value.is_object()) {
            check_schema(document, object, value, what);
        }
        return;
    }
    if let Some(items) = value.as_array() {
        for item in items {
            check_schema(document, &schema["items"], item, what);
        }
    }
    let (Some(members), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    else {
        return;
    };
    let names =
        |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(members), names(properties), "{what}");
    for (name, property) in properties {
        check_schema(
            document,
            property,
            &members[name],
            &format!("{what}, {name}"),
        );
    }
}

#[tokio::test]
async fn every_route_is_documented_and_every_documented_route_is_in_the_table() {
    let shop = Shop::open().await;
    let document = document(&shop).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let tested: BTreeSet<_> = table()
        .iter()
        .map(|row| (row.method.to_owned(), row.path.to_owned()))
        .collect();
    let documented = operations(&document);
    assert_eq!(tested, documented);
    for path in document["paths"].as_object().unwrap().keys() {
        // What is documented is all there is: any other method is refused.
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let is_documented = documented.contains(&(method.to_owned(), path.clone()));
            let url = path.replace("{id}", "x").replace("{product_id}", "x");
            let answer = shop.ask(method, &url).answer().await;
            assert_eq!(
                answer.status != 405,
                is_documented,
                "{method} {path}: {}",
                answer.body
            );
        }
    }
}

/// A route can only come with its documentation: none is added past `routes!`.
#[test]
fn no_route_is_added_without_documentation() {
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for call in [".route(", ".route_service(", ".nest_service(", ".fallback"] {
                assert!(!text.contains(call), "{} has {call}", path.display());
            }
        }
    }
}

#[tokio::test]
async fn a_product_is_found_by_its_slug_with_what_others_know_of_it() {
    let shop = Shop::open().await;
    let answer = shop.get("/v1/products/lamp").answer().await;
    assert_eq!(answer.body["id"], json!(product_id()));
    assert_eq!(
        (&answer.body["on_hand"], &answer.body["available"]),
        (&json!(9), &json!(7))
    );
    assert_eq!(answer.body["review_summary"]["mean"], 500);
    assert_eq!(
        answer.body["recommendations"]["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(answer.body["partial"], json!([]));
    shop.get("/v1/products/chair")
        .answer()
        .await
        .is_problem(404, "not_found");
}

#[tokio::test]
async fn a_page_without_one_of_its_parts_says_so() {
    let mut shop = Shop::open().await;
    shop.stop("review").await;
    let answer = shop.get("/v1/products/lamp").answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["review_summary"], Value::Null);
    assert_eq!(answer.body["partial"], json!(["review_summary"]));

    shop.stop("payment").await;
    let path = format!("/v1/orders/{}", OrderId::derive("one"));
    let answer = shop.get(&path).signed_in(&[Role::Customer]).answer().await;
    assert_eq!(answer.body["partial"], json!(["payment_detail"]));
    assert_eq!(answer.body["status"], "placed");
}

#[tokio::test]
async fn recommendations_have_names_and_leave_out_what_is_sold_out() {
    let mut shop = Shop::open().await;
    let path = format!("/v1/recommendations?for=product&id={}", product_id());
    let answer = shop.get(&path).answer().await;
    assert_eq!(answer.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(answer.body["items"][0]["name"], "Lamp");
    shop.stop("product").await;
    let answer = shop.get(&path).answer().await;
    assert_eq!(answer.body["items"].as_array().unwrap().len(), 2);
    assert_eq!(answer.body["partial"], json!(["products"]));
}

#[tokio::test]
async fn an_anonymous_cart_is_found_again_by_its_token() {
    let shop = Shop::open().await;
    let first = shop.get("/v1/cart").answer().await;
    let token = first.header("x-cart-token");
    assert_eq!(token.len(), 32);
    let again = shop
        .get("/v1/cart")
        .header("x-cart-token", token)
        .answer()
        .await;
    assert_eq!(again.header("x-cart-token"), token);
    let own = shop
        .get("/v1/cart")
        .signed_in(&[Role::Customer])
        .answer()
        .await;
    assert_eq!(own.header("x-cart-token"), "");
    let bad = shop
        .get("/v1/cart")
        .header("x-cart-token", "short")
        .answer()
        .await;
    bad.is_problem(400, "malformed");
}

#[tokio::test]
async fn an_account_is_changed_by_who_has_read_it() {
    let shop = Shop::open().await;
    let customer = [Role::Customer];
    let read = shop.get("/v1/me").signed_in(&customer).answer().await;
    assert_eq!(read.header("etag"), "\"3\"");
    let known = shop
        .get("/v1/me")
        .signed_in(&customer)
        .header("if-none-match", "\"3\"")
        .answer()
        .await;
    assert_eq!(known.status, 304);
    let change = |tag: Option<&str>| {
        let ask = shop
            .ask("PATCH", "/v1/me")
            .signed_in(&customer)
            .json(&json!({"name": "Ada"}));
        match tag {
            Some(tag) => ask.header("if-match", tag),
            None => ask,
        }
    };
    change(None)
        .answer()
        .await
        .is_problem(428, "precondition_required");
    change(Some("\"2\""))
        .answer()
        .await
        .is_problem(412, "version_conflict");
    let changed = change(Some("\"3\"")).answer().await;
    assert_eq!(
        (changed.status.as_u16(), changed.header("etag")),
        (200, "\"4\"")
    );
}
