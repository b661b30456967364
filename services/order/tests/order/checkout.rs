use std::{sync::Arc, time::Duration};

use contracts::{
    MethodId, OrderId, QuoteId, Reason, UserId,
    order::{OrderStatus, OrderView, Owner, PaymentStatus, PutCartLine, Quote, QuoteCart},
    product::Fulfilment,
};
use nestling::{RpcError, header};
use tokio::task::JoinSet;

use crate::{
    peers::good_card,
    shop::{Shop, actor, ada, reason, wait_until},
};

async fn place(shop: &Shop, key: &str, quote: &Quote) -> Result<OrderView, RpcError> {
    shop.send_keyed(&ada(), key, Shop::place_request(&ada(), quote, good_card()))
        .await
}

#[tokio::test]
async fn from_the_cart_to_the_confirmed_order() {
    let shop = Shop::open().await;
    let (lamp, vase) = (shop.add_product("lamp", 5), shop.add_product("vase", 5));
    shop.put(&ada(), lamp, 2).await;
    let quote = shop.quote(&ada()).await;
    assert!(quote.needs_address);
    assert_eq!(quote.shipping_option.as_deref(), Some("standard"));
    let totals = quote.totals;
    let sums = [
        totals.items_net,
        totals.shipping_net,
        totals.tax,
        totals.gross,
    ];
    assert_eq!(sums.map(|money| money.amount), [2000, 490, 380 + 93, 2963]);

    let placed = place(&shop, "key", &quote).await.unwrap();
    assert_eq!(
        (placed.status, placed.payment),
        (OrderStatus::Placed, PaymentStatus::None)
    );
    assert_eq!(
        (placed.version, placed.attempts, placed.can_cancel),
        (1, 0, true)
    );
    // What is put in meanwhile stays.
    shop.put(&ada(), vase, 1).await;

    let order = shop.until_status(placed.id, OrderStatus::Confirmed).await;
    assert_eq!(
        (order.payment, order.attempts),
        (PaymentStatus::Authorized, 1)
    );
    assert_eq!(
        order.payment_id,
        Some(contracts::payment::payment_id(order.id, 1))
    );
    assert!(order.number.starts_with("N-") && order.can_cancel);
    let kinds = shop.kinds(order.id).await;
    assert_eq!(
        kinds,
        [
            "placed",
            "awaiting_payment",
            "payment_requested",
            "confirmed"
        ]
    );
    let events = shop.events(order.id, "order.confirmed").await;
    assert_eq!(
        events,
        ["order.placed", "order.awaiting_payment", "order.confirmed"]
    );
    assert_eq!((shop.peers.available(lamp), shop.peers.promises()), (3, 1));
    let cart = shop.cart(&ada()).await;
    assert_eq!(
        cart.lines
            .iter()
            .map(|line| line.product_id)
            .collect::<Vec<_>>(),
        [vase]
    );
}

#[tokio::test]
async fn twenty_requests_with_one_key_are_one_order() {
    let shop = Arc::new(Shop::open().await);
    let lamp = shop.add_product("lamp", 50);
    shop.put(&ada(), lamp, 1).await;
    let quote = shop.quote(&ada()).await;
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (shop, quote) = (Arc::clone(&shop), quote.clone());
        tasks.spawn(async move { place(&shop, "key", &quote).await.unwrap() });
    }
    let replies = tasks.join_all().await;
    assert!(
        replies.iter().all(|reply| reply == &replies[0]),
        "{replies:#?}"
    );
    shop.until_status(replies[0].id, OrderStatus::Confirmed)
        .await;
    assert_eq!((shop.peers.available(lamp), shop.peers.promises()), (49, 1));

    // The first answer, even when the quote is long gone.
    shop.advance(Duration::from_secs(3600));
    assert_eq!(place(&shop, "key", &quote).await.unwrap(), replies[0]);
    let mut other = Shop::place_request(&ada(), &quote, good_card());
    other.email = "other@example.org".to_owned();
    let error = shop.send_keyed(&ada(), "key", other).await.unwrap_err();
    assert_eq!(reason(&error), Reason::IdempotencyKeyReused);
}

