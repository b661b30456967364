//! How transports compare: the load side, which the `nestling` command shares.
//!
//! `cargo xtask bench` runs the comparison; its rows are in the binary of this crate.

pub mod load;
