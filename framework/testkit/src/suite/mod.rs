//! The conformance suite: one list of cases, the same for every transport.
//!
//! [`conformance!`](crate::conformance) turns the list into one test per transport and case, so that a test runner shows
//! every cell of the table. A cell is switched off by the transport's own [`Capabilities`] and by nothing else: the list
//! says after `if` which of them a case needs.
//!
//! Cases share one broker and run side by side, each with a prefix of its own in all its names. They wait for conditions
//! and never for time to pass, so they are as fast as the transport and do not fail on a slow machine.

// A case is a test: it fails by panicking.
#![allow(
    clippy::unwrap_used,
    reason = "`allow-unwrap-in-tests` does not see the cases, which are in a library"
)]

pub mod broker;
pub mod calls;
mod child;
pub mod crashes;
pub mod dead_letters;
pub mod disorder;
pub mod errors;
pub mod events;
mod fixture;
pub mod limits;
pub mod links;
mod load;
pub mod needs;
pub mod replicas;
pub mod streams;
pub mod witness;

pub use child::serve_as_a_child;
pub use fixture::{Fixture, Stage, run};

/// One test per transport and case.
///
/// ```
/// use nestling_testkit::suite::Fixture;
///
/// nestling_testkit::conformance! {
///     memory => Fixture::memory();
///     tcp => Fixture::peer("tcp://127.0.0.1:0");
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance {
    ($($(#[$attribute:meta])* $transport:ident => $fixture:expr;)*) => {
        $($(#[$attribute])*
        mod $transport {
            #[allow(unused_imports, reason = "the fixture may be named by its path")]
            use super::*;

            static FIXTURE: std::sync::LazyLock<Option<$crate::suite::Fixture>> =
                std::sync::LazyLock::new(|| $fixture);

            $crate::conformance_cases!();
        })*

        /// Not a case: what one starts as a process of its own, to kill it. Otherwise it does nothing.
        #[test]
        fn a_replica_in_a_process_of_its_own() {
            $crate::suite::serve_as_a_child();
        }
    };
}

/// The list of cases, grouped as in the suite's modules.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    () => {
        $crate::conformance_cases! {
            calls::a_message_gets_its_reply;
            calls::headers_travel;
            calls::the_deadline_travels;
            calls::a_nested_call_inherits_deadline_and_actor;
            calls::two_hundred_callers_each_get_their_own_reply;
            calls::a_slow_handler_does_not_delay_others;
            calls::bincode_travels;
            calls::a_dropped_call_stops_an_idempotent_handler if cancels;
            calls::a_dropped_call_does_not_stop_a_handler_that_is_not_idempotent;

            streams::a_stream_has_all_its_values_in_order;
            streams::an_error_ends_a_stream_after_its_values;
            streams::a_stream_may_be_refused_before_its_first_value;
            streams::a_panic_ends_a_stream_after_its_values;
            streams::a_dropped_stream_stops_its_producer if cancels;
            streams::a_slow_reader_slows_the_producer if stream_credit;

            errors::a_typed_error_keeps_code_message_and_details;
            errors::an_unknown_pattern_is_an_error;
            errors::an_undecodable_payload_is_the_callers_fault;
            errors::a_call_without_a_reply_times_out_and_is_forgotten;
            errors::a_panic_is_internal_and_the_server_goes_on;

            limits::nine_hundred_kilobytes_travel_both_ways;
            limits::an_oversize_message_is_refused_and_the_next_one_passes;
            limits::an_oversize_reply_is_an_error_and_the_next_one_passes;
            limits::an_oversize_value_ends_its_stream;
            limits::no_more_than_the_limit_is_in_work;
            limits::a_pattern_or_headers_without_measure_are_refused_and_the_next_passes;
            limits::headers_up_to_the_limit_travel_with_the_largest_payload;

            events::an_event_reaches_its_handler;
            events::one_pattern_may_name_a_message_and_an_event;
            events::two_services_each_see_every_event_once if fan_out;
            events::events_with_one_key_keep_their_order if order_by_key;
            events::events_with_one_key_keep_their_order_in_a_replica if order_by_key_in_a_replica;
            events::a_failing_event_is_tried_up_to_the_limit_and_lets_the_next_through;
            events::an_event_that_cannot_pass_is_tried_once;
            events::a_panic_is_a_failure_like_any_other;
            events::an_undecodable_event_lets_the_next_through;
            events::the_failure_of_one_handler_does_not_repeat_the_other;
            events::an_oversize_event_is_refused;
            events::events_wait_for_a_stopped_service if durable;

            dead_letters::an_event_that_cannot_pass_is_kept_with_all_it_had if dead_letters;
            dead_letters::an_event_tried_in_vain_is_kept if dead_letters;
            dead_letters::a_replayed_event_reaches_only_the_handlers_that_failed if dead_letters fan_out;
            dead_letters::a_discarded_dead_letter_is_gone if dead_letters;
            dead_letters::dead_letters_are_listed_page_by_page_and_by_service if dead_letters;
            dead_letters::tries_are_counted_on_by_the_next_replica if dead_letters at_least_once;

            replicas::two_replicas_share if replicas_share;
            replicas::a_draining_server_answers_what_is_in_work;
            replicas::a_draining_replica_leaves_new_work_to_the_others if replicas_share;
            replicas::a_client_survives_a_restarted_service;
            replicas::replicas_come_and_go_and_no_event_is_lost_or_repeated if replicas_share;
            replicas::a_server_drains_under_load_and_another_takes_over;

            crashes::an_idempotent_request_is_given_to_another if redelivers replicas_share;
            crashes::an_event_is_given_to_another if at_least_once replicas_share;
            crashes::a_request_that_is_not_idempotent_never_runs_twice;
            crashes::a_killed_process_is_taken_over;

            broker::a_broker_killed_amid_five_thousand_of_each_comes_back;

            disorder::events_are_begun_in_the_order_they_were_emitted if order;
            disorder::a_failing_event_is_not_overtaken_by_others_of_its_key if order_by_key_in_a_replica at_least_once;
            disorder::a_clock_may_be_wrong;
            disorder::an_event_that_comes_twice_has_one_effect if at_least_once;

            links::a_caller_survives_a_frozen_link_and_a_cut_one;
            links::a_caller_notices_a_link_that_is_dead;
            links::a_service_notices_a_link_that_is_dead;
            links::another_replica_answers_for_one_behind_a_dead_link if replicas_share;
            links::a_caller_that_does_not_read_holds_up_nobody_else;
            links::a_slow_consumer_loses_nothing_and_holds_up_no_other if fan_out;
        }
    };
    ($($group:ident :: $case:ident $(if $($need:ident)+)?;)*) => {
        $(#[test]
        fn $case() {
            $crate::suite::run(
                &FIXTURE,
                stringify!($case),
                &[$($((stringify!($need), $crate::suite::needs::$need)),+)?],
                $crate::suite::$group::$case,
            );
        })*
    };
}
