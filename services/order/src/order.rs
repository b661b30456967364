//! The order: what it is, what it may become, and what has to be done next. No I/O.
//!
//! An [`Order`] is the fold of its [`Fact`]s. [`Order::decide`] turns what arrived into the facts
//! that follow from it, and [`Order::next_step`] says what its saga does next; both look at nothing
//! but the order and the time they are given.

use contracts::{
    Currency, MethodId, Money, OrderId, PaymentId, Timestamp, UserId,
    order::{
        Address, FulfilmentStatus, LineState, OrderLine, OrderStatus, OrderView, PaymentStatus,
        Totals,
    },
    payment::{Reversal, payment_id},
    product::ShortLine,
};

pub use crate::input::{Input, Step};
use crate::{
    error::Error,
    fact::{Fact, Placed, Undo},
};

/// How many payments may be tried.
const MOST_ATTEMPTS: u32 = 3;
/// Stock that is held for less than this counts as not held: the commit needs time to arrive.
const HOLD_SLACK_MS: i64 = 10_000;

/// An order, as of its latest fact.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Id.
    pub id: OrderId,
    /// How many facts made it.
    pub version: u64,
    /// For people.
    pub number: String,
    /// Whose.
    pub user_id: UserId,
    /// Where mail goes.
    pub email: String,
    /// When.
    pub placed_at: Timestamp,
    /// Where it stands.
    pub status: OrderStatus,
    /// Where its payment stands.
    pub payment: PaymentStatus,
    /// Where its goods are.
    pub fulfilment: FulfilmentStatus,
    /// Why it was rejected or cancelled.
    pub reason: Option<String>,
    /// What there was too little of.
    pub short: Vec<ShortLine>,
    /// What was bought.
    pub lines: Vec<OrderLine>,
    /// The sums.
    pub totals: Totals,
    /// Where to.
    pub address: Option<Address>,
    /// The cart it was made from.
    pub cart: String,
    /// Paid with.
    pub method_id: Option<MethodId>,
    /// The latest payment, counted from 1; 0 before the first.
    pub attempt: u32,
    /// Why the latest payment was refused.
    pub decline_code: Option<String>,
    /// Until when its stock is held, if it is.
    pub held_until: Option<Timestamp>,
    /// Until when it waits: for stock, then for payment.
    pub deadline: Timestamp,
    /// Whether it was confirmed before it was cancelled.
    pub was_confirmed: bool,
    /// What has to be undone and is not yet.
    pub undo: Undo,
}

impl Order {
    /// An order that nothing has happened to.
    pub fn blank(id: OrderId) -> Self {
        let nothing = Money::zero(Currency::default());
        Self {
            id,
            version: 0,
            number: String::new(),
            user_id: uuid::Uuid::nil().into(),
            email: String::new(),
            placed_at: Timestamp::from_millis(0),
            status: OrderStatus::Placed,
            payment: PaymentStatus::None,
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
            cart: String::new(),
            method_id: None,
            attempt: 0,
            decline_code: None,
            held_until: None,
            deadline: Timestamp::from_millis(0),
            was_confirmed: false,
            undo: Undo::default(),
        }
    }

    /// What follows from `input`: nothing when it is known already or does not concern the order.
    ///
    /// # Errors
    /// [`Error::NotPayable`] and [`Error::NotCancellable`] for commands that the state forbids.
    pub fn decide(&self, input: &Input, now: Timestamp) -> Result<Vec<Fact>, Error> {
        Ok(match input {
            Input::Pay { method_id } => {
                if !self.can_pay(now) {
                    return Err(Error::NotPayable);
                }
                vec![self.request_payment(Some(*method_id))]
            }
            Input::Cancel { reason } => self.cancel(reason)?,
            Input::Held { until, pay_by } => self.held(*until, *pay_by),
            Input::Short { lines } => self.not_held("out_of_stock", lines),
            Input::HoldRefused => self.not_held("stock_unavailable", &[]),
            Input::Authorized { attempt } => self.authorized(*attempt, now),
            Input::Declined {
                attempt,
                code,
                message,
            } => self.declined(*attempt, code, message),
            Input::Tick => self.look_at_deadline(now),
            Input::Released if self.undo.release => {
                self.undone(Fact::StockReleased, self.undo.reverse)
            }
            Input::Reversed { attempt, reversal } if self.undo.reverse => {
                let reversed = Fact::PaymentReversed {
                    attempt: *attempt,
                    reversal: *reversal,
                };
                self.undone(reversed, self.undo.release)
            }
            Input::Released | Input::Reversed { .. } => vec![],
            Input::StockExpired => {
                let concerns = self.is_awaiting() && self.held_until.is_some();
                if concerns {
                    vec![Fact::StockExpired]
                } else {
                    vec![]
                }
            }
            Input::Captured { payment_id, amount } => {
                let is_news = matches!(
                    self.payment,
                    PaymentStatus::Pending | PaymentStatus::Authorized
                );
                self.told(
                    *payment_id,
                    is_news,
                    Fact::PaymentCaptured { amount: *amount },
                )
            }
            Input::Refunded {
                payment_id,
                amount,
                full,
            } => {
                let is_news = self.payment != PaymentStatus::Refunded;
                let refunded = Fact::PaymentRefunded {
                    amount: *amount,
                    full: *full,
                };
                self.told(*payment_id, is_news, refunded)
            }
            Input::Voided { payment_id } => {
                let is_news = matches!(
                    self.payment,
                    PaymentStatus::Pending | PaymentStatus::Authorized
                );
                self.told(*payment_id, is_news, Fact::PaymentVoided)
            }
        })
    }

