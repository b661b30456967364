//! What the tables look like.

pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS methods (
        id TEXT PRIMARY KEY,
        user_id TEXT NOT NULL,
        brand TEXT NOT NULL,
        last4 TEXT NOT NULL,
        exp TEXT NOT NULL,
        sealed_token BLOB NOT NULL,
        added_at INTEGER NOT NULL
    )",
    "CREATE INDEX IF NOT EXISTS methods_by_user ON methods (user_id, id)",
    // `state` is pending, authorized, declined, captured, voided or refunded.
    "CREATE TABLE IF NOT EXISTS payments (
        id TEXT PRIMARY KEY,
        order_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        method_id TEXT REFERENCES methods (id),
        state TEXT NOT NULL,
        decline_code TEXT,
        amount INTEGER NOT NULL CHECK (amount >= 0),
        captured INTEGER NOT NULL DEFAULT 0,
        refunded INTEGER NOT NULL DEFAULT 0,
        currency TEXT NOT NULL,
        sealed_reference BLOB,
        version INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        CHECK (0 <= refunded AND refunded <= captured AND captured <= amount)
    )",
    "CREATE INDEX IF NOT EXISTS payments_pending ON payments (updated_at) WHERE state = 'pending'",
    "CREATE TABLE IF NOT EXISTS timeline (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        payment_id TEXT NOT NULL REFERENCES payments (id),
        at INTEGER NOT NULL,
        text TEXT NOT NULL
    )",
    "CREATE INDEX IF NOT EXISTS timeline_by_payment ON timeline (payment_id, position)",
    // What is to be undone, known as a payment or not yet; open until it is.
    "CREATE TABLE IF NOT EXISTS reversals (
        payment_id TEXT PRIMARY KEY,
        reason TEXT NOT NULL,
        at INTEGER NOT NULL,
        is_open INTEGER NOT NULL
    ) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS reversals_open ON reversals (at) WHERE is_open = 1",
    "CREATE TABLE IF NOT EXISTS ledger_entries (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        payment_id TEXT NOT NULL REFERENCES payments (id),
        movement TEXT NOT NULL,
        account TEXT NOT NULL,
        debit INTEGER NOT NULL,
        credit INTEGER NOT NULL,
        currency TEXT NOT NULL,
        at INTEGER NOT NULL,
        UNIQUE (payment_id, movement, account),
        CHECK (debit >= 0 AND credit >= 0 AND debit + credit > 0 AND debit * credit = 0)
    )",
];
