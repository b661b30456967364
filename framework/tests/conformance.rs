//! Every case of the suite on every transport: `cargo test -p nestling --test conformance tcp::` runs one of them.

use nestling_testkit::{Kind, suite::Fixture};

nestling_testkit::conformance! {
    memory => Fixture::memory();
    tcp => Fixture::peer("tcp://127.0.0.1:0");
    nats => Fixture::broker(Kind::Nats, "");
    redis => Fixture::broker(Kind::Redis, "");
    kafka => Fixture::broker(Kind::Kafka, "");
    kafka_nest => Fixture::broker(Kind::Kafka, "").map(|kafka| kafka.calling("wire=nest"));
}
