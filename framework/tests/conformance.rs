//! Every case of the suite on every transport: `cargo test -p nestling --test conformance tcp::` runs one of them.

use std::path::Path;

use nestling::Guarantee;
use nestling_testkit::{Kind, suite::Fixture};

nestling_testkit::conformance! {
    memory => Fixture::memory();
    tcp => Fixture::peer("tcp://127.0.0.1:0").map(Fixture::keeping);
    tcp_nest => Fixture::peer("tcp://127.0.0.1:0").map(|tcp| tcp.calling("wire=nest"));
    // Certificates on both sides; the brokers below ask for a password too.
    tcp_tls => Fixture::secure_peer("tcp://127.0.0.1:0", Path::new(env!("CARGO_TARGET_TMPDIR")));
    nats => Fixture::broker(Kind::Nats, "").map(Fixture::keeping);
    jetstream => Fixture::broker(Kind::Nats, "events=jetstream");
    nats_nest => Fixture::broker(Kind::Nats, "").map(|nats| nats.calling("wire=nest"));
    nats_tls => Fixture::secure_broker(Kind::Nats, "events=jetstream");
    redis => Fixture::broker(Kind::Redis, "");
    redis_nest => Fixture::broker(Kind::Redis, "").map(|fixture| {
        fixture.calling("wire=nest").serving(Guarantee::AtLeastOnce)
    });
    redis_pubsub => Fixture::broker(Kind::Redis, "").map(|fixture| fixture.scheme("redis+pubsub"));
    redis_tls => Fixture::secure_broker(Kind::Redis, "");
    kafka => Fixture::broker(Kind::Kafka, "");
    kafka_nest => Fixture::broker(Kind::Kafka, "").map(|kafka| kafka.calling("wire=nest"));
    #[cfg(feature = "kafka-tls")]
    kafka_tls => Fixture::secure_broker(Kind::Kafka, "");
}
