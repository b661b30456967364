//! `cart.*`, `checkout.*`, `order.*`: from the cart to the confirmed order.

use nestling::{Event, Message, RpcError};
use serde::{Deserialize, Serialize};

use crate::{
    Currency, Fields, Meta, MethodId, Money, OrderId, Page, PageRequest, PaymentId, ProductId,
    QuoteId, TaxRate, Timestamp, UserId,
    product::{Fulfilment, Imported, ShortLine},
};

crate::svc!("order");

/// Whose cart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A user's.
    User(UserId),
    /// That of whoever has the token.
    Anon(String),
}

/// A cart, priced as of now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cart {
    /// Lines, in the order they were added.
    pub lines: Vec<CartLine>,
    /// Sum of the lines before tax.
    pub items_net: Money,
    /// Tax on them.
    pub tax: Money,
    /// Both together.
    pub gross: Money,
    /// Counts changes.
    pub version: u64,
}

/// A line of a cart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CartLine {
    /// Which product.
    pub product_id: ProductId,
    /// Its name.
    pub name: String,
    /// How many.
    pub qty: u32,
    /// Price of one before tax.
    pub unit_net: Money,
    /// Price of all before tax.
    pub line_net: Money,
    /// How many can be bought now.
    pub available: u32,
    /// Whether the price is another than when it was put in.
    pub price_changed: bool,
}

/// Reads a cart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "cart.get", reply = Cart, idempotent)]
pub struct GetCart {
    /// Whose.
    pub owner: Owner,
}

/// Sets how many of a product a cart holds; 0 takes it out. Errors: `validation`, `not_found`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "cart.put_line", reply = Cart, idempotent)]
pub struct PutCartLine {
    /// Whose.
    pub owner: Owner,
    /// Which product.
    pub product_id: ProductId,
    /// 0 to 99.
    pub qty: u32,
}

impl PutCartLine {
    /// # Errors
    /// `validation`.
    pub fn validate(&self) -> Result<(), RpcError> {
        let mut fields = Fields::new();
        fields.check(self.qty <= 99, "/qty", "range", "0 to 99");
        fields.finish()
    }
}

/// Empties a cart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "cart.clear", reply = Cart, idempotent)]
pub struct ClearCart {
    /// Whose.
    pub owner: Owner,
}

/// Where to ship.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// Whom it is for.
    pub name: String,
    /// One to three lines.
    pub street: Vec<String>,
    /// Postcode.
    pub postcode: String,
    /// City.
    pub city: String,
    /// State or province.
    pub region: Option<String>,
    /// ISO 3166-1, two letters.
    pub country: String,
    /// Phone.
    pub phone: Option<String>,
}

impl Address {
    /// Notes what is wrong with it, under `pointer`.
    pub fn check(&self, fields: &mut Fields, pointer: &str) {
        fields.length(self.name.trim(), 1..=120, &format!("{pointer}/name"));
        let street = (1..=3).contains(&self.street.len());
        fields.check(
            street,
            &format!("{pointer}/street"),
            "length",
            "1 to 3 lines",
        );
        fields.length(self.postcode.trim(), 1..=16, &format!("{pointer}/postcode"));
        fields.length(self.city.trim(), 1..=120, &format!("{pointer}/city"));
        let country =
            self.country.len() == 2 && self.country.bytes().all(|b| b.is_ascii_uppercase());
        fields.check(
            country,
            &format!("{pointer}/country"),
            "country",
            "two capital letters",
        );
    }
}

/// Prices the cart for checkout; the quote holds for ten minutes. Errors: `state_conflict` for an
/// empty cart, `not_found` for products that are no longer sold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "checkout.quote", reply = Quote, idempotent)]
pub struct QuoteCart {
    /// Whose cart.
    pub owner: Owner,
    /// Where to, as far as it is known.
    pub ship_to: Option<ShipTo>,
    /// One of the options of an earlier quote.
    pub shipping_option: Option<String>,
}

/// As much of an address as prices depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShipTo {
    /// ISO 3166-1, two letters.
    pub country: String,
    /// Postcode.
    pub postcode: String,
}

/// Prices that hold until it expires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quote {
    /// Id.
    pub id: QuoteId,
    /// What is bought.
    pub lines: Vec<OrderLine>,
    /// The sums.
    pub totals: Totals,
    /// Ways to ship; none when nothing is shipped.
    pub options: Vec<ShippingOption>,
    /// The one the sums are for.
    pub shipping_option: Option<String>,
    /// Whether an address must be given with the order.
    pub needs_address: bool,
    /// Until then.
    pub expires_at: Timestamp,
}

