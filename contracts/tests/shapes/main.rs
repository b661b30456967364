//! The shape of every contract on the wire: a sample of each in JSON, kept as a snapshot so that a
//! change shows in review, and the way there and back in both codecs.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod samples;
mod shapes;

use std::{fs, path::Path};

use contracts::{order::*, payment::*, product::*, recommendation::*, review::*, user::*, *};

use self::{samples::*, shapes::Shapes};

#[test]
fn user() {
    let mut shapes = Shapes::default();
    let (email, password) = ("ada@example.org".to_owned(), Secret::new("correct horse"));
    let (name, locale) = ("Ada".to_owned(), "en".to_owned());
    let register = Register {
        email: email.clone(),
        password: password.clone(),
        name,
        locale,
    };
    shapes.message(register, ada());
    let device = "browser".to_owned();
    let access = Secret::new("header.claims.signature");
    let tokens = Tokens {
        access,
        expires_in: 900,
        user: ada(),
    };
    shapes.message(
        Login {
            email,
            password: password.clone(),
            device,
        },
        tokens,
    );
    let key = Key {
        kid: "k1".to_owned(),
        x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".to_owned(),
    };
    shapes.message(GetKeys {}, Keys { keys: vec![key] });
    shapes.message(GetUser { user_id: user_id() }, ada());
    let list = ListUsers {
        q: Some("ada".to_owned()),
        role: Some(Role::Customer),
        page: page(),
    };
    shapes.message(list, pages(ada()));
    let change = ChangePassword {
        old: password.clone(),
        new: password,
    };
    let update = UpdateUser {
        user_id: user_id(),
        expected_version: 3,
        name: None,
        email: None,
        locale: Some("de".to_owned()),
        password: Some(change),
    };
    shapes.message(update, ada());
    shapes.event(UserRegistered {
        user_id: user_id(),
        user: ada(),
        meta: meta(),
    });
    let actor = Actor {
        user_id: user_id(),
        roles: vec![Role::Customer],
        session: session_id(),
    };
    shapes.write("header actor", &actor);
    let claims = Claims {
        sub: user_id(),
        sid: session_id(),
        roles: vec![Role::Manager, Role::Admin],
        iat: 1_700_000_000,
        exp: 1_700_000_900,
        iss: "nestling".to_owned(),
    };
    shapes.write("token claims", &claims);
    insta::assert_snapshot!(shapes.0);
}

#[test]
fn product() {
    let mut shapes = Shapes::default();
    let list = ListProducts {
        category_id: Some(category_id()),
        q: Some("tea".to_owned()),
        price_min: Some(100),
        price_max: None,
        in_stock: Some(true),
        status: Some(ProductStatus::Active),
        sort: ProductSort::PriceAsc,
        page: page(),
    };
    shapes.message(list, pages(teapot().card));
    shapes.message(
        GetProduct {
            key: ProductKey::Id(product_id()),
        },
        teapot(),
    );
    shapes.also(ProductKey::Slug("teapot".to_owned()));
    shapes.message(
        CreateProduct {
            draft: draft(),
            on_hand: 8,
        },
        teapot(),
    );
    let update = UpdateProduct {
        product_id: product_id(),
        expected_version: 2,
        draft: draft(),
    };
    shapes.message(update, teapot());
    let product = ImportedProduct {
        draft: draft(),
        on_hand: 8,
    };
    shapes.message(
        ImportProducts {
            products: vec![product],
        },
        Imported { added: 1, known: 0 },
    );
    let category = || Category {
        id: category_id(),
        slug: "kitchen".to_owned(),
        name: "Kitchen".to_owned(),
        parent: None,
        products: 3,
        version: 1,
    };
    shapes.message(ListCategories {}, vec![category()]);
    let create = CreateCategory {
        name: "Kitchen".to_owned(),
        parent: Some(category_id()),
    };
    shapes.message(create, category());
    let lines = vec![Quantity {
        product_id: product_id(),
        qty: 2,
    }];
    let quoted = QuotedLine {
        product_id: product_id(),
        sku: "T-1".to_owned(),
        name: "Teapot".to_owned(),
        unit_net: euro(1000),
        tax: TaxRate(1900),
        available: 5,
        fulfilment: Fulfilment::Physical,
        weight_g: 900,
        image: "/v1/products/teapot/image".to_owned(),
    };
    let missing = vec![ProductId::derive("lost")];
    let quote = QuoteLines {
        lines: lines.clone(),
    };
    shapes.message(
        quote,
        QuotedLines {
            lines: vec![quoted],
            missing,
        },
    );
    let stock = Stock {
        product_id: product_id(),
        on_hand: 8,
        reserved: 3,
        available: 5,
        version: 9,
    };
    shapes.message(
        GetStock {
            product_ids: vec![product_id()],
        },
        vec![stock],
    );
    let reserve = ReserveStock {
        order_id: order_id(),
        lines,
        ttl_s: 900,
    };
    shapes.message(reserve, Reservation::Reserved { expires_at: time() });
    shapes.also(Reservation::Short {
        lines: vec![short()],
    });
    shapes.also(Reservation::Released);
    let release = ReleaseStock {
        order_id: order_id(),
        reason: "cancelled".to_owned(),
    };
    shapes.message(release, Released { released: 1 });
    let old_net = Some(euro(900));
    let product_id = product_id();
    shapes.event(ProductChanged {
        product_id,
        product: teapot(),
        old_net,
        meta: meta(),
    });
    shapes.event(StockChanged {
        product_id,
        available: 5,
        meta: meta(),
    });
    shapes.event(StockExpired {
        order_id: order_id(),
        meta: meta(),
    });
    insta::assert_snapshot!(shapes.0);
}

