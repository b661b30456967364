//! Services that answer with a sample, or with what a test wants.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use contracts::{
    Actor, CategoryId, Currency, MethodId, Money, OrderId, Page, PaymentId, ProductId, QuoteId,
    Reason, ReviewId, Role, Secret, TaxRate, Timestamp, UserId,
    order::{
        CancelOrder, Cart, CartLine, ClearCart, FulfilmentStatus, GetCart, GetHistory, GetOrder,
        HistoryEntry, LineState, ListOrders, OrderLine, OrderStatus, OrderView, PayOrder,
        PaymentStatus, PlaceOrder, PutCartLine, Quote, QuoteCart, ShippingOption, Totals,
    },
    payment::{AddMethod, GetPayment, ListMethods, Payment, PaymentState},
    product::{
        Category, CreateCategory, CreateProduct, Fulfilment, GetProduct, ListCategories,
        ListProducts, Product, ProductCard, ProductStatus, QuoteLines, QuotedLine, QuotedLines,
        UpdateProduct,
    },
    recommendation::{RecommendForProduct, Recommendation, Recommendations},
    review::{CreateReview, ListReviews, RatingSummary, Review, SummarizeReviews},
    user::{GetKeys, GetUser, Keys, Login, Register, Tokens, UpdateUser, User},
};
use nestling::{Context, Router, RpcError};

use crate::shop::World;

fn euro(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

fn at() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000)
}

fn sample_user(id: UserId) -> User {
    User {
        id,
        email: "ada@example.org".to_owned(),
        name: "Ada".to_owned(),
        roles: vec![Role::Customer],
        locale: "en".to_owned(),
        verified: false,
        disabled: false,
        version: 3,
        created_at: at(),
    }
}

pub(crate) fn users(world: &Arc<World>) -> Router {
    let id = world.user;
    let registering = Arc::clone(world);
    let world = Arc::clone(world);
    Router::new()
        .message(move |request: Register| {
            registering.registrations.fetch_add(1, Ordering::Relaxed);
            async move {
                request.validate()?;
                if request.email == "stopping@example.org" {
                    return Err(RpcError::unavailable("the service stops"));
                }
                if request.email == "taken@example.org" {
                    return Err(Reason::EmailTaken.error("the address belongs to another account"));
                }
                Ok(User {
                    email: request.email,
                    ..sample_user(id)
                })
            }
        })
        .message(move |request: Login| async move {
            if request.password.expose() != "correct horse" {
                return Err(Reason::Unauthenticated.error("wrong"));
            }
            Ok(Tokens {
                access: Secret::new("token"),
                expires_in: 900,
                user: sample_user(id),
            })
        })
        .message(move |_: GetKeys| {
            world.keys_asked.fetch_add(1, Ordering::Relaxed);
            let public = world.signing.lock().unwrap().public.clone();
            async move { Ok::<_, RpcError>(Keys { keys: vec![public] }) }
        })
        .message(|request: GetUser, actor: Actor| async move {
            actor.require_own(request.user_id)?;
            Ok::<_, RpcError>(sample_user(request.user_id))
        })
        .message(|request: UpdateUser, _: Actor| async move {
            if request.expected_version != 3 {
                return Err(Reason::VersionConflict.error("changed in the meantime"));
            }
            Ok(User {
                version: 4,
                ..sample_user(request.user_id)
            })
        })
}

pub(crate) fn product_id() -> ProductId {
    ProductId::derive("lamp")
}

fn sample_product() -> Product {
    Product {
        card: ProductCard {
            id: product_id(),
            slug: "lamp".to_owned(),
            name: "Lamp".to_owned(),
            net: euro(1000),
            gross: euro(1190),
            available: 7,
            rating: None,
            reviews: 0,
            image: "/lamp.svg".to_owned(),
        },
        sku: "L1".to_owned(),
        description: String::new(),
        supplier: None,
        categories: vec![CategoryId::derive("light")],
        tax: TaxRate(1900),
        fulfilment: Fulfilment::Physical,
        weight_g: 100,
        attributes: BTreeMap::new(),
        status: ProductStatus::Active,
        on_hand: 9,
        reserved: 2,
        version: 1,
    }
}

fn sample_category() -> Category {
    Category {
        id: CategoryId::derive("light"),
        slug: "light".to_owned(),
        name: "Light".to_owned(),
        parent: None,
        products: 1,
        version: 1,
    }
}

