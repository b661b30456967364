//! What the rest of the shop is told about an order's facts.

use contracts::{
    Meta, Timestamp,
    order::{
        LineState, OrderAwaitingPayment, OrderCancelled, OrderConfirmed, OrderImported,
        OrderPaymentFailed, OrderPlaced, OrderRejected,
    },
};
use nestling::{RpcError, sqlite::Outbox};
use sqlx::SqliteConnection;

use crate::{fact::Fact, order::Order};

/// Puts the event that belongs to `fact`, if one does, into the outbox. `order` is as the fact left
/// it.
pub(crate) async fn announce(
    outbox: &Outbox,
    tx: &mut SqliteConnection,
    order: &Order,
    fact: &Fact,
    at: Timestamp,
) -> Result<(), RpcError> {
    let (order_id, user_id) = (order.id, order.user_id);
    let meta = Meta {
        at,
        version: order.version,
    };
    match fact {
        Fact::Placed(_) => {
            let (lines, totals) = (order.lines.clone(), order.totals);
            outbox
                .add(
                    tx,
                    &OrderPlaced {
                        order_id,
                        user_id,
                        lines,
                        totals,
                        meta,
                    },
                )
                .await
        }
        Fact::AwaitingPayment { .. } => {
            outbox
                .add(
                    tx,
                    &OrderAwaitingPayment {
                        order_id,
                        user_id,
                        meta,
                    },
                )
                .await
        }
        Fact::PaymentFailed { attempt, code, .. } => {
            let (attempt, code) = (*attempt, code.clone());
            outbox
                .add(
                    tx,
                    &OrderPaymentFailed {
                        order_id,
                        user_id,
                        attempt,
                        code,
                        meta,
                    },
                )
                .await
        }
        Fact::Confirmed { attempt } => {
            let payment_id = contracts::payment::payment_id(order_id, *attempt);
            let order = order.view();
            outbox
                .add(
                    tx,
                    &OrderConfirmed {
                        order_id,
                        order,
                        payment_id,
                        meta,
                    },
                )
                .await
        }
        Fact::Rejected { reason, short, .. } => {
            let (reason, short) = (reason.clone(), short.clone());
            outbox
                .add(
                    tx,
                    &OrderRejected {
                        order_id,
                        user_id,
                        reason,
                        short,
                        meta,
                    },
                )
                .await
        }
        Fact::Cancelled => {
            let (lines, was_confirmed) = (order.lines.clone(), order.was_confirmed);
            let reason = order.reason.clone().unwrap_or_default();
            let event = OrderCancelled {
                order_id,
                user_id,
                reason,
                lines,
                was_confirmed,
                meta,
            };
            outbox.add(tx, &event).await
        }
        Fact::Imported(imported) => {
            let kept = imported
                .lines
                .iter()
                .filter(|line| line.state != LineState::Returned);
            let product_ids: Vec<_> = kept.map(|line| line.product_id).collect();
            if product_ids.is_empty() {
                return Ok(());
            }
            let placed_at = imported.placed_at;
            outbox
                .add(
                    tx,
                    &OrderImported {
                        order_id,
                        user_id,
                        product_ids,
                        placed_at,
                        meta,
                    },
                )
                .await
        }
        Fact::StockHeld { .. }
        | Fact::StockExpired
        | Fact::PaymentRequested { .. }
        | Fact::PaymentAuthorized { .. }
        | Fact::Cancelling { .. }
        | Fact::ReplyNoted { .. }
        | Fact::StockReleased
        | Fact::PaymentReversed { .. }
        | Fact::PaymentCaptured { .. }
        | Fact::PaymentRefunded { .. }
        | Fact::PaymentVoided => Ok(()),
    }
}
