//! The recommendation service over the memory transport.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::time::Duration;

use contracts::{
    Currency, Meta, Money, OrderId, ProductId, Reason, TaxRate, Timestamp, UserId,
    order::{
        FulfilmentStatus, LineState, OrderCancelled, OrderConfirmed, OrderImported, OrderLine,
        OrderStatus, OrderView, PaymentStatus, Totals,
    },
    payment::payment_id,
    product::Fulfilment,
    recommendation::{RecommendForProduct, Recommendations},
};
use nestling::{Client, RpcError, Running, Server, header, sqlite, transport::Memory};

struct Shop {
    client: Client,
    _server: Running,
    _background: nestling::transport::Task,
}

async fn serve(pool: sqlx::SqlitePool) -> Shop {
    let memory = Memory::new();
    let client = Client::connect(&memory).await.unwrap();
    let app = recommendation::start(recommendation::Deps { pool })
        .await
        .unwrap();
    let server = Server::new("recommendation", app.router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    Shop {
        client,
        _server: server,
        _background: app.background,
    }
}

async fn shop() -> Shop {
    serve(sqlite::open_in_memory().await.unwrap()).await
}

fn products<const N: usize>() -> [ProductId; N] {
    std::array::from_fn(|_| ProductId::new())
}

fn imported(product_ids: &[ProductId]) -> OrderImported {
    let at = Timestamp::now();
    let meta = Meta { at, version: 1 };
    let (order_id, user_id) = (OrderId::new(), UserId::new());
    OrderImported {
        order_id,
        user_id,
        product_ids: product_ids.to_vec(),
        placed_at: at,
        meta,
    }
}

fn lines(products: &[ProductId]) -> Vec<OrderLine> {
    let zero = Money::zero(Currency::EUR);
    let line = |(line_id, product_id): (u32, &ProductId)| OrderLine {
        line_id,
        product_id: *product_id,
        sku: String::new(),
        name: String::new(),
        fulfilment: Fulfilment::Physical,
        qty: 1,
        unit_net: zero,
        net: zero,
        tax_rate: TaxRate(0),
        tax: zero,
        state: LineState::Pending,
    };
    (1..).zip(products).map(line).collect()
}

fn confirmed(order_id: OrderId, products: &[ProductId]) -> OrderConfirmed {
    let zero = Money::zero(Currency::EUR);
    let order = OrderView {
        id: order_id,
        number: String::new(),
        user_id: UserId::new(),
        email: String::new(),
        status: OrderStatus::Confirmed,
        payment: PaymentStatus::Authorized,
        fulfilment: FulfilmentStatus::Pending,
        reason: None,
        short: Vec::new(),
        lines: lines(products),
        totals: Totals {
            items_net: zero,
            shipping_net: zero,
            tax: zero,
            gross: zero,
        },
        address: None,
        payment_id: None,
        attempts: 1,
        can_cancel: true,
        version: 3,
        placed_at: Timestamp::now(),
    };
    let meta = Meta {
        at: Timestamp::now(),
        version: 3,
    };
    OrderConfirmed {
        order_id,
        order,
        payment_id: payment_id(order_id, 1),
        meta,
    }
}

fn cancelled(order_id: OrderId, products: &[ProductId], was_confirmed: bool) -> OrderCancelled {
    let meta = Meta {
        at: Timestamp::now(),
        version: 5,
    };
    let (lines, reason) = (lines(products), "changed my mind".to_owned());
    OrderCancelled {
        order_id,
        user_id: UserId::new(),
        reason,
        lines,
        was_confirmed,
        meta,
    }
}

impl Shop {
    async fn ask(&self, product_id: ProductId, limit: u32) -> Result<Recommendations, RpcError> {
        self.client
            .send(RecommendForProduct { product_id, limit })
            .await
    }

    /// The answer, as soon as it is one that `is_good`.
    async fn until(
        &self,
        product_id: ProductId,
        is_good: impl Fn(&Recommendations) -> bool,
    ) -> Recommendations {
        let asking = async {
            loop {
                let answer = self.ask(product_id, 10).await.unwrap();
                if is_good(&answer) {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asking)
            .await
            .expect("an answer in time")
    }
}

fn ids(answer: &Recommendations) -> Vec<ProductId> {
    answer.items.iter().map(|item| item.product_id).collect()
}

#[tokio::test]
async fn what_was_bought_together_is_recommended_together() {
    let shop = shop().await;
    let [tea, pot, cup, lamp] = products();
    let empty = shop.ask(tea, 10).await.unwrap();
    assert_eq!((empty.items.len(), empty.strategy.as_str()), (0, "popular"));

    for basket in [&[tea, pot][..], &[tea, pot, cup], &[lamp]] {
        shop.client.emit(imported(basket)).await.unwrap();
    }
    let answer = shop.until(tea, |answer| answer.model_version == 3).await;
    assert_eq!(
        (ids(&answer), answer.strategy.as_str()),
        (vec![pot, cup], "together")
    );
    assert!(answer.items[0].score > answer.items[1].score);
    assert!(answer.items.iter().all(|item| item.because == [tea]));
    assert_eq!(shop.ask(tea, 1).await.unwrap().items.len(), 1);

    let unknown = shop.ask(ProductId::new(), 2).await.unwrap();
    assert_eq!(unknown.strategy, "popular");
    assert!(
        unknown
            .items
            .iter()
            .all(|item| [tea, pot].contains(&item.product_id))
    );
    // Never bought with anything: popular things, but not itself.
    let alone = shop.ask(lamp, 10).await.unwrap();
    assert_eq!(alone.strategy, "popular");
    assert!(!ids(&alone).contains(&lamp));
}

#[tokio::test]
async fn orders_count_once_and_cancelled_ones_not_at_all() {
    let shop = shop().await;
    let [tea, pot, cup] = products();
    let order = OrderId::new();
    for _ in 0..3 {
        let event = confirmed(order, &[tea, pot]);
        shop.client
            .emit(event)
            .header(header::EVENT_ID, "event-1")
            .await
            .unwrap();
    }
    let other = OrderId::new();
    shop.client
        .emit(confirmed(other, &[tea, cup]))
        .await
        .unwrap();
    let answer = shop.until(tea, |answer| answer.items.len() == 2).await;
    assert_eq!(
        (answer.model_version, answer.items[0].score),
        (2, answer.items[1].score)
    );

    shop.client
        .emit(cancelled(order, &[tea, pot], true))
        .await
        .unwrap();
    let answer = shop.until(tea, |answer| answer.items.len() == 1).await;
    assert_eq!(ids(&answer), [cup]);

    // A cancellation before confirmation subtracts nothing; one that overtakes it keeps it out.
    shop.client
        .emit(cancelled(OrderId::new(), &[tea, cup], false))
        .await
        .unwrap();
    let early = OrderId::new();
    shop.client
        .emit(cancelled(early, &[tea, pot], true))
        .await
        .unwrap();
    shop.client
        .emit(confirmed(early, &[tea, pot]))
        .await
        .unwrap();
    shop.client.emit(imported(&[cup, pot])).await.unwrap();
    let answer = shop.until(cup, |answer| answer.items.len() == 2).await;
    assert_eq!(answer.model_version, 4);
    assert_eq!(ids(&shop.ask(tea, 10).await.unwrap()), [cup]);
}

#[tokio::test]
async fn a_restart_remembers_what_was_learned() {
    let pool = sqlite::open_in_memory().await.unwrap();
    let [tea, pot, cup] = products();
    let shop = serve(pool.clone()).await;
    let order = OrderId::new();
    shop.client
        .emit(confirmed(order, &[tea, cup]))
        .await
        .unwrap();
    shop.client.emit(imported(&[tea, pot])).await.unwrap();
    shop.client
        .emit(cancelled(order, &[tea, cup], true))
        .await
        .unwrap();
    let before = shop.until(tea, |answer| answer.model_version == 3).await;
    drop(shop);
    let after = serve(pool)
        .await
        .until(tea, |answer| !answer.items.is_empty())
        .await;
    assert_eq!(after, before);
    assert_eq!(ids(&after), [pot]);
}

#[tokio::test]
async fn a_limit_is_1_to_50() {
    let shop = shop().await;
    for limit in [0, 51, u32::MAX] {
        let error = shop.ask(ProductId::new(), limit).await.unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Validation));
    }
}
