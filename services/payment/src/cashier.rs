//! Moving money: the store and the provider, kept in step.
//!
//! The store is written before the provider is asked and again after it has answered, and no
//! transaction is open in between. Whatever gets lost on the way, the row that was written first
//! says that there is something to ask again, and the provider knows the payment by its id.

use std::{sync::Arc, time::Duration};

use contracts::{
    Fields, PaymentId, Reason, Timestamp,
    order::OrderConfirmed,
    payment::{
        AddMethod, Authorization, Authorize, Method, Payment, PaymentState, Reversal, Reverse,
    },
};
use nestling::{Context, RpcError};

use crate::{
    payment::{REVERSED, authorization, declined},
    provider::{Charge, ChargeState, Provider, ProviderError},
    store::{Begun, PaymentStore, Standing},
};

/// How often unfinished payments are looked for, and how old they are then.
const RESUME: Duration = Duration::from_secs(2);

/// Keeps payments and their charges in step.
#[derive(Clone, Debug)]
pub(crate) struct Cashier {
    pub(crate) store: PaymentStore,
    pub(crate) provider: Arc<dyn Provider>,
}

impl Cashier {
    /// The number goes to the provider and is dropped here.
    pub(crate) async fn add_method(&self, request: AddMethod) -> Result<Method, RpcError> {
        request.validate()?;
        let AddMethod { user_id, card } = request;
        let exp = card.exp.clone();
        let mut fields = Fields::new();
        fields.check(
            !is_over(&exp, Timestamp::now()),
            "/card/exp",
            "expired",
            "a month to come",
        );
        fields.finish()?;
        match self.provider.tokenize(card).await {
            Ok(stored) => self.store.add_method(user_id, stored, &exp).await,
            Err(ProviderError::CardRefused) => {
                let mut fields = Fields::new();
                let message = "only the test cards are accepted";
                fields.check(false, "/card/pan", "card_number", message);
                let invalid = fields.finish().err();
                Err(invalid.unwrap_or_else(|| Reason::Validation.error(message)))
            }
            Err(error) => Err(no_answer(error)),
        }
    }

    pub(crate) async fn authorize(&self, request: &Authorize) -> Result<Authorization, RpcError> {
        let mut fields = Fields::new();
        fields.check(request.amount.amount >= 0, "/amount", "range", "0 or more");
        fields.finish()?;
        let id = request.payment_id;
        let standing = match self.store.begin(request).await? {
            Begun::Reversed => return Ok(declined(REVERSED)),
            Begun::New(standing) if standing.state == PaymentState::Pending => {
                let asked = self.ask(id, &standing).await;
                self.learn(id, standing, asked).await?
            }
            Begun::New(standing) => standing,
            Begun::Known(standing) => self.resume(id, standing).await?,
        };
        Ok(answer(&standing))
    }

    /// What has to be done about a payment that was begun before: an answer that never came is
    /// asked for again, and a reversal that was wanted is made.
    async fn resume(&self, id: PaymentId, standing: Standing) -> Result<Standing, RpcError> {
        if standing.is_reversed {
            return self.undo(id, standing).await;
        }
        if standing.state != PaymentState::Pending {
            return Ok(standing);
        }
        let asked = match self.provider.status(id).await {
            Ok(Charge {
                state: ChargeState::Unknown,
                ..
            }) => self.ask(id, &standing).await,
            Ok(charge) => Ok(charge),
            Err(error) => Err(no_answer(error)),
        };
        self.learn(id, standing, asked).await
    }

    async fn ask(&self, id: PaymentId, standing: &Standing) -> Result<Charge, RpcError> {
        let token = self.store.token(id).await?;
        self.provider
            .authorize(id, token, standing.amount)
            .await
            .map_err(no_answer)
    }

    /// Writes down what the provider said; silence leaves the payment as it stood.
    async fn learn(
        &self,
        id: PaymentId,
        standing: Standing,
        asked: Result<Charge, RpcError>,
    ) -> Result<Standing, RpcError> {
        let charge = match asked {
            Ok(charge) => charge,
            Err(error) if error.code.may_pass() => {
                tracing::warn!(payment = %id, ?error, "the provider has not said yet");
                return Ok(standing);
            }
            Err(error) => return Err(error),
        };
        let standing = self.store.apply(id, &charge, None).await?;
        // It may have been reversed while the provider was thinking.
        if standing.is_reversed {
            self.undo(id, standing).await
        } else {
            Ok(standing)
        }
    }

    /// Takes the money of an authorised payment; `event` is what asks for it, if it is an event.
    pub(crate) async fn capture(
        &self,
        id: PaymentId,
        event: Option<&Context>,
    ) -> Result<Payment, RpcError> {
        let Some(mut standing) = self.store.standing(id).await? else {
            if self.store.is_reversed(id).await? {
                return Err(conflict());
            }
            return Err(unknown());
        };
        if standing.state == PaymentState::Authorized && !standing.is_reversed {
            let charge = match standing.amount.amount {
                0 => local(ChargeState::Captured),
                _ => self.provider.capture(id).await.map_err(no_answer)?,
            };
            standing = self.store.apply(id, &charge, event).await?;
        }
        match standing.state {
            PaymentState::Captured | PaymentState::Refunded => self.get(id).await,
            _ => Err(conflict()),
        }
    }

