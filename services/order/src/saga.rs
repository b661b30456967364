//! The saga: drives every order from placed to settled, through crashes.
//!
//! A row in the database says what an order's saga does next and when. A woken or due saga is
//! claimed under a lease, its steps run one after the other, and each answer is appended to the
//! order before the next step is looked at. Every step may be repeated, so whoever crashed in the
//! middle of one is followed by somebody who does it again once the lease has run out.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use contracts::{
    OrderId,
    order::OrderStatus,
    payment::{Authorization, Authorize, Reverse, payment_id},
    product::{Quantity, ReleaseStock, Reservation, ReserveStock},
};
use nestling::{Client, Code, Context, Envelope, RpcError, header};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};

use crate::{
    config::{Clock, Config},
    error::Error,
    order::{Input, Order, Step},
    orders::record,
    store::{Claim, Store},
};

/// How many orders may wait to be looked at; what is beyond it is found by the next tick.
const QUEUE: usize = 1024;

/// Tells the saga that an order has something to be done now.
#[derive(Clone, Debug)]
pub(crate) struct Wake {
    orders: mpsc::Sender<OrderId>,
}

impl Wake {
    /// The two ends.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<OrderId>) {
        let (orders, woken) = mpsc::channel(QUEUE);
        (Self { orders }, woken)
    }

    /// Wakes the saga of an order. It would be found without, only later.
    pub(crate) fn order(&self, order_id: OrderId) {
        if let Err(error) = self.orders.try_send(order_id) {
            tracing::debug!(%order_id, %error, "left to the next tick");
        }
    }
}

/// Whoever runs the steps.
#[derive(Debug)]
pub(crate) struct Saga {
    pub(crate) store: Store,
    pub(crate) product: Client,
    pub(crate) payment: Client,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
}

/// What became of a step.
enum Outcome {
    /// Its answer is recorded.
    Recorded(Order),
    /// There was no answer that counts: the order as it is, and when to ask again.
    Again(Order, Duration),
}

