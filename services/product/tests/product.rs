//! The product service over the memory transport.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use contracts::{
    Actor, Currency, Meta, Money, OrderId, PageRequest, ProductId, Reason, Role, SessionId,
    TaxRate, Timestamp, UserId,
    order::{FulfilmentStatus, OrderConfirmed, OrderStatus, OrderView, PaymentStatus, Totals},
    payment::payment_id,
    product::*,
};
use nestling::{
    Client, Message, RpcError, Running, Server, Single, header, sqlite, transport::Memory,
};

struct Shop {
    client: Client,
    pool: sqlx::SqlitePool,
    _server: Running,
    _app: (nestling::sqlite::Relay, nestling::transport::Task),
}

async fn shop() -> Shop {
    let memory = Memory::new();
    let pool = sqlite::open_in_memory().await.unwrap();
    let client = Client::connect(&memory).await.unwrap();
    let deps = product::Deps {
        pool: pool.clone(),
        bus: client.clone(),
    };
    let product::App { router, background } = product::start(deps).await.unwrap();
    let server = Server::new("product", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    Shop {
        client,
        pool,
        _server: server,
        _app: background,
    }
}

fn manager() -> String {
    let (user_id, session) = (UserId::new(), SessionId::new());
    Actor {
        user_id,
        roles: vec![Role::Manager],
        session,
    }
    .to_header()
}

impl Shop {
    async fn as_manager<M: Message<Shape = Single>>(
        &self,
        message: M,
    ) -> Result<M::Reply, RpcError> {
        self.client
            .send(message)
            .header(header::ACTOR, manager())
            .await
    }

    async fn add(&self, name: &str, net: i64, on_hand: u32) -> Product {
        let draft = draft(name, net);
        self.as_manager(CreateProduct { draft, on_hand })
            .await
            .unwrap()
    }

    async fn stock(&self, product: ProductId) -> Stock {
        self.client
            .send(GetStock {
                product_ids: vec![product],
            })
            .await
            .unwrap()[0]
    }

    async fn reserve(&self, order_id: OrderId, product_id: ProductId, qty: u32) -> Reservation {
        let lines = vec![Quantity { product_id, qty }];
        self.client
            .send(ReserveStock {
                order_id,
                lines,
                ttl_s: 60,
            })
            .await
            .unwrap()
    }

    /// Σ movements = on hand, Σ open reservations = reserved.
    async fn verify(&self) {
        let wrong: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM stock s WHERE on_hand <> (
                SELECT COALESCE(SUM(delta), 0) FROM stock_movements m WHERE m.product_id = s.product_id
             ) OR reserved <> (
                SELECT COALESCE(SUM(l.qty), 0) FROM reservation_lines l JOIN reservations r USING (order_id)
                WHERE l.product_id = s.product_id AND r.state = 'held'
             )",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(wrong, 0);
    }
}

fn draft(name: &str, net: i64) -> ProductDraft {
    ProductDraft {
        sku: name.to_uppercase(),
        name: name.to_owned(),
        description: format!("A very good {name}"),
        supplier: None,
        categories: Vec::new(),
        net: Money::new(net, Currency::EUR),
        tax: TaxRate(1900),
        fulfilment: Fulfilment::Physical,
        weight_g: 100,
        attributes: BTreeMap::new(),
        status: ProductStatus::Active,
    }
}

fn reason(error: &RpcError) -> Option<Reason> {
    Reason::of(error)
}

fn confirmed(order_id: OrderId) -> OrderConfirmed {
    let nothing = Money::zero(Currency::EUR);
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
        lines: Vec::new(),
        totals: Totals {
            items_net: nothing,
            shipping_net: nothing,
            tax: nothing,
            gross: nothing,
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

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let check = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), check)
        .await
        .expect("not in time");
}

#[tokio::test]
async fn pages_show_every_product_once_in_every_order() {
    let shop = shop().await;
    for number in 0..23 {
        shop.add(&format!("thing {number:02}"), 100 * (number % 5), 1)
            .await;
    }
    for sort in [
        ProductSort::Name,
        ProductSort::PriceAsc,
        ProductSort::PriceDesc,
        ProductSort::Newest,
    ] {
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = PageRequest { limit: 5, cursor };
            let page = shop
                .client
                .send(ListProducts {
                    sort,
                    page,
                    ..ListProducts::default()
                })
                .await
                .unwrap();
            seen.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 23, "{sort:?}");
        let is_sorted = seen.is_sorted_by(|one, other| match sort {
            ProductSort::Name => one.name <= other.name,
            ProductSort::PriceAsc => one.net.amount <= other.net.amount,
            ProductSort::PriceDesc => one.net.amount >= other.net.amount,
            ProductSort::Newest => true,
        });
        assert!(is_sorted, "{sort:?}");
    }
}

