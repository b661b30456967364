//! Which rows are measured.

use std::time::Duration;

use crate::{
    peers,
    spec::{Encoding, Spec, Transport, Who, Wire, Workload},
};

/// What the comparison takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// 64 bytes, one and 64 in flight, every transport: below three minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these transports
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) transports: Vec<Transport>,
    /// Only these workloads
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) workloads: Vec<Workload>,
    /// Sizes of the payload in bytes of JSON
    #[arg(long, value_delimiter = ',', value_name = "BYTES,…")]
    pub(crate) payload: Vec<usize>,
    /// How many operations are in flight
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) concurrency: Vec<usize>,
    /// Over how many connections those are spread
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) connections: usize,
    /// How many processes answer; more than one where a broker shares the work out
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) replicas: usize,
    /// How long each is measured, in several turns
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(crate) duration: Option<Duration>,
    /// With the peers too: NestJS, tarpc and tonic
    #[arg(long)]
    pub(crate) peers: bool,
}

const FULL_PAYLOADS: [usize; 4] = [64, 1024, 16 << 10, 256 << 10];
const FULL_CONCURRENCY: [usize; 4] = [1, 16, 64, 512];

/// What is compared; each of these has a floor.
const SPECS: &[(Transport, Wire, Encoding, Workload)] = {
    use Encoding::{Bincode, Json};
    use Transport::{Jetstream, Kafka, Memory, Nats, Pubsub, Redis, Tcp};
    use Wire::{Native, Nest};
    use Workload::{Event, Request, Stream, Yield};
    &[
        (Memory, Native, Json, Request),
        (Tcp, Native, Json, Request),
        (Tcp, Native, Bincode, Request),
        (Tcp, Nest, Json, Request),
        (Tcp, Native, Bincode, Yield),
        (Tcp, Nest, Json, Yield),
        (Nats, Native, Json, Request),
        (Nats, Nest, Json, Request),
        (Redis, Native, Json, Request),
        (Pubsub, Nest, Json, Request),
        (Kafka, Native, Json, Request),
        (Kafka, Nest, Json, Request),
        (Nats, Native, Json, Event),
        (Jetstream, Native, Json, Event),
        (Redis, Native, Json, Event),
        (Kafka, Native, Json, Event),
        (Tcp, Native, Json, Stream),
        (Nats, Native, Json, Stream),
        (Redis, Native, Json, Stream),
        (Kafka, Native, Json, Stream),
    ]
};

impl Options {
    pub(crate) fn specs(&self) -> Vec<Spec> {
        let wanted = |spec: &Spec| {
            let is_one = |list: &[Transport]| list.is_empty() || list.contains(&spec.transport);
            let quick = !self.quick || spec.workload != Workload::Stream;
            // Elsewhere no broker does, or to everybody.
            let shares = self.replicas == 1
                || !matches!(
                    spec.transport,
                    Transport::Memory | Transport::Tcp | Transport::Pubsub
                );
            is_one(&self.transports)
                && shares
                && (self.workloads.contains(&spec.workload) || (self.workloads.is_empty() && quick))
        };
        SPECS
            .iter()
            .map(|&(transport, wire, codec, workload)| Spec {
                transport,
                wire,
                codec,
                workload,
            })
            .filter(wanted)
            .collect()
    }

    pub(crate) fn payloads(&self) -> Vec<usize> {
        match (&self.payload[..], self.quick) {
            ([], true) => vec![64],
            ([], false) => FULL_PAYLOADS.to_vec(),
            (given, _) => given.to_vec(),
        }
    }

    pub(crate) fn concurrencies(&self) -> Vec<usize> {
        match (&self.concurrency[..], self.quick) {
            ([], true) => vec![1, 64],
            ([], false) => FULL_CONCURRENCY.to_vec(),
            (given, _) => given.to_vec(),
        }
    }

    pub(crate) fn duration(&self) -> Duration {
        self.duration.unwrap_or(match self.quick {
            true => Duration::from_millis(1200),
            false => Duration::from_secs(3),
        })
    }

    /// Who is compared on a row.
    pub(crate) fn contestants(&self, spec: &Spec) -> Vec<Who> {
        let mut all = vec![Who::Nestling, Who::Floor];
        if self.peers && self.replicas == 1 {
            all.extend(peers::of(spec));
        }
        all
    }
}
