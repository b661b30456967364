//! The order service over the memory transport: contract in, contract out, with small product and
//! payment services beside it.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a failure is a failed test"
)]

mod carts;
mod checkout;
mod peers;
mod reading;
mod resume;
mod saga;
mod shop;
