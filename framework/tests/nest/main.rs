//! NestJS applications and nestling talk to each other, unchanged, on every transport.
//!
//! A case is written once, against a caller and a server that have the same handlers. It runs in four halves on each of
//! four transports:
//!
//! | half | caller | server |
//! |---|---|---|
//! | `reference` | NestJS | NestJS: what the others have to look like |
//! | `client` | NestJS | nestling |
//! | `server` | nestling, `?wire=nest` | NestJS |
//! | `mirror` | nestling, `?wire=nest` | nestling |
//!
//! `cargo test -p nestling --test nest tcp::client::` runs one of them. Beside the table, the service of `docs/nestjs.md`
//! runs in both of its forms. The applications are in `testkit/nestjs/`.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod caller;
mod calls;
mod errors;
mod events;
mod headers;
mod names;
mod needs;
mod nest_client;
mod records;
mod replicas;
mod router;
mod stage;
mod streams;
mod warehouse;

/// The list of cases; a word after `if` is what a case needs, see `needs.rs`.
macro_rules! cases {
    ($transport:ident, $half:ident) => {
        cases! { $transport, $half,
            calls::a_message_gets_its_reply;
            calls::values_of_every_type_travel;
            calls::text_stays_text;
            calls::unicode_travels;
            calls::a_typed_reply_is_decoded if nestling_caller;
            calls::an_object_is_a_pattern if object_patterns;
            calls::the_order_of_keys_in_a_pattern_does_not_matter if object_patterns;
            calls::a_number_is_a_pattern;
            calls::a_pattern_may_be_any_text if object_patterns;
            calls::null_is_a_reply;
            calls::nothing_is_a_reply if nest_server;
            calls::null_is_a_request if null_requests;
            calls::two_hundred_callers_each_get_their_own_reply;
            calls::two_hundred_kilobytes_travel_both_ways;
            calls::an_unknown_pattern_is_an_error if nestling_caller;
            calls::an_unknown_pattern_is_told_as_nestjs_does if nest_caller no_handler_replies;
            calls::a_handler_without_an_answer_runs_into_the_deadline if nestling_caller parallel_handlers;
            calls::callers_of_every_kind_share_a_server if nest_caller nestling_server;
            calls::a_wildcard_handler_is_reached if wildcards;

            streams::values_of_one_moment_arrive;
            streams::values_over_time_arrive;
            streams::a_late_end_is_an_end;
            streams::a_stream_may_be_empty;
            streams::an_error_ends_a_stream_after_its_values;
            streams::a_reader_may_leave_an_endless_stream;
            streams::a_thousand_values_keep_their_order;

            errors::a_typed_error_keeps_code_message_and_details;
            errors::an_error_without_details_has_none if nestling_server;
            errors::a_fault_says_nothing_of_itself;
            errors::an_undecodable_payload_is_the_callers_fault if nestling_server;
            errors::a_text_is_a_message if nest_server;
            errors::an_object_is_kept_whole if nest_server;
            errors::a_number_is_an_error if nest_server;
            errors::an_error_may_say_nothing if nest_server;
            errors::a_stream_may_fail_at_once if nest_server;
            errors::the_server_goes_on;

            events::an_event_reaches_its_handler;
            events::an_object_is_a_pattern_of_an_event if object_patterns;
            events::text_is_an_event;
            events::an_event_that_must_not_be_lost_arrives;
            events::a_message_may_be_emitted;
            events::an_event_may_be_sent if event_replies;
            events::a_wildcard_sees_events if nats;
            events::a_failing_event_lets_the_next_through if nest_server;

            headers::headers_of_a_message_travel;
            headers::headers_of_an_event_travel;
            headers::a_message_without_headers_is_fine;
            headers::the_deadline_travels_to_nestjs if nestling_caller nest_server;
            headers::a_deadline_from_nestjs_counts if nestling_server;

            records::a_handler_sees_the_record if kafka;
            records::a_reply_may_be_a_record if kafka nest_server;
            records::a_number_is_text_to_nestjs if kafka nest_server;
            records::a_retriable_failure_is_tried_again if kafka nest_server;
            records::a_record_of_nestjs_is_its_value if kafka nest_caller;

            records::an_event_for_both_is_heard_by_nestjs if kafka nestling_caller nest_server;

            replicas::a_request_is_answered_by_one_of_two if nestling_server shares;
            replicas::a_server_may_keep_to_its_own_wire if nest_caller nestling_server tcp;
            replicas::a_draining_server_answers_what_is_in_work if nestling_server;
            replicas::a_caller_survives_a_restarted_server if nestling_server;
        }
    };
    ($transport:ident, $half:ident, $($group:ident :: $case:ident $(if $($need:ident)+)?;)*) => {
        $(#[test]
        fn $case() {
            $crate::stage::run(
                $crate::stage::Transport::$transport,
                $crate::stage::$half,
                stringify!($case),
                &[$($((stringify!($need), $crate::needs::$need)),+)?],
                $crate::$group::$case,
            );
        })*
    };
}

macro_rules! transports {
    ($($module:ident is $transport:ident;)*) => {
        $(mod $module {
            mod reference {
                cases!($transport, REFERENCE);
            }
            mod client {
                cases!($transport, CLIENT);
            }
            mod server {
                cases!($transport, SERVER);
            }
            mod mirror {
                cases!($transport, MIRROR);
            }
        })*
    };
}

transports! {
    tcp is Tcp;
    nats is Nats;
    redis is Redis;
    kafka is Kafka;
}
