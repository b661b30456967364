//! The example of a transport of one's own runs.
#![cfg(unix)]

#[path = "../examples/custom_transport.rs"]
mod custom_transport;

#[test]
fn the_example_runs() {
    custom_transport::main().unwrap();
}
