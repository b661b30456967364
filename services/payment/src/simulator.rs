//! The simulated card provider: a task with a log of its own, deterministic by card number.
//!
//! It keeps no card numbers: a token stands for how the card behaves, and only a digest of the
//! token is written down.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use contracts::{Money, PaymentId, Secret, Timestamp, payment::Card};
use nestling::{RpcError, transport::Task};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use uuid::Uuid;

use crate::provider::{Answer, Charge, ChargeState, Provider, ProviderError, StoredCard};

/// How long its answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many requests may wait for it.
const QUEUE: usize = 256;

const APPROVE: &str = "approve";

/// The test cards: number, brand, what happens.
const CARDS: [(&str, &str, &str); 6] = [
    ("4242424242424242", "visa", APPROVE),
    ("5555555555554444", "mastercard", APPROVE),
    ("4000000000000002", "visa", "card_declined"),
    ("4000000000009995", "visa", "insufficient_funds"),
    ("4000000000000069", "visa", "expired_card"),
    ("4000000000000127", "visa", "incorrect_cvc"),
];

const SCHEMA: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS sim_cards (
        token_digest BLOB PRIMARY KEY,
        behaviour TEXT NOT NULL
    ) WITHOUT ROWID",
    // `state` is authorized, declined, captured, voided or refunded.
    "CREATE TABLE IF NOT EXISTS sim_charges (
        payment_id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        code TEXT,
        amount INTEGER NOT NULL,
        currency TEXT NOT NULL
    ) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sim_log (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        payment_id TEXT NOT NULL,
        operation TEXT NOT NULL,
        state TEXT NOT NULL
    )",
];

/// The way to the simulated provider.
#[derive(Clone, Debug)]
pub struct Simulator {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Tokenize(Card, oneshot::Sender<Result<StoredCard, ProviderError>>),
    Charge(
        PaymentId,
        Operation,
        oneshot::Sender<Result<Charge, ProviderError>>,
    ),
}

#[derive(Debug)]
enum Operation {
    Authorize { token: Secret, amount: Money },
    Capture,
    Void,
    Refund,
    Status,
}

impl Simulator {
    /// Starts the provider; it ends with the task.
    ///
    /// # Errors
    /// When its tables cannot be made.
    pub async fn start(pool: SqlitePool) -> Result<(Self, Task), RpcError> {
        for statement in SCHEMA {
            sqlx::query(statement).execute(&pool).await?;
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        Ok((Self { requests }, Task::spawn(answer_all(pool, queue))))
    }

    /// Sends what `request` makes of the way back, and waits for the answer.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, ProviderError>>) -> Request,
    ) -> Result<T, ProviderError> {
        let (answer, reply) = oneshot::channel();
        let asked = async {
            self.requests
                .send(request(answer))
                .await
                .map_err(|_| ProviderError::NoAnswer)?;
            reply.await.map_err(|_| ProviderError::NoAnswer)?
        };
        timeout(PATIENCE, asked)
            .await
            .unwrap_or(Err(ProviderError::NoAnswer))
    }

    fn operate(&self, id: PaymentId, operation: Operation) -> Answer<'_, Charge> {
        Box::pin(self.ask(move |answer| Request::Charge(id, operation, answer)))
    }
}

impl Provider for Simulator {
    fn tokenize(&self, card: Card) -> Answer<'_, StoredCard> {
        Box::pin(self.ask(move |answer| Request::Tokenize(card, answer)))
    }

    fn authorize(&self, id: PaymentId, token: Secret, amount: Money) -> Answer<'_, Charge> {
        self.operate(id, Operation::Authorize { token, amount })
    }

    fn capture(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.operate(id, Operation::Capture)
    }

    fn void(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.operate(id, Operation::Void)
    }

    fn refund(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.operate(id, Operation::Refund)
    }

    fn status(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.operate(id, Operation::Status)
    }
}

async fn answer_all(pool: SqlitePool, mut queue: mpsc::Receiver<Request>) {
    // One after the other: what the provider says has an order.
    while let Some(request) = queue.recv().await {
        // Whoever asked may have stopped waiting; the log has the answer for the next time.
        let is_heard = match request {
            Request::Tokenize(card, answer) => {
                answer.send(known(tokenize(&pool, &card).await)).is_ok()
            }
            Request::Charge(id, operation, answer) => answer
                .send(known(operate(&pool, id, operation).await))
                .is_ok(),
        };
        if !is_heard {
            tracing::debug!("the provider's answer came too late");
        }
    }
}

