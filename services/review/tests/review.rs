//! The review service over the memory transport.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::time::Duration;

use contracts::{
    Actor, Currency, Meta, Money, OrderId, PageRequest, ProductId, Reason, Role, SessionId,
    TaxRate, Timestamp, UserId,
    order::{
        FulfilmentStatus, LineState, OrderConfirmed, OrderImported, OrderLine, OrderStatus,
        OrderView, PaymentStatus, Totals,
    },
    payment::payment_id,
    product::Fulfilment,
    review::*,
};
use nestling::{Client, Router, RpcError, Running, Server, header, sqlite, transport::Memory};
use tokio::sync::mpsc;

struct Shop {
    client: Client,
    published: mpsc::Receiver<ReviewPublished>,
    _servers: [Running; 2],
    _background: sqlite::Relay,
}

async fn shop() -> Shop {
    let memory = Memory::new();
    let pool = sqlite::open_in_memory().await.unwrap();
    let client = Client::connect(&memory).await.unwrap();
    let app = review::start(review::Deps {
        pool,
        bus: client.clone(),
    })
    .await
    .unwrap();
    let server = Server::new("review", app.router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let (seen, published) = mpsc::channel(64);
    let listener = Router::new().event(move |event: ReviewPublished| {
        let seen = seen.clone();
        async move {
            seen.send(event)
                .await
                .map_err(|_| RpcError::unavailable("test over"))
        }
    });
    let listener = Server::new("listener", listener)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    Shop {
        client,
        published,
        _servers: [server, listener],
        _background: app.background,
    }
}

fn actor(user_id: UserId) -> String {
    Actor {
        user_id,
        roles: vec![Role::Customer],
        session: SessionId::new(),
    }
    .to_header()
}

fn draft(product_id: ProductId, rating: u8) -> CreateReview {
    CreateReview {
        product_id,
        rating,
        title: " Good ".to_owned(),
        body: String::new(),
    }
}

fn imported(user_id: UserId, product_ids: Vec<ProductId>) -> OrderImported {
    let at = Timestamp::now();
    let meta = Meta { at, version: 1 };
    OrderImported {
        order_id: OrderId::new(),
        user_id,
        product_ids,
        placed_at: at,
        meta,
    }
}

fn confirmed(user_id: UserId, product_id: ProductId) -> OrderConfirmed {
    let zero = Money::zero(Currency::EUR);
    let order_id = OrderId::new();
    let line = OrderLine {
        line_id: 1,
        product_id,
        sku: String::new(),
        name: String::new(),
        fulfilment: Fulfilment::Digital,
        qty: 1,
        unit_net: zero,
        net: zero,
        tax_rate: TaxRate(0),
        tax: zero,
        state: LineState::Pending,
    };
    let order = OrderView {
        id: order_id,
        number: String::new(),
        user_id,
        email: String::new(),
        status: OrderStatus::Confirmed,
        payment: PaymentStatus::Authorized,
        fulfilment: FulfilmentStatus::Pending,
        reason: None,
        short: Vec::new(),
        lines: vec![line],
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

impl Shop {
    async fn create(&self, user: UserId, draft: CreateReview) -> Result<Review, RpcError> {
        self.client
            .send(draft)
            .header(header::ACTOR, actor(user))
            .await
    }

    async fn summary(&self, product_id: ProductId) -> RatingSummary {
        let request = SummarizeReviews {
            product_ids: vec![product_id],
        };
        self.client.send(request).await.unwrap().remove(0)
    }

    async fn page(&self, request: &ListReviews) -> contracts::Page<Review> {
        self.client.send(request.clone()).await.unwrap()
    }
}

fn list(product_id: ProductId, sort: ReviewSort) -> ListReviews {
    ListReviews {
        product_id,
        sort,
        rating: None,
        verified: None,
        page: PageRequest::default(),
    }
}

#[tokio::test]
async fn a_review_is_published_with_the_products_ratings() {
    let mut shop = shop().await;
    let product = ProductId::new();
    let review = shop.create(UserId::new(), draft(product, 5)).await.unwrap();
    assert_eq!(
        (review.title.as_str(), review.verified, review.version),
        ("Good", false, 1)
    );
    let event = shop.published.recv().await.unwrap();
    assert_eq!((event.product_id, &event.review), (product, &review));
    assert_eq!(event.summary, shop.summary(product).await);

    shop.create(UserId::new(), draft(product, 2)).await.unwrap();
    let other = ProductId::new();
    shop.create(UserId::new(), draft(other, 1)).await.unwrap();
    let request = SummarizeReviews {
        product_ids: vec![ProductId::new(), product],
    };
    let summaries = shop.client.send(request).await.unwrap();
    // The shop's mean is 8 / 3.
    assert_eq!(
        (summaries[0].count, summaries[0].mean, summaries[0].bayes),
        (0, 0, 267)
    );
    assert_eq!(
        (summaries[1].count, summaries[1].mean, summaries[1].bayes),
        (2, 350, 281)
    );
    assert_eq!(summaries[1].histogram, [0, 1, 0, 0, 1]);
}

#[tokio::test]
async fn everybody_reviews_a_product_once_even_at_the_same_time() {
    let shop = shop().await;
    let (product, user) = (ProductId::new(), UserId::new());
    let header = actor(user);
    let calls = (0..10).map(|_| {
        let call = shop
            .client
            .send(draft(product, 4))
            .header(header::ACTOR, header.clone());
        call.into_future()
    });
    let results = futures_util::future::join_all(calls).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let refused = results.iter().filter_map(|result| result.as_ref().err());
    assert!(
        refused
            .clone()
            .all(|e| Reason::of(e) == Some(Reason::AlreadyReviewed))
    );
    assert_eq!(shop.summary(product).await.count, 1);
}

#[tokio::test]
async fn a_review_needs_an_author_and_stars() {
    let shop = shop().await;
    let product = ProductId::new();
    let error = shop.client.send(draft(product, 3)).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unauthenticated));
    for rating in [0, 6] {
        let error = shop
            .create(UserId::new(), draft(product, rating))
            .await
            .unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Validation));
    }
    let product_ids = vec![product; 101];
    let error = shop
        .client
        .send(SummarizeReviews { product_ids })
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Validation));
}

