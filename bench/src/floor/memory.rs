//! A channel between two tasks.

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{check, echo, work};
use crate::{caller::Caller, payload::Payload, spec::Spec};

type Asked = (Bytes, oneshot::Sender<Bytes>);

/// Both sides in this process.
pub(crate) fn in_memory(spec: &Spec) -> (Box<dyn Caller>, Box<dyn Send>) {
    let (calls, mut asked) = mpsc::channel::<Asked>(1024);
    let codec = spec.codec;
    let serving = work(async move {
        while let Some((bytes, reply)) = asked.recv().await {
            // A caller that has gone wants no reply.
            reply.send(echo(codec, &bytes)?.into()).ok();
        }
        Ok(())
    });
    let caller = Memory { calls, spec: *spec };
    (Box::new(caller), Box::new(serving))
}

struct Memory {
    calls: mpsc::Sender<Asked>,
    spec: Spec,
}

#[async_trait]
impl Caller for Memory {
    async fn act(&self, payload: &Payload) -> Result<u32> {
        let (reply, replied) = oneshot::channel();
        let bytes = payload.encode(self.spec.codec.codec())?.into();
        self.calls.send((bytes, reply)).await?;
        check(&self.spec, payload, &replied.await.context("no reply")?)?;
        Ok(1)
    }
}
