//! The tables of cards, payments and the ledger.

mod schema;

use std::sync::Arc;

use contracts::{
    Currency, Meta, MethodId, Money, OrderId, PaymentId, Reason, Secret, Timestamp, UserId,
    payment::{
        Authorize, Method, Payment, PaymentAuthorized, PaymentCaptured, PaymentDeclined,
        PaymentEntry, PaymentRefunded, PaymentState, PaymentVoided,
    },
};
use nestling::{
    Context, RpcError,
    sqlite::{Inbox, Outbox},
};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use self::schema::SCHEMA;
use crate::{
    ledger::{self, Movement},
    payment::{Step, UNKNOWN_METHOD, catch_up},
    provider::{Charge, ChargeState, StoredCard},
    seal::SealKey,
};

/// Cards, payments and the ledger.
#[derive(Clone, Debug)]
pub(crate) struct PaymentStore {
    pool: SqlitePool,
    outbox: Outbox,
    key: Arc<SealKey>,
}

/// Where a payment stands, as far as decisions need it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) state: PaymentState,
    pub(crate) decline_code: Option<String>,
    pub(crate) amount: Money,
    /// Somebody asked to undo it.
    pub(crate) is_reversed: bool,
    order_id: OrderId,
    user_id: UserId,
    version: u64,
}

/// What [`PaymentStore::begin`] found.
pub(crate) enum Begun {
    /// Nothing; it is written down now.
    New(Standing),
    /// The same request, made before.
    Known(Standing),
    /// That it was undone before it was asked for.
    Reversed,
}

impl PaymentStore {
    pub(crate) async fn open(
        pool: SqlitePool,
        outbox: Outbox,
        key: SealKey,
    ) -> Result<Self, sqlx::Error> {
        for statement in SCHEMA {
            sqlx::query(*statement).execute(&pool).await?;
        }
        Ok(Self {
            pool,
            outbox,
            key: Arc::new(key),
        })
    }

