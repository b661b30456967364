//! [`Fact`]: what can happen to an order, as it is stored for ever.

use contracts::{
    MethodId, Money, Timestamp, UserId,
    order::{Address, OrderLine, Totals},
    payment::Reversal,
    product::ShortLine,
};
use serde::{Deserialize, Serialize};

/// Something that happened to an order. Stored as JSON and never altered: fields are added as
/// options, meanings stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// It was accepted.
    Placed(Box<Placed>),
    /// It is of the past.
    Imported(Box<Imported>),
    /// Its stock is held; now it is to be paid for.
    AwaitingPayment {
        /// Stock is held until then.
        held_until: Timestamp,
        /// Payment is awaited until then.
        pay_by: Timestamp,
    },
    /// Its stock is held again.
    StockHeld {
        /// Until then.
        held_until: Timestamp,
    },
    /// Its stock is not held any more.
    StockExpired,
    /// A payment is asked for.
    PaymentRequested {
        /// Counted from 1.
        attempt: u32,
        /// From which card.
        method_id: Option<MethodId>,
    },
    /// Money is promised, and the stock has to be held again before that counts.
    PaymentAuthorized {
        /// Counted from 1.
        attempt: u32,
    },
    /// A payment was refused.
    PaymentFailed {
        /// Counted from 1.
        attempt: u32,
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
    },
    /// Money is promised and stock is held.
    Confirmed {
        /// The attempt that was paid.
        attempt: u32,
    },
    /// It came to nothing.
    Rejected {
        /// Why.
        reason: String,
        /// What there was too little of.
        short: Vec<ShortLine>,
        /// What has to be undone.
        undo: Undo,
    },
    /// It is being undone: replies that still arrive are noted and not acted on.
    Cancelling {
        /// Why.
        reason: String,
        /// What has to be undone.
        undo: Undo,
    },
    /// A reply came too late to count.
    ReplyNoted {
        /// What it said.
        reply: String,
        /// What has to be undone for it.
        undo: Undo,
    },
    /// The release of its stock was acknowledged.
    StockReleased,
    /// The reversal of its payment was acknowledged.
    PaymentReversed {
        /// Counted from 1.
        attempt: u32,
        /// What there was.
        reversal: Reversal,
    },
    /// Everything is undone.
    Cancelled,
    /// The money was taken.
    PaymentCaptured {
        /// How much.
        amount: Money,
    },
    /// Money was given back.
    PaymentRefunded {
        /// How much.
        amount: Money,
        /// Whether nothing is left.
        full: bool,
    },
    /// The promise was undone.
    PaymentVoided,
}

/// What has to be undone by command, again and again until it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The stock.
    pub release: bool,
    /// The payment.
    pub reverse: bool,
}

/// An order as it was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// For people.
    pub number: String,
    /// Whose.
    pub user_id: UserId,
    /// Where mail goes.
    pub email: String,
    /// What is bought.
    pub lines: Vec<OrderLine>,
    /// The sums.
    pub totals: Totals,
    /// Where to.
    pub address: Option<Address>,
    /// Which way.
    pub shipping_option: Option<String>,
    /// Paid with.
    pub method_id: Option<MethodId>,
    /// The cart it was made from, by the store's name for it.
    pub cart: String,
    /// Without an answer about its stock it is rejected then.
    pub reserve_by: Timestamp,
}

/// An order of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// Its number where it comes from.
    pub number: String,
    /// Whose.
    pub user_id: UserId,
    /// What was bought.
    pub lines: Vec<OrderLine>,
    /// The sums.
    pub totals: Totals,
    /// When.
    pub placed_at: Timestamp,
}

impl Fact {
    /// Its name in histories.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Placed(_) => "placed",
            Self::Imported(_) => "imported",
            Self::AwaitingPayment { .. } => "awaiting_payment",
            Self::StockHeld { .. } => "stock_held",
            Self::StockExpired => "stock_expired",
            Self::PaymentRequested { .. } => "payment_requested",
            Self::PaymentAuthorized { .. } => "payment_authorized",
            Self::PaymentFailed { .. } => "payment_failed",
            Self::Confirmed { .. } => "confirmed",
            Self::Rejected { .. } => "rejected",
            Self::Cancelling { .. } => "cancelling",
            Self::ReplyNoted { .. } => "reply_noted",
            Self::StockReleased => "stock_released",
            Self::PaymentReversed { .. } => "payment_reversed",
            Self::Cancelled => "cancelled",
            Self::PaymentCaptured { .. } => "payment_captured",
            Self::PaymentRefunded { .. } => "payment_refunded",
            Self::PaymentVoided => "payment_voided",
        }
    }

    /// A sentence for people.
    pub fn summary(&self) -> String {
        match self {
            Self::Placed(placed) => {
                format!(
                    "Order {} over {} was placed.",
                    placed.number, placed.totals.gross
                )
            }
            Self::Imported(imported) => format!("Order {} was imported.", imported.number),
            Self::AwaitingPayment { pay_by, .. } => {
                format!("Stock is held; payment is awaited until {pay_by}.")
            }
            Self::StockHeld { held_until } => format!("Stock is held again until {held_until}."),
            Self::StockExpired => "Stock is not held any more.".to_owned(),
            Self::PaymentRequested { attempt, .. } => format!("Payment {attempt} was asked for."),
            Self::PaymentAuthorized { attempt } => {
                format!("Payment {attempt} was authorised; stock has to be held again.")
            }
            Self::PaymentFailed { attempt, code, .. } => {
                format!("Payment {attempt} was refused: {code}.")
            }
            Self::Confirmed { attempt } => {
                format!("Payment {attempt} was authorised and the order confirmed.")
            }
            Self::Rejected { reason, .. } => format!("The order was rejected: {reason}."),
            Self::Cancelling { reason, .. } => format!("The order is being cancelled: {reason}."),
            Self::ReplyNoted { reply, .. } => format!("A reply came too late: {reply}."),
            Self::StockReleased => "The stock was released.".to_owned(),
            Self::PaymentReversed { attempt, reversal } => match reversal {
                Reversal::Voided => format!("Payment {attempt} was voided."),
                Reversal::Refunded => format!("Payment {attempt} was refunded."),
                Reversal::Nothing => format!("Payment {attempt} had nothing to reverse."),
            },
            Self::Cancelled => "The order was cancelled.".to_owned(),
            Self::PaymentCaptured { amount } => format!("{amount} was taken."),
            Self::PaymentRefunded { amount, full: true } => {
                format!("{amount} was given back: all of it.")
            }
            Self::PaymentRefunded {
                amount,
                full: false,
            } => format!("{amount} was given back."),
            Self::PaymentVoided => "The authorisation was undone.".to_owned(),
        }
    }
}
