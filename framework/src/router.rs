//! [`Router`]: which handler answers which pattern.

mod limit;

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    future::poll_fn,
    panic::Location,
    sync::Arc,
    task::{self, Poll},
};

use bytestring::ByteString;
use foldhash::fast::RandomState;
use tower::{Layer, Service};

pub(crate) use self::limit::{Limit, Place};
use crate::{
    context::Context,
    contract::{Event, Guarantee, Message, Shape},
    error::RpcError,
    handler::{BoxFuture, EventHandler, Handler, MessageHandler, Reply},
    pattern,
};

/// One handler with the layers around it: a `tower` service from [`Context`] to [`Reply`].
#[derive(Clone)]
pub struct Route {
    call: Arc<dyn Fn(Context) -> BoxFuture<'static, Result<Reply, RpcError>> + Send + Sync>,
}

impl Route {
    /// A route that calls `function`.
    pub fn new(
        function: impl Fn(Context) -> BoxFuture<'static, Result<Reply, RpcError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            call: Arc::new(function),
        }
    }

    pub(crate) fn run(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>> {
        (self.call)(cx)
    }

    fn layered<L>(self, layer: &L) -> Self
    where
        L: Layer<Self>,
        L::Service: Service<Context, Response = Reply, Error = RpcError, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let service = layer.layer(self);
        Self::new(move |cx| {
            let mut service = service.clone();
            Box::pin(async move {
                poll_fn(|task| service.poll_ready(task)).await?;
                service.call(cx).await
            })
        })
    }
}

impl Service<Context> for Route {
    type Response = Reply;
    type Error = RpcError;
    type Future = BoxFuture<'static, Result<Reply, RpcError>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, cx: Context) -> Self::Future {
        self.run(cx)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Route")
    }
}

/// A struct whose methods are handlers: what `#[controller]` implements.
pub trait Controller {
    /// Adds its handlers to `router`.
    fn register(self: Arc<Self>, router: Router) -> Router;
}

/// The handlers of a service, by pattern.
///
/// A pattern has one message handler, or any number of event handlers. Where a handler has no
/// contract, its pattern is a literal or text made at run time.
///
/// ```
/// use nestling::{Payload, Router, RpcError};
///
/// async fn double(Payload(n): Payload<u64>) -> Result<u64, RpcError> {
///     Ok(n * 2)
/// }
///
/// let router = Router::new().message_at("math.double", double);
/// ```
#[derive(Clone, Default)]
pub struct Router {
    // What is received is looked up and never inserted, so a hash need not withstand an attack.
    routes: HashMap<ByteString, Routes, RandomState>,
}

/// Who handles one pattern: together, so that what is received is looked up once, whatever it is.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    pub(crate) message: Option<MessageRoute>,
    pub(crate) events: Vec<EventRoute>,
}

#[derive(Clone)]
pub(crate) struct MessageRoute {
    pub(crate) route: Route,
    pub(crate) idempotent: bool,
    pub(crate) many: Option<bool>,
    pub(crate) limit: Limit,
    caller: &'static Location<'static>,
}

impl MessageRoute {
    /// Whether the handler may be dropped when nobody waits for its reply.
    pub(crate) fn cancellable(&self) -> bool {
        self.idempotent || self.many == Some(true)
    }
}

#[derive(Clone)]
pub(crate) struct EventRoute {
    pub(crate) route: Route,
    pub(crate) needs: Guarantee,
    pub(crate) limit: Limit,
    pub(crate) caller: &'static Location<'static>,
}

impl Router {
    /// A router without handlers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the handler of a message; its pattern is that of its first argument's contract.
    ///
    /// # Panics
    /// When the pattern has a handler, naming both places.
    #[track_caller]
    #[must_use]
    pub fn message<Args, H: MessageHandler<Args>>(self, handler: H) -> Self {
        let route = Route::new(move |cx| handler.call(cx));
        self.add_message(
            ByteString::from_static(H::Message::PATTERN),
            route,
            H::Message::IDEMPOTENT,
            Some(<H::Message as Message>::Shape::MANY),
        )
    }

    /// Adds the handler of a message without a contract. It counts as not idempotent.
    ///
    /// The pattern is a literal or owned text. Where the broker has wildcards it may have some, such
    /// as `time.us.*` on NATS; the handler finds the concrete pattern in [`Context::pattern`].
    ///
    /// # Panics
    /// When the pattern has a handler, naming both places.
    #[track_caller]
    #[must_use]
    pub fn message_at<Args, H: Handler<Args>>(
        self,
        pattern: impl Into<ByteString> + 'static,
        handler: H,
    ) -> Self {
        self.message_with(pattern, false, handler)
    }

