//! [`Names`]: the channels a service listens to, and whom what arrives on them is for.

use std::collections::HashMap;

use bytes::Bytes;
use bytestring::ByteString;

use super::REPLY;
use crate::transport::{Subscription, nest::Routes, redis::link::Message};

/// What a service has subscribed to: a channel for each of its routes, or all channels that the
/// route matches, if there is a `*` in it.
pub(super) struct Names {
    channels: HashMap<Bytes, Name>,
    globs: HashMap<Bytes, Name>,
    /// What channels that are not NestJS's begin with.
    ours: String,
}

struct Name {
    text: ByteString,
    /// Where replies go.
    reply: Bytes,
    /// Whose handler it leads to. NestJS has names that lead nowhere, like `true`.
    route: Option<ByteString>,
}

/// Where a message belongs.
pub(super) struct Place {
    /// The channel, as a handler sees it.
    pub(super) pattern: ByteString,
    pub(super) reply: Bytes,
    pub(super) route: Option<ByteString>,
    /// Whether it may be an answer, of ours or another's, which only a glob has brought here.
    pub(super) may_be_answer: bool,
}

impl Names {
    pub(super) fn new(subscription: &Subscription, ours: String) -> Self {
        let routes = Routes::new(subscription);
        let name = |text: &ByteString| {
            let route = routes.of_name(text);
            if route.is_none() {
                tracing::warn!(pattern = %text, "no message of a NestJS application leads to this pattern");
            }
            let name = Name {
                text: text.clone(),
                reply: reply_to(text.as_bytes().to_vec()),
                route,
            };
            (text.as_bytes().clone(), name)
        };
        let (globs, channels): (Vec<_>, _) = routes.iter().partition(|route| is_glob(route));
        Self {
            channels: channels.into_iter().map(name).collect(),
            globs: globs.into_iter().map(name).collect(),
            ours,
        }
    }

    pub(super) fn channels(&self) -> Vec<String> {
        texts(&self.channels)
    }

    pub(super) fn globs(&self) -> Vec<String> {
        texts(&self.globs)
    }

    /// `None` for what is not meant for us.
    pub(super) fn place(&self, glob: Option<&[u8]>, channel: Vec<u8>) -> Option<Place> {
        let Some(glob) = glob else {
            let name = self.channels.get(&*channel)?;
            return Some(Place {
                pattern: name.text.clone(),
                reply: name.reply.clone(),
                route: name.route.clone(),
                may_be_answer: false,
            });
        };
        if channel.starts_with(self.ours.as_bytes()) {
            return None;
        }
        let name = self.globs.get(glob)?;
        let may_be_answer =
            channel.ends_with(REPLY.as_bytes()) && !glob.ends_with(REPLY.as_bytes());
        let length = channel.len();
        let reply = reply_to(channel);
        let pattern = ByteString::try_from(reply.slice(..length)).unwrap_or_else(|_| {
            String::from_utf8_lossy(&reply[..length])
                .into_owned()
                .into()
        });
        Some(Place {
            pattern,
            reply,
            route: name.route.clone(),
            may_be_answer,
        })
    }

    /// The same for a message that will not be handled.
    pub(super) fn reply_channel(message: Message) -> Bytes {
        reply_to(message.channel)
    }
}

/// Redis gives a meaning to `[ ] ? \` too, but only in a name that has a `*`; in others they are
/// what they are.
fn is_glob(route: &str) -> bool {
    route.contains('*')
}

fn reply_to(mut channel: Vec<u8>) -> Bytes {
    channel.extend_from_slice(REPLY.as_bytes());
    channel.into()
}

fn texts(names: &HashMap<Bytes, Name>) -> Vec<String> {
    names.values().map(|name| name.text.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::Guarantee,
        transport::{EventPattern, MessagePattern},
    };

    fn names() -> Names {
        let message = |pattern: &str| MessagePattern {
            pattern: pattern.into(),
            idempotent: false,
        };
        Names::new(
            &Subscription {
                service: "s".to_owned(),
                instance: "i".to_owned(),
                messages: ["a.b", "users.*", "[1]", "1", "true"].map(message).into(),
                events: vec![EventPattern {
                    pattern: "*.reply".into(),
                    needs: Guarantee::BestEffort,
                }],
                heard: Vec::new(),
                temporary: false,
                max_in_flight: 1,
            },
            "nestling:".to_owned(),
        )
    }

    #[test]
    fn a_channel_is_a_glob_only_with_a_star() {
        let names = names();
        let sorted = |mut names: Vec<String>| {
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(names.channels()), ["1", "[1]", "a.b", "true"]);
        assert_eq!(sorted(names.globs()), ["*.reply", "users.*"]);
    }

    #[test]
    fn a_message_is_placed_by_its_channel_or_by_its_glob() {
        let names = names();
        let check = |glob: Option<&str>, channel: &str, route: Option<&str>, answer: bool| {
            let place = names
                .place(glob.map(str::as_bytes), channel.into())
                .unwrap();
            assert_eq!(place.pattern, channel);
            assert_eq!(place.reply, format!("{channel}.reply"));
            assert_eq!(place.route.as_deref(), route, "{channel}");
            assert_eq!(place.may_be_answer, answer, "{channel}");
        };
        check(None, "a.b", Some("a.b"), false);
        check(None, "true", None, false);
        check(None, "[1]", None, false);
        check(Some("users.*"), "users.42", Some("users.*"), false);
        check(Some("users.*"), "users.42.reply", Some("users.*"), true);
        check(Some("*.reply"), "a.reply", Some("*.reply"), false);
    }

    #[test]
    fn names_that_nobody_should_see_are_no_trouble() {
        let names = names();
        assert!(names.place(None, b"unknown".to_vec()).is_none());
        assert!(
            names
                .place(Some(b"unknown*"), b"unknown".to_vec())
                .is_none()
        );
        let control = b"nestling:control:users.get".to_vec();
        assert!(names.place(Some(b"users.*"), control).is_none());
        let place = names
            .place(Some(b"users.*"), b"users.\xff".to_vec())
            .unwrap();
        assert_eq!(place.pattern, "users.\u{fffd}");
        assert_eq!(&*place.reply, b"users.\xff.reply");
    }
}