#[test]
fn order() {
    let mut shapes = Shapes::default();
    let (order_id, user_id, payment_id) = (order_id(), user_id(), payment_id(order_id(), 1));
    let owner = Owner::User(user_id);
    shapes.message(
        GetCart {
            owner: owner.clone(),
        },
        cart(),
    );
    shapes.also(Owner::Anon("token".to_owned()));
    let put = PutCartLine {
        owner: owner.clone(),
        product_id: product_id(),
        qty: 2,
    };
    shapes.message(put, cart());
    shapes.message(
        ClearCart {
            owner: owner.clone(),
        },
        cart(),
    );
    let ship_to = ShipTo {
        country: "DE".to_owned(),
        postcode: "10115".to_owned(),
    };
    let quote = QuoteCart {
        owner,
        ship_to: Some(ship_to),
        shipping_option: Some("standard".to_owned()),
    };
    shapes.message(quote, samples::quote());
    let place = PlaceOrder {
        user_id,
        quote_id: quote_id(),
        address: Some(address()),
        shipping_option: Some("standard".to_owned()),
        method_id: Some(method().id),
        email: "ada@example.org".to_owned(),
    };
    shapes.message(place, order_view());
    shapes.message(
        PayOrder {
            order_id,
            method_id: method().id,
        },
        order_view(),
    );
    shapes.message(GetOrder { order_id }, order_view());
    let list = ListOrders {
        user_id: Some(user_id),
        status: Some(OrderStatus::AwaitingPayment),
        from: Some(time()),
        to: None,
        page: page(),
    };
    shapes.message(list, pages(order_view()));
    let entry = HistoryEntry {
        version: 1,
        kind: "placed".to_owned(),
        at: time(),
        actor: Some(user_id),
        summary: "placed with 1 line".to_owned(),
    };
    shapes.message(
        GetHistory {
            order_id,
            after_version: 0,
        },
        vec![entry],
    );
    let reason = || "changed my mind".to_owned();
    shapes.message(
        CancelOrder {
            order_id,
            reason: reason(),
        },
        order_view(),
    );
    let line = ImportedLine {
        product_id: product_id(),
        sku: "T-1".to_owned(),
        name: "Teapot".to_owned(),
        qty: 2,
        unit_net: 1000,
        returned: 1,
    };
    let order = ImportedOrder {
        number: "536365".to_owned(),
        user_id,
        placed_at: time(),
        currency: Currency::GBP,
        lines: vec![line],
    };
    shapes.message(
        ImportOrders {
            orders: vec![order],
        },
        Imported { added: 1, known: 0 },
    );
    let (lines, totals, meta) = (vec![order_line()], totals(), meta());
    shapes.event(OrderPlaced {
        order_id,
        user_id,
        lines: lines.clone(),
        totals,
        meta,
    });
    shapes.event(OrderAwaitingPayment {
        order_id,
        user_id,
        meta,
    });
    let code = "card_declined".to_owned();
    shapes.event(OrderPaymentFailed {
        order_id,
        user_id,
        attempt: 1,
        code,
        meta,
    });
    shapes.event(OrderConfirmed {
        order_id,
        order: order_view(),
        payment_id,
        meta,
    });
    let rejected = "out_of_stock".to_owned();
    shapes.event(OrderRejected {
        order_id,
        user_id,
        reason: rejected,
        short: vec![short()],
        meta,
    });
    let (reason, was_confirmed) = (reason(), true);
    shapes.event(OrderCancelled {
        order_id,
        user_id,
        reason,
        lines,
        was_confirmed,
        meta,
    });
    let (product_ids, placed_at) = (vec![product_id()], time());
    shapes.event(OrderImported {
        order_id,
        user_id,
        product_ids,
        placed_at,
        meta,
    });
    let states = [
        OrderStatus::Placed,
        OrderStatus::AwaitingPayment,
        OrderStatus::Confirmed,
        OrderStatus::Completed,
        OrderStatus::Rejected,
        OrderStatus::Cancelling,
        OrderStatus::Cancelled,
    ];
    shapes.write("order status", &states.to_vec());
    insta::assert_snapshot!(shapes.0);
}