    pub(crate) async fn add_method(
        &self,
        user_id: UserId,
        card: StoredCard,
        exp: &str,
    ) -> Result<Method, RpcError> {
        let id = MethodId::new();
        sqlx::query(
            "INSERT INTO methods (id, user_id, brand, last4, exp, sealed_token, added_at)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.to_string())
        .bind(user_id.to_string())
        .bind(&card.brand)
        .bind(&card.last4)
        .bind(exp)
        .bind(self.key.seal(&card.token, &id.to_string())?)
        .bind(Timestamp::now().millis())
        .execute(&self.pool)
        .await?;
        Ok(Method {
            id,
            brand: card.brand,
            last4: card.last4,
            exp: exp.to_owned(),
        })
    }

    pub(crate) async fn methods(&self, user_id: UserId) -> Result<Vec<Method>, RpcError> {
        let rows = sqlx::query(
            "SELECT id AS method_id, brand, last4, exp FROM methods WHERE user_id = ? ORDER BY id",
        )
        .bind(user_id.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(method).collect()
    }

    /// Writes the payment down before anybody is asked for money. What needs nobody is decided here:
    /// nothing is authorised at once, and a card that is not the buyer's is declined.
    pub(crate) async fn begin(&self, request: &Authorize) -> Result<Begun, RpcError> {
        let Authorize {
            payment_id,
            order_id,
            user_id,
            amount,
            method_id,
        } = *request;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(standing) = standing(&mut tx, payment_id).await? {
            let known = (standing.order_id, standing.user_id, standing.amount);
            if known != (order_id, user_id, amount) {
                return Err(Reason::StateConflict.error("this payment id is of another payment"));
            }
            return Ok(Begun::Known(standing));
        }
        if is_reversed(&mut tx, payment_id).await? {
            return Ok(Begun::Reversed);
        }
        let method_id = match method_id {
            Some(id) if owns(&mut tx, user_id, id).await? => Some(id),
            _ => None,
        };
        let now = Timestamp::now();
        sqlx::query(
            "INSERT INTO payments
                (id, order_id, user_id, method_id, state, amount, currency, version, updated_at)
             VALUES (?, ?, ?, ?, 'pending', ?, ?, 1, ?)",
        )
        .bind(payment_id.to_string())
        .bind(order_id.to_string())
        .bind(user_id.to_string())
        .bind(method_id.map(|id| id.to_string()))
        .bind(amount.amount)
        .bind(amount.currency.code())
        .bind(now.millis())
        .execute(&mut *tx)
        .await?;
        note(&mut tx, payment_id, now, &format!("{amount} asked for")).await?;
        let step = match method_id {
            _ if amount.amount == 0 => Some(Step::Authorize),
            None => Some(Step::Decline {
                code: UNKNOWN_METHOD.to_owned(),
            }),
            Some(_) => None,
        };
        if let Some(step) = step {
            self.take(&mut tx, payment_id, step).await?;
        }
        let standing = known(&mut tx, payment_id).await?;
        self.outbox.commit(tx).await?;
        Ok(Begun::New(standing))
    }

    pub(crate) async fn standing(&self, id: PaymentId) -> Result<Option<Standing>, RpcError> {
        let mut connection = self.pool.acquire().await?;
        standing(&mut connection, id).await
    }

    pub(crate) async fn is_reversed(&self, id: PaymentId) -> Result<bool, RpcError> {
        let mut connection = self.pool.acquire().await?;
        is_reversed(&mut connection, id).await
    }

    /// The provider's token for the card of a payment.
    pub(crate) async fn token(&self, id: PaymentId) -> Result<Secret, RpcError> {
        let row = sqlx::query(
            "SELECT m.id, m.sealed_token FROM payments p JOIN methods m ON m.id = p.method_id
             WHERE p.id = ?",
        )
        .bind(id.to_string())
        .fetch_one(&self.pool)
        .await?;
        let (owner, sealed): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        self.key.open(&sealed, &owner)
    }

    /// Brings a payment to where its charge stands: its state, its line of the timeline, its ledger
    /// entries and its events, all or none. `event` is what made us ask, if something did.
    pub(crate) async fn apply(
        &self,
        id: PaymentId,
        charge: &Charge,
        event: Option<&Context>,
    ) -> Result<Standing, RpcError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = known(&mut tx, id).await?;
        // An event that changes nothing yet is not noted: it comes again until it does.
        if let Some(cx) = event
            && !catch_up(before.state, &charge.state).is_empty()
            && !Inbox::is_new(&mut tx, "payment.capture", cx).await?
        {
            return Ok(before);
        }
        if let Some(reference) = &charge.reference {
            sqlx::query("UPDATE payments SET sealed_reference = ? WHERE id = ? AND sealed_reference IS NULL")
                .bind(self.key.seal(reference, &id.to_string())?)
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        for step in catch_up(before.state, &charge.state) {
            self.take(&mut tx, id, step).await?;
        }
        if charge.state == ChargeState::Unknown {
            sqlx::query("UPDATE payments SET updated_at = ? WHERE id = ?")
                .bind(Timestamp::now().millis())
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        let after = known(&mut tx, id).await?;
        self.outbox.commit(tx).await?;
        Ok(after)
    }

    /// Remembers that a payment is to be undone, before anything is done about it.
    pub(crate) async fn want_reversal(
        &self,
        id: PaymentId,
        reason: &str,
    ) -> Result<Option<Standing>, RpcError> {
        use PaymentState::{Authorized, Captured, Pending};
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = standing(&mut tx, id).await?;
        let is_open = before
            .as_ref()
            .is_some_and(|standing| matches!(standing.state, Pending | Authorized | Captured));
        let now = Timestamp::now();
        let added = sqlx::query(
            "INSERT OR IGNORE INTO reversals (payment_id, reason, at, is_open) VALUES (?, ?, ?, ?)",
        )
        .bind(id.to_string())
        .bind(reason)
        .bind(now.millis())
        .bind(is_open)
        .execute(&mut *tx)
        .await?;
        if is_open && added.rows_affected() == 1 {
            note(&mut tx, id, now, &format!("to be reversed: {reason}")).await?;
        }
        tx.commit().await?;
        Ok(before.map(|standing| Standing {
            is_reversed: true,
            ..standing
        }))
    }

    /// Payments that have waited since `before` for an answer or for being undone.
    pub(crate) async fn unfinished(&self, before: Timestamp) -> Result<Vec<PaymentId>, RpcError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM (
                SELECT id, updated_at AS since FROM payments WHERE state = 'pending' AND updated_at < ?
                UNION
                SELECT payment_id, at FROM reversals WHERE is_open = 1 AND at < ?
             ) ORDER BY since LIMIT 100",
        )
        .bind(before.millis())
        .bind(before.millis())
        .fetch_all(&self.pool)
        .await?;
        ids.iter()
            .map(|id| id.parse().map_err(RpcError::internal))
            .collect()
    }

    pub(crate) async fn get(&self, id: PaymentId) -> Result<Option<Payment>, RpcError> {
        let mut connection = self.pool.acquire().await?;
        let row = sqlx::query(
            "SELECT p.*, m.brand, m.last4, m.exp FROM payments p LEFT JOIN methods m ON m.id = p.method_id
             WHERE p.id = ?",
        )
        .bind(id.to_string())
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let timeline =
            sqlx::query("SELECT at, text FROM timeline WHERE payment_id = ? ORDER BY position")
                .bind(id.to_string())
                .fetch_all(&mut *connection)
                .await?;
        let entry = |row: &SqliteRow| {
            let at = Timestamp::from_millis(row.try_get(0)?);
            Ok::<_, RpcError>(PaymentEntry {
                at,
                text: row.try_get(1)?,
            })
        };
        let currency = currency(&row)?;
        let money = |column| Ok::<_, RpcError>(Money::new(row.try_get(column)?, currency));
        let has_card = row.try_get::<Option<String>, _>("method_id")?.is_some();
        Ok(Some(Payment {
            id,
            order_id: parse(&row, "order_id")?,
            user_id: parse(&row, "user_id")?,
            state: from_word(row.try_get("state")?)?,
            amount: money("amount")?,
            captured: money("captured")?,
            refunded: money("refunded")?,
            card: has_card.then(|| method(&row)).transpose()?,
            decline_code: row.try_get("decline_code")?,
            timeline: timeline.iter().map(entry).collect::<Result<_, _>>()?,
        }))
    }

    /// One step of a payment, with all that belongs to it.
    async fn take(
        &self,
        tx: &mut SqliteConnection,
        id: PaymentId,
        step: Step,
    ) -> Result<(), RpcError> {
        let Standing {
            amount,
            order_id,
            version,
            ..
        } = known(tx, id).await?;
        let at = Timestamp::now();
        let code = match &step {
            Step::Decline { code } => Some(code.as_str()),
            _ => None,
        };
        sqlx::query(
            "UPDATE payments SET state = ?, decline_code = ?, version = version + 1, updated_at = ?,
                captured = CASE ? WHEN 'captured' THEN amount ELSE captured END,
                refunded = CASE ? WHEN 'refunded' THEN amount ELSE refunded END
             WHERE id = ?",
        )
        .bind(word(step.state()))
        .bind(code)
        .bind(at.millis())
        .bind(word(step.state()))
        .bind(word(step.state()))
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
        if matches!(step, Step::Decline { .. } | Step::Void | Step::Refund) {
            sqlx::query("UPDATE reversals SET is_open = 0 WHERE payment_id = ?")
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        let movement = match step {
            Step::Capture => Some(Movement::Capture),
            Step::Refund => Some(Movement::Refund),
            Step::Authorize | Step::Decline { .. } | Step::Void => None,
        };
        if let Some(movement) = movement {
            book(tx, id, movement, amount, at).await?;
        }
        let (payment_id, meta) = (
            id,
            Meta {
                at,
                version: version + 1,
            },
        );
        let text = match step {
            Step::Authorize => {
                let event = PaymentAuthorized {
                    order_id,
                    payment_id,
                    amount,
                    meta,
                };
                self.outbox.add(tx, &event).await?;
                format!("{amount} authorized")
            }
            Step::Decline { code } => {
                let text = format!("declined: {code}");
                let event = PaymentDeclined {
                    order_id,
                    payment_id,
                    code,
                    meta,
                };
                self.outbox.add(tx, &event).await?;
                text
            }
            Step::Capture => {
                let event = PaymentCaptured {
                    order_id,
                    payment_id,
                    amount,
                    meta,
                };
                self.outbox.add(tx, &event).await?;
                format!("{amount} captured")
            }
            Step::Void => {
                let event = PaymentVoided {
                    order_id,
                    payment_id,
                    amount,
                    meta,
                };
                self.outbox.add(tx, &event).await?;
                format!("{amount} voided")
            }
            Step::Refund => {
                let event = PaymentRefunded {
                    order_id,
                    payment_id,
                    amount,
                    full: true,
                    meta,
                };
                self.outbox.add(tx, &event).await?;
                format!("{amount} refunded")
            }
        };
        note(tx, id, at, &text).await
    }
}

async fn standing(tx: &mut SqliteConnection, id: PaymentId) -> Result<Option<Standing>, RpcError> {
    let row = sqlx::query(
        "SELECT *, EXISTS (SELECT 1 FROM reversals WHERE payment_id = id) AS is_reversed
         FROM payments WHERE id = ?",
    )
    .bind(id.to_string())
    .fetch_optional(tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Standing {
        state: from_word(row.try_get("state")?)?,
        decline_code: row.try_get("decline_code")?,
        amount: Money::new(row.try_get("amount")?, currency(&row)?),
        is_reversed: row.try_get("is_reversed")?,
        order_id: parse(&row, "order_id")?,
        user_id: parse(&row, "user_id")?,
        version: row.try_get::<i64, _>("version")?.unsigned_abs(),
    }))
}

/// The standing of a payment that is there: payments are never deleted.
async fn known(tx: &mut SqliteConnection, id: PaymentId) -> Result<Standing, RpcError> {
    standing(tx, id)
        .await?
        .ok_or_else(|| RpcError::internal(format!("{id} is gone")))
}

async fn is_reversed(tx: &mut SqliteConnection, id: PaymentId) -> Result<bool, RpcError> {
    let reversal = sqlx::query("SELECT 1 FROM reversals WHERE payment_id = ?").bind(id.to_string());
    Ok(reversal.fetch_optional(tx).await?.is_some())
}

async fn owns(tx: &mut SqliteConnection, user: UserId, method: MethodId) -> Result<bool, RpcError> {
    let owned = sqlx::query("SELECT 1 FROM methods WHERE id = ? AND user_id = ?")
        .bind(method.to_string())
        .bind(user.to_string());
    Ok(owned.fetch_optional(tx).await?.is_some())
}

async fn note(
    tx: &mut SqliteConnection,
    id: PaymentId,
    at: Timestamp,
    text: &str,
) -> Result<(), RpcError> {
    sqlx::query("INSERT INTO timeline (payment_id, at, text) VALUES (?, ?, ?)")
        .bind(id.to_string())
        .bind(at.millis())
        .bind(text)
        .execute(tx)
        .await?;
    Ok(())
}

async fn book(
    tx: &mut SqliteConnection,
    id: PaymentId,
    movement: Movement,
    amount: Money,
    at: Timestamp,
) -> Result<(), RpcError> {
    for entry in ledger::entries(movement, amount) {
        sqlx::query(
            "INSERT INTO ledger_entries (payment_id, movement, account, debit, credit, currency, at)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.to_string())
        .bind(movement.as_str())
        .bind(entry.account.as_str())
        .bind(entry.debit)
        .bind(entry.credit)
        .bind(amount.currency.code())
        .bind(at.millis())
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

fn method(row: &SqliteRow) -> Result<Method, RpcError> {
    Ok(Method {
        id: parse(row, "method_id")?,
        brand: row.try_get("brand")?,
        last4: row.try_get("last4")?,
        exp: row.try_get("exp")?,
    })
}

fn currency(row: &SqliteRow) -> Result<Currency, RpcError> {
    parse(row, "currency")
}

fn parse<T>(row: &SqliteRow, column: &str) -> Result<T, RpcError>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.try_get::<String, _>(column)?
        .parse()
        .map_err(RpcError::internal)
}

const STATES: [(PaymentState, &str); 6] = [
    (PaymentState::Pending, "pending"),
    (PaymentState::Authorized, "authorized"),
    (PaymentState::Declined, "declined"),
    (PaymentState::Captured, "captured"),
    (PaymentState::Voided, "voided"),
    (PaymentState::Refunded, "refunded"),
];

fn word(state: PaymentState) -> &'static str {
    STATES
        .iter()
        .find(|(known, _)| *known == state)
        .map_or("pending", |(_, word)| word)
}

fn from_word(word: &str) -> Result<PaymentState, RpcError> {
    let state = STATES
        .iter()
        .find(|(_, known)| *known == word)
        .map(|(state, _)| *state);
    state.ok_or_else(|| RpcError::internal(format!("{word} is no state of a payment")))
}