    fn can_pay(&self, now: Timestamp) -> bool {
        self.is_awaiting()
            && matches!(self.payment, PaymentStatus::None | PaymentStatus::Failed)
            && self.attempt < MOST_ATTEMPTS
            && now < self.deadline
    }

    fn cancel(&self, reason: &str) -> Result<Vec<Fact>, Error> {
        if matches!(
            self.status,
            OrderStatus::Cancelling | OrderStatus::Cancelled
        ) {
            return Ok(vec![]);
        }
        if !self.can_cancel() {
            return Err(Error::NotCancellable);
        }
        let undo = Undo {
            release: true,
            reverse: self.attempt > 0,
        };
        Ok(vec![Fact::Cancelling {
            reason: reason.to_owned(),
            undo,
        }])
    }

    fn held(&self, held_until: Timestamp, pay_by: Timestamp) -> Vec<Fact> {
        match (self.status, self.payment) {
            (OrderStatus::Placed, _) => {
                let mut facts = vec![Fact::AwaitingPayment { held_until, pay_by }];
                // Without a card there is nothing to ask, unless there is nothing to pay.
                if self.method_id.is_some() || self.totals.gross.amount == 0 {
                    facts.push(self.request_payment(self.method_id));
                }
                facts
            }
            (OrderStatus::AwaitingPayment, PaymentStatus::Authorized) => {
                vec![
                    Fact::StockHeld { held_until },
                    Fact::Confirmed {
                        attempt: self.attempt,
                    },
                ]
            }
            _ => self.noted(
                "stock is held",
                Undo {
                    release: true,
                    reverse: false,
                },
            ),
        }
    }

    /// Even a short answer is followed by a release: an earlier try may still be under way.
    fn not_held(&self, reason: &str, short: &[ShortLine]) -> Vec<Fact> {
        let is_holding_again = self.is_awaiting() && self.payment == PaymentStatus::Authorized;
        if self.status == OrderStatus::Placed || is_holding_again {
            vec![self.reject(reason, short.to_vec())]
        } else {
            self.noted("stock is not held", Undo::default())
        }
    }

    fn authorized(&self, attempt: u32, now: Timestamp) -> Vec<Fact> {
        if attempt != self.attempt {
            return vec![];
        }
        if self.is_awaiting() && self.payment == PaymentStatus::Pending {
            let is_held = self
                .held_until
                .is_some_and(|until| until.millis() - now.millis() >= HOLD_SLACK_MS);
            return vec![match is_held {
                true => Fact::Confirmed { attempt },
                false => Fact::PaymentAuthorized { attempt },
            }];
        }
        self.noted(
            "payment was authorised",
            Undo {
                release: false,
                reverse: true,
            },
        )
    }

    fn declined(&self, attempt: u32, code: &str, message: &str) -> Vec<Fact> {
        if attempt != self.attempt {
            return vec![];
        }
        if self.is_awaiting() && self.payment == PaymentStatus::Pending {
            let (code, message) = (code.to_owned(), message.to_owned());
            let mut facts = vec![Fact::PaymentFailed {
                attempt,
                code: code.clone(),
                message,
            }];
            if attempt >= MOST_ATTEMPTS {
                facts.push(self.reject(&code, Vec::new()));
            }
            return facts;
        }
        self.noted("payment was refused", Undo::default())
    }

