//! Who calls: a NestJS client or a nestling one, with what is the same in both.

use std::{sync::Arc, time::Duration};

use nestling::{Client, Code, RpcError};
use serde_json::{Value, json};

use crate::{
    names::Pattern,
    nest_client::{NestClient, News},
    stage::within,
};

/// How long a call waits for its reply.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A client of either kind.
#[derive(Clone)]
pub(crate) enum Caller {
    Nest(Arc<NestClient>),
    Nestling(Client),
}

/// How a call failed, as its caller sees it.
#[derive(Debug, PartialEq)]
pub(crate) enum Failure {
    /// NestJS hands on what it received.
    Raw(Value),
    /// An error of NestJS's client itself, by its class and its message.
    Exception(String, String),
    /// nestling's callers see this.
    Rpc(RpcError),
}

impl Failure {
    /// The error of a nestling caller.
    pub(crate) fn rpc(&self) -> &RpcError {
        match self {
            Self::Rpc(error) => error,
            other => panic!("not the error of a nestling client: {other:?}"),
        }
    }

    /// True for the error with this code, message and details, in either form.
    pub(crate) fn is(&self, code: Code, message: &str, details: Option<&Value>) -> bool {
        match self {
            Self::Raw(raw) => {
                let mut expected = json!({ "status": "error", "message": message, "code": code });
                if let Some(details) = details {
                    expected["details"] = details.clone();
                }
                *raw == expected
            }
            Self::Exception(..) => false,
            Self::Rpc(error) => {
                error.code == code && error.message == message && error.details.as_ref() == details
            }
        }
    }

    /// True for an error of NestJS that has a message and no more.
    pub(crate) fn is_message(&self, message: &str) -> bool {
        match self {
            Self::Raw(raw) => *raw == json!({ "status": "error", "message": message }),
            _ => self.is(Code::Unknown, message, None),
        }
    }
}

/// The values of a reply, and the failure that ended it.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) values: Vec<Value>,
    pub(crate) failure: Option<Failure>,
}

impl Caller {
    /// Sends a message and waits for its one reply; nothing reads as null.
    pub(crate) async fn send(
        &self,
        pattern: &Pattern,
        data: &Value,
        headers: &[(&str, &str)],
    ) -> Result<Value, Failure> {
        match self {
            Self::Nest(_) => {
                let outcome = self.collect(pattern, data, headers, None).await;
                match (outcome.failure, &outcome.values[..]) {
                    (Some(failure), []) => Err(failure),
                    (None, []) => Ok(Value::Null),
                    (None, [value]) => Ok(value.clone()),
                    (failure, values) => panic!("one reply was expected: {values:?}, {failure:?}"),
                }
            }
            Self::Nestling(client) => {
                let mut call = client.send_at::<Value>(pattern.text.clone(), data);
                call = call.timeout(CALL_LIMIT);
                for (name, value) in headers {
                    call = call.header(*name, *value);
                }
                call.await.map_err(Failure::Rpc)
            }
        }
    }

    /// Sends a message and collects its replies, all or the first few.
    pub(crate) async fn stream(
        &self,
        pattern: &Pattern,
        data: &Value,
        take: Option<usize>,
    ) -> Outcome {
        self.collect(pattern, data, &[], take).await
    }

    /// Emits an event.
    pub(crate) async fn emit(&self, pattern: &Pattern, data: &Value, headers: &[(&str, &str)]) {
        match self {
            Self::Nest(client) => {
                let mut news = client.start_call("emit", pattern, data, headers, None);
                loop {
                    match within("an event to be emitted", news.recv()).await {
                        Some(News::Value(_) | News::Undefined) => {}
                        Some(News::Complete) => return,
                        other => panic!("emit ended with {other:?}\n{}", client.log()),
                    }
                }
            }
            Self::Nestling(client) => {
                let mut call = client.emit_at(pattern.text.clone(), data);
                for (name, value) in headers {
                    call = call.header(*name, *value);
                }
                call.await.unwrap();
            }
        }
    }

    async fn collect(
        &self,
        pattern: &Pattern,
        data: &Value,
        headers: &[(&str, &str)],
        take: Option<usize>,
    ) -> Outcome {
        let mut values = Vec::new();
        let failure = match self {
            Self::Nest(client) => {
                let mut news = client.start_call("send", pattern, data, headers, take);
                loop {
                    match within("a reply", news.recv()).await {
                        Some(News::Value(value)) => values.push(value),
                        Some(News::Undefined) => values.push(Value::Null),
                        Some(News::Complete) => break None,
                        Some(News::Error(error)) => break Some(Failure::Raw(error)),
                        Some(News::Exception { name, message }) => {
                            break Some(Failure::Exception(name, message));
                        }
                        None => panic!("the NestJS client has ended\n{}", client.log()),
                    }
                }
            }
            Self::Nestling(client) => {
                let call = client.stream_at::<Value>(pattern.text.clone(), data);
                match call.timeout(CALL_LIMIT).await {
                    Err(error) => Some(Failure::Rpc(error)),
                    Ok(mut stream) => loop {
                        if take == Some(values.len()) {
                            break None;
                        }
                        match stream.try_next().await {
                            Ok(Some(value)) => values.push(value),
                            Ok(None) => break None,
                            Err(error) => break Some(Failure::Rpc(error)),
                        }
                    },
                }
            }
        };
        Outcome { values, failure }
    }
}