pub(crate) fn products() -> Router {
    Router::new()
        .message(|request: ListProducts| async move {
            request.validate()?;
            Ok::<_, RpcError>(Page {
                items: vec![sample_product().card],
                next_cursor: None,
            })
        })
        .message(|request: GetProduct| async move {
            use contracts::product::ProductKey;
            match request.key {
                ProductKey::Id(id) if id == product_id() => Ok(sample_product()),
                ProductKey::Slug(slug) if slug == "lamp" => Ok(sample_product()),
                ProductKey::Slug(slug) if slug == "broken" => {
                    Err(RpcError::internal("a secret of the product service"))
                }
                _ => Err(Reason::NotFound.error("no such product")),
            }
        })
        .message(|_: ListCategories| async { Ok::<_, RpcError>(vec![sample_category()]) })
        .message(|request: CreateProduct, _: Actor| async move {
            let mut fields = contracts::Fields::new();
            request.draft.check(&mut fields, "/draft");
            fields.finish()?;
            Ok::<_, RpcError>(sample_product())
        })
        .message(|_: UpdateProduct, _: Actor| async { Ok::<_, RpcError>(sample_product()) })
        .message(|_: CreateCategory, _: Actor| async { Ok::<_, RpcError>(sample_category()) })
        .message(|request: QuoteLines| async move {
            let lines = request.lines.into_iter().map(|line| QuotedLine {
                product_id: line.product_id,
                sku: "L1".to_owned(),
                name: "Lamp".to_owned(),
                unit_net: euro(1000),
                tax: TaxRate(1900),
                available: u32::from(line.product_id != sold_out()),
                fulfilment: Fulfilment::Physical,
                weight_g: 100,
                image: "/lamp.svg".to_owned(),
            });
            Ok::<_, RpcError>(QuotedLines {
                lines: lines.collect(),
                missing: Vec::new(),
            })
        })
}

fn sold_out() -> ProductId {
    ProductId::derive("sold out")
}

pub(crate) fn recommendations() -> Router {
    Router::new().message(|request: RecommendForProduct| async move {
        let items = [sold_out(), ProductId::derive("bulb")].map(|product_id| Recommendation {
            product_id,
            score: 100,
            because: vec![request.product_id],
        });
        let strategy = "together".to_owned();
        Ok::<_, RpcError>(Recommendations {
            items: items.to_vec(),
            strategy,
            model_version: 1,
        })
    })
}

pub(crate) fn reviews(user_id: UserId) -> Router {
    let sample = move |product_id| Review {
        id: ReviewId::derive("one"),
        product_id,
        user_id,
        rating: 5,
        title: "Bright".to_owned(),
        body: String::new(),
        verified: true,
        helpful: 0,
        created_at: at(),
        version: 1,
    };
    Router::new()
        .message(move |request: ListReviews| async move {
            let items = vec![sample(request.product_id)];
            Ok::<_, RpcError>(Page {
                items,
                next_cursor: None,
            })
        })
        .message(move |request: CreateReview, _: Actor| async move {
            request.validate()?;
            Ok::<_, RpcError>(sample(request.product_id))
        })
        .message(|request: SummarizeReviews| async move {
            let summary = |product_id| RatingSummary {
                product_id,
                count: 1,
                mean: 500,
                histogram: [0, 0, 0, 0, 1],
                bayes: 450,
            };
            Ok::<_, RpcError>(
                request
                    .product_ids
                    .into_iter()
                    .map(summary)
                    .collect::<Vec<_>>(),
            )
        })
}

fn sample_method() -> contracts::payment::Method {
    contracts::payment::Method {
        id: MethodId::derive("card"),
        brand: "visa".to_owned(),
        last4: "4242".to_owned(),
        exp: "12/34".to_owned(),
    }
}

pub(crate) fn payments(user_id: UserId) -> Router {
    Router::new()
        .message(|request: AddMethod, _: Actor| async move {
            request.validate()?;
            Ok::<_, RpcError>(sample_method())
        })
        .message(|_: ListMethods, _: Actor| async { Ok::<_, RpcError>(vec![sample_method()]) })
        .message(move |request: GetPayment, _: Actor| async move {
            Ok::<_, RpcError>(Payment {
                id: request.payment_id,
                order_id: OrderId::derive("one"),
                user_id,
                state: PaymentState::Captured,
                amount: euro(1190),
                captured: euro(1190),
                refunded: euro(0),
                card: Some(sample_method()),
                decline_code: Some("insufficient_funds".to_owned()),
                timeline: Vec::new(),
            })
        })
}

