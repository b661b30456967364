//! Every message and event of the shop: what services and the gateway say to each other.
//!
//! A module belongs to the service that answers it and is edited together with it. Fields are added
//! at the end and as options; meanings are not changed; the snapshots under `tests/` show in review
//! what a change does to the wire. Types are plain structs and externally tagged enums, so that
//! every codec can carry them.
#![warn(missing_docs)]

mod actor;
mod error;
mod id;
mod money;
mod page;
mod secret;
mod time;

pub mod order;
pub mod payment;
pub mod product;
pub mod recommendation;
pub mod review;
pub mod user;

use serde::{Deserialize, Serialize};

pub use self::{
    actor::{Actor, Role},
    error::{FieldError, Fields, Reason},
    id::{
        CategoryId, IdError, MethodId, OrderId, PaymentId, ProductId, QuoteId, ReviewId, SessionId,
        UserId,
    },
    money::{Currency, Money, MoneyError, TaxRate, split},
    page::{Cursor, Page, PageRequest},
    secret::Secret,
    time::Timestamp,
};

/// What every event says of itself, beside its id, which is a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// When it happened.
    pub at: Timestamp,
    /// The version of the aggregate it made.
    pub version: u64,
}

/// The patterns that every service answers under its own name.
macro_rules! svc {
    ($service:literal) => {
        /// What the service says about itself.
        pub mod svc {
            use nestling::{Health, Info, Message, Single};
            use serde::{Deserialize, Serialize};

            /// Answered with the same bytes.
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub struct Ping {
                /// Anything.
                pub bytes: Vec<u8>,
            }

            /// Which service, which version, since when.
            #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
            pub struct GetInfo {}

            /// Whether it can work.
            #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
            pub struct GetHealth {}

            impl Message for Ping {
                const PATTERN: &'static str = concat!($service, ".svc.ping");
                const IDEMPOTENT: bool = true;
                type Reply = Ping;
                type Shape = Single;
            }

            impl Message for GetInfo {
                const PATTERN: &'static str = concat!($service, ".svc.info");
                const IDEMPOTENT: bool = true;
                type Reply = Info;
                type Shape = Single;
            }

            impl Message for GetHealth {
                const PATTERN: &'static str = concat!($service, ".svc.health");
                const IDEMPOTENT: bool = true;
                type Reply = Health;
                type Shape = Single;
            }
        }
    };
}
use svc;
