//! What must be true of the books of a shop, read from its databases: stock, payments and orders agree.
//!
//! The checks read and never write, so the shop may run meanwhile. Of a running shop only orders are
//! judged that nothing has happened to for a while, since what follows from an order comes by events.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use contracts::Timestamp;
use sqlx::{ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};

/// How many breaches of one law are told.
const TOLD: usize = 10;
const BUSY: Duration = Duration::from_secs(10);

/// The orders that are judged; `moment` holds the time they must not have changed since.
const JUDGED: &str = "CREATE TEMP VIEW judged AS
    SELECT o.* FROM order_view o
    WHERE (SELECT MAX(e.at) FROM order_events e WHERE e.order_id = o.order_id)
        <= (SELECT time FROM moment)";

/// A law, how many things it holds for, and those that break it.
struct Law {
    name: &'static str,
    cases: &'static str,
    breaches: &'static str,
}

const LAWS: &[Law] = &[
    Law {
        name: "movements add up to what is on hand",
        cases: "SELECT COUNT(*) FROM product.stock",
        breaches: "SELECT s.product_id || ': ' || s.on_hand || ' on hand, and moved '
                || COALESCE(SUM(m.delta), 0)
            FROM product.stock s LEFT JOIN product.stock_movements m USING (product_id)
            GROUP BY s.product_id HAVING s.on_hand != COALESCE(SUM(m.delta), 0)",
    },
    Law {
        name: "open reservations add up to what is reserved",
        cases: "SELECT COUNT(*) FROM product.stock",
        breaches: "SELECT s.product_id || ': ' || s.reserved || ' reserved, and held '
                || COALESCE(h.qty, 0)
            FROM product.stock s LEFT JOIN (
                SELECT l.product_id, SUM(l.qty) AS qty
                FROM product.reservation_lines l JOIN product.reservations r USING (order_id)
                WHERE r.state = 'held' GROUP BY l.product_id
            ) h USING (product_id)
            WHERE s.reserved != COALESCE(h.qty, 0)",
    },
    Law {
        name: "goods leave for a committed reservation, and for no other",
        cases: "SELECT COUNT(*) FROM product.reservation_lines",
        breaches: "SELECT r.order_id || ' is ' || r.state || ', and moved '
                || COALESCE(m.moved, 0) || ' for ' || l.qty
            FROM product.reservations r JOIN product.reservation_lines l USING (order_id)
            LEFT JOIN (
                SELECT ref, product_id, SUM(delta) AS moved
                FROM product.stock_movements GROUP BY ref, product_id
            ) m ON m.ref = r.order_id AND m.product_id = l.product_id
            WHERE COALESCE(m.moved, 0) != CASE r.state WHEN 'committed' THEN -l.qty ELSE 0 END",
    },
    Law {
        name: "goods leave for an order once",
        cases: "SELECT COUNT(*) FROM product.stock_movements WHERE reason = 'order'",
        breaches: "SELECT ref || ' took ' || product_id || ' ' || COUNT(*) || ' times'
            FROM product.stock_movements WHERE reason = 'order'
            GROUP BY ref, product_id HAVING COUNT(*) > 1",
    },
    Law {
        name: "debits are credits",
        cases: "SELECT COUNT(*) FROM payment.ledger_entries",
        breaches:
            "SELECT payment_id || ' ' || movement || ': ' || SUM(debit) || ' to ' || SUM(credit)
            FROM payment.ledger_entries
            GROUP BY payment_id, movement, currency HAVING SUM(debit) != SUM(credit)",
    },
    Law {
        name: "no more is refunded than was captured",
        cases: "SELECT COUNT(*) FROM payment.payments",
        breaches: "SELECT id || ': ' || refunded || ' of ' || captured || ' of ' || amount
            FROM payment.payments WHERE refunded > captured OR captured > amount",
    },
    Law {
        name: "the ledger has what payments moved",
        cases: "SELECT COUNT(*) FROM payment.payments",
        breaches: "SELECT p.id || ': captured ' || p.captured || ', refunded ' || p.refunded
                || ', booked ' || COALESCE(l.debit, 0) || ' and ' || COALESCE(l.credit, 0)
            FROM payment.payments p LEFT JOIN (
                SELECT payment_id, SUM(debit) AS debit, SUM(credit) AS credit
                FROM payment.ledger_entries WHERE account = 'provider_clearing' GROUP BY payment_id
            ) l ON l.payment_id = p.id
            WHERE p.captured != COALESCE(l.debit, 0) OR p.refunded != COALESCE(l.credit, 0)",
    },
    Law {
        name: "the provider moved the money of a payment once",
        cases: "SELECT COUNT(*) FROM payment.sim_log WHERE operation != 'void'",
        breaches: "SELECT payment_id || ': ' || operation || ' ' || COUNT(*) || ' times'
            FROM payment.sim_log WHERE operation != 'void'
            GROUP BY payment_id, operation HAVING COUNT(*) > 1",
    },
    Law {
        name: "no order is paid for twice",
        cases: "SELECT COUNT(DISTINCT order_id) FROM payment.payments",
        breaches: "SELECT order_id || ' has ' || COUNT(*) || ' payments'
            FROM payment.payments WHERE captured > refunded
            GROUP BY order_id HAVING COUNT(*) > 1",
    },
    Law {
        name: "a confirmed order has paid its price, and so says the provider",
        cases: "SELECT COUNT(*) FROM judged WHERE status = 'confirmed'",
        breaches: "SELECT o.order_id || ' has no such payment'
            FROM judged o WHERE o.status = 'confirmed' AND 1 != (
                SELECT COUNT(*) FROM payment.payments p
                JOIN payment.sim_charges s ON s.payment_id = p.id
                WHERE p.order_id = o.order_id AND p.state = 'captured' AND s.state = 'captured'
                    AND p.captured = json_extract(o.body, '$.totals.gross.amount')
            )",
    },
    Law {
        name: "a confirmed order has its goods",
        cases: "SELECT COUNT(*) FROM judged WHERE status = 'confirmed'",
        breaches: "SELECT o.order_id || ': the reservation is ' || COALESCE(r.state, 'not there')
            FROM judged o LEFT JOIN product.reservations r USING (order_id)
            WHERE o.status = 'confirmed' AND COALESCE(r.state, '') != 'committed'",
    },
    Law {
        name: "an order that came to nothing keeps no goods",
        cases: "SELECT COUNT(*) FROM judged WHERE status IN ('rejected', 'cancelled')",
        breaches: "SELECT o.order_id || ' is ' || o.status || ', its reservation ' || r.state
            FROM judged o JOIN product.reservations r USING (order_id)
            WHERE o.status IN ('rejected', 'cancelled') AND r.state IN ('held', 'committed')",
    },
    Law {
        name: "an order that came to nothing keeps no money",
        cases: "SELECT COUNT(*) FROM judged WHERE status IN ('rejected', 'cancelled')",
        breaches: "SELECT o.order_id || ' is ' || o.status || ', its payment ' || p.state
                || ', the charge ' || COALESCE(s.state, 'not there')
            FROM judged o JOIN payment.payments p USING (order_id)
            LEFT JOIN payment.sim_charges s ON s.payment_id = p.id
            WHERE o.status IN ('rejected', 'cancelled') AND (
                p.state IN ('pending', 'authorized', 'captured')
                OR s.state IN ('authorized', 'captured')
            )",
    },
    Law {
        name: "no order is stuck",
        cases: "SELECT COUNT(*) FROM order_view",
        breaches:
            "SELECT g.order_id || ' waits at ' || g.step || ', after ' || g.tries || ' tries'
            FROM saga g JOIN judged o USING (order_id) WHERE g.next_at <= (SELECT time FROM moment)",
    },
];