fn sample_line() -> OrderLine {
    OrderLine {
        line_id: 1,
        product_id: product_id(),
        sku: "L1".to_owned(),
        name: "Lamp".to_owned(),
        fulfilment: Fulfilment::Physical,
        qty: 1,
        unit_net: euro(1000),
        net: euro(1000),
        tax_rate: TaxRate(1900),
        tax: euro(190),
        state: LineState::Pending,
    }
}

fn sample_totals() -> Totals {
    Totals {
        items_net: euro(1000),
        shipping_net: euro(0),
        tax: euro(190),
        gross: euro(1190),
    }
}

pub(crate) fn sample_order(user_id: UserId) -> OrderView {
    OrderView {
        id: OrderId::derive("one"),
        number: "2026-1".to_owned(),
        user_id,
        email: "ada@example.org".to_owned(),
        status: OrderStatus::Placed,
        payment: PaymentStatus::None,
        fulfilment: FulfilmentStatus::Pending,
        reason: None,
        short: Vec::new(),
        lines: vec![sample_line()],
        totals: sample_totals(),
        address: None,
        payment_id: Some(PaymentId::derive("one")),
        attempts: 1,
        can_cancel: true,
        version: 5,
        placed_at: at(),
    }
}

fn sample_cart(qty: u32) -> Cart {
    let line = CartLine {
        product_id: product_id(),
        name: "Lamp".to_owned(),
        qty,
        unit_net: euro(1000),
        line_net: euro(1000),
        available: 7,
        price_changed: false,
    };
    let (items_net, tax, gross) = (euro(1000), euro(190), euro(1190));
    Cart {
        lines: vec![line],
        items_net,
        tax,
        gross,
        version: 1,
    }
}

pub(crate) fn orders(world: &Arc<World>) -> Router {
    let user = world.user;
    let [now, placed, listed] = [(); 3].map(|()| Arc::clone(world));
    Router::new()
        .message(|_: GetCart| async { Ok::<_, RpcError>(sample_cart(1)) })
        .message(|request: PutCartLine| async move {
            request.validate()?;
            Ok::<_, RpcError>(sample_cart(request.qty))
        })
        .message(|_: ClearCart| async { Ok::<_, RpcError>(sample_cart(0)) })
        .message(|request: QuoteCart| async move {
            let option = ShippingOption {
                id: "standard".to_owned(),
                name: "Standard".to_owned(),
                net: euro(0),
                days: 3,
            };
            Ok::<_, RpcError>(Quote {
                id: QuoteId::derive("one"),
                lines: vec![sample_line()],
                totals: sample_totals(),
                options: vec![option],
                shipping_option: request.shipping_option,
                needs_address: true,
                expires_at: at(),
            })
        })
        .message(move |request: PlaceOrder, _: Actor, cx: Context| {
            let header = |name| cx.header(name).unwrap_or_default().to_owned();
            let seen = (request, header("idempotency-key"), header("traceparent"));
            *placed.placed.lock().unwrap() = Some(seen);
            async move { Ok::<_, RpcError>(sample_order(user)) }
        })
        .message(move |_: PayOrder, _: Actor| async move { Ok::<_, RpcError>(sample_order(user)) })
        .message(move |request: GetOrder, _: Actor| {
            let order = now.order.lock().unwrap().clone();
            async move {
                if request.order_id == order.id {
                    Ok(order)
                } else {
                    Err(Reason::NotFound.error("no such order"))
                }
            }
        })
        .message(move |request: ListOrders, _: Actor| {
            *listed.orders_listed.lock().unwrap() = Some(request);
            async move {
                Ok::<_, RpcError>(Page {
                    items: vec![sample_order(user)],
                    next_cursor: None,
                })
            }
        })
        .message(|_: GetHistory, _: Actor| async {
            let entry = |version, kind: &str| HistoryEntry {
                version,
                kind: kind.to_owned(),
                at: at(),
                actor: None,
                summary: String::new(),
            };
            Ok::<_, RpcError>(vec![entry(1, "placed"), entry(2, "confirmed")])
        })
        .message(move |_: CancelOrder, _: Actor| async move {
            Ok::<_, RpcError>(OrderView {
                status: OrderStatus::Cancelling,
                ..sample_order(user)
            })
        })
}
