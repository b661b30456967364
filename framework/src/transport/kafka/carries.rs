//! What a service's topics carry, on each of the two wires.

use std::collections::HashMap;

use bytestring::ByteString;

use super::{
    Settings,
    topics::{self, EventTopics, Purpose},
};
use crate::transport::{Error, ErrorKind, Subscription, Wire, nest::Routes};

/// What a topic carries.
#[derive(Debug)]
pub(super) struct Carries {
    /// Its name, which is a pattern to NestJS.
    pub(super) topic: ByteString,
    pub(super) native: Native,
    pub(super) nest: Nest,
}

/// What nestling's own records on a topic are.
#[derive(Debug)]
pub(super) enum Native {
    /// Requests of one pattern. Idempotent ones are committed once they are settled, others before
    /// they are delivered.
    Requests {
        pattern: ByteString,
        idempotent: bool,
    },
    /// Events of one pattern.
    Event { pattern: ByteString },
    /// Events of many patterns, of which these are handled here.
    Events { patterns: Vec<ByteString> },
    /// Copies, for NestJS applications, of events that arrive elsewhere.
    Copies,
}

/// What a NestJS application's records on a topic are, by the handlers of the route that the
/// topic's name leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nest {
    /// Nothing: its wire is switched off.
    Off,
    /// Requests, or events for the same handler.
    Requests(ByteString),
    /// Events, even those that ask for an answer.
    Events(ByteString),
    /// Nothing that anybody here handles.
    Nobody,
}

impl Carries {
    fn new(topic: &str, native: Native) -> Self {
        Self {
            topic: topic.into(),
            native,
            nest: Nest::Off,
        }
    }

    /// What the topic is made for, where it is made here.
    pub(super) fn purpose(&self) -> Purpose {
        match self.native {
            Native::Requests { .. } => Purpose::Requests,
            Native::Event { .. } | Native::Events { .. } | Native::Copies => Purpose::Events,
        }
    }

    /// Whether a service that has never read the topic passes over what is there. What a NestJS
    /// application asked has no deadline, and may have been answered by a service that was here
    /// before.
    pub(super) fn begins_at_end(&self) -> bool {
        self.purpose() == Purpose::Events || self.nest != Nest::Off
    }

    /// Whether what it carries is tried until it is given up, rather than until its deadline.
    pub(super) fn holds_events(&self) -> bool {
        !self.commits_first() && !matches!(self.native, Native::Requests { .. })
    }

    /// Whether offsets are committed before their records are delivered.
    pub(super) fn commits_first(&self) -> bool {
        matches!(
            self.native,
            Native::Requests {
                idempotent: false,
                ..
            }
        )
    }
}

/// What arrives by each topic.
pub(super) fn carried(
    subscription: &Subscription,
    settings: &Settings,
) -> Result<HashMap<String, Carries>, Error> {
    let mut carried = native(subscription, settings.event_topics)?;
    if settings.wire != Some(Wire::Native) {
        add_nest(&mut carried, subscription);
    }
    Ok(carried)
}

fn native(
    subscription: &Subscription,
    event_topics: EventTopics,
) -> Result<HashMap<String, Carries>, Error> {
    let mut carried = HashMap::new();
    for message in &subscription.messages {
        topics::check(&message.pattern)?;
        let requests = Native::Requests {
            pattern: message.pattern.clone(),
            idempotent: message.idempotent,
        };
        let topic = message.pattern.to_string();
        carried.insert(topic, Carries::new(&message.pattern, requests));
    }
    for event in &subscription.events {
        let topic = event_topics.topic(&event.pattern)?;
        let pattern = event.pattern.clone();
        let native = match (carried.get_mut(&topic), event_topics) {
            (Some(carries), _) => match &mut carries.native {
                Native::Events { patterns } => {
                    patterns.push(pattern);
                    continue;
                }
                _ => {
                    let message = format!("topic {topic} cannot carry messages and events");
                    return Err(Error::new(ErrorKind::Config, message));
                }
            },
            (None, EventTopics::PerPattern) => Native::Event { pattern },
            (None, EventTopics::PerService | EventTopics::Both) => Native::Events {
                patterns: vec![pattern],
            },
        };
        let carries = Carries::new(&topic, native);
        carried.insert(topic, carries);
    }
    Ok(carried)
}