/// What one law says of a shop.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The law.
    pub law: &'static str,
    /// How many things it was held against.
    pub cases: u64,
    /// Those that break it, at most ten.
    pub breaches: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.breaches.is_empty() {
            "ok"
        } else {
            "BROKEN"
        };
        write!(f, "{verdict:<7}{:>8}  {}", self.cases, self.law)?;
        self.breaches
            .iter()
            .try_for_each(|breach| write!(f, "\n{:17}{breach}", ""))
    }
}

/// Holds the books in `data` against every law.
///
/// Orders that have changed within `pending` are still on their way, and are not judged.
///
/// # Errors
/// When a database is not there or cannot be read.
pub async fn verify(data: &Path, pending: Duration) -> anyhow::Result<Vec<Finding>> {
    let mut books = open(data).await?;
    let pending = i64::try_from(pending.as_millis()).unwrap_or(i64::MAX);
    let moment = Timestamp::now().millis().saturating_sub(pending);
    sqlx::raw_sql("CREATE TEMP TABLE moment (time INTEGER)")
        .execute(&mut books)
        .await?;
    sqlx::query("INSERT INTO moment VALUES (?)")
        .bind(moment)
        .execute(&mut books)
        .await?;
    sqlx::raw_sql(JUDGED).execute(&mut books).await?;
    let mut findings = Vec::new();
    for law in LAWS {
        findings.push(hold(&mut books, law).await.context(law.name)?);
    }
    findings.push(replay(&mut books).await?);
    Ok(findings)
}