    /// A confirmed order is paid for.
    pub(crate) async fn confirmed(
        &self,
        event: &OrderConfirmed,
        cx: &Context,
    ) -> Result<(), RpcError> {
        let id = event.payment_id;
        let refused = match self.capture(id, Some(cx)).await {
            Ok(_) => return Ok(()),
            Err(error) if Reason::of(&error) == Some(Reason::StateConflict) => error,
            Err(error) => return Err(error),
        };
        // A cancellation may have overtaken the confirmation; then there is nothing to take.
        if self.store.is_reversed(id).await? {
            return Ok(());
        }
        match self.store.standing(id).await? {
            Some(Standing {
                state: PaymentState::Pending | PaymentState::Authorized,
                ..
            }) => Err(RpcError::unavailable("the payment is not authorized yet")),
            _ => Err(refused),
        }
    }

    pub(crate) async fn reverse(&self, request: &Reverse) -> Result<Reversal, RpcError> {
        let id = request.payment_id;
        let Some(standing) = self.store.want_reversal(id, &request.reason).await? else {
            return Ok(Reversal::Nothing);
        };
        match self.undo(id, standing).await?.state {
            PaymentState::Voided => Ok(Reversal::Voided),
            PaymentState::Refunded => Ok(Reversal::Refunded),
            PaymentState::Declined => Ok(Reversal::Nothing),
            PaymentState::Pending | PaymentState::Authorized | PaymentState::Captured => {
                Err(Reason::Unavailable.error("the payment could not be reversed yet"))
            }
        }
    }

    /// Voids or refunds, whichever there is to do.
    async fn undo(&self, id: PaymentId, mut standing: Standing) -> Result<Standing, RpcError> {
        // A void that comes too late finds the money captured, and then it is refunded.
        for _ in 0..2 {
            let is_ours = standing.amount.amount == 0;
            let charge = match standing.state {
                PaymentState::Pending | PaymentState::Authorized if is_ours => {
                    local(ChargeState::Voided)
                }
                PaymentState::Captured if is_ours => local(ChargeState::Refunded),
                PaymentState::Pending | PaymentState::Authorized => {
                    self.provider.void(id).await.map_err(no_answer)?
                }
                PaymentState::Captured => self.provider.refund(id).await.map_err(no_answer)?,
                PaymentState::Declined | PaymentState::Voided | PaymentState::Refunded => break,
            };
            standing = self.store.apply(id, &charge, None).await?;
        }
        Ok(standing)
    }

    pub(crate) async fn get(&self, id: PaymentId) -> Result<Payment, RpcError> {
        self.store.get(id).await?.ok_or_else(unknown)
    }

    /// Finishes what was left unfinished, for as long as the service runs.
    pub(crate) async fn resume_all(self) {
        loop {
            if let Err(error) = self.resume_due(Timestamp::now()).await {
                tracing::warn!(?error, "unfinished payments could not be resumed");
            }
            tokio::time::sleep(RESUME).await;
        }
    }

    async fn resume_due(&self, now: Timestamp) -> Result<(), RpcError> {
        let age = i64::try_from(RESUME.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::from_millis(now.millis().saturating_sub(age));
        for id in self.store.unfinished(before).await? {
            if let Some(standing) = self.store.standing(id).await? {
                let resumed = self.resume(id, standing).await;
                if let Err(error) = resumed {
                    tracing::warn!(payment = %id, ?error, "a payment is still unfinished");
                }
            }
        }
        Ok(())
    }
}

fn answer(standing: &Standing) -> Authorization {
    match standing.state {
        PaymentState::Declined => authorization(standing.state, standing.decline_code.as_deref()),
        _ if standing.is_reversed => declined(REVERSED),
        state => authorization(state, None),
    }
}

/// A charge that needs no provider, because nothing is paid.
fn local(state: ChargeState) -> Charge {
    Charge {
        state,
        reference: None,
    }
}

/// Whether a card with this `MM/YY` can no longer be used.
fn is_over(exp: &str, now: Timestamp) -> bool {
    // The text of a time starts with `YYYY-MM`.
    let now = now.to_string();
    let this_month = (now.get(2..4), now.get(5..7));
    exp.split_once('/')
        .is_none_or(|(month, year)| (Some(year), Some(month)) < this_month)
}

fn no_answer(error: ProviderError) -> RpcError {
    Reason::Unavailable
        .error("the card provider cannot be reached")
        .with_source(error)
}

fn unknown() -> RpcError {
    Reason::NotFound.error("no such payment")
}

fn conflict() -> RpcError {
    Reason::StateConflict.error("the payment is not authorized")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_good_until_the_end_of_its_month() {
        let now: Timestamp = "2026-11-30T23:59:59Z".parse().unwrap();
        for (exp, over) in [
            ("11/26", false),
            ("12/26", false),
            ("01/27", false),
            ("10/26", true),
            ("12/25", true),
        ] {
            assert_eq!(is_over(exp, now), over, "{exp}");
        }
    }
}