/// NestJS applications emit to the topic that is named by the pattern.
fn add_nest(carried: &mut HashMap<String, Carries>, subscription: &Subscription) {
    for event in &subscription.events {
        if topics::is_legal(&event.pattern) {
            carried
                .entry(event.pattern.to_string())
                .or_insert_with(|| Carries::new(&event.pattern, Native::Copies));
        } else {
            let pattern = &*event.pattern;
            tracing::debug!(pattern, "no NestJS application can emit this over Kafka");
        }
    }
    let routes = Routes::new(subscription);
    for carries in carried.values_mut() {
        carries.nest = match routes.of_name(&carries.topic) {
            None => Nest::Nobody,
            Some(route) => {
                let mut messages = subscription.messages.iter();
                match messages.any(|message| message.pattern == route) {
                    true => Nest::Requests(route),
                    false => Nest::Events(route),
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::Guarantee,
        transport::{EventPattern, MessagePattern},
    };

    fn subscription(messages: &[&'static str], events: &[&'static str]) -> Subscription {
        let message = |pattern: &&'static str| MessagePattern {
            pattern: (*pattern).into(),
            idempotent: true,
        };
        let event = |pattern: &&'static str| EventPattern {
            pattern: (*pattern).into(),
            needs: Guarantee::AtLeastOnce,
        };
        Subscription {
            service: "user".to_owned(),
            instance: "1".to_owned(),
            messages: messages.iter().map(message).collect(),
            events: events.iter().map(event).collect(),
            heard: Vec::new(),
            temporary: false,
            max_in_flight: 8,
        }
    }

    fn of(options: &str, messages: &[&'static str], events: &[&'static str]) -> Carried {
        let address = format!("kafka://localhost?{options}").parse().unwrap();
        let settings = Settings::of_server(&address).unwrap();
        carried(&subscription(messages, events), &settings)
    }

    type Carried = Result<HashMap<String, Carries>, Error>;

    #[test]
    fn events_of_one_service_arrive_by_one_topic_and_those_of_nestjs_by_one_each() {
        for options in ["", "topic=both"] {
            let carried = of(options, &["user.get"], &["order.placed", "order.paid"]).unwrap();
            assert_eq!(carried.len(), 4, "{carried:?}");
            let Native::Events { patterns } = &carried["order.events"].native else {
                panic!("{carried:?}");
            };
            assert_eq!(patterns.as_slice(), ["order.placed", "order.paid"]);
            assert_eq!(carried["order.events"].nest, Nest::Nobody);
            let placed = &carried["order.placed"];
            assert!(matches!(placed.native, Native::Copies));
            assert_eq!(placed.nest, Nest::Events("order.placed".into()));
            let get = Nest::Requests("user.get".into());
            assert_eq!(carried["user.get"].nest, get);
        }
    }

    #[test]
    fn without_nestjs_there_is_nothing_but_the_native_topics() {
        let carried = of("wire=native", &["user.get"], &["order.placed"]).unwrap();
        assert_eq!(carried.len(), 2);
        assert!(carried.values().all(|carries| carries.nest == Nest::Off));
        assert!(!carried["user.get"].begins_at_end());
        assert!(carried["order.events"].begins_at_end());
    }

    #[test]
    fn a_topic_of_messages_takes_no_native_events() {
        assert!(of("topic=pattern", &["user.get"], &["user.get"]).is_err());
        let carried = of("", &["user.get"], &["user.get"]).unwrap();
        assert_eq!(carried.len(), 2);
        let get = &carried["user.get"];
        assert!(matches!(get.native, Native::Requests { .. }));
        assert_eq!(get.nest, Nest::Requests("user.get".into()));
    }

    #[test]
    fn a_message_that_no_topic_can_be_named_by_is_refused_and_such_an_event_is_not() {
        let error = of("", &[r#"{"cmd":"sum"}"#], &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("cmd"), "{error}");
        let carried = of("", &[], &["order.ändert"]).unwrap();
        assert_eq!(carried.len(), 1, "{carried:?}");
    }

    #[test]
    fn a_name_that_is_json_leads_where_nestjs_takes_it() {
        let carried = of("", &["true", "1.0", "1"], &[]).unwrap();
        assert_eq!(carried["true"].nest, Nest::Nobody);
        assert_eq!(carried["1.0"].nest, Nest::Requests("1".into()));
        assert_eq!(carried["1"].nest, Nest::Requests("1".into()));
    }
}
