//! The sending side.

use std::{iter, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{Attempt, CAPABILITIES, Hub, absent, fits};
use crate::{
    envelope::Envelope,
    transport::{
        Capabilities, ClientTransport, Error, ErrorKind, Expect, Kind, Pending, Replies,
        pending::lock,
    },
};

pub(super) struct MemoryClient {
    hub: Arc<Hub>,
    pending: Arc<Pending>,
}

#[async_trait]
impl ClientTransport for MemoryClient {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        let (service, first, replies) = self.prepare(envelope, expect)?;
        self.hub.deliver(&service, first).await?;
        Ok(replies)
    }

    fn try_request(
        &self,
        envelope: Envelope,
        expect: Expect,
    ) -> Result<Result<Replies, Error>, Envelope> {
        let (service, first, replies) = match self.prepare(envelope, expect) {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        match self.hub.try_deliver(&service, first) {
            Ok(None) => Ok(Ok(replies)),
            Ok(Some(first)) => Err(first.envelope),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        fits(envelope.payload.len())?;
        let services = self.hub.services_for(Kind::Event, &envelope.pattern);
        let envelopes = iter::repeat_n(envelope, services.len());
        let (mut full, mut failures) = (Vec::new(), Vec::new());
        for (service, envelope) in services.into_iter().zip(envelopes) {
            let first = Attempt {
                envelope,
                call: None,
                repeatable: true,
                number: 1,
            };
            match self.hub.try_deliver(&service, first) {
                Ok(None) => {}
                Ok(Some(first)) => full.push((service, first)),
                Err(error) => failures.push(error),
            }
        }
        // A service that is full keeps none of the others from its event.
        let waiting = { full.into_iter() }
            .map(|(service, first)| async move { self.hub.deliver(&service, first).await });
        let waited = join_all(waiting).await;
        failures.extend(waited.into_iter().filter_map(Result::err));
        // A service that has just left needs none.
        let is_failure = |error: &Error| error.kind() != ErrorKind::NoResponders;
        failures.into_iter().find(is_failure).map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.end();
    }
}

impl MemoryClient {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        let pending = Pending::new();
        Self { hub, pending }
    }

    /// A request about to be delivered, to whom, and where its replies will appear.
    fn prepare(
        &self,
        envelope: Envelope,
        expect: Expect,
    ) -> Result<(Arc<str>, Attempt, Replies), Error> {
        fits(envelope.payload.len())?;
        let Some((service, repeatable)) = self.hub.find_message(&envelope.pattern) else {
            return Err(absent(&envelope.pattern));
        };
        let (call, replies) = self.pending.register_local(expect);
        let first = Attempt {
            envelope,
            call: Some(call),
            repeatable,
            number: 1,
        };
        Ok((service, first, replies))
    }

    /// Ends every call, at both ends.
    fn end(&self) {
        self.pending
            .fail_all(&Error::new(ErrorKind::Closed, "the client was closed").into());
    }
}

impl Drop for MemoryClient {
    fn drop(&mut self) {
        self.end();
    }
}

impl Hub {
    /// The service that answers `pattern`, and whether a crash may run it again.
    fn find_message(&self, pattern: &str) -> Option<(Arc<str>, bool)> {
        let services = lock(&self.services);
        services.iter().find_map(|(name, members)| {
            let messages = members
                .iter()
                .flat_map(|member| &member.subscription.messages);
            let message = { messages }.find(|message| message.pattern == pattern)?;
            Some((Arc::clone(name), message.idempotent))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::transport::{
        Memory, MessagePattern, ServerTransport, Source, Subscription, memory::QUEUE,
    };

    async fn source(memory: &Memory) -> Box<dyn Source> {
        let subscription = Subscription {
            service: "s".to_owned(),
            instance: "i".to_owned(),
            messages: vec![MessagePattern {
                pattern: "a.b".into(),
                idempotent: false,
            }],
            events: Vec::new(),
            heard: Vec::new(),
            temporary: false,
            max_in_flight: 1,
        };
        let mut sources = memory.subscribe(subscription).await.unwrap();
        sources.next().await.unwrap()
    }

    #[tokio::test]
    async fn a_request_without_room_is_given_back_and_waits_when_it_is_made_again() {
        let memory = Memory::new();
        let mut source = source(&memory).await;
        let client = MemoryClient::new(Arc::clone(&memory.hub));
        let envelope = Envelope::new("a.b", "1");
        let attempt = || client.try_request(envelope.clone(), Expect::Single);
        let sent: Vec<_> = (0..QUEUE).map(|_| attempt().unwrap().unwrap()).collect();
        assert_eq!(attempt().unwrap_err(), envelope);
        assert_eq!(client.pending.len(), QUEUE);

        let mut waiting = client.request(envelope.clone(), Expect::Single);
        assert!(waiting.as_mut().now_or_never().is_none());
        let mut batch = Vec::new();
        poll_fn(|cx| source.poll_deliveries(cx, 1, &mut batch)).await;
        let last = waiting.await.unwrap();
        assert_eq!(client.pending.len(), QUEUE + 1);
        drop((sent, last, batch));
        assert!(client.pending.is_empty());
    }

    #[tokio::test]
    async fn a_request_that_nobody_handles_fails_without_waiting() {
        let client = MemoryClient::new(Arc::default());
        let failed = client.try_request(Envelope::new("a.b", "1"), Expect::Single);
        let error = failed.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoResponders);
        assert!(client.pending.is_empty());
    }
}
