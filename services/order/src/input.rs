//! [`Input`] and [`Step`]: what arrives at an order, and what its saga does about it.

use contracts::{MethodId, Money, PaymentId, Timestamp, payment::Reversal, product::ShortLine};

/// What arrives at an order: a command of its buyer, a reply to its saga, or a fact from elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Another payment.
    Pay {
        /// From which card.
        method_id: MethodId,
    },
    /// Undo it.
    Cancel {
        /// Why.
        reason: String,
    },
    /// Its stock is held.
    Held {
        /// Stock is held until then.
        until: Timestamp,
        /// Payment is awaited until then, if this is the first answer.
        pay_by: Timestamp,
    },
    /// There is too little stock.
    Short {
        /// Of these.
        lines: Vec<ShortLine>,
    },
    /// Stock cannot be held, and asking again will not help.
    HoldRefused,
    /// Money is promised.
    Authorized {
        /// Counted from 1.
        attempt: u32,
    },
    /// A payment was refused.
    Declined {
        /// Counted from 1.
        attempt: u32,
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
    },
    /// It is time to look at the deadline.
    Tick,
    /// The release was acknowledged.
    Released,
    /// The reversal was acknowledged.
    Reversed {
        /// Counted from 1.
        attempt: u32,
        /// What there was.
        reversal: Reversal,
    },
    /// The reservation has run out.
    StockExpired,
    /// Money was taken.
    Captured {
        /// By which payment.
        payment_id: PaymentId,
        /// How much.
        amount: Money,
    },
    /// Money was given back.
    Refunded {
        /// By which payment.
        payment_id: PaymentId,
        /// How much.
        amount: Money,
        /// Whether nothing is left.
        full: bool,
    },
    /// The promise was undone.
    Voided {
        /// Of which payment.
        payment_id: PaymentId,
    },
}

/// What a saga does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asks for stock.
    Reserve,
    /// Asks for money.
    Authorize,
    /// Waits for the buyer, until the deadline.
    AwaitPayment,
    /// Releases and reverses what has to be undone.
    Compensate,
}

impl Step {
    /// Its name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Authorize => "authorize",
            Self::AwaitPayment => "await_payment",
            Self::Compensate => "compensate",
        }
    }
}
