//! The payment service over the memory transport.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod lossy;
mod shop;

use std::sync::atomic::Ordering;

use contracts::{Reason, Role, UserId, payment::*};
use futures_util::future::join_all;
use nestling::{header, sqlite};

use self::{lossy::lossy_shop, shop::*};

#[tokio::test]
async fn cards_belong_to_their_owners() {
    let shop = shop().await;
    let visa = shop.add_card("4242 4242 4242 4242").await;
    assert_eq!(
        (visa.brand.as_str(), visa.last4.as_str(), visa.exp.as_str()),
        ("visa", "4242", "12/99")
    );
    let mastercard = shop.add_card("5555555555554444").await;
    let listed = shop
        .as_user(ListMethods {
            user_id: shop.user_id,
        })
        .await
        .unwrap();
    assert_eq!(listed, [visa, mastercard]);

    let stranger = actor(UserId::new(), Role::Customer);
    let list = ListMethods {
        user_id: shop.user_id,
    };
    let error = shop
        .client
        .send(list.clone())
        .header(header::ACTOR, stranger.clone())
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Forbidden));
    let add = AddMethod {
        user_id: shop.user_id,
        card: card("4242424242424242"),
    };
    let error = shop
        .client
        .send(add)
        .header(header::ACTOR, stranger)
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Forbidden));
    let error = shop.client.send(list).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unauthenticated));
}

#[tokio::test]
async fn only_test_cards_that_have_not_expired_are_taken() {
    let shop = shop().await;
    let mut expired = card("4242424242424242");
    expired.exp = "01/20".to_owned();
    for (card, code) in [
        (card("4111 1111 1111 1111"), "card_number"),
        (expired, "expired"),
    ] {
        let error = shop
            .as_user(AddMethod {
                user_id: shop.user_id,
                card,
            })
            .await
            .unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Validation));
        assert_eq!(error.details.as_ref().unwrap()["errors"][0]["code"], code);
        assert!(!format!("{error:?}").contains("1111 1111"));
    }
}

#[tokio::test]
async fn no_number_and_no_token_is_in_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let pool = sqlite::open(dir.path().join("payment.db")).await.unwrap();
    let shop = serve(
        pool,
        |deps| async { payment::start(deps).await.unwrap() },
        Vec::new(),
    )
    .await;
    let request = shop.good_request(100).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&shop.pool)
        .await
        .unwrap();
    let mut bytes = std::fs::read(dir.path().join("payment.db")).unwrap();
    bytes.extend(std::fs::read(dir.path().join("payment.db-wal")).unwrap_or_default());
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(has(request.payment_id.to_string().as_bytes()));
    for secret in ["4242424242424242", "4242 4242 4242 4242", "tok_", "ch_"] {
        assert!(!has(secret.as_bytes()), "{secret}");
    }
}

#[tokio::test]
async fn a_payment_goes_from_promise_to_money_and_says_so() {
    let mut shop = shop().await;
    let request = shop.good_request(11_900).await;
    let id = request.payment_id;
    for _ in 0..3 {
        assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    }
    assert_eq!(shop.event().await, ("PaymentAuthorized", id));
    assert!(shop.balances().await.is_empty());

    let captured = shop.capture(id).await.unwrap();
    assert_eq!(
        (captured.state, captured.captured, captured.refunded),
        (PaymentState::Captured, euro(11_900), euro(0))
    );
    assert_eq!(shop.capture(id).await.unwrap(), captured);
    assert_eq!(shop.event().await, ("PaymentCaptured", id));
    let expected = [("provider_clearing", 11_900), ("revenue", -11_900)];
    assert_eq!(
        shop.balances().await,
        expected.map(|(a, b)| (a.to_owned(), b)).into()
    );

    assert_eq!(shop.reverse(id).await, Ok(Reversal::Refunded));
    assert_eq!(shop.reverse(id).await, Ok(Reversal::Refunded));
    assert_eq!(shop.event().await, ("PaymentRefunded", id));
    let balances = shop.balances().await;
    assert_eq!(
        (balances["provider_clearing"], balances["refunds"]),
        (0, 11_900)
    );
    let refunded = shop.get(id).await;
    assert_eq!(
        (refunded.state, refunded.refunded),
        (PaymentState::Refunded, euro(11_900))
    );
    assert_eq!(refunded.card.unwrap().last4, "4242");
    let timeline: Vec<_> = refunded
        .timeline
        .iter()
        .map(|entry| entry.text.as_str())
        .collect();
    let expected = [
        "119.00 EUR asked for",
        "119.00 EUR authorized",
        "119.00 EUR captured",
        "to be reversed: cancelled",
        "119.00 EUR refunded",
    ];
    assert_eq!(timeline, expected);
}