impl Saga {
    /// Runs sagas for as long as it is polled: those that are woken at once, and every tick all
    /// that are due.
    pub(crate) async fn run(self: Arc<Self>, mut woken: mpsc::Receiver<OrderId>) {
        let mut running = JoinSet::new();
        let mut due = VecDeque::new();
        let mut tick = tokio::time::interval(self.config.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.config.concurrency.max(1).saturating_sub(running.len());
            for order_id in due.drain(..room.min(due.len())) {
                running.spawn(Arc::clone(&self).drive(order_id));
            }
            let has_room = running.len() < self.config.concurrency.max(1);
            tokio::select! {
                Some(order_id) = woken.recv(), if has_room => {
                    running.spawn(Arc::clone(&self).drive(order_id));
                }
                _ = tick.tick(), if has_room => match self.store.due_sagas(self.clock.now()).await {
                    Ok(found) => due.extend(found),
                    Err(error) => tracing::warn!(?error, "due orders could not be looked up"),
                },
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a saga panicked; it goes on after its lease");
                    }
                }
            }
        }
    }

    /// Claims the order's saga and runs it until it has to wait.
    async fn drive(self: Arc<Self>, order_id: OrderId) {
        loop {
            let now = self.clock.now();
            let claim = match self.store.claim(order_id, now, self.config.lease).await {
                Ok(Some(claim)) => claim,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%order_id, ?error, "the saga could not be claimed");
                    return;
                }
            };
            if let Err(error) = in_trace(claim.trace.clone(), self.steps(&claim)).await {
                // The lease stays, so that whatever is wrong is not run into again at once.
                tracing::warn!(%order_id, ?error, "the saga stopped; it goes on after its lease");
                return;
            }
            match self.store.give_back(&claim.lease, self.clock.now()).await {
                // Something came in while the lease was held: a cancellation, another payment.
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%order_id, ?error, "the lease could not be given back");
                    return;
                }
            }
        }
    }

    async fn steps(&self, claim: &Claim) -> Result<(), Error> {
        let mut tries = claim.tries;
        let mut order = self.store.order(claim.lease.order_id).await?;
        while let Some(step) = order.next_step() {
            let now = self.clock.now();
            if !self
                .store
                .renew(&claim.lease, now, self.config.lease)
                .await?
            {
                return Ok(());
            }
            let deadline = order.step_deadline().filter(|_| step != Step::Compensate);
            let is_over = deadline.is_some_and(|deadline| deadline <= now);
            let outcome = match step {
                _ if is_over => Outcome::Recorded(self.record(&order, &Input::Tick).await?),
                Step::AwaitPayment => {
                    return self
                        .store
                        .postpone(&claim.lease, &order, 0, order.deadline)
                        .await;
                }
                Step::Reserve => self.reserve(order, tries).await?,
                Step::Authorize => self.authorize(order, tries).await?,
                Step::Compensate => self.compensate(order, tries).await?,
            };
            match outcome {
                Outcome::Recorded(next) => {
                    order = next;
                    tries = 0;
                }
                Outcome::Again(order, pause) => {
                    let next_at = now.plus(pause);
                    let next_at = deadline.map_or(next_at, |deadline| next_at.min(deadline));
                    return self
                        .store
                        .postpone(&claim.lease, &order, tries + 1, next_at)
                        .await;
                }
            }
        }
        Ok(())
    }

    async fn reserve(&self, order: Order, tries: u32) -> Result<Outcome, Error> {
        let quantity = |line: &contracts::order::OrderLine| Quantity {
            product_id: line.product_id,
            qty: line.qty,
        };
        let request = ReserveStock {
            order_id: order.id,
            lines: order.lines.iter().map(quantity).collect(),
            ttl_s: u32::try_from(self.config.hold().as_secs()).unwrap_or(u32::MAX),
        };
        let input = match self
            .product
            .send(request)
            .timeout(self.config.call_timeout)
            .await
        {
            Ok(Reservation::Reserved { expires_at }) => Input::Held {
                until: expires_at,
                pay_by: self.clock.now().plus(self.config.payment_deadline),
            },
            Ok(Reservation::Short { lines }) => Input::Short { lines },
            Ok(Reservation::Released) => Input::HoldRefused,
            Err(error) if may_pass(&error) => {
                return Ok(self.again("reserve", order, tries, &error));
            }
            Err(error) => {
                tracing::warn!(order_id = %order.id, ?error, "stock was refused");
                Input::HoldRefused
            }
        };
        Ok(Outcome::Recorded(self.record(&order, &input).await?))
    }

    async fn authorize(&self, order: Order, tries: u32) -> Result<Outcome, Error> {
        let attempt = order.attempt;
        let request = Authorize {
            payment_id: payment_id(order.id, attempt),
            order_id: order.id,
            user_id: order.user_id,
            amount: order.totals.gross,
            method_id: order.method_id,
        };
        let input = match self
            .payment
            .send(request)
            .timeout(self.config.call_timeout)
            .await
        {
            Ok(Authorization::Authorized) => Input::Authorized { attempt },
            Ok(Authorization::Declined { code, message, .. }) => Input::Declined {
                attempt,
                code,
                message,
            },
            Ok(Authorization::Pending) => {
                return Ok(Outcome::Again(order, self.config.pending_after(tries + 1)));
            }
            Err(error) if may_pass(&error) => {
                return Ok(self.again("authorize", order, tries, &error));
            }
            Err(error) => {
                tracing::warn!(order_id = %order.id, ?error, "the payment was refused");
                Input::Declined {
                    attempt,
                    code: refusal(&error),
                    message: error.message,
                }
            }
        };
        Ok(Outcome::Recorded(self.record(&order, &input).await?))
    }

    /// Both commands are sent whatever becomes of the other, until each was acknowledged.
    async fn compensate(&self, mut order: Order, tries: u32) -> Result<Outcome, Error> {
        let order_id = order.id;
        let reason = order.reason.clone().unwrap_or_default();
        let mut failed = None;
        if order.undo.release {
            let request = ReleaseStock {
                order_id,
                reason: reason.clone(),
            };
            match self
                .product
                .send(request)
                .timeout(self.config.call_timeout)
                .await
            {
                Ok(_) => order = self.record(&order, &Input::Released).await?,
                Err(error) => failed = Some(error),
            }
        }
        if order.undo.reverse {
            let attempt = order.attempt;
            let request = Reverse {
                payment_id: payment_id(order_id, attempt),
                reason,
            };
            match self
                .payment
                .send(request)
                .timeout(self.config.call_timeout)
                .await
            {
                Ok(reversal) => {
                    let input = Input::Reversed { attempt, reversal };
                    order = self.record(&order, &input).await?;
                }
                Err(error) => failed = Some(error),
            }
        }
        Ok(match failed {
            Some(error) => self.again("compensate", order, tries, &error),
            None => Outcome::Recorded(order),
        })
    }

    fn again(&self, step: &str, order: Order, tries: u32, error: &RpcError) -> Outcome {
        let (order_id, status): (_, OrderStatus) = (order.id, order.status);
        tracing::warn!(%order_id, ?status, step, tries, ?error, "no answer yet, asking again");
        Outcome::Again(order, self.config.retry_after(tries + 1))
    }

    async fn record(&self, order: &Order, input: &Input) -> Result<Order, Error> {
        record(&self.store, order.id, input, None, self.clock.now()).await
    }
}

/// Whether asking again may help. A service that is starting or being replaced does not know its
/// patterns yet.
fn may_pass(error: &RpcError) -> bool {
    error.code.may_pass() || error.code == Code::Unimplemented
}

/// Why payment refused to even try, as a decline code.
fn refusal(error: &RpcError) -> String {
    let reason = error
        .details
        .as_ref()
        .and_then(|details| details.get("reason")?.as_str());
    reason.unwrap_or("payment_refused").to_owned()
}

/// Calls made and events written by `work` belong to the trace of the message that began it.
async fn in_trace<F: Future>(trace: Option<String>, work: F) -> F::Output {
    let Some(trace) = trace else {
        return work.await;
    };
    let mut envelope = Envelope::new("order.saga", "");
    envelope.headers.set(header::TRACEPARENT, trace);
    Context::new(envelope, "saga").scope(work).await
}