async fn hold(books: &mut SqliteConnection, law: &Law) -> Result<Finding, sqlx::Error> {
    let cases: i64 = sqlx::query_scalar(law.cases).fetch_one(&mut *books).await?;
    let mut breaches: Vec<String> = sqlx::query_scalar(law.breaches).fetch_all(books).await?;
    shorten(&mut breaches);
    Ok(Finding {
        law: law.name,
        cases: cases.unsigned_abs(),
        breaches,
    })
}

/// What is shown of orders is what their events say.
async fn replay(books: &mut SqliteConnection) -> anyhow::Result<Finding> {
    let replayed = order::store::replay(books).await.context("replay orders")?;
    let mut breaches = replayed.diverged.iter().map(ToString::to_string).collect();
    shorten(&mut breaches);
    Ok(Finding {
        law: "what is shown of an order is what its events say",
        cases: replayed.orders,
        breaches,
    })
}

fn shorten(breaches: &mut Vec<String>) {
    let more = breaches.len().saturating_sub(TOLD);
    if more > 0 {
        breaches.truncate(TOLD - 1);
        breaches.push(format!("and {} more", more + 1));
    }
}

/// The orders' database, with the others beside it.
async fn open(data: &Path) -> anyhow::Result<SqliteConnection> {
    let order = database(data, "order")?;
    let options = SqliteConnectOptions::new()
        .filename(&order)
        .read_only(true)
        .busy_timeout(BUSY);
    let mut books = options
        .connect()
        .await
        .with_context(|| format!("open {}", order.display()))?;
    for (name, statement) in [
        ("product", "ATTACH DATABASE ? AS product"),
        ("payment", "ATTACH DATABASE ? AS payment"),
    ] {
        let file = database(data, name)?;
        sqlx::query(statement)
            .bind(file.to_string_lossy().into_owned())
            .execute(&mut books)
            .await
            .with_context(|| format!("open {}", file.display()))?;
    }
    Ok(books)
}

/// A service's database: in the folder itself, or in one of its own there, as `cargo xtask up` has it.
fn database(data: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let file = format!("{name}.db");
    let places = [data.join(&file), data.join(name).join(&file)];
    let found = places.into_iter().find(|place| place.is_file());
    found.with_context(|| {
        let data = data.display();
        format!("there is no {file} in {data}, nor in a folder {name} there")
    })
}
