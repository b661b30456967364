use std::{collections::HashSet, time::Duration};

use contracts::{
    Actor, Currency, OrderId, PageRequest, ProductId, Reason, Role, Timestamp, UserId,
    order::{
        GetHistory, GetOrder, ImportOrders, ImportedLine, ImportedOrder, LineState, ListOrders,
        OrderStatus, PaymentStatus,
    },
};
use nestling::Code;

use crate::shop::{Shop, actor, ada, reason};

fn manager() -> Actor {
    actor(UserId::derive("max"), Role::Manager)
}

fn past(number: u32, user: &Actor) -> ImportedOrder {
    let line = |sku: &str, returned| ImportedLine {
        product_id: ProductId::derive(sku),
        sku: sku.to_owned(),
        name: sku.to_owned(),
        qty: 2,
        unit_net: 250,
        returned,
    };
    ImportedOrder {
        number: format!("5{number:05}"),
        user_id: user.user_id,
        // Several at one time, so that pages have to break ties.
        placed_at: Timestamp::from_millis(1_300_000_000_000)
            .plus(Duration::from_secs(u64::from(number / 3) * 3600)),
        currency: Currency::GBP,
        lines: vec![line("kept", 0), line("half", 1), line("back", 2)],
    }
}

#[tokio::test]
async fn orders_of_the_past_are_imported_once() {
    let shop = Shop::open().await;
    let request = ImportOrders {
        orders: (0..3).map(|number| past(number, &ada())).collect(),
    };
    assert_eq!(
        reason(&shop.send(&ada(), request.clone()).await.unwrap_err()),
        Reason::Forbidden
    );
    let done = shop.send(&manager(), request.clone()).await.unwrap();
    assert_eq!((done.added, done.known), (3, 0));
    let mut more = request;
    more.orders.push(past(3, &ada()));
    let done = shop.send(&manager(), more).await.unwrap();
    assert_eq!((done.added, done.known), (1, 3));

    let order = shop.view(OrderId::derive("500000")).await;
    assert_eq!(
        (order.status, order.payment),
        (OrderStatus::Completed, PaymentStatus::Captured)
    );
    assert_eq!(
        (order.number.as_str(), order.totals.gross.amount),
        ("500000", 1500)
    );
    assert_eq!(order.placed_at, past(0, &ada()).placed_at);
    let states: Vec<_> = order.lines.iter().map(|line| line.state).collect();
    assert_eq!(
        states,
        [
            LineState::Delivered,
            LineState::Delivered,
            LineState::Returned
        ]
    );
    assert!(!order.can_cancel);
    assert_eq!(
        shop.events(order.id, "order.imported").await,
        ["order.imported"]
    );

    let mut bad = past(9, &ada());
    bad.lines[0].returned = 3;
    let error = shop
        .send(&manager(), ImportOrders { orders: vec![bad] })
        .await
        .unwrap_err();
    assert_eq!(reason(&error), Reason::Validation);
}

#[tokio::test]
async fn following_the_cursors_shows_every_order_once() {
    let shop = Shop::open().await;
    let eve = actor(UserId::derive("eve"), Role::Customer);
    let mut orders: Vec<_> = (0..20).map(|number| past(number, &ada())).collect();
    orders.extend((20..25).map(|number| past(number, &eve)));
    shop.send(&manager(), ImportOrders { orders })
        .await
        .unwrap();

    for (reader, expected) in [(ada(), 20), (eve.clone(), 5), (manager(), 25)] {
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = PageRequest {
                limit: 4,
                cursor: cursor.take(),
            };
            let page = shop
                .send(
                    &reader,
                    ListOrders {
                        page,
                        ..ListOrders::default()
                    },
                )
                .await
                .unwrap();
            seen.extend(
                page.items
                    .into_iter()
                    .map(|order| (order.placed_at, order.id)),
            );
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), expected);
        assert!(seen.is_sorted_by(|one, next| one > next));
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), expected);
    }

    let list = |request| async { shop.send(&ada(), request).await };
    let theirs = ListOrders {
        user_id: Some(eve.user_id),
        ..ListOrders::default()
    };
    assert_eq!(reason(&list(theirs).await.unwrap_err()), Reason::Forbidden);
    for (limit, cursor) in [
        (0, None),
        (101, None),
        (5, Some("nonsense")),
        (5, Some("1.ord_1.0")),
    ] {
        let page = PageRequest {
            limit,
            cursor: cursor.map(str::to_owned),
        };
        let error = list(ListOrders {
            page,
            ..ListOrders::default()
        })
        .await
        .unwrap_err();
        assert_eq!(reason(&error), Reason::Validation);
    }
    let (from, to) = (Some(past(3, &eve).placed_at), Some(past(9, &eve).placed_at));
    let within = ListOrders {
        from,
        to,
        ..ListOrders::default()
    };
    assert_eq!(list(within).await.unwrap().items.len(), 6);
    let status = Some(OrderStatus::Placed);
    let placed = ListOrders {
        status,
        ..ListOrders::default()
    };
    assert_eq!(list(placed).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn an_order_is_shown_to_its_buyer_and_to_staff() {
    let shop = Shop::open().await;
    let order = shop.simple_order().await;
    let order_id = order.id;
    shop.until_status(order_id, OrderStatus::Confirmed).await;
    let eve = actor(UserId::derive("eve"), Role::Customer);
    let get = GetOrder { order_id };
    let history = GetHistory {
        order_id,
        after_version: 2,
    };
    assert_eq!(
        reason(&shop.send(&eve, get.clone()).await.unwrap_err()),
        Reason::Forbidden
    );
    assert_eq!(
        reason(&shop.send(&eve, history.clone()).await.unwrap_err()),
        Reason::Forbidden
    );
    assert_eq!(
        shop.client.send(get.clone()).await.unwrap_err().code,
        Code::Unauthenticated
    );
    assert!(shop.send(&manager(), get).await.is_ok());
    let unknown = GetOrder {
        order_id: OrderId::new(),
    };
    assert_eq!(
        reason(&shop.send(&ada(), unknown).await.unwrap_err()),
        Reason::NotFound
    );

    let history = shop.send(&ada(), history).await.unwrap();
    assert_eq!(
        history
            .iter()
            .map(|entry| entry.version)
            .collect::<Vec<_>>(),
        [3, 4]
    );
    let all = GetHistory {
        order_id,
        after_version: 0,
    };
    let all = shop.send(&ada(), all).await.unwrap();
    assert_eq!((all[0].actor, all[1].actor), (Some(ada().user_id), None));
    assert!(all[0].summary.contains(&order.number));

    let health = shop
        .client
        .send(contracts::order::svc::GetHealth {})
        .await
        .unwrap();
    assert!(health.ready);
}