    /// Adds the handler of a message without a contract, and says whether it is idempotent: what
    /// [`Message::IDEMPOTENT`] says for one that has a contract.
    ///
    /// # Panics
    /// When the pattern has a handler, naming both places.
    #[track_caller]
    #[must_use]
    pub fn message_with<Args, H: Handler<Args>>(
        self,
        pattern: impl Into<ByteString> + 'static,
        idempotent: bool,
        handler: H,
    ) -> Self {
        self.add_message(
            shared(pattern),
            Route::new(move |cx| handler.call(cx)),
            idempotent,
            None,
        )
    }

    /// Adds a handler of an event; its pattern is that of its first argument's contract.
    #[track_caller]
    #[must_use]
    pub fn event<Args, H: EventHandler<Args>>(self, handler: H) -> Self {
        let route = Route::new(move |cx| handler.call(cx));
        let pattern = ByteString::from_static(H::Event::PATTERN);
        self.add_event(pattern, route, H::Event::DELIVERY)
    }

    /// Adds a handler of an event without a contract. It counts as best effort.
    #[track_caller]
    #[must_use]
    pub fn event_at<Args, H: Handler<Args>>(
        self,
        pattern: impl Into<ByteString> + 'static,
        handler: H,
    ) -> Self {
        self.event_with(pattern, Guarantee::BestEffort, handler)
    }

    /// Adds a handler of an event without a contract, and says what losing one would mean: what
    /// [`Event::DELIVERY`] says for one that has a contract.
    #[track_caller]
    #[must_use]
    pub fn event_with<Args, H: Handler<Args>>(
        self,
        pattern: impl Into<ByteString> + 'static,
        needs: Guarantee,
        handler: H,
    ) -> Self {
        let route = Route::new(move |cx| handler.call(cx));
        self.add_event(shared(pattern), route, needs)
    }

    /// Adds all handlers of a controller.
    ///
    /// # Panics
    /// When one of its messages has a handler.
    #[track_caller]
    #[must_use]
    pub fn controller<C: Controller>(self, controller: C) -> Self {
        Arc::new(controller).register(self)
    }

    /// Adds all handlers of another router.
    ///
    /// # Panics
    /// When both have a handler for one message.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (pattern, Routes { message, events }) in other.routes {
            if let Some(route) = message {
                self.insert_message(pattern.clone(), route);
            }
            let routes = self.routes.entry(pattern).or_default();
            routes.events.extend(events);
        }
        self
    }

    /// Wraps every handler added so far.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route>,
        L::Service: Service<Context, Response = Reply, Error = RpcError, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        for Routes { message, events } in self.routes.values_mut() {
            let message = message.iter_mut().map(|message| &mut message.route);
            let events = events.iter_mut().map(|event| &mut event.route);
            for route in message.chain(events) {
                *route = route.clone().layered(&layer);
            }
        }
        self
    }

    /// How many messages or events of each handler added so far may be in work at once in this
    /// process, at least 1; a handler that has a limit keeps it.
    ///
    /// What finds no place waits for one in the order of arrival, before any layer sees it, and holds
    /// up no other handler: it has no part of the server's own
    /// [`max_in_flight`](crate::Server::max_in_flight) meanwhile.
    ///
    /// * A **message** waits until its caller's deadline, or as long as a handler may take where there
    ///   is none. Then, or at once if sixteen wait for each place already (1024 in all), it is answered
    ///   `ResourceExhausted` without having run.
    /// * An **event** waits for as long as it takes. Those with one key stay in order. A source that
    ///   has handed out as many events as may be in work at once, and at least 1024, is not asked for
    ///   more.
    ///
    /// A stream has its place until it ends, an event during each try. It is a
    /// [`Server`](crate::Server) that keeps to it, and not a router that is called in place.
    ///
    /// ```
    /// use nestling::{Payload, Router, RpcError};
    ///
    /// async fn resize(Payload(image): Payload<Vec<u8>>) -> Result<Vec<u8>, RpcError> {
    ///     Ok(image)
    /// }
    ///
    /// let heavy = Router::new().message_at("image.resize", resize).max_in_flight(2);
    /// let router = Router::new().merge(heavy);
    /// ```
    #[must_use]
    pub fn max_in_flight(mut self, most: usize) -> Self {
        for Routes { message, events } in self.routes.values_mut() {
            let message = message.iter_mut().map(|message| &mut message.limit);
            let events = events.iter_mut().map(|event| &mut event.limit);
            for limit in message.chain(events) {
                if !limit.is_some() {
                    *limit = Limit::new(most);
                }
            }
        }
        self
    }

    #[track_caller]
    fn add_message(
        mut self,
        pattern: ByteString,
        route: Route,
        idempotent: bool,
        many: Option<bool>,
    ) -> Self {
        let caller = Location::caller();
        self.insert_message(
            pattern::route(pattern),
            MessageRoute {
                route,
                idempotent,
                many,
                limit: Limit::default(),
                caller,
            },
        );
        self
    }

    fn insert_message(&mut self, pattern: ByteString, route: MessageRoute) {
        if let Some(other) = self.find_message(&pattern) {
            panic!(
                "message {pattern:?} has two handlers: one added at {}, one at {}",
                other.caller, route.caller
            );
        }
        self.routes.entry(pattern).or_default().message = Some(route);
    }

    #[track_caller]
    fn add_event(mut self, pattern: ByteString, route: Route, needs: Guarantee) -> Self {
        let caller = Location::caller();
        let pattern = pattern::route(pattern);
        let routes = self.routes.entry(pattern).or_default();
        routes.events.push(EventRoute {
            route,
            needs,
            limit: Limit::default(),
            caller,
        });
        self
    }

    pub(crate) fn find(&self, pattern: &str) -> Option<&Routes> {
        self.routes.get(pattern)
    }

    fn find_message(&self, pattern: &str) -> Option<&MessageRoute> {
        self.find(pattern)?.message.as_ref()
    }

    pub(crate) fn find_events(&self, pattern: &str) -> &[EventRoute] {
        self.find(pattern).map_or(&[], |routes| &routes.events)
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = (&ByteString, &MessageRoute)> {
        self.routes
            .iter()
            .filter_map(|(pattern, routes)| Some((pattern, routes.message.as_ref()?)))
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = (&ByteString, &[EventRoute])> {
        self.routes
            .iter()
            .map(|(pattern, routes)| (pattern, routes.events.as_slice()))
            .filter(|(_, events)| !events.is_empty())
    }
}

/// A pattern as it is kept. A literal is used where it lies: the type's own conversion would copy
/// it, since it takes any `&str`, but of those only literals are `'static`.
fn shared(pattern: impl Into<ByteString> + 'static) -> ByteString {
    match (&pattern as &dyn Any).downcast_ref::<&'static str>() {
        Some(literal) => ByteString::from_static(literal),
        None => pattern.into(),
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages: Vec<_> = self.messages().map(|(pattern, _)| pattern).collect();
        let events: Vec<_> = self.events().map(|(pattern, _)| pattern).collect();
        f.debug_struct("Router")
            .field("messages", &messages)
            .field("events", &events)
            .finish()
    }
}