/// A way to ship.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShippingOption {
    /// `standard`, `express`.
    pub id: String,
    /// Name.
    pub name: String,
    /// Price before tax.
    pub net: Money,
    /// How many days.
    pub days: u32,
}

/// Sums of an order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// The lines before tax.
    pub items_net: Money,
    /// Shipping before tax.
    pub shipping_net: Money,
    /// Tax on both.
    pub tax: Money,
    /// Everything: what is paid.
    pub gross: Money,
}

/// A line of an order, as it was priced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderLine {
    /// Counted from 1.
    pub line_id: u32,
    /// Which product.
    pub product_id: ProductId,
    /// Its sku then.
    pub sku: String,
    /// Its name then.
    pub name: String,
    /// How it reaches its buyer.
    pub fulfilment: Fulfilment,
    /// How many.
    pub qty: u32,
    /// Price of one before tax.
    pub unit_net: Money,
    /// Price of all before tax.
    pub net: Money,
    /// Tax in basis points.
    pub tax_rate: TaxRate,
    /// Tax on all.
    pub tax: Money,
    /// What has become of it.
    pub state: LineState,
}

/// What has become of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LineState {
    /// Nothing yet.
    Pending,
    /// Packed.
    Processed,
    /// On its way.
    Shipped,
    /// There.
    Delivered,
    /// Back.
    Returned,
    /// Not to be.
    Cancelled,
}

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Accepted; stock is being reserved.
    Placed,
    /// Stock is held; no payment yet.
    AwaitingPayment,
    /// Paid for.
    Confirmed,
    /// Everything is done.
    Completed,
    /// It came to nothing.
    Rejected,
    /// Being undone.
    Cancelling,
    /// Undone.
    Cancelled,
}

impl OrderStatus {
    /// Whether checkout is over.
    pub fn is_settled(self) -> bool {
        !matches!(
            self,
            Self::Placed | Self::AwaitingPayment | Self::Cancelling
        )
    }
}

/// Where the payment of an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// Nothing was asked for.
    None,
    /// Asked for, no answer.
    Pending,
    /// Promised.
    Authorized,
    /// Paid.
    Captured,
    /// Some of it was given back.
    PartiallyRefunded,
    /// All of it was given back.
    Refunded,
    /// Refused.
    Failed,
    /// The promise was undone.
    Voided,
}

/// Where the goods of an order are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FulfilmentStatus {
    /// Some line is not packed.
    Pending,
    /// All are packed.
    Processed,
    /// All are on their way.
    Shipped,
    /// All are there.
    Delivered,
}

/// An order as its buyer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderView {
    /// Id.
    pub id: OrderId,
    /// For people.
    pub number: String,
    /// Whose.
    pub user_id: UserId,
    /// Where mail goes.
    pub email: String,
    /// Where it stands.
    pub status: OrderStatus,
    /// Where its payment stands.
    pub payment: PaymentStatus,
    /// Where its goods are.
    pub fulfilment: FulfilmentStatus,
    /// Why it was rejected or cancelled: `out_of_stock`, `card_declined` …
    pub reason: Option<String>,
    /// What there was too little of, when that is the reason.
    pub short: Vec<ShortLine>,
    /// What was bought.
    pub lines: Vec<OrderLine>,
    /// The sums.
    pub totals: Totals,
    /// Where to.
    pub address: Option<Address>,
    /// The payment of the latest attempt.
    pub payment_id: Option<PaymentId>,
    /// How many payments were tried.
    pub attempts: u32,
    /// Whether it can still be cancelled.
    pub can_cancel: bool,
    /// Counts its events.
    pub version: u64,
    /// When.
    pub placed_at: Timestamp,
}

/// Turns a quote into an order; header `idempotency-key` is required, and a repetition gets the
/// first answer. Errors: `idempotency_key_missing`, `idempotency_key_reused`, `validation`,
/// `not_found` for the quote, `price_changed` (with the new quote in the details).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.place", reply = OrderView, idempotent)]
pub struct PlaceOrder {
    /// For whom.
    pub user_id: UserId,
    /// At which prices.
    pub quote_id: QuoteId,
    /// Where to, if anything is shipped.
    pub address: Option<Address>,
    /// Which way, if anything is shipped.
    pub shipping_option: Option<String>,
    /// Paid with.
    pub method_id: Option<MethodId>,
    /// Where mail goes.
    pub email: String,
}

/// Tries another payment, at most three in all; header `idempotency-key` is required. Errors:
/// `state_conflict` unless payment is awaited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.pay", reply = OrderView, idempotent)]
pub struct PayOrder {
    /// Which.
    pub order_id: OrderId,
    /// Paid with.
    pub method_id: MethodId,
}

