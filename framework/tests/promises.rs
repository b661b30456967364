//! What the README promises: its table of guarantees is what the transports declare, and each of its promises names the
//! tests that keep it.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{env, fs, iter, path::PathBuf};

use nestling::{
    Guarantee,
    transport::{Capabilities, Order},
};
use nestling_testkit::{Kind, suite::Fixture};

const START: &str = "<!-- What the transports declare; UPDATE=1 cargo test -p nestling --test promises writes it. -->\n";
const END: &str = "<!-- The end of what they declare. -->\n";
const PROMISES: &str = "docs/promises.md";

/// A row of the table: what is promised, what a transport says of it, and the suite's cases that hold it to that.
type Row = (
    &'static str,
    fn(&Capabilities) -> String,
    &'static [&'static str],
);

const ROWS: &[Row] = &[
    (
        "an event is handled",
        |c| match c.events {
            Guarantee::AtLeastOnce => "at least once".to_owned(),
            Guarantee::BestEffort => "best effort".to_owned(),
        },
        &["crashes::an_event_is_given_to_another"],
    ),
    (
        "each service sees each event",
        |c| yes(c.fan_out),
        &["events::two_services_each_see_every_event_once"],
    ),
    (
        "events wait for a service that is stopped",
        |c| yes(c.durable),
        &["events::events_wait_for_a_stopped_service"],
    ),
    (
        "what keeps its order",
        |c| {
            match c.order {
                Order::Connection => "a connection",
                Order::Subject => "a publisher's pattern",
                Order::KeyInReplica => "a key, in one replica",
                Order::Key => "a key",
                _ => "nothing",
            }
            .to_owned()
        },
        &[
            "events::events_with_one_key_keep_their_order",
            "events::events_with_one_key_keep_their_order_in_a_replica",
            "disorder::events_are_begun_in_the_order_they_were_emitted",
        ],
    ),
    (
        "an event given up is kept as a dead letter",
        |c| yes(c.dead_letters),
        &["dead_letters::an_event_tried_in_vain_is_kept"],
    ),
    (
        "replicas share the messages",
        |c| yes(c.replicas_share),
        &["replicas::two_replicas_share"],
    ),
    (
        "an idempotent request outlives its replica",
        |c| yes(c.redelivers),
        &["crashes::an_idempotent_request_is_given_to_another"],
    ),
    (
        "a dropped call stops its handler",
        |c| yes(c.cancels),
        &[
            "calls::a_dropped_call_stops_an_idempotent_handler",
            "streams::a_dropped_stream_stops_its_producer",
        ],
    ),
    (
        "a slow reader slows the stream it reads",
        |c| yes(c.stream_credit),
        &["streams::a_slow_reader_slows_the_producer"],
    ),
    (
        "a pattern nobody handles fails at once",
        |c| yes(c.detects_absence),
        &["errors::an_unknown_pattern_is_an_error"],
    ),
    (
        "largest payload",
        |c| match c.max_payload >> 10 {
            kib if kib % 1024 == 0 => format!("{} MiB", kib >> 10),
            kib => format!("{kib} KiB"),
        },
        &[
            "limits::an_oversize_message_is_refused_and_the_next_one_passes",
            "events::an_oversize_event_is_refused",
        ],
    ),
];

fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

/// The columns of the table. `None` when a broker is missing here.
fn transports() -> Option<Vec<(&'static str, Fixture)>> {
    let nats = |options| Fixture::broker(Kind::Nats, options);
    let pubsub = Fixture::broker(Kind::Redis, "")?.scheme("redis+pubsub");
    Some(vec![
        ("`memory:`", Fixture::memory()?),
        ("`tcp://`", Fixture::peer("tcp://127.0.0.1:0")?),
        ("`nats://`", nats("")?),
        ("`nats://…?events=jetstream`", nats("events=jetstream")?),
        ("`redis://`", Fixture::broker(Kind::Redis, "")?),
        ("`redis+pubsub://`", pubsub),
        ("`kafka://`", Fixture::broker(Kind::Kafka, "")?),
    ])
}

#[test]
fn the_table_of_guarantees_is_what_the_transports_declare() {
    let Some(transports) = transports() else {
        eprintln!("skipped: a broker is missing");
        return;
    };
    let declared: Vec<_> = transports
        .iter()
        .map(|(_, fixture)| fixture.capabilities())
        .collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let names = transports.iter().map(|(name, _)| (*name).to_owned());
    let mut table = line(iter::once(String::new()).chain(names).collect());
    table += &line(vec!["---".to_owned(); transports.len() + 1]);
    for (promise, says, _) in ROWS {
        let cells = declared.iter().map(says);
        table += &line(iter::once((*promise).to_owned()).chain(cells).collect());
    }

    let readme = read("README.md");
    let (before, rest) = readme.split_once(START).expect("the table's start");
    let (written, after) = rest.split_once(END).expect("the table's end");
    if env::var_os("UPDATE").is_some() {
        let updated = format!("{before}{START}{table}{END}{after}");
        fs::write(path("README.md"), updated).unwrap();
        return;
    }
    assert!(
        written == table,
        "the README lies; UPDATE=1 writes what is true:\n{table}"
    );
}

#[test]
fn each_guarantee_has_cases_in_the_suite() {
    let list = read("framework/testkit/src/suite/mod.rs");
    for (promise, _, cases) in ROWS {
        assert!(!cases.is_empty(), "{promise}");
        for case in *cases {
            let is_listed = list.lines().any(|line| {
                let words = line.trim().trim_end_matches(';');
                words.split(" if ").next() == Some(case)
            });
            assert!(is_listed, "{promise}: the suite has no case {case}");
        }
    }
}

#[test]
fn each_promise_is_in_the_readme_and_names_tests_that_exist() {
    let readme = words(&read("README.md"));
    let page = read(PROMISES);
    let rows: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter_map(|line| line.split_once(" | "))
        .filter(|(promise, _)| !["the README says", "---"].contains(promise))
        .collect();
    assert!(rows.len() > 10, "{rows:?}");
    for (promise, tests) in rows {
        assert!(
            readme.contains(&words(promise)),
            "not in the README: {promise}"
        );
        let tests: Vec<_> = tests.split(", ").collect();
        for test in &tests {
            let (file, name) = test
                .strip_prefix('`')
                .and_then(|test| test.strip_suffix('`')?.split_once("::"))
                .unwrap_or_else(|| panic!("{promise}: {test} is no `file::test`"));
            let source = read(file);
            assert!(
                source.contains(&format!("fn {name}(")),
                "{promise}: there is no {name} in {file}"
            );
        }
    }
}

/// White space does not count: the README is wrapped.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn path(file: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.parent().unwrap().join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}
