//! [`Channels`]: the reply channels a client is subscribed to.

use std::{collections::HashMap, sync::Arc};

use bytestring::ByteString;

use super::REPLY;

/// The reply channels of the routes that were called last.
///
/// NestJS ends the subscription with the last call of a route and makes it again for the next one; here
/// it stays, as long as there are not too many without a call.
pub(super) struct Channels {
    most: usize,
    channels: HashMap<ByteString, Channel>,
    /// Counts the calls.
    now: u64,
}

struct Channel {
    used_at: u64,
    calls: InUse,
}

/// Held by every call that waits for a reply on a channel.
pub(super) type InUse = Arc<()>;

impl Channels {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            channels: HashMap::new(),
            now: 0,
        }
    }

    /// The connection is lost, and all subscriptions with it.
    pub(super) fn clear(&mut self) {
        self.channels.clear();
    }

    /// Those of `routes` that have to be subscribed to now.
    pub(super) fn missing<'a>(
        &mut self,
        routes: impl Iterator<Item = &'a ByteString>,
    ) -> Vec<String> {
        let mut missing = Vec::new();
        for route in routes {
            self.now += 1;
            let channel = self.channels.entry(route.clone()).or_insert_with(|| {
                missing.push(format!("{route}{REPLY}"));
                Channel {
                    used_at: 0,
                    calls: InUse::default(),
                }
            });
            channel.used_at = self.now;
        }
        missing
    }

    /// A call of the route begins.
    pub(super) fn hold(&self, route: &ByteString) -> Option<InUse> {
        self.channels
            .get(route)
            .map(|channel| Arc::clone(&channel.calls))
    }

    /// Forgets channels without a call, those that were used longest ago, until there are as many as
    /// may be; returns them.
    pub(super) fn evict(&mut self) -> Vec<String> {
        if self.channels.len() <= self.most {
            return Vec::new();
        }
        let idle = |channel: &Channel| Arc::strong_count(&channel.calls) == 1;
        let mut ages: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, channel)| idle(channel))
            .map(|(route, channel)| (channel.used_at, route.clone()))
            .collect();
        ages.sort_unstable_by_key(|(used_at, _)| *used_at);
        // Some more than necessary, so that it is not done for every call.
        ages.truncate(self.channels.len() - self.most + self.most / 8);
        let forget = |(_, route): (u64, ByteString)| {
            self.channels.remove(&route);
            format!("{route}{REPLY}")
        };
        ages.into_iter().map(forget).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(channels: &mut Channels, route: &'static str) -> Vec<String> {
        channels.missing([ByteString::from_static(route)].iter())
    }

    #[test]
    fn idle_channels_are_kept_up_to_a_limit() {
        let mut channels = Channels::new(2);
        assert_eq!(call(&mut channels, "a"), ["a.reply"]);
        assert!(call(&mut channels, "a").is_empty());
        let a = channels.hold(&"a".into()).unwrap();
        call(&mut channels, "b");
        assert!(channels.evict().is_empty());
        call(&mut channels, "c");
        call(&mut channels, "b");
        assert_eq!(channels.evict(), ["c.reply"]);
        assert!(call(&mut channels, "a").is_empty());
        call(&mut channels, "c");
        drop(a);
        assert_eq!(channels.evict(), ["b.reply"]);
        channels.clear();
        assert_eq!(call(&mut channels, "a"), ["a.reply"]);
    }
}
