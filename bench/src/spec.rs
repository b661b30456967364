//! What is compared: a transport with its wire and codec, what is done on it, and by whom.

use std::fmt;

use clap::ValueEnum;
use nestling::Codec;
use nestling_testkit::Kind;
use serde::Serialize;

/// How many values a streamed reply has.
pub(crate) const STREAM_LENGTH: u32 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Memory,
    Tcp,
    Nats,
    Jetstream,
    Redis,
    Pubsub,
    Kafka,
}

impl Transport {
    pub(crate) fn broker(self) -> Option<Kind> {
        match self {
            Self::Memory | Self::Tcp => None,
            Self::Nats | Self::Jetstream => Some(Kind::Nats),
            Self::Redis | Self::Pubsub => Some(Kind::Redis),
            Self::Kafka => Some(Kind::Kafka),
        }
    }

    /// What is promised for an event; of a message, that no transport answers it twice.
    pub(crate) fn guarantee(self, workload: Workload) -> &'static str {
        match (self, workload) {
            (Self::Jetstream | Self::Redis | Self::Kafka | Self::Memory, Workload::Event) => {
                "at least once"
            }
            (_, Workload::Event) => "best effort",
            (Self::Redis | Self::Kafka | Self::Memory, _) => "given to another replica",
            _ => "until the deadline",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wire {
    Native,
    Nest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    Json,
    Bincode,
}

impl Encoding {
    pub(crate) fn codec(self) -> Codec {
        match self {
            Self::Json => Codec::Json,
            Self::Bincode => Codec::Bincode,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// A message and its reply, which is the message.
    Request,
    /// The same with a handler that lets others go first once, as one does that waits.
    Yield,
    /// An event, from its publication until it is handled.
    Event,
    /// A message and a stream of replies.
    Stream,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Who {
    Nestling,
    /// The client library of the transport and nothing else.
    Floor,
    /// `@nestjs/microservices` on Node.
    Nestjs,
    Tarpc,
    Tonic,
}

/// One line of the comparison, before it is known who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::Args)]
pub(crate) struct Spec {
    #[arg(long)]
    pub(crate) transport: Transport,
    #[arg(long)]
    pub(crate) wire: Wire,
    #[arg(long)]
    pub(crate) codec: Encoding,
    #[arg(long)]
    pub(crate) workload: Workload,
}

impl Spec {
    /// How many values answer a message.
    pub(crate) fn values(&self) -> u32 {
        match self.workload {
            Workload::Stream => STREAM_LENGTH,
            Workload::Request | Workload::Yield | Workload::Event => 1,
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(&self.transport))?;
        match (self.transport, self.wire, self.codec) {
            (Transport::Memory | Transport::Jetstream | Transport::Pubsub, ..) => {}
            (_, Wire::Nest, _) => write!(f, " nest")?,
            (_, Wire::Native, Encoding::Bincode) => write!(f, " bincode")?,
            (_, Wire::Native, Encoding::Json) => {}
        }
        write!(f, " {}", name(&self.workload))
    }
}

/// A value as it is written on the command line.
pub(crate) fn name<T: ValueEnum>(value: &T) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}