#[test]
fn payment() {
    let mut shapes = Shapes::default();
    let (order_id, user_id, payment_id) = (order_id(), user_id(), payment_id(order_id(), 1));
    let card = Card {
        pan: Secret::new("4242 4242 4242 4242"),
        exp: "12/30".to_owned(),
        cvc: Secret::new("123"),
        holder: "Ada".to_owned(),
    };
    shapes.message(AddMethod { user_id, card }, method());
    shapes.message(ListMethods { user_id }, vec![method()]);
    let amount = euro(2856);
    let method_id = Some(method().id);
    let authorize = Authorize {
        payment_id,
        order_id,
        user_id,
        amount,
        method_id,
    };
    shapes.message(authorize, Authorization::Authorized);
    let (code, message) = (
        "card_declined".to_owned(),
        "the card was declined".to_owned(),
    );
    let declined = Authorization::Declined {
        code: code.clone(),
        message,
        retryable: true,
    };
    shapes.also(declined);
    shapes.also(Authorization::Pending);
    let payment = || Payment {
        id: payment_id,
        order_id,
        user_id,
        state: PaymentState::Captured,
        amount,
        captured: amount,
        refunded: euro(0),
        card: Some(method()),
        decline_code: None,
        timeline: vec![PaymentEntry {
            at: time(),
            text: "28.56 EUR captured".to_owned(),
        }],
    };
    shapes.message(Capture { payment_id }, payment());
    let reason = "cancelled".to_owned();
    shapes.message(Reverse { payment_id, reason }, Reversal::Voided);
    shapes.also(Reversal::Refunded);
    shapes.also(Reversal::Nothing);
    shapes.message(GetPayment { payment_id }, payment());
    let meta = meta();
    shapes.event(PaymentAuthorized {
        order_id,
        payment_id,
        amount,
        meta,
    });
    shapes.event(PaymentDeclined {
        order_id,
        payment_id,
        code,
        meta,
    });
    shapes.event(PaymentVoided {
        order_id,
        payment_id,
        amount,
        meta,
    });
    shapes.event(PaymentCaptured {
        order_id,
        payment_id,
        amount,
        meta,
    });
    shapes.event(PaymentRefunded {
        order_id,
        payment_id,
        amount,
        full: true,
        meta,
    });
    insta::assert_snapshot!(shapes.0);
}

#[test]
fn review() {
    let mut shapes = Shapes::default();
    let product_id = product_id();
    let (title, body) = ("Good".to_owned(), "It pours.".to_owned());
    let review = || Review {
        id: ReviewId::derive("review"),
        product_id,
        user_id: user_id(),
        rating: 5,
        title: title.clone(),
        body: body.clone(),
        verified: true,
        helpful: 2,
        created_at: time(),
        version: 1,
    };
    let create = CreateReview {
        product_id,
        rating: 5,
        title: title.clone(),
        body: body.clone(),
    };
    shapes.message(create, review());
    let list = ListReviews {
        product_id,
        sort: ReviewSort::Helpful,
        rating: Some(5),
        verified: Some(true),
        page: page(),
    };
    shapes.message(list, pages(review()));
    let histogram = [0, 0, 0, 1, 2];
    let summary = || RatingSummary {
        product_id,
        count: 3,
        mean: 467,
        histogram,
        bayes: 415,
    };
    shapes.message(
        SummarizeReviews {
            product_ids: vec![product_id],
        },
        vec![summary()],
    );
    let event = ReviewPublished {
        product_id,
        review: review(),
        summary: summary(),
        meta: meta(),
    };
    shapes.event(event);
    insta::assert_snapshot!(shapes.0);
}

#[test]
fn recommendation() {
    let mut shapes = Shapes::default();
    let item = Recommendation {
        product_id: ProductId::derive("cup"),
        score: 1234,
        because: vec![product_id()],
    };
    let reply = Recommendations {
        items: vec![item],
        strategy: "together".to_owned(),
        model_version: 7,
    };
    shapes.message(
        RecommendForProduct {
            product_id: product_id(),
            limit: 10,
        },
        reply,
    );
    insta::assert_snapshot!(shapes.0);
}

#[test]
fn every_contract_has_a_sample() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for service in [
        "user",
        "product",
        "order",
        "payment",
        "review",
        "recommendation",
    ] {
        let source = fs::read_to_string(root.join(format!("src/{service}.rs"))).unwrap();
        let snapshot = root.join(format!("tests/shapes/snapshots/shapes__{service}.snap"));
        let snapshot = fs::read_to_string(snapshot).unwrap();
        let patterns: Vec<&str> = source.lines().filter_map(pattern).collect();
        assert!(!patterns.is_empty(), "{service}");
        for pattern in patterns {
            let is_shown = snapshot
                .lines()
                .any(|line| line.starts_with(&format!("{pattern} ")));
            assert!(is_shown, "add a sample of {pattern}");
        }
    }
}

/// The pattern a line declares: in an attribute, or as `Name = "pattern" {` of a list of events.
fn pattern(line: &str) -> Option<&str> {
    let line = line.trim();
    let declared = ["#[message(pattern = \"", "#[event(pattern = \""];
    let after = declared
        .iter()
        .find_map(|start| line.strip_prefix(start))
        .or_else(|| {
            let (_, after) = line.split_once(" = \"")?;
            line.ends_with("\" {").then_some(after)
        })?;
    after.split_once('"').map(|(pattern, _)| pattern)
}