#[tokio::test]
async fn an_order_needs_a_key_a_quote_of_its_user_and_an_address() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    shop.put(&ada(), lamp, 1).await;
    let quote = shop.quote(&ada()).await;
    let request = Shop::place_request(&ada(), &quote, good_card());

    let error = shop.send(&ada(), request.clone()).await.unwrap_err();
    assert_eq!(reason(&error), Reason::IdempotencyKeyMissing);
    let call = shop
        .client
        .send(request.clone())
        .header(header::IDEMPOTENCY_KEY, "k");
    assert_eq!(reason(&call.await.unwrap_err()), Reason::Unauthenticated);

    let eve = actor(UserId::derive("eve"), contracts::Role::Customer);
    let error = shop
        .send_keyed(&eve, "k", request.clone())
        .await
        .unwrap_err();
    assert_eq!(reason(&error), Reason::Forbidden);
    let mut stolen = request.clone();
    stolen.user_id = eve.user_id;
    let error = shop.send_keyed(&eve, "k", stolen).await.unwrap_err();
    assert_eq!(reason(&error), Reason::NotFound);
    let mut unknown = request.clone();
    unknown.quote_id = QuoteId::new();
    let error = shop.send_keyed(&ada(), "k", unknown).await.unwrap_err();
    assert_eq!(reason(&error), Reason::NotFound);

    let mut homeless = request.clone();
    (homeless.address, homeless.email) = (None, "nowhere".to_owned());
    let error = shop.send_keyed(&ada(), "k", homeless).await.unwrap_err();
    assert_eq!(reason(&error), Reason::Validation);
    assert_eq!(
        error.details.unwrap()["errors"].as_array().unwrap().len(),
        2
    );
    let mut pigeon = request.clone();
    pigeon.shipping_option = Some("pigeon".to_owned());
    let error = shop.send_keyed(&ada(), "k", pigeon).await.unwrap_err();
    assert_eq!(reason(&error), Reason::Validation);

    let mut express = request;
    express.shipping_option = Some("express".to_owned());
    let order = shop.send_keyed(&ada(), "express", express).await.unwrap();
    assert_eq!(order.totals.shipping_net.amount, 990);

    shop.advance(Duration::from_secs(601));
    assert_eq!(
        reason(&place(&shop, "late", &quote).await.unwrap_err()),
        Reason::NotFound
    );
}

#[tokio::test]
async fn other_prices_refuse_the_order_and_offer_another_quote() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    shop.put(&ada(), lamp, 1).await;
    let quote = shop.quote(&ada()).await;
    shop.peers
        .add_product("lamp", 1200, 5, Fulfilment::Physical);
    let error = place(&shop, "key", &quote).await.unwrap_err();
    assert_eq!(reason(&error), Reason::PriceChanged);
    let offered = error.details.unwrap()["quote"].take();
    let offered: Quote = serde_json::from_value(offered).unwrap();
    assert_eq!(offered.totals.items_net.amount, 1200);
    // The key was not used up by a refusal.
    let order = place(&shop, "key", &offered).await.unwrap();
    assert_eq!(order.totals, offered.totals);

    shop.peers.remove_product(lamp);
    assert_eq!(
        reason(&place(&shop, "other", &offered).await.unwrap_err()),
        Reason::NotFound
    );
}

#[tokio::test]
async fn a_digital_order_of_a_visitor_is_not_shipped() {
    let shop = Shop::open().await;
    let song = shop
        .peers
        .add_product("song", 99, 1000, Fulfilment::Digital);
    let owner = Owner::Anon("token".to_owned());
    let quote = || {
        let owner = owner.clone();
        shop.client.send(QuoteCart {
            owner,
            ship_to: None,
            shipping_option: None,
        })
    };
    assert_eq!(reason(&quote().await.unwrap_err()), Reason::StateConflict);
    let put = PutCartLine {
        owner: owner.clone(),
        product_id: song,
        qty: 3,
    };
    shop.client.send(put).await.unwrap();
    let quote = quote().await.unwrap();
    assert!(!quote.needs_address && quote.options.is_empty());
    assert_eq!(quote.totals.shipping_net.amount, 0);

    // The visitor signs in and buys what was put in before.
    let mut request = Shop::place_request(&ada(), &quote, good_card());
    request.address = None;
    let order = shop.send_keyed(&ada(), "key", request).await.unwrap();
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    let cart = contracts::order::GetCart { owner };
    assert_eq!(shop.client.send(cart).await.unwrap().lines, []);
}

#[tokio::test]
async fn many_buyers_of_few_things_get_exactly_those() {
    let shop = Arc::new(Shop::open().await);
    let lamp = shop.add_product("lamp", 10);
    let mut tasks = JoinSet::new();
    for number in 0..40 {
        let shop = Arc::clone(&shop);
        tasks.spawn(async move {
            let user = actor(
                UserId::derive(&number.to_string()),
                contracts::Role::Customer,
            );
            shop.put(&user, lamp, 1).await;
            let quote = shop.quote(&user).await;
            let request = Shop::place_request(&user, &quote, MethodId::derive("any"));
            shop.send_keyed(&user, "key", request).await.unwrap().id
        });
    }
    let ids: Vec<OrderId> = tasks.join_all().await;
    let sam = actor(UserId::derive("sam"), contracts::Role::Support);
    let mut statuses = Vec::new();
    wait_until(async || {
        statuses.clear();
        for order_id in &ids {
            let request = contracts::order::GetOrder {
                order_id: *order_id,
            };
            statuses.push(shop.send(&sam, request).await.unwrap().status);
        }
        statuses.iter().all(|status| status.is_settled())
    })
    .await;
    let confirmed = statuses
        .iter()
        .filter(|status| **status == OrderStatus::Confirmed)
        .count();
    assert_eq!(
        (
            confirmed,
            shop.peers.available(lamp),
            shop.peers.open_payments()
        ),
        (10, 0, 10)
    );
}
