//! nestling, on both sides.

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use nestling::{
    Client, Guarantee, Payload as Body, Router, RpcError, Server, Streaming, transport::Memory,
};

use crate::{
    caller::Caller,
    payload::Payload,
    serve::{Options, Seen, Serving},
    spec::{STREAM_LENGTH, Spec, Transport, Wire, Workload},
};

/// The URL of a transport at a broker or address.
fn url(spec: &Spec, base: &str) -> String {
    match spec.transport {
        Transport::Jetstream => format!("{base}?events=jetstream"),
        Transport::Pubsub => base.replacen("redis://", "redis+pubsub://", 1),
        _ => base.to_owned(),
    }
}

fn calling(spec: &Spec, base: &str) -> String {
    // A server may say where it is with the options it was given.
    let url = url(spec, base.split('?').next().unwrap_or(base));
    match (spec.wire, spec.transport) {
        (Wire::Native, _) | (_, Transport::Pubsub) => url,
        (Wire::Nest, _) => format!("{url}?wire=nest"),
    }
}

fn router(spec: &Spec, pattern: String, seen: &'static Seen) -> Router {
    let needs = match spec.transport.guarantee(Workload::Event) {
        "at least once" => Guarantee::AtLeastOnce,
        _ => Guarantee::BestEffort,
    };
    match spec.workload {
        Workload::Request => {
            Router::new().message_with(pattern, true, |Body(payload): Body<Payload>| async move {
                Ok::<_, RpcError>(payload)
            })
        }
        Workload::Yield => {
            Router::new().message_with(pattern, true, |Body(payload): Body<Payload>| async move {
                tokio::task::yield_now().await;
                Ok::<_, RpcError>(payload)
            })
        }
        Workload::Event => {
            let handler = move |Body(payload): Body<Payload>| async move {
                seen.note(&payload)
                    .map_err(|error| RpcError::internal(error.into_boxed_dyn_error()))
            };
            Router::new().event_with(pattern, needs, handler)
        }
        Workload::Stream => {
            let handler = |Body(payload): Body<Payload>| async move {
                Streaming::of((0..STREAM_LENGTH).map(move |_| payload.clone()))
            };
            Router::new().message_with(pattern, true, handler)
        }
    }
}

/// A server in this process.
pub(crate) async fn serve(options: &Options, seen: &'static Seen) -> Result<Serving> {
    let router = router(&options.spec, options.pattern.clone(), seen);
    let running = Server::new("bench", router)
        .temporary()
        .listen(url(&options.spec, &options.url))
        .start()
        .await
        .context("start the server")?;
    Ok((running.address().to_owned(), Box::new(running)))
}

/// Server and client in this process, over memory.
pub(crate) async fn in_memory(
    spec: &Spec,
    pattern: &str,
) -> Result<(Box<dyn Caller>, Box<dyn Send>)> {
    let seen: &'static Seen = Box::leak(Box::new(Seen::new()));
    let memory = Memory::new();
    let running = Server::new("bench", router(spec, pattern.to_owned(), seen))
        .listen(&memory)
        .start()
        .await?;
    let client = Client::builder(&memory)
        .codec(spec.codec.codec())
        .build()
        .await?;
    let caller = Ours {
        client,
        spec: *spec,
        pattern: pattern.to_owned(),
    };
    Ok((Box::new(caller), Box::new(running)))
}

/// A client of the server at `base`.
pub(crate) async fn connect(spec: &Spec, base: &str, pattern: &str) -> Result<Box<dyn Caller>> {
    let client = Client::builder(calling(spec, base))
        .codec(spec.codec.codec())
        .build()
        .await
        .context("connect")?;
    Ok(Box::new(Ours {
        client,
        spec: *spec,
        pattern: pattern.to_owned(),
    }))
}

struct Ours {
    client: Client,
    spec: Spec,
    pattern: String,
}

#[async_trait]
impl Caller for Ours {
    async fn act(&self, payload: &Payload) -> Result<u32> {
        let pattern = self.pattern.clone();
        match self.spec.workload {
            Workload::Request | Workload::Yield => {
                let reply: Payload = self.client.send_at(pattern, payload).await?;
                ensure!(reply == *payload, "the reply is another's");
                Ok(1)
            }
            Workload::Event => {
                self.client.emit_at(pattern, &payload.again()?).await?;
                Ok(1)
            }
            Workload::Stream => {
                let mut values = self.client.stream_at::<Payload>(pattern, payload).await?;
                let mut count = 0;
                while let Some(value) = values.try_next().await? {
                    ensure!(value == *payload, "the reply is another's");
                    count += 1;
                }
                ensure!(count == STREAM_LENGTH, "{count} values");
                Ok(count)
            }
        }
    }
}