#[tokio::test]
async fn filters_and_search_find_what_they_say() {
    let shop = shop().await;
    let category = CreateCategory {
        name: "Mugs & Cups".to_owned(),
        parent: None,
    };
    let category = shop.as_manager(category).await.unwrap();
    assert_eq!(category.slug, "mugs-cups");
    let mut mug = draft("red mug", 500);
    mug.categories = vec![category.id];
    shop.as_manager(CreateProduct {
        draft: mug,
        on_hand: 0,
    })
    .await
    .unwrap();
    shop.add("blue plate", 900, 3).await;

    let find = async |request: ListProducts| {
        let page = shop.client.send(request).await.unwrap();
        page.items
            .into_iter()
            .map(|card| card.name)
            .collect::<Vec<_>>()
    };
    let all = ListProducts::default;
    assert_eq!(
        find(ListProducts {
            q: Some("mu".to_owned()),
            ..all()
        })
        .await,
        ["red mug"]
    );
    assert_eq!(
        find(ListProducts {
            category_id: Some(category.id),
            ..all()
        })
        .await,
        ["red mug"]
    );
    assert_eq!(
        find(ListProducts {
            in_stock: Some(true),
            ..all()
        })
        .await,
        ["blue plate"]
    );
    assert_eq!(
        find(ListProducts {
            price_max: Some(600),
            ..all()
        })
        .await,
        ["red mug"]
    );
    let hostile = ListProducts {
        q: Some("\" OR 1=1 --".to_owned()),
        ..all()
    };
    assert!(find(hostile).await.is_empty());
    assert_eq!(
        shop.client.send(ListCategories {}).await.unwrap()[0].products,
        1
    );
}

#[tokio::test]
async fn only_managers_write_and_a_stale_version_loses() {
    let shop = shop().await;
    let request = || CreateProduct {
        draft: draft("mug", 500),
        on_hand: 1,
    };
    let error = shop.client.send(request()).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::Unauthenticated));

    let product = shop.as_manager(request()).await.unwrap();
    assert_eq!(product.card.gross.amount, 595);
    let error = shop.as_manager(request()).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::StateConflict));

    let update = |expected_version| UpdateProduct {
        product_id: product.card.id,
        expected_version,
        draft: draft("mug", 600),
    };
    let mut hidden = draft("plate", 500);
    hidden.status = ProductStatus::Draft;
    let hidden = CreateProduct {
        draft: hidden,
        on_hand: 1,
    };
    let key = ProductKey::Id(shop.as_manager(hidden).await.unwrap().card.id);
    let look = || GetProduct { key: key.clone() };
    let error = shop.client.send(look()).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::NotFound));
    assert!(shop.as_manager(look()).await.is_ok());

    let changed = shop.as_manager(update(1)).await.unwrap();
    assert_eq!((changed.card.net.amount, changed.version), (600, 2));
    let error = shop.as_manager(update(1)).await.unwrap_err();
    assert_eq!(reason(&error), Some(Reason::VersionConflict));
    let by_slug = GetProduct {
        key: ProductKey::Slug("mug".to_owned()),
    };
    assert_eq!(shop.client.send(by_slug).await.unwrap(), changed);
}

#[tokio::test]
async fn fifty_buyers_of_ten_units_get_ten() {
    let shop = shop().await;
    let product = shop.add("mug", 500, 10).await.card.id;
    let mut buyers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let client = shop.client.clone();
        buyers.spawn(async move {
            let lines = vec![Quantity {
                product_id: product,
                qty: 1,
            }];
            client
                .send(ReserveStock {
                    order_id: OrderId::new(),
                    lines,
                    ttl_s: 60,
                })
                .await
                .unwrap()
        });
    }
    let results = buyers.join_all().await;
    let reserved = results
        .iter()
        .filter(|r| matches!(r, Reservation::Reserved { .. }))
        .count();
    assert_eq!(reserved, 10);
    assert_eq!(shop.stock(product).await.available, 0);
    shop.verify().await;
}