/// A fault of the simulator is silence to its callers.
fn known<T>(result: Result<Result<T, ProviderError>, sqlx::Error>) -> Result<T, ProviderError> {
    result.unwrap_or_else(|error| {
        tracing::warn!(%error, "the simulated provider failed");
        Err(ProviderError::NoAnswer)
    })
}

async fn tokenize(
    pool: &SqlitePool,
    card: &Card,
) -> Result<Result<StoredCard, ProviderError>, sqlx::Error> {
    let number: String = card
        .pan
        .expose()
        .chars()
        .filter(|digit| *digit != ' ')
        .collect();
    let Some((number, brand, behaviour)) = CARDS.iter().find(|(known, ..)| *known == number) else {
        return Ok(Err(ProviderError::CardRefused));
    };
    let token = Secret::new(format!("tok_{}", Uuid::new_v4().simple()));
    sqlx::query("INSERT INTO sim_cards (token_digest, behaviour) VALUES (?, ?)")
        .bind(token_digest(&token))
        .bind(*behaviour)
        .execute(pool)
        .await?;
    let last4 = number[number.len() - 4..].to_owned();
    Ok(Ok(StoredCard {
        token,
        brand: (*brand).to_owned(),
        last4,
    }))
}

fn token_digest(token: &Secret) -> Vec<u8> {
    digest(&SHA256, token.expose().as_bytes()).as_ref().to_vec()
}

async fn operate(
    pool: &SqlitePool,
    id: PaymentId,
    operation: Operation,
) -> Result<Result<Charge, ProviderError>, sqlx::Error> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    let before = read(&mut tx, id).await?;
    let (name, after) = match (operation, &before) {
        (Operation::Authorize { token, amount }, ChargeState::Unknown) => {
            let state = decide(&mut tx, &token).await?;
            insert(&mut tx, id, &state, amount).await?;
            ("authorize", state)
        }
        (Operation::Capture, ChargeState::Authorized) => ("capture", ChargeState::Captured),
        (Operation::Void, ChargeState::Unknown) => {
            insert(
                &mut tx,
                id,
                &ChargeState::Voided,
                Money::zero(contracts::Currency::EUR),
            )
            .await?;
            ("void", ChargeState::Voided)
        }
        (Operation::Void, ChargeState::Authorized) => ("void", ChargeState::Voided),
        (Operation::Refund, ChargeState::Captured) => ("refund", ChargeState::Refunded),
        _ => return Ok(Ok(charge(id, before))),
    };
    sqlx::query("UPDATE sim_charges SET state = ? WHERE payment_id = ?")
        .bind(word(&after))
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
    sqlx::query("INSERT INTO sim_log (at, payment_id, operation, state) VALUES (?, ?, ?, ?)")
        .bind(Timestamp::now().millis())
        .bind(id.to_string())
        .bind(name)
        .bind(word(&after))
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Ok(charge(id, after)))
}

/// What the card behind the token does.
async fn decide(tx: &mut SqliteConnection, token: &Secret) -> Result<ChargeState, sqlx::Error> {
    let behaviour: Option<String> =
        sqlx::query_scalar("SELECT behaviour FROM sim_cards WHERE token_digest = ?")
            .bind(token_digest(token))
            .fetch_optional(tx)
            .await?;
    Ok(match behaviour.as_deref() {
        Some(APPROVE) => ChargeState::Authorized,
        Some(code) => ChargeState::Declined {
            code: code.to_owned(),
        },
        None => ChargeState::Declined {
            code: "invalid_token".to_owned(),
        },
    })
}

async fn insert(
    tx: &mut SqliteConnection,
    id: PaymentId,
    state: &ChargeState,
    amount: Money,
) -> Result<(), sqlx::Error> {
    let code = match state {
        ChargeState::Declined { code } => Some(code),
        _ => None,
    };
    sqlx::query(
        "INSERT INTO sim_charges (payment_id, state, code, amount, currency) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(id.to_string())
    .bind(word(state))
    .bind(code)
    .bind(amount.amount)
    .bind(amount.currency.code())
    .execute(tx)
    .await?;
    Ok(())
}

async fn read(tx: &mut SqliteConnection, id: PaymentId) -> Result<ChargeState, sqlx::Error> {
    let row: Option<(String, Option<String>)> =
        sqlx::query_as("SELECT state, code FROM sim_charges WHERE payment_id = ?")
            .bind(id.to_string())
            .fetch_optional(tx)
            .await?;
    let Some((state, code)) = row else {
        return Ok(ChargeState::Unknown);
    };
    Ok(match state.as_str() {
        "authorized" => ChargeState::Authorized,
        "captured" => ChargeState::Captured,
        "voided" => ChargeState::Voided,
        "refunded" => ChargeState::Refunded,
        _ => ChargeState::Declined {
            code: code.unwrap_or_default(),
        },
    })
}

fn word(state: &ChargeState) -> &'static str {
    match state {
        ChargeState::Unknown => "unknown",
        ChargeState::Authorized => "authorized",
        ChargeState::Declined { .. } => "declined",
        ChargeState::Captured => "captured",
        ChargeState::Voided => "voided",
        ChargeState::Refunded => "refunded",
    }
}