    fn look_at_deadline(&self, now: Timestamp) -> Vec<Fact> {
        if now < self.deadline {
            return vec![];
        }
        let reason = match (self.status, self.payment, &self.decline_code) {
            (OrderStatus::Placed, ..) => "stock_unavailable",
            (OrderStatus::AwaitingPayment, PaymentStatus::Authorized, _) => "stock_unavailable",
            (OrderStatus::AwaitingPayment, PaymentStatus::Failed, Some(code)) => code,
            (OrderStatus::AwaitingPayment, ..) => "payment_timeout",
            _ => return vec![],
        };
        vec![self.reject(reason, Vec::new())]
    }

    fn reject(&self, reason: &str, short: Vec<ShortLine>) -> Fact {
        let undo = Undo {
            release: true,
            reverse: self.attempt > 0,
        };
        Fact::Rejected {
            reason: reason.to_owned(),
            short,
            undo,
        }
    }

    fn request_payment(&self, method_id: Option<MethodId>) -> Fact {
        Fact::PaymentRequested {
            attempt: self.attempt + 1,
            method_id,
        }
    }

    /// A saga's reply that cannot count any more is recorded where something is or was undone.
    fn noted(&self, reply: &str, undo: Undo) -> Vec<Fact> {
        let is_undone = matches!(
            self.status,
            OrderStatus::Rejected | OrderStatus::Cancelling | OrderStatus::Cancelled
        );
        if !is_undone {
            return vec![];
        }
        vec![Fact::ReplyNoted {
            reply: reply.to_owned(),
            undo,
        }]
    }

    fn undone(&self, fact: Fact, more_to_undo: bool) -> Vec<Fact> {
        if self.status == OrderStatus::Cancelling && !more_to_undo {
            return vec![fact, Fact::Cancelled];
        }
        vec![fact]
    }

    /// What payment tells counts once checkout is over: until then its replies do.
    fn told(&self, payment_id: PaymentId, is_news: bool, fact: Fact) -> Vec<Fact> {
        let is_checkout = matches!(
            self.status,
            OrderStatus::Placed | OrderStatus::AwaitingPayment
        );
        if is_checkout || !is_news || self.payment_id() != Some(payment_id) {
            return vec![];
        }
        vec![fact]
    }

    fn is_awaiting(&self) -> bool {
        self.status == OrderStatus::AwaitingPayment
    }

    /// Takes a fact in.
    pub fn apply(&mut self, fact: &Fact, at: Timestamp) {
        self.version += 1;
        match fact {
            Fact::Placed(placed) => self.placed(placed, at),
            Fact::Imported(imported) => {
                self.number.clone_from(&imported.number);
                self.user_id = imported.user_id;
                self.lines.clone_from(&imported.lines);
                self.totals = imported.totals;
                self.placed_at = imported.placed_at;
                self.status = OrderStatus::Completed;
                self.payment = PaymentStatus::Captured;
                self.fulfilment = FulfilmentStatus::Delivered;
            }
            Fact::AwaitingPayment { held_until, pay_by } => {
                self.status = OrderStatus::AwaitingPayment;
                self.held_until = Some(*held_until);
                self.deadline = *pay_by;
            }
            Fact::StockHeld { held_until } => self.held_until = Some(*held_until),
            Fact::StockExpired => self.held_until = None,
            Fact::PaymentRequested { attempt, method_id } => {
                self.attempt = *attempt;
                self.method_id = *method_id;
                self.payment = PaymentStatus::Pending;
            }
            Fact::PaymentAuthorized { .. } => self.payment = PaymentStatus::Authorized,
            Fact::PaymentFailed { code, .. } => {
                self.payment = PaymentStatus::Failed;
                self.decline_code = Some(code.clone());
            }
            Fact::Confirmed { .. } => {
                self.status = OrderStatus::Confirmed;
                self.payment = PaymentStatus::Authorized;
                self.was_confirmed = true;
            }
            Fact::Rejected {
                reason,
                short,
                undo,
            } => {
                self.status = OrderStatus::Rejected;
                self.reason = Some(reason.clone());
                self.short.clone_from(short);
                self.add_undo(*undo);
                self.drop_lines();
            }
            Fact::Cancelling { reason, undo } => {
                self.status = OrderStatus::Cancelling;
                self.reason = Some(reason.clone());
                self.add_undo(*undo);
            }
            Fact::ReplyNoted { undo, .. } => self.add_undo(*undo),
            Fact::StockReleased => {
                self.undo.release = false;
                self.held_until = None;
            }
            Fact::PaymentReversed { reversal, .. } => {
                self.undo.reverse = false;
                let was_promised = matches!(
                    self.payment,
                    PaymentStatus::Pending | PaymentStatus::Authorized
                );
                match reversal {
                    Reversal::Refunded => self.payment = PaymentStatus::Refunded,
                    Reversal::Voided | Reversal::Nothing if was_promised => {
                        self.payment = PaymentStatus::Voided;
                    }
                    Reversal::Voided | Reversal::Nothing => {}
                }
            }
            Fact::Cancelled => {
                self.status = OrderStatus::Cancelled;
                self.drop_lines();
            }
            Fact::PaymentCaptured { .. } => self.payment = PaymentStatus::Captured,
            Fact::PaymentRefunded { full: true, .. } => self.payment = PaymentStatus::Refunded,
            Fact::PaymentRefunded { full: false, .. } => {
                self.payment = PaymentStatus::PartiallyRefunded;
            }
            Fact::PaymentVoided => self.payment = PaymentStatus::Voided,
        }
    }