#[tokio::test]
async fn a_reservation_is_all_lines_or_none() {
    let shop = shop().await;
    let mug = shop.add("mug", 500, 5).await.card.id;
    let plate = shop.add("plate", 500, 1).await.card.id;
    let lines = vec![
        Quantity {
            product_id: mug,
            qty: 2,
        },
        Quantity {
            product_id: plate,
            qty: 2,
        },
    ];
    let request = ReserveStock {
        order_id: OrderId::new(),
        lines,
        ttl_s: 60,
    };
    let short = ShortLine {
        product_id: plate,
        requested: 2,
        available: 1,
    };
    assert_eq!(
        shop.client.send(request).await.unwrap(),
        Reservation::Short { lines: vec![short] }
    );
    assert_eq!(shop.stock(mug).await.reserved, 0);
    shop.verify().await;
}

#[tokio::test]
async fn repeating_a_reservation_holds_it_once_and_a_released_order_gets_none() {
    let shop = shop().await;
    let product = shop.add("mug", 500, 5).await.card.id;
    let order = OrderId::new();
    for _ in 0..3 {
        assert!(matches!(
            shop.reserve(order, product, 2).await,
            Reservation::Reserved { .. }
        ));
        assert_eq!(shop.stock(product).await.reserved, 2);
    }
    let release = || ReleaseStock {
        order_id: order,
        reason: "test".to_owned(),
    };
    assert_eq!(shop.client.send(release()).await.unwrap().released, 1);
    assert_eq!(shop.client.send(release()).await.unwrap().released, 0);
    assert_eq!(shop.reserve(order, product, 2).await, Reservation::Released);
    assert_eq!(shop.stock(product).await.available, 5);
    shop.verify().await;
}

#[tokio::test]
async fn a_confirmed_order_takes_its_goods_once_and_its_cancellation_puts_them_back() {
    let shop = shop().await;
    let product = shop.add("mug", 500, 5).await.card.id;
    let order = OrderId::new();
    shop.reserve(order, product, 2).await;
    for _ in 0..2 {
        shop.client
            .emit(confirmed(order))
            .header(header::EVENT_ID, "e1")
            .await
            .unwrap();
    }
    until(async || shop.stock(product).await.on_hand == 3).await;
    assert_eq!(shop.stock(product).await.reserved, 0);
    let release = ReleaseStock {
        order_id: order,
        reason: "cancelled".to_owned(),
    };
    assert_eq!(shop.client.send(release).await.unwrap().released, 1);
    assert_eq!(shop.stock(product).await.on_hand, 5);
    shop.verify().await;
}

#[tokio::test]
async fn a_reservation_that_is_not_used_is_freed() {
    let shop = shop().await;
    let product = shop.add("mug", 500, 5).await.card.id;
    let lines = vec![Quantity {
        product_id: product,
        qty: 5,
    }];
    let request = ReserveStock {
        order_id: OrderId::new(),
        lines,
        ttl_s: 0,
    };
    shop.client.send(request).await.unwrap();
    until(async || shop.stock(product).await.available == 5).await;
    shop.verify().await;
}

#[tokio::test]
async fn an_import_may_be_repeated() {
    let shop = shop().await;
    let products = || {
        vec![ImportedProduct {
            draft: draft("mug", 500),
            on_hand: 7,
        }]
    };
    let import = || ImportProducts {
        products: products(),
    };
    assert_eq!(
        shop.as_manager(import()).await.unwrap(),
        Imported { added: 1, known: 0 }
    );
    assert_eq!(
        shop.as_manager(import()).await.unwrap(),
        Imported { added: 0, known: 1 }
    );
    let id = ProductId::derive("MUG");
    assert_eq!(shop.stock(id).await.on_hand, 7);
    let lines = vec![
        Quantity {
            product_id: id,
            qty: 1,
        },
        Quantity {
            product_id: ProductId::new(),
            qty: 1,
        },
    ];
    let quoted = shop.client.send(QuoteLines { lines }).await.unwrap();
    assert_eq!((quoted.lines.len(), quoted.missing.len()), (1, 1));
    shop.verify().await;
}
