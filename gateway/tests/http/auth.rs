//! Bearer tokens.

use std::sync::atomic::Ordering;

use contracts::{Role, UserId};

use crate::shop::{Shop, Signing, claims};

const CUSTOMER: [Role; 1] = [Role::Customer];

#[tokio::test]
async fn the_keys_are_asked_for_once() {
    let shop = Shop::open().await;
    for _ in 0..3 {
        let answer = shop.get("/v1/me").signed_in(&CUSTOMER).answer().await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(shop.world.keys_asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_no_valid_token_is_refused() {
    let shop = Shop::open().await;
    let token = shop.token(&CUSTOMER);
    let user = shop.world.user;
    let signing = || shop.world.signing.lock().unwrap();
    let mut old = claims(user, &CUSTOMER);
    old.exp = old.iat - 60;
    let expired = signing().sign(&old);
    let mut foreign = claims(user, &CUSTOMER);
    foreign.iss = "somebody else".to_owned();
    let foreign = signing().sign(&foreign);
    let mut forger = Signing::new();
    forger.public.kid = signing().public.kid.clone();
    let forged = forger.sign(&claims(UserId::new(), &[Role::Admin]));
    let (head, signature) = token.rsplit_once('.').unwrap();
    // {"alg":"none"}
    let (_, payload) = head.split_once('.').unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let cut = format!("{head}.{}", &signature[1..]);
    for bad in [
        &*expired, &*foreign, &*forged, &*unsigned, &*cut, "", "a.b.c", "rubbish",
    ] {
        let answer = shop.get("/v1/me").bearer(bad).answer().await;
        answer.is_problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    let basic = shop
        .get("/v1/me")
        .header("authorization", "Basic YTpi")
        .answer()
        .await;
    basic.is_problem(401, "unauthenticated");
    // A token that is not valid is not taken for none.
    shop.get("/v1/cart")
        .bearer(&expired)
        .answer()
        .await
        .is_problem(401, "unauthenticated");
}

#[tokio::test]
async fn unknown_keys_make_the_gateway_ask_again_but_not_each_time() {
    let shop = Shop::open().await;
    let first = shop.get("/v1/me").signed_in(&CUSTOMER).answer().await;
    assert_eq!(first.status, 200);
    let stranger = Signing::new().sign(&claims(shop.world.user, &CUSTOMER));
    for _ in 0..20 {
        let answer = shop.get("/v1/me").bearer(&stranger).answer().await;
        answer.is_problem(401, "unauthenticated");
    }
    assert_eq!(shop.world.keys_asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_new_key_is_found_when_a_token_names_it() {
    let shop = Shop::open().await;
    let token = {
        let mut signing = shop.world.signing.lock().unwrap();
        *signing = Signing::new();
        signing.sign(&claims(shop.world.user, &CUSTOMER))
    };
    assert_eq!(shop.get("/v1/me").bearer(&token).answer().await.status, 200);
}

#[tokio::test]
async fn without_the_user_service_tokens_cannot_be_verified_and_that_is_no_refusal() {
    let mut shop = Shop::open().await;
    shop.stop("user").await;
    for _ in 0..2 {
        let answer = shop.get("/v1/orders").signed_in(&CUSTOMER).answer().await;
        answer.is_problem(503, "unavailable");
    }
    assert_eq!(shop.get("/v1/products").answer().await.status, 200);
}