#[tokio::test]
async fn cards_are_declined_for_their_own_reasons() {
    let mut shop = shop().await;
    let cards = [
        ("4000000000000002", "card_declined"),
        ("4000000000009995", "insufficient_funds"),
        ("4000000000000069", "expired_card"),
        ("4000000000000127", "incorrect_cvc"),
    ];
    for (number, code) in cards {
        let method = shop.add_card(number).await;
        let request = shop.request(Some(method.id), 100);
        let first = shop.authorize(&request).await;
        assert_eq!(decline_code(&first), Some((code, true)));
        assert_eq!(shop.authorize(&request).await, first);
        assert_eq!(shop.event().await, ("PaymentDeclined", request.payment_id));
        assert_eq!(
            shop.get(request.payment_id).await.decline_code.as_deref(),
            Some(code)
        );
        let error = shop.capture(request.payment_id).await.unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::StateConflict));
        assert_eq!(
            shop.reverse(request.payment_id).await,
            Ok(Reversal::Nothing)
        );
    }
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn nobody_pays_with_anothers_card_or_with_none() {
    let shop = shop().await;
    let mut request = shop.good_request(100).await;
    request.user_id = UserId::new();
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("unknown_method", true))
    );
    let request = shop.request(None, 100);
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("unknown_method", true))
    );
    let error = shop.client.send(shop.request(None, -1)).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Validation));
}

#[tokio::test]
async fn one_id_is_one_payment() {
    let shop = shop().await;
    let mut request = shop.good_request(100).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    request.amount = euro(200);
    let error = shop.client.send(request).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::StateConflict));
}

#[tokio::test]
async fn nothing_to_pay_needs_no_card_and_no_ledger() {
    let shop = shop().await;
    let request = shop.request(None, 0);
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    assert_eq!(
        shop.capture(request.payment_id).await.unwrap().state,
        PaymentState::Captured
    );
    assert_eq!(
        shop.reverse(request.payment_id).await,
        Ok(Reversal::Refunded)
    );
    let other = shop.request(None, 0);
    assert_eq!(shop.authorize(&other).await, Authorization::Authorized);
    assert_eq!(shop.reverse(other.payment_id).await, Ok(Reversal::Voided));
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn a_promise_is_voided_and_then_never_captured() {
    let mut shop = shop().await;
    let request = shop.good_request(100).await;
    let id = request.payment_id;
    shop.authorize(&request).await;
    assert_eq!(shop.reverse(id).await, Ok(Reversal::Voided));
    assert_eq!(shop.reverse(id).await, Ok(Reversal::Voided));
    assert_eq!(shop.event().await, ("PaymentAuthorized", id));
    assert_eq!(shop.event().await, ("PaymentVoided", id));
    let error = shop.capture(id).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::StateConflict));
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("reversed", false))
    );
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn a_reversal_before_the_payment_keeps_it_from_happening() {
    let shop = shop().await;
    let request = shop.good_request(100).await;
    assert_eq!(
        shop.reverse(request.payment_id).await,
        Ok(Reversal::Nothing)
    );
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("reversed", false))
    );
    assert_eq!(
        shop.reverse(request.payment_id).await,
        Ok(Reversal::Nothing)
    );
    let error = shop
        .client
        .send(GetPayment {
            payment_id: request.payment_id,
        })
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::NotFound));
}

#[tokio::test]
async fn a_payment_is_shown_to_its_owner_and_to_staff() {
    let shop = shop().await;
    let request = shop.good_request(100).await;
    shop.authorize(&request).await;
    let get = GetPayment {
        payment_id: request.payment_id,
    };
    assert!(shop.as_user(get.clone()).await.is_ok());
    let support = actor(UserId::new(), Role::Support);
    assert!(
        shop.client
            .send(get.clone())
            .header(header::ACTOR, support)
            .await
            .is_ok()
    );
    let stranger = actor(UserId::new(), Role::Customer);
    let error = shop
        .client
        .send(get)
        .header(header::ACTOR, stranger)
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Forbidden));
    let get = GetPayment {
        payment_id: request.payment_id,
    };
    let error = shop
        .client
        .send(get)
        .header(header::ACTOR, "{}")
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Malformed));
}

#[tokio::test]
async fn a_confirmed_order_is_captured_once() {
    let mut shop = shop().await;
    let request = shop.good_request(700).await;
    let id = request.payment_id;
    shop.authorize(&request).await;
    let event = confirmed(&request);
    for _ in 0..3 {
        shop.client
            .emit(event.clone())
            .header(header::EVENT_ID, "event-1")
            .await
            .unwrap();
    }
    assert_eq!(shop.event().await, ("PaymentAuthorized", id));
    assert_eq!(shop.event().await, ("PaymentCaptured", id));
    until(async || shop.get(id).await.state == PaymentState::Captured).await;
    assert_eq!(shop.balances().await["provider_clearing"], 700);

    // A cancellation that overtakes the confirmation leaves nothing to take.
    let other = shop.good_request(900).await;
    shop.authorize(&other).await;
    assert_eq!(shop.reverse(other.payment_id).await, Ok(Reversal::Voided));
    shop.client.emit(confirmed(&other)).await.unwrap();
    assert_eq!(shop.event().await, ("PaymentAuthorized", other.payment_id));
    assert_eq!(shop.event().await, ("PaymentVoided", other.payment_id));
    assert_eq!(shop.balances().await["provider_clearing"], 700);
}

