//! `payment.*`: cards and charges.

use nestling::{Event, Message, RpcError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Fields, Meta, MethodId, Money, OrderId, PaymentId, Secret, Timestamp, UserId};

crate::svc!("payment");

/// A card as its holder types it in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// The number; spaces are allowed.
    pub pan: Secret,
    /// `MM/YY`.
    pub exp: String,
    /// Three digits.
    pub cvc: Secret,
    /// Name on it.
    pub holder: String,
}

/// Stores a card: its number goes to the provider for a token and is dropped. Only the provider's
/// test cards are accepted. Errors: `validation`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "payment.method.add", reply = Method)]
pub struct AddMethod {
    /// Whose.
    pub user_id: UserId,
    /// The card.
    pub card: Card,
}

impl AddMethod {
    /// # Errors
    /// `validation`.
    pub fn validate(&self) -> Result<(), RpcError> {
        let Card {
            pan,
            exp,
            cvc,
            holder,
        } = &self.card;
        let mut fields = Fields::new();
        let digits: Vec<_> = pan.expose().bytes().filter(|byte| *byte != b' ').collect();
        let is_pan = (12..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        fields.check(is_pan, "/card/pan", "card_number", "12 to 19 digits");
        let month = exp
            .split_once('/')
            .filter(|(_, year)| year.len() == 2 && year.parse::<u8>().is_ok());
        let is_exp = month
            .and_then(|(month, _)| month.parse().ok())
            .is_some_and(|m: u8| (1..=12).contains(&m));
        fields.check(is_exp, "/card/exp", "expiry", "MM/YY");
        let is_cvc = cvc.expose().len() == 3 && cvc.expose().bytes().all(|b| b.is_ascii_digit());
        fields.check(is_cvc, "/card/cvc", "cvc", "three digits");
        fields.length(holder.trim(), 1..=120, "/card/holder");
        fields.finish()
    }
}

/// A stored card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// Id.
    pub id: MethodId,
    /// `visa`, `mastercard`.
    pub brand: String,
    /// The last four digits.
    pub last4: String,
    /// `MM/YY`.
    pub exp: String,
}

/// Lists a user's cards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "payment.method.list", reply = Vec<Method>, idempotent)]
pub struct ListMethods {
    /// Whose.
    pub user_id: UserId,
}

/// The payment of an order's attempt: the same each time it is asked for.
pub fn payment_id(order_id: OrderId, attempt: u32) -> PaymentId {
    Uuid::new_v5(&order_id.into(), &attempt.to_be_bytes()).into()
}

/// Asks for the promise of money. Repeated: the same answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "payment.authorize", reply = Authorization, idempotent)]
pub struct Authorize {
    /// [`payment_id`] of the order and the attempt.
    pub payment_id: PaymentId,
    /// For which order.
    pub order_id: OrderId,
    /// Whose.
    pub user_id: UserId,
    /// How much.
    pub amount: Money,
    /// From which card.
    pub method_id: Option<MethodId>,
}

/// Whether money was promised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authorization {
    /// Yes.
    Authorized,
    /// No.
    Declined {
        /// `card_declined`, `insufficient_funds` …
        code: String,
        /// A sentence.
        message: String,
        /// Whether another card may do.
        retryable: bool,
    },
    /// The provider has not said.
    Pending,
}

/// Takes the money that was promised. Errors: `not_found`, `state_conflict`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "payment.capture", reply = Payment, idempotent)]
pub struct Capture {
    /// Which.
    pub payment_id: PaymentId,
}

/// Undoes whatever there is: a promise is voided, money is given back, an unknown payment is
/// remembered so that a late authorisation does nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "payment.reverse", reply = Reversal, idempotent)]
pub struct Reverse {
    /// Which.
    pub payment_id: PaymentId,
    /// Why.
    pub reason: String,
}

/// How a payment was undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reversal {
    /// The promise was undone.
    Voided,
    /// The money was given back.
    Refunded,
    /// There was nothing, and there will be nothing.
    Nothing,
}

/// Reads a payment. Errors: `not_found`, `forbidden`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "payment.get", reply = Payment, idempotent)]
pub struct GetPayment {
    /// Which.
    pub payment_id: PaymentId,
}

/// A payment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    /// Id.
    pub id: PaymentId,
    /// For which order.
    pub order_id: OrderId,
    /// Whose.
    pub user_id: UserId,
    /// Where it stands.
    pub state: PaymentState,
    /// How much.
    pub amount: Money,
    /// How much was taken.
    pub captured: Money,
    /// How much was given back.
    pub refunded: Money,
    /// From which card.
    pub card: Option<Method>,
    /// Why it was declined.
    pub decline_code: Option<String>,
    /// What happened, oldest first.
    pub timeline: Vec<PaymentEntry>,
}

/// Where a payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// The provider has not said.
    Pending,
    /// Promised.
    Authorized,
    /// Refused.
    Declined,
    /// Taken.
    Captured,
    /// The promise was undone.
    Voided,
    /// Given back.
    Refunded,
}

/// Something that happened to a payment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PaymentEntry {
    /// When.
    pub at: Timestamp,
    /// A sentence.
    pub text: String,
}

macro_rules! payment_events {
    ($($(#[$doc:meta])* $name:ident = $pattern:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
            #[event(pattern = $pattern, key = order_id)]
            pub struct $name {
                /// For which order.
                pub order_id: OrderId,
                /// Which payment.
                pub payment_id: PaymentId,
                $($(#[$field_doc])* pub $field: $type,)*
                /// When, which version.
                pub meta: Meta,
            }
        )*
    };
}

payment_events! {
    /// Money was promised.
    PaymentAuthorized = "payment.authorized" {
        /// How much.
        amount: Money,
    }
    /// It was refused.
    PaymentDeclined = "payment.declined" {
        /// Why.
        code: String,
    }
    /// The promise was undone.
    PaymentVoided = "payment.voided" {
        /// How much.
        amount: Money,
    }
    /// It was taken.
    PaymentCaptured = "payment.captured" {
        /// How much.
        amount: Money,
    }
    /// It was given back.
    PaymentRefunded = "payment.refunded" {
        /// How much.
        amount: Money,
        /// Whether nothing of it is left.
        full: bool,
    }
}