#[tokio::test]
async fn buyers_are_verified_whenever_their_order_is_heard_of() {
    let shop = shop().await;
    let [first, second, third] = [(); 3].map(|()| ProductId::new());
    let user = UserId::new();
    shop.create(user, draft(first, 5)).await.unwrap();
    for _ in 0..2 {
        let event = imported(user, vec![first, second]);
        shop.client
            .emit(event)
            .header(header::EVENT_ID, "event-1")
            .await
            .unwrap();
    }
    shop.client.emit(confirmed(user, third)).await.unwrap();
    let mut request = list(first, ReviewSort::Newest);
    request.verified = Some(true);
    let verified = async {
        while shop.page(&request).await.items.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), verified)
        .await
        .unwrap();
    assert_eq!(shop.page(&request).await.items[0].version, 2);
    assert!(shop.create(user, draft(second, 5)).await.unwrap().verified);
    // Its own event may still be under way; a stranger's review is unverified for ever.
    assert!(
        !shop
            .create(UserId::new(), draft(third, 5))
            .await
            .unwrap()
            .verified
    );
    let bought = async {
        while !shop
            .client
            .send(list(third, ReviewSort::Newest))
            .await
            .unwrap()
            .items[0]
            .verified
        {
            let another = shop.create(user, draft(third, 5)).await;
            if let Err(error) = another {
                assert_eq!(Reason::of(&error), Some(Reason::AlreadyReviewed));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), bought)
        .await
        .unwrap();
}

#[tokio::test]
async fn pages_show_every_review_once_in_order_while_more_are_written() {
    let shop = shop().await;
    let product = ProductId::new();
    let mut written = Vec::new();
    for number in 0..23_u8 {
        let review = shop
            .create(UserId::new(), draft(product, number % 5 + 1))
            .await
            .unwrap();
        written.push(review.id);
    }
    for sort in [
        ReviewSort::Newest,
        ReviewSort::High,
        ReviewSort::Low,
        ReviewSort::Helpful,
    ] {
        let mut request = list(product, sort);
        request.page.limit = 5;
        let mut seen: Vec<Review> = Vec::new();
        loop {
            let page = shop.page(&request).await;
            seen.extend(page.items);
            let Some(cursor) = page.next_cursor else {
                break;
            };
            request.page.cursor = Some(cursor);
            shop.create(UserId::new(), draft(ProductId::new(), 3))
                .await
                .unwrap();
        }
        let mut ids: Vec<_> = seen.iter().map(|review| review.id).collect();
        match sort {
            ReviewSort::High => assert!(seen.is_sorted_by_key(|review| 5 - review.rating)),
            ReviewSort::Low => assert!(seen.is_sorted_by_key(|review| review.rating)),
            ReviewSort::Newest | ReviewSort::Helpful => {
                assert!(seen.is_sorted_by(|a, b| a.created_at >= b.created_at));
            }
        }
        ids.sort();
        let mut expected = written.clone();
        expected.sort();
        assert_eq!(ids, expected, "{sort:?}");
    }
    let mut request = list(product, ReviewSort::High);
    request.rating = Some(2);
    assert_eq!(shop.page(&request).await.items.len(), 5);
    request.page.cursor = Some("zz".to_owned());
    let error = shop.client.send(request).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Validation));
}