/// Reads an order. Errors: `not_found`, `forbidden`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.get", reply = OrderView, idempotent)]
pub struct GetOrder {
    /// Which.
    pub order_id: OrderId,
}

/// Lists orders, newest first: one's own, or anybody's for staff.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.list", reply = Page<OrderView>, idempotent)]
pub struct ListOrders {
    /// Whose.
    pub user_id: Option<UserId>,
    /// Only those that stand here.
    pub status: Option<OrderStatus>,
    /// Placed at this time or later.
    pub from: Option<Timestamp>,
    /// Placed before this time.
    pub to: Option<Timestamp>,
    /// Which page.
    pub page: PageRequest,
}

/// Reads what happened to an order, oldest first. Errors: `not_found`, `forbidden`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.history", reply = Vec<HistoryEntry>, idempotent)]
pub struct GetHistory {
    /// Which order.
    pub order_id: OrderId,
    /// Only what came after this version.
    pub after_version: u64,
}

/// Something that happened to an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Counted from 1.
    pub version: u64,
    /// `placed`, `confirmed` …
    pub kind: String,
    /// When.
    pub at: Timestamp,
    /// Who did it, if somebody did.
    pub actor: Option<UserId>,
    /// A sentence.
    pub summary: String,
}

/// Cancels an order. Errors: `not_cancellable`, `not_found`, `forbidden`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.cancel", reply = OrderView, idempotent)]
pub struct CancelOrder {
    /// Which.
    pub order_id: OrderId,
    /// Why.
    pub reason: String,
}

/// Adds completed orders of the past in bulk: repeating it changes nothing. For managers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "order.import", reply = Imported, idempotent)]
pub struct ImportOrders {
    /// At most 200.
    pub orders: Vec<ImportedOrder>,
}

/// An order of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportedOrder {
    /// Its number where it comes from; its id is derived from this.
    pub number: String,
    /// Whose.
    pub user_id: UserId,
    /// When.
    pub placed_at: Timestamp,
    /// In which currency.
    pub currency: Currency,
    /// What was bought.
    pub lines: Vec<ImportedLine>,
}

/// A line of an order of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportedLine {
    /// Which product.
    pub product_id: ProductId,
    /// Its sku.
    pub sku: String,
    /// Its name.
    pub name: String,
    /// How many.
    pub qty: u32,
    /// Price of one before tax, in minor units.
    pub unit_net: i64,
    /// How many of them came back.
    pub returned: u32,
}

macro_rules! order_events {
    ($($(#[$doc:meta])* $name:ident = $pattern:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
            #[event(pattern = $pattern, key = order_id)]
            pub struct $name {
                /// Which order.
                pub order_id: OrderId,
                $($(#[$field_doc])* pub $field: $type,)*
                /// When, which version.
                pub meta: Meta,
            }
        )*
    };
}

order_events! {
    /// An order was accepted.
    OrderPlaced = "order.placed" {
        /// Whose.
        user_id: UserId,
        /// What was bought.
        lines: Vec<OrderLine>,
        /// The sums.
        totals: Totals,
    }
    /// Its stock is held.
    OrderAwaitingPayment = "order.awaiting_payment" {
        /// Whose.
        user_id: UserId,
    }
    /// A payment for it was refused.
    OrderPaymentFailed = "order.payment_failed" {
        /// Whose.
        user_id: UserId,
        /// Which attempt, counted from 1.
        attempt: u32,
        /// Why.
        code: String,
    }
    /// It is paid for: everything after this happens by itself.
    OrderConfirmed = "order.confirmed" {
        /// The order.
        order: OrderView,
        /// How it was paid.
        payment_id: PaymentId,
    }
    /// It came to nothing.
    OrderRejected = "order.rejected" {
        /// Whose.
        user_id: UserId,
        /// Why.
        reason: String,
        /// What there was too little of.
        short: Vec<ShortLine>,
    }
    /// It was undone.
    OrderCancelled = "order.cancelled" {
        /// Whose.
        user_id: UserId,
        /// Why.
        reason: String,
        /// What was bought.
        lines: Vec<OrderLine>,
        /// Whether it had been confirmed.
        was_confirmed: bool,
    }
    /// An order of the past was added.
    OrderImported = "order.imported" {
        /// Whose.
        user_id: UserId,
        /// What was bought and kept.
        product_ids: Vec<ProductId>,
        /// When it was placed.
        placed_at: Timestamp,
    }
}