fn charge(id: PaymentId, state: ChargeState) -> Charge {
    let is_known = state != ChargeState::Unknown;
    let reference = Uuid::new_v5(&Uuid::NAMESPACE_OID, id.to_string().as_bytes());
    let reference = is_known.then(|| Secret::new(format!("ch_{}", reference.simple())));
    Charge { state, reference }
}

#[cfg(test)]
mod tests {
    use contracts::Currency;
    use nestling::sqlite;

    use super::*;

    fn card(number: &str) -> Card {
        let (pan, cvc) = (Secret::new(number), Secret::new("123"));
        Card {
            pan,
            exp: "12/99".to_owned(),
            cvc,
            holder: "Ada".to_owned(),
        }
    }

    fn euro(amount: i64) -> Money {
        Money::new(amount, Currency::EUR)
    }

    #[tokio::test]
    async fn it_answers_by_card_and_repeats_itself_after_a_restart() {
        let pool = sqlite::open_in_memory().await.unwrap();
        let (provider, task) = Simulator::start(pool.clone()).await.unwrap();
        let good = provider
            .tokenize(card("4242 4242 4242 4242"))
            .await
            .unwrap();
        assert_eq!((good.brand.as_str(), good.last4.as_str()), ("visa", "4242"));
        let bad = provider.tokenize(card("4000000000009995")).await.unwrap();
        let refused = provider.tokenize(card("4111111111111111")).await;
        assert_eq!(refused, Err(ProviderError::CardRefused));

        let (first, second) = (PaymentId::new(), PaymentId::new());
        let authorized = provider
            .authorize(first, good.token.clone(), euro(5))
            .await
            .unwrap();
        assert_eq!(authorized.state, ChargeState::Authorized);
        let declined = provider
            .authorize(second, bad.token.clone(), euro(5))
            .await
            .unwrap();
        assert_eq!(
            declined.state,
            ChargeState::Declined {
                code: "insufficient_funds".to_owned()
            }
        );
        drop((provider, task));

        let (provider, _task) = Simulator::start(pool).await.unwrap();
        assert_eq!(
            provider.authorize(first, bad.token, euro(5)).await,
            Ok(authorized.clone())
        );
        assert_eq!(provider.status(first).await, Ok(authorized));
        assert_eq!(
            provider.authorize(second, good.token, euro(5)).await,
            Ok(declined)
        );
    }

    #[tokio::test]
    async fn a_charge_goes_forward_only() {
        let pool = sqlite::open_in_memory().await.unwrap();
        let (provider, _task) = Simulator::start(pool).await.unwrap();
        let token = provider
            .tokenize(card("5555555555554444"))
            .await
            .unwrap()
            .token;
        let id = PaymentId::new();
        assert_eq!(
            provider.status(id).await.unwrap().state,
            ChargeState::Unknown
        );
        assert_eq!(
            provider.capture(id).await.unwrap().state,
            ChargeState::Unknown
        );
        provider
            .authorize(id, token.clone(), euro(7))
            .await
            .unwrap();
        assert_eq!(
            provider.refund(id).await.unwrap().state,
            ChargeState::Authorized
        );
        assert_eq!(
            provider.capture(id).await.unwrap().state,
            ChargeState::Captured
        );
        assert_eq!(
            provider.void(id).await.unwrap().state,
            ChargeState::Captured
        );
        assert_eq!(
            provider.refund(id).await.unwrap().state,
            ChargeState::Refunded
        );
        assert_eq!(
            provider.capture(id).await.unwrap().state,
            ChargeState::Refunded
        );

        let early = PaymentId::new();
        assert_eq!(
            provider.void(early).await.unwrap().state,
            ChargeState::Voided
        );
        let late = provider.authorize(early, token, euro(7)).await.unwrap();
        assert_eq!(late.state, ChargeState::Voided);
    }
}
