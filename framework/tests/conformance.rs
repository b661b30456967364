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
}

/// TLS and SASL are the business of Kafka's library, and change nothing in how it is used; with them the whole list takes
/// twice as long as the slowest row. So some of each kind: what is large, what waits, what goes on after a loss.
#[cfg(feature = "kafka-tls")]
mod kafka_tls {
    use std::sync::LazyLock;

    use nestling_testkit::{Kind, suite::Fixture};

    static FIXTURE: LazyLock<Option<Fixture>> =
        LazyLock::new(|| Fixture::secure_broker(Kind::Kafka, ""));

    nestling_testkit::conformance_cases! {
        calls::a_message_gets_its_reply;
        calls::headers_travel;
        calls::two_hundred_callers_each_get_their_own_reply;
        streams::a_stream_has_all_its_values_in_order;
        errors::a_typed_error_keeps_code_message_and_details;
        limits::nine_hundred_kilobytes_travel_both_ways;
        events::an_event_reaches_its_handler;
        events::events_with_one_key_keep_their_order if order_by_key;
        events::events_wait_for_a_stopped_service if durable;
        dead_letters::an_event_tried_in_vain_is_kept if dead_letters;
        crashes::an_idempotent_request_is_given_to_another if redelivers replicas_share;
        broker::a_broker_killed_amid_five_thousand_of_each_comes_back;
    }
}
