//! `nestling listen`: whatever arrives, and an answer to it.

use std::pin::pin;

use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use nestling::{BoxFuture, Codec, Context, Handler, Reply, Router, RpcError, Server, service};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    call::json,
    outcome::Failure,
    output::{Carried, Output},
    target::{Pattern, Target},
};

/// Answer messages and take events of these patterns, and print each as a line of JSON.
///
/// Runs until Ctrl-C, and then finishes what has begun. Where it listens is said on standard error;
/// with port 0 a free one is taken.
///
/// On a broker it is a service of its own, so that it takes no event away from another. A message
/// that another service answers as well gets two answers, or on Redis is taken away from it: leave
/// those alone with --events.
///
/// Both wires are answered; --wire native leaves NestJS applications out.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Listen {
    #[command(flatten)]
    target: Target,
    /// What to listen to: names such as user.get, or the JSON text of objects; on NATS with
    /// wildcards
    #[arg(required = true, value_name = "PATTERN")]
    patterns: Vec<Pattern>,
    /// Answer a message with its own payload
    #[arg(long)]
    echo: bool,
    /// Answer every message with this, instead of null
    #[arg(
        long,
        value_name = "JSON",
        allow_negative_numbers = true,
        conflicts_with = "echo"
    )]
    reply: Option<String>,
    /// Take events only, and leave messages to whoever answers them. NestJS has no such thing: a
    /// message of its wire that comes by is answered with nothing
    #[arg(long, conflicts_with_all = ["echo", "reply"])]
    events: bool,
    /// Print nothing of what arrives
    #[arg(long)]
    quiet: bool,
    /// Join the service of this name, and share its work [default: a new one, which is gone
    /// afterwards]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    service: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  nestling listen tcp://127.0.0.1:7000 greeter.greet --echo
  nestling listen tcp://127.0.0.1:0 user.get user.list --reply '{\"id\":7,\"name\":\"Ada\"}'
  nestling listen nats://127.0.0.1:4222 'order.*' --events
  nestling listen kafka://127.0.0.1:9092 order.placed order.cancelled --events

A line has the members pattern, kind (message or event), headers, attempt, and payload; one that is
not JSON is text or base64 instead.

Exit codes:
  0    it was asked to end
  1    something of this machine's failed
  3    no connection: the broker cannot be reached, or the address is in use
  64   the command line makes no sense
  130  it was interrupted a second time, while it finished";

impl Listen {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let url = self.target.url()?;
        let answer = match (self.echo, self.reply) {
            (true, _) => Answer::Echo,
            (false, Some(text)) => Answer::Json(json("the reply", text)?),
            (false, None) => Answer::Json(Bytes::from_static(b"null")),
        };
        let listener = Listener {
            answer,
            shares: self.service.is_some(),
            output: (!self.quiet).then(Output::default),
            unread: CancellationToken::new(),
        };
        let mut patterns = self.patterns;
        patterns.sort();
        patterns.dedup();
        let router = router(patterns, &listener, !self.events);
        let server = match self.service {
            Some(service) => Server::new(service, router),
            None => Server::new(own_name(), router).temporary(),
        };
        let server = server.listen(url);

        // Polled first, so that from the start on a signal ends it in order.
        let mut stop = pin!(service::terminated());
        let running = tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            running = server.start() => running?,
        };
        for address in running.addresses() {
            eprintln!("listening on {address}");
        }
        tokio::select! {
            () = &mut stop => {}
            () = listener.unread.cancelled() => {}
        }
        tokio::select! {
            () = running.shutdown() => Ok(()),
            () = service::terminated() => Err(Failure::Interrupted),
        }
    }
}

/// A name that no service has, and no other listener.
fn own_name() -> String {
    format!("nestling-listen-{:08x}", fastrand::u32(..))
}

fn router(patterns: Vec<Pattern>, listener: &Listener, messages: bool) -> Router {
    patterns.into_iter().fold(Router::new(), |router, pattern| {
        let pattern = pattern.into_text();
        let router = match messages {
            true => router.message_at(pattern.clone(), Hears(Kind::Message, listener.clone())),
            false => router,
        };
        // As best effort, which every transport gives: those that give more do so all the same.
        router.event_at(pattern, Hears(Kind::Event, listener.clone()))
    })
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Message,
    Event,
}

#[derive(Clone, Debug)]
enum Answer {
    Echo,
    Json(Bytes),
}

/// What is done with all that arrives.
#[derive(Clone, Debug)]
struct Listener {
    answer: Answer,
    /// Whether somebody else may take what is not handled here.
    shares: bool,
    /// None when nothing is to be printed.
    output: Option<Output>,
    /// Cancelled when nobody reads what is printed.
    unread: CancellationToken,
}

impl Listener {
    async fn hear(&self, kind: Kind, cx: &Context) -> Result<Reply, RpcError> {
        if let Some(output) = &self.output {
            let line = serde_json::to_string(&Heard::new(kind, cx)).map_err(RpcError::internal)?;
            if let Err(error) = output.line(&line).await {
                self.unread.cancel();
                return match kind {
                    Kind::Event if !self.shares => Ok(Reply::None),
                    _ => Err(RpcError::unavailable("nobody listens any more").with_source(error)),
                };
            }
        }
        match (kind, &self.answer) {
            (Kind::Event, _) => Ok(Reply::None),
            (Kind::Message, Answer::Echo) => Ok(Reply::Value(cx.envelope().payload.clone())),
            (Kind::Message, Answer::Json(answer)) => match Codec::of(cx.headers())? {
                Codec::Json | Codec::Text => Ok(Reply::Value(answer.clone())),
                _ => Err(RpcError::invalid_argument("only JSON is answered here")),
            },
        }
    }
}

/// A handler of any payload.
#[derive(Clone, Debug)]
struct Hears(Kind, Listener);

impl Handler<Self> for Hears {
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>> {
        let Self(kind, listener) = self.clone();
        Box::pin(async move { listener.hear(kind, &cx).await })
    }
}

/// The line that is printed.
#[derive(Serialize)]
struct Heard<'a> {
    pattern: &'a str,
    kind: Kind,
    #[serde(flatten)]
    carried: Carried<'a>,
    attempt: u32,
}

impl<'a> Heard<'a> {
    fn new(kind: Kind, cx: &'a Context) -> Self {
        Self {
            pattern: cx.pattern(),
            kind,
            carried: Carried::by(cx.envelope()),
            attempt: cx.attempt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use nestling::{Envelope, header};

    use super::*;

    #[test]
    fn a_payload_is_shown_as_what_it_is() {
        let check = |payload: &'static [u8], content_type: &str, expected: &str| {
            let mut envelope = Envelope::new("a.b", payload);
            envelope.headers.set(header::CONTENT_TYPE, content_type);
            let cx = Context::new(envelope, "tcp");
            let line = serde_json::to_string(&Heard::new(Kind::Event, &cx)).unwrap();
            let expected = format!(
                r#"{{"pattern":"a.b","kind":"event","headers":{{"content-type":"{content_type}"}},{expected},"attempt":1}}"#
            );
            assert_eq!(line, expected);
        };
        let json = "application/json";
        check(b"", json, r#""payload":null"#);
        check(b"{\"n\": 1.50}", json, r#""payload":{"n": 1.50}"#);
        check(b"hello", json, r#""text":"hello""#);
        check(b"\xff\x00", json, r#""base64":"/wA=""#);
        check(b"1", "application/x-bincode", r#""text":"1""#);
        check(b"1", "text/plain", r#""text":"1""#);
        check(b"[1]", "text/plain", r#""payload":[1]"#);
    }
}