#[tokio::test]
async fn many_at_once_are_one_charge() {
    let shop = shop().await;
    let request = shop.good_request(250).await;
    let id = request.payment_id;
    let asked = join_all((0..20).map(|_| shop.client.send(request.clone()).into_future())).await;
    assert!(
        asked
            .iter()
            .all(|answer| *answer == Ok(Authorization::Authorized))
    );
    let captured =
        join_all((0..20).map(|_| shop.client.send(Capture { payment_id: id }).into_future())).await;
    assert!(captured.iter().all(Result::is_ok));
    let log: Vec<String> = sqlx::query_scalar("SELECT operation FROM sim_log ORDER BY position")
        .fetch_all(&shop.pool)
        .await
        .unwrap();
    assert_eq!(log, ["authorize", "capture"]);
    assert_eq!(shop.balances().await["provider_clearing"], 250);
}

#[tokio::test]
async fn capture_and_reversal_at_once_leave_no_money_behind() {
    let shop = shop().await;
    for _ in 0..10 {
        let request = shop.good_request(100).await;
        let payment_id = request.payment_id;
        shop.authorize(&request).await;
        let capture = shop.client.send(Capture { payment_id }).into_future();
        let reverse = shop
            .client
            .send(Reverse {
                payment_id,
                reason: String::new(),
            })
            .into_future();
        let (_, reversed) = tokio::join!(capture, reverse);
        assert!(matches!(
            reversed,
            Ok(Reversal::Voided | Reversal::Refunded)
        ));
        let state = shop.get(payment_id).await.state;
        assert!(matches!(
            state,
            PaymentState::Voided | PaymentState::Refunded
        ));
    }
    assert_eq!(
        shop.balances()
            .await
            .get("provider_clearing")
            .copied()
            .unwrap_or(0),
        0
    );
}

#[tokio::test]
async fn a_lost_answer_is_pending_and_asked_for_again() {
    let (shop, provider) = lossy_shop().await;
    let request = shop.good_request(400).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Pending);
    assert_eq!(
        shop.get(request.payment_id).await.state,
        PaymentState::Pending
    );
    provider.is_silent.store(false, Ordering::SeqCst);
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);

    provider.is_silent.store(true, Ordering::SeqCst);
    let error = shop.capture(request.payment_id).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unavailable));
    provider.is_silent.store(false, Ordering::SeqCst);
    let captured = shop.capture(request.payment_id).await.unwrap();
    assert_eq!(captured.captured, euro(400));
    assert_eq!(shop.balances().await["provider_clearing"], 400);
}

#[tokio::test]
async fn a_pending_payment_is_settled_without_being_asked() {
    let (shop, provider) = lossy_shop().await;
    let request = shop.good_request(400).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Pending);
    provider.is_silent.store(false, Ordering::SeqCst);
    until(async || shop.get(request.payment_id).await.state == PaymentState::Authorized).await;
}

#[tokio::test]
async fn a_pending_payment_is_undone_as_soon_as_the_provider_speaks() {
    let (mut shop, provider) = lossy_shop().await;
    let request = shop.good_request(400).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Pending);
    let error = shop.reverse(request.payment_id).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unavailable));
    provider.is_silent.store(false, Ordering::SeqCst);
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("reversed", false))
    );
    assert_eq!(shop.reverse(request.payment_id).await, Ok(Reversal::Voided));
    assert_eq!(shop.event().await, ("PaymentVoided", request.payment_id));
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn two_instances_charge_everybody_once() {
    let dir = tempfile::tempdir().unwrap();
    let pool = sqlite::open(dir.path().join("payment.db")).await.unwrap();
    let start = |deps| async { payment::start(deps).await.unwrap() };
    let mut shop = serve(pool, start, Vec::new()).await;
    let second = sqlite::open(dir.path().join("payment.db")).await.unwrap();
    shop.add_instance(&second).await;
    let method_id = Some(shop.add_card("4242424242424242").await.id);
    let requests: Vec<_> = (0..25).map(|_| shop.request(method_id, 100)).collect();
    // Each is asked for twice at the same time.
    let twice = requests.iter().chain(&requests);
    let asked = join_all(twice.clone().map(|request| shop.authorize(request))).await;
    assert!(
        asked
            .iter()
            .all(|answer| *answer == Authorization::Authorized)
    );
    let captured = join_all(twice.map(|request| shop.capture(request.payment_id))).await;
    assert!(captured.iter().all(Result::is_ok));
    assert_eq!(shop.balances().await["provider_clearing"], 2500);
}