    fn placed(&mut self, placed: &Placed, at: Timestamp) {
        self.number.clone_from(&placed.number);
        self.user_id = placed.user_id;
        self.email.clone_from(&placed.email);
        self.lines.clone_from(&placed.lines);
        self.totals = placed.totals;
        self.address.clone_from(&placed.address);
        self.cart.clone_from(&placed.cart);
        self.method_id = placed.method_id;
        self.deadline = placed.reserve_by;
        self.placed_at = at;
    }

    fn add_undo(&mut self, undo: Undo) {
        self.undo.release |= undo.release;
        self.undo.reverse |= undo.reverse;
    }

    fn drop_lines(&mut self) {
        for line in &mut self.lines {
            line.state = LineState::Cancelled;
        }
    }

    /// What its saga does next; nothing when it is over.
    pub fn next_step(&self) -> Option<Step> {
        if self.undo != Undo::default() {
            return Some(Step::Compensate);
        }
        match (self.status, self.payment) {
            (OrderStatus::Placed, _) => Some(Step::Reserve),
            (OrderStatus::AwaitingPayment, PaymentStatus::Pending) => Some(Step::Authorize),
            (OrderStatus::AwaitingPayment, PaymentStatus::Authorized) => Some(Step::Reserve),
            (OrderStatus::AwaitingPayment, _) => Some(Step::AwaitPayment),
            _ => None,
        }
    }

    /// When that step's time runs out, if it does.
    pub fn step_deadline(&self) -> Option<Timestamp> {
        let has_one = matches!(
            self.status,
            OrderStatus::Placed | OrderStatus::AwaitingPayment
        );
        has_one.then_some(self.deadline)
    }

    /// The payment of the latest attempt.
    pub fn payment_id(&self) -> Option<PaymentId> {
        (self.attempt > 0).then(|| payment_id(self.id, self.attempt))
    }

    /// Whether its buyer may still cancel it.
    pub fn can_cancel(&self) -> bool {
        let is_open = matches!(
            self.status,
            OrderStatus::Placed | OrderStatus::AwaitingPayment | OrderStatus::Confirmed
        );
        is_open
            && self
                .lines
                .iter()
                .all(|line| line.state == LineState::Pending)
    }

    /// As its buyer sees it.
    pub fn view(&self) -> OrderView {
        OrderView {
            id: self.id,
            number: self.number.clone(),
            user_id: self.user_id,
            email: self.email.clone(),
            status: self.status,
            payment: self.payment,
            fulfilment: self.fulfilment,
            reason: self.reason.clone(),
            short: self.short.clone(),
            lines: self.lines.clone(),
            totals: self.totals,
            address: self.address.clone(),
            payment_id: self.payment_id(),
            attempts: self.attempt,
            can_cancel: self.can_cancel(),
            version: self.version,
            placed_at: self.placed_at,
        }
    }
}

/// The number of a new order: short enough to be told on the phone.
pub fn number(id: OrderId) -> String {
    let text = id.to_string();
    // The last eight characters are random, the first say when.
    format!("N-{}", &text[text.len() - 8..])
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
