//! The derives and attributes of `nestling`, which re-exports them.
//!
//! What they write, a person could have written with the public items of `nestling`: an
//! implementation of a contract's trait, or the calls on a `Router`. They check, name things and
//! give good errors; they decide nothing.
#![warn(missing_docs)]

mod attr;
mod controller;
mod expand;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemImpl, parse_macro_input};

/// Makes a type the contract of a message.
///
/// ```
/// use nestling::Message;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct User {
///     id: u64,
///     name: String,
/// }
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(pattern = "user.get", reply = User, idempotent)]
/// struct GetUser {
///     id: u64,
/// }
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(pattern = "user.list", stream = User)]
/// struct ListUsers;
///
/// assert_eq!(GetUser::PATTERN, "user.get");
/// ```
///
/// | in `#[message(…)]` | meaning |
/// |---|---|
/// | `pattern = "service.verb"` | the routing name: lower-case words joined by dots, at least two |
/// | `reply = Type` | there is one reply, a `Type` |
/// | `stream = Type` | there are many, each a `Type`; instead of `reply` |
/// | `idempotent` | running it twice is the same as running it once |
///
/// The type, its reply included, is `Serialize + DeserializeOwned + Send + 'static`, so it borrows
/// nothing. It has no type parameters, because one pattern means one shape.
#[proc_macro_derive(Message, attributes(message))]
pub fn derive_message(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::message(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Makes a type the contract of an event.
///
/// ```
/// use nestling::Event;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(pattern = "order.placed", key = order)]
/// struct OrderPlaced {
///     order: u64,
///     total: i64,
/// }
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(pattern = "product.viewed", best_effort)]
/// struct ProductViewed {
///     product: u64,
/// }
///
/// assert_eq!(OrderPlaced { order: 7, total: 100 }.key().as_deref(), Some("7"));
/// ```
///
/// | in `#[event(…)]` | meaning |
/// |---|---|
/// | `pattern = "noun.happened"` | the routing name: lower-case words joined by dots, at least two |
/// | `key = field` | the field, a `Display`, that says what the event is about: events with equal keys keep their order |
/// | `best_effort` | losing one does no harm; without it delivery is at least once |
#[proc_macro_derive(Event, attributes(event))]
pub fn derive_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::event(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Makes the methods of an `impl` block the handlers of a `Controller`.
///
/// ```
/// use nestling::{Context, Event, Message, Payload, RpcError, Router, Streaming, controller, guard};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(pattern = "math.double", reply = u64, idempotent)]
/// struct Double(u64);
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(pattern = "number.seen")]
/// struct NumberSeen(u64);
///
/// struct Math {
///     limit: u64,
/// }
///
/// #[controller]
/// impl Math {
///     #[message_pattern]
///     async fn double(&self, Double(n): Double) -> Result<u64, RpcError> {
///         if n > self.limit {
///             return Err(RpcError::invalid_argument("too large"));
///         }
///         Ok(n * 2)
///     }
///
///     #[message_pattern("math.count")]
///     #[layer(guard(signed_in))]
///     fn count(&self, Payload(n): Payload<u64>) -> Streaming<u64> {
///         Streaming::of(0..n)
///     }
///
///     #[event_pattern]
///     async fn seen(&self, event: NumberSeen, cx: Context) -> Result<(), RpcError> {
///         println!("{} by {}", event.0, cx.transport());
///         Ok(())
///     }
/// }
///
/// async fn signed_in(cx: Context) -> Result<Context, RpcError> {
///     match cx.header("actor") {
///         Some(_) => Ok(cx),
///         None => Err(RpcError::unauthenticated("sign in first")),
///     }
/// }
///
/// let router = Router::new().controller(Math { limit: 1000 });
/// ```
///
/// | on a method | it handles |
/// |---|---|
/// | `#[message_pattern]` | the message whose contract is its first argument; it returns `Result<Reply, Error>`, or for a `stream` contract `Streaming<Reply>` or `Result<Streaming<Reply>, Error>` |
/// | `#[message_pattern("service.verb")]` | the message of that name; all its arguments are extractors, `Payload<T>` among them |
/// | `#[event_pattern]` | the event whose contract is its first argument; it returns `Result<(), Error>` |
/// | `#[event_pattern("noun.happened")]` | the event of that name; all its arguments are extractors |
/// | `max_in_flight = 4` | in one of the above, alone or after the pattern: how many of them may be in work at once, as `Router::max_in_flight` says |
/// | `#[layer(expression)]` | with one of the above: puts that layer around the handler |
///
/// A literal is any name: with wildcards where the broker has them, `"time.us.*"`, or the JSON text
/// of an object, as NestJS applications have it, `r#"{"cmd":"sum"}"#`.
///
/// A handler takes `&self`, may be `async` or not, and has an error that is `Into<RpcError>`.
/// Methods without these attributes are left alone. A second handler of one message does not
/// compile; an event may have several.
///
/// `#[layer(expression)]` below `#[controller]` itself puts a layer around all handlers, outside
/// their own. Of several on one item the upper is the outer. The expression, like that of
/// `max_in_flight`, is evaluated once, when the controller is added to a router, and may use `self`,
/// which is an `Arc` of the controller then.
///
/// The attribute leaves the block as it was and writes the implementation beside it:
///
/// ```
/// # use std::sync::Arc;
/// # use nestling::{Controller, Message, Payload, Router, RpcError, guard};
/// # #[derive(serde::Serialize, serde::Deserialize, Message)]
/// # #[message(pattern = "math.double", reply = u64)]
/// # struct Double(u64);
/// # struct Math;
/// # impl Math {
/// #     async fn double(&self, Double(n): Double) -> Result<u64, RpcError> { Ok(n) }
/// #     async fn count(&self, Payload(n): Payload<u64>) -> Result<u64, RpcError> { Ok(n) }
/// # }
/// # async fn signed_in(cx: nestling::Context) -> Result<nestling::Context, RpcError> { Ok(cx) }
/// impl Controller for Math {
///     fn register(self: Arc<Self>, router: Router) -> Router {
///         let router = {
///             let this = Arc::clone(&self);
///             router.message(move |message: Double| {
///                 let this = Arc::clone(&this);
///                 async move { Self::double(&this, message).await }
///             })
///         };
///         let router = {
///             let this = Arc::clone(&self);
///             let count = move |n: Payload<u64>| {
///                 let this = Arc::clone(&this);
///                 async move { Self::count(&this, n).await }
///             };
///             router.merge(Router::new().message_at("math.count", count).layer(guard(signed_in)))
///         };
///         router
///     }
/// }
/// ```
#[proc_macro_attribute]
pub fn controller(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemImpl);
    expand::controller(&arguments.into(), item).into()
}
