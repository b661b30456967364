//! What serde_json alone costs for the same payloads: nothing that uses it can be cheaper.

use std::hint::black_box;

use crate::{Answer, Ask, Bench, CENTS, ORDER, Placed, Work, answer, ask, events};

/// An event, read.
pub(crate) fn event(_: Bench) -> Work {
    Box::new(|messages| {
        for _ in 0..messages {
            let event = serde_json::from_slice::<Placed>(black_box(events::JSON.as_bytes()));
            let event = event.expect("it is one");
            assert_eq!((event.order, event.cents), (ORDER, CENTS));
        }
    })
}

/// A request and its reply, each written and read.
pub(crate) fn request(_: Bench) -> Work {
    Box::new(|messages| {
        for _ in 0..messages {
            let request = serde_json::to_vec(&black_box(ask())).expect("it is plain");
            let read: Ask = serde_json::from_slice(&black_box(request)).expect("it is one");
            let reply = serde_json::to_vec(&answer(read.order, read.cents)).expect("it is plain");
            let read: Answer = serde_json::from_slice(&black_box(reply)).expect("it is one");
            assert_eq!(read, answer(ORDER, CENTS));
        }
    })
}
