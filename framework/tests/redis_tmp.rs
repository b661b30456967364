use nestling_testkit::suite::Fixture;
nestling_testkit::conformance! {
    redis => Fixture::broker(nestling_testkit::Kind::Redis, "");
}