/// Calls a router's message handler in place, for tests of handlers without a transport.
impl Service<Context> for Router {
    type Response = Reply;
    type Error = RpcError;
    type Future = BoxFuture<'static, Result<Reply, RpcError>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, cx: Context) -> Self::Future {
        match self.find_message(cx.pattern()) {
            Some(message) => message.route.run(cx),
            None => Box::pin(std::future::ready(Err(no_handler(cx.pattern())))),
        }
    }
}

/// The answer to a message that nobody here handles.
pub(crate) fn no_handler(pattern: &str) -> RpcError {
    RpcError::unimplemented(format!("no handler for {pattern:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::Payload;

    async fn echo(Payload(n): Payload<u64>) -> Result<u64, RpcError> {
        Ok(n)
    }

    #[test]
    #[should_panic(expected = "has two handlers: one added at")]
    fn two_handlers_of_one_message_are_refused_at_start() {
        let one = Router::new().message_at("a", echo);
        let other = Router::new().message_at("a", echo);
        drop(one.merge(other));
    }

    #[test]
    fn a_pattern_is_a_literal_or_made_at_run_time() {
        let verb = String::from("get");
        let router = Router::new()
            .message_at("a.literal", echo)
            .message_at(format!("a.{verb}"), echo)
            .event_at(ByteString::from("an.event"), echo);
        assert!(router.find_message("a.literal").is_some());
        assert!(router.find_message("a.get").is_some());
        assert!(router.find_message("a.put").is_none());
        assert_eq!(router.find_events("an.event").len(), 1);
    }

    #[test]
    fn a_literal_is_not_copied() {
        let literal = "a.literal";
        let router = Router::new().message_at(literal, echo);
        let kept = router
            .messages()
            .next()
            .map(|(pattern, _)| pattern.as_ptr());
        assert_eq!(kept, Some(literal.as_ptr()));
    }

    #[test]
    fn an_object_pattern_is_found_by_its_route() {
        let router = Router::new().message_at(r#"{ "b": 1, "a": 2 }"#, echo);
        assert!(router.find_message(r#"{"a":2,"b":1}"#).is_some());
    }

    #[test]
    fn an_event_may_have_any_number_of_handlers() {
        let one = Router::new().event_at("e", echo);
        let both = one.clone().merge(one);
        assert_eq!(both.find_events("e").len(), 2);
    }
}
