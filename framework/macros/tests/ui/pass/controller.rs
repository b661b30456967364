//! Handlers of every form, without any name of `nestling` or `std` in scope that they do not use.
#![deny(warnings)]

mod contracts {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, nestling::Message)]
    #[message(pattern = "math.double", reply = u64, idempotent)]
    pub struct Double(pub u64);

    #[derive(Serialize, Deserialize, nestling::Message)]
    #[message(pattern = "math.count", stream = u64)]
    pub struct Count {
        pub to: u64,
    }

    #[derive(Serialize, Deserialize, nestling::Message)]
    #[message(pattern = "math.ten", stream = u64)]
    pub struct CountToTen;

    #[derive(Serialize, Deserialize, nestling::Message)]
    #[message(pattern = "math.half", reply = u64)]
    pub struct Half(pub u64);

    #[derive(Serialize, Deserialize, nestling::Event)]
    #[event(pattern = "number.seen")]
    pub struct NumberSeen(pub u64);
}

/// None of these is the one that the macros mean.
#[allow(dead_code)]
mod decoys {
    pub struct Router;
    pub struct Arc;
    pub enum Option {}
    pub trait Message {}
    pub trait FromContext {}
}
#[allow(unused_imports)]
use decoys::*;

use contracts::{Count, CountToTen, Double, Half, NumberSeen};

pub struct Odd(u64);

impl From<Odd> for nestling::RpcError {
    fn from(odd: Odd) -> Self {
        Self::invalid_argument(format!("{} is odd", odd.0))
    }
}

type Outcome<T = ()> = Result<T, nestling::RpcError>;

pub struct Math {
    limit: u64,
}

#[nestling::controller]
impl Math {
    pub fn new(limit: u64) -> Self {
        Self { limit }
    }

    /// A pattern as its first argument.
    #[message_pattern]
    async fn double(&self, Double(n): Double, _: nestling::Context) -> Outcome<u64> {
        self.below(n * 2)
    }

    /// An error of its own, and no `async`.
    #[message_pattern]
    fn half(&self, mut half: Half) -> Result<u64, Odd> {
        if half.0 % 2 == 1 {
            return Err(Odd(half.0));
        }
        half.0 /= 2;
        Ok(half.0)
    }

    #[message_pattern]
    fn count(&self, count: Count) -> nestling::Streaming<u64> {
        nestling::Streaming::of(0..count.to)
    }

    #[message_pattern]
    async fn count_to_ten(
        &self,
        _: CountToTen,
        actor: Option2<nestling::Headers>,
    ) -> Result<nestling::Streaming<u64>, Odd> {
        drop(actor);
        Ok(nestling::Streaming::of(0..10))
    }

    #[message_pattern("math.square")]
    fn square(
        &self,
        nestling::Payload(n): nestling::Payload<u64>,
    ) -> impl Future<Output = Outcome<u64>> + Send {
        let square = self.below(n * n);
        async { square }
    }

    #[message_pattern("math.tail")]
    fn tail(&self, nestling::Payload(n): nestling::Payload<u64>) -> nestling::Streaming<u64> {
        nestling::Streaming::of(n..)
    }

    /// A name that `Arc` has as well, and nothing but `&self`.
    #[message_pattern("math.limit")]
    async fn clone(&self) -> Outcome<u64> {
        Ok(self.limit)
    }

    #[event_pattern]
    async fn seen(&self, _: NumberSeen) -> Outcome {
        Ok(())
    }

    /// An event may have two handlers.
    #[event_pattern]
    async fn seen_too(&self, event: NumberSeen, _: nestling::Context) -> Result<(), Odd> {
        if event.0 % 2 == 1 {
            Err(Odd(event.0))
        } else {
            Ok(())
        }
    }

    #[event_pattern("number.forgotten")]
    fn forgotten(&self, _: nestling::Payload<u64>, _: nestling::Headers) -> Outcome {
        Ok(())
    }

    /// Wildcards, where a broker has them.
    #[message_pattern("time.us.*")]
    async fn time(&self, _: nestling::Context) -> Outcome<u64> {
        Ok(0)
    }

    #[event_pattern("users.>")]
    async fn of_users(&self) -> Outcome {
        Ok(())
    }

    /// An object, as NestJS applications have it, with white space or without.
    #[message_pattern(r#"{"cmd":"sum"}"#)]
    async fn sum(&self, nestling::Payload(n): nestling::Payload<Vec<u64>>) -> Outcome<u64> {
        Ok(n.into_iter().sum())
    }

    #[event_pattern(r#"{ "kind": "user", "type": "created" }"#)]
    async fn user_created(&self) -> Outcome {
        Ok(())
    }

    #[cfg(any())]
    #[message_pattern("math.limit")]
    async fn not_in_this_build(&self, _: NoSuchType) -> Outcome<u64> {
        Ok(0)
    }

    fn below(&self, n: u64) -> Outcome<u64> {
        if n > self.limit {
            return Err(nestling::RpcError::invalid_argument("too large"));
        }
        Ok(n)
    }
}

type Option2<T> = std::option::Option<T>;

fn main() {
    let router = nestling::Router::new().controller(Math::new(100));
    drop(router);
}
