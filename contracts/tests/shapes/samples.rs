//! What the samples are made of: the same values each time.

use std::collections::BTreeMap;

use contracts::{order::*, payment::*, product::*, user::*, *};

pub(crate) fn user_id() -> UserId {
    UserId::derive("ada")
}

pub(crate) fn session_id() -> SessionId {
    SessionId::derive("session")
}

pub(crate) fn product_id() -> ProductId {
    ProductId::derive("teapot")
}

pub(crate) fn category_id() -> CategoryId {
    CategoryId::derive("kitchen")
}

pub(crate) fn order_id() -> OrderId {
    OrderId::derive("order")
}

pub(crate) fn quote_id() -> QuoteId {
    QuoteId::derive("quote")
}

pub(crate) fn euro(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

pub(crate) fn time() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_123)
}

pub(crate) fn meta() -> Meta {
    Meta {
        at: time(),
        version: 3,
    }
}

pub(crate) fn page() -> PageRequest {
    PageRequest {
        limit: 25,
        cursor: Some("5b375d".to_owned()),
    }
}

pub(crate) fn pages<T>(item: T) -> Page<T> {
    Page {
        items: vec![item],
        next_cursor: Some("5b385d".to_owned()),
    }
}

pub(crate) fn ada() -> User {
    User {
        id: user_id(),
        email: "ada@example.org".to_owned(),
        name: "Ada".to_owned(),
        roles: vec![Role::Customer],
        locale: "en".to_owned(),
        verified: true,
        disabled: false,
        version: 3,
        created_at: time(),
    }
}

fn attributes() -> BTreeMap<String, String> {
    BTreeMap::from([("colour".to_owned(), "white".to_owned())])
}

pub(crate) fn teapot() -> Product {
    Product {
        card: ProductCard {
            id: product_id(),
            slug: "teapot".to_owned(),
            name: "Teapot".to_owned(),
            net: euro(1000),
            gross: euro(1190),
            available: 5,
            rating: Some(467),
            reviews: 3,
            image: "/v1/products/teapot/image".to_owned(),
        },
        sku: "T-1".to_owned(),
        description: "It pours.".to_owned(),
        supplier: Some("Potter".to_owned()),
        categories: vec![category_id()],
        tax: TaxRate(1900),
        fulfilment: Fulfilment::Physical,
        weight_g: 900,
        attributes: attributes(),
        status: ProductStatus::Active,
        on_hand: 8,
        reserved: 3,
        version: 2,
    }
}

pub(crate) fn draft() -> ProductDraft {
    ProductDraft {
        sku: "T-1".to_owned(),
        name: "Teapot".to_owned(),
        description: "It pours.".to_owned(),
        supplier: None,
        categories: vec![category_id()],
        net: euro(1000),
        tax: TaxRate(1900),
        fulfilment: Fulfilment::Physical,
        weight_g: 900,
        attributes: attributes(),
        status: ProductStatus::Draft,
    }
}

pub(crate) fn short() -> ShortLine {
    ShortLine {
        product_id: product_id(),
        requested: 9,
        available: 5,
    }
}

pub(crate) fn cart() -> Cart {
    let line = CartLine {
        product_id: product_id(),
        name: "Teapot".to_owned(),
        qty: 2,
        unit_net: euro(1000),
        line_net: euro(2000),
        available: 5,
        price_changed: false,
    };
    let (items_net, tax, gross) = (euro(2000), euro(380), euro(2380));
    Cart {
        lines: vec![line],
        items_net,
        tax,
        gross,
        version: 4,
    }
}

pub(crate) fn order_line() -> OrderLine {
    OrderLine {
        line_id: 1,
        product_id: product_id(),
        sku: "T-1".to_owned(),
        name: "Teapot".to_owned(),
        fulfilment: Fulfilment::Physical,
        qty: 2,
        unit_net: euro(1000),
        net: euro(2000),
        tax_rate: TaxRate(1900),
        tax: euro(380),
        state: LineState::Pending,
    }
}

pub(crate) fn totals() -> Totals {
    let (items_net, shipping_net) = (euro(2000), euro(400));
    Totals {
        items_net,
        shipping_net,
        tax: euro(456),
        gross: euro(2856),
    }
}

pub(crate) fn quote() -> Quote {
    let option = ShippingOption {
        id: "standard".to_owned(),
        name: "Standard".to_owned(),
        net: euro(400),
        days: 3,
    };
    Quote {
        id: quote_id(),
        lines: vec![order_line()],
        totals: totals(),
        options: vec![option],
        shipping_option: Some("standard".to_owned()),
        needs_address: true,
        expires_at: time(),
    }
}

pub(crate) fn address() -> Address {
    Address {
        name: "Ada".to_owned(),
        street: vec!["Invalidenstr. 1".to_owned()],
        postcode: "10115".to_owned(),
        city: "Berlin".to_owned(),
        region: None,
        country: "DE".to_owned(),
        phone: None,
    }
}

pub(crate) fn order_view() -> OrderView {
    OrderView {
        id: order_id(),
        number: "N-1".to_owned(),
        user_id: user_id(),
        email: "ada@example.org".to_owned(),
        status: OrderStatus::Confirmed,
        payment: PaymentStatus::Authorized,
        fulfilment: FulfilmentStatus::Pending,
        reason: None,
        short: vec![short()],
        lines: vec![order_line()],
        totals: totals(),
        address: Some(address()),
        payment_id: Some(payment_id(order_id(), 1)),
        attempts: 1,
        can_cancel: true,
        version: 3,
        placed_at: time(),
    }
}

pub(crate) fn method() -> Method {
    Method {
        id: MethodId::derive("card"),
        brand: "visa".to_owned(),
        last4: "4242".to_owned(),
        exp: "12/30".to_owned(),
    }
}
